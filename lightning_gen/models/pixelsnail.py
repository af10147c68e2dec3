"""PixelSNAIL (Chen et al. 2018, 1712.09763)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.pixels import mixture_likelihood
from lightning_gen.models.autoregressive import DensityFactory
from lightning_gen.models.weight_normalized import WeightNormalizedModule
from lightning_gen.networks.pixelsnail import PixelSNAILNetwork


class PixelSNAIL(WeightNormalizedModule):
    """Causal convolutions and attention to all earlier pixels in turns, and a discretised mixture of logistics.

    Paper (1712.09763 and its code, CIFAR-10): 12 blocks of 4 gated blocks of 2 x 2 with 256 features and of attention,
    keys 16, values 128, dropout 0.5; 10 logistics (32 for ImageNet); Adam (1e-3, betas 0.95 and 0.9995; 0.999998 a
    step), weights averaged with 0.9995; batch 8 on each of several GPUs; 5000 epochs; 2.85 bits per dim.

    A step of sampling attends to all pixels before it, so its cost grows with the picture, and memory by all their keys
    and values. Deviations are those of `WeightNormalizedModule`, and Adam's epsilon is PyTorch's, not 1e-6 under the
    root, which is as little beside the gradients of a sum. By class there is no model in the paper; the bias that a
    class adds here is that of PixelCNN++.

    Args:
        num_levels: L of each channel; 2 for black and white, whose channels are then independent within a pixel.
        num_components: K, of the mixture.
        lr_decay: Factor by which the rate is multiplied after each step.
        **settings: All others as in `WeightNormalizedModule`, where errors are described too.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        num_components: int = 10,
        network: DensityFactory = PixelSNAILNetwork,
        lr_decay: float = 0.999998,
        **settings: Any,
    ) -> None:
        likelihood = mixture_likelihood(num_levels, num_components)
        super().__init__(image_shape, likelihood, network, lr_decay=lr_decay, **settings)
