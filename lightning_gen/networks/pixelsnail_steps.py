"""PixelSNAIL one pixel at a time, from caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.networks.stepping import neighbours


class GatedWeights(NamedTuple):
    """Those of a residual block of 1 x 1 convolutions, or with an axis in front of such blocks in all `Block`s."""

    first: Tensor
    """`[channels + shortcut_channels, channels]`."""

    first_bias: Tensor
    """`[1, channels]`."""

    second: Tensor
    """`[channels, 2 channels]`."""

    second_bias: Tensor
    """`[N, 2 channels]`, or `[1, 2 channels]` without labels."""


def gated_at_pixel(features: Tensor, seen: Tensor, weights: GatedWeights) -> Tensor:
    """A residual block of 1 x 1 convolutions at a pixel.

    Args:
        features: `[N, channels]`.
        seen: The same, beside what comes through the shortcut, `[N, channels + shortcut_channels]`.
        weights: Of the block.
    """
    hidden = F.elu(torch.addmm(weights.first_bias, F.elu(seen), weights.first))
    return features + F.glu(torch.addmm(weights.second_bias, hidden, weights.second), dim=1)


@dataclass(frozen=True, eq=False)
class StepWeights:
    """The weights as the steps take them, with biases of the class; K is the number of residual blocks of 2 x 2.

    Args:
        start: Of the first layer, by pixel above to the left, above, above to the right, and to the left,
            `[4 (C + 1), F]`.
        first_around: Of first convolutions, the taps above to the left, above and to the left, `[K, 3 F, F]`.
        first_bias: `[K, 1, F]`.
        own_first: The pixel's own tap, `[K, F, F]`.
        second_around: As `first_around` of second convolutions, `[K, 3 F, 2 F]`.
        second_bias: `[K, N, 2 F]`, or `[K, 1, 2 F]` without labels.
        own_second: `[K, F, 2 F]`.
        contents: What keys and values come from, of all blocks.
        tells: Weights and biases of keys and values, of all blocks.
        queries: What queries come from, block by block.
        asks: Weights and biases of queries, divided by sqrt(attention_keys).
        joins: What joins features and attention.
        last: Weights and bias of the parameters.
    """

    start: Tensor
    first_around: Tensor
    first_bias: Tensor
    own_first: Tensor
    second_around: Tensor
    second_bias: Tensor
    own_second: Tensor
    contents: GatedWeights
    tells: tuple[Tensor, Tensor]
    queries: list[GatedWeights]
    asks: list[tuple[Tensor, Tensor]]
    joins: list[GatedWeights]
    last: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class PixelSNAILCache:
    """What is known of pictures that are generated pixel by pixel, and all that a step needs of the weights.

    Of features, two rows are kept, which take turns: slot `row % 2 * W + column`. Slot 2 W stays zero, for all that
    lies outside the picture. Of keys and values, all are kept; the last, which stay zero too, belong to no pixel.

    Args:
        images: `[N, C, H, W]`, a view of the inputs.
        inputs: `[N, H * W + 1, C + 1]`: the pixels, each with a one, and a last row of zeros.
        known: Inputs of all 2 x 2 convolutions, the K first ones of the residual blocks, then the K second ones,
            `[2 W + 1, 2 K, N, F]`.
        ends: What comes out of the residual blocks of each block, `[2 W + 1, blocks, N, F]`.
        keys: `[blocks, N, H * W + 1, attention_keys]`.
        values: `[blocks, N, H * W + 1, attention_values]`.
        labels: Of the pictures.
        places: See `lightning_gen.networks.stepping.places_of`.
        indices: See `step_indices`.
        masks: What is added to a pixel's scores, `[H * W, H * W + 1]`.
        background: Coordinates of the pixels, `[H * W, 2]`.
        weights: Of the network.
    """

    images: Tensor
    inputs: Tensor
    known: Tensor
    ends: Tensor
    keys: Tensor
    values: Tensor
    labels: Tensor | None
    places: Tensor
    indices: Tensor
    masks: Tensor
    background: Tensor
    weights: StepWeights


PARTS_OF_INDICES = [4, 3, 1, 1, 1]


def step_indices(height: int, width: int, device: torch.device) -> Tensor:
    """Where the steps of `PixelSNAILNetwork` find what they need, int64 `[H * W, 10]`.

    Returns:
        Of each pixel, the flat indices of the pixels above to the left, above, above to the right and to the left,
        H * W for one outside the picture; the slots of those above to the left, above and to the left; its own slot;
        the slot of the pixel before; and the flat index of that, or 0 for none.
    """
    size = (height, width)
    pixels = [neighbours(*size, *tap).flatten() for tap in ((-1, -1), (-1, 0), (-1, 1), (0, -1))]
    slots = [neighbours(*size, *tap, kept=2).flatten() for tap in ((-1, -1), (-1, 0), (0, -1), (0, 0))]
    before = F.pad(slots[-1][:-1], (1, 0), value=2 * width)
    place_before = (torch.arange(height * width) - 1).clamp(min=0)
    return torch.stack([*pixels, *slots, before, place_before], dim=1).to(device)
