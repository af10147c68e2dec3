"""Folders of pictures as this library read them at first: decoded in full, made floats before collation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms.v2 import functional as geometry

from lightning_gen.data.base import Draw, DrawDataset


@dataclass(frozen=True, eq=False)
class EarlierFolder(DrawDataset):
    """Opaque square pictures of 8 bits, mirrored and cropped at random; an example has one of each domain.

    That of the first domain stands at the example's index, those of others are drawn.

    Args:
        domains: The files of each domain, by its name in a batch.
        resize: Height and width before the crop.
        crop: Height and width of the pictures given.
        seed: Of all that is drawn.
    """

    domains: Mapping[str, Sequence[Path]]
    resize: int
    crop: int
    seed: int

    def __len__(self) -> int:
        return max(len(files) for files in self.domains.values())

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng = draw.rng(self.seed)
        first, *others = self.domains.values()
        paths = [first[draw.index % len(first)], *(files[int(rng.integers(len(files)))] for files in others)]
        return {name: self._augmented(path, rng) for name, path in zip(self.domains, paths, strict=True)}

    def _augmented(self, path: Path, rng: np.random.Generator) -> Tensor:
        pixels: Tensor = geometry.resize(
            read(path), [self.resize, self.resize], geometry.InterpolationMode.BICUBIC, antialias=True
        )
        if spare := self.resize - self.crop:
            top, left = (int(rng.integers(spare + 1)) for _ in range(2))
            pixels = geometry.crop(pixels, top, left, self.crop, self.crop)
        if rng.random() < 0.5:
            pixels = geometry.horizontal_flip(pixels)
        return pixels.float().div(127.5).sub(1).contiguous()


def read(path: Path) -> Tensor:
    """All pixels of an upright opaque picture: uint8 `[3, H, W]`, channels last in memory.

    Raises:
        ValueError: If the picture is neither.
    """
    with path.open("rb") as file, Image.open(file) as image:
        image.load()
        if image.has_transparency_data or image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            raise ValueError(f"{path} is transparent or turned; the pictures of a benchmark must be neither.")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
