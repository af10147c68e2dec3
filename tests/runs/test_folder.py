"""The folder of a run, and one rule for finding a checkpoint and the run that it is of."""

import os
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_gen.runs.folder import find_checkpoint, find_checkpoints, run_folder
from lightning_gen.runs.layout import run_folder_of_checkpoint


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(path, step=0, best=None, monitor="val/fid", dirpath="/elsewhere/checkpoints"):
    """A checkpoint in which a ModelCheckpoint calls one the best; it was written in another place than it lies in."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"monitor": monitor, "best_model_path": f"{dirpath}/{best}" if best else "", "dirpath": dirpath}
    callbacks = {"EMA": {}, f"ModelCheckpoint{{'monitor': '{monitor}'}}": state}
    torch.save({"state_dict": {}, "global_step": step, "callbacks": callbacks}, path)
    return path


@pytest.fixture
def run():
    """A run with brackets in its name, whose checkpoints lie in folders of the metric that names them."""
    folder = Path("runs/[a]*/version_0")
    save(folder / "checkpoints/step=20-val/fid=9.0.ckpt", 20, "step=20-val/fid=9.0.ckpt")
    save(folder / "checkpoints/step=900-val/fid=9.0.ckpt", 900, "step=900-val/fid=9.0.ckpt")
    save(folder / "checkpoints/step=1000-val/fid=9.5.ckpt", 1000, "step=900-val/fid=9.0.ckpt")
    (folder / "config.yaml").touch()
    return folder


def test_the_run_of_a_checkpoint_is_found_by_walking_up(run, monkeypatch):
    (first, *_) = (run / "checkpoints").rglob("*.ckpt")
    assert run_folder_of_checkpoint(str(first)) == run
    assert run_folder_of_checkpoint(run / "copied.ckpt") == run
    for record in ("history.jsonl", "environment.json"):
        (run / "config.yaml").unlink(missing_ok=True)
        assert run_folder_of_checkpoint(first) is None, "a folder called checkpoints is not yet a run"
        (run / record).touch()
        assert run_folder_of_checkpoint(first) == run
        (run / record).unlink()
    (run / "config.yaml").touch()
    # From inside, and through a link.
    Path("link.ckpt").symlink_to(first)
    assert run_folder_of_checkpoint("link.ckpt") == run.absolute()
    monkeypatch.chdir(first.parent)
    assert run_folder_of_checkpoint(first.name).samefile(Path("../.."))


def test_a_project_s_own_config_makes_no_run():
    Path("config.yaml").touch()
    assert run_folder_of_checkpoint(save("weights/a.ckpt")) is None


def test_a_run_its_last_and_its_best_checkpoint_have_names(run, monkeypatch):
    steps = {int(path.parts[-2][5:-4]): path for path in (run / "checkpoints").rglob("*.ckpt")}
    for name in (run, run / "last", run / "checkpoints", run / "checkpoints" / "last"):
        assert find_checkpoint(name) == steps[1000], "the one with the most steps"
    for name in (run / "best", run / "checkpoints" / "best"):
        assert find_checkpoint(str(name)) == steps[900], "of two files of one name"
    last = save(run / "checkpoints" / "last.ckpt", 950, "step=900-val/fid=9.0.ckpt")
    assert find_checkpoint(run) == find_checkpoint(run / "last") == find_checkpoint(last) == last
    monkeypatch.chdir(run)
    assert find_checkpoint("last") == find_checkpoint(".") == Path("checkpoints/last.ckpt")
    assert find_checkpoint("best") == Path("checkpoints/step=900-val/fid=9.0.ckpt")


def test_a_folder_that_is_no_run_may_have_a_checkpoint():
    only = save("weights/a.ckpt")
    save("weights/deeper/b.ckpt", 7)
    assert find_checkpoint("weights") == only
    assert find_checkpoint("weights/last") == only


def test_what_is_not_there_is_answered_with_what_is(run):
    words = {
        run / "checkpoints" / "lost.ckpt": f"lost.ckpt. {run} has checkpoints/step=20-val/fid=9.0.ckpt, checkpoints/",
        run / "lost": f"There is no checkpoint at {run}/lost. {run} has checkpoints/step=20",
        "runs/[a]*": f"{Path('runs/[a]*').absolute()} has the runs version_0.",
        "runs/lost/version_3": f"{Path('runs').absolute()} has the runs [a]*/version_0.",
        "none.ckpt": f"There is no checkpoint at none.ckpt. {Path.cwd()} has the runs runs/[a]*/version_0.",
        "best": "best is that of a run, as in RUN/best.",
    }
    for name, expected in words.items():
        for find in (find_checkpoint, find_checkpoints):
            with pytest.raises(FileNotFoundError) as raised:
                find(str(name))
            assert expected in str(raised.value)
    shutil.rmtree("runs")
    with pytest.raises(FileNotFoundError, match=r"^There is no checkpoint at none.ckpt\.$"):
        find_checkpoint("none.ckpt")


def test_words_for_a_best_checkpoint_that_is_not_there(run):
    (run / "checkpoints/step=900-val/fid=9.0.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"fid=9\.0\.ckpt, the best checkpoint of .* by val/fid, is not th"):
        find_checkpoint(run / "best")
    save(run / "checkpoints/last.ckpt", 1001)
    with pytest.raises(FileNotFoundError, match=r"no ModelCheckpoint with a `monitor` was among .* It has .*t\.ckpt"):
        find_checkpoint(run / "best")
    states = {
        f"ModelCheckpoint{name}": {"monitor": name, "best_model_path": f"{name}.ckpt", "dirpath": None} for name in "ab"
    }
    torch.save({"state_dict": {}, "global_step": 1002, "callbacks": states}, run / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"are the best: a\.ckpt by a, b\.ckpt by b\. Name one of them\."):
        find_checkpoint(run / "best")


def test_all_checkpoints_come_by_number(run):
    ordered = [
        run / f"checkpoints/step={name}.ckpt" for name in ("20-val/fid=9.0", "900-val/fid=9.0", "1000-val/fid=9.5")
    ]
    assert find_checkpoints(str(run)) == find_checkpoints(f"{run}/checkpoints") == ordered
    assert find_checkpoints("runs/*/version_*") == ordered
    # Folders that exist are meant as they are written; what remains is a pattern.
    assert find_checkpoints(f"{run}/checkpoints/step=?0*/*9.0.ckpt") == ordered[:2]
    assert find_checkpoints(f"{run.absolute()}/**/step=9*/*.ckpt") == [ordered[1].absolute()]
    assert find_checkpoints([f"{run}/last", str(ordered[0]), f"{run}/best"]) == [ordered[2], ordered[0], ordered[1]]
    odd = save(run / "checkpoints/[1].ckpt")
    assert find_checkpoints(str(odd)) == [odd]
    os.chdir(run)
    assert find_checkpoints("checkpoints/step=[29]0*") == [path.relative_to(run) for path in ordered[:2]]


# -- the folder of a trainer


def trainer(**settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return pl.Trainer(max_steps=2, limit_val_batches=0, **quiet, **settings)


@pytest.mark.parametrize("make", [CSVLogger, TensorBoardLogger])
def test_folder_is_that_of_the_logger_and_of_the_checkpoints(tmp_path, make):
    pl_trainer = trainer(logger=make(tmp_path, "run"))
    pl_trainer.fit(BoringModel())
    assert run_folder(pl_trainer) == Path("run/version_0"), "as people write it from where they are"
    assert Path(pl_trainer.logger.log_dir) == tmp_path / "run" / "version_0"
    assert Path(pl_trainer.checkpoint_callback.dirpath).parent == tmp_path / "run" / "version_0"


def test_folder_without_a_logger(tmp_path):
    assert run_folder(trainer(logger=False, default_root_dir=tmp_path)) == tmp_path


def test_asking_for_the_folder_starts_no_wandb_run(tmp_path):
    logger = WandbLogger(project="toys", save_dir=tmp_path, id="abc")
    assert run_folder(trainer(logger=[logger, CSVLogger(tmp_path)])) == Path("toys/abc")
    assert logger._experiment is None
    assert not list(tmp_path.iterdir())
