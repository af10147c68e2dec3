"""The training pictures that are nearest to samples: a picture to look at, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from lightning_gen.data.grids import picture_grid
from lightning_gen.evaluation.statistics import ReferenceStatistics
from lightning_gen.metrics.manifold import nearest_neighbours

PAIRS = 16  # closest ones, and as many evenly spaced ones
ROWS = 8

Pictures = Callable[[Sequence[int]], Sequence[Tensor]]
"""Gives the pictures of these numbers, each uint8 `[1 or 3, H, W]`."""


def neighbour_grid(features: Tensor, samples: Pictures, train: ReferenceStatistics, training: Pictures) -> Image.Image:
    """Samples, each beside the training picture whose features are nearest to its own.

    On the left the 16 pairs that are closest of all, the very closest on top; on the right those of 16 samples evenly
    spaced, as they come.

    Args:
        features: Of the samples `[N, D]`.
        samples: The samples.
        train: Features of training pictures, and their numbers.
        training: The training pictures.
    """
    distances, indices = nearest_neighbours(features, train.features)
    number = min(PAIRS, len(features))
    chosen = {
        "closest": distances.argsort(stable=True)[:number],
        "sample": torch.arange(number) * len(features) // number,
    }
    columns: list[tuple[str, Iterable[Tensor]]] = []
    for title, places in chosen.items():
        left, right = samples(places.tolist()), training(train.indices[indices[places]].tolist())
        for start in range(0, number, ROWS):
            columns += [(title, left[start : start + ROWS]), ("training", right[start : start + ROWS])]
    return picture_grid(columns)
