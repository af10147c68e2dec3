"""Nats, bits and Parzen windows against closed forms, plain loops and scikit-learn, over batches and ranks."""

import math
import warnings

import pytest
import torch
from sklearn.neighbors import KernelDensity
from torchmetrics import MetricCollection

from lightning_gen.metrics import parzen
from lightning_gen.metrics.likelihood import BitsPerDim, NegativeLogLikelihood
from lightning_gen.metrics.parzen import SIGMAS, ParzenWindow, parzen_log_likelihood


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def figure(metric, *batches):
    for log_prob in batches:
        metric.update(torch.as_tensor(log_prob))
    return metric.compute().item()


# -- nats and bits ----------------------------------------------------------------------------------------------------

NATS = torch.randn(103, generator=rng(), dtype=torch.float64) * 10 + 85


def test_every_image_weighs_the_same_in_ragged_batches():
    batches = NATS.split(25)  # the last has 3
    assert figure(NegativeLogLikelihood(), *(-b for b in batches)) == pytest.approx(NATS.mean().item(), rel=1e-14)
    mean_of_means = torch.stack([b.mean() for b in batches]).mean().item()
    assert abs(mean_of_means - NATS.mean().item()) > 0.1  # what it must not be


def test_sums_are_exact_where_float32_is_not():
    # In float32 the sum stops growing by ones at 2^24.
    assert figure(NegativeLogLikelihood(), [-(2.0**25)], *([-1.0],) * 9) == pytest.approx((2**25 + 9) / 10, rel=1e-15)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 2)])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_a_uniform_probability_of_levels_has_the_bits_of_the_depth(shape, num_levels):
    nats = -math.prod(shape) * math.log(num_levels)
    found = figure(BitsPerDim(shape, num_levels), torch.full((7,), nats, dtype=torch.float64))
    assert found == pytest.approx(math.log2(num_levels), rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-1 - 1 / 255, 1 + 1 / 255)])
@pytest.mark.parametrize(("num_levels", "bits"), [(256, 8), (32, 5)])
def test_a_uniform_density_has_the_bits_of_the_depth(low, high, num_levels, bits):
    nats = -12 * math.log(high - low)  # its log-density in 12 dimensions
    metric = BitsPerDim((3, 2, 2), num_levels, density_over=(low, high))
    assert figure(metric, torch.full((7,), nats, dtype=torch.float64)) == pytest.approx(bits, rel=1e-12)


def test_a_density_that_is_constant_on_cells_has_the_bits_of_its_levels():
    probabilities = torch.rand(4, generator=rng(), dtype=torch.float64)
    probabilities /= probabilities.sum()
    levels = torch.multinomial(probabilities, 30, replacement=True, generator=rng()).view(5, 1, 2, 3)
    of_levels = probabilities[levels].log().flatten(1).sum(1)
    of_density = (probabilities[levels] / 0.5).log().flatten(1).sum(1)  # cells of [-1, 1] are 0.5 wide
    expected = -probabilities[levels].log2().mean().item()
    assert figure(BitsPerDim((1, 2, 3), 4), of_levels) == pytest.approx(expected, rel=1e-12)
    assert figure(BitsPerDim((1, 2, 3), 4, density_over=(-1, 1)), of_density) == pytest.approx(expected, rel=1e-12)


def test_figures_say_what_they_are_of():
    assert NegativeLogLikelihood().name == "nll"
    for binarization in ("fixed", "static", "dynamic", "threshold"):
        assert NegativeLogLikelihood(binarization).name == f"nll-{binarization}"
    names = {2: "bpd-1bit", 17: "bpd-17level", 32: "bpd-5bit", 256: "bpd"}
    assert {levels: BitsPerDim((1, 8, 8), levels).name for levels in names} == names


def test_standard_error_is_that_of_the_mean():
    nll, bpd = NegativeLogLikelihood(), BitsPerDim((1, 4, 4))
    for batch in NATS.split(25):
        nll.update(-batch)
        bpd.update(-batch)
    expected = NATS.std().item() / math.sqrt(103)
    assert nll.standard_error().item() == pytest.approx(expected, rel=1e-10)
    assert bpd.standard_error().item() == pytest.approx(expected / (16 * math.log(2)), rel=1e-10)


def test_an_impossible_image_makes_the_figure_infinite():
    assert figure(NegativeLogLikelihood(), [-80.0, -math.inf]) == math.inf
    assert figure(BitsPerDim((1, 2, 2)), [-80.0, -math.inf]) == math.inf


@pytest.mark.parametrize("metric", [NegativeLogLikelihood(), BitsPerDim((1, 2, 2))])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_log_probability_is_named_by_its_place(metric, wrong):
    metric.reset()
    with pytest.raises(ValueError, match=rf"2 of 4 images .* first being image 1 with {wrong}"):
        metric.update(torch.tensor([-1.0, wrong, -2.0, wrong]))
    assert metric.count == 0


@pytest.mark.parametrize("wrong", [torch.tensor(-3.0), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)])
def test_means_of_batches_are_refused(wrong):
    with pytest.raises(ValueError, match=r"float \[N\]"):
        NegativeLogLikelihood().update(wrong)


def test_a_density_is_not_taken_for_a_probability():
    with pytest.raises(ValueError, match="cannot be above 0, but one is 5"):
        BitsPerDim((1, 2, 2)).update(torch.tensor([-1.0, 5.0]))
    assert figure(BitsPerDim((1, 2, 2), density_over=(-1, 1)), [5.0]) == pytest.approx(7 - 5 / 4 / math.log(2))


def test_nothing_seen_is_an_error():
    with pytest.raises(ValueError, match="no image on any rank"), pytest.warns(UserWarning, match="before the"):
        NegativeLogLikelihood().compute()
    with pytest.raises(ValueError, match="BitsPerDim has seen no image"):
        figure(BitsPerDim((1, 2, 2)), torch.zeros(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NegativeLogLikelihood("stochastic"), "fixed, static, dynamic, threshold"),
        (lambda: BitsPerDim((1, 0, 8)), "each at least 1"),
        (lambda: BitsPerDim((1, 8, 8), 1), "at least 2, got 1"),
        (lambda: BitsPerDim((1, 8, 8), density_over=(1, -1)), "low < high"),
        (lambda: ParzenWindow((1, 8, 8), []), "above 0"),
        (lambda: ParzenWindow((1, 8, 8), [0.1, 0.0]), "above 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_states_keep_their_precision(convert):
    metric = NegativeLogLikelihood()
    metric.update(-NATS[:50])
    # As a part of a module that a precision plugin converts.
    convert(torch.nn.ModuleList([metric]))
    metric.update(-NATS[50:])
    assert metric.total.dtype == torch.float64
    assert metric.compute().item() == pytest.approx(NATS.mean().item(), rel=1e-14)
    metric.reset()
    assert figure(metric, -NATS) == pytest.approx(NATS.mean().item(), rel=1e-14)


def test_a_reset_under_inference_mode_does_no_harm():
    metric = NegativeLogLikelihood()
    with torch.inference_mode():
        metric.update(-NATS)
        metric.reset()
    assert figure(metric, -NATS) == pytest.approx(NATS.mean().item(), rel=1e-14)


def test_both_fit_a_collection():
    both = MetricCollection([NegativeLogLikelihood("static"), BitsPerDim((1, 4, 4), 2)])
    for batch in NATS.split(25):
        both.update(-batch)
    found = both.compute()
    assert found["NegativeLogLikelihood"].item() == pytest.approx(NATS.mean().item(), rel=1e-14)
    assert found["BitsPerDim"].item() == pytest.approx(NATS.mean().item() / 16 / math.log(2), rel=1e-12)


def likelihoods_of_rank(rank, bounds):
    found = []
    for metric in (NegativeLogLikelihood(), BitsPerDim((1, 4, 4))):
        for i in range(*bounds[rank : rank + 2], 9):  # not at all for an empty share
            metric.update(-NATS[i : min(i + 9, bounds[rank + 1])])
        found += [metric.compute().item(), metric.standard_error().item()]
    return found


@pytest.mark.parametrize("bounds", [(0, 70, 103), (0, 0, 103)])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_ranks_with_unequal_shares_equal_one_process(on_ranks, bounds):
    expected = likelihoods_of_rank(0, (0, 103))
    for found in on_ranks(likelihoods_of_rank, bounds):
        assert found == pytest.approx(expected, rel=1e-12)


# -- Parzen windows ---------------------------------------------------------------------------------------------------

SHAPE = (1, 3, 4)


def pictures(number, seed, spread=0.15):
    """Two kinds of pictures with noise, in [-1, 1]."""
    draw = rng(seed)
    kinds = torch.rand(2, *SHAPE, generator=rng(99), dtype=torch.float64) - 0.5
    chosen = kinds[torch.randint(2, (number,), generator=draw)]
    noise = torch.randn(number, *SHAPE, generator=draw, dtype=torch.float64)
    return (chosen + spread * noise).clamp(-1, 1)


def unit(images):
    """As the states hold them."""
    return images.float().add(1).div(2).flatten(1).double()


def test_densities_equal_a_plain_double_loop_and_scikit_learn():
    images, samples = unit(pictures(15, 1)), unit(pictures(40, 2))
    sigmas = [0.05, 0.3, 2.0]
    found = parzen_log_likelihood(images, samples, sigmas)
    assert found.dtype == torch.float64
    for row, sigma in zip(found, sigmas, strict=True):
        for value, image in zip(row, images, strict=True):
            normal = torch.distributions.Normal(image, sigma)
            density = sum(normal.log_prob(sample).sum().exp().item() for sample in samples) / 40
            assert value.item() == pytest.approx(math.log(density), rel=1e-11)
        kernels = KernelDensity(bandwidth=sigma).fit(samples)
        assert row.numpy() == pytest.approx(kernels.score_samples(images), rel=1e-9)


def test_far_pictures_have_finite_densities():
    images, samples = torch.ones(1, 784), torch.zeros(3, 784)
    expected = -784 / (2 * 0.01**2) - 784 * math.log(0.01 * math.sqrt(2 * math.pi))
    assert parzen_log_likelihood(images, samples, [0.01]).item() == pytest.approx(expected, rel=1e-12)


def test_parts_do_not_change_a_density(monkeypatch):
    images, samples = unit(pictures(50, 1)), unit(pictures(40, 2))
    whole = parzen_log_likelihood(images, samples, [0.1, 0.2])
    for at_a_time in (7, 130):  # less than one picture needs, and three of them
        monkeypatch.setattr(parzen, "_DISTANCES_AT_A_TIME", at_a_time)
        parts = parzen_log_likelihood(images, samples, [0.1, 0.2])
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


PARTS = {"samples": pictures(200, 1), "validation": pictures(60, 2), "test": pictures(70, 3)}


def windows(sigmas=SIGMAS, shares=None, **parts):
    metric = ParzenWindow(SHAPE, sigmas)
    for part, images in (PARTS | parts).items():
        first, last = shares[part] if shares else (0, len(images))
        for i in range(first, last, 13):  # not at all for an empty share
            metric.update(images[i : min(i + 13, last)], part)
    return metric


def scikit_learn(sigma, part):
    return KernelDensity(bandwidth=sigma).fit(unit(PARTS["samples"])).score_samples(unit(PARTS[part]))


def test_sigma_is_the_likeliest_candidate_on_validation_pictures():
    candidates = [0.07, 0.3, 0.05, 0.1, 0.15]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the first of them is not the smallest
        found = windows(candidates).compute()
    best = max(candidates, key=lambda sigma: scikit_learn(sigma, "validation").mean())
    assert best == candidates[0]
    assert found["sigma"].item() == pytest.approx(best)
    nats = scikit_learn(best, "test")
    assert found["log_likelihood"].item() == pytest.approx(nats.mean(), rel=1e-9)
    assert found["standard_error"].item() == pytest.approx(nats.std(ddof=1) / math.sqrt(70), rel=1e-9)
    assert all(value.dtype == torch.float64 for value in found.values())


def test_test_pictures_have_no_say_in_sigma():
    far = torch.zeros(70, *SHAPE)  # likeliest under wide windows
    candidates = [0.05, 0.07, 0.1, 0.15, 5.0]
    assert windows(candidates, test=far).compute()["sigma"] == windows(candidates).compute()["sigma"]


def test_one_candidate_needs_no_validation_pictures():
    none = torch.zeros(0, *SHAPE)
    found = windows([0.1], validation=none).compute()
    assert found["log_likelihood"].item() == pytest.approx(scikit_learn(0.1, "test").mean(), rel=1e-9)
    with pytest.raises(ValueError, match="200 samples, 0 validation and 70 test"):
        windows(validation=none).compute()
    with pytest.raises(ValueError, match="0 samples"):
        windows(samples=none).compute()
    with pytest.raises(ValueError, match="0 test"):
        windows(test=none).compute()


@pytest.mark.parametrize("candidates", [[0.001, 0.002], [2.0, 3.0, 4.0]])
def test_a_sigma_at_the_end_of_its_candidates_is_told(candidates):
    with pytest.warns(UserWarning, match="at the end of the candidates"):
        windows(candidates).compute()


def test_quantized_pictures_are_the_same_pictures():
    levels = torch.randint(0, 256, (20, *SHAPE), generator=rng(), dtype=torch.uint8)
    metrics = [ParzenWindow(SHAPE, [0.1]) for _ in range(2)]
    for part, images in (("samples", levels), ("test", 255 - levels)):
        metrics[0].update(images, part)
        metrics[1].update(images.double() / 127.5 - 1, part)
    figures = [metric.compute()["log_likelihood"].item() for metric in metrics]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.mark.parametrize(
    ("images", "part", "message"),
    [
        (torch.zeros(2, 1, 4, 3), "test", r"must be \[N, 1, 3, 4\], got \[2, 1, 4, 3\]"),
        (torch.zeros(2, *SHAPE), "train", "samples, validation or test, got 'train'"),
        (torch.full((2, *SHAPE), 1.5), "test", r"floats in \[-1, 1\]; got torch.float32 from 1.5 to 1.5"),
        (torch.full((2, *SHAPE), math.nan), "test", "got torch.float32 from nan"),
        (torch.zeros(2, *SHAPE, dtype=torch.int64), "test", "got torch.int64"),
    ],
)
def test_what_are_no_pictures_is_refused(images, part, message):
    with pytest.raises(ValueError, match=message):
        ParzenWindow(SHAPE).update(images, part)


def test_pictures_keep_their_precision():
    expected = windows([0.01]).compute()["log_likelihood"].item()
    metric = windows([0.01])
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    assert metric.compute()["log_likelihood"].item() == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert windows([0.01]).compute()["log_likelihood"].item() == expected


def windows_of_rank(rank, shares):
    if rank == 1:
        torch.set_default_dtype(torch.bfloat16)  # as where a precision plugin makes modules
    metric = windows([0.05, 0.07, 0.1, 0.15, 0.3], shares[rank])
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    return {name: value.item() for name, value in metric.compute().items()}


ALL = {part: (0, len(images)) for part, images in PARTS.items()}


@pytest.mark.parametrize(
    "shares",
    [
        ({"samples": (0, 150), "validation": (0, 11), "test": (0, 70)},
         {"samples": (150, 200), "validation": (11, 60), "test": (70, 70)}),
        (ALL, dict.fromkeys(PARTS, (0, 0))),
        (dict.fromkeys(PARTS, (0, 0)), ALL),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_windows_of_ranks_with_unequal_shares_equal_one_process(on_ranks, shares):
    expected = windows_of_rank(0, [ALL])
    for found in on_ranks(windows_of_rank, shares):
        assert found == pytest.approx(expected, rel=1e-10)
