"""The choice of normalisation that translation networks offer."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["instance", "batch", "none"]


def norm_layer(norm: Norm, channels: int) -> list[nn.Module]:
    """The layers to put after a convolution: none or one, ready for `nn.Sequential(*...)`.

    Args:
        norm: "instance" has no affine parameters and no running statistics, "batch" has both, "none" is empty.
        channels: Number of channels normalised.

    Raises:
        ValueError: For any other name.
    """
    if norm == "instance":
        return [nn.InstanceNorm2d(channels)]
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "none":
        return []
    raise ValueError(f"norm must be 'instance', 'batch' or 'none', got {norm!r}.")


def conv_bias(norm: Norm) -> bool:
    """Whether a convolution before this norm carries a bias: not where batch norm adds its own."""
    return norm != "batch"
