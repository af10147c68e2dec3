"""The checkpoint from which a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lightning_gen.runs.folder import CHECKPOINTS, LAST, run_folder


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run's folder current: every so many steps, and when training ends.

    The best weights by some metric are `lightning.pytorch.callbacks.ModelCheckpoint`'s business; this one is for going
    on after a stop.

    A save that is due comes when all other callbacks have ended the step, and before a validation that is due too:
    going on runs that one first. What a model does in its own `on_train_batch_end` comes after the save and would be
    missing; it belongs into `training_step` or into a callback.

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
        # What loggers that upload checkpoints (`WandbLogger(log_model=True)`) ask a `ModelCheckpoint` for.
        self.last_model_path = self.best_model_path = ""
        self.current_score = self.best_model_score = None
        self.best_k_models: dict[str, Any] = {}
        self.save_top_k = 1

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

    # -- Lightning's own callbacks ----------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note at which step each `ModelCheckpoint` saved last, which they do not."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                checkpoint["callbacks"][callback.state_key]["last_global_step_saved"] = callback._last_global_step_saved

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let each `ModelCheckpoint` know what it had saved, also where the run's folder is called otherwise by now.

        By themselves they would save a step again in which `n_critic` batches come; and as they note paths, in a run
        that was moved or begun by a relative path they would forget which checkpoints are theirs and which is best.
        """
        path = Path(trainer.ckpt_path or "").absolute()
        for callback in trainer.checkpoint_callbacks:
            noted = checkpoint.get("callbacks", {}).get(callback.state_key)
            if not isinstance(callback, ModelCheckpoint) or not noted:
                continue
            if Path(callback.dirpath or "").absolute() == path.parent:
                noted = _moved(noted, str(noted.get("dirpath")), str(callback.dirpath))
                checkpoint["callbacks"][callback.state_key] = noted
            saved = {noted.get("best_model_path"), *noted.get("best_k_models", ())}
            itself = str(path) in {str(Path(file).absolute()) for file in saved if file}
            step = checkpoint["global_step"] if itself else noted.get("last_global_step_saved", 0)
            callback._last_global_step_saved = step
            callback.current_score = noted.get("current_score")

    def save(self, trainer: pl.Trainer) -> Path | None:
        """Save now, on all ranks; gives the file, or None under `fast_dev_run`, which leaves none."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        self.last_step = trainer.global_step
        path = run_folder(trainer) / CHECKPOINTS / LAST
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # what they record is complete up to here
        trainer.save_checkpoint(path, weights_only=False)
        self.last_model_path = str(path)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)  # type: ignore[arg-type]
        return path


def _moved(value: Any, old: str, new: str) -> Any:
    """The same, with the paths of one folder as those of another."""
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(part, old, new) for key, part in value.items()}
    if isinstance(value, str) and f"{value}/".startswith(f"{old}/"):
        return new + value[len(old) :]
    return value
