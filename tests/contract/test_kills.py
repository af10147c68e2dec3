"""Killed anywhere and gone on with, a run leaves what it leaves undisturbed: checkpoints, records, pictures, files."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.cli import main
from tests.shared import differences, repeatable

RUN = Path("runs/run/version_0")


# -- three models -----------------------------------------------------------------------------------------------------


def of_lightning(**settings):
    # By default a step that a run comes to again gets a second file.
    settings = {"save_top_k": -1, "auto_insert_metric_name": False, "enable_version_counter": False} | settings
    return {"class_path": "ModelCheckpoint", "init_args": settings}


def ema(*modules):
    return {"class_path": "EMA", "init_args": {"modules": list(modules)}}


def run_of(model, data, *callbacks, every, **trainer):
    """Some steps; a checkpoint every two, and before and after some validations others by Lightning's callback."""
    checkpoints = [
        of_lightning(every_n_train_steps=3, filename="before-{step}"),
        of_lightning(monitor="step", mode="max", filename="after-{step}"),
    ]
    return {
        "seed_everything": 3,
        "model": model,
        "data": data,
        "trainer": {
            "max_steps": 7,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "val_check_interval": every,
            "check_val_every_n_epoch": None,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "RunLogger", "init_args": {"save_dir": "runs", "name": "run"}},
            "callbacks": [*callbacks, *checkpoints],
            **trainer,
        },
        "checkpoint": {"every_n_steps": 2},
        "pictures": {"every_n_steps": 3, "num_images": 2},
    }


WIDE = {"init_args": {"widths": [4]}}
RUNS = {
    # Two batches of the critic to a step; six to an epoch.
    "wgan": run_of(
        {
            "class_path": "WGANGP",
            "init_args": {
                "generator": {"class_path": "MLPGenerator", "init_args": {"widths": [4], "output": "linear"}},
                "discriminator": {"class_path": "MLPDiscriminator", "init_args": {"widths": [4], "maxout": 1}},
                "latent_size": 2,
                "n_critic": 2,
                "decay_start": 0.0,
            },
        },
        {"class_path": "GridOfGaussians", "init_args": {"num_train": 24, "num_val": 4, "num_test": 4, "batch_size": 4}},
        ema("generator"),
        {
            "class_path": "GenerativeMetrics",
            "init_args": {"extractor": "PointFeatures", "figures": ["fid"], "num_samples": 8, "test_num_samples": 8},
        },
        every=4,
    ),
    "cyclegan": run_of(
        {
            "class_path": "CycleGAN",
            "init_args": {
                "generator": {"class_path": "ResNetGenerator", "init_args": {"filters": 2, "blocks": 1}},
                "discriminator": {"class_path": "PatchDiscriminator", "init_args": {"filters": 2, "layers": 1}},
                "pool_size": 2,
            },
        },
        {
            "class_path": "UnpairedScenes",
            "init_args": {"image_size": 16, "num_train": 3, "num_val": 2, "num_test": 2, "num_workers": 0},
        },
        ema("generator_AtoB", "generator_BtoA"),
        every=3,
        max_steps=-1,
        max_epochs=3,  # which its schedule counts in steps before the run begins
    ),
    "pixelcnn": run_of(
        {
            "class_path": "PixelCNN",
            "init_args": {
                "num_levels": 17,
                "network": {
                    "class_path": "PixelCNNNetwork",
                    "init_args": {"filters": 2, "layers": 1, "head_filters": 2},
                },
                "lr_decay": 0.9,
            },
        },
        {"class_path": "Digits", "init_args": {"batch_size": 2, "num_workers": 0}},
        ema("network"),
        every=2,
        limit_train_batches=3,
        limit_val_batches=2,
    ),
}


# -- how they are killed ----------------------------------------------------------------------------------------------


class Kill(NamedTuple):
    """A moment of a run: of the writing of a file ("line" is one of the history), or of a hook at a step."""

    what: str
    when: str | int  # before, half, whole (but not in its place yet) and after; or generator updates
    number: int = 1  # the first such moment, the second, ...


class Watch:
    """Kills this process, as kill -9 does, at a moment."""

    def __init__(self, kill):
        self.kill, self.left = kill, kill.number

    def comes(self, what, when):
        """Whether that is the moment."""
        self.left -= (what, when) == (self.kill.what, self.kill.when)
        return self.left == 0

    def passes(self, what, when):
        if self.comes(what, when):
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedFile:
    def __init__(self, file, what, watch):
        self.file, self.what, self.watch = file, what, watch
        self.writes = 0

    def write(self, data):
        self.writes += 1
        # A checkpoint comes in many pieces.
        if self.writes == (20 if self.what.endswith(".ckpt") else 1) and self.watch.comes(self.what, "half"):
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()
        if self.what == "line":
            self.watch.passes("line", "after")


HOOKS = ("on_train_start", "on_before_optimizer_step", "on_validation_batch_end", "on_validation_end",
         "on_train_epoch_end", "on_fit_end")  # fmt: skip


def fit_until(kill, *arguments):
    watch, opened, replaced = Watch(kill), Path.open, Path.replace

    def open_watched(path, mode="r", *rest, **settings):
        name = "line" if mode == "ab+" else (re.match(r"\.(.+)\.[^.]+\.\d+\.tmp", path.name) or [0, ""])[1]
        if not name:
            return opened(path, mode, *rest, **settings)
        watch.passes(name, "before")
        return WatchedFile(opened(path, mode, *rest, **settings), name, watch)

    def replace_watched(path, target):
        watch.passes(Path(target).name, "whole")
        replaced(path, target)
        watch.passes(Path(target).name, "after")

    Path.open, Path.replace = open_watched, replace_watched
    for hook in HOOKS:  # of the callback that comes last
        earlier = getattr(LastCheckpoint, hook)

        def watched(self, trainer, module, *rest, hook=hook, earlier=earlier):
            earlier(self, trainer, module, *rest)
            watch.passes(hook, trainer.global_step)

        setattr(LastCheckpoint, hook, watched)
    fit(*arguments)


def fit(*arguments):
    """0 if the run came to its end."""
    try:
        main(["fit", *map(str, arguments), "--debug"])
    except SystemExit as stop:
        return stop.code


# -- what they leave --------------------------------------------------------------------------------------------------


def content_of(path):
    """What a file says, without the time of day."""
    if path.suffix == ".ckpt":
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["callbacks"]["Report"]["seconds"]
        return checkpoint
    if path.name == "history.jsonl":
        return repeatable(path.read_text().splitlines())
    if path.name == "environment.json":
        environment = json.loads(path.read_text())
        return {name: value for name, value in environment.items() if name not in ("started", "resumed_from")}
    if path.name == "index.html":
        shown = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])
        del shown["axes"]["seconds"]
        return shown
    return path.read_bytes()


def contents_of(folder):
    return {path.relative_to(folder).as_posix(): content_of(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """All runs happen at the same place, for checkpoints know where they lie."""
    return tmp_path_factory.mktemp("kills")


@pytest.fixture
def undisturbed(place, monkeypatch, fresh_process):
    """What a run leaves that is left alone."""
    monkeypatch.chdir(place)
    shutil.rmtree("runs", ignore_errors=True)

    def run(name):
        if not Path(name).is_dir():
            Path(f"{name}.yaml").write_text(yaml.safe_dump(RUNS[name]))
            assert fresh_process(fit, "--config", f"{name}.yaml") == 0
            RUN.rename(name)
        return contents_of(Path(name))

    return run


LAST = "last.ckpt"


@pytest.mark.parametrize(
    ("name", "kills", "checkpoint"),
    [
        ("wgan", [Kill(LAST, "before", 2)], LAST),
        ("wgan", [Kill(LAST, "half", 2)], LAST),
        ("pixelcnn", [Kill(LAST, "whole", 2)], LAST),
        ("pixelcnn", [Kill(LAST, "after", 2)], LAST),
        ("wgan", [Kill("after-4.ckpt", "half")], LAST),
        ("cyclegan", [Kill("before-3.ckpt", "after")], "before-3.ckpt"),
        ("wgan", [Kill("before-6.ckpt", "after")], "before-6.ckpt"),
        ("pixelcnn", [Kill("after-6.ckpt", "after")], "after-6.ckpt"),
        ("wgan", [Kill("line", "before", 5)], LAST),
        ("cyclegan", [Kill("line", "half", 6)], LAST),
        ("pixelcnn", [Kill("line", "after", 6)], LAST),
        ("cyclegan", [Kill("step_00000003.png", "half", 2)], LAST),
        ("pixelcnn", [Kill("step_00000003.png", "after")], LAST),
        ("wgan", [Kill("on_validation_batch_end", 4)], LAST),
        ("cyclegan", [Kill("on_validation_end", 3)], LAST),
        ("pixelcnn", [Kill("on_train_epoch_end", 6)], LAST),
        ("cyclegan", [Kill("on_before_optimizer_step", 5, 2)], LAST),
        # When all steps are made.
        ("wgan", [Kill(LAST, "half", 4)], LAST),
        ("pixelcnn", [Kill(LAST, "after", 4)], LAST),
        ("cyclegan", [Kill("index.html", "half", 2)], LAST),
        ("wgan", [Kill("environment.json", "half", 3)], LAST),
        # And again when it goes on.
        (
            "wgan",
            [Kill(LAST, "after"), *(Kill(f, "half") for f in ("config.yaml", "history.jsonl", "evaluation.json"))],
            LAST,
        ),
        (
            "cyclegan",
            [
                Kill(LAST, "after"),
                Kill("on_train_start", 2),
                Kill(LAST, "whole", 2),
            ],
            LAST,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(".".join(map(str, kill)) for kill in value),
)  # fmt: skip
def test_a_run_that_is_killed_and_goes_on_leaves_what_it_leaves_undisturbed(
    undisturbed, fresh_process, name, kills, checkpoint
):
    expected = undisturbed(name)
    assert len(expected) > 12
    # Their names have the step that is in them, whatever optimizes the model.
    for path, content in expected.items():
        if path.startswith(("checkpoints/before-", "checkpoints/after-")):
            assert re.search(r"-(\d+)", path)[1] == str(content["global_step"])
    arguments = ["--config", f"{name}.yaml"]
    for kill in kills:
        assert fresh_process(fit_until, kill, *arguments) is None, f"the run has not come to {kill}"
        arguments = ["--ckpt_path", RUN / "checkpoints" / checkpoint]
    assert fresh_process(fit, *arguments) == 0
    assert differences(expected, contents_of(RUN)) == []
