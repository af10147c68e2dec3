"""`last.ckpt`: when it is written, where, and that a failure costs nothing."""

import os
import warnings
from unittest.mock import MagicMock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.commands.trainer import Trainer
from lightning_gen.models.adversarial import AdversarialModule

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")


class Game(AdversarialModule):
    """Two numbers; the generator is updated with every second batch."""

    def __init__(self):
        super().__init__((1, 1, 1))
        self.generator, self.critic = nn.Linear(1, 1), nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        self.update(critic, lambda: {"critic": self.critic.weight.square().sum()}, count=False)
        if batch_idx % 2:
            self.update(generator, lambda: {"generator": self.generator.weight.square().sum()})

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return [torch.optim.SGD(player.parameters(), lr=0.1) for player in (self.generator, self.critic)]


def numbers(count=100):
    return DataLoader(list(range(count)), None)


class Saves(pl.Callback):
    """The generator updates at each save."""

    def __init__(self):
        self.steps = []

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.steps.append(checkpoint["global_step"])


def trainer(folder, *callbacks, cls=Trainer, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return cls(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **settings})


@pytest.mark.parametrize(
    ("every", "steps", "expected"), [(2, 5, [2, 4, 5]), (2, 4, [2, 4, 4]), (1, 3, [1, 2, 3, 3]), (500, 3, [3])]
)
def test_it_saves_every_so_many_generator_updates_and_at_the_end(tmp_path, every, steps, expected):
    saves = Saves()
    trainer(tmp_path, LastCheckpoint(every), saves, max_steps=steps).fit(Game(), numbers())
    assert saves.steps == expected
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == steps
    assert list(tmp_path.rglob("*.*")) == [path]


def test_a_run_that_goes_on_counts_from_where_it_stands(tmp_path):
    trainer(tmp_path, LastCheckpoint(4), max_steps=3).fit(Game(), numbers())
    saves, path = Saves(), tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, LastCheckpoint(4), saves, max_steps=8).fit(Game(), numbers(), ckpt_path=path)
    assert saves.steps == [7, 8]
    # Nothing is left to save in a run that was over.
    saves = Saves()
    trainer(tmp_path, LastCheckpoint(4), saves, max_steps=8).fit(Game(), numbers(), ckpt_path=path)
    assert saves.steps == []


@pytest.mark.parametrize("cls", [Trainer, pl.Trainer], ids=["ours", "Lightning's"])
def test_it_lies_in_the_folder_of_the_logger_s_run(tmp_path, cls):
    logger = CSVLogger(tmp_path, "some", "thing")
    trainer(tmp_path / "elsewhere", LastCheckpoint(), cls=cls, max_steps=1, logger=logger).fit(Game(), numbers())
    assert (tmp_path / "some" / "thing" / "checkpoints" / "last.ckpt").is_file()
    assert not (tmp_path / "elsewhere").exists()


def test_a_fast_dev_run_and_evaluation_leave_nothing(tmp_path):
    trainer(tmp_path, LastCheckpoint(1), fast_dev_run=True).fit(Game(), numbers())
    trainer(tmp_path, LastCheckpoint(1)).validate(Game(), numbers(1), verbose=False)
    assert not list(tmp_path.rglob("*"))


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    sync = os.fsync

    class FillDisk(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))

    with pytest.raises(OSError, match="The checkpoints saved before it are untouched"):
        trainer(tmp_path, LastCheckpoint(2), FillDisk(), max_steps=9).fit(Game(), numbers())
    monkeypatch.setattr(os, "fsync", sync)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(("log_model", "uploads"), [(True, 1), ("all", 3), (False, 0)])
def test_wandb_uploads_it(tmp_path, monkeypatch, log_model, uploads):
    wandb = pytest.importorskip("wandb")
    added = []

    class Artifact:
        def __init__(self, **settings):
            self.settings = settings

        def add_file(self, path, **settings):
            added.append(torch.load(path, weights_only=True)["global_step"])

    monkeypatch.setattr(wandb, "Artifact", Artifact)
    experiment = MagicMock(id="abc")
    logger = WandbLogger(save_dir=tmp_path, id="abc", log_model=log_model, experiment=experiment)
    trainer(tmp_path, LastCheckpoint(2), max_steps=5, logger=logger).fit(Game(), numbers())
    assert added == [2, 4, 5][3 - uploads :]
    assert [call.kwargs["aliases"] for call in experiment.log_artifact.call_args_list] == [["latest"]] * uploads


# -- Lightning's own callbacks ---------------------------------------------------------------------------------------


def best(**settings):
    settings = {"filename": "best-{step}", "auto_insert_metric_name": False} | settings
    return ModelCheckpoint(monitor="step", mode="max", save_on_train_epoch_end=False, **settings)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_in_a_run_that_was_moved_lightning_s_callback_knows_its_checkpoints(tmp_path):
    def fit(folder, steps, checkpoint=None):
        callback = best()
        logger = CSVLogger(folder, "some", "thing")
        settings = {"logger": logger, "val_check_interval": 2, "check_val_every_n_epoch": None, "max_steps": steps}
        trainer(folder, LastCheckpoint(2), callback, **settings).fit(
            Game(), numbers(), numbers(1), ckpt_path=checkpoint
        )
        return callback

    fit(tmp_path / "a", 2)
    run = tmp_path / "a" / "some" / "thing"
    assert names(run) == ["best-2.ckpt", "last.ckpt"]
    (tmp_path / "a").rename(tmp_path / "b")
    run = tmp_path / "b" / "some" / "thing"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The dirpath has changed")
        callback = fit(tmp_path / "b", 4, run / "checkpoints" / "last.ckpt")
    assert names(run) == ["best-4.ckpt", "last.ckpt"], "it keeps one, and removes that of the earlier place"
    assert callback.best_model_path == str(run / "checkpoints" / "best-4.ckpt")


@pytest.mark.parametrize("start", ["last.ckpt", "every-2.ckpt"])
def test_lightning_s_callback_saves_no_step_again_that_it_had_saved(tmp_path, start):
    """The generator is updated with every second batch, so the third and fourth batch of a run have one step each."""

    callback = {
        "filename": "every-{step}",
        "auto_insert_metric_name": False,
        "every_n_train_steps": 2,
        "save_top_k": -1,
    }
    saves = Saves()
    trainer(tmp_path, ModelCheckpoint(**callback), LastCheckpoint(2), max_steps=2).fit(Game(), numbers())
    path = tmp_path / "checkpoints" / start
    assert names(tmp_path) == ["every-2.ckpt", "last.ckpt"]
    trainer(tmp_path, saves, ModelCheckpoint(**callback), LastCheckpoint(2), max_steps=4).fit(
        Game(), numbers(), ckpt_path=path
    )
    assert names(tmp_path) == ["every-2.ckpt", "every-4.ckpt", "last.ckpt"]
    assert 2 not in saves.steps


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="every_n_steps >= 1, got 0"):
        LastCheckpoint(0)


class Scored(Game):
    """A game that gets better with every step."""

    def validation_step(self, batch, batch_idx):
        self.log("val/score", float(self.trainer.global_step), batch_size=1)


def test_the_best_is_kept_by_its_metric_and_known_again_when_a_run_goes_on(tmp_path):
    def fit(folder, steps, *callbacks, checkpoint=None):
        settings = {"max_steps": steps, "val_check_interval": 2, "check_val_every_n_epoch": None}
        fitting = trainer(folder, LastCheckpoint(2, best="val/score", best_mode="max"), *callbacks, **settings)
        fitting.fit(Scored(), numbers(), numbers(1), ckpt_path=checkpoint)
        return fitting

    fit(tmp_path, 2)
    assert names(tmp_path) == ["best-step=2.ckpt", "last.ckpt"]
    fit(tmp_path, 4, checkpoint=tmp_path / "checkpoints" / "last.ckpt")
    assert names(tmp_path) == ["best-step=4.ckpt", "last.ckpt"], "the one that is no longer the best is gone"
    own = ModelCheckpoint(monitor="val/score", mode="max", filename="own")
    assert fit(tmp_path / "own", 2, own).checkpoint_callbacks[1:] == [own], "whoever has one by the metric keeps it"


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val/fid", "min"), ("val/fid-scenes128", "min"), ("val/kid_stderr", "min"), ("val/discriminator", "min"),
        ("val/recall-scenes128", "max"), ("val/is", "max"), ("val/psnr_AtoB", "max"), ("val/rfid", "min"),
    ],
)  # fmt: skip
def test_whether_more_is_better_goes_by_the_name(metric, mode):
    assert LastCheckpoint(best=metric).best_mode == mode
    assert LastCheckpoint(best=metric, best_mode="min").best_mode == "min"


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="best_mode must be 'min', 'max' or None, got 'least'"):
        LastCheckpoint(best="val/fid", best_mode="least")
