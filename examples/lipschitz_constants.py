"""Is a spectrally normalised critic 1-Lipschitz? By the exact norms of its layers, yes; by Miyato's reshape, no.

1802.05957 takes a convolution's kernel as a matrix, whose largest singular value is not the convolution's norm. Three
critics learn to tell landscapes from noise with the Wasserstein loss, which makes each as steep as it may be: a
feed-forward one normalised by the operator norms of its convolutions, the same by the reshape, and a residual one by
the reshape, where the sums add up slopes. For each: the norm of its worst layer, |f(x) - f(y)| / |x - y| over 10,000
pairs, and the largest gradient that climbing finds.

This loss, linear in the scores, rewards a critic for what the power iteration has not seen yet, so the norm of a layer
is a few per cent above 1 when training stops. What is measured is the critic after 300 more iterations.

    python examples/lipschitz_constants.py
"""

from functools import partial

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor, nn

from lightning_gen.data import Scenes
from lightning_gen.layers.spectral_norm import power_iteration, spectral_norms
from lightning_gen.losses import Wasserstein
from lightning_gen.networks import DCGANDiscriminator, ResidualDiscriminator

SIZE = 16
CRITICS = {
    "feed-forward, operator norm": partial(DCGANDiscriminator, filters=8, norm="none", spectral_norm="convolution"),
    "feed-forward, reshape": partial(DCGANDiscriminator, filters=8, norm="none", spectral_norm="reshape"),
    "residual, reshape": partial(ResidualDiscriminator, filters=8, spectral_norm="reshape"),
}


def noise(like: Tensor) -> Tensor:
    """Uniform pictures in [-1, 1]."""
    return torch.rand_like(like) * 2 - 1


def train(critic: nn.Module, images: Tensor, steps: int) -> None:
    """Make it as high on pictures and as low on noise as the normalisation lets it."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    weights = spectral_norms(critic).values()
    for _ in range(steps):
        real = images[torch.randint(len(images), (32,))]
        power_iteration(weights)  # what the callback SpectralNormPowerIteration does in a fit
        optimizer.zero_grad()
        Wasserstein().discriminator(critic(real), critic(noise(real))).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def quotients(critic: nn.Module, images: Tensor, pairs: int) -> Tensor:
    """|f(x) - f(y)| / |x - y| of pairs: pictures and noise, and pictures and themselves a little changed."""
    x = images[torch.randint(len(images), (pairs,))]
    y = torch.cat([noise(x[: pairs // 2]), x[pairs // 2 :] + 0.01 * torch.randn_like(x[pairs // 2 :])])
    return (critic(x) - critic(y)).abs() / (x - y).flatten(1).norm(dim=1)


def worst_norm(critic: nn.Module) -> float:
    """The largest norm of a layer after normalisation, by SVD: of the convolution itself or of the reshaped kernel."""
    return max(weight.true_sigma().item() for weight in spectral_norms(critic).values())


def largest_gradient(critic: nn.Module, images: Tensor, steps: int = 30) -> float:
    """The largest |grad f| that gradient ascent on the picture itself finds, from pictures and from noise."""
    points = torch.cat([images, noise(images)]).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.1, maximize=True)
    largest = 0.0
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
        norms = gradient.flatten(1).norm(dim=1)
        largest = max(largest, norms.max().item())
        optimizer.zero_grad()
        norms.sum().backward()
        optimizer.step()
    return largest


def main() -> None:
    """Train and measure all three, and check the claim."""
    folder = output_folder("lipschitz_constants", __doc__)
    torch.set_num_threads(1)  # the networks are too small to share out
    data = Scenes(image_size=SIZE, num_train=1000, batch_size=1000, num_workers=0)
    data.setup("fit")
    images = next(iter(data.train_dataloader()))["image"]
    chart = Chart("Of 10,000 pairs", "log10 of |f(x) - f(y)| / |x - y|", "share of pairs in a bin", (-3, 3), (0, 0.5))
    edges = torch.linspace(-3, 3, 121)
    rows = []
    print(f"{'':28} {'layers, training':>15} {'layers, exact':>15} {'10,000 pairs':>13} {'by climbing':>12}")
    for (name, make), color in zip(CRITICS.items(), COLORS, strict=False):
        torch.manual_seed(0)
        critic = make((3, SIZE, SIZE))
        train(critic, images, steps=200)
        lagging = worst_norm(critic)
        power_iteration(spectral_norms(critic).values(), 300)
        ratios = quotients(critic, images, 10_000)
        row = (name, lagging, worst_norm(critic), ratios.max().item(), largest_gradient(critic, images[:16]))
        rows.append(row)
        print("{:28} {:15.4f} {:15.4f} {:13.4f} {:12.4f}".format(*row), flush=True)
        density = torch.histogram(ratios.log10(), edges).hist / len(ratios)
        chart.line((edges[:-1] + 0.025).tolist(), density.tolist(), name, color)
    save(folder / "lipschitz_constants.png", [chart])
    header = ["critic", "worst layer in training", "worst layer", "largest quotient", "largest gradient"]
    write_table(folder / "lipschitz_constants.csv", header, rows)

    assert all(abs(norm - 1) < 0.01 for _, _, norm, *_ in rows), "a layer's norm is more than 1 % off 1"
    exact, reshape, residual = (max(row[3:]) for row in rows)
    assert exact <= 1.01, "with exact operator norms the critic should be 1-Lipschitz"
    assert exact < reshape < residual, "the reshape should allow more, and residual sums still more"


if __name__ == "__main__":
    main()
