"""Locally masked convolution: each pixel has a mask of its own (Jain et al. 2020, arXiv 2006.12486).

A convolution is a matrix product with the columns of `F.unfold`. If each column is masked before, each pixel chooses
which of its neighbours it sees, and so any order of the pixels can be an order of generation; see `local_masks`.

In a raster all pixels have one mask, up to taps outside the picture, and in an S-curve two: so few ordinary
convolutions, with masked weights, do the same faster; see `kinds_of_masks`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.masked import Matrix
from lightning_gen.layers.orders import odd_pair, pair


class KindsOfMasks(NamedTuple):
    """Masks for all pixels, of which few differ."""

    kinds: Tensor  # bool [K, kh, kw]
    places: Tensor  # bool [K, H, W]: the pixels of each kind; every pixel is of one


def kinds_of_masks(
    mask: Tensor, height: int, width: int, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1,
    *, most: int,
) -> KindsOfMasks | None:  # fmt: skip
    """The kinds of masks that there are, if they are few. Taps outside the picture see zeros, so theirs do not matter.

    The mask is one of `local_masks`, of at most 63 taps, with the sizes, kernel and dilation that it was made with.
    None is the result where it takes more than `most` kinds.
    """
    kernel, spacing = pair(kernel_size), pair(dilation)
    ones = torch.ones(1, 1, height, width, device=mask.device)
    inside = F.unfold(ones, kernel, spacing, _padding(kernel, spacing))[0] > 0
    digits = 2 ** torch.arange(len(mask), device=mask.device)
    kinds: list[tuple[int, int]] = []  # for each the taps that are seen, and those of which that is known, as digits
    which = []
    for seen, known in zip(*((digits @ taps.long()).tolist() for taps in (mask & inside, inside)), strict=True):
        fits = (number for number, (others, cared) in enumerate(kinds) if not (others ^ seen) & cared & known)
        number = next(fits, len(kinds))
        if number == len(kinds):
            if number == most:
                return None
            kinds.append((0, 0))
        kinds[number] = kinds[number][0] | seen, kinds[number][1] | known
        which.append(number)
    numbers = torch.tensor(which, device=mask.device).view(1, height, width)
    seen_by = torch.tensor([seen for seen, _ in kinds], device=mask.device)
    return KindsOfMasks(
        (seen_by[:, None] & digits != 0).unflatten(1, kernel),
        numbers == torch.arange(len(kinds), device=mask.device).view(-1, 1, 1),
    )


class LocallyMaskedConv2d(nn.Conv2d):
    """A convolution that keeps height and width, with a mask for each pixel, the same for all channels.

    Weights, their names and their initialisation are those of `nn.Conv2d`, and with a mask that is True everywhere it
    is that layer, padded with zeros. It keeps its input for the backward pass, not the columns, which are `kh * kw`
    times as large: they are made again. So one layer's columns are all that ever exist at a time.

    Deviation from the paper: no weights for the mask itself, which the authors' code offers and leaves off.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd height and width of the kernel, or one for both.
        dilation: Distance of its taps, in rows and columns, or one for both.
        bias: Whether there is a bias.

    Raises:
        ValueError: If a side of the kernel is even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
    ) -> None:
        kernel, spacing = odd_pair(kernel_size), pair(dilation)
        padding = _padding(kernel, spacing)
        super().__init__(in_channels, out_channels, kernel, padding=padding, dilation=spacing, bias=bias)

    def forward(self, features: Tensor, mask: Tensor | KindsOfMasks) -> Tensor:  # type: ignore[override]
        """`[N, C, H, W]` to `[N, out_channels, H, W]`.

        Args:
            features: `[N, C, H, W]`.
            mask: `[kh * kw, H * W]`, or `[N, kh * kw, H * W]` for a mask of its own for each picture. Bool, True for
                what is seen; what is not may even be NaN. Or real factors, which get no gradient. Or few kinds of
                masks, with which all features must be finite.

        Raises:
            ValueError: If the mask has another shape.
        """
        if not isinstance(mask, Tensor):
            return self._of_kinds(features, mask)
        taps, pixels = self.kernel_size[0] * self.kernel_size[1], features.shape[2] * features.shape[3]
        if mask.shape[-2:] != (taps, pixels) or mask.shape[:-2] not in ((), features.shape[:1]):
            raise ValueError(
                f"The mask of features {list(features.shape)} must be [{taps}, {pixels}] or "
                f"[{len(features)}, {taps}, {pixels}], got {list(mask.shape)}."
            )
        weight, bias, device = self.weight, self.bias, features.device.type
        if torch.is_autocast_enabled(device):  # here, since the backward pass runs without autocast
            dtype = torch.get_autocast_dtype(device)
            features, weight, bias = features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        result = _MaskedProduct.apply(features, mask, weight, self.padding, self.dilation)
        result = result.unflatten(2, features.shape[2:])
        return result if bias is None else result + bias[:, None, None]

    def _of_kinds(self, features: Tensor, masks: KindsOfMasks) -> Tensor:
        """One convolution that gives what each kind sees, of which each pixel takes its own."""
        weight = torch.cat([self.weight * kind for kind in masks.kinds])
        every = F.conv2d(features, weight, None, 1, self.padding, self.dilation).chunk(len(masks.kinds), dim=1)
        result = every[0]
        for of_kind, place in zip(every[1:], masks.places[1:], strict=True):
            result = torch.where(place, of_kind, result)
        return result if self.bias is None else result + self.bias.to(result.dtype)[:, None, None]

    def matrix(self, taps: Tensor | None = None) -> Matrix:
        """Weight `[out, k * in]`, tap by tap, and bias, detached: for `at_pixel`.

        Args:
            taps: Indices of the taps of the kernel that are gathered, int64 `[k]`; None for all kh * kw.
        """
        weight = self.weight.detach().flatten(2)
        weight = weight if taps is None else weight[:, :, taps]
        return weight.mT.flatten(1), None if self.bias is None else self.bias.detach()


def local_taps(
    mask: Tensor, height: int, width: int, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1
) -> Tensor:
    """Where the taps lie that a mask leaves, for `lightning_gen.layers.masked.at_pixel`.

    The mask is one of `local_masks`, with the sizes, kernel and dilation that it was made with.

    Returns:
        Int64 `[H * W, kh * kw]`, flat indices of pixels, and H * W for a tap that is masked or outside the picture.
    """
    kernel, spacing = pair(kernel_size), pair(dilation)
    # From 1, so that the zeros around the picture are none of them; and float64, since unfold takes no integers.
    numbers = torch.arange(1, height * width + 1, dtype=torch.float64, device=mask.device).view(1, 1, height, width)
    columns = F.unfold(numbers, kernel, spacing, _padding(kernel, spacing))[0].long()
    return torch.where(mask & (columns > 0), columns - 1, height * width).T.contiguous()


def _padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of zeros that keep height and width."""
    return dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2)


class _MaskedProduct(torch.autograd.Function):
    """Weights times masked columns, `[N, out_channels, H * W]`, with columns that do not outlive a pass."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, mask: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(features, mask, weight)
        ctx.padding, ctx.dilation = padding, dilation
        columns = F.unfold(features, weight.shape[2:], dilation, padding)
        return _product(weight.flatten(1), _masked(columns, mask))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, mask, weight = ctx.saved_tensors
        kernel, by_features, by_weight = weight.shape[2:], None, None
        if ctx.needs_input_grad[0]:
            columns = _masked(_product(weight.flatten(1).T, gradient), mask)
            by_features = _fold(columns, features, kernel, ctx.padding, ctx.dilation)
            del columns  # before the next are made
        if ctx.needs_input_grad[2]:
            columns = _masked(F.unfold(features, kernel, ctx.dilation, ctx.padding), mask)
            by_weight = torch.bmm(gradient, columns.mT).sum(0).view(weight.shape)
        return by_features, None, by_weight, None, None


def _fold(
    columns: Tensor, features: Tensor, kernel: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Sums of columns, of the shape of the features."""
    if torch.is_grad_enabled():  # for gradients of gradients
        return F.fold(columns, features.shape[2:], kernel, dilation, padding)
    # F.fold asks for memory as large as the columns and keeps it for its result (PyTorch 2.15).
    result = columns.new_empty(features.shape)
    return torch.ops.aten.col2im.out(columns, features.shape[2:], kernel, dilation, padding, (1, 1), out=result)


def _masked(columns: Tensor, mask: Tensor) -> Tensor:
    """Columns `[N, C * kh * kw, H * W]` masked in place, so that there are none besides."""
    by_channel = columns.unflatten(1, (-1, mask.shape[-2]))
    mask = mask.unsqueeze(-3)
    if mask.dtype == torch.bool:
        by_channel.masked_fill_(~mask, 0)
    else:
        by_channel.mul_(mask)
    return columns


def _product(matrix: Tensor, columns: Tensor) -> Tensor:
    """`matrix @ columns` for one matrix and a batch of columns; `matmul` may copy the columns to make them one."""
    return torch.bmm(matrix.expand(len(columns), -1, -1), columns)
