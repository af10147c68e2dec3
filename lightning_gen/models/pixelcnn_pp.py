"""PixelCNN++ (Salimans et al. 2017, 1701.05517)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.pixels import LogisticMixture
from lightning_gen.models.weight_normalized import WeightNormalizedModule
from lightning_gen.networks.pixelcnn_pp import PixelCNNPPNetwork


class PixelCNNPP(WeightNormalizedModule):
    """Shifted convolutions over three resolutions with shortcuts, and a discretised mixture of logistics.

    The defaults are those of the paper's code: Adam at 1e-3 with (0.95, 0.9995), a rate that falls by 0.999995 a step,
    dropout 0.5, weights averaged with 0.9995, batches of 16 on each of 8 GPUs. Before the first step, weight norm is
    initialised from pictures, rank 0's, so that all layers start with activations of mean 0 and variance 1.

    Deviations: these are 16 pictures spread evenly over the training data, not the first batch; pictures are rounded to
    levels when drawn; the loss is the mean in nats a dimension, not the sum, which makes no difference to Adam.

    Args:
        image_shape: (channels, height, width); height and width divisible by 4 (with 3 scales).
        num_levels: L of each channel.
        num_components: K, of the mixture.
        filters: Features of each of both streams.
        num_blocks: Gated residual blocks of each scale.
        num_scales: Resolutions, each half the one before.
        dropout: Share of single features dropped in each block.
        num_classes: Number of classes, each a bias in every block; None leaves labels out.
        ema_decay: Of the averaged weights; None keeps none. A run's own `EMA` takes its place.
        learning_rate: Of Adam.
        lr_decay: Factor by which the rate is multiplied after each step.
        betas: Of Adam.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    network: PixelCNNPPNetwork

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        num_components: int = 10,
        filters: int = 160,
        num_blocks: int = 5,
        num_scales: int = 3,
        dropout: float = 0.5,
        num_classes: int | None = None,
        ema_decay: float | None = 0.9995,
        learning_rate: float = 1e-3,
        lr_decay: float = 0.999995,
        betas: tuple[float, float] = (0.95, 0.9995),
        **settings: Any,
    ) -> None:
        likelihood = LogisticMixture(num_levels, num_components)
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
        self.network = PixelCNNPPNetwork(
            self.image_shape,
            outputs=likelihood.num_parameters(self.image_shape[0]),
            filters=filters,
            num_blocks=num_blocks,
            num_scales=num_scales,
            dropout=dropout,
            num_classes=num_classes,
        )
