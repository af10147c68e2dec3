"""The choice of normalisation that translation networks offer."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch", "none"]


class InstanceNorm2d(nn.Module):
    """Instance normalisation (1607.08022) without parameters or running statistics, right in every memory layout.

    `torch.nn.functional.instance_norm` gives wrong gradients on the CPU for a batch of one whose upstream gradient lies
    channels-last (PyTorch 2.15; a test here watches for it), so the same mathematics is asked of other kernels: group
    norm with one channel a group, or, where pictures lie channels-last, batch norm of each, which keeps them so. On a
    CPU that one adds up a float32 channel number by number, which costs two digits or more in large pictures; there
    the statistics are taken here.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape, each channel of each picture with mean 0 and variance 1."""
        if features.is_contiguous():
            device = "cpu" if features.is_meta else features.device.type  # meta knows of no autocast
            with torch.autocast(device, enabled=False):  # which would make it float32 on CUDA
                return F.group_norm(features, features.shape[1], eps=self.eps)
        if features.device.type == "cpu" and features.dtype == torch.float32:
            return cast(Tensor, _InTwoPasses.apply(features, self.eps))
        normed = [F.batch_norm(picture, None, None, training=True, eps=self.eps) for picture in features.split(1)]
        return normed[0] if len(normed) == 1 else torch.cat(normed)


_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default
_FIRST = [True, False, False]  # of its results: the gradient by the features, none by a weight or a bias


class _InTwoPasses(torch.autograd.Function):
    """The mean first, then the variance about it, both by `torch.mean`, which adds partial sums."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, eps: float) -> Tensor:
        mean = features.mean((2, 3), keepdim=True)
        scale = (features - mean).square_().mean((2, 3), keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(features, mean, scale)
        ctx.eps = eps
        return (features - mean).mul_(scale)  # to keep the difference would cost more: memory of its own

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        tensors = (gradient, *ctx.saved_tensors)
        pictures = [tensors] if len(gradient) == 1 else zip(*(tensor.split(1) for tensor in tensors), strict=True)
        # Batch norm's own, of which PyTorch knows the derivative too.
        gradients = [
            _batch_norm_backward(
                upstream, picture, None, None, None, mean.flatten(), scale.flatten(), True, ctx.eps, _FIRST
            )
            for upstream, picture, mean, scale in pictures
        ]
        return gradients[0][0] if len(gradients) == 1 else torch.cat([each[0] for each in gradients]), None


class PixelNorm(nn.Module):
    """The features of each place divided by their root mean square (1710.10196, section 4.2).

    Also of vectors, such as latents, which then lie on a sphere. The mean is taken in float32 at least.

    Args:
        eps: Added to the mean of squares.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, ...]` to the same shape, each of the C numbers of a place with mean square 1."""
        precise = features.to(torch.promote_types(features.dtype, torch.float32))
        scale = (precise.square().mean(dim=1, keepdim=True) + self.eps).rsqrt()
        return features * scale.to(features.dtype)


def norm_layer(norm: Norm, channels: int) -> list[nn.Module]:
    """The layers to put after a convolution: none or one, ready for `nn.Sequential(*...)`.

    Args:
        norm: "instance" has no affine parameters and no running statistics, "batch" has both, "none" is empty.
        channels: Number of channels normalised.

    Raises:
        ValueError: For any other name.
    """
    if norm == "instance":
        return [InstanceNorm2d()]
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "none":
        return []
    raise ValueError(f"norm must be 'instance', 'batch' or 'none', got {norm!r}.")


def conv_bias(norm: Norm) -> bool:
    """Whether a convolution before this norm carries a bias: not where batch norm adds its own."""
    return norm != "batch"
