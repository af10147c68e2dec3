"""The checkpoint from which a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_gen.runs.folder import run_folder
from lightning_gen.runs.layout import CHECKPOINTS, LAST

HIGHER_IS_BETTER = ("is", "precision", "recall", "density", "coverage", "authpct", "psnr", "ssim", "accuracy")


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run's folder current: every so many steps, and when training ends.

    With `best`, the weights that were the best by a metric are kept beside it, which commands know as RUN/best. It
    brings Lightning's `ModelCheckpoint(monitor=best)`, which saves after a validation that is better than all before.
    Nothing is trained between the two, so where the run keeps an average of the weights, the file holds the average
    that was measured. Whoever wants more of it, as the best three, adds a `ModelCheckpoint` of their own instead.

    A save that is due comes when all other callbacks have ended the step, and before a validation that is due too:
    going on runs that one first. What a model does in its own `on_train_batch_end` comes after the save and would be
    missing; it belongs into `training_step` or into a callback.

    Args:
        every_n_steps: Generator updates between two saves.
        best: A metric that validation logs, such as "val/fid-scenes128"; None keeps no best.
        best_mode: Whether the best is its least or its largest value; None goes by its name: scores such as
            "val/recall" are to be large, distances and losses small.

    Raises:
        ValueError: If `every_n_steps` is below 1, or, at the first validation, `best` is not logged.
    """

    def __init__(
        self, every_n_steps: int = 500, best: str | None = None, best_mode: Literal["min", "max"] | None = None
    ) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"LastCheckpoint needs every_n_steps >= 1, got {every_n_steps}.")
        if best_mode not in (None, "min", "max"):
            raise ValueError(f"LastCheckpoint: best_mode must be 'min', 'max' or None, got {best_mode!r}.")
        self.every_n_steps = every_n_steps
        self.best, self.best_mode = best, best_mode or mode_of(best or "")
        self.last_step = 0
        # What loggers that upload checkpoints (`WandbLogger(log_model=True)`) ask a `ModelCheckpoint` for.
        self.last_model_path = self.best_model_path = ""
        self.current_score = self.best_model_score = None
        self.best_k_models: dict[str, Any] = {}
        self.save_top_k = 1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agree on the folder; all ranks are here. Bring what keeps the best."""
        run_folder(trainer)
        known = [callback.monitor for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        if stage == "fit" and self.best and self.best not in known:
            # Lightning is just going through this list, so the new one is set up next, and before states are restored.
            trainer.callbacks.append(  # type: ignore[attr-defined]
                ModelCheckpoint(
                    monitor=self.best,
                    mode=self.best_mode,
                    filename="best-step={step}",
                    auto_insert_metric_name=False,
                    save_on_train_epoch_end=False,
                )
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run stands."""
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save when due."""
        if trainer.global_step - self.last_step >= self.every_n_steps:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that the metric by which the best is chosen is there."""
        looks = trainer.sanity_checking or trainer.fast_dev_run or trainer.state.fn != TrainerFn.FITTING  # type: ignore[attr-defined]
        logged = trainer.callback_metrics
        if self.best and not looks and self.best not in logged:
            there = sorted(name for name in logged if name.startswith("val/"))
            raise ValueError(
                f"The best checkpoint is to be chosen by {self.best!r} (checkpoint.best), which validation does not "
                f"log. It logs {', '.join(there) or 'nothing: give the run a GenerativeMetrics'}."
            )

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


def mode_of(metric: str) -> Literal["min", "max"]:
    """Whether less or more of a metric is better, by its name, such as "val/recall-scenes128"."""
    figure = metric.rpartition("/")[2].partition("-")[0].partition("_")[0]
    return "max" if figure in HIGHER_IS_BETTER else "min"


def _moved(value: Any, old: str, new: str) -> Any:
    """The same, with the paths of one folder as those of another."""
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(part, old, new) for key, part in value.items()}
    if isinstance(value, str) and f"{value}/".startswith(f"{old}/"):
        return new + value[len(old) :]
    return value
