"""What latent variables cost and what is bounded by them: divergences from priors, free bits, importance weights.

All are nats: sums over the latents of a picture and never over the pictures of a batch, whose mean is the caller's, so
that beta means the same for every size of pictures, latents and batches. They are computed in float32, or in float64
where the arguments are; never in autocast's halves.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.precision import full


def gaussian_latent_kl(means: Tensor, log_variances: Tensor) -> Tensor:
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2 of each latent (1312.6114, appendix B).

    Args:
        means: m, `[N, ...]`.
        log_variances: log s^2, of the same shape.

    Returns:
        Nats of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if means.shape != log_variances.shape:
        raise ValueError(
            f"Means and log-variances must have one shape, got {list(means.shape)} and {list(log_variances.shape)}."
        )
    means, log_variances = full(means), full(log_variances)
    return (means.square() + (log_variances.expm1() - log_variances)) / 2


def gaussian_kl(means: Tensor, log_variances: Tensor) -> Tensor:
    """The sum of `gaussian_latent_kl` over each picture: nats `[N]`. Same arguments and errors."""
    return _by_picture(gaussian_latent_kl(means, log_variances))


def categorical_token_kl(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) = log K - entropy of each token, as in the discrete VAE of DALL-E (2102.12092).

    It is that of the encoder's categorical posterior, whatever the temperature at which codes are relaxed.

    Args:
        logits: Finite, `[N, K, *space]`: the codes' axis is the second, as a convolution gives them.

    Returns:
        Nats `[N, *space]`, from 0 to log K.

    Raises:
        ValueError: If there are less than two axes.
    """
    if logits.ndim < 2:
        raise ValueError(f"Logits must be [N, K, ...], got {list(logits.shape)}.")
    log_q = F.log_softmax(full(logits), dim=1)
    # Not log K - entropy, which loses its digits near uniform.
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(1)


def categorical_kl(logits: Tensor) -> Tensor:
    """The sum of `categorical_token_kl` over each picture: nats `[N]`. Same arguments and errors."""
    return _by_picture(categorical_token_kl(logits))


def free_bits(kl: Tensor, nats: float) -> Tensor:
    """KL that a group of latents may spend for nothing (1606.04934): the sum over groups of max(nats, KL).

    A group pays for what it spends above its allowance, and below it has no gradient, so that latents are not given up
    early. As in the paper the KL of a group is its mean over the batch (of this process, where there are several).

    Args:
        kl: Nats of single latents, as of `gaussian_latent_kl`: `[N, groups, ...]`, summed over trailing axes. A vector
            of latents is as many groups; one group of all is `gaussian_kl(...)[:, None]`.
        nats: Allowance of each group; 0 gives the mean of the KL.

    Returns:
        Nats of a picture, the mean over the batch: a scalar.

    Raises:
        ValueError: If the allowance is negative or not finite, or there is no axis of groups.
    """
    if not 0 <= nats < math.inf:
        raise ValueError(f"Free bits must be 0 nats or more for each group, and finite; got {nats}.")
    if kl.ndim < 2:
        raise ValueError(f"Free bits need the KL of single latents, [N, groups, ...], got {list(kl.shape)}.")
    groups = full(kl).flatten(2).sum(2) if kl.ndim > 2 else full(kl)
    return groups.mean(0).clamp(min=nats).sum() if nats else groups.sum(1).mean()


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """The importance-weighted bound of log p(x) (1509.00519): log of the mean over k of p(x, z_k) / q(z_k | x).

    Its expectation rises with K, from the evidence lower bound at K = 1 to log p(x) itself. The gradient is the mean of
    the samples' own, each with the share that its weight has in the sum.

    Args:
        log_weights: log p(x, z_k) - log q(z_k | x), nats `[N, K]`.

    Returns:
        Nats `[N]`.

    Raises:
        ValueError: If the shape is another, or K is 0.
    """
    if log_weights.ndim != 2 or log_weights.shape[1] == 0:
        raise ValueError(f"Log-weights must be [N, K] with K of at least 1, got {list(log_weights.shape)}.")
    log_weights = full(log_weights)
    # Taken out first, so that shares are exact: logsumexp's are off by the rounding of a sum of thousands of nats.
    largest = log_weights.detach().amax(1, keepdim=True).clamp(min=torch.finfo(log_weights.dtype).min)
    return largest.squeeze(1) + (log_weights - largest).logsumexp(1) - math.log(log_weights.shape[1])


def _by_picture(nats: Tensor) -> Tensor:
    """Sums `[N]` of `[N, ...]`."""
    return nats.unsqueeze(-1).flatten(1).sum(1)
