"""What training shares in all families: factories, schedules, layout, compilation, a watch on losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_gen.losses.penalties import Penalty

NetworkFactory: TypeAlias = Callable[[tuple[int, int, int]], nn.Module]
OptimizerFactory: TypeAlias = Callable[[Any], Optimizer]


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names it and the step."""


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the samples of a batch influence each other."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def linear_decay(optimizer: Optimizer, total_steps: int, start: float) -> LambdaLR:
    """The learning rate held constant, then lowered linearly to exactly zero after the last step.

    Args:
        optimizer: Whose rates are scheduled.
        total_steps: Generator updates of the whole run.
        start: Share of the run after which the decay begins, in `[0, 1]`; 1 never decays.
    """

    def factor(step: int) -> float:  # a function, not an object: its numbers must not come back from a checkpoint
        remaining = (total_steps - step) / max(1.0, (1 - start) * total_steps)
        return 1.0 if start >= 1 else min(1.0, max(0.0, remaining))

    return LambdaLR(optimizer, factor)


def prepare_networks(
    *,
    generators: Sequence[nn.Module],
    discriminators: Sequence[nn.Module],
    penalties: Sequence[Penalty],
    channels_last: bool,
    compile: bool,
) -> None:
    """Lay weights out channels-last and compile in place, which keeps the names of the weights.

    Discriminators under a penalty that differentiates a gradient are not compiled: PyTorch cannot.
    """
    if channels_last:
        for network in (*generators, *discriminators):
            network.to(memory_format=torch.channels_last)
    if compile:
        double = any(penalty.double_backward for penalty in penalties)
        for network in (*generators, *([] if double else discriminators)):
            network.compile()
