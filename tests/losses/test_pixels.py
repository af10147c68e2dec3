import itertools
import math

import pytest
import torch

from lightning_gen.losses import bernoulli_log_prob, categorical_log_prob, logistic_mixture_log_prob
from lightning_gen.losses.pixels import Bernoulli, Categorical, LogisticMixture, pixel_likelihood

KINDS = [Bernoulli(), Categorical(2), Categorical(3), LogisticMixture(3, 2), LogisticMixture(2, 1)]


def parameters_of(likelihood, channels, *space, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, likelihood.num_parameters(channels), *space, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("likelihood", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_probabilities_of_all_colours_sum_to_one(likelihood, channels):
    colours = torch.tensor(list(itertools.product(range(likelihood.num_levels), repeat=channels)))
    parameters = parameters_of(likelihood, channels).expand(len(colours), -1)
    assert likelihood.log_prob(parameters, colours).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("likelihood", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_have_the_probabilities(likelihood, channels):
    """Each colour's share of 40,000 draws is within five standard deviations."""
    number, levels = 40_000, likelihood.num_levels
    parameters = parameters_of(likelihood, channels, seed=1).expand(number, -1)
    noise = torch.rand(number, likelihood.num_uniforms(channels), generator=torch.Generator().manual_seed(2))
    drawn = likelihood.sample(parameters, noise, channels)
    assert drawn.shape == (number, channels)
    colours = torch.tensor(list(itertools.product(range(levels), repeat=channels)))
    places = (drawn * levels ** torch.arange(channels).flip(0)).sum(1)
    shares = torch.bincount(places, minlength=len(colours)).double() / number
    p = likelihood.log_prob(parameters[: len(colours)], colours).exp()
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 1e-9).all()


def test_they_are_the_functions_by_their_names():
    generator = torch.Generator().manual_seed(3)
    binary, levels = (torch.randint(n, (2, 3, 4, 5), generator=generator) for n in (2, 7))
    logits = torch.randn(2, 7, 3, 4, 5, generator=generator)
    for likelihood, parameters, function, seen in (
        (Bernoulli(), logits[:, :1], lambda p, x: bernoulli_log_prob(p.squeeze(1), x), binary),
        (Categorical(7), logits, categorical_log_prob, levels),
        (LogisticMixture(7, 2), torch.randn(2, 20, 4, 5), lambda p, x: logistic_mixture_log_prob(p, x, 7), levels),
    ):
        result = likelihood.log_prob(parameters, seen)
        assert result.shape == (2, 4, 5)
        torch.testing.assert_close(result.flatten(1).sum(1), function(parameters, seen))
        assert likelihood.num_parameters(3) == parameters[0].numel() // 20


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(4)])
def test_parameters_in_one_axis_come_level_by_level(likelihood):
    generator = torch.Generator().manual_seed(4)
    rows = likelihood.num_parameters(3) // 3
    parameters = torch.randn(2, rows, 3, 4, 5, generator=generator)
    levels = torch.randint(likelihood.num_levels, (2, 3, 4, 5), generator=generator)
    noise = torch.rand(2, likelihood.num_uniforms(3), 4, 5, generator=generator)
    flat = parameters.flatten(1, 2)
    assert torch.equal(likelihood.log_prob(flat, levels), likelihood.log_prob(parameters, levels))
    drawn = likelihood.sample(parameters, noise, 3)
    assert torch.equal(likelihood.sample(flat, noise, 3), drawn)
    # One pixel of the picture, as in a step.
    assert torch.equal(likelihood.sample(parameters[..., 2, 3], noise[..., 2, 3], 3), drawn[..., 2, 3])
    assert torch.equal(likelihood.sample(flat[..., 2, 3], noise[..., 2, 3], 3), drawn[..., 2, 3])


def test_temperature_zero_takes_the_likeliest():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(50, 6, 1, generator=generator)
    noise = torch.rand(50, 6, generator=generator)
    assert torch.equal(Categorical(6).sample(logits, noise, 1, temperature=0), logits.argmax(1))
    assert not torch.equal(Categorical(6).sample(logits, noise, 1), logits.argmax(1))


def test_two_levels_have_one_logit():
    assert pixel_likelihood(2) == Bernoulli()
    assert pixel_likelihood(5) == Categorical(5)
    assert Bernoulli().num_parameters(3) == 3
    assert LogisticMixture().num_parameters(3) == 100
    logit = torch.tensor([[math.log(3)]])
    assert Bernoulli().log_prob(logit, torch.tensor([[1]])).exp().item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Categorical(1), "num_levels must be a whole number from 2"),
        (lambda: Bernoulli(3), "Categorical takes more"),
        (lambda: LogisticMixture(256, 0), "num_components of at least 1"),
        (lambda: LogisticMixture(1), "num_levels must be a whole number from 2"),
        (lambda: pixel_likelihood(0), "num_levels must be a whole number from 2"),
    ],
)
def test_numbers_out_of_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()
