"""Ctrl-C in the middle of a step: what is saved, what is said, and that the run goes on as if nothing had been."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from lightning_gen.checkpoints import read_checkpoint
from lightning_gen.cli import main
from lightning_gen.models import CycleGAN
from tests.shared import repeatable

RUN = Path("runs/cyclegan/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def interrupted(where, signals, *arguments):
    """A command that is sent signals, as a terminal does, in the middle of the third training step or first validation.

    Its exit code, and whether the step that the signal came in was ended.
    """
    os.setpgrp()  # which the loader's processes belong to, too
    ended = []

    def wrap(method, when):
        original = getattr(CycleGAN, method)

        def step(self, *args):
            result = original(self, *args)
            if not ended and when(self.trainer):
                for number in signals:
                    os.killpg(0, number) if number == signal.SIGINT else os.kill(os.getpid(), number)
                ended.append(method)
            return result

        setattr(CycleGAN, method, step)

    if where == "training":
        wrap("discriminator_losses", lambda trainer: trainer.global_step == 3)  # the generators are updated already
    else:
        wrap("validation_step", lambda trainer: trainer.global_step == 2)
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code, ended
    return 0, ended


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    ("where", "number", "code", "step"),
    [("training", signal.SIGINT, 130, 3), ("validation", signal.SIGTERM, 143, 2)],
)
def test_a_signal_ends_the_run_with_its_step_and_loses_nothing(
    tiny, command, fresh_process, capfd, where, number, code, step
):
    tiny["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    tiny["data"]["init_args"]["num_workers"] = 1
    config = tiny.write()
    assert command("fit", "--config", config, "--trainer.default_root_dir", "through").code == 0
    assert fresh_process(interrupted, where, [number], "fit", "--config", config) == (code, [where_of(where)])
    said = capfd.readouterr()
    assert f"Stopped at step {step}. Go on: lightning-gen fit --ckpt_path {LAST}" in said.out
    assert "Traceback" not in said.err
    assert read_checkpoint(LAST)["global_step"] == step
    assert json.loads((RUN / "environment.json").read_text())["status"] == "stopped: interrupted"
    assert [path.name for path in sorted((RUN / "images" / "AtoB").iterdir())][-1] == f"step_{step:08d}.png"

    assert command("fit", "--ckpt_path", LAST).code == 0
    expected, found = (read_checkpoint(path) for path in ("through" / LAST.relative_to("runs"), LAST))
    for checkpoint in (expected, found):
        del checkpoint["callbacks"]  # the report knows of seconds, and the pictures of the last one
    assert equal(expected, found)
    through, stopped = (
        repeatable((run / "history.jsonl").open()) for run in ("through" / RUN.relative_to("runs"), RUN)
    )
    assert through == stopped


def where_of(where):
    return {"training": "discriminator_losses", "validation": "validation_step"}[where]


def test_a_second_signal_stops_at_once(tiny, fresh_process, capfd):
    tiny["checkpoint"] = {"every_n_steps": 2}
    code, ended = fresh_process(interrupted, "training", [signal.SIGINT] * 2, "fit", "--config", tiny.write())
    assert (code, ended) == (130, [])
    assert "Stopped at" not in capfd.readouterr().out
    assert read_checkpoint(LAST)["global_step"] == 2
