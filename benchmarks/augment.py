"""What augmentation adds to a training step of a DCGAN and a StyleGAN.

    python -m benchmarks.augment
    python -m benchmarks.augment --models StyleGAN --image-size 128 --precision bf16 --device cuda --json figures.json

Each step is an update of the discriminator, with its penalties, and one of the generator, on the same random pictures;
the optimizers are the models' own. The same model takes part without augmentation, with DiffAugment and with ADA, whose
cost does not depend on p. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.turns import add_arguments, begin, ratio, take_turns, write
from lightning_gen.layers import ADA, Augmentation, DiffAugment
from lightning_gen.losses.precision import full
from lightning_gen.models import DCGAN, GAN, StyleGAN
from lightning_gen.models.training import prepare_networks
from lightning_gen.networks import DCGANDiscriminator, DCGANGenerator, StyleGANDiscriminator, StyleGANGenerator

AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "DiffAugment": DiffAugment(), "ADA": ADA(p=0.5)}


def dcgan(size: int, filters: int, augment: Augmentation | None) -> GAN:
    """With as many filters in both networks."""
    networks = (partial(network, filters=filters) for network in (DCGANGenerator, DCGANDiscriminator))
    return DCGAN((3, size, size), *networks, augment=augment)


def stylegan(size: int, filters: int, augment: Augmentation | None) -> GAN:
    """Of as many times the width as the DCGAN: at 256 it is the paper's."""
    widths = {"filters": 32 * filters, "max_filters": 2 * filters}
    networks = (partial(network, **widths) for network in (StyleGANGenerator, StyleGANDiscriminator))
    return StyleGAN((3, size, size), *networks, augment=augment)


MODELS: dict[str, tuple[Callable[[int, int, Augmentation | None], GAN], int]] = {
    "DCGAN": (dcgan, 32),
    "StyleGAN": (stylegan, 4),
}
"""What makes a model, and the pictures of a batch."""


class Game:
    """A model with its optimizers, and a batch.

    Args:
        make: Makes the model.
        real: Pictures `[N, C, H, W]`.
        bf16: Whether networks compute in bfloat16.
    """

    def __init__(self, make: Callable[[], GAN], real: Tensor, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.model, self.real, self.bf16 = make().to(real.device), real, bf16
        networks = self.model.players()
        prepare_networks([*networks["generator"], *networks["discriminator"]], channels_last=True, compile=False)
        rates = zip((self.model.generator, self.model.discriminator), self.model.learning_rates, strict=True)
        self.optimizers = [self.model.default_optimizer(rate)(network.parameters()) for network, rate in rates]

    def step(self) -> None:
        """An update of each player, and of p."""
        model, number = self.model, len(self.real)
        generator, discriminator = self.optimizers
        self.update(discriminator, partial(model.discriminator_losses, self.real, None))
        self.update(generator, partial(model.generator_losses, number))
        if model.adaptation is not None:
            model.adaptation.advance(number)
            model.adaptation.move()

    def update(self, optimizer: Any, losses: Callable[[], Any]) -> None:
        """Of one player, with the other frozen."""
        model = self.model
        for other in self.optimizers:
            for group in other.param_groups:
                for parameter in group["params"]:
                    parameter.requires_grad_(other is optimizer)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            terms = losses()
        optimizer.zero_grad()
        torch.stack([full(term) for term in terms.values()]).sum().backward()
        optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print a table, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.augment", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, help="the model's own, if it is left out")
    parser.add_argument(
        "--filters",
        type=int,
        default=64,
        help="channels of the DCGAN's first layer, and half of most of the StyleGAN's",
    )
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    add_arguments(parser, turns=7)
    given = parser.parse_args(arguments)
    sizes = (given.image_size, given.filters, given.batch_size or 1)
    if min(sizes) < 1:
        parser.error(f"--image-size, --filters and --batch-size must be 1 or more, got {', '.join(map(str, sizes))}")
    clock = begin(parser, given)
    figures = {}
    print(f"{given.image_size} px, {given.precision}\n\n{'':26}{'ms':>9}{'more than none':>16}")
    for name in given.models:
        make, batch = MODELS[name]
        real = torch.rand(given.batch_size or batch, 3, given.image_size, given.image_size, device=clock.device) * 2 - 1
        games = {
            kind: Game(partial(make, given.image_size, given.filters, augment), real, given.precision == "bf16")
            for kind, augment in AUGMENTATIONS.items()
        }
        contestants = {kind: game.step for kind, game in games.items()}
        take_turns(contestants, 2, clock)  # first calls
        seconds = take_turns(contestants, given.turns, clock)
        shares = {kind: ratio(seconds, kind, "none") - 1 for kind in seconds}
        for kind, times in seconds.items():
            last = "" if kind == "none" else f"{shares[kind]:15.1%}"
            print(f"{f'{name} x {len(real)}, {kind}':26}{1000 * median(times):9.1f}{last}", flush=True)
        figures[name] = {"seconds": seconds, "more": shares}
    write(given.json, clock, {"settings": vars(given) | {"json": None}, "models": figures})


if __name__ == "__main__":
    main()
