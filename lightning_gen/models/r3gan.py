"""R3GAN: a relativistic game with two gradient penalties, without tricks (Huang et al. 2025, 2501.05441)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_gen.losses.adversarial import AdversarialLoss, RelativisticPairing
from lightning_gen.losses.penalties import R1, R2, Penalty
from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from lightning_gen.sampling import Latents
from lightning_gen.schedules import Cosine, Schedule


class R3GAN(GAN):
    """Fakes are compared with real pictures one by one, and the discriminator is flat where either of them are.

    Paper (2501.05441, authors' code for CIFAR-10): networks as `R3GANGenerator` and `R3GANDiscriminator` say;
    relativistic pairing; Adam with a first beta of 0; n_critic 1; batch 512; R1 and R2 on every batch. Over the first
    20 million pictures numbers go along half a cosine: the rate from 2e-4 to 5e-5, the second beta from 0.9 to 0.99,
    gamma of both penalties from 0.05 to 0.005, EMA's half-life from 0 to 5 million pictures, augmentation from 0 to
    0.55.

    Fakes are of the classes of the real pictures. Other data has another gamma, for which there is no rule: from 2 to
    0.2 for faces of 64 x 64, from 150 to 15 for those of 256 x 256, always a tenth in the end.

    Deviations: no augmentation unless it is given, such as `augment=ADA(p=Cosine(0.0, 0.55, 2e7, by="images"),
    target=None)`, whose transforms are not quite the authors'. The generator's fakes are compared with the batch that
    the discriminator has just seen, in the authors' code with one of their own.

    Args:
        image_shape: (channels, height, width).
        penalties: None means both, with the paper's gamma.
        learning_rate: None means the paper's schedule.
        betas: None means the paper's, the second a schedule.
        **settings: All others are `GAN`'s, with the paper's defaults.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = R3GANGenerator,
        discriminator: NetworkFactory = R3GANDiscriminator,
        loss: AdversarialLoss | None = None,
        penalties: list[Penalty] | None = None,
        latent_size: int = 64,
        latent_distribution: Latents = "normal",
        learning_rate: float | Schedule | None = None,
        betas: tuple[float, float | Schedule] | None = None,
        **settings: Any,
    ) -> None:
        gamma = over_training(0.05, 0.005)
        super().__init__(
            image_shape,
            generator,
            discriminator,
            loss or RelativisticPairing(),
            penalties=[R1(gamma), R2(gamma)] if penalties is None else penalties,
            latent_size=latent_size,
            latent_distribution=latent_distribution,
            learning_rate=over_training(2e-4, 5e-5) if learning_rate is None else learning_rate,
            betas=(0.0, over_training(0.9, 0.99)) if betas is None else betas,
            **settings,
        )

    def generate_from(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """As in `GAN`; cut to [-1, 1] where it is not in training mode, for the network ends without a tanh."""
        images = super().generate_from(latents, labels)
        return images if self.training else images.clamp(-1, 1)


def over_training(start: float, end: float, until: float = 2e7) -> Cosine:
    """The paper's schedule, by pictures seen."""
    return Cosine(start, end, until, by="images")
