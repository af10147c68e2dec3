"""Progressive GAN (Karras et al. 2017, 1710.10196)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_gen.losses.adversarial import AdversarialLoss, AuxiliaryClassifier, Wasserstein
from lightning_gen.losses.penalties import Drift, GradientPenalty, Penalty
from lightning_gen.models.gan import GeneratorFactory
from lightning_gen.models.growing import GrowingGAN
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.progan import ProGANDiscriminator, ProGANGenerator
from lightning_gen.sampling import Latents
from lightning_gen.schedules import Growing


class ProGAN(GrowingGAN):
    """Grows from 4 x 4 pictures to 1024 x 1024, with weights at equalized learning rate and norms for pixels.

    Paper (1710.10196, authors' code): 3 x 3 convolutions; WGAN-GP's loss; Adam at 1e-3, more from 128 pixels on, with
    (0, 0.99); n_critic 1; batches from 128 at 4 x 4 to 4 at 1024 x 1024 on one GPU; 600,000 pictures to fade in and
    as many to train each resolution (the paper: 800,000); gradient penalty 10, drift 0.001; EMA 0.999.

    Gradients are those by pixels of the last size, see `GrowingGAN`. With classes it is an AC-GAN: the discriminator
    tells classes too, and is shown fakes of the classes of the real pictures.

    Deviations: the stage is looked at before every batch, in the authors' code before every fourth. Classes of the
    generator's own fakes are drawn evenly, in the authors' code from the data. A score has no part in the penalty but
    its own: classes have none.

    Args:
        image_shape: (channels, height, width) of the last pictures.
        growing: The schedule, for model and data. None trains in full size from the start.
        **settings: All others are `GAN`'s, with the paper's defaults.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = ProGANGenerator,
        discriminator: NetworkFactory = ProGANDiscriminator,
        loss: AdversarialLoss | None = None,
        penalties: list[Penalty] | None = None,
        growing: Growing | None = None,
        latent_size: int = 512,
        latent_distribution: Latents = "normal",
        num_classes: int | None = None,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.0, 0.99),
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            generator,
            discriminator,
            loss or (Wasserstein() if num_classes is None else AuxiliaryClassifier(Wasserstein())),
            penalties=[GradientPenalty(), Drift()] if penalties is None else penalties,
            growing=growing,
            latent_size=latent_size,
            latent_distribution=latent_distribution,
            num_classes=num_classes,
            learning_rate=learning_rate,
            betas=betas,
            **settings,
        )

    def penalty_losses(
        self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        """Of the score alone, which stands before what an AC-GAN says of classes."""
        if not isinstance(self.loss, AuxiliaryClassifier):
            return super().penalty_losses(discriminator, real, fake)
        return super().penalty_losses(lambda images: discriminator(images)[:, 0], real, fake)
