"""Encoders and decoders of variational autoencoders (1312.6114): perceptrons, and convolutions for any size.

An encoder gives the mean and the log-variance of a Gaussian for each latent. A decoder gives the parameters of all
pixels, `[N, outputs, H, W]`, which a likelihood of `lightning_gen.losses.images` reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from lightning_gen.layers.conditional import append_labels
from lightning_gen.networks.building import (
    base_size,
    check_sizes,
    count_halvings,
    crop_center,
    initialize_xavier,
)
from lightning_gen.networks.mlp import activation_layer, check_widths

Activation = Literal["tanh", "relu", "leaky_relu"]


class MLPEncoder(nn.Module):
    """Linear layers from pixels to a Gaussian of latents; with the defaults the encoder of 1312.6114 on MNIST.

    Parameters for (1, 28, 28) and 20 latents: 412,540.

    With classes, the one-hot label is concatenated to the flattened picture.

    Deviations: pictures lie in [-1, 1]. Weights start by Xavier's rule, as in 1509.00519, where the paper draws them
    from N(0, 0.01).

    Args:
        image_shape: (channels, height, width). Points of d dimensions are pictures of (d, 1, 1).
        latent_size: Width of the latents.
        widths: Of the hidden layers, none or more; (500,) in the paper, (200, 200) in 1509.00519.
        activation: Of the hidden layers; "leaky_relu" has slope 0.2.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a size is below 1, or the activation is none of these.
    """

    small: ClassVar = {"widths": (8,)}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        widths: Sequence[int] = (500,),
        activation: Activation = "tanh",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, latent_size=latent_size)
        self.image_shape = image_shape
        self.latent_size = latent_size
        self.num_classes = num_classes
        inputs = math.prod(image_shape) + (num_classes or 0)
        self.layers = nn.Sequential(*_hidden(self, inputs, widths, activation))
        self.head = nn.Linear([inputs, *widths][-1], 2 * latent_size)
        initialize_xavier(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures `[N, C, H, W]`, and labels int64 `[N]` where there are classes, to means and log-variances.

        Each is `[N, latent_size]`.
        """
        features = self.layers(append_labels(images.flatten(1), labels, self.num_classes))
        return _halves(self.head(features))


class MLPDecoder(nn.Module):
    """Linear layers from latents to the parameters of pixels; with the defaults the decoder of 1312.6114 on MNIST.

    Parameters for (1, 28, 28), 20 latents and one output a pixel: 403,284.

    With classes, the one-hot label is concatenated to the latents. Deviations are those of `MLPEncoder`.

    Args:
        image_shape: (channels, height, width). Points of d dimensions are pictures of (d, 1, 1).
        latent_size: Width of the latents.
        outputs: Parameters of each pixel, `num_parameters` of the likelihood.
        widths: Of the hidden layers, none or more.
        activation: Of the hidden layers; "leaky_relu" has slope 0.2.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a size is below 1, or the activation is none of these.
    """

    small: ClassVar = {"widths": (8,)}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        outputs: int,
        *,
        widths: Sequence[int] = (500,),
        activation: Activation = "tanh",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, latent_size=latent_size, outputs=outputs)
        self.image_shape = image_shape
        self.latent_size = latent_size
        self.num_classes = num_classes
        inputs, pixels = latent_size + (num_classes or 0), (outputs, *image_shape[1:])
        self.layers = nn.Sequential(
            *_hidden(self, inputs, widths, activation),
            nn.Linear([inputs, *widths][-1], math.prod(pixels)),
            nn.Unflatten(1, pixels),
        )
        initialize_xavier(self)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to parameters `[N, outputs, H, W]`."""
        return self.layers(append_labels(latents, labels, self.num_classes))


class ConvEncoder(nn.Module):
    """Halvings by 4 x 4 convolutions of stride 2 with ReLU, hidden linear layers, then a Gaussian of latents.

    With the defaults the encoder of 1804.03599, whose pictures are 64 x 64. One builder serves every size: the picture
    is halved, rounding down, as long as its smaller side stays at `base` or above. A convolution that rounds an odd
    side down still sees the last row.

    Parameters for (1, 64, 64) and 10 latents: 252,052.

    With classes, one constant map a class, 1 for the picture's own and 0 for the others, joins the picture's channels.

    Deviation: weights start as PyTorch's own; the paper does not say.

    Args:
        image_shape: (channels, height, width), of any size.
        latent_size: Width of the latents; 10 in the paper, 32 for faces.
        filters: Channels of the first convolution.
        max_filters: Each further one has twice as many up to these; None, as in the paper, for no more than the first.
        widths: Of the hidden linear layers, none or more.
        base: Smallest height or width that the convolutions end with.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a size is below 1, or the pictures are less than 2 pixels high or wide.
    """

    small: ClassVar = {"filters": 4, "max_filters": 8, "widths": (8,)}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        filters: int = 32,
        max_filters: int | None = None,
        widths: Sequence[int] = (256, 256),
        base: int = 4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels = _channels(self, image_shape, filters, max_filters, base, latent_size=latent_size)
        self.image_shape = image_shape
        self.latent_size = latent_size
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([image_shape[0] + (num_classes or 0), *channels]):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.ReLU()]
        height, width = (side >> len(channels) for side in image_shape[1:])
        features = channels[-1] * height * width
        self.layers = nn.Sequential(*layers, nn.Flatten(), *_hidden(self, features, widths, "relu"))
        self.head = nn.Linear([features, *widths][-1], 2 * latent_size)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures `[N, C, H, W]`, and labels int64 `[N]` where there are classes, to means and log-variances.

        Each is `[N, latent_size]`.
        """
        return _halves(self.head(self.layers(append_labels(images, labels, self.num_classes))))


class ConvDecoder(nn.Module):
    """Hidden linear layers, then doublings by 4 x 4 transposed convolutions of stride 2, all with ReLU between.

    The transpose of `ConvEncoder`, with the defaults that of 1804.03599. Where a side is not a multiple of 2^doublings,
    the next multiple is made and its middle is kept.

    Parameters for (1, 64, 64), 10 latents and one output a pixel: 249,953.

    With classes, the one-hot label is concatenated to the latents.

    Args:
        image_shape: (channels, height, width), of any size.
        latent_size: Width of the latents.
        outputs: Parameters of each pixel, `num_parameters` of the likelihood.
        filters: Channels of the last hidden layer.
        max_filters: Each layer before it has twice as many up to these; None for no more than the last.
        widths: Of the hidden linear layers, none or more, in their order here.
        base: Smallest height or width to start from.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a size is below 1, or the pictures are less than 2 pixels high or wide.
    """

    small: ClassVar = {"filters": 4, "max_filters": 8, "widths": (8,)}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        outputs: int,
        *,
        filters: int = 32,
        max_filters: int | None = None,
        widths: Sequence[int] = (256, 256),
        base: int = 4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels = _channels(self, image_shape, filters, max_filters, base, latent_size=latent_size, outputs=outputs)
        self.image_shape = image_shape
        self.latent_size = latent_size
        self.num_classes = num_classes
        inputs, start = latent_size + (num_classes or 0), (channels[-1], *base_size(image_shape, len(channels)))
        layers = [*_hidden(self, inputs, [*widths, math.prod(start)], "relu"), nn.Unflatten(1, start)]
        for before, after in pairwise(channels[::-1]):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels[0], outputs, 4, stride=2, padding=1))

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to parameters `[N, outputs, H, W]`."""
        return crop_center(self.layers(append_labels(latents, labels, self.num_classes)), self.image_shape)


def _hidden(network: nn.Module, inputs: int, widths: Sequence[int], activation: Activation) -> list[nn.Module]:
    """Linear layers of these widths, each with its activation."""
    if activation not in ("tanh", "relu", "leaky_relu"):
        raise ValueError(f"activation must be 'tanh', 'relu' or 'leaky_relu', got {activation!r}.")
    check_widths(type(network).__name__, inputs, *widths)
    layers: list[nn.Module] = []
    for before, after in pairwise([inputs, *widths]):
        layers += [nn.Linear(before, after), nn.Tanh() if activation == "tanh" else activation_layer(activation)]
    return layers


def _channels(
    network: nn.Module, image_shape: tuple[int, int, int], filters: int, most: int | None, base: int, **sizes: int
) -> list[int]:
    """Channels after each halving of the picture, of which there is at least one."""
    check_sizes(network, image_shape, **sizes, filters=filters, base=base)
    kind, (_, height, width) = type(network).__name__, image_shape
    if min(height, width) < 2:
        raise ValueError(
            f"{kind} halves its pictures, so they need at least 2 x 2 pixels, got {height} x {width}. For points take "
            f"{kind.replace('Conv', 'MLP')}."
        )
    if most is not None and most < filters:
        raise ValueError(f"{kind} needs max_filters of at least filters={filters}, or None; got {most}.")
    return [min(filters * 2**i, most or filters) for i in range(max(1, count_halvings(image_shape, base)))]


def _halves(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log-variances, `[N, D]` each, of `[N, 2 D]`."""
    means, log_variances = numbers.chunk(2, dim=1)
    return means, log_variances
