"""Encoders and decoders of VQ-VAE (1711.00937), and of several levels for VQ-VAE-2 (1906.00446)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.networks.building import check_sizes


class VQVAEEncoder(nn.Module):
    """Halvings by 4 x 4 convolutions, a 3 x 3 one, residual blocks, and a 1 x 1 convolution to the features.

    With the defaults the encoder of the authors' example (github.com/google-deepmind/sonnet), which maps 32 x 32 pixels
    to 8 x 8 features. One builder serves every stride: the first convolution has half the filters, all others as many.

    Parameters for (3, 32, 32) and 64 channels: 372,416. Weights start as in the example: from a normal distribution of
    deviation 1 / sqrt(fan in), cut at two deviations; biases at 0.

    Args:
        image_shape: (channels, height, width), of multiples of the stride.
        channels: D, of the features.
        filters: Of the layers.
        residual_filters: Of the 3 x 3 convolution within a residual block.
        blocks: Residual blocks.
        stride: By how much features are smaller than pictures: 2, 4, 8 or another power of two.

    Raises:
        ValueError: If a size is too small, the stride no power of two, or a side of the pictures no multiple of it.
    """

    small: ClassVar = {"filters": 8, "residual_filters": 4, "blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        *,
        filters: int = 128,
        residual_filters: int = 32,
        blocks: int = 2,
        stride: int = 4,
    ) -> None:
        super().__init__()
        sizes = (filters, residual_filters, blocks)
        _check(self, image_shape, [stride], *sizes, channels=channels)
        self.layers = _halvings(image_shape[0], *sizes, stride)
        self.layers.append(nn.Conv2d(filters, channels, 1))
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` to features `[N, channels, H / stride, W / stride]`."""
        return self.layers(images)


class VQVAEDecoder(nn.Module):
    """The mirror of `VQVAEEncoder`: a 3 x 3 convolution, residual blocks, and doublings by 4 x 4 transposed ones.

    Parameters for (3, 32, 32), 64 channels and 3 outputs: 290,307.

    Args:
        image_shape: (channels, height, width), of multiples of the stride.
        channels: D, of the vectors.
        outputs: Channels of what it gives.
        filters: Of the layers.
        residual_filters: Of the 3 x 3 convolution within a residual block.
        blocks: Residual blocks.
        stride: By how much pictures are larger than maps of vectors; the encoder's.

    Raises:
        ValueError: As from `VQVAEEncoder`.
    """

    small: ClassVar = {"filters": 8, "residual_filters": 4, "blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        outputs: int,
        *,
        filters: int = 128,
        residual_filters: int = 32,
        blocks: int = 2,
        stride: int = 4,
    ) -> None:
        super().__init__()
        sizes = (filters, residual_filters, blocks)
        _check(self, image_shape, [stride], *sizes, channels=channels, outputs=outputs)
        self.layers = _doublings(channels, outputs, *sizes, stride)
        _initialize(self)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[N, channels, H / stride, W / stride]` to `[N, outputs, H, W]`."""
        return self.layers(vectors)


class VQVAE2Encoder(nn.Module):
    """Features of several levels, each from the finer one, and what of them is quantized once the coarser ones are.

    Every level is as in `VQVAEEncoder`. A level is quantized from its own features and from what the decoder makes of
    all coarser codes, through a 1 x 1 convolution.

    Parameters for (3, 256, 256) and 64 channels: 672,000.

    Args:
        image_shape: (channels, height, width), of multiples of the product of strides.
        channels: D, of what is quantized.
        filters: Of the layers.
        residual_filters: Of the 3 x 3 convolution within a residual block.
        blocks: Residual blocks of a level.
        strides: From the pictures to the finest level, from there to the next, and so on; each a power of two.

    Raises:
        ValueError: As from `VQVAEEncoder`, or if there is no stride.
    """

    small: ClassVar = {"filters": 8, "residual_filters": 4, "blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        *,
        filters: int = 128,
        residual_filters: int = 32,
        blocks: int = 2,
        strides: Sequence[int] = (4, 2),
    ) -> None:
        super().__init__()
        sizes = (filters, residual_filters, blocks)
        _check(self, image_shape, strides, *sizes, channels=channels)
        inputs = [image_shape[0], *[filters] * (len(strides) - 1)]
        self.levels = nn.ModuleList(_halvings(i, *sizes, stride) for i, stride in zip(inputs, strides, strict=True))
        widths = [filters, *[filters + channels] * (len(strides) - 1)]
        self.heads = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        _initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Pictures `[N, C, H, W]` to the features of all levels from coarse to fine, `[N, filters, h, w]` each."""
        features = [images]
        for level in self.levels:
            features.append(level(features[-1]))
        return features[:0:-1]

    def to_quantize(self, level: int, features: Tensor, context: Tensor | None) -> Tensor:
        """What is quantized at a level, `[N, channels, h, w]`.

        Args:
            level: Its number, from 0, the coarsest.
            features: Its own.
            context: What the decoder makes of all coarser levels, `[N, channels, h, w]`; None for the coarsest.
        """
        return self.heads[level](features if context is None else torch.cat([context, features], 1))


class VQVAE2Decoder(nn.Module):
    """Vectors of several levels to pictures: each level is enlarged to the next and joined with its vectors.

    What is joined so is decoded as by `VQVAEDecoder`: to the picture, and on the way there to a context for each level
    but the coarsest.

    Parameters for (3, 256, 256), 64 channels and 3 outputs: 716,867.

    Args:
        image_shape: (channels, height, width), of multiples of the product of strides.
        channels: D, of the vectors.
        outputs: Channels of what it gives.
        filters: Of the layers.
        residual_filters: Of the 3 x 3 convolution within a residual block.
        blocks: Residual blocks of a level.
        strides: The encoder's.

    Raises:
        ValueError: As from `VQVAE2Encoder`.
    """

    small: ClassVar = {"filters": 8, "residual_filters": 4, "blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        outputs: int,
        *,
        filters: int = 128,
        residual_filters: int = 32,
        blocks: int = 2,
        strides: Sequence[int] = (4, 2),
    ) -> None:
        super().__init__()
        sizes = (filters, residual_filters, blocks)
        _check(self, image_shape, strides, *sizes, channels=channels, outputs=outputs)
        widths = [channels, *[2 * channels] * (len(strides) - 1)]  # of what is joined, from the coarsest level on
        between = list(zip(widths, reversed(strides[1:]), strict=False))
        self.contexts = nn.ModuleList(_doublings(width, channels, *sizes, stride) for width, stride in between)
        self.enlargements = nn.ModuleList(
            nn.ConvTranspose2d(width, channels, 2 * stride, stride, stride // 2) for width, stride in between
        )
        self.layers = _doublings(widths[-1], outputs, *sizes, strides[0])
        _initialize(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The vectors of all levels from coarse to fine, `[N, channels, h, w]` each, to `[N, outputs, H, W]`."""
        return self.layers(self._joined(maps))

    def context(self, maps: Sequence[Tensor]) -> Tensor | None:
        """What the next level is told of the vectors of all coarser ones, `[N, channels, h, w]`; None if none is."""
        return self.contexts[len(maps) - 1](self._joined(maps)) if maps else None

    def _joined(self, maps: Sequence[Tensor]) -> Tensor:
        joined = maps[0]
        for enlarge, finer in zip(self.enlargements, maps[1:], strict=False):
            joined = torch.cat([enlarge(joined), finer], 1)
        return joined


class _Residual(nn.Module):
    """h + 1 x 1 convolution of ReLU of 3 x 3 convolution of ReLU of h."""

    def __init__(self, filters: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(filters, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, filters, 1)

    def forward(self, features: Tensor) -> Tensor:
        # No ReLU works in place: the sum needs the features as they came.
        return features + self.conv2(F.relu(self.conv1(F.relu(features))))


def _halvings(inputs: int, filters: int, residual_filters: int, blocks: int, stride: int) -> nn.Sequential:
    """Pictures or features `[N, inputs, H, W]` to features `[N, filters, H / stride, W / stride]`, none below 0."""
    widths = [inputs, filters // 2, *[filters] * (_log2(stride) - 1)]
    layers: list[nn.Module] = []
    for i in range(_log2(stride)):
        layers += [nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(widths[-1], filters, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, *[_Residual(filters, residual_filters) for _ in range(blocks)], nn.ReLU())


def _doublings(
    inputs: int, outputs: int, filters: int, residual_filters: int, blocks: int, stride: int
) -> nn.Sequential:
    """Vectors `[N, inputs, h, w]` to `[N, outputs, stride h, stride w]`."""
    halved = filters // 2 if stride > 2 else filters
    widths = [*[filters] * (_log2(stride) - 1), halved, outputs]
    layers: list[nn.Module] = [nn.Conv2d(inputs, filters, 3, padding=1)]
    layers += [_Residual(filters, residual_filters) for _ in range(blocks)]
    for i in range(_log2(stride)):
        layers += [nn.ReLU(), nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


def _log2(stride: int) -> int:
    return stride.bit_length() - 1


def _check(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    strides: Sequence[int],
    filters: int,
    residual_filters: int,
    blocks: int,
    **others: int,
) -> None:
    """Raise a `ValueError` unless sizes are large enough, strides powers of two, and sides multiples of all of them."""
    check_sizes(network, image_shape, residual_filters=residual_filters, **others)
    kind, (_, height, width) = type(network).__name__, image_shape
    if filters < 2 or blocks < 0:
        raise ValueError(f"{kind} needs filters >= 2 and blocks >= 0, got {filters} and {blocks}.")
    if not strides or any(stride < 2 or stride & (stride - 1) for stride in strides):
        got = strides[0] if len(strides) == 1 else list(strides)
        raise ValueError(f"Each stride of {kind} must be a power of two, as 2, 4 or 8; got {got}.")
    whole = math.prod(strides)
    if height % whole or width % whole:
        below, above = (
            " x ".join(str(max(whole, side // whole * whole)) for side in (height + more, width + more))
            for more in (0, whole - 1)
        )
        nearest = above if above == below else f"{below} and {above}"
        raise ValueError(
            f"{kind} gives features {whole} times smaller, so height and width must be multiples of {whole}; got "
            f"{height} x {width}. The nearest sizes that fit: {nearest}."
        )


def _initialize(network: nn.Module) -> None:
    """Draw every weight from N(0, 1 / fan in), cut at two deviations, in place; biases become 0. So does Sonnet."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            std = (module.in_channels * math.prod(module.kernel_size)) ** -0.5
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
