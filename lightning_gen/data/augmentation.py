"""Datasets of pictures from a source, and all that is random about them: crop, flip, partner and caption.

Each random choice comes from `draw.rng(seed)`, so an example depends on the seed, the epoch and its place in the epoch,
and on nothing else. Without a seed nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gen.data.base import Draw, DrawDataset
from lightning_gen.data.images import to_float
from lightning_gen.data.preparation import cut, room
from lightning_gen.data.sources import Captions, Source


@dataclass(frozen=True)
class CropFlip:
    """Cut out a part of (height, width), at random or central, then mirror half of the pictures, if wanted."""

    crop: tuple[int, int]
    random_crop: bool = False
    flip: bool = False

    def __call__(self, pixels: Tensor, rng: np.random.Generator | None, name: Callable[[], str]) -> Tensor:
        """Pixels `[..., H, W]` of a source to `[..., *crop]`: uint8, or of deeper files float32 in `[-1, 1]`.

        Args:
            pixels: As a `Source` gives them.
            rng: Of all that is random; None for nothing.
            name: Gives that of the picture, for errors.

        Raises:
            ImageError: If it is smaller than the crop.
        """
        spare = room(pixels, self.crop, name)
        top, left = (int(rng.integers(n + 1)) if rng is not None and self.random_crop else n // 2 for n in spare)
        pixels = cut(pixels, top, left, self.crop)
        if rng is not None and self.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        # Contiguous, because strides that depend on the file or the workers would change the rounding of convolutions.
        return (pixels if pixels.dtype == torch.uint8 else to_float(pixels)).contiguous()


@dataclass(frozen=True, eq=False)
class SinglePictures(DrawDataset):
    """Pictures, as `CropFlip` gives them, perhaps with labels and captions: `{"image"}`, `{"label"}`, `{"caption"}`.

    Args:
        source: Of the pictures.
        transform: What is random about them.
        seed: Of that; None for nothing.
        labels: A number for each, or None.
        captions: Of which one is drawn, and without a seed the first given; or None.
    """

    source: Source
    transform: CropFlip
    seed: int | None
    labels: Sequence[int] | NDArray[np.int64] | None = None
    captions: Captions | None = None

    def recipe(self) -> Any:
        """The fields, but for captions, which are no pictures, and a seed of nothing."""
        pictures = {name: value for name, value in super().recipe().items() if name != "captions"}
        random = self.transform.random_crop or self.transform.flip
        return pictures | {"seed": self.seed if random else None}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng = None if self.seed is None else draw.rng(self.seed)
        item: dict[str, Any] = {
            "image": self.transform(self.source[draw.index], rng, partial(self.source.name, draw.index)),
        }
        if self.labels is not None:
            item["label"] = torch.tensor(self.labels[draw.index])
        if self.captions is not None:
            item["caption"] = self.caption(draw)
        return item

    def caption(self, draw: Draw) -> str:
        """One of the captions of a picture, drawn from a stream of its own, whatever crop and flip draw."""
        assert self.captions is not None
        found = self.captions[draw.index]
        rng = None if self.seed is None else draw.rng(self.seed).spawn(1)[0]
        return found[0 if rng is None else int(rng.integers(len(found)))]


@dataclass(frozen=True, eq=False)
class UnpairedPictures(DrawDataset):
    """Pictures of A, each with a random one of B; without a seed, both in order.

    Args:
        source_A: Of the pictures of A.
        source_B: Of B.
        transform: What is random about each of them.
        seed: Of that and of the partners; None for nothing.
        paired: Whether A and B in order show the same scene, which the examples then say.
    """

    source_A: Source
    source_B: Source
    transform: CropFlip
    seed: int | None
    paired: bool = False

    def __len__(self) -> int:
        return max(len(self.source_A), len(self.source_B))

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng = None if self.seed is None else draw.rng(self.seed)
        partner = draw.index if rng is None else int(rng.integers(len(self.source_B)))
        item = {}
        for side, source, index in (("A", self.source_A, draw.index), ("B", self.source_B, partner)):
            place = index % len(source)
            item[side] = self.transform(source[place], rng, partial(source.name, place))
        return item | {"paired": torch.tensor(True)} if self.paired else item


@dataclass(frozen=True, eq=False)
class PairedPictures(DrawDataset):
    """Pictures of A and B from a source of both halves, `[2, C, H, W]`; crop and flip are shared.

    Args:
        source: Of the halves.
        transform: What is random about them.
        seed: Of that; None for nothing.
        swap: Whether A is the right half.
    """

    source: Source
    transform: CropFlip
    seed: int | None
    swap: bool

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng = None if self.seed is None else draw.rng(self.seed)
        halves = self.transform(self.source[draw.index], rng, lambda: f"Each half of {self.source.name(draw.index)}")
        a, b = halves.flip(0) if self.swap else halves
        return {"A": a, "B": b, "paired": torch.tensor(True)}
