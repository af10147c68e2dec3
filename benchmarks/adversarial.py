"""CycleGAN, and SNGAN, WGAN-GP and DCGAN's losses on ResNets: ours beside a plain loop and a naive one."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.contestants import Contestants, Settings
from benchmarks.ports.cyclegan import PlainCycleGAN
from benchmarks.ports.gan import (
    LATENT_SIZE,
    N_CRITIC,
    CriticLoss,
    GeneratorLoss,
    NaiveGAN,
    PlainGAN,
    cross_entropy,
    hinge,
    minus_mean,
    non_saturating,
    wasserstein,
)
from lightning_gen.models import DCGAN, GAN, SNGAN, WGANGP, CycleGAN
from lightning_gen.networks import PatchDiscriminator, ResidualDiscriminator, ResidualGenerator, ResNetGenerator


def cyclegan(settings: Settings) -> Contestants:
    """CycleGAN with ResNet generators and 70 x 70 PatchGANs."""
    shape = settings.image_shape
    generator = partial(ResNetGenerator, filters=settings.filters, blocks=settings.blocks)
    discriminator = partial(PatchDiscriminator, filters=settings.filters)
    make = partial(PlainCycleGAN, partial(generator, shape), partial(discriminator, shape), settings)
    images = torch.rand(2, settings.batch_size, *shape, device=settings.device) * 2 - 1
    return Contestants(
        ours=CycleGAN(
            shape,
            generator=generator,
            discriminator=discriminator,
            channels_last=settings.channels_last,
            compile=settings.compile,
        ),
        plain=lambda: make(naive=False).step,
        naive=lambda: make(naive=True).step,
        batch={"A": images[0], "B": images[1]},
        convolution=(2 * settings.batch_size, 4 * settings.filters, settings.image_size // 4, settings.image_size // 4),
    )


def gan(
    model: type[GAN],
    critic_loss: CriticLoss,
    generator_loss: GeneratorLoss,
    settings: Settings,
    *,
    spectral: bool = False,
) -> Contestants:
    """One of the family on ResNets, `filters` wide in the generator and half as wide in the discriminator."""
    generator = partial(ResidualGenerator, filters=settings.filters)
    discriminator = partial(
        ResidualDiscriminator, filters=settings.filters // 2, spectral_norm="reshape" if spectral else "none"
    )
    ours = model(
        settings.image_shape,
        generator=generator,
        discriminator=discriminator,
        latent_size=LATENT_SIZE,
        latent_distribution="normal",
        n_critic=N_CRITIC,
        generator_batch_factor=settings.generator_batch_factor,
        channels_last=settings.channels_last,
        compile=settings.compile,
    )

    def networks() -> list[nn.Module]:
        return [generator(settings.image_shape, LATENT_SIZE), discriminator(settings.image_shape)]

    side = settings.image_size
    return Contestants(
        ours=ours,
        plain=lambda: PlainGAN(ours, networks, settings).step,
        naive=lambda: NaiveGAN(ours, critic_loss, generator_loss, settings).step,
        batch=torch.rand(settings.batch_size, *settings.image_shape, device=settings.device) * 2 - 1,
        convolution=(settings.batch_size, settings.filters, side, side),
        batches=N_CRITIC,
    )


sngan = partial(gan, SNGAN, hinge, minus_mean, spectral=True)
wgan_gp = partial(gan, WGANGP, wasserstein, minus_mean)
dcgan = partial(gan, DCGAN, cross_entropy, non_saturating)
