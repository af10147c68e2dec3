"""R3GAN (2501.05441): residual networks of 1 x 1 and grouped 3 x 3 convolutions, without normalisation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.freezing import Layers, layers_of
from lightning_gen.layers.style import Blur
from lightning_gen.networks.building import base_size, check_sizes, count_halvings, crop_center
from lightning_gen.networks.progan import SLOPE, ChannelBias

EXPANSION = 2  # of channels within a block
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # makes up for a leaky ReLU


class Bottleneck(nn.Module):
    """x + residual: 1 x 1 convolution to twice the channels, grouped 3 x 3 convolution, 1 x 1 convolution back.

    The first two are followed by a bias and a leaky ReLU. Their weights start with a deviation of
    sqrt(2 / 1.04) L^(-1/4) / sqrt(fan in), so that all L blocks of a network change what goes through it by as much as
    one would. Those of the third start at zero, so a block begins as the identity.

    Args:
        channels: Channels in and out.
        group_size: Channels of each group.
        blocks: L.

    Raises:
        ValueError: If groups do not divide the channels within.
    """

    def __init__(self, channels: int, *, group_size: int, blocks: int) -> None:
        super().__init__()
        within = EXPANSION * channels
        if within % group_size:
            raise ValueError(
                f"Of {channels} channels a block makes {within}, which groups of group_size={group_size} do not "
                "divide. Choose another group_size, or other filters."
            )
        gain = GAIN * blocks ** (-1 / 4)
        self.residual = nn.Sequential(
            convolution(channels, within, gain=gain),
            ChannelBias(within),
            nn.LeakyReLU(SLOPE),
            convolution(within, within, 3, groups=within // group_size, gain=gain),
            ChannelBias(within),
            nn.LeakyReLU(SLOPE),
            convolution(within, channels, gain=0.0),
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[N, channels, H, W]` to the same shape."""
        return features + self.residual(features)


def convolution(
    inputs: int, outputs: int, kernel_size: int | tuple[int, int] = 1, *, groups: int = 1, gain: float = 1.0
) -> nn.Conv2d:
    """Without a bias; of a size that keeps that of the picture if it is one odd number, else without padding.

    Weights are drawn from N(0, gain^2 / fan in).
    """
    padding = kernel_size // 2 if isinstance(kernel_size, int) else 0
    layer = nn.Conv2d(inputs, outputs, kernel_size, padding=padding, groups=groups, bias=False)
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    return layer


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Without a bias; weights are drawn from N(0, 1 / inputs)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, 0.0, 1 / math.sqrt(inputs))
    return layer


def embedding(num_classes: int, width: int, gain: float = 1.0) -> nn.Embedding:
    """Of classes; drawn as a linear layer of one-hot vectors is: from N(0, gain^2 / num_classes)."""
    layer = nn.Embedding(num_classes, width)
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(num_classes))
    return layer


def resampling(inputs: int, outputs: int, *, up: bool) -> nn.Sequential:
    """A doubling or a halving by [1, 2, 1] with zero padding, and a 1 x 1 convolution where channels change.

    The blur of a picture doubled by repetition, and the mean of 2 x 2 of a blurred one, are the transposed convolution
    and the convolution by [1, 3, 3, 1] with a stride of 2 that the authors' code has. The convolution is on the side
    of the smaller picture.
    """
    mixing = [convolution(inputs, outputs)] if inputs != outputs else []
    if up:
        return nn.Sequential(*mixing, nn.Upsample(scale_factor=2.0), Blur())
    return nn.Sequential(Blur(), nn.AvgPool2d(2), *mixing)


def widths_of(
    network: nn.Module, image_shape: tuple[int, int, int], filters: int, widest: int, blocks: int, group_size: int
) -> list[int]:
    """Channels of each level, from the smallest on.

    Raises:
        ValueError: If a number is below 1.
    """
    check_sizes(network, image_shape, filters=filters, widest=widest, blocks=blocks, group_size=group_size)
    doublings, side = count_halvings(image_shape, 4), min(image_shape[1:])
    sides = [side / 2 ** (doublings - level) for level in range(doublings + 1)]
    return [max(1, filters >> max(0, math.ceil(math.log2(each / widest)))) for each in sides]


class R3GANGenerator(nn.Module):
    """Learned maps, weighted by a linear function of the latents; then residual blocks and doublings; no tanh.

    One builder serves every size. The picture is halved until its smaller side would fall below 4, which gives the size
    of the maps and the number of levels; where a side is not a multiple of 2^doublings, the next multiple is made and
    its middle is kept. All levels have `filters` channels up to `widest` pixels, and half as many with each further
    doubling. The networks of the paper:

    | pictures | other than the defaults | parameters | of the discriminator |
    | --- | --- | --- | --- |
    | CIFAR-10, 32 x 32 | 10 classes | 20,781,952 | 21,280,512 |
    | FFHQ, 64 x 64 | | 22,429,824 | 22,381,440 |
    | FFHQ, 256 x 256 | | 23,057,952 | 23,009,568 |
    | ImageNet, 32 x 32 | `filters=1536, group_size=32`, 1000 classes | 82,914,304 | 86,548,992 |
    | ImageNet, 64 x 64 | the same and `widest=64` | 103,570,432 | 107,205,120 |

    With classes, an embedding as wide as the latents is concatenated to them.

    Deviations: in the authors' code the larger stages compute in half precision, here all do or none, as the trainer's
    `precision` says.

    Args:
        image_shape: (channels, height, width), of any size.
        latent_size: Width of the latents; 64 in the paper.
        filters: Channels, see above.
        widest: Smaller side of the picture up to which there are so many.
        blocks: Residual blocks of each level.
        group_size: Channels of a group of the grouped convolutions.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a number is below 1, or groups do not divide channels.
    """

    small: ClassVar = {"filters": 4, "blocks": 1, "group_size": 4}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        filters: int = 768,
        widest: int = 32,
        blocks: int = 2,
        group_size: int = 16,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        widths = widths_of(self, image_shape, filters, widest, blocks, group_size)
        check_sizes(self, image_shape, latent_size=latent_size)
        self.image_shape, self.latent_size, self.num_classes = image_shape, latent_size, num_classes
        self.embedding = None if num_classes is None else embedding(num_classes, latent_size)
        self.weigh = linear(latent_size if num_classes is None else 2 * latent_size, widths[0])
        self.maps = nn.Parameter(torch.randn(widths[0], *base_size(image_shape, len(widths) - 1)))
        layers: list[nn.Module] = []
        for before, width in pairwise([0, *widths]):
            layers += [resampling(before, width, up=True)] if before else []
            layers += [Bottleneck(width, group_size=group_size, blocks=blocks * len(widths)) for _ in range(blocks)]
        self.body = nn.Sequential(*layers, convolution(widths[-1], image_shape[0]))

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to pictures `[N, C, H, W]`.

        Their values are about [-1, 1], where a trained network's data has been.
        """
        check_labels(labels, self.num_classes)
        if self.embedding is not None:
            latents = torch.cat([latents, self.embedding(labels).to(latents.dtype)], dim=1)
        features = self.maps * self.weigh(latents)[:, :, None, None]
        return crop_center(self.body(features), self.image_shape)


class R3GANDiscriminator(nn.Module):
    """The mirror of `R3GANGenerator`: residual blocks and halvings, then learned maps and a linear score.

    The maps are a weighted sum over all places of each channel. With classes there are as many numbers as `filters` in
    place of the score, which is their product with an embedding of the class.

    Deviations: as for the generator.

    Args:
        image_shape: As for `R3GANGenerator`, as are all others.
        filters: See there.
        widest: See there.
        blocks: See there.
        group_size: See there.
        num_classes: See there.

    Raises:
        ValueError: As `R3GANGenerator`.
    """

    small: ClassVar = R3GANGenerator.small

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: int = 768,
        widest: int = 32,
        blocks: int = 2,
        group_size: int = 16,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        widths = widths_of(self, image_shape, filters, widest, blocks, group_size)
        self.image_shape, self.num_classes = image_shape, num_classes
        layers: list[nn.Module] = [convolution(image_shape[0], widths[-1])]
        for width, after in pairwise([*reversed(widths), 0]):
            layers += [Bottleneck(width, group_size=group_size, blocks=blocks * len(widths)) for _ in range(blocks)]
            layers += [resampling(width, after, up=False)] if after else []
        height, width = (side >> (len(widths) - 1) for side in image_shape[1:])
        layers += [convolution(widths[0], widths[0], (height, width), groups=widths[0]), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        self.score = linear(widths[0], 1 if num_classes is None else filters)
        self.embedding = None if num_classes is None else embedding(num_classes, filters, 1 / math.sqrt(filters))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]`, and labels int64 `[N]` where there are classes, to scores `[N]`."""
        check_labels(labels, self.num_classes)
        scores: Tensor = self.score(self.body(images))
        if self.embedding is not None:
            scores = (scores * self.embedding(labels)).sum(dim=1, keepdim=True)
        return scores.squeeze(1)

    def layers_in_order(self) -> Layers:
        """The blocks and what lies between, and the score."""
        return [*layers_of(self.body), [self.score, *([] if self.embedding is None else [self.embedding])]]
