"""How many pictures a second a loader gives, how many a model takes, which loader feeds it, and what a stage costs."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_gen.data.batches import batch_size

FED = 0.95
"""A model is fed if it trains at this share of the rate that it has alone, or more."""
_AGAIN = 4  # batches that a model is given in turn, which costs no loading
_WARM_UP = 3  # steps, or as many as take a second: the first ones choose kernels and fill caches
_LEAST = 5  # batches that are counted, as many as there are to a step of many a critic


def numbers_of_workers() -> list[int]:
    """0, 2, 4, 8 and so on up to the cores that this process may use; on one core 0 and 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    powers = [2**n for n in range(1, cores.bit_length()) if 2**n < cores]
    return [0, *powers, cores]


def loading_rate(data: pl.LightningDataModule, workers: int | None, seconds: float = 2.0) -> float:
    """Examples a second that the training loader of a data module gives to someone who only takes them.

    The time that workers take to start does not count. Small data is gone through again. The global random state stays
    as it is.

    Args:
        data: Prepared and set up.
        workers: Loader processes; None leaves the module's own number.
        seconds: How long is measured at least, and at least some batches of each worker.

    Raises:
        ValueError: If the loader gives nothing, or as the loader does.
    """
    with isolate_rng():
        batches = _epochs(_with_workers(data, workers).train_dataloader())
        for _ in range(max(1, workers or 0)):  # when each worker has given one, all of them are at work
            next(batches)
        examples, start = 0, time.perf_counter()
        for number in count(1):
            examples += batch_size(next(batches))
            elapsed = time.perf_counter() - start
            if elapsed >= seconds and number >= max(_LEAST, 2 * (workers or 0)):
                break
        batches.close()
    return examples / elapsed


def training_rate(
    trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, seconds: float = 2.0
) -> float:
    """Examples a second that a model takes if it never waits for them: steps of training on a few loaded batches.

    The steps are real ones, so the model is another afterwards. The global random state stays as it is.

    Args:
        trainer: One that has not run. It should measure and write nothing, and have many steps to go.
        model: That is trained.
        data: Gives the first batches, and all that the model asks of its data.
        seconds: How long is measured at least, after a warm-up.

    Raises:
        RuntimeError: If the training ends before anything is measured.
    """
    clock = _Clock(seconds)
    with isolate_rng():
        given = _with_workers(data, 0)
        loader = given.train_dataloader()
        again = _again(loader, list(islice(_epochs(loader), _AGAIN)))
        given.train_dataloader = lambda: again
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.fit(model, datamodule=given)
    if not clock.rate:
        raise RuntimeError(
            f"The training ended after {trainer.global_step} steps, which are too few to measure how fast the model is."
        )
    return clock.rate


class Cost(NamedTuple):
    """What training costs at a place of a run that grows.

    Attributes:
        seconds: For a batch, without loading it.
        memory: Bytes at most until then: of an accelerator, what torch has taken of it; on a CPU those of the process.
    """

    seconds: float
    memory: int


def cost_at(
    trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, images_seen: int, steps: int = 2
) -> Cost:
    """Train at a place of a schedule that model and data follow, for one batch that warms up and some that count.

    The steps are real ones, so the model is another afterwards. The global random state stays as it is.

    Args:
        trainer: One of a single device that has not run. It should measure and write nothing.
        model: That grows.
        data: Likewise, prepared and set up.
        images_seen: The place.
        steps: Batches that count.
    """
    held: Any = model
    held.images_seen = images_seen
    with isolate_rng():
        given = _with_workers(data, 0)
        given.trainer = None
        loader = given.train_dataloader()
        loader.sampler.images = images_seen
        again = _again(loader, list(islice(_epochs(loader), 1)))
        given.train_dataloader = lambda: again
        clock = _ClockOfPlace(images_seen, steps)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.fit(model, datamodule=given)
    return Cost((clock.ends[-1] - clock.ends[0]) / steps, _memory(trainer.strategy.root_device))


def rates_together(loading: Mapping[int, float], training: float, *, in_turns: bool = False) -> dict[int, float]:
    """Examples a second of a training whose model has to wait for them, by numbers of workers.

    Args:
        loading: Examples a second by numbers of workers. Without workers it is loading, then training, in turns.
        training: Examples a second that the model takes if it never waits.
        in_turns: Whether it is so with workers too, as they have the same cores where a CPU trains. Else they load
            while the model trains, and the slower one decides.
    """
    return {
        number: 1 / (1 / rate + 1 / training) if in_turns or not number else min(rate, training)
        for number, rate in loading.items()
    }


def feeding(together: Mapping[int, float], training: float) -> int | None:
    """The smallest number of workers that feeds a model, as `FED` says; None if none does.

    Args:
        together: As `rates_together` gives them.
        training: Examples a second that the model takes if it never waits.
    """
    return next((number for number in sorted(together) if together[number] >= FED * training), None)


def _with_workers(data: pl.LightningDataModule, workers: int | None) -> Any:
    """A copy of a data module with so many loader processes; its own number, where it has none to set."""
    copied: Any = copy.copy(data)
    if workers is not None and hasattr(copied, "num_workers"):
        copied.num_workers = workers
    return copied


def _epochs(loader: Any) -> Generator[Any]:
    """The batches of a loader, one epoch after the other."""
    for epoch in count():
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        number = -1
        for number, batch in enumerate(loader):  # noqa: B007
            yield batch
        if number < 0:
            raise ValueError(f"The training loader gives no batches, a {type(loader).__name__}.")


def _again(loader: Any, batches: list[Any]) -> Any:
    """A few batches over and over, as many as an epoch has; from a loader that remains one to whoever looks at it."""

    def over_and_over(self: Any) -> Iterator[Any]:
        return islice(cycle(batches), sized_len(self))  # to no end, where it has no length

    again = copy.copy(loader)
    again.__class__ = type("Again", (type(loader),), {"__iter__": over_and_over})
    return again


@dataclass
class _Clock(pl.Callback):
    """Warms a training up, measures its rate, and ends it."""

    seconds: float
    rate: float = 0.0
    start: float = 0.0
    steps: int = 0
    examples: int = 0
    begun: float = field(default_factory=time.perf_counter)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if not self.start:
            if self.steps >= _WARM_UP or time.perf_counter() - self.begun > 1:
                self.start, self.steps = _now(pl_module.device), 0
            return
        self.examples += batch_size(batch)
        if self.steps >= _LEAST and time.perf_counter() - self.start >= self.seconds:
            self.rate = self.examples / (_now(pl_module.device) - self.start)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make do with less where it ended by itself, as of models that know when they are done."""
        if not self.rate and self.start and self.steps >= _LEAST:
            self.rate = self.examples / (_now(pl_module.device) - self.start)


def _now(device: torch.device) -> float:
    """The time when a device has done all that it was given."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()


@dataclass
class _ClockOfPlace(pl.Callback):
    """Keeps a training at its place, and ends it after some steps."""

    images_seen: int
    steps: int
    ends: list[float] = field(default_factory=list)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.images_seen = self.images_seen

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.ends.append(_now(pl_module.device))
        trainer.should_stop = len(self.ends) > self.steps


def _memory(device: torch.device) -> int:
    """Bytes at most so far."""
    if device.type != "cpu":
        return int(torch.get_device_module(device).max_memory_reserved(device))
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
