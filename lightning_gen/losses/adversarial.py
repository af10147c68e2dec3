"""Adversarial losses: what the discriminator minimises and what the generator minimises, given scores.

Scores are raw discriminator outputs (logits) of any shape; the results are computed in float32 at least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.precision import full


class AdversarialLoss(ABC):
    """A two-player loss. Subclasses hold numbers only, so that a checkpoint can name them."""

    @abstractmethod
    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """What the discriminator minimises: scalar."""

    @abstractmethod
    def generator(self, fake_scores: Tensor) -> Tensor:
        """What the generator minimises: scalar."""


class SeparableLoss(AdversarialLoss):
    """A loss in which the discriminator pays for each score alone: E real_terms(D(x)) + E fake_terms(D(G(z))).

    The two terms are what tricks such as `LabelSmoothing` mix.
    """

    @abstractmethod
    def real_terms(self, scores: Tensor) -> Tensor:
        """What the discriminator pays for each score under the label "real": the shape of `scores`."""

    @abstractmethod
    def fake_terms(self, scores: Tensor) -> Tensor:
        """What the discriminator pays for each score under the label "fake": the shape of `scores`."""

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """E real_terms(D(x)) + E fake_terms(D(G(z)))."""
        return self.real_terms(real_scores).mean() + self.fake_terms(fake_scores).mean()


@dataclass(frozen=True)
class Minimax(SeparableLoss):
    """The game of the first GAN (1406.2661, eq. 1), in which the generator minimises what the discriminator maximises.

    The generator's gradient vanishes where the discriminator is sure of its fakes; `NonSaturating` mends that.
    """

    def real_terms(self, scores: Tensor) -> Tensor:
        """-log sigmoid(D(x))."""
        return F.softplus(-full(scores))

    def fake_terms(self, scores: Tensor) -> Tensor:
        """-log(1 - sigmoid(D(G(z))))."""
        return F.softplus(full(scores))

    def generator(self, fake_scores: Tensor) -> Tensor:
        """E log(1 - sigmoid(D(G(z))))."""
        return -F.softplus(full(fake_scores)).mean()


@dataclass(frozen=True)
class NonSaturating(Minimax):
    """The same discriminator, with the non-saturating generator loss (1406.2661, section 3); "vanilla" in pix2pix."""

    def generator(self, fake_scores: Tensor) -> Tensor:
        """-E log sigmoid(D(G(z)))."""
        return F.softplus(-full(fake_scores)).mean()


@dataclass(frozen=True)
class LeastSquares(SeparableLoss):
    """LSGAN (1611.04076, eq. 2). The paper's 1/2 in front of both players' losses is left out.

    With b - c = 1 and b - a = 2 the generator minimises a Pearson chi-squared divergence (section 3.2 of the paper);
    the default 0-1 coding is the one of its eq. 9.

    Args:
        a: The discriminator's target for fakes.
        b: The discriminator's target for real pictures.
        c: The score that the generator aims for.
    """

    a: float = 0.0
    b: float = 1.0
    c: float = 1.0

    def real_terms(self, scores: Tensor) -> Tensor:
        """(D(x) - b)^2."""
        return (full(scores) - self.b).square()

    def fake_terms(self, scores: Tensor) -> Tensor:
        """(D(G(z)) - a)^2."""
        return (full(scores) - self.a).square()

    def generator(self, fake_scores: Tensor) -> Tensor:
        """E (D(G(z)) - c)^2."""
        return (full(fake_scores) - self.c).square().mean()


@dataclass(frozen=True)
class Hinge(SeparableLoss):
    """The hinge loss (1705.02894), with the generator's of SNGAN (1802.05957, eq. 17), which is linear."""

    def real_terms(self, scores: Tensor) -> Tensor:
        """max(0, 1 - D(x))."""
        return F.relu(1 - full(scores))

    def fake_terms(self, scores: Tensor) -> Tensor:
        """max(0, 1 + D(G(z)))."""
        return F.relu(1 + full(scores))

    def generator(self, fake_scores: Tensor) -> Tensor:
        """-E D(G(z))."""
        return -full(fake_scores).mean()


@dataclass(frozen=True)
class Wasserstein(SeparableLoss):
    """The Wasserstein critic's loss (1701.07875). Needs a Lipschitz critic: clip its weights or penalise gradients."""

    def real_terms(self, scores: Tensor) -> Tensor:
        """-D(x)."""
        return -full(scores)

    def fake_terms(self, scores: Tensor) -> Tensor:
        """D(G(z))."""
        return full(scores)

    def generator(self, fake_scores: Tensor) -> Tensor:
        """-E D(G(z))."""
        return -full(fake_scores).mean()


@dataclass(frozen=True)
class AuxiliaryClassifier(SeparableLoss):
    """AC-GAN (1610.09585): beside its score, the discriminator tells the classes of all pictures, real and fake.

    Its scores are `[N, 2]`: the score itself, and the log-probability of the class that the picture was drawn for or
    belongs to. Both players are paid for the second, the generator for fakes whose class can be told.

    Args:
        loss: What both pay for the score itself.
        weight: Of the cross-entropy beside it; 1 in Progressive GAN's code (1710.10196).
    """

    loss: SeparableLoss
    weight: float = 1.0

    def real_terms(self, scores: Tensor) -> Tensor:
        """The loss's real terms + weight * cross-entropy: `[N]`."""
        return self.loss.real_terms(scores[:, 0]) - self.weight * full(scores[:, 1])

    def fake_terms(self, scores: Tensor) -> Tensor:
        """The loss's fake terms + weight * cross-entropy: `[N]`."""
        return self.loss.fake_terms(scores[:, 0]) - self.weight * full(scores[:, 1])

    def generator(self, fake_scores: Tensor) -> Tensor:
        """The loss's own + weight * E cross-entropy."""
        return self.loss.generator(fake_scores[:, 0]) - self.weight * full(fake_scores[:, 1]).mean()
