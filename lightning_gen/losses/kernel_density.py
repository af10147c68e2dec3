"""Kernel density estimates: kernels in any dimension, densities in bounded memory, and the choice of a bandwidth.

p(x) = 1 / (n h^d) sum_i K((x - x_i) / h), where K depends on the distance alone and integrates to 1 over R^d. Kernels
and their names are scikit-learn's. All is computed in float64, and in blocks of points and centres, so that memory
grows neither with n_test n_train d nor with n_test n_train.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Kernel = Literal["gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

_POINTS, _CENTRES = 256, 1024  # of a block, 2 MiB
_FEATURES = 2**23  # of the centres of a block, 64 MiB
_DOUBLINGS = 40  # of the bandwidth, after which the search gives up
_RESOLUTION = 0.01  # relative, of the bandwidth found


# -- kernels --------------------------------------------------------------------------------------------------------


def log_radial_integral(kernel: Kernel, dimensions: int) -> float:
    """Log of the integral of r^(d-1) k(r) over r > 0, where k is the kernel with k(0) = 1 and h = 1."""
    d = dimensions
    if kernel == "gaussian":  # exp(-r^2 / 2)
        return (d / 2 - 1) * math.log(2) + math.lgamma(d / 2)
    if kernel == "tophat":  # 1 where r < 1, and so for the others that follow
        return -math.log(d)
    if kernel == "epanechnikov":  # 1 - r^2
        return math.log(2) - math.log(d) - math.log(d + 2)
    if kernel == "exponential":  # exp(-r), for all r
        return math.lgamma(d)
    if kernel == "linear":  # 1 - r
        return -math.log(d) - math.log(d + 1)
    # cos(pi r / 2), by its power series; the terms of integration by parts would cancel in 20 dimensions.
    terms = ((-1) ** k * (math.pi / 2) ** (2 * k) / math.factorial(2 * k) / (d + 2 * k) for k in range(20))
    return math.log(math.fsum(terms))


def log_normaliser(kernel: Kernel, dimensions: int) -> float:
    """Log of the integral over R^d of the kernel with the value 1 at 0 and h = 1."""
    log_surface = math.log(2) + dimensions / 2 * math.log(math.pi) - math.lgamma(dimensions / 2)  # of the unit ball
    return log_surface + log_radial_integral(kernel, dimensions)


def kernel_std(kernel: Kernel, dimensions: int) -> float:
    """Standard deviation of each coordinate under the kernel with h = 1."""
    ratio = math.exp(log_radial_integral(kernel, dimensions + 2) - log_radial_integral(kernel, dimensions))
    return math.sqrt(ratio / dimensions)


def kernel_noise(kernel: Kernel, num_samples: int, dimensions: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent draws from the kernel with h = 1: float64 `[num_samples, dimensions]`, on the CPU."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    d = dimensions
    normal = torch.randn(num_samples, d, generator=generator, dtype=torch.float64)
    if kernel == "gaussian":
        return normal
    if kernel == "tophat":
        radius = uniform(num_samples) ** (1 / d)
    elif kernel == "exponential":  # r is Gamma(d), the sum of d exponentials
        radius = -torch.log1p(-uniform(num_samples, d)).sum(1)
    elif kernel == "linear":  # r is Beta(d, 2) = Beta(d, 1) Beta(d + 1, 1)
        radius = uniform(num_samples) ** (1 / d) * uniform(num_samples) ** (1 / (d + 1))
    else:

        def epanechnikov() -> Tensor:  # r^2 is Beta(d / 2, 2) = Beta(d / 2, 1) Beta(d / 2 + 1, 1)
            return uniform(num_samples) ** (1 / d) * uniform(num_samples) ** (1 / (d + 2))

        radius = epanechnikov()
        if kernel == "cosine":  # lies below 1 - r^2, by a quarter at most, so three of four proposals and more hold
            proposals, radius = radius, torch.full_like(radius, math.nan)
            while bool(radius.isnan().any()):
                kept = uniform(num_samples) * (1 - proposals.square()) < torch.cos(math.pi / 2 * proposals)
                radius = torch.where(radius.isnan() & kept, proposals, radius)
                proposals = epanechnikov()
    return radius[:, None] * normal / normal.norm(dim=1, keepdim=True)


def _log_kernel(kernel: Kernel, points: Tensor, centres: Tensor, bandwidth: float) -> Tensor:
    """Log k(|x - c| / h) for points `[N, d]` and centres `[M, d]`: float64 `[N, M]`."""
    if kernel in ("exponential", "linear"):
        # They have a kink at 0, where distances from a matrix product have half the digits only.
        u = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").div_(bandwidth)
        return u.neg_() if kernel == "exponential" else u.clamp_(max=1).neg_().log1p_()
    squared = torch.addmm(centres.square().sum(1), points, centres.T, alpha=-2)
    squared.add_(points.square().sum(1, keepdim=True)).clamp_(min=0).div_(bandwidth**2)
    if kernel == "gaussian":
        return squared.mul_(-0.5)
    if kernel == "epanechnikov":
        return squared.clamp_(max=1).neg_().log1p_()
    inside = squared.new_zeros(()) if kernel == "tophat" else squared.sqrt().mul_(math.pi / 2).cos_().log_()
    return torch.where(squared < 1, inside, -math.inf)


# -- densities and probabilities ------------------------------------------------------------------------------------


def log_density(
    points: Tensor, centres: Tensor, bandwidth: float, kernel: Kernel = "gaussian", own: Tensor | None = None
) -> Tensor:
    """Log p of a kernel density estimate, in nats.

    Args:
        points: `[N, d]`.
        centres: `[n, d]`, on the same device.
        bandwidth: h, above 0.
        kernel: K.
        own: For each point the centre to leave out, int64 `[N]`; None leaves none out.

    Returns:
        float64 `[N]`; -inf where no kernel reaches.
    """
    d = points.shape[1]
    scale = log_normaliser(kernel, d) + d * math.log(bandwidth)
    return _log_mean(points, centres, lambda x, c: _log_kernel(kernel, x.double(), c.double(), bandwidth), own) - scale


def log_level_probability(
    points: Tensor, centres: Tensor, bandwidth: float, num_levels: int, own: Tensor | None = None
) -> Tensor:
    """Log P of the levels of pixels under Gaussian kernels, each integrated over the cell around a picture, in nats.

    A Gaussian is a product over pixels, and in one pixel the integral is a difference of two values of erf. The first
    and the last level take the tails, so that the probabilities of all pictures sum to 1. For one bandwidth the
    logarithms are a table of (level of the point, level of the centre), and the table, which is smooth, is a product
    of two thin matrices: so the sum over pixels is a matrix product too.

    Args:
        points: Levels from 0 to num_levels - 1, int64 `[N, d]`.
        centres: Likewise, `[n, d]`, on the same device.
        bandwidth: Standard deviation h, above 0; levels are 2 / (num_levels - 1) apart, as in `[-1, 1]`.
        num_levels: At least 2.
        own: As in `log_density`.

    Returns:
        float64 `[N]`.
    """
    table = _level_table(num_levels, bandwidth)
    left, sizes, right = torch.linalg.svd(table)
    rank = int((sizes > 1e-14 * sizes[0]).sum())
    of_points = (left * sizes)[:, :rank].to(points.device)
    of_centres = right.T[:, :rank].contiguous().to(points.device)
    at_once = max(1, min(_CENTRES, _FEATURES // (rank * points.shape[1])))
    return _log_mean(points, centres, lambda x, c: of_points[x].flatten(1) @ of_centres[c].flatten(1).T, own, at_once)


def _level_table(num_levels: int, bandwidth: float) -> Tensor:
    """Log of the integral over the cell of level a of N(level b, h^2): float64 `[a, b]`."""
    levels = torch.linspace(-1, 1, num_levels, dtype=torch.float64)
    edges = torch.cat([torch.tensor([-math.inf]).double(), (levels[1:] + levels[:-1]) / 2, -torch.tensor([-math.inf])])
    low, high = ((edge[:, None] - levels) / bandwidth for edge in (edges[:-1], edges[1:]))
    flipped = low + high > 0  # in the upper tail both values of Phi would be 1
    low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    low, high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return high + torch.log(-torch.expm1(low - high))


@torch.no_grad()
def _log_mean(
    points: Tensor,
    centres: Tensor,
    log_kernel: Callable[[Tensor, Tensor], Tensor],
    own: Tensor | None,
    at_once: int = _CENTRES,
) -> Tensor:
    """Log of the mean over centres of the kernel, block by block: float64 `[N]`."""
    total = torch.full((len(points),), -math.inf, dtype=torch.float64, device=points.device)
    for row in range(0, len(points), _POINTS):
        rows = slice(row, row + _POINTS)
        for column in range(0, len(centres), at_once):
            columns = slice(column, column + at_once)
            values = log_kernel(points[rows], centres[columns])
            if own is not None:
                places = own[rows] - column
                (here,) = ((places >= 0) & (places < values.shape[1])).nonzero(as_tuple=True)
                values[here, places[here]] = -math.inf
            total[rows] = torch.logaddexp(total[rows], values.logsumexp(1))
    return total - math.log(len(centres) - (own is not None))


# -- bandwidths -----------------------------------------------------------------------------------------------------


def rule_of_thumb(points: Tensor, rule: Literal["scott", "silverman"], kernel: Kernel = "gaussian") -> float:
    """The bandwidth that suits Gaussian data: Scott's sigma n^(-1 / (d + 4)), Silverman's sigma (n (d + 2) / 4)^(...).

    sigma is the root of the mean variance of the coordinates; in one dimension it is what SciPy does. scikit-learn has
    sigma = 1, which suits standardised data only. Other kernels than the Gaussian are given its standard deviation.

    Args:
        points: `[n, d]`.
        rule: Of the two.
        kernel: K.

    Raises:
        ValueError: If there are fewer than two points, or all are equal.
    """
    number, dimensions = points.shape
    if number < 2:
        raise ValueError(f"A bandwidth cannot be chosen from {number} picture; it takes two. Give it as a number.")
    sigma = math.sqrt(torch.var_mean(points.double(), dim=0)[0].mean().item())
    if sigma == 0:
        raise ValueError(f"All {number} pictures are equal, so no bandwidth suits them. Give it as a number.")
    effective = number if rule == "scott" else number * (dimensions + 2) / 4
    return sigma * effective ** (-1 / (dimensions + 4)) / kernel_std(kernel, dimensions)


def best_bandwidth(log_likelihood: Callable[[float], float], start: float) -> float:
    """The bandwidth of the highest likelihood, to one per cent: uphill by factors of two, then by golden section.

    Args:
        log_likelihood: Of held-out pictures, by bandwidth; -inf is ruled out. With one maximum, or the one next to the
            start is found.
        start: Where to begin.

    Raises:
        ValueError: If it rises without end, or is -inf everywhere.
    """
    seen: dict[float, float] = {}

    def value(log_h: float) -> float:
        if log_h not in seen:
            seen[log_h] = log_likelihood(math.exp(log_h))
        return seen[log_h]

    best, step = math.log(start), math.log(2)
    for way in (step, -step):
        for _ in range(_DOUBLINGS):
            if value(best + way) <= value(best) and (way < 0 or value(best) > -math.inf):
                break
            best += way
        else:
            raise ValueError(
                f"The likelihood goes on rising as the bandwidth {'grows' if way > 0 else 'shrinks'} to "
                f"{math.exp(best):.3g}. Where every picture has an exact copy among the others, no bandwidth is best: "
                "take the copies out, or give the bandwidth as a number."
            )
    low, high = best - step, best + step
    golden = (math.sqrt(5) - 1) / 2
    while high - low > _RESOLUTION:
        first, second = high - golden * (high - low), low + golden * (high - low)
        low, high = (first, high) if value(first) < value(second) else (low, second)
    return math.exp(max(seen, key=lambda log_h: seen[log_h]))
