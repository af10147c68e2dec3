"""Between two Gaussians the best discriminator is sure of everything, while the best critic points the way.

Real points are N(-2, 0.5^2), fakes N(2, 0.5^2). A discriminator and two critics (one under a gradient penalty, one with
clipped weights) are trained for long (1701.07875, figure 2). At the fakes the gradient of log(1 - D) has vanished, as
the closed form D* = p / (p + q) says. The penalised critic is a straight line of slope 1 + W1 / (2 lambda), where a
little more slope would cost as much as it gains: 1.2 for W1 = 4 and lambda = 10.

    python examples/optimal_critic.py
"""

from collections.abc import Callable

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.data.toy import Mixture
from lightning_gen.losses import AdversarialLoss, GradientPenalty, Minimax, Wasserstein
from lightning_gen.losses.constraints import WeightClipping
from lightning_gen.networks import MLPDiscriminator

REAL, FAKE = Mixture([[-2.0]], 0.5), Mixture([[2.0]], 0.5)
LAMBDA = 10.0


def train(
    loss: AdversarialLoss,
    steps: int,
    penalty: GradientPenalty | None = None,
    clipping: WeightClipping | None = None,
) -> nn.Module:
    """A discriminator that has seen `steps` batches of 256 real points and as many fakes."""
    torch.manual_seed(0)
    judge = MLPDiscriminator((1, 1, 1), widths=(64, 64), maxout=1, dropout=0, input_dropout=0)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for _ in range(steps):
        real, fake = REAL.sample(256), FAKE.sample(256)
        objective = loss.discriminator(judge(real), judge(fake))
        if penalty:
            objective = objective + penalty(judge, real, fake)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        if clipping:
            clipping(judge)
    return judge


def best_score(x: Tensor) -> Tensor:
    """Log p - log q, the logit of the best discriminator: [N, 1] to [N]."""
    return REAL.log_prob(x) - FAKE.log_prob(x)


def slopes(score: Callable[[Tensor], Tensor], x: Tensor, generator_loss: bool) -> Tensor:
    """|d/dx| of the generator's minimax loss log(1 - sigmoid(score)), or of the score itself, at each of [N, 1]."""
    x = x.clone().requires_grad_()
    values = -F.softplus(score(x)) if generator_loss else score(x)
    return torch.autograd.grad(values.sum(), x)[0].abs().flatten()


def main() -> None:
    """Train all three, draw them, and check the claim."""
    folder = output_folder("optimal_critic", __doc__)
    torch.set_num_threads(1)  # the networks are too small to share out
    discriminator = train(Minimax(), 2000)
    critic = train(Wasserstein(), 2000, penalty=GradientPenalty(weight=LAMBDA))
    clipped = train(Wasserstein(), 2000, clipping=WeightClipping(0.1))

    x = torch.linspace(-4, 4, 401, dtype=torch.float64)[:, None]
    gradients = {
        "log(1 - D*), closed form": slopes(best_score, x, True),
        "log(1 - D), trained": slopes(discriminator.double(), x, True),
        "critic, gradient penalty": slopes(critic.double(), x, False),
        "critic, clipped weights": slopes(clipped.double(), x, False),
    }
    at_fakes = {name: slope[(x.flatten() - 2).abs().argmin()].item() for name, slope in gradients.items()}
    for name, gradient in at_fakes.items():
        print(f"|gradient| of {name:26} at the fakes' mean: {gradient:.2e}")
    between = gradients["critic, gradient penalty"][x.flatten().abs() <= 2]
    predicted = 1 + 4 / (2 * LAMBDA)
    print(
        f"slope of the penalised critic in between: {between.min():.3f} to {between.max():.3f}, by theory {predicted}"
    )

    with torch.no_grad():
        curves = {
            "density of real points": REAL.log_prob(x).exp(),
            "density of fakes": FAKE.log_prob(x).exp(),
            "D, trained": discriminator(x).sigmoid(),
            "critic, gradient penalty / 4": (critic(x) - critic(x).mean()) / 4,
            "critic, clipped weights, scaled": (clipped(x) - clipped(x).mean()) / (clipped(x).max() - clipped(x).min()),
        }
    left = Chart("What they say of a point", "x", "", (-4, 4), (-1.3, 1.9))
    right = Chart("What the generator gets", "x", "|gradient|", (-4, 4), (1e-30, 1e5), log_y=True, legend="lower left")
    for chart, lines, colors in (
        (left, curves, [COLORS[5], COLORS[4], *COLORS[:3]]),
        (right, gradients, [COLORS[3], *COLORS[:3]]),
    ):
        for (name, values), color in zip(lines.items(), colors, strict=True):
            chart.line(x.flatten().tolist(), values.tolist(), name, color)
    save(folder / "optimal_critic.png", [left, right])
    columns = {"x": x.flatten(), **curves, **{f"|gradient| {name}": slope for name, slope in gradients.items()}}
    write_table(folder / "optimal_critic.csv", list(columns), torch.stack(list(columns.values()), dim=1).tolist())

    assert at_fakes["log(1 - D*), closed form"] < 1e-10, "the best discriminator should leave no gradient at the fakes"
    assert at_fakes["log(1 - D), trained"] < 1e-3, "nor should the trained one"
    assert (between / predicted - 1).abs().max() < 0.05, "the critic's slope should be as predicted between the two"


if __name__ == "__main__":
    main()
