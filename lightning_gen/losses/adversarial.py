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
    """A two-player loss. Subclasses hold numbers only, so that a checkpoint can name them.

    Attributes:
        paired: Whether the generator's loss compares fakes with real pictures, the i-th with the i-th. Of all others
            it is a function of fakes alone: models then let no discriminator judge real pictures in vain.
    """

    paired = False  # without an annotation, which jsonargparse would look up in the modules of subclasses

    @property
    def boundary(self) -> float | None:
        """The score of a picture that is as likely real as fake; None where a score says nothing by itself."""
        return None

    def margins(self, scores: Tensor) -> Tensor:
        """By how much the discriminator takes each picture for real, of scores `[N, ...]`: below 0 for a fake.

        Raises:
            ValueError: If the loss has no `boundary`.
        """
        if self.boundary is None:
            raise ValueError(f"{type(self).__name__} has no boundary between the scores of real pictures and fakes.")
        return full(scores) - self.boundary

    @abstractmethod
    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """What the discriminator minimises: scalar."""

    @abstractmethod
    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """What the generator minimises: scalar.

        Args:
            fake_scores: Of the generator's pictures.
            real_scores: Of real pictures, without a graph. Looked at only where the loss is `paired`, so that others
                need not be given them.
        """


class SeparableLoss(AdversarialLoss):
    """A loss in which the discriminator pays for each score alone: E real_terms(D(x)) + E fake_terms(D(G(z))).

    The two terms are what tricks such as `LabelSmoothing` mix. The generator pays for its own pictures' scores alone.
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

    @property
    def boundary(self) -> float:
        """0, where the sigmoid is 1/2."""
        return 0.0

    def real_terms(self, scores: Tensor) -> Tensor:
        """-log sigmoid(D(x))."""
        return F.softplus(-full(scores))

    def fake_terms(self, scores: Tensor) -> Tensor:
        """-log(1 - sigmoid(D(G(z))))."""
        return F.softplus(full(scores))

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """E log(1 - sigmoid(D(G(z))))."""
        return -F.softplus(full(fake_scores)).mean()


@dataclass(frozen=True)
class NonSaturating(Minimax):
    """The same discriminator, with the non-saturating generator loss (1406.2661, section 3); "vanilla" in pix2pix."""

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
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

    @property
    def boundary(self) -> float:
        """Halfway from a to b."""
        return (self.a + self.b) / 2

    def real_terms(self, scores: Tensor) -> Tensor:
        """(D(x) - b)^2."""
        return (full(scores) - self.b).square()

    def fake_terms(self, scores: Tensor) -> Tensor:
        """(D(G(z)) - a)^2."""
        return (full(scores) - self.a).square()

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """E (D(G(z)) - c)^2."""
        return (full(fake_scores) - self.c).square().mean()


@dataclass(frozen=True)
class Hinge(SeparableLoss):
    """The hinge loss (1705.02894), with the generator's of SNGAN (1802.05957, eq. 17), which is linear."""

    @property
    def boundary(self) -> float:
        """0."""
        return 0.0

    def real_terms(self, scores: Tensor) -> Tensor:
        """max(0, 1 - D(x))."""
        return F.relu(1 - full(scores))

    def fake_terms(self, scores: Tensor) -> Tensor:
        """max(0, 1 + D(G(z)))."""
        return F.relu(1 + full(scores))

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
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

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
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

    @property
    def boundary(self) -> float | None:
        """The loss's own."""
        return self.loss.boundary

    def margins(self, scores: Tensor) -> Tensor:
        """Of the score itself: `[N]`."""
        return self.loss.margins(scores[:, 0])

    def real_terms(self, scores: Tensor) -> Tensor:
        """The loss's real terms + weight * cross-entropy: `[N]`."""
        return self.loss.real_terms(scores[:, 0]) - self.weight * full(scores[:, 1])

    def fake_terms(self, scores: Tensor) -> Tensor:
        """The loss's fake terms + weight * cross-entropy: `[N]`."""
        return self.loss.fake_terms(scores[:, 0]) - self.weight * full(scores[:, 1])

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """The loss's own + weight * E cross-entropy."""
        return self.loss.generator(fake_scores[:, 0]) - self.weight * full(fake_scores[:, 1]).mean()


@dataclass(frozen=True)
class RelativisticPairing(AdversarialLoss):
    """The relativistic pairing GAN (1807.00734; 2501.05441, eq. 2, with f(t) = -log(1 + exp(-t))).

    Each fake is compared with one real picture, so that fakes cannot all hide on one side of a threshold. It wants
    both zero-centred gradient penalties, `R1` and `R2`, with which it converges locally.
    """

    paired = True

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """E softplus(-(D(x) - D(G(z))))."""
        return F.softplus(-self._differences(real_scores, fake_scores)).mean()

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """E softplus(D(x) - D(G(z))).

        Raises:
            ValueError: If there are no scores of real pictures.
        """
        if real_scores is None:
            raise ValueError(
                "RelativisticPairing compares fakes with real pictures: call generator(fake_scores, real_scores)."
            )
        return F.softplus(self._differences(real_scores, fake_scores)).mean()

    def _differences(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        if real_scores.shape != fake_scores.shape:
            raise ValueError(
                "RelativisticPairing needs a fake for each real picture, but got scores of shapes "
                f"{tuple(real_scores.shape)} for real pictures and {tuple(fake_scores.shape)} for fakes."
            )
        return full(real_scores) - full(fake_scores)
