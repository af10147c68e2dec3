"""LSGAN: least squares instead of cross-entropy (Mao et al. 2016, 1611.04076)."""

from __future__ import annotations

from typing import Any

from lightning_gen.losses.adversarial import AdversarialLoss, LeastSquares
from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator


class LSGAN(GAN):
    """`DCGAN` with squared distances to labels instead of cross-entropy.

    Paper (1611.04076): strided convolutions; least squares, equation 9; Adam at 1e-3 (LSUN) or 2e-4 (characters), first
    beta 0.5; n_critic 1; batch 64; batch norm.

    Give `LeastSquares(a=-1.0, b=1.0, c=0.0)` for its equation 8, where the game is one of the Pearson chi-squared
    divergence. Deviations: networks and rate are DCGAN's; the paper's networks for LSUN are deeper. Arguments are
    `GAN`'s, with the paper's defaults.
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
