"""What spectral norm does to the ground that a discriminator lays out for the generator.

Two perceptrons learn, with the hinge loss, to tell a ring of 8 Gaussians from points spread evenly over the square. The
free one has plains, where the generator learns nothing, and steep walls. The other's layers are all divided by their
largest singular values (1802.05957), so its slope is at most 1 everywhere. After training, the SVD of every layer's
weight confirms that its norm is 1 within 1 %.

    python examples/spectral_norm_landscape.py
"""

import torch
from plot import Chart, output_folder, save, write_table
from torch import Tensor, nn

from lightning_gen.data.toy import RingOfGaussians
from lightning_gen.layers.spectral_norm import power_iteration, spectral_norms
from lightning_gen.losses import Hinge
from lightning_gen.networks import MLPDiscriminator
from lightning_gen.networks.building import SpectralNormKind

RING = RingOfGaussians().distribution
VIEW, CELLS = 1.2, 201


def train(norm: SpectralNormKind, steps: int) -> nn.Module:
    """A discriminator that has seen `steps` batches of 256 points of each kind."""
    torch.manual_seed(0)
    judge = MLPDiscriminator(
        (2, 1, 1), widths=(128, 128, 128), maxout=1, dropout=0, input_dropout=0, spectral_norm=norm
    )  # fmt: skip
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.0, 0.9))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    weights = spectral_norms(judge).values()
    for _ in range(steps):
        real, fake = RING.sample(256), torch.rand(256, 2) * 2 - 1
        power_iteration(weights, 8)  # SpectralNormPowerIteration(8) in a fit; one would lag some per cent behind
        optimizer.zero_grad()
        Hinge().discriminator(judge(real), judge(fake)).backward()
        optimizer.step()
        schedule.step()
    return judge


def layer_norms(judge: nn.Module) -> dict[str, float]:
    """The largest singular value of each normalised layer's weight, by SVD."""
    return {name: weight.true_sigma().item() for name, weight in spectral_norms(judge).items()}


def landscape(judge: nn.Module) -> tuple[Tensor, Tensor]:
    """Scores and slopes `[CELLS, CELLS]` over the square of side 2 VIEW, the first row at the top."""
    places = torch.linspace(-VIEW, VIEW, CELLS)
    y, x = torch.meshgrid(places.flip(0), places, indexing="ij")
    points = torch.stack([x, y], dim=-1).flatten(0, 1).requires_grad_()
    scores = judge(points)
    (gradients,) = torch.autograd.grad(scores.sum(), points)
    return scores.detach().view(CELLS, CELLS), gradients.norm(dim=1).view(CELLS, CELLS)


def main() -> None:
    """Train both, draw what they say and how steep it is, and check the claim."""
    folder = output_folder("spectral_norm_landscape", __doc__)
    torch.set_num_threads(1)  # the networks are too small to share out
    charts, rows, steepest = [], [], {}
    norms: dict[str, SpectralNormKind] = {"without": "none", "with": "reshape"}
    for name, norm in norms.items():
        judge = train(norm, steps=800)
        scores, slopes = landscape(judge)
        steepest[name] = slopes.max().item()
        print(f"{name:8} spectral norm: largest slope {steepest[name]:.3f}, median {slopes.median():.3f}")
        rows += [(f"{name} spectral norm, largest slope", steepest[name])]
        for layer, sigma in layer_norms(judge).items():
            print(f"{'':8} {layer}: largest singular value {sigma:.5f}")
            rows.append((f"{name} spectral norm, largest singular value of {layer}", sigma))
            assert abs(sigma - 1) < 0.01, f"the spectral norm of {layer} is more than 1 % off 1"
        for title, values in (("scores", scores), ("slope", slopes)):
            what = f"{title}, {values.min():.2f} to {values.max():.2f}, {name} spectral norm"
            chart = Chart(what, "", "", (-VIEW, VIEW), (-VIEW, VIEW), size=(460, 460))
            chart.heat(values.numpy(), values.min().item(), values.max().item())
            chart.dots(*RING.means.T.tolist(), "", "black", radius=3)
            charts.append(chart)
    save(folder / "spectral_norm_landscape.png", charts)
    write_table(folder / "spectral_norm_landscape.csv", ["figure", "value"], rows)

    assert steepest["with"] <= 1.01, "layers of norm 1 should give slopes of at most 1"
    assert steepest["without"] > 10, "without spectral norm there should be cliffs"


if __name__ == "__main__":
    main()
