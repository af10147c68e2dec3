"""PixelCNN (van den Oord et al. 2016, 1601.06759) and Gated PixelCNN (van den Oord et al. 2016, 1606.05328)."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.networks.pixelcnn import PixelCNNNetwork


class PixelCNN(AutoregressiveModule):
    """A stack of masked convolutions, and a softmax over the levels of R, then G given R, then B given both.

    The defaults are the paper's for CIFAR-10 (batch 16); for binary MNIST it has `num_levels=2` and `head_filters=32`.
    The learning rate of RMSProp is ours: the paper chose the highest that converged, and does not print it.

    Args:
        image_shape: (channels, height, width).
        num_levels: L of each channel; 2 for black and white.
        filters: h: features are 2h between blocks and h within.
        layers: Residual blocks after the first 7 x 7 layer.
        head_filters: Features of the head.
        learning_rate: Of RMSProp.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        filters: int = 128,
        layers: int = 15,
        head_filters: int = 1024,
        learning_rate: float = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            pixel_likelihood(num_levels),
            num_classes=None,
            condition_channels=None,
            learning_rate=learning_rate,
            **settings,
        )
        self.network = PixelCNNNetwork(
            self.image_shape, num_levels=num_levels, filters=filters, layers=layers, head_filters=head_filters
        )

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """RMSProp, as in the paper."""
        return torch.optim.RMSprop(parameters, lr=self.learning_rate)
