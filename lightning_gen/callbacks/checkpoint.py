"""The checkpoint from which a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_gen.callbacks.run_folder import CHECKPOINTS, LAST, run_folder


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run's folder current: every so many steps, and when training ends.

    The best weights by some metric are `lightning.pytorch.callbacks.ModelCheckpoint`'s business; this one is for going
    on after a stop.

    Args:
        every_n_steps: Generator updates between two saves.

    Raises:
        ValueError: If that is below 1.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"LastCheckpoint needs every_n_steps >= 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.last_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agree on the folder; all ranks are here."""
        run_folder(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run stands."""
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save when due."""
        if trainer.global_step - self.last_step >= self.every_n_steps:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save how the run ended, with what came after the last save: a validation, the end of an epoch."""
        if trainer.global_step > 0:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> Path | None:
        """Save now, on all ranks; gives the file, or None under `fast_dev_run`, which leaves none."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        self.last_step = trainer.global_step
        path = run_folder(trainer) / CHECKPOINTS / LAST
        trainer.save_checkpoint(path, weights_only=False)
        return path
