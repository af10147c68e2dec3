"""A convolution that pads by reflection without leaving the run's precision."""

from __future__ import annotations

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
