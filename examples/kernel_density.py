"""The bandwidth of a kernel density: too narrow it repeats the data, too wide it blurs them away (Parzen 1962).

Three widths on a mixture of two Gaussians on the line and on a ring of eight in the plane, and the curve that picks the
right one: the likelihood of training points, each left out of its own density, is highest where that of new points is.

    python examples/kernel_density.py
"""

import math
from itertools import pairwise

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor

from lightning_gen.data.toy import PointDataModule, RingOfGaussians, TwoGaussians
from lightning_gen.losses.kernel_density import log_density
from lightning_gen.models.kde import KDE

POINTS, HELD_OUT = 200, 5000
FACTORS = [2 ** (i / 4) for i in range(-16, 17)]  # of the width that cross-validation chooses
SHOWN = {"too narrow": 1 / 10, "cross-validated": 1.0, "too wide": 8.0}
DATA = {
    "the line": TwoGaussians(num_train=POINTS, num_val=HELD_OUT, batch_size=POINTS),
    "the plane": RingOfGaussians(std=0.25, num_train=POINTS, num_val=HELD_OUT, batch_size=POINTS),
}


def draw(data: PointDataModule, count: int, seed: int) -> Tensor:
    """Points `[count, d, 1, 1]` of the data's distribution."""
    return data.distribution.sample(count, torch.Generator().manual_seed(seed))[:, :, None, None]


def fit(points: Tensor, bandwidth: float | str = "cv") -> KDE:
    """A Gaussian kernel at every point, its width chosen if none is given."""
    model = KDE((points.shape[1], 1, 1), bandwidth=bandwidth)  # type: ignore[arg-type]
    model.add(points)
    model.log_prob(points[:1])
    return model


def curves(train: Tensor, held_out: Tensor, bandwidths: list[float]) -> tuple[list[float], list[float]]:
    """The mean log-likelihood of training points left out one by one, and of new points, at each width."""
    train, held_out, own = train.flatten(1), held_out.flatten(1), torch.arange(len(train))
    left_out = [log_density(train, train, h, own=own).mean().item() for h in bandwidths]
    return left_out, [log_density(held_out, train, h).mean().item() for h in bandwidths]


def line_chart(train: Tensor, width: float) -> Chart:
    """Densities on the line, and the truth."""
    x = torch.linspace(-1, 1, 801, dtype=torch.float64)[:, None]
    chart = Chart("Densities on the line from 200 points", "x", "p(x)", (-1, 1), (0, 4.5))
    for (name, factor), color in zip(SHOWN.items(), (COLORS[3], COLORS[0], COLORS[1]), strict=True):
        density = log_density(x, train.flatten(1), factor * width).exp()
        chart.line(x.flatten().tolist(), density.tolist(), f"{name}, h = {factor * width:.2g}", color)
    truth = DATA["the line"].distribution.log_prob(x).exp()
    chart.line(x.flatten().tolist(), truth.tolist(), "truth", "black", width=1)
    return chart


def plane_chart(name: str, train: Tensor, width: float) -> Chart:
    """The density in the plane as a map, from white, 0, to red."""
    side = torch.linspace(-1, 1, 301, dtype=torch.float64)
    places = torch.cartesian_prod(side, side)
    density = log_density(places, train.flatten(1), width).exp().view(301, 301).T.flip(0)
    chart = Chart(f"{name}, h = {width:.2g}", "x", "y", (-1, 1), (-1, 1))
    chart.heat(density.numpy(), -density.max().item(), density.max().item())
    return chart


def main() -> None:
    """Fit, sweep, draw, and check the claim."""
    folder = output_folder("kernel_density", __doc__)
    torch.set_num_threads(1)
    charts, maps, rows = [], [], []
    for seed, (name, data) in enumerate(DATA.items()):
        train, held_out = draw(data, POINTS, 2 * seed), draw(data, HELD_OUT, 2 * seed + 1)
        chosen = fit(train).width.item()
        widths = [factor * chosen for factor in FACTORS]
        left_out, new = curves(train, held_out, widths)
        best = max(range(len(widths)), key=new.__getitem__)
        truth = data.distribution.log_prob(held_out).mean().item()
        print(
            f"{name}: cross-validation chooses h = {chosen:.4f}, the best for new points is {widths[best]:.4f}; nats "
            f"of new points {new[FACTORS.index(1.0)]:.3f}, at best {new[best]:.3f}, under the truth {truth:.3f}"
        )
        rows += [(name, h, a, b) for h, a, b in zip(widths, left_out, new, strict=True)]
        x = [math.log2(h) for h in widths]
        low, high = min(new[-1], truth - 3), truth + 0.4
        chart = Chart(f"The likelihood curve in {name}" if seed else "The likelihood curve on the line", "log2 h",
                      "nats a point", (x[0], x[-1]), (low, high), legend="lower right")  # fmt: skip
        chart.line(x, left_out, "training points, left out", COLORS[0])
        chart.line(x, new, "new points", COLORS[1])
        chart.line([x[0], x[-1]], [truth, truth], "new points under the truth", COLORS[5], width=1)
        chart.dots([math.log2(chosen)], [left_out[FACTORS.index(1.0)]], "chosen", "black", radius=5)
        charts += [chart] if seed else [line_chart(train, chosen), chart]
        if seed:
            maps = [plane_chart(f"The plane, {label}", train, factor * chosen) for label, factor in SHOWN.items()]

        assert 2 / 3 < chosen / widths[best] < 3 / 2, "cross-validation should choose nearly the best width"
        assert new[best] - new[FACTORS.index(1.0)] < 0.03, "and cost next to nothing"
        assert all(a < b for a, b in pairwise(new[: best + 1])), "narrower should be worse and worse"
        assert all(a > b for a, b in pairwise(new[best:])), "wider should be worse and worse"
        assert truth > new[best], "nothing should beat the truth"
    save(folder / "kernel_density.png", [*charts, *maps], columns=3)
    write_table(folder / "kernel_density.csv", ["data", "h", "left out, nats", "new points, nats"], rows)


if __name__ == "__main__":
    main()
