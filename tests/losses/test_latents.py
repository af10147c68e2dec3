import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Normal, kl_divergence

from lightning_gen.losses import (
    categorical_kl,
    categorical_token_kl,
    free_bits,
    gaussian_kl,
    gaussian_latent_kl,
    gaussian_log_prob,
    importance_weighted_bound,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Gaussians


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 2)])
def test_the_kl_of_gaussians_is_that_of_torch_distributions(shape):
    means, log_variances = randn(*shape), randn(*shape, seed=1)
    expected = kl_divergence(Normal(means, (log_variances / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_latent_kl(means, log_variances), expected)
    torch.testing.assert_close(gaussian_kl(means, log_variances), expected.flatten(1).sum(1))


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.5, -2.0), (-0.3, 1.0)])
def test_the_kl_of_a_gaussian_is_the_integral(mean, log_variance):
    """The trapezoid rule converges faster than any power for functions that vanish at both ends."""
    m, v = torch.tensor([mean]).double(), torch.tensor([log_variance]).double()
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64) * math.exp(log_variance / 2) + mean
    log_q, log_p = gaussian_log_prob(z, m, v), gaussian_log_prob(z, torch.zeros(1).double(), torch.zeros(1).double())
    assert torch.trapezoid(log_q.exp(), z).item() == pytest.approx(1, abs=1e-12)
    integral = torch.trapezoid(log_q.exp() * (log_q - log_p), z).item()
    assert gaussian_kl(m[None], v[None]).item() == pytest.approx(integral, abs=1e-12)


def test_a_posterior_near_the_prior_keeps_its_digits():
    """exp(v) - 1 - v is v^2 / 2 there, which the plain formula in float32 has as 0 or as 6e-8."""
    v = torch.tensor([[1e-4]])
    assert gaussian_kl(torch.zeros(1, 1), v).item() == pytest.approx(1e-8 / 4, rel=1e-3)
    assert 0.5 * (v.exp() - 1 - v).item() != pytest.approx(1e-8 / 4, rel=0.5)


# Categoricals


@pytest.mark.parametrize("codes", [2, 7, 512])
def test_the_kl_of_tokens_is_that_of_torch_distributions(codes):
    logits = 3 * randn(2, codes, 3, 4)
    q, uniform = Categorical(logits=logits.movedim(1, -1)), Categorical(logits=torch.zeros(codes).double())
    torch.testing.assert_close(categorical_token_kl(logits), kl_divergence(q, uniform))
    torch.testing.assert_close(categorical_kl(logits), kl_divergence(q, uniform).flatten(1).sum(1))


def test_the_kl_of_tokens_at_both_ends():
    for dtype in (torch.float32, torch.bfloat16):
        assert categorical_token_kl(torch.full((1, 8192), 3.0, dtype=dtype)).item() == pytest.approx(0, abs=1e-6)
        certain = torch.zeros(1, 8192, dtype=dtype)
        certain[0, 5] = 1e30
        assert categorical_token_kl(certain).item() == pytest.approx(math.log(8192), rel=1e-6)
    assert categorical_token_kl(torch.zeros(2, 3)).shape == (2,)


def test_the_published_weight_of_the_kl():
    """Loss and KL over 3 x 256 x 256 with weight 6.6 are 6.6 / 192 on the mean KL of 32 x 32 tokens (2102.12092).

    For another factor f between picture and map it is 6.6 / (3 f^2).
    """
    for factor in (4, 8, 16):
        side = 64 // factor
        logits = randn(2, 16, side, side)
        weighted = 6.6 * categorical_kl(logits).mean() / (3 * 64 * 64)
        torch.testing.assert_close(weighted, 6.6 / (3 * factor**2) * categorical_token_kl(logits).mean())
    assert 6.6 / (3 * 8**2) == 6.6 / 192 == pytest.approx(0.034, abs=5e-4)


# The scale


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_losses_and_gradients_of_a_picture_do_not_know_the_size_of_the_batch(batch):
    """One picture repeated: every loss, and every gradient of the mean over the batch, is that of the picture alone."""

    def losses(logits, means, log_variances):
        number = len(means)
        log_weights = means.flatten(1)
        yield categorical_kl(logits).mean()
        yield gaussian_kl(means, log_variances).mean()
        yield free_bits(gaussian_latent_kl(means, log_variances), 0.3)
        yield importance_weighted_bound(log_weights).mean()
        assert categorical_kl(logits).shape == gaussian_kl(means, log_variances).shape == (number,)

    one = randn(1, 5, 4, 4), randn(1, 6, 2), randn(1, 6, 2, seed=1)
    repeated = [x.expand(batch, *x.shape[1:]).contiguous().requires_grad_() for x in one]
    one = [x.requires_grad_() for x in one]
    for alone, together in zip(losses(*one), losses(*repeated), strict=True):
        torch.testing.assert_close(together, alone)
        for x, xs in zip(one, repeated, strict=True):
            (here,) = torch.autograd.grad(alone, x, retain_graph=True, allow_unused=True)
            (there,) = torch.autograd.grad(together, xs, retain_graph=True, allow_unused=True)
            assert (here is None) == (there is None)
            if here is not None:
                torch.testing.assert_close(there.sum(0, keepdim=True), here)


def test_a_divergence_divided_by_the_length_of_the_wrong_tensor_would_be_seen():
    """A well-known port sums over the batch too: its KL is 8 times as large for 8 pictures as for one."""

    def port(logits):
        log_q = F.log_softmax(logits.movedim(1, -1).flatten(1, -2), dim=-1)
        log_uniform = torch.log(torch.tensor([1 / logits.shape[1]]).double())
        return F.kl_div(log_uniform, log_q, None, None, "batchmean", log_target=True)

    logits = randn(1, 5, 4, 4)
    torch.testing.assert_close(port(logits), categorical_kl(logits).mean())
    eight = logits.expand(8, -1, -1, -1)
    torch.testing.assert_close(port(eight), 8 * categorical_kl(eight).mean())


def test_beta_means_the_same_for_every_number_of_latents():
    """A copy of the latents doubles the KL: it is a sum, not a mean."""
    means, log_variances = randn(3, 4), randn(3, 4, seed=1)
    twice = gaussian_kl(means.repeat(1, 2), log_variances.repeat(1, 2))
    torch.testing.assert_close(twice, 2 * gaussian_kl(means, log_variances))


# Free bits


def test_free_bits_by_hand():
    kl = torch.tensor([[0.1, 0.5, 2.0], [0.3, 0.5, 4.0]])  # means over the batch: 0.2, 0.5, 3
    assert free_bits(kl, 0.4).item() == pytest.approx(0.4 + 0.5 + 3)
    assert free_bits(kl, 10).item() == pytest.approx(30)
    assert free_bits(kl, 0).item() == pytest.approx(3.7)
    # Groups of maps: sums over the trailing axes; and one group of all.
    assert free_bits(kl[:, :, None, None].expand(-1, -1, 2, 2) / 4, 0.4).item() == pytest.approx(3.9)
    assert free_bits(kl.sum(1)[:, None], 4).item() == pytest.approx(4)


def test_a_group_within_its_allowance_has_no_gradient():
    kl = torch.tensor([[0.1, 0.5, 2.0], [0.3, 0.5, 4.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(free_bits(kl, 0.4), kl)
    torch.testing.assert_close(gradient, torch.tensor([[0, 0.5, 0.5], [0, 0.5, 0.5]]))
    (gradient,) = torch.autograd.grad(free_bits(kl, 0), kl)
    torch.testing.assert_close(gradient, torch.full((2, 3), 0.5))


# Importance weights


class LinearGaussian:
    """z ~ N(0, I), x ~ N(W z, s^2 I): log p(x) and the posterior are known."""

    def __init__(self, pixels=4, latents=2, std=0.5):
        self.weight, self.variance = randn(pixels, latents), std**2
        covariance = self.weight @ self.weight.T + self.variance * torch.eye(pixels).double()
        self.x = torch.distributions.MultivariateNormal(torch.zeros(pixels).double(), covariance)
        precision = torch.eye(latents).double() + self.weight.T @ self.weight / self.variance
        self.posterior_covariance = precision.inverse()

    def log_weights(self, images, samples, widen=1.0, seed=1):
        """Of samples from the posterior's mean and diagonal, a proposal that is near and not right: `[N, K]`."""
        means = images @ self.weight @ self.posterior_covariance.T / self.variance
        log_variances = (widen * self.posterior_covariance.diagonal()).log().expand_as(means)
        noise = randn(len(images), samples, means.shape[1], seed=seed)
        z = means[:, None] + (log_variances / 2).exp()[:, None] * noise
        nothing = torch.zeros(()).double()
        log_prior = gaussian_log_prob(z, nothing, nothing).sum(2)
        log_likelihood = gaussian_log_prob(images[:, None], z @ self.weight.T, nothing + math.log(self.variance)).sum(2)
        return log_prior + log_likelihood - gaussian_log_prob(z, means[:, None], log_variances[:, None]).sum(2)


def test_the_bound_rises_with_k_to_the_exact_log_likelihood():
    model = LinearGaussian()
    torch.manual_seed(0)
    images = model.x.sample((20,))
    log_weights = model.log_weights(images, 2**14, widen=1.5)
    bounds = {k: importance_weighted_bound(log_weights.view(-1, k)).mean().item() for k in (1, 4, 16, 64, 2**14)}
    assert sorted(bounds.values()) == list(bounds.values())
    exact = model.x.log_prob(images).mean().item()
    # Weights have finite variance for a proposal wider than the posterior; 20 x 16,384 draws give three digits.
    assert bounds[2**14] == pytest.approx(exact, abs=2e-3)
    assert bounds[1] < exact - 0.05


def test_one_latent_with_its_true_posterior_is_exact_at_once():
    model = LinearGaussian(latents=1)
    images = model.x.sample((5,))
    weights = model.log_weights(images, 3)
    torch.testing.assert_close(weights, model.x.log_prob(images)[:, None].expand(-1, 3))
    torch.testing.assert_close(importance_weighted_bound(weights), model.x.log_prob(images))


def test_one_sample_is_the_evidence_lower_bound():
    weights = randn(6, 1)
    assert torch.equal(importance_weighted_bound(weights), weights.squeeze(1))


def test_weights_far_below_what_floats_hold_and_their_gradient():
    weights = torch.tensor([[-90_000.0, -90_001.0, -90_003.0]], requires_grad=True)
    bound = importance_weighted_bound(weights)
    shares = torch.tensor([1, math.exp(-1), math.exp(-3)])
    assert bound.item() == pytest.approx(-90_000 + math.log(shares.mean().item()), abs=0.01)  # float32 has 0.008 there
    (gradient,) = torch.autograd.grad(bound.sum(), weights)
    torch.testing.assert_close(gradient[0], shares / shares.sum())
    assert importance_weighted_bound(torch.full((1, 2), -math.inf)).item() == -math.inf


# Precision


def test_halves_are_computed_in_float32():
    means, log_variances = randn(4, 8, dtype=torch.bfloat16), randn(4, 8, seed=1, dtype=torch.bfloat16)
    for function in (
        lambda m, v: gaussian_kl(m, v),
        lambda m, v: categorical_kl(m),
        lambda m, v: free_bits(gaussian_latent_kl(m, v), 0.5),
        lambda m, v: free_bits(m, 0.5),
        lambda m, v: importance_weighted_bound(m),
        lambda m, v: gaussian_log_prob(m, v, v),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = function(means, log_variances)
        assert result.dtype == torch.float32
        exact = function(means.double(), log_variances.double())
        assert exact.dtype == torch.float64
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gaussian_kl(torch.zeros(2, 3), torch.zeros(3)), "must have one shape"),
        (lambda: categorical_kl(torch.zeros(3)), r"Logits must be \[N, K"),
        (lambda: free_bits(torch.zeros(2, 3), -0.1), "0 nats or more for each group, and finite; got -0.1"),
        (lambda: free_bits(torch.zeros(2, 3), math.nan), "got nan"),
        (lambda: free_bits(torch.zeros(2), 0.1), r"\[N, groups"),
        (lambda: importance_weighted_bound(torch.zeros(2)), r"must be \[N, K\]"),
        (lambda: importance_weighted_bound(torch.zeros(2, 0)), "K of at least 1"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
