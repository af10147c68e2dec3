import itertools
import math
from decimal import Decimal, localcontext

import pytest
import torch

from lightning_gen.losses.categorical import levels_to_images
from lightning_gen.losses.logistic_mixture import (
    MIN_LOG_SCALE,
    logistic_mixture_channels,
    logistic_mixture_log_prob,
    logistic_mixture_pixel_log_prob,
    logistic_mixture_sample,
)

DRAWS = 200_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def randint(num_levels, *shape, seed=0):
    return torch.randint(num_levels, shape, generator=seeded(seed))


def single(mean, log_scale, dtype=torch.float32):
    """Parameters [N, 3] of one component for gray pictures."""
    mean, log_scale = torch.broadcast_tensors(torch.as_tensor(mean, dtype=dtype), torch.as_tensor(log_scale).to(dtype))
    return torch.stack([torch.zeros_like(mean), mean, log_scale], dim=-1).view(-1, 3)


def all_levels(parameters, num_levels, channels=1):
    """Log-probabilities of every colour under each of N parameters [N, P]: [N, num_levels ** channels]."""
    colours = torch.tensor(list(itertools.product(range(num_levels), repeat=channels))).T.unsqueeze(0)
    parameters = parameters.unsqueeze(-1).expand(-1, -1, colours.shape[-1])
    return logistic_mixture_pixel_log_prob(parameters, colours.expand(len(parameters), -1, -1), num_levels)


def naive(parameters, colour, num_levels):
    """Log-probability of one colour under [P] written out directly, with digits enough for any tail."""
    channels = len(colour)
    rows = parameters.double().view(1 + 2 * channels + channels * (channels - 1) // 2, -1).tolist()
    with localcontext() as context:
        context.prec = 60
        context.Emax, context.Emin = 10**9, -(10**9)
        half = Decimal(1) / (num_levels - 1)
        x = [2 * half * level - 1 for level in colour]

        def cdf(value):
            return 1 / (1 + (-value).exp())

        total, weights = Decimal(0), [Decimal(logit).exp() for logit in rows[0]]
        for component, weight in enumerate(weights):
            joint, coefficient = weight / sum(weights), 1 + 2 * channels
            for channel in range(channels):
                mean = Decimal(rows[1 + channel][component])
                for before in range(channel):
                    mean += Decimal(math.tanh(rows[coefficient][component])) * x[before]
                    coefficient += 1
                scale = Decimal(max(rows[1 + channels + channel][component], MIN_LOG_SCALE)).exp()
                infinity = Decimal("Infinity")
                upper = (x[channel] + half - mean) / scale if colour[channel] < num_levels - 1 else infinity
                lower = (x[channel] - half - mean) / scale if colour[channel] > 0 else -infinity
                # A level above the mean has the mass of its mirror image below, where digits do not cancel.
                joint *= cdf(-lower) - cdf(-upper) if lower > 0 else cdf(upper) - cdf(lower)
            total += joint
        return float(total.ln())


def assert_frequencies(drawn, probabilities):
    """Chi-square: its mean is the degrees of freedom, its variance twice that; five deviations are allowed."""
    expected = probabilities.double() * len(drawn)
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    assert len(counts) == len(expected)
    rare = expected < 10
    assert (counts[rare].sum() - expected[rare].sum()).abs() <= 5 * expected[rare].sum().sqrt() + 1
    freedom = int((~rare).sum()) - 1
    statistic = ((counts - expected).square() / expected)[~rare].sum().item()
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


# Parameters


@pytest.mark.parametrize(("components", "channels", "expected"), [(1, 1, 3), (10, 1, 30), (10, 3, 100), (2, 4, 30)])
def test_channels_that_a_network_must_give(components, channels, expected):
    assert logistic_mixture_channels(components, channels) == expected


@pytest.mark.parametrize(("components", "channels"), [(0, 3), (-1, 3), (10, 0)])
def test_a_mixture_of_nothing(components, channels):
    with pytest.raises(ValueError, match="at least 1, got"):
        logistic_mixture_channels(components, channels)


# Probabilities sum to 1


@pytest.mark.parametrize("num_levels", [2, 5, 17, 256])
def test_all_levels_sum_to_one_wherever_the_mean_and_however_narrow(num_levels):
    means = torch.cat(
        [
            torch.linspace(-1.1, 1.1, 301),
            2 * torch.arange(num_levels) / (num_levels - 1) - 1,  # on levels
            (2 * torch.arange(num_levels) + 1) / (num_levels - 1) - 1,  # on edges between them
            torch.tensor([-1e30, -1e6, -50.0, -2.0, 2.0, 50.0, 1e6, 1e30]),
        ]
    )
    log_scales = torch.tensor([-1e30, -20.0, -7.0, -6.0, -4.0, -2.0, 0.0, 3.0, 30.0, 200.0, 1e30])
    log_prob = all_levels(single(means[:, None], log_scales), num_levels)
    assert log_prob.dtype == torch.float32
    assert log_prob.isfinite().all()
    assert (log_prob.exp().sum(1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_all_levels_sum_to_one_under_mixtures(spread):
    parameters = randn(200, logistic_mixture_channels(10, 1)).mul(spread)
    parameters[:, 20:] -= 4
    assert (all_levels(parameters, 256).exp().sum(1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(("channels", "num_levels"), [(2, 16), (3, 8), (4, 4)])
def test_all_colours_sum_to_one(channels, num_levels):
    parameters = randn(20, logistic_mixture_channels(3, channels)).mul(2)
    parameters[10:, 3 * (1 + channels) : 3 * (1 + 2 * channels)] = -7
    sums = all_levels(parameters, num_levels, channels).exp().sum(1)
    assert (sums - 1).abs().max() < 1e-5


# Closed forms


def test_a_wide_component_is_uniform_but_for_its_tails():
    scale = math.exp(6)
    log_prob = all_levels(single(0.0, 6.0), 256)[0]
    # The density at the middle of a logistic is 1 / 4 s; a level is 2 / 255 wide.
    torch.testing.assert_close(log_prob[1:-1], torch.full((254,), math.log(2 / 255 / 4 / scale)), rtol=0, atol=1e-5)
    tail = 1 / (1 + math.exp((1 - 1 / 255) / scale))
    torch.testing.assert_close(log_prob[[0, -1]], torch.full((2,), math.log(tail)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_a_narrow_component_has_one_level(level):
    log_prob = all_levels(single(level / 127.5 - 1, -30.0), 256)[0]  # as narrow as log_scale = -7
    outside = 2 / (1 + math.exp(math.exp(7) / 255)) / (2 if level in (0, 255) else 1)
    assert log_prob[level].item() == pytest.approx(math.log1p(-outside), abs=1e-4)
    assert log_prob.argmax() == level


def test_a_component_far_outside_has_an_end():
    ends = all_levels(single([-1e4, 1e4], -7.0), 256)
    assert ends[0, 0] == 0
    assert ends[1, 255] == 0


def test_tails_are_as_steep_as_the_logistic_says():
    """Far below the mean, the mass of a level falls by exp(-width / scale) from one to the next."""
    log_prob = all_levels(single(0.9, -7.0), 256)[0]
    steps = log_prob[2:200].diff()
    # float32 tells numbers of 2000 nats apart by 1.2e-4.
    torch.testing.assert_close(steps, torch.full_like(steps, 2 / 255 * math.exp(7)), rtol=0, atol=2.5e-4)


def test_halves_of_two_components_on_two_levels():
    log_prob = all_levels(torch.tensor([[0.0, 0.0, -0.2, 0.6, -7.0, -7.0]]), 11)[0]
    assert log_prob[[4, 8]].exp().tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_channels_share_a_component():
    """Two components, black and white: gray mixtures such as (black, white) have no mass, unlike under independence."""
    parameters = torch.tensor([[0.0, 0.0, -1.0, 1.0, -1.0, 1.0, *[-7.0] * 4, 0.0, 0.0]])
    probabilities = all_levels(parameters, 2, channels=2)[0].exp()
    assert probabilities.tolist() == pytest.approx([0.5, 0, 0, 0.5], abs=1e-6)


def test_means_lean_on_the_pixels_true_colours():
    """a_10 = 1 and a_20 = -1, a_21 = 1: green is red, blue is green - red = 0, whatever the mean of red says."""
    parameters = torch.tensor([[0.0, 0.7, 0.0, 0.0, 3.0, -7.0, -7.0, 50.0, -50.0, 50.0]])
    log_prob = all_levels(parameters, 5, channels=3)[0].view(5, 5, 5)
    for red in range(5):
        given_red = log_prob[red].flatten().log_softmax(0).view(5, 5).exp()
        assert given_red[red, 2].item() == pytest.approx(1, abs=1e-6)


# The formula written out


@pytest.mark.parametrize(("channels", "num_levels"), [(1, 256), (3, 256), (2, 17), (4, 3), (1, 65536)])
def test_equals_the_formula_in_sixty_digits(channels, num_levels):
    parameters = randn(24, logistic_mixture_channels(3, channels)).mul(2)
    levels = randint(num_levels, 24, channels)
    levels[:4], levels[4:8] = 0, num_levels - 1
    expected = [naive(p, colour, num_levels) for p, colour in zip(parameters, levels.tolist(), strict=True)]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        log_prob = logistic_mixture_log_prob(parameters.to(dtype), levels, num_levels)
        assert log_prob.dtype == dtype
        torch.testing.assert_close(log_prob, torch.tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


EXTREMES = [(m, s) for m in (-1e6, -30.0, -1.0, 0.1, 1.02, 30.0, 1e6) for s in (-50.0, -7.0, -3.0, 0.0, 9.0, 40.0)]


@pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
def test_extreme_parameters_in_float32(level):
    """Values and gradients by float64 are right here: the test above and gradcheck below see to that."""
    results = []
    for dtype in (torch.float32, torch.float64):
        parameters = single(*torch.tensor(EXTREMES).T, dtype=dtype).requires_grad_()
        log_prob = logistic_mixture_log_prob(parameters, torch.full((len(parameters), 1), level), 256)
        log_prob.sum().backward()
        results.append((log_prob.detach().float(), parameters.grad.float()))
    (log_prob, grad), (expected_log_prob, expected_grad) = results
    torch.testing.assert_close(log_prob, expected_log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)


def test_the_pull_on_a_far_mean_is_one_over_the_scale():
    parameters = single([-1e5, -3.0, 3.0, 1e5], -7.0).requires_grad_()
    logistic_mixture_log_prob(parameters, torch.full((4, 1), 128), 256).sum().backward()
    pull = math.exp(7) * torch.tensor([1.0, 1, -1, -1])
    torch.testing.assert_close(parameters.grad[:, 1], pull, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e3, 1e10, 1e30])
def test_gradients_are_finite_everywhere(size):
    """Every corner of one component's parameters for two channels, and mixtures of corners."""
    corners = torch.tensor(list(itertools.product([-size, 0.0, size], repeat=6)))
    mixed = corners[torch.randint(len(corners), (2000, 2), generator=seeded())].transpose(1, 2).reshape(-1, 12)
    for parameters in (corners, mixed):
        for colour in itertools.product([0, 1, 255], repeat=2):
            parameters = parameters.detach().requires_grad_()
            log_prob = logistic_mixture_log_prob(parameters, torch.tensor([colour]).expand(len(parameters), 2), 256)
            log_prob.sum().backward()
            assert log_prob.isfinite().all()
            assert (log_prob <= 1e-6).all()
            assert parameters.grad.isfinite().all()


@pytest.mark.parametrize(("channels", "num_levels"), [(1, 256), (3, 17), (2, 2)])
def test_gradients_are_those_of_the_formula(channels, num_levels):
    parameters = randn(3, logistic_mixture_channels(2, channels), 2, 2, dtype=torch.float64).requires_grad_()
    levels = randint(num_levels, 3, channels, 2, 2)
    levels[0], levels[1, ..., 0] = 0, num_levels - 1
    assert torch.autograd.gradcheck(lambda p: logistic_mixture_log_prob(p, levels, num_levels), parameters)


def test_no_jump_where_a_level_gets_too_wide_to_notice():
    """log(1 - exp(-x)) changes its formula at x = exp(-20); value and slope go on."""
    seam = math.log(2 / 255) + 20
    log_scales = torch.tensor([seam - 1e-7, seam + 1e-7], dtype=torch.float64)
    parameters = single(0.3, log_scales, torch.float64).requires_grad_()
    log_prob = logistic_mixture_log_prob(parameters, torch.tensor([[80], [80]]), 256)
    log_prob.sum().backward()
    assert (log_prob[0] - log_prob[1]).item() == pytest.approx(2e-7, abs=1e-14)
    assert parameters.grad[:, 2].tolist() == pytest.approx([-1, -1], abs=1e-8)


# Whole pictures


def test_a_picture_is_the_sum_of_its_pixels_in_any_company_and_shape():
    parameters, levels = randn(4, 20, 3, 5), randint(256, 4, 3, 3, 5)
    pixels = logistic_mixture_pixel_log_prob(parameters, levels, 256)
    assert pixels.shape == (4, 3, 5)
    torch.testing.assert_close(logistic_mixture_log_prob(parameters, levels, 256), pixels.sum((1, 2)))
    torch.testing.assert_close(logistic_mixture_log_prob(parameters[2:3], levels[2:3], 256), pixels[2:3].sum((1, 2)))
    one = logistic_mixture_pixel_log_prob(parameters[..., 1, 4], levels[..., 1, 4], 256)
    torch.testing.assert_close(one, pixels[:, 1, 4])
    assert torch.equal(logistic_mixture_pixel_log_prob(parameters, levels.to(torch.uint8), 256), pixels)


def test_precision_is_float32_at_least():
    parameters, levels = randn(4, 20, 3, 5), randint(256, 4, 3, 3, 5)
    expected = logistic_mixture_log_prob(parameters, levels, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(logistic_mixture_log_prob(parameters, levels, 256), expected)
        half = logistic_mixture_log_prob(parameters.bfloat16(), levels, 256)
        drawn = logistic_mixture_sample(parameters.bfloat16(), 3, 256, seeded())
    assert half.dtype == torch.float32
    assert torch.equal(half, logistic_mixture_log_prob(parameters.bfloat16().float(), levels, 256))
    assert torch.equal(drawn, logistic_mixture_sample(parameters.bfloat16().float(), 3, 256, seeded()))


def test_what_does_not_fit_is_refused():
    parameters, levels = randn(4, 20, 3, 5), randint(256, 4, 3, 3, 5)
    with pytest.raises(ValueError, match="images_to_levels"):
        logistic_mixture_log_prob(parameters, levels_to_images(levels, 256), 256)
    with pytest.raises(ValueError, match="agree but for P and C"):
        logistic_mixture_log_prob(parameters, levels.mT, 256)
    for wrong in (21, 0):
        with pytest.raises(ValueError, match="P a multiple of 10 for pictures of 3 channels"):
            logistic_mixture_log_prob(torch.zeros(4, wrong, 3, 5), levels, 256)
        with pytest.raises(ValueError, match="P a multiple of 10 for pictures of 3 channels"):
            logistic_mixture_sample(torch.zeros(4, wrong, 3, 5), 3, 256, seeded())
    with pytest.raises(ValueError, match="num_levels must be"):
        logistic_mixture_log_prob(parameters, levels, 1)
    with pytest.raises(ValueError, match="num_levels must be"):
        logistic_mixture_sample(parameters, 3, 1, seeded())
    with pytest.raises(ValueError, match="temperature must be 0"):
        logistic_mixture_sample(parameters, 3, 256, seeded(), -0.1)
    with pytest.raises(ValueError, match=r"shape \[4, 5, 3, 5\], got \[4, 3, 3, 5\]"):
        logistic_mixture_sample(parameters, 3, 256, torch.rand(4, 3, 3, 5, generator=seeded()))


# Samples


def test_gray_levels_come_as_often_as_they_should():
    parameters = torch.tensor([[0.0, 1.0, -1.0, -1.1, 0.2, 0.9, -2.0, -1.5, -7.0]])
    drawn = logistic_mixture_sample(parameters.expand(DRAWS, -1), 1, 256, seeded(1))
    assert drawn.shape == (DRAWS, 1)
    assert drawn.dtype == torch.int64
    assert_frequencies(drawn.flatten(), all_levels(parameters, 256)[0].exp())


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_colours_come_as_often_as_they_should(temperature):
    """At temperature T the mixture's logits are divided by T and its scales multiplied; means and coefficients stay."""
    parameters = randn(10, 3, seed=5)
    parameters[4:7] -= 1
    tempered = parameters.clone()
    tempered[0] /= temperature
    tempered[4:7] += math.log(temperature)
    drawn = logistic_mixture_sample(parameters.view(1, 30).expand(DRAWS, -1), 3, 4, seeded(2), temperature)
    colours = drawn @ torch.tensor([16, 4, 1])
    assert_frequencies(colours, all_levels(tempered.view(1, 30), 4, channels=3)[0].exp())


def test_temperature_zero_gives_the_means_of_the_heaviest_component():
    parameters = torch.tensor([[0.0, 0.1, -0.9, 0.52, 0.3, -0.25, 2.0, 2.0, 2.0, 2.0, 0.0, 20.0]])
    # Red 0.52 is level 3 of 5, which is 0.5; green -0.25 + 0.5 = 0.25, between levels 2 and 3: a hair off decides.
    for shift, green in ((-0.01, 2), (0.01, 3)):
        parameters[0, 5] = -0.25 + shift
        assert logistic_mixture_sample(parameters, 2, 5, seeded(), 0).tolist() == [[3, green]]


def test_the_next_channel_leans_on_the_rounded_one():
    """With a = 1 and a narrow second channel a quarter of the way to the next level, it copies the first one's level.

    Leaning on the unrounded or unclamped draw, it would often be a level above.
    """
    parameters = torch.tensor([0.0, 0.1, 0.15, 0.0, -7.0, 50.0]).expand(5000, -1)
    levels = logistic_mixture_sample(parameters, 2, 4, seeded())
    assert levels[:, 0].bincount().min() > 500
    assert torch.equal(levels[:, 0], levels[:, 1])


def test_noise_drawn_ahead_is_what_the_generator_draws():
    parameters = randn(2, 40, 3, 5)
    state = torch.get_rng_state()
    drawn = logistic_mixture_sample(parameters, 3, 256, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    noise = torch.rand(2, 4 + 3, 3, 5, generator=seeded(3))
    assert torch.equal(logistic_mixture_sample(parameters, 3, 256, noise), drawn)
    assert not torch.equal(logistic_mixture_sample(parameters, 3, 256, seeded(4)), drawn)
    for h, w in itertools.product(range(3), range(5)):  # as a cached sampler goes
        assert torch.equal(logistic_mixture_sample(parameters[..., h, w], 3, 256, noise[..., h, w]), drawn[..., h, w])


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("mean", [-1e30, 0.0, 1e30])
def test_samples_stay_levels(noise, mean):
    parameters = torch.tensor([[0.0, mean, mean, 30.0, -30.0, 1.0]])
    levels = logistic_mixture_sample(parameters, 2, 256, torch.full((1, 3), noise))
    assert ((levels >= 0) & (levels <= 255)).all()


def test_it_all_compiles_in_one_graph():
    @torch.compile(fullgraph=True, backend="eager")
    def both(parameters, levels, noise, num_levels):
        return (
            logistic_mixture_log_prob(parameters, levels, num_levels),
            logistic_mixture_sample(parameters, levels.shape[1], num_levels, noise, 0.9),
        )

    for channels, num_levels in ((3, 256), (1, 17), (1, 2), (3, 8)):
        parameters = randn(2, logistic_mixture_channels(4, channels), 3, 5).requires_grad_()
        levels, noise = randint(num_levels, 2, channels, 3, 5), torch.rand(2, 4 + channels, 3, 5, generator=seeded())
        log_prob, drawn = both(parameters, levels, noise, num_levels)
        torch.testing.assert_close(log_prob, logistic_mixture_log_prob(parameters, levels, num_levels))
        assert torch.equal(drawn, logistic_mixture_sample(parameters, channels, num_levels, noise, 0.9))
        log_prob.sum().backward()
        assert parameters.grad.isfinite().all()
