"""A page about each run that opens without a server: pictures through time, curves, results, settings."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_gen import __version__
from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.callbacks.loaded import KnowsStep
from lightning_gen.callbacks.panels import domains_of
from lightning_gen.callbacks.throughput import learning_rates, memory
from lightning_gen.data.batches import batch_size
from lightning_gen.files import write_atomically
from lightning_gen.runs.folder import keeps_files, run_folder
from lightning_gen.runs.history import (
    Line,
    add_to_history,
    read_history,
    read_json,
    strict_json,
    sync_history,
    write_history,
)
from lightning_gen.runs.layout import ENVIRONMENT, HISTORY, PAGE, RESULTS, START, run_folder_of_checkpoint
from lightning_gen.runs.page import finish_record, note, write_report
from lightning_gen.starts import Start

_X_AXES = ("step", "epoch")  # what models log to set an axis, not to be seen


class Report(KnowsStep):
    """Keeps the history of a run and a page about it in the run's folder.

    * `history.jsonl`: a strict JSON object for every `trainer.log_every_n_steps` generator updates and every
      validation: "step", "seconds" of training so far (summed over resumed runs), "images_seen" if the model counts
      them, "memory_gib" that the first process has held at most so far, learning rates ("lr/generator", say; see
      `TrainingMonitor` for both), and the metrics that are new since the line before. Each line is written at once. A
      run that goes on from a checkpoint keeps the lines that stood there when it was written, and drops those that came
      after it.
    * `started_from.txt`: of a run that began with the weights of another (`init_from`), what it took and what not.
    * `environment.json`: versions, devices, precision, command line, start, how the run ended, the data's names of its
      domains, which checkpoints `ModelCheckpoint` has found best, and how many pictures the figures of validations are
      of, where a callback says so by `measured_on`, as `GenerativeMetrics` does.
    * `results.json`: the metrics of the last test, and how many pictures they are of. A test from `RUN/checkpoints/`
      belongs to RUN.
    * `index.html`: all of this and the pictures (`log_picture`) on one page, see `write_report`.

    Only rank zero writes, and nothing under `fast_dev_run`. A run does not stop because its report cannot be written:
    there is one warning.

    Args:
        every_n_seconds: Shortest time from one writing of the page to the next during training.

    Raises:
        ValueError: If `every_n_seconds` is negative.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        super().__init__()
        if every_n_seconds < 0:
            raise ValueError(f"Report: every_n_seconds must be 0 or more, got {every_n_seconds}.")
        self.every_n_seconds = every_n_seconds
        self.seconds_before = 0.0  # of training, before the present `fit`
        self.started: float | None = None  # the clock when the present `fit` began
        self.last_step = 0
        self.next_page = 0.0
        self.warned = False
        self.recorded: dict[str, Tensor] = {}
        self.waiting: dict[str, float] = {}  # metrics that a checkpoint brought and no line has yet
        self.noted: dict[str, Any] = {}  # in environment.json, of what may change
        self.measured: dict[str, dict[str, int]] = {}  # what figures of validations are of
        self.tested = 0  # pictures of the test
        self.lines = 0  # of the history
        self.lines_before: int | None = None  # when the checkpoint was written that the run goes on from

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumed runs."""
        return self.seconds_before + (0.0 if self.started is None else time.monotonic() - self.started)

    # -- training ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let all ranks agree on the run's folder."""
        run_folder(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the history, or go on with it, and write the first page."""
        if trainer.global_step == 0:
            self.seconds_before, self.lines_before, self.waiting = 0.0, None, {}
        self.started = time.monotonic()
        self.last_step = trainer.global_step
        self.recorded, self.noted = {}, {}
        lines, self.lines_before = self.lines_before, None
        if keeps_files(trainer):
            folder = run_folder(trainer)
            with self._harmless():
                self.lines = _begin_history(folder / HISTORY, trainer, lines)
                known = read_json(folder / ENVIRONMENT).get("measured_on") if trainer.global_step else None
                self.measured = known if isinstance(known, dict) else {}
                write_atomically(folder / ENVIRONMENT, strict_json(_environment(trainer, pl_module), indent=2))
                start: Start | None = getattr(pl_module, "started_from", None)
                if start is not None:
                    write_atomically(folder / START, f"{start}\n".encode(errors="replace"))
            self._write_page(trainer, "running")
            rank_zero_info(f"Watch: {folder / PAGE}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Add to the history and renew the page where it is time."""
        if keeps_files(trainer):
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and trainer.global_step // every > self.last_step // every:
                self._record(trainer, pl_module)
            if time.monotonic() >= self.next_page:
                self._write_page(trainer, "running")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the validation's metrics to the history."""
        if keeps_files(trainer) and self.started is not None and not trainer.sanity_checking:
            self._record(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add what is left to the history."""
        if keeps_files(trainer):
            self._record(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last page, when all others have drawn their last picture."""
        if self.started is None and trainer.ckpt_path and keeps_files(trainer):  # nothing was left to do
            with self._harmless():
                finish_record(run_folder(trainer), self._facts(trainer))
        self._end(trainer, "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say on the page what stopped the training."""
        reason = str(exception).strip() or type(exception).__name__
        self._end(trainer, f"stopped: {'interrupted' if isinstance(exception, KeyboardInterrupt) else reason}")

    def _end(self, trainer: pl.Trainer, status: str) -> None:
        if self.started is None:  # there is no run to end
            return
        self.seconds_before, self.started = self.seconds, None
        with self._harmless():
            if not keeps_files(trainer):
                return
            note(run_folder(trainer), status=status)
        self._write_page(trainer, status)

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step
        new = self._new(trainer)
        values = self.waiting | {name: float(value) for name, value in new.items()}
        self.recorded.update(new)
        self.waiting = {}
        if not values:
            return
        line: Line = {"step": trainer.global_step, "seconds": round(self.seconds, 3)}
        if (images_seen := getattr(pl_module, "images_seen", None)) is not None:
            line["images_seen"] = int(images_seen)
        if held := memory(pl_module.device):
            line["memory_gib"] = round(held / 2**30, 3)
        line |= learning_rates(trainer)
        with self._harmless():
            add_to_history(run_folder(trainer) / HISTORY, line | values)
            self.lines += 1

    def _new(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """The metrics that have come since the last line."""
        # LearningRateMonitor puts its values there and nowhere else.
        rates = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("lr-")}
        # Lightning goes on giving the last value of a metric. A new value stands elsewhere in memory; `recorded` holds
        # the old ones, so that their place is not given away.
        return {
            name: value
            for name, value in {**rates, **trainer.logged_metrics}.items()
            if name not in _X_AXES and isinstance(value, Tensor) and value.numel() == 1
            if name not in self.recorded or self.recorded[name].data_ptr() != value.data_ptr()
        }

    # -- test -------------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from the first picture on."""
        self.tested = 0

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Count the pictures."""
        self.tested += batch_size(batch) * trainer.world_size

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the test's metrics, and renew the page of the run that they belong to."""
        if keeps_files(trainer):
            checkpoint = Path(trainer.ckpt_path) if trainer.ckpt_path else None
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name not in _X_AXES}
            results = {
                "checkpoint": None if checkpoint is None else checkpoint.name,
                "step": self.step_of_weights(trainer),
                "finished": _now(),
                "metrics": metrics,
                "pictures": self.tested,
                "measured_on": _measured_on(trainer),
            }
            with self._harmless():
                write_atomically(run_folder(trainer) / RESULTS, strict_json(results, indent=2))
            self._write_page(trainer)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Line) -> None:
        """Note how far the history is, and what its next line will have; the disk has it before the checkpoint."""
        if self.started is None:
            return
        # On all ranks: a figure may be a mean of them.
        new = {name: float(value) for name, value in self._new(trainer).items()}
        more: dict[str, Any] = {"lines": self.lines, "waiting": self.waiting | new}
        more["facts"] = self._facts(trainer) | {"last_checkpoint": trainer.global_step}  # where one goes on from it
        checkpoint["callbacks"][self.state_key] |= more
        if keeps_files(trainer):
            with self._harmless():
                sync_history(run_folder(trainer) / HISTORY)

    def state_dict(self) -> dict[str, Any]:
        """The time spent."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.seconds_before = float(state_dict["seconds"])
        lines = state_dict.get("lines")  # checkpoints of earlier versions have none
        self.lines_before = None if lines is None else int(lines)
        self.waiting = {str(name): float(value) for name, value in dict(state_dict.get("waiting", {})).items()}

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write_page(self, trainer: pl.Trainer, status: str | None = None) -> None:
        began = time.monotonic()
        with self._harmless():
            if self.started is not None or status:
                self._note(trainer)
            write_report(run_folder(trainer), status)
        now = time.monotonic()
        # However long the history grows, the page takes at most a twentieth of the time.
        self.next_page = now + max(self.every_n_seconds, 20 * (now - began))

    def _note(self, trainer: pl.Trainer) -> None:
        facts = self._facts(trainer)
        if facts != self.noted:
            note(run_folder(trainer), **facts)
            self.noted = facts

    def _facts(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What changes in the course of a run: the best checkpoints, and what figures are of."""
        folder = run_folder(trainer)
        self.measured = self.measured | {name: of for name, of in _measured_on(trainer).items() if name[:4] == "val/"}
        last = [one.last_step for one in trainer.checkpoint_callbacks if isinstance(one, LastCheckpoint)]
        return {
            "best_checkpoints": [one for callback in trainer.checkpoint_callbacks if (one := _best(callback, folder))],
            "last_checkpoint": last[0] if last and last[0] else None,
            "measured_on": self.measured,
        }

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """What goes wrong within is a warning, once."""
        try:
            yield
        except Exception as error:
            if not self.warned:
                self.warned = True
                rank_zero_warn(f"The report could not be written ({type(error).__name__}: {error}); the run goes on.")


def _begin_history(path: Path, trainer: pl.Trainer, lines: int | None) -> int:
    """Keep the lines up to the checkpoint; a new folder takes them over from the checkpoint's run."""
    source = path
    if trainer.ckpt_path and not path.is_file():
        earlier = run_folder_of_checkpoint(trainer.ckpt_path)
        source = path if earlier is None else earlier / HISTORY
    step = trainer.global_step
    kept = [line for line in read_history(source)[:lines] if line["step"] <= step] if step else []
    write_history(path, kept)
    return len(kept)


def _best(callback: pl.callbacks.Checkpoint, folder: Path) -> dict[str, Any] | None:
    """What a `ModelCheckpoint` has found best, by its metric; None where it has none, or has no checkpoint yet."""
    if not isinstance(callback, ModelCheckpoint) or not callback.monitor or not callback.best_model_path:
        return None
    path, score = Path(callback.best_model_path).absolute(), callback.best_model_score
    step = re.search(r"step=(\d+)", path.stem)
    return {
        "monitor": callback.monitor,
        "value": None if score is None else float(score),
        "step": int(step[1]) if step else None,
        "path": Path(os.path.relpath(path, folder.absolute())).as_posix(),
    }


def _measured_on(trainer: pl.Trainer) -> dict[str, dict[str, int]]:
    """How many pictures figures are of, and what is the most that they can be, where callbacks say so."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return {name: of for callback in callbacks for name, of in getattr(callback, "measured_on", {}).items()}


def _environment(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    device = pl_module.device
    data = trainer.datamodule  # type: ignore[attr-defined]
    return {
        "status": "running",
        "started": _now(),
        "started_from": None if (start := getattr(pl_module, "started_from", None)) is None else start.checkpoint,
        "resumed_from": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "command": shlex.join(sys.argv),
        "model": type(pl_module).__name__,
        "data": None if data is None else type(data).__name__,
        "domains": list(domains_of(trainer)) or None,
        "max_steps": trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "devices": trainer.num_devices,
        "nodes": trainer.num_nodes,
        "world_size": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "precision": trainer.precision,
        "lightning_gen": __version__,
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
