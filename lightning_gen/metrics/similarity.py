"""How alike two pictures are, as they would be stored (8 bits): a translation and its target, or a reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.base import full_float32
from lightning_gen.metrics.base import FullPrecision

PEAK = 255
SSIM_SIDE = 6  # the least that half of its window, 5 pixels, can be reflected in


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture by itself, in dB: 10 log10(255^2 / mean squared error).

    Args:
        images: `[N, C, H, W]` in `[-1, 1]`; values outside are clipped.
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
        images: `[N, C, H, W]` in `[-1, 1]`, H and W at least 6; values outside are clipped.
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
    stored, wanted = (to_uint8(each).float() / PEAK for each in (images, targets))
    # Variances are differences of means, of which bfloat16 and TF32 would leave nothing.
    with torch.autocast(images.device.type, enabled=False), full_float32():
        similarity = structural_similarity_index_measure(stored, wanted, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity


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
        """Add pictures `[N, C, H, W]` in `[-1, 1]` and their targets."""
        # Not in place: a state made under inference mode could not be added to outside of it.
        self.total = self.total + self.function(images, targets).sum().to(self.total)
        self.count = self.count + len(images)

    def compute(self) -> Tensor:
        """The mean, a float32 scalar."""
        return (self.total / self.count).float()
