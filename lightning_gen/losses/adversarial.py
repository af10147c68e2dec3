"""Adversarial losses: what the discriminator minimises and what the generator minimises, given scores.

Scores are raw discriminator outputs (logits) of any shape; the results are scalars, computed in float32 at least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float32 or float64 already."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


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
        return 0.5 * ((full(real_scores) - 1).square().mean() + full(fake_scores).square().mean())

    def generator(self, fake_scores: Tensor) -> Tensor:
        """E (D(G(z)) - 1)^2."""
        return (full(fake_scores) - 1).square().mean()


@dataclass(frozen=True)
class NonSaturating(AdversarialLoss):
    """Cross-entropy with the non-saturating generator loss (1406.2661, section 3); "vanilla" in pix2pix.

    The discriminator's two terms are averaged, which halves the paper's sum, as pix2pix and CycleGAN do.
    """

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """-1/2 [E log sigmoid(D(x)) + E log(1 - sigmoid(D(G(z))))]."""
        return 0.5 * (F.softplus(-full(real_scores)).mean() + F.softplus(full(fake_scores)).mean())

    def generator(self, fake_scores: Tensor) -> Tensor:
        """-E log sigmoid(D(G(z)))."""
        return F.softplus(-full(fake_scores)).mean()


@dataclass(frozen=True)
class Wasserstein(AdversarialLoss):
    """The Wasserstein critic's loss (1701.07875). Needs a Lipschitz critic: add a `GradientPenalty`."""

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """E D(G(z)) - E D(x)."""
        return full(fake_scores).mean() - full(real_scores).mean()

    def generator(self, fake_scores: Tensor) -> Tensor:
        """-E D(G(z))."""
        return -full(fake_scores).mean()
