"""Convolutions that see only the past of a raster: masked ones, and those of the vertical stack.

The past of a pixel is what lies above its row, or left of it in its row. Kernels hold no taps for rows below, which a
mask would only set to zero: a 7 x 7 kernel is one of 4 x 7.

For sampling, features are kept as `[N, H * W + 1, F]`, the pixels and a last row of zeros, which stands for all that
lies outside the picture. Tables of taps say which of them an output gathers, and `at_pixel` multiplies them by the
layer's `matrix`. The vertical stack does the same with whole rows of pixels, `at_row`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.outlines import with_values

MaskType = Literal["A", "B"]

Matrix = tuple[Tensor, Tensor | None]
"""Weight and bias as `F.linear` takes them, or `F.conv2d`."""


class MaskedConv2d(nn.Conv2d):
    """Convolution of the past of a raster, with channels in order too (1601.06759, section 3.4).

    Each feature belongs to one channel of the picture: feature i to channel i modulo `image_channels`, which splits
    them as evenly as can be. At the pixel itself a feature of channel c sees those of channels before c and, under mask
    B, of c itself: R nothing, G only R, B both R and G. Mask A belongs to the layer that sees the picture, mask B to
    all others. All features see all earlier pixels.

    The mask is applied in `forward`: where it hides a weight, that may be any number, and its gradient is zero. A mask
    that would hide nothing is None.

    Deviations: features of a channel are not neighbours; the paper leaves that open. Taps of rows below are not stored,
    so the default initialisation takes no account of them.

    Args:
        in_channels: Features that come in; the image's own channels for the first layer.
        out_channels: Features that come out.
        kernel_size: Odd, or odd (height, width), of the whole kernel with its future. The weight is
            `[out, in, height // 2 + 1, width]`, and `[out, in, 1, width // 2 + 1]` for height 1.
        mask_type: "A" or "B".
        image_channels: C, of the picture.
        out_parts: The outputs are so many equal parts, such as the halves of a gate, each of which is split on its own.
        bias: Whether to add one.

    Raises:
        ValueError: If a size is below 1, the kernel even, the mask neither "A" nor "B", or the outputs cannot be
            divided into their parts.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: MaskType,
        image_channels: int = 1,
        *,
        out_parts: int = 1,
        bias: bool = True,
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        _check_odd(height, width)
        if mask_type not in ("A", "B"):
            raise ValueError(f'mask_type must be "A" (for the layer that sees the picture) or "B", got {mask_type!r}.')
        if min(in_channels, out_channels, image_channels, out_parts) < 1 or out_channels % out_parts:
            raise ValueError(
                "Channels must be at least 1 and out_channels divisible by out_parts; got "
                f"in_channels={in_channels}, out_channels={out_channels}, image_channels={image_channels} and "
                f"out_parts={out_parts}."
            )
        top, left = height // 2, width // 2
        right = left if top else 0  # the last row of the kernel has these taps only because the others do
        super().__init__(in_channels, out_channels, (top + 1, left + 1 + right), bias=bias)
        self.mask_type = mask_type
        self.image_channels = image_channels
        self.margins = (left, right, top, 0)
        self.num_past = top * width + left + 1
        mask = None
        if mask_type == "A" or image_channels > 1 or right:
            with with_values():
                sees = torch.arange(in_channels) % image_channels
                own = (torch.arange(out_channels) % (out_channels // out_parts) % image_channels)[:, None]
                mask = torch.ones(self.weight.shape, dtype=torch.bool)
                mask[:, :, top, left] = own > sees if mask_type == "A" else own >= sees
                mask[:, :, top, left + 1 :] = False
        self.register_buffer("mask", mask, persistent=False)  # a function of the arguments, as they are not stored

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"{super().extra_repr()}, mask_type={self.mask_type}, image_channels={self.image_channels}"

    def masked_weight(self) -> Tensor:
        """The weight that `forward` convolves with, `[out, in, *kernel]`."""
        return self.weight if self.mask is None else self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, out, H, W]`."""
        if any(self.margins):
            input = F.pad(input, self.margins)
        return F.conv2d(input, self.masked_weight(), self.bias)

    def taps(self, height: int, width: int) -> Tensor:
        """What one output depends on, for each pixel of a picture: int64 `[H * W, num_past]` for `at_pixel`.

        Flat indices in the order of the kernel, the pixel's own last, and H * W for taps outside the picture.
        """
        pixels = torch.arange(height * width, device=self.weight.device).view(height, width)
        rows, columns = self.kernel_size
        windows = F.pad(pixels, self.margins, value=height * width).unfold(0, rows, 1).unfold(1, columns, 1)
        return windows.flatten(2)[..., : self.num_past].flatten(0, 1).contiguous()

    def matrix(self) -> Matrix:
        """Masked weight `[out, num_past * in]`, tap by tap, and bias: for `at_pixel`, detached."""
        weight = self.masked_weight().detach().flatten(2)[:, :, : self.num_past]
        return weight.mT.flatten(1).contiguous(), None if self.bias is None else self.bias.detach()


class VerticalConv2d(nn.Conv2d):
    """Convolution of the rows above and the row itself, all columns alike, with no mask (1606.05328, section 2.2).

    The kernel is k // 2 + 1 rows by k columns. A stack of these sees all of the rows down to its own, without a blind
    spot. Its own row holds the future, so what leaves the stack goes through `shift_down`, once. Inside the stack
    nothing is shifted, or each layer would move what it sees one row up and so bring the blind spot back.

    Args:
        in_channels: Features that come in.
        out_channels: Features that come out.
        kernel_size: k, odd.
        bias: Whether to add one.

    Raises:
        ValueError: If the kernel is even.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        _check_odd(kernel_size, kernel_size)
        super().__init__(in_channels, out_channels, (kernel_size // 2 + 1, kernel_size), bias=bias)
        self.margins = (kernel_size // 2, kernel_size // 2, kernel_size // 2, 0)

    def forward(self, input: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, out, H, W]`."""
        return F.conv2d(F.pad(input, self.margins), self.weight, self.bias)

    def rows(self, height: int) -> Tensor:
        """Which rows of a picture one row of the output depends on, int64 `[H, k // 2 + 1]`: for `at_row`.

        From the top down, the row itself last, and H for those above the picture.
        """
        rows = F.pad(torch.arange(height, device=self.weight.device), (self.margins[2], 0), value=height)
        return rows.unfold(0, self.kernel_size[0], 1).contiguous()

    def kernel(self) -> Matrix:
        """Weight and bias for `at_row`, detached."""
        weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
        return weight, None if self.bias is None else self.bias.detach()


def at_pixel(known: Tensor, taps: Tensor, matrix: Matrix) -> Tensor:
    """A convolution at one pixel.

    Args:
        known: Features `[N, H * W + 1, F]`: the pixels and a last row of zeros.
        taps: The pixel's row of a table of taps, `[k]`.
        matrix: Weight `[out, k * F]`, tap by tap, and bias.

    Returns:
        `[N, out]`.
    """
    return F.linear(known.index_select(1, taps).flatten(1), *matrix)


def at_row(known: Tensor, rows: Tensor, kernel: Matrix) -> Tensor:
    """A vertical convolution at one row.

    Args:
        known: Features `[N, H + 1, W, F]`: the rows and a last one of zeros.
        rows: The row's own of `VerticalConv2d.rows`.
        kernel: Weight and bias.

    Returns:
        `[N, W, out]`.
    """
    seen = known.index_select(1, rows).movedim(3, 1)
    return F.conv2d(seen, *kernel, padding=(0, kernel[0].shape[3] // 2)).squeeze(2).mT


def shift_down(features: Tensor) -> Tensor:
    """Each row of `[N, C, H, W]` moved to the one below, zeros in the first: what holds row r is seen from r + 1 on."""
    return F.pad(features[:, :, :-1], (0, 0, 1, 0))


def gated(features: Tensor, dim: int = 1) -> Tensor:
    """The gate: of 2F channels, tanh of the first half times sigmoid of the second (1606.05328, eq. 2).

    Args:
        features: `[N, 2F, ...]`, or with the channels elsewhere.
        dim: Where they are.
    """
    values, gates = features.chunk(2, dim)
    return values.tanh() * gates.sigmoid()


def _check_odd(height: int, width: int) -> None:
    if min(height, width) < 1 or height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"Kernels must be odd, so that a pixel lies at their centre; got {height} x {width}.")
