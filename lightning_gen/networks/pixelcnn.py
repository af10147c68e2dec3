"""The network of PixelCNN (van den Oord et al. 2016, 1601.06759), and the head that it shares with its successors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.masked import MaskedConv2d, Matrix, at_pixel
from lightning_gen.networks.density import DensityNetwork, check_features
from lightning_gen.networks.stepping import places_of


class PixelCNNNetwork(DensityNetwork):
    """A stack of masked convolutions (1601.06759, table 1): a 7 x 7 one, residual blocks, and a head of 1 x 1.

    It has a blind spot: pixels to the right above, up to a quarter of what it could see, never reach a pixel.
    `GatedPixelCNNNetwork` has none.

    Args:
        image_shape: (channels, height, width).
        outputs: P C, logits of each pixel: P = L for each channel of L levels, or 1 where these are 2.
        filters: h; features are 2h between blocks and h within. The paper has 128 on CIFAR-10.
        layers: Residual blocks after the first layer.
        head_filters: Features of the head; the paper has 1024 on CIFAR-10 and 32 on MNIST.
        embedding: As of `DensityNetwork`.

    Raises:
        ValueError: If a size is out of range, or there are fewer features than channels of the picture.
    """

    small: ClassVar = {"filters": 4, "layers": 1, "head_filters": 8}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        filters: int = 128,
        layers: int = 15,
        head_filters: int = 1024,
        embedding: int | None = None,
    ) -> None:
        super().__init__(image_shape, outputs, embedding=embedding)
        check_features(self, outputs, filters, layers, head_filters)
        channels = image_shape[0]
        self.input = MaskedConv2d(self.in_channels, 2 * filters, 7, "A", channels)
        blocks = nn.ModuleList(ResidualBlock(filters, channels) for _ in range(layers))
        self.blocks = cast(Sequence[ResidualBlock], blocks)
        self.head = Head(2 * filters, head_filters, outputs, channels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` to logits `[N, P, C, H, W]`; there are no labels."""
        self.check_given(images, labels)
        features = self.input(images)  # [N, 2 h, H, W]
        for block in self.blocks:
            features = block(features)
        return self.head(features)

    def init_cache(self, batch: int, device: torch.device, labels: Tensor | None = None) -> PixelCNNCache:
        """The cache for `batch` pictures of which no pixel is known, all zeros; the weights must stay until the end."""
        check_labels(labels, None)
        height, width = self.image_shape[1:]
        like = self.input.weight.detach().to(device)
        inputs = like.new_zeros(batch, height * width + 1, self.in_channels)
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
        """One forward pass in place of the steps at all pixels before this one; the rest of its row is stepped anew."""
        width = self.image_shape[2]
        rows = position // width + 1
        features = self.input(cache.images[:, :, :rows])
        for block, known in zip(self.blocks, cache.known, strict=True):
            hidden = block.inner(features.relu()).relu()  # [N, h, rows, W]
            known[:, : rows * width] = hidden.flatten(2).mT
            features = features + block.outer(block.middle(hidden).relu())

    def _pixel(self, cache: PixelCNNCache, place: Tensor) -> Tensor:
        first, near = (table.index_select(0, place).view(-1) for table in cache.taps)
        features = at_pixel(cache.inputs, first, cache.first)  # [N, 2 h]
        for known, (inner, middle, outer) in zip(cache.known, cache.matrices, strict=True):
            hidden = F.linear(features.relu(), *inner).relu_()  # [N, h]
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

    def __init__(self, in_channels: int, filters: int, outputs: int, image_channels: int) -> None:
        super().__init__()
        self.shape = (outputs // image_channels, image_channels)
        self.hidden = MaskedConv2d(in_channels, filters, 1, "B", image_channels)
        self.output = MaskedConv2d(filters, outputs, 1, "B", image_channels)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, P, C, H, W]`."""
        return self._logits(self.output(self.hidden(features.relu()).relu()))

    def matrices(self) -> tuple[Matrix, Matrix]:
        """For `step`."""
        return self.hidden.matrix(), self.output.matrix()

    def step(self, features: Tensor, matrices: tuple[Matrix, Matrix]) -> Tensor:
        """`[N, in]` of one pixel to `[N, P, C]`."""
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
