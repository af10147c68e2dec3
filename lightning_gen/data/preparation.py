"""What happens to a picture once, before anything about it is random: it is decoded and brought to a size.

A preparation is plain data, so it counts in fingerprints, and what it gives may be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_gen.data.images import ImageError, name_of, read_reduced, resize_image


@dataclass(frozen=True)
class Keep:
    """Leave a picture as large as it is."""

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is resized to."""
        return height, width


@dataclass(frozen=True)
class Stretch:
    """Resize to `size`, (height, width), whatever the aspect ratio becomes."""

    size: tuple[int, int]

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is resized to."""
        return self.size


@dataclass(frozen=True)
class Cover:
    """Resize, keeping the aspect ratio, to the smallest picture that covers `size`, (height, width)."""

    size: tuple[int, int]

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is resized to."""
        scale = max(self.size[0] / height, self.size[1] / width)
        return max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))


@dataclass(frozen=True)
class Preparation:
    """From a file, or the bytes of one, to pixels.

    Args:
        sizing: To which size.
        center: (height, width) of the central part that is kept, or None for all.
        channels: 3 for RGB, 1 for gray.
        background: Colour behind transparent pixels.
        halves: Whether the file holds two pictures side by side.
        exact_decode: Whether a JPEG is decoded in full before it is resized, rather than as `read_reduced` does.
    """

    sizing: Keep | Stretch | Cover
    center: tuple[int, int] | None = None
    channels: int = 3
    background: str = "white"
    halves: bool = False
    exact_decode: bool = False

    def __call__(self, source: Path | bytes, name: str | None = None) -> Tensor:
        """The pixels.

        Args:
            source: A file, or the bytes of one.
            name: What messages call the picture, if not by its path.

        Returns:
            `[C, H, W]`, of halves `[2, C, H, W]`: uint8 for files of 8 bits, float32 in `[0, 1]` for deeper ones.

        Raises:
            ImageError: If the file cannot be read, has an odd width where it must hold halves, or its picture is
                smaller than what is to be kept of it.
        """
        pixels, (height, width), side = read_reduced(source, self._wanted, self.channels, self.background, name=name)
        name = name_of(source, name)
        if self.halves:
            if width % 2:
                raise ImageError(f"{name} is {width} pixels wide; a pair A|B must have an even width.")
            # One picture of [2, C, H, W], so that crop and flip are shared; channels last in memory, to resize faster.
            pixels = pixels.unflatten(-1, (2, -1)).movedim(-2, 0).contiguous(memory_format=torch.channels_last)
            width, name = width // 2, f"Each half of {name}"
        pixels = resize_image(pixels, self.sizing(height, width), extent=(height / side, width / side))
        if self.center is None:
            return pixels
        spare = room(pixels, self.center, lambda: name)
        return cut(pixels, spare[0] // 2, spare[1] // 2, self.center)

    def _wanted(self, height: int, width: int) -> tuple[int, int] | None:
        """(height, width) to which a picture of another one is resized, None if all of its pixels are wanted."""
        if self.exact_decode:
            return None
        if not self.halves:
            return self.sizing(height, width)
        if width % 16:  # at the coarsest scale, of 1/8, the halves would no longer meet between two pixels
            return None
        height, width = self.sizing(height, width // 2)
        return height, 2 * width


def room(pixels: Tensor, size: tuple[int, int], name: Callable[[], str]) -> tuple[int, int]:
    """By how many rows and columns a picture is larger than a part of (height, width).

    Raises:
        ImageError: If it is smaller. The message has what `name` gives.
    """
    height, width = pixels.shape[-2:]
    if height < size[0] or width < size[1]:
        raise ImageError(
            f"{name()} is {height} x {width} (height x width), smaller than the crop of {size[0]} x {size[1]}. "
            "Choose a smaller crop, or let pictures be resized."
        )
    return height - size[0], width - size[1]


def cut(pixels: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """The part of (height, width) at a place, a view."""
    return pixels[..., top : top + size[0], left : left + size[1]]
