"""What the pictures of a data module are, as far as it matters for what to train on them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning.pytorch as pl
from torch import Tensor

from lightning_gen import files
from lightning_gen.data import looking
from lightning_gen.data.base import Split
from lightning_gen.data.images import ImageError, fit_image, read_image, read_reduced, resize_image, to_float
from lightning_gen.data.listing import in_threads
from lightning_gen.data.preparation import Cover
from lightning_gen.data.sources import EncodedSource

DECODED = 2000
"""Pictures of a domain in a split that are decoded, of more a sample that is spread evenly."""
RESOLUTIONS = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Which `Survey.detail` is of, and from which `lightning_gen.advice` chooses."""
_DETAILED = 24  # pictures of a domain whose detail is measured
_LARGEST = 2048  # pixels of a side of these
_THUMBNAIL = 64  # pixels of a side by which pictures are compared
_GRAY = 1.5  # of 255 levels by which the channels of a gray picture may differ in the mean, as JPEG makes them


@dataclass(frozen=True)
class Survey:
    """Of the pictures of all splits; pairs in one file are two of them.

    Attributes:
        unit: "pictures", "pairs" of a picture of A and one of B, or "points".
        training: Training pictures, without those that are copies or cannot be read; of domains the fewest.
        held_out: Those of validation, likewise.
        sizes: (height, width) of those that were looked at, as they lie.
        gray: Share of these that have no colour.
        detail: For square resolutions below theirs, the peak signal-to-noise ratio (dB, a median) of pictures that are
            brought to one and back, which says what is lost there. Above 40 nothing of it can be seen.
        counts: Of training pictures, by class or domain, where they have some.
        copies: Pictures of the same content as an earlier one, and that one, by name; train comes before val and test.
        broken: What is wrong with those that cannot be read, by name.
        sampled: Whether there are more than were decoded.
        left_out: What the data module says of the files that it does not take.
    """

    unit: str
    training: int
    held_out: int
    sizes: tuple[tuple[int, int], ...]
    gray: float = 0.0
    detail: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    sampled: bool = False
    left_out: tuple[str, ...] = ()


def survey(data: pl.LightningDataModule) -> Survey:
    """Look at the pictures of a data module, which is prepared and set up here.

    Copies are files of the same bytes, and pictures of one size and of the same pixels when they are resized to
    64 x 64. All files are compared; decoded are up to 2000 of each domain and split, evenly spaced.

    Raises:
        TypeError: As `looking.dataset_of`.
        ImageError: If none of the pictures can be read.
    """
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    splits: list[Split] = ["train", "val", "test"]
    if (folders := getattr(data, "files", {})) and folders.get("val") == folders.get("test"):
        splits.remove("test")
    datasets = {split: looking.dataset_of(data, split) for split in splits}
    counts = looking.counts(datasets["train"], getattr(data, "class_names", None))
    counts.pop("", None)
    groups = {
        (split, domain): group
        for split, dataset in datasets.items()
        for domain, group in _groups(data, dataset, split).items()
    }
    # The first of the files may be broken, so none is read to find out.
    files_of_pairs = [group.makes_pairs for group in groups.values() if isinstance(group, _Files)]
    if files_of_pairs:
        unit = "pairs" if any(files_of_pairs) or ("train", "A") in groups else "pictures"
    else:
        unit = looking.unit(data, datasets["train"])
    if unit == "points":
        return Survey(unit, len(datasets["train"]), len(datasets["val"]), sizes=((1, 1),), counts=counts)
    lengths = Counter(length for group in groups.values() for length in group.lengths)
    usable: dict[tuple[Split, str], int] = {}
    firsts: dict[str, str] = {}
    copies: dict[str, str] = {}
    broken: dict[str, str] = {}
    seen: list[_Seen] = []
    for place, group in groups.items():
        lost = 0
        for one in group.seen(lengths):
            first = next((firsts[key] for key in one.keys if key in firsts), one.name)
            firsts |= {key: first for key in one.keys if key not in firsts}
            copies |= {one.name: first} if first != one.name else {}
            broken |= {one.name: one.fault} if one.fault else {}
            lost += bool(one.fault) or first != one.name
            seen += [one] if one.size else []
        usable[place] = group.total - lost
    if not seen:
        raise ImageError(f"None of the pictures can be read. {next(iter(broken.values()), 'There are none.')}")
    return Survey(
        unit=unit,
        training=min(number for (split, _), number in usable.items() if split == "train"),
        held_out=min(number for (split, _), number in usable.items() if split == "val"),
        sizes=tuple(one.size for one in seen if one.size),
        gray=sum(one.gray for one in seen) / len(seen),
        detail=_medians(one.detail for one in seen),
        counts=counts,
        copies=copies,
        broken=broken,
        sampled=any(group.total > DECODED for group in groups.values()),
        left_out=tuple(getattr(data, "left_out", ())),
    )


class _Seen(NamedTuple):
    """What was found of a picture; of one that was not decoded, what its bytes tell."""

    name: str
    keys: tuple[str, ...] = ()  # which copies share
    size: tuple[int, int] | None = None
    gray: bool = False
    detail: Mapping[int, float] = {}
    fault: str = ""


@dataclass(frozen=True, eq=False)
class _Files:
    """The files of a domain in a split."""

    source: EncodedSource

    @property
    def total(self) -> int:
        return len(self.source)

    @property
    def makes_pairs(self) -> bool:
        return self.source.prepare.halves

    @property
    def lengths(self) -> Iterator[int]:
        """In bytes, of those that lie in the file system."""
        contents = map(self.source.encoded, range(self.total)) if self._lie_open else iter(())
        yield from in_threads(_length, contents)

    @property
    def _lie_open(self) -> bool:
        return self.total > 0 and isinstance(self.source.encoded(0), Path)

    def seen(self, lengths: Counter[int]) -> Iterator[_Seen]:
        """All of them, some of them decoded; hashed are those that are as long as another one."""
        decoded, detailed = (
            set(looking.spread_over(self.total, DECODED)),
            set(looking.spread_over(self.total, _DETAILED)),
        )
        numbers = range(self.total) if self._lie_open else sorted(decoded)
        look = partial(self._look, lengths, decoded, detailed)
        yield from in_threads(look, numbers, len(numbers))

    def _look(self, lengths: Counter[int], decoded: set[int], detailed: set[int], number: int) -> _Seen:
        name, keys = self.source.name(number), list[str]()
        try:
            content = self.source.encoded(number)
            if isinstance(content, bytes):
                keys.append(hashlib.sha256(content).hexdigest())
            elif lengths[_length(content)] > 1:
                keys.append(files.digest(content))
            if number not in decoded:
                return _Seen(name, tuple(keys))
            prepare = self.source.prepare
            cover = Cover((4 * _THUMBNAIL, 4 * _THUMBNAIL))
            pixels, (height, width), _ = read_reduced(content, cover, 3, prepare.background, name=name)
            size = (height, width // 2) if prepare.halves else (height, width)
            found = _of_pixels(name, pixels, size, keys)
            if number in detailed:
                whole = read_image(content, 3, prepare.background, name=name)
                found = found._replace(detail=_detail(whole[..., : size[1]]))
            return found
        except (ImageError, OSError) as error:
            return _Seen(name, fault=str(error))


@dataclass(frozen=True, eq=False)
class _Examples:
    """The pictures of a dataset that come from nowhere that is known, as it gives them."""

    data: pl.LightningDataModule
    dataset: Any
    split: Split
    domain: str
    total: int
    lengths: tuple[int, ...] = ()

    def seen(self, lengths: Counter[int]) -> Iterator[_Seen]:
        """A sample of them, evenly spaced."""
        looks = looking.looks_at(self.data, self.dataset, DECODED // 4)
        for number, look in enumerate(looks):
            picture = look.pictures.get(self.domain, next(iter(look.pictures.values()), None))
            if picture is None:  # of channels that cannot be shown
                continue
            name = f"{self.split} {self.domain} {number * self.total // len(looks)}".replace("  ", " ")
            found = _of_pixels(name, picture.expand(3, -1, -1), (picture.shape[1], picture.shape[2]), [])
            yield found._replace(detail=_detail(picture)) if number < _DETAILED else found


def _groups(data: pl.LightningDataModule, dataset: Any, split: Split) -> dict[str, _Files | _Examples]:
    """The pictures of a split by domain, "" where there are none."""
    sources = looking.sources_of(dataset)
    if sources and all(isinstance(source, EncodedSource) for source in sources.values()):
        return {domain: _Files(source) for domain, source in sources.items()}
    total = len(dataset) if hasattr(dataset, "__len__") else DECODED  # of a stream
    domains = [name for name in looking.looks_at(data, dataset, 1)[0].pictures if name in ("A", "B")]
    return {domain: _Examples(data, dataset, split, domain, total) for domain in domains or [""]}


def _of_pixels(name: str, pixels: Tensor, size: tuple[int, int], keys: list[str]) -> _Seen:
    values = 127.5 * to_float(pixels)
    thumbnail = resize_image(pixels, (_THUMBNAIL, _THUMBNAIL)).contiguous()
    key = hashlib.sha256(repr(size).encode() + thumbnail.numpy().tobytes()).hexdigest()
    gray = float((values.amax(0) - values.amin(0)).mean()) < _GRAY
    return _Seen(name, (*keys, key), size, gray)


def _detail(pixels: Tensor) -> dict[int, float]:
    """What is lost of a picture `[C, H, W]` at each resolution below its own, in dB; of large ones it is not known."""
    height, width = pixels.shape[-2:]
    side = min(height, width)
    if side > _LARGEST:
        return {}
    top, left = (height - side) // 2, (width - side) // 2
    square = to_float(pixels[..., top : top + side, left : left + side]).add(1).div(2)
    found = {}
    for resolution in RESOLUTIONS:
        if resolution < side:
            back = fit_image(fit_image(square, (resolution, resolution)), (side, side))
            error = float((back - square).square().mean())
            found[resolution] = min(99.0, -10 * math.log10(max(error, 1e-12)))
    return found


def _medians(details: Iterable[Mapping[int, float]]) -> dict[int, float]:
    known = [detail for detail in details if detail]
    found = {r: [detail[r] for detail in known if r in detail] for r in RESOLUTIONS}
    return {resolution: median(values) for resolution, values in found.items() if values}


def _length(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
