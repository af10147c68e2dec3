"""Orders in which the pixels of a picture are generated, and the local masks that follow from them.

An order of a height x width picture is an int64 tensor `[H * W]` on the CPU, a permutation: its entry i is the flat
index (row * width + column) of the pixel that is generated as the i-th. The masks turn a convolution into one that
looks only at pixels generated before, in whatever order: locally masked convolution (Jain, Abbeel and Pathak 2020,
arXiv 2006.12486).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.outlines import with_values

Curve = Callable[[int, int], Tensor]
"""Gives the order of a picture of some height and width."""

# The curves are made in numpy, so that a default device, say "meta", takes no part in them.
Coordinates = npt.NDArray[np.int64]


def raster_order(height: int, width: int) -> Tensor:
    """Row by row, each from left to right.

    Raises:
        ValueError: If a side is below 1, here and in all other orders.
    """
    return torch.from_numpy(_grid(height, width).flatten())


def s_curve_order(height: int, width: int) -> Tensor:
    """Row by row, alternately from left to right and from right to left; each step is to a neighbour."""
    grid = _grid(height, width)
    grid[1::2] = grid[1::2, ::-1].copy()
    return torch.from_numpy(grid.flatten())


def hilbert_order(height: int, width: int) -> Tensor:
    """The Hilbert curve, from the top left to the top right corner; each step is to a neighbour.

    Raises:
        ValueError: If the picture is not square or its side is no power of two.
    """
    _grid(height, width)
    if height != width or height & (height - 1):
        raise ValueError(
            f"The Hilbert curve needs a square whose side is a power of two, got {height} x {width}; "
            "generalized_hilbert_order takes any rectangle."
        )
    return generalized_hilbert_order(height, width)


def generalized_hilbert_order(height: int, width: int) -> Tensor:
    """A curve like Hilbert's for any rectangle; each step is to a neighbour, up, down, left or right.

    It starts in the top left corner and ends in the other corner of the longer side (of the upper side in a square).
    Where the longer side is odd and the shorter even, no such path exists: on a chessboard a path through an even
    number of squares ends on the other colour, but these two corners have the same. There the curve goes along an even
    part of the longer side and then through the rest, across the picture, so it ends on the opposite longer side. No
    rectangle needs a diagonal step. On squares whose side is a power of two it is the Hilbert curve.

    It divides as `gilbert` of J. Červený does, with other choices for odd sides.
    """
    grid = _grid(height, width)
    length, breadth = max(height, width), min(height, width)
    if length % 2 and breadth % 2 == 0:
        straight = (length - breadth) // 2 * 2
        around = _path(breadth, length - straight)[:, ::-1] + np.array([straight, 0])
        path = np.concatenate([_path(straight, breadth), around]) if straight else around
    else:
        path = _path(length, breadth)
    along, across = path.T
    return torch.from_numpy(grid[across, along] if width >= height else grid[along, across])


def random_order(height: int, width: int, seed: int = 0) -> Tensor:
    """A random permutation, a function of the sizes and the seed alone."""
    return torch.randperm(_grid(height, width).size, generator=torch.Generator().manual_seed(seed), device="cpu")


def transformed(
    order: Tensor,
    height: int,
    width: int,
    *,
    transpose: bool = False,
    flip_rows: bool = False,
    flip_columns: bool = False,
) -> Tensor:
    """The order after one of the 8 symmetries: transposed first, then flipped.

    Args:
        order: Of a height x width picture, `[H * W]`.
        height: Of the picture that the order is of.
        width: Of the picture that the order is of.
        transpose: Rows become columns; the result is an order of a width x height picture.
        flip_rows: The top becomes the bottom.
        flip_columns: The left becomes the right.

    Raises:
        ValueError: If the order is none of such a picture.
    """
    order = as_order(order, height, width)
    rows, columns = order // width, order % width
    if transpose:
        rows, columns, height, width = columns, rows, width, height
    if flip_rows:
        rows = height - 1 - rows
    if flip_columns:
        columns = width - 1 - columns
    return rows * width + columns


def symmetries(curve: Curve, height: int, width: int) -> list[Tensor]:
    """The 8 orders of a height x width picture that a curve gives by flips and transposition; the curve's own is first.

    A transposed one is the curve of the width x height picture, so that all are orders of the same rectangle. Where
    a curve has symmetries of its own, some are equal: in a picture of a single row there are 2 rasters.

    Args:
        curve: Such as `s_curve_order`.
        height: Of the picture.
        width: Of the picture.
    """
    orders = []
    for transpose, flip_rows, flip_columns in product((False, True), repeat=3):
        sizes = (width, height) if transpose else (height, width)
        orders.append(
            transformed(curve(*sizes), *sizes, transpose=transpose, flip_rows=flip_rows, flip_columns=flip_columns)
        )
    return orders


def as_order(order: Tensor | Sequence[int], height: int, width: int) -> Tensor:
    """An order of one's own, checked.

    Args:
        order: Flat indices (row * width + column) of all pixels, `[H * W]`, in the order of their generation.
        height: Of the picture.
        width: Of the picture.

    Returns:
        The order as int64 `[H * W]`, on the device that it is on.

    Raises:
        ValueError: If it is no permutation of the pixels; the message says which pixel is missing or comes twice.
    """
    count = _grid(height, width).size
    order = torch.as_tensor(order, device=order.device if isinstance(order, Tensor) else "cpu")
    if order.ndim != 1 or order.is_floating_point() or order.is_complex() or order.dtype == torch.bool:
        raise ValueError(
            f"An order is a list of flat pixel indices, integers [{count}], got {order.dtype} {list(order.shape)}."
        )
    order = order.long()
    strangers = order[(order < 0) | (order >= count)]
    if len(strangers):
        raise ValueError(
            f"The order has the index {int(strangers[0])}; those of a {height} x {width} picture are 0 to {count - 1}."
        )
    visits = torch.bincount(order, minlength=count)
    faults = []
    for fault, pixels in (("is missing", visits == 0), ("comes more than once", visits > 1)):
        indices = pixels.nonzero().flatten().tolist()
        if indices:
            others = f" (and {len(indices) - 1} more)" if len(indices) > 1 else ""
            faults.append(f"pixel (row {indices[0] // width}, column {indices[0] % width}){others} {fault}")
    if faults:
        raise ValueError(
            f"The order is no permutation of the {count} pixels of a {height} x {width} picture: {'; '.join(faults)}."
        )
    return order


def hole_last(order: Tensor, known: Tensor) -> Tensor:
    """The order that takes the known pixels first and then the hole, each in the order given.

    So a model that completes a picture in this order has all known pixels as context, whatever the hole's shape.

    Args:
        order: `[H * W]`.
        known: Bool `[H, W]`, False in the hole; it may be known everywhere.

    Raises:
        ValueError: If the mask is not bool `[H, W]`, has another number of pixels than the order, or nothing is known.
    """
    if known.dtype != torch.bool or known.ndim != 2:
        raise ValueError(f"The mask of known pixels must be bool [H, W], got {known.dtype} {list(known.shape)}.")
    height, width = known.shape
    if order.numel() != height * width:
        raise ValueError(f"The order is of {order.numel()} pixels, but the mask of known pixels is {height} x {width}.")
    order = as_order(order, height, width)
    if not known.any():
        raise ValueError("No pixel is known, so there is nothing to complete; `sample` draws whole pictures.")
    is_known = known.flatten().to(order.device)[order]
    return torch.cat([order[is_known], order[~is_known]])


def local_masks(
    order: Tensor,
    height: int,
    width: int,
    kernel_size: int | tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    *,
    mask_type: Literal["A", "B"],
) -> Tensor:
    """Which taps of a kernel, centred at each pixel, lie on pixels generated before it.

    The layout is that of `F.unfold` with a padding of `dilation * (kernel_size // 2)`: of its columns
    `[N, C * kh * kw, H * W]`, seen as `[N, C, kh * kw, H * W]`, the masks choose those that a convolution may use.

    Args:
        order: `[H * W]`; a permutation, see `as_order`.
        height: Of the picture.
        width: Of the picture.
        kernel_size: Odd height and width of the kernel, or one for both.
        dilation: Distance of its taps, in rows and columns, or one for both.
        mask_type: "A" leaves the centre out, for the first layer; "B" lets it in, for those that follow.

    Returns:
        Bool `[kh * kw, H * W]` on the order's device; False also where a tap lies outside the picture.

    Raises:
        ValueError: If the order is no permutation, a kernel side is even, a dilation below 1, or the type another.
    """
    order = as_order(order, height, width)
    kernel, spacing = odd_pair(kernel_size), pair(dilation)
    if min(spacing) < 1:
        raise ValueError(f"The dilation must be at least 1, got {dilation}.")
    if mask_type not in ("A", "B"):
        raise ValueError(f'mask_type must be "A" (without the centre) or "B" (with it), got {mask_type!r}.')
    time = order.argsort().double()  # exact far beyond any picture, and a type that unfold takes
    rows, columns = (step * (side // 2) for step, side in zip(spacing, kernel, strict=True))
    # What lies outside the picture is never generated.
    padded = F.pad(time.view(1, 1, height, width), (columns, columns, rows, rows), value=torch.inf)
    masks = F.unfold(padded, kernel, dilation=spacing)[0] < time
    if mask_type == "B":
        masks[len(masks) // 2] = True
    return masks


def _grid(height: int, width: int) -> Coordinates:
    """The flat indices of all pixels, `[H, W]`."""
    if height < 1 or width < 1:
        raise ValueError(f"Height and width of a picture must be at least 1, got {height} x {width}.")
    return np.arange(height * width, dtype=np.int64).reshape(height, width)


def pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    """The height and the width of something of which one number is given, or both."""
    return (sides, sides) if isinstance(sides, int) else sides


def odd_pair(kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    """The height and the width of a kernel; a `ValueError` if one is even or below 1."""
    height, width = pair(kernel_size)
    if min(height, width) < 1 or not height % 2 or not width % 2:
        raise ValueError(f"A kernel has its pixel at the centre only if its sides are odd, got {kernel_size}.")
    return height, width


@lru_cache(maxsize=1024)
def _path(length: int, breadth: int) -> Coordinates:
    """A path of steps to neighbours from (0, 0) to (length - 1, 0) through a whole rectangle.

    Positions (along, across), `[length * breadth, 2]`. Such a path exists if length is even or breadth odd, and length
    is above 1 or breadth is 1. All its parts are of that kind too, since the halves are even.
    """
    if breadth == 1:
        path = np.stack([np.arange(length), np.zeros(length, dtype=np.int64)], axis=1)
    elif 2 * length > 3 * breadth:  # a long one: two, one after the other
        half = _even_half(length)
        path = np.concatenate([_path(half, breadth), _path(length - half, breadth) + np.array([half, 0])])
    else:  # up on the left, over the whole top, down on the right
        rise, left = _even_half(breadth), length // 2
        up = _path(rise, left)[:, ::-1]
        over = _path(length, breadth - rise) + np.array([0, rise])
        down = np.array([length - 1, rise - 1]) - _path(rise, length - left)[:, ::-1]
        path = np.concatenate([up, over, down])
    path.setflags(write=False)  # it is shared by all that ask
    return path


def _even_half(side: int) -> int:
    """The even number next to the half, or 1 for 2."""
    return max(1, 2 * round(side / 4))


CurveName = Literal["raster", "s_curve", "hilbert", "generalized_hilbert", "random"]
CURVES: dict[CurveName, Curve] = {
    "raster": raster_order,
    "s_curve": s_curve_order,
    "hilbert": hilbert_order,
    "generalized_hilbert": generalized_hilbert_order,
    "random": random_order,
}


@with_values()
def orders_of(orders: CurveName | list[list[int]], num_orders: int, height: int, width: int) -> list[Tensor]:
    """The orders that a curve's name and a number, or lists of pixels, stand for.

    Raises:
        ValueError: If the curve is unknown or does not fit the sizes, the number is none of 1, 2, 4 and 8, or there is
            no list.
    """
    if not isinstance(orders, str):
        if not orders:
            raise ValueError("orders must name a curve, or be one or more lists of all pixels; got an empty list.")
        return [torch.as_tensor(order) for order in orders]
    if orders not in CURVES:
        raise ValueError(f"orders must be one of {', '.join(CURVES)}, or lists of all pixels; got {orders!r}.")
    if num_orders not in (1, 2, 4, 8):
        raise ValueError(f"num_orders must be 1, 2, 4 or 8, got {num_orders}.")
    if orders == "random":
        return [random_order(height, width, seed) for seed in range(num_orders)]
    # Flips of columns vary fastest, so the first two would both begin at the top.
    all_orders = symmetries(CURVES[orders], height, width)
    return [all_orders[place] for place in (0, 2, 1, 3, 4, 5, 6, 7)[:num_orders]]
