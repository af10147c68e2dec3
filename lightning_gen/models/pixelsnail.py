"""PixelSNAIL (Chen et al. 2018, 1712.09763)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.pixels import Bernoulli, LogisticMixture
from lightning_gen.models.weight_normalized import WeightNormalizedModule
from lightning_gen.networks.pixelsnail import PixelSNAILNetwork


class PixelSNAIL(WeightNormalizedModule):
    """Causal convolutions and attention to all earlier pixels in turns, and a discretised mixture of logistics.

    The defaults are those of the paper's code on CIFAR-10: Adam at 1e-3 with (0.95, 0.9995), a rate that falls by
    0.999998 a step, dropout 0.5, weights averaged with 0.9995, batches of 8 on each of several GPUs. Before the first
    step, weight norm is initialised from pictures, as in PixelCNN++. A step of sampling attends to all pixels before
    it, so its cost grows with the picture, and memory by all their keys and values.

    Deviations: the initialisation sees 16 pictures spread evenly over the training data, not the first batch of 8;
    pictures are rounded to levels when drawn; the loss is the mean in nats a dimension, not the sum, and Adam's epsilon
    PyTorch's, not 1e-6 under the root, which is as little beside the gradients of a sum. By class there is no model in
    the paper; the bias that a class adds here is that of PixelCNN++.

    Args:
        image_shape: (channels, height, width).
        num_levels: L of each channel; 2 for black and white, whose channels are then independent within a pixel.
        num_components: K, of the mixture; 32 in the paper's code for ImageNet.
        filters: Features.
        num_blocks: Blocks, each of which ends with attention.
        num_resnets: Gated residual blocks of convolutions in each.
        attention_keys: Size of keys and queries.
        attention_values: Size of values.
        dropout: Share of single features dropped in each residual block.
        num_classes: Number of classes, each a bias in every residual block; None leaves labels out.
        ema_decay: Of the averaged weights; None keeps none. A run's own `EMA` takes its place.
        learning_rate: Of Adam.
        lr_decay: Factor by which the rate is multiplied after each step.
        betas: Of Adam.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    network: PixelSNAILNetwork

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        num_components: int = 10,
        filters: int = 256,
        num_blocks: int = 12,
        num_resnets: int = 4,
        attention_keys: int = 16,
        attention_values: int = 128,
        dropout: float = 0.5,
        num_classes: int | None = None,
        ema_decay: float | None = 0.9995,
        learning_rate: float = 1e-3,
        lr_decay: float = 0.999998,
        betas: tuple[float, float] = (0.95, 0.9995),
        **settings: Any,
    ) -> None:
        likelihood = Bernoulli() if num_levels == 2 else LogisticMixture(num_levels, num_components)
        super().__init__(
            image_shape,
            likelihood,
            num_classes=num_classes,
            condition_channels=None,
            learning_rate=learning_rate,
            lr_decay=lr_decay,
            **settings,
        )
        self.start_from_pictures(ema_decay, betas)
        self.network = PixelSNAILNetwork(
            self.image_shape,
            outputs=likelihood.num_parameters(self.image_shape[0]),
            filters=filters,
            num_blocks=num_blocks,
            num_resnets=num_resnets,
            attention_keys=attention_keys,
            attention_values=attention_values,
            dropout=dropout,
            num_classes=num_classes,
        )
