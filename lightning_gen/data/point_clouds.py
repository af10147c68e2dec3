"""Points drawn before their truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_gen.data.toy import Mixture, PointDistribution

VIEW = 1.2
"""A picture of points shows [-VIEW, VIEW] on each axis."""

_GROUND, _HIGH = (24, 28, 36), (44, 92, 128)  # of the landscape: lowest and highest score
_TRUTH, _SAMPLES = (150, 158, 170), (255, 176, 46)
_BANDS = 16  # levels of the landscape
_LATTICE = 64  # scores of the landscape along an axis
_BINS = 100
_FINER = 2  # pictures are drawn this much larger and reduced, for smooth edges


def draw_points(
    truth: PointDistribution, samples: Tensor, scores: Tensor | None = None, *, size: int = 512, seed: int = 0
) -> Image.Image:
    """Draw samples before their truth, see `PointCloud`.

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


def landscape(score: Callable[[Tensor], Tensor], dimensions: int, device: torch.device) -> Tensor:
    """The ground of a picture, on the CPU: scores in the middle of its cells, `[R, R]`, or `[1, R]` on the line.

    Args:
        score: From points `[N, d, 1, 1]` to their scores, of which those of one point are averaged.
        dimensions: d, 1 or 2.
        device: Of the points.
    """
    places = VIEW * ((torch.arange(_LATTICE, device=device) + 0.5) * 2 / _LATTICE - 1)
    if dimensions == 1:
        points = places[:, None]
    else:
        y, x = torch.meshgrid(places.flip(0), places, indexing="ij")
        points = torch.stack([x, y], dim=-1).flatten(0, 1)
    scores = score(points[:, :, None, None]).reshape(len(points), -1).mean(1)
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
