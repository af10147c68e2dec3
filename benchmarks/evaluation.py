"""What evaluation costs, beside torchmetrics and torch-fidelity: Fréchet distance, kernel distance, Inception network.

    python -m benchmarks.evaluation frechet
    python -m benchmarks.evaluation all --turns 5

All is computed on one CPU thread, and times are of CPU. The machine may be shared, so the contestants take turns, and
the least time of each counts. Figures are compared as well as times. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import KernelInceptionDistance

from benchmarks.inception_weights import random_inception_weights
from benchmarks.train_step import device_name
from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scene_painting import render
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.metrics.frechet import Gaussian, frechet_distance, frechet_distance_between
from lightning_gen.metrics.scores import kernel_distance


class Row(NamedTuple):
    """One contestant's line.

    Attributes:
        name: Who, and at which size.
        seconds: Of CPU time, the least of all turns; NaN where none was taken.
        ratio: Seconds of whom all are compared with / its own.
        remark: What came out.
    """

    name: str
    seconds: float
    ratio: float
    remark: str


Contestant = Callable[[], Any]


def take_turns(contestants: dict[str, Contestant], turns: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The least CPU seconds of each, and what each gave in its last turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {}
    for _ in range(turns):
        for name, contestant in contestants.items():
            start = time.process_time()
            results[name] = contestant()
            seconds[name].append(time.process_time() - start)
    return {name: min(times) for name, times in seconds.items()}, results


# -- Fréchet distance -------------------------------------------------------------------------------------------------


def frechet(turns: int) -> Iterator[Row]:
    """From means and covariances to the distance, beside the singular values of both factors' product."""
    for size in (64, 192, 768, 2048):
        p, q = (Gaussian.fit(correlated_features(10_000, size, seed)) for seed in (1, 2))
        exact = by_singular_values(p, q)
        contestants: dict[str, Contestant] = {
            "torchmetrics": partial(torchmetrics_distance, p, q),
            "torch-fidelity": partial(fidelity_distance, as_numpy(p), as_numpy(q)),
            "ours": partial(our_distance, p, q),
            "ours, factor of one side kept": partial(our_distance_from_one, p, q),
        }
        seconds, found = take_turns(contestants, turns * 2048 // size if size < 768 else turns)
        for name, least in seconds.items():
            remark = f"{found[name]:.6f}, relative error {abs(found[name] / exact - 1):.0e}"
            yield Row(f"{size} features, {name}", least, seconds["torchmetrics"] / least, remark)


def correlated_features(count: int, size: int, seed: int) -> Tensor:
    """Float32 features `[count, size]` of 0 or more, whose deviations fall off by three orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator) / size**0.5
    mixing = mixing + 0.1 * seed * torch.randn(size, size, generator=generator) / size**0.5
    hidden = torch.randn(count, size, generator=generator.manual_seed(seed))
    return (hidden * torch.logspace(0, -3, size) @ mixing + 0.05).relu()


def by_singular_values(p: Gaussian, q: Gaussian) -> float:
    """The distance without the root of anything but the covariances, which loses no digits but takes its time."""
    left, right = (torch.linalg.cholesky(gaussian.covariance) for gaussian in (p, q))
    traces = p.covariance.trace() + q.covariance.trace()
    return float((p.mean - q.mean).square().sum() + traces - 2 * torch.linalg.svdvals(left.T @ right).sum())


def as_numpy(gaussian: Gaussian) -> dict[str, Any]:
    """As torch-fidelity has it."""
    return {"mu": gaussian.mean.numpy(), "sigma": gaussian.covariance.numpy()}


def torchmetrics_distance(p: Gaussian, q: Gaussian) -> float:
    """By the eigenvalues of the product of the covariances."""
    return float(_compute_fid(p.mean, p.covariance, q.mean, q.covariance))


def fidelity_distance(p: dict[str, Any], q: dict[str, Any]) -> float:
    """The same in NumPy."""
    return float(fid_statistics_to_metric(p, q, False)[KEY_METRIC_FID])


def our_distance(p: Gaussian, q: Gaussian) -> float:
    """Of copies, which are checked anew and have no factor yet."""
    return frechet_distance(replace(p), replace(q))


def our_distance_from_one(p: Gaussian, q: Gaussian) -> float:
    """With the factor of p, once it is there."""
    return frechet_distance(p, replace(q))


# -- kernel distance --------------------------------------------------------------------------------------------------


def kid(turns: int) -> Iterator[Row]:
    """10 000 features of 2048 on either side: 100 subsets of 1000, which overlap, and 10 blocks of 1000."""
    x, y = (correlated_features(10_000, 2048, seed) for seed in (1, 2))
    metric = KernelInceptionDistance(TakenAsTheyAre(2048), subsets=100, subset_size=1000)
    metric.update(x, real=True)
    metric.update(y, real=False)

    def theirs() -> tuple[float, float]:
        metric._computed = None
        mean, std = metric.compute()
        return float(mean), float(std)

    def ours() -> tuple[float, float]:
        found = kernel_distance(x, y)
        return found.value, found.std

    seconds, found = take_turns({"torchmetrics, 100 subsets": theirs, "ours, 10 blocks": ours}, turns)
    for name, least in seconds.items():
        value, std = found[name]
        remark = f"{value:.6f}, standard deviation {std:.6f}"
        yield Row(name, least, seconds["torchmetrics, 100 subsets"] / least, remark)


class TakenAsTheyAre(nn.Module):
    """Features are given in the place of pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """The same."""
        return features


# -- the Inception network --------------------------------------------------------------------------------------------


def inception(turns: int, pictures: int, batch_size: int = 16) -> Iterator[Row]:
    """Pictures of 32 x 32 to 2048 features with random weights, and what the precision does to a Fréchet distance."""
    summer, winter = (
        render(SceneAttributes.draw(pictures, (seed, 0)), domain, 32, 32)
        for seed, domain in enumerate(("summer", "winter"))
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        random_inception_weights(weights)
        # Either gives a tuple that begins with the features.
        networks: dict[str, Callable[[Tensor], Sequence[Any]]] = {
            "torch-fidelity, float32": FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=str(weights)
            ),
            "ours, float32": InceptionFeatures(weights=weights),
            "ours, bfloat16": InceptionFeatures(weights=weights, precision="bfloat16"),
        }
    contestants: dict[str, Contestant] = {
        name: partial(network, summer[:batch_size]) for name, network in networks.items()
    }
    take_turns(contestants, 1)
    seconds, found = take_turns(contestants, turns)
    reference = found["torch-fidelity, float32"][0]
    for name, least in seconds.items():
        difference = float((found[name][0] - reference).norm() / reference.norm())
        remark = f"{batch_size / least:.1f} images/s, features differ by {difference:.1e}"
        yield Row(name, least, seconds["torch-fidelity, float32"] / least, remark)

    def features(name: str, images: Tensor) -> Tensor:
        return torch.cat([networks[name](batch)[0] for batch in images.split(batch_size)])

    single = [features("ours, float32", images) for images in (summer, winter)]
    half = [features("ours, bfloat16", images) for images in (summer, winter)]
    distance = frechet_distance_between(single[0], single[1])
    for name, change in {
        "Fréchet distance, both bfloat16": frechet_distance_between(half[0], half[1]) / distance - 1,
        "Fréchet distance, one bfloat16": frechet_distance_between(single[0], half[1]) / distance - 1,
        "Fréchet distance of float32 and bfloat16": frechet_distance_between(single[0], half[0]) / distance,
    }.items():
        remark = f"{100 * change:+.2f} % of the distance in float32, {distance:.4g}, {pictures} pictures on either side"
        yield Row(name, math.nan, math.nan, remark)


# -- the command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print a table, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("what", choices=["frechet", "kid", "inception", "all"], nargs="?", default="all")
    parser.add_argument("--turns", type=int, default=3, help="how often each contestant is timed")
    parser.add_argument("--pictures", type=int, default=64, help="on either side of Inception's Fréchet distance")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    given = parser.parse_args(arguments)
    if given.turns < 1 or given.pictures < 16:
        parser.error(f"--turns must be 1 or more and --pictures 16, got {given.turns} and {given.pictures}")

    torch.set_num_threads(1)
    torch.manual_seed(0)  # torchmetrics draws its subsets from the global state
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "frechet": lambda: frechet(given.turns),
        "kid": lambda: kid(given.turns),
        "inception": lambda: inception(given.turns, given.pictures),
    }
    machine = device_name(torch.device("cpu"))
    versions = {name: version(name) for name in ("torch", "torchmetrics", "torch-fidelity")}
    print(f"{machine}, one thread; " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    rows: dict[str, list[Row]] = {}
    with threadpool_limits(1):
        for part in parts if given.what == "all" else [given.what]:
            print(f"\n{part:45}{'CPU ms':>10}{'faster':>9}")
            rows[part] = []
            for row in parts[part]():
                rows[part].append(row)
                print(
                    f"{row.name:45}"
                    + (f"{1e3 * row.seconds:10.2f}{row.ratio:8.1f}x" if math.isfinite(row.seconds) else 19 * " ")
                    + f"  {row.remark}",
                    flush=True,
                )
    if given.json:
        result = {
            "machine": machine,
            "versions": versions,
            "rows": {part: [row._asdict() for row in part_rows] for part, part_rows in rows.items()},
        }
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
