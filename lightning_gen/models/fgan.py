"""f-GAN: any f-divergence as the game's objective (Nowozin et al. 2016, 1606.00709)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_gen.losses.divergences import DivergenceName, FDivergence, GeneratorLossName
from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator


class FGAN(GAN):
    """Minimises a divergence between data and samples, through the variational bound that the discriminator raises.

    The bound is logged as `train/bound`: it says how far apart the two distributions are at least, in the units of the
    divergence. Networks and noise are `GAN`'s, like the paper's for MNIST; single-step updates (algorithm 1).

    Args:
        image_shape: (channels, height, width).
        generator: As in `GAN`.
        discriminator: As in `GAN`; its scores are the paper's V(x), which the divergence's output activation follows.
        divergence: Which one; see `FDivergence`.
        generator_loss: What the generator minimises; see `FDivergence`.
        **settings: All others as in `GAN`, with its defaults; `loss` is `FDivergence`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = MLPGenerator,
        discriminator: NetworkFactory = MLPDiscriminator,
        divergence: DivergenceName = "jensen_shannon",
        generator_loss: GeneratorLossName = "minimax",
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, generator, discriminator, FDivergence(divergence, generator_loss), **settings)

    def discriminator_losses(self, real: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """As in `GAN`, with the bound logged."""
        losses = dict(super().discriminator_losses(real, labels))
        self.log("train/bound", -losses["discriminator"].detach(), prog_bar=True)
        return losses
