"""PSNR and SSIM against their formulas, on pictures as they would be stored."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from lightning_gen.metrics.translation import TranslationMetrics

SHAPE = (3, 24, 20)


def draw(number, seed=0):
    """Smooth pictures in [-1, 1], and the same ones disturbed."""
    random = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(number, 3, 5, 5, generator=random), SHAPE[1:], mode="bilinear") * 2 - 1
    return images, (images + 0.3 * (torch.rand(number, *SHAPE, generator=random) - 0.5))


def stored(images):
    """8 bits: what a PNG file would hold, as float64 in [0, 255]."""
    return ((images.double() + 1) * 127.5).round().clamp(0, 255)


def psnr(images, targets):
    """10 log10(255^2 / MSE) of each picture, then the mean."""
    errors = (stored(images) - stored(targets)).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255**2 / errors)).mean().item()


def ssim(images, targets):
    """Equation 13 of Wang et al. 2004 with its constants, at every pixel of the picture reflected at its edges."""
    x, y = (F.pad(stored(p), (5, 5, 5, 5), mode="reflect") for p in (images, targets))
    place = torch.arange(-5, 6, dtype=torch.float64)
    gauss = torch.exp(-(place**2) / (2 * 1.5**2))
    window = torch.outer(gauss, gauss) / gauss.sum() ** 2

    def mean(values):
        return F.conv2d(values, window.expand(3, 1, 11, 11), groups=3)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    index = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return index.mean().item()


def test_both_equal_their_formulas_over_batches_of_different_sizes():
    metrics = TranslationMetrics(["AtoB", "BtoA"], "val/")
    images, targets = draw(5)
    metrics.update("AtoB", images[:3], targets[:3])
    collection = metrics.update("AtoB", images[3:], targets[3:])
    computed = collection.compute()
    assert set(computed) == {"val/psnr_AtoB", "val/ssim_AtoB"}
    assert computed["val/psnr_AtoB"].item() == pytest.approx(psnr(images, targets), rel=1e-5)
    assert computed["val/ssim_AtoB"].item() == pytest.approx(ssim(images, targets), rel=1e-4)
    # The formula on the unquantized pictures, or on all pixels at once, is another number.
    errors = (images - targets).mul(127.5).square()
    assert computed["val/psnr_AtoB"].item() != pytest.approx(10 * torch.log10(255**2 / errors.mean()).item(), rel=1e-5)


def test_directions_are_kept_apart():
    metrics = TranslationMetrics(["AtoB", "BtoA"], "")
    for seed, direction in enumerate(["AtoB", "BtoA"]):
        metrics.update(direction, *draw(2, seed))
    for seed, direction in enumerate(["AtoB", "BtoA"]):
        computed = metrics.directions[direction].compute()
        assert computed[f"psnr_{direction}"].item() == pytest.approx(psnr(*draw(2, seed)), rel=1e-5)


def test_values_outside_the_range_are_clipped_as_in_a_file():
    metrics = TranslationMetrics(["AtoB"], "")
    images, targets = draw(2)
    computed = metrics.update("AtoB", images * 3, targets).compute()
    assert computed["psnr_AtoB"].item() == pytest.approx(psnr((images * 3).clamp(-1, 1), targets), rel=1e-5)


def measured_under_autocast():
    metrics = TranslationMetrics(["AtoB"], "")
    images, targets = draw(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metrics.update("AtoB", images, targets)
        computed = metrics.directions["AtoB"].compute()
    return computed, psnr(images, targets), ssim(images, targets)


def test_mixed_precision_around_it_changes_nothing(monkeypatch):
    computed, exact_psnr, exact_ssim = measured_under_autocast()
    assert computed["psnr_AtoB"].item() == pytest.approx(exact_psnr, rel=1e-5)
    assert computed["ssim_AtoB"].item() == pytest.approx(exact_ssim, rel=1e-4)

    # The guard is needed: without it the variances are differences of bfloat16 numbers.
    autocast = torch.autocast
    monkeypatch.setattr(
        "lightning_gen.metrics.similarity.torch.autocast",
        lambda device, *args, enabled=True, **kwargs: autocast(device, *args, **kwargs) if enabled else nullcontext(),
    )
    computed, _, _ = measured_under_autocast()
    assert computed["ssim_AtoB"].item() != pytest.approx(exact_ssim, rel=1e-2)


def test_bfloat16_pictures_are_measured_as_they_are():
    metrics = TranslationMetrics(["AtoB"], "")
    images, targets = (tensor.bfloat16() for tensor in draw(2))
    computed = metrics.update("AtoB", images, targets).compute()
    assert computed["psnr_AtoB"].dtype == torch.float32
    assert computed["psnr_AtoB"].item() == pytest.approx(psnr(images, targets), rel=1e-5)
