"""What Ctrl-C does to a run: it ends with the step, and nothing of it is lost."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.callbacks.pictures import Pictures
from lightning_gen.runs.folder import run_folder
from lightning_gen.runs.layout import CONFIG
from lightning_gen.trust import options_for

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHEAP = 10.0  # seconds that a last picture may take


class Interruption(Checkpoint):
    """Lets Ctrl-C and SIGTERM end the training when the step, or the validation, that is under way has ended.

    Then `last.ckpt` is written by `LastCheckpoint`, and a last picture is drawn if that takes a moment only. Another
    Ctrl-C stops at once. Either way `KeyboardInterrupt` is raised, with the signal's number where it is another one.

    It is a `Checkpoint` so that Lightning lets all other callbacks finish the step first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None
        self.says_how = False  # whether it is still to be said how to go on, should the training fail
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from now on."""
        self.signal, self.says_how = None, True
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if that was asked for during the validation."""
        if self._handlers:
            self.on_train_batch_end(trainer, pl_module)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self._leave()
            raise KeyboardInterrupt(number)
        self.signal = number
        # For `print` is not made for handlers.
        os.write(2, b"\nStopping when this step has ended; once more stops at once.\n")

    def _leave(self, *_: Any, **__: Any) -> None:
        """Listen no more; what is left to do when training ends does not take long."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no more."""
        self._leave()
        self.says_how = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no more, and say how to go on where a checkpoint has been written."""
        self._leave()
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        last = next((callback for callback in callbacks if isinstance(callback, LastCheckpoint)), None)
        if self.says_how and last is not None and last.last_model_path and trainer.is_global_zero:
            words = _how_to_go_on(trainer, Path(last.last_model_path))
            print(f"The last checkpoint is that of step {last.last_step}. {words}", file=sys.stderr, flush=True)
        self.says_how = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop if that was asked for."""
        asked = self.signal is not None
        if trainer.world_size > 1:  # a signal may reach the ranks in different steps
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        words = f"Stopped at step {trainer.global_step}."
        for callback in callbacks:
            if isinstance(callback, LastCheckpoint) and (path := callback.save(trainer)):
                words += f" {_how_to_go_on(trainer, path)}"
        for callback in callbacks:
            if isinstance(callback, Pictures) and callback.seconds < CHEAP:
                callback.on_train_end(trainer, pl_module)
        if trainer.is_global_zero:
            print(words, flush=True)
        self.says_how = False
        raise KeyboardInterrupt(self.signal or signal.SIGINT)


def _how_to_go_on(trainer: pl.Trainer, checkpoint: Path) -> str:
    trusting = options_for(run_folder(trainer) / CONFIG)
    return f"Go on: lightning-gen fit --ckpt_path {shlex.quote(str(checkpoint))}{trusting}"
