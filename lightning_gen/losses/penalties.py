"""Penalties on the discriminator, computed in the pictures' own precision, never in autocast's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gen.losses.precision import full
from lightning_gen.schedules import Schedule, ends

Discriminator = Callable[[Tensor], Tensor]


class Penalty(ABC):
    """Something added to the discriminator's loss. Subclasses hold numbers only, so that a checkpoint can name them.

    Attributes:
        weight: What the penalty multiplies its expectation by, at least 0. A schedule holds in training, where the game
            takes the number of its place; see `with_weight`.
        interval: Lazy regularisation (1912.04958): the game calls the penalty on every `interval`-th update of the
            discriminator only, and multiplies what it gets by `interval`. The penalty itself does not. At least 1. It
            stays a term of the one loss, so the optimizer needs no other settings; StyleGAN2's code makes a step of its
            own of it, with a rate and betas that make up for that.
        double_backward: Whether the penalty differentiates a gradient, through which PyTorch cannot compile.

    Raises:
        ValueError: At construction, if the weight or the interval is out of range.
    """

    weight: float | Schedule = 1.0
    interval: int = 1
    double_backward: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not min(ends(self.weight)) >= 0:
            raise ValueError(f"{type(self).__name__} needs weight >= 0, got {self.weight}.")
        if not self.interval >= 1:
            raise ValueError(
                f"{type(self).__name__} needs interval >= 1 (1: on every update of the discriminator), "
                f"got {self.interval}."
            )

    @abstractmethod
    def __call__(self, discriminator: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
        """The weighted penalty, a scalar.

        Args:
            discriminator: Maps `[N, C, H, W]` to scores of any shape `[N, ...]`: a module, or a function that gives
                one its labels.
            real: Real pictures `[N, C, H, W]`; their precision is the computation's.
            fake: Generated pictures of the same shape, in any precision.

        Raises:
            ValueError: If the weight is a schedule.
        """

    def with_weight(self, weight: float) -> Penalty:
        """The same penalty with a weight, such as the number of its schedule at a place in training."""
        return replace(self, weight=weight)  # type: ignore[type-var]

    @property
    def number(self) -> float:
        """The weight, where it is a number.

        Raises:
            ValueError: If it is a schedule.
        """
        if isinstance(self.weight, Schedule):
            raise ValueError(
                f"The weight of this {type(self).__name__} is a schedule, {self.weight}, of which a model takes the "
                "number in training. Take it yourself elsewhere: penalty.with_weight(penalty.weight(place))."
            )
        return self.weight


class InputGradientPenalty(Penalty):
    """A penalty on the gradient of the scores with respect to the pictures.

    A discriminator that gives many scores a picture (PatchGAN) is differentiated through their mean, so that the
    loss's own mean over patches is what is regularised. Norms are taken over the whole flattened picture.

    Raises:
        ValueError: When called, if the discriminator ignores its input.
    """

    double_backward: ClassVar[bool] = True

    def __call__(self, discriminator: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
        """The weighted mean over the points of each one's cost."""
        points = self.points(real.detach(), fake.detach().to(real.dtype)).requires_grad_()
        # Autocast off: halves are too coarse for a gradient of gradients. Gradients on, whatever the caller's mode.
        with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
            scores = discriminator(points)
            # The sum over samples of each one's mean score: its gradient is each sample's own, but for what statistics
            # of the minibatch tie together (1710.10196 has those in it too).
            total = full(scores).reshape(len(scores), -1).mean(dim=1).sum()
            gradient = None
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, points, create_graph=True, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    f"{type(self).__name__}: the discriminator's scores do not depend on its input, so there is no "
                    "gradient to penalise. Look for a detach, a no_grad or an unused argument in its forward."
                )
            return self.number * self.cost(full(gradient).flatten(1)).mean()

    @abstractmethod
    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """Where the gradient is taken: `[N, C, H, W]`, from pictures without a graph."""

    @abstractmethod
    def cost(self, gradients: Tensor) -> Tensor:
        """What each flattened gradient of `[N, C * H * W]` costs, before the weight: `[N]`."""


@dataclass(frozen=True)
class GradientPenalty(InputGradientPenalty):
    """WGAN-GP (1704.00028): weight * E (|grad D(x~)| - target)^2 at x~ = e x + (1 - e) G(z), e uniform, one a sample.

    Args:
        weight: lambda; 10 in the paper.
        one_sided: Penalise norms above the target only, max(0, |grad D(x~)| - target)^2 (1709.08894).
        target: The norm wanted; 1 in both papers.
        interval: See `Penalty`.
    """

    weight: float | Schedule = 10.0
    one_sided: bool = False
    target: float = 1.0
    interval: int = 1

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """On the segments between real and generated pictures."""
        return torch.lerp(fake, real, _one_a_sample(real))

    def cost(self, gradients: Tensor) -> Tensor:
        """(|g| - target)^2, or max(0, |g| - target)^2."""
        return _deviation(gradients, self.target, self.one_sided)


@dataclass(frozen=True)
class R1(InputGradientPenalty):
    """R1 (1801.04406, eq. 9): weight / 2 * E |grad D(x)|^2 on real pictures.

    Args:
        weight: gamma; 10 in the paper.
        interval: See `Penalty`; 16 in StyleGAN2.
    """

    weight: float | Schedule = 10.0
    interval: int = 1

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """The real pictures."""
        return real

    def cost(self, gradients: Tensor) -> Tensor:
        """|g|^2 / 2."""
        return gradients.square().sum(dim=1) / 2


@dataclass(frozen=True)
class R2(R1):
    """R2 (1801.04406, eq. 10): weight / 2 * E |grad D(G(z))|^2 on generated pictures. Arguments are `R1`'s."""

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """The generated pictures."""
        return fake


@dataclass(frozen=True)
class DRAGAN(InputGradientPenalty):
    """DRAGAN (1705.07215): weight * E (|grad D(x + d)| - target)^2, around real pictures only.

    The paper writes d as Gaussian noise of variance c. This is the variant of its authors' code: d = a * scale * s * u,
    with u uniform in [0, 1) for every pixel, a uniform in [0, 1) for every sample, and s the standard deviation of all
    values of the (device's) batch.

    Args:
        weight: lambda; 10 in the paper.
        scale: How far the noise reaches, in standard deviations; 0.5 in the authors' code.
        target: The norm wanted, k; 1 in the paper.
        interval: See `Penalty`.
    """

    weight: float | Schedule = 10.0
    scale: float = 0.5
    target: float = 1.0
    interval: int = 1

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """Real pictures with noise of a random strength."""
        return real + _one_a_sample(real) * self.scale * real.std(correction=0) * torch.rand_like(real)

    def cost(self, gradients: Tensor) -> Tensor:
        """(|g| - target)^2."""
        return _deviation(gradients, self.target)


@dataclass(frozen=True)
class Drift(Penalty):
    """Drift (1710.10196, appendix A.1): weight * E D(x)^2 on real pictures, which keeps the critic's scores near zero.

    Args:
        weight: epsilon_drift; 0.001 in the paper.
        interval: See `Penalty`.
    """

    weight: float | Schedule = 1e-3
    interval: int = 1

    def __call__(self, discriminator: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast(real.device.type, enabled=False):
            return self.number * full(discriminator(real)).square().mean()


def _one_a_sample(images: Tensor) -> Tensor:
    """Uniform draws in [0, 1) of `[N, 1, ...]`, in the pictures' precision."""
    return torch.rand(len(images), *[1] * (images.ndim - 1), dtype=images.dtype, device=images.device)


def _deviation(gradients: Tensor, target: float, one_sided: bool = False) -> Tensor:
    # The norm's derivative at zero is zero in PyTorch, not NaN: a critic that is flat somewhere stays finite.
    excess = torch.linalg.vector_norm(gradients, dim=1) - target
    return (excess.relu() if one_sided else excess).square()
