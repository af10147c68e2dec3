"""Gated PixelCNN (van den Oord et al. 2016, 1606.05328)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.models.autoregressive import AutoregressiveModule, DensityFactory
from lightning_gen.networks.gated_pixelcnn import GatedPixelCNNNetwork


class GatedPixelCNN(AutoregressiveModule):
    """Two stacks of gated convolutions, which together see all of the past; of a class or a map, where there is one.

    Paper (1606.05328): 20 gated layers of 5 x 5 with 384 features after one of 7 x 7, its largest network; softmax;
    3.03 bits per dim on CIFAR-10. It prints no optimizer: Adam and its rate are ours.

    Args:
        num_levels: L of each channel; 2 for black and white.
        learning_rate: Of Adam.
        **settings: All others as in `AutoregressiveModule`, where errors are described too.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        network: DensityFactory = GatedPixelCNNNetwork,
        learning_rate: float = 3e-4,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, pixel_likelihood(num_levels), network, learning_rate=learning_rate, **settings)
