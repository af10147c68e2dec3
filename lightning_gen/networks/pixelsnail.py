"""The network of PixelSNAIL (Chen et al. 2018, arXiv 1712.09763), and its steps.

One stream of features runs through it, without strides. Convolutions bring the pixels nearby, and attention all pixels
before, whichever of them matter. Keys and values are made of the picture itself too, so those of a pixel can only be
used by later ones.

So a step first makes keys and values of the pixel before, whose colour is known by now, in all blocks at once. In
convolutions, what the three taps above and to the left add up to is known for all layers beforehand too, and is one
batched product; then the pixel's own tap follows, layer after layer, and between them each block's attention to all
keys so far. A step therefore costs more the larger the picture is, as attention does: O(H W) in each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.masked import shift_down
from lightning_gen.layers.shifted import DownRightShiftedConv2d, DownShiftedConv2d, shift_right
from lightning_gen.layers.weight_norm import WeightNormalized, WeightNormConv2d
from lightning_gen.networks.pixelsnail_steps import (
    PARTS_OF_INDICES,
    GatedWeights,
    PixelSNAILCache,
    StepWeights,
    gated_at_pixel,
    step_indices,
)
from lightning_gen.networks.stepping import places_of
from lightning_gen.networks.weight_normalized import (
    GatedResidual,
    WeightNormalizedNetwork,
    first_taps,
    taps_of,
    with_ones,
)
from lightning_gen.outlines import with_values


class PixelSNAILNetwork(WeightNormalizedNetwork):
    """Blocks of gated residual convolutions, each block followed by attention to all earlier pixels.

    The first layer sees the rows above and the pixels to the left, as in PixelCNN++, and all others what it gave: the
    features of a pixel never hold the pixel itself. Attention looks at the picture as well, so its mask is strict. All
    layers have weight norm; call `initialize` before training. The class of a picture adds a bias in every residual
    block. With the defaults, on CIFAR-10, there are 46 million parameters.

    Deviations from the authors' code, at its settings for CIFAR-10: the two coordinates come once to each pixel, not
    once for each channel; the sum that attention divides by is not raised by 1e-6; there are weights to start from
    without `initialize` too, with lengths g of each layer's init_scale.

    Args:
        image_shape: (channels, height, width).
        outputs: Parameters of each pixel: 10 K of a mixture of K logistics in colour, 3 K in gray.
        filters: F, channels of the stream.
        num_blocks: Blocks, each with one attention.
        num_resnets: Gated residual blocks of 2 x 2 convolutions in each.
        attention_keys: Channels of keys and queries.
        attention_values: Channels of values; half the filters in the authors' code.
        dropout, num_classes, embedding: As of `DensityNetwork`.

    Raises:
        ValueError: If a size is out of range.
    """

    small: ClassVar = {"filters": 4, "num_blocks": 1, "num_resnets": 1}
    background: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        filters: int = 256,
        num_blocks: int = 12,
        num_resnets: int = 4,
        attention_keys: int = 16,
        attention_values: int = 128,
        dropout: float = 0.5,
        num_classes: int | None = None,
        embedding: int | None = None,
    ) -> None:
        attention = {"attention_keys": attention_keys, "attention_values": attention_values}
        sizes = {"filters": filters, "num_blocks": num_blocks, "num_resnets": num_resnets, **attention}
        super().__init__(image_shape, outputs, embedding=embedding, num_classes=num_classes, dropout=dropout, **sizes)
        height, width = image_shape[1:]
        self.filters, channels = filters, self.in_channels

        self.first_above = DownShiftedConv2d(channels + 1, filters, (1, 3))
        self.first_left = DownRightShiftedConv2d(channels + 1, filters, (2, 1))
        blocks = [
            Block(channels, filters, num_resnets, attention_keys, attention_values, dropout, num_classes)
            for _ in range(num_blocks)
        ]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.last = WeightNormConv2d(filters, outputs)
        # A function of the arguments, as they are not stored.
        self.register_buffer("background", coordinates(height, width), persistent=False)

    def init_cache(self, batch: int, device: torch.device, labels: Tensor | None = None) -> PixelSNAILCache:
        """For `batch` pictures of which no pixel is known; the weights are taken as they are now."""
        check_labels(labels, self.num_classes)
        height, width = self.image_shape[1:]
        count = height * width
        with torch.no_grad():
            weights = step_weights(self, labels)
        new = self.background.new_zeros
        inputs = new(batch, count + 1, self.in_channels + 1)
        inputs[:, :-1, -1] = 1
        # What lies before a pixel; and before the first, which has nothing to attend to, a zero after the last.
        masks = self.background.new_full((count, count + 1), -torch.inf).triu()
        masks[0, -1] = 0
        blocks, layers = len(self.blocks), 2 * weights.own_first.shape[0]
        keys, values = self.blocks[0].attention_keys, self.blocks[0].attention_values
        return PixelSNAILCache(
            images=inputs[:, :-1, :-1].mT.unflatten(2, (height, width)),
            inputs=inputs,
            known=new(2 * width + 1, layers, batch, self.filters),
            ends=new(2 * width + 1, blocks, batch, self.filters),
            keys=new(blocks, batch, count + 1, keys),
            values=new(blocks, batch, count + 1, values),
            labels=labels,
            places=places_of(height, width, device),
            indices=step_indices(height, width, device),
            masks=masks,
            background=self.background.flatten(1).T.contiguous(),
            weights=weights,
        )

    @torch.no_grad()
    def prefill(self, cache: PixelSNAILCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one."""
        width = self.image_shape[2]
        maps: list[BlockMaps] = []
        self._whole(cache.images, cache.labels, maps)
        layers = [layer for block in maps for layer in block.firsts] + [x for block in maps for x in block.seconds]
        # The row above and the pixel's own, the rest of which is written again before it is read.
        for row in range(max(0, position // width - 1), position // width + 1):
            slots = slice(row % 2 * width, row % 2 * width + width)
            for number, layer in enumerate(layers):
                cache.known[slots, number] = layer[:, :, row].permute(2, 0, 1)
            for number, block in enumerate(maps):
                cache.ends[slots, number] = block.end[:, :, row].permute(2, 0, 1)
        for number, block in enumerate(maps):
            cache.keys[number, :, :-1] = block.keys
            cache.values[number, :, :-1] = block.values

    def _whole(self, images: Tensor, labels: Tensor | None, maps: list[BlockMaps] | None) -> Tensor:
        inputs = with_ones(images)
        features = shift_down(self.first_above(inputs)) + shift_right(self.first_left(inputs))
        background = self.background.expand(len(images), -1, -1, -1)
        for block in self.blocks:
            features, of_block = block(features, images, background, labels)
            if maps is not None:
                maps.append(of_block)
        return self.last(F.elu(features))

    def _pixel(self, cache: PixelSNAILCache, place: Tensor) -> Tensor:
        weights = cache.weights
        indices = cache.indices.index_select(0, place).squeeze(0).split(PARTS_OF_INDICES)
        pixels, around, now, before, place_before = indices
        self._remember(cache, before, place_before)

        known = cache.known.index_select(0, around).permute(1, 2, 0, 3).flatten(2)  # [2 K, N, 3 F]
        count = len(weights.own_first)
        of_firsts = torch.baddbmm(weights.first_bias, known[:count], weights.first_around).unbind(0)
        of_seconds = torch.baddbmm(weights.second_bias, known[count:], weights.second_around).unbind(0)
        features = cache.inputs.index_select(1, pixels).flatten(1) @ weights.start
        mask = cache.masks.index_select(0, place).unsqueeze(0)
        background = cache.background.index_select(0, place).expand(len(features), -1)

        firsts: list[Tensor] = []
        seconds: list[Tensor] = []
        ends: list[Tensor] = []
        for number, (query, ask, join) in enumerate(zip(weights.queries, weights.asks, weights.joins, strict=True)):
            for _ in range(count // len(weights.queries)):
                layer = len(firsts)
                firsts.append(F.elu(features))
                seconds.append(F.elu(torch.addmm(of_firsts[layer], firsts[-1], weights.own_first[layer])))
                update = torch.addmm(of_seconds[layer], seconds[-1], weights.own_second[layer])
                features = features + F.glu(update, dim=1)
            ends.append(features)
            asked = torch.cat([features, background], dim=1)
            asked = torch.addmm(ask[1], gated_at_pixel(asked, asked, query), ask[0])
            scores = torch.baddbmm(mask, asked.unsqueeze(1), cache.keys[number].mT)
            mixed = (scores.softmax(2) @ cache.values[number]).squeeze(1)
            features = gated_at_pixel(features, torch.cat([features, mixed], dim=1), join)

        cache.known.index_copy_(0, now, torch.stack(firsts + seconds).unsqueeze(0))
        cache.ends.index_copy_(0, now, torch.stack(ends).unsqueeze(0))
        return torch.addmm(weights.last[1], F.elu(features), weights.last[0])

    def _remember(self, cache: PixelSNAILCache, before: Tensor, place_before: Tensor) -> None:
        """Make keys and values of the pixel before in all blocks.

        Before the first pixel it makes some of nothing, at the first, which are made again before they are used.
        """
        first, first_bias, second, second_bias = cache.weights.contents
        tell, tell_bias = cache.weights.tells
        blocks = len(first)
        ends = cache.ends.index_select(0, before).squeeze(0)  # [blocks, N, F]
        pixel = cache.inputs.index_select(1, place_before)[:, 0, :-1].expand(blocks, -1, -1)
        background = cache.background.index_select(0, place_before).expand(*ends.shape[:2], -1)
        told = torch.cat([pixel, ends, background], dim=2)
        hidden = F.elu(torch.baddbmm(first_bias, F.elu(told), first))
        told = told + F.glu(torch.baddbmm(second_bias, hidden, second), dim=2)
        told = torch.baddbmm(tell_bias, told, tell).unsqueeze(2)
        keys, values = told.split([cache.keys.shape[3], cache.values.shape[3]], dim=3)
        cache.keys.index_copy_(2, place_before, keys)
        cache.values.index_copy_(2, place_before, values)


class BlockMaps(NamedTuple):
    """What a block's steps need of earlier pixels, of whole pictures."""

    firsts: list[Tensor]
    """Inputs of the first convolutions of its residual blocks, each `[N, F, H, W]`."""

    seconds: list[Tensor]
    """Inputs of the second ones."""

    end: Tensor
    """What comes out of the residual blocks, `[N, F, H, W]`."""

    keys: Tensor
    """`[N, H * W, attention_keys]`."""

    values: Tensor
    """`[N, H * W, attention_values]`."""


class Block(nn.Module):
    """Gated residual blocks of convolutions, then attention, and a residual block of 1 x 1 that joins the two.

    Keys and values come from [the picture, the features, the coordinates] and queries from [the features, the
    coordinates], each through a residual block of 1 x 1 convolutions and one more convolution.

    Args:
        channels: Of the picture.
        filters: F, channels of the features.
        num_resnets: Residual blocks of 2 x 2 convolutions.
        attention_keys: Channels of keys and queries.
        attention_values: Channels of values.
        dropout: See `GatedResidual`.
        num_classes: None without labels.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        num_resnets: int,
        attention_keys: int,
        attention_values: int,
        dropout: float,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.attention_keys, self.attention_values = attention_keys, attention_values
        told, asked = channels + filters + 2, filters + 2
        resnets = [GatedResidual(DownRightShiftedConv2d, filters, 0, dropout, num_classes) for _ in range(num_resnets)]
        self.resnets = cast(Sequence[GatedResidual], nn.ModuleList(resnets))
        self.content = GatedResidual(WeightNormConv2d, told, 0, dropout, num_classes)
        self.tell = WeightNormConv2d(told, attention_keys + attention_values)
        self.query = GatedResidual(WeightNormConv2d, asked, 0, dropout, num_classes)
        self.ask = WeightNormConv2d(asked, attention_keys)
        self.join = GatedResidual(WeightNormConv2d, filters, attention_values, dropout, num_classes)

    def forward(
        self, features: Tensor, images: Tensor, background: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, BlockMaps]:
        """The features to themselves, `[N, F, H, W]`, and what its steps need.

        Args:
            features: Of each pixel, made of those before it.
            images: `[N, C, H, W]`.
            background: See `coordinates`, `[N, 2, H, W]`.
            labels: int64 `[N]`.
        """
        firsts, seconds = [], []
        for resnet in self.resnets:
            firsts.append(F.elu(features))
            features, hidden = resnet(features, firsts[-1], None, labels)
            seconds.append(hidden)
        told = torch.cat([images, features, background], dim=1)
        asked = torch.cat([features, background], dim=1)
        told = self.tell(self.content(told, F.elu(told), None, labels)[0])
        asked = self.ask(self.query(asked, F.elu(asked), None, labels)[0])
        keys, values = told.flatten(2).mT.split([self.attention_keys, self.attention_values], dim=2)
        mixed = causal_attention(asked.flatten(2).mT, keys, values).mT.unflatten(2, features.shape[2:])
        joined, _ = self.join(features, F.elu(features), F.elu(mixed), labels)
        return joined, BlockMaps(firsts, seconds, features, keys, values)


@with_values()
def coordinates(height: int, width: int) -> Tensor:
    """Of each pixel its row and column as a share of the height and width, the middle at 0: `[2, H, W]`."""
    rows, columns = torch.arange(height) / height - 0.5, torch.arange(width) / width - 0.5
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """For each pixel the mean of the values before it, weighted by softmax(q k / sqrt(K)); for the first one zeros.

    Args:
        queries: `[N, P, K]`, of P pixels in the order of their generation.
        keys: `[N, P, K]`.
        values: `[N, P, V]`.

    Returns:
        `[N, P, V]`.
    """
    if queries.shape[1] == 1:
        return torch.zeros_like(values)
    # From the second pixel on, pixel i + 1 sees those up to i: the usual mask, in which no row is empty.
    queries, keys, values = (x.unsqueeze(1) for x in (queries[:, 1:], keys[:, :-1], values[:, :-1]))
    return F.pad(F.scaled_dot_product_attention(queries, keys, values, is_causal=True).squeeze(1), (0, 0, 1, 0))


def step_weights(network: PixelSNAILNetwork, labels: Tensor | None) -> StepWeights:
    """The weights of a network as its steps take them."""
    blocks = network.blocks
    resnets = [resnet for block in blocks for resnet in block.resnets]
    above, left = first_taps(network.first_above, network.first_left)
    firsts = [taps_of(resnet.conv1.weight()) for resnet in resnets]
    seconds = [taps_of(resnet.conv2.weight()) for resnet in resnets]
    contents = [gated_weights(block.content, labels) for block in blocks]
    tells = [matrix_of(block.tell) for block in blocks]
    scale = blocks[0].attention_keys ** -0.5
    return StepWeights(
        start=torch.cat([above, left[None]]).flatten(0, 1),
        first_around=torch.stack([taps[:3].flatten(0, 1) for taps in firsts]),
        first_bias=torch.stack([resnet.first_bias()[None] for resnet in resnets]),
        own_first=torch.stack([taps[3] for taps in firsts]),
        second_around=torch.stack([taps[:3].flatten(0, 1) for taps in seconds]),
        second_bias=torch.stack([resnet.second_bias(labels) for resnet in resnets]),
        own_second=torch.stack([taps[3] for taps in seconds]),
        contents=GatedWeights(*(torch.stack(parts) for parts in zip(*contents, strict=True))),
        tells=(torch.stack([matrix for matrix, _ in tells]), torch.stack([bias for _, bias in tells])),
        queries=[gated_weights(block.query, labels) for block in blocks],
        asks=[(matrix * scale, bias * scale) for matrix, bias in (matrix_of(block.ask) for block in blocks)],
        joins=[gated_weights(block.join, labels) for block in blocks],
        last=matrix_of(network.last),
    )


def matrix_of(conv: WeightNormalized) -> tuple[Tensor, Tensor]:
    """The weights of a 1 x 1 convolution, `[in, out]`, and its bias, `[1, out]`."""
    return conv.weight().flatten(1).T.contiguous(), conv.b.detach()[None]


def gated_weights(resnet: GatedResidual, labels: Tensor | None) -> GatedWeights:
    """Those of a residual block of 1 x 1 convolutions."""
    first, _ = matrix_of(resnet.conv1)
    if resnet.shortcut is not None:
        first = torch.cat([first, matrix_of(resnet.shortcut)[0]])
    second, _ = matrix_of(resnet.conv2)
    return GatedWeights(first, resnet.first_bias().detach()[None], second, resnet.second_bias(labels))
