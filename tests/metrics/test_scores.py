"""Inception Score and kernel distance: known values, definitions written out, and torch-fidelity's own functions."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from lightning_gen.metrics.scores import inception_score, kernel_distance


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def certain(classes, num_classes):
    """Logits of a predictor that has no doubt."""
    return torch.nn.functional.one_hot(torch.as_tensor(classes), num_classes).double() * 1000


# ---- Inception Score


def test_a_perfect_predictor_of_even_classes_scores_their_number_and_a_uniform_one_scores_one():
    classes = torch.arange(10).repeat(30)
    assert inception_score(certain(classes, 10), 1) == pytest.approx((10, 0), abs=1e-12)
    assert inception_score(torch.zeros(300, 10), 10) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(certain([3] * 50, 10), 5) == pytest.approx((1, 0), abs=1e-12)


def test_it_is_the_exponential_of_the_mutual_information():
    # Half of the pictures have (3/4, 1/4), half (1/4, 3/4): I = log 2 - H(1/4).
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert inception_score(p.log().repeat(8, 1), 1).mean == pytest.approx(math.exp(math.log(2) - entropy), rel=1e-14)
    # Three pictures that are certain and one that knows nothing, of two classes.
    logits = torch.cat([certain([0, 0, 0], 2), torch.zeros(1, 2, dtype=torch.float64)])
    kl_certain, kl_unsure = -math.log(7 / 8), 0.5 * math.log(0.5 / (7 / 8)) + 0.5 * math.log(0.5 / (1 / 8))
    assert inception_score(logits, 1).mean == pytest.approx(math.exp((3 * kl_certain + kl_unsure) / 4), rel=1e-14)


@pytest.mark.parametrize("count", [100, 243, 1009])
def test_it_is_torch_fidelitys(count):
    logits = normal(count, 20) * 3
    for splits, shuffle in product((1, 7, 10), (True, False)):
        other = isc_features_to_metric(logits, splits, shuffle, 2020)
        ours = inception_score(logits, splits, shuffle_seed=2020 if shuffle else None)
        assert ours.mean == pytest.approx(other["inception_score_mean"], rel=1e-12)
        assert ours.std == pytest.approx(other["inception_score_std"], rel=1e-9, abs=1e-14)


def test_every_picture_is_in_one_split_and_sizes_differ_by_one_at_most():
    # Twelve pictures of twelve classes in ten splits: the score of a split is its size.
    score = inception_score(certain(torch.arange(12), 12), 10, shuffle_seed=None)
    assert score == pytest.approx((1.2, 0.4), abs=1e-12)  # eight splits of one picture and two of two


def test_pictures_sorted_by_class_are_shuffled_which_matters():
    logits = certain(torch.arange(10).repeat_interleave(100), 10)
    assert inception_score(logits).mean > 9
    assert inception_score(logits, shuffle_seed=None).mean == pytest.approx(1, abs=1e-12)


def test_classes_that_no_picture_has_do_no_harm():
    logits = torch.full((40, 5), -5000.0)
    logits[torch.arange(40), torch.arange(40) % 2] = 0
    assert inception_score(logits, 1).mean == pytest.approx(2, rel=1e-12)


def test_bfloat16_logits_are_scored_in_float64():
    logits = (normal(200, 10) * 2).bfloat16()
    assert inception_score(logits) == inception_score(logits.double())


@pytest.mark.parametrize(
    ("logits", "splits", "message"),
    [
        (torch.zeros(9, 5), 10, "needs at least 10 pictures, got 9"),
        (torch.zeros(9, 5), 0, "splits must be at least 1"),
        (torch.zeros(9), 1, r"\[N, D\]"),
        (torch.zeros(9, 5, dtype=torch.long), 1, "floating"),
        (torch.tensor([[1.0, math.nan], [0, 0]]), 1, "1 of the 2 rows of logits are not finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(logits, splits, message):
    with pytest.raises(ValueError, match=message):
        inception_score(logits, splits)


# ---- kernel distance


def mmd2(x, y, degree=3, gamma=None, coef0=1.0):
    """Equation 4 of Gretton et al. 2012, sum by sum."""
    x, y = x.double().tolist(), y.double().tolist()
    gamma = 1 / len(x[0]) if gamma is None else gamma

    def k(a, b):
        return (gamma * math.fsum(p * q for p, q in zip(a, b, strict=True)) + coef0) ** degree

    def within(z):
        return math.fsum(k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * math.fsum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("kernel", [{}, {"degree": 2, "gamma": 0.5, "coef0": 0.25}])
def test_one_block_is_the_double_sum(kernel):
    x, y = normal(30, 5), normal(30, 5, seed=1) + 0.3
    expected = mmd2(x, y, **kernel)
    found = kernel_distance(x, y, block_size=30, **kernel)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert math.isnan(found.standard_error)
    assert (found.std, found.blocks, found.block_size) == (0, 1, 30)
    assert kernel_distance(x.double(), y.double(), block_size=30, **kernel).value == pytest.approx(expected, rel=1e-12)


def test_blocks_are_disjoint_as_many_as_fit_and_of_even_size():
    x, y = normal(107, 4, dtype=torch.float64), normal(64, 4, seed=1, dtype=torch.float64)
    found = kernel_distance(x, y, block_size=20, seed=7)
    assert (found.blocks, found.block_size) == (3, 21)
    random = np.random.RandomState(7)
    in_x, in_y = random.permutation(107), random.permutation(64)
    values = [mmd2(x[in_x[i : i + 21]], y[in_y[i : i + 21]]) for i in (0, 21, 42)]
    assert found.value == pytest.approx(np.mean(values), rel=1e-11)
    assert found.std == pytest.approx(np.std(values), rel=1e-11)
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(3), rel=1e-11)


@pytest.mark.parametrize("seed", [2020, 5])
def test_subsets_are_torch_fidelitys(seed):
    x, y = normal(300, 32, dtype=torch.float64), normal(260, 32, seed=1, dtype=torch.float64) * 1.1
    other = kid_features_to_metric(x, y, kid_subsets=12, kid_subset_size=80, rng_seed=seed, verbose=False)
    for features, tolerance in (((x, y), 1e-10), ((x.float(), y.float()), 1e-6)):
        found = kernel_distance(*features, subsets=12, block_size=80, seed=seed)
        assert found.value == pytest.approx(other["kernel_inception_distance_mean"], rel=tolerance)
        assert found.std == pytest.approx(other["kernel_inception_distance_std"], rel=tolerance)
        assert math.isnan(found.standard_error)


def test_it_is_unbiased_whatever_the_size_of_the_blocks():
    for block_size in (5, 40):
        values = [
            kernel_distance(normal(40, 3, seed=2 * i), normal(40, 3, seed=2 * i + 1), block_size=block_size).value
            for i in range(300)
        ]
        assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(300)
        assert min(values) < 0
        # With the diagonal it would be 2 E[k(x, x) - k(x, y)] / n = 21.8 / n too large: seen by this many draws.
        assert 4 * np.std(values) / math.sqrt(300) < 21.8 / block_size


def test_the_standard_error_is_that_of_the_value():
    draws = [
        kernel_distance(normal(200, 3, seed=2 * i), normal(200, 3, seed=2 * i + 1) + 0.3, block_size=10)
        for i in range(200)
    ]
    scatter = np.std([draw.value for draw in draws], ddof=1)
    assert np.mean([draw.standard_error for draw in draws]) == pytest.approx(scatter, rel=0.2)


def test_float32_products_keep_the_digits_that_a_small_distance_needs():
    # Of the size that Inception features have: the kernel is about 2, the distance 1e-5 of it.
    mixing = normal(256, 256, seed=9) / 16
    x = (0.4 + 0.4 * normal(500, 256) @ mixing).relu()
    y = (0.4 + 0.4 * normal(500, 256, seed=1) @ mixing).relu()
    y += 1e-3
    exact = kernel_distance(x.double(), y.double(), block_size=500).value
    assert kernel_distance(x, y, block_size=500).value == pytest.approx(exact, abs=1e-9)
    # Far from the origin float32 would lose all of it.
    x, y = normal(200, 16) * 0.01 + 100, normal(200, 16, seed=1) * 0.01 + 100.01
    exact = kernel_distance(x.double(), y.double(), block_size=200).value
    assert kernel_distance(x, y, block_size=200).value == pytest.approx(exact, rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel_distance(x, y, block_size=200).value == pytest.approx(exact, rel=1e-6)


def test_samples_sorted_by_class_are_dealt_at_random():
    # The same mixture on either side, one sorted the other way: blocks in order would compare class with class.
    classes = torch.arange(5).repeat_interleave(100).float()[:, None]
    x, y = normal(500, 2) + 10 * classes, normal(500, 2, seed=1) + 10 * classes.flip(0)
    found = kernel_distance(x, y, block_size=100)
    assert abs(found.value) < 4 * found.standard_error
    in_order = np.mean([mmd2(x[i : i + 20], y[i : i + 20]) for i in range(0, 500, 100)])
    assert in_order > 20 * abs(found.value)


def test_neither_reads_nor_moves_the_global_random_states():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = kernel_distance(normal(50, 3), normal(50, 3, seed=1), block_size=10), inception_score(normal(50, 3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(1)
    again = kernel_distance(normal(50, 3), normal(50, 3, seed=1), block_size=10), inception_score(normal(50, 3))
    assert first == again


@pytest.mark.parametrize(
    ("x", "y", "settings", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(5, 2), {}, "at least 2 samples on either side, got 1 and 5"),
        (torch.zeros(5, 2), torch.zeros(5, 3), {}, "same extractor, got 2 and 3"),
        (torch.zeros(5, 2), torch.zeros(5, 2), {"subsets": 3}, "Subsets of 1000 samples.*got 5 and 5"),
        (torch.zeros(5, 2), torch.zeros(5, 2), {"block_size": 1}, "block_size must be at least 2"),
        (torch.zeros(5, 2), torch.zeros(5, 2), {"subsets": 0}, "subsets 1, got 1000 and 0"),
        (torch.zeros(5, 2), torch.full((5, 2), math.inf), {}, "5 of the 5 rows of y"),
        (torch.zeros(5), torch.zeros(5, 2), {}, r"x must be a floating tensor \[N, D\]"),
    ],
)
def test_what_has_no_distance_is_refused(x, y, settings, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(x, y, **settings)
