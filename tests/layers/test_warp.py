"""Warps of pictures, beside the same in loops; their gradients; and what stays as it was."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from lightning_gen.layers.warp import SYM6, affine_warp

SAME = torch.eye(3)[None, :2]


def reflected(index, size):
    index %= 2 * size - 2
    return min(index, 2 * size - 2 - index)


def warped_in_loops(image, inverse):
    """One channel, number by number, as the docstring says it: enlarged, sampled, reduced."""
    height, width = image.shape

    def enlarged(k, i):  # what pixel i of a line gives to pixel k of twice as many
        return 2**0.5 * SYM6[k + 5 - 2 * i] if 0 <= k + 5 - 2 * i < len(SYM6) else 0.0

    def pixel(row, column):  # of the enlarged picture
        return sum(
            enlarged(row, i) * enlarged(column, j) * image[reflected(i, height), reflected(j, width)]
            for i in range(-3, height + 3)
            for j in range(-3, width + 3)
        )

    large = {(i, j): pixel(i, j) for i in range(2 * height - 1) for j in range(2 * width - 1)}

    def sampled(row, column):
        u, v = row / 2 - (height - 1) / 2, column / 2 - (width - 1) / 2  # pixels from the middle
        x, y = inverse @ [v, u, 1.0]
        x, y = 2 * x + width - 1, 2 * y + height - 1
        left, top = math.floor(x), math.floor(y)
        total = 0.0
        for i, down in ((top, top + 1 - y), (top + 1, y - top)):
            for j, right in ((left, left + 1 - x), (left + 1, x - left)):
                total += down * right * large[reflected(i, 2 * height - 1), reflected(j, 2 * width - 1)]
        return total

    samples = {(i, j): sampled(i, j) for i in range(-5, 2 * height + 5) for j in range(-5, 2 * width + 5)}
    return [
        [
            sum(
                SYM6[s] * SYM6[t] / 2 * samples[2 * i - 5 + s, 2 * j - 5 + t]
                for s in range(len(SYM6))
                for t in range(len(SYM6))
            )
            for j in range(width)
        ]
        for i in range(height)
    ]


def test_the_filter_is_an_orthonormal_low_pass_that_six_moments_vanish_beside():
    taps = np.array(SYM6)
    assert taps.sum() == pytest.approx(2**0.5, abs=1e-9)
    for shift in range(6):
        assert taps[2 * shift :] @ taps[: len(taps) - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-9)
    signs, places = (-1.0) ** np.arange(12), np.arange(12.0)
    for moment in range(6):  # of the high-pass beside it
        assert (signs * places**moment) @ taps[::-1] == pytest.approx(0, abs=1e-6 * 12**moment)


@pytest.mark.parametrize(
    "inverse",
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[0.8, -0.5, 1.3], [0.6, 0.9, -0.7]],
        [[-1.7, 0.4, 9.5], [0.2, 2.3, -14.2]],  # far beyond the edges
    ],
    ids=["same", "turned", "far"],
)
def test_a_warp_is_that_of_loops(inverse):
    image = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inverse = torch.tensor(inverse, dtype=torch.float64)
    expected = torch.tensor(warped_in_loops(image.numpy(), inverse.numpy()), dtype=torch.float64)
    torch.testing.assert_close(affine_warp(image[None, None], inverse[None])[0, 0], expected, rtol=1e-9, atol=1e-9)


def test_away_from_the_edges_whole_pixels_stay_what_they_were():
    images = torch.randn(2, 3, 24, 20, dtype=torch.float64)
    moved = torch.tensor([[1.0, 0.0, -2.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    warped = affine_warp(images, torch.stack([SAME[0].double(), moved]))
    inner = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(warped[0][inner], images[0][inner], rtol=0, atol=1e-9)
    torch.testing.assert_close(warped[1][inner], images[1].roll((-3, 2), (1, 2))[inner], rtol=0, atol=1e-9)


def test_what_is_smooth_is_warped_as_by_torchvision():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 64), indexing="ij")
    image = torch.stack([(2 * x + y).sin(), (x * y * 2).cos(), (-4 * (x**2 + y**2)).exp()])
    angle, scale, move = 25.0, 0.9, [4, -3]
    expected = tv.affine(image, angle, move, scale, [0.0], InterpolationMode.BILINEAR)
    turn = math.radians(angle)
    linear = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    inverse = torch.cat([linear, -linear @ torch.tensor(move, dtype=torch.float32)[:, None]], dim=1)
    inside = tv.affine(torch.ones(1, 48, 64), angle, move, scale, [0.0], InterpolationMode.BILINEAR)[0] == 1
    difference = (affine_warp(image[None], inverse[None])[0] - expected).abs()[:, inside]
    assert inside.float().mean() > 0.6
    assert difference.mean() < 3e-3  # one pixel beside it would be 0.03
    assert difference.max() < 0.03  # at edges, where mirror images have corners


def test_gradients_of_first_and_second_order():
    images = torch.randn(2, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    inverses = torch.randn(2, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: affine_warp(x, inverses), images)
    assert torch.autograd.gradgradcheck(lambda x: affine_warp(x, inverses).square(), images)


def test_constants_made_in_inference_serve_in_training():
    with torch.inference_mode():
        affine_warp(torch.zeros(1, 1, 7, 9), SAME)
    images = torch.zeros(1, 1, 7, 9, requires_grad=True)
    affine_warp(images, SAME).sum().backward()
    assert images.grad is not None
