"""What comes next: the commands by which somebody goes on from a run, with its own paths."""

from __future__ import annotations

import shlex
from typing import Any

import lightning.pytorch as pl

from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.capabilities import Completes, Reconstructs, Samples, Translates
from lightning_gen.files import cache_folder
from lightning_gen.runs.folder import keeps_files, run_folder
from lightning_gen.runs.layout import CHECKPOINTS, CONFIG, LAST
from lightning_gen.trust import options_for


def what_next(trainer: pl.Trainer, model: Any) -> list[str]:
    """Commands for what a run has trained, by what the model can do, and for going on; none without a checkpoint."""
    if not keeps_files(trainer):
        return []
    run = run_folder(trainer)
    in_cache = run.resolve().is_relative_to(cache_folder().resolve())  # another run has asked for this one
    if in_cache or not (run / CHECKPOINTS / LAST).is_file():
        return []
    kept = any(isinstance(c, LastCheckpoint) and c.best for c in trainer.callbacks)  # type: ignore[attr-defined]
    use = shlex.quote(str(run / "best" if kept else run))
    trusting = options_for(run / CONFIG)
    commands = []
    for protocol, command in (
        (Translates, f"translate --checkpoint {use} --input PICTURES --output FOLDER"),
        (Samples, f"sample --checkpoint {use} --output FOLDER"),
        (Completes, f"complete --checkpoint {use} --input PICTURES --output FOLDER"),
        (Reconstructs, f"reconstruct --checkpoint {use} --input PICTURES --output FOLDER"),
        ((Samples, Reconstructs), f"evaluate --checkpoint {use}"),
    ):
        if isinstance(model, protocol):
            commands.append(command)
    if not isinstance(model, Samples | Reconstructs):
        commands.append(f"test --ckpt_path {use}")
    if limit := further(trainer):
        commands.append(f"fit --ckpt_path {shlex.quote(str(run))} {limit}")
    return [f"lightning-gen {command}{trusting}" for command in commands]


def further(trainer: pl.Trainer) -> str | None:
    """The option that lets a run go on as long again as it has lasted; None if it can go on without."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return f"--trainer.max_steps {2 * trainer.max_steps}"
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch:
        return f"--trainer.max_epochs {2 * trainer.max_epochs}"
    return None
