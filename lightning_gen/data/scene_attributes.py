"""What a built-in landscape shows, whatever its domain: the latent attributes, and how they are drawn.

Lengths are in units of the picture's height, y points down, and horizontal positions are fractions of its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

MAX_CLOUDS = 2
MAX_TREES = 3
MAX_WINDOWS = 3
MIN_SIZE = 16


def rgb(code: str) -> Array:
    """`rrggbb` to float32 [3] in [0, 255]."""
    return np.array(list(bytes.fromhex(code)), dtype=np.float32)


WALLS = {"white": rgb("f4efe4"), "yellow": rgb("efcf82"), "pink": rgb("e6a79c"), "blue": rgb("9fc3d9")}
ROOFS = {"red": rgb("b8432f"), "brown": rgb("7d5a41"), "blue": rgb("48659c"), "green": rgb("4f7d5f")}


@dataclass(frozen=True, eq=False)
class SceneAttributes:
    """The latent attributes of N scenes: what a picture shows, whatever its domain.

    Positions `*_x` are fractions of the picture's width, everything else that is a length is in picture heights (in
    portraits, sizes shrink with the width). Attributes of absent things are drawn too, but have no meaning.

    Attributes:
        body_x: [N] in [0.1, 0.9], centre of the sun or moon.
        body_y: [N] in [0.11, 0.33], from the top.
        body_radius: [N] in [0.05, 0.08].
        hill_height: [N, 3], mean height of the crest of the far, middle and front hills, from the top.
        hill_amplitude: [N, 3], how far a crest departs from it.
        hill_frequency: [N, 3], waves per picture height.
        hill_phase: [N, 3] in [0, 2 pi].
        ground_hue: [N] in [0, 1], from dry and yellowish to lush and bluish.
        cloud_present: [N, 2] bool.
        cloud_x: [N, 2], the first in [0.08, 0.44], the second in [0.56, 0.92].
        cloud_y: [N, 2] in [0.07, 0.27].
        cloud_size: [N, 2] in [0.09, 0.15], about half of a cloud's width.
        tree_present: [N, 3] bool.
        tree_x: [N, 3] in [0.05, 0.95], beside the house if there is one.
        tree_depth: [N, 3] in [0.02, 0.16], how far below the front crest the trunk stands.
        tree_size: [N, 3] in [0.18, 0.3], from the foot to the top.
        tree_conifer: [N, 3] bool, conifer or round crown.
        tree_hue: [N, 3] in [0, 1], of the crown, from dark to golden green.
        house_present: [N] bool.
        house_x: [N] in [0.28, 0.72], centre of the house.
        house_depth: [N] in [0.06, 0.09], how far below the front crest it stands.
        house_size: [N] in [0.3, 0.4], width of the walls.
        house_ridge: [N] in [0.1, 0.6], length of the roof's ridge over its eaves.
        house_wall: [N] int, which of `WALLS`.
        house_roof: [N] int, which of `ROOFS`.
        house_windows: [N] int in {1, 2, 3}.
        house_door: [N] int in {0, ..., house_windows}, place of the door in the row of windows, from the left.
        chimney_right: [N] bool, on which side of the roof the chimney is.
        path_bend: [N] in [-1, 1], how far the path from the door swings to the right.
    """

    body_x: Array
    body_y: Array
    body_radius: Array
    hill_height: Array
    hill_amplitude: Array
    hill_frequency: Array
    hill_phase: Array
    ground_hue: Array
    cloud_present: Array
    cloud_x: Array
    cloud_y: Array
    cloud_size: Array
    tree_present: Array
    tree_x: Array
    tree_depth: Array
    tree_size: Array
    tree_conifer: Array
    tree_hue: Array
    house_present: Array
    house_x: Array
    house_depth: Array
    house_size: Array
    house_ridge: Array
    house_wall: Array
    house_roof: Array
    house_windows: Array
    house_door: Array
    chimney_right: Array
    path_bend: Array

    def __len__(self) -> int:
        return len(self.body_x)

    def __getitem__(self, indices: Any) -> SceneAttributes:
        """The scenes at `indices`: a slice, a list, an integer or boolean array."""
        return SceneAttributes(*(getattr(self, attribute.name)[indices] for attribute in fields(self)))

    def vectors(self) -> Tensor:
        """All attributes side by side: float32 [N, A], those of absent things as zeros."""
        columns = []
        for name in (attribute.name for attribute in fields(self)):
            present = getattr(self, f"{name.split('_')[0]}_present", True)
            columns.append(np.reshape(getattr(self, name) * present, (len(self), -1)))
        return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))

    @classmethod
    def draw(cls, num: int, seed: int | Sequence[int]) -> SceneAttributes:
        """Draw `num` scenes; scene i of a seed is the same whatever `num` is.

        Args:
            num: Number of scenes N.
            seed: Non-negative integer, or several, as `numpy.random.default_rng` takes them.
        """
        streams = np.random.SeedSequence(seed)

        def uniform(low: float | Sequence[float] = 0.0, high: float | Sequence[float] = 1.0, count: int = 1) -> Array:
            # Each call has a stream of its own, filled scene by scene: what makes a draw a prefix of every longer one.
            values = np.random.default_rng(streams.spawn(1)[0]).random((num, count))
            values = np.asarray(low) + values * (np.asarray(high) - np.asarray(low))
            return values if count > 1 else values[:, 0]

        house_present, house_x = uniform() < 0.85, uniform(0.28, 0.72)
        windows = 1 + (uniform() * MAX_WINDOWS).astype(int)
        # Trees share out the width that the house leaves free, each with a stretch of its own.
        margin, clearance = 0.05, 0.285
        left = np.where(house_present, (house_x - clearance - margin).clip(0), 1)
        right = np.where(house_present, (1 - margin - house_x - clearance).clip(0), -2 * margin)
        stretch = np.argsort(uniform(count=MAX_TREES), axis=1)
        along = (stretch + uniform(0.3, 0.7, count=MAX_TREES)) / MAX_TREES * (left + right)[:, None]
        beyond = along > left[:, None]
        tree_x = np.where(beyond, (house_x + clearance - left)[:, None], margin) + along
        return cls(
            body_x=uniform(0.1, 0.9),
            body_y=uniform(0.11, 0.33),
            body_radius=uniform(0.05, 0.08),
            hill_height=uniform((0.46, 0.58, 0.68), (0.53, 0.64, 0.74), count=3),
            hill_amplitude=uniform((0.03, 0.02, 0.008), (0.06, 0.04, 0.022), count=3),
            hill_frequency=uniform((0.8, 0.6, 0.4), (1.6, 1.2, 0.8), count=3),
            hill_phase=uniform(0, 2 * np.pi, count=3),
            ground_hue=uniform(),
            cloud_present=uniform(count=MAX_CLOUDS) < 0.5,
            cloud_x=uniform((0.08, 0.56), (0.44, 0.92), count=MAX_CLOUDS),
            cloud_y=uniform(0.07, 0.27, count=MAX_CLOUDS),
            cloud_size=uniform(0.09, 0.15, count=MAX_CLOUDS),
            tree_present=uniform(count=MAX_TREES) < 0.65,
            tree_x=tree_x,
            tree_depth=uniform((0.02, 0.09, 0.13), (0.05, 0.13, 0.16), count=MAX_TREES),
            tree_size=uniform(0.18, 0.3, count=MAX_TREES),
            tree_conifer=uniform(count=MAX_TREES) < 0.5,
            tree_hue=uniform(count=MAX_TREES),
            house_present=house_present,
            house_x=house_x,
            house_depth=uniform(0.06, 0.09),
            house_size=uniform(0.3, 0.4),
            house_ridge=uniform(0.1, 0.6),
            house_wall=(uniform() * len(WALLS)).astype(int),
            house_roof=(uniform() * len(ROOFS)).astype(int),
            house_windows=windows,
            house_door=(uniform() * (windows + 1)).astype(int),
            chimney_right=uniform() < 0.5,
            path_bend=uniform(-1, 1),
        )


SceneAttributes.__module__ = "lightning_gen.data.scenes"  # the name by which fingerprints know it
