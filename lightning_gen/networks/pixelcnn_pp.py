"""The network of PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517), and its steps.

Two streams of features run through it. At each pixel, stream u has seen the rows above, and stream ul the rows above
and the pixels to the left. A row of u is known as a whole as soon as the row above is; ul takes from u what it needs of
the rows above, and goes on from pixel to pixel.

So in steps, features at a pixel of a coarser scale belong to the first of the pixels that it covers, and the scale has
its turn there: at every 2^s-th row and, within it, every 2^s-th column. At the start of a row u goes on by one row, at
each scale that has its turn, and all is added up that ul will get from above: from u, from its own row above, from
biases and the class. What remains for a pixel is two taps of each kernel of ul, its own and the one to its left. Those
to the left are known for all layers beforehand, so that they are one batched product; then the pixel's own tap follows,
layer after layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.activation import concat_elu
from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.masked import shift_down
from lightning_gen.layers.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    shift_right,
)
from lightning_gen.layers.weight_norm import WeightNormalized, WeightNormLinear, data_dependent_init
from lightning_gen.networks.building import check_image_shape
from lightning_gen.networks.stepping import Run, call, places_of


class PixelCNNPPNetwork(nn.Module):
    """Gated residual blocks at several scales, up to the coarsest and down again, with shortcuts between the two ways.

    Each scale has `num_blocks` blocks on the way up and one more on the way down, the coarsest as many. A block of the
    way down also gets the output of its mirror image on the way up. Between the scales are convolutions with a stride
    of 2, and transposed ones. All layers have weight norm; call `initialize` before training. The class of a picture
    adds a bias in every block of both streams.

    Deviations from the authors' code: there are weights to start from without `initialize` too, with lengths g of each
    layer's init_scale; and the channels of a shortcut that leads from both streams to ul come in another order.

    Args:
        image_shape: (channels, height, width); height and width must be multiples of 2^(num_scales - 1).
        outputs: Parameters of each pixel; see `lightning_gen.losses.logistic_mixture.logistic_mixture_channels`.
        filters: F, channels of each stream.
        num_blocks: Blocks at each scale on the way up.
        num_scales: Resolutions; each halves height and width.
        dropout: Share of the features within a block, single ones, that are dropped in training.
        num_classes: None for a network without labels.

    Raises:
        ValueError: If a size is out of range, or height or width cannot be halved so often.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        outputs: int,
        filters: int = 160,
        num_blocks: int = 5,
        num_scales: int = 3,
        dropout: float = 0.5,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape)
        if min(outputs, filters, num_blocks, num_scales) < 1:
            raise ValueError(
                "outputs, filters, num_blocks and num_scales must be at least 1, got "
                f"{outputs}, {filters}, {num_blocks} and {num_scales}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}.")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, or None for no labels; got {num_classes}.")
        channels, height, width = image_shape
        multiple = 2 ** (num_scales - 1)
        if height % multiple or width % multiple:
            raise ValueError(
                f"With num_scales={num_scales}, height and width must be multiples of {multiple}, got {height} x "
                f"{width}. Resize or pad the pictures, or take fewer scales."
            )
        self.image_shape = (channels, height, width)
        self.filters, self.num_classes = filters, num_classes

        self.first_u = DownShiftedConv2d(channels + 1, filters, (2, 3))
        self.first_above = DownShiftedConv2d(channels + 1, filters, (1, 3))
        self.first_left = DownRightShiftedConv2d(channels + 1, filters, (2, 1))
        up, down = [], []
        for scale in range(num_scales):
            finest, coarsest = scale == 0, scale == num_scales - 1
            up_blocks = [Block(filters, dropout, num_classes, shortcuts=False) for _ in range(num_blocks)]
            down_blocks = [
                Block(filters, dropout, num_classes, shortcuts=True) for _ in range(num_blocks + (not coarsest))
            ]
            up.append(Stage(up_blocks, None if finest else Resampling(filters, finer=False)))
            down.append(Stage(down_blocks, None if coarsest else Resampling(filters, finer=True)))
        # Both with the finest scale first.
        self.up = cast(Sequence[Stage], nn.ModuleList(up))
        self.down = cast(Sequence[Stage], nn.ModuleList(down))
        self.last = WeightNormLinear(filters, outputs, axis=1)

    def initialize(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Set g and b of all layers from a batch; see `lightning_gen.layers.weight_norm.data_dependent_init`.

        The mode stays as it is. In training mode dropout is at work, as in the authors' code.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, such as training will see.
            labels: int64 `[N]`; None without classes.
        """
        with data_dependent_init(self):
            self(images, labels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Parameters of all pixels, `[N, outputs, H, W]`, each of which depends on earlier pixels only.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            labels: int64 `[N]`; None without classes.

        Raises:
            ValueError: If images are of another shape than the network's, or labels are missing, or given without
                classes.
        """
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.image_shape))}], got {list(images.shape)}.")
        check_labels(labels, self.num_classes)
        return self._whole(images, labels, None)

    def init_cache(self, batch: int, device: torch.device, labels: Tensor | None = None) -> PixelCNNPPCache:
        """For pictures of which no pixel is known; the weights are taken as they are now.

        Args:
            batch: N, number of pictures.
            device: That of the weights.
            labels: int64 `[N]`; None without classes.

        Raises:
            ValueError: If labels are missing, or given without classes.
        """
        check_labels(labels, self.num_classes)
        channels, height, width = self.image_shape
        scales = range(len(self.up))
        with torch.no_grad():
            weights = [level_weights(self, scale, labels) for scale in scales]
            first_row, first_pixel = first_weights(self)
            last = self.last.weight().T.contiguous(), self.last.b.detach()
        inputs = first_row.new_zeros(batch, height * width + 1, channels + 1)
        inputs[:, :-1, -1] = 1
        taps, slots, indices = step_tables(height, width, len(scales), device)
        return PixelCNNPPCache(
            images=inputs[:, :-1, :channels].mT.unflatten(2, (height, width)),
            inputs=inputs,
            start=inputs.new_zeros(width, batch, 2 * self.filters),
            levels=[LevelCache.empty(batch, width >> scale, weights[scale]) for scale in scales],
            labels=labels,
            places=places_of(height, width, device),
            taps=taps,
            slots=slots,
            indices=indices,
            first_row=first_row,
            first_pixel=first_pixel,
            last=last,
        )

    @torch.no_grad()
    def prefill(self, cache: PixelCNNPPCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one.

        Args:
            cache: From `init_cache`; its `images` hold these pixels, and finite numbers in the others.
            position: Flat index of the pixel to be stepped next.
        """
        row, column = divmod(position, self.image_shape[2])
        maps = [LevelMaps() for _ in cache.levels]
        self._whole(cache.images, cache.labels, maps)
        for scale, (level, features) in enumerate(zip(cache.levels, maps, strict=True)):
            before = -(-row >> scale) - 1  # the last row before the next one at which the scale has its turn
            if before >= 0:
                level.keep_row(features, before)
            if row % 2**scale == 0:
                level.keep_row(features, row >> scale)
            if features.begin is not None:
                level.keep_tiles(*features.begin, row >> (scale + 1))
        if column:
            self._row(cache, cache.places[position - column], *self._coarser(row))

    @torch.no_grad()
    def step(self, cache: PixelCNNPPCache, position: int, run: Run = call) -> Tensor:
        """The parameters of one pixel, `[N, outputs]`; see `lightning_gen.testing.CachedNetwork`.

        Args:
            cache: From `init_cache`; pixels before this one stand in its `images` and went through here in order, or
                through `prefill`.
            position: Flat index, row * width + column.
            run: How the pieces are called, see `lightning_gen.networks.stepping`. Their flags say of each scale but
                the finest whether it has its turn.
        """
        row, column = divmod(position, self.image_shape[2])
        place = cache.places[position]
        if column == 0:
            run(self._row, cache, place, *self._coarser(row))
        return run(self._pixel, cache, place, *self._coarser(row | column))

    def _coarser(self, index: int) -> list[bool]:
        """Of each scale but the finest, whether it has its turn at a row; or at a pixel, given `row | column`."""
        return [index % 2**scale == 0 for scale in range(1, len(self.up))]

    def _whole(self, images: Tensor, labels: Tensor | None, maps: list[LevelMaps] | None) -> Tensor:
        # The ones tell a black pixel from one outside the picture. Convolutions are fastest with channels last.
        inputs = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        u = shift_down(self.first_u(inputs))
        ul = shift_down(self.first_above(inputs)) + shift_right(self.first_left(inputs))
        streams, shortcuts = Streams.of(u, ul), []
        for scale, stage in enumerate(self.up):
            if stage.resampling is not None:
                streams = stage.resampling(streams)
            for block in stage.blocks:
                shortcuts.append(streams)
                streams, hidden = block(streams, None, labels)
                if maps is not None:
                    maps[scale].add(shortcuts[-1], hidden)
            shortcuts.append(streams)
            if maps is not None:
                maps[scale].end = streams.u, streams.ul
        shortcuts.pop()
        for scale, stage in reversed(list(enumerate(self.down))):
            if stage.resampling is not None:
                streams = stage.resampling(streams)
                if maps is not None:
                    maps[scale].begin = streams.u, streams.ul
            for block in stage.blocks:
                before = streams
                streams, hidden = block(before, shortcuts.pop(), labels)
                if maps is not None:
                    maps[scale].add(before, hidden)
        return self.last(streams.ul_elu[:, : self.filters])

    def _row(self, cache: PixelCNNPPCache, place: Tensor, *coarser: bool) -> None:
        """Stream u at a row, and what stream ul gets there from above."""
        width = self.image_shape[2]
        row = place // width
        taps = cache.taps.index_select(0, row).flatten()
        seen = cache.inputs.index_select(1, taps).unflatten(1, (width, -1)).flatten(2)
        u, start = (seen @ cache.first_row).split([self.filters, 2 * self.filters], dim=2)
        cache.start.copy_(start.transpose(0, 1))

        slots = cache.slots.index_select(0, row).unbind(1)
        levels: list[RowOfLevel] = []
        for scale, level in enumerate(cache.levels[: 1 + sum(coarser)]):
            if scale:
                u = levels[-1].to_coarser(u)
            levels.append(RowOfLevel(level, *slots[2 * scale : 2 * scale + 2]))
            u = levels[-1].up(u)
        for scale in reversed(range(len(levels))):
            u = levels[scale].down(u)
            levels[scale].finish()
            if scale:
                levels[scale - 1].from_coarser(u)

    def _pixel(self, cache: PixelCNNPPCache, place: Tensor, *coarser: bool) -> Tensor:
        """Stream ul at a pixel, and the parameters there."""
        left, *indices = cache.indices.index_select(0, place).unbind(1)
        beside = cache.inputs.index_select(1, left).squeeze(1)
        ul = torch.addmm(cache.start.index_select(0, indices[0]).squeeze(0), beside, cache.first_pixel)

        levels: list[PixelOfLevel] = []
        for scale, level in enumerate(cache.levels[: 1 + sum(coarser)]):
            if scale:
                ul = levels[-1].to_coarser(ul)
            levels.append(PixelOfLevel(level, *indices[4 * scale : 4 * scale + 4]))
            ul = levels[-1].up(ul)
        for scale in reversed(range(len(levels))):
            ul = levels[scale].down(ul)
            levels[scale].finish()
            if scale:
                levels[scale - 1].from_coarser(ul, levels[scale].column)
        weight, bias = cache.last
        return torch.addmm(bias, F.elu(ul[:, : self.filters]), weight)


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


class Stage(nn.Module):
    """The blocks of one scale, on the way up or down, after what leads there from the scale before, if any."""

    def __init__(self, blocks: list[Block], resampling: Resampling | None) -> None:
        super().__init__()
        self.resampling = resampling
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))


class Resampling(nn.Module):
    """Both streams to half or twice their height and width.

    Args:
        filters: Channels of each stream.
        finer: Whether it is twice.
    """

    def __init__(self, filters: int, *, finer: bool) -> None:
        super().__init__()
        self.u: WeightNormalized
        self.ul: WeightNormalized
        if finer:
            self.u = DownShiftedConvTranspose2d(filters, filters)
            self.ul = DownRightShiftedConvTranspose2d(filters, filters)
        else:
            self.u = DownShiftedConv2d(filters, filters, stride=2)
            self.ul = DownRightShiftedConv2d(filters, filters, stride=2)

    def forward(self, streams: Streams) -> Streams:
        """To the other scale."""
        return Streams.of(self.u(streams.u), self.ul(streams.ul))


class Block(nn.Module):
    """A gated residual block of each stream; that of ul also gets what comes out of that of u.

    Args:
        filters: Channels of each stream.
        dropout: See `GatedResnet`.
        num_classes: None without labels.
        shortcuts: Whether both get the same stream of an earlier block as well.
    """

    def __init__(self, filters: int, dropout: float, num_classes: int | None, *, shortcuts: bool) -> None:
        super().__init__()
        self.u = GatedResnet(DownShiftedConv2d, filters, 2 * filters * shortcuts, dropout, num_classes)
        self.ul = GatedResnet(DownRightShiftedConv2d, filters, 2 * filters * (1 + shortcuts), dropout, num_classes)

    def forward(
        self, streams: Streams, shortcut: Streams | None, labels: Tensor | None
    ) -> tuple[Streams, tuple[Tensor, Tensor]]:
        """The streams to themselves, and what goes into the second convolutions."""
        u, u_hidden = self.u(streams.u, streams.u_elu, None if shortcut is None else shortcut.u_elu, labels)
        u_elu = concat_elu(u)
        beside = u_elu if shortcut is None else torch.cat([u_elu, shortcut.ul_elu], dim=1)
        ul, ul_hidden = self.ul(streams.ul, streams.ul_elu, beside, labels)
        return Streams(u, ul, u_elu, concat_elu(ul)), (u_hidden, ul_hidden)


class GatedResnet(nn.Module):
    """x + a * sigmoid(b), where a and b come from x through two convolutions, and from shortcuts between them.

    Args:
        conv: Of the two convolutions.
        filters: F, channels of x.
        shortcut_channels: Of what comes through the shortcut; 0 for none.
        dropout: Before the second convolution.
        num_classes: None without labels.
    """

    def __init__(
        self,
        conv: type[DownShiftedConv2d] | type[DownRightShiftedConv2d],
        filters: int,
        shortcut_channels: int,
        dropout: float,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.conv1 = conv(2 * filters, filters)
        self.shortcut = WeightNormLinear(shortcut_channels, filters, axis=1) if shortcut_channels else None
        self.dropout = Dropout(dropout)
        self.conv2 = conv(2 * filters, 2 * filters, init_scale=0.1)
        self.classes = None
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes, 2 * filters)
            nn.init.normal_(self.classes.weight, std=0.05)

    def forward(
        self, features: Tensor, activated: Tensor, beside: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The block's x, and what goes into the second convolution, `[N, 2 F, H, W]`.

        Args:
            features: The x that comes in, `[N, F, H, W]`.
            activated: concat_elu of it.
            beside: What comes through the shortcut, `[N, shortcut_channels, H, W]`.
            labels: int64 `[N]`.
        """
        hidden = self.conv1(activated)
        if self.shortcut is not None:
            hidden = hidden + self.shortcut(beside)
        hidden = self.dropout(concat_elu(hidden))
        update = self.conv2(hidden)
        if self.classes is not None:
            update = update + self.classes(labels)[:, :, None, None].to(update.dtype)
        values, gates = update.chunk(2, dim=1)
        # Side by side in memory, as else sigmoid takes up to eight times as long on a CPU.
        return features + values * gates.contiguous(memory_format=torch.channels_last).sigmoid(), hidden

    def first_bias(self) -> Tensor:
        """All that is added to the first convolution, `[F]`."""
        return self.conv1.b if self.shortcut is None else self.conv1.b + self.shortcut.b

    def second_bias(self, labels: Tensor | None) -> Tensor:
        """All that is added to the second convolution, `[N, 2 F]`, or `[1, 2 F]` without labels."""
        return self.conv2.b[None] if self.classes is None else self.conv2.b + self.classes(labels)


class Dropout(nn.Dropout):
    """The same, six times as fast on a CPU, where PyTorch draws one number after the other.

    There the share is a multiple of 2^-16.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Of any shape."""
        if not self.training or self.p == 0 or features.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(features)
        share = min(round(self.p * 2**16), 2**16 - 1)
        random = torch.empty(-(-features.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        random = random[: features.numel()].as_strided(features.shape, torch.empty_like(features).stride())
        kept = random >= share - 2**15
        return features * kept.to(features.dtype).mul_(2**16 / (2**16 - share))


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

    def from_coarser(self, u: Tensor) -> None:
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

    def from_coarser(self, ul: Tensor, column: Tensor) -> None:
        """Keep what the coarser scale's end of the way down leads to, at its column."""
        weight, bias = cast(tuple[Tensor, Tensor], self.weights.tiles)
        features = ul[:, : weight.shape[1]].expand(4, -1, -1)
        tiles = torch.baddbmm(bias, features, weight)
        self.level.ul_tiles.unflatten(0, (-1, 4)).index_copy_(0, column, tiles.unsqueeze(0))

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


def step_tables(height: int, width: int, num_scales: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where the steps of `PixelCNNPPNetwork` find what they need, int64.

    Returns:
        Of each row, the flat indices of the 2 x 3 pixels above each of its pixels, `[H, W * 6]`, H * W for one outside
        the picture. Of each row, the slots of the row above and of itself at each scale, `[H, 2 * scales]`. Of each
        pixel, `[H * W, 1 + 4 * scales]`: the flat index of the pixel to its left, H * W for none, and at each scale
        what `PixelOfLevel` takes.
    """
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    outside = height * width

    def flat(down: int, right: int) -> Tensor:
        row, column = rows + down, columns + right
        inside = (row >= 0) & (column >= 0) & (column < width)
        return torch.where(inside, row * width + column, outside)

    taps = torch.stack([flat(down, right) for down in (-2, -1) for right in (-1, 0, 1)], dim=2).flatten(1)
    slots, indices = [], [flat(0, -1)]
    for scale in range(num_scales):
        row, column = rows >> scale, (columns >> scale).expand(height, -1)
        slots += [torch.where(row > 0, (row - 1) % 2, 2), row % 2]
        left = row % 2 * ((width >> scale) + 1) + column
        indices += [column, left, left + 1, column // 2 * 4 + row % 2 * 2 + column % 2]
    return taps.to(device), torch.cat(slots, dim=1).to(device), torch.stack(indices, dim=2).flatten(0, 1).to(device)


def first_weights(network: PixelCNNPPNetwork) -> tuple[Tensor, Tensor]:
    """Of what u and ul get from the rows above, `[6 (C + 1), 3 F]`, and of what ul gets from the pixel to the left.

    Each bias is added to the weights of the ones at a pixel that is inside the picture where the shifted convolution
    has an output.
    """
    u = network.first_u.weight().permute(2, 3, 1, 0).clone()  # [row, column, C + 1, F]
    u[1, 1, -1] += network.first_u.b
    above_left, left = network.first_left.weight().squeeze(3).permute(2, 1, 0).clone()
    left[-1] += network.first_left.b
    ul = torch.zeros_like(u)
    ul[1] = network.first_above.weight().squeeze(2).permute(2, 1, 0)
    ul[1, 1, -1] += network.first_above.b
    ul[1, 0] += above_left
    return torch.cat([u, signed(ul)], dim=3).flatten(0, 2), signed(left)


def level_weights(network: PixelCNNPPNetwork, scale: int, labels: Tensor | None) -> LevelWeights:
    """The weights of one scale as its steps take them, with biases of the class."""
    filters, up, down = network.filters, network.up[scale].blocks, network.down[scale]
    blocks = [*up, *down.blocks]
    us, uls = [block.u for block in blocks], [block.ul for block in blocks]
    from_both = [cast(WeightNormLinear, ul.shortcut).weight().T for ul in uls]

    firsts = [signed(taps_of(ul.conv1.weight())) for ul in uls]
    biases = [signed(ul.first_bias())[None] for ul in uls]
    kernels = [(u.conv1.weight(), u.first_bias()) for u in us]
    if down.resampling is not None:
        strided = cast(Resampling, network.up[scale + 1].resampling)
        # It takes x, which is the first half of x and -x.
        firsts.append(signed(F.pad(taps_of(strided.ul.weight()), (0, 0, 0, filters))))
        biases.append(signed(strided.ul.b)[None])
        kernels.append((F.pad(strided.u.weight(), (0, 0, 0, 0, 0, filters)), strided.u.b))
    num_firsts = len(firsts)
    taps = torch.stack(firsts + [taps_of(ul.conv2.weight()) for ul in uls])  # [L, 4, 2 F, 2 F]
    biases += [ul.second_bias(labels) for ul in uls]
    kernels += [(u.conv2.weight(), u.second_bias(labels)[:, None]) for u in us]

    above_left, above, left, own = taps.unbind(1)
    all_biases = torch.stack(torch.broadcast_tensors(*biases))
    if labels is not None:
        all_biases = all_biases.repeat(1, network.image_shape[2] >> scale, 1)
    tiles = u_tiles = None
    if down.resampling is not None:
        weight, bias = down.resampling.ul.weight(), down.resampling.ul.b
        tiles = signed(weight.permute(2, 3, 0, 1).flatten(0, 1)), signed(bias)
        u_tiles = down.resampling.u.weight(), down.resampling.u.b.detach()
    return LevelWeights(
        above_left=above_left.contiguous(),
        above=above.contiguous(),
        left=left.contiguous(),
        own=[*own[:num_firsts].contiguous(), *gate_of_signed(own[num_firsts:])],
        bias=all_biases,
        from_u=torch.stack([signed(matrix[: 2 * filters]) for matrix in from_both]),
        from_ul=torch.stack([signed(matrix[2 * filters :]) for matrix in from_both[len(up) :]]),
        tiles=tiles,
        u=[(weight.contiguous(memory_format=torch.channels_last), bias.detach()) for weight, bias in kernels],
        u_from_u=[cast(WeightNormLinear, u.shortcut).weight() for u in us[len(up) :]],
        u_tiles=u_tiles,
        num_up=len(up),
    )


def taps_of(kernels: Tensor) -> Tensor:
    """Kernels `[out, in, 2, 2]` as matrices `[4, in, out]`: to the left above, above, to the left, and the pixel."""
    return kernels.permute(2, 3, 1, 0).flatten(0, 1)


def signed(features: Tensor, dim: int = -1) -> Tensor:
    """Each x and -x."""
    return torch.cat([features, -features], dim)


def gate_of_signed(features: Tensor) -> Tensor:
    """Values a and gates b as a, -a, b and b, of which `F.glu` makes x and -x."""
    values, gates = features.chunk(2, dim=-1)
    return torch.cat([values, -values, gates, gates], dim=-1)
