"""Points with known truth: how well a model matches it, in figures and in a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_gen.callbacks.pictures import PicturesThroughTime, looking
from lightning_gen.capabilities import Samples
from lightning_gen.data.toy import Mixture, PointDistribution
from lightning_gen.metrics.toy import ToyMetrics

VIEW = 1.2
"""A picture of points shows [-VIEW, VIEW] on each axis."""

_GROUND, _HIGH = (24, 28, 36), (44, 92, 128)  # of the landscape: lowest and highest score
_TRUTH, _SAMPLES = (150, 158, 170), (255, 176, 46)
_BANDS = 16  # levels of the landscape
_LATTICE = 64  # scores of the landscape along an axis
_BINS = 100
_FINER = 2  # pictures are drawn this much larger and reduced, for smooth edges


class PointMetrics(pl.Callback):
    """Logs how well a model matches a truth that is known, at every validation of a fit and at a test.

    The figures are those of `metrics.toy.ToyMetrics`, from samples with averaged weights if the run keeps them:
    `val/wasserstein_1`, and where the truth is a mixture `val/modes`, `val/high_quality` and `val/mode_kl`; `test/...`
    in a test. The noise of the samples is the same each time, and training does not notice. Wasserstein-1 of 500
    points takes 0.02 to 0.15 s on one core, of 1000 points 0.1 to 1.2 s; it takes longest for collapsed models.

    Args:
        num_samples: Points that the model draws.
        within: Standard deviations from its mode up to which a point is of high quality.
        min_points: High-quality points that make a mode covered.
        wasserstein_points: Points on either side of Wasserstein-1, at most; 0 leaves it out.
        seed: Of the samples, and of the points from the truth.

    Raises:
        ValueError: If `num_samples` is below 1, or `wasserstein_points` below 0.
        TypeError: If the model draws no samples or the data has no `distribution` (when the trainer starts).
    """

    def __init__(
        self,
        num_samples: int = 2500,
        *,
        within: float = 4.0,
        min_points: int = 1,
        wasserstein_points: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_samples < 1 or wasserstein_points < 0:
            raise ValueError(
                f"PointMetrics needs num_samples >= 1 and wasserstein_points >= 0, got {num_samples} and "
                f"{wasserstein_points}."
            )
        self.num_samples = num_samples
        self.within = within
        self.min_points = min_points
        self.wasserstein_points = wasserstein_points
        self.seed = seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there are samples and a truth."""
        _truth(self, trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/...`."""
        if not trainer.sanity_checking:
            self.measure(trainer, pl_module, "val/")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `test/...`."""
        self.measure(trainer, pl_module, "test/")

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str) -> None:
        """Draw samples and log the figures; the same on every rank."""
        metrics = ToyMetrics(
            _truth(self, trainer, pl_module),
            within=self.within,
            min_points=self.min_points,
            wasserstein_points=self.wasserstein_points,
            seed=self.seed + 1,  # the noise of the samples must not be that of the truth
            sync_on_compute=False,
        )
        with looking(trainer, pl_module):
            metrics.update(_samples(pl_module, self.num_samples, self.seed))
        figures = {f"{prefix}{name}": figure.to(pl_module.device) for name, figure in metrics.compute().items()}
        pl_module.log_dict(figures, sync_dist=True)


class PointCloud(PicturesThroughTime):
    """Shows where a model's points lie while it learns, as the panel "samples".

    In two dimensions points of the truth are faint and the model's samples bright. On the line it is a histogram of the
    samples, with the true density as a line (for truths other than a mixture, a histogram of points from it). The
    picture shows [-1.2, 1.2] on each axis. The noise of the samples and the points of the truth stay the same.

    The ground shows the discriminator's scores in bands between the lowest (dark) and the highest in view, if the model
    has a `discriminator` and no classes.

    Args:
        every_n_steps: Generator updates from one drawing to the next; there is also one before and one after training.
        num_samples: Points of the model, and as many of the truth.
        size: Width and height in pixels.
        landscape: Whether to show the discriminator's scores.
        seed: Of the samples, and of the points from the truth.

    Raises:
        ValueError: If a number is below 1, or points have more than two coordinates (when the trainer starts).
        TypeError: If the model draws no samples or the data has no `distribution` (when the trainer starts).
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 1000,
        *,
        size: int = 512,
        landscape: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        if num_samples < 1 or size < 1:
            raise ValueError(f"PointCloud needs num_samples >= 1 and size >= 1, got {num_samples} and {size}.")
        self.num_samples = num_samples
        self.size = size
        self.landscape = landscape
        self.seed = seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there are samples and a truth that can be drawn."""
        super().setup(trainer, pl_module, stage)
        dimensions = _truth(self, trainer, pl_module).dimensions
        if dimensions > 2:
            raise ValueError(f"PointCloud draws points with one or two coordinates, these have {dimensions}.")

    def panels(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Image.Image]:
        """The picture, as "samples"."""
        truth = _truth(self, trainer, pl_module)
        samples = _samples(pl_module, self.num_samples, self.seed)
        discriminator = getattr(pl_module, "discriminator", None)
        scores = None
        if self.landscape and discriminator is not None and cast(Samples, pl_module).num_classes is None:
            scores = _scores(discriminator, truth.dimensions, pl_module.device)
        return {"samples": draw_points(truth, samples, scores, size=self.size, seed=self.seed + 1)}


def draw_points(
    truth: PointDistribution, samples: Tensor, scores: Tensor | None = None, *, size: int = 512, seed: int = 0
) -> Image.Image:
    """Draw samples before their truth, as `PointCloud` does.

    Args:
        truth: With one or two coordinates.
        samples: `[N, d]`.
        scores: Of the ground: `[1 or R, R]`, in the middle of R x R cells (of R columns on the line), the first row at
            the top; None leaves it plain.
        size: Width and height of the picture in pixels.
        seed: Of the points from the truth, which are N too.
    """
    side = size * _FINER
    picture = _ground(scores, side)
    draw = ImageDraw.Draw(picture)
    true = truth.sample(len(samples), torch.Generator().manual_seed(seed))
    if truth.dimensions == 1:
        _draw_histogram(draw, side, truth, true, samples)
    else:
        _draw_dots(draw, side, true, _TRUTH, radius=0.0025)
        _draw_dots(draw, side, samples, _SAMPLES, radius=0.004)
    font = ImageFont.load_default(size=max(12, side // 40))
    for left, text, colour in ((0.015, "truth", _TRUTH), (0.09, "samples", _SAMPLES)):
        draw.text((left * side, 0.012 * side), text, font=font, fill=colour)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def _truth(callback: pl.Callback, trainer: pl.Trainer, pl_module: pl.LightningModule) -> PointDistribution:
    name = type(callback).__name__
    if not isinstance(pl_module, Samples):
        raise TypeError(
            f"{name} needs a model with `sample` and `num_classes`; {type(pl_module).__name__} has not both. "
            f"Take {name} out of trainer.callbacks."
        )
    data = getattr(trainer, "datamodule", None)
    truth = getattr(data, "distribution", None)
    if not isinstance(truth, PointDistribution):
        given = "no data module" if data is None else type(data).__name__
        raise TypeError(
            f"{name} needs a data module that knows its `distribution`, such as GridOfGaussians; got {given}. "
            f"Use one of lightning_gen.data.toy, or take {name} out of trainer.callbacks."
        )
    return truth


def _samples(pl_module: pl.LightningModule, num_samples: int, seed: int) -> Tensor:
    """Points `[N, d]` on the CPU, float32."""
    generator = torch.Generator().manual_seed(seed)
    return cast(Samples, pl_module).sample(num_samples, generator=generator).flatten(1).float().cpu()


def _scores(discriminator: Callable[[Tensor], Tensor], dimensions: int, device: torch.device) -> Tensor:
    """The scores in the middle of the picture's cells, on the CPU: `[R, R]`, the first row at the top, or `[1, R]`."""
    places = VIEW * ((torch.arange(_LATTICE, device=device) + 0.5) * 2 / _LATTICE - 1)
    if dimensions == 1:
        points = places[:, None]
    else:
        y, x = torch.meshgrid(places.flip(0), places, indexing="ij")
        points = torch.stack([x, y], dim=-1).flatten(0, 1)
    scores = discriminator(points[:, :, None, None]).reshape(len(points), -1).mean(1)
    return scores.view(-1, _LATTICE).float().cpu()


def _ground(scores: Tensor | None, side: int) -> Image.Image:
    """Bands from dark to light; plain where the scores are all the same, or not finite."""
    if scores is None or not bool(scores.isfinite().all()) or bool(scores.max() == scores.min()):
        return Image.new("RGB", (side, side), _GROUND)
    relative = (scores - scores.min()) / (scores.max() - scores.min())
    smooth = np.asarray(Image.fromarray(relative.numpy()).resize((side, side), Image.Resampling.BILINEAR))
    bands = np.floor(smooth * _BANDS).clip(0, _BANDS - 1)[:, :, None] / (_BANDS - 1)
    return Image.fromarray((np.array(_GROUND) * (1 - bands) + np.array(_HIGH) * bands).astype(np.uint8))


def _draw_dots(
    draw: ImageDraw.ImageDraw, side: int, points: Tensor, colour: tuple[int, int, int], radius: float
) -> None:
    """Dots of a radius that is a share of the side."""
    r = max(1.0, radius * side)
    for x, y in points.tolist():
        column, row = (x / VIEW + 1) * side / 2, (1 - y / VIEW) * side / 2
        if -r <= column <= side + r and -r <= row <= side + r:  # False for points that are not numbers, too
            draw.ellipse((column - r, row - r, column + r, row + r), fill=colour)


def _draw_histogram(
    draw: ImageDraw.ImageDraw, side: int, truth: PointDistribution, true: Tensor, samples: Tensor
) -> None:
    """Bars of the samples and the line of the truth, as densities; a fifth of the picture is left above the truth."""
    heights = _density(samples)
    middles = (np.arange(_BINS) + 0.5) * 2 * VIEW / _BINS - VIEW
    line = _density(true)
    if isinstance(truth, Mixture):
        middles = np.linspace(-VIEW, VIEW, side // _FINER)
        line = truth.log_prob(torch.from_numpy(middles)[:, None]).exp().numpy()
    unit, width = 0.8 * side / line.max(), side / _BINS
    for i, height in enumerate(heights):
        if height > 0:
            draw.rectangle((i * width, max(0.0, side - height * unit), (i + 1) * width - 1, side), fill=_SAMPLES)
    corners = [
        ((x / VIEW + 1) * side / 2, side - 1 - y * unit)
        for x, y in zip(middles.tolist(), line.tolist(), strict=True)
    ]  # fmt: skip
    draw.line(corners, fill=_TRUTH, width=2 * _FINER)


def _density(points: Tensor) -> NDArray[np.float64]:
    """Of points on the line `[N, 1]`, in `_BINS` bins over the view."""
    counts, _ = np.histogram(points[:, 0].double().numpy(), bins=_BINS, range=(-VIEW, VIEW))
    return counts / (len(points) * 2 * VIEW / _BINS)
