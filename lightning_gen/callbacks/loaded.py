"""The step of the weights that a trainer looks at."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn


class KnowsStep(pl.Callback):
    """A callback that knows the step of the weights also outside of training, where Lightning does not restore it."""

    loaded_step = 0

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the step."""
        self.loaded_step = int(checkpoint["global_step"])

    def step_of_weights(self, trainer: pl.Trainer) -> int:
        """Generator updates that made the present weights."""
        loaded = trainer.state.fn != TrainerFn.FITTING and trainer.ckpt_path
        return self.loaded_step if loaded else trainer.global_step
