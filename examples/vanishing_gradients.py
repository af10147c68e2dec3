"""The better the discriminator, the less the minimax generator learns (1701.04862, figures 2 and 3).

A small DCGAN is trained on built-in landscapes for a while. Then its generator is frozen, and a new discriminator
learns against it. Along its updates stands the norm of the gradient that each loss would give to the generator:
log(1 - D(G(z))) loses several orders of magnitude, -log D(G(z)) none.

    python examples/vanishing_gradients.py
"""

from functools import partial

import lightning.pytorch as pl
import torch
from plot import COLORS, Chart, fit, output_folder, save, write_table
from torch import Tensor, nn

from lightning_gen.data import Scenes
from lightning_gen.losses import AdversarialLoss, Minimax, NonSaturating
from lightning_gen.models import DCGAN
from lightning_gen.networks import DCGANDiscriminator, DCGANGenerator

SIZE, FILTERS = 16, 16
LOSSES = {"minimax, log(1 - D)": Minimax(), "non-saturating, -log D": NonSaturating()}


def train_dcgan(steps: int) -> DCGAN:
    """The library's DCGAN, with fewer filters, after so many generator updates."""
    pl.seed_everything(0, verbose=False)
    model = DCGAN(
        (3, SIZE, SIZE), partial(DCGANGenerator, filters=FILTERS), partial(DCGANDiscriminator, filters=FILTERS)
    )  # fmt: skip
    fit(model, Scenes(image_size=SIZE, num_train=2000, num_workers=0), max_steps=steps)
    return model


def gradient_norm(loss: AdversarialLoss, generator: nn.Module, discriminator: nn.Module, latents: Tensor) -> float:
    """|gradient of the loss with respect to all of the generator's parameters|, in float64's range."""
    gradients = torch.autograd.grad(loss.generator(discriminator(generator(latents))), list(generator.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]).double().norm().item()


def train_discriminator(
    generator: nn.Module, discriminator: nn.Module, images: Tensor, latent_size: int, steps: int, every: int = 20
) -> list[tuple[float, ...]]:
    """Train a discriminator against a frozen generator; step, loss, and the gradient norm of each of `LOSSES`."""
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    probe = torch.rand(128, latent_size) * 2 - 1
    history = []
    for step in range(steps + 1):
        real = images[torch.randint(len(images), (64,))]
        with torch.no_grad():
            fake = generator(torch.rand(64, latent_size) * 2 - 1)
        objective = Minimax().discriminator(discriminator(real), discriminator(fake))
        if step % every == 0:
            norms = [gradient_norm(loss, generator, discriminator, probe) for loss in LOSSES.values()]
            history.append((float(step), objective.item(), *norms))
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    return history


def main() -> None:
    """Train, freeze, train anew, and check the claim."""
    folder = output_folder("vanishing_gradients", __doc__)
    torch.set_num_threads(1)  # the networks are too small to share out
    model = train_dcgan(steps=200)
    data = Scenes(image_size=SIZE, num_train=2000, batch_size=2000, num_workers=0)
    data.setup("fit")
    images = next(iter(data.train_dataloader()))["image"]
    fresh = DCGANDiscriminator(model.image_shape, filters=FILTERS)
    history = train_discriminator(model.generator, fresh, images, model.latent_size, steps=1500)
    steps, objective, *norms = zip(*history, strict=True)

    chart = Chart(
        "The generator's gradient while a new discriminator learns", "discriminator updates", "norm",
        (0, steps[-1]), (1e-6, 1e3), log_y=True, legend="lower left", size=(680, 420),
    )  # fmt: skip
    for name, curve, color in zip(LOSSES, norms, COLORS, strict=False):
        chart.line(steps, curve, name, color)
        print(f"{name:24} {curve[0]:.2e} at first, {curve[-1]:.2e} after {steps[-1]:.0f} updates")
    chart.line(steps, objective, "the discriminator's loss", COLORS[5], width=1)
    save(folder / "vanishing_gradients.png", [chart])
    write_table(folder / "vanishing_gradients.csv", ["step", "loss of D", *LOSSES], history)

    (first, last), (first_other, last_other) = ((max(curve[:5]), max(curve[-5:])) for curve in norms)
    assert last < 1e-3 * first, "minimax should lose three orders of magnitude"
    assert last_other > 0.3 * first_other, "the non-saturating loss should lose none"


if __name__ == "__main__":
    main()
