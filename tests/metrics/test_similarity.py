"""PSNR and SSIM of each picture by itself; `test_translation` has their formulas."""

import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from lightning_gen.data.images import from_uint8, to_uint8
from lightning_gen.metrics import psnr, ssim
from lightning_gen.metrics.similarity import MeanSimilarity
from tests.metrics.test_translation import draw, stored


@pytest.mark.parametrize(
    ("function", "theirs"),
    [(psnr, PeakSignalNoiseRatio(255.0)), (ssim, StructuralSimilarityIndexMeasure(data_range=255.0))],
)
def test_each_picture_has_the_figure_that_torchmetrics_gives_of_it_alone(function, theirs):
    images, targets = draw(5)
    values = function(images, targets)
    assert values.shape == (5,)
    assert values.dtype == torch.float32
    for value, image, target in zip(values, stored(images).float(), stored(targets).float(), strict=True):
        assert value.item() == pytest.approx(theirs(image[None], target[None]).item(), rel=1e-5)
        theirs.reset()
    mean = MeanSimilarity(function)
    mean.update(images[:2], targets[:2])
    mean.update(images[2:], targets[2:])
    assert mean.compute().item() == pytest.approx(values.double().mean().item(), rel=1e-7)


def test_equal_pictures_have_no_noise_and_all_similarity():
    images = from_uint8(to_uint8(draw(2)[0]))
    assert psnr(images, images + 1e-3).tolist() == [math.inf, math.inf]  # as 8 bits they are the same
    assert ssim(images, images) == pytest.approx(1)


def test_one_level_off_everywhere_is_48_decibels():
    black = torch.full((1, 3, 4, 4), -1.0)
    assert psnr(black, black + 2 / 255).item() == pytest.approx(20 * math.log10(255))
    assert psnr(black, -black).item() == pytest.approx(0, abs=1e-6)


def test_the_default_type_does_not_matter():
    """Under bf16-true steps run with bfloat16 as the default, in which the logarithm of 10 is 2.297."""
    images, targets = draw(2)
    expected = psnr(images, targets), ssim(images, targets)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = psnr(images, targets), ssim(images, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_pictures_must_hold_half_a_window():
    with pytest.raises(ValueError, match=r"at least 6 x 6 pixels, for it has a window of 11 x 11; these are 5 x 9"):
        ssim(torch.zeros(1, 1, 5, 9), torch.zeros(1, 1, 5, 9))
    assert ssim(torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)) == pytest.approx(1)
