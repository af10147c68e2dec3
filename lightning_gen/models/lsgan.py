"""LSGAN: least squares instead of cross-entropy (Mao et al. 2016, 1611.04076)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.adversarial import AdversarialLoss, LeastSquares
from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator


class LSGAN(GAN):
    """DCGAN with squared distances to the labels 0 and 1, the paper's equation 9.

    Give `LeastSquares(a=-1.0, b=1.0, c=0.0)` for its equation 8, where the game is one of the Pearson chi-squared
    divergence. Deviations: the networks are DCGAN's; the paper's for LSUN are deeper.

    Args:
        image_shape: (channels, height, width).
        generator: As in `GAN`.
        discriminator: As in `GAN`.
        loss: None means `LeastSquares()`.
        **settings: All others as in `GAN`, with its defaults.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = DCGANGenerator,
        discriminator: NetworkFactory = DCGANDiscriminator,
        loss: AdversarialLoss | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, generator, discriminator, loss or LeastSquares(), **settings)
