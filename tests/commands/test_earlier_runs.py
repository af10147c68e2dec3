"""The folder of a run that an earlier version wrote is as good as one of today."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

FILES = Path(__file__).parent.parent / "checkpoints"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Such a folder, in which classes are named by files that are elsewhere now."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/gan/version_0")
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(FILES / "run.yaml", folder / "config.yaml")
    shutil.copy(FILES / "run.ckpt", folder / "checkpoints" / "last.ckpt")
    text = (folder / "config.yaml").read_text()
    moved = (
        "callbacks.run_logger.RunLogger",
        "callbacks.evaluation.GenerativeMetrics",
        "metrics.features.ModuleFeatures",
    )
    assert all(f"lightning_gen.{name}" in text for name in moved)
    return folder


def test_it_goes_on(run, command):
    last = run / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)
    ended = command("fit", "--ckpt_path", last, "--trainer.max_steps", 3)
    assert ended.code == 0, ended.err
    # Nothing was changed, and a class that is named another way is the same class.
    assert "Changed since the checkpoint" not in ended.err
    assert "add the following callbacks" not in ended.err
    after = torch.load(last, weights_only=True)
    assert (before["global_step"], after["global_step"]) == (2, 3)
    assert not list(Path("runs/gan").glob("version_1"))
    # What it is written anew with is public, but for what only a file of its own has.
    assert after["hyper_parameters"]["_class_path"] == "lightning_gen.models.GAN"
    assert after["hyper_parameters"]["loss"]["class_path"] == "lightning_gen.losses.Hinge"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["logger"]["class_path"] == "lightning_gen.callbacks.RunLogger"
    assert config["trainer"]["callbacks"][0]["class_path"] == "lightning_gen.callbacks.GenerativeMetrics"


def test_it_is_measured(run, command):
    ended = command("evaluate", "--checkpoint", run, "--num_samples", 40, "--figures", "fid")
    assert ended.code == 0, ended.err
    (written,) = json.loads((run / "evaluations.json").read_text())["evaluations"]
    assert "fid-flatten" in json.dumps(written)


def test_its_configuration_starts_a_run_anew(run, command):
    ended = command("fit", "--config", run / "config.yaml", "--trainer.max_steps", 1)
    assert ended.code == 0, ended.err
    assert (run.parent / "version_1" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("name", ["DiagonalBiLSTM", "PixelCNN", "PixelCNNPP", "RowLSTM"])
def test_arguments_are_understood_where_they_were(name, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    last = Path("runs/a/version_0/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    shutil.copy(FILES / f"{name}.ckpt", last)
    saved = torch.load(last, weights_only=True)["hyper_parameters"]
    arguments = {key: value for key, value in saved.items() if key not in ("image_shape", "_class_path")}
    assert "network" not in arguments  # whose sizes the model had as its own
    config = {
        "model": {"class_path": f"lightning_gen.models.{name}", "init_args": arguments},
        "data": {"class_path": "lightning_gen.data.Digits", "init_args": {"batch_size": 4, "num_workers": 0}},
        "trainer": {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "enable_progress_bar": False},
    }
    averages = {"class_path": "lightning_gen.callbacks.EMA", "init_args": {"modules": ["network"], "decay": 0.5}}
    config["trainer"]["callbacks"] = [averages] if name == "PixelCNN" else []
    (last.parent.parent / "config.yaml").write_text(yaml.safe_dump(config))
    ended = command("fit", "--ckpt_path", last, "--trainer.max_steps", 3)
    assert ended.code == 0, ended.err
    assert not re.search("Changed since the checkpoint: .*network", ended.err)
    after = torch.load(last, weights_only=True)
    assert after["global_step"] == 3
    assert "network" in after["hyper_parameters"]
    written = yaml.safe_load((last.parent.parent / "config.yaml").read_text())["model"]["init_args"]
    assert written["network"]["class_path"] == after["hyper_parameters"]["network"]["class_path"]
    # Where both places are taken, one is wrong.
    written[next(iter(arguments.keys() - written.keys()))] = 1
    Path("both.yaml").write_text(yaml.safe_dump(config | {"model": config["model"] | {"init_args": written}}))
    ended = command("fit", "--config", "both.yaml")
    assert ended.code == 2
    assert "It is a setting of its network: --model.network." in ended.err
