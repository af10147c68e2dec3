"""Generator and discriminator of fully connected layers, as in the first GAN (1406.2661)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from lightning_gen.layers.conditional import append_labels
from lightning_gen.networks.building import SpectralNormKind, check_image_shape, normalize_spectrum

Activation = Literal["relu", "leaky_relu"]


class MLPGenerator(nn.Module):
    """Linear layers with ReLU from latents to pixels; with the defaults the generator of 1406.2661 on MNIST.

    With classes, the one-hot label is concatenated to the latents (1411.1784).

    Deviations: pictures lie in [-1, 1], so tanh stands where the paper has a sigmoid, which is the same function of
    another scale (tanh x = 2 sigmoid(2 x) - 1). Weights start as PyTorch's own, uniform within 1 / sqrt(fan in), 0.03
    for the hidden layers; the authors' code has 0.05.

    Args:
        image_shape: (channels, height, width). Points of d dimensions are pictures of (d, 1, 1).
        latent_size: Width of the latents; 100 in the paper.
        widths: Of the hidden layers.
        activation: Of the hidden layers; "leaky_relu" has slope 0.2.
        output: "tanh" for pictures; "linear" for data without bounds, such as points.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a size is below 1.
    """

    small: ClassVar = {"widths": (8, 8)}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        widths: Sequence[int] = (1200, 1200),
        activation: Activation = "relu",
        output: Literal["tanh", "linear"] = "tanh",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape)
        check_widths(type(self).__name__, latent_size, *widths)
        self.image_shape = image_shape
        self.latent_size = latent_size
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([latent_size + (num_classes or 0), *widths]):
            layers += [nn.Linear(inputs, outputs), activation_layer(activation)]
        inputs = widths[-1] if widths else latent_size + (num_classes or 0)
        layers.append(nn.Linear(inputs, math.prod(image_shape)))
        if output == "tanh":
            layers.append(nn.Tanh())
        elif output != "linear":
            raise ValueError(f"output must be 'tanh' or 'linear', got {output!r}.")
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` where there are classes, to pictures `[N, C, H, W]`."""
        return self.layers(append_labels(latents, labels, self.num_classes)).unflatten(1, self.image_shape)


class MLPDiscriminator(nn.Module):
    """Dropout and maxout layers from pixels to a score; with the defaults the discriminator of 1406.2661 on MNIST.

    With classes, the one-hot label is concatenated to the flattened picture (1411.1784). For a critic, and for points,
    take `maxout=1`, `dropout=0`, `input_dropout=0`: then each score depends on its own picture alone, without noise.

    Deviations: the score is a logit; the sigmoid belongs to the loss. Weights start as PyTorch's own, uniform within
    1 / sqrt(fan in); the authors' code has 0.005 and bounds the norm of each unit's weights.

    Args:
        image_shape: (channels, height, width). Points of d dimensions are pictures of (d, 1, 1).
        widths: Of the hidden layers.
        maxout: Linear pieces of each hidden unit, which gives the largest (1302.4389); 1 takes `activation` instead.
        activation: Of the hidden layers where maxout is 1; "leaky_relu" has slope 0.2.
        dropout: Probability with which a hidden unit is dropped.
        input_dropout: Probability with which an input is dropped.
        num_classes: Number of classes; None for a network without labels.
        spectral_norm: Normalise every layer by its largest singular value (1802.05957). "reshape" and "convolution" are
            the same here, as no layer is a convolution. A maxout unit of such a layer keeps the Lipschitz bound.

    Raises:
        ValueError: If a size is below 1.
    """

    small: ClassVar = {"widths": (8, 8)}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        widths: Sequence[int] = (240, 240),
        maxout: int = 5,
        activation: Activation = "leaky_relu",
        dropout: float = 0.5,
        input_dropout: float = 0.2,
        num_classes: int | None = None,
        spectral_norm: SpectralNormKind = "none",
    ) -> None:
        super().__init__()
        check_image_shape(image_shape)
        check_widths(type(self).__name__, maxout, *widths)
        self.image_shape = image_shape
        self.num_classes = num_classes
        inputs = math.prod(image_shape) + (num_classes or 0)
        layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
        for width in widths:
            layers += [
                nn.Linear(inputs, width * maxout),
                Maxout(maxout) if maxout > 1 else activation_layer(activation),
            ]
            layers += [nn.Dropout(dropout)] if dropout else []
            inputs = width
        layers.append(nn.Linear(inputs, 1))
        self.layers = nn.Sequential(*layers)
        normalize_spectrum(self, image_shape, spectral_norm, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]`, and labels int64 `[N]` where there are classes, to scores `[N]`."""
        return self.layers(append_labels(images.flatten(1), labels, self.num_classes)).squeeze(1)


class Maxout(nn.Module):
    """The largest of every `pieces` neighbouring features (1302.4389): `[N, D pieces]` to `[N, D]`."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, features: Tensor) -> Tensor:
        """`[N, D pieces]` to `[N, D]`."""
        return features.unflatten(1, (-1, self.pieces)).amax(dim=2)


def activation_layer(activation: Activation) -> nn.Module:
    """The layer of that name; leaky ReLU has slope 0.2."""
    if activation == "relu":
        return nn.ReLU()
    if activation == "leaky_relu":
        return nn.LeakyReLU(0.2)
    raise ValueError(f"activation must be 'relu' or 'leaky_relu', got {activation!r}.")


def check_widths(what: str, *widths: int) -> None:
    """Raise a `ValueError` unless each is at least 1."""
    if min(widths) < 1:
        raise ValueError(f"{what}: every width must be at least 1, got {widths}.")
