"""What the examples share: training without a word, charts drawn with PIL, a table, and the folder that both go to."""

import argparse
import csv
import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightning_gen.silence import silence

COLORS = ["#1f6feb", "#d1495b", "#2a9d5c", "#c8871a", "#7a4fb5", "#5b6472"]
_FINE = 2  # drawn twice as large and reduced, for smooth edges
_LEFT, _TOP, _RIGHT, _BOTTOM = 62, 52, 16, 44  # margins around the frame
_HEAT = np.array([[20, 32, 76], [47, 112, 175], [235, 240, 240], [230, 140, 70], [130, 28, 34]])


def output_folder(name: str, description: str | None) -> Path:
    """The folder given by `--output`, made if need be; `runs/examples/NAME` by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/examples") / name, help="where PNG and CSV go")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fit(model: pl.LightningModule, data: Any, **settings: Any) -> pl.Trainer:
    """Train on the CPU, with nothing logged or saved; as Lightning's Trainer with these settings does."""
    with warnings.catch_warnings(), silence(logging.ERROR):
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(accelerator="cpu", barebones=True, limit_val_batches=0, **settings)
        trainer.fit(model, data)
    return trainer


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV, numbers with six digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)


class Chart:
    """One pair of axes; what is drawn beyond their ranges is cut off."""

    def __init__(
        self, title: str, x_label: str, y_label: str, x_range: tuple[float, float], y_range: tuple[float, float],
        *, log_y: bool = False, legend: str = "upper right", size: tuple[int, int] = (560, 400)
    ) -> None:  # fmt: skip
        self.title, self.labels, self.ranges, self.log_y = title, (x_label, y_label), (x_range, y_range), log_y
        self.legend, self.entries, self.size = legend, list[tuple[str, str]](), size
        self.inner = ((size[0] - _LEFT - _RIGHT) * _FINE, (size[1] - _TOP - _BOTTOM) * _FINE)
        self.area = Image.new("RGB", self.inner, "white")
        self.draw = ImageDraw.Draw(self.area)

    def line(self, xs: Sequence[float], ys: Sequence[float], label: str, color: str, width: float = 2) -> None:
        """A line through points, with gaps where they are not finite."""
        self._name(label, color)
        places = [self._place(x, y) for x, y in zip(xs, ys, strict=True)]
        for first, second in pairwise(places):
            if first and second:
                self.draw.line((*first, *second), fill=color, width=round(width * _FINE))

    def dots(self, xs: Sequence[float], ys: Sequence[float], label: str, color: str, radius: float = 3) -> None:
        """A dot at each point."""
        self._name(label, color)
        for place in (self._place(x, y) for x, y in zip(xs, ys, strict=True)):
            if place:
                self.draw.circle(place, radius * _FINE, fill=color)

    def heat(self, values: np.ndarray, low: float, high: float) -> None:
        """A map of numbers `[rows, columns]`, the first row at the top: blue is low, white the middle, red high."""
        shares = np.clip((values - low) / (high - low), 0, 1) * (len(_HEAT) - 1)
        stops = np.arange(len(_HEAT))
        colors = np.stack([np.interp(shares, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)
        self.area.paste(Image.fromarray(colors.astype(np.uint8)).resize(self.inner, Image.Resampling.BICUBIC))

    def image(self) -> Image.Image:
        """The finished chart."""
        (width, height), (left, top) = self.inner, (_LEFT * _FINE, _TOP * _FINE)
        picture = Image.new("RGB", (self.size[0] * _FINE, self.size[1] * _FINE), "white")
        picture.paste(self.area, (left, top))
        draw = ImageDraw.Draw(picture)
        font, bold = (ImageFont.load_default(size * _FINE) for size in (12, 14))
        draw.rectangle((left, top, left + width, top + height), outline="#30363d", width=_FINE)
        draw.text((10 * _FINE, 8 * _FINE), self.title, fill="black", font=bold)
        draw.text((10 * _FINE, top - 7 * _FINE), self.labels[1], fill="#5b6472", font=font, anchor="ls")
        below = top + height + 6 * _FINE
        draw.text((left + width / 2, below + 16 * _FINE), self.labels[0], fill="#5b6472", font=font, anchor="mt")
        for value in _ticks(*self.ranges[0]):
            x = left + self._share(value, 0) * width
            draw.line((x, top + height, x, top + height - 5 * _FINE), fill="#30363d", width=_FINE)
            draw.text((x, below), f"{value:g}", fill="black", font=font, anchor="mt")
        for value in _decades(*self.ranges[1]) if self.log_y else _ticks(*self.ranges[1]):
            y = top + (1 - self._share(value, 1)) * height
            draw.line((left, y, left + 5 * _FINE, y), fill="#30363d", width=_FINE)
            draw.text((left - 6 * _FINE, y), f"{value:g}", fill="black", font=font, anchor="rm")
        longest = max((font.getlength(label) for label, _ in self.entries), default=0)
        x = left + (10 * _FINE if "left" in self.legend else width - longest - 40 * _FINE)
        start = height - (17 * len(self.entries) + 2) * _FINE if "lower" in self.legend else 14 * _FINE
        for i, (label, color) in enumerate(self.entries):
            y = top + start + 17 * _FINE * i
            draw.line((x, y, x + 20 * _FINE, y), fill=color, width=4 * _FINE)
            draw.text((x + 26 * _FINE, y), label, "black", font, anchor="lm", stroke_width=3, stroke_fill="white")
        return picture.resize(self.size, Image.Resampling.LANCZOS)

    def _name(self, label: str, color: str) -> None:
        if label:
            self.entries.append((label, color))

    def _share(self, value: float, axis: int) -> float:
        low, high = self.ranges[axis]
        if axis and self.log_y:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return (value - low) / (high - low)

    def _place(self, x: float, y: float) -> tuple[float, float] | None:
        if not (math.isfinite(x) and math.isfinite(y)):
            return None
        return self._share(x, 0) * self.inner[0], (1 - self._share(y, 1)) * self.inner[1]


def save(path: Path, charts: Sequence[Chart], columns: int = 2) -> None:
    """Write charts of one size as a PNG, row by row."""
    (width, height), columns = charts[0].size, min(columns, len(charts))
    picture = Image.new("RGB", (width * columns, height * -(-len(charts) // columns)), "white")
    for i, chart in enumerate(charts):
        picture.paste(chart.image(), (i % columns * width, i // columns * height))
    picture.save(path)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two others."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, not more than nine."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1, max(1, -(-(last - first) // 8)))]
