"""Densities over the reals: of Gaussian pixels and latents, and the logit-Laplace of DALL-E's pictures.

Nats of each number, computed in float32, or in float64 where the arguments are; never in autocast's halves.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.precision import full

LOGIT_LAPLACE_EPS = 0.1
"""How far from 0 and 1 the pixels of DALL-E's discrete VAE stay."""


def gaussian_log_prob(values: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """Log N(x; m, s^2) = -((x - m)^2 / s^2 + log s^2 + log 2 pi) / 2.

    Args:
        values: x.
        means: m, of a shape that broadcasts.
        log_variances: log s^2, likewise.

    Returns:
        Nats of each value.
    """
    log_variances = (
        full(log_variances) if isinstance(log_variances, Tensor) else means.new_tensor(log_variances).float()
    )
    squares = (full(values) - full(means)).square() * (-log_variances).exp()
    return -(squares + log_variances + math.log(2 * math.pi)) / 2


def logit_laplace_map(images: Tensor, eps: float = LOGIT_LAPLACE_EPS) -> Tensor:
    """Pictures from [-1, 1] to [eps, 1 - eps], where their logits are finite (2102.12092, appendix A.3).

    Args:
        images: Of any shape.
        eps: Above 0 and below 1/2.

    Raises:
        ValueError: If eps is out of range.
    """
    return (full(images) + 1) * ((1 - 2 * _checked(eps)) / 2) + eps


def logit_laplace_unmap(images: Tensor, eps: float = LOGIT_LAPLACE_EPS) -> Tensor:
    """The inverse of `logit_laplace_map`; what of [0, 1] has no picture goes to -1 or 1."""
    return ((full(images) - eps) * (2 / (1 - 2 * _checked(eps))) - 1).clamp(-1, 1)


def logit_laplace_log_prob(
    images: Tensor, locations: Tensor, log_scales: Tensor, eps: float = LOGIT_LAPLACE_EPS
) -> Tensor:
    """The logit-Laplace density of DALL-E (2102.12092, appendix A.3), under which the logit of y = map(x) is Laplace.

    f(y) = exp(-|logit y - mu| / b) / (2 b y (1 - y)), for y in (0, 1), as sigmoid decoders are.

    Deviation: nats are of the picture in [-1, 1], as all here, so log dy/dx = log((1 - 2 eps) / 2) of each number is
    added to the paper's, which are of y.

    Args:
        images: x in `[-1, 1]`.
        locations: mu, of the same shape.
        log_scales: log b, likewise; not bounded, as in the paper.
        eps: Of the map.

    Returns:
        Nats of each number.

    Raises:
        ValueError: If eps is out of range.
    """
    y, log_scales = logit_laplace_map(images, eps), full(log_scales)
    logits = y.log() - (-y).log1p()
    distances = (logits - full(locations)).abs() * (-log_scales).exp()
    # log y (1 - y), of the logit, which is as exact.
    log_slope = F.logsigmoid(logits) + F.logsigmoid(-logits)
    return math.log((1 - 2 * eps) / 4) - log_scales - log_slope - distances


def _checked(eps: float) -> float:
    if not 0 < eps < 0.5:
        raise ValueError(f"eps of the logit-Laplace must be above 0 and below 1/2, got {eps}.")
    return eps
