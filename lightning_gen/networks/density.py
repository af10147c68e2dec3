"""What the networks of autoregressive models share: how they are made, what they look at, and a step of one piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.networks.building import check_image_shape, listed
from lightning_gen.networks.stepping import Run, call


class DensityNetwork(nn.Module):
    """Base of networks that give the parameters of a distribution of each pixel, made of earlier pixels only.

    They are of a pixel as a whole, `[N, outputs, H, W]`, or of each of its channels, `[N, outputs / C, C, H, W]`, which
    then depend on the channels before it of the same pixel too: R, then G given R, then B given both. All networks can
    give them one pixel at a time, see `lightning_gen.networks.stepping.CachedNetwork`.

    Args:
        image_shape: (channels, height, width).
        outputs: Parameters of each pixel, `num_parameters` of the likelihood.
        embedding: Size of a vector that is learnt for each level, where levels are in no order, as codes are not. The
            network then has `embed`, and looks at what that makes of levels; its outputs are of a softmax over these.
            None for pictures in `[-1, 1]`.
        num_classes: None for a network without labels.
        condition_channels: Channels of the map of conditions; None for a network without one.
        dropout: Share of the features within a block, single ones, that are dropped in training.
        **sizes: Of the network.

    Raises:
        ValueError: If a size is below 1, or the dropout outside of [0, 1).
    """

    embed: LevelEmbedding

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        embedding: int | None = None,
        num_classes: int | None = None,
        condition_channels: int | None = None,
        dropout: float = 0.0,
        **sizes: int,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape)
        sizes = {"outputs": outputs, **sizes}
        if condition_channels is not None:
            sizes["condition_channels"] = condition_channels
        if min(sizes.values()) < 1:
            raise ValueError(f"{listed(sizes)} must be at least 1, got {listed(sizes.values())}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}.")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, or None for no labels; got {num_classes}.")
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.num_classes, self.condition_channels = num_classes, condition_channels
        self.in_channels = channels * (embedding or 1)  # of what `forward` looks at
        if embedding is not None:
            self.embed = LevelEmbedding(max(2, outputs // channels), embedding)

    def check_given(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Raise a `ValueError` if pictures have another shape, or labels are missing or given without classes."""
        shape = (self.in_channels, *self.image_shape[1:])
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, shape))}], got {list(images.shape)}.")
        check_labels(labels, self.num_classes)

    def check_condition(self, condition: Tensor | None, batch: int) -> None:
        """Raise a `ValueError` if the map of conditions is missing, given without need, or has another shape."""
        channels = self.condition_channels
        if channels is None and condition is not None:
            raise ValueError(
                "This network takes no map of conditions, but got one. Give it condition_channels when it is built."
            )
        if channels is not None and condition is None:
            raise ValueError(f"This network needs a map of conditions, [N, {channels}, H, W], but got none.")
        expected = [batch, channels, *self.image_shape[1:]]
        if condition is not None and list(condition.shape) != expected:
            raise ValueError(f"The map of conditions must be {expected}, got {list(condition.shape)}.")

    @torch.no_grad()
    def step(self, cache: Any, position: int, run: Run = call) -> Tensor:
        """The parameters of one pixel, see `lightning_gen.networks.stepping.CachedNetwork`."""
        return run(self._pixel, cache, cache.places[position])

    def _pixel(self, cache: Any, place: Tensor) -> Tensor:
        """The parameters of the pixel at a place; a network whose step is not one piece has its own `step` instead."""
        raise NotImplementedError


class LevelEmbedding(nn.Embedding):
    """A vector for each level: int64 `[N, C, *space]` to `[N, E C, *space]`, feature i of channel i modulo C."""

    def forward(self, levels: Tensor) -> Tensor:
        """What a network looks at."""
        return super().forward(levels).movedim(-1, 1).flatten(1, 2)


def check_features(network: DensityNetwork, outputs: int, filters: int, layers: int, head_filters: int) -> None:
    """Raise a `ValueError` unless each channel of the picture can have features and outputs of its own."""
    channels = network.image_shape[0]
    if min(filters, head_filters) < channels or layers < 1 or outputs % channels:
        raise ValueError(
            f"{type(network).__name__} needs layers >= 1, and filters and head_filters of at least the {channels} "
            "channels of the picture, of which each has features of its own, and outputs that are a multiple of it; "
            f"got {layers}, {filters}, {head_filters} and {outputs}."
        )
