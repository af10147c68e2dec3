"""Distances between distributions that do not overlap, and how well a critic measures Wasserstein-1.

Between two parallel lines at distance theta KL is infinite and JS is log 2 wherever they stand; only Wasserstein-1,
|theta|, tells how far they are (1701.07875, example 1). A critic's estimate of it is within 5 % of the exact figure
between four pairs of distributions.

The estimate is E f(x) - E f(y) over 50,000 fresh points each, f being trained to make it large under a one-sided
gradient penalty of weight 100. It is no lower bound: the penalty lets the slope grow to 1 + W1 / 200 before it wins.

    python examples/distances.py
"""

import math

import torch
from plot import COLORS, Chart, output_folder, save, write_table

from lightning_gen.data.toy import Line, Mixture, PointDistribution, RingOfGaussians
from lightning_gen.losses import GradientPenalty, Wasserstein
from lightning_gen.metrics.toy import wasserstein_1
from lightning_gen.networks import MLPDiscriminator


def critic_estimate(p: PointDistribution, q: PointDistribution, steps: int) -> tuple[float, float]:
    """E f(x) - E f(y) for x from p, y from q and a trained critic f, and the largest slope of f between them."""
    torch.manual_seed(0)
    critic = MLPDiscriminator((p.dimensions, 1, 1), widths=(64, 64), maxout=1, dropout=0, input_dropout=0)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    loss, penalty = Wasserstein(), GradientPenalty(weight=100.0, one_sided=True)
    for _ in range(steps):
        x, y = p.sample(256), q.sample(256)
        optimizer.zero_grad()
        (loss.discriminator(critic(x), critic(y)) + penalty(critic, x, y)).backward()
        optimizer.step()
        schedule.step()
    x, y = p.sample(50_000), q.sample(50_000)
    between = torch.lerp(y, x, torch.rand(len(x), 1)).requires_grad_()
    (gradients,) = torch.autograd.grad(critic(between).sum(), between)
    with torch.no_grad():
        return (critic(x).mean() - critic(y).mean()).item(), gradients.norm(dim=1).max().item()


def exact_distance(p: PointDistribution, q: PointDistribution) -> float:
    """Wasserstein-1 of samples: sorting on the line, where they are cheap, and the best matching of 2000 elsewhere."""
    number = 1_000_000 if p.dimensions == 1 else 2000
    generator = torch.Generator().manual_seed(1)
    return wasserstein_1(p.sample(number, generator), q.sample(number, generator))


def line_divergences(theta: float) -> tuple[float, float, float]:
    """KL, JS and Wasserstein-1 between the line at 0 and the line at theta."""
    return (math.inf, math.log(2), abs(theta)) if theta else (0.0, 0.0, 0.0)


def main() -> None:
    """Measure pairs and lines, draw both, and check the claim."""
    folder = output_folder("distances", __doc__)
    torch.set_num_threads(1)  # the critics are too small to share out
    ring = RingOfGaussians().distribution
    pairs: dict[str, tuple[PointDistribution, PointDistribution, float | None]] = {
        "1-D: N(-0.5, 0.25^2), N(0.5, 0.25^2)": (Mixture([[-0.5]], 0.25), Mixture([[0.5]], 0.25), 1.0),
        "1-D: two Gaussians at -1 and 1, N(0, 0.5^2)": (Mixture([[-1.0], [1.0]], 0.25), Mixture([[0.0]], 0.5), None),
        "2-D: parallel lines, theta = 1": (Line(0.0), Line(1.0), 1.0),
        "2-D: ring of 8 Gaussians, N(0, 0.2^2 I)": (ring, Mixture([[0.0, 0.0]], 0.2), None),
    }
    rows = []
    print(f"{'pair':46} {'exact W1':>9} {'critic':>8} {'error':>8} {'largest slope':>14}")
    for name, (p, q, closed_form) in pairs.items():
        exact = closed_form if closed_form is not None else exact_distance(p, q)
        estimate, slope = critic_estimate(p, q, steps=1500)
        rows.append((name, exact, estimate, 100 * (estimate / exact - 1), slope))
        print(f"{name:46} {exact:9.4f} {estimate:8.4f} {rows[-1][3]:+7.2f}% {slope:14.3f}")

    thetas = [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]
    lines = [
        (theta, *line_divergences(theta), critic_estimate(Line(0.0), Line(theta), steps=500)[0]) for theta in thetas
    ]  # fmt: skip
    left = Chart("Parallel lines at distance theta", "theta", "nats or lengths", (-1.1, 1.1), (-0.05, 1.9))
    fine = torch.linspace(-1, 1, 201).tolist()
    curves = zip(*(line_divergences(round(theta, 6)) for theta in fine), strict=True)
    names = ("KL: infinite (cut off) but at 0", "JS: log 2 but at 0", "Wasserstein-1: |theta|")
    for name, curve, color in zip(names, curves, COLORS, strict=False):
        left.line(fine, [min(value, 1.2) for value in curve], name, color)
    left.dots(thetas, [line[4] for line in lines], "critic's estimate", COLORS[3], radius=5)
    right = Chart("Four pairs: the critic's error", "pair", "%", (0.5, 4.5), (-6, 12))
    right.line([0, 5], [5, 5], "5 % of the exact Wasserstein-1", COLORS[5], width=1)
    for limit in (0, -5):
        right.line([0, 5], [limit, limit], "", COLORS[5], width=1)
    for i, (row, color) in enumerate(zip(rows, COLORS, strict=False), start=1):
        right.dots([i], [row[3]], row[0], color, radius=6)
    save(folder / "distances.png", [left, right])
    write_table(folder / "distances.csv", ["pair", "exact", "critic", "error in %", "largest slope"], rows)
    write_table(folder / "lines.csv", ["theta", "KL", "JS", "Wasserstein-1", "critic"], lines)

    assert max(abs(row[3]) for row in rows) < 5, "an estimate is more than 5 % off"
    assert max(abs(line[3] - line[4]) for line in lines) < 0.05, "an estimate between two lines is more than 0.05 off"


if __name__ == "__main__":
    main()
