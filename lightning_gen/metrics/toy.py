"""How well points match a truth that is known: modes covered, share of good points, exact Wasserstein-1.

All in the scaled coordinates of `data.toy`. Points are `[N, d]`, or `[N, d, 1, 1]` as models draw them.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from lightning_gen.data.toy import Mixture, PointDistribution

Array = NDArray[np.float64]


class ModeCoverage(NamedTuple):
    """What `mode_coverage` finds.

    Attributes:
        modes: How many modes are covered.
        high_quality: Share of high-quality points, in [0, 1].
        kl_divergence: KL(shares of the points nearest to each mode || weights), in nats. It is log K where all points
            are at one of K equal modes, and about (K - 1) / 2N for N points from the truth.
    """

    modes: int
    high_quality: float
    kl_divergence: float


def mode_coverage(
    points: Tensor,
    means: Tensor,
    std: Tensor | float,
    weights: Tensor | None = None,
    *,
    within: float = 4.0,
    min_points: int = 1,
) -> ModeCoverage:
    """Which modes of a mixture of isotropic Gaussians some points cover.

    A point belongs to the nearest mode, counted in that mode's deviations; it is of high quality if it lies no farther
    than `within` of them away. A mode is covered by `min_points` high-quality points. From the truth itself a share of
    1 - exp(-within^2 / 2) is of high quality in two dimensions: 99.97 % within 4 deviations, 98.9 % within 3, which
    Srivastava et al. 2017 (VEEGAN, arXiv 1705.07761) take.

    Args:
        points: `[N, d]` or `[N, d, 1, 1]`, N at least 1.
        means: Of the modes, `[K, d]`.
        std: Their standard deviations, one number or `[K]`.
        weights: Of the modes, `[K]`, of sum 1; None means 1 / K each.
        within: Deviations up to which a point is of high quality.
        min_points: High-quality points that a mode needs.

    Raises:
        ValueError: If there are no points, or points and modes have not the same number of coordinates.
    """
    points = _flat(points, "points")
    means = means.to(points)
    if means.ndim != 2 or means.shape[1] != points.shape[1]:
        raise ValueError(f"means must be [K, {points.shape[1]}], as the points are, got {list(means.shape)}.")
    std = torch.as_tensor(std).to(points).expand(len(means))
    distances, nearest = (torch.cdist(points, means, compute_mode="donot_use_mm_for_euclid_dist") / std).min(dim=1)
    good = distances <= within
    counts = torch.bincount(nearest[good], minlength=len(means))
    shares = torch.bincount(nearest, minlength=len(means)).to(points) / len(points)
    expected = torch.full_like(shares, 1 / len(means)) if weights is None else weights.to(points)
    return ModeCoverage(
        modes=int((counts >= min_points).sum()),
        high_quality=good.double().mean().item(),
        kl_divergence=(torch.xlogy(shares, shares) - torch.xlogy(shares, expected)).sum().item(),
    )


def wasserstein_1(x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None) -> float:
    """The exact Wasserstein-1 (earth mover's) distance of two sets of points, in Euclidean distance.

    On the line it is the area between the distribution functions. Otherwise as many points on either side, all of
    the same weight, are matched one to one (time N^3 at worst; 1000 points take 0.1 to 1.2 s), and anything else is
    a linear program with N M unknowns (0.4 s for 300 by 300).

    The distance of two finite samples of one distribution is not 0 but falls as N^(-1/2), in more than two dimensions
    as N^(-1/d): compare with it, not with 0. If a coordinate is not finite, neither is the distance: it is NaN.

    Args:
        x: `[N, d]` or `[N, d, 1, 1]`.
        y: `[M, d]` or `[M, d, 1, 1]`.
        x_weights: `[N]`, 0 or more; they are divided by their sum. None gives every point the same weight.
        y_weights: The same for y, `[M]`.

    Raises:
        ValueError: If a set is empty, the numbers of coordinates differ, or weights do not fit.
        ImportError: If SciPy is not installed; on the line it is not needed.
    """
    x, y = _flat(x, "x"), _flat(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same number of coordinates, got {x.shape[1]} and {y.shape[1]}.")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        return float("nan")
    uniform = len(x) == len(y) and x_weights is None and y_weights is None
    p, q = _shares(x_weights, len(x), "x_weights"), _shares(y_weights, len(y), "y_weights")
    if x.shape[1] == 1:  # the integral of |F - G|
        places = torch.cat([x, y]).flatten().numpy()
        order = places.argsort(kind="stable")
        difference = np.concatenate([p, -q])[order].cumsum()
        return float(np.abs(difference[:-1]) @ np.diff(places[order]))
    costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    if not uniform:
        return _linear_program(costs, p, q)
    rows, columns = _scipy("optimize").linear_sum_assignment(costs)
    return float(costs[rows, columns].mean())


def _linear_program(costs: Array, p: Array, q: Array) -> float:
    """The least cost of a plan [N, M], 0 or more, with row sums p and column sums q."""
    sparse, (rows, columns) = _scipy("sparse"), costs.shape
    sums = sparse.vstack([
        sparse.kron(sparse.eye(rows), np.ones((1, columns))),
        sparse.kron(np.ones((1, rows)), sparse.eye(columns)),
    ])  # fmt: skip
    # Both sums are 1, so the last equation follows from the others; rounding must not make it contradict them.
    margins = np.concatenate([p, q])[:-1]
    result = _scipy("optimize").linprog(costs.ravel(), A_eq=sums.tocsr()[:-1], b_eq=margins, method="highs")
    if not result.success:
        raise RuntimeError(f"The linear program of Wasserstein-1 was not solved: {result.message}")
    return float(result.fun)


def _flat(points: Tensor, name: str) -> Tensor:
    if points.ndim < 2 or not points.numel():
        raise ValueError(f"{name} must be [N, d] or [N, d, 1, 1] with N >= 1, got the shape {list(points.shape)}.")
    return points.detach().cpu().flatten(1).double()


def _shares(weights: Tensor | None, number: int, name: str) -> Array:
    if weights is None:
        return np.full(number, 1 / number)
    shares = weights.detach().cpu().double().numpy()
    if shares.shape != (number,) or shares.min() < 0 or shares.sum() <= 0:
        raise ValueError(f"{name} must be {number} numbers, 0 or more and not all 0, got the shape {shares.shape}.")
    return shares / shares.sum()


def _scipy(module: str) -> Any:
    """An optional dependency, looked for where it is needed."""
    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError("Exact Wasserstein-1 needs SciPy: pip install scipy") from error


class ToyMetrics(Metric):
    """All figures of points against a known truth.

    `compute` gives `wasserstein_1`, between the first points and as many from the truth, and for a `Mixture` also
    `modes`, `high_quality` and `mode_kl` (see `mode_coverage`), over all points.

    With 500 points from the truth itself `wasserstein_1` is 0.093 (standard deviation 0.023) on the 5 x 5 grid, 0.074
    (0.020) on the ring of 8, 0.063 (0.013) on the swiss roll and 0.030 (0.011) on the two Gaussians.

    Args:
        distribution: The truth.
        within: Deviations up to which a point is of high quality.
        min_points: High-quality points that a mode needs.
        wasserstein_points: Points on either side of Wasserstein-1, at most; 0 leaves it out.
        seed: Of the points from the truth, which are always the same.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If `wasserstein_points` is below 0, or when there are no points to compute from.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    points: list[Tensor]

    def __init__(
        self,
        distribution: PointDistribution,
        *,
        within: float = 4.0,
        min_points: int = 1,
        wasserstein_points: int = 500,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if wasserstein_points < 0:
            raise ValueError(f"wasserstein_points must be 0 or more, got {wasserstein_points}.")
        self.distribution = distribution
        self.within = within
        self.min_points = min_points
        self.wasserstein_points = wasserstein_points
        self.seed = seed
        self.add_state("points", default=[], dist_reduce_fx="cat")

    def update(self, points: Tensor) -> None:
        """Add points `[N, d]` or `[N, d, 1, 1]`."""
        self.points.append(points.detach().flatten(1).float())

    def compute(self) -> dict[str, Tensor]:
        """The figures by name, each a float32 scalar."""
        # After a reduction over the ranks the state is one tensor.
        points = self.points if isinstance(self.points, Tensor) else torch.cat(self.points or [torch.empty(0, 1)])
        figures: dict[str, float] = {}
        if isinstance(self.distribution, Mixture):
            truth = self.distribution
            found = mode_coverage(
                points, truth.means, truth.std, truth.weights, within=self.within, min_points=self.min_points
            )
            figures |= {"modes": found.modes, "high_quality": found.high_quality, "mode_kl": found.kl_divergence}
        if self.wasserstein_points:
            some = points[: self.wasserstein_points]
            true = self.distribution.sample(len(some), torch.Generator().manual_seed(self.seed))
            figures["wasserstein_1"] = wasserstein_1(some, true)
        return {name: torch.tensor(float(figure), device=self.device) for name, figure in figures.items()}
