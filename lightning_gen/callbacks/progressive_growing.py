"""Accompanies a model that grows: what a run will need is known before it, and where it is while it lasts."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_gen.capabilities import Grows
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.cache import in_bytes
from lightning_gen.data.rates import Cost, cost_at
from lightning_gen.processes import apart, everywhere, failing_together
from lightning_gen.schedules import Growing, Phase, Stage
from lightning_gen.silence import silence

MANY = 1_000_000  # steps, so that a trainer does not end what is measured


class ProgressiveGrowing(pl.Callback):
    """Says what a run that grows will go through, tries its stages beforehand, and logs where it is.

    The schedule itself is the model's and the data's, which need no callback. Logs `growing/resolution`,
    `growing/fade` and `growing/batch_size` (per process) at the trainer's logging steps, and says in a line when a
    resolution begins to fade in, and when it is there in full.

    Args:
        probe: Whether a copy of the model trains for a few batches at each stage before the run begins, so that memory
            that does not suffice at the last one is known on the first day. Each of several processes tries them by
            itself. `lightning-gen schedule` does the same beforehand, and says what each stage takes.

    Raises:
        ValueError: When training starts, if the model does not grow.
        MemoryError: Likewise, if a stage does not fit into the memory of the device; a `RuntimeError`, if it does not
            into that of another process.
    """

    def __init__(self, probe: bool = True) -> None:
        super().__init__()
        self.probe = probe
        self.last: tuple[int, int, bool] | None = None  # resolution, batch size and whether it fades in

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Try the stages, before anything of the run is on its device."""
        if stage != "fit":
            return
        if not isinstance(pl_module, Grows):
            raise ValueError(
                f"ProgressiveGrowing: {type(pl_module).__name__} does not grow. Leave the callback out, or train a "
                "model that does, such as ProGAN."
            )
        data: Any = getattr(trainer, "datamodule", None)
        if self.probe and pl_module.growing and isinstance(data, ImageDataModule):
            device = trainer.strategy.root_device
            settings = {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
            with failing_together(), apart():
                costs = costs_of(pl_module, data, {**settings, "precision": trainer.precision})
            most = in_bytes(max(everywhere(max(cost.memory for cost in costs.values()))))
            where = str(device) if trainer.world_size == 1 else f"a {device.type} of {trainer.world_size} processes"
            rank_zero_info(f"Growing: all stages have been tried, and took {most} of memory at most on {where}.")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where the last resolution is reached, and warn if that is not in this run."""
        self.last = None
        model: Any = pl_module
        if model.growing is None or trainer.max_steps < 0:
            return
        phases = model.growing.phases(trainer.world_size)
        images = model.growing.images_after(trainer.max_steps * batches_a_step(model), trainer.world_size)
        if images <= phases[-1].start:
            rank_zero_warn(
                f"The run ends after {trainer.max_steps} steps, {images / 1000:,.4g} thousand pictures, and the last "
                f"resolution, {phases[-1].stage.resolution}, is there in full after {phases[-1].start / 1000:,.4g} "
                "thousand. Raise trainer.max_steps, or lower data.growing.stable_images and fade_images, unless that "
                "is meant."
            )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log where it is, and say what is new."""
        model: Any = pl_module
        if model.growing is None:
            return
        stage: Stage = model.stage
        now = (stage.resolution, stage.batch_size, stage.fade < 1)
        if now != self.last:
            how = "fades in" if stage.fade < 1 else "is there in full"
            rank_zero_info(
                f"Growing: after {model.images_seen / 1000:,.6g} thousand pictures resolution {stage.resolution} "
                f"{how}, in batches of {stage.batch_size}, at a learning rate of {stage.learning_rate:g}."
            )
            self.last = now
        cadence = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if cadence and (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % cadence == 0:
            for name in ("resolution", "fade", "batch_size"):
                # Filled on the device, for a number copied there would make an accelerator wait.
                value = torch.full((), float(getattr(stage, name)), device=pl_module.device)
                pl_module.log(f"growing/{name}", value, batch_size=stage.batch_size)


def batches_a_step(model: pl.LightningModule) -> int:
    """How many batches of real pictures a step takes."""
    batches: int = getattr(model, "n_critic", 1)
    return batches


def costs_of(
    model: pl.LightningModule, data: ImageDataModule, settings: dict[str, Any], steps: int = 1
) -> dict[Phase, Cost]:
    """What a model that grows costs at each stage: copies of it train for a few batches in the middle of each.

    A resolution is tried while it fades in, when it takes most, and what is found holds for all of it. The model and
    the global random state stay as they are.

    Args:
        model: With a schedule.
        data: Which follows the same one, prepared and set up.
        settings: Of the trainers: accelerator, a single device, and precision.
        steps: Batches whose time is taken, after one.

    Raises:
        MemoryError: If a stage does not fit into the memory of the device.
    """
    growing: Growing = model.growing  # type: ignore[assignment]
    costs: dict[Phase, Cost] = {}
    known: dict[tuple[int, int], Cost] = {}
    for phase in growing.phases():
        stage = phase.stage
        size = (stage.resolution, stage.batch_size)
        if size not in known:
            try:
                with silence():
                    trainer = pl.Trainer(barebones=True, max_steps=MANY, **settings)
                    known[size] = cost_at(trainer, copy.deepcopy(model), data, phase.middle, steps)
            except torch.OutOfMemoryError as error:
                device = trainer.strategy.root_device
                raise MemoryError(
                    f"The memory of {device} does not suffice at resolution {stage.resolution} with batches of "
                    f"{stage.batch_size} ({str(error).splitlines()[0]}). Lower data.growing.batch_sizes there, cut "
                    "batches by model.micro_batches, or lower the precision."
                ) from error
        costs[phase] = known[size]
    return costs
