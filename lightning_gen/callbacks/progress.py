"""Progress on the terminal: bars where someone watches, plain lines where the output goes to a file."""

from __future__ import annotations

import sys
import time
from collections import deque
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_gen.data.batches import batch_size

WINDOW = 10.0  # seconds that images per second are averaged over, or 10 batches if those take longer


class ProgressBar(TQDMProgressBar):
    """Lightning's bars, with images per second; plain lines where standard output is not a terminal.

    Shown are what the model logs with `prog_bar=True`, and `img/s`: training images per second over all ranks, a moving
    average that leaves validation out. A batch counts as in the model's `images_seen`: `{"A", "B"}` has as many as A.

    Where the bars would fill a log file with carriage returns, a line like this comes every `every_n_seconds` instead:
    `epoch 3, step 1200: train/generator_AtoB 0.512, img/s 45.1, left 0:12:30`.

    Args:
        refresh_rate: Batches from one renewal of the bars to the next; 0 turns bars and lines off.
        process_position: Lines to leave free above the bars.
        leave: Whether the bar of each epoch stays.
        every_n_seconds: Time from one plain line to the next.

    Raises:
        ValueError: If `every_n_seconds` is not above 0.
    """

    def __init__(
        self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False, every_n_seconds: float = 30.0
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, process_position=process_position, leave=leave)
        if every_n_seconds <= 0:
            raise ValueError(f"ProgressBar: every_n_seconds must be above 0, got {every_n_seconds}.")
        self.every_n_seconds = every_n_seconds
        # Notebooks draw bars although their standard output is not a terminal.
        self.plain = not sys.stdout.isatty() and "ipykernel" not in sys.modules
        self.images = 0
        self.seen: int | None = None  # by the model, before the batch
        self.clock: deque[tuple[float, int]] = deque()  # moments of training, and images until then
        self.validation = 0.0  # seconds spent in it
        self.validation_began = 0.0
        self.next_line = 0.0
        self.last_line = -1  # the step of it
        self.start = (0.0, 0.0)  # when training started, and the share of it that was done by then

    @property
    def is_enabled(self) -> bool:
        """Whether bars are drawn."""
        return super().is_enabled and not self.plain

    @property
    def prints_lines(self) -> bool:
        """Whether plain lines are printed."""
        return super().is_enabled and self.plain

    @property
    def images_per_second(self) -> float:
        """Over the last batches; 0 until there are two."""
        if len(self.clock) < 2:
            return 0.0
        (first, before), (last, after) = self.clock[0], self.clock[-1]
        return (after - before) / max(last - first, 1e-9)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What the model logs with `prog_bar=True`, and images per second."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        if rate := self.images_per_second:
            metrics["img/s"] = float(f"{rate:.3g}")
        return metrics

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start the clock."""
        super().on_train_start(trainer, *_)
        now = time.monotonic()
        self.clock.clear()
        self.start = (now, _share_done(trainer))
        self.next_line = now + self.every_n_seconds

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Note the moment from which images are counted."""
        self.seen = getattr(pl_module, "images_seen", None)
        if not self.clock:
            self.count(0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and show where we are."""
        now = self.count(images_in(batch, self.seen, trainer, pl_module))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.prints_lines and now >= self.next_line:
            self.next_line = now + self.every_n_seconds
            self.print_line(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the rate."""
        super().on_validation_start(trainer, pl_module)
        self.validation_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it run again."""
        self.validation += time.monotonic() - self.validation_began
        super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where training ended."""
        super().on_train_end(trainer, pl_module)
        if self.prints_lines and self.last_line != trainer.global_step:
            self.print_line(trainer, pl_module)

    def count(self, images: int) -> float:
        """Count images that are done; the moment."""
        now = time.monotonic()
        self.images += images
        self.clock.append((now - self.validation, self.images))
        while len(self.clock) > 11 and self.clock[-1][0] - self.clock[0][0] > WINDOW:
            self.clock.popleft()
        return now

    def print_line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print one plain line."""
        self.last_line = trainer.global_step
        parts = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.get_metrics(trainer, pl_module).items()
        ]
        began, share_then = self.start
        share = _share_done(trainer)
        if share_then < share < 1:
            seconds = (time.monotonic() - began) * (1 - share) / (share - share_then)
            parts.append(f"left {timedelta(seconds=round(seconds))}")
        print(f"epoch {trainer.current_epoch}, step {trainer.global_step}: {', '.join(parts)}", flush=True)


def images_in(batch: Any, seen: int | None, trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
    """Real images of a training batch, over all ranks: by the model's `images_seen`, which was `seen` before it."""
    return batch_size(batch) * trainer.world_size if seen is None else int(pl_module.images_seen - seen)  # type: ignore[operator]


def _share_done(trainer: pl.Trainer) -> float:
    """Share of the training that is done, in [0, 1]; 0 where there is no end in sight."""
    shares = [0.0]
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    batches = trainer.num_training_batches * (trainer.max_epochs or 0)
    if 0 < batches < float("inf"):
        done = trainer.current_epoch * trainer.num_training_batches + trainer.fit_loop.batch_idx + 1
        shares.append(done / batches)
    return min(1.0, max(shares))
