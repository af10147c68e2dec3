"""Pictures as an extractor reads them, and folders of them, whoever made them, as what is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gen.data.base import Draw, DrawDataset, collate_sizes
from lightning_gen.data.batches import collate, images_and_labels, parts_of
from lightning_gen.data.images import (
    ImageError,
    Kernel,
    check_channels,
    from_uint8,
    image_size,
    read_image,
    resize_image,
    to_float,
    to_uint8,
)
from lightning_gen.data.listing import Files, in_words, list_images
from lightning_gen.extractors.base import FeatureExtractor, Features

Pictures: TypeAlias = Tensor | list[Tensor]
"""A batch `[N, C, H, W]`; or N pictures `[C, H, W]` of different sizes, for an extractor that `resizes`.

Either uint8 or floats in `[-1, 1]`.
"""


def pictures_in(batch: Any) -> Pictures:
    """Those of a batch: uint8, or floats in `[-1, 1]`."""
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), list):  # of `collate_sizes`
        pictures: list[Tensor] = batch["image"]
        return pictures
    images: Any = parts_of(batch)[0]
    is_uint8 = isinstance(images, Tensor) and images.dtype == torch.uint8
    return images if is_uint8 else images_and_labels(batch, "An evaluation")[0]


def as_read(images: Pictures, extractor: FeatureExtractor) -> Pictures:
    """Pictures, uint8 or finite floats in `[-1, 1]`, as the extractor takes them: of 8 bits, or points as they are."""
    if isinstance(images, list):
        return [as_read(image[None], extractor)[0] for image in images]
    if images.dtype == torch.uint8:
        return images if extractor.quantized else from_uint8(images)
    broken = (~images.isfinite()).flatten(1).any(1)
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        raise ValueError(
            f"{int(broken.sum())} of {len(images)} pictures in a batch have values that are not finite; the first is "
            f"picture {first}. A model that draws such pictures has diverged."
        )
    return to_uint8(images) if extractor.quantized else images.float()


def features_of(images: Pictures, extractor: FeatureExtractor) -> Features:
    """What an extractor sees in pictures as it takes them, on any device; those of one size go through it together."""
    if isinstance(images, Tensor):
        return extractor(images.to(extractor.device))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(tuple(image.shape), []).append(place)
    groups = list(by_size.values())
    seen = [extractor(torch.stack([images[place] for place in group]).to(extractor.device)) for group in groups]
    order = torch.tensor([place for group in groups for place in group]).argsort().to(extractor.device)
    logits = [part.logits for part in seen if part.logits is not None]
    return Features(torch.cat([part.features for part in seen])[order], torch.cat(logits)[order] if logits else None)


Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Sizing:
    """The size that all pictures of some folders have, or are brought to.

    Attributes:
        size: (height, width); None for pictures as they are, whose extractor brings them to one size.
        kernel: Of the resize; None where there is none.
    """

    size: Size | None
    kernel: Kernel | None = None

    @classmethod
    def of(
        cls,
        files: Sequence[Path],
        extractor: FeatureExtractor,
        kernel: Kernel | None = None,
        wanted: Size | None = None,
        whose: str = "",
    ) -> Sizing:
        """Decide it by the headers of all files alone, and by what the extractor takes.

        `wanted` is the size of pictures that are in no folder, if there are any, and `whose` says whose they are.

        Raises:
            ImageError: If a file is no picture, or is of another size than others where nothing brings them to one.
        """
        with ThreadPoolExecutor(16) as threads:  # on a disk elsewhere each file is a wait
            sizes = dict(zip(files, threads.map(image_size, files), strict=True))
        _, height, width = extractor.image_shape
        taken = None if height is None or width is None else (height, width)
        if kernel is not None:
            return cls(wanted or taken or sizes[files[0]], kernel)
        first = wanted or taken or sizes[files[0]]
        if extractor.resizes:
            return cls(first if set(sizes.values()) == {first} else None)
        others = f"{whose} are" if wanted else f"{extractor.name} takes" if taken else f"{files[0]} is"
        for file, size in sizes.items():
            if size != first:
                raise ImageError(
                    f"{file} is {size[0]} x {size[1]} (height x width), but {others} {first[0]} x {first[1]}. "
                    "--resize bicubic brings all pictures of folders to one size, and the figures' names say so."
                )
        return cls(first)

    @property
    def words(self) -> str:
        """Such as "bicubic32x32"; empty where nothing is resized."""
        return f"{self.kernel}{self.size[0]}x{self.size[1]}" if self.kernel and self.size else ""


@dataclass(frozen=True, eq=False)
class PictureFiles(DrawDataset):
    """Pictures of a folder in gray or colour: `{"image"}`, `[C, H, W]`, uint8 or (deeper ones) float32 in `[-1, 1]`."""

    files: Sequence[Path]
    channels: int
    sizing: Sizing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        file, wanted = self.files[draw.index], self.sizing.size
        pixels = read_image(file, self.channels)
        if self.sizing.kernel and wanted:
            pixels = resize_image(pixels, wanted, self.sizing.kernel)
        if wanted and pixels.shape[1:] != wanted:
            found, others = (" x ".join(map(str, size)) for size in (pixels.shape[1:], wanted))
            raise ImageError(f"{file} is {found} pixels, unlike its header says, and others are {others}.")
        return {"image": pixels if pixels.dtype == torch.uint8 else to_float(pixels)}


def folder_loaders(
    folders: Sequence[Path | None],
    channels: int,
    extractor: FeatureExtractor,
    kernel: Kernel | None = None,
    wanted: Size | None = None,
    whose: str = "",
) -> tuple[dict[Path, DataLoader[Any]], Sizing]:
    """Loaders over all pictures of folders, in batches of pictures or, where sizes differ, of lists of them.

    Read in 1 (gray) or 3 channels (RGB); None stands for a folder that there is not. The rest is `Sizing.of`'s.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no pictures.
        ImageError: As `Sizing.of`.
        ValueError: If a resize is asked for and there are no folders.
    """
    found: dict[Path, Files] = {}
    for folder in filter(None, folders):
        search = list_images(folder).checked()
        found[folder] = search.images
        if faults := search.faults[0]:
            raise ImageError(f"{in_words(faults, len(search.images), folder)} Mend or remove them.")
    files = [file for inside in found.values() for file in inside]
    if not files:
        if kernel:
            raise ValueError("resize is for pictures of folders, as --images or as --reference; there are none.")
        return {}, Sizing(None)
    sizing = Sizing.of(files, extractor, kernel, wanted, whose)
    loaders = {
        folder: DataLoader(
            PictureFiles(inside, check_channels(channels), sizing),
            batch_size=64,
            num_workers=min(8, max(0, (os.cpu_count() or 1) - 2)),
            collate_fn=collate if sizing.size else collate_sizes,
        )
        for folder, inside in found.items()
    }
    return loaders, sizing
