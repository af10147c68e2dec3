"""What training shares in all families: factories, schedules, layout, compilation, a watch on losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_gen.callbacks.ema import EMA
from lightning_gen.generative import GenerativeModule
from lightning_gen.hyperparameters import made_by
from lightning_gen.schedules import Constant, Linear, Schedule

NetworkFactory: TypeAlias = Callable[[tuple[int, int, int]], nn.Module]
OptimizerFactory: TypeAlias = Callable[[Any], Optimizer]


NEVER = torch.iinfo(torch.int64).max


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names it and the step."""


class WatchedModule(GenerativeModule):
    """A model that trains no further once a loss is NaN or infinite, and then writes no checkpoint.

    On a CPU that is before the step is taken; on an accelerator, where asking would make it wait, at the next logging
    step and before any checkpoint is written.
    """

    updates: ClassVar[str] = "updates"
    """What `trainer.global_step` counts, in the words of the message."""
    _first_bad_step: Mapping[str, Tensor] = MappingProxyType({})

    def watch(self, losses: Mapping[str, Tensor]) -> None:
        """Look at losses of the step that is about to be taken, logged as `train/NAME`.

        Raises:
            NonFiniteLossError: On a CPU, if one is not finite.
        """
        first = dict(self._first_bad_step)
        for name, loss in losses.items():
            step = torch.where(loss.detach().isfinite(), NEVER, self.trainer.global_step)
            first[name] = torch.minimum(first[name], step) if name in first else step
        self._first_bad_step = first
        if self.device.type == "cpu":
            self._raise_if_bad()

    def on_fit_start(self) -> None:
        """Forget what went wrong in an earlier run of the same model."""
        super().on_fit_start()
        self._first_bad_step = {}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the losses where the device waits anyway, because they are logged."""
        cadence = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if cadence and (self.batches_before + 1) % cadence == 0:
            self._raise_if_bad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save after a loss that was not finite."""
        self._raise_if_bad()
        super().on_save_checkpoint(checkpoint)

    def _raise_if_bad(self) -> None:
        bad = {name: step for name, first in self._first_bad_step.items() if (step := int(first)) < NEVER}
        if bad:
            step = min(bad.values())
            names = ", ".join(f"train/{name}" for name, first in bad.items() if first == step)
            raise NonFiniteLossError(
                f"{names} became NaN or infinite in the step after {step} {self.updates}. Training stopped and no "
                "checkpoint was written since. Go on from the last one with a lower learning rate or in float32."
            )


class TrainedModule(WatchedModule):
    """A model that is trained as a whole: by one loss, and one optimizer over all its parameters.

    A subclass calls `declare_training` in its `__init__`.
    """

    def declare_training(
        self,
        learning_rate: float | Schedule,
        optimizer: OptimizerFactory | None = None,
        *,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        """Say how it is trained.

        Args:
            learning_rate: Of the model's own optimizer; or a schedule of steps, which holds for any other too.
            optimizer: Replaces the model's own; called with the parameters.
            channels_last: Whether weights lie channels-last in memory, which is faster on tensor cores and AMX.
            compile: Whether the networks go through `torch.compile` for training.

        Raises:
            ValueError: If the rate is not above 0, or a schedule of something else.
        """
        if not (isinstance(learning_rate, Schedule) or learning_rate > 0):
            raise ValueError(f"learning_rate must be above 0, or a schedule; got {learning_rate}.")
        if isinstance(learning_rate, Schedule) and learning_rate.by != "steps":
            raise ValueError(f"learning_rate is a schedule of steps, got one of {learning_rate.by}.")
        self.learning_rate, self.optimizer = learning_rate, optimizer
        self.channels_last, self.compile_networks = channels_last, compile

    def networks(self) -> list[nn.Module]:
        """What is laid out and compiled: `encoder` and `decoder`, unless a subclass has others."""
        return [cast(nn.Module, self.encoder), cast(nn.Module, self.decoder)]

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """The optimizer where none was given: Adam."""
        return torch.optim.Adam(parameters, lr=self.base_rate, fused=True)

    @property
    def base_rate(self) -> float:
        """The rate that the model's own optimizer is made with: 1 where a schedule multiplies it."""
        return 1.0 if isinstance(self.learning_rate, Schedule) else self.learning_rate

    def configure_optimizers(self) -> Any:
        """The optimizer, and its rate where that changes."""
        optimizer = made_by(self.optimizer or self.default_optimizer, Optimizer, self.parameters())
        rate = self.learning_rate
        if not isinstance(rate, Schedule):
            return optimizer
        for group in optimizer.param_groups:
            group["lr"] = 1.0  # also in one of the user's own
        # A function, not an object: its numbers must not come back from a checkpoint.
        schedule = LambdaLR(optimizer, lambda step: rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def setup(self, stage: str) -> None:
        """Lay out and compile the networks."""
        super().setup(stage)
        compiled = self.compile_networks and stage == "fit"
        prepare_networks(self.networks(), channels_last=self.channels_last, compile=compiled, ambiguous=False)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the loggers' x-axis; now, so that the names of checkpoints that this step brings have it too."""
        self.log("step", torch.full((), float(self.trainer.global_step + 1), device=self.device))


def check_decay(decay: float | None) -> float | None:
    """The decay of an average of weights, or None for no average; a `ValueError` if it is out of range."""
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"ema_decay must lie in [0, 1), or be null for no average; got {decay}.")
    return decay


def average_of(model: GenerativeModule, modules: Sequence[str], decay: float | None) -> list[pl.Callback]:
    """An average of the weights of these parts, unless the run has an `EMA` of its own, which it would replace."""
    given = model._trainer is not None and any(isinstance(each, EMA) for each in model.trainer.callbacks)  # type: ignore[attr-defined]
    return [] if given or decay is None else [EMA(modules, decay=decay)]


def linear_decay(optimizer: Optimizer, total_steps: int, start: float) -> LambdaLR:
    """The learning rate held constant, then lowered linearly to exactly zero after the last step.

    Args:
        optimizer: Whose rates are scheduled.
        total_steps: Generator updates of the whole run.
        start: Share of the run after which the decay begins, in `[0, 1]`; 1 never decays.
    """
    factor = Linear(1.0, 0.0, total_steps, start * total_steps) if start < 1 else Constant(1.0)
    return LambdaLR(optimizer, lambda step: factor(step))  # a function: numbers must not come back from a checkpoint


def prepare_networks(
    networks: Iterable[nn.Module], *, channels_last: bool, compile: bool, ambiguous: bool = True
) -> None:
    """Lay weights out channels-last and compile in place, which keeps the names of the weights.

    Args:
        networks: Changed in place.
        channels_last: Whether weights are laid out so.
        compile: Whether networks are compiled.
        ambiguous: Whether weights that lie in both layouts, of one channel or one pixel, are marked as channels-last
            too: a convolution then gives its result so, however its input lies.
    """
    for network in networks:
        # Weights only: DDP fails on a mask in that layout which is the only one (PyTorch 2.14).
        for weight in (weight for weight in network.parameters() if channels_last and weight.ndim == 4):
            if ambiguous or not weight.is_contiguous(memory_format=torch.channels_last):
                weight.data = weight.data.to(memory_format=torch.channels_last)
        if compile:
            network.compile()
