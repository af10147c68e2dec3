"""Layers with equalized learning rate (Progressive GAN, 1710.10196, section 4.1)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.convolution import conv2d
from lightning_gen.layers.resampling import downsampling_conv2d, upsampling_conv2d

Resample = Literal["none", "up", "down"]


class EqualizedLinear(nn.Module):
    """A linear layer whose weights are drawn from N(0, 1) and scaled where they are used.

    Adam's steps have about the same length for all weights, whatever their scale. With weights of one deviation in all
    layers, and gain / sqrt(fan in) as a factor in each, all layers learn at the same speed.

    Args:
        in_features: Width of the input, the fan in.
        out_features: Width of the result.
        gain: Deviation of the result for an input of deviation 1; sqrt(2) makes up for a ReLU.
        bias: Whether there is a bias, which starts at 0.
        lr_multiplier: How fast the layer learns beside others: weights are drawn from N(0, 1 / lr_multiplier^2), and
            they and the bias are multiplied by it where they are used. 0.01 in StyleGAN's mapping (1812.04948).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gain: float = math.sqrt(2),
        bias: bool = True,
        lr_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.scale, self.lr_multiplier = gain / math.sqrt(in_features) * lr_multiplier, lr_multiplier

    def forward(self, features: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        bias = self.bias if self.bias is None or self.lr_multiplier == 1 else self.bias * self.lr_multiplier
        return F.linear(features, self.weight * self.scale, bias)


class EqualizedConv2d(nn.Module):
    """A convolution with zero padding, scaled as `EqualizedLinear` is; with a doubling before it or a mean after it.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd height and width of the kernel; 3 with `resample`.
        gain: As for `EqualizedLinear`; the fan in is in_channels * kernel_size^2.
        bias: Whether there is a bias, which starts at 0.
        resample: "up" doubles the picture by repetition first, "down" takes the mean of 2 x 2 blocks afterwards, both
            in one step with the convolution, as `UpsamplingConv2d` and `DownsamplingConv2d` do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        gain: float = math.sqrt(2),
        bias: bool = True,
        resample: Resample = "none",
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale, self.resample = gain / math.sqrt(in_channels * kernel_size**2), resample

    def forward(self, features: Tensor) -> Tensor:
        """`[N, in_channels, H, W]` to `[N, out_channels, H, W]`, or twice or half as high and wide."""
        weight = self.weight * self.scale
        if self.resample == "up":
            return upsampling_conv2d(features, weight, self.bias)
        if self.resample == "down":
            return downsampling_conv2d(features, weight, self.bias)
        return conv2d(features, weight, self.bias, padding=weight.shape[-1] // 2)
