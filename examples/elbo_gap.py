"""How far the evidence lower bound and the importance-weighted one (Burda et al. 2015, 1509.00519) are from the truth.

Where latents are Gaussian and the decoder is linear, log p(x) and the posterior have closed forms. The evidence lower
bound is short of log p(x) by KL(q || posterior) to the digit. With K samples the gap falls, never rises, and goes as
chi-squared(posterior || q) / 2K, if that is finite. An encoder less than 0.71 times as wide as the posterior makes it
infinite, and more samples help little. With the posterior itself there is no gap at any K, and nothing to gain.

    python examples/elbo_gap.py
"""

import math
from itertools import pairwise

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from lightning_gen.losses.latents import importance_weighted_bound

LATENTS, PIXELS, NOISE = 2, 5, 0.5  # z ~ N(0, 1), x ~ N(W z, NOISE^2)
W = torch.randn(PIXELS, LATENTS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
SAMPLES = [2**power for power in range(11)]
# How far means are off, in deviations, and how wide the encoder is, both beside the best of independent latents.
ENCODERS = {"independent": (0.0, 1.0), "means off": (0.4, 1.0), "too wide": (0.0, 1.5), "too narrow": (0.0, 0.4)}


def posterior(images: Tensor) -> MultivariateNormal:
    """p(z | x) of images `[N, PIXELS]`: its covariance is the same for all."""
    precision = torch.eye(LATENTS, dtype=torch.float64) + W.T @ W / NOISE**2
    means = images @ W @ torch.linalg.inv(precision) / NOISE**2
    return MultivariateNormal(means, precision_matrix=precision.expand(len(images), -1, -1))


def encoder(truth: MultivariateNormal, off: float, width: float) -> MultivariateNormal:
    """q(z | x) of independent latents, whose best variances are one over those in the posterior's precision."""
    best = truth.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    return MultivariateNormal(truth.mean + off * best, scale_tril=torch.diag_embed(width * best))


def joint(images: Tensor, latents: Tensor) -> Tensor:
    """Log p(x, z) of images `[N, PIXELS]` and latents `[K, N, LATENTS]`: `[K, N]`."""
    return Normal(0.0, 1.0).log_prob(latents).sum(-1) + Normal(latents @ W.T, NOISE).log_prob(images).sum(-1)


def evidence() -> MultivariateNormal:
    """p(x)."""
    covariance = W @ W.T + NOISE**2 * torch.eye(PIXELS, dtype=torch.float64)
    return MultivariateNormal(torch.zeros(PIXELS, dtype=torch.float64), covariance)


def gap(images: Tensor, q: MultivariateNormal, samples: int) -> tuple[float, float]:
    """Log p(x) less the bound with so many samples, in nats, a mean over images; and its standard error.

    The mean weight p(z | x) / q(z | x) is known to be 1; by how much that of the samples is off, the gap is corrected.
    """
    latents = q.sample((samples,))
    truth = evidence().log_prob(images)
    weights = (joint(images, latents) - q.log_prob(latents)).T
    gaps = truth - importance_weighted_bound(weights)
    excess = (weights - truth[:, None]).exp().mean(1) - 1
    both = torch.stack([gaps, excess]).cov()
    gaps = gaps - both[0, 1] / both[1, 1].clamp(min=1e-12) * excess
    return gaps.mean().item(), gaps.std().item() / math.sqrt(len(gaps))


def chi_squared(p: MultivariateNormal, q: MultivariateNormal) -> float:
    """E_q (p / q)^2 - 1, a mean over images; infinite where q is too narrow."""
    precision = 2 * p.precision_matrix - q.precision_matrix
    if torch.linalg.eigvalsh(precision).min() <= 0:
        return math.inf
    off = p.mean - q.mean
    slope = (q.precision_matrix @ off[..., None])[..., 0]
    determinants = 2 * p.precision_matrix.logdet() - q.precision_matrix.logdet() - precision.logdet()
    exponent = determinants + (off * slope).sum(-1) + (slope * torch.linalg.solve(precision, slope)).sum(-1)
    return ((exponent / 2).exp().mean() - 1).item()


def main() -> None:
    """Measure, draw, and check the claims."""
    folder, rows = output_folder("elbo_gap", __doc__), []
    torch.manual_seed(0)
    images = evidence().sample((4000,))
    truth, exact = evidence().log_prob(images).mean().item(), posterior(images)
    x = [math.log2(samples) for samples in SAMPLES]
    bounds = Chart("Bounds", "log2 K", "nats", (-0.3, 10), (truth - 1.2, truth + 0.1), legend="lower right")
    chart = Chart("Their gap to log p(x)", "log2 K", "nats", (-0.3, 10), (1e-5, 4), log_y=True, legend="lower left")
    bounds.line([-0.3, 10], [truth, truth], "log p(x); by the posterior at any K", "black", width=1)
    for (name, wrong), color in zip(ENCODERS.items(), COLORS, strict=False):
        q = encoder(exact, *wrong)
        gaps, errors = zip(*(gap(images, q, samples) for samples in SAMPLES), strict=True)
        divergence, spread = kl_divergence(q, exact).mean().item(), chi_squared(exact, q)
        theory = [spread / 2 / samples for samples in SAMPLES]
        print(f"{name}: KL {divergence:.4f}, gap with 1 sample {gaps[0]:.4f} +- {errors[0]:.4f}; chi-squared / 2K "
              f"{theory[-1]:.2e}, gap with {SAMPLES[-1]} samples {gaps[-1]:.2e} +- {errors[-1]:.0e}")  # fmt: skip
        rows += [(name, *row, divergence) for row in zip(SAMPLES, gaps, errors, theory, strict=True)]
        bounds.line(x, [truth - each for each in gaps], name, color)
        chart.line(x, gaps, name, color)
        chart.dots([0.0], [divergence], "", color, radius=6)
        chart.line(x[3:], theory[3:], "", "black", width=1)

        assert abs(gaps[0] - divergence) < 4 * errors[0] < 0.2 * divergence, f"{name}: the first gap should be the KL"
        assert all(after < before for before, after in pairwise(gaps)), f"{name}: the gap should fall with K"
        if math.isfinite(spread):
            assert abs(gaps[-1] - theory[-1]) < 0.15 * theory[-1], f"{name}: the gap should fall as theory says"
        else:
            assert gaps[-1] > gaps[0] / 10, f"{name}: a thousand samples should help little"
    assert abs(gap(images, exact, 1)[0]) < 1e-12, "the posterior itself should leave no gap"
    chart.entries += [("chi-squared / 2K; dots are KL(q || posterior)", "black")]
    save(folder / "elbo_gap.png", [bounds, chart])
    header = ["encoder", "K", "gap, nats", "standard error", "chi-squared / 2K", "KL(q || posterior)"]
    write_table(folder / "elbo_gap.csv", header, rows)


if __name__ == "__main__":
    main()
