"""What all data modules share: which picture comes when is a pure function of (seed, epoch, position).

The sampler hands the dataset a `Draw` instead of a bare index. Everything random about an item (its crop, its flip, its
unpaired partner) is derived from the draw, so pictures do not depend on workers, on the number of processes, or on
where a run was stopped.
"""

from __future__ import annotations

import os
import signal
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
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

from lightning_gen.data.batches import DOMAINS, PICTURES, collate, pictures_as_floats
from lightning_gen.data.images import average_down, from_uint8
from lightning_gen.loops import use_own_loop
from lightning_gen.randomness import generator_at
from lightning_gen.schedules import Growing, Stage

Split = Literal["train", "val", "test"]


class Draw(NamedTuple):
    """One place in the stream of training examples.

    Attributes:
        epoch: Pass over the data, from 0. Evaluation always draws with epoch 0.
        position: Place within the pass, from 0, counted over all processes.
        index: Which example of the dataset stands there.
        resolution: Height that its pictures are to have, of which theirs is a multiple; 0 leaves them as they are.
            A dataset may see to it by itself; pictures that are larger are averaged down.
    """

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # a tuple's own `index` is not needed here
    resolution: int = 0

    def rng(self, seed: int) -> np.random.Generator:
        """The generator for everything random about this example: a function of seed, epoch and position alone."""
        return generator_at(seed, self.epoch, self.position)


@dataclass(frozen=True, eq=False)
class DrawDataset(Dataset[dict[str, Tensor]]):
    """Base of the datasets here: an example is a function of the `Draw` asked for and of the dataclass fields."""

    def recipe(self) -> Any:
        """All that decides the examples of epoch 0, for `fingerprint`: the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def caption(self, draw: Draw) -> str:
        """The caption of an example; a subclass may say it without making the picture."""
        caption: Any = self[draw]["caption"]
        return str(caption)


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
        self.images = 0  # examples that the epochs before have given out, over all ranks

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


class GrowingSampler(DrawSampler):
    """Yields the `Draw`s of whole batches, whose size and resolution are those of a schedule at their place.

    The place is the images given out since the run began, over all ranks. It decides alone, so that workers may load
    ahead. An epoch ends when what is left of it fills no batch of the moment. Examples are loaded by `AtResolution`.

    Args:
        dataset: Anything with a length.
        growing: The schedule.
        **options: The others of `DrawSampler`.
    """

    def __init__(self, dataset: Dataset[Any], growing: Growing, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.growing = growing

    def stages(self, start: int) -> Iterator[Stage]:
        """One for each batch of an epoch that has given out its first examples, so many over all ranks."""
        total = len(self.dataset)  # type: ignore[arg-type]
        stage = self.growing(self.images + start)
        while (step := stage.batch_size * self.num_replicas) <= total - start:
            yield stage
            start += step
            stage = self.growing(self.images + start)

    def __len__(self) -> int:
        return sum(1 for _ in self.stages(0))

    def __iter__(self) -> Iterator[list[Draw]]:  # type: ignore[override]
        stages, draws = self.stages(self.start), super().__iter__()
        for stage in stages:
            yield [draw._replace(resolution=stage.resolution) for draw in islice(draws, stage.batch_size)]


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a `DrawSampler` that goes on in the middle of an epoch.

    Lightning stores `state_dict()` in checkpoints and gives it back before the first batch; the examples that had been
    used by then are skipped without being loaded. The place is kept as examples over all ranks, so the batch size and
    the number of processes may be others when the run goes on, and the batch size may change with the place.
    """

    epoch = 0  # that the present one is, and the examples of it given out so far over all ranks
    examples = 0
    is_going_on = False  # whether the next pass begins there
    progress: Any = None  # Lightning's count of batches, which is put right if they are of another size

    def __len__(self) -> int:
        self._turn_to_epoch()
        return super().__len__()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so this runs at the first batch, when Lightning has set the sampler's epoch.
        sampler: Any = self.sampler
        self._turn_to_epoch()
        self.examples, self.is_going_on = (self.examples if self.is_going_on else 0), False
        sampler.start = self.examples
        for batch, size in zip(super().__iter__(), self._sizes(), strict=False):
            self.examples += size * sampler.num_replicas
            yield batch

    def _turn_to_epoch(self) -> None:
        """See whether the sampler has been told of another epoch."""
        sampler: Any = self.sampler
        if sampler.epoch != self.epoch:
            sampler.images += self.examples
            self.epoch, self.examples, self.is_going_on = sampler.epoch, 0, False

    def _sizes(self) -> Iterator[int]:
        """Of the batches of the rest of an epoch, per rank."""
        sampler: Any = self.sampler
        if isinstance(sampler, GrowingSampler):
            return (stage.batch_size for stage in sampler.stages(self.examples))
        size, left = self.batch_size or 1, sampler.left(self.examples)
        return repeat(size, left // size if self.drop_last else -(-left // size))

    def state_dict(self) -> dict[str, int]:
        """Epoch, examples of it given out so far over all ranks, and images of the epochs before, likewise."""
        self._turn_to_epoch()
        return {"epoch": self.epoch, "examples": self.examples, "images": self.sampler.images}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        sampler: Any = self.sampler
        sampler.set_epoch(state["epoch"])
        self.epoch, self.is_going_on = state["epoch"], True
        # Earlier versions kept batches, whatever their size, and no images.
        step = (self.batch_size or 1) * sampler.num_replicas
        self.examples = state["examples"] if "examples" in state else state["batches"] * step
        sampler.images = state.get("images", state["epoch"] * (len(sampler.dataset) // step * step))
        if self.progress is not None and not self.progress.is_last_batch:
            missing = len(self) - sum(1 for _ in self._sizes()) - self.progress.current.ready
            for name in ("ready", "started", "processed", "completed"):
                setattr(self.progress.current, name, getattr(self.progress.current, name) + missing)


def _leave_signals_alone(worker: int) -> None:
    """Let a signal that reaches a loader's processes, too, be no failure: when to stop is the training's to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # by which loaders end their processes, so they must end


def _examples(dataset: Dataset[Any], draws: list[Draw]) -> list[Any]:
    if hasattr(dataset, "__getitems__"):
        examples: list[Any] = dataset.__getitems__(draws)
        return examples
    return [dataset[draw] for draw in draws]


class AtResolution(Dataset[Any]):
    """A dataset of draws, indexed by the draws of a whole batch: examples at the resolution that each draw asks for.

    What is float `[C, H, W]` is averaged down, and so are pictures of uint8, which become floats in `[-1, 1]`.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draws: list[Draw]) -> list[Any]:
        def fits(name: str, value: Any, height: int) -> Any:
            if not (height and isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] != height):
                return value
            if value.dtype == torch.uint8 and name in (*DOMAINS, *PICTURES):
                value = from_uint8(value)
            return average_down(value, height) if value.is_floating_point() else value

        examples = zip(_examples(self.dataset, draws), draws, strict=True)
        return [{name: fits(name, value, draw.resolution) for name, value in each.items()} for each, draw in examples]


class InOrder(Dataset[Any]):
    """A dataset of draws, indexed by place: the examples of epoch 0, in order."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[Draw(0, index, index)]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return _examples(self.dataset, [Draw(0, index, index) for index in indices])


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
    if isinstance(dataset, AtResolution):
        dataset = dataset.dataset
    if isinstance(dataset, Tensor):
        raise TypeError(
            "Pictures to compare with came from a DataLoader over a tensor. Make a dataset of it: "
            "DataLoader(TensorDataset(images), batch_size=64), with TensorDataset of torch.utils.data."
        )
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and isinstance(dataset, Dataset)):
        raise TypeError(
            "Pictures to compare with must come from a DataLoader over a dataset that has a length and numbered "
            f"examples (`__len__` and `__getitem__`), so that each is taken once; got {type(dataset).__name__}. "
            "Where training pictures are a stream, take those to validate or to test with (--reference val)."
        )
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, sorted(int(index) for index in sampler.indices))
    elif isinstance(dataset, DrawDataset) or isinstance(sampler, DrawSampler):
        dataset = InOrder(dataset)
    if not len(dataset):
        raise ValueError(f"The dataset of pictures to compare with ({type(dataset).__name__}) is empty.")
    examples: Dataset[Any] = dataset
    return examples


def makes_batches(loader: DataLoader[Any]) -> bool:
    """Whether a loader puts examples together, which a loader of finished batches does not."""
    return loader.batch_sampler is not None or isinstance(loader.sampler, GrowingSampler)


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
    options: dict[str, Any] = {"collate_fn": collate}
    if isinstance(data, DataLoader):
        if not makes_batches(data):
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
    tensors, with pictures as uint8 or as float32 in `[-1, 1]`, `[C, H, W]`; its datasets are indexed by a `Draw`.
    Batches of uint8 become floats where a trainer has put them on the device. Whoever takes them from a loader has
    `lightning_gen.data.batches.pictures_as_floats`.

    Args:
        batch_size: Examples per process and training step.
        eval_batch_size: Examples per process and evaluation step; None means `batch_size`.
        num_workers: Loader processes; None means as many as leave two cores to training, at most 8.
        seed: Seed of the order, the augmentations, the unpaired partners and the points of toys.
        growing: Resolution and batch size through a run of training, in place of `batch_size`; None keeps both as they
            are. Pictures are averaged down where they are loaded. Where epochs have different numbers of batches, a
            trainer's `val_check_interval` and `limit_train_batches` that are shares are those of each epoch, and what
            it plans beforehand (`estimated_stepping_batches`) takes all epochs to be like the first.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        batch_size: int = 1,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        growing: Growing | None = None,
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
        self.growing = growing
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

    @property
    def pictures(self) -> pl.LightningDataModule:
        """The data module that has the pictures: this one, unless it gives something in place of them."""
        return self

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
        return DataLoader(InOrder(self.test_set()), batch_size=self.eval_batch_size, collate_fn=collate)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make floats in `[-1, 1]` of pictures that are uint8, as the trainer's precision would have floats.

        The hook of the same name of the model in training comes after it.
        """
        trainer = self.trainer
        if trainer is None:
            return pictures_as_floats(batch)
        batch = pictures_as_floats(batch, trainer.precision_plugin.convert_input)
        model = trainer.lightning_module
        if is_overridden("on_after_batch_transfer", model):  # which Lightning leaves out where the data has one
            batch = model.on_after_batch_transfer(batch, dataloader_idx)
        return batch

    def _loader(self, split: Split) -> ResumableLoader:
        # Of the model's own hook, which ours calls.
        warnings.filterwarnings("ignore", message="You have overridden `on_after_batch_transfer` in both")
        training = split == "train"
        if split not in self._sets:
            self._sets[split] = {"train": self.train_set, "val": self.val_set, "test": self.test_set}[split]()
        dataset = self._sets[split]
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # The same few batches in every epoch, down to their crops and flips.
        overfitting = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        shuffle = training and not overfitting
        options: dict[str, Any] = {"shuffle": shuffle, "seed": self.seed, "num_replicas": world, "rank": rank}
        options["even"] = training
        batch_size = self.batch_size if training else self.eval_batch_size
        batching: dict[str, Any]
        if training and self.growing is not None:
            self._check_growing(self.growing, overfitting)
            batch_size = max(self.growing.batch_sizes)
            sampler: DrawSampler = GrowingSampler(dataset, self.growing, **options)
            batching = {"dataset": AtResolution(dataset), "batch_size": None}
        else:
            sampler = (DrawSampler if shuffle else InOrderSampler)(dataset, **options)
            batching = {"dataset": dataset, "batch_size": batch_size, "drop_last": training}
        if training and (examples := sampler.left(0)) < batch_size:
            raise ValueError(
                f"{type(self).__name__}: {examples} training examples per process do not fill one batch of "
                f"{batch_size}. Lower batch_size, use fewer processes or add pictures."
            )
        workers = self.workers(world)
        loader = ResumableLoader(
            **batching,
            collate_fn=collate,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_alone,
            # Its own generator: an iterator made or not made must not move the random state of training.
            generator=torch.Generator().manual_seed(self.seed),
        )
        if shuffle and isinstance(self.trainer, pl.Trainer):
            loader.progress = self.trainer.fit_loop.epoch_loop.batch_progress
            if self.growing is not None:
                use_own_loop(self.trainer)  # which counts the batches of each epoch anew
        return loader

    def workers(self, world: int) -> int:
        """Loader processes of each of so many processes."""
        if self.num_workers is None:
            return min(8, max(0, (os.cpu_count() or 1) // world - 2))
        return self.num_workers

    def _check_growing(self, growing: Growing, overfitting: bool) -> None:
        height, width = self.image_shape[1:]
        for resolution in growing.resolutions:
            if height % resolution or width % (height // resolution):
                raise ValueError(
                    f"{type(self).__name__} cannot average pictures of {height} x {width} (height x width) down to "
                    f"{resolution} rows in whole pixels. Choose resolutions that divide them."
                )
        if overfitting:
            raise ValueError("overfit_batches was asked for, of batches that change as they grow. Leave out growing.")


def data_root(root: str | Path) -> Path:
    """The folder of a data set, as a user names it; a `ValueError` if the name is empty."""
    if not str(root).strip():
        raise ValueError("root is empty. Name the folder of the data set; the current one is '.'.")
    return Path(root).expanduser()
