"""Convolutions: one whose second derivatives are fast, and one that pads by reflection in the run's precision."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReflectConv2d(nn.Conv2d):
    """`nn.Conv2d(..., padding_mode="reflect")`, faster under autocast.

    Autocast on a CPU reflects in float32, so PyTorch's own goes from bfloat16 to float32 and back around every padding.
    The weights and their names are those of `nn.Conv2d`.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd height and width of the kernel; the size of the pictures is kept.
        bias: Whether there is a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, out_channels, H, W]`; height and width must exceed half the kernel."""
        device, margin = features.device.type, self.kernel_size[0] // 2
        if torch.is_autocast_enabled(device):
            features = features.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            padded = F.pad(features, (margin, margin, margin, margin), mode="reflect")
        return F.conv2d(padded, self.weight, self.bias)


def same_conv(in_channels: int, out_channels: int, kernel_size: int, *, reflect: bool, bias: bool) -> nn.Conv2d:
    """A convolution that keeps height and width, padded by reflection or with zeros."""
    if reflect:
        return ReflectConv2d(in_channels, out_channels, kernel_size, bias)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0) -> Tensor:
    """As `torch.nn.functional.conv2d`, with gradients of gradients in half the time.

    A penalty on the gradient by the pictures needs its gradient by the weights. PyTorch takes that as a convolution
    whose kernel is as large as the picture; here it is what it is of any convolution. Under autocast, which penalties
    are never under, and in compiled networks it is PyTorch's own.

    Args:
        input: `[N, C, H, W]`.
        weight: `[out_channels, C, ...]`.
        bias: `[out_channels]`, or None.
        stride: In both directions.
        padding: With zeros, on all sides.
    """
    learned = torch.is_grad_enabled() and input.requires_grad and weight.requires_grad
    plain = input.is_meta or torch.compiler.is_compiling() or torch.is_autocast_enabled(input.device.type)
    if plain or not learned:
        return F.conv2d(input, weight, bias, stride, padding)
    return cast(Tensor, _Convolution.apply(input, weight, bias, stride, padding))


# The result, the gradient by the input and that by the weight are each linear in two of input, weight and upstream
# gradient. So the derivatives of one are the other two.


def _gradients(upstream: Tensor, input: Tensor, weight: Tensor, stride: int, padding: int, *which: bool) -> Any:
    return torch.ops.aten.convolution_backward.default(
        upstream, input, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*which, False]
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.place = stride, padding
        return F.conv2d(input, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input = _ByInput.apply(upstream, weight, input, *ctx.place) if ctx.needs_input_grad[0] else None
        by_weight = _ByWeight.apply(upstream, input, weight, *ctx.place) if ctx.needs_input_grad[1] else None
        by_bias = upstream.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return by_input, by_weight, by_bias, None, None


class _ByInput(torch.autograd.Function):
    """The gradient by an input, of which only the shape and the layout matter."""

    @staticmethod
    def forward(ctx: Any, upstream: Tensor, weight: Tensor, input: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(upstream, weight)
        ctx.place = stride, padding
        return cast(Tensor, _gradients(upstream, input, weight, stride, padding, True, False)[0])

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        upstream, weight = ctx.saved_tensors
        by_upstream = _Convolution.apply(direction, weight, None, *ctx.place) if ctx.needs_input_grad[0] else None
        by_weight = _ByWeight.apply(upstream, direction, weight, *ctx.place) if ctx.needs_input_grad[1] else None
        return by_upstream, by_weight, None, None, None


class _ByWeight(torch.autograd.Function):
    """The gradient by a weight, of which only the shape and the layout matter."""

    @staticmethod
    def forward(ctx: Any, upstream: Tensor, input: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(upstream, input)
        ctx.place = stride, padding
        return cast(Tensor, _gradients(upstream, input, weight, stride, padding, False, True)[1])

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        upstream, input = ctx.saved_tensors
        by_upstream = _Convolution.apply(input, direction, None, *ctx.place) if ctx.needs_input_grad[0] else None
        by_input = _ByInput.apply(upstream, direction, input, *ctx.place) if ctx.needs_input_grad[1] else None
        return by_upstream, by_input, None, None, None
