"""`lightning-gen schedule`: what a model that grows will go through, and what each stage costs."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from jsonargparse import Namespace

from lightning_gen.callbacks.progressive_growing import batches_a_step, costs_of
from lightning_gen.capabilities import Grows
from lightning_gen.commands.data import LookingCommandLine, table
from lightning_gen.commands.trainer import Trainer
from lightning_gen.commands.training import run_trainer
from lightning_gen.commands.what_next import say_fit
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.cache import in_bytes
from lightning_gen.data.images import height_and_width
from lightning_gen.data.rates import Cost
from lightning_gen.schedules import Growing, Phase
from lightning_gen.silence import silence

COLUMNS = ["kimg", "steps", "resolution", "fade", "batch", "rate", "penalty scale"]


class SchedulingTrainer(Trainer):
    """A trainer that tries the stages of a schedule, and trains nothing."""

    def schedule(
        self,
        model: pl.LightningModule | None = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        probe: bool = True,
        probe_steps: int = 2,
        processes: int = 1,
    ) -> None:
        """Show the schedule of a model that grows as a table, and how long and how much memory each stage takes.

        A row is a part of the run in which a resolution fades in, or is trained in full: the thousands of pictures
        (kimg) and the steps after which it begins, the batch of each process, the learning rate, and what penalties on
        squared gradients are multiplied by, as they are those by pixels of the last size.

        Hours and memory come from a few steps in the middle of each stage, of a copy, on the device at hand and with
        the trainer's precision; no run begins. Loading pictures is not in them: see `lightning-gen data`. Memory is
        the most that was taken up to that stage.

        Args:
            model: The model.
            datamodule: The data module.
            ckpt_path: RUN or a checkpoint in it: without --config, the configuration is that of the run.
            weights_only: Means nothing here; configurations of runs have it.
            probe: Whether stages are tried. Without it the data need not be there: of its settings the schedule and the
                size of pictures are looked at, and nothing else.
            probe_steps: Steps whose time is taken at each stage, after one that is not.
            processes: How many the run will have. What they send each other takes no time here.
        """
        if min(probe_steps, processes) < 1:
            raise ValueError(f"probe_steps and processes must be at least 1, got {probe_steps} and {processes}.")
        growing = model.growing if isinstance(model, Grows) else None
        if model is None or growing is None or not isinstance(datamodule, ImageDataModule):
            raise ValueError(
                f"{type(model).__name__} has no schedule to show. Give a configuration of a model that grows, such as "
                "--config progan, with data.growing."
            )
        costs: dict[Phase, Cost] = {}
        if probe:
            settings = {"accelerator": self.strategy.root_device.type, "devices": 1, "precision": self.precision}
            datamodule.prepare_data()
            datamodule.setup("fit")
            found = costs_of(model, datamodule, settings, probe_steps)
            costs = dict(zip(growing.phases(processes), found.values(), strict=False))
        a_step = batches_a_step(model)
        print(table(_rows(growing, costs, self.max_steps * a_step, processes, a_step)))
        if self.max_steps >= 0:
            images = growing.images_after(self.max_steps * a_step, processes)
            print(f"\nThe run ends after {self.max_steps:,} steps and {_kimg(images)} thousand pictures.")
        if probe:
            print(f"Tried on {self.strategy.root_device} with precision {self.precision}.")


def _rows(growing: Growing, costs: dict[Phase, Cost], most: int, processes: int, a_step: int) -> list[list[str]]:
    """Of the table, with its head, for a run of so many batches, or without an end if that is below 0."""
    rows = [[*COLUMNS, *(["hours", "memory"] if costs else [])]]
    before, hours = 0, 0.0
    for phase in growing.phases(processes):
        stage = phase.stage
        row = [
            _kimg(phase.start),
            f"{before // a_step:,}",
            str(stage.resolution),
            "0 to 1" if stage.fade < 1 else "1",
            str(stage.batch_size),
            f"{stage.learning_rate:g}",
            f"{stage.penalty_scale:.3g}",
        ]
        left = math.inf if most < 0 else max(0, most - before)
        taken = min(left, math.inf if phase.batches is None else phase.batches)
        if cost := costs.get(phase):
            spent = cost.seconds * taken / 3600
            hours += spent
            row += [f"{spent:.3g}" if math.isfinite(spent) else "", in_bytes(cost.memory)]
        rows.append(row)
        before += phase.batches or 0
    if costs and math.isfinite(hours):
        rows.append([*[""] * (len(COLUMNS) - 1), "all", f"{hours:.3g}", ""])
    return rows


def _kimg(images: int) -> str:
    return f"{images / 1000:,.6g}"


class Described(ImageDataModule):
    """What settings say of data that need not be there.

    Args:
        image_size: As for data modules of files; None where the settings have none, and pictures are square.
        channels: Likewise.
        growing: The schedule.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        growing: Growing | None = None,
    ) -> None:
        super().__init__(growing=growing)
        size = image_size or (growing.resolutions[-1] if growing else 1)
        self._shape = (channels or 3, *height_and_width("image_size", size))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self._shape


class _CommandLine(LookingCommandLine):
    """The options and configurations of `fit`, where no run begins."""

    method = "schedule"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one there is, and its arguments that are no options."""
        return {"schedule": {"model", "datamodule"}}

    def needs_model(self, config: Namespace) -> bool:
        """It is the model's schedule."""
        return True

    def before_instantiate_classes(self) -> None:
        """As `LookingCommandLine`, but it matters where the run would end."""
        config: Namespace = self.config["schedule"]
        ends = {name: config.trainer[name] for name in ("max_steps", "max_epochs")}
        super().before_instantiate_classes()
        config.trainer.update(Namespace(**ends))
        if not config.probe:
            given = config.data.get("init_args") or Namespace()
            said = Namespace({name: given.get(name) for name in ("image_size", "channels", "growing")})
            config.data = Namespace(class_path=f"{__name__}.{Described.__name__}", init_args=said)


@silence()  # which would speak of a training, which this is not
def run_schedule(arguments: list[str]) -> int:
    """Run `schedule`."""
    code = run_trainer(arguments, _CommandLine, SchedulingTrainer)
    say_fit(arguments)
    return code
