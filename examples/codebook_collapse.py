"""How a codebook collapses, and what k-means, restarts and narrow normalised codes do about it.

Features are 512 clusters in 16 dimensions, far from the origin and close together at first, as those of an encoder that
has learned nothing, which spread over 300 steps; after 600 they all move away within 20, as when the encoder finds
something new. Codes by running means begin near the origin, so a few of 256 win everything and the others never learn.
K-means begins where the features are, but has no answer when they move. Codes that begin anew when hardly used come
back each time. So do codes of size 8 and length 1, which are compared by direction after a learned projection
(2110.04627), at the price of what 8 of 16 dimensions cannot hold.

    python examples/codebook_collapse.py
"""

import torch
import torch.nn.functional as F
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor

from lightning_gen.layers.quantize import VectorQuantizer
from lightning_gen.metrics.codebook import CodebookUsage

CODES, SIZE, CLUSTERS, TOKENS = 256, 16, 512, 1024
SPREAD_BY, MOVE_AT, MOVED_BY, STEPS, EVERY = 300, 600, 620, 1200, 20
QUANTIZERS = {
    "plain": {"restart_below": 0},
    "k-means": {"restart_below": 0, "kmeans_iterations": 10},
    "restarts": {"restart_below": 0.03},
    "narrow, normalised": {"restart_below": 0, "code_size": 8, "normalize": True},
}


def share(step: int, begin: int, end: int) -> float:
    """How much of the way from one step to another is gone."""
    return min(1.0, max(0.0, (step - begin) / (end - begin)))


def features(step: int, number: int, generator: torch.Generator) -> Tensor:
    """Tokens `[number, SIZE]` as the encoder gives them at a step."""
    of_the_encoder = torch.Generator().manual_seed(0)
    centres, middle = (torch.randn(rows, SIZE, generator=of_the_encoder) for rows in (CLUSTERS, 1))
    chosen = centres[torch.randint(CLUSTERS, (number,), generator=generator)]
    around = chosen + 0.2 * torch.randn(number, SIZE, generator=generator)
    return (1 + 2 * share(step, MOVE_AT, MOVED_BY)) * middle + (0.1 + 0.9 * share(step, 0, SPREAD_BY)) * around


def measure(quantizer: VectorQuantizer, step: int) -> tuple[float, float, float]:
    """Of 8,192 tokens: the share of codes in use, their perplexity, and the error beside the features' variance."""
    tokens, usage = features(step, 8192, torch.Generator().manual_seed(1)), CodebookUsage(CODES)
    with torch.no_grad():
        quantized, codes, _ = quantizer.eval()(tokens)
    quantizer.train()
    usage.update(codes)
    figures = usage.compute()
    error = F.mse_loss(quantized, tokens) / tokens.var(0).mean()
    return figures["used"].item(), figures["perplexity"].item(), error.item()


def train(quantizer: VectorQuantizer, steps: int = STEPS) -> list[tuple[int, float, float, float]]:
    """Let it follow the features; what it learns by gradient, it learns from the error. (step, figures) on the way."""
    learned, random, rows = list(quantizer.parameters()), torch.Generator().manual_seed(2), []
    optimizer = torch.optim.Adam(learned, lr=0.01) if learned else None
    for step in range(steps + 1):
        if step % EVERY == 0:
            rows.append((step, *measure(quantizer, step)))
        tokens = features(step, TOKENS, random)
        quantized, _, losses = quantizer(tokens)
        if optimizer:
            optimizer.zero_grad()
            (F.mse_loss(quantized, tokens) + sum(losses.values())).backward()
            optimizer.step()
    return rows


def main() -> None:
    """Train, draw, and check the claims."""
    folder, table = output_folder("codebook_collapse", __doc__), []
    torch.set_num_threads(1)
    used = Chart(f"Codes in use, of {CODES}", "step", "share", (0, STEPS), (0, 1.05))
    error = Chart("Error, beside the features' variance", "step", "share", (0, STEPS), (0, 1.5))
    before, after = {}, {}
    for (name, settings), color in zip(QUANTIZERS.items(), COLORS, strict=False):
        torch.manual_seed(0)
        rows = train(VectorQuantizer(SIZE, CODES, **settings))
        steps, shares, _, errors = zip(*rows, strict=True)
        used.line(steps, shares, "", color)
        error.line(steps, errors, name, color)
        table += [(name, *row) for row in rows]
        before[name], after[name] = (next(s for step, s, *_ in rows if step == at) for at in (MOVE_AT, STEPS))
        print(f"{name}: {before[name]:.0%} in use after {MOVE_AT} steps, {after[name]:.0%} after {STEPS}", flush=True)
    save(folder / "codebook_collapse.png", [used, error])
    write_table(folder / "codebook_collapse.csv", ["codes", "step", "used", "perplexity", "error"], table)

    for name in ("k-means", "restarts", "narrow, normalised"):
        assert before[name] > 3 * before["plain"], f"{name} should have three times as many codes in use as plain ones"
        assert before[name] > 0.95, f"{name} should have nearly all codes in use"
    assert after["plain"] < after["k-means"] < 0.1, "without an answer codes should be lost when features move"
    assert min(after["restarts"], after["narrow, normalised"]) > 0.9, "the others should come back"


if __name__ == "__main__":
    main()
