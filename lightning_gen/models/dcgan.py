"""DCGAN: convolutions all the way (Radford et al. 2015, 1511.06434)."""

from __future__ import annotations

from typing import Any

from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator


class DCGAN(GAN):
    """`GAN` between convolutional networks.

    Paper (1511.06434): strided convolutions; non-saturating cross-entropy; Adam at 2e-4 with (0.5, 0.999); n_critic 1;
    batch 128; 25 epochs of faces (authors' code); batch norm.

    With `num_classes` the label is concatenated to the latent and, as planes, to the picture (1411.1784). Arguments are
    `GAN`'s.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = DCGANGenerator,
        discriminator: NetworkFactory = DCGANDiscriminator,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, generator, discriminator, **settings)
