"""`fit --init_from`: a run that begins with the weights of another one."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lightning_gen.checkpoints import read_checkpoint
from lightning_gen.commands.going_on import with_configs

RUNS = Path("runs/dcgan")
DAY, NIGHT = RUNS / "version_0", RUNS / "version_1"


@pytest.fixture
def scenes(tiny):
    """Settings of a DCGAN of scenes."""
    networks = {
        name: {"class_path": f"DCGAN{name.capitalize()}", "init_args": {"filters": 2}}
        for name in ("generator", "discriminator")
    }
    tiny["model"] = {"class_path": "DCGAN", "init_args": {**networks, "latent_size": 3}}
    numbers = {"num_train": 8, "num_val": 2, "num_test": 2, "batch_size": 2, "num_workers": 0}
    tiny["data"] = {"class_path": "Scenes", "init_args": {"image_size": 16, **numbers}}
    tiny["trainer"]["callbacks"] = [{"class_path": "EMA", "init_args": {"modules": ["generator"], "decay": 0.9}}]
    return tiny


def test_day_to_night(scenes, command):
    config = scenes.write()
    assert command("fit", "--config", config).code == 0
    night = ["fit", "--config", config, "--data.init_args.domain", "night"]
    assert command(*night, "--init_from", DAY).code == 0
    report = (NIGHT / "started_from.txt").read_text()
    assert report == (
        f"Started from {DAY}/checkpoints/last.ckpt,\n"
        "weights of DCGAN after 4 steps and 8 pictures.\n"
        "Optimizers, schedules and counts begin anew; --ckpt_path would go on with it.\n"
        "  generator: all 11 tensors taken\n"
        "  discriminator: all 7 tensors taken\n"
    )
    assert "Started from other weights" in (NIGHT / "index.html").read_text()
    assert "discriminator: all 7 tensors taken" in (NIGHT / "index.html").read_text()
    environment = json.loads((NIGHT / "environment.json").read_text())
    assert environment["started_from"] == f"{DAY}/checkpoints/last.ckpt"
    assert environment["resumed_from"] is None
    end = read_checkpoint(NIGHT / "checkpoints" / "last.ckpt")
    assert (end["global_step"], end["images_seen"]) == (4, 8)
    # Its first checkpoint is all that it needs from here on.
    shutil.rmtree(DAY)
    assert yaml.safe_load((NIGHT / "config.yaml").read_text())["init_from"] == str(DAY)
    assert command("fit", "--ckpt_path", NIGHT, "--trainer.max_steps", 6).code == 0
    assert (NIGHT / "started_from.txt").read_text() == report
    assert read_checkpoint(NIGHT / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert command("test", "--ckpt_path", NIGHT).code == 0
    assert command("sample", "--checkpoint", NIGHT, "--output", "samples", "--num_samples", 2).code == 0
    anew = command("fit", "--config", NIGHT / "config.yaml")
    assert anew.code != 0
    assert re.search(r"There is no checkpoint at runs/dcgan/version_0\. .* has the runs version_1\.", anew.err)


def test_the_weights_are_those_of_the_first_batch(scenes, command):
    """A rate of almost nothing leaves them where they were."""
    assert command("fit", "--config", scenes.write()).code == 0
    scenes["model"]["init_args"]["learning_rate"] = 1e-30
    scenes["data"]["init_args"]["domain"] = "night"
    scenes["init_from"] = str(DAY / "checkpoints" / "last.ckpt")
    assert command("fit", "--config", scenes.write()).code == 0
    day, night = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (DAY, NIGHT))
    for name, tensor in day["raw_state_dict"].items():
        assert torch.equal(night["raw_state_dict"][name], tensor)
        assert not torch.equal(day["state_dict"][name], tensor) or "bias" in name  # the average is another
    for name, tensor in day["state_dict"].items():
        if name.startswith("discriminator") and name.endswith(("weight", "bias")):
            assert torch.equal(night["state_dict"][name], tensor)


def test_other_sizes_and_another_family(scenes, command):
    assert command("fit", "--config", scenes.write()).code == 0
    assert command("fit", "--config", "tiny.yaml", "--data.init_args.image_size", 32, "--init_from", DAY).code == 0
    words = "Not taken, for they are of another shape (given / needed):\n  generator.layers.0: weight "
    assert words in (NIGHT / "started_from.txt").read_text()
    scenes["model"] = {"class_path": "VAE"}
    scenes["trainer"]["callbacks"] = []
    other = command("fit", "--config", scenes.write(), "--init_from", DAY)
    assert other.code != 0
    assert f"Nothing of {DAY}/checkpoints/last.ckpt fits: it has weights of DCGAN (generator, discr" in other.err
    assert "Traceback" not in other.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--init_from", "a", "--ckpt_path=b"], "--init_from and --ckpt_path were both given. --ckpt_path goes"),
        (["test", "--init_from", "a"], "--init_from starts a run of fit. For test, weights are given as --ckpt_path a"),
        (["fit", "--init_from", "a"], "--init_from brings weights and no settings. Name a configuration too"),
        (["fit", "--init_from=a", "--model", "DCGAN"], "--init_from brings weights and no settings."),
    ],
)
def test_what_weights_to_start_from_do_not_go_with(arguments, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        with_configs(arguments)


def test_a_start_goes_with_settings():
    for arguments in (
        ["--config", "dcgan"],
        ["--model", "DCGAN", "--data", "Scenes"],
        ["--config", "dcgan", "--ckpt_path", "null"],
    ):
        assert with_configs(["fit", "--init_from", "a", *arguments])[-1] == with_configs(["fit", *arguments])[-1]
    assert with_configs(["test", "--init_from", "null", "--config", "dcgan"])
