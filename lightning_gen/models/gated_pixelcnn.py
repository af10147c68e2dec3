"""Gated PixelCNN (van den Oord et al. 2016, 1606.05328)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.networks.gated_pixelcnn import GatedPixelCNNNetwork


class GatedPixelCNN(AutoregressiveModule):
    """Two stacks of gated convolutions, which together see all of the past; of a class or a map, where there is one.

    The paper prints the size of its largest network, the default here, and no optimizer: Adam and its rate are ours.

    Args:
        image_shape: (channels, height, width).
        num_levels: L of each channel; 2 for black and white.
        filters: Features of each stack.
        layers: Gated layers after the first 7 x 7 layer.
        kernel_size: Of these, odd.
        head_filters: Features of the head.
        num_classes: Number of classes, each a bias before both gates of every layer; None leaves labels out.
        condition_channels: Channels of a map of the pictures' size, which says something of each place; it adds a
            bias of its own there. None for no map.
        learning_rate: Of Adam.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        filters: int = 384,
        layers: int = 20,
        kernel_size: int = 5,
        head_filters: int = 1024,
        num_classes: int | None = None,
        condition_channels: int | None = None,
        learning_rate: float = 3e-4,
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            pixel_likelihood(num_levels),
            num_classes=num_classes,
            condition_channels=condition_channels,
            learning_rate=learning_rate,
            **settings,
        )
        self.network = GatedPixelCNNNetwork(
            self.image_shape,
            num_levels=num_levels,
            filters=filters,
            layers=layers,
            kernel_size=kernel_size,
            head_filters=head_filters,
            num_classes=num_classes,
            condition_channels=condition_channels,
        )
