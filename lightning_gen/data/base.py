"""What all data modules share: which picture comes when is a pure function of (seed, epoch, position).

The sampler hands the dataset a `Draw` instead of a bare index. Everything random about an item (its crop, its flip, its
unpaired partner) is derived from the draw, so pictures do not depend on workers, on the number of processes, or on
where a run was stopped.
"""

from __future__ import annotations

import os
import signal
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

Split = Literal["train", "val", "test"]


class Draw(NamedTuple):
    """One place in the stream of training examples.

    Attributes:
        epoch: Pass over the data, from 0. Evaluation always draws with epoch 0.
        position: Place within the pass, from 0, counted over all processes.
        index: Which example of the dataset stands there.
    """

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # a tuple's own `index` is not needed here

    def rng(self, seed: int) -> np.random.Generator:
        """The generator for everything random about this example: a function of seed, epoch and position alone."""
        return np.random.default_rng((seed, self.epoch, self.position))


@dataclass(frozen=True, eq=False)
class DrawDataset(Dataset[dict[str, Tensor]]):
    """Base of the datasets here: an example is a function of the `Draw` asked for and of the dataclass fields."""

    def recipe(self) -> Any:
        """All that decides the examples of epoch 0, for `fingerprint`: the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class DrawSampler(DistributedSampler[Draw]):
    """Yields `Draw`s: shuffled by (seed, epoch) for training, in order for evaluation.

    It is a `DistributedSampler`, so Lightning sets its epoch and leaves it in place. Rank r of W takes the positions
    r, r + W, ..., so W processes with batch b see, step by step, what one process with batch W b sees.

    Args:
        dataset: Anything with a length.
        shuffle: Whether the order is random.
        seed: Seed of the order.
        num_replicas: Number of processes.
        rank: This process.
        even: Whether every rank gets the same number of examples: the surplus of at most W - 1 examples is left for
            another epoch. Training needs it; evaluation must not, for no example may count twice or be dropped.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        shuffle: bool,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        even: bool = True,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed, drop_last=even)
        self.even = even
        self.start = 0  # examples that the epoch has already given out, over all ranks

    def __len__(self) -> int:
        return self.left(0)

    def left(self, start: int) -> int:
        """How many examples this rank gets of an epoch that has given out its first ones, so many over all ranks."""
        total = len(self.dataset) - start  # type: ignore[arg-type]
        return max(0, total) // self.num_replicas if self.even else len(range(self.rank, total, self.num_replicas))

    def __iter__(self) -> Iterator[Draw]:
        total = len(self.dataset)  # type: ignore[arg-type]
        # Evaluation is the same in every epoch: `set_epoch` must not change which crop a validation picture gets.
        epoch = self.epoch if self.shuffle else 0
        order = np.random.default_rng((self.seed, epoch)).permutation(total) if self.shuffle else np.arange(total)
        start, self.start = self.start, 0
        for i in range(self.left(start)):
            position = start + i * self.num_replicas + self.rank
            yield Draw(epoch, position, int(order[position]))


class InOrderSampler(DrawSampler, SequentialSampler):  # type: ignore[misc]
    """A `DrawSampler` that does not shuffle, which `overfit_batches` asks of Lightning's loaders by this type."""


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a `DrawSampler` that goes on in the middle of an epoch.

    Lightning stores `state_dict()` in checkpoints and gives it back before the first batch; the examples that had been
    used by then are skipped without being loaded. The place is kept as examples over all ranks, so the batch size and
    the number of processes may be others when the run goes on.
    """

    examples_given = 0  # of this epoch, over all ranks
    resume: tuple[int, int] | None = None  # epoch, and examples of it to skip
    progress: Any = None  # Lightning's count of batches, which is put right if they are of another size

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so this runs at the first batch, when Lightning has set the sampler's epoch.
        epoch, skip = self.resume or (None, 0)
        self.examples_given, self.resume = (skip if epoch == self.sampler.epoch else 0), None  # type: ignore[attr-defined]
        self.sampler.start = self.examples_given  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self.examples_given += self._examples_in_a_batch
            yield batch

    @property
    def _examples_in_a_batch(self) -> int:
        """Over all ranks."""
        return (self.batch_size or 1) * int(self.sampler.num_replicas)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, int]:
        """Epoch, and examples of it given out so far over all ranks."""
        epoch, examples = self.resume or (self.sampler.epoch, self.examples_given)  # type: ignore[attr-defined]
        return {"epoch": epoch, "examples": examples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        # Earlier versions kept batches, whatever their size.
        examples = state["examples"] if "examples" in state else state["batches"] * self._examples_in_a_batch
        self.sampler.set_epoch(state["epoch"])  # type: ignore[attr-defined]
        self.resume = (state["epoch"], examples)
        if self.progress is not None and not self.progress.is_last_batch:
            left = self.sampler.left(examples) // (self.batch_size or 1)  # type: ignore[attr-defined]
            missing = len(self) - left - self.progress.current.ready
            for name in ("ready", "started", "processed", "completed"):
                setattr(self.progress.current, name, getattr(self.progress.current, name) + missing)


def _leave_signals_alone(worker: int) -> None:
    """Let a signal that reaches a loader's processes, too, be no failure: when to stop is the training's to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # by which loaders end their processes, so they must end


class InOrder(Dataset[Any]):
    """A dataset of draws, indexed by place: the examples of epoch 0, in order."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[Draw(0, index, index)]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        draws = [Draw(0, index, index) for index in indices]
        if hasattr(self.dataset, "__getitems__"):
            examples: list[Any] = self.dataset.__getitems__(draws)
            return examples
        return [self.dataset[draw] for draw in draws]


def collate_sizes(examples: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    """A batch of pictures that may differ in size: a list of them, `[C, H, W]` each, under "image"."""
    return {"image": [example["image"] for example in examples]}


def examples_of(data: DataLoader[Any] | Dataset[Any]) -> Dataset[Any]:
    """What a loader goes through, indexed by place, from 0; its sampler tells which of them and not in which order.

    Args:
        data: A loader, with whatever sampler it or Lightning chose, or a dataset. Of samplers that leave something out,
            `SubsetRandomSampler` is respected; with others it is the whole dataset.

    Raises:
        TypeError: If it is neither, or its examples are not numbered.
        ValueError: If it is empty.
    """
    sampler: Any = None
    dataset: Any = data
    if isinstance(data, DataLoader):
        dataset, sampler = data.dataset, getattr(data.batch_sampler, "sampler", data.sampler)
        # With several processes, Lightning wraps samplers that it does not know.
        sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and isinstance(dataset, Dataset)):
        raise TypeError(
            "Pictures to compare with must come from a DataLoader over a dataset that has a length and numbered "
            f"examples (`__len__` and `__getitem__`), so that each is taken once; got {type(dataset).__name__}."
        )
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, sorted(int(index) for index in sampler.indices))
    elif isinstance(dataset, DrawDataset) or isinstance(sampler, DrawSampler):
        dataset = InOrder(dataset)
    if not len(dataset):
        raise ValueError(f"The dataset of pictures to compare with ({type(dataset).__name__}) is empty.")
    examples: Dataset[Any] = dataset
    return examples


def in_order(
    data: DataLoader[Any] | Dataset[Any], batch_size: int, *, num_replicas: int = 1, rank: int = 0
) -> Iterator[tuple[int, Any]]:
    """Every example once, in order, however a loader shuffles, shards or drops: batches and their numbers.

    Batch b holds the examples b B, ..., (b + 1) B - 1 of `examples_of`, and the last one what remains; rank r of W gets
    the batches r, r + W, .... Collation and number of workers are those of the loader.

    Args:
        data: A loader or a dataset, as `examples_of` takes them.
        batch_size: B.
        num_replicas: W, number of processes.
        rank: r, this process.

    Raises:
        TypeError: As `examples_of`.
        ValueError: As `examples_of`, or if a number is out of range, or the loader does not make batches.
    """
    if batch_size < 1 or not 0 <= rank < num_replicas:
        raise ValueError(
            "in_order needs a batch_size of at least 1 and a rank below num_replicas, "
            f"got {batch_size}, {rank} and {num_replicas}."
        )
    examples = examples_of(data)
    total = len(examples)  # type: ignore[arg-type]
    numbers = range(rank, -(-total // batch_size), num_replicas)
    options: dict[str, Any] = {}
    if isinstance(data, DataLoader):
        if data.batch_sampler is None:
            raise ValueError(
                "Pictures to compare with come from a DataLoader with batch_size=None, which does not make batches. "
                "Give it a batch_size."
            )
        names = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
        options = {name: getattr(data, name) for name in names}
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=[list(range(b * batch_size, min((b + 1) * batch_size, total))) for b in numbers],
        generator=torch.Generator().manual_seed(0),  # its own, as in `ImageDataModule`
        **options,
    )

    def batches() -> Iterator[tuple[int, Any]]:  # so that workers start when the first batch is asked for
        yield from zip(numbers, loader, strict=True)

    return batches()


class ImageDataModule(pl.LightningDataModule):
    """Base of all data modules: seeded, resumable loaders over the datasets that a subclass builds.

    A subclass implements `image_shape`, and `dataset` or the three sets that it gives. Items are dictionaries of
    tensors, with pictures as float32 `[C, H, W]` in `[-1, 1]`; its datasets are indexed by a `Draw`.

    Args:
        batch_size: Examples per process and training step.
        eval_batch_size: Examples per process and evaluation step; None means `batch_size`.
        num_workers: Loader processes; None means as many as leave two cores to training, at most 8.
        seed: Seed of the order, the augmentations, the unpaired partners and the points of toys.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, *, batch_size: int = 1, eval_batch_size: int | None = None, num_workers: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more (or null for automatic), got {num_workers}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._sets: dict[str, Dataset[Any]] = {}

    class_names: Sequence[str] | None = None
    """The names of the classes, by number, where they have names."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every picture this module gives."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None where pictures have no labels."""
        return None

    def dataset(self, split: Split) -> Dataset[Any]:
        """The examples of a split: to train on, augmented; to validate and to test with, in order."""
        raise NotImplementedError(f"{type(self).__name__} has no dataset of the split {split!r}.")

    def train_set(self) -> Dataset[Any]:
        """The training examples."""
        return self.dataset("train")

    def val_set(self) -> Dataset[Any]:
        """The validation examples."""
        return self.dataset("val")

    def test_set(self) -> Dataset[Any]:
        """The test examples."""
        return self.dataset("test")

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled loader over the training examples; with the trainer's `overfit_batches` the first ones, in order."""
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader:
        """Loader over the validation examples, in order, each example once over all ranks."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Loader over the test examples, in order, each example once over all ranks."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Loader over the test examples, plain, because Lightning shares it out among the ranks by itself."""
        return DataLoader(InOrder(self.test_set()), batch_size=self.eval_batch_size)

    def _loader(self, split: Split) -> ResumableLoader:
        training = split == "train"
        if split not in self._sets:
            self._sets[split] = {"train": self.train_set, "val": self.val_set, "test": self.test_set}[split]()
        dataset = self._sets[split]
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        batch_size = self.batch_size if training else self.eval_batch_size
        # The same few batches in every epoch, down to their crops and flips.
        overfitting = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        shuffle = training and not overfitting
        sampler = (DrawSampler if shuffle else InOrderSampler)(
            dataset, shuffle=shuffle, seed=self.seed, num_replicas=world, rank=rank, even=training
        )
        if training and len(sampler) < batch_size:
            raise ValueError(
                f"{type(self).__name__}: {len(sampler)} training examples per process do not fill one batch of "
                f"{batch_size}. Lower batch_size, use fewer processes or add pictures."
            )
        workers = self.num_workers
        if workers is None:
            workers = min(8, max(0, (os.cpu_count() or 1) // world - 2))
        loader = ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=training,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_alone,
            # Its own generator: an iterator made or not made must not move the random state of training.
            generator=torch.Generator().manual_seed(self.seed),
        )
        if shuffle and isinstance(self.trainer, pl.Trainer):
            loader.progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return loader


def data_root(root: str | Path) -> Path:
    """The folder of a data set, as a user names it.

    Raises:
        ValueError: If the name is empty.
    """
    if not str(root).strip():
        raise ValueError("root is empty. Name the folder of the data set; the current one is '.'.")
    return Path(root).expanduser()
