"""Convolutions whose kernels lie above a pixel, or above and to its left (PixelCNN++, arXiv 1701.05517, section 2.5).

They reach to the pixel itself, never below or to the right of it in its row, so none has a mask. A stack of them sees
the past alone if what goes in is shifted by one: down for the first kind, which sees the whole of a row, to the right
for the second. All have weight norm.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_gen.layers.weight_norm import WeightNormConv2d, WeightNormConvTranspose2d


class DownShiftedConv2d(WeightNormConv2d):
    """A kernel that ends in the pixel's row, with the pixel in the middle of that row.

    With a stride of 2, pixel (i, j) of the output belongs to (2i, 2j) of the input. Arguments are `WeightNormConv2d`'s;
    nothing is padded but for the past.

    Raises:
        ValueError: If a size is below 1 or the width even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = (2, 3),
        *,
        stride: int = 1,
        init_scale: float = 1.0,
    ) -> None:
        height, width = kernel_size
        if width % 2 == 0:
            raise ValueError(f"A pixel lies in the middle of its row only if the kernel's width is odd, got {width}.")
        padding = (height - 1, width // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, init_scale=init_scale)

    def transform(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[N, in, H, W]` to `[N, out, H / stride, W / stride]`, both rounded up."""
        # The convolution pads below too. To cut off what comes of that is cheaper than to pad a copy of the features.
        rows = -(-features.shape[2] // self.stride)
        return super().transform(features, weight, bias)[:, :, :rows]


class DownRightShiftedConv2d(WeightNormConv2d):
    """A kernel with the pixel at its lower right corner; strides, arguments and errors as in `DownShiftedConv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = (2, 2),
        *,
        stride: int = 1,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, init_scale=init_scale)

    def transform(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[N, in, H, W]` to `[N, out, H / stride, W / stride]`, both rounded up."""
        height, width = self.kernel_size
        return super().transform(F.pad(features, (width - 1, 0, height - 1, 0)), weight, bias)


class DownShiftedConvTranspose2d(WeightNormConvTranspose2d):
    """A kernel of 2 x 3 at twice the resolution: (i, j) leads to rows 2i and 2i + 1 of columns 2j - 1 to 2j + 1."""

    def __init__(self, in_channels: int, out_channels: int, *, init_scale: float = 1.0) -> None:
        super().__init__(
            in_channels, out_channels, (2, 3), stride=2, padding=(0, 1), output_padding=(0, 1), init_scale=init_scale
        )


class DownRightShiftedConvTranspose2d(WeightNormConvTranspose2d):
    """A kernel of 2 x 2 at twice the resolution: (i, j) leads to rows 2i and 2i + 1 of columns 2j and 2j + 1."""

    def __init__(self, in_channels: int, out_channels: int, *, init_scale: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, (2, 2), stride=2, init_scale=init_scale)


def shift_right(features: Tensor) -> Tensor:
    """Each column of `[N, C, H, W]` moved to the next, zeros in the first."""
    return F.pad(features[:, :, :, :-1], (1, 0))
