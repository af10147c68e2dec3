"""Progress on the terminal: one line where someone watches, plain lines where the output goes to a file."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_gen.callbacks.throughput import Throughput

MOST = 3  # figures in a line
SHORTEST = 5  # columns that the bar itself keeps beside the words
WIDEST = 8  # columns of a figure, as of -0.00123
SHORT = {"generator": "G", "discriminator": "D"}  # names on a terminal, as papers have them
BETWEEN = 0.2  # seconds, at least, from one drawing to the next: reading figures makes an accelerator wait


class ProgressBar(TQDMProgressBar):
    """One line about the run: where it is, how fast, how long it will take, and two or three figures.

    `█████▋    | step 1200/3600, 45.1 img/s, left 08:52, G 0.512, D 0.24, cycle 1.62`

    Steps are those that `trainer.max_steps` counts, whatever number of batches makes one. `img/s` are training images
    over all ranks, a moving average that leaves validation out; a batch counts as in the model's `images_seen`: `{"A",
    "B"}` has as many as A. The time left is that of the whole run, at the pace since it started, validation included.

    Figures are those that the model logs with `prog_bar=True`, as many as the terminal has room for, at most three. A
    model says which come first in its `progress_figures`. G and D stand for generator and discriminator. What else is
    printed or logged comes above the line.

    Where a line that renews itself would fill a log file, a plain one of the same kind comes every `every_n_seconds`.

    Args:
        refresh_rate: Batches from one renewal of the line to the next, which is not more often than five times a
            second; 0 turns bars and lines off.
        process_position: Lines to leave free above the bars.
        leave: Whether the line stays when training has ended.
        every_n_seconds: Time from one plain line to the next.

    Raises:
        ValueError: If `every_n_seconds` is not above 0.
    """

    def __init__(
        self, refresh_rate: int = 1, process_position: int = 0, leave: bool = True, every_n_seconds: float = 30.0
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, process_position=process_position, leave=leave)
        if every_n_seconds <= 0:
            raise ValueError(f"ProgressBar: every_n_seconds must be above 0, got {every_n_seconds}.")
        self.every_n_seconds = every_n_seconds
        # Notebooks draw bars although their standard output is not a terminal.
        self.plain = not sys.stdout.isatty() and "ipykernel" not in sys.modules
        self.throughput = Throughput()
        self.next_drawing = self.next_line = 0.0
        self.last_line = -1  # the step of it
        self.start = (0.0, 0)  # when training started, and at which step
        self.diverted: list[tuple[Any, TextIO]] = []  # who wrote to the terminal, and the stream they had

    @property
    def is_enabled(self) -> bool:
        """Whether bars are drawn."""
        return super().is_enabled and not self.plain

    @property
    def prints_lines(self) -> bool:
        """Whether plain lines are printed."""
        return super().is_enabled and self.plain

    # -- the line ---------------------------------------------------------------------------------------------------

    def facts(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[str]:
        """Where the run is, how fast, and how long it will take."""
        end, step = last_step(trainer, pl_module), trainer.global_step
        facts = [f"step {step}" if end is None else f"step {step}/{end}"]
        if rate := self.throughput.images_per_second:
            facts.append(f"{float(f'{rate:.3g}'):g} img/s")
        began, step_then = self.start
        if end is not None and step_then < step < end:
            seconds = (time.monotonic() - began) * (end - step) / (step - step_then)
            facts.append(f"left {str(timedelta(seconds=round(seconds))).removeprefix('0:')}")
        return facts

    def words(self, trainer: pl.Trainer, pl_module: pl.LightningModule, room: float = math.inf, *now: str) -> str:
        """The line without the bar, in at most so many columns, unless the facts alone take more."""
        words = ", ".join([*self.facts(trainer, pl_module), *now])
        taken = len(words)
        wanted: Sequence[str] = getattr(pl_module, "progress_figures", ())
        for name, value in chosen_figures(trainer.progress_bar_metrics, wanted).items():
            name = SHORT.get(name, name) if room < math.inf else name
            taken += len(f", {name} ") + WIDEST  # so that the same ones are shown from step to step
            if taken > room:
                break
            words += f", {name} {value:.3g}"
        return words

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *now: str, wait: bool = True) -> None:
        """Renew the line, unless that was done a moment ago."""
        moment, bar = time.monotonic(), self._train_progress_bar
        if bar is None or bar.disable or (wait and moment < self.next_drawing):
            return
        self.next_drawing = moment + BETWEEN
        room = (bar.format_dict["ncols"] or 80) - SHORTEST - len("| ")
        bar.n, bar.total = trainer.global_step, last_step(trainer, pl_module)
        bar.set_description_str(self.words(trainer, pl_module, room, *now))

    def print_line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print one plain line."""
        self.last_line = trainer.global_step
        print(self.words(trainer, pl_module), flush=True)

    # -- training ---------------------------------------------------------------------------------------------------

    def init_train_tqdm(self) -> Tqdm:
        """The line, of which tqdm draws the bar."""
        return Tqdm(
            desc="step 0",
            position=2 * self.process_position,
            disable=self.is_disabled,
            leave=self._leave,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format="{bar}| {desc}",
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        now = time.monotonic()
        self.throughput.clear()
        self.start = (now, trainer.global_step)
        self.next_line, self.next_drawing = now + self.every_n_seconds, 0.0
        if self.is_enabled:
            super().on_train_start(trainer, pl_module)
            self.divert(self.train_progress_bar)
            self.draw(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Nothing: the line is that of the run."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Note the moment from which images are counted."""
        self.throughput.begin(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and show where we are."""
        now = self.throughput.end(batch, trainer, pl_module)
        if self._should_update(batch_idx + 1, trainer.num_training_batches):  # type: ignore[arg-type]
            self.draw(trainer, pl_module)
        if self.prints_lines and now >= self.next_line:
            self.next_line = now + self.every_n_seconds
            self.print_line(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing, likewise."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where training ended."""
        self.draw(trainer, pl_module, wait=False)
        self.finish()
        if self.prints_lines and self.last_line != trainer.global_step:
            self.print_line(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal to whoever says what went wrong."""
        self.finish()

    def finish(self) -> None:
        """End the line."""
        for writer, stream in self.diverted:
            if isinstance(writer, str):
                if isinstance(getattr(sys, writer), Above):
                    getattr(sys, writer).finish()
                    setattr(sys, writer, stream)
            else:
                writer.setStream(stream)
        self.diverted = []
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def divert(self, bar: Tqdm) -> None:
        """Let all that is written to the terminal come above a line."""
        if not self.is_enabled:
            return
        terminals = [stream for stream in (sys.stdout, sys.stderr) if getattr(stream, "isatty", lambda: False)()]
        streams = {id(stream): Above(stream, bar) for stream in terminals}
        for name in ("stdout", "stderr"):
            stream: Any = getattr(sys, name)
            if id(stream) in streams:
                self.diverted.append((name, stream))
                setattr(sys, name, streams[id(stream)])
        for handler in _stream_handlers():
            if id(handler.stream) in streams:
                self.diverted.append((handler, handler.stream))
                handler.setStream(streams[id(handler.stream)])

    # -- validation while training, which shows in the same line ----------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the rate."""
        self.throughput.pause()
        if not _within_training(trainer):
            super().on_validation_start(trainer, pl_module)
            self.divert(self.val_progress_bar)

    def on_validation_batch_start(self, trainer: pl.Trainer, *batch: Any, **place: Any) -> None:
        """Set up the bar of a validation by itself."""
        if not _within_training(trainer):
            super().on_validation_batch_start(trainer, *batch, **place)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far it is."""
        if not _within_training(trainer):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            return
        total = trainer.num_val_batches[dataloader_idx]
        self.draw(trainer, pl_module, f"validating {batch_idx + 1}" + (f"/{total}" if total < math.inf else ""))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the clock run again."""
        self.throughput.go_on()
        if _within_training(trainer):
            self.draw(trainer, pl_module, wait=False)
        else:
            self.finish()
            super().on_validation_end(trainer, pl_module)

    # -- by itself ---------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set up the bar."""
        super().on_test_start(trainer, pl_module)
        self.divert(self.test_progress_bar)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End it."""
        self.finish()
        super().on_test_end(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set up the bar."""
        super().on_predict_start(trainer, pl_module)
        self.divert(self.predict_progress_bar)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End it."""
        self.finish()
        super().on_predict_end(trainer, pl_module)


class Above:
    """A stream of the terminal whose lines come above a bar.

    Args:
        stream: The terminal's.
        bar: At the bottom of it.
    """

    def __init__(self, stream: TextIO, bar: Any) -> None:
        self.stream, self.bar, self.waiting = stream, bar, ""

    def write(self, text: str) -> int:
        """Write what is whole lines, and keep the rest for later."""
        lines, newline, self.waiting = (self.waiting + text).rpartition("\n")
        if newline:
            with self.bar.get_lock():
                self.bar.clear(nolock=True)
                self.stream.write(lines + newline)
                self.stream.flush()
                self.bar.refresh(nolock=True)
        return len(text)

    def finish(self) -> None:
        """Write what is left."""
        if self.waiting:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def chosen_figures(metrics: Mapping[str, float], wanted: Sequence[str] = ()) -> dict[str, float]:
    """At most three figures for a line, by name; those of training without "train/" before it.

    Args:
        metrics: All that there are.
        wanted: Beginnings of the names that come first. Of several figures that begin so, it is their mean.
    """
    others = {name.removeprefix("train/"): float(value) for name, value in metrics.items()}
    figures: dict[str, float] = {}
    for start in wanted:
        alike = [others.pop(name) for name in list(others) if name.startswith(start)]
        figures |= {start: sum(alike) / len(alike)} if alike else {}
    return dict(list((figures | others).items())[:MOST])


def last_step(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int | None:
    """The step, as `max_steps` counts them, with which the run ends; None where no end is in sight."""
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
    if 0 < batches * epochs < math.inf:
        steps_in = getattr(pl_module, "steps_in", None)  # of models where a step takes several batches
        steps = math.ceil(batches / trainer.accumulate_grad_batches) * epochs
        ends.append(int(steps_in(int(batches) * epochs)) if steps_in else steps)
    return min(ends, default=None)


def _within_training(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                yield handler
