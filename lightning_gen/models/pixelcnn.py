"""PixelCNN (van den Oord et al. 2016, 1601.06759)."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.models.autoregressive import AutoregressiveModule, DensityFactory
from lightning_gen.networks.pixelcnn import PixelCNNNetwork


class PixelCNN(AutoregressiveModule):
    """A stack of masked convolutions, and a softmax over the levels of R, then G given R, then B given both.

    Paper (1601.06759, CIFAR-10): 15 residual blocks of 3 x 3 with 128 features after one layer of 7 x 7, head of 1024;
    softmax; RMSProp; batch 16; 3.14 bits per dim. For binary MNIST its head has 32.

    The learning rate is ours: the paper chose the highest that converged, and does not print it.

    Args:
        num_levels: L of each channel; 2 for black and white.
        learning_rate: Of RMSProp.
        **settings: All others as in `AutoregressiveModule`, where errors are described too.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        network: DensityFactory = PixelCNNNetwork,
        learning_rate: float = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            pixel_likelihood(num_levels),
            network,
            num_classes=None,
            condition_channels=None,
            learning_rate=learning_rate,
            **settings,
        )

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """RMSProp, as in the paper."""
        return torch.optim.RMSprop(parameters, lr=self.learning_rate)
