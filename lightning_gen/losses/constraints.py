"""Constraints on the critic's weights, put right after each of its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Constraint(ABC):
    """Something done to the critic's weights after its step. Subclasses hold numbers only."""

    @abstractmethod
    def __call__(self, critic: nn.Module) -> None:
        """Change the weights in place, without gradients."""


@dataclass(frozen=True)
class WeightClipping(Constraint):
    """WGAN (1701.07875, algorithm 1): every weight into `[-bound, bound]`, after the step and not before it.

    Weights that are frozen stay as they are.

    Args:
        bound: c; 0.01 in the paper.
        normalization: Whether scales and shifts of normalisation layers are clipped too. The paper clips all weights,
            which shrinks what batch norm lets through to `bound` at every layer.

    Raises:
        ValueError: If the bound is not above 0.
    """

    bound: float = 0.01
    normalization: bool = True

    def __post_init__(self) -> None:
        if self.bound <= 0:
            raise ValueError(f"WeightClipping needs a bound above 0, got {self.bound}.")

    @torch.no_grad()
    def __call__(self, critic: nn.Module) -> None:
        """Clip."""
        norms = nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm
        weights: list[Tensor] = [
            weight
            for module in critic.modules()
            if self.normalization or not isinstance(module, norms)
            for weight in module.parameters(recurse=False)
            if weight.requires_grad
        ]
        torch._foreach_clamp_min_(weights, -self.bound)
        torch._foreach_clamp_max_(weights, self.bound)
