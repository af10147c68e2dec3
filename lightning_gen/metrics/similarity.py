"""How alike two pictures are, as they would be stored (8 bits): a translation and its target, or a reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.base import full_float32
from lightning_gen.metrics.base import FullPrecision

PEAK = 255
HALF_WINDOW, DEVIATION = 5, 1.5  # pixels, of SSIM's Gaussian
SSIM_SIDE = HALF_WINDOW + 1  # the least that can be reflected by half a window


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture by itself, in dB: 10 log10(255^2 / mean squared error).

    Args:
        images: `[N, C, H, W]`, uint8 or floats in `[-1, 1]`; values outside are clipped.
        targets: What they should be, same shape.

    Returns:
        float32 `[N]`; infinite for a picture that is its target in every pixel.
    """
    errors = (to_uint8(images).float() - to_uint8(targets).float()).square().flatten(1).mean(1)
    return 10 * torch.log10(PEAK**2 / errors)


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each picture (Wang et al. 2004) with its 11 x 11 Gaussian.

    It is the mean over channels and all pixels of pictures reflected at their edges (the authors' program leaves the
    edges out).

    Args:
        images: `[N, C, H, W]`, uint8 or floats in `[-1, 1]`, H and W at least 6; values outside are clipped.
        targets: What they should be, same shape.

    Returns:
        float32 `[N]`, at most 1.

    Raises:
        ValueError: If the pictures are smaller.
    """
    if min(images.shape[-2:]) < SSIM_SIDE:
        raise ValueError(
            f"SSIM takes pictures of at least {SSIM_SIDE} x {SSIM_SIDE} pixels, for it has a window of 11 x 11; these "
            f"are {' x '.join(map(str, images.shape[-2:]))}."
        )
    x, y = (to_uint8(each).float() / PEAK for each in (images, targets))
    # Variances are differences of means, of which bfloat16 and TF32 would leave nothing.
    with torch.autocast(images.device.type, enabled=False), full_float32():
        height, width = (_window(side, x) for side in x.shape[-2:])
        means = height @ torch.stack([x, y, x * x, y * y, x * y]) @ width.T  # within the window about each pixel
    mean_x, mean_y, xx, yy, xy = means.flatten(2)
    c1, c2 = 0.01**2, 0.03**2
    variances = (xx - mean_x**2).clamp(min=0) + (yy - mean_y**2).clamp(min=0)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (variances + c2)
    return (luminance * structure).mean(1)


def _window(side: int, like: Tensor) -> Tensor:
    """`[side, side]`, whose product with a row of so many pixels is its Gaussian mean about each one."""
    settings: Any = {"dtype": torch.float32, "device": like.device}
    gaussian = torch.exp(-(torch.arange(-HALF_WINDOW, HALF_WINDOW + 1, **settings) ** 2) / (2 * DEVIATION**2))
    pixels = F.pad(torch.eye(side, **settings)[:, None], (HALF_WINDOW, HALF_WINDOW), mode="reflect")
    return F.conv1d(pixels, (gaussian / gaussian.sum())[None, None])[:, 0].T


class MeanSimilarity(FullPrecision):
    """The mean over all pictures of all ranks of how alike each one is to its target.

    Args:
        function: `psnr`, `ssim` or another that gives `[N]` of pictures and targets `[N, C, H, W]`.
        **kwargs: Those of every `torchmetrics.Metric`.
    """

    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, targets: Tensor) -> None:
        """Add pictures `[N, C, H, W]` and their targets, as the function takes them."""
        # Not in place: a state made under inference mode could not be added to outside of it.
        self.total = self.total + self.function(images, targets).sum().to(self.total)
        self.count = self.count + len(images)

    def compute(self) -> Tensor:
        """The mean, a float32 scalar."""
        return (self.total / self.count).float()
