"""What it takes to draw a picture pixel by pixel: by cached steps, by whole passes, and by compiled steps.

    python -m benchmarks.sampling
    python -m benchmarks.sampling speed --models LMConv --batch-sizes 1 --full
    python -m benchmarks.sampling speed --models PixelCNNPP --compile
    python -m benchmarks.sampling growth

A turn is one sampling of whole pictures by cached steps, weights folded and caches made anew, and one pass of the naive
method, which makes such a pass for each pixel. What is in the pixels makes no difference to a pass, so one stands for
all of them, each turn at another place; `--full` makes them all. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.turns import Clock, Seconds, add_arguments, begin, ratio, take_turns, write
from lightning_gen.models import DiagonalBiLSTM, GatedPixelCNN, LMConv, PixelCNN, PixelCNNPP, RowLSTM
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.modes import evaluating
from lightning_gen.networks import (
    DiagonalBiLSTMNetwork,
    GatedPixelCNNNetwork,
    LMConvNetwork,
    PixelCNNNetwork,
    PixelCNNPPNetwork,
    RowLSTMNetwork,
)
from lightning_gen.networks.pixel_sampler import Method, _runner, draw_pixels
from lightning_gen.networks.stepping import call

SMALL = 8  # height and width at which both methods draw the same pictures
GROWTH_SIDES = (8, 16, 32, 64)


@dataclass(frozen=True)
class Entry:
    """A model, and the sizes at which it is measured.

    Args:
        model: Its class.
        network: Makes its network.
        num_levels: Of its pictures.
        channels: Of the pictures.
        sides: Their height and width.
        batches: How many are drawn together, of which growth takes the middle one.
    """

    model: Callable[..., AutoregressiveModule]
    network: Callable[..., nn.Module]
    num_levels: int = 2
    channels: int = 1
    sides: tuple[int, ...] = (28,)
    batches: tuple[int, ...] = (16,)

    def make(self, side: int, device: torch.device) -> AutoregressiveModule:
        """Weights that make pixels depend on those before, which without training they hardly do by themselves."""
        torch.manual_seed(0)
        model = self.model((self.channels, side, side), num_levels=self.num_levels, network=self.network)
        if isinstance(model, PixelCNNPP):
            levels = torch.randint(self.num_levels, (16, *model.image_shape))
            cast(PixelCNNPPNetwork, model.network).initialize(levels * (2 / (self.num_levels - 1)) - 1)
        else:
            with torch.no_grad():
                for weight in (parameter for parameter in model.network.parameters() if parameter.ndim > 1):
                    weight.mul_(2)
        return model.to(device).eval()


MODELS = {
    "PixelCNNPP": Entry(
        PixelCNNPP, partial(PixelCNNPPNetwork, filters=40, num_blocks=5), 256, channels=3, sides=(16, 32), batches=(8,)
    ),
    "LMConv": Entry(LMConv, partial(LMConvNetwork, filters=60, num_blocks=5), batches=(1, 4, 8, 16)),
    "LMConv-small": Entry(LMConv, partial(LMConvNetwork, filters=40, num_blocks=2), batches=(1, 4, 8, 16)),
    "PixelCNN": Entry(PixelCNN, partial(PixelCNNNetwork, filters=64, layers=15, head_filters=32)),
    "GatedPixelCNN": Entry(
        GatedPixelCNN, partial(GatedPixelCNNNetwork, filters=128, layers=10, kernel_size=3, head_filters=32)
    ),
    "RowLSTM": Entry(RowLSTM, partial(RowLSTMNetwork, filters=16, layers=7, head_filters=32)),
    "DiagonalBiLSTM": Entry(DiagonalBiLSTM, partial(DiagonalBiLSTMNetwork, filters=16, layers=7, head_filters=32)),
}


def generator() -> torch.Generator:
    """The same noise for all."""
    return torch.Generator().manual_seed(0)


# -- cached against naive ---------------------------------------------------------------------------------------------


@dataclass
class NaivePasses:
    """One pass of the naive method a call, at places spread over the order of generation.

    Args:
        model: Whose.
        pictures: In which one pixel is drawn anew.
        turns: Calls.
    """

    model: AutoregressiveModule
    pictures: Tensor
    turns: int
    calls: int = field(default=0, init=False)

    def __call__(self) -> None:
        """The next."""
        order = self.model.sampling_order()
        pixels = len(order.positions)
        place = int((self.calls % self.turns + 0.5) / self.turns * pixels)
        self.calls += 1
        hole = torch.zeros(len(self.pictures), pixels, dtype=torch.bool)
        hole[:, order.positions[place]] = True
        hole = hole.view(len(self.pictures), *self.pictures.shape[2:])
        with evaluating(self.model.network):
            draw_pixels(
                self.model.network,
                self.model.likelihood,
                self.model.to_levels(self.pictures),
                hole,
                order.positions,
                generator(),
                settings=order.settings,
                method="naive",
            )


def speed(entry: Entry, side: int, batch: int, given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Times and ratios at one size."""
    model, pixels = entry.make(side, clock.device), side * side

    def sampling(method: Method, compile: bool = False) -> Callable[[], Tensor]:
        return lambda: model.sample(batch, generator=generator(), method=method, compile=compile)

    cached = sampling("cached")
    pictures = cached()
    naive = sampling("naive") if given.full else NaivePasses(model, pictures, given.turns)
    contestants: dict[str, Callable[[], Any]] = {"cached": cached, "naive": naive}
    figures: dict[str, Any] = {}
    if given.compile:
        contestants["compiled"] = sampling("cached", compile=True)
        start = time.perf_counter()
        contestants["compiled"]()
        first = time.perf_counter() - start
        start = time.perf_counter()
        contestants["compiled"]()
        figures["compilation_s"] = first - (time.perf_counter() - start)
        figures["compiled_parameters_differ_by"] = compiled_parameters_differ_by(model, pictures)
    if not given.full:
        naive()  # libraries set themselves up
    seconds = take_turns(contestants, given.turns, clock)
    if not given.full:
        seconds["naive"] = [pass_seconds * pixels for pass_seconds in seconds["naive"]]
    figures |= {
        "ms_per_pixel": {name: 1e3 * median(times) / pixels for name, times in seconds.items()},
        "naive_over_cached": ratio(seconds, "naive", "cached"),
        "seconds": seconds,
    }
    if given.compile:
        figures["cached_over_compiled"] = ratio(seconds, "cached", "compiled")
    return figures


@torch.no_grad()
def compiled_parameters_differ_by(model: AutoregressiveModule, pictures: Tensor) -> float:
    """The largest difference that compiling makes to the parameters of all pixels of the same pictures."""
    order, network = model.sampling_order(), cast(Any, model.network)
    caches = [network.init_cache(len(pictures), pictures.device, **order.settings) for _ in range(2)]
    for cache in caches:
        cache.images.copy_(pictures)
    runs, largest = (call, _runner(pictures.device, compile=True)), 0.0
    for position in order.positions.tolist():
        eager, compiled = (network.step(cache, position, run) for cache, run in zip(caches, runs, strict=True))
        largest = max(largest, float((eager - compiled).abs().max()))
    return largest


def pixels_that_differ(entry: Entry, device: torch.device) -> int:
    """Of two small pictures drawn by both methods."""
    model = entry.make(SMALL, device)
    cached, naive = (model.sample(2, generator=generator(), method=method) for method in ("cached", "naive"))
    return int((cached != naive).any(1).sum())


def speed_lines(names: Sequence[str], given: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """Measure and print line by line."""
    compiled = f"{'compiled':>11}{'faster':>8}{'compilation':>13}{'changes':>9}" if given.compile else ""
    print(f"\n{'ms a pixel':28}{'pictures':>9}{'cached':>9}{'naive':>10}{'ratio':>9}{compiled}{'differ':>9}")
    for name in names:
        entry = MODELS[name]
        differ = pixels_that_differ(entry, clock.device)
        for side in entry.sides:
            for batch in given.batch_sizes or entry.batches:
                figures = speed(entry, side, batch, given, clock)
                ms = figures["ms_per_pixel"]
                line = f"{f'{name}, {entry.channels} x {side} x {side}':28}{batch:9}{ms['cached']:9.2f}"
                line += f"{ms['naive']:10.1f}{figures['naive_over_cached']:8.1f}x"
                if given.compile:
                    line += f"{ms['compiled']:11.2f}{figures['cached_over_compiled']:7.2f}x"
                    line += f"{figures['compilation_s']:11.0f} s{figures['compiled_parameters_differ_by']:9.0e}"
                print(f"{line}{differ:9}", flush=True)
                sizes = {"model": name, "side": side, "pictures": batch, "small_pixels_that_differ": differ}
                yield sizes | figures
    print(
        f"differ: pixels of two {SMALL} x {SMALL} pictures that the methods draw differently from the same noise, of "
        f"{2 * SMALL**2}"
    )
    if given.compile:
        print(
            "compilation: wall time; changes: largest difference that compiling makes to the parameters of the pictures"
        )


# -- how it grows -----------------------------------------------------------------------------------------------------


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost against log size, by least squares."""
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / sum((a - x_mean) ** 2 for a in x)


def growth(name: str, given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Cached sampling at several sizes, which take turns."""
    entry = MODELS[name]
    batch = given.batch_sizes[0] if given.batch_sizes else entry.batches[len(entry.batches) // 2]
    models = {side: entry.make(side, clock.device) for side in GROWTH_SIDES}
    contestants = {
        str(side): lambda model=model: model.sample(batch, generator=generator()) for side, model in models.items()
    }
    contestants[str(GROWTH_SIDES[0])]()
    seconds: Seconds = take_turns(contestants, given.turns, clock)
    totals = {side: median(seconds[str(side)]) for side in GROWTH_SIDES}
    slope = exponent([side**2 for side in GROWTH_SIDES], list(totals.values()))
    ms = "".join(f"{1e3 * total / side**2:10.2f}" for side, total in totals.items())
    print(f"{name:28}{batch:9}{ms}{slope:11.3f}", flush=True)
    return {"model": name, "pictures": batch, "exponent": slope, "seconds": seconds}


# -- the command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print tables, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "growth", "all"], nargs="?", default="all")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="all for speed, the first two for growth")
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="N", help="pictures drawn together")
    parser.add_argument("--full", action="store_true", help="draw whole pictures by the naive method too")
    parser.add_argument("--compile", action="store_true", help="cached steps through torch.compile too, for speed")
    add_arguments(parser, turns=5)
    given = parser.parse_args(arguments)
    if min(given.batch_sizes or [1]) < 1:
        parser.error(f"--batch-sizes must be 1 or more, got {given.batch_sizes}")
    clock = begin(parser, given)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # so that nothing is there that an earlier run has compiled
        if given.what in ("speed", "all"):
            figures["speed"] = list(speed_lines(given.models or list(MODELS), given, clock))
        if given.what in ("growth", "all"):
            print(f"\n{'cached, ms a pixel at':28}{'pictures':>9}", end="")
            print("".join(f"{f'{side} x {side}':>10}" for side in GROWTH_SIDES) + f"{'exponent':>11}")
            figures["growth"] = [growth(name, given, clock) for name in given.models or ("PixelCNNPP", "LMConv")]
            print("exponent: of the total cost in the number of pixels, by least squares in logarithms")
    write(given.json, clock, figures)


if __name__ == "__main__":
    main()
