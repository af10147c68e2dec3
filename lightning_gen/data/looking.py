"""A look at data before anything is trained: how many pictures, how large, and some as training has them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from lightning_gen.data.augmentation import CropFlip, SinglePictures
from lightning_gen.data.base import Draw, DrawSampler, ImageDataModule, Split, examples_of
from lightning_gen.data.batches import PICTURES, as_floats, batch_size, parts_of
from lightning_gen.data.datasets import InMemoryDataModule
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import ImageError, image_size, to_uint8
from lightning_gen.data.point_clouds import draw_points
from lightning_gen.data.preparation import Cover, Preparation, Stretch
from lightning_gen.data.sources import EncodedSource
from lightning_gen.data.toy import PointDataModule

LOOKED_AT = 2000
"""Files of a split that are opened, of larger ones a sample that is spread evenly."""
_POINTS = 2000  # in a picture of points


@dataclass(frozen=True)
class Sizes:
    """Of the files of a split, as they lie; pairs in one file are two pictures.

    Attributes:
        files: How many there are.
        looked_at: How many of them were opened, which the others are of.
        heights: The smallest, the median and the largest.
        widths: Likewise.
        enlarged: How many are smaller than what they are resized to.
        unreadable: What is wrong with files that have no size, by name.
    """

    files: int
    looked_at: int
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    enlarged: int
    unreadable: Mapping[str, str] = field(default_factory=dict)


def dataset_of(data: pl.LightningDataModule, split: Split) -> Any:
    """The examples of a split, indexed by a `Draw` where the module is one of ours, else by place; or one by one.

    Raises:
        TypeError: As `examples_of`, of the loader of another module.
    """
    if split == "train" and getattr(data, "stream", False):
        return _Stream(data)
    if isinstance(data, ImageDataModule):
        return {"train": data.train_set, "val": data.val_set, "test": data.test_set}[split]()
    loaders = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}
    return examples_of(loaders[split]())


@dataclass(frozen=True)
class _Stream:
    """Training examples that have no numbers, in the order in which they come."""

    data: pl.LightningDataModule

    def __iter__(self) -> Iterator[dict[str, Any]]:
        alone: Any = copy.copy(self.data)
        alone.num_workers = 0
        for batch in alone.train_dataloader():
            yield from ({name: column[i] for name, column in batch.items()} for i in range(batch_size(batch)))


def unit(data: pl.LightningDataModule, dataset: Any) -> str:
    """What the examples of a dataset are: "pictures", "pairs" of a picture of A and one of B, or "points"."""
    if tuple(getattr(data, "image_shape", ())[1:]) == (1, 1):
        return "points"
    return "pairs" if {"A", "B"} <= looks_at(data, dataset, 1)[0].pictures.keys() else "pictures"


# -- how many, and how large ----------------------------------------------------------------------------------------


def counts(dataset: Any, class_names: Sequence[str] | None = None) -> dict[str, int]:
    """How many examples there are, how many pictures in each domain, and of each class.

    Args:
        dataset: Whose pictures may come from a `source` or several, and which may have `labels`.
        class_names: By number; the numbers where there are none.

    Returns:
        The examples under "", unless it is a stream, then domains ("A", "B"), then classes by name, where they are
        known without loading pictures.
    """
    found = {"": len(dataset)} if hasattr(dataset, "__len__") else {}
    sources = sources_of(dataset)
    if len(sources) > 1:
        found |= {name: len(source) for name, source in sources.items()}
    labels = getattr(dataset, "labels", None)
    if labels is not None:
        numbers = np.bincount(np.asarray(labels), minlength=len(class_names or ()))
        names = class_names or [str(number) for number in range(len(numbers))]
        found |= {str(name): int(number) for name, number in zip(names, numbers, strict=True)}
    return found


def sizes(dataset: Any) -> dict[str, Sizes]:
    """How large the files of a dataset are, from their headers, by domain; empty where its pictures lie in no files.

    Args:
        dataset: Whose pictures may come from an `EncodedSource` or several.
    """
    return {name: _sizes(source) for name, source in sources_of(dataset).items() if isinstance(source, EncodedSource)}


def captions_per_picture(dataset: Any) -> tuple[int, int, int] | None:
    """The fewest, the median and the most captions of a picture, in a sample; None where it has one or none."""
    if not isinstance(dataset, SinglePictures) or dataset.captions is None:
        return None
    return _three([len(dataset.captions[index]) for index in spread_over(len(dataset), LOOKED_AT)])


def treatment(data: pl.LightningDataModule, dataset: Any, split: Split) -> str:
    """What becomes of the pictures of a split, its dataset, in words; empty where nothing does or nothing is known."""
    source = next(iter(sources_of(dataset).values()), None)  # all of which are treated alike
    prepare, transform = getattr(source, "prepare", None), getattr(dataset, "transform", None)
    words = _of_preparation(prepare) if isinstance(prepare, Preparation) else []
    words += ["kept so in the cache"] if getattr(data, "cache", False) and words else []
    if isinstance(transform, CropFlip):
        words += _of_transform(transform, dataset.seed is not None, getattr(prepare, "center", None))
    if isinstance(data, InMemoryDataModule):
        words += _in_memory(data, split)
    if split == "train" and (growing := getattr(data, "growing", None)) is not None:
        words.append(f"averaged down to {', '.join(map(str, growing.resolutions))} rows as training goes on")
    return ", ".join(words)


def _of_preparation(prepare: Preparation) -> list[str]:
    words = ["each half of a file"] if prepare.halves else []
    match prepare.sizing:
        case Stretch(size):
            words.append(f"resized to {_times(size)}, whatever their aspect ratio")
        case Cover(size):
            words.append(f"resized to just cover {_times(size)}, their aspect ratio kept")
        case _:
            words.append("not resized")
    if prepare.center and prepare.sizing != Stretch(prepare.center):
        words.append(f"cropped at the center to {_times(prepare.center)}")
    return words


def _of_transform(transform: CropFlip, is_random: bool, center: tuple[int, int] | None) -> list[str]:
    words = []
    if transform.crop != center:
        where = "at random" if is_random and transform.random_crop else "at the center"
        words.append(f"cropped {where} to {_times(transform.crop)}")
    return [*words, "half of them mirrored"] if is_random and transform.flip else words


def _in_memory(data: InMemoryDataModule, split: Split) -> list[str]:
    words = [f"resized to {data.image_size} x {data.image_size}"] if data.image_size else []
    words += [f"black and white ({data.binarization})"] if data.binarization else []
    words += ["half of them mirrored"] if data.flip and split == "train" else []
    words += [f"{data.pad} black pixels around them"] if data.pad else []
    return [*words, f"{data.bits} bits a channel"] if data.bits < 8 else words


def _times(size: tuple[int, int]) -> str:
    """(height, width) as it is written."""
    return f"{size[0]} x {size[1]}"


def sources_of(dataset: Any) -> dict[str, Any]:
    """Where the pictures of a dataset come from in the first place, by domain, "" where there are none."""
    names = {"source": "", "source_A": "A", "source_B": "B"}
    found = {domain: getattr(dataset, name) for name, domain in names.items() if hasattr(dataset, name)}
    for domain in found:
        while hasattr(found[domain], "source"):  # which keeps what another one gives
            found[domain] = found[domain].source
    return found


def _sizes(source: EncodedSource) -> Sizes:
    chosen = spread_over(len(source), LOOKED_AT)
    found: list[tuple[int, int]] = []
    unreadable: dict[str, str] = {}
    for index in chosen:
        try:
            found.append(image_size(source.encoded(index), name=source.name(index)))
        except ImageError as error:
            unreadable[source.name(index)] = str(error)
    parts = 2 if source.prepare.halves else 1
    wanted = [source.prepare.sizing(height, width // parts) for height, width in found]
    enlarged = sum(h > height or w > width // parts for (height, width), (h, w) in zip(found, wanted, strict=True))
    heights, widths = (_three([size[axis] for size in found]) for axis in (0, 1))
    return Sizes(len(source), len(chosen), heights, widths, enlarged, unreadable)


def _three(numbers: Sequence[int]) -> tuple[int, int, int]:
    """The smallest, the median and the largest."""
    ordered = sorted(numbers) or [0]
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def spread_over(total: int, number: int) -> list[int]:
    """So many of the numbers below a total, or all, evenly spread."""
    return [i * total // min(total, number) for i in range(min(total, number))]


# -- as training has them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """An example as a dataset gives it.

    Attributes:
        pictures: By name, "A" and "B" or "image" and whatever else has its shape, as masks: uint8 `[C, H, W]`.
        words: Its class and its caption, if any.
        epoch: Of training.
    """

    pictures: Mapping[str, Tensor]
    words: str = ""
    epoch: int = 0


def training_looks(data: pl.LightningDataModule, dataset: Any, rows: int = 8, looks: int = 4) -> list[list[Look]]:
    """The training pictures that come first, each as the first epochs show it: with their crops, flips and partners.

    Args:
        data: The module.
        dataset: Its training examples, of `dataset_of`.
        rows: How many pictures.
        looks: How many epochs.

    Returns:
        A row for each picture. With data of others than this package, each further look asks for the same example, and
        a stream begins anew.
    """
    if not isinstance(data, ImageDataModule) or not hasattr(dataset, "__len__"):
        found = [looks_at(data, dataset, rows, spread=False) for _ in range(looks)]
        return [[replace(look, epoch=epoch) for epoch, look in enumerate(row)] for row in zip(*found, strict=True)]
    sampler = DrawSampler(dataset, shuffle=True, seed=data.seed)
    first = [draw.index for draw in islice(sampler, rows)]
    by_index: dict[int, list[Look]] = {index: [] for index in first}
    for epoch in range(looks):
        sampler.set_epoch(epoch)
        draws = {draw.index: draw for draw in sampler if draw.index in by_index}
        for index, row in by_index.items():
            row.append(_look(data, dataset[draws[index]], epoch))
    return list(by_index.values())


def looks_at(data: pl.LightningDataModule, dataset: Any, number: int = 16, *, spread: bool = True) -> list[Look]:
    """Examples of a dataset in order, so many that are evenly spread over it, or the first; of a stream the first."""
    with isolate_rng():  # a dataset of the user's own may draw from the global random state
        if not hasattr(dataset, "__len__"):
            return [_look(data, item) for item in islice(dataset, number)]
        places = spread_over(len(dataset), number) if spread else list(range(min(number, len(dataset))))
        ours = isinstance(data, ImageDataModule)
        return [_look(data, dataset[Draw(0, i, i) if ours else i]) for i in places]


def grid(rows: Sequence[Sequence[Look]], domains: Sequence[str] = (), *, epochs: bool = False) -> Image.Image:
    """Examples side by side in rows, each with all its pictures, above its class and caption.

    Args:
        rows: As long as each other, but for the last.
        domains: What A and B are, for the titles of their columns.
        epochs: Whether the columns are epochs, which their titles say.

    Raises:
        ValueError: If there is nothing that can be shown.
    """
    names = list(rows[0][0].pictures) if rows else []
    called = dict(zip(("A", "B"), domains, strict=False))
    columns: list[tuple[str, list[Tensor]]] = []
    words: dict[tuple[int, int], str] = {}
    for place in range(len(rows[0]) if names else 0):
        column = [row[place] for row in rows if place < len(row)]
        words |= {(r, len(columns)): look.words for r, look in enumerate(column) if look.words}
        for name in names:
            title = [f"{name}: {called[name]}" if name in called else name] if len(names) > 1 else []
            title += [f"epoch {column[0].epoch}"] if epochs else []
            columns.append((", ".join(title), [look.pictures[name] for look in column]))
    return picture_grid(columns, words)


def cloud(data: PointDataModule, dataset: Any) -> Image.Image:
    """Points of a split of toy data, its dataset, before their truth; they have 1 or 2 coordinates."""
    points = [dataset[Draw(0, i, i)]["image"].flatten() for i in range(min(_POINTS, len(dataset)))]
    return draw_points(data.distribution, torch.stack(points))


def _look(data: pl.LightningDataModule, item: Any, epoch: int = 0) -> Look:
    """An example by its parts."""
    image, label = parts_of(item)
    values: Mapping[str, Any] = item if isinstance(item, Mapping) else {"image": image}
    names = [name for name in ("A", "B", *PICTURES) if name in values]
    size = values[names[0]].shape[-2:] if names else None
    # And what else is as large as they are: masks, maps.
    names += [name for name, value in values.items() if name not in names and getattr(value, "shape", ())[-2:] == size]
    pictures = {name: _visible(values[name], name) for name in names if values[name].ndim == 3}
    words = [f"{name}: {len(values[name])} channels" for name in pictures if len(pictures[name]) not in (1, 3)]
    if label is not None and getattr(label, "ndim", 0) == 0:
        known = getattr(data, "class_names", None)
        words.append(str(known[int(label)]) if known else f"class {int(label)}")
    if isinstance(caption := values.get("caption"), str):
        words.append(caption)
    shown = {name: picture for name, picture in pictures.items() if len(picture) in (1, 3)}
    return Look(shown, ". ".join(words), epoch)


def _visible(picture: Tensor, name: str) -> Tensor:
    """What a batch has, as uint8: a mask black and white, floats of [-1, 1] in their levels."""
    if picture.dtype == torch.bool:
        return picture.to(torch.uint8).mul(255)
    return picture if picture.dtype == torch.uint8 else to_uint8(as_floats(picture, name))
