"""What the builders of networks share: checks, sizes for any height and width, and weights to start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gen.layers.spectral_norm import add_spectral_norm

SpectralNormKind = Literal["none", "reshape", "convolution"]


def count_halvings(image_shape: tuple[int, int, int], smallest: int) -> int:
    """How often the smaller side can be halved, rounding down, without falling below `smallest`."""
    side, halvings = min(image_shape[1:]), 0
    while side // 2 >= smallest:
        side, halvings = side // 2, halvings + 1
    return halvings


def base_size(image_shape: tuple[int, int, int], doublings: int) -> tuple[int, int]:
    """Height and width from which that many doublings reach at least the size of the picture."""
    height, width = (-(-side // 2**doublings) for side in image_shape[1:])
    return height, width


def crop_center(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """The middle of pictures `[N, C, h, w]` with h >= H and w >= W; where they fit, the pictures themselves."""
    height, width = image_shape[1:]
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def check_image_shape(image_shape: tuple[int, int, int]) -> None:
    """Raise a `ValueError` unless it is (channels, height, width), each at least 1."""
    given = tuple(image_shape) if isinstance(image_shape, Sequence) else image_shape
    if not isinstance(given, tuple) or len(given) != 3 or min(given) < 1:
        raise ValueError(f"image_shape must be (channels, height, width), each at least 1; got {given}.")


def check_sizes(network: nn.Module, image_shape: tuple[int, int, int], **sizes: int) -> None:
    """Raise a `ValueError` unless these, and the sides of the picture, are at least 1."""
    check_image_shape(image_shape)
    if min(sizes.values()) < 1:
        needed, got = listed(sizes), listed(sizes.values())
        raise ValueError(f"{type(network).__name__} needs {needed} >= 1, got {got}.")


def check_divisible(image_shape: tuple[int, int, int], multiple: int, what: str) -> None:
    """Raise a `ValueError` that names the nearest size that works unless height and width are multiples."""
    check_image_shape(image_shape)
    _, height, width = image_shape
    if height % multiple or width % multiple:
        fits = tuple(max(multiple, round(size / multiple) * multiple) for size in (height, width))
        raise ValueError(
            f"{what} needs height and width that are multiples of {multiple}, got {height} x {width}. "
            f"The nearest size that works is {fits[0]} x {fits[1]}."
        )


def listed(things: Iterable[Any]) -> str:
    """As words: a, b and c."""
    *others, last = map(str, things)
    return f"{', '.join(others)} and {last}" if others else last


def normalize_spectrum(
    network: nn.Module, image_shape: tuple[int, int, int], spectral_norm: SpectralNormKind, num_classes: int | None
) -> None:
    """Put spectral norm on every layer of an initialised discriminator, in place; "none" does nothing."""
    if spectral_norm != "none":
        labels = None if num_classes is None else torch.zeros(1, dtype=torch.int64)
        add_spectral_norm(network, image_shape, spectral_norm, labels)


def initialize_normal(network: nn.Module, std: float = 0.02) -> None:
    """Draw every convolution and linear weight from N(0, std^2), in place.

    Biases become 0; affine normalisation weights are drawn from N(1, std^2), as in DCGAN (1511.06434), pix2pix
    (1611.07004) and CycleGAN (1703.10593).

    Args:
        network: Its whole tree is initialised.
        std: Standard deviation; 0.02 in the papers.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, std)
            nn.init.zeros_(module.bias)


def initialize_xavier(network: nn.Module, gain: float = 1.0) -> None:
    """Draw every convolution, linear and embedding weight from Xavier's (Glorot's) uniform distribution, in place.

    That is U(-a, a) with a = gain sqrt(6 / (fan in + fan out)): standard deviation gain sqrt(2 / (fan in + fan out)).
    Biases become 0; normalisation layers are left alone. The code of SNGAN (1802.05957) starts so.

    Args:
        network: Its whole tree is initialised.
        gain: Factor of the weights; sqrt(2) makes up for a ReLU.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.xavier_uniform_(module.weight, gain)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
