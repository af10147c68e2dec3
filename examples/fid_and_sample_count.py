"""The FID falls with the number of samples, and who is better can depend on it (1801.01401, 1911.07023).

64 features are N(0, I) for the data and N(0, s^2 I) for a model, so that all is known: the true distance is
64 (s - 1)^2, and that of N samples is c / N above it, c growing with s. A model that spreads 10 % too far is better
than one that spreads 12.5 % too little, but looks worse where N is small. A line in 1 / N leads to the truth. The
kernel distance (KID) has no bias at any N, but it scatters more. The real side of the FID is the exact Gaussian.

    python examples/fid_and_sample_count.py
"""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise, product

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor

from lightning_gen.metrics.frechet import Gaussian, frechet_distance, frechet_infinity
from lightning_gen.metrics.scores import kernel_distance

D = 64
DATA = Gaussian(2, torch.zeros(D), torch.eye(D))
MODELS = {"the data, s = 1": 1.0, "too wide, s = 1.1": 1.1, "too narrow, s = 0.875": 0.875}  # the last is the worst
COUNTS = [200, 300, 500, 1000, 2000, 5000, 10_000]


def distance(s: float) -> float:
    """The Fréchet distance of N(0, I) and N(0, s^2 I)."""
    return D * (s - 1) ** 2


def bias(s: float) -> float:
    """How much farther N samples of N(0, s^2 I) are from N(0, I), times N, up to 1 / N^2: c.

    The mean's share is s^2 D / N. A covariance s^2 (I + E) has E of entries of variance 1 / N, 2 / N on the diagonal,
    and -2 tr (I + E)^(1/2) has the second order tr E^2 / 4, of mean D (D + 1) / 4 N.
    """
    return s**2 * D + s * D * (D + 1) / 4


def squared_mmd(s: float) -> float:
    """What the kernel distance of N(0, I) and N(0, s^2 I) estimates: only (x.y)^2 has means that differ."""
    return 3 * (s**2 - 1) ** 2 / D


def samples(s: float, count: int, generator: torch.Generator) -> Tensor:
    """Features `[count, D]` of a model."""
    return s * torch.randn(count, D, generator=generator)


def measure(s: float, count: int, generator: torch.Generator) -> list[tuple[float, float]]:
    """FID and KID of so many samples, some 20 to 100 times."""
    return [
        (
            frechet_distance(DATA, Gaussian.fit(samples(s, count, generator))),
            kernel_distance(samples(1.0, count, generator), samples(s, count, generator)).value,
        )
        for _ in range(min(100, max(20, 40_000 // count)))
    ]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of independent values and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    """Measure, extrapolate, draw, and check the claim."""
    folder = output_folder("fid_and_sample_count", __doc__)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    fids = Chart("FID of N samples", "1000 / N", "mean; lines: truth + c / N", (0, 5.2), (0, 8), legend="upper left")
    kids = Chart("KID of N samples, in thousandths", "1000 / N", "mean, 2 errors; lines: truth", (0, 5.2), (-2, 5))
    fits = Chart("Extrapolation from 10,000 samples", "1000 / N", "", (-0.02, 0.55), (-0.1, 2), legend="upper left")
    wins = Chart("How often the better model looks better", "log10 N", "%", (2.2, 4.1), (0, 105), legend="lower right")
    rows, extrapolated, found = [], [], []
    for i, ((name, s), color) in enumerate(zip(MODELS.items(), COLORS, strict=False)):
        found.append([measure(s, count, generator) for count in COUNTS])
        for count, values in zip(COUNTS, found[-1], strict=True):
            fid, kid = (mean_and_error(figure) for figure in zip(*values, strict=True))
            rows.append((name, count, *fid, distance(s) + bias(s) / count, *kid, squared_mmd(s)))
            print(f"{name:22} N = {count:5}: FID {fid[0]:.4f} +- {fid[1]:.4f}, KID {kid[0]:.6f} +- {kid[1]:.6f}")
            x = 1000 / count + 0.03 * i  # beside each other
            fids.dots([1000 / count], [fid[0]], "", color, radius=4)
            kids.dots([x], [1000 * kid[0]], "", color, radius=4)
            kids.line([x, x], [1000 * (kid[0] + k * kid[1]) for k in (-2, 2)], "", color)
        fids.line([0, 6], [distance(s), distance(s) + 6 * bias(s) / 1000], name, color, width=1)
        kids.line([0, 6], [1000 * squared_mmd(s)] * 2, name, color, width=1)

        fit, *more = [frechet_infinity(DATA, samples(s, 10_000, generator), smallest=2000) for _ in range(20)]
        value, error = mean_and_error([run.value for run in (fit, *more)])
        stated, _ = mean_and_error([run.standard_error for run in (fit, *more)])
        extrapolated.append((name, distance(s), rows[-1][2], value, error, error * math.sqrt(20), stated))
        print(f"{name:22} extrapolated: {value:.4f} +- {error:.4f}, in truth {distance(s):.4f}")
        fits.dots([1000 / count for count in fit.counts], fit.distances, "", color)
        fits.line([0, 1], [fit.value, fit.value + fit.slope / 1000], name, color, width=1)
    fits.dots([0] * len(MODELS), [distance(s) for s in MODELS.values()], "truth", "black", radius=6)
    for i, figure in enumerate(("FID", "KID")):
        shares = [statistics.fmean(a[i] < b[i] for a, b in product(*both)) for both in zip(*found[1:], strict=True)]
        wins.line([math.log10(n) for n in COUNTS], [100 * share for share in shares], figure, COLORS[i + 3])
    save(folder / "fid_and_sample_count.png", [fids, kids, fits, wins])
    header = ["model", "N", "FID", "its error", "truth + c / N", "KID", "its error", "true KID"]
    write_table(folder / "fid_and_sample_count.csv", header, rows)
    header = ["model", "truth", "FID of 10,000", "mean of 20 fits", "its error", "error of one", "stated error"]
    write_table(folder / "fid_extrapolation.csv", header, extrapolated)

    of_data, wide, narrow = ([row[2] for row in rows if row[0] == name] for name in MODELS)
    assert all(a > b for fids in (of_data, wide, narrow) for a, b in pairwise(fids)), "the FID should fall with N"
    assert all(abs(row[2] / row[4] - 1) < 0.05 for row in rows), "the FID should be c / N above the truth"
    assert all(abs(row[5] - row[7]) < 4 * row[6] for row in rows), "the KID should be right at every N"
    assert [n for n, a, b in zip(COUNTS, wide, narrow, strict=True) if a < b] == COUNTS[3:], "it should turn at N = 730"
    for _, truth, finite, value, error, *_ in extrapolated:
        assert abs(value - truth) < min(3 * error, 0.1 * (finite - truth)), "the extrapolation should meet the truth"


if __name__ == "__main__":
    main()
