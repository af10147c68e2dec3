"""Gumbel-softmax: between draws of one category and the mean of all, by temperature (1611.01144, figure 1).

Seven categories, drawn by the library's own layer. Cold, a sample is nearly one category, each as often as it is
likely, so the expectation is their probabilities. Hot, every sample is nearly uniform, and so is the expectation. But
at any temperature the category of the largest weight is a fair draw: only what is passed on of it is another.

    python examples/gumbel_softmax.py
"""

from itertools import pairwise

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor

from lightning_gen.layers import GumbelQuantizer

PROBABILITIES = torch.tensor([0.04, 0.08, 0.30, 0.16, 0.05, 0.25, 0.12])
CATEGORIES = len(PROBABILITIES)
TEMPERATURES = (0.1, 0.5, 1.0, 10.0)
COUNT = 100_000
CHI_SQUARED = 27.9  # of 6 degrees of freedom: passed by chance once in 10,000 times


def weights_of(probabilities: Tensor, temperature: float, count: int, seed: int = 0) -> Tensor:
    """Weights `[count, K]` of samples: what a quantizer gives whose codebook are the unit vectors."""
    quantizer = GumbelQuantizer(len(probabilities), len(probabilities), temperature=temperature)
    for layer in (quantizer.to_logits, quantizer.codebook):
        torch.nn.init.eye_(layer.weight)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return quantizer.train()(probabilities.log().expand(count, -1)).quantized


def chi_squared(weights: Tensor, probabilities: Tensor) -> float:
    """How far the frequencies of the largest weights are from the probabilities."""
    expected = probabilities * len(weights)
    observed = weights.argmax(1).bincount(minlength=len(probabilities))
    return ((observed - expected).square() / expected).sum().item()


def distance(a: Tensor, b: Tensor) -> float:
    """The total variation between distributions: 0 if they are one, 1 if they share nothing."""
    return ((a - b).abs().sum() / 2).item()


def bars(title: str, heights: Tensor, color: str) -> Chart:
    """A bar for each category, and a mark at its probability."""
    places = range(1, CATEGORIES + 1)
    chart = Chart(title, "category", "weight", (0, CATEGORIES + 1), (0, 1), size=(300, 230))
    for place, height, probability in zip(places, heights.tolist(), PROBABILITIES.tolist(), strict=True):
        chart.line([place, place], [0, height], "", color, width=18)
        chart.line([place - 0.4, place + 0.4], [probability, probability], "", "black", width=1)
    return chart


def main() -> None:
    """Draw samples at each temperature, show their mean and the first, and check the claims."""
    folder = output_folder("gumbel_softmax", __doc__)
    means, samples, rows = [bars("The probabilities", PROBABILITIES, COLORS[5])], [], []
    drawn = int(PROBABILITIES.multinomial(1, generator=torch.Generator().manual_seed(0)))
    samples.append(bars("A draw of one category", torch.eye(CATEGORIES)[drawn], COLORS[5]))
    uniform = torch.full((CATEGORIES,), 1 / CATEGORIES)
    off, from_uniform, largest = [], [], []
    for number, temperature in enumerate(TEMPERATURES):
        weights = weights_of(PROBABILITIES, temperature, COUNT, seed=number)
        mean, sample = weights.mean(0), weights[0]
        frequencies = weights.argmax(1).bincount(minlength=CATEGORIES) / COUNT
        off.append(distance(mean, PROBABILITIES))
        from_uniform.append(distance(mean, uniform))
        largest.append(weights.amax(1).mean().item())
        fairness = chi_squared(weights, PROBABILITIES)
        print(
            f"temperature {temperature:4}: the expectation is {off[-1]:.3f} from the probabilities and "
            f"{from_uniform[-1]:.3f} from uniform, the largest weight {largest[-1]:.3f} on average; chi-squared of the "
            f"categories that have it {fairness:.1f}"
        )
        means.append(bars(f"Expectation, temperature {temperature:g}", mean, COLORS[0]))
        samples.append(bars(f"Sample, temperature {temperature:g}", sample, COLORS[2]))
        rows += [
            (temperature, category + 1, *(float(each[category]) for each in (PROBABILITIES, mean, sample, frequencies)))
            for category in range(CATEGORIES)
        ]
        assert fairness < CHI_SQUARED, "at any temperature the largest weight should be a fair draw"
    save(folder / "gumbel_softmax.png", [*means, *samples], columns=len(means))
    header = ["temperature", "category", "probability", "expectation", "sample", "frequency of the largest"]
    write_table(folder / "gumbel_softmax.csv", header, rows)

    assert off[0] < 0.01, "cold, the expectation should be the probabilities"
    assert largest[0] > 0.9, "and a sample nearly one category"
    assert from_uniform[-1] < 0.05, "hot, the expectation should be uniform"
    assert all(cold < hot for cold, hot in pairwise(off)), "in between, it should leave the one"
    assert all(cold > hot for cold, hot in pairwise(from_uniform)), "for the other"


if __name__ == "__main__":
    main()
