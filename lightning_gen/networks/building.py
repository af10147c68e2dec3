"""What the builders of GAN networks share: sizes for any height and width, and spectral norm by name."""

from __future__ import annotations

from typing import Literal

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
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (channels, height, width), each at least 1; got {tuple(image_shape)}.")


def normalize_spectrum(
    network: nn.Module, image_shape: tuple[int, int, int], spectral_norm: SpectralNormKind, num_classes: int | None
) -> None:
    """Put spectral norm on every layer of an initialised discriminator, in place; "none" does nothing."""
    if spectral_norm != "none":
        labels = None if num_classes is None else torch.zeros(1, dtype=torch.int64)
        add_spectral_norm(network, image_shape, spectral_norm, labels)
