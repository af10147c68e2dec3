"""SNGAN: a discriminator whose layers have spectral norm one (Miyato et al. 2018, 1802.05957)."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning_gen.losses.adversarial import AdversarialLoss, Hinge
from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.resnet import ResidualDiscriminator, ResidualGenerator
from lightning_gen.sampling import Latents


class SNGAN(GAN):
    """The hinge loss between ResNets, the discriminator's layers divided by their spectral norms.

    Paper (1802.05957, CIFAR-10): ResNets; hinge; Adam at 2e-4 with (0, 0.9), falling linearly to zero; n_critic 5;
    batch 64, twice as many fakes in a generator update; 50,000 steps (authors' code); spectral norm.

    With `num_classes` the generator has conditional batch norm and the discriminator a projection (1802.05637). The
    model brings the callback `SpectralNormPowerIteration` along; give one of your own for other settings. Arguments are
    `GAN`'s, with the paper's defaults.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = ResidualGenerator,
        discriminator: NetworkFactory | None = None,
        loss: AdversarialLoss | None = None,
        latent_size: int = 128,
        latent_distribution: Latents = "normal",
        n_critic: int = 5,
        generator_batch_factor: int = 2,
        betas: tuple[float, float] = (0.0, 0.9),
        decay_start: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            generator,
            discriminator or partial(ResidualDiscriminator, spectral_norm="reshape"),
            loss or Hinge(),
            latent_size=latent_size,
            latent_distribution=latent_distribution,
            n_critic=n_critic,
            generator_batch_factor=generator_batch_factor,
            betas=betas,
            decay_start=decay_start,
            **settings,
        )
