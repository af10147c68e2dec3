"""The layers of StyleGAN's synthesis (1812.04948): blur, noise, and adaptive instance norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.equalized import EqualizedLinear
from lightning_gen.layers.normalization import InstanceNorm2d
from lightning_gen.outlines import with_values

Noise = Literal["random", "fixed", "none"]


class Blur(nn.Module):
    """The binomial filter [1, 2, 1] x [1, 2, 1] / 16 with zero padding, which darkens edges as in the authors' code."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        with with_values():
            line = torch.tensor([1.0, 2.0, 1.0]) / 4
            self.register_buffer("kernel", torch.outer(line, line)[None, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        if features.requires_grad and not torch.compiler.is_compiling():
            return cast(Tensor, _Blur.apply(features, self.kernel))
        return _blur(features, self.kernel)


def _blur(features: Tensor, kernel: Tensor) -> Tensor:
    channels = features.shape[1]
    # Under autocast features in float32 are blurred to halves, and their gradient is halves too.
    kernel = kernel.to(features.dtype).expand(channels, -1, -1, -1)
    return F.conv2d(features, kernel, padding=1, groups=channels)


class _Blur(torch.autograd.Function):
    """The filter is its own transpose, so a gradient is blurred likewise, and so is one of a gradient.

    For the second, PyTorch would go through the channels one by one.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(kernel)
        return _blur(features, kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kernel,) = ctx.saved_tensors
        return _Blur.apply(gradient, kernel), None


class NoiseInjection(nn.Module):
    """Adds one map of Gaussian noise, of another strength in each channel, which starts at 0.

    Args:
        channels: C.
        size: Height and width.
    """

    fixed: Tensor

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(channels))
        self.register_buffer("fixed", torch.randn(1, 1, *size))

    def forward(
        self, features: Tensor, noise: Noise | Tensor = "random", generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """`[N, C, H, W]` to the same shape.

        Args:
            features: To which the noise is added.
            noise: "random" draws a map for each picture, "fixed" takes the same one every time, "none" adds none; or
                maps themselves, `[1 or N, 1, H, W]`.
            generators: Of random noise, on the CPU, one for each picture; None takes the global random state of the
                device.
        """
        if isinstance(noise, Tensor):
            maps = noise
        elif noise == "none":
            return features
        else:
            maps = self.fixed if noise == "fixed" else draw_noise(features, generators)
        return torch.addcmul(features, maps.to(features.dtype), self.strength.to(features.dtype).view(-1, 1, 1))


def draw_noise(features: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """Maps `[N, 1, H, W]` from N(0, 1) for features `[N, C, H, W]`, on their device."""
    number, _, height, width = features.shape
    if generators is None:
        return torch.randn(number, 1, height, width, device=features.device)
    maps = [torch.randn(1, 1, height, width, generator=generator) for generator in generators]
    return torch.cat(maps).to(features.device)


class AdaIN(nn.Module):
    """Adaptive instance normalisation (1703.06868, 1812.04948): each channel's mean and deviation come from a style.

    Features are normed, then multiplied by 1 + s and shifted by t, of which s and t are linear in the style.

    Args:
        channels: C.
        style_size: Width of a style.
    """

    def __init__(self, channels: int, style_size: int) -> None:
        super().__init__()
        self.norm = InstanceNorm2d(eps=1e-8)
        self.affine = EqualizedLinear(style_size, 2 * channels, gain=1.0)

    def forward(self, features: Tensor, styles: Tensor) -> Tensor:
        """`[N, C, H, W]` and styles `[N, style_size]` to `[N, C, H, W]`."""
        normed = self.norm(features)
        scale, shift = self.affine(styles).to(normed.dtype)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, normed, scale + 1)
