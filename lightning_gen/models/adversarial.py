"""What all adversarial models share: one method that updates one player."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from lightning_gen.hyperparameters import made_by
from lightning_gen.losses.adversarial import full
from lightning_gen.losses.penalties import Penalty
from lightning_gen.models.training import (
    OptimizerFactory,
    WatchedModule,
    has_batch_norm,
    linear_decay,
    prepare_networks,
)
from lightning_gen.processes import average_gradients

Losses: TypeAlias = Mapping[str, Tensor]


class AdversarialModule(WatchedModule):
    """A model whose players are updated in turn, by hand.

    One step means one generator update: `trainer.global_step`, `max_steps`, checkpoint names and schedules count the
    updates made with `count=True`, although Lightning by itself counts every optimizer's.

    Args:
        image_shape: (channels, height, width).
        gradient_clip_norm: Norm to which the gradient of each player is clipped before each of its updates; None clips
            none.
        micro_batches: Pieces that each batch is cut into, whose gradients are added up: an update sees the whole batch
            with the memory of a piece. Steps, pictures, schedules and intervals of penalties count batches, as without,
            and running statistics move once a batch. What looks at several pictures at once (batch norm, the deviation
            in `DRAGAN`) looks at those of a piece, as it would at those of a process.

    Raises:
        ValueError: If a number is out of range; when a run starts, if the trainer was told to clip or to accumulate,
            which Lightning cannot for such a model; in a batch, if it has fewer pictures than pieces.
    """

    channels_last: bool
    compile_networks: bool
    updates = "generator updates"
    instead_of: ClassVar[Mapping[str, str]] = {
        "gradient_clip_val": "Players are updated one by one: set model.gradient_clip_norm instead, which clips the "
        "gradient of each.",
        "accumulate_grad_batches": "Players are updated one by one: set model.micro_batches to {value} instead, which "
        "cuts each batch into so many pieces, and data.batch_size to {value} times what it is.",
    }

    def __init__(
        self, image_shape: tuple[int, int, int], *, gradient_clip_norm: float | None = None, micro_batches: int = 1
    ) -> None:
        super().__init__(image_shape)
        if gradient_clip_norm is not None and not gradient_clip_norm > 0:
            raise ValueError(f"gradient_clip_norm must be above 0, or null for none; got {gradient_clip_norm}.")
        if micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, got {micro_batches}.")
        self.gradient_clip_norm, self.micro_batches = gradient_clip_norm, micro_batches
        self.automatic_optimization = False
        self.penalties: list[Penalty] = []

    def update(
        self, optimizer: LightningOptimizer, losses: Callable[[], Losses] | Pieces, *, count: bool = True
    ) -> None:
        """One optimizer step of one player.

        The parameters of all other optimizers need no gradients meanwhile. Under DDP only the gradients of this
        optimizer travel, in one all-reduce, so plain `strategy: ddp` works and costs no more than the player's size.

        Args:
            optimizer: One of `self.optimizers()`.
            losses: Gives the named, weighted terms whose sum is minimised; called with the other players frozen. Each
                is logged as `train/NAME`. Or what `in_pieces` makes of such a function, whose gradients are added up.
            count: Whether this is the generator update that counts as the step.

        Raises:
            NonFiniteLossError: If a term is not finite: on a CPU before the step is taken, on an accelerator, where
                asking would make it wait, at the next logging step and before any checkpoint is written.
        """
        strategy = self.trainer.strategy
        # Of one process too: DDP would look for gradients of all players, and there are those of one.
        ddp = isinstance(strategy, DDPStrategy)
        local: AbstractContextManager[Any] = strategy.block_backward_sync() if ddp else nullcontext()  # type: ignore[attr-defined]
        pieces = losses if isinstance(losses, Pieces) else Pieces([losses], [1.0])
        terms: dict[str, Tensor] = {}
        with self.toggled_optimizer(optimizer):
            optimizer.zero_grad()
            with local:
                for piece, (part, share) in enumerate(zip(pieces.losses, pieces.shares, strict=True)):
                    with moving_once(self, piece, len(pieces.shares)):
                        found = {
                            name: full(term) if share == 1 else share * full(term) for name, term in part().items()
                        }
                    for name, term in found.items():
                        terms[name] = terms[name] + term.detach() if name in terms else term.detach()
                    # Lightning runs the whole step under autocast, which would reach the second derivatives of
                    # penalties.
                    with torch.autocast(self.device.type, enabled=False):
                        self.manual_backward(torch.stack(list(found.values())).sum())
            for name, term in terms.items():
                self.log(f"train/{name}", term, prog_bar=True)
            self.watch(terms)
            if ddp:
                average_gradients(optimizer)
            if self.gradient_clip_norm is not None:
                self.clip_to_norm(optimizer.optimizer, self.gradient_clip_norm, scaled=True)
            if count:
                optimizer.step()
            else:  # what LightningOptimizer.step does, less the counting
                strategy.optimizer_step(optimizer.optimizer, closure=lambda: None)

    def in_pieces(self, losses: Callable[..., Losses], *batch: Any) -> Pieces:
        """A function that gives losses, for `update`, with its arguments cut into `micro_batches` pieces.

        Args:
            losses: Its terms are means over pictures.
            *batch: Its arguments, each as `cut` takes it; the first says how many pictures a piece has.
        """
        parts = [self.cut(argument) for argument in batch]
        sizes = [size if isinstance(size, int) else len(size) for size in parts[0]]
        calls: list[Callable[[], Losses]] = [partial(losses, *arguments) for arguments in zip(*parts, strict=True)]
        return Pieces(calls, [size / sum(sizes) for size in sizes])

    def cut(self, argument: Any) -> list[Any]:
        """The pieces of a tensor by its first axis, or of a number of pictures.

        A list has been cut already, and what is neither stays whole for each piece.

        Raises:
            ValueError: If there are fewer pictures than pieces.
        """
        number = len(argument) if isinstance(argument, Tensor) else argument
        if isinstance(argument, list) or not isinstance(number, int):
            return argument if isinstance(argument, list) else [argument] * self.micro_batches
        if number < self.micro_batches:
            raise ValueError(
                f"A batch of {number} cannot be cut into micro_batches={self.micro_batches} pieces. Raise "
                "data.batch_size, or lower micro_batches."
            )
        if isinstance(argument, Tensor):
            return list(argument.tensor_split(self.micro_batches)) if self.micro_batches > 1 else [argument]
        return [
            number // self.micro_batches + (piece < number % self.micro_batches) for piece in range(self.micro_batches)
        ]

    def finish_step(self, images: int, *, schedules: bool = True) -> None:
        """What ends a training step: schedules advance, images are counted, the loggers' x-axis is set.

        Args:
            images: Real images this rank has used in the step.
            schedules: Whether the generator was updated, by which schedules count.
        """
        if schedules:
            for scheduler in self._schedules():
                scheduler.step()
        self.images_seen += images * self.trainer.world_size
        # "step" is a name that Lightning takes as the x-axis of every logger. Filled on the device, for a number copied
        # there would make an accelerator wait.
        self.log("step", torch.full((), float(self.trainer.global_step), device=self.device))

    def penalty_losses(
        self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        """The terms of `self.penalties` by name, for `discriminator_losses`.

        One with an interval k comes in every k-th batch only, k times as strong (lazy regularisation, 1912.04958).
        """
        losses: dict[str, Tensor] = {}
        for i, penalty in enumerate(self.penalties):
            name = type(penalty).__name__
            if any(type(earlier) is type(penalty) for earlier in self.penalties[:i]):
                name = f"{name}_{i}"  # by its place, for those before it may be left out of this batch
            if self.batches_before % penalty.interval == 0:
                losses[name] = penalty.interval * penalty(discriminator, real, fake)
        return losses

    def steps_in(self, batches: int) -> int:
        """How many generator updates a number of training batches gives."""
        return batches

    def planned_steps(self) -> int:
        """Generator updates of the whole run.

        Raises:
            ValueError: If the run has no end.
        """
        trainer = self.trainer
        if trainer.max_epochs in (None, -1):
            total = float("inf") if trainer.max_steps == -1 else trainer.max_steps
        else:
            trainer.fit_loop.setup_data()  # as `estimated_stepping_batches` does, which knows of one step a batch only
            batches = trainer.num_training_batches * trainer.max_epochs
            total = batches if batches == float("inf") else self.steps_in(int(batches))
            total = total if trainer.max_steps == -1 else min(total, trainer.max_steps)
        if total == float("inf"):
            raise ValueError(
                "The learning rate falls to zero at the end of the run, but the run has no end. Set trainer.max_steps "
                "or trainer.max_epochs, or keep the rate constant with decay_start: 1."
            )
        return int(total)

    def _schedules(self) -> list[Any]:
        schedules = self.lr_schedulers() or []
        return schedules if isinstance(schedules, list) else [schedules]

    def prepare(self, stage: str, generators: Sequence[nn.Module], discriminators: Sequence[nn.Module]) -> None:
        """Lay out and, for training, compile the networks; no discriminators that PyTorch cannot compile."""
        compile = self.compile_networks and stage == "fit"
        double = any(penalty.double_backward for penalty in self.penalties)
        prepare_networks(generators, channels_last=self.channels_last, compile=compile)
        prepare_networks(discriminators, channels_last=self.channels_last, compile=compile and not double)


@dataclass(frozen=True)
class Pieces:
    """What gives the losses of each piece of a batch, and the share of the batch's pictures that it has."""

    losses: list[Callable[[], Losses]]
    shares: list[float]


def moving_once(network: nn.Module, piece: int, pieces: int) -> AbstractContextManager[None]:
    """Let running statistics, which move in each of several pieces, have moved by the last as in one batch.

    With momentum m a batch leaves (1 - m) of what there was. So do k pieces, each of which comes to m / k of the
    result, if the momentum of piece i is m / (k - (k - i) m).
    """
    if pieces == 1:
        return nullcontext()
    return with_momenta(network, lambda momentum: momentum / (pieces - (pieces - 1 - piece) * momentum))


@contextmanager
def with_momenta(network: nn.Module, change: Callable[[float], float]) -> Iterator[None]:
    """Other momenta of a network's running statistics, put back afterwards."""
    normed = [m for m in network.modules() if isinstance(m, _NormBase) and m.momentum is not None]
    momenta: list[Any] = [module.momentum for module in normed]
    for module, momentum in zip(normed, momenta, strict=True):
        module.momentum = change(momentum)
    try:
        yield
    finally:
        for module, momentum in zip(normed, momenta, strict=True):
            module.momentum = momentum


def together(
    network: nn.Module, first: Tensor, second: Tensor, labels: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """`network(first), network(second)`, in one call where samples do not influence each other.

    Batch norm ties the samples of a call together, and pictures of different sizes do not stack; there it is two calls.
    With `labels`, the network is also given those of the first and of the second.
    """
    if first.shape[1:] != second.shape[1:] or has_batch_norm(network):
        return (network(first), network(second)) if labels is None else (
            network(first, labels[0]), network(second, labels[1])
        )  # fmt: skip
    joined = (torch.cat([first, second]), *(() if labels is None else (torch.cat(labels),)))
    return network(*joined).split([len(first), len(second)])


def halved(losses: Losses) -> Losses:
    """Each term divided by two."""
    return {name: 0.5 * term for name, term in losses.items()}


@dataclass(frozen=True)
class AdamSettings:
    """Adam with a constant, then linearly falling rate, as the translation papers train both players.

    Args:
        learning_rate: Before the decay.
        betas: Of Adam.
        decay_start: See `linear_decay`.

    Raises:
        ValueError: If a number is out of range.
    """

    learning_rate: float
    betas: tuple[float, float]
    decay_start: float

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}.")
        if not 0 <= self.decay_start <= 1:
            raise ValueError(f"decay_start is a share of the run, in [0, 1]; got {self.decay_start}.")

    def configure(
        self, module: AdversarialModule, players: Mapping[str, tuple[OptimizerFactory | None, Iterable[nn.Parameter]]]
    ) -> tuple[list[Optimizer], list[dict[str, Any]]]:
        """Optimizers and schedules for `configure_optimizers`: Adam, or the factory where one is given."""
        optimizers, schedules = [], []
        total = module.planned_steps() if self.decay_start < 1 else 0
        for name, (factory, parameters) in players.items():
            make = factory or partial(torch.optim.Adam, lr=self.learning_rate, betas=self.betas, fused=True)
            optimizer = made_by(make, Optimizer, parameters)
            optimizers.append(optimizer)
            # The name is what LearningRateMonitor shows.
            schedules.append({"scheduler": linear_decay(optimizer, total, self.decay_start), "name": f"lr/{name}"})
        return optimizers, schedules
