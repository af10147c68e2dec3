"""What a picture of the built-in scenes shows, as read by a small network that is trained on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.data.images import from_uint8
from lightning_gen.data.scene_attributes import ROOFS, WALLS, SceneAttributes
from lightning_gen.data.scene_painting import render

SIZE = 32  # larger pictures are read at this size

_Statement = Callable[[SceneAttributes], Any]  # gives bool [N]


def _painted(scenes: SceneAttributes, part: str, index: int) -> NDArray[Any]:
    """Whether there is a house whose walls or roof have this colour."""
    painted: NDArray[Any] = scenes.house_present & (getattr(scenes, f"house_{part}") == index)
    return painted


STATEMENTS: dict[str, _Statement] = {
    "house": lambda scenes: scenes.house_present,
    "trees": lambda scenes: scenes.tree_present.any(axis=1),
    "conifers": lambda scenes: (scenes.tree_present & scenes.tree_conifer).any(axis=1),
    "clouds": lambda scenes: scenes.cloud_present.any(axis=1),
    # As `captions` says it.
    "sun left": lambda scenes: scenes.body_x < 0.4,
    "sun right": lambda scenes: scenes.body_x > 0.6,
    "sun low": lambda scenes: scenes.body_y > 0.22,
    "lush ground": lambda scenes: scenes.ground_hue > 0.5,
    **{f"{color} roof": partial(_painted, part="roof", index=i) for i, color in enumerate(ROOFS)},
    **{f"{color} walls": partial(_painted, part="wall", index=i) for i, color in enumerate(WALLS)},
}
"""What can be said about a scene, by the words for it; "no " before them says the opposite."""

_OPPOSITES = {"sun high": "sun low", "dry ground": "lush ground"}


def parse_conditions(text: str) -> dict[str, bool]:
    """What "house, no clouds, sun high" asks for: `{"house": True, "clouds": False, "sun low": False}`.

    Raises:
        ValueError: If it says something that is not one of `STATEMENTS`, or both a thing and its opposite.
    """
    conditions: dict[str, bool] = {}
    for words in (" ".join(part.lower().split()).replace("moon", "sun") for part in text.split(",")):
        statement, expected = words.removeprefix("no "), not words.startswith("no ")
        if statement in _OPPOSITES:
            statement, expected = _OPPOSITES[statement], not expected
        if statement not in STATEMENTS:
            known = ", ".join([*STATEMENTS, *_OPPOSITES])
            raise ValueError(f"Scenes have no attribute {words!r}. Known are: {known}; each may follow 'no'.")
        if conditions.setdefault(statement, expected) != expected:
            raise ValueError(f"{text!r} asks for {statement!r} and for its opposite.")
    return conditions


class SceneAttributeReader(nn.Module):
    """Says how likely each of `STATEMENTS` is true of a picture.

    Args:
        height: Of the pictures.
        width: Of the pictures.

    Attributes:
        accuracy: For each statement the share of unseen rendered scenes about which it is right; `train_reader`
            measures it.
    """

    unit: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # Root mean square of the last hidden layer on unseen scenes; `train_reader` measures it.
        self.register_buffer("unit", torch.ones(()))
        self.size = (min(height, SIZE), min(width, SIZE))
        self.accuracy: dict[str, float] = {}
        rows, columns = (-(-side // 8) for side in self.size)
        self.network = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(48, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * rows * columns, 128),
            nn.ReLU(),
            nn.Linear(128, len(STATEMENTS)),
        )

    def features(self, images: Tensor) -> Tensor:
        """The last hidden layer over its unit: `[N, 3, H, W]` in `[-1, 1]` to `[N, 128]`."""
        features: Tensor = self.network[:-1](F.adaptive_avg_pool2d(images, self.size)) / self.unit
        return features

    def logits(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` in `[-1, 1]` to `[N, len(STATEMENTS)]`."""
        logits: Tensor = self.network[-1](self.features(images) * self.unit)
        return logits

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The probabilities of all statements: `[N, 3, H, W]` in `[-1, 1]` to `[N, len(STATEMENTS)]`."""
        return torch.cat([self.logits(part).sigmoid() for part in images.split(256)])

    @staticmethod
    def chance(probabilities: Tensor, conditions: Mapping[str, bool]) -> Tensor:
        """The smallest probability `[N]` of any of the conditions, from what `forward` gives."""
        places = list(STATEMENTS)
        each = [
            probabilities[:, places.index(name)] if expected else 1 - probabilities[:, places.index(name)]
            for name, expected in conditions.items()
        ]
        return torch.stack(each).amin(0)


def train_reader(
    image_shape: tuple[int, int, int], domain: str = "day", num_scenes: int = 6000, epochs: int = 8, seed: int = 0
) -> SceneAttributeReader:
    """Train a reader on rendered scenes with a little noise, and measure it on 1000 others.

    Args:
        image_shape: Of the pictures: (3, height, width), at least 16 x 16.
        domain: One of `lightning_gen.data.scene_painting.DOMAINS`.
        num_scenes: Scenes to learn from.
        epochs: How often each is seen.
        seed: Of weights, order and noise; the global random state stays as found.

    Raises:
        ValueError: If pictures do not have 3 channels or are too small, or the domain is unknown.
    """
    channels, height, width = image_shape
    if channels != 3:
        raise ValueError(f"Scenes are pictures of 3 channels, but the model draws {channels}.")
    batch_size = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = SceneAttributeReader(height, width)
        images, truth = _examples(num_scenes, (seed, 0), domain, height, width, reader.size)
        steps = epochs * (num_scenes // batch_size)
        optimizer = torch.optim.Adam(reader.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for chosen in torch.randperm(num_scenes).split(batch_size)[: num_scenes // batch_size]:
                # Generated pictures are not as clean as rendered ones.
                noisy = images[chosen] + 0.1 * torch.randn_like(images[chosen])
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(reader.logits(noisy), truth[chosen]).backward()
                optimizer.step()
                schedule.step()
        images, truth = _examples(1000, (seed, 1), domain, height, width, reader.size)
    with torch.no_grad():
        reader.unit = reader.features(images).square().mean().sqrt()
    right = ((reader(images) > 0.5) == (truth > 0.5)).float().mean(0)
    reader.accuracy = dict(zip(STATEMENTS, right.tolist(), strict=True))
    return reader


def _examples(
    num: int, seed: tuple[int, int], domain: str, height: int, width: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Pictures at the size they are read at, and what is true of them, float32 `[num, len(STATEMENTS)]`."""
    scenes = SceneAttributes.draw(num, seed)
    parts = (render(scenes[i : i + 256], domain, height, width) for i in range(0, num, 256))
    images = torch.cat([F.adaptive_avg_pool2d(from_uint8(part), size) for part in parts])
    truth = np.stack([statement(scenes) for statement in STATEMENTS.values()], axis=1)
    return images, torch.from_numpy(truth).float()
