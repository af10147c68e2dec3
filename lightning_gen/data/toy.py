"""Points from distributions whose truth is known, as pictures of one pixel: where a model's faults can be measured.

A point with d coordinates is a picture `[d, 1, 1]`, so every model that takes pictures takes points. Everything here
and in `metrics.toy` is in scaled coordinates, in which the points lie within [-1, 1] as pictures do. A module takes its
sizes in the units of the literature and multiplies them with its `scale`; its `distribution` is the scaled truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule, Split
from lightning_gen.randomness import seed_from

MARGIN = 6.0
"""Standard deviations around every mode that the scaling keeps within [-1, 1]; two points in a billion lie outside."""


@runtime_checkable
class PointDistribution(Protocol):
    """A distribution of points with d coordinates, in scaled coordinates."""

    dimensions: int
    """d, the number of coordinates."""

    def sample(self, num_points: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent points, float32 `[num_points, d]`; None draws from the global random state."""
        ...


class Mixture:
    """A mixture of K isotropic Gaussians: sum_k w_k N(mu_k, sigma_k^2 I).

    Args:
        means: mu, `[K, d]`.
        std: sigma, one number for all modes or `[K]`.
        weights: w, `[K]`, above 0; they are divided by their sum. None gives all modes the same weight.

    Attributes:
        means: float64 `[K, d]`.
        std: float64 `[K]`.
        weights: float64 `[K]`, of sum 1.

    Raises:
        ValueError: If the shapes do not fit together, or a deviation or weight is not above 0.
    """

    std: Tensor
    weights: Tensor

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        std: Tensor | Sequence[float] | float,
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2 or not self.means.numel():
            raise ValueError(f"Mixture: means must be [K, d], got the shape {list(self.means.shape)}.")
        modes, self.dimensions = self.means.shape
        for name, values in (("std", std), ("weights", 1.0 if weights is None else weights)):
            tensor = torch.as_tensor(values, dtype=torch.float64)
            if tensor.shape not in ((), (modes,)):
                raise ValueError(
                    f"Mixture: {name} must have one number for each of the {modes} modes, got {list(tensor.shape)}."
                )
            if not bool((tensor > 0).all()):
                raise ValueError(f"Mixture: {name} must be above 0, got {tensor.tolist()}.")
            setattr(self, name, tensor.expand(modes).clone())
        self.weights = self.weights / self.weights.sum()

    def sample(self, num_points: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent points, float32 `[num_points, d]`; None draws from the global random state."""
        return self.sample_with_modes(num_points, generator)[0]

    def sample_with_modes(self, num_points: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """As `sample`, and the mode that each point was drawn from, int64 `[num_points]`."""
        modes = torch.multinomial(self.weights, num_points, replacement=True, generator=generator)
        noise = torch.randn(num_points, self.dimensions, generator=generator, dtype=torch.float64)
        return (self.means[modes] + self.std[modes, None] * noise).float(), modes

    def log_prob(self, points: Tensor) -> Tensor:
        """The log density in nats.

        Args:
            points: `[N, d]` or `[N, d, 1, 1]`, floating point, on any device.

        Returns:
            `[N]`, in the type and on the device of the points.
        """
        points = points.flatten(1)
        means, std, weights = (value.to(points) for value in (self.means, self.std, self.weights))
        squared = (points[:, None] - means).square().sum(-1) / std.square()
        normaliser = self.dimensions * (std.log() + 0.5 * math.log(2 * math.pi))
        return torch.logsumexp(weights.log() - normaliser - 0.5 * squared, dim=1)


class Line:
    """The uniform distribution on the segment from (x, 0) to (x, 1): Arjovsky et al. 2017, arXiv 1701.07875, example 1.

    Two such lines have no common point. At distance theta, Wasserstein-1 is |theta|, Jensen-Shannon log 2 and both
    Kullback-Leibler divergences are infinite, unless theta is 0, where all are 0.

    Args:
        x: Where it stands.
    """

    dimensions = 2

    def __init__(self, x: float) -> None:
        self.x = x

    def sample(self, num_points: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent points, float32 `[num_points, 2]`; None draws from the global random state."""
        heights = torch.rand(num_points, generator=generator)
        return torch.stack([torch.full_like(heights, self.x), heights], dim=1)


class Spiral:
    """The swiss roll seen from its end: scale (t cos t, t sin t) for t uniform in [1.5 pi, 4.5 pi], plus noise.

    Args:
        noise: Standard deviation of the Gaussian noise on each coordinate, in scaled coordinates.
        scale: Factor of the spiral.
    """

    dimensions = 2
    start, end = 1.5 * math.pi, 4.5 * math.pi

    def __init__(self, noise: float, scale: float) -> None:
        self.noise = noise
        self.scale = scale

    def sample(self, num_points: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent points, float32 `[num_points, 2]`; None draws from the global random state."""
        t = self.start + (self.end - self.start) * torch.rand(num_points, generator=generator, dtype=torch.float64)
        points = self.scale * t[:, None] * torch.stack([t.cos(), t.sin()], dim=1)
        return (points + self.noise * torch.randn(points.shape, generator=generator, dtype=torch.float64)).float()


class _PointSet(DrawDataset):
    """Points that are new in every epoch: example i of an epoch is a function of (seed, split, epoch, i)."""

    def __init__(
        self, distribution: PointDistribution, num_points: int, seed: int, split: str, labelled: bool = False
    ) -> None:
        self.distribution = distribution
        self.num_points = num_points
        self.seed = seed
        self.split = split
        self.labelled = labelled
        self.drawn: tuple[int, dict[str, Tensor]] = (-1, {})  # epoch, and its points

    def recipe(self) -> Any:
        return self.columns(0)

    def __len__(self) -> int:
        return self.num_points

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[Draw]) -> list[dict[str, Tensor]]:
        columns = self.columns(draws[0].epoch)
        indices = torch.tensor([draw.index for draw in draws])
        rows = zip(*(column[indices].unbind() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def columns(self, epoch: int) -> dict[str, Tensor]:
        """All examples of an epoch, drawn in one go, which takes less time than to draw them one by one."""
        if self.drawn[0] != epoch:
            generator = torch.Generator().manual_seed(seed_from(self.seed, epoch, *self.split.encode()))
            columns = {}
            if self.labelled and isinstance(self.distribution, Mixture):
                points, columns["label"] = self.distribution.sample_with_modes(self.num_points, generator)
            else:
                points = self.distribution.sample(self.num_points, generator)
            self.drawn = epoch, {"image": points[:, :, None, None], **columns}
        return self.drawn[1]


class PointDataModule(ImageDataModule):
    """Base of the toys: points of a `distribution` as items `{"image": float32 [d, 1, 1]}`.

    Every training epoch has new points, as many as `num_train`; validation and test keep theirs. All are functions of
    the seed, and the three sets are independent.

    Args:
        num_train: Points of a training epoch.
        num_val: Validation points.
        num_test: Test points.
        batch_size: Points per process and training step.
        eval_batch_size: Points per process and evaluation step; None means `batch_size`.
        num_workers: Loader processes; points are drawn faster than they are sent between processes.
        **loader: The others of `ImageDataModule`.

    Raises:
        ValueError: If a number is below 1.
    """

    labelled = False
    distribution: PointDistribution
    """The truth, in scaled coordinates."""

    def __init__(
        self,
        *,
        num_train: int = 100_000,
        num_val: int = 2560,
        num_test: int = 2560,
        batch_size: int = 256,
        num_workers: int | None = 0,
        **loader: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, **loader)
        for name, number in (("num_train", num_train), ("num_val", num_val), ("num_test", num_test)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.num_train, self.num_val, self.num_test = num_train, num_val, num_test

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(d, 1, 1)."""
        return (self.distribution.dimensions, 1, 1)

    def dataset(self, split: Split) -> Dataset[dict[str, Tensor]]:
        """Points: new ones in every epoch to train on, the same ones to validate and to test with."""
        return _PointSet(self.distribution, getattr(self, f"num_{split}"), self.seed, split, self.labelled)


class _MixtureModule(PointDataModule):
    """A mixture, scaled so that `MARGIN` deviations around every mode lie within [-1, 1]."""

    distribution: Mixture

    def _take(self, unscaled: Mixture, labelled: bool) -> None:
        self.labelled = labelled
        self.scale = 1 / float((unscaled.means.abs().amax(1) + MARGIN * unscaled.std).max())
        self.distribution = Mixture(unscaled.means * self.scale, unscaled.std * self.scale, unscaled.weights)

    @property
    def num_classes(self) -> int | None:
        """Number of modes where items have labels, else None."""
        return len(self.distribution.means) if self.labelled else None


class RingOfGaussians(_MixtureModule):
    """Gaussians evenly spaced on a circle, as in Metz et al. 2017, arXiv 1611.02163 (radius 2, deviation 0.02).

    Scaled with 1 / (radius + 6 std): by default the radius becomes 0.943 and the deviation 0.0094.

    Args:
        modes: How many; the first stands on the x-axis.
        radius: Of the circle, in the units of the paper.
        std: Of each mode, in the same units.
        labelled: Whether items have their mode as "label", int64, so that models are conditional.
        **points: As `PointDataModule`.

    Raises:
        ValueError: If a number of points or modes is below 1, or a length not above 0.
    """

    def __init__(
        self,
        modes: int = 8,
        radius: float = 2.0,
        std: float = 0.02,
        *,
        labelled: bool = False,
        **points: Any,
    ) -> None:
        super().__init__(**points)
        if modes < 1 or radius <= 0:
            raise ValueError(f"RingOfGaussians needs modes >= 1 and radius > 0, got {modes} and {radius}.")
        angles = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
        self._take(Mixture(radius * torch.stack([angles.cos(), angles.sin()], dim=1), std), labelled)


class GridOfGaussians(_MixtureModule):
    """Gaussians on a square grid, as in Gulrajani et al. 2017, arXiv 1704.00028 (25 modes, spacing 2, deviation 0.05).

    Scaled with 1 / (half the side's length + 6 std): by default the spacing becomes 0.465 and the deviation 0.0116.

    Args:
        side: Modes on a side.
        spacing: Between neighbours, in the units of the paper.
        std: Of each mode, in the same units.
        labelled: Whether items have their mode as "label", int64, so that models are conditional.
        **points: As `PointDataModule`.

    Raises:
        ValueError: If a number of points or modes is below 1, or a length not above 0.
    """

    def __init__(
        self,
        side: int = 5,
        spacing: float = 2.0,
        std: float = 0.05,
        *,
        labelled: bool = False,
        **points: Any,
    ) -> None:
        super().__init__(**points)
        if side < 1 or spacing <= 0:
            raise ValueError(f"GridOfGaussians needs side >= 1 and spacing > 0, got {side} and {spacing}.")
        places = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
        self._take(Mixture(torch.cartesian_prod(places, places).reshape(-1, 2), std), labelled)


class TwoGaussians(_MixtureModule):
    """A mixture of two Gaussians on the line.

    Scaled with 1 / max(|mean| + 6 std) over the two: by default the means become -0.4 and 0.4, the deviations 0.1.

    Args:
        means: Of the two components.
        stds: Their standard deviations, in the same units.
        weights: Their weights; they are divided by their sum.
        labelled: Whether items have their component as "label", int64, so that models are conditional.
        **points: As `PointDataModule`.

    Raises:
        ValueError: If there are not two of each, a number of points is below 1, or a deviation or weight not above 0.
    """

    def __init__(
        self,
        means: tuple[float, float] = (-2.0, 2.0),
        stds: tuple[float, float] = (0.5, 0.5),
        weights: tuple[float, float] = (0.5, 0.5),
        *,
        labelled: bool = False,
        **points: Any,
    ) -> None:
        super().__init__(**points)
        for name, values in (("means", means), ("stds", stds), ("weights", weights)):
            if len(values) != 2:
                raise ValueError(f"TwoGaussians: {name} must be two numbers, got {values}.")
        self._take(Mixture([[mean] for mean in means], stds, weights), labelled)


class ParallelLines(PointDataModule):
    """Two segments side by side; the data is the one at x = 0: Arjovsky et al. 2017, arXiv 1701.07875, example 1.

    As in the paper the heights are uniform in [0, 1]; they lie within [-1, 1] as they are, so nothing is scaled.

    Args:
        distance: theta, where the other line stands, in [-1, 1].
        **points: As `PointDataModule`.

    Attributes:
        other: The line at theta, which a model would start from.

    Raises:
        ValueError: If a number of points is below 1, or the distance beyond 1.
    """

    def __init__(
        self,
        distance: float = 1.0,
        **points: Any,
    ) -> None:
        super().__init__(**points)
        if abs(distance) > 1:
            raise ValueError(f"ParallelLines: distance must be in [-1, 1], where points lie, got {distance}.")
        self.distance = distance
        self.distribution, self.other = Line(0.0), Line(distance)


class SwissRoll(PointDataModule):
    """The spiral of Gulrajani et al. 2017, arXiv 1704.00028: the swiss roll seen from its end, with Gaussian noise.

    Scaled with 1 / (4.5 pi + 6 noise), which is 0.064 by default.

    Args:
        noise: Standard deviation of each coordinate, in units in which the roll has the radius 4.5 pi.
        **points: As `PointDataModule`.

    Raises:
        ValueError: If a number of points is below 1, or the noise below 0.
    """

    def __init__(
        self,
        noise: float = 0.25,
        **points: Any,
    ) -> None:
        super().__init__(**points)
        if noise < 0:
            raise ValueError(f"SwissRoll: noise must be 0 or more, got {noise}.")
        self.scale = 1 / (Spiral.end + MARGIN * noise)
        self.distribution = Spiral(noise * self.scale, self.scale)
