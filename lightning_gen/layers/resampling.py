"""Convolutions that double or halve the picture with fewer multiplications than the two steps take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.convolution import conv2d


class UpsamplingConv2d(nn.Conv2d):
    """Nearest-neighbour doubling, then a 3 x 3 convolution with zero padding.

    After the doubling, each 3 x 3 patch holds only 2 x 2 different pixels. So the four pixels that grow from one are
    four 2 x 2 convolutions of the small picture, with sums of the kernel's rows and columns: 16 multiplications where
    the two steps take 36. On a CPU this is done, up to 1.7 times as fast; on a GPU, where more and smaller kernels
    need not pay, it is the two steps. The parameters are those of the 3 x 3 convolution.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, out_channels, 2 H, 2 W]`."""
        return upsampling_conv2d(input, self.weight, self.bias)


class DownsamplingConv2d(nn.Conv2d):
    """A 3 x 3 convolution with zero padding, then the mean of every 2 x 2 block; an odd last row or column is dropped.

    Both are linear, so they are one convolution of stride 2: the mean of the 3 x 3 kernel at the four places of a block
    is a 4 x 4 kernel. It takes 16 multiplications where the two steps take 36, and no map of full size lies in between;
    on a CPU it is 2.2 times as fast. The parameters are those of the 3 x 3 convolution.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, out_channels, H // 2, W // 2]`."""
        return downsampling_conv2d(input, self.weight, self.bias)


def upsampling_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `UpsamplingConv2d` does it, with weights `[out_channels, C, 3, 3]` that are given."""
    if input.device.type != "cpu":
        return F.conv2d(F.interpolate(input, scale_factor=2.0), weight, bias, padding=1)
    height, width = input.shape[-2:]
    padded = F.pad(input, (1, 1, 1, 1))
    rows = []
    for top, row_kernel in enumerate(_phases(weight, dim=2)):
        row = []
        for left, kernel in enumerate(_phases(row_kernel, dim=3)):
            window = padded[:, :, top : top + height + 1, left : left + width + 1]
            row.append(F.conv2d(window, kernel, bias).permute(0, 2, 3, 1))
        rows.append(torch.stack(row, dim=3))  # [N, H, W, 2, C]
    interleaved = torch.stack(rows, dim=2).reshape(len(input), 2 * height, 2 * width, len(weight))
    return interleaved.permute(0, 3, 1, 2)


def downsampling_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `DownsamplingConv2d` does it, with weights `[out_channels, C, 3, 3]` that are given."""
    return conv2d(input, _averaged(weight), bias, stride=2, padding=1)


def _averaged(kernel: Tensor) -> Tensor:
    """`[O, C, 3, 3]` to the mean of it at the four places of a block, `[O, C, 4, 4]`, laid out alike.

    As one product with a 9 x 16 matrix, since kernels of many channels are far larger than small pictures.
    """
    basis = F.pad(torch.eye(9, dtype=kernel.dtype, device=kernel.device).view(9, 3, 3), (1, 1, 1, 1))
    rows = basis[:, 1:] + basis[:, :-1]
    places = (rows[..., 1:] + rows[..., :-1]).flatten(1) / 4
    # Autocast would round the weights first; meta knows of none.
    with torch.autocast("cpu" if kernel.is_meta else kernel.device.type, enabled=False):
        if kernel.is_contiguous():
            return (kernel.flatten(2) @ places).unflatten(2, (4, 4))
        return (places.T @ kernel.permute(0, 2, 3, 1).flatten(1, 2)).unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def _phases(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps on a doubled line as two on the line itself: for the even pixels, and for the odd ones."""
    first, middle, last = kernel.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
