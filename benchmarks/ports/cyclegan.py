"""CycleGAN, as a script would have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.contestants import Settings
from lightning_gen.models.image_pool import ImagePool


class PlainCycleGAN:
    """CycleGAN as a script would have it: four networks, two Adams, and a step.

    Args:
        generator: Makes a generator.
        discriminator: Makes a discriminator.
        settings: Gives device, precision and memory format.
        naive: Whether all is float32, contiguous and eager, with a network call for every picture, as the well-known
            implementation has it.
    """

    def __init__(
        self,
        generator: Callable[[], nn.Module],
        discriminator: Callable[[], nn.Module],
        settings: Settings,
        naive: bool,
    ) -> None:
        self.naive = naive
        self.autocast = nullcontext if naive else settings.autocast
        networks = [make().to(settings.device) for make in (generator, generator, discriminator, discriminator)]
        for network in networks:
            network.to(memory_format=torch.contiguous_format if naive else settings.memory_format)
            if settings.compile and not naive:
                network.compile()
        self.G, self.F, self.D_A, self.D_B = networks
        self.discriminators = [*self.D_A.parameters(), *self.D_B.parameters()]
        generators = [*self.G.parameters(), *self.F.parameters()]
        self.optimizers = [torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999)) for p in (generators, self.discriminators)]
        self.schedules = [LambdaLR(o, lambda step: min(1.0, 2 - 2 * step / settings.total)) for o in self.optimizers]
        self.pool_A, self.pool_B = ImagePool(50), ImagePool(50)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Both generators, then both discriminators."""
        a, b = batch["A"], batch["B"]
        generators, discriminators = self.optimizers

        for parameter in self.discriminators:
            parameter.requires_grad_(False)
        generators.zero_grad()
        with self.autocast():
            fake_b, same_b = self.pair(self.G, a, b)
            fake_a, same_a = self.pair(self.F, b, a)
            loss = target(self.D_B(fake_b), 1.0) + target(self.D_A(fake_a), 1.0)
            loss = loss + 10 * (F.l1_loss(self.F(fake_b).float(), a) + F.l1_loss(self.G(fake_a).float(), b))
            loss = loss + 5 * (F.l1_loss(same_b.float(), b) + F.l1_loss(same_a.float(), a))
        loss.backward()
        generators.step()

        for parameter in self.discriminators:
            parameter.requires_grad_(True)
        discriminators.zero_grad()
        for network, real, fake in ((self.D_A, a, self.pool_A(fake_a)), (self.D_B, b, self.pool_B(fake_b))):
            with self.autocast():
                real_scores, fake_scores = self.pair(network, real, fake.float())
                loss = 0.5 * (target(real_scores, 1.0) + target(fake_scores, 0.0))
            loss.backward()
        discriminators.step()
        for schedule in self.schedules:
            schedule.step()

    def pair(self, network: nn.Module, first: Tensor, second: Tensor) -> Sequence[Tensor]:
        """`network(first), network(second)`, in one call unless naive."""
        return [network(first), network(second)] if self.naive else network(torch.cat([first, second])).chunk(2)


def target(scores: Tensor, value: float) -> Tensor:
    """Mean squared distance of the scores to a value."""
    return F.mse_loss(scores.float(), torch.full_like(scores, value, dtype=torch.float32))
