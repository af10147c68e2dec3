"""Encoder and decoder of DALL-E's discrete variational autoencoder (2102.12092, appendix A.1, and its code)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from lightning_gen.losses.densities import logit_laplace_map
from lightning_gen.networks.building import check_sizes


class DALLEEncoder(nn.Module):
    """A 7 x 7 convolution, then groups of residual blocks, each group twice as wide, with max-pooling between them.

    A block is a bottleneck of a quarter of its width: convolutions of 3, 3, 3 and 1, with ReLU before each, whose
    result is multiplied by 1 / n^2, for n blocks in the network, and added to what came in; where the width changes, to
    a 1 x 1 convolution of it. There is no normalisation. Weights start from N(0, 1 / fan in), biases at 0.

    Parameters for (3, 256, 256) and 2048 features: 37,000,832. The published encoder ends with a 1 x 1 convolution to
    the logits of 8192 codes, which is the quantizer's here, and has 53,786,240 with it.

    Pictures in [-1, 1] are mapped to [0.1, 0.9], as the logit-Laplace likelihood has them.

    Args:
        image_shape: (channels, height, width), height and width divisible by 2^(groups - 1).
        channels: Of the features, the width of the last group; 8 x 256 in the paper.
        filters: Width of the first group.
        groups: How many; each but the last halves the picture.
        blocks: Of each group; 2 in the paper.

    Raises:
        ValueError: If a size is below 1, or the picture cannot be halved so often.
    """

    small: ClassVar = {"filters": 4, "groups": 2, "blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        *,
        filters: int = 256,
        groups: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, channels=channels, filters=filters, groups=groups, blocks=blocks)
        _check_halvings(self, image_shape, groups - 1)
        self.image_shape = image_shape
        widths = [*(filters * 2**i for i in range(groups - 1)), channels]
        layers: list[nn.Module] = [_convolution(image_shape[0], widths[0], 7)]
        for i, (before, after) in enumerate(pairwise([widths[0], *widths])):
            layers += [nn.MaxPool2d(2)] if i else []
            layers += _group(before, after, blocks, (3, 3, 3, 1), 1 / (groups * blocks) ** 2)
        self.layers = nn.Sequential(*layers, nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` to features `[N, channels, H / 2^(groups - 1), W / 2^(groups - 1)]`."""
        return self.layers(logit_laplace_map(images).to(images.dtype))


class DALLEDecoder(nn.Module):
    """Groups of residual blocks, each group half as wide, with nearest doubling between them, and a 1 x 1 convolution.

    Blocks are those of `DALLEEncoder`, but with kernels of 1, 3, 3 and 3. Weights start as there.

    Parameters for (3, 256, 256), vectors of 128 and six outputs: 42,781,062. The published decoder begins with a 1 x 1
    convolution from 8192 codes, which is the quantizer's here, and has 43,829,766 with it.

    Args:
        image_shape: (channels, height, width), height and width divisible by 2^(groups - 1).
        channels: Of the vectors; 128 in the paper.
        outputs: Parameters of each pixel, `num_parameters` of the likelihood.
        filters: Width of the last group.
        groups: How many; each but the last doubles the picture.
        blocks: Of each group; 2 in the paper.

    Raises:
        ValueError: If a size is below 1, or doublings do not lead to the picture.
    """

    small: ClassVar = {"filters": 4, "groups": 2, "blocks": 1}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        outputs: int,
        *,
        filters: int = 256,
        groups: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "outputs": outputs, "filters": filters, "groups": groups, "blocks": blocks}
        check_sizes(self, image_shape, **sizes)
        _check_halvings(self, image_shape, groups - 1)
        self.image_shape = image_shape
        widths = [filters * 2**i for i in reversed(range(groups))]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise([channels, *widths])):
            layers += [nn.Upsample(scale_factor=2.0, mode="nearest")] if i else []
            layers += _group(before, after, blocks, (1, 3, 3, 3), 1 / (groups * blocks) ** 2)
        self.layers = nn.Sequential(*layers, nn.ReLU(), _convolution(filters, outputs, 1))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[N, channels, h, w]` to parameters `[N, outputs, H, W]`."""
        return self.layers(vectors)


class Bottleneck(nn.Module):
    """A residual block of four convolutions of a quarter of the width, with ReLU before each.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, its width.
        kernels: Sides of the kernels of the four convolutions.
        gain: By which the result is multiplied before it is added to what came in.
    """

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, int, int, int], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.skip = nn.Identity() if inputs == outputs else _convolution(inputs, outputs, 1)
        widths = pairwise([inputs, *[max(1, outputs // 4)] * 3, outputs])
        convolutions = [_convolution(*width, kernel) for width, kernel in zip(widths, kernels, strict=True)]
        self.residual = nn.Sequential(*(layer for each in convolutions for layer in (nn.ReLU(), each)))

    def forward(self, features: Tensor) -> Tensor:
        """`[N, inputs, h, w]` to `[N, outputs, h, w]`."""
        return self.skip(features) + self.gain * self.residual(features)


def _group(inputs: int, outputs: int, blocks: int, kernels: tuple[int, int, int, int], gain: float) -> list[nn.Module]:
    """So many blocks of a width, of which the first brings features to it."""
    return [Bottleneck(inputs if i == 0 else outputs, outputs, kernels, gain) for i in range(blocks)]


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """One that keeps the size, with weights of N(0, 1 / fan in) and no bias at first."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=(inputs * kernel**2) ** -0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _check_halvings(network: nn.Module, image_shape: tuple[int, int, int], halvings: int) -> None:
    height, width = image_shape[1:]
    factor = 2**halvings
    if height % factor or width % factor:
        fitting = " x ".join(str(max(1, round(side / factor)) * factor) for side in (height, width))
        raise ValueError(
            f"{type(network).__name__} with groups={halvings + 1} needs a height and a width divisible by {factor}, "
            f"got {height} x {width}. Give pictures of {fitting}, say, or fewer groups."
        )
