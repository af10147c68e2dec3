"""Adversarial losses: what the discriminator minimises and what the generator minimises, given scores.

Scores are raw discriminator outputs (logits) of any shape; the results are scalars, computed in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(ABC):
    """A two-player loss. Subclasses hold numbers only, so that a checkpoint can name them."""

    @abstractmethod
    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """What the discriminator minimises: scalar."""

    @abstractmethod
    def generator(self, fake_scores: Tensor) -> Tensor:
        """What the generator minimises: scalar."""


@dataclass(frozen=True)
class LeastSquares(AdversarialLoss):
    """LSGAN (1611.04076), with targets 1 for real and 0 for fake.

    The discriminator's loss is the mean of the two squared errors' means, 1/2 [E (D(x) - 1)^2 + E D(G(z))^2]; the
    generator's, E (D(G(z)) - 1)^2, is not halved, as in CycleGAN.
    """

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """1/2 [E (D(x) - 1)^2 + E D(G(z))^2]."""
        return 0.5 * ((real_scores.float() - 1).square().mean() + fake_scores.float().square().mean())

    def generator(self, fake_scores: Tensor) -> Tensor:
        """E (D(G(z)) - 1)^2."""
        return (fake_scores.float() - 1).square().mean()


@dataclass(frozen=True)
class NonSaturating(AdversarialLoss):
    """Cross-entropy with the non-saturating generator loss (1406.2661, section 3); "vanilla" in pix2pix.

    The discriminator's two terms are averaged, which halves the paper's sum, as pix2pix and CycleGAN do.
    """

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """-1/2 [E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z))))]."""
        return 0.5 * (F.softplus(-real_scores.float()).mean() + F.softplus(fake_scores.float()).mean())

    def generator(self, fake_scores: Tensor) -> Tensor:
        """-E log sigmoid(D(G(z)))."""
        return F.softplus(-fake_scores.float()).mean()


@dataclass(frozen=True)
class Wasserstein(AdversarialLoss):
    """The Wasserstein critic's loss (1701.07875). Needs a Lipschitz critic: add a `GradientPenalty`."""

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """E D(G(z)) - E D(x)."""
        return fake_scores.float().mean() - real_scores.float().mean()

    def generator(self, fake_scores: Tensor) -> Tensor:
        """-E D(G(z))."""
        return -fake_scores.float().mean()
