"""Figures against hand-made sets, closed forms and brute force."""

import itertools
import math

import pytest
import torch

from lightning_gen.data.toy import GridOfGaussians, Line, Mixture, ParallelLines, TwoGaussians
from lightning_gen.metrics import toy
from lightning_gen.metrics.toy import ToyMetrics, mode_coverage, wasserstein_1


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# -- modes ------------------------------------------------------------------------------------------------------------

MEANS = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
STD = 0.125  # a power of two, so that distances in deviations are exact


def at(*deviations):
    """Points to the left of the three modes, so many deviations away from each."""
    return torch.cat([MEANS[k] - torch.tensor([[d * STD, 0.0]]) for k, ds in enumerate(deviations) for d in ds])


def test_a_mode_with_far_points_only_does_not_count():
    found = mode_coverage(at([0.0], [3.0], [5.0, 6.0]), MEANS, STD)
    assert found.modes == 2
    assert found.high_quality == 2 / 4


@pytest.mark.parametrize(("within", "modes", "share"), [(3.0, 2, 2 / 3), (2.999, 1, 1 / 3), (4.0, 3, 1.0)])
def test_the_limit_itself_is_of_high_quality(within, modes, share):
    found = mode_coverage(at([0.0], [3.0], [4.0]), MEANS, STD, within=within)
    assert (found.modes, found.high_quality) == (modes, pytest.approx(share))


def test_a_mode_needs_its_number_of_good_points():
    points = at([0.0, 1.0, 2.0], [0.0, 1.0, 9.0], [0.0])
    assert [mode_coverage(points, MEANS, STD, min_points=n).modes for n in (1, 2, 3, 4)] == [3, 2, 1, 0]


def test_default_is_four_deviations():
    assert mode_coverage(at([4.0], [4.01]), MEANS, STD).high_quality == 0.5


def test_each_mode_has_its_own_deviation():
    means, std = torch.tensor([[0.0], [1.0]]), torch.tensor([0.01, 0.5])
    found = mode_coverage(torch.tensor([[0.2]]), means, std, weights=torch.tensor([0.25, 0.75]))
    assert found.modes == 1  # 20 deviations from the first, 1.6 from the second, though nearer to the first
    assert found.high_quality == 1
    assert found.kl_divergence == pytest.approx(math.log(1 / 0.75))


def test_the_kl_divergence_of_the_histogram():
    points = at([0.0, 9.0], [0.0], [0.0])  # the far point counts here
    shares, weights = (0.5, 0.25, 0.25), (0.2, 0.3, 0.5)
    expected = sum(p * math.log(p / q) for p, q in zip(shares, weights, strict=True))
    assert mode_coverage(points, MEANS, STD, torch.tensor(weights)).kl_divergence == pytest.approx(expected)
    assert mode_coverage(at([0.0, 1.0]), MEANS, STD).kl_divergence == pytest.approx(math.log(3))
    assert mode_coverage(at([0.0], [0.0], [0.0]), MEANS, STD).kl_divergence == pytest.approx(0, abs=1e-12)


def test_the_truth_has_the_quality_of_its_formula():
    truth, number = GridOfGaussians().distribution, 20_000
    points = truth.sample(number, rng())
    for within in (1.0, 2.0, 3.0):
        expected = 1 - math.exp(-(within**2) / 2)
        found = mode_coverage(points, truth.means, truth.std, truth.weights, within=within)
        assert found.high_quality == pytest.approx(expected, abs=4.5 * math.sqrt(expected * (1 - expected) / number))
        assert found.modes == 25
    # 2 N KL is chi-squared with 24 degrees of freedom: mean 24, deviation 7.
    assert 2 * number * found.kl_divergence == pytest.approx(24, abs=4.5 * 7)


def test_pictures_of_points_are_points_and_their_order_does_not_matter():
    truth = GridOfGaussians().distribution
    points = truth.sample(500, rng())
    expected = mode_coverage(points, truth.means, truth.std)
    assert mode_coverage(points[:, :, None, None], truth.means, truth.std) == expected
    assert mode_coverage(points.flip(0), truth.means, truth.std) == expected


def test_points_that_are_not_numbers_are_not_good():
    points = torch.cat([at([0.0]), torch.full((1, 2), float("nan"))])
    assert mode_coverage(points, MEANS, STD).high_quality == 0.5


# -- Wasserstein-1 ----------------------------------------------------------------------------------------------------


def as_plane(x):
    """Points on the line as points on the x-axis of the plane."""
    return torch.stack([x[:, 0], torch.zeros_like(x[:, 0])], dim=1)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_shift_costs_its_length(dimensions):
    x = torch.randn(60, dimensions, generator=rng())
    shift = torch.randn(dimensions, generator=rng(1))
    assert wasserstein_1(x, x + shift) == pytest.approx(shift.norm().item(), rel=1e-5)
    assert wasserstein_1(x, x) == 0


def test_two_gaussians_of_equal_deviation_are_their_means_apart():
    number = 20_000
    x = 0.3 + 0.1 * torch.randn(number, 1, generator=rng())
    y = -0.4 + 0.1 * torch.randn(number, 1, generator=rng(1))
    # They hardly overlap, so the distance is the difference of the two sample means.
    assert wasserstein_1(x, y) == pytest.approx(0.7, abs=4.5 * 0.1 * math.sqrt(2 / number))


def test_gaussians_of_one_mean_differ_by_their_deviations():
    x = torch.randn(100_000, 1, generator=rng(), dtype=torch.float64)
    assert wasserstein_1(x, 3 * x) == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.01)


def test_two_points_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [4.0]])
    # 1/6 of the mass goes from 0 to 1, and 1/3 from 1 to 4.
    assert wasserstein_1(x, y) == pytest.approx(1 / 6 + 1)
    assert wasserstein_1(y, x) == pytest.approx(1 / 6 + 1)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_it_equals_brute_force_over_all_matchings(dimensions):
    x = torch.randn(6, dimensions, generator=rng(), dtype=torch.float64)
    y = torch.randn(6, dimensions, generator=rng(1), dtype=torch.float64)
    costs = (x[:, None] - y).norm(dim=-1)
    best = min(costs[range(6), list(p)].mean().item() for p in itertools.permutations(range(6)))
    assert wasserstein_1(x, y) == pytest.approx(best, rel=1e-12)
    greedy = costs.min(dim=1).values.mean().item()
    assert greedy < best  # what a nearest neighbour would have said


def test_sorting_assignment_and_linear_program_agree():
    x, y = torch.randn(40, 1, generator=rng()), torch.randn(40, 1, generator=rng(1))
    same = torch.ones(40)
    on_the_line = wasserstein_1(x, y)
    assert wasserstein_1(as_plane(x), as_plane(y)) == pytest.approx(on_the_line, rel=1e-9)
    assert wasserstein_1(as_plane(x), as_plane(y), same, same) == pytest.approx(on_the_line, rel=1e-9)


def test_sorting_and_linear_program_agree_on_weights_and_unequal_numbers():
    x, y = torch.randn(15, 1, generator=rng()), torch.randn(22, 1, generator=rng(1))
    p, q = torch.rand(15, generator=rng(2)), torch.rand(22, generator=rng(3))
    assert wasserstein_1(as_plane(x), as_plane(y), p, q) == pytest.approx(wasserstein_1(x, y, p, q), rel=1e-9)
    assert wasserstein_1(as_plane(x), as_plane(y)) == pytest.approx(wasserstein_1(x, y), rel=1e-9)
    assert abs(wasserstein_1(x, y) - wasserstein_1(x, y, p, q)) > 1e-3


def test_a_weight_is_a_repetition():
    x, y = torch.randn(3, 2, generator=rng()), torch.randn(6, 2, generator=rng(1))
    repeated = x.repeat_interleave(torch.tensor([1, 2, 3]), dim=0)
    assert wasserstein_1(x, y, torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(wasserstein_1(repeated, y), rel=1e-9)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_neither_order_nor_side_matters(dimensions):
    x, y = torch.randn(50, dimensions, generator=rng()), torch.randn(50, dimensions, generator=rng(1))
    expected = wasserstein_1(x, y)
    assert wasserstein_1(x[torch.randperm(50, generator=rng(2))], y) == pytest.approx(expected, rel=1e-12)
    assert wasserstein_1(y, x) == pytest.approx(expected, rel=1e-12)
    assert wasserstein_1(x[..., None, None], y[..., None, None]) == expected


def test_parallel_lines_are_as_far_apart_as_they_stand():
    data, heights = ParallelLines(0.6), torch.linspace(0, 1, 50)
    lines = [
        torch.stack([torch.full_like(heights, line.x), heights], dim=1) for line in (data.distribution, data.other)
    ]
    assert wasserstein_1(*lines) == pytest.approx(0.6, rel=1e-6)
    # Random heights cost at least that, and little more.
    drawn = wasserstein_1(data.distribution.sample(500, rng()), data.other.sample(500, rng(1)))
    assert 0.6 <= drawn < 0.62


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_model_has_no_distance(dimensions, bad):
    x = torch.zeros(3, dimensions)
    x[1, 0] = bad
    assert math.isnan(wasserstein_1(x, torch.zeros(3, dimensions)))


def test_input_that_cannot_be_measured_is_refused():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="same number of coordinates, got 2 and 1"):
        wasserstein_1(x, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"y must be \[N, d\] .* got the shape \[0, 2\]"):
        wasserstein_1(x, torch.zeros(0, 2))
    for weights in (torch.ones(2), -torch.ones(3), torch.zeros(3)):
        with pytest.raises(ValueError, match="x_weights must be 3 numbers, 0 or more and not all 0"):
            wasserstein_1(x, x, weights)
    with pytest.raises(ValueError, match=r"means must be \[K, 2\]"):
        mode_coverage(x, torch.zeros(4, 3), 1.0)


def test_without_scipy_the_line_is_measured_and_the_plane_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(toy.importlib, "import_module", absent)
    assert wasserstein_1(torch.zeros(3, 1), torch.ones(3, 1)) == 1
    with pytest.raises(ImportError, match="pip install scipy"):
        wasserstein_1(torch.zeros(3, 2), torch.ones(3, 2))


# -- all of it --------------------------------------------------------------------------------------------------------


def test_the_metric_gathers_batches():
    truth = GridOfGaussians().distribution
    points = truth.sample(300, rng())
    metrics = ToyMetrics(truth, wasserstein_points=100, seed=7)
    for part in points[:, :, None, None].split(128):
        metrics.update(part)
    figures = metrics.compute()
    found = mode_coverage(points, truth.means, truth.std, truth.weights)
    expected = wasserstein_1(points[:100], truth.sample(100, rng(7)))
    assert set(figures) == {"modes", "high_quality", "mode_kl", "wasserstein_1"}
    assert figures["modes"] == found.modes
    assert figures["high_quality"].item() == pytest.approx(found.high_quality)
    assert figures["mode_kl"].item() == pytest.approx(found.kl_divergence)
    assert figures["wasserstein_1"].item() == pytest.approx(expected)
    assert all(figure.dtype == torch.float32 for figure in figures.values())
    metrics.reset()
    metrics.update(truth.means[:1].float())
    assert metrics.compute()["modes"] == 1


def test_the_metric_is_small_for_the_truth_and_large_for_a_collapsed_model():
    truth = TwoGaussians().distribution

    def figures(distribution):
        metrics = ToyMetrics(truth)
        metrics.update(distribution.sample(2000, rng()))
        return metrics.compute()

    good, collapsed = figures(truth), figures(Mixture(truth.means[:1], truth.std[:1]))
    assert (good["modes"], collapsed["modes"]) == (2, 1)
    assert good["wasserstein_1"] < 0.05
    # Half of the mass is 0.8 away.
    assert collapsed["wasserstein_1"].item() == pytest.approx(0.4, abs=0.05)
    assert collapsed["mode_kl"].item() == pytest.approx(math.log(2), abs=0.01)


def test_a_truth_without_modes_has_a_distance_only_and_the_distance_can_be_left_out():
    line = ToyMetrics(Line(0.0), wasserstein_points=50)
    line.update(Line(0.5).sample(50, rng()))
    assert set(line.compute()) == {"wasserstein_1"}
    mixture = ToyMetrics(TwoGaussians().distribution, wasserstein_points=0)
    mixture.update(torch.zeros(1, 1))
    assert "wasserstein_1" not in mixture.compute()
    with pytest.raises(ValueError, match="wasserstein_points must be 0 or more, got -1"):
        ToyMetrics(Line(0.0), wasserstein_points=-1)
    with pytest.raises(ValueError, match="Unexpected keyword"):
        ToyMetrics(Line(0.0), withim=3)
