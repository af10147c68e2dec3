"""How many modes each loss finds on a ring of 8 Gaussians and a grid of 25, by the same perceptrons in as many batches.

Of 2500 samples those within 4 standard deviations of a mode are of high quality; a mode is found if it has one. In so
short a run it counts how steep the discriminator may become. Bounded by clipped weights or spectral norm it is too
smooth for modes that are 0.01 wide, and hardly a sample hits one. All others find the ring, with most of their samples,
and most of the grid, which is the claim. It is no ranking: one seed, and less time than configs/wgan_gp.yaml takes.

    python examples/mode_coverage.py
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import NamedTuple

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor, nn

from lightning_gen import losses
from lightning_gen.data.toy import GridOfGaussians, Mixture, RingOfGaussians
from lightning_gen.layers.spectral_norm import power_iteration, spectral_norms
from lightning_gen.losses.constraints import WeightClipping
from lightning_gen.metrics.toy import mode_coverage
from lightning_gen.networks import MLPDiscriminator, MLPGenerator

WIDTHS, BATCHES = (128, 128, 128), {"ring": 1500, "grid": 2000}
DATA: dict[str, Mixture] = {"ring": RingOfGaussians().distribution, "grid": GridOfGaussians().distribution}


class Game(NamedTuple):
    """A loss, and what keeps its discriminator in bounds."""

    loss: losses.AdversarialLoss
    penalty: losses.GradientPenalty | None = None
    clipping: WeightClipping | None = None
    spectral_norm: bool = False
    n_critic: int = 1


GAMES = {
    "minimax": Game(losses.Minimax()),
    "non-saturating": Game(losses.NonSaturating()),
    "least squares": Game(losses.LeastSquares()),
    "hinge, spectral norm": Game(losses.Hinge(), spectral_norm=True),
    "KL": Game(losses.FDivergence("kl")),
    "reverse KL": Game(losses.FDivergence("reverse_kl")),
    "Wasserstein, clipped weights": Game(losses.Wasserstein(), clipping=WeightClipping(0.1), n_critic=5),
    "Wasserstein, gradient penalty": Game(losses.Wasserstein(), penalty=losses.GradientPenalty(weight=0.1), n_critic=2),
}


def learner(network: nn.Module, updates: int) -> Callable[[Tensor], None]:
    """What takes one step down a loss, at a rate that falls to zero."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=updates)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    return step


def play(data: str, name: str, batches: int | None = None, batch: int = 256) -> Tensor:
    """2500 samples of a generator whose discriminator has seen that many batches, or `BATCHES`: [2500, 2]."""
    game, truth, batches = GAMES[name], DATA[data], batches or BATCHES[data]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = MLPGenerator((2, 1, 1), 2, widths=WIDTHS, output="linear")
    norm = "reshape" if game.spectral_norm else "none"
    judge = MLPDiscriminator((2, 1, 1), widths=WIDTHS, maxout=1, dropout=0, input_dropout=0, spectral_norm=norm)
    critic_step, generator_step = learner(judge, batches), learner(generator, batches // game.n_critic)
    for number in range(1, batches + 1):
        real, fake = truth.sample(batch)[:, :, None, None], generator(torch.randn(batch, 2)).detach()
        if game.spectral_norm:
            power_iteration(spectral_norms(judge).values())
        objective = game.loss.discriminator(judge(real), judge(fake))
        if game.penalty:
            objective = objective + game.penalty(judge, real, fake)
        critic_step(objective)
        if game.clipping:
            game.clipping(judge)
        if number % game.n_critic == 0:
            generator_step(game.loss.generator(judge(generator(torch.randn(batch, 2)))))
    with torch.no_grad():
        return generator(torch.randn(2500, 2)).flatten(1)


def main() -> None:
    """Play all games on two processes, print, draw, and check the claim."""
    folder = output_folder("mode_coverage", __doc__)
    pairs = list(product(DATA, GAMES))
    charts, rows = [], []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        clouds = pool.map(play, *zip(*pairs, strict=True))
        for (data, name), samples in zip(pairs, clouds, strict=True):
            found, total = mode_coverage(samples, DATA[data].means, DATA[data].std), len(DATA[data].means)
            rows.append((data, name, found.modes, total, 100 * found.high_quality, found.kl_divergence))
            print("{}: {:30} {:3} of {:2} modes, {:5.1f} % of high quality, KL {:.3f}".format(*rows[-1]), flush=True)
            title = f"{name}: {found.modes} of {total}, {found.high_quality:.0%}"
            chart = Chart(title, "", "", (-1.2, 1.2), (-1.2, 1.2), size=(330, 330))
            chart.dots(*samples.T.tolist(), "", COLORS[0], radius=1)
            chart.dots(*DATA[data].means.T.tolist(), "", COLORS[1], radius=2)
            charts.append(chart)
    save(folder / "mode_coverage.png", charts, columns=4)
    header = ["data", "loss", "modes found", "modes", "high quality in %", "KL over modes"]
    write_table(folder / "mode_coverage.csv", header, rows)
    for data, name, modes, total, quality, _ in rows:
        smooth = GAMES[name].clipping or GAMES[name].spectral_norm
        holds = quality < 10 if smooth else modes >= 0.7 * total and (data == "grid" or quality > 50)
        assert holds, f"{data}, {name}: {modes} modes of {total}, {quality:.1f} % of high quality"


if __name__ == "__main__":
    main()
