"""PixelCNN++ (Salimans et al. 2017, 1701.05517)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.pixels import LogisticMixture
from lightning_gen.models.autoregressive import DensityFactory
from lightning_gen.models.weight_normalized import WeightNormalizedModule
from lightning_gen.networks.pixelcnn_pp import PixelCNNPPNetwork


class PixelCNNPP(WeightNormalizedModule):
    """Shifted convolutions over three resolutions with shortcuts, and a discretised mixture of logistics.

    Paper (1701.05517 and its code, CIFAR-10): 5 gated blocks at each of 3 scales, up and down, of 160 features, dropout
    0.5; 10 logistics; Adam (1e-3, betas 0.95 and 0.9995; 0.999995 a step), weights averaged with 0.9995; batch 16 on
    each of 8 GPUs; 5000 epochs; 2.92 bits per dim.

    Deviations are those of `WeightNormalizedModule`.

    Args:
        image_shape: (channels, height, width); height and width divisible by 4 (with 3 scales).
        num_levels: L of each channel.
        num_components: K, of the mixture.
        lr_decay: Factor by which the rate is multiplied after each step.
        **settings: All others as in `WeightNormalizedModule`, where errors are described too.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        num_components: int = 10,
        network: DensityFactory = PixelCNNPPNetwork,
        lr_decay: float = 0.999995,
        **settings: Any,
    ) -> None:
        likelihood = LogisticMixture(num_levels, num_components)
        super().__init__(image_shape, likelihood, network, lr_decay=lr_decay, **settings)
