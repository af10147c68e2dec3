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
from lightning_gen.layers.masked import (
    MaskedConv2d,
    Matrix,
    at_pixel,
)
from lightning_gen.losses.categorical import check_num_levels
from lightning_gen.networks.building import check_image_shape
from lightning_gen.networks.stepping import Run, call, places_of


class PixelCNNNetwork(nn.Module):
    """A stack of masked convolutions (1601.06759, table 1): a 7 x 7 one, residual blocks, and a head of 1 x 1.

    It has a blind spot: pixels to the right above, up to a quarter of what it could see, never reach a pixel.
    `GatedPixelCNNNetwork` has none.

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
        """Pictures `[N, C, H, W]` in `[-1, 1]` to logits `[N, L, C, H, W]`, or `[N, 1, C, H, W]` for 2 levels.

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
        inputs = like.new_zeros(batch, height * width + 1, channels)
        return PixelCNNCache(
            images=inputs[:, :-1].mT.unflatten(2, (height, width)),
            inputs=inputs,
            known=[inputs.new_zeros(*inputs.shape[:2], block.middle.in_channels) for block in self.blocks],
            places=places_of(height, width, device),
            taps=(self.input.taps(height, width), self.blocks[0].middle.taps(height, width)),
            first=self.input.matrix(),
            matrices=[(block.inner.matrix(), block.middle.matrix(), block.outer.matrix()) for block in self.blocks],
            head=self.head.matrices(),
        )

    @torch.no_grad()
    def prefill(self, cache: PixelCNNCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one.

        Args:
            cache: From `init_cache`; its `images` hold these pixels, and finite numbers in the others.
            position: Flat index of the pixel to be stepped next. Those after it in its row are computed too, and
                written again when they are stepped.
        """
        width = self.image_shape[2]
        rows = position // width + 1
        features = self.input(cache.images[:, :, :rows])
        for block, known in zip(self.blocks, cache.known, strict=True):
            hidden = block.inner(features.relu()).relu()
            known[:, : rows * width] = hidden.flatten(2).mT
            features = features + block.outer(block.middle(hidden).relu())

    @torch.no_grad()
    def step(self, cache: PixelCNNCache, position: int, run: Run = call) -> Tensor:
        """Logits of one pixel, `[N, L, C]`, or `[N, 1, C]` for 2 levels.

        Those of a channel are right once the channels before it of this pixel stand in `cache.images`, finite numbers
        in the others. So a pixel of C channels takes C calls, one after each channel that is drawn.

        Args:
            cache: From `init_cache`; pixels before this one stand in its `images` and went through here in order, or
                through `prefill`.
            position: Flat index, row * width + column.
            run: Calls the step's one piece.
        """
        return run(self._pixel, cache, cache.places[position])

    def _pixel(self, cache: PixelCNNCache, place: Tensor) -> Tensor:
        first, near = (table.index_select(0, place).view(-1) for table in cache.taps)
        features = at_pixel(cache.inputs, first, cache.first)
        for known, (inner, middle, outer) in zip(cache.known, cache.matrices, strict=True):
            hidden = F.linear(features.relu(), *inner).relu_()
            known.index_copy_(1, place, hidden.unsqueeze(1))
            features = features + F.linear(at_pixel(known, near, middle).relu_(), *outer)
        return self.head.step(features, cache.head)


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


class Head(nn.Module):
    """ReLU, 1 x 1, ReLU, 1 x 1 to the logits, under mask B."""

    def __init__(self, in_channels: int, filters: int, num_levels: int, image_channels: int) -> None:
        super().__init__()
        self.shape = (1 if num_levels == 2 else num_levels, image_channels)
        self.hidden = MaskedConv2d(in_channels, filters, 1, "B", image_channels)
        self.output = MaskedConv2d(filters, self.shape[0] * image_channels, 1, "B", image_channels)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, L, C, H, W]`, or `[N, 1, C, H, W]` for 2 levels."""
        return self._logits(self.output(self.hidden(features.relu()).relu()))

    def matrices(self) -> tuple[Matrix, Matrix]:
        """For `step`."""
        return self.hidden.matrix(), self.output.matrix()

    def step(self, features: Tensor, matrices: tuple[Matrix, Matrix]) -> Tensor:
        """`[N, in]` of one pixel to `[N, L, C]`, or `[N, 1, C]` for 2 levels."""
        for matrix in matrices:
            features = F.linear(features.relu(), *matrix)
        return self._logits(features)

    def _logits(self, outputs: Tensor) -> Tensor:
        # Level by level, channels within: so output i belongs to channel i modulo C, as MaskedConv2d has it.
        return outputs.unflatten(1, self.shape)


@dataclass(frozen=True, eq=False)
class PixelCNNCache:
    """Of `PixelCNNNetwork`: inputs of all convolutions that look beyond their pixel, and all weights as matrices.

    Args:
        images: `[N, C, H, W]`, a view of the inputs.
        inputs: `[N, H * W + 1, C]`: the pixels, and a last row of zeros.
        known: Inputs of the 3 x 3 convolutions, `[N, H * W + 1, h]`, the last row zeros.
        places: Of all positions, int64 `[H * W, 1]`.
        taps: Of the first layer and of the 3 x 3 convolutions.
        first: Of the first layer.
        matrices: Of the blocks.
        head: Of the head.
    """

    images: Tensor
    inputs: Tensor
    known: list[Tensor]
    places: Tensor
    taps: tuple[Tensor, Tensor]
    first: Matrix
    matrices: list[tuple[Matrix, Matrix, Matrix]]
    head: tuple[Matrix, Matrix]


def _check(name: str, image_shape: tuple[int, int, int], filters: int, layers: int, head_filters: int) -> None:
    check_image_shape(image_shape)
    if min(filters, head_filters) < image_shape[0] or layers < 1:
        raise ValueError(
            f"{name} needs layers >= 1, and filters and head_filters of at least the {image_shape[0]} channels of the "
            f"picture, of which each has features of its own; got {layers}, {filters} and {head_filters}."
        )
