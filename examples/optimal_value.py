"""The value of the game at its end: V(G*, D*) = -log 4, and on the way V(G, D*) = -log 4 + 2 JS(P || G).

Data N(1, 0.5^2); the generator is a straight line of one normal latent, so every law it can make is a Gaussian, the
best discriminator is known, and so is the value of the game against it, by quadrature (1406.2661, theorem 1). The value
of the trained one, on fresh points, follows it to -log 4. The way counts, not the end alone: a blind discriminator,
D = 1/2, has this value against any generator.

    python examples/optimal_value.py
"""

import math

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import nn

from lightning_gen.data.toy import Mixture
from lightning_gen.losses import Minimax, NonSaturating
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


def play(steps: int, n_critic: int = 5, batch: int = 256) -> tuple[nn.Module, nn.Module, list[tuple[float, ...]]]:
    """The game, and step, V(G, D), V(G, D*), mean and deviation of G along it."""
    torch.manual_seed(0)
    loss = NonSaturating()
    generator = MLPGenerator((1, 1, 1), 1, widths=(), output="linear")
    discriminator = MLPDiscriminator((1, 1, 1), widths=(32, 32), maxout=1, dropout=0, input_dropout=0)
    players = [
        torch.optim.Adam(network.parameters(), lr=3e-3, betas=(0.5, 0.99)) for network in (discriminator, generator)
    ]
    schedules = [torch.optim.lr_scheduler.LinearLR(player, 1.0, 0.0, total_iters=steps) for player in players]
    history = []
    for step in range(steps + 1):
        if step % 20 == 0:
            model = law(generator)
            history.append(
                (step, value(generator, discriminator, 20_000), best_value(model), model.means.item(), model.std.item())
            )
        for _ in range(n_critic):
            fake = generator(torch.randn(batch, 1)).detach()
            players[0].zero_grad()
            loss.discriminator(discriminator(DATA.sample(batch)), discriminator(fake)).backward()
            players[0].step()
        players[1].zero_grad()
        loss.generator(discriminator(generator(torch.randn(batch, 1)))).backward()
        players[1].step()
        for schedule in schedules:
            schedule.step()
    return generator, discriminator, history


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
