"""The Inception Score is best infinitely far from the data (1801.01973).

The data are 1-D: two classes, N(-1, 2) and N(1, 2), equally many of each, and p(y | x) is Bayes' rule, so that neither
the data nor the classifier can be blamed. The 2 is taken as the variance. Taken as the standard deviation, which is
measured too, it makes the data's score smaller yet, and all else holds.

A generator whose points start as the data, a perfect one, climbs the score. Every point moves outward at every step:
the score nears 2, the number of classes, and never reaches it; the distance from the data grows without end.

    python examples/inception_score_failure.py
"""

import math
from itertools import pairwise

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor

from lightning_gen.data.toy import Mixture
from lightning_gen.metrics.frechet import Gaussian, frechet_distance
from lightning_gen.metrics.scores import inception_score
from lightning_gen.metrics.toy import wasserstein_1

STDS = {"variance 2": math.sqrt(2), "deviation 2": 2.0}
POINTS, STEPS, EVERY, RATE = 4000, 300, 10, 0.1


def truth(std: float) -> Mixture:
    """The data: N(-1, std^2) and N(1, std^2), equally many of each."""
    return Mixture([[-1.0], [1.0]], std)


def draw(std: float, seed: int) -> Tensor:
    """Points of the data and their mirror images, which makes the classes exactly equal: float64 `[POINTS]`."""
    half = truth(std).sample(POINTS // 2, torch.Generator().manual_seed(seed)).flatten().double()
    return torch.cat([half, -half])


def logits(points: Tensor, std: float) -> Tensor:
    """The log of either class's density, up to a constant: `[N]` to `[N, 2]`, whose softmax is p(y | x)."""
    return -((points[:, None] - points.new_tensor([-1.0, 1.0])) ** 2) / (2 * std**2)


def score(points: Tensor, std: float) -> float:
    """The Inception Score of all points `[N]` in one split."""
    return inception_score(logits(points, std), splits=1).mean


def gradients(points: Tensor, std: float) -> Tensor:
    """N times the gradient of the score's logarithm, the mean of KL(p(y | x) || p(y)), at each of N points."""
    points = points.detach().requires_grad_()
    log_p = logits(points, std).log_softmax(1)
    divergences = (log_p.exp() * (log_p - log_p.exp().mean(0).log())).sum(1)
    return torch.autograd.grad(divergences.sum(), points)[0]


def climb(points: Tensor, std: float) -> list[Tensor]:
    """Where the points `[N]` are at first and after every `EVERY` steps of the gradient's sign.

    The gradient itself falls as |x| exp(-2 |x| / std^2): steps of its size would take exp(2 |x| / std^2) to x.
    """
    path = [points]
    for step in range(1, STEPS + 1):
        points = points + RATE * gradients(points, std).sign()
        if step % EVERY == 0:
            path.append(points)
    return path


def main() -> None:
    """Climb, draw, and check the claim."""
    folder = output_folder("inception_score_failure", __doc__)
    torch.set_num_threads(1)
    steps = list(range(0, STEPS + 1, EVERY))
    paths = Chart("25 points of a generator that climbs the score", "steps", "x", (0, STEPS), (-40, 40))
    scores = Chart("Its score; there are 2 classes", "steps", "", (0, STEPS), (0.7, 2.1), legend="lower right")
    away = Chart("Its distance from the data", "steps", "", (0, STEPS), (1e-3, 1e4), log_y=True, legend="lower right")
    pull = Chart("What pulls a point outward, far beyond the data", "x", "", (-32, 32), (1e-14, 100), log_y=True)
    x = torch.linspace(-32, 32, 400, dtype=torch.float64)
    rows, outward = [], True
    for i, (name, std) in enumerate(STDS.items()):
        path, others = climb(draw(std, seed=0), std), draw(std, seed=1)[:, None]
        outward &= all(bool(((later - earlier) * earlier.sign() > 0).all()) for earlier, later in pairwise(path))
        moments = Gaussian(POINTS, torch.zeros(1), torch.tensor([[1 + std**2]], dtype=torch.float64))
        values = [score(points, std) for points in path]
        frechet = [frechet_distance(moments, Gaussian.fit(points[:, None])) for points in path]
        wasserstein = [wasserstein_1(others, points[:, None]) for points in path]
        nearest = [points.abs().min().item() for points in path]
        rows += [(name, *row) for row in zip(steps, values, frechet, wasserstein, nearest, strict=True)]
        print(f"{name:12} score of the data {values[0]:.4f}, after {STEPS} steps {values[-1]:.9f}")
        print(f"{'':12} Fréchet distance {frechet[0]:.2g} and {frechet[-1]:.0f}, W1 {wasserstein[-1]:.1f}")
        scores.line(steps, values, f"generator, {name}", COLORS[i])
        scores.line([0, STEPS], [values[0]] * 2, f"data, {name}", COLORS[i + 2])
        if i == 0:
            for point in torch.stack(path, 1)[:: POINTS // 25]:
                paths.line(steps, point.tolist(), "", COLORS[0], width=0.7)
            paths.line([0, STEPS], [1 + 1.65 * std] * 2, "95 % of the data are within", COLORS[1])
            paths.line([0, STEPS], [-1 - 1.65 * std] * 2, "", COLORS[1])
            away.line(steps, frechet, "Frechet distance", COLORS[0])
            away.line(steps, wasserstein, "Wasserstein-1", COLORS[1])
            pull.line(x.tolist(), (gradients(x, std) * x.sign()).tolist(), "the score's gradient, outward", COLORS[0])
            pull.line(x.tolist(), truth(std).log_prob(x[:, None]).exp().tolist(), "the data's density", COLORS[1])
    save(folder / "inception_score_failure.png", [paths, scores, away, pull])
    header = ["the 2 is", "step", "score", "Fréchet distance", "Wasserstein-1", "smallest |x|"]
    write_table(folder / "inception_score_failure.csv", header, rows)

    assert outward, "a point moved inward"
    for name in STDS:
        of_data, *climbed = (row[2:4] for row in rows if row[0] == name)
        assert of_data[0] < 1.3, "the data's score should be far below 2"
        assert 2 - 1e-3 < climbed[-1][0] < 2 + 1e-12, "the score should near the number of classes"
        assert all(a[0] <= b[0] and a[1] < b[1] for a, b in pairwise([of_data, *climbed])), "they should rise together"
        assert climbed[-1][1] > 500 > 0.1 > of_data[1], "the generator should be far from the data in the end"


if __name__ == "__main__":
    main()
