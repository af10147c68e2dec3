"""Activations that PyTorch does not have."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def concat_elu(features: Tensor, dim: int = 1) -> Tensor:
    """ELU of the features and of their negatives, side by side (PixelCNN++, 1701.05517).

    Args:
        features: Of any shape.
        dim: The axis that becomes twice as long.
    """
    # In the few features of single pixels the calls cost more than the exponentials.
    if features.device.type == "cpu" and features.ndim > 2 and not torch.compiler.is_compiling():
        if torch.is_grad_enabled() and features.requires_grad:
            return cast(Tensor, _ConcatELU.apply(features, dim))
        return _concat_elu(features, dim)
    return F.elu(torch.cat([features, -features], dim))


def _concat_elu(features: Tensor, dim: int) -> Tensor:
    """With one exponential for both halves: elu(x) = max(x, exp(-|x|) - 1).

    And not with expm1, of which PyTorch makes elu, and which can cost more on a CPU than a convolution.
    """
    negated = -features
    below = torch.minimum(features, negated)
    below = below.to(torch.promote_types(below.dtype, torch.float32)).exp_().sub_(1).to(features.dtype)
    return torch.cat([torch.maximum(features, below), torch.maximum(negated, below)], dim)


class _ConcatELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, dim: int) -> Tensor:
        result = _concat_elu(features, dim)
        ctx.save_for_backward(result)
        ctx.dim = dim
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        plus, minus = torch.ops.aten.elu_backward(gradient, 1, 1, 1, True, result).chunk(2, ctx.dim)
        return plus - minus, None
