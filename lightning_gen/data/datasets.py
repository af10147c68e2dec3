"""Data modules of the small standard sets: MNIST, FashionMNIST, CIFAR10, and the 8 x 8 digits of scikit-learn."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms.v2 import functional as geometry

from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule
from lightning_gen.data.images import resize_image, to_float


class InMemoryDataModule(ImageDataModule):
    """Base of the sets that fit in memory: square pictures of ten classes.

    Items are `{"image", "label"}`: float32 `[C, H, W]` in `[-1, 1]` and int64. A subclass sets `native_shape` and
    implements `load`.

    Args:
        image_size: Height and width after a bicubic resize; None leaves the native pixels untouched.
        pad: Black pixels added on each side, after the resize. (MNIST with 2 is 32 x 32, its pixels untouched.)
        flip: Whether training pictures are mirrored left to right, half of them.
        batch_size: Examples per process and training step.
        eval_batch_size: Examples per process and evaluation step; None means `batch_size`.
        num_workers: Loader processes; None chooses by the number of cores.
        seed: Seed of the order and the flips.
    """

    native_shape: ClassVar[tuple[int, int, int]]

    def __init__(
        self,
        *,
        image_size: int | None = None,
        pad: int = 0,
        flip: bool = False,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be at least 1 (or null for the native size), got {image_size}.")
        if pad < 0:
            raise ValueError(f"pad must be 0 or more, got {pad}.")
        self.image_size = image_size
        self.pad = pad
        self.flip = flip

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every picture; known without any file."""
        channels, native_size, _ = self.native_shape
        size = (self.image_size or native_size) + 2 * self.pad
        return channels, size, size

    @property
    def num_classes(self) -> int:
        """Number of classes: 10."""
        return 10

    @abstractmethod
    def load(self, split: Literal["train", "val", "test"]) -> tuple[Tensor, Tensor]:
        """Pictures `[N, C, H, W]`, uint8 or float32 in `[0, 1]`, and labels `[N]`, int64."""

    def train_set(self) -> Dataset[Any]:
        """The training pictures, flipped if wanted."""
        return _LabelledImages(*self.load("train"), self.image_size, self.pad, self.flip, self.seed)

    def val_set(self) -> Dataset[Any]:
        """The validation pictures, in order."""
        return _LabelledImages(*self.load("val"), self.image_size, self.pad, False, self.seed)

    def test_set(self) -> Dataset[Any]:
        """The test pictures, in order."""
        return _LabelledImages(*self.load("test"), self.image_size, self.pad, False, self.seed)


class TorchvisionDataModule(InMemoryDataModule):
    """Base of the sets that torchvision downloads and reads.

    The last `num_val` training pictures are kept for validation, the same ones in every run; both official training
    files are in random order.

    Args:
        root: Folder of the data sets, as torchvision's `root`. Files that are there are not downloaded again.
        num_val: Pictures split off the training set. With 0, training has them all and the test set validates.
        download: Whether to download what is missing.
        image_size: Height and width after a bicubic resize; None leaves the native pixels untouched.
        pad: Black pixels added on each side, after the resize. (MNIST with 2 is 32 x 32, its pixels untouched.)
        flip: Whether training pictures are mirrored left to right, half of them. Off by default: mirrored digits are no
            digits, and likelihoods are reported without.
        batch_size: Examples per process and training step.
        eval_batch_size: Examples per process and evaluation step; None means `batch_size`.
        num_workers: Loader processes; None chooses by the number of cores.
        seed: Seed of the order and the flips.

    Raises:
        ValueError: If an argument is out of range.
        RuntimeError: When the data is prepared, if it is missing or damaged and cannot be downloaded.
    """

    source: ClassVar[Any]  # torchvision's class
    layout: ClassVar[str]  # where its files lie below root

    def __init__(
        self,
        root: str | Path = "data",
        *,
        num_val: int = 5000,
        download: bool = True,
        image_size: int | None = None,
        pad: int = 0,
        flip: bool = False,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            pad=pad,
            flip=flip,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        if num_val < 0:
            raise ValueError(f"num_val must be 0 or more, got {num_val}.")
        self.root = Path(root).expanduser()
        self.num_val = num_val
        self.download = download
        self._parts: dict[bool, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per machine."""
        if self.download:
            self._open(train=True, download=True)

    def load(self, split: Literal["train", "val", "test"]) -> tuple[Tensor, Tensor]:
        """Pictures `[N, C, H, W]`, uint8, and labels `[N]`, int64."""
        if split == "test" or (split == "val" and self.num_val == 0):
            return self._part(train=False)
        images, labels = self._part(train=True)
        num_train = len(images) - self.num_val
        if num_train < 1:
            raise ValueError(f"num_val must leave pictures to train on, got {self.num_val} of {len(images)}.")
        part = slice(num_train) if split == "train" else slice(num_train, None)
        return images[part], labels[part]

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

    Arguments and errors are those of `TorchvisionDataModule`.
    """

    native_shape = (1, 28, 28)
    source = datasets.MNIST
    layout = "MNIST/raw/*-ubyte"


class FashionMNIST(TorchvisionDataModule):
    """Gray clothes, `[1, 28, 28]`: 60,000 for training, 10,000 for testing (Xiao et al. 2017, arXiv:1708.07747).

    Arguments and errors are those of `TorchvisionDataModule`.
    """

    native_shape = (1, 28, 28)
    source = datasets.FashionMNIST
    layout = "FashionMNIST/raw/*-ubyte"


class CIFAR10(TorchvisionDataModule):
    """Colour photographs of ten kinds, `[3, 32, 32]`: 50,000 for training, 10,000 for testing (Krizhevsky 2009).

    Arguments and errors are those of `TorchvisionDataModule`.
    """

    native_shape = (3, 32, 32)
    source = datasets.CIFAR10
    layout = "cifar-10-batches-py"


class Digits(InMemoryDataModule):
    """The 1,797 digits that scikit-learn ships, `[1, 8, 8]` with 17 levels of gray; nothing to download.

    Level k of 0 to 16 is k / 8 - 1, exactly. Of every eleven digits in turn the first is for testing and the sixth for
    validation (164 and 163 pictures): the file repeats 0 to 9, so that this takes all classes alike.

    Args:
        image_size: Height and width after a bicubic resize; None leaves the native pixels untouched.
        pad: Black pixels added on each side, after the resize.
        batch_size: Examples per process and training step.
        eval_batch_size: Examples per process and evaluation step; None means `batch_size`.
        num_workers: Loader processes; None chooses by the number of cores.
        seed: Seed of the order.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """

    native_shape = (1, 8, 8)

    def __init__(
        self,
        *,
        image_size: int | None = None,
        pad: int = 0,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            pad=pad,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        if importlib.util.find_spec("sklearn") is None:
            raise ModuleNotFoundError("Digits come with scikit-learn: pip install 'lightning-gen[digits]'")

    def load(self, split: Literal["train", "val", "test"]) -> tuple[Tensor, Tensor]:
        """Pictures `[N, 1, 8, 8]`, float32 in `[0, 1]`, and labels `[N]`, int64."""
        from sklearn.datasets import load_digits  # slow to import, and optional

        digits = load_digits()
        turn = torch.arange(len(digits.images)) % 11
        chosen = {"test": turn == 0, "val": turn == 5, "train": (turn != 0) & (turn != 5)}[split]
        images = torch.from_numpy(digits.images).to(torch.float32).div(16).unsqueeze(1)
        return images[chosen], torch.from_numpy(digits.target).to(torch.int64)[chosen]


@dataclass(frozen=True, eq=False)
class _LabelledImages(DrawDataset):
    """Pictures and labels in memory."""

    images: Tensor
    labels: Tensor
    image_size: int | None
    pad: int
    flip: bool
    seed: int

    def recipe(self) -> Any:
        return super().recipe() | {"seed": self.seed if self.flip else None}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        pixels = self.images[draw.index]
        if self.image_size:
            pixels = resize_image(pixels, (self.image_size, self.image_size))
        if self.pad:
            pixels = geometry.pad(pixels, [self.pad])
        if self.flip and draw.rng(self.seed).random() < 0.5:
            pixels = geometry.horizontal_flip(pixels)
        return {"image": to_float(pixels), "label": self.labels[draw.index]}
