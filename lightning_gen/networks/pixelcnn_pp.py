"""The network of PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517).

Two streams of features run through it. At each pixel, stream u has seen the rows above, and stream ul the rows above
and the pixels to the left. A row of u is known as a whole as soon as the row above is; ul takes from u what it needs of
the rows above, and goes on from pixel to pixel.

`pixelcnn_pp_steps.py` has what its steps are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

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
from lightning_gen.layers.weight_norm import WeightNormalized, WeightNormLinear
from lightning_gen.networks.pixelcnn_pp_steps import (
    LevelCache,
    LevelMaps,
    LevelWeights,
    PixelCNNPPCache,
    PixelOfLevel,
    RowOfLevel,
    Streams,
    gate_of_signed,
    signed,
    step_tables,
    through_scales,
)
from lightning_gen.networks.stepping import Run, call, places_of
from lightning_gen.networks.weight_normalized import (
    GatedResidual,
    WeightNormalizedNetwork,
    first_taps,
    taps_of,
    with_ones,
)


class PixelCNNPPNetwork(WeightNormalizedNetwork):
    """Gated residual blocks at several scales, up to the coarsest and down again, with shortcuts between the two ways.

    Each scale has `num_blocks` blocks on the way up and one more on the way down, the coarsest as many. A block of the
    way down also gets the output of its mirror image on the way up. Between the scales are convolutions with a stride
    of 2, and transposed ones. All layers have weight norm; call `initialize` before training. The class of a picture
    adds a bias in every block of both streams.

    Deviations from the authors' code: there are weights to start from without `initialize` too, with lengths g of each
    layer's init_scale; and the channels of a shortcut that leads from both streams to ul come in another order.

    Args:
        image_shape: (channels, height, width); height and width must be multiples of 2^(num_scales - 1).
        outputs: Parameters of each pixel: 10 K of a mixture of K logistics in colour, 3 K in gray.
        filters: F, channels of each stream.
        num_blocks: Blocks at each scale on the way up.
        num_scales: Resolutions; each halves height and width.
        dropout, num_classes, embedding: As of `DensityNetwork`.

    Raises:
        ValueError: If a size is out of range, or height or width cannot be halved so often.
    """

    small: ClassVar = {"filters": 4, "num_blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        filters: int = 160,
        num_blocks: int = 5,
        num_scales: int = 3,
        dropout: float = 0.5,
        num_classes: int | None = None,
        embedding: int | None = None,
    ) -> None:
        sizes = {"filters": filters, "num_blocks": num_blocks, "num_scales": num_scales}
        super().__init__(image_shape, outputs, embedding=embedding, num_classes=num_classes, dropout=dropout, **sizes)
        height, width = image_shape[1:]
        multiple = 2 ** (num_scales - 1)
        if height % multiple or width % multiple:
            raise ValueError(
                f"With num_scales={num_scales}, height and width must be multiples of {multiple}, got {height} x "
                f"{width}. Resize or pad the pictures, or take fewer scales."
            )
        self.filters, channels = filters, self.in_channels

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

    def init_cache(self, batch: int, device: torch.device, labels: Tensor | None = None) -> PixelCNNPPCache:
        """For `batch` pictures of which no pixel is known; the weights are taken as they are now."""
        check_labels(labels, self.num_classes)
        height, width = self.image_shape[1:]
        scales = range(len(self.up))
        with torch.no_grad():
            weights = [level_weights(self, scale, labels) for scale in scales]
            first_row, first_pixel = first_weights(self)
            last = self.last.weight().T.contiguous(), self.last.b.detach()
        inputs = first_row.new_zeros(batch, height * width + 1, self.in_channels + 1)
        inputs[:, :-1, -1] = 1
        taps, slots, indices = step_tables(height, width, len(scales), device)
        return PixelCNNPPCache(
            images=inputs[:, :-1, :-1].mT.unflatten(2, (height, width)),
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
        """One forward pass in place of the steps at all pixels before this one."""
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
        """The parameters of one pixel, `[N, outputs]`; flags of the pieces say which scales have their turn."""
        row, column = divmod(position, self.image_shape[2])
        place = cache.places[position]
        if column == 0:
            run(self._row, cache, place, *self._coarser(row))
        return run(self._pixel, cache, place, *self._coarser(row | column))

    def _coarser(self, index: int) -> list[bool]:
        """Of each scale but the finest, whether it has its turn at a row; or at a pixel, given `row | column`."""
        return [index % 2**scale == 0 for scale in range(1, len(self.up))]

    def _whole(self, images: Tensor, labels: Tensor | None, maps: list[LevelMaps] | None) -> Tensor:
        inputs = with_ones(images)
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
        levels = cache.levels[: 1 + sum(coarser)]
        rows = [RowOfLevel(level, *slots[2 * scale : 2 * scale + 2]) for scale, level in enumerate(levels)]
        through_scales(rows, u)

    def _pixel(self, cache: PixelCNNPPCache, place: Tensor, *coarser: bool) -> Tensor:
        """Stream ul at a pixel, and the parameters there."""
        left, *indices = cache.indices.index_select(0, place).unbind(1)
        beside = cache.inputs.index_select(1, left).squeeze(1)
        ul = torch.addmm(cache.start.index_select(0, indices[0]).squeeze(0), beside, cache.first_pixel)

        levels = cache.levels[: 1 + sum(coarser)]
        pixels = [PixelOfLevel(level, *indices[4 * scale : 4 * scale + 4]) for scale, level in enumerate(levels)]
        ul = through_scales(pixels, ul)
        weight, bias = cache.last
        return torch.addmm(bias, F.elu(ul[:, : self.filters]), weight)


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
        dropout: See `GatedResidual`.
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


class GatedResnet(GatedResidual):
    """With concat_elu in place of ELU: x and -x, so that features `[N, F, H, W]` are activated as `[N, 2 F, H, W]`."""

    widening: ClassVar[int] = 2

    def _pointwise(self, inputs: int, outputs: int) -> WeightNormalized:
        return WeightNormLinear(inputs, outputs, axis=1)

    def _activated(self, features: Tensor) -> Tensor:
        return concat_elu(features)


def first_weights(network: PixelCNNPPNetwork) -> tuple[Tensor, Tensor]:
    """Of what u and ul get from the rows above, `[6 (C + 1), 3 F]`, and of what ul gets from the pixel to the left."""
    u = network.first_u.weight().permute(2, 3, 1, 0).clone()  # [row, column, C + 1, F]
    u[1, 1, -1] += network.first_u.b  # as in `first_taps`
    ul = torch.zeros_like(u)
    ul[1], left = first_taps(network.first_above, network.first_left)
    return torch.cat([u, signed(ul)], dim=3).flatten(0, 2), signed(left)


def level_weights(network: PixelCNNPPNetwork, scale: int, labels: Tensor | None) -> LevelWeights:
    """The weights of one scale as its steps take them, with biases of the class."""
    filters, up, down = network.filters, network.up[scale].blocks, network.down[scale]
    blocks = [*up, *down.blocks]
    us, uls = [block.u for block in blocks], [block.ul for block in blocks]
    from_both = [cast(WeightNormalized, ul.shortcut).weight().T for ul in uls]

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
        u_from_u=[cast(WeightNormalized, u.shortcut).weight() for u in us[len(up) :]],
        u_tiles=u_tiles,
        num_up=len(up),
    )
