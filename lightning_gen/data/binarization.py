"""Gray pictures in black and white, the ways that likelihoods are published for. Figures of different ways differ."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Binarization = Literal["fixed", "static", "dynamic", "threshold"]
"""The published file; a draw once and for all; a draw whenever a picture is shown; a cut at half."""

ROWS = {"train": 50_000, "valid": 10_000, "test": 10_000}
"""Pictures in each file of the published binarised MNIST."""

_SIDE = 28


def threshold(pixels: Tensor) -> Tensor:
    """Cut at half.

    Args:
        pixels: Any shape; uint8, or float32 in `[0, 1]`.

    Returns:
        uint8 of the same shape: 255 where the gray, as a share of white, is at least 0.5 (128 of uint8), else 0.
    """
    return _black_and_white(_gray(pixels) >= 0.5)


def binarize(pixels: Tensor, noise: Tensor) -> Tensor:
    """Draw each pixel, white with its gray as the probability (Salakhutdinov and Murray 2008).

    Args:
        pixels: Any shape; uint8, or float32 in `[0, 1]`.
        noise: float32 of the same shape, uniform in [0, 1).

    Returns:
        uint8 of the same shape, 0 or 255. What is black or white already stays.
    """
    return _black_and_white(noise < _gray(pixels))


class StaticNoise:
    """Uniform numbers for pictures that are drawn once and for all: a function of seed, part and place alone.

    It uses the words of PCG64 as they come, which numpy promises never to change; of what its generators make of them
    it promises nothing.

    Args:
        seed: 0 or more.
        part: Number of the part of the data set; each has a stream of its own.
        first: Pictures of the part to leave out.
        pixels: In each picture, over all channels; each takes one word.
    """

    def __init__(self, seed: int, part: int, first: int, pixels: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence((seed, part)))
        self._words.advance(first * pixels)

    def next(self, shape: torch.Size) -> Tensor:
        """The numbers of the pictures that follow, `[N, C, H, W]`: float32 in [0, 1), multiples of 2^-24."""
        words = self._words.random_raw(shape.numel()) >> np.uint64(40)
        return torch.from_numpy(words.astype(np.float32)).mul(2.0**-24).view(shape)


def binarized_mnist_files(root: Path) -> dict[str, Path]:
    """The files of the published binarised MNIST by split, "train", "val" and "test".

    Args:
        root: They lie in its folder BinarizedMNIST, or in itself.

    Raises:
        FileNotFoundError: If one is in neither.
    """
    folders = [root / "BinarizedMNIST", root]
    found = {}
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        file = f"binarized_mnist_{name}.amat"
        paths = [folder / file for folder in folders if (folder / file).is_file()]
        if not paths:
            raise FileNotFoundError(
                f"{file} is neither in {folders[0]} nor in {folders[1]}. The binarization 'fixed' is the published "
                "binarised MNIST of Larochelle and Murray (2011), which is not downloaded: get "
                f"{', '.join(f'binarized_mnist_{part}.amat' for part in ROWS)} from Hugo Larochelle's page of public "
                "data sets at the University of Toronto. Or take another binarization, of which figures do not compare."
            )
        found[split] = paths[0]
    return found


def read_binarized_mnist(root: Path, split: Literal["train", "val", "test"]) -> Tensor:
    """A part of the published binarised MNIST (Larochelle and Murray 2011, from Salakhutdinov and Murray 2008).

    Args:
        root: As `binarized_mnist_files`.
        split: Which file.

    Returns:
        uint8 `[50,000 or 10,000, 1, 28, 28]`, 0 or 255.

    Raises:
        FileNotFoundError: As `binarized_mnist_files`.
        ValueError: If the file does not hold so many rows of 784 zeros and ones.
    """
    path, rows = binarized_mnist_files(root)[split], ROWS["valid" if split == "val" else split]
    try:  # lines of zeros and ones with spaces between
        values = np.loadtxt(path, np.uint8, comments=None, ndmin=2)
    except (ValueError, OverflowError) as error:  # something that is no number, or lines of several lengths
        raise ValueError(f"{path} is damaged, or another file: {error}") from error
    if values.shape != (rows, _SIDE**2):
        raise ValueError(
            f"{path} holds {len(values)} rows of {values.shape[1]} values; expected {rows} of {_SIDE**2}. It is cut "
            "short, or another file."
        )
    if len(wrong := np.argwhere(values > 1)):
        row, column = wrong[0]
        raise ValueError(
            f"{path} holds {values[row, column]} in row {row + 1}, column {column + 1}; expected zeros and ones. It is "
            "damaged, or another file."
        )
    return _black_and_white(torch.from_numpy(values)).view(-1, 1, _SIDE, _SIDE)


def _gray(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32).div(255) if pixels.dtype == torch.uint8 else pixels


def _black_and_white(white: Tensor) -> Tensor:
    return white.to(torch.uint8).mul(255)
