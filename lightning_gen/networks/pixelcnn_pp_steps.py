"""What the steps of PixelCNN++ are made of: caches of its scales, and its weights in the form that a step takes.

In steps, features at a pixel of a coarser scale belong to the first of the pixels that it covers, and the scale has
its turn there: at every 2^s-th row and, within it, every 2^s-th column. At the start of a row u goes on by one row, at
each scale that has its turn, and all is added up that ul will get from above: from u, from its own row above, from
biases and the class. What remains for a pixel is two taps of each kernel of ul, its own and the one to its left. Those
to the left are known for all layers beforehand, so that they are one batched product; then the pixel's own tap follows,
layer after layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.layers.activation import concat_elu
from lightning_gen.networks.stepping import neighbours


@dataclass(frozen=True, eq=False)
class PixelCNNPPCache:
    """What is known of pictures that are generated pixel by pixel, and all that a step needs of the weights.

    The F features of stream ul are 2 F here, since each x comes with -x. The weights give both, which costs one call
    less than to negate, and concat_elu of x is elu of the two.

    Args:
        images: `[N, C, H, W]`, a view of the inputs.
        inputs: `[N, H * W + 1, C + 1]`: the pixels, each with a one, and a last row of zeros.
        start: What ul gets from the rows above at the present row, `[W, N, 2 F]`.
        levels: Of each scale, the finest first.
        labels: Of the pictures.
        places: See `lightning_gen.networks.stepping.places_of`.
        taps: See `step_tables`, as the next two.
        slots: Of rows.
        indices: Of pixels.
        first_row: Weights that a row starts with.
        first_pixel: Weights that a pixel starts with.
        last: Weights and bias of the parameters.
    """

    images: Tensor
    inputs: Tensor
    start: Tensor
    levels: list[LevelCache]
    labels: Tensor | None
    places: Tensor
    taps: Tensor
    slots: Tensor
    indices: Tensor
    first_row: Tensor
    first_pixel: Tensor
    last: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class LevelWeights:
    """The weights of one scale, in the order of its layers.

    There are L layers that look beyond their pixel: the first convolutions of the K blocks, up and down, then the one
    that leads to the coarser scale, if there is one, and the second convolutions.

    Args:
        above_left: Of ul, the tap to the left above, `[L, 2 F, 2 F]`.
        above: The tap above, of this shape.
        left: The tap to the left, of this shape.
        own: The pixel's own tap, L matrices `[2 F, 2 F]`, or `[2 F, 4 F]` of second convolutions.
        bias: `[L, w * N, 2 F]`, or `[L, 1, 2 F]` without labels.
        from_u: Shortcuts from u in all blocks, `[K, 2 F, 2 F]`.
        from_ul: Shortcuts from ul in the blocks on the way down, `[D, 2 F, 2 F]`.
        tiles: What leads from the coarser scale to the 4 pixels, `[4, F, 2 F]`, and its bias; None if there is none.
        u: Of u, L kernels `[out, 2 F, 2, 3]` and biases, of second convolutions `[N, 1, 2 F]`.
        u_from_u: Shortcuts in the blocks on the way down, D matrices `[F, 2 F]`.
        u_tiles: What leads from the coarser scale to the 2 rows.
        num_up: Blocks on the way up.
    """

    above_left: Tensor
    above: Tensor
    left: Tensor
    own: list[Tensor]
    bias: Tensor
    from_u: Tensor
    from_ul: Tensor
    tiles: tuple[Tensor, Tensor] | None
    u: list[tuple[Tensor, Tensor]]
    u_from_u: list[Tensor]
    u_tiles: tuple[Tensor, Tensor] | None
    num_up: int

    @property
    def num_blocks(self) -> int:
        """K."""
        return len(self.from_u)

    @property
    def num_firsts(self) -> int:
        """Layers before the second convolutions."""
        return len(self.own) - self.num_blocks


@dataclass(frozen=True, eq=False)
class LevelCache:
    """What is known of one scale, h x w; for L and K see `LevelWeights`.

    Rows come in two slots in turns, so that a row may be computed again while the one before it is still there. A third
    slot stays zero, for the row above the picture.

    Args:
        u_rows: Inputs of u's layers, `[3, L, N, w, 2 F]`.
        ul_rows: Inputs of ul's layers, `[3 * (w + 1), L, N, 2 F]`, each row with a zero to its left.
        above: What ul's layers get from above at the present row, `[w, L, N, 2 F]`.
        u_tiles: What the coarser scale's present row of u leads to, `[2, N, w, F]`.
        ul_tiles: What the coarser scale's present row of ul leads to, `[w / 2 * 4, N, 2 F]`, by pixel, then row and
            column of what it leads to.
        weights: Of the scale.
    """

    u_rows: Tensor
    ul_rows: Tensor
    above: Tensor
    u_tiles: Tensor
    ul_tiles: Tensor
    weights: LevelWeights

    @classmethod
    def empty(cls, batch: int, width: int, weights: LevelWeights) -> LevelCache:
        """With nothing known of `batch` pictures."""
        layers, channels = weights.left.shape[:2]
        new = weights.left.new_zeros
        return cls(
            u_rows=new(3, layers, batch, width, channels),
            ul_rows=new(3 * (width + 1), layers, batch, channels),
            above=new(width, layers, batch, channels),
            u_tiles=new(2, batch, width, channels // 2),
            ul_tiles=new(width // 2 * 4, batch, channels),
            weights=weights,
        )

    @property
    def rows_by_slot(self) -> Tensor:
        """`ul_rows` as `[3, w + 1, L, N, 2 F]`."""
        return self.ul_rows.unflatten(0, (3, -1))

    def keep_row(self, maps: LevelMaps, row: int) -> None:
        """Take a row from whole maps."""
        for number, (u, ul) in enumerate(maps.inputs()):
            self.u_rows[row % 2, number] = u[:, :, row].mT
            self.rows_by_slot[row % 2, 1:, number] = ul[:, :, row].permute(2, 0, 1)

    def keep_tiles(self, u: Tensor, ul: Tensor, coarser_row: int) -> None:
        """Take what a row of the coarser scale leads to from whole maps, `[N, F, h, w]`."""
        rows = slice(2 * coarser_row, 2 * coarser_row + 2)
        self.u_tiles.copy_(u[:, :, rows].permute(2, 0, 3, 1))
        tiles = ul[:, :, rows].unflatten(3, (-1, 2)).permute(3, 2, 4, 0, 1)  # [w / 2, 2, 2, N, F]
        self.ul_tiles.copy_(signed(tiles.flatten(0, 2)))


class Streams(NamedTuple):
    """Features of both streams, `[N, F, H, W]`, and concat_elu of them, `[N, 2 F, H, W]`, which several layers take."""

    u: Tensor
    ul: Tensor
    u_elu: Tensor
    ul_elu: Tensor

    @classmethod
    def of(cls, u: Tensor, ul: Tensor) -> Streams:
        """With what concat_elu makes of them."""
        return cls(u, ul, concat_elu(u), concat_elu(ul))


@dataclass
class LevelMaps:
    """Features of one scale in a forward pass, whole maps of both streams.

    Args:
        firsts: Inputs of the first convolutions.
        seconds: Inputs of the second convolutions.
        end: Of the way up.
        begin: Of the way down, where that is not the end of the way up.
    """

    firsts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    seconds: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    end: tuple[Tensor, Tensor] | None = None
    begin: tuple[Tensor, Tensor] | None = None

    def add(self, streams: Streams, hidden: tuple[Tensor, Tensor]) -> None:
        """What a block got and what was inside."""
        self.firsts.append((streams.u_elu, streams.ul_elu))
        self.seconds.append(hidden)

    def inputs(self) -> list[tuple[Tensor, Tensor]]:
        """Of all layers of u and ul, `[N, 2 F, h, w]`, in the order of `LevelWeights`."""
        if self.begin is None or self.end is None:
            return self.firsts + self.seconds
        u, ul = self.end
        return [*self.firsts, (signed(u, 1), signed(ul, 1)), *self.seconds]


class RowOfLevel:
    """Stream u at one row of one scale, `[N, w, F]`, on its way up and down.

    Args:
        level: The scale.
        before: Slot of the row above, int64 `[1]`.
        now: Slot of this row.
    """

    def __init__(self, level: LevelCache, before: Tensor, now: Tensor) -> None:
        self.level, self.weights = level, level.weights
        self.before, self.now = before, now
        self.above = level.u_rows.index_select(0, before).squeeze(0).unbind(0)
        self.firsts: list[Tensor] = []
        self.seconds: list[Tensor] = []
        self.end: list[Tensor] = []
        self.elus: list[Tensor] = []  # of what comes out of the blocks
        self.shortcuts: list[Tensor] = []

    def up(self, u: Tensor) -> Tensor:
        """All blocks on the way up."""
        u_elu = concat_elu(u, 2)
        for _ in range(self.weights.num_up):
            self.shortcuts.append(u_elu)
            u, u_elu = self._block(u, u_elu)
        if self.weights.u_tiles is not None:
            self.shortcuts.append(u_elu)
            self.end.append(signed(u))
        return u

    def to_coarser(self, u: Tensor) -> Tensor:
        """The end of the way up to `[N, w / 2, F]`."""
        return self._convolution(self.weights.num_blocks, self.end[0], stride=2)

    def down(self, u: Tensor) -> Tensor:
        """All blocks on the way down, from the end of the way up at the coarsest scale, and from the coarser one's."""
        if self.weights.u_tiles is not None:
            u = self.level.u_tiles.index_select(0, self.now).squeeze(0)
        u_elu = concat_elu(u, 2)
        for matrix in self.weights.u_from_u:
            u, u_elu = self._block(u, u_elu, F.linear(self.shortcuts.pop(), matrix))
        return u

    def from_coarser(self, u: Tensor, coarser: RowOfLevel) -> None:
        """Keep what the coarser scale's end of the way down, `[N, w / 2, F]`, leads to."""
        weight, bias = cast(tuple[Tensor, Tensor], self.weights.u_tiles)
        tiles = F.conv_transpose2d(u.mT.unsqueeze(2), weight, bias, 2, (0, 1), (0, 1))
        self.level.u_tiles.copy_(tiles.permute(2, 0, 3, 1))

    def finish(self) -> None:
        """Keep the row, and add up what ul will get from above."""
        level, weights = self.level, self.weights
        level.u_rows.index_copy_(0, self.now, torch.stack(self.firsts + self.end + self.seconds).unsqueeze(0))
        # Columns come before pictures, so that all columns but the last, or but the first, are one block for a product.
        rows = level.rows_by_slot.transpose(1, 2).index_select(0, self.before).squeeze(0).flatten(1, 2)
        batch = level.above.shape[2]
        total = torch.baddbmm(weights.bias, rows[:, :-batch], weights.above_left)
        total.baddbmm_(rows[:, batch:], weights.above)
        elus = torch.stack(self.elus).transpose(1, 2).flatten(1, 2)
        total[: weights.num_blocks].baddbmm_(elus, weights.from_u)
        level.above.copy_(total.unflatten(1, (-1, batch)).transpose(0, 1))

    def _block(self, u: Tensor, u_elu: Tensor, shortcut: Tensor | None = None) -> tuple[Tensor, Tensor]:
        number = len(self.firsts)
        self.firsts.append(u_elu)
        hidden = self._convolution(number, u_elu)
        hidden = concat_elu(hidden if shortcut is None else hidden + shortcut, 2)
        self.seconds.append(hidden)
        u = u + F.glu(self._convolution(self.weights.num_firsts + number, hidden), dim=2)
        u_elu = concat_elu(u, 2)
        self.elus.append(u_elu)
        return u, u_elu

    def _convolution(self, layer: int, features: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.weights.u[layer]
        rows = torch.stack([self.above[layer], features], dim=1).permute(0, 3, 1, 2)
        return F.conv2d(rows, weight, None, stride, (0, 1)).squeeze(2).mT + bias


class PixelOfLevel:
    """Stream ul at one pixel of one scale, `[N, 2 F]`, on its way up and down.

    Args:
        level: The scale.
        column: Of the pixel, int64 `[1]`.
        left: Of the pixel to the left, in `ul_rows`.
        now: Of the pixel.
        tile: Of the pixel in `ul_tiles`.
    """

    def __init__(self, level: LevelCache, column: Tensor, left: Tensor, now: Tensor, tile: Tensor) -> None:
        self.level, self.weights = level, level.weights
        self.column, self.now, self.tile = column, now, tile
        above, beside = level.above.index_select(0, column).squeeze(0), level.ul_rows.index_select(0, left).squeeze(0)
        self.known = torch.baddbmm(above, beside, self.weights.left)  # all but the pixel's own tap
        count = self.weights.num_firsts
        self.of_firsts = self.known[:count].unbind(0)
        self.of_seconds = gate_of_signed(self.known[count:]).unbind(0)
        self.firsts: list[Tensor] = []
        self.seconds: list[Tensor] = []
        self.end: list[Tensor] = []

    def up(self, ul: Tensor) -> Tensor:
        """All blocks on the way up."""
        for _ in range(self.weights.num_up):
            ul = self._block(ul, self.of_firsts[len(self.firsts)])
        if self.weights.tiles is not None:
            self.end.append(ul)
        return ul

    def to_coarser(self, ul: Tensor) -> Tensor:
        """The end of the way up to the coarser scale."""
        layer = self.weights.num_blocks
        return torch.addmm(self.of_firsts[layer], ul, self.weights.own[layer])

    def down(self, ul: Tensor) -> Tensor:
        """All blocks on the way down, from the end of the way up at the coarsest scale, and from the coarser one's."""
        shortcuts = self.firsts[::-1]
        if self.weights.tiles is not None:
            shortcuts = [F.elu(ul_end) for ul_end in self.end] + shortcuts
            ul = self.level.ul_tiles.index_select(0, self.tile).squeeze(0)
        known = self.known[self.weights.num_up : self.weights.num_blocks]
        for of_first in torch.baddbmm(known, torch.stack(shortcuts), self.weights.from_ul).unbind(0):
            ul = self._block(ul, of_first)
        return ul

    def from_coarser(self, ul: Tensor, coarser: PixelOfLevel) -> None:
        """Keep what the coarser scale's end of the way down leads to, at its column."""
        weight, bias = cast(tuple[Tensor, Tensor], self.weights.tiles)
        features = ul[:, : weight.shape[1]].expand(4, -1, -1)
        tiles = torch.baddbmm(bias, features, weight)
        self.level.ul_tiles.unflatten(0, (-1, 4)).index_copy_(0, coarser.column, tiles.unsqueeze(0))

    def finish(self) -> None:
        """Keep the pixel."""
        self.level.ul_rows.index_copy_(0, self.now, torch.stack(self.firsts + self.end + self.seconds).unsqueeze(0))

    def _block(self, ul: Tensor, of_first: Tensor) -> Tensor:
        number, own = len(self.firsts), self.weights.own
        features = F.elu(ul)
        self.firsts.append(features)
        hidden = F.elu(torch.addmm(of_first, features, own[number]))
        self.seconds.append(hidden)
        update = torch.addmm(self.of_seconds[number], hidden, own[self.weights.num_firsts + number])
        return ul + F.glu(update, dim=1)


def through_scales(levels: Sequence[Any], features: Tensor) -> Tensor:
    """A stream at the finest scale of all `RowOfLevel` or `PixelOfLevel`, up to the coarsest and down again."""
    for scale, level in enumerate(levels):
        if scale:
            features = levels[scale - 1].to_coarser(features)
        features = level.up(features)
    for scale, level in reversed(list(enumerate(levels))):
        features = level.down(features)
        level.finish()
        if scale:
            levels[scale - 1].from_coarser(features, level)
    return features


def step_tables(height: int, width: int, num_scales: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where the steps of `PixelCNNPPNetwork` find what they need, int64.

    Returns:
        Of each row, the flat indices of the 2 x 3 pixels above each of its pixels, `[H, W * 6]`, H * W for one outside
        the picture. Of each row, the slots of the row above and of itself at each scale, `[H, 2 * scales]`. Of each
        pixel, `[H * W, 1 + 4 * scales]`: the flat index of the pixel to its left, H * W for none, and at each scale
        what `PixelOfLevel` takes.
    """
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    seen = [neighbours(height, width, down, right) for down in (-2, -1) for right in (-1, 0, 1)]
    taps = torch.stack(seen, dim=2).flatten(1)
    slots, indices = [], [neighbours(height, width, 0, -1)]
    for scale in range(num_scales):
        row, column = rows >> scale, (columns >> scale).expand(height, -1)
        slots += [torch.where(row > 0, (row - 1) % 2, 2), row % 2]
        left = row % 2 * ((width >> scale) + 1) + column
        indices += [column, left, left + 1, column // 2 * 4 + row % 2 * 2 + column % 2]
    return taps.to(device), torch.cat(slots, dim=1).to(device), torch.stack(indices, dim=2).flatten(0, 1).to(device)


def signed(features: Tensor, dim: int = -1) -> Tensor:
    """Each x and -x."""
    return torch.cat([features, -features], dim)


def gate_of_signed(features: Tensor) -> Tensor:
    """Values a and gates b as a, -a, b and b, of which `F.glu` makes x and -x."""
    values, gates = features.chunk(2, dim=-1)
    return torch.cat([values, -values, gates, gates], dim=-1)
