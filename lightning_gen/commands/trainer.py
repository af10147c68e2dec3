"""The trainer of the command line, and what Lightning is not to say there."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_gen.callbacks.progress import ProgressBar
from lightning_gen.callbacks.summary import NetworkSummary
from lightning_gen.callbacks.throughput import TrainingMonitor
from lightning_gen.checkpoints import AtomicCheckpointIO
from lightning_gen.sharding import ShardedStrategy

# Settings that Lightning refuses beside `barebones`, which many a configuration has.
REFUSED_BY_BAREBONES = (
    "logger",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "num_sanity_val_steps",
)


class Trainer(pl.Trainer):
    """Lightning's Trainer with checkpoints written atomically, in one folder, and our `fsdp`, progress bar and summary.

    Loggers are given speed, memory and learning rates (`TrainingMonitor`).

    The limits are declared again because the command line would otherwise read 1, one batch, as 1.0, all of them.
    """

    def __init__(
        self,
        *args: Any,
        callbacks: list[pl.Callback] | pl.Callback | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        barebones: bool = False,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        for wanted, base, own in (
            (enable_progress_bar, LightningProgressBar, ProgressBar),
            (enable_model_summary, ModelSummary, NetworkSummary),
        ):
            if wanted is not False and not barebones and not any(isinstance(c, base) for c in callbacks):
                callbacks = [*callbacks, own()]
        if not barebones and not any(isinstance(callback, TrainingMonitor) for callback in callbacks):
            callbacks = [*callbacks, TrainingMonitor()]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint):
                name_flatly(callback)
        if kwargs.get("strategy") == "fsdp":  # Lightning's own has checkpoints and weights in pieces
            kwargs["strategy"] = ShardedStrategy()
        super().__init__(
            *args,
            callbacks=callbacks,
            enable_progress_bar=enable_progress_bar,
            enable_model_summary=enable_model_summary,
            barebones=barebones,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = AtomicCheckpointIO()


def name_flatly(callback: ModelCheckpoint) -> None:
    """Let the slash in the name of a metric not make a folder: `{val/fid:.2f}` becomes `val_fid=12.34`."""
    name = callback.filename or ""
    if callback.auto_insert_metric_name and re.search(r"\{[^:}]*/", name):
        callback.auto_insert_metric_name = False
        callback.filename = re.sub(r"\{([^:}]*)", lambda field: f"{field[1].replace('/', '_')}={field[0]}", name)


_SAYING_NOTHING = (
    "Tip:",
    "Detected KeyboardInterrupt",
    "already configured with model summary",
    "TPU available: False",
    "HPU available: False",
)


_OF_DEVICES = ("GPU available",)


class _Quiet(logging.Filter):
    """Lets messages through that have none of some words; there is one, so that the last command of a process decides.

    Attributes:
        words: Which.
    """

    words: tuple[str, ...] = ()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is let through."""
        return not any(words in record.getMessage() for words in self.words)


_QUIET = _Quiet()


def quiet_lightning(trains: bool = False) -> None:
    """Silence messages that say nothing to a user of ours; and which devices there are, unless something is trained."""
    _QUIET.words = _SAYING_NOTHING + (() if trains else _OF_DEVICES)
    for pattern in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*is smaller than the logging interval.*",
        ".*predict returned None.*",
        "LightningCLI's args parameter is intended.*",
        ".*not supported by the model summary.*",
        ".*self.log\\(\\)` but `Trainer\\(barebones=True\\).*",
        # `Pictures` takes their states.
        ".*Please add the following callbacks: \\['(TranslationGrid|SampleGrid|PointCloud)'\\].*",
    ):
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).addFilter(_QUIET)
