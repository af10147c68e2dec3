"""The Fréchet distance of two Gaussians, in float64, and the moments of features that it is computed from.

With means m and covariances S it is |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) (Dowson and Landau 1982). Between
Gaussians fitted to features of pictures it is the FID (Heusel et al. 2017, arXiv 1706.08500).

If S1 = F1 F1^T and S2 = F2 F2^T, the trace of the root is the sum of the singular values of F1^T F2, and these are the
roots of the eigenvalues of the symmetric matrix F1^T S2 F1. So nothing here can become complex or NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.metrics.base import checked_rows, with_float64

EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The Gaussian that has the mean and the covariance of some features.

    Args:
        count: Samples that they are of, at least 2.
        mean: `[D]`.
        covariance: `[D, D]`, of divisor count - 1. What rounding made of eigenvalues that should be 0 may be negative;
            it is taken as 0.

    Both tensors are kept in float64 on the CPU, where a figure does not depend on the accelerator at hand.

    Raises:
        ValueError: If there are fewer than 2 samples, the shapes do not fit each other, a number is not finite, a
            variance is negative, or the covariance is not symmetric.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, got {self.count}.")
        mean, covariance = (moment.detach().cpu().double() for moment in (self.mean, self.covariance))
        if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                "The mean must be [D] and the covariance [D, D], with D >= 1, got the shapes "
                f"{list(mean.shape)} and {list(covariance.shape)}."
            )
        scale, variances = _largest(covariance), covariance.diagonal()
        if not math.isfinite(_largest(mean) + scale):
            raise ValueError("The mean or the covariance has numbers that are not finite.")
        if float(variances.min()) < -1e-9 * scale:
            worst = int(variances.argmin())
            raise ValueError(f"Feature {worst} has the variance {float(variances[worst]):.3g}; none may be negative.")
        asymmetry = _largest(covariance - covariance.T)
        if asymmetry > 1e-6 * scale:
            raise ValueError(
                f"A covariance is symmetric, but this one differs from its transpose by up to {asymmetry:.3g}, where "
                f"its largest entry is {scale:.3g}."
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def fit(cls, features: Tensor) -> Gaussian:
        """Of features `[N, D]`, N at least 2; see `Moments`."""
        features = checked_rows(features)
        moments = Moments(features.shape[1], shift=features.mean(0, dtype=torch.float64))
        moments._add(features)
        return moments.gaussian()

    @cached_property
    def factor(self) -> Tensor:
        """`[D, R]`, of which the covariance is the product with its transpose; computed at the first use.

        It is the Cholesky factor, lower triangular, R = D. Where the covariance has no full rank, it is made of the
        R < D eigenvectors whose eigenvalues are above the rounding error, D times the machine precision times the
        largest.
        """
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        negligible = EPSILON * len(self.mean)
        # Rounding can make a pivot positive that should be 0, but not by more than this share of its variance.
        if not failed and bool((factor.diagonal() ** 2 > negligible * self.covariance.diagonal()).all()):
            return factor
        eigenvalues, eigenvectors = torch.linalg.eigh(self.covariance)
        kept = eigenvalues > max(negligible * float(eigenvalues[-1]), 0.0)
        kept[0] = False  # it is negligible, or the pivots had passed; rounding must not say otherwise
        return eigenvectors[:, kept] * eigenvalues[kept].sqrt()


class Moments:
    """Number, sum and sum of products of features, of any number of batches, on any number of ranks.

    The sums are of features - shift, in float64. If the shift is far from the mean, say a thousand deviations, digits
    cancel: twice as many as that number has. The moments of ranks that share the shift are merged by adding their
    packs.

    The sums are on the device of the features last given, or on the CPU where that device has no float64 (MPS).

    Args:
        num_features: D.
        shift: `[D]`, near the mean: that of the real features, or of a first batch. None means 0.

    Attributes:
        num_features: D.
        shift: What is taken from the features, `[D]`.
        count: Features `[D]` seen so far.
        sum: Of the features less the shift, `[D]`.
        products: Of all pairs of them, summed, `[D, D]`, of which only the upper triangle is read.

    Raises:
        ValueError: If D is below 1, or the shift has another shape or is not finite.
    """

    def __init__(self, num_features: int, shift: Tensor | None = None) -> None:
        if num_features < 1:
            raise ValueError(f"There must be at least 1 feature, got num_features = {num_features}.")
        if shift is not None and (shift.shape != (num_features,) or not bool(shift.isfinite().all())):
            raise ValueError(f"The shift must be {num_features} finite numbers, got the shape {list(shift.shape)}.")
        self.num_features, self.count = num_features, 0
        # Tensors born in inference mode could not be added to outside of it.
        with torch.inference_mode(False):
            zeros = torch.zeros(num_features, dtype=torch.float64)
            self.shift = zeros if shift is None else with_float64(shift).to(torch.float64, copy=True)
            self.sum = torch.zeros_like(self.shift)
            self.products = self.shift.new_zeros(num_features, num_features)

    def update(self, features: Tensor) -> None:
        """Add features `[N, D]` of any floating type, N at least 0.

        Raises:
            ValueError: If the shape does not fit or a number is not finite; then nothing has been added.
        """
        self._add(checked_rows(features, num_features=self.num_features))

    def _add(self, features: Tensor) -> None:
        if features.device != self.sum.device:
            self.shift, self.sum, self.products = (
                tensor.to(features.device) for tensor in (self.shift, self.sum, self.products)
            )
        for part in features.split(4096):  # so many at a time are held twice
            part = part.double() - self.shift
            self.sum += part.sum(0)
            self.products.addmm_(part.T, part)
        self.count += len(features)

    def pack(self) -> Tensor:
        """All of them as float64 `[1 + D + D (D + 1) / 2]`: count, sum, the products' upper triangle row by row.

        With 2048 features that is 16.8 MB. The count is exact up to 2^53.
        """
        return torch.cat([self.sum.new_tensor([self.count]), self.sum, self.products[_upper(self.products)]])

    @classmethod
    def unpack(cls, pack: Tensor, shift: Tensor | None = None) -> Moments:
        """What was packed, or the sum of packs: `[1 + D + D (D + 1) / 2]`, of moments that had this shift, `[D]`.

        Raises:
            ValueError: If no moments have a pack of this length, or the shift does not fit.
        """
        num_features = (math.isqrt(8 * pack.numel() + 1) - 3) // 2
        if pack.ndim != 1 or num_features < 1 or (num_features + 1) * (num_features + 2) != 2 * pack.numel():
            raise ValueError(f"A pack has 1 + D + D (D + 1) / 2 numbers, got the shape {list(pack.shape)}.")
        pack = with_float64(pack).double()
        products = pack.new_zeros(num_features, num_features)
        products.masked_scatter_(_upper(products), pack[num_features + 1 :])
        return cls.of(round(float(pack[0])), pack[1 : num_features + 1].clone(), products, shift)

    @classmethod
    def of(cls, count: int, sums: Tensor, products: Tensor, shift: Tensor | None = None) -> Moments:
        """From their attributes, on one device; the tensors are taken over, and change."""
        moments = cls(len(sums), shift)
        moments.count, moments.sum, moments.products = count, sums, products
        moments.shift = moments.shift.to(sums.device)
        return moments

    def gaussian(self) -> Gaussian:
        """The Gaussian of these moments.

        A feature whose deviation is below count^(1/2) * 7e-9 of its mean's distance from the shift varies by no more
        than the sums' rounding errors. It is taken as constant, so that the pictures of a collapsed generator have a
        covariance of 0.

        Raises:
            ValueError: If fewer than 2 features `[D]` have been seen, or the sums are beyond what float64 holds.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, got {self.count}.")
        mean = self.sum / self.count
        covariance = torch.addr(self.products, mean, self.sum, alpha=-1).div_(self.count - 1).triu_()
        covariance += covariance.triu(1).T
        # N equal squares, summed one after the other, are wrong by at most N / 4 times the machine precision.
        constant = covariance.diagonal() <= EPSILON / 4 * self.products.diagonal()
        covariance[constant] = 0
        covariance[:, constant] = 0
        return Gaussian(self.count, self.shift + mean, covariance)


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """The (squared) Fréchet distance of two Gaussians: 0 or more, in squared units of the features.

    It is exact to about 1e-12 of the traces. A Gaussian keeps its factor, so give the side that stays the same, the
    real one, as one object: it is factored once, which saves an eighth of the time or, without full rank, half of it.

    Raises:
        ValueError: If the Gaussians have not the same number of features.
    """
    if len(p.mean) != len(q.mean):
        raise ValueError(
            f"The Gaussians have {len(p.mean)} and {len(q.mean)} features; they need the same extractor and layer."
        )
    # The root of an eigenvalue that should be 0 is as large as the root of the machine precision. Singular values need
    # no root, but twice the time.
    if q.factor.shape[1] < len(q.mean):
        trace_root = torch.linalg.svdvals(p.factor.T @ q.factor).sum()
    else:
        trace_root = torch.linalg.eigvalsh(_congruent(q.covariance, p.factor)).clamp(min=0).sqrt().sum()
    return _distance(p.mean - q.mean, p.covariance.trace() + q.covariance.trace(), trace_root)


def _congruent(covariance: Tensor, factor: Tensor) -> Tensor:
    """The lower triangle of factor^T covariance factor, `[R, R]`; what stands above it is to be ignored."""
    if factor.shape[1] < factor.shape[0]:
        return factor.T @ covariance @ factor
    # A third of the work, for the zeros above the Cholesky factor's diagonal and the half that is not asked for.
    result = torch.zeros_like(covariance)
    for start in range(0, len(factor), 256):
        rest, block = slice(start, None), slice(start, start + 256)
        result[rest, block] = factor[rest, rest].T @ (covariance[rest, rest] @ factor[rest, block])
    return result


def frechet_distance_between(x: Tensor, y: Tensor) -> float:
    """`frechet_distance` of the Gaussians of features.

    A side of no more samples than features needs no covariance: its root is the features themselves, less their mean.
    Then the trace of the root is the sum of the singular values of the cross-Gram matrix of samples, `[N, M]`, or of
    `[N, D]` where only one side is so small; that is exact and fast.

    Args:
        x: `[N, D]`, N at least 2.
        y: `[M, D]`, M at least 2.

    Raises:
        ValueError: If there are fewer than 2 samples on a side, the numbers of features differ, or some number is not
            finite.
    """
    checked_rows(x)
    checked_rows(y, num_features=x.shape[1])
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A covariance needs at least 2 samples, got {len(x)} and {len(y)}.")
    if min(len(x), len(y)) > x.shape[1]:
        return frechet_distance(Gaussian.fit(x), Gaussian.fit(y))
    mean_x, root_x = _mean_and_root(x)
    mean_y, root_y = _mean_and_root(y)
    traces = root_x.square().sum() + root_y.square().sum()
    return _distance(mean_x - mean_y, traces, torch.linalg.svdvals(root_x.T @ root_y).sum())


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    """`[D]` and `[D, R]`, of which the covariance is the product with its transpose."""
    count, num_features = features.shape
    if count > num_features:
        gaussian = Gaussian.fit(features)
        return gaussian.mean, gaussian.factor
    features = features.detach().cpu().double()
    mean = features.mean(0)
    return mean, (features - mean).T / math.sqrt(count - 1)


class FrechetInfinity(NamedTuple):
    """What `frechet_infinity` finds.

    Attributes:
        value: The distance at infinitely many samples; a little below 0 is possible.
        standard_error: Of the value, from the scatter of the points about the line. The points share samples, so that
            over new samples the value varies up to twice as much.
        slope: c in distance + c / N.
        counts: The N of the points.
        distances: What was found there.
    """

    value: float
    standard_error: float
    slope: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    reference: Gaussian, features: Tensor, num_points: int = 15, seed: int = 0, smallest: int | None = None
) -> FrechetInfinity:
    """The distance without the bias of finitely many generated samples (Chong and Forsyth 2020, arXiv 1911.07023).

    The expected distance of N samples is that of infinitely many plus about c / N, and c depends on the model. A line
    in 1 / N is fitted to the distances of random subsets, whose sizes are evenly spaced.

    The bias is not quite a line. With a smallest subset of 2 D, the value is too low by about a tenth of the bias that
    the plain distance of all samples has; with 4 D by about a twentieth. The standard error knows nothing of that.

    Deviation: the paper's quasi-random latents, which make the points scatter less, are up to who draws the samples.

    Args:
        reference: The real side, taken as the truth. Its own bias stays, so give it all the pictures there are.
        features: Of generated samples, `[N, D]`.
        num_points: Subsets, at least 3.
        seed: Of the subsets; the global random state is not touched.
        smallest: Size of the smallest subset, at least 2. None means 5000 or N / 10, whichever is less, but at least
            2 D; the paper's 5000 is 2.4 times the 2048 features of Inception.

    Raises:
        ValueError: If there are too few samples or points, or the features do not fit the reference.
    """
    checked_rows(features, num_features=len(reference.mean))
    number, num_features = features.shape
    if smallest is None:
        smallest = max(min(5000, number // 10), 2 * num_features)
    if num_points < 3 or smallest < 2:
        raise ValueError(
            f"It takes at least 3 points of at least 2 samples, got num_points = {num_points}, smallest = {smallest}."
        )
    if number < smallest + num_points - 1:
        raise ValueError(
            f"{num_points} subsets of {smallest} samples and more need at least {smallest + num_points - 1} samples, "
            f"got {number}. For {num_features} features the smallest should have {2 * num_features} or more."
        )
    generator = torch.Generator().manual_seed(seed)
    counts = torch.linspace(smallest, number, num_points, dtype=torch.float64).round().long().tolist()
    distances = []
    for count in counts:
        chosen = torch.randperm(number, generator=generator)[:count].to(features.device)
        distances.append(frechet_distance(reference, Gaussian.fit(features[chosen])))
    x, y = 1 / torch.tensor(counts, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    centred = x - x.mean()
    spread = centred.square().sum()
    slope = (centred * y).sum() / spread
    value = y.mean() - slope * x.mean()
    variance = (y - value - slope * x).square().sum() / (num_points - 2)
    error = (variance * (1 / num_points + x.mean() ** 2 / spread)).sqrt()
    return FrechetInfinity(float(value), float(error), float(slope), tuple(counts), tuple(distances))


def _distance(difference: Tensor, traces: Tensor, trace_root: Tensor) -> float:
    # The part of the covariances is no less than 0; rounding can make it so.
    return float(difference.square().sum()) + max(float(traces - 2 * trace_root), 0.0)


def _largest(tensor: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    least, most = tensor.detach().aminmax()
    return float(torch.maximum(-least, most))


def _upper(matrix: Tensor) -> Tensor:
    """True on the diagonal and above, bool `[D, D]`."""
    return torch.ones_like(matrix, dtype=torch.bool).triu()
