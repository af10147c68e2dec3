"""Small landscapes, drawn on demand from a few latent attributes, in four domains: day, night, summer and winter.

Rendering one row of `SceneAttributes` in two domains gives an exact pair, which is what makes unpaired translation on
these pictures measurable. Nothing is random but the attributes, and each of them shows in every domain, so that either
picture of a pair tells the other.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule
from lightning_gen.data.images import from_uint8
from lightning_gen.data.scene_attributes import (
    MIN_SIZE,
    SceneAttributes,
)
from lightning_gen.data.scene_painting import DOMAINS, look_of, render


@dataclass(frozen=True, eq=False)
class _RenderedSet(DrawDataset):
    """Examples that are drawn when they are asked for, a whole batch in one go."""

    scenes: SceneAttributes
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[Draw]) -> list[dict[str, Tensor]]:
        columns = self.examples(draws)
        return [{name: column[i] for name, column in columns.items()} for i in range(len(draws))]

    @abstractmethod
    def examples(self, draws: list[Draw]) -> dict[str, Tensor]:
        """The batch that these draws make, each tensor with one row per draw."""

    def images(self, scenes: SceneAttributes, domain: str) -> Tensor:
        """Pictures as models take them: float32 [N, 3, H, W] in [-1, 1]."""
        return from_uint8(render(scenes, domain, *self.size))


@dataclass(frozen=True, eq=False)
class _SceneSet(_RenderedSet):
    domain: str

    def examples(self, draws: list[Draw]) -> dict[str, Tensor]:
        scenes = self.scenes[[draw.index for draw in draws]]
        return {"image": self.images(scenes, self.domain), "attributes": scenes.vectors()}


@dataclass(frozen=True, eq=False)
class _PairedSet(_RenderedSet):
    domains: tuple[str, str]

    def examples(self, draws: list[Draw]) -> dict[str, Tensor]:
        scenes = self.scenes[[draw.index for draw in draws]]
        a, b = (self.images(scenes, domain) for domain in self.domains)
        return {"A": a, "B": b, "paired": torch.ones(len(draws), dtype=torch.bool)}


@dataclass(frozen=True, eq=False)
class _UnpairedSet(_PairedSet):
    """A's scenes in their order, each with one of `partners`, drawn at random, as its B."""

    partners: SceneAttributes
    seed: int

    def examples(self, draws: list[Draw]) -> dict[str, Tensor]:
        a = self.scenes[[draw.index for draw in draws]]
        b = self.partners[[int(draw.rng(self.seed).integers(len(self.partners))) for draw in draws]]
        return {"A": self.images(a, self.domains[0]), "B": self.images(b, self.domains[1])}


def _split(name: str, num: int) -> SceneAttributes:
    """The scenes of a split. As with any data set, they do not depend on the seed of a module."""
    if num < 1:
        raise ValueError(f"num_{name} must be at least 1, got {num}.")
    return SceneAttributes.draw(num, tuple(name.encode()))


def _height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < MIN_SIZE:
        raise ValueError(
            f"image_size must be one number or (height, width), each at least {MIN_SIZE}, got {image_size}."
        )
    return size[0], size[1]


class Scenes(ImageDataModule):
    """Landscapes of one domain, without labels.

    Items are `{"image": float32 [3, H, W] in [-1, 1], "attributes": float32 [A]}`, with A as in
    `SceneAttributes.vectors`. Training, validation and test scenes are different draws, the same for every `seed`.

    Args:
        image_size: Height and width of the pictures, at least 16; one number for squares.
        domain: One of `DOMAINS`.
        num_train: Number of training pictures, of which an epoch shows each once.
        num_val: Number of validation pictures.
        num_test: Number of test pictures.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        num_workers: As in `ImageDataModule`.
        seed: As in `ImageDataModule`.

    Raises:
        ValueError: If the domain is unknown, or a size or a number is too small.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        domain: str = "day",
        num_train: int = 5000,
        num_val: int = 64,
        num_test: int = 256,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        self.size = _height_and_width(image_size)
        look_of(domain)
        self.domain = domain
        self.train_scenes = _split("train", num_train)
        self.val_scenes = _split("val", num_val)
        self.test_scenes = _split("test", num_test)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, height, width)."""
        return (3, *self.size)

    def train_set(self) -> Dataset[dict[str, Tensor]]:
        """The training pictures."""
        return _SceneSet(self.train_scenes, self.size, self.domain)

    def val_set(self) -> Dataset[dict[str, Tensor]]:
        """The validation pictures."""
        return _SceneSet(self.val_scenes, self.size, self.domain)

    def test_set(self) -> Dataset[dict[str, Tensor]]:
        """The test pictures."""
        return _SceneSet(self.test_scenes, self.size, self.domain)


class UnpairedScenes(ImageDataModule):
    """Landscapes of two domains: unpaired to train on, exact pairs to measure with.

    Training items are `{"A": float32 [3, H, W] in [-1, 1], "B": the same}`. A's scenes and B's are different draws, so
    no scene is ever seen in both domains; which B comes with an A is drawn anew in every epoch. Validation and test
    items show one scene in both domains, and say so: `"paired": tensor(True)`.

    Args:
        image_size: Height and width of the pictures, at least 16; one number for squares.
        domains: Those of A and B, two of `DOMAINS`.
        num_train: Number of training scenes in either domain; an epoch shows each of A's once.
        num_val: Number of validation pairs.
        num_test: Number of test pairs.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        num_workers: As in `ImageDataModule`.
        seed: As in `ImageDataModule`; the scenes are the same for every seed.

    Raises:
        ValueError: If the domains are unknown or equal, or a size or a number is too small.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        domains: tuple[str, str] = ("day", "night"),
        num_train: int = 1000,
        num_val: int = 32,
        num_test: int = 128,
        *,
        batch_size: int = 1,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        self.size = _height_and_width(image_size)
        if isinstance(domains, str) or len(domains) != 2 or domains[0] == domains[1]:
            raise ValueError(f"domains must be two different ones of {', '.join(DOMAINS)}, got {domains!r}.")
        for domain in domains:
            look_of(domain)
        self.domains = (domains[0], domains[1])
        self.train_scenes = _split("train", num_train)
        self.train_partners = _split("train_partners", num_train)
        self.val_scenes = _split("val", num_val)
        self.test_scenes = _split("test", num_test)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, height, width)."""
        return (3, *self.size)

    def train_set(self) -> Dataset[dict[str, Tensor]]:
        """Unpaired pictures."""
        return _UnpairedSet(self.train_scenes, self.size, self.domains, self.train_partners, self.seed)

    def val_set(self) -> Dataset[dict[str, Tensor]]:
        """Exact pairs."""
        return _PairedSet(self.val_scenes, self.size, self.domains)

    def test_set(self) -> Dataset[dict[str, Tensor]]:
        """Exact pairs."""
        return _PairedSet(self.test_scenes, self.size, self.domains)


class PairedScenes(UnpairedScenes):
    """As `UnpairedScenes`, but trained on exact pairs too: every item shows one scene in both domains."""

    def train_set(self) -> Dataset[dict[str, Tensor]]:
        """Exact pairs."""
        return _PairedSet(self.train_scenes, self.size, self.domains)
