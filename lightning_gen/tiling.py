"""Pictures too large for a network at once: in overlapping tiles, whose results are blended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(
    change: Callable[[Tensor], Tensor], images: Tensor, tile: int, *, multiple: int = 1, overlap: int | None = None
) -> Tensor:
    """What a function makes of pictures, computed tile by tile.

    Of the overlap of two tiles, the three eighths next to the end of a tile are context only: the other tile decides
    there, and between them the one fades into the other. So where the function is local, with a receptive field that
    reaches no further than that, the result is that for the whole picture, up to rounding.

    Args:
        change: From pictures `[N, C, H, W]` to float ones of the same shape.
        images: `[N, C, H, W]`. Those that fit into one tile are given to `change` as they are.
        tile: Height and width of tiles.
        multiple: Of which the places are where tiles begin, such as the stride of a network.
        overlap: Pixels that neighbouring tiles have in common, at least; None means a quarter of a tile.

    Returns:
        float32 `[N, C, H, W]`.

    Raises:
        ValueError: If a tile is less than twice the multiple, or the overlap not between 0 and half a tile.
    """
    overlap = tile // 4 if overlap is None else overlap
    if tile < 2 * multiple or not 0 <= overlap <= tile // 2:
        raise ValueError(
            f"A tile must have at least {2 * multiple} pixels a side here, twice {multiple}, and share at most half of "
            f"them with the next one; got {tile}, of which {overlap} are shared."
        )
    height, width = images.shape[-2:]
    if max(height, width) <= tile:
        return change(images)
    total = torch.zeros_like(images, dtype=torch.float32)
    weights = total.new_zeros(height, width)
    for top in _starts(height, tile, overlap, multiple):
        for left in _starts(width, tile, overlap, multiple):
            place = (Ellipsis, slice(top, min(top + tile, height)), slice(left, min(left + tile, width)))
            result = change(images[place])
            weight = (_weights(place[1], height, overlap)[:, None] * _weights(place[2], width, overlap)).to(total)
            total[place] += weight * result
            weights[place] += weight
    return total / weights


def _starts(length: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Where tiles begin along one axis; the last ends with the picture."""
    if length <= tile:
        return [0]
    step = max((tile - overlap) // multiple * multiple, multiple)
    last = -(-(length - tile) // multiple) * multiple
    return [*range(0, last, step), last]


def _weights(place: slice, length: int, overlap: int) -> Tensor:
    """How much a tile decides, `[size]` in `[0, 1]`: less towards its ends, unless the picture ends there, too."""
    size = place.stop - place.start
    context, fade = 3 * overlap // 8, max(overlap - 2 * (3 * overlap // 8), 1)
    ramp = ((torch.arange(size) - context + 0.5) / fade).clamp(0, 1)
    first = ramp if place.start > 0 else torch.ones(size)
    last = ramp.flip(0) if place.stop < length else torch.ones(size)
    return first * last
