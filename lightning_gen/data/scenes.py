"""Small landscapes, drawn on demand from a few latent attributes, in four domains: day, night, summer and winter.

Rendering one row of `SceneAttributes` in two domains gives an exact pair, which is what makes unpaired translation on
these pictures measurable. Nothing is random but the attributes, and each of them shows in every domain, so that either
picture of a pair tells the other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule, Split
from lightning_gen.data.images import from_uint8, height_and_width
from lightning_gen.data.scene_attributes import MAX_TREES, MIN_SIZE, ROOFS, WALLS, Array, SceneAttributes
from lightning_gen.data.scene_captions import classes_of, draw_scenes, sentence, split_of
from lightning_gen.data.scene_painting import DOMAINS, look_of, render

_NUMBERS = ("no", "one", "two", "three")


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
class _CaptionedSet(_SceneSet):
    """With a seed, each showing has a caption of its own; without one, the plainest."""

    seed: int | None

    def recipe(self) -> Any:
        return {name: value for name, value in super().recipe().items() if name != "seed"}  # which is that of words

    @cached_property
    def classes(self) -> Array:
        """What can be said of each scene: int64 `[N, 7]`."""
        return classes_of(self.scenes)

    def examples(self, draws: list[Draw]) -> dict[str, Any]:
        indices = [draw.index for draw in draws]
        images, classes = self.images(self.scenes[indices], self.domain), self.classes[indices]
        sentences = [self.caption(draw) for draw in draws]
        return {"image": images, "caption": sentences, "attributes": torch.from_numpy(classes)}

    def caption(self, draw: Draw) -> str:
        """The caption of one showing."""
        choice = 0
        if self.seed is not None:  # not draw.rng, which would take a tenth of the time that painting does
            place = f"{self.seed} {draw.epoch} {draw.position}".encode()
            choice = int.from_bytes(blake2b(place, digest_size=8).digest(), "big")
        return sentence(self.classes[draw.index].tolist(), look_of(self.domain).body_name, choice)


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


def _draw(
    sizes: dict[str, int], draw: Callable[[int, tuple[int, ...], str], SceneAttributes] | None = None
) -> dict[str, SceneAttributes]:
    """The scenes of each split, by their number, a seed and its name; they do not depend on the seed of a module."""
    for name, number in sizes.items():
        if number < 1:
            raise ValueError(f"num_{name} must be at least 1, got {number}.")
    draw = draw or (lambda number, seed, _: SceneAttributes.draw(number, seed))
    return {name: draw(number, tuple(name.encode()), name) for name, number in sizes.items()}


class _SceneDataModule(ImageDataModule):
    """What the data modules of scenes share: the size of their pictures."""

    def __init__(self, image_size: int | tuple[int, int], **loader: Any) -> None:
        super().__init__(**loader)
        self.size = height_and_width("image_size", image_size, at_least=MIN_SIZE)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, height, width)."""
        return (3, *self.size)


class Scenes(_SceneDataModule):
    """Landscapes of one domain, without labels.

    Items are `{"image": float32 [3, H, W] in [-1, 1], "attributes": float32 [A]}`, with A as in
    `SceneAttributes.vectors`. Training, validation and test scenes are different draws, the same for every `seed`.

    Args:
        image_size: Height and width of the pictures, at least 16; one number for squares.
        domain: One of `DOMAINS`.
        num_train: Number of training pictures, of which an epoch shows each once.
        num_val: Number of validation pictures.
        num_test: Number of test pictures.
        batch_size: Examples per process and training step.
        **loader: The others of `ImageDataModule`.

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
        **loader: Any,
    ) -> None:
        super().__init__(image_size, batch_size=batch_size, **loader)
        look_of(domain)
        self.domain = domain
        self.scenes = _draw({"train": num_train, "val": num_val, "test": num_test})

    def dataset(self, split: Split) -> Dataset[dict[str, Tensor]]:
        """The pictures of a split."""
        return _SceneSet(self.scenes[split], self.size, self.domain)


class CaptionedScenes(_SceneDataModule):
    """Landscapes of one domain with captions that say what they show.

    Items are `{"image": float32 [3, H, W] in [-1, 1], "caption": str, "attributes": int64 [7]}`. A caption says all of
    `lightning_gen.data.scene_captions.ATTRIBUTES`, and the attributes say which value each has. In training the words
    are drawn anew, from hundreds of sentences that mean the same, each time a picture is shown; validation and test
    have the plainest.

    Of the combinations of walls, roof and number of trees one in four is never shown in training, and validation and
    test show nothing else, each its own. So they tell whether a model puts together what it has never seen together.

    Args:
        image_size: Height and width of the pictures, at least 16; one number for squares.
        domain: One of `DOMAINS`.
        num_train: Number of training pictures, of which an epoch shows each once.
        num_val: Number of validation pictures.
        num_test: Number of test pictures.
        batch_size: Examples per process and training step.
        **loader: The others of `ImageDataModule`.

    Raises:
        ValueError: If the domain is unknown, or a size or a number is too small.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        domain: str = "day",
        num_train: int = 20000,
        num_val: int = 256,
        num_test: int = 1000,
        *,
        batch_size: int = 64,
        **loader: Any,
    ) -> None:
        super().__init__(image_size, batch_size=batch_size, **loader)
        look_of(domain)
        self.domain = domain
        self.scenes = _draw({"train": num_train, "val": num_val, "test": num_test}, draw_scenes)

    def dataset(self, split: Split) -> _CaptionedSet:
        """The pictures of a split and their captions."""
        return _CaptionedSet(self.scenes[split], self.size, self.domain, self.seed if split == "train" else None)

    def is_held_out(self, attributes: Tensor) -> Tensor:
        """Whether training never shows such a combination: bool `[N]` of int64 `[N, 7]`."""
        return torch.from_numpy(split_of(attributes.cpu().numpy()) != "train")

    def captions(self) -> Iterator[str]:
        """Captions of training pictures, from which a tokenizer may learn: those of as many epochs as make 2,000."""
        examples = self.dataset("train")
        for epoch in range(-(-2000 // len(examples))):
            for i in range(len(examples)):
                yield examples.caption(Draw(epoch, i, i))


class UnpairedScenes(_SceneDataModule):
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
        **loader: As `ImageDataModule`; the scenes are the same for every seed.

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
        **loader: Any,
    ) -> None:
        super().__init__(image_size, **loader)
        if isinstance(domains, str) or len(domains) != 2 or domains[0] == domains[1]:
            raise ValueError(f"domains must be two different ones of {', '.join(DOMAINS)}, got {domains!r}.")
        for domain in domains:
            look_of(domain)
        self.domains = (domains[0], domains[1])
        self.scenes = _draw({"train": num_train, "train_partners": num_train, "val": num_val, "test": num_test})

    def dataset(self, split: Split) -> Dataset[dict[str, Tensor]]:
        """Unpaired pictures to train on, else exact pairs."""
        if split == "train":
            return _UnpairedSet(self.scenes[split], self.size, self.domains, self.scenes["train_partners"], self.seed)
        return _PairedSet(self.scenes[split], self.size, self.domains)


class PairedScenes(UnpairedScenes):
    """As `UnpairedScenes`, but trained on exact pairs too: every item shows one scene in both domains."""

    def dataset(self, split: Split) -> Dataset[dict[str, Tensor]]:
        """Exact pairs."""
        return _PairedSet(self.scenes[split], self.size, self.domains)


def captions(attributes: SceneAttributes, domain: str) -> list[str]:
    """One sentence per scene that says what its picture shows.

    Such as "a red-roofed white house with two windows left of three trees under a low sun on the right, winter". The
    sun or moon is low from 0.22 picture heights below the top on; left and right are the outer two fifths.

    Raises:
        ValueError: If the domain is unknown.
    """
    body_name = look_of(domain).body_name
    sentences = []
    for n in range(len(attributes)):
        scene = attributes[n]
        things = _house_and_trees(scene) or "open hills"
        height = "low" if scene.body_y > 0.22 else "high"
        side = "on the left" if scene.body_x < 0.4 else "on the right" if scene.body_x > 0.6 else "in the middle"
        clouds = int(scene.cloud_present.sum())
        sky = f"a {height} {body_name} {side}" + (f" and {_counted(clouds, 'cloud')}" if clouds else "")
        sentences.append(f"{things} under {sky}, {domain}")
    return sentences


def _counted(number: int, noun: str) -> str:
    return f"{_NUMBERS[number]} {noun}{'' if number == 1 else 's'}"


def _house_and_trees(scene: SceneAttributes) -> str:
    """What stands in a single scene, whose attributes have no leading dimension; empty if nothing does."""

    def trees(which: Array) -> str:
        which = which & scene.tree_present
        conifer = scene.tree_conifer[which]
        if not len(conifer):
            return ""
        return _counted(len(conifer), "conifer" if conifer.all() else "tree" if conifer.any() else "round tree")

    if not scene.house_present:
        return trees(np.ones(MAX_TREES, dtype=bool))
    wall, roof = list(WALLS)[scene.house_wall], list(ROOFS)[scene.house_roof]
    house = f"a {roof}-roofed {wall} house with {_counted(int(scene.house_windows), 'window')}"
    left, right = trees(scene.tree_x < scene.house_x), trees(scene.tree_x > scene.house_x)
    if left and right:
        return f"{house} between {left} on its left and {right} on its right"
    return house + (f" right of {left}" if left else f" left of {right}" if right else "")
