"""Penalties on the discriminator, computed in float32 whatever the precision of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_gen.losses.adversarial import full


class Penalty(ABC):
    """Something added to the discriminator's loss. Subclasses hold numbers only, so that a checkpoint can name them.

    Attributes:
        double_backward: Whether the penalty differentiates a gradient, through which PyTorch cannot compile.
    """

    double_backward: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """The weighted penalty, a scalar.

        Args:
            discriminator: Maps `[N, C, H, W]` to scores of any shape `[N, ...]`.
            real: Real pictures `[N, C, H, W]`.
            fake: Generated pictures of the same shape, without a graph.
        """


@dataclass(frozen=True)
class GradientPenalty(Penalty):
    """WGAN-GP (1704.00028): weight * E (|grad D(x~)| - 1)^2 at x~ = e x + (1 - e) G(z), e uniform, one a sample.

    The norm is taken over the whole flattened sample. A discriminator that gives many scores a picture (PatchGAN) is
    differentiated through their mean, so that the loss's own mean over patches is what is 1-Lipschitz.

    Args:
        weight: lambda; 10 in the paper.

    Raises:
        ValueError: At construction if the weight is negative; when called if the discriminator ignores its input.
    """

    weight: float = 10.0
    double_backward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"GradientPenalty needs weight >= 0, got {self.weight}.")

    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast(real.device.type, enabled=False):
            epsilon = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
            # The weights' own precision: float32 in mixed precision, and what there is in true half or double.
            dtype = next((parameter.dtype for parameter in discriminator.parameters()), torch.float32)
            between = torch.lerp(fake.detach().to(dtype), real.detach().to(dtype), epsilon.to(dtype)).requires_grad_()
            scores = discriminator(between)
            # The sum over samples of each one's mean score: samples do not mix, so its gradient is per sample.
            total = full(scores).reshape(len(scores), -1).mean(dim=1).sum()
            (gradient,) = torch.autograd.grad(total, between, create_graph=True, allow_unused=True)
            if gradient is None:
                raise ValueError("GradientPenalty: the discriminator's scores do not depend on its input.")
            return self.weight * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
