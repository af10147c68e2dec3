"""Generators of CycleGAN (1703.10593) and pix2pix (1611.07004): the ResNet and the U-Net, both fully convolutional."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.convolution import same_conv
from lightning_gen.layers.normalization import Norm, conv_bias, norm_layer
from lightning_gen.networks.building import check_divisible, initialize_normal

Padding = Literal["reflect", "zeros"]
Upsampling = Literal["transposed", "resize"]


class ResidualBlock(nn.Module):
    """x + f(x) with f = conv, norm, ReLU, [dropout], conv, norm; nothing after the sum.

    Args:
        channels: Channels in and out.
        norm: See `norm_layer`.
        padding: Of both 3 x 3 convolutions.
        dropout: Probability of dropout between them; 0 adds no layer.
    """

    def __init__(
        self, channels: int, *, norm: Norm = "instance", padding: Padding = "reflect", dropout: float = 0.0
    ) -> None:
        super().__init__()

        def conv() -> nn.Conv2d:
            return same_conv(channels, channels, 3, reflect=padding == "reflect", bias=conv_bias(norm))

        self.residual = nn.Sequential(
            conv(),
            *norm_layer(norm, channels),
            nn.ReLU(inplace=True),
            *([nn.Dropout(dropout)] if dropout else []),
            conv(),
            *norm_layer(norm, channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        return images + self.residual(images)


class ResNetGenerator(nn.Module):
    """The ResNet generator: 7 x 7 convolution, two halvings, residual blocks, two doublings, 7 x 7 convolution, tanh.

    With the defaults it is `resnet_9blocks` of the reference implementation, to the parameter: 11,378,179. The paper
    takes 6 blocks at 128 x 128 and 9 from 256 x 256 on.

    Args:
        image_shape: (channels, height, width). The network is fully convolutional: height and width are only checked.
        filters: Channels after the first convolution; doubled by each halving.
        blocks: Number of residual blocks.
        downsamplings: Number of halvings; 2 in the paper. Fewer keep more detail in small pictures.
        norm: "instance" (paper), "batch" or "none".
        dropout: Probability inside the residual blocks; 0.5 in the reference where dropout is asked for.
        padding: "reflect" (paper) or "zeros", for the 7 x 7 and the residual convolutions.
        upsampling: "transposed" (paper): 3 x 3 transposed convolution of stride 2; "resize": nearest-neighbour doubling
            and a 3 x 3 convolution, which leaves no checkerboards (Odena et al. 2016). The parameter counts are equal.
        out_channels: Channels of the result; None means as many as the input.
        init_std: Standard deviation of the initial weights.

    Raises:
        ValueError: If height or width is not a multiple of 2^downsamplings, or a number is out of range.
    """

    small: ClassVar = {"filters": 4, "blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: int = 64,
        blocks: int = 9,
        downsamplings: int = 2,
        norm: Norm = "instance",
        dropout: float = 0.0,
        padding: Padding = "reflect",
        upsampling: Upsampling = "transposed",
        out_channels: int | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if filters < 1 or blocks < 0 or downsamplings < 0:
            raise ValueError(
                "ResNetGenerator needs filters >= 1, blocks >= 0 and downsamplings >= 0, "
                f"got {filters}, {blocks} and {downsamplings}."
            )
        self.size_multiple = 2**downsamplings
        check_divisible(image_shape, self.size_multiple, type(self).__name__)
        channels, bias = image_shape[0], conv_bias(norm)

        def wide_conv(inputs: int, outputs: int, bias: bool) -> nn.Conv2d:
            return same_conv(inputs, outputs, 7, reflect=padding == "reflect", bias=bias)

        def doubling(inputs: int, outputs: int) -> list[nn.Module]:
            if upsampling == "transposed":
                return [nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=bias)]
            if upsampling == "resize":
                conv = same_conv(inputs, outputs, 3, reflect=padding == "reflect", bias=bias)
                return [nn.Upsample(scale_factor=2, mode="nearest"), conv]
            raise ValueError(f"upsampling must be 'transposed' or 'resize', got {upsampling!r}.")

        layers: list[nn.Module] = [
            wide_conv(channels, filters, bias),
            *norm_layer(norm, filters),
            nn.ReLU(inplace=True),
        ]
        widths = [filters * 2**i for i in range(downsamplings + 1)]
        for width in widths[:-1]:
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias), *norm_layer(norm, 2 * width)]
            layers += [nn.ReLU(inplace=True)]
        layers += [ResidualBlock(widths[-1], norm=norm, padding=padding, dropout=dropout) for _ in range(blocks)]
        for width in reversed(widths[1:]):
            layers += [*doubling(width, width // 2), *norm_layer(norm, width // 2), nn.ReLU(inplace=True)]
        layers += [wide_conv(filters, out_channels or channels, True), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        initialize_normal(self, init_std)

    def forward(self, images: Tensor) -> Tensor:
        """Translate `[N, C, H, W]` in `[-1, 1]`, H and W multiples of 4, to the same size in `[-1, 1]`."""
        return self.layers(images)


class UNetGenerator(nn.Module):
    """The U-Net generator of pix2pix: `depth` halvings down to the bottleneck, the same way up, skips between.

    With the defaults it is `unet_256` of the reference implementation as pix2pix uses it; `depth=7` is `unet_128`.
    With `norm="instance"` they have 54,409,603 and 41,825,667 parameters.

    Args:
        image_shape: (channels, height, width); height and width must be multiples of 2^depth.
        filters: Channels after the first halving; doubled by each one up to 8 x filters.
        depth: Number of halvings, at least 5.
        norm: "batch" (pix2pix) or "instance" (as CycleGAN uses it) or "none".
        dropout: Probability in the widest decoder blocks, all but the innermost; 0.5 in pix2pix.
        out_channels: Channels of the result; None means as many as the input.
        init_std: Standard deviation of the initial weights.

    Raises:
        ValueError: If height or width is not a multiple of 2^depth, or depth is below 5.
    """

    small: ClassVar = {"filters": 4, "depth": 5}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: int = 64,
        depth: int = 8,
        norm: Norm = "batch",
        dropout: float = 0.5,
        out_channels: int | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if depth < 5:
            raise ValueError(f"UNetGenerator needs depth >= 5, got {depth}.")
        self.size_multiple = 2**depth
        check_divisible(image_shape, self.size_multiple, f"{type(self).__name__} of depth {depth}")
        channels, bias = image_shape[0], conv_bias(norm)
        widths = [channels] + [filters * min(2**i, 8) for i in range(depth)]

        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for i in range(depth):
            outermost, innermost = i == 0, i == depth - 1
            conv = nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1, bias=bias)
            self.down.append(
                nn.Sequential(
                    *([] if outermost else [nn.LeakyReLU(0.2)]),
                    conv,
                    *([] if outermost or innermost else norm_layer(norm, widths[i + 1])),
                )
            )
        for i in reversed(range(depth)):
            outermost, innermost = i == 0, i == depth - 1
            inputs = widths[i + 1] * (1 if innermost else 2)
            outputs = (out_channels or channels) if outermost else widths[i]
            conv_up = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=outermost or bias)
            # The reference drops out where a block is as wide outside as inside, except in the innermost one.
            drops = dropout > 0 and 4 <= i < depth - 1
            self.up.append(
                nn.Sequential(
                    nn.ReLU(),
                    conv_up,
                    *([nn.Tanh()] if outermost else norm_layer(norm, outputs)),
                    *([nn.Dropout(dropout)] if drops else []),
                )
            )
        initialize_normal(self, init_std)

    def forward(self, images: Tensor) -> Tensor:
        """Translate `[N, C, H, W]` in `[-1, 1]`, H and W multiples of 2^depth, to the same size in `[-1, 1]`."""
        skips: list[Tensor] = []
        features = images
        for down in self.down:
            features = down(features)
            skips.append(features)
        features = self.up[0](skips.pop())
        for up in list(self.up)[1:]:
            features = up(torch.cat([skips.pop(), features], dim=1))
        return features


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Reflect `[N, C, H, W]` at the right and lower edge until height and width are multiples.

    Where an edge is longer than the picture, which reflection cannot serve, the last row or column is repeated.
    """
    height, width = images.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    mode = "reflect" if right < width and bottom < height else "replicate"
    return F.pad(images, (0, right, 0, bottom), mode=mode) if right or bottom else images
