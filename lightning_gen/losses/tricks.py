"""Tricks that keep a discriminator from being too sure: softened or swapped labels, and noise on its input.

The first two wrap any `SeparableLoss` and are one themselves, so they nest. All leave the generator's loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gen.losses.adversarial import SeparableLoss
from lightning_gen.schedules import Linear


@dataclass(frozen=True)
class LabelSmoothing(SeparableLoss):
    """Label smoothing (1606.03498, section 3.4): the discriminator is paid for being a little unsure.

    A picture with the label "real" counts as real with weight 1 - `real` and as fake with weight `real`; likewise
    for fakes. For cross-entropy that is the target 1 - `real`; for least squares too, up to a constant. The paper
    smooths the real side only, since a smoothed fake side also rewards fakes for staying where they are.

    Args:
        loss: What to smooth.
        real: How much of a real label is taken away, in [0, 0.5); 0.1 makes the target 0.9.
        fake: How much of a fake label is taken away, in [0, 0.5); above 0 the smoothing is two-sided.

    Raises:
        ValueError: If a share is out of range.
    """

    loss: SeparableLoss
    real: float = 0.1
    fake: float = 0.0

    def __post_init__(self) -> None:
        for side, share in (("real", self.real), ("fake", self.fake)):
            if not 0 <= share < 0.5:
                raise ValueError(
                    f"LabelSmoothing needs {side} in [0, 0.5), got {share}: it is what is taken from the label "
                    "(0.1 for a target of 0.9), and from 0.5 on the label says nothing or the opposite."
                )

    @property
    def boundary(self) -> float | None:
        """The loss's own, which is off by a little where one side is smoothed more."""
        return self.loss.boundary

    def margins(self, scores: Tensor) -> Tensor:
        """The loss's own."""
        return self.loss.margins(scores)

    def real_terms(self, scores: Tensor) -> Tensor:
        """(1 - real) * the loss's real terms + real * its fake terms."""
        return (1 - self.real) * self.loss.real_terms(scores) + self.real * self.loss.fake_terms(scores)

    def fake_terms(self, scores: Tensor) -> Tensor:
        """(1 - fake) * the loss's fake terms + fake * its real terms."""
        return (1 - self.fake) * self.loss.fake_terms(scores) + self.fake * self.loss.real_terms(scores)

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """The loss's own."""
        return self.loss.generator(fake_scores)


@dataclass(frozen=True)
class LabelFlipping(SeparableLoss):
    """Noisy labels: the discriminator sees each sample's label swapped with a probability.

    Drawn once a sample and call, for all its patches, from PyTorch's global generator on the scores' device. On average
    over the draws it is `LabelSmoothing(loss, probability, probability)`.

    Args:
        loss: What to train with the swapped labels.
        probability: In [0, 0.5).

    Raises:
        ValueError: If the probability is out of range.
    """

    loss: SeparableLoss
    probability: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.probability < 0.5:
            raise ValueError(
                f"LabelFlipping needs probability in [0, 0.5), got {self.probability}: from 0.5 on the labels say "
                "nothing or the opposite."
            )

    @property
    def boundary(self) -> float | None:
        """The loss's own."""
        return self.loss.boundary

    def margins(self, scores: Tensor) -> Tensor:
        """The loss's own."""
        return self.loss.margins(scores)

    def real_terms(self, scores: Tensor) -> Tensor:
        """The loss's real terms, its fake terms for the swapped samples."""
        return torch.where(self._swapped(scores), self.loss.fake_terms(scores), self.loss.real_terms(scores))

    def fake_terms(self, scores: Tensor) -> Tensor:
        """The loss's fake terms, its real terms for the swapped samples."""
        return torch.where(self._swapped(scores), self.loss.real_terms(scores), self.loss.fake_terms(scores))

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """The loss's own."""
        return self.loss.generator(fake_scores)

    def _swapped(self, scores: Tensor) -> Tensor:
        draws = torch.rand(scores.shape[:1], device=scores.device)
        return (draws < self.probability).reshape(scores.shape[:1] + (1,) * (scores.ndim - 1))


@dataclass(frozen=True)
class InstanceNoise:
    """Instance noise (1610.04490, 1701.04862): Gaussian noise on all that the discriminator sees, real and fake.

    It gives the two laws a common support, where their divergence is finite and smooth; it has to go for the model to
    learn the pictures themselves.

    Args:
        std: Standard deviation at step 0, in units of pictures in [-1, 1].
        anneal_steps: The generator step at which the noise is gone, after falling linearly. None: it stays.

    Raises:
        ValueError: If the deviation is negative, or there are fewer than one step.
    """

    std: float = 0.1
    anneal_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"InstanceNoise needs std >= 0, got {self.std}.")
        if self.anneal_steps is not None and self.anneal_steps < 1:
            raise ValueError(
                f"InstanceNoise needs anneal_steps >= 1, or None for noise that stays, got {self.anneal_steps}."
            )

    def std_at(self, step: int) -> float:
        """The standard deviation at a generator step, counted from 0."""
        return self.std if self.anneal_steps is None else Linear(self.std, 0.0, self.anneal_steps)(step)

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """The pictures with noise of this step's deviation; the very tensor given where that is zero."""
        std = self.std_at(step)
        return images + std * torch.randn_like(images) if std else images
