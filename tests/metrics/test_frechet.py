import math

import pytest
import torch
from torch.testing import assert_close

from lightning_gen.metrics.frechet import (
    Gaussian,
    Moments,
    frechet_distance,
    frechet_distance_between,
    frechet_infinity,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred(covariance, count=10**6):
    return Gaussian(count, torch.zeros(len(covariance), dtype=torch.float64), covariance)


def reflection(size, seed=0):
    v = noise(size, seed=seed)
    v /= v.norm()
    return lambda matrix: (half := matrix - 2 * torch.outer(v, v @ matrix)) - 2 * torch.outer(half @ v, v)


def of_rank(rank, size, seed=0):
    root = noise(size, rank, seed=seed)
    return root @ root.T / size


def by_svd(p, q):
    # Both factors, and no eigenvalue whose root would be taken: no digits are lost.
    nuclear = torch.linalg.svdvals(torch.linalg.cholesky(p.covariance).T @ torch.linalg.cholesky(q.covariance)).sum()
    difference = (p.mean - q.mean).square().sum()
    return float(difference + p.covariance.trace() + q.covariance.trace() - 2 * nuclear)


def inception_like(count, size, seed):
    """Deviations that fall off over three orders of magnitude, and non-negative like features behind a ReLU."""
    mixing = noise(size, size, seed=seed % 2) / size**0.5
    return (noise(count, size, seed=seed) @ (mixing * torch.logspace(0, -3, size, dtype=torch.float64))).relu()


# -- the distance, where it is known ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 64, 192, 768, 2048])
def test_blocks_of_two_have_a_closed_form(size):
    # tr (AB)^1/2 of 2 x 2 blocks is (tr AB + 2 (det A det B)^1/2)^1/2; a reflection hides the blocks.
    roots = noise(2, size // 2, 2, 2, seed=size)
    a, b = roots @ roots.mT + 0.1 * torch.eye(2, dtype=torch.float64)
    trace_root = ((a @ b).diagonal(dim1=1, dim2=2).sum(1) + 2 * (a.det() * b.det()).sqrt()).sqrt().sum()
    traces = (a + b).diagonal(dim1=1, dim2=2).sum()
    hide = reflection(size)
    p, q = (hide(torch.block_diag(*blocks)) for blocks in (a, b))
    mean = noise(size, seed=1)
    distance = frechet_distance(Gaussian(9999, mean, p), Gaussian(9999, -mean, q))
    assert distance == pytest.approx(float(4 * mean.square().sum() + traces - 2 * trace_root), rel=1e-12)


@pytest.mark.parametrize("size", [64, 192, 768])
def test_agrees_with_singular_values_of_both_factors(size):
    p, q = (Gaussian.fit(inception_like(3 * size, size, seed)) for seed in (1, 2))
    assert frechet_distance(p, q) == pytest.approx(by_svd(p, q), rel=1e-11)


def test_ill_conditioned_covariances_keep_their_digits():
    # Condition 1e9: squared it is beyond float64, where the eigenvalues of the plain product lose 1e-9 of the trace.
    spectrum = torch.logspace(0, -9, 200, dtype=torch.float64)
    x, y = (noise(1000, 200, seed=seed) * spectrum.sqrt() for seed in (1, 2))
    basis = torch.linalg.qr(noise(200, 200)).Q
    p, q = Gaussian.fit(x @ basis), Gaussian.fit(1.1 * y @ basis)
    assert frechet_distance(p, q) == pytest.approx(by_svd(p, q), rel=1e-11)


def test_agrees_with_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    p, q = (Gaussian.fit(inception_like(400, 64, seed)) for seed in (1, 2))
    assert frechet_distance(p, q) == pytest.approx(
        float(_compute_fid(p.mean, p.covariance, q.mean, q.covariance)), rel=1e-6
    )


def test_equal_covariances_leave_the_means():
    covariance = of_rank(40, 20)
    mean = noise(20)
    distance = frechet_distance(Gaussian(100, mean, covariance), Gaussian(50, mean + 3, covariance))
    assert distance == pytest.approx(9 * 20, rel=1e-13)


@pytest.mark.parametrize("rank", [50, 30])
def test_commuting_covariances_differ_by_their_deviations(rank):
    a, b = noise(2, 50).exp()
    a[rank:] = b[rank:] = 0
    hide = reflection(50)
    distance = frechet_distance(centred(hide(a.diag())), centred(hide(b.diag())))
    assert distance == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-11)


def test_one_dimension():
    p, q = (Gaussian(10, torch.tensor([m]), torch.tensor([[s**2]])) for m, s in ((1.0, 2.0), (-2.0, 0.5)))
    assert frechet_distance(p, q) == pytest.approx(3**2 + 1.5**2, rel=1e-14)


def test_rank_one_covariances_have_a_closed_form():
    # (u u^T, v v^T): |u|^2 + |v|^2 - 2 |u . v|
    u, v = noise(2, 30)
    expected = float(u @ u + v @ v - 2 * (u @ v).abs())
    assert frechet_distance(centred(torch.outer(u, u)), centred(torch.outer(v, v))) == pytest.approx(
        expected, rel=1e-12
    )


def test_covariances_without_a_common_direction_add_up():
    # Between orthogonal subspaces the cross term is 0, of which roots of rounded eigenvalues would make 1e-8.
    a, b = noise(2, 40).exp()
    a[20:] = 0
    b[:20] = 0
    hide = reflection(40)
    distance = frechet_distance(centred(hide(a.diag())), centred(hide(b.diag())))
    assert distance == pytest.approx(float(a.sum() + b.sum()), rel=1e-12)


def test_zero_covariances():
    zero, full = centred(torch.zeros(8, 8)), centred(of_rank(20, 8))
    assert frechet_distance(zero, zero) == 0
    assert frechet_distance(zero, full) == frechet_distance(full, zero) == pytest.approx(float(full.covariance.trace()))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("n", "m"), [(12, 15), (12, 500), (40, 500), (41, 500), (40, 40), (500, 400)])
def test_few_samples_give_the_exact_value_of_low_rank(n, m, swap):
    x, y = noise(n, 40, seed=1), 2 * noise(m, 40, seed=2) + 1
    # Singular values of the centred cross-Gram matrix, whatever the shapes.
    a, b = (z - z.mean(0) for z in (x, y))
    trace_root = torch.linalg.svdvals(a @ b.T).sum() / math.sqrt((n - 1) * (m - 1))
    traces = a.square().sum() / (n - 1) + b.square().sum() / (m - 1)
    expected = float((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * trace_root)
    if swap:
        x, y = y, x
    assert frechet_distance_between(x, y) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(Gaussian.fit(x), Gaussian.fit(y)) == pytest.approx(expected, rel=1e-11)


# -- what no distance may do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 20, 64, 65, 300])
def test_identical_sets_are_at_no_distance(count):
    x = inception_like(count, 64, 1)
    trace = float(Gaussian.fit(x).covariance.trace())
    for distance in (frechet_distance(Gaussian.fit(x), Gaussian.fit(x)), frechet_distance_between(x, x.clone())):
        assert 0 <= distance <= 1e-12 * trace


def test_is_symmetric_and_a_metric():
    gaussians = [Gaussian.fit(inception_like(n, 32, seed)) for seed, n in ((1, 20), (2, 200), (4, 90))]
    root = [[math.sqrt(frechet_distance(p, q)) for q in gaussians] for p in gaussians]
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        assert root[i][j] == pytest.approx(root[j][i], rel=1e-12)
        assert root[i][j] < root[i][k] + root[k][j]


@pytest.mark.parametrize("counts", [(20, 30), (100, 90), (20, 90)])
def test_rotating_and_shifting_both_changes_nothing_and_scaling_squares(counts):
    x, y = (inception_like(n, 32, seed) for seed, n in zip((1, 2), counts, strict=True))
    rotation = torch.linalg.qr(noise(32, 32)).Q
    distance = frechet_distance_between(x, y)
    assert frechet_distance_between(x @ rotation + 100, y @ rotation + 100) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance_between(3 * x, 3 * y) == pytest.approx(9 * distance, rel=1e-11)


def test_never_negative_and_never_nan():
    for seed in range(40):
        size = 1 + seed % 7
        rank = seed % (size + 1)
        covariance = of_rank(rank, size, seed) * 10.0 ** (seed % 9 - 4)
        nearly = covariance * (1 + 1e-14)
        for p, q in ((covariance, nearly), (covariance, covariance.flip(0, 1)), (covariance, of_rank(1, size, seed))):
            distance = frechet_distance(centred(p), centred(q))
            assert 0 <= distance < math.inf


def test_condition_1e12_on_either_side_in_other_directions():
    # Here eigenvalues come out negative now and then.
    deviations = torch.logspace(0, -6.2, 3, dtype=torch.float64)
    for seed in range(300):
        left, right = (torch.linalg.qr(half).Q * deviations for half in noise(2, 3, 3, seed=seed))
        p, q = centred(left @ left.T), centred(right @ right.T)
        assert frechet_distance(p, q) == pytest.approx(by_svd(p, q), abs=1e-10)


@pytest.mark.parametrize("count", [30, 300])
def test_float32_features_are_computed_with_in_float64(count):
    x, y = (inception_like(count, 48, seed).float() for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        single = frechet_distance_between(x, y)
    assert single == frechet_distance_between(x.double(), y.double())
    assert Gaussian(9, torch.zeros(2), torch.eye(2)).covariance.dtype == torch.float64


def test_the_factor_is_computed_once(monkeypatch):
    p = centred(of_rank(20, 8))
    frechet_distance(p, centred(of_rank(20, 8, seed=1)))
    calls = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: calls.append(matrix) or cholesky(matrix))
    q = centred(of_rank(20, 8, seed=2))
    frechet_distance(p, q)
    assert len(calls) == 1
    assert calls[0] is q.covariance


@pytest.mark.parametrize("spectrum", [[3, 2, 1, 1e-10], [3, 1e-10, 0, 0], [0, 0, 0, 0]])
def test_the_factor_gives_the_covariance_back_without_null_directions(spectrum):
    gaussian = centred(reflection(4)(torch.tensor(spectrum, dtype=torch.float64).diag()))
    assert gaussian.factor.shape == (4, sum(value > 0 for value in spectrum))
    assert_close(gaussian.factor @ gaussian.factor.T, gaussian.covariance, rtol=0, atol=1e-14)


# -- moments ----------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_all_batches():
    x = noise(997, 11).float() * 3 + 5
    moments = Moments(11)
    for batch in x.split([1, 0, 96, 900]):
        moments.update(batch)
    gaussian = moments.gaussian()
    assert moments.count == gaussian.count == 997
    assert_close(gaussian.mean, x.double().mean(0), rtol=1e-13, atol=0)
    assert_close(gaussian.covariance, x.double().T.cov(), rtol=0, atol=1e-12)
    assert torch.equal(gaussian.covariance, gaussian.covariance.T)


def test_no_digits_cancel_far_from_zero():
    deviations = noise(5000, 8) * 1e-2
    x = 1e4 + deviations
    # float64 holds x to 1e-12, so that a deviation of 1e-2 keeps ten digits.
    for gaussian in (Gaussian.fit(x), fitted(x, shift=x[0])):
        assert_close(gaussian.covariance, deviations.T.cov(), rtol=0, atol=1e-4 * 1e-10)
        assert_close(gaussian.mean, 1e4 + deviations.mean(0), rtol=0, atol=4e-12)
    assert float((fitted(x).covariance - deviations.T.cov()).abs().max()) > 1e-4 * 1e-6  # what the shift is for
    # From 1e4 deviations away half of the digits are left, and none of the features is taken as constant.
    assert_close(fitted(deviations - 100).covariance, deviations.T.cov(), rtol=0, atol=1e-4 * 1e-3)


def fitted(x, shift=None):
    moments = Moments(x.shape[1], shift)
    moments.update(x)
    return moments.gaussian()


def test_packs_of_uneven_shards_add_up_to_one():
    x = noise(1000, 13) + 7
    shift = x[:10].mean(0)
    packs = []
    for shard in x.split([1, 600, 0, 399]):
        moments = Moments(13, shift)
        moments.update(shard)
        packs.append(moments.pack())
    assert packs[0].shape == (1 + 13 + 13 * 14 // 2,)
    merged = Moments.unpack(sum(packs), shift)
    assert (merged.count, merged.num_features) == (1000, 13)
    merged.update(x[:500] + 1)  # it goes on
    whole = Moments(13, shift)
    whole.update(x)
    whole.update(x[:500] + 1)
    assert_close(merged.pack(), whole.pack(), rtol=1e-12, atol=1e-10)
    assert_close(merged.gaussian().covariance, whole.gaussian().covariance, rtol=1e-12, atol=1e-13)


def test_a_pack_gives_back_every_bit():
    shift = torch.ones(5, dtype=torch.float64)
    moments = Moments(5, shift)
    moments.update(noise(50, 5))
    shift += 1  # the caller's own
    assert_close(moments.gaussian().mean, noise(50, 5).mean(0))
    again = Moments.unpack(moments.pack(), moments.shift)
    assert torch.equal(again.pack(), moments.pack())
    assert torch.equal(again.gaussian().covariance, moments.gaussian().covariance)


def test_counts_are_exact_beyond_what_float32_holds():
    pack = torch.zeros(3, dtype=torch.float64)
    pack[0] = 2**24 + 1
    assert Moments.unpack(pack).count == 2**24 + 1


@pytest.mark.parametrize("shift", [None, torch.full((6,), -300.0)])
def test_pictures_that_are_all_the_same_have_no_covariance(shift):
    # A generator that has collapsed: what is left is rounding, of which a root would make something.
    same = (noise(6).float() * 1e3).expand(3000, 6)
    collapsed = fitted(same, shift)
    assert not collapsed.covariance.any()
    real = Gaussian.fit(noise(100, 6))
    expected = float((real.mean - same[0].double()).square().sum() + real.covariance.trace())
    assert frechet_distance(real, collapsed) == pytest.approx(expected, rel=1e-12)


def test_constant_features_among_others_covary_with_none():
    x = noise(3000, 6)
    x[:, [1, 4]] = 1e3 * noise(2)
    covariance = fitted(x).covariance
    assert not covariance[1].any()
    assert not covariance[:, 4].any()
    assert_close(covariance, (x - x[0]).T.cov(), rtol=1e-10, atol=1e-12)


def test_inference_mode_comes_and_goes():
    x = noise(30, 4)
    with torch.inference_mode():
        moments = Moments(4)
        moments.update(x[:10])
    moments.update(x[10:])
    assert_close(moments.gaussian().covariance, x.T.cov())


# -- infinitely many samples ------------------------------------------------------------------------------------------


def test_infinity_takes_the_bias_away():
    # Samples of the reference itself: the truth is 0, a finite sample is above it.
    size, number = 24, 1200
    reference = centred(torch.eye(size))
    plain, extrapolated = [], []
    for seed in range(12):
        result = frechet_infinity(reference, noise(number, size, seed=seed), smallest=8 * size, seed=seed)
        plain.append(result.distances[-1])
        extrapolated.append(result.value)
    # The bias of N samples is about D (D + 1) / (4 N) for the covariance and D / N for the mean.
    bias = size * (size + 1) / 4 / number + size / number
    assert sum(plain) / 12 == pytest.approx(bias, rel=0.1)
    assert abs(sum(extrapolated) / 12) < 0.1 * bias
    assert result.slope == pytest.approx(bias * number, rel=0.2)
    assert 0 < result.standard_error < bias


def test_infinity_finds_the_distance_of_the_distributions():
    size, number = 16, 2000
    reference = centred(torch.eye(size))
    samples = 1.5 * noise(number, size) + 0.5
    truth = size * (0.5**2 + 0.5**2)
    values = [frechet_infinity(reference, 1.5 * noise(number, size, seed=s) + 0.5).value for s in range(6)]
    # The deviation of one value is about 4 %, that of the mean of six 1.6 %.
    assert sum(values) / 6 == pytest.approx(truth, rel=0.05)
    result = frechet_infinity(reference, samples, num_points=5)
    assert result.counts == (200, 650, 1100, 1550, 2000)
    assert result.distances[-1] == pytest.approx(frechet_distance(reference, Gaussian.fit(samples)), rel=1e-12)


def test_infinity_of_points_on_a_line(monkeypatch):
    # Two coordinates of the regression: exact points leave no error, and one that is off leaves the textbook's.
    from lightning_gen.metrics import frechet

    found = iter([3 + 100 / n for n in (10, 20, 30)] + [10.0, 5.0, 6.0])
    monkeypatch.setattr(frechet, "frechet_distance", lambda p, q: next(found))
    reference = centred(torch.eye(1))
    line = frechet_infinity(reference, noise(30, 1), num_points=3, smallest=10)
    assert (line.value, line.slope) == (pytest.approx(3), pytest.approx(100))
    assert line.standard_error == pytest.approx(0, abs=1e-12)
    scatter = frechet_infinity(reference, noise(30, 1), num_points=3, smallest=10)
    design = torch.tensor([[1, 1 / 10], [1, 1 / 20], [1, 1 / 30]], dtype=torch.float64)
    y = torch.tensor([10.0, 5, 6], dtype=torch.float64)
    coefficients = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    variance = (y - design @ coefficients).square().sum() / (3 - 2)
    assert scatter.value == pytest.approx(float(coefficients[0]), rel=1e-9)
    assert scatter.standard_error == pytest.approx(
        float((variance * torch.linalg.inv(design.T @ design)[0, 0]).sqrt()), rel=1e-9
    )


def test_infinity_draws_from_its_own_generator():
    reference, samples = centred(torch.eye(4)), noise(100, 4)
    before = torch.get_rng_state()
    first = frechet_infinity(reference, samples, seed=1)
    assert frechet_infinity(reference, samples, seed=1) == first
    assert frechet_infinity(reference, samples, seed=2).value != first.value
    assert torch.equal(torch.get_rng_state(), before)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_features_that_are_not_finite_are_found_and_not_added():
    moments = Moments(3)
    moments.update(noise(4, 3))
    before = moments.pack()
    x = noise(10, 3)
    x[7, 1] = math.nan
    x[8] = math.inf
    with pytest.raises(ValueError, match=r"2 of the 10 rows .* the first is row 7, whose feature 1 is nan"):
        moments.update(x)
    assert torch.equal(moments.pack(), before)
    with pytest.raises(ValueError, match="2 of the 10 rows"):
        frechet_distance_between(noise(5, 3), x)
    with pytest.raises(ValueError, match=r"1 of the 1 rows .* whose feature 1 is -inf"):
        moments.update(torch.tensor([[0.0, -math.inf, 1.0]]))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: Moments(0), "at least 1 feature"),
        (lambda: Moments(3, torch.zeros(2)), "shift must be 3 finite"),
        (lambda: Moments(3).update(noise(5, 4)), r"\[N, 3\], got the shape \[5, 4\]"),
        (lambda: Moments(3).update(noise(3)), r"\[N, 3\], got the shape \[3\]"),
        (lambda: Moments(3).gaussian(), "at least 2 samples, got 0"),
        (lambda: Gaussian.fit(noise(1, 3)), "at least 2 samples, got 1"),
        (lambda: Gaussian.fit(noise(5, 0)), r"got the shape \[5, 0\]"),
        (lambda: Moments.unpack(torch.zeros(7)), r"got the shape \[7\]"),
        (lambda: Moments.unpack(torch.zeros(1)), r"got the shape \[1\]"),
        (lambda: Gaussian(1, torch.zeros(2), torch.eye(2)), "at least 2 samples, got 1"),
        (lambda: Gaussian(9, torch.zeros(3), torch.eye(2)), r"shapes \[3\] and \[2, 2\]"),
        (lambda: Gaussian(9, torch.zeros(2, 1), torch.eye(2)), r"shapes \[2, 1\]"),
        (lambda: Gaussian(9, torch.tensor([0, math.nan]), torch.eye(2)), "not finite"),
        (lambda: Gaussian(9, torch.zeros(2), torch.tensor([[1.0, 0.5], [0.4, 1.0]])), "differs from its transpose"),
        (lambda: Gaussian(9, torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0]))), "Feature 1 has the variance -1"),
        (lambda: frechet_distance(centred(torch.eye(2)), centred(torch.eye(3))), "have 2 and 3 features"),
        (lambda: frechet_distance_between(noise(5, 3), noise(5, 4)), r"\[N, 3\], got the shape \[5, 4\]"),
        (lambda: frechet_distance_between(noise(1, 3), noise(5, 3)), "at least 2 samples, got 1 and 5"),
        (lambda: frechet_infinity(centred(torch.eye(3)), noise(9, 2)), r"\[N, 3\]"),
        (lambda: frechet_infinity(centred(torch.eye(3)), noise(19, 3)), "need at least 20 samples, got 19"),
        (lambda: frechet_infinity(centred(torch.eye(3)), noise(90, 3), num_points=2), "at least 3 points"),
    ],
)
def test_what_does_not_fit_is_refused(action, message):
    with pytest.raises(ValueError, match=message):
        action()
