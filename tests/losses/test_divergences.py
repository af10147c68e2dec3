import math
from typing import get_args

import pytest
import torch

from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of
from lightning_gen.losses import FDivergence, Minimax, NonSaturating, SeparableLoss
from lightning_gen.losses.divergences import DivergenceName

NAMES = get_args(DivergenceName)
SMOOTH = [name for name in NAMES if name != "total_variation"]
# Wide enough for the tails of every integrand below, narrow enough that no ratio of densities drowns in rounding.
X = torch.linspace(-12, 12, 24_001, dtype=torch.float64)


def normal(mean, std):
    return torch.exp(-0.5 * ((X - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def integral(values):
    return torch.trapezoid(values, X).item()


def kl(m1, s1, m2, s2):
    return math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


def chi_squared(m1, s1, m2, s2):
    """Integral of p^2 / q, minus 1; finite where 2 s2^2 > s1^2."""
    between = 2 * s2**2 - s1**2
    return s2**2 / (s1 * math.sqrt(between)) * math.exp((m1 - m2) ** 2 / between) - 1


def squared_hellinger(m1, s1, m2, s2):
    total = s1**2 + s2**2
    return 2 - 2 * math.sqrt(2 * s1 * s2 / total) * math.exp(-((m1 - m2) ** 2) / (4 * total))


def twice_jensen_shannon(m1, s1, m2, s2):
    """KL(p || m) + KL(q || m), m the half-half mixture: there is no closed form."""
    p, q = normal(m1, s1), normal(m2, s2)
    middle = (p + q) / 2
    return sum(integral(torch.xlogy(density, density / middle)) for density in (p, q))


CLOSED = {
    "kl": kl,
    "reverse_kl": lambda m1, s1, m2, s2: kl(m2, s2, m1, s1),
    "pearson": chi_squared,
    "neyman": lambda m1, s1, m2, s2: chi_squared(m2, s2, m1, s1),
    "squared_hellinger": squared_hellinger,
    "jensen_shannon": twice_jensen_shannon,
    "gan": lambda *pair: twice_jensen_shannon(*pair) - math.log(4),
}


@pytest.mark.parametrize("pair", [(0.0, 1.0, 1.0, 1.2), (0.5, 1.2, -0.5, 1.0), (2.0, 1.0, 0.0, 1.0)])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_bound_at_the_best_score_is_the_divergence_and_elsewhere_below(name, pair):
    loss = FDivergence(name)
    m1, s1, m2, s2 = pair
    p, q = normal(m1, s1), normal(m2, s2)
    best = loss.derivative(p / q)
    bound = integral(p * best - q * loss.conjugate(best))
    assert bound == pytest.approx(CLOSED[name](*pair), rel=1e-6)
    assert integral(q * loss.generating(p / q)) == pytest.approx(bound, rel=1e-6)
    # Through the terms of the loss, with scores that are off: never above.
    for scores in (0.3 * X, X - 1, -0.5 * X):
        clipped = scores.clamp(-5, 5)
        lower = -integral(p * loss.real_terms(clipped) + q * loss.fake_terms(clipped))
        assert lower < bound


def test_total_variation_is_half_the_l1_distance():
    loss = FDivergence("total_variation")
    p, q = normal(0.0, 1.5), normal(2.0, 1.5)
    best = loss.derivative(p / q)
    expected = math.erf(2.0 / (2 * math.sqrt(2) * 1.5))
    assert integral(p * best - q * loss.conjugate(best)) == pytest.approx(expected, rel=1e-6)
    # By scores too: +-20 saturates the activation at the best T.
    scores = 20 * (p - q).sign()
    assert -integral(p * loss.real_terms(scores) + q * loss.fake_terms(scores)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_conjugates_gradient_is_the_inverse_of_the_derivative(name):
    loss = FDivergence(name)
    u = torch.logspace(-2, 2, 101, dtype=torch.float64, requires_grad=True)
    (by_autograd,) = torch.autograd.grad(loss.generating(u).sum(), u)
    torch.testing.assert_close(by_autograd, loss.derivative(u))
    t = loss.derivative(u).detach().requires_grad_()
    (back,) = torch.autograd.grad(loss.conjugate(t).sum(), t)
    torch.testing.assert_close(back, u, rtol=1e-9, atol=0)
    # Fenchel's equality: f*(f'(u)) = u f'(u) - f(u).
    torch.testing.assert_close(loss.conjugate(t), u * t - loss.generating(u))


@pytest.mark.parametrize("name", NAMES)
def test_the_conjugate_is_the_supremum(name):
    loss = FDivergence(name)
    u = torch.logspace(-9, 5, 200_002, dtype=torch.float64)
    u[0] = 1  # total variation's kink
    low, high = loss.domain
    t = torch.linspace(max(low, -1.9), min(high - 0.05, 3.0), 12, dtype=torch.float64)
    supremum = torch.stack([(u * one - loss.generating(u)).max() for one in t])
    torch.testing.assert_close(loss.conjugate(t), supremum, rtol=1e-4, atol=1e-6)
    # Outside its domain it is infinite: the supremum runs away with u.
    if high < math.inf:
        beyond = torch.tensor(high + 0.1, dtype=torch.float64)
        assert loss.conjugate(beyond) == math.inf
        assert (u * beyond - loss.generating(u)).max() > 1e3
    if low > -math.inf:
        assert loss.conjugate(torch.tensor(low - 0.1)) == math.inf


@pytest.mark.parametrize("name", NAMES)
def test_the_simplified_conjugate_of_the_activation_equals_the_composition(name):
    loss = FDivergence(name)
    v = torch.linspace(-12, 12, 241, dtype=torch.float64, requires_grad=True)
    low, high = loss.domain
    activation = loss.activation(v)
    assert low <= activation.min()
    assert activation.max() <= high
    assert (activation.diff() > 0).all()  # a high score means "real"
    simplified, composed = loss.conjugate_of_activation(v), loss.conjugate(activation)
    torch.testing.assert_close(simplified, composed, rtol=1e-4, atol=1e-9)  # the composition is the inexact one
    (slope,) = torch.autograd.grad(simplified.sum(), v, retain_graph=True)
    (composed_slope,) = torch.autograd.grad(composed.sum(), v)
    torch.testing.assert_close(slope, composed_slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("generator_loss", ["minimax", "alternative"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_of_80_give_in_float32_what_float64_gives(name, generator_loss):
    loss = FDivergence(name, generator_loss)
    parts = (loss.real_terms, loss.fake_terms, loss.generator, loss.activation, loss.conjugate_of_activation)
    for value in (80.0, -80.0, 20.0, -20.0, 0.0):
        for part in parts:
            single = torch.tensor([value], requires_grad=True)
            double = torch.tensor([value], dtype=torch.float64, requires_grad=True)
            results = []
            for score in (single, double):
                result = part(score).sum()
                results.append((result, *torch.autograd.grad(result, score)))
            for ours, exact in zip(*results, strict=True):
                assert ours.isfinite().all()
                # exp(80) in float32 is good to 80 * 6e-8; a saturated slope of 1 - tanh^2 to its last bit.
                torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("ratio", [0.2, 0.9, 5.0])
def test_the_best_score_recovers_the_density_ratio(name, ratio):
    loss = FDivergence(name)
    q = 0.3
    v = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64)
    best = v[(ratio * q * loss.real_terms(v) + q * loss.fake_terms(v)).argmin()]
    low, high = best - 1e-5, best + 1e-5  # to the grid's spacing
    assert loss.activation(low) <= loss.derivative(torch.tensor(ratio, dtype=torch.float64)) <= loss.activation(high)


@pytest.mark.parametrize("name", NAMES)
def test_the_players_pull_scores_their_own_way(name):
    for generator_loss in ("minimax", "alternative"):
        loss = FDivergence(name, generator_loss)
        score = torch.linspace(-1.5, 1.5, 7, requires_grad=True)
        (real,) = torch.autograd.grad(loss.real_terms(score).sum(), score)
        (fake,) = torch.autograd.grad(loss.fake_terms(score).sum(), score)
        (generator,) = torch.autograd.grad(loss.generator(score), score)
        assert (real < 0).all()  # reverse KL with exp(+v) has it the wrong way round
        assert (fake > 0).all()
        assert (generator < 0).all()


def test_the_two_generator_losses():
    fake = torch.randn(50)
    for name in NAMES:
        minimax, alternative = FDivergence(name), FDivergence(name, "alternative")
        torch.testing.assert_close(minimax.generator(fake), -minimax.fake_terms(fake).mean())
        torch.testing.assert_close(alternative.generator(fake), -alternative.activation(fake).mean())
        assert torch.equal(minimax.discriminator(fake, fake), alternative.discriminator(fake, fake))
    # f* is the identity on total variation's domain, so both are one.
    tv, alternative = FDivergence("total_variation"), FDivergence("total_variation", "alternative")
    assert torch.equal(tv.generator(fake), alternative.generator(fake))
    # Where the discriminator is sure of its fakes: one stalls, the other does not.
    sure = torch.tensor([-20.0], requires_grad=True)
    for name in ("kl", "squared_hellinger", "jensen_shannon", "gan"):
        (stalled,) = torch.autograd.grad(FDivergence(name).generator(sure), sure)
        (moving,) = torch.autograd.grad(FDivergence(name, "alternative").generator(sure), sure)
        assert stalled.abs() < 1e-8
        assert moving < -0.99


def test_gan_is_the_first_gan_and_jensen_shannon_is_it_shifted():
    real, fake = torch.randn(20), torch.randn(30)
    gan, js = FDivergence("gan"), FDivergence("jensen_shannon")
    torch.testing.assert_close(gan.discriminator(real, fake), Minimax().discriminator(real, fake))
    torch.testing.assert_close(gan.generator(fake), Minimax().generator(fake))
    torch.testing.assert_close(FDivergence("gan", "alternative").generator(fake), NonSaturating().generator(fake))
    torch.testing.assert_close(js.bound(real, fake), gan.bound(real, fake) + math.log(4))
    assert torch.equal(gan.bound(real, fake), -gan.discriminator(real, fake))


def test_f_vanishes_where_both_laws_agree_and_its_limits_at_zero_are_finite_where_they_are():
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    for name in NAMES:
        expected = -math.log(4) if name == "gan" else 0.0
        assert FDivergence(name).generating(one).item() == pytest.approx(expected, abs=1e-7)
    limits = {"total_variation": 0.5, "kl": 0, "pearson": 1, "squared_hellinger": 1, "gan": 0}
    for name, limit in (limits | {"jensen_shannon": math.log(2), "reverse_kl": math.inf, "neyman": math.inf}).items():
        assert FDivergence(name).generating(zero).item() == pytest.approx(limit)


def test_names_are_checked_and_a_checkpoint_keeps_them():
    with pytest.raises(ValueError, match=r"divergence='JS'; known are total_variation, kl"):
        FDivergence("JS")
    with pytest.raises(ValueError, match=r"generator_loss='maximin'; known are minimax, alternative"):
        FDivergence("kl", "maximin")
    for name in NAMES:
        loss = FDivergence(name, "alternative")
        saved = hyperparameters_of({"loss": loss})["loss"]
        assert Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, SeparableLoss).build() == loss
