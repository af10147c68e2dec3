"""SNGAN, WGAN-GP and DCGAN's losses on the ResNets for 32 x 32, each as a plain loop and as a naive one.

A step is five critic updates and one generator update. The plain loop is our algorithm on our networks without
Lightning. The naive loop is the same mathematics as the well-known implementations write it down, on networks of
its own: everything float32 and contiguous; real and generated pictures judged in two calls; pictures generated with a
graph that is then detached; resampling and convolution in two layers; spectral norm iterated in every forward pass;
gradients of the critic's weights computed in the generator's update too; three numbers fetched for the log in every
update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.contestants import Settings
from lightning_gen.layers.spectral_norm import power_iteration, spectral_norms
from lightning_gen.models.gan import GAN

LATENT_SIZE = 128
N_CRITIC = 5


class Game:
    """The order of updates, which both loops have in common."""

    fakes: int
    schedules: list[LambdaLR]
    update_critic: Callable[[Tensor], None]
    update_generator: Callable[[int], None]

    def step(self, batch: Tensor) -> None:
        """Five critic updates and a generator update."""
        for _ in range(N_CRITIC):
            self.update_critic(batch)
        self.update_generator(self.fakes * len(batch))
        for schedule in self.schedules:
            schedule.step()


def linear_decay(optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
    """To zero, from the first step on."""
    return LambdaLR(optimizer, lambda step: max(0.0, (total - step) / total))


# -- the plain loop ---------------------------------------------------------------------------------------------------


class PlainGAN(Game):
    """The game of `lightning_gen.models.GAN` as a script would have it.

    Args:
        model: Gives the losses, rates and networks; what it trains are copies of its own, made by `networks`.
        networks: Makes (generator, discriminator).
        settings: Gives device, precision and memory format.
    """

    def __init__(self, model: GAN, networks: Callable[[], Sequence[nn.Module]], settings: Settings) -> None:
        self.settings, self.loss, self.penalties = settings, model.loss, model.penalties
        self.fakes = model.generator_batch_factor
        self.generator, self.discriminator = [
            network.to(settings.device).to(memory_format=settings.memory_format) for network in networks()
        ]
        if settings.compile:
            self.generator.compile()
            if not any(penalty.double_backward for penalty in self.penalties):
                self.discriminator.compile()
        self.normalized = spectral_norms(self.discriminator).values()
        self.optimizers = [
            Adam(network.parameters(), lr=rate, betas=model.betas, fused=True)
            for network, rate in zip((self.generator, self.discriminator), model.learning_rates, strict=True)
        ]
        self.schedules = [linear_decay(o, settings.total) for o in self.optimizers] if model.decay_start < 1 else []

    def update_critic(self, real: Tensor) -> None:
        """One update of the discriminator."""
        if self.normalized:
            power_iteration(self.normalized)
        optimizer = self.optimizers[1]
        optimizer.zero_grad()
        with self.settings.autocast():
            with torch.no_grad():
                fake = self.generator(torch.randn(len(real), LATENT_SIZE, device=real.device)).to(real.dtype)
            real_scores, fake_scores = self.discriminator(torch.cat([real, fake])).chunk(2)
            loss = self.loss.discriminator(real_scores, fake_scores)
            for penalty in self.penalties:
                loss = loss + penalty(self.discriminator, real, fake)
        loss.backward()
        optimizer.step()

    def update_generator(self, num_fakes: int) -> None:
        """One update of the generator, in which the discriminator's weights need no gradients."""
        optimizer = self.optimizers[0]
        self.discriminator.requires_grad_(False)
        optimizer.zero_grad()
        with self.settings.autocast():
            latents = torch.randn(num_fakes, LATENT_SIZE, device=self.settings.device)
            loss = self.loss.generator(self.discriminator(self.generator(latents)))
        loss.backward()
        optimizer.step()
        self.discriminator.requires_grad_(True)


# -- the naive loop ---------------------------------------------------------------------------------------------------


class NaiveUpsamplingBlock(nn.Module):
    """Norm, ReLU, doubling, convolution, norm, ReLU, convolution; the shortcut doubles and convolves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, width, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Twice as high and wide."""
        hidden = self.conv1(F.interpolate(self.relu(self.norm1(features)), scale_factor=2))
        hidden = self.conv2(self.relu(self.norm2(hidden)))
        return hidden + self.shortcut(F.interpolate(features, scale_factor=2))


class NaiveGenerator(nn.Module):
    """From 4 x 4 by three doublings, as `ResidualGenerator` for 32 x 32."""

    def __init__(self, width: int, doublings: int) -> None:
        super().__init__()
        self.project = nn.Linear(LATENT_SIZE, width * 4 * 4)
        self.blocks = nn.Sequential(*(NaiveUpsamplingBlock(width) for _ in range(doublings)))
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures."""
        features = self.blocks(self.project(latents).view(len(latents), -1, 4, 4))
        return torch.tanh(self.conv(F.relu(self.norm(features))))


class NaiveDiscriminatorBlock(nn.Module):
    """[ReLU], convolution, ReLU, convolution, [mean of 2 x 2]; the shortcut convolves at full size."""

    def __init__(self, inputs: int, width: int, halve: bool) -> None:
        super().__init__()
        self.first, self.halve = inputs != width, halve
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, width, 1) if halve else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Half as high and wide, or as they were."""
        hidden = self.conv2(F.relu(self.conv1(features if self.first else F.relu(features))))
        if not self.halve:
            return hidden + features
        return F.avg_pool2d(hidden, 2) + F.avg_pool2d(self.shortcut(features), 2)


class NaiveDiscriminator(nn.Module):
    """Two blocks that halve and two that do not, as `ResidualDiscriminator` for 32 x 32."""

    def __init__(self, width: int, spectral: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            NaiveDiscriminatorBlock(3, width, halve=True),
            NaiveDiscriminatorBlock(width, width, halve=True),
            NaiveDiscriminatorBlock(width, width, halve=False),
            NaiveDiscriminatorBlock(width, width, halve=False),
        )
        self.score = nn.Linear(width, 1)
        if spectral:
            for layer in [module for module in self.modules() if isinstance(module, nn.Conv2d | nn.Linear)]:
                spectral_norm(layer)  # moves its vectors in every forward pass in training mode

    def forward(self, images: Tensor) -> Tensor:
        """Scores."""
        return self.score(F.relu(self.blocks(images)).sum(dim=(2, 3))).squeeze(1)


CriticLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]


def hinge(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """SNGAN's critic."""
    return F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()


def cross_entropy(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """DCGAN's discriminator."""
    real = F.binary_cross_entropy_with_logits(real_scores, torch.ones_like(real_scores))
    return real + F.binary_cross_entropy_with_logits(fake_scores, torch.zeros_like(fake_scores))


def non_saturating(fake_scores: Tensor) -> Tensor:
    """DCGAN's generator."""
    return F.binary_cross_entropy_with_logits(fake_scores, torch.ones_like(fake_scores))


def wasserstein(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """WGAN's critic."""
    return fake_scores.mean() - real_scores.mean()


def minus_mean(fake_scores: Tensor) -> Tensor:
    """The generator of SNGAN and WGAN."""
    return -fake_scores.mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """WGAN-GP's, two-sided, with the weight 10."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    points = (share * real + (1 - share) * fake).requires_grad_()
    scores = discriminator(points)
    (gradient,) = torch.autograd.grad(scores, points, torch.ones_like(scores), create_graph=True)
    return 10 * ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()


class NaiveGAN(Game):
    """The same game as the well-known implementations play it; see the head of this file.

    Args:
        model: Gives the rates.
        critic_loss: What the critic minimises.
        generator_loss: What the generator minimises.
        settings: Gives device and sizes.
    """

    def __init__(self, model: GAN, critic_loss: CriticLoss, generator_loss: GeneratorLoss, settings: Settings) -> None:
        self.critic_loss, self.generator_loss = critic_loss, generator_loss
        self.penalized = bool(model.penalties)
        self.fakes = model.generator_batch_factor
        doublings = (settings.image_size // 4).bit_length() - 1
        spectral = bool(spectral_norms(model.discriminator))
        self.generator = NaiveGenerator(settings.filters, doublings).to(settings.device)
        self.discriminator = NaiveDiscriminator(settings.filters // 2, spectral).to(settings.device)
        self.optimizers = [
            Adam(network.parameters(), lr=rate, betas=model.betas)
            for network, rate in zip((self.generator, self.discriminator), model.learning_rates, strict=True)
        ]
        self.schedules = [linear_decay(optimizer, settings.total) for optimizer in self.optimizers]
        self.log: dict[str, float] = {}

    def update_critic(self, real: Tensor) -> None:
        """One update of the discriminator."""
        self.optimizers[1].zero_grad()
        real_scores = self.discriminator(real)
        fake = self.generator(torch.randn(len(real), LATENT_SIZE, device=real.device)).detach()
        fake_scores = self.discriminator(fake)
        loss = self.critic_loss(real_scores, fake_scores)
        if self.penalized:
            loss = loss + gradient_penalty(self.discriminator, real, fake)
        loss.backward()
        self.optimizers[1].step()
        self.log["loss_D"] = loss.item()
        self.log["D(x)"], self.log["D(G(z))"] = real_scores.sigmoid().mean().item(), fake_scores.sigmoid().mean().item()

    def update_generator(self, num_fakes: int) -> None:
        """One update of the generator."""
        self.optimizers[0].zero_grad()
        device = self.generator.conv.weight.device
        fake = self.generator(torch.randn(num_fakes, LATENT_SIZE, device=device))
        loss = self.generator_loss(self.discriminator(fake))
        loss.backward()
        self.optimizers[0].step()
        self.log["loss_G"] = loss.item()
