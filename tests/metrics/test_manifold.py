"""Figures from nearest neighbours against their definitions, pair by pair, and on sets with a known answer."""

import math

import numpy as np
import pytest
import torch

from lightning_gen.metrics import manifold
from lightning_gen.metrics.manifold import authenticity, memorisation_ratio, nearest_neighbours, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(a, b):
    return math.sqrt(math.fsum((p - q) ** 2 for p, q in zip(a, b, strict=True)))


def direct_precision_recall(real, fake, k):
    """The definitions of Kynkäänniemi et al. and Naeem et al., pair by pair."""
    real, fake = real.double().tolist(), fake.double().tolist()

    def radius(i, points):
        return sorted(distance(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    real_radii = [radius(i, real) for i in range(len(real))]
    fake_radii = [radius(j, fake) for j in range(len(fake))]
    apart = [[distance(x, y) for y in fake] for x in real]
    rows, columns = range(len(real)), range(len(fake))
    return (
        sum(any(apart[i][j] < real_radii[i] for i in rows) for j in columns) / len(fake),
        sum(any(apart[i][j] < fake_radii[j] for j in columns) for i in rows) / len(real),
        sum(apart[i][j] < real_radii[i] for i in rows for j in columns) / (k * len(fake)),
        sum(any(apart[i][j] < real_radii[i] for j in columns) for i in rows) / len(real),
    )


def direct_authenticity(train, fake):
    train, fake = train.double().tolist(), fake.double().tolist()
    own = [min(distance(t, u) for j, u in enumerate(train) if j != i) for i, t in enumerate(train)]
    nearest = [min(range(len(train)), key=lambda i: distance(f, train[i])) for f in fake]
    return 100 * (sum(own[i] < distance(f, train[i]) for f, i in zip(fake, nearest, strict=True)) / len(fake))


def with_duplicates(seed):
    """Real samples of which many are there twice or more, and fakes of which many are copies, of these or of others."""
    real = normal(40, 6, seed=seed)
    real[20:30] = real[:10]
    real[30:34] = real[0]
    fake = torch.cat(
        [real[5:25], normal(12, 6, seed=seed + 1), fake_copies := normal(3, 6, seed=seed + 2), fake_copies]
    )
    return real, fake


def whole_numbers(seed):
    """Where most distances are equal to others, and none is rounded."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (40, 3), generator=random).float(), torch.randint(
        0, 3, (33, 3), generator=random
    ).float()


SETS = {
    "few features": lambda seed: (normal(60, 2, seed=seed), normal(45, 2, seed=seed + 1) + 0.5),
    "many features": lambda seed: (normal(40, 100, seed=seed), normal(50, 100, seed=seed + 1) * 0.9),
    "far from the origin": lambda seed: tuple(normal(40, 5, seed=seed + i).double() + 1e7 for i in (0, 1)),
    "a fake far away": lambda seed: (
        normal(40, 2, seed=seed),
        torch.cat([normal(40, 2, seed=seed + 1), 1e7 * torch.ones(1, 2)]),
    ),
    "duplicates": with_duplicates,
    "duplicates far away": lambda seed: tuple(features + 1e3 for features in with_duplicates(seed)),
    "whole numbers": whole_numbers,
    "whole numbers far away": lambda seed: tuple(features + 1000 for features in whole_numbers(seed)),
}


@pytest.fixture(params=[1024, 13], ids=["one tile", "many tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(manifold, "_TILE", request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_four_are_exactly_their_definitions(name, k):
    for seed in (0, 10):
        real, fake = SETS[name](seed)
        assert tuple(precision_recall(real, fake, k)) == direct_precision_recall(real, fake, k)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", SETS)
def test_authenticity_is_exactly_its_definition(name):
    for seed in (0, 10):
        assert authenticity(*SETS[name](seed)) == direct_authenticity(*SETS[name](seed))


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", SETS)
def test_nearest_neighbours_are_the_nearest(name):
    points, queries = SETS[name](0)
    found = nearest_neighbours(queries, points)
    own = nearest_neighbours(points, points, exclude_self=True)
    rows = points.double().tolist()
    for query, near, i in zip(queries.double().tolist(), found.distances.tolist(), found.indices.tolist(), strict=True):
        assert near == pytest.approx(min(distance(query, row) for row in rows), rel=1e-14)
        assert near == pytest.approx(distance(query, rows[i]), rel=1e-14)
    for j, (near, i) in enumerate(zip(own.distances.tolist(), own.indices.tolist(), strict=True)):
        assert i != j
        assert near == pytest.approx(min(distance(rows[j], row) for k, row in enumerate(rows) if k != j), rel=1e-14)


@pytest.mark.usefixtures("tile")
def test_a_copy_is_at_distance_zero_exactly():
    points = normal(50, 300) * 17 + 1000
    found = nearest_neighbours(points.flip(0), points)
    assert found.distances.tolist() == [0] * 50
    assert found.indices.tolist() == list(range(49, -1, -1))


def test_two_sets_of_one_distribution_have_the_coverage_of_the_urn():
    # Of 2 N - 1 others, the nearest k are all real with probability prod (N - i) / (2 N - i): Naeem et al., lemma 2.
    number, k = 100, 3
    found = [precision_recall(normal(number, 4, seed=2 * i), normal(number, 4, seed=2 * i + 1), k) for i in range(60)]
    expected = 1 - np.prod([(number - i) / (2 * number - i) for i in range(1, k + 1)])
    coverage = [result.coverage for result in found]
    assert abs(np.mean(coverage) - expected) < 4 * np.std(coverage) / math.sqrt(60)
    # Each real ball holds k / (N - 1) of the probability on average, so density has the mean N / (N - 1).
    density = [result.density for result in found]
    assert abs(np.mean(density) - number / (number - 1)) < 4 * np.std(density) / math.sqrt(60)


def test_what_each_of_the_four_is_for():
    real, fake = normal(200, 4), normal(200, 4, seed=1)
    modes = real + torch.tensor([[20.0], [0.0]]).repeat(100, 4)
    assert precision_recall(modes, fake).recall < 0.55 < 0.9 < precision_recall(modes, fake).precision
    assert precision_recall(modes, fake).coverage < 0.55
    spread = fake + torch.tensor([[20.0], [0.0]]).repeat(100, 4)
    assert precision_recall(real, spread).precision < 0.55 < 0.9 < precision_recall(real, spread).recall
    # Fakes all at the mode: never off the data, and dense, but they cover little.
    narrow = precision_recall(real, fake * 0.1)
    assert narrow.precision == 1
    assert narrow.density > 1.5
    assert narrow.coverage < 0.5
    assert precision_recall(real, fake + 100) == (0, 0, 0, 0)


def test_of_a_generator_with_one_picture():
    real = normal(100, 8)
    found = precision_recall(real, real[:1].repeat(100, 1))
    assert found.precision == 1
    assert found.recall == 0  # its balls are empty
    assert 0 < found.coverage < 0.5


def test_constant_real_features_are_an_error_and_no_silent_zero():
    with pytest.raises(ValueError, match="Every one of the 20 real samples has 5 others with the same features"):
        precision_recall(torch.full((20, 4), 0.3), normal(20, 4))
    with pytest.raises(ValueError, match="Every one"):
        precision_recall(normal(4, 6).repeat(6, 1), normal(20, 6))
    assert precision_recall(normal(4, 6).repeat(5, 1), normal(20, 6)) is not None


def test_the_order_of_samples_does_not_matter():
    real, fake = with_duplicates(0)
    shuffled = [
        features[torch.randperm(len(features), generator=torch.Generator().manual_seed(1))] for features in (real, fake)
    ]
    assert precision_recall(real, fake) == precision_recall(*shuffled)
    assert authenticity(real, fake) == authenticity(*shuffled)


def test_copies_are_not_authentic_and_what_is_far_is():
    train = normal(100, 8)
    assert authenticity(train, train[:30]) == 0
    assert authenticity(train, train[:30] + 1e-4) == 0
    assert authenticity(train, normal(30, 8, seed=1) + 100) == 100
    mixed = torch.cat([train[:10], normal(30, 8, seed=1) + 100])
    assert authenticity(train, mixed) == 75


def test_the_memorisation_ratio_is_one_for_new_samples_and_falls_with_copies():
    train, held_out = normal(300, 4), normal(200, 4, seed=1)
    assert memorisation_ratio(train, normal(200, 4, seed=2), held_out) == pytest.approx(1, abs=0.15)
    assert memorisation_ratio(train, held_out, held_out) == 1
    assert memorisation_ratio(train, train[:50], held_out) == 0
    disturbed = train[:50] + 0.01 * normal(50, 4, seed=3)
    assert memorisation_ratio(train, disturbed, held_out) < 0.1
    # The medians themselves, of an even number of fakes and an odd one of held-out samples.
    line = torch.arange(0.0, 100, 10)[:, None]
    fakes, others = line[:4] + torch.tensor([[1.0], [2], [3], [4]]), line[4:7] + torch.tensor([[0.5], [2], [4]])
    assert memorisation_ratio(line, fakes, others) == 2.5 / 2
    with pytest.raises(ValueError, match="Half of the held-out samples or more are copies"):
        memorisation_ratio(train, held_out, train[:20])


@pytest.mark.usefixtures("tile")
def test_no_matrix_is_larger_than_a_tile(monkeypatch):
    biggest, addmm = 0, torch.addmm

    def watched(*args, **kwargs):
        nonlocal biggest
        result = addmm(*args, **kwargs)
        biggest = max(biggest, result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", watched)
    precision_recall(normal(60, 8), normal(60, 8, seed=1))
    authenticity(normal(60, 8), normal(60, 8, seed=1))
    assert 0 < biggest <= manifold._TILE**2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall(normal(5, 2), normal(9, 2)), "real must have at least 6 rows, got 5"),
        (lambda: precision_recall(normal(9, 2), normal(3, 2), k=3), "fake must have at least 4 rows, got 3"),
        (lambda: precision_recall(normal(9, 2), normal(9, 2), k=0), "k must be at least 1"),
        (lambda: precision_recall(normal(9, 2), normal(9, 3)), "same extractor, got 2 and 3"),
        (lambda: precision_recall(normal(9, 2) / 0, normal(9, 2)), "9 of the 9 rows of real are not finite"),
        (lambda: precision_recall(torch.zeros(9, 2, dtype=torch.long), normal(9, 2)), "real must be a floating"),
        (lambda: authenticity(normal(1, 2), normal(9, 2)), "train must have at least 2 rows"),
        (lambda: nearest_neighbours(normal(3, 2), normal(4, 2), exclude_self=True), "3 queries and 4 points"),
        (lambda: nearest_neighbours(normal(1, 2), normal(1, 2), exclude_self=True), "points must have at least 2 rows"),
        (lambda: nearest_neighbours(normal(0, 2), normal(1, 2)), "queries must have at least 1 rows"),
    ],
)
def test_what_has_no_neighbours_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_radii_that_are_kept_give_the_same_figures():
    random = torch.Generator().manual_seed(3)
    real, fake = torch.randn(60, 4, generator=random), torch.randn(50, 4, generator=random)
    kept = manifold.radii(real, 3)
    expected = (torch.cdist(real.double(), real.double()) ** 2).sort(dim=1).values[:, 3]
    assert torch.allclose(kept, expected, rtol=1e-9)
    assert precision_recall(real, fake, 3, real_radii=kept) == precision_recall(real, fake, 3)
    with pytest.raises(ValueError, match=r"There are 60 real samples, but radii of the shape \[50\]"):
        precision_recall(real, fake, 3, real_radii=kept[:50])
