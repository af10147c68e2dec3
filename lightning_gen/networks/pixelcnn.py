"""PixelCNN (1601.06759) and Gated PixelCNN (1606.05328): a distribution for each channel of each pixel given the past.

The past of a channel is all pixels above and to the left, and the channels before it of the pixel itself: R, then G
given R, then B given both. Both networks take `init_cache` and `step`, for sampling at the cost of one pixel a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.masked import MaskedConv2d, MaskType, Matrix, VerticalConv2d, gated, shift_down
from lightning_gen.losses.categorical import check_num_levels
from lightning_gen.networks.building import check_image_shape


class PixelCNN(nn.Module):
    """A stack of masked convolutions (1601.06759, table 1): a 7 x 7 one, residual blocks, and a head of 1 x 1.

    It has a blind spot: pixels to the right above, up to a quarter of what it could see, never reach a pixel.
    `GatedPixelCNN` has none.

    The head is ReLU, 1 x 1, ReLU, 1 x 1, whose last gives the logits.

    Args:
        image_shape: (channels, height, width).
        num_levels: L of each channel. With 2 there is one logit of a Bernoulli for each channel.
        filters: h; features are 2h between blocks and h within. The paper has 128 on CIFAR-10.
        layers: Residual blocks after the first layer.
        head_filters: Features of the head; the paper has 1024 on CIFAR-10 and 32 on MNIST.

    Raises:
        ValueError: If a size is out of range, or there are fewer features than channels of the picture.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_levels: int = 256,
        filters: int = 128,
        layers: int = 15,
        head_filters: int = 1024,
    ) -> None:
        super().__init__()
        _check(type(self).__name__, image_shape, filters, layers, head_filters)
        channels = image_shape[0]
        self.image_shape = image_shape
        self.num_levels = check_num_levels(num_levels)
        self.input = MaskedConv2d(channels, 2 * filters, 7, "A", channels)
        blocks = nn.ModuleList(ResidualBlock(filters, channels) for _ in range(layers))
        self.blocks = cast(Sequence[ResidualBlock], blocks)
        self.head = Head(2 * filters, head_filters, num_levels, channels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` to logits `[N, L, C, H, W]`, or `[N, C, H, W]` for 2 levels.

        Raises:
            ValueError: If there are labels, for which this network has no use.
        """
        check_labels(labels, None)
        features = self.input(images)
        for block in self.blocks:
            features = block(features)
        return self.head(features)

    def init_cache(self, batch: int, device: torch.device, labels: Tensor | None = None) -> PixelCNNCache:
        """The cache for `batch` pictures of which no pixel is known, all zeros; the weights must stay until the end."""
        check_labels(labels, None)
        channels, height, width = self.image_shape
        like = self.input.weight.detach().to(device)
        return PixelCNNCache(
            images=like.new_zeros(batch, channels, height, width),
            input=self.input.empty_map(batch, height, width, like),
            maps=[block.middle.empty_map(batch, height, width, like) for block in self.blocks],
            input_matrix=self.input.matrix(),
            matrices=[(block.inner.matrix(), block.middle.matrix(), block.outer.matrix()) for block in self.blocks],
            head=self.head.matrices(),
        )

    @torch.no_grad()
    def prefill(self, cache: PixelCNNCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one.

        Args:
            cache: From `init_cache`; its `images` hold these pixels, and finite numbers in the others.
            position: Flat index of the pixel to be stepped next. All others are computed too, and written again.
        """
        cache.input[:, :, 3:, 3:-3] = cache.images
        features = self.input(cache.images)
        for block, map in zip(self.blocks, cache.maps, strict=True):
            hidden = block.inner(features.relu()).relu()
            map[:, :, 1:, 1:-1] = hidden
            features = features + block.outer(block.middle(hidden).relu())

    def step(self, cache: PixelCNNCache, position: int) -> Tensor:
        """Logits of one pixel, `[N, L, C]`, or `[N, C]` for 2 levels.

        Those of a channel are right once the channels before it of this pixel stand in `cache.images`, finite numbers
        in the others. So a pixel of C channels takes C calls, one after each channel that is drawn.

        Args:
            cache: From `init_cache`; pixels before this one stand in its `images` and went through here in order, or
                through `prefill`.
            position: Flat index, row * width + column.
        """
        # No divmod, and select where a subscript would do, so that one graph is compiled for all positions.
        row, column = position // self.image_shape[2], position % self.image_shape[2]
        # The row above too: its last pixel was drawn after the last step there.
        recent = slice(max(row - 1, 0), row + 1)
        cache.input[:, :, 3:, 3:-3][:, :, recent] = cache.images[:, :, recent]
        features = F.linear(self.input.past(cache.input, row, column), *cache.input_matrix)
        for block, map, (inner, middle, outer) in zip(self.blocks, cache.maps, cache.matrices, strict=True):
            map.select(2, row + 1).select(2, column + 1).copy_(F.linear(features.relu(), *inner).relu())
            features = features + F.linear(F.linear(block.middle.past(map, row, column), *middle).relu(), *outer)
        return self.head.step(features, cache.head)


class GatedPixelCNN(nn.Module):
    """Two stacks of gated convolutions, which together see all of the past (1606.05328, figure 2).

    The vertical stack sees all rows above, the horizontal one the pixels to the left in the row. Before the gate, each
    layer of the horizontal stack also gets the vertical features of the row above, through a 1 x 1 convolution. The
    horizontal stack has residual connections, except around its first layer, and every layer's gate goes to the head,
    which is ReLU, 1 x 1, ReLU, 1 x 1. A class adds a bias before both gates of every layer; the biases start at zero.

    With a kernel of size k and a first one of 7, the vertical stack sees 3 + layers (k // 2) columns to the right.

    Args:
        image_shape: (channels, height, width).
        num_levels: L of each channel. With 2 there is one logit of a Bernoulli for each channel.
        filters: Features of each stack; the paper's largest network has 384.
        layers: Gated layers after the first.
        kernel_size: k of these, odd; 5 in the paper's largest network.
        head_filters: Features of the head.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a size is out of range, the kernel even, or there are fewer features than channels of the
            picture.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_levels: int = 256,
        filters: int = 384,
        layers: int = 20,
        kernel_size: int = 5,
        head_filters: int = 1024,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        _check(type(self).__name__, image_shape, filters, layers, head_filters)
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, or None for no labels; got {num_classes}.")
        channels = image_shape[0]
        self.image_shape = image_shape
        self.num_levels = check_num_levels(num_levels)
        self.num_classes = num_classes
        first = GatedLayer(channels, filters, 7, "A", channels, num_classes)
        others = (GatedLayer(filters, filters, kernel_size, "B", channels, num_classes) for _ in range(layers))
        self.layers = cast(Sequence[GatedLayer], nn.ModuleList([first, *others]))
        self.head = Head(filters, head_filters, num_levels, channels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` to logits `[N, L, C, H, W]`, or `[N, C, H, W]` for 2 levels.

        Raises:
            ValueError: If labels, int64 `[N]`, are missing, or given without classes.
        """
        check_labels(labels, self.num_classes)
        vertical, horizontal, skip = self.layers[0](images, images, labels)
        for layer in self.layers[1:]:
            vertical, update, more = layer(vertical, horizontal, labels)
            horizontal, skip = horizontal + update, skip + more
        return self.head(skip)

    def init_cache(self, batch: int, device: torch.device, labels: Tensor | None = None) -> GatedPixelCNNCache:
        """The cache for `batch` pictures of which no pixel is known, all zeros; the weights must stay until the end.

        Raises:
            ValueError: If labels, int64 `[batch]`, are missing, or given without classes.
        """
        check_labels(labels, self.num_classes)
        channels, height, width = self.image_shape
        like = self.layers[0].vertical.weight.detach().to(device)
        return GatedPixelCNNCache(
            images=like.new_zeros(batch, channels, height, width),
            vertical=[layer.vertical.empty_map(batch, height, width, like) for layer in self.layers],
            horizontal=[layer.horizontal.empty_map(batch, 1, width, like) for layer in self.layers],
            above=[like.new_zeros(batch, layer.link.out_channels, width) for layer in self.layers],
            biases=[tuple(bias.detach() for bias in layer.biases(labels, like)) for layer in self.layers],
            matrices=[(layer.horizontal.matrix(), layer.outer.matrix()) for layer in self.layers],
            head=self.head.matrices(),
        )

    @torch.no_grad()
    def prefill(self, cache: GatedPixelCNNCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one.

        Args:
            cache: From `init_cache`; its `images` hold these pixels, and finite numbers in the others.
            position: Flat index of the pixel to be stepped next.
        """
        width = self.image_shape[2]
        row = position // width
        vertical = horizontal = cache.images
        for number, (layer, (below, beside)) in enumerate(zip(self.layers, cache.biases, strict=True)):
            left, _, top, _ = layer.vertical.margins
            cache.vertical[number][:, :, top:, left : left + width] = vertical
            cache.horizontal[number][:, :, 0, left:] = horizontal[:, :, row]
            seen = layer.vertical(vertical)
            above = layer.link(shift_down(seen)) + beside.unsqueeze(-1)
            cache.above[number].copy_(above[:, :, row])
            update, _ = layer.outer(gated(layer.horizontal(horizontal) + above)).chunk(2, dim=1)
            horizontal = horizontal + update if number else update
            vertical = gated(seen + below.unsqueeze(-1))

    def step(self, cache: GatedPixelCNNCache, position: int) -> Tensor:
        """Logits of one pixel, `[N, L, C]`, or `[N, C]` for 2 levels.

        Those of a channel are right once the channels before it of this pixel stand in `cache.images`, finite numbers
        in the others. So a pixel of C channels takes C calls, one after each channel that is drawn.

        Args:
            cache: From `init_cache`; pixels before this one stand in its `images` and went through here in order, or
                through `prefill`.
            position: Flat index, row * width + column.
        """
        row, column = position // self.image_shape[2], position % self.image_shape[2]  # as in PixelCNN.step
        if column == 0:
            self._begin_row(cache, row)
        cache.horizontal[0][:, :, 0, 3:].copy_(cache.images.select(2, row))
        features = skip = cache.images.new_zeros(())
        for number, (layer, (horizontal, outer)) in enumerate(zip(self.layers, cache.matrices, strict=True)):
            past = layer.horizontal.past(cache.horizontal[number], 0, column)
            across = F.linear(past, *horizontal) + cache.above[number].select(2, column)
            update, more = F.linear(gated(across), *outer).chunk(2, dim=1)
            features, skip = features + update, skip + more
            if number + 1 < len(self.layers):
                left = self.layers[number + 1].horizontal.margins[0]
                cache.horizontal[number + 1].select(3, left + column).copy_(features.unsqueeze(2))
        return self.head.step(skip, cache.head)

    @torch.no_grad()
    def _begin_row(self, cache: GatedPixelCNNCache, row: int) -> None:
        """The vertical stack at the row above, which is complete, and what the horizontal one gets of it at this."""
        width, last = self.image_shape[2], row - 1
        features = cache.images.select(2, max(last, 0))
        for layer, map, above, (vertical, horizontal) in zip(
            self.layers, cache.vertical, cache.above, cache.biases, strict=True
        ):
            if row == 0:
                above.copy_(horizontal.expand_as(above))
                continue
            left, _, top, _ = layer.vertical.margins
            map.select(2, top + last)[:, :, left : left + width].copy_(features)
            seen = layer.vertical.at_row(map, last)
            above.copy_(layer.link(seen).squeeze(2) + horizontal)
            features = gated(seen.squeeze(2) + vertical)


class ResidualBlock(nn.Module):
    """ReLU, 1 x 1 from 2h to h, ReLU, 3 x 3, ReLU, 1 x 1 back to 2h, added to what came in; all under mask B."""

    def __init__(self, filters: int, image_channels: int) -> None:
        super().__init__()
        self.inner = MaskedConv2d(2 * filters, filters, 1, "B", image_channels)
        self.middle = MaskedConv2d(filters, filters, 3, "B", image_channels)
        self.outer = MaskedConv2d(filters, 2 * filters, 1, "B", image_channels)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, 2h, H, W]` to `[N, 2h, H, W]`."""
        return features + self.outer(self.middle(self.inner(features.relu()).relu()).relu())


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        in_channels: Of both stacks.
        filters: F, of both.
        kernel_size: k, odd.
        mask_type: Of the horizontal stack; "A" for the layer that sees the picture.
        image_channels: Of the picture.
        num_classes: None for a layer without labels.
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        kernel_size: int,
        mask_type: MaskType,
        image_channels: int,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.vertical = VerticalConv2d(in_channels, 2 * filters, kernel_size)
        self.link = nn.Conv2d(2 * filters, 2 * filters, 1, bias=False)  # the horizontal convolution has one
        self.horizontal = MaskedConv2d(
            in_channels, 2 * filters, (1, kernel_size), mask_type, image_channels, out_parts=2
        )
        self.outer = MaskedConv2d(filters, 2 * filters, 1, "B", image_channels, out_parts=2)
        self.classes = None
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes, 4 * filters)
            nn.init.zeros_(self.classes.weight)

    def biases(self, labels: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of the vertical and horizontal gates, `[N, 2F, 1]` each, or `[1, 2F, 1]` zeros like `like` without labels."""
        if self.classes is None:
            return (zeros := like.new_zeros(1, self.link.in_channels, 1)), zeros
        vertical, horizontal = self.classes(labels).unsqueeze(-1).chunk(2, dim=1)
        return vertical, horizontal

    def forward(self, vertical: Tensor, horizontal: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Both stacks `[N, in, H, W]` to the vertical one, the horizontal one's residual, and what goes to the head.

        Each is `[N, F, H, W]`.
        """
        seen = self.vertical(vertical)
        across = self.horizontal(horizontal) + self.link(shift_down(seen))
        if self.classes is not None:
            below, beside = (bias.unsqueeze(-1).to(seen.dtype) for bias in self.biases(labels, seen))
            seen, across = seen + below, across + beside
        update, skip = self.outer(gated(across)).chunk(2, dim=1)
        return gated(seen), update, skip


class Head(nn.Module):
    """ReLU, 1 x 1, ReLU, 1 x 1 to the logits, under mask B."""

    def __init__(self, in_channels: int, filters: int, num_levels: int, image_channels: int) -> None:
        super().__init__()
        self.shape = () if num_levels == 2 else (num_levels,)
        self.image_channels = image_channels
        outputs = image_channels * (1 if num_levels == 2 else num_levels)
        self.hidden = MaskedConv2d(in_channels, filters, 1, "B", image_channels)
        self.output = MaskedConv2d(filters, outputs, 1, "B", image_channels)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, L, C, H, W]`, or `[N, C, H, W]` for 2 levels."""
        return self._logits(self.output(self.hidden(features.relu()).relu()))

    def matrices(self) -> tuple[Matrix, Matrix]:
        """For `step`."""
        return self.hidden.matrix(), self.output.matrix()

    def step(self, features: Tensor, matrices: tuple[Matrix, Matrix]) -> Tensor:
        """`[N, in]` of one pixel to `[N, L, C]`, or `[N, C]` for 2 levels."""
        for matrix in matrices:
            features = F.linear(features.relu(), *matrix)
        return self._logits(features)

    def _logits(self, outputs: Tensor) -> Tensor:
        # Level by level, channels within: so output i belongs to channel i modulo C, as MaskedConv2d has it.
        return outputs.unflatten(1, (*self.shape, self.image_channels))


@dataclass(frozen=True, eq=False)
class PixelCNNCache:
    """Of `PixelCNN`: inputs of all convolutions that look beyond their pixel, and all weights as matrices.

    Args:
        images: `[N, C, H, W]`.
        input: The images with margins.
        maps: Inputs of the 3 x 3 convolutions, with margins.
        input_matrix: Of the first layer.
        matrices: Of the blocks.
        head: Of the head.
    """

    images: Tensor
    input: Tensor
    maps: list[Tensor]
    input_matrix: Matrix
    matrices: list[tuple[Matrix, Matrix, Matrix]]
    head: tuple[Matrix, Matrix]


@dataclass(frozen=True, eq=False)
class GatedPixelCNNCache:
    """Of `GatedPixelCNN`; lists have one entry a layer.

    Args:
        images: `[N, C, H, W]`.
        vertical: Inputs of the vertical stack, with margins.
        horizontal: Inputs of the horizontal stack at the present row, with margins.
        above: What the horizontal stack gets at the present row from the rows above and the class, `[N, 2F, W]`.
        biases: Of the class, for both stacks, `[N, 2F, 1]`; zeros `[1, 2F, 1]` without classes.
        matrices: Of the horizontal stack.
        head: Of the head.
    """

    images: Tensor
    vertical: list[Tensor]
    horizontal: list[Tensor]
    above: list[Tensor]
    biases: list[tuple[Tensor, ...]]
    matrices: list[tuple[Matrix, Matrix]]
    head: tuple[Matrix, Matrix]


def _check(name: str, image_shape: tuple[int, int, int], filters: int, layers: int, head_filters: int) -> None:
    check_image_shape(image_shape)
    if min(filters, head_filters) < image_shape[0] or layers < 1:
        raise ValueError(
            f"{name} needs layers >= 1, and filters and head_filters of at least the {image_shape[0]} channels of the "
            f"picture, of which each has features of its own; got {layers}, {filters} and {head_filters}."
        )
