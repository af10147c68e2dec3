"""The f-GAN paper's table: a Gaussian fitted to a mixture of two by five divergences (1606.00709, section 2.4).

Q = N(mu, sigma^2) learns to be like P by the single-step game of the paper's algorithm 1; V is its perceptron of two
layers of 64 tanh units. Beside what is learned stands the optimum by quadrature, marked *, and the paper's own row. As
no Gaussian is P, each divergence has a best fit of its own: KL covers both modes, reverse KL prefers the larger one.

The paper does not print P. The one here was found by least squares, and has the optima that the paper prints for its
five divergences (mu, sigma and value of each) within 0.001. Jensen-Shannon is twice the usual one, as in the paper.

    python examples/fgan_table.py
"""

import math

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor, nn

from lightning_gen.data.toy import Mixture
from lightning_gen.losses.divergences import DivergenceName, FDivergence

DATA = Mixture([[-1.0], [2.0]], [0.2549, 1.4145], [0.33, 0.67])

# The paper's table: D_f(P || Q*), learned bound, mu*, learned mu, sigma*, learned sigma.
PAPER: dict[DivergenceName, tuple[float, ...]] = {
    "kl": (0.2831, 0.2801, 1.0100, 1.0335, 1.8308, 1.8236),
    "reverse_kl": (0.2480, 0.2415, 1.5782, 1.5624, 1.6319, 1.6403),
    "jensen_shannon": (0.1280, 0.1226, 1.3070, 1.2854, 1.7542, 1.7659),
    "pearson": (0.6457, 0.6379, 0.5737, 0.6157, 1.9274, 1.9031),
}
GRID = torch.linspace(-16, 20, 7201, dtype=torch.float64)


def gaussian(mu: Tensor, sigma: Tensor) -> Tensor:
    """Log q on the grid."""
    return -((GRID - mu) / sigma).square() / 2 - sigma.log() - math.log(2 * math.pi) / 2


def divergence(f: FDivergence, mu: Tensor, sigma: Tensor) -> Tensor:
    """D_f(P || Q) by quadrature."""
    log_p, log_q = DATA.log_prob(GRID[:, None]), gaussian(mu, sigma)
    # Far out p / q leaves the range of floats where neither p nor q is worth counting.
    return torch.trapezoid(log_q.exp() * f.generating((log_p - log_q).clamp(-300, 300).exp()), GRID)


@torch.no_grad()
def bound(f: FDivergence, score: nn.Module, mu: Tensor, sigma: Tensor) -> Tensor:
    """E_P g(V) - E_Q f*(g(V)) by quadrature: what the paper calls F(theta, omega), without the noise of samples."""
    p, q = DATA.log_prob(GRID[:, None]).exp(), gaussian(mu, sigma).exp()
    scores = score(GRID[:, None].float()).flatten().double()
    return -torch.trapezoid(p * f.real_terms(scores) + q * f.fake_terms(scores), GRID)


def optimum(f: FDivergence) -> tuple[float, float, float]:
    """Mu and sigma that minimise D_f(P || Q), and D_f there."""
    parameters = torch.tensor([1.2, math.log(1.7)], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = divergence(f, parameters[0], parameters[1].exp())
        value.backward()
        return value

    optimizer.step(closure)
    mu, log_sigma = parameters.detach()
    return mu.item(), log_sigma.exp().item(), divergence(f, mu, log_sigma.exp()).item()


def play(f: FDivergence, steps: int, batch: int = 1024) -> tuple[Tensor, Tensor, nn.Module]:
    """The game: both players step on the same batch, one up and one down the bound."""
    torch.manual_seed(0)
    mu, log_sigma = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    score = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    players = (
        torch.optim.Adam(score.parameters(), lr=5e-3, betas=(0.5, 0.99), maximize=True),
        torch.optim.Adam([mu, log_sigma], lr=5e-3, betas=(0.5, 0.99)),
    )
    schedules = [torch.optim.lr_scheduler.LinearLR(player, 1.0, 0.0, total_iters=steps) for player in players]
    for _ in range(steps):
        real, fake = DATA.sample(batch), mu + log_sigma.exp() * torch.randn(batch, 1)
        f.bound(score(real), score(fake)).backward()
        for player, schedule in zip(players, schedules, strict=True):
            player.step()
            player.zero_grad()
            schedule.step()
    return mu.detach().double(), log_sigma.detach().double().exp(), score


def main() -> None:
    """Play all games, print and draw the table, and check the claim."""
    folder = output_folder("fgan_table", __doc__)
    torch.set_num_threads(1)  # the networks are too small to share out
    header = ["D(Q*)", "D(Q)", "bound", "mu*", "mu", "sigma*", "sigma"]
    rows = []
    print(f"{'':18}" + "".join(f"{name:>9}" for name in header))
    chart = Chart("P, and the Gaussians that five divergences fit", "x", "density", (-5, 7), (0, 0.58))
    chart.line(GRID.tolist(), DATA.log_prob(GRID[:, None]).exp().tolist(), "P", "black", width=3)
    names: list[DivergenceName] = [*PAPER, "squared_hellinger"]  # which the paper's table has not
    for name, color in zip(names, COLORS, strict=False):
        f = FDivergence(name)
        best_mu, best_sigma, best = optimum(f)
        mu, sigma, score = play(f, steps=2000)
        reached, learned_bound = divergence(f, mu, sigma).item(), bound(f, score, mu, sigma).item()
        rows.append((name, best, reached, learned_bound, best_mu, mu.item(), best_sigma, sigma.item()))
        if name in PAPER:
            rows.append(("  in the paper", PAPER[name][0], math.nan, *PAPER[name][1:]))
        for label, *figures in rows[-1 - (name in PAPER) :]:
            print(f"{label:18}" + "".join(f"{figure:9.4f}" for figure in figures).replace("nan", "   "), flush=True)
        chart.line(GRID.tolist(), gaussian(mu, sigma).exp().tolist(), name.replace("_", " "), color)
        for exact in (reached, best):
            assert abs(learned_bound / exact - 1) < 0.05, f"{name}: bound {learned_bound}, more than 5 % off {exact}"
    save(folder / "fgan_table.png", [chart])
    write_table(folder / "fgan_table.csv", ["divergence", *header], rows)


if __name__ == "__main__":
    main()
