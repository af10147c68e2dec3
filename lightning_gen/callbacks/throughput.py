"""How fast a run is, and what it needs: images per second, memory and learning rates, in every logger."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_gen.data.batches import batch_size

WINDOW = 10.0  # seconds that images per second are averaged over, or 10 batches if those take longer


class Throughput:
    """Counts training images over all ranks, and the time that they took without validation.

    A batch counts as in the model's `images_seen`, or else with the length of its first tensor.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.images = 0
        self.seen: int | None = None  # by the model, before the batch
        self.clock: deque[tuple[float, int]] = deque()  # moments of training, and images until then
        self.paused = 0.0  # seconds
        self.pause_began: float | None = None

    def begin(self, pl_module: pl.LightningModule) -> None:
        """A batch begins."""
        self.seen = getattr(pl_module, "images_seen", None)
        if not self.clock:
            self.count(0)

    def end(self, batch: Any, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """A batch has ended; the moment."""
        return self.count(images_in(batch, self.seen, trainer, pl_module))

    def count(self, images: int) -> float:
        """Count images that are done; the moment."""
        now = time.monotonic()
        self.images += images
        self.clock.append((now - self.paused, self.images))
        while len(self.clock) > 11 and self.clock[-1][0] - self.clock[0][0] > WINDOW:
            self.clock.popleft()
        return now

    def pause(self) -> None:
        """Stop the clock."""
        self.pause_began = time.monotonic()

    def go_on(self) -> None:
        """Let it run again."""
        if self.pause_began is not None:
            self.paused += time.monotonic() - self.pause_began
            self.pause_began = None

    @property
    def images_per_second(self) -> float:
        """Over the last batches; 0 until there are two."""
        if len(self.clock) < 2:
            return 0.0
        (first, before), (last, after) = self.clock[0], self.clock[-1]
        return (after - before) / max(last - first, 1e-9)


def images_in(batch: Any, seen: int | None, trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
    """Real images of a training batch, over all ranks: by the model's `images_seen`, which was `seen` before it."""
    return batch_size(batch) * trainer.world_size if seen is None else int(pl_module.images_seen - seen)  # type: ignore[operator]


class TrainingMonitor(pl.Callback):
    """Gives every logger of a run, every `trainer.log_every_n_steps` batches, what no model needs to log by itself.

    * `images_seen`: training images so far, over all processes, if the model counts them.
    * `images_per_second`: over the last ten seconds, without validation.
    * `memory_gib`: the most that the first process has held so far, in GiB: on the accelerator what PyTorch has
      allocated, on a CPU all of the process.
    * `lr/NAME`: the learning rate of each optimizer, or group of its parameters, by the name of its schedule, as
      "lr/generator"; of the only optimizer "lr".

    They are written beside the figures of the model and are none of them: callbacks that choose by a figure, and the
    history of a run, which `Report` gives all of this but the rate, see no difference.
    """

    def __init__(self) -> None:
        super().__init__()
        self.throughput = Throughput()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.throughput.clear()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Note the moment from which images are counted."""
        self.throughput.begin(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, where Lightning writes."""
        self.throughput.end(batch, trainer, pl_module)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not (every and (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0 and trainer.is_global_zero):
            return
        figures = learning_rates(trainer) | {"memory_gib": memory(pl_module.device) / 2**30}
        if rate := self.throughput.images_per_second:
            figures["images_per_second"] = rate
        if (seen := getattr(pl_module, "images_seen", None)) is not None:
            figures["images_seen"] = int(seen)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.throughput.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it run again."""
        self.throughput.go_on()


def learning_rates(trainer: pl.Trainer) -> dict[str, float]:
    """Of each optimizer, or of each group of its parameters, by the name of its schedule."""
    names = {id(config.scheduler.optimizer): config.name for config in trainer.lr_scheduler_configs}
    rates: dict[str, float] = {}
    for i, optimizer in enumerate(trainer.optimizers):
        name = names.get(id(optimizer)) or ("lr" if len(trainer.optimizers) == 1 else f"lr/{i}")
        several = len(optimizer.param_groups) > 1
        rates |= {f"{name}/{j}" if several else name: float(g["lr"]) for j, g in enumerate(optimizer.param_groups)}
    return rates


def memory(device: torch.device) -> int:
    """Bytes that were held at most so far: on an accelerator by tensors, on a CPU by the process; 0 if nobody knows."""
    if device.type != "cpu":
        with suppress(AttributeError):
            return int(torch.get_device_module(device).max_memory_allocated(device))
        return 0
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
