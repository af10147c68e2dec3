"""PatchGAN discriminators (1611.07004): one logit for every overlapping patch, or for every pixel."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from lightning_gen.layers.normalization import Norm, conv_bias, norm_layer
from lightning_gen.networks.building import initialize_normal


class PatchDiscriminator(nn.Module):
    """Judges patches: `layers` convolutions of stride 2, one of stride 1, and a one-channel head, all 4 x 4.

    | layers | receptive field | parameters (RGB, instance norm) |
    | --- | --- | --- |
    | 1 | 16 | 136,385 |
    | 2 | 34 | 662,977 |
    | 3 (papers) | 70 | 2,764,737 |
    | 4 | 142 | 6,959,553 |
    | 5 | 286 | 11,154,369 |

    Args:
        image_shape: (channels, height, width).
        filters: Channels after the first convolution; doubled by each one up to 8 x filters.
        layers: Number of halvings, 1 to 5 in the papers.
        norm: Of all layers but the first and the head.
        init_std: Standard deviation of the initial weights.

    Raises:
        ValueError: If layers is below 1 or the pictures are too small to give a single logit.
    """

    small: ClassVar = {"filters": 4, "layers": 2}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: int = 64,
        layers: int = 3,
        norm: Norm = "instance",
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if layers < 1:
            raise ValueError(f"PatchDiscriminator needs layers >= 1, got {layers}.")
        # Each halving floors, each of the two convolutions of stride 1 takes one; a norm needs more than one logit.
        smallest = 4 * 2**layers
        if min(height, width) < smallest:
            raise ValueError(
                f"PatchDiscriminator with layers={layers} needs pictures of at least {smallest} x {smallest}, "
                f"got {height} x {width}. Take fewer layers or larger pictures."
            )
        widths = [channels] + [filters * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            stride = 2 if i < layers else 1
            stack.append(nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=i == 0 or conv_bias(norm)))
            stack += [*(norm_layer(norm, outputs) if i else []), nn.LeakyReLU(0.2, inplace=True)]
        stack.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*stack)
        initialize_normal(self, init_std)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` in `[-1, 1]` to logits `[N, 1, h, w]`, one a patch."""
        return self.layers(images)


class PixelDiscriminator(nn.Module):
    """Judges every pixel by itself: three 1 x 1 convolutions; receptive field 1, 8,705 parameters on RGB.

    Args:
        image_shape: (channels, height, width); only the channels matter.
        filters: Channels of the first layer; the second has twice as many.
        norm: Of the second layer.
        init_std: Standard deviation of the initial weights.
    """

    small: ClassVar = {"filters": 4}

    def __init__(
        self, image_shape: tuple[int, int, int], *, filters: int = 64, norm: Norm = "instance", init_std: float = 0.02
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(image_shape[0], filters, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(filters, 2 * filters, 1, bias=conv_bias(norm)),
            *norm_layer(norm, 2 * filters),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * filters, 1, 1, bias=conv_bias(norm)),
        )
        initialize_normal(self, init_std)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` in `[-1, 1]` to logits `[N, 1, H, W]`, one a pixel."""
        return self.layers(images)
