"""Kernel density estimates, beside scikit-learn's.

    python -m benchmarks.kde
    python -m benchmarks.kde --kernels gaussian tophat --points 5000

All compute log densities of points in 64 dimensions, given as many others, from what they are given: fitting counts.
scikit-learn computes exactly too, `rtol=0`. It takes part twice. With its default, leaves of 40 points, its trees add
and subtract bounds of sums and lose digits by that; and since no branch can be left out in 64 dimensions, they save
nothing. With a single leaf of all points it just adds up, which is its fastest setting here, and loses none. Nothing
here passes or fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from sklearn.neighbors import KernelDensity
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.turns import Clock, add_arguments, begin, ratio, take_turns, write
from lightning_gen.losses.kernel_density import KERNELS, Kernel, rule_of_thumb
from lightning_gen.models import KDE

SIDE = 8  # of pictures, 64 dimensions
COMPARED = [kernel for kernel in KERNELS if kernel != "cosine"]  # which scikit-learn normalises to NaN there


def points(count: int, seed: int) -> Tensor:
    """Float32 `[count, 64]` in `[-1, 1]`, around a curved surface of 8 dimensions, so that distances differ widely."""
    generator = torch.Generator().manual_seed(0)
    mixing = 0.4 * torch.randn(8, SIDE**2, generator=generator)
    generator.manual_seed(seed)
    surface = 0.8 * torch.tanh(torch.randn(count, 8, generator=generator) @ mixing)
    return (surface + 0.1 * torch.randn(count, SIDE**2, generator=generator)).clamp(-1, 1)


def ours(kernel: Kernel, bandwidth: float, centres: Tensor, queries: Tensor) -> Tensor:
    """Nats of each point; pictures in, as of a run."""
    model = KDE((1, SIDE, SIDE), kernel, bandwidth).to(centres.device)
    model.add(centres.view(-1, 1, SIDE, SIDE))
    return model.log_prob(queries.view(-1, 1, SIDE, SIDE))


def theirs(kernel: Kernel, bandwidth: float, centres: Tensor, queries: Tensor, leaf_size: int) -> Tensor:
    """Nats of each point, on the CPU; KernelDensity takes float64 and makes it of anything else."""
    model = KernelDensity(kernel=kernel, bandwidth=bandwidth, rtol=0, leaf_size=leaf_size)
    return torch.from_numpy(model.fit(centres.numpy()).score_samples(queries.numpy()))


def largest_difference(one: Tensor, other: Tensor) -> float:
    """In nats; infinite where but one of them is."""
    apart = torch.where(one == other, 0.0, (one - other).abs())  # that of two infinities is NaN
    return float(apart.max())


def measure(kernel: Kernel, given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Times, ratios and differences of one kernel."""
    centres, queries = points(given.points, 1), points(given.points, 2)
    bandwidth = rule_of_thumb(centres, "silverman", kernel)
    found: dict[str, Tensor] = {}

    def keep(name: str, density: Callable[[], Tensor]) -> None:
        found[name] = density()

    on_device = centres.to(clock.device), queries.to(clock.device)
    densities = {
        "ours": partial(ours, kernel, bandwidth, *on_device),
        "scikit-learn, one leaf": partial(theirs, kernel, bandwidth, centres, queries, given.points),
        "scikit-learn, default": partial(theirs, kernel, bandwidth, centres, queries, 40),
    }
    seconds = take_turns({name: partial(keep, name, each) for name, each in densities.items()}, given.turns, clock)
    return {
        "kernel": kernel,
        "bandwidth": bandwidth,
        "s": {name: median(times) for name, times in seconds.items()},
        "over_ours": {name: ratio(seconds, name, "ours") for name in seconds},
        "differs_by": {name: largest_difference(found["ours"].cpu(), each.cpu()) for name, each in found.items()},
        "beyond_reach": float(found["ours"].isinf().double().mean()),
        "seconds": seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print a table, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kde", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", choices=COMPARED, default=["gaussian", "epanechnikov", "exponential"])
    parser.add_argument("--points", type=int, default=10_000, help="with a kernel at each, and as many to be scored")
    add_arguments(parser, turns=3)
    given = parser.parse_args(arguments)
    if given.points < 2:
        parser.error(f"--points must be 2 or more, got {given.points}")
    clock = begin(parser, given)
    print(f"scikit-learn {version('scikit-learn')}; {given.points} x {given.points} points in {SIDE**2} dimensions\n")
    print(f"{'':40}{'s':>8}{'it / ours':>11}{'nats differ by':>16}")
    figures = []
    with threadpool_limits(given.threads):
        ours("gaussian", 1.0, points(100, 1).to(clock.device), points(100, 2).to(clock.device))  # first calls
        for kernel in given.kernels:
            figures.append(measure(kernel, given, clock))
            for name, seconds in figures[-1]["s"].items():
                times, apart = figures[-1]["over_ours"][name], figures[-1]["differs_by"][name]
                last = "" if name == "ours" else f"{times:10.1f}x{apart:16.0e}"
                print(f"{f'{kernel}, {name}':40}{seconds:8.2f}{last}", flush=True)
    write(given.json, clock, figures)


if __name__ == "__main__":
    main()
