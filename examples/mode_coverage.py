"""How many modes each loss finds on a ring of 8 Gaussians and a grid of 25, by the same perceptrons in as many batches.

Of 2500 samples those within 4 standard deviations of a mode are of high quality; a mode is found if it has one. In so
short a run it counts how steep the discriminator may become. Bounded by clipped weights or spectral norm it is too
smooth for modes that are 0.01 wide, and hardly a sample hits one. All others find the ring, with most of their samples,
and most of the grid, which is the claim. It is no ranking: one seed, and less time than configs/wgan_gp.yaml takes.

    python examples/mode_coverage.py
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context

import torch
from plot import COLORS, Chart, fit, output_folder, save, write_table
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gen import losses
from lightning_gen.data.toy import GridOfGaussians, Mixture, RingOfGaussians
from lightning_gen.losses.constraints import WeightClipping
from lightning_gen.metrics.toy import mode_coverage
from lightning_gen.models import GAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator

WIDTHS, BATCHES = (128, 128, 128), {"ring": 1500, "grid": 2000}
DATA: dict[str, Mixture] = {"ring": RingOfGaussians().distribution, "grid": GridOfGaussians().distribution}
judge = partial(MLPDiscriminator, widths=WIDTHS, maxout=1, dropout=0, input_dropout=0)
game = partial(
    GAN, (2, 1, 1), partial(MLPGenerator, widths=WIDTHS, output="linear"), discriminator=judge, latent_size=2,
    latent_distribution="normal", learning_rate=2e-3, betas=(0.5, 0.9), decay_start=0.0,
)  # fmt: skip
GAMES = {
    "minimax": partial(game, loss=losses.Minimax()),
    "non-saturating": partial(game, loss=losses.NonSaturating()),
    "least squares": partial(game, loss=losses.LeastSquares()),
    "hinge, spectral norm": partial(game, loss=losses.Hinge(), discriminator=partial(judge, spectral_norm="reshape")),
    "KL": partial(game, loss=losses.FDivergence("kl")),
    "reverse KL": partial(game, loss=losses.FDivergence("reverse_kl")),
    "Wasserstein, clipped weights": partial(
        game, loss=losses.Wasserstein(), constraint=WeightClipping(0.1), n_critic=5
    ),
    "Wasserstein, gradient penalty": partial(
        game, loss=losses.Wasserstein(), penalties=[losses.GradientPenalty(weight=0.1)], n_critic=2
    ),
}  # fmt: skip
SMOOTH = ("hinge, spectral norm", "Wasserstein, clipped weights")  # with bounds on the discriminator itself


def play(data: str, name: str, batches: int | None = None, batch: int = 256) -> Tensor:
    """2500 samples of a generator whose discriminator has seen that many batches, or `BATCHES`: [2500, 2]."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = GAMES[name]()
    number = batches or BATCHES[data]
    points = DATA[data].sample(number * batch).view(number, batch, *model.image_shape)
    fit(model, DataLoader(points, batch_size=None), max_epochs=1)
    return model.sample(2500, generator=torch.Generator().manual_seed(0)).flatten(1)


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
        holds = quality < 10 if name in SMOOTH else modes >= 0.7 * total and (data == "grid" or quality > 50)
        assert holds, f"{data}, {name}: {modes} modes of {total}, {quality:.1f} % of high quality"


if __name__ == "__main__":
    main()
