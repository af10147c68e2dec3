import itertools
import math

import pytest
import torch
from torch.distributions import AffineTransform, Laplace, Normal, SigmoidTransform, TransformedDistribution

from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of
from lightning_gen.losses import (
    Bernoulli,
    Categorical,
    GaussianPixels,
    ImageLikelihood,
    LogisticMixture,
    LogitLaplace,
    Pixelwise,
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_log_prob,
    levels_to_images,
    logistic_mixture_log_prob,
    logit_laplace_log_prob,
    logit_laplace_map,
    logit_laplace_unmap,
)
from lightning_gen.losses.images import MIN_LOG_STD

DISCRETE = [
    Pixelwise(Bernoulli()),
    Pixelwise(Categorical(3)),
    Pixelwise(LogisticMixture(3, 2)),
]
CONTINUOUS = [GaussianPixels(), GaussianPixels(std=0.3), LogitLaplace(), LogitLaplace(eps=0.02)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def parameters_of(likelihood, channels, *space, batch=1, seed=0):
    return randn(batch, likelihood.num_parameters(channels), *space, seed=seed)


def pictures_for(likelihood, *shape, seed=0):
    if likelihood.num_levels is None:
        return torch.rand(shape, generator=seeded(seed), dtype=torch.float64) * 2 - 1
    return levels_to_images(torch.randint(likelihood.num_levels, shape, generator=seeded(seed)), likelihood.num_levels)


# Densities


def test_the_gaussian_is_that_of_torch_distributions():
    x, means, log_variances = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2)
    expected = Normal(means, (log_variances / 2).exp()).log_prob(x)
    torch.testing.assert_close(gaussian_log_prob(x, means, log_variances), expected)


@pytest.mark.parametrize("eps", [0.1, 0.01])
@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.5, -2.0), (-3.0, 0.4)])
def test_the_logit_laplace_is_the_laplace_of_torch_distributions_transformed(eps, location, log_scale):
    """Under y = sigmoid(Laplace), and x the picture of y: and so it integrates to 1 over the x of all y in (0, 1)."""
    laplace = Laplace(torch.tensor(location).double(), torch.tensor(log_scale).double().exp())
    to_picture = AffineTransform(-1 - 2 * eps / (1 - 2 * eps), 2 / (1 - 2 * eps))
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    m, v = torch.full_like(x, location), torch.full_like(x, log_scale)
    expected = TransformedDistribution(laplace, [SigmoidTransform(), to_picture]).log_prob(x)
    torch.testing.assert_close(logit_laplace_log_prob(x, m, v, eps), expected)
    # As the paper writes it, of y.
    y = (1 - 2 * eps) * (x + 1) / 2 + eps
    b = math.exp(log_scale)
    paper = (-(y.logit() - location).abs() / b).exp() / (2 * b * y * (1 - y))
    slope = math.log((1 - 2 * eps) / 2)
    torch.testing.assert_close(logit_laplace_log_prob(x, m, v, eps), paper.log() + slope)


@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.5, -1.0), (-1.0, 0.2)])
def test_the_logit_laplace_integrates_to_one(location, log_scale):
    """Over t = logit y, in which its tails are exp(-|t|), the kink at mu being a point of the grid."""
    t = torch.linspace(-40, 40, 80_001, dtype=torch.float64) + location
    y, eps = t.sigmoid(), 0.1
    x = (y - eps) * 2 / (1 - 2 * eps) - 1  # beyond [-1, 1], so not by unmap
    density = logit_laplace_log_prob(x, torch.full_like(x, location), torch.full_like(x, log_scale)).exp()
    inside = t.abs() < 30  # y (1 - y) has digits there, and all but 1e-10 of the mass
    values = (density * y * (1 - y) * 2 / (1 - 2 * eps))[inside]
    assert torch.trapezoid(values, t[inside]).item() == pytest.approx(1, abs=1e-5)


def test_map_and_unmap():
    images = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(logit_laplace_map(images), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(logit_laplace_unmap(logit_laplace_map(images)), images)
    assert logit_laplace_unmap(torch.tensor([0.0, 0.05, 0.95, 1.0])).tolist() == [-1, -1, 1, 1]
    images = levels_to_images(torch.arange(256), 256)
    torch.testing.assert_close(logit_laplace_unmap(logit_laplace_map(images, 0.3), 0.3), images, rtol=0, atol=1e-6)


# Objects


@pytest.mark.parametrize("likelihood", [*DISCRETE, *CONTINUOUS])
@pytest.mark.parametrize("channels", [1, 3])
def test_nats_are_sums_over_the_pixels_of_each_picture(likelihood, channels):
    parameters = parameters_of(likelihood, channels, 3, 4, batch=5)
    images = pictures_for(likelihood, 5, channels, 3, 4)
    nats = likelihood.log_prob(parameters, images)
    assert nats.shape == (5,)
    by_pixel = sum(
        likelihood.log_prob(parameters[..., i : i + 1, j : j + 1], images[..., i : i + 1, j : j + 1])
        for i, j in itertools.product(range(3), range(4))
    )
    torch.testing.assert_close(nats, by_pixel)
    torch.testing.assert_close(likelihood.log_prob(parameters, images, validate=False), nats)


@pytest.mark.parametrize("likelihood", [*DISCRETE, *CONTINUOUS])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_nats_and_gradients_of_a_picture_do_not_know_the_size_of_the_batch(likelihood, batch):
    parameters, images = parameters_of(likelihood, 3, 2, 2), pictures_for(likelihood, 1, 3, 2, 2)
    alone = parameters.clone().requires_grad_()
    together = parameters.repeat(batch, 1, 1, 1).requires_grad_()
    one = likelihood.log_prob(alone, images)
    many = likelihood.log_prob(together, images.expand(batch, -1, -1, -1))
    torch.testing.assert_close(many, one.expand(batch))
    one.mean().backward()
    many.mean().backward()
    torch.testing.assert_close(together.grad.sum(0, keepdim=True), alone.grad)


def test_they_are_the_functions_by_their_names():
    generator, shape = seeded(), (2, 3, 4, 5)
    binary, levels = (torch.randint(n, shape, generator=generator) for n in (2, 7))
    for pixels, outputs, function, seen in (
        (Bernoulli(), 3, bernoulli_log_prob, binary),
        (Categorical(7), 21, lambda p, x: categorical_log_prob(p.unflatten(1, (7, 3)), x), levels),
        (LogisticMixture(7, 2), 20, lambda p, x: logistic_mixture_log_prob(p, x, 7), levels),
    ):
        likelihood = Pixelwise(pixels)
        assert (likelihood.num_parameters(3), likelihood.num_levels) == (outputs, pixels.num_levels)
        parameters = randn(2, outputs, 4, 5)
        images = levels_to_images(seen, pixels.num_levels)
        torch.testing.assert_close(likelihood.log_prob(parameters, images), function(parameters, seen))


def test_a_gaussian_of_fixed_deviation_is_the_squared_error():
    """With std^2 = 1/2 it is the plain sum of squares, and a constant."""
    means, images = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1).clamp(-1, 1)
    nats = GaussianPixels(std=math.sqrt(0.5)).log_prob(means, images)
    errors = (images - means).square().flatten(1).sum(1)
    torch.testing.assert_close(nats, -errors - 60 / 2 * math.log(math.pi))
    assert GaussianPixels(std=0.1).num_parameters(3) == 3


def test_a_learned_deviation_is_the_number_s_exponential_and_bounded_below():
    likelihood, images = GaussianPixels(), randn(2, 3, 4, 5, seed=1).clamp(-1, 1)
    means, log_stds = randn(2, 3, 4, 5), torch.linspace(-3, 5, 120, dtype=torch.float64).view(2, 3, 4, 5)
    assert likelihood.num_parameters(3) == 6
    # softplus(v) exceeds v by log(1 + exp(-v)), which is 0.0486 three above the bound.
    raw = torch.cat([means, log_stds], dim=1).requires_grad_()
    exact = log_stds + torch.log1p((MIN_LOG_STD - log_stds).exp())
    assert (exact - log_stds).max().item() == pytest.approx(0.0486, abs=1e-4)
    expected = gaussian_log_prob(images, means, 2 * exact).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(raw, images), expected)
    # A pixel that is met exactly: no more than at the bound, and still with a gradient.
    low = torch.cat([images, torch.full_like(images, -9.0)], dim=1).requires_grad_()
    nats = likelihood.log_prob(low, images)
    assert (nats < 60 * (-MIN_LOG_STD - 0.5 * math.log(2 * math.pi))).all()
    assert (torch.autograd.grad(nats.sum(), low)[0][:, 3:] != 0).all()


@pytest.mark.parametrize("likelihood", DISCRETE)
def test_probabilities_of_all_pictures_sum_to_one(likelihood):
    """Of one row, two pixels wide."""
    levels = torch.tensor(list(itertools.product(range(likelihood.num_levels), repeat=2)))
    images = levels_to_images(levels, likelihood.num_levels).view(-1, 1, 1, 2)
    parameters = parameters_of(likelihood, 1, 1, 2).expand(len(images), -1, -1, -1)
    assert likelihood.log_prob(parameters, images).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("likelihood", [GaussianPixels(cut=False), GaussianPixels(std=0.7, cut=False)])
def test_the_density_integrates_to_one(likelihood):
    x = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    parameters = parameters_of(likelihood, 1, 1, 1).expand(len(x), -1, -1, -1)
    density = likelihood.log_prob(parameters, x.view(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("likelihood", [Pixelwise(Bernoulli()), Pixelwise(Categorical(5)), GaussianPixels(cut=False)])
def test_the_mean_is_that_of_samples(likelihood):
    """Within five standard deviations of the mean of 20,000."""
    number = 20_000
    parameters = parameters_of(likelihood, 3, 1, 2, seed=4)
    drawn = likelihood.sample(parameters.expand(number, -1, -1, -1), seeded(), 3)
    assert drawn.shape == (number, 3, 1, 2)
    off = (drawn.mean(0) - likelihood.mean(parameters, 3)[0]).abs()
    assert (off < 5 * drawn.std(0) / math.sqrt(number)).all()


@pytest.mark.parametrize("likelihood", CONTINUOUS)
def test_samples_have_the_density(likelihood):
    """Shares of 40,000 draws in cells of [-1, 1] against the integral, within five standard deviations of each."""
    number, cells, fine = 40_000, 20, 200
    parameters = parameters_of(likelihood, 1, 1, 1, seed=2)
    drawn = likelihood.sample(parameters.expand(number, -1, -1, -1), seeded(3), 1).flatten()
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    inside = drawn[drawn.abs() < 1]  # what lies beyond is cut to the ends
    shares = torch.histc(inside, cells, -1, 1) / number
    x = ((torch.arange(cells * fine) + 0.5) / (cells * fine) * 2 - 1).double()
    density = likelihood.log_prob(parameters.expand(len(x), -1, -1, -1), x.view(-1, 1, 1, 1)).exp()
    p = density.view(cells, fine).mean(1) * 2 / cells
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 1e-4).all()


@pytest.mark.parametrize("likelihood", [*DISCRETE, *CONTINUOUS])
def test_samples_are_pictures_that_the_noise_determines(likelihood):
    parameters = parameters_of(likelihood, 3, 4, 5, batch=2)
    noise = torch.rand(2, likelihood.num_uniforms(3), 4, 5, generator=seeded(1))
    drawn = likelihood.sample(parameters, seeded(1), 3)
    assert torch.equal(drawn, likelihood.sample(parameters, noise, 3))
    assert not torch.equal(drawn, likelihood.sample(parameters, seeded(2), 3))
    for images in (drawn, likelihood.mean(parameters, 3), likelihood.sample(parameters, noise, 3, temperature=0)):
        assert images.shape == (2, 3, 4, 5)
        assert images.min() >= -1
        assert images.max() <= 1
    assert likelihood.log_prob(parameters, drawn).isfinite().all()


def test_temperature_zero_and_the_mean():
    for likelihood in (GaussianPixels(), GaussianPixels(0.2), LogitLaplace(), Pixelwise(LogisticMixture(256, 3))):
        parameters = parameters_of(likelihood, 3, 2, 2)
        drawn = likelihood.sample(parameters, seeded(), 3, temperature=0)
        torch.testing.assert_close(drawn, likelihood.mean(parameters, 3))
    logits = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(Pixelwise().mean(logits, 1), logits.sigmoid() * 2 - 1)
    assert Pixelwise().sample(logits, seeded(), 1, temperature=0).flatten().tolist() == [-1, 1]


def test_points_are_not_cut():
    points = torch.tensor([-3.0, 2.5]).view(1, 2, 1, 1)
    assert torch.equal(GaussianPixels(0.1, cut=False).mean(points, 2), points)
    assert GaussianPixels(0.1).mean(points, 2).flatten().tolist() == [-1, 1]


@pytest.mark.parametrize("likelihood", [*DISCRETE, *CONTINUOUS])
def test_a_checkpoint_can_name_them(likelihood):
    plain = hyperparameters_of({"likelihood": likelihood})["likelihood"]
    assert Recipe({CLASS_KEY: plain["class_path"], **plain["init_args"]}, ImageLikelihood).build() == likelihood


@pytest.mark.parametrize("likelihood", [*DISCRETE, *CONTINUOUS])
def test_halves_are_computed_in_float32(likelihood):
    parameters = parameters_of(likelihood, 3, 4, 5, batch=2).bfloat16()
    images = pictures_for(likelihood, 2, 3, 4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = likelihood.log_prob(parameters, images), likelihood.mean(parameters, 3)
    exact = likelihood.log_prob(parameters.double(), images.double().float()), likelihood.mean(parameters.double(), 3)
    for result, expected in zip(results, exact, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_pictures_that_a_trainer_of_half_precision_has_rounded_keep_their_levels():
    levels = torch.arange(7).view(1, 1, 1, 7)
    images = levels_to_images(levels, 7)
    assert not torch.equal(images.bfloat16().float(), images)
    likelihood, parameters = Pixelwise(Categorical(7)), randn(1, 7, 1, 7)
    expected = likelihood.log_prob(parameters, images)
    assert torch.equal(likelihood.log_prob(parameters, images.bfloat16()), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianPixels(std=0), "std must be above 0 and finite, or None"),
        (lambda: GaussianPixels(std=math.inf), "std must be above 0"),
        (lambda: LogitLaplace(eps=0.5), "above 0 and below 1/2, got 0.5"),
        (
            lambda: GaussianPixels().log_prob(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)),
            r"parameters \[N, 6, H, W\]",
        ),
        (
            lambda: GaussianPixels(1).log_prob(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 4)),
            "must agree but for P and C",
        ),
        (lambda: Pixelwise().log_prob(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)), "none of the 2 levels"),
        (lambda: Pixelwise().log_prob(torch.zeros(2, 2, 4, 4), torch.ones(2, 1, 4, 4)), r"parameters \[N, 1, H, W\]"),
        (lambda: Pixelwise().sample(torch.zeros(2, 2, 4, 4), seeded(), 3), r"parameters \[N, 3, H, W\]"),
        (lambda: LogitLaplace().sample(torch.zeros(2, 2, 4, 4), torch.rand(2, 2, 4, 4), 1), "The noise must be"),
        (
            lambda: GaussianPixels().sample(torch.zeros(2, 2, 4, 4), seeded(), 1, temperature=-1),
            "temperature must be 0",
        ),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
