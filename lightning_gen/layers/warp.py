"""Affine warps of pictures without aliasing, as adaptive augmentation has them (2006.06676, appendix B.3).

They are linear in the pictures and can be differentiated as often as wanted; nothing in them waits for the device.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# The low-pass of the least asymmetric Daubechies wavelet with six vanishing moments (sym6). Its even shifts are
# orthonormal, so that what is enlarged with it and then reduced is what it was.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


def affine_warp(images: Tensor, inverses: Tensor) -> Tensor:
    """Each picture under an affine map of its plane; beyond its edges it goes on as its mirror image, without end.

    It is enlarged to twice its size with `SYM6`, sampled between the four nearest pixels, and reduced with `SYM6`. Axes
    of reflection are the centres of the outermost pixels.

    Args:
        images: `[N, C, H, W]`, of at least 2 x 2 pixels.
        inverses: `[N, 2, 3]`, from places (x, y, 1) in the result to places (x, y) in the picture; in pixels from the
            middle of the picture.
    """
    height, width = images.shape[-2:]
    scaled = torch.stack([inverses[:, 0] * (2 / (width - 1)), inverses[:, 1] * (2 / (height - 1))], dim=1)
    rows, columns = (
        torch.arange(-5 - (size - 1), size + 6, device=images.device, dtype=images.dtype) / 2
        for size in (height, width)
    )
    # Places as `grid_sample` has them, [N, 2 H + 10, 2 W + 10, 2]: -1 and 1 are the centres of the outermost pixels.
    across = scaled[:, :, 0, None] * columns
    down = scaled[:, :, 1, None] * rows + scaled[:, :, 2, None]
    return reduced(_Sampled.apply(enlarged(images), down.mT.unsqueeze(2) + across.mT.unsqueeze(1)))


def enlarged(images: Tensor) -> Tensor:
    """Twice the size: `[N, C, 2 H - 1, 2 W - 1]`, where every other pixel lies between the pixels of the picture."""
    rows, columns = (_enlarging(size, images.device, images.dtype) for size in images.shape[-2:])
    return rows @ (images @ columns.mT)


def reduced(images: Tensor) -> Tensor:
    """Half the size: `[N, C, 2 H + 10, 2 W + 10]`, which begins five pixels before the first, to `[N, C, H, W]`."""
    rows, columns = (_reducing(size // 2 - 5, images.device, images.dtype) for size in images.shape[-2:])
    return rows @ images @ columns.mT


# Both filters as matrices, mostly of zeros. Products of matrices are what all machines do best: on a CPU, forward and
# backward, they take a sixth of the time of convolutions of few channels.


@lru_cache(maxsize=32)
def _enlarging(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`[2 size - 1, size]`."""
    matrix = np.zeros((2 * size - 1, size))
    for k, tap in product(range(2 * size - 1), range(len(SYM6))):
        if (k + 5 - tap) % 2 == 0:
            source = (k + 5 - tap) // 2 % (2 * size - 2)  # what lies beyond an edge is reflected
            matrix[k, min(source, 2 * size - 2 - source)] += SYM6[tap] * 2**0.5
    return _constant(matrix, device, dtype)


@lru_cache(maxsize=32)
def _reducing(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`[size, 2 size + 10]`."""
    matrix = np.zeros((size, 2 * size + 10))
    for row in range(size):
        matrix[row, 2 * row : 2 * row + len(SYM6)] = np.array(SYM6) / 2**0.5
    return _constant(matrix, device, dtype)


def _constant(matrix: NDArray[np.float64], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # it may be used in training later
        return torch.from_numpy(matrix).to(device, dtype)


class _Sampled(torch.autograd.Function):
    """`grid_sample` with reflection at the edges; unlike PyTorch's, its gradient has a gradient by the pictures."""

    @staticmethod
    def forward(context: Any, images: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        context.size = images.shape
        return F.grid_sample(images, places, padding_mode="reflection", align_corners=True)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(gradient, *context.saved_tensors, context.size), None


class _Spread(torch.autograd.Function):
    """The transpose of `_Sampled`."""

    @staticmethod
    def forward(context: Any, samples: Tensor, places: Tensor, size: torch.Size) -> Tensor:
        context.save_for_backward(places)
        of_pictures, reflection = samples.new_empty(1).expand(size), 2  # their values do not matter
        result: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            samples, of_pictures, places, 0, reflection, True, [True, False]
        )[0]
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Sampled.apply(gradient, *context.saved_tensors), None, None
