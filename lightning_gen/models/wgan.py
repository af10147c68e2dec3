"""WGAN (Arjovsky et al. 2017, 1701.07875) and WGAN-GP (Gulrajani et al. 2017, 1704.00028)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gen.losses.adversarial import AdversarialLoss, Wasserstein
from lightning_gen.losses.constraints import Constraint, WeightClipping
from lightning_gen.losses.penalties import GradientPenalty, Penalty
from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lightning_gen.networks.resnet import ResidualDiscriminator, ResidualGenerator
from lightning_gen.sampling import Latents


class WGAN(GAN):
    """Minimises the Wasserstein distance, which a critic with clipped weights estimates up to a factor.

    Paper (1701.07875, algorithm 1): DCGAN's networks; difference of mean scores; RMSProp at 5e-5; n_critic 5; batch 64;
    200,000 steps or more (authors' code); weights clipped to 0.01.

    The critic's loss is `train/discriminator`, minus the estimate. Latents are normal.

    Args:
        warmup_critic_updates: Critic updates before each of the first 25 generator updates and before every 500th, as
            the authors' code has them, 100; None means `n_critic` there too, as in algorithm 1.
        **settings: All others are `GAN`'s, with the paper's defaults.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = DCGANGenerator,
        discriminator: NetworkFactory = DCGANDiscriminator,
        loss: AdversarialLoss | None = None,
        constraint: Constraint | None = None,
        n_critic: int = 5,
        warmup_critic_updates: int | None = None,
        learning_rate: float = 5e-5,
        latent_distribution: Latents = "normal",
        **settings: Any,
    ) -> None:
        if warmup_critic_updates is not None and warmup_critic_updates < 1:
            raise ValueError(f"warmup_critic_updates must be at least 1, or null; got {warmup_critic_updates}.")
        super().__init__(
            image_shape,
            generator,
            discriminator,
            loss or Wasserstein(),
            constraint=constraint or WeightClipping(),
            n_critic=n_critic,
            learning_rate=learning_rate,
            latent_distribution=latent_distribution,
            **settings,
        )
        self.warmup_critic_updates = warmup_critic_updates

    def critic_updates_before(self, step: int) -> int:
        """More of them while the critic is young, and now and then."""
        return self.warmup_critic_updates or self.n_critic if step < 25 or step % 500 == 0 else self.n_critic

    def default_optimizer(self, learning_rate: float) -> Callable[[Any], Optimizer]:
        """RMSProp, because the critic's loss is not stationary (section 4)."""
        return partial(torch.optim.RMSprop, lr=learning_rate, foreach=True)


class WGANGP(GAN):
    """Minimises the Wasserstein distance, with a critic held 1-Lipschitz by a penalty on its gradient.

    Paper (1704.00028, algorithm 1): ResNets; difference of mean scores; Adam at 1e-4 with (0, 0.9); n_critic 5; batch
    64; 100,000 steps (authors' code for CIFAR-10); gradient penalty 10.

    The networks are those for 32 x 32, at any size, without normalisation in the critic; latents are normal. The
    CIFAR-10 recipe of the authors' code is configs/paper/wgan_gp_cifar10.yaml. Arguments are `GAN`'s, with the paper's
    defaults.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = ResidualGenerator,
        discriminator: NetworkFactory = ResidualDiscriminator,
        loss: AdversarialLoss | None = None,
        penalties: list[Penalty] | None = None,
        latent_size: int = 128,
        latent_distribution: Latents = "normal",
        n_critic: int = 5,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.0, 0.9),
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            generator,
            discriminator,
            loss or Wasserstein(),
            penalties=[GradientPenalty()] if penalties is None else penalties,
            latent_size=latent_size,
            latent_distribution=latent_distribution,
            n_critic=n_critic,
            learning_rate=learning_rate,
            betas=betas,
            **settings,
        )
