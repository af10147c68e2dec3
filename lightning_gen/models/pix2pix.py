"""pix2pix: paired image-to-image translation with a conditional GAN (Isola et al. 2017, 1611.07004)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.ties import moving_once, on_both, with_momenta
from lightning_gen.losses.adversarial import AdversarialLoss, NonSaturating
from lightning_gen.losses.precision import full
from lightning_gen.models.adversarial import Losses, check_augmentation, generator_loss, halved
from lightning_gen.models.training import NetworkFactory
from lightning_gen.models.translation import Batch, TranslationModule
from lightning_gen.networks.cyclegan import UNetGenerator
from lightning_gen.networks.patchgan import PatchDiscriminator


class Pix2Pix(TranslationModule):
    """A generator from A to B, and a discriminator that sees A beside the real or the generated B.

    Paper (1611.07004), as its reference implementation has it: U-Net of depth 8, 70 x 70 PatchGAN; cross-entropy, 100
    times the distance from the true B; Adam at 2e-4 with (0.5, 0.999); n_critic 1; batch 1; 200 epochs (facades), the
    rate linear to zero in the second half; batch norm and dropout, the discriminator's loss halved. In translating,
    dropout stays on and batch norm takes the statistics of the picture itself; the dropout is drawn from a fixed seed,
    so that a translation is repeatable.

    Deviation: the learning rate falls at every step and reaches zero; see `CycleGAN`.

    Args:
        image_shape: (channels, height, width) of both domains in training.
        generator: Makes the generator from the image shape.
        discriminator: Makes the discriminator from the shape of A and B stacked, (2 channels, height, width); None
            means a `PatchDiscriminator` with batch norm.
        loss: Adversarial loss; None means `NonSaturating()`.
        lambda_L1: Weight of |G(a) - b|.
        noise_at_test: Whether dropout is used when translating (paper).
        **settings: All others as in `TranslationModule`.

    Raises:
        ValueError: If a number is out of range, or a network refuses the image shape.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: NetworkFactory = UNetGenerator,
        discriminator: NetworkFactory | None = None,
        loss: AdversarialLoss | None = None,
        *,
        lambda_L1: float = 100.0,
        noise_at_test: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, ("AtoB",), noise_at_test, **settings)
        self.save_hyperparameters()
        if lambda_L1 < 0:
            raise ValueError(f"lambda_L1 must be 0 or more, got {lambda_L1}.")
        channels, height, width = self.image_shape
        stacked = (2 * channels, height, width)
        self.generator_AtoB = made_by(generator, nn.Module, self.image_shape)
        self.discriminator = made_by(discriminator or partial(PatchDiscriminator, norm="batch"), nn.Module, stacked)
        self.freeze_layers()
        self.loss = loss or NonSaturating()
        check_augmentation(type(self).__name__, self.augment, self.loss)
        self.lambda_L1 = lambda_L1

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The discriminator, then the generator, on one batch and one fake."""
        generator, discriminator = cast(list[LightningOptimizer], self.optimizers())
        real_A, real_B = self.domains(batch)
        fakes_B = self.paint(self.cut(real_A))
        shown = [fake_B.detach() for fake_B in fakes_B]
        self.update(discriminator, *self.in_pieces(self.discriminator_losses, real_A, real_B, shown), count=False)
        self.update(generator, *self.in_pieces(self.generator_losses, real_A, real_B, fakes_B))
        self.finish_step(images=len(real_A))

    def discriminator_losses(self, real_A: Tensor, real_B: Tensor, fake_B: Tensor) -> Losses:
        """Real pairs against pairs with a generated B."""
        real, fake = torch.cat([real_A, real_B], dim=1), torch.cat([real_A, fake_B.to(real_A.dtype)], dim=1)
        judge = partial(self.judged, self.discriminator)
        real_scores, fake_scores = on_both(self.discriminator, real, fake, call=judge)
        self.note_scores(self.loss, real_scores)
        losses = {
            "discriminator": self.loss.discriminator(real_scores, fake_scores),
            **self.penalty_losses(judge, real, fake),
        }
        return halved(losses)  # the paper's way to hold the discriminator back (section 3.3)

    def generator_losses(self, real_A: Tensor, real_B: Tensor, fake_B: Tensor) -> Losses:
        """Adversarial term and lambda |G(a) - b|."""
        judge = partial(self.judged, self.discriminator)
        scores = judge(torch.cat([real_A, fake_B.to(real_A.dtype)], dim=1))
        return {
            "generator": generator_loss(self.loss, scores, lambda: judge(torch.cat([real_A, real_B], dim=1))),
            "L1": self.lambda_L1 * F.l1_loss(full(fake_B), full(real_B)),
        }

    def paint(self, pieces: list[Tensor]) -> list[Tensor]:
        """G(a) of each piece of a batch, with a graph.

        The discriminator, which learns before the generator does, needs those of all pieces. So activations of several
        are not kept, but computed again from the same random state when the gradient of a piece is.
        """
        generator = self.generator_AtoB
        if len(pieces) == 1:
            return [generator(pieces[0])]

        def statistics(piece: int) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return moving_once(generator, piece, len(pieces)), with_momenta(generator, lambda momentum: 0.0)

        return [
            checkpoint(generator, real_A, use_reentrant=False, context_fn=partial(statistics, piece))
            for piece, real_A in enumerate(pieces)
        ]
