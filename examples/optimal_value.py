"""The value of the game at its end: V(G*, D*) = -log 4, and on the way V(G, D*) = -log 4 + 2 JS(P || G).

Data N(1, 0.5^2); the generator is a straight line of one normal latent, so every law it can make is a Gaussian, the
best discriminator is known, and so is the value of the game against it, by quadrature (1406.2661, theorem 1). The value
of the trained one, on fresh points, follows it to -log 4. The way counts, not the end alone: a blind discriminator,
D = 1/2, has this value against any generator.

    python examples/optimal_value.py
"""

import math
from functools import partial

import lightning.pytorch as pl
import torch
from plot import COLORS, Chart, fit, output_folder, save, write_table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gen.data.toy import Mixture
from lightning_gen.losses import Minimax
from lightning_gen.models import GAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator

DATA = Mixture([[1.0]], 0.5)
GRID = torch.linspace(-12, 12, 4801, dtype=torch.float64)


def best_value(model: Mixture, data: Mixture = DATA) -> float:
    """V(G, D*) = E log D*(x) + E log(1 - D*(G(z))) with D* = p / (p + q), by quadrature."""
    log_p, log_q = data.log_prob(GRID[:, None]), model.log_prob(GRID[:, None])
    log_sum = torch.logaddexp(log_p, log_q)
    integrand = log_p.exp() * (log_p - log_sum) + log_q.exp() * (log_q - log_sum)
    return torch.trapezoid(integrand, GRID).item()


def law(generator: nn.Module) -> Mixture:
    """The Gaussian that a generator z -> w z + b makes of N(0, 1)."""
    (weight, bias) = (parameter.detach().double() for parameter in generator.parameters())
    return Mixture(bias[None], weight.abs().flatten())


@torch.no_grad()
def value(generator: nn.Module, discriminator: nn.Module, points: int = 100_000) -> float:
    """V(G, D) on fresh points."""
    return -Minimax().discriminator(
        discriminator(DATA.sample(points)), discriminator(generator(torch.randn(points, 1)))
    ).item()  # fmt: skip


class Record(pl.Callback):
    """Step, V(G, D), V(G, D*), mean and deviation of G, every 20 steps."""

    def __init__(self) -> None:
        self.history: list[tuple[float, ...]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, model: GAN, batch: Tensor, batch_idx: int) -> None:
        """Look at the players before a generator update."""
        if batch_idx % (20 * model.n_critic) == 0:
            self.look(trainer.global_step, model)

    def on_train_end(self, trainer: pl.Trainer, model: GAN) -> None:
        """Look at them after the last."""
        self.look(trainer.global_step, model)

    def look(self, step: int, model: GAN) -> None:
        """Add a row."""
        made = law(model.generator)
        played = value(model.generator, model.discriminator, 20_000)
        self.history.append((step, played, best_value(made), made.means.item(), made.std.item()))


def play(steps: int, n_critic: int = 5, batch: int = 256) -> tuple[nn.Module, nn.Module, list[tuple[float, ...]]]:
    """The game, and what `Record` saw of it."""
    torch.manual_seed(0)
    model = GAN(
        (1, 1, 1), partial(MLPGenerator, widths=(), output="linear"),
        partial(MLPDiscriminator, widths=(32, 32), maxout=1, dropout=0, input_dropout=0), latent_size=1,
        latent_distribution="normal", n_critic=n_critic, learning_rate=3e-3, betas=(0.5, 0.99), decay_start=0.0,
    )  # fmt: skip
    points, record = DATA.sample(steps * n_critic * batch).view(-1, batch, 1, 1, 1), Record()
    fit(model, DataLoader(points, batch_size=None), max_epochs=1, callbacks=[record])
    return model.generator, model.discriminator, record.history


def main() -> None:
    """Play, draw the value, and check the claim."""
    folder = output_folder("optimal_value", __doc__)
    torch.set_num_threads(1)
    generator, discriminator, history = play(steps=800)
    limit, trained, best = -math.log(4), value(generator, discriminator, 1_000_000), best_value(law(generator))
    print(f"G makes N({history[-1][3]:.4f}, {history[-1][4]:.4f}^2); the data are N(1, 0.5^2)")
    print(f"V(G, D) = {trained:.5f}, V(G, D*) = {best:.5f}, -log 4 = {limit:.5f}")
    print(f"V(G, D) is {100 * abs(trained / limit - 1):.3f} % off")

    steps, played, bests, means, deviations = zip(*history, strict=True)
    left = Chart("The value of the game", "generator updates", "V", (0, steps[-1]), (-1.6, 0.1))
    left.line(steps, bests, "V(G, D*) = -log 4 + 2 JS(P || G)", COLORS[3], width=4)
    left.line(steps, played, "V(G, D), D trained", COLORS[0])
    left.line([0, steps[-1]], [limit, limit], "-log 4", COLORS[1], width=1)
    right = Chart("The generator's law", "generator updates", "", (0, steps[-1]), (-0.5, 2))
    for name, truth, learned, color in (("mean", 1.0, means, COLORS[0]), ("deviation", 0.5, deviations, COLORS[2])):
        right.line([0, steps[-1]], [truth, truth], "", COLORS[5], width=1)
        right.line(steps, learned, f"{name}, {truth} in the data", color)
    save(folder / "optimal_value.png", [left, right])
    write_table(folder / "optimal_value.csv", ["step", "V(G, D)", "V(G, D*)", "mean of G", "deviation of G"], history)

    early = [(played, best) for step, played, best, *_ in history if 40 <= step <= 200]
    assert all(abs(played - best) < 0.05 for played, best in early), "D should keep up with G: any blind D gives -log 4"
    assert abs(trained / limit - 1) < 0.01, "the trained value should be within 1 % of -log 4"
    assert 0 <= best - limit < 0.01, "the generator should have reached the data"


if __name__ == "__main__":
    main()
