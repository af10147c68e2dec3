"""Convolutions that see only the past of a raster: masked ones, and those of the vertical stack.

The past of a pixel is what lies above its row, or left of it in its row. Kernels hold no taps for rows below, which a
mask would only set to zero: a 7 x 7 kernel is one of 4 x 7.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MaskType = Literal["A", "B"]

Matrix = tuple[Tensor, Tensor | None]
"""Weight and bias as `F.linear` takes them."""


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

    def empty_map(self, batch: int, height: int, width: int, like: Tensor) -> Tensor:
        """Zeros `[N, in, height + top, left + width + right]`: an input with its margins, for `past`."""
        left, right, top, _ = self.margins
        return like.new_zeros(batch, self.in_channels, top + height, left + width + right)

    def past(self, padded: Tensor, row: int, column: int) -> Tensor:
        """What one output depends on, `[N, in * taps]`; nothing else of the map is touched, whatever it holds.

        Args:
            padded: As from `empty_map`.
            row: Of the output; that of the input with its margins is `row + height // 2`.
            column: Of the output.
        """
        height, width = self.kernel_size
        window = padded[:, :, row : row + height, column : column + width]
        return window.flatten(2)[:, :, : self.num_past].flatten(1)

    def matrix(self) -> Matrix:
        """Masked weight `[out, in * taps]` and bias: `F.linear(past, *matrix)` is one output of `forward`."""
        weight = self.masked_weight().flatten(2)[:, :, : self.num_past].flatten(1)
        return weight.detach(), None if self.bias is None else self.bias.detach()


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

    def empty_map(self, batch: int, height: int, width: int, like: Tensor) -> Tensor:
        """Zeros `[N, in, height + k // 2, width + 2 (k // 2)]`: an input with its margins, for `at_row`."""
        left, right, top, _ = self.margins
        return like.new_zeros(batch, self.in_channels, top + height, left + width + right)

    def at_row(self, padded: Tensor, row: int) -> Tensor:
        """One row of the output, `[N, out, 1, W]`, from a map as from `empty_map`."""
        return F.conv2d(padded[:, :, row : row + self.kernel_size[0]], self.weight, self.bias)


def shift_down(features: Tensor) -> Tensor:
    """Each row of `[N, C, H, W]` moved to the one below, zeros in the first: what holds row r is seen from r + 1 on."""
    return F.pad(features[:, :, :-1], (0, 0, 1, 0))


def gated(features: Tensor) -> Tensor:
    """The gate: of channels `[N, 2F, ...]`, tanh of the first half times sigmoid of the second (1606.05328, eq. 2)."""
    values, gates = features.chunk(2, dim=1)
    return values.tanh() * gates.sigmoid()


def _check_odd(height: int, width: int) -> None:
    if min(height, width) < 1 or height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"Kernels must be odd, so that a pixel lies at their centre; got {height} x {width}.")
