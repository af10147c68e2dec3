"""The residual networks of WGAN-GP (1704.00028) and SNGAN (1802.05957, 1802.05637), for pictures of any size."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import ConditionalBatchNorm2d, check_labels
from lightning_gen.layers.freezing import Layers, layers_of
from lightning_gen.layers.normalization import Norm, norm_layer
from lightning_gen.layers.resampling import DownsamplingConv2d, UpsamplingConv2d
from lightning_gen.networks.building import (
    SpectralNormKind,
    base_size,
    check_sizes,
    count_halvings,
    crop_center,
    initialize_xavier,
    normalize_spectrum,
)

LARGE = 48
"""From this smaller side on, the width of SNGAN's networks changes with the size."""


class UpsamplingBlock(nn.Module):
    """Shortcut + residual: norm, ReLU, doubling, 3 x 3 convolution, norm, ReLU, 3 x 3 convolution.

    The shortcut is a doubling and a 1 x 1 convolution. They commute, so the convolution comes first, at a quarter of
    the cost.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        norm: Of both convolutions' inputs.
        num_classes: With classes, batch norm is conditional.
    """

    def __init__(self, inputs: int, outputs: int, *, norm: Norm, num_classes: int | None) -> None:
        super().__init__()
        self.norm1 = conditional_norm(norm, inputs, num_classes)
        self.conv1 = UpsamplingConv2d(inputs, outputs)
        self.norm2 = conditional_norm(norm, outputs, num_classes)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        initialize_xavier(self.conv1, math.sqrt(2))
        initialize_xavier(self.conv2, math.sqrt(2))
        initialize_xavier(self.shortcut)

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, 2 H, 2 W]`."""
        # No ReLU works in place: the shortcut needs the features as they came.
        hidden = self.conv1(F.relu(normalize(self.norm1, features, labels)))
        hidden = self.conv2(F.relu(normalize(self.norm2, hidden, labels)))
        return hidden + F.interpolate(self.shortcut(features), scale_factor=2.0)


class DiscriminatorBlock(nn.Module):
    """Shortcut + residual: norm, ReLU, 3 x 3 convolution, norm, ReLU, 3 x 3 convolution, [2 x 2 mean].

    The shortcut is a 1 x 1 convolution, and the mean, where the block changes the channels or halves; they commute, so
    the mean comes first, at a quarter of the cost. Else it is the identity.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        halve: Whether height and width are halved, rounding down.
        first: Whether the block sees the pictures: then nothing comes before its first convolution, which already has
            as many channels as the second. In every other block it has those of the input.
        norm: Of both convolutions' inputs.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool, first: bool = False, norm: Norm = "none") -> None:
        super().__init__()
        hidden = outputs if first else inputs
        self.residual = nn.Sequential(
            *([] if first else [*norm_layer(norm, inputs), nn.ReLU()]),
            nn.Conv2d(inputs, hidden, 3, padding=1),
            *norm_layer(norm, hidden),
            nn.ReLU(),
            DownsamplingConv2d(hidden, outputs) if halve else nn.Conv2d(hidden, outputs, 3, padding=1),
        )
        self.shortcut = nn.Sequential()
        if halve:
            self.shortcut.append(nn.AvgPool2d(2))
        if halve or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1))
        initialize_xavier(self.residual, math.sqrt(2))
        initialize_xavier(self.shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H, W]`, or half as high and wide."""
        return self.residual(features) + self.shortcut(features)


class ResidualGenerator(nn.Module):
    """A linear layer, residual blocks that double, then batch norm, ReLU, a 3 x 3 convolution and tanh.

    One builder serves every size. The picture is halved until its smaller side would fall below `base`, which gives the
    size to start from and the number of blocks. Where a side is not a multiple of 2^blocks, the next multiple is made
    and its middle is kept. Below 48 pixels every layer has `filters` channels. From 48 on the last block has a quarter
    of `filters`, each layer before it twice as many, up to 4 x filters. With the defaults these are the networks of
    SNGAN's appendix and code:

    | picture | from | channels | parameters (RGB, 128 latents) |
    | --- | --- | --- | --- |
    | 32 x 32 | 4 x 4 | 256, 256, 256, 256 | 4,276,739 |
    | 48 x 48 | 6 x 6 | 512, 256, 128, 64 | 4,878,083 |
    | 64 x 64 | 4 x 4 | 1024, 512, 256, 128, 64 | 12,220,675 |
    | 128 x 128 | 4 x 4 | 1024, 1024, 512, 256, 128, 64 | 32,150,787 |
    | 28 x 28 | 7 x 7 | 256, 256, 256 | 4,119,555 |

    With classes, batch norm in the blocks is conditional, the last one plain, as in 1802.05637. Weights start as in its
    code: Xavier's distribution, times sqrt(2) in the residual convolutions; biases at 0.

    Deviations: none from SNGAN but PyTorch's momentum and epsilon of batch norm. WGAN-GP's own net for 32 x 32 is this
    one with `filters=128`.

    Args:
        image_shape: (channels, height, width), of any size.
        latent_size: Width of the latents; 128 in the papers.
        filters: Channels, see above.
        norm: "batch" in the papers.
        base: Smallest height or width to start from.
        num_classes: Number of classes; None for a network without labels. Needs batch norm.

    Raises:
        ValueError: If a size is below 1, or there are classes without batch norm.
    """

    small: ClassVar = {"filters": 4}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        filters: int = 256,
        norm: Norm = "batch",
        base: int = 4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, latent_size=latent_size, filters=filters, base=base)
        self.image_shape = image_shape
        self.latent_size = latent_size
        self.num_classes = num_classes
        doublings = count_halvings(image_shape, base)
        widths = [filters] * (doublings + 1)
        if min(image_shape[1:]) >= LARGE:
            widths = [min(max(1, filters // 4) * 2**i, 4 * filters) for i in reversed(range(doublings + 1))]
        height, width = base_size(image_shape, doublings)
        self.project = nn.Sequential(
            nn.Linear(latent_size, widths[0] * height * width), nn.Unflatten(1, (widths[0], height, width))
        )
        self.blocks = nn.ModuleList(
            UpsamplingBlock(inputs, outputs, norm=norm, num_classes=num_classes) for inputs, outputs in pairwise(widths)
        )
        self.head = nn.Sequential(
            *norm_layer(norm, widths[-1]), nn.ReLU(), nn.Conv2d(widths[-1], image_shape[0], 3, padding=1), nn.Tanh()
        )
        initialize_xavier(self.project)
        initialize_xavier(self.head)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to pictures `[N, C, H, W]` in `[-1, 1]`."""
        check_labels(labels, self.num_classes)
        features = self.project(latents)
        for block in self.blocks:
            features = block(features, labels)
        return crop_center(self.head(features), self.image_shape)


class ResidualDiscriminator(nn.Module):
    """Residual blocks that halve, then ReLU, the sum over all places and one linear score.

    One builder serves every size. Below 48 pixels there are four blocks of `filters` channels, of which the first two
    halve (while the smaller side stays at 4 or above). From 48 on the blocks halve while the smaller side stays at 3 or
    above, with filters / 2, filters, 2 x filters ... channels up to 8 x filters, and a last block keeps the size. With
    the defaults these are the networks of SNGAN's appendix:

    | picture | channels of the halving blocks | of the others | parameters (RGB) |
    | --- | --- | --- | --- |
    | 32 x 32 | 128, 128 | 128, 128 | 1,053,825 |
    | 48 x 48 | 64, 128, 256, 512 | 1024 | 10,141,441 |
    | 64 x 64 | 64, 128, 256, 512 | 1024 | 10,141,441 |
    | 128 x 128 | 64, 128, 256, 512, 1024 | 1024 | 29,017,857 |

    With classes the score is linear(h) + <embedding of the class, h> with the summed features h: the projection
    discriminator (1802.05637). Weights start as in `ResidualGenerator`.

    Deviations: at 64 x 64, which the paper does not have, SNGAN's code halves in the last block too. Spectral norm is
    an option, as WGAN-GP's critic has none. WGAN-GP's own net takes the mean over all places.

    Args:
        image_shape: (channels, height, width), of any size.
        filters: Channels, see above.
        norm: Before the convolutions; "none" in the papers. "instance" also leaves each score to its own picture;
            "batch" does not, so that a gradient penalty would be wrong.
        spectral_norm: Normalise every layer's weight: "reshape" (1802.05957) or "convolution", the exact operator norm.
        pooling: "sum" (SNGAN) or "mean" (WGAN-GP) over all places.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a size is below 1.
    """

    small: ClassVar = {"filters": 4}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: int = 128,
        norm: Norm = "none",
        spectral_norm: SpectralNormKind = "none",
        pooling: Literal["sum", "mean"] = "sum",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, filters=filters)
        if pooling not in ("sum", "mean"):
            raise ValueError(f"pooling must be 'sum' or 'mean', got {pooling!r}.")
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.pooling = pooling
        if min(image_shape[1:]) >= LARGE:
            halvings = count_halvings(image_shape, 3)
            widths = [min(max(1, filters // 2) * 2**i, 8 * filters) for i in range(halvings + 1)]
        else:
            halvings = min(2, count_halvings(image_shape, 4))
            widths = [filters] * 4
        blocks = [
            DiscriminatorBlock(inputs, outputs, halve=i < halvings, first=i == 0, norm=norm)
            for i, (inputs, outputs) in enumerate(pairwise([image_shape[0], *widths]))
        ]
        self.features = nn.Sequential(*blocks, *norm_layer(norm, widths[-1]), nn.ReLU())
        self.score = nn.Linear(widths[-1], 1)
        initialize_xavier(self.score)
        self.embedding = None
        if num_classes is not None:
            self.embedding = nn.Embedding(num_classes, widths[-1])
            initialize_xavier(self.embedding)
        normalize_spectrum(self, image_shape, spectral_norm, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]`, and labels int64 `[N]` where there are classes, to scores `[N]`."""
        check_labels(labels, self.num_classes)
        features = self.features(images)
        pooled = features.sum(dim=(2, 3)) if self.pooling == "sum" else features.mean(dim=(2, 3))
        scores = self.score(pooled).squeeze(1)
        if self.embedding is None:
            return scores
        return scores + (self.embedding(labels) * pooled).sum(dim=1)

    def layers_in_order(self) -> Layers:
        """The blocks, and the score."""
        return [*layers_of(self.features), [self.score, *([] if self.embedding is None else [self.embedding])]]


def conditional_norm(norm: Norm, channels: int, num_classes: int | None) -> nn.Module:
    """One normalisation layer of that name; with classes it must be batch norm and is conditional."""
    if num_classes is None:
        return next(iter(norm_layer(norm, channels)), nn.Identity())
    if norm != "batch":
        raise ValueError(f"ResidualGenerator with num_classes conditions batch norm; got norm={norm!r}. Take 'batch'.")
    return ConditionalBatchNorm2d(channels, num_classes)


def normalize(norm: nn.Module, features: Tensor, labels: Tensor | None) -> Tensor:
    """Call the layer with the labels if it takes them."""
    return norm(features, labels) if isinstance(norm, ConditionalBatchNorm2d) else norm(features)
