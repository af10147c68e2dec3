"""Data modules of the small standard sets: MNIST, FashionMNIST, CIFAR10, and the 8 x 8 digits of scikit-learn."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms.v2 import functional as geometry

from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule, Split, data_root
from lightning_gen.data.binarization import (
    Binarization,
    StaticNoise,
    binarize,
    binarized_mnist_files,
    read_binarized_mnist,
    threshold,
)
from lightning_gen.data.images import resize_image, to_float

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_BATCH = 1000  # pictures that are made black and white at a time


class InMemoryDataModule(ImageDataModule):
    """Base of the sets that fit in memory: square pictures of ten classes.

    Items are `{"image", "label"}`: float32 `[C, H, W]` in `[-1, 1]` and int64. Where pixels have L levels
    (`num_levels`), level k is exactly 2k / (L - 1) - 1. A subclass sets `native_shape` and implements `load`.

    `binarization` makes gray black and white, -1 and 1, after the resize and before the padding:

    * "static" draws each pixel once and for all, white with its gray as the probability. What comes out depends on
      `binarization_seed` and on the picture's place in its official file, and on nothing else: not on `seed`, on
      machines, or on how many pictures are kept for validation.
    * "dynamic" draws training pictures anew whenever they are shown (by seed, epoch and position, as all that is random
      about them). Validation and test pictures are those of "static", so that figures repeat.
    * "threshold" is white from half on.

    Args:
        image_size: Height and width after a bicubic resize; None leaves the native pixels untouched.
        pad: Black pixels added on each side, after the resize. (MNIST with 2 is 32 x 32, its pixels untouched.)
        flip: Whether training pictures are mirrored left to right, half of them. Off by default: mirrored digits are no
            digits, and likelihoods are reported without.
        binarization: How gray becomes black and white; None leaves it gray.
        binarization_seed: Of what is drawn once and for all, 0 or more.
        bits: Of each channel of a pixel, 1 to 8: the lower ones are dropped, as for Glow (1807.03039). Less than 8 is
            for sets of uint8.
        batch_size: Examples per process and training step.
        **loader: The others of `ImageDataModule`.

    Raises:
        ValueError: If an argument is out of range, or two of them exclude each other.
    """

    native_shape: ClassVar[tuple[int, int, int]]
    native_levels: ClassVar[int | None] = None
    """How many levels `load` gives, evenly spaced from black to white: 256 for uint8; None where they are unknown."""
    binarizations: ClassVar[tuple[Binarization, ...]] = ("static", "dynamic", "threshold")
    """The ways in which a set can be made black and white."""

    def __init__(
        self,
        *,
        image_size: int | None = None,
        pad: int = 0,
        flip: bool = False,
        binarization: Binarization | None = None,
        binarization_seed: int = 0,
        bits: int = 8,
        batch_size: int = 64,
        **loader: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **loader)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be at least 1 (or null for the native size), got {image_size}.")
        if pad < 0:
            raise ValueError(f"pad must be 0 or more, got {pad}.")
        if not 1 <= bits <= 8:
            raise ValueError(f"bits must be 1 to 8, got {bits}.")
        if binarization_seed < 0:
            raise ValueError(f"binarization_seed must be 0 or more, got {binarization_seed}.")
        if binarization is not None:
            self._check_binarization(binarization, image_size, bits)
        self.image_size = image_size
        self.pad = pad
        self.flip = flip
        self.binarization = binarization
        self.binarization_seed = binarization_seed
        self.bits = bits

    def _check_binarization(self, binarization: Binarization, image_size: int | None, bits: int) -> None:
        if binarization not in self.binarizations:
            known = " or ".join([*self.binarizations, "null"])
            raise ValueError(f"binarization must be {known} for {type(self).__name__}, got {binarization!r}.")
        if bits != 8:
            raise ValueError(f"Pictures in black and white have one bit. Leave out bits ({bits}), or binarization.")
        if binarization == "fixed" and image_size not in (None, self.native_shape[1]):
            raise ValueError(
                f"The pixels of the binarization 'fixed' are black or white and cannot be resized; got image_size "
                f"{image_size}. Leave it out, and pad the pictures if they must be larger."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every picture; known without any file."""
        channels, native_size, _ = self.native_shape
        size = (self.image_size or native_size) + 2 * self.pad
        return channels, size, size

    @property
    def num_classes(self) -> int | None:
        """Number of classes: 10, or None where pictures have no labels."""
        return 10

    @property
    def num_levels(self) -> int | None:
        """Levels of each channel of a pixel, evenly spaced from -1 to 1; None where a resize leaves no such levels."""
        if self.binarization is not None:
            return 2
        if self.native_levels == 256:  # of uint8, which a resize rounds to uint8
            return 1 << self.bits
        return self.native_levels if self.image_size in (None, self.native_shape[1]) else None

    @abstractmethod
    def load(self, split: Split) -> tuple[Tensor, Tensor | None]:
        """Pictures `[N, C, H, W]`, uint8 or float32 in `[0, 1]`, and labels `[N]`, int64, or None without."""

    def place(self, split: Split) -> tuple[int, int]:
        """Number of the official file whose pictures a split has, and the place of its first picture in it."""
        return _SPLITS.index(split), 0

    def dataset(self, split: Split) -> Dataset[Any]:
        """The pictures of a split; to train on, flipped and drawn anew if wanted."""
        images, labels = self.load(split)
        if self.bits < 8 and images.dtype != torch.uint8:
            raise ValueError(
                f"bits are of uint8 pictures, but {type(self).__name__} has {images.dtype}. Leave them out."
            )
        dynamic = self.binarization == "dynamic" and split == "train"
        if self.binarization in ("static", "dynamic", "threshold") and not dynamic:
            images = self._binarized(images, split)
        flip = self.flip and split == "train"
        return _LabelledImages(images, labels, self.image_size, self.pad, flip, self.seed, self.bits, dynamic)

    def _binarized(self, images: Tensor, split: Split) -> Tensor:
        """The pictures resized, then made black and white once and for all."""
        size = self.image_size or self.native_shape[1]
        parts = (resize_image(part, (size, size)) for part in images.split(_BATCH))
        if self.binarization == "threshold":
            return torch.cat([threshold(part) for part in parts])
        noise = StaticNoise(self.binarization_seed, *self.place(split), pixels=images.shape[1] * size**2)
        return torch.cat([binarize(part, noise.next(part.shape)) for part in parts])


class TorchvisionDataModule(InMemoryDataModule):
    """Base of the sets that torchvision downloads and reads.

    The last `num_val` training pictures are kept for validation, the same ones in every run; both official training
    files are in random order.

    Args:
        root: Folder of the data sets, as torchvision's `root`. Files that are there are not downloaded again.
        num_val: Pictures split off the training set. With 0, training has them all and the test set validates.
        download: Whether to download what is missing.
        **pictures: As `InMemoryDataModule`.

    Raises:
        ValueError: If an argument is out of range, or two of them exclude each other.
        RuntimeError: When the data is prepared, if it is missing or damaged and cannot be downloaded.
    """

    native_levels = 256
    source: ClassVar[Any]  # torchvision's class
    layout: ClassVar[str]  # where its files lie below root

    def __init__(
        self,
        root: str | Path = "data",
        *,
        num_val: int = 5000,
        download: bool = True,
        **pictures: Any,
    ) -> None:
        super().__init__(**pictures)
        if num_val < 0:
            raise ValueError(f"num_val must be 0 or more, got {num_val}.")
        self.root = data_root(root)
        self.num_val = num_val
        self.download = download
        self._parts: dict[bool, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per machine."""
        if self.download:
            self._open(train=True, download=True)

    def load(self, split: Split) -> tuple[Tensor, Tensor | None]:
        """Pictures `[N, C, H, W]`, uint8, and labels `[N]`, int64."""
        file, first = self.place(split)
        images, labels = self._part(train=_SPLITS[file] == "train")
        last = len(images) - self.num_val if split == "train" else len(images)
        if last < 1:
            raise ValueError(f"num_val must leave pictures to train on, got {self.num_val} of {len(images)}.")
        return images[first:last], labels[first:last]

    def place(self, split: Split) -> tuple[int, int]:
        """Validation goes on in the training file where training ends."""
        if split == "test" or (split == "val" and self.num_val == 0):
            return _SPLITS.index("test"), 0
        return _SPLITS.index("train"), len(self._part(train=True)[0]) - self.num_val if split == "val" else 0

    def _part(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """The official training or test pictures, read once."""
        if train not in self._parts:
            if self.trainer is None:  # nobody else has called it
                self.prepare_data()
            part = self._open(train=train, download=False)
            data = torch.as_tensor(part.data)
            images = data.unsqueeze(1) if data.ndim == 3 else data.permute(0, 3, 1, 2).contiguous()
            self._parts[train] = images, torch.as_tensor(part.targets)
        return self._parts[train]

    def _open(self, *, train: bool, download: bool) -> Any:
        try:
            return self.source(self.root, train=train, download=download)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            name = type(self).__name__
            cause = str(error).strip() or type(error).__name__
            raise RuntimeError(
                f"{name} is missing or damaged under {self.root}, and downloading it failed: {cause}\n"
                f"Get {self.root / self.layout} from a machine with network access."
                if download
                else f"{name} is missing or damaged under {self.root}: {cause}\n"
                f"Set root to the folder that holds {self.layout}, or download to true."
            ) from error


class MNIST(TorchvisionDataModule):
    """Handwritten digits, `[1, 28, 28]`: 60,000 for training, 10,000 for testing (LeCun et al. 1998).

    The binarization "fixed" is the published binarised MNIST (Larochelle and Murray 2011, from Salakhutdinov and Murray
    2008), of which most likelihoods are: 50,000 pictures for training, 10,000 for validation (whatever `num_val`) and
    10,000 for testing, without labels. It is not downloaded: binarized_mnist_train.amat, binarized_mnist_valid.amat and
    binarized_mnist_test.amat must lie in `root/BinarizedMNIST` or `root`.
    """

    native_shape = (1, 28, 28)
    binarizations = ("fixed", "static", "dynamic", "threshold")
    source = datasets.MNIST
    layout = "MNIST/raw/*-ubyte"

    @property
    def num_classes(self) -> int | None:
        """Number of classes: 10, or None with the binarization "fixed", whose pictures have no labels."""
        return None if self.binarization == "fixed" else 10

    def prepare_data(self) -> None:
        """Download what is missing, or see that the files of the binarization "fixed" are there."""
        if self.binarization == "fixed":
            binarized_mnist_files(self.root)
        else:
            super().prepare_data()

    def load(self, split: Split) -> tuple[Tensor, Tensor | None]:
        """Pictures `[N, 1, 28, 28]`, uint8, and labels `[N]`, int64, or None with the binarization "fixed"."""
        if self.binarization == "fixed":
            return read_binarized_mnist(self.root, split), None
        return super().load(split)


class FashionMNIST(TorchvisionDataModule):
    """Gray clothes, `[1, 28, 28]`: 60,000 for training, 10,000 for testing (Xiao et al. 2017, arXiv:1708.07747)."""

    native_shape = (1, 28, 28)
    class_names = tuple(datasets.FashionMNIST.classes)
    source = datasets.FashionMNIST
    layout = "FashionMNIST/raw/*-ubyte"


class CIFAR10(TorchvisionDataModule):
    """Colour photographs of ten kinds, `[3, 32, 32]`: 50,000 for training, 10,000 for testing (Krizhevsky 2009)."""

    native_shape = (3, 32, 32)
    binarizations = ()
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    source = datasets.CIFAR10
    layout = "cifar-10-batches-py"


class Digits(InMemoryDataModule):
    """The 1,797 digits that scikit-learn ships, `[1, 8, 8]` with 17 levels of gray; nothing to download.

    Level k of 0 to 16 is k / 8 - 1, exactly. Of every eleven digits in turn the first is for testing and the sixth for
    validation (164 and 163 pictures): the file repeats 0 to 9, so that this takes all classes alike.

    Arguments are those of `InMemoryDataModule`; `bits` are of sets of uint8, which this is not.

    Raises:
        ValueError: If an argument is out of range.
        ModuleNotFoundError: If scikit-learn is not installed.
    """

    native_shape = (1, 8, 8)
    native_levels = 17

    def __init__(self, **pictures: Any) -> None:
        super().__init__(**pictures)
        if importlib.util.find_spec("sklearn") is None:
            raise ModuleNotFoundError("Digits come with scikit-learn: pip install scikit-learn")

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        """Pictures `[N, 1, 8, 8]`, float32 in `[0, 1]`, and labels `[N]`, int64."""
        from sklearn.datasets import load_digits  # slow to import, and optional

        digits = load_digits()
        turn = torch.arange(len(digits.images)) % 11
        chosen = {"test": turn == 0, "val": turn == 5, "train": (turn != 0) & (turn != 5)}[split]
        images = torch.from_numpy(digits.images).to(torch.float32).div(16).unsqueeze(1)
        return images[chosen], torch.from_numpy(digits.target).to(torch.int64)[chosen]


@dataclass(frozen=True, eq=False)
class _LabelledImages(DrawDataset):
    """Pictures in memory, perhaps with labels."""

    images: Tensor
    labels: Tensor | None
    image_size: int | None
    pad: int
    flip: bool
    seed: int
    bits: int
    dynamic: bool

    def recipe(self) -> Any:
        return super().recipe() | {"seed": self.seed if self.flip or self.dynamic else None}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        pixels = self.images[draw.index]
        if self.image_size:
            pixels = resize_image(pixels, (self.image_size, self.image_size))
        if self.dynamic or self.flip:
            rng = draw.rng(self.seed)
            if self.dynamic:
                pixels = binarize(pixels, torch.from_numpy(rng.random(tuple(pixels.shape), np.float32)))
            if self.flip and rng.random() < 0.5:
                pixels = geometry.horizontal_flip(pixels)
        if self.pad:
            pixels = geometry.pad(pixels, [self.pad])
        if self.bits == 8:
            image = to_float(pixels)
        else:  # as `from_uint8`, with fewer levels
            image = (pixels >> (8 - self.bits)).to(torch.float32).div((2**self.bits - 1) / 2).sub(1)
        return {"image": image} if self.labels is None else {"image": image, "label": self.labels[draw.index]}
