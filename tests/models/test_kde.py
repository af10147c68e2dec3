"""Kernel densities against closed forms, SciPy, scikit-learn and enumeration, and how the Trainer fits one."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.capabilities import Samples
from lightning_gen.commands.trainer import Trainer
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import kernel_density
from lightning_gen.losses.kernel_density import (
    KERNELS,
    best_bandwidth,
    kernel_noise,
    kernel_std,
    log_density,
    log_level_probability,
    log_radial_integral,
    rule_of_thumb,
)
from lightning_gen.models.kde import KDE

pytestmark = pytest.mark.filterwarnings("ignore:.*fit will run with no optimizer", "ignore:You're resuming from")

SHAPE = (1, 2, 2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(number, num_levels=None, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if num_levels is None:
        return torch.rand(number, *shape, generator=generator) * 2 - 1
    return torch.randint(num_levels, (number, *shape), generator=generator) * (2 / (num_levels - 1)) - 1


def fitted(images, **settings):
    model = KDE(tuple(images.shape[1:]), **settings)
    model.add(images)
    return model


# -- kernels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_to_scikit_learn(kernel, dimensions, monkeypatch):
    """Blocks of 7 x 11, so that their seams are met; some points stand on centres."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(kernel_density, "_POINTS", 7)
    monkeypatch.setattr(kernel_density, "_CENTRES", 11)
    centres = draw(60, dimensions)
    points = torch.cat([draw(30, dimensions, seed=1), centres[:10]])
    bandwidth = 1.2 * dimensions**0.5
    theirs = neighbors.KernelDensity(kernel=kernel, bandwidth=bandwidth, rtol=0, atol=0).fit(centres.double().numpy())
    expected = theirs.score_samples(points.double().numpy())
    found = log_density(points, centres, bandwidth, kernel).numpy()
    if kernel == "cosine" and dimensions in (2, 64):  # where theirs does not integrate to 1; see the next test
        assert dimensions == 64 or found - expected == pytest.approx(
            math.log(math.pi / 2 / (math.pi / 2 - 1)), abs=1e-9
        )
        return
    expected[found == -math.inf] = -math.inf  # theirs leaves 1e-16 where no kernel reaches
    assert np.isfinite(found).sum() > 30
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_density_integrates_to_one(kernel):
    """In 1 and 2 dimensions on a grid; radially, in those of digits and of CIFAR-10."""
    reach = 20.0 if kernel == "exponential" else 6.0
    line = torch.linspace(-reach, reach, 8001, dtype=torch.float64)
    density = log_density(line[:, None], torch.tensor([[0.3], [-0.8]]), 0.9, kernel).exp()
    assert torch.trapezoid(density, line).item() == pytest.approx(1, abs=1e-3)
    side = torch.linspace(-reach, reach, 401, dtype=torch.float64)
    density = log_density(torch.cartesian_prod(side, side), torch.tensor([[0.3, 0.1], [-0.8, 0.5]]), 0.9, kernel).exp()
    assert density.sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(1, abs=2e-3)
    shapes = {
        "gaussian": lambda r: -(r**2) / 2,
        "tophat": torch.zeros_like,
        "epanechnikov": lambda r: torch.log1p(-(r**2)),
        "exponential": lambda r: -r,
        "linear": lambda r: torch.log1p(-r),
        "cosine": lambda r: torch.log(torch.cos(math.pi / 2 * r)),
    }
    for d in (64, 3072):
        far = {"gaussian": 3 * d**0.5, "exponential": 3.0 * d}.get(kernel, 1.0)
        r = (torch.arange(200_000, dtype=torch.float64) + 0.5) * (far / 200_000)
        integral = torch.logsumexp((d - 1) * r.log() + shapes[kernel](r), 0).item() + math.log(far / 200_000)
        assert log_radial_integral(kernel, d) == pytest.approx(integral, abs=1e-3)


@pytest.mark.parametrize("dimensions", [1, 3, 64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_noise_has_the_law_of_the_kernel(kernel, dimensions):
    """Its moments by the radial integrals, directions that cancel, and in one dimension a histogram."""
    noise = kernel_noise(kernel, 40_000, dimensions, torch.Generator().manual_seed(0))
    radius = noise.norm(dim=1)
    second = math.exp(log_radial_integral(kernel, dimensions + 2) - log_radial_integral(kernel, dimensions))
    first = math.exp(log_radial_integral(kernel, dimensions + 1) - log_radial_integral(kernel, dimensions))
    assert radius.square().mean().item() == pytest.approx(second, rel=0.03)
    assert radius.mean().item() == pytest.approx(first, rel=0.01)
    assert noise.std().item() == pytest.approx(kernel_std(kernel, dimensions), rel=0.02)
    assert noise.mean(0).abs().max().item() < 5 * kernel_std(kernel, dimensions) / 200
    if kernel not in ("gaussian", "exponential"):
        assert radius.max() < 1
    if dimensions == 1:
        edges = torch.linspace(-1, 1, 11, dtype=torch.float64)
        counts = torch.histogram(noise.flatten(), edges).hist / len(noise)
        middle = torch.linspace(-1, 1, 2001, dtype=torch.float64)
        density = log_density(middle[:, None], torch.zeros(1, 1), 1.0, kernel).exp()
        for i in range(10):
            part = density[200 * i : 200 * i + 201]
            assert counts[i].item() == pytest.approx(torch.trapezoid(part, dx=1e-3).item(), abs=0.01)


def test_a_rule_of_thumb_is_scipys_in_one_dimension():
    stats = pytest.importorskip("scipy.stats")
    points = 3 * draw(200, 1) + 5
    for rule in ("scott", "silverman"):
        theirs = stats.gaussian_kde(points.flatten().double().numpy(), bw_method=rule)
        found = rule_of_thumb(points, rule)
        assert found == pytest.approx(math.sqrt(theirs.covariance.item()), rel=1e-9)
        at = torch.linspace(-5, 15, 9)
        assert log_density(at[:, None], points, found) == pytest.approx(theirs.logpdf(at.double().numpy()), abs=1e-9)
        # The same spread, whatever the kernel.
        assert rule_of_thumb(points, rule, "cosine") * kernel_std("cosine", 1) == pytest.approx(found)


def test_memory_does_not_grow_with_the_number_of_pairs():
    """Of 1000 x 4000 pairs in 64 dimensions no tensor may be larger than a block."""
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    points, centres = draw(1000, 64), draw(4000, 64)
    with Largest():
        for kernel in KERNELS:
            log_density(points, centres, 5.0, kernel)
    assert largest <= kernel_density._POINTS * kernel_density._CENTRES
    levels = torch.randint(256, (4000, 64), generator=torch.Generator().manual_seed(0))
    with Largest():
        log_level_probability(levels[:1000], levels, 0.2, 256)
    assert largest <= kernel_density._FEATURES


# -- probabilities of levels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_levels", [2, 3, 5])
@pytest.mark.parametrize("bandwidth", [0.02, 0.3, 3.0])
def test_probabilities_of_all_pictures_sum_to_one(num_levels, bandwidth):
    model = fitted(pictures(6, num_levels), num_levels=num_levels, bandwidth=bandwidth)
    levels = torch.tensor(list(itertools.product(range(num_levels), repeat=4)))
    everything = (levels * (2 / (num_levels - 1)) - 1).view(-1, *SHAPE).float()
    assert model.log_prob(everything).exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_a_probability_is_the_integral_of_the_density_over_the_cell():
    """By a midpoint rule over inner cells of 2 pixels; and far away, where a difference of Phi is 0, by its tail."""
    centres = torch.tensor([[1, 3], [2, 2], [5, 4]])
    found = log_level_probability(torch.tensor([[2, 3]]), centres, 0.3, 8).exp().item()
    offsets = (torch.arange(200, dtype=torch.float64) + 0.5) / 200 - 0.5
    fine = (torch.cartesian_prod(offsets, offsets) + torch.tensor([2, 3])) * (2 / 7) - 1
    density = log_density(fine, centres * (2 / 7) - 1, 0.3).exp()
    assert found == pytest.approx(density.mean().item() * (2 / 7) ** 2, rel=1e-5)
    # Level 255 from level 0 with h = 0.05: the upper tail from z on is phi(z) / z (1 - 1 / z^2 + ...).
    z = (2 - 1 / 255) / 0.05
    tail = -(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)) - 1 / z**2
    for point, centre in ((255, 0), (0, 255)):
        value = log_level_probability(torch.tensor([[point]]), torch.tensor([[centre]]), 0.05, 256).item()
        assert value == pytest.approx(tail, abs=1e-5)


def test_samples_have_the_distribution_of_log_prob():
    model = fitted(pictures(4, 3, (1, 1, 2)), num_levels=3, bandwidth=0.5)
    samples = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    cases = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=2))).view(-1, 1, 1, 2)
    shares = torch.stack([(samples == case).flatten(1).all(1).double().mean() for case in cases])
    assert shares.sum() == 1
    torch.testing.assert_close(shares, model.log_prob(cases).exp(), rtol=0, atol=0.015)


@pytest.mark.parametrize("kernel", KERNELS)
def test_samples_of_points_have_the_spread_of_data_and_kernel(kernel):
    model = fitted(draw(50, 3, 1, 1), kernel=kernel, bandwidth=2.0)
    samples = model.sample(20_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    data = draw(50, 3)
    expected = data.var(0, correction=0) + (2.0 * kernel_std(kernel, 3)) ** 2
    torch.testing.assert_close(samples.var(0), expected.float(), rtol=0.05, atol=0)
    assert samples.abs().max() > 1.5  # points are not cut off, pictures are
    assert fitted(pictures(4), kernel=kernel, bandwidth=2.0).sample(50).abs().max() == 1


# -- the bandwidth --------------------------------------------------------------------------------------------------


def test_leaving_out_is_what_it_says():
    centres = draw(30, 2)
    own = torch.tensor([4, 0, 29])
    for kernel in KERNELS:
        found = log_density(centres[own], centres, 4.0, kernel, own)
        for i, value in zip(own.tolist(), found, strict=True):
            others = torch.cat([centres[:i], centres[i + 1 :]])
            torch.testing.assert_close(value, log_density(centres[i : i + 1], others, 4.0, kernel)[0])
    levels = torch.randint(4, (30, 3), generator=torch.Generator().manual_seed(0))
    found = log_level_probability(levels[own], levels, 0.4, 4, own)
    expected = log_level_probability(levels[:1], levels[1:], 0.4, 4)[0]
    torch.testing.assert_close(found[1], expected)


@pytest.mark.parametrize("settings", [{"kernel": kernel} for kernel in KERNELS] + [{"num_levels": 5}])
def test_cross_validation_finds_the_best_of_a_fine_grid(settings):
    images = pictures(40, settings.get("num_levels"))
    model = fitted(images, **settings)
    model.log_prob(images[:1])
    found = model.width.item()

    def score(bandwidth):
        rest = [fitted(torch.cat([images[:i], images[i + 1 :]]), bandwidth=bandwidth, **settings) for i in range(40)]
        return sum(m.log_prob(images[i : i + 1]).item() for i, m in enumerate(rest))

    best = score(found)
    assert math.isfinite(best)
    for factor in (0.5, 0.8, 0.95, 1.05, 1.25, 2):
        assert score(found * factor) < best + 1e-3


def test_the_search_climbs_from_far_and_says_when_there_is_no_top():
    for top in (1e-4, 0.3, 1e4):
        found = best_bandwidth(lambda h, top=top: -((math.log(h) - math.log(top)) ** 2), start=1.0)
        assert found == pytest.approx(top, rel=0.01)
    reach = best_bandwidth(lambda h: -h if h > 50 else -math.inf, start=1.0)
    assert 50 < reach < 51
    with pytest.raises(ValueError, match="shrinks"):
        best_bandwidth(lambda h: -math.log(h), start=1.0)
    with pytest.raises(ValueError, match="copy"):
        fitted(pictures(10).repeat(2, 1, 1, 1)).log_prob(pictures(1))
    with pytest.raises(ValueError, match="grows"):
        best_bandwidth(lambda h: -math.inf, start=1.0)


def test_scoring_some_of_the_pictures_is_nearly_as_good():
    images = draw(400, 2, 1, 1)
    widths = []
    for number in (100, 2000):
        model = fitted(images, cv_images=number)
        model.log_prob(images[:1])
        widths.append(model.width.item())
    assert widths[0] == pytest.approx(widths[1], rel=0.3)
    assert widths[0] != widths[1]


# -- through the Trainer --------------------------------------------------------------------------------------------


def trainer(path, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=path, **{**quiet, "max_epochs": 3, **settings})


@pytest.mark.parametrize("num_levels", [None, 5])
def test_fit_keeps_every_picture_once_and_the_checkpoint_is_enough(tmp_path, num_levels):
    images, held_out = pictures(30, num_levels), pictures(11, num_levels, seed=1)
    model = KDE(SHAPE, num_levels=num_levels)
    assert isinstance(model, Samples)
    for _ in range(2):  # the second begins anew
        run = trainer(tmp_path, callbacks=[LastCheckpoint(every_n_steps=2)])
        run.fit(model, DataLoader(images, batch_size=7), DataLoader(held_out, batch_size=4))
        assert run.global_step == 5
        assert run.current_epoch == 1
        assert torch.equal(model.centres, images)
    nll = run.callback_metrics["val/nll"].item()
    assert nll == pytest.approx(-model.log_prob(held_out).mean().item(), rel=1e-6)
    assert [name for name in run.callback_metrics if "bpd" in name] == ["val/bpd-5level"] * (num_levels == 5)
    if num_levels:
        bits = run.callback_metrics["val/bpd-5level"].item()
        assert bits == pytest.approx(nll / 4 / math.log(2), rel=1e-6)
        assert 0 < bits < math.log2(5) + 0.2
    path = tmp_path / "kde.ckpt"
    run.save_checkpoint(path)
    loaded = GenerativeModule.load_from_checkpoint(path)
    assert loaded.width == model.width > 0
    assert loaded.images_seen == 60
    assert torch.equal(loaded.log_prob(held_out), model.log_prob(held_out))
    assert torch.equal(*(m.sample(5, generator=torch.Generator().manual_seed(3)) for m in (loaded, model)))
    (results,) = trainer(tmp_path).test(loaded, DataLoader(held_out, batch_size=3), verbose=False)
    assert results["test/nll"] == pytest.approx(nll, rel=1e-6)
    other = KDE(SHAPE, num_levels=num_levels)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(held_out), model.log_prob(held_out))


def test_a_checkpoint_of_half_a_pass_takes_the_other_half(tmp_path):
    """The contract suite goes on in the middle through the Trainer, and with two processes."""
    images = pictures(24, 5)
    half = trainer(tmp_path, max_steps=3)
    half.fit(KDE(SHAPE, num_levels=5), DataLoader(images, batch_size=4))
    half.save_checkpoint(tmp_path / "half.ckpt")
    again = GenerativeModule.load_from_checkpoint(tmp_path / "half.ckpt")
    assert torch.equal(again.centres, images[:12])
    width = again.width.item()
    again.add(images[12:])
    assert torch.equal(again.state_dict()["centres"], images)
    assert again.width not in (0, width)
    assert again.width == fitted(images, num_levels=5).state_dict()["width"]


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bandwidth": 0}, "above 0.*got 0"),
        ({"bandwidth": -1.0}, "above 0"),
        ({"bandwidth": math.nan}, "above 0"),
        ({"bandwidth": "scot"}, "scott.*got 'scot'"),
        ({"kernel": "gauss"}, "gaussian.*got 'gauss'"),
        ({"num_levels": 1}, "at least 2"),
        ({"num_levels": 16, "kernel": "linear"}, "gaussian kernel.*linear"),
        ({"cv_images": 0}, "cv_images"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        KDE(SHAPE, **settings)


def test_before_there_is_data():
    model = KDE(SHAPE)
    for ask in (lambda: model.log_prob(pictures(1)), lambda: model.sample(1)):
        with pytest.raises(ValueError, match=r"no data yet.*trainer\.fit"):
            ask()
    assert model.state_dict()["width"] == 0
    model.add(pictures(1))
    with pytest.raises(ValueError, match="takes two"):
        model.log_prob(pictures(1))
    with pytest.raises(ValueError, match="equal"):
        fitted(torch.zeros(5, *SHAPE), bandwidth="scott").log_prob(pictures(1))
    assert fitted(pictures(1), bandwidth=1.0).log_prob(pictures(1)).item() == pytest.approx(-2 * math.log(2 * math.pi))


def test_pictures_that_do_not_fit():
    model = fitted(pictures(9, 5), num_levels=5)
    bad = pictures(6, 5)
    bad[4, 0, 1, 0] = math.nan
    for take in (model.log_prob, model.add):
        with pytest.raises(ValueError, match=r"1 of 6 pictures.*NaN.*picture 4"):
            take(bad)
        with pytest.raises(ValueError, match=r"off the 5 levels.*picture 0"):
            take(torch.full((2, *SHAPE), 0.4))
        with pytest.raises(ValueError, match=r"off the 5 levels.*picture 0"):
            take(torch.full((2, *SHAPE), 1.5))
        with pytest.raises(ValueError, match=r"\[N, 1, 2, 2\].*\[2, 3\]"):
            take(torch.zeros(2, 3))
    assert torch.equal(model.centres, pictures(9, 5)) or model.num_centres == 9
    with pytest.raises(ValueError, match="num_samples"):
        model.sample(-1)
    with pytest.raises(ValueError, match="labels"):
        model.sample(2, labels=1)
