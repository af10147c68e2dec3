"""What comes next: the commands by which somebody goes on from a run or a checkpoint, with its own paths."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.capabilities import Completes, Reconstructs, Samples, Translates
from lightning_gen.commands.help import options
from lightning_gen.files import cache_folder
from lightning_gen.runs.folder import keeps_files, run_folder
from lightning_gen.runs.layout import CHECKPOINTS, CONFIG, LAST, run_folder_of_checkpoint
from lightning_gen.trust import options_for


def say_next(checkpoint: str | os.PathLike[str], *commands: str) -> None:
    """Say by which commands somebody can go on with a checkpoint, if there are any.

    Args:
        checkpoint: Stands where commands have `{}`: a run's folder, RUN/best, or a file.
        commands: Without the name of the program. `evaluate` is left out where the checkpoint lies in no run, which
            would say what the data is.
    """
    run = run_folder_of_checkpoint(checkpoint)
    trusting = options_for(run / CONFIG) if run else ""
    named = shlex.quote(str(checkpoint))
    lines = [
        f"lightning-gen {command.replace('{}', named)}{trusting}"
        for command in commands
        if run or not command.startswith("evaluate --checkpoint")
    ]
    if lines:
        print("\n  ".join(["Next:", *lines]), flush=True)


def say_fit(arguments: Sequence[str]) -> None:
    """Say how to train what a command has looked at, by its arguments but for those that are its own."""
    command, *given = arguments
    own = {*options([command])} - {*options(["fit"])}
    kept: list[str] = []
    is_own = False
    for argument in given:
        if argument.startswith("--"):
            is_own = argument.partition("=")[0].removeprefix("--") in own
        kept += [] if is_own else [argument]
    named = {argument.partition("=")[0] for argument in kept}
    if named & {"--config", "-c", "--model"} and "--ckpt_path" not in named:
        print(f"Next:\n  {shlex.join(['lightning-gen', 'fit', *kept])}", flush=True)


def say_next_of_run(trainer: pl.Trainer, model: Any, tested: bool = False) -> None:
    """Say how to use what a run has trained, by what the model can do, and to go on; nothing without a checkpoint."""
    if not keeps_files(trainer):
        return
    run = run_folder(trainer)
    in_cache = run.resolve().is_relative_to(cache_folder().resolve())  # another run has asked for this one
    if in_cache or not (run / CHECKPOINTS / LAST).is_file():
        return
    kept = any(isinstance(c, LastCheckpoint) and c.best for c in trainer.callbacks)  # type: ignore[attr-defined]
    commands = []
    for protocol, command in (
        (Translates, "translate --checkpoint {} --input PICTURES --output FOLDER"),
        (Samples, "sample --checkpoint {} --output FOLDER"),
        (Completes, "complete --checkpoint {} --input PICTURES --output FOLDER"),
        (Reconstructs, "reconstruct --checkpoint {} --input PICTURES --output FOLDER"),
        ((Samples, Reconstructs), "evaluate --checkpoint {}"),
    ):
        if isinstance(model, protocol):
            commands.append(command)
    if not tested and not isinstance(model, Samples | Reconstructs):
        commands.append("test --ckpt_path {}")
    if limit := further(trainer):
        commands.append(f"fit --ckpt_path {shlex.quote(str(run))} {limit}")
    say_next(run / "best" if kept else run, *commands)


def further(trainer: pl.Trainer) -> str | None:
    """The option that lets a run go on as long again as it has lasted; None if it can go on without."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return f"--trainer.max_steps {2 * trainer.max_steps}"
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch:
        return f"--trainer.max_epochs {2 * trainer.max_epochs}"
    return None
