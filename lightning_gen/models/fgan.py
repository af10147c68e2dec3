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

    Paper (1606.00709, MNIST): perceptrons; the bound of any f-divergence; Adam at 2e-4, first beta 0.5; n_critic 1
    (algorithm 1); batch 4096; batch norm in the generator.

    The bound is logged as `train/bound`: it says how far apart the two distributions are at least, in the units of the
    divergence. Deviation: the networks are `GAN`'s, without batch norm.

    Args:
        divergence: Which one; see `FDivergence`.
        generator_loss: What the generator minimises; see `FDivergence`.
        **settings: All others are `GAN`'s but `loss`; the scores of `discriminator` are the paper's V(x), which the
            divergence's output activation follows.
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
