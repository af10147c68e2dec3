"""DCGAN: convolutions all the way (Radford et al. 2015, 1511.06434)."""

from __future__ import annotations

from typing import Any

from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator


class DCGAN(GAN):
    """The game of `GAN` between convolutional networks: Adam at 2e-4 with (0.5, 0.999), 100 uniform latents, batch 128.

    With `num_classes` the label is concatenated to the latent and, as planes, to the picture (1411.1784).

    Args:
        image_shape: (channels, height, width).
        generator: As in `GAN`.
        discriminator: As in `GAN`.
        **settings: All others as in `GAN`, with its defaults.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = DCGANGenerator,
        discriminator: NetworkFactory = DCGANDiscriminator,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, generator, discriminator, **settings)
