"""Points have the moments of their formulas, densities integrate to one, and data is a function of its seed."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from lightning_gen.data.base import Draw
from lightning_gen.data.toy import (
    MARGIN,
    GridOfGaussians,
    Line,
    Mixture,
    ParallelLines,
    PointDistribution,
    RingOfGaussians,
    Spiral,
    SwissRoll,
    TwoGaussians,
)

TOYS = [RingOfGaussians, GridOfGaussians, TwoGaussians, ParallelLines, SwissRoll]
MIXTURES = TOYS[:3]
N = 40_000


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_mean(values, expected, errors=4.5):
    """The mean of independent values is within some standard errors of what is expected: false in 1 of 10^5 seeds."""
    values = values.double()
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - expected) <= errors * error + 1e-7, (values.mean().item(), expected, error.item())


def mixture():
    return Mixture([[-0.5, 0.1], [0.3, 0.4], [0.2, -0.6]], [0.05, 0.1, 0.2], [1.0, 2.0, 5.0])


# -- distributions ----------------------------------------------------------------------------------------------------


def test_moments_of_a_mixture_are_those_of_its_formula():
    truth = mixture()
    points = truth.sample(N, rng()).double()
    for i in range(2):
        assert_mean(points[:, i], (truth.weights * truth.means[:, i]).sum())
        second = (truth.weights * (truth.means[:, i] ** 2 + truth.std**2)).sum()
        assert_mean(points[:, i] ** 2, second)
    assert_mean(points.prod(dim=1), (truth.weights * truth.means.prod(dim=1)).sum())


def test_each_mode_of_a_mixture_has_its_weight_mean_and_deviation():
    truth = mixture()
    points, modes = truth.sample_with_modes(N, rng())
    assert torch.equal(points, truth.sample(N, rng()))
    for k in range(3):
        assert_mean((modes == k).double(), truth.weights[k])
        noise = (points[modes == k] - truth.means[k]) / truth.std[k]
        assert_mean(noise.flatten(), 0)
        assert_mean(noise.flatten() ** 2, 1)
        assert_mean(noise.flatten() ** 4, 3)
        assert_mean(noise[:, 0] * noise[:, 1], 0)


@pytest.mark.parametrize("cls", MIXTURES)
def test_densities_integrate_to_one(cls):
    truth = cls(std=0.2).distribution if cls is not TwoGaussians else cls(stds=(0.3, 1.0), weights=(1, 3)).distribution
    places = torch.linspace(-1.4, 1.4, 561, dtype=torch.float64)  # at most half a deviation apart
    step = places[1] - places[0]
    assert step < truth.std.min() / 2
    grid = torch.cartesian_prod(*[places] * truth.dimensions).reshape(-1, truth.dimensions)
    # The trapezoidal rule is exact to rounding for densities as smooth as these that vanish at both ends.
    assert truth.log_prob(grid).exp().sum() * step**truth.dimensions == pytest.approx(1, abs=1e-7)


def test_log_density_is_that_of_torch_distributions():
    truth = mixture()
    covariance = truth.std.square()[:, None, None] * torch.eye(2, dtype=torch.float64)
    reference = MixtureSameFamily(Categorical(truth.weights), MultivariateNormal(truth.means, covariance))
    points = torch.rand(200, 2, generator=rng(), dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(truth.log_prob(points), reference.log_prob(points))
    assert torch.equal(truth.log_prob(points[:, :, None, None]), truth.log_prob(points))
    single = truth.log_prob(points.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), truth.log_prob(points), rtol=1e-5, atol=1e-5)


def test_log_density_is_finite_far_away():
    far = Mixture([[0.0, 0.0]], 0.01).log_prob(torch.tensor([[1.0, 1.0]]))
    assert far.item() == pytest.approx(-1e4 - 2 * (math.log(0.01) + 0.5 * math.log(2 * math.pi)), rel=1e-6)


def test_moments_of_the_line():
    points = Line(0.25).sample(N, rng())
    assert (points[:, 0] == 0.25).all()
    assert_mean(points[:, 1], 1 / 2)
    assert_mean(points[:, 1] ** 2, 1 / 3)
    assert 0 <= points[:, 1].min() < 1e-3
    assert 1 - 1e-3 < points[:, 1].max() <= 1


def test_moments_of_the_spiral():
    a, b, noise, scale = Spiral.start, Spiral.end, 0.02, 0.05
    points = Spiral(noise, scale).sample(N, rng()).double()
    # The integrals of t cos t and t sin t from 1.5 pi to 4.5 pi are 6 pi and 2.
    assert_mean(points[:, 0], scale * 2)
    assert_mean(points[:, 1], scale * 2 / (3 * math.pi))
    assert_mean(points.square().sum(1), scale**2 * (a * a + a * b + b * b) / 3 + 2 * noise**2)


def test_the_spiral_without_noise_turns_one_and_a_half_times():
    points = Spiral(0.0, 1.0).sample(N, rng()).double()
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    assert radius.min() == pytest.approx(Spiral.start, rel=1e-3)
    assert radius.max() == pytest.approx(Spiral.end, rel=1e-3)
    assert (torch.cos(radius - angle) > 1 - 1e-9).all()


def test_mixtures_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"means must be \[K, d\], got the shape \[2\]"):
        Mixture(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="std must have one number for each of the 2 modes, got \\[3\\]"):
        Mixture([[0.0], [1.0]], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="std must be above 0"):
        Mixture([[0.0], [1.0]], 0.0)
    with pytest.raises(ValueError, match="weights must be above 0"):
        Mixture([[0.0], [1.0]], 1.0, [1.0, -1.0])


# -- geometry of the modules ------------------------------------------------------------------------------------------


def test_the_ring_is_a_ring():
    data = RingOfGaussians(modes=8, radius=2, std=0.02)
    truth = data.distribution
    assert data.scale == pytest.approx(1 / 2.12)
    radius = truth.means.norm(dim=1)
    torch.testing.assert_close(radius, torch.full_like(radius, 2 * data.scale))
    neighbours = (truth.means - truth.means.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(neighbours, 4 * data.scale * math.sin(math.pi / 8) * torch.ones_like(neighbours))
    torch.testing.assert_close(truth.means[0], truth.means.new_tensor([2 * data.scale, 0]))
    assert (truth.std == 0.02 * data.scale).all()


def test_the_grid_has_25_modes_40_deviations_apart():
    data = GridOfGaussians()
    truth = data.distribution
    assert data.scale == pytest.approx(1 / 4.3)
    assert truth.means.shape == (25, 2)
    distances = torch.cdist(truth.means, truth.means) + 10 * torch.eye(25)
    torch.testing.assert_close(distances.min(dim=1).values / truth.std, torch.full_like(truth.std, 40))
    assert truth.means.sum(0).abs().max() < 1e-12
    assert truth.means.unique(dim=0).shape == (25, 2)


def test_two_gaussians_keep_their_means_deviations_and_weights_up_to_scale():
    data = TwoGaussians(means=(-1, 3), stds=(0.5, 0.25), weights=(1, 3))
    truth = data.distribution
    assert data.scale == pytest.approx(1 / 4.5)
    torch.testing.assert_close(truth.means[:, 0] / data.scale, truth.means.new_tensor([-1, 3]))
    torch.testing.assert_close(truth.std / data.scale, truth.std.new_tensor([0.5, 0.25]))
    assert truth.weights.tolist() == [0.25, 0.75]


def test_the_other_line_stands_at_the_distance():
    data = ParallelLines(distance=-0.5)
    assert (data.distribution.x, data.other.x) == (0, -0.5)


@pytest.mark.parametrize("cls", TOYS)
def test_points_lie_in_the_range_of_pictures_and_use_it(cls):
    data = cls()
    assert isinstance(data.distribution, PointDistribution)
    points = data.distribution.sample(100_000, rng())
    assert points.dtype == torch.float32
    assert 0.8 < points.abs().max() <= 1
    if cls in MIXTURES:
        truth = data.distribution
        assert (truth.means.abs() + MARGIN * truth.std[:, None]).max() == pytest.approx(1)


# -- data modules -----------------------------------------------------------------------------------------------------


def batches(data, split="train", epoch=0):
    loader = getattr(data, f"{split}_dataloader")()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def images(data, split="train", epoch=0):
    return torch.cat([batch["image"] for batch in batches(data, split, epoch)])


def small(cls, **options):
    return cls(**{"num_train": 24, "num_val": 10, "num_test": 7, "batch_size": 8, **options})


@pytest.mark.parametrize("cls", TOYS)
def test_items_are_pictures_of_one_pixel(cls):
    data = small(cls)
    first = batches(data)[0]
    assert set(first) == {"image"}
    assert first["image"].shape == (8, *data.image_shape)
    assert data.image_shape == (1 if cls is TwoGaussians else 2, 1, 1)
    assert first["image"].dtype == torch.float32
    assert data.num_classes is None
    assert [len(images(data, split)) for split in ("train", "val", "test")] == [24, 10, 7]
    assert sum(len(batch["image"]) for batch in data.predict_dataloader()) == 7


@pytest.mark.parametrize("cls", TOYS)
def test_points_are_a_function_of_the_seed_alone(cls):
    for split in ("train", "val", "test"):
        assert torch.equal(images(small(cls), split), images(small(cls), split))
        assert not torch.equal(images(small(cls), split), images(small(cls, seed=1), split))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images(small(cls))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_sets_and_the_training_epochs_share_no_point_and_evaluation_stays():
    data = small(SwissRoll, num_val=24, num_test=24)
    parts = [images(data, epoch=0), images(data, epoch=1), images(data, epoch=2), images(data, "val"),
             images(data, "test")]  # fmt: skip
    everything = torch.cat(parts).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything) == 5 * 24
    assert torch.equal(images(data, epoch=1), parts[1])
    assert torch.equal(images(data, "val", epoch=3), parts[3])


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_mid_epoch_equals_never_having_stopped(workers):
    whole = [batch["image"] for epoch in (0, 1, 2) for batch in batches(small(GridOfGaussians), epoch=epoch)]
    stopped = small(GridOfGaussians, num_workers=workers).train_dataloader()
    seen = [batch["image"] for batch in stopped]
    stopped.sampler.set_epoch(1)
    rest = iter(stopped)
    seen.append(next(rest)["image"])
    resumed = small(GridOfGaussians, num_workers=workers).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    seen += [batch["image"] for batch in resumed]
    resumed.sampler.set_epoch(2)
    seen += [batch["image"] for batch in resumed]
    assert len(seen) == len(whole) == 9
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))


def test_a_single_item_equals_the_one_in_its_batch():
    data = small(RingOfGaussians, labelled=True).train_set()
    draws = [Draw(4, 0, 5), Draw(4, 1, 2)]
    for one, other in zip(data.__getitems__(draws), [data[draw] for draw in draws], strict=True):
        assert one.keys() == other.keys() == {"image", "label"}
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(data[Draw(4, 9, 5)]["image"], data[draws[0]]["image"])  # its place does not matter


@pytest.mark.parametrize(("cls", "modes"), [(RingOfGaussians, 8), (GridOfGaussians, 25), (TwoGaussians, 2)])
def test_labels_are_the_modes(cls, modes):
    data = small(cls, labelled=True, num_train=3000, batch_size=3000)
    assert data.num_classes == modes
    (batch,) = batches(data)
    assert batch["label"].dtype == torch.int64
    truth = data.distribution
    distances = (batch["image"].flatten(1) - truth.means[batch["label"]]).norm(dim=1) / truth.std[batch["label"]]
    assert distances.max() < 6
    assert np.bincount(batch["label"].numpy(), minlength=modes).min() > 0
    # Labels do not change which points come.
    unlabelled = small(cls, num_train=3000, batch_size=3000)
    assert torch.equal(images(unlabelled), batch["image"])


@pytest.mark.parametrize("cls", TOYS)
def test_a_module_can_be_sent_to_another_process(cls):
    data = small(cls)
    assert torch.equal(images(pickle.loads(pickle.dumps(data))), images(data))


def test_options_that_cannot_work_are_refused():
    for cls in TOYS:
        with pytest.raises(ValueError, match="num_val must be at least 1, got 0"):
            cls(num_val=0)
    with pytest.raises(ValueError, match="modes >= 1"):
        RingOfGaussians(modes=0)
    with pytest.raises(ValueError, match="side >= 1"):
        GridOfGaussians(side=0)
    with pytest.raises(ValueError, match="std must be above 0"):
        GridOfGaussians(std=0)
    with pytest.raises(ValueError, match="means must be two numbers"):
        TwoGaussians(means=(1, 2, 3))
    with pytest.raises(ValueError, match=r"distance must be in \[-1, 1\], where points lie, got 2"):
        ParallelLines(2)
    with pytest.raises(ValueError, match="noise must be 0 or more"):
        SwissRoll(-1)
