"""Pictures from tar shards that are read from beginning to end, by the library `webdataset`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_gen.data.augmentation import CropFlip
from lightning_gen.data.base import _leave_signals_alone
from lightning_gen.data.batches import collate
from lightning_gen.data.images import ImageError
from lightning_gen.data.listing import BEGINNING, fault_of_beginning
from lightning_gen.data.preparation import Preparation
from lightning_gen.data.tables import class_number, is_missing
from lightning_gen.data.tars import Keys, member_of, missing_library
from lightning_gen.files import cache_folder, digest, opened_atomically
from lightning_gen.processes import everywhere


class Place(NamedTuple):
    """Where a worker is.

    Attributes:
        lap: How often it has gone through its shards in this epoch.
        shard: Which of them it is at, in their order of this lap.
        given: How many pictures of that it has given.
    """

    lap: int = 0
    shard: int = 0
    given: int = 0


@dataclass(eq=False)
class ShardStream(IterableDataset[Any]):
    """Batches of training pictures without end, each with the `Place` of its worker after it.

    Args:
        urls: Of all shards.
        keys: By which the files of a key are told apart.
        prepare: How pictures are read.
        transform: What is random about them.
        seed: Of the order, and of what is random.
        batch_size: Pictures of a batch.
        classes: The number of classes, or their names; None without labels.
        is_random: Whether anything but the order is.
        buffer: Pictures of a shard among which the next one is drawn.
        skip_broken: Whether what cannot be used is left out, with a word.
        epoch: That is to be given.
        rank: Of this process.
        world: Number of processes.
        turn: The worker whose batch comes first.
        places: Where each worker begins.
    """

    urls: Sequence[str]
    keys: Keys
    prepare: Preparation
    transform: CropFlip
    seed: int
    batch_size: int
    classes: int | Sequence[str] | None = None
    is_random: bool = True
    buffer: int = 1000
    skip_broken: bool = False
    epoch: int = 0
    rank: int = 0
    world: int = 1
    turn: int = 0
    places: Sequence[Place] = field(default_factory=lambda: [Place()])

    def __iter__(self) -> Iterator[tuple[Any, Place]]:
        info = get_worker_info()
        worker = ((info.id if info else 0) + self.turn) % len(self.places)
        batch: list[Any] = []
        for item, place in self.examples(worker):
            batch.append(item)
            if len(batch) == self.batch_size:
                yield collate(batch), place
                batch = []

    def examples(self, worker: int) -> Iterator[tuple[dict[str, Any], Place]]:
        """The pictures of a worker, each with the place after it."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.urls))
        own = order[self.rank :: self.world][worker :: len(self.places)]
        start = self.places[worker]
        for lap in count(start.lap):
            lap_order = np.random.default_rng((self.seed, self.epoch, lap)).permutation(own) if lap else own
            empty = lap > start.lap
            for place in range(start.shard if lap == start.lap else 0, len(own)):
                skipped = start.given if (lap, place) == start[:2] else 0
                for given, item in self.shard_examples(int(lap_order[place]), lap, skipped):
                    empty = False
                    yield item, Place(lap, place, given)
            if empty:
                raise ImageError(f"{self.urls[own[0]]} and others: there is no picture that can be used.")

    def shard_examples(self, shard: int, lap: int, skipped: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """The pictures of a shard from some number on, each with that of how many were given."""
        key = (self.seed, self.epoch, lap, shard)
        mixed = _library().detshuffle(self.buffer, self.buffer, int(np.random.default_rng(key).integers(1 << 62)))
        for number, sample in enumerate(mixed.run(self.samples(shard))):
            if number >= skipped:
                rng = np.random.default_rng((*key, number)) if self.is_random else None
                yield number + 1, self.example(sample, rng)

    def samples(self, shard: int) -> Iterator[dict[str, Any]]:
        """The usable keys of a shard in order, as the library gives them: the files by their endings, and "picture"."""
        url, library = self.urls[shard], _library()
        broken: list[str] = []
        try:
            for sample in library.tarfile_to_samples()(iter([{"url": url}])):
                if sample["__key__"].endswith("/"):  # hidden files
                    continue
                pictures = [name for name in sample if not name.startswith("__") and self.keys.is_picture(name)]
                if not pictures:
                    continue
                sample["picture"] = pictures[0]
                if not (fault := self._fault(sample, pictures)):
                    yield sample
                elif self.skip_broken:
                    broken.append(f"{sample['__key__']}: {fault}")
                else:
                    raise ImageError(
                        f"{_name(sample)} cannot be used: {fault}. Mend it, or leave such out with skip_broken: true."
                    )
        except ImageError:
            raise
        except Exception as error:  # whatever the library and those who transfer raise
            words = f"{url} cannot be read to its end: {error.args[0] if error.args else error!r}"
            if not self.skip_broken:
                raise ImageError(f"{words} (cut short, or not there?)") from error
            warnings.warn(f"{words}. The pictures before are used.", stacklevel=1)
        if broken:
            warnings.warn(f"{url}: {len(broken)} pictures are left out ({'; '.join(broken[:3])}).", stacklevel=1)

    def _fault(self, sample: dict[str, Any], pictures: Sequence[str]) -> str:
        if len(pictures) > 1:
            return f"there are {len(pictures)} pictures (.{', .'.join(pictures)}); name the one to read: image_key"
        if self.keys.label and is_missing(self.keys.label_in(sample.get(member_of(self.keys.label), b""))):
            return "no label"
        if self.keys.caption and not self.keys.captions_in(sample.get(member_of(self.keys.caption), b"")):
            return "no caption"
        return fault_of_beginning(sample[pictures[0]][:BEGINNING], f".{pictures[0].rpartition('.')[2]}")

    def example(self, sample: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        """As the datasets of pictures give them."""
        keys, name = self.keys, _name(sample)
        pixels = self.prepare(sample[sample["picture"]], name)
        item: dict[str, Any] = {"image": self.transform(pixels, rng, lambda: name)}
        if keys.label and self.classes is not None:
            label = class_number(keys.label_in(sample[member_of(keys.label)]), self.classes, name)
            item["label"] = torch.tensor(label)
        if keys.caption:
            captions = keys.captions_in(sample[member_of(keys.caption)])
            item["caption"] = captions[0 if rng is None else int(rng.spawn(1)[0].integers(len(captions)))]
        return item


class StreamLoader:
    """So many batches of a stream an epoch, by workers that read shards of their own.

    Lightning stores `state_dict()` in checkpoints and gives it back before the first batch. As many processes and
    workers then go on exactly; each reads the shard again that it was at.

    Args:
        stream: Of this process.
        batches: Of an epoch.
        workers: That read; 0 for this process itself.
    """

    def __init__(self, stream: ShardStream, batches: int, workers: int) -> None:
        self.stream, self.batches, self.workers = stream, batches, workers
        self.epoch = self._wanted_epoch = 0
        self.given = 0  # batches of the epoch
        self.places = [Place()] * max(1, workers)
        self.is_going_on = False  # whether the next pass begins there

    @property
    def sampler(self) -> StreamLoader:
        """What Lightning tells of epochs."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self._wanted_epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        # A generator, so this runs at the first batch, when Lightning has set the epoch.
        self._turn_to_epoch()
        if not self.is_going_on:
            self.given, self.places = 0, [Place()] * max(1, self.workers)
        self.is_going_on = False
        number = len(self.places)
        loader: DataLoader[Any] = DataLoader(
            replace(self.stream, epoch=self.epoch, turn=self.given % number, places=list(self.places)),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_alone,
            generator=torch.Generator().manual_seed(self.stream.seed),
        )
        batches: Iterator[Any] = iter(loader) if self.given < self.batches else iter(())
        while self.given < self.batches:
            batch, place = next(batches)
            self.places[self.given % number] = Place(*place)
            self.given += 1
            yield batch

    def _turn_to_epoch(self) -> None:
        """See whether another epoch has begun."""
        if self._wanted_epoch != self.epoch:
            self.epoch, self.is_going_on = self._wanted_epoch, False
            self.given, self.places = 0, [Place()] * max(1, self.workers)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches of it given so far, and the places of the workers of all ranks, which must all ask."""
        self._turn_to_epoch()
        places = everywhere([list(place) for place in self.places])
        return {"epoch": self.epoch, "batches": self.given, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; with other processes or workers, the epoch's shards begin anew."""
        self.epoch = self._wanted_epoch = state["epoch"]
        self.given, self.is_going_on = min(state["batches"], self.batches), True
        places, here = state["places"], (self.stream.world, max(1, self.workers))
        if (len(places), len(places[0])) == here:
            self.places = [Place(*place) for place in places[self.stream.rank]]
            return
        self.places = [Place()] * here[1]
        rank_zero_warn(
            f"The stream was read by {len(places)} x {len(places[0])} processes x workers, and is now by {here[0]} x "
            f"{here[1]}. So the rest of this epoch begins with its first shards again."
        )


def local_copy(url: str) -> Path:
    """A shard that lies elsewhere, in the cache folder, where it is put whole or not at all.

    Raises:
        OSError: If it cannot be read or written.
    """
    name = url.rpartition("/")[2] or "shard.tar"
    path = cache_folder() / "shards" / digest(url.encode())[:16] / "".join(c for c in name if c.isalnum() or c in "-_.")
    if path.is_file():
        return path
    rank_zero_info(f"Copying {url} to {path}.")
    try:
        with opened_atomically(path) as file, _library().gopen(url) as stream:
            while part := stream.read(1 << 20):
                file.write(part)
    except Exception as error:  # whatever those who transfer raise
        raise OSError(f"{url} cannot be read: {error}") from error
    return path


def _library() -> Any:
    try:
        import webdataset
    except ModuleNotFoundError as error:
        raise missing_library() from error
    return webdataset


def _name(sample: dict[str, Any]) -> str:
    return f"{sample['__url__']}: {sample['__key__']}.{sample['picture']}"


def _as_it_is(value: Any) -> Any:
    return value
