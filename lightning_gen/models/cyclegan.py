"""CycleGAN: unpaired image-to-image translation (Zhu et al. 2017, 1703.10593)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lightning_gen.capabilities import Direction
from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.ties import on_both
from lightning_gen.losses.adversarial import AdversarialLoss, LeastSquares
from lightning_gen.losses.precision import full
from lightning_gen.metrics.translation import TranslationMetrics
from lightning_gen.models.adversarial import Losses, check_augmentation, generator_loss, halved
from lightning_gen.models.image_pool import ImagePool
from lightning_gen.models.training import NetworkFactory
from lightning_gen.models.translation import Batch, TranslationModule
from lightning_gen.networks.cyclegan import ResNetGenerator
from lightning_gen.networks.patchgan import PatchDiscriminator
from lightning_gen.processes import everywhere


class CycleGAN(TranslationModule):
    """Two generators that undo each other, each judged by a discriminator of the domain it paints.

    Paper (1703.10593), as its reference implementation has it: ResNets of 9 blocks, 70 x 70 PatchGANs; least squares,
    10 times the cycles, 5 times the identities; Adam at 2e-4 with (0.5, 0.999); n_critic 1; batch 1; 200 epochs, the
    rate linear to zero in the second half; instance norm, a history of 50 fakes, the discriminators' loss halved.

    Names: `discriminator_B` judges pictures of domain B, the paper's D_Y (the reference implementation calls it D_A).

    Deviations: the learning rate falls at every step and reaches zero, where the reference falls once an epoch and ends
    at 1/101 of the start. With instance norm, fakes and identity pictures come from one call on a joined batch, which
    changes nothing in the mathematics.

    Args:
        image_shape: (channels, height, width) of both domains in training.
        generator: Makes a generator from the image shape; called twice. Any class or function of yours fits whose
            result maps `[N, C, H, W]` in `[-1, 1]` to the same shape and range.
        discriminator: Makes a discriminator from the image shape; called twice. Its result maps pictures to scores of
            any shape `[N, ...]`, without a sigmoid.
        loss: Adversarial loss; None means `LeastSquares()`. With `Wasserstein()` give `penalties` a `GradientPenalty`.
        lambda_A: Weight of the cycle A -> B -> A.
        lambda_B: Weight of the cycle B -> A -> B.
        lambda_identity: Weight of the identity terms relative to the cycles; 0 leaves them out.
        pool_size: Pictures in each history; 0 shows the discriminators the latest fakes only.
        **settings: All others as in `TranslationModule`.

    Raises:
        ValueError: If a number is out of range, or a network refuses the image shape.
    """

    progress_figures: ClassVar[Sequence[str]] = ("generator", "discriminator", "cycle")

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: NetworkFactory = ResNetGenerator,
        discriminator: NetworkFactory = PatchDiscriminator,
        loss: AdversarialLoss | None = None,
        *,
        lambda_A: float = 10.0,
        lambda_B: float = 10.0,
        lambda_identity: float = 0.5,
        pool_size: int = 50,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, ("AtoB", "BtoA"), **settings)
        self.save_hyperparameters()
        if min(lambda_A, lambda_B, lambda_identity) < 0:
            raise ValueError("lambda_A, lambda_B and lambda_identity must be 0 or more.")
        self.generator_AtoB = made_by(generator, nn.Module, self.image_shape)
        self.generator_BtoA = made_by(generator, nn.Module, self.image_shape)
        self.discriminator_A = made_by(discriminator, nn.Module, self.image_shape)
        self.discriminator_B = made_by(discriminator, nn.Module, self.image_shape)
        self.freeze_layers()
        self.loss = loss or LeastSquares()
        check_augmentation(type(self).__name__, self.augment, self.loss)
        self.lambda_A, self.lambda_B, self.lambda_identity = lambda_A, lambda_B, lambda_identity
        self.pool_A, self.pool_B = ImagePool(pool_size), ImagePool(pool_size)
        self.fakes: list[tuple[Tensor, Tensor]] = []  # A and B of each piece of a batch

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Both generators, then both discriminators, on one batch."""
        generators, discriminators = cast(list[LightningOptimizer], self.optimizers())
        real_A, real_B = self.domains(batch)
        self.fakes = []
        self.update(generators, *self.in_pieces(self.generator_losses, real_A, real_B))
        self.update(discriminators, *self.in_pieces(self.discriminator_losses, real_A, real_B, self.fakes), count=False)
        self.finish_step(images=len(real_A))

    def generator_losses(self, real_A: Tensor, real_B: Tensor) -> Losses:
        """Six terms; the fakes are kept for the discriminators, which see them as they were before this update."""
        G, F_ = self.generator_AtoB, self.generator_BtoA  # the paper's G and F
        D_A, D_B = (partial(self.judged, network) for network in (self.discriminator_A, self.discriminator_B))
        if self.lambda_identity:
            fake_B, same_B = on_both(G, real_A, real_B)
            fake_A, same_A = on_both(F_, real_B, real_A)
        else:
            fake_B, fake_A = G(real_A), F_(real_B)
        self.fakes.append((fake_A.detach(), fake_B.detach()))
        losses = {
            "generator_AtoB": generator_loss(self.loss, D_B(fake_B), lambda: D_B(real_B)),
            "generator_BtoA": generator_loss(self.loss, D_A(fake_A), lambda: D_A(real_A)),
            # |F(G(a)) - a| and |G(F(b)) - b|
            "cycle_A": self.lambda_A * F.l1_loss(full(F_(fake_B)), full(real_A)),
            "cycle_B": self.lambda_B * F.l1_loss(full(G(fake_A)), full(real_B)),
        }
        if self.lambda_identity:
            # A generator leaves alone what is already in its target domain: |G(b) - b| and |F(a) - a|.
            losses["identity_B"] = self.lambda_B * self.lambda_identity * F.l1_loss(full(same_B), full(real_B))
            losses["identity_A"] = self.lambda_A * self.lambda_identity * F.l1_loss(full(same_A), full(real_A))
        return losses

    def discriminator_losses(self, real_A: Tensor, real_B: Tensor, fakes: tuple[Tensor, Tensor]) -> Losses:
        """Real pictures against the history of fakes, for each domain, and the penalties."""
        fake_A, fake_B = fakes
        losses = {}
        for domain, network, real, fake in (
            ("A", self.discriminator_A, real_A, self.pool_A(fake_A)),
            ("B", self.discriminator_B, real_B, self.pool_B(fake_B)),
        ):
            judge = partial(self.judged, network)
            real_scores, fake_scores = on_both(network, real, fake.to(real.dtype), call=judge)
            self.note_scores(self.loss, real_scores)
            losses[f"discriminator_{domain}"] = self.loss.discriminator(real_scores, fake_scores)
            for name, penalty in self.penalty_losses(judge, real, fake).items():
                losses[f"{name}_{domain}"] = penalty
        return halved(losses)  # the paper's way to hold the discriminators back

    def evaluate(self, batch: Batch, metrics: TranslationMetrics, prefix: str) -> Batch:
        """Also the distance of each picture from its reconstruction, which needs no pairs: mean |F(G(a)) - a|."""
        translated = super().evaluate(batch, metrics, prefix)
        pictures = dict(zip("AB", self.domains(batch), strict=True))
        for direction, back in (("AtoB", "BtoA"), ("BtoA", "AtoB")):
            real = pictures[direction[0]]
            distance = F.l1_loss(self.translate(translated[direction], cast(Direction, back)), real.float())
            self.log(f"{prefix}cycle_{direction[0]}", distance, batch_size=len(real), sync_dist=True)
        return translated

    # -- around it --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the histories of all ranks."""
        super().on_save_checkpoint(checkpoint)
        own = {"A": self.pool_A.state(), "B": self.pool_B.state()}
        checkpoint["image_pools"] = everywhere(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this rank's histories back; if there are other ranks than before, they share what there is."""
        super().on_load_checkpoint(checkpoint)
        pools = checkpoint.get("image_pools") or [{"A": None, "B": None}]
        own = pools[self.global_rank % len(pools)]
        self.pool_A.load(own["A"])
        self.pool_B.load(own["B"])
