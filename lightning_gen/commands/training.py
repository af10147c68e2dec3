"""`fit`, `validate`, `test` and `predict`: Lightning's command line, with run folders and our defaults."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from lightning_gen import data, losses, models, resuming, text  # noqa: F401  classes that are known have short names
from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.callbacks.interruption import Interruption
from lightning_gen.callbacks.pictures import Pictures
from lightning_gen.callbacks.report import Report
from lightning_gen.checkpoints import CheckpointError, check_going_on, first_line, read_checkpoint
from lightning_gen.commands.beforehand import train_first_stages, train_missing_classifiers
from lightning_gen.commands.going_on import RunIsOver, check_that_it_is_not_over, with_configs
from lightning_gen.commands.inner_models import Parser, find_checkpoint_of, load_inner_models
from lightning_gen.commands.loggers import RUNS, go_on_in_folder, place_loggers, prepare_wandb, record_at_step, run_name
from lightning_gen.commands.predict import PredictionWriter
from lightning_gen.commands.readers import follow_data, share_schedule
from lightning_gen.commands.trainer import REFUSED_BY_BAREBONES, Trainer, quiet_lightning
from lightning_gen.commands.what_next import say_next_of_run
from lightning_gen.files import write_atomically
from lightning_gen.generative import GenerativeModule
from lightning_gen.runs.folder import find_checkpoint, keeps_files, run_folder
from lightning_gen.runs.layout import CONFIG, PAGE, run_folder_of_checkpoint
from lightning_gen.runs.lock import lock_run, unlock_run


class SaveRunConfig(SaveConfigCallback):
    """Writes the whole configuration of a training run to config.yaml in its folder, and to its loggers.

    Args:
        parser: Of the subcommand.
        config: What Lightning hands over: the configuration with all that was chosen for this one start.
        given: The configuration without that, which is what is written.
        settings: Other settings of Lightning's callback.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, given: Namespace, **settings: Any) -> None:
        super().__init__(parser, given, **settings)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the folder. No more yet: a checkpoint that does not fit the model must not cost its run anything."""
        if stage == "fit" and keeps_files(trainer):
            lock_run(run_folder(trainer))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the folder free."""
        if stage == "fit" and keeps_files(trainer):
            unlock_run(run_folder(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the folder free."""
        self.teardown(trainer, pl_module, "fit")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it when a checkpoint to go on from has been loaded."""
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """To the folder and to the loggers."""
        config = self.parser.dump(self.config, skip_none=False)
        write_atomically(run_folder(trainer) / CONFIG, config)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"config": config})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note which W&B run this is, so that going on goes on there."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                checkpoint["wandb_id"] = logger.version


class CommandLine(LightningCLI):
    """Lightning's command line, where the data tells the model its shape and a run has one folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks that every run has, and the link from data to model."""
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(Report, "report")
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Whether `fit` ends with a run over the test data."
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Weights of another run that a new run of `fit` begins with: a file, a run's folder, or RUN/best. "
            "What fits is taken, the rest is listed; optimizers, schedules and counts begin anew.",
        )
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Let `predict` write what it makes; nobody takes it from memory there."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predictions")
            parser.set_defaults({"return_predictions": False})
        return parser

    def _parse_ckpt_path(self) -> None:
        """Nothing: what the configuration and the command line say holds, also when a run goes on."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's figures, its folder, the W&B run to go on, and the number of threads."""
        config: Namespace = self.config[self.subcommand] if self.subcommand else self.config
        for words in follow_data(config):
            rank_zero_only(print)(words, flush=True)
        share_schedule(config)
        given = config.clone()
        checkpoint = folder = None
        if self.subcommand:
            # A run that config.yaml starts anew must not begin with this one's checkpoint.
            given.ckpt_path = None
            config.weights_only = True
            if config.ckpt_path:
                config.ckpt_path = str(find_checkpoint(config.ckpt_path))
                checkpoint, folder = read_checkpoint(config.ckpt_path), run_folder_of_checkpoint(config.ckpt_path)
            if checkpoint and self.subcommand == "fit":
                check_going_on(checkpoint, config.ckpt_path)
            # A run that goes on has its weights already.
            starts = config.init_from and self.subcommand == "fit" and checkpoint is None
            config.init_from = str(find_checkpoint(config.init_from)) if starts else None
        self.step = int(checkpoint["global_step"]) if checkpoint else 0
        self.save_config_kwargs = {**self.save_config_kwargs, "given": given}
        if config.trainer.barebones:
            for name in REFUSED_BY_BAREBONES:
                config.trainer[name] = None
        elif config.trainer.logger in (None, True):
            config.trainer.logger = self._run_logger(config)
        else:
            place_loggers(config.trainer.logger, config.trainer.default_root_dir or RUNS, run_name(config))
        if checkpoint and self.subcommand == "fit":
            writes = _is_first() and not config.trainer.fast_dev_run
            check_that_it_is_not_over(checkpoint, config, folder if writes else None)
            if folder and writes:
                lock_run(folder)
            if folder:
                go_on_in_folder(config.trainer.logger, folder.resolve(), self.step)
        prepare_wandb(config.trainer.logger, checkpoint)
        train_missing_classifiers(config)
        self._dump_config()  # as it was given, with the paths of models
        if self.subcommand in ("fit", None) and checkpoint is None:
            train_first_stages(config)
        load_inner_models(config.model, checkpoint)
        find_checkpoint_of(config.data)
        use_all_cores()

    def _run_logger(self, config: Namespace) -> Namespace | bool:
        if self.subcommand not in ("fit", None):
            return False
        parent = str(config.trainer.default_root_dir or RUNS)
        arguments = Namespace(save_dir=parent, name=run_name(config), version=None)
        return Namespace(class_path="lightning_gen.callbacks.RunLogger", init_args=arguments)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Leave out of what every run has what this one is told to do without."""
        if config.get("barebones"):
            callbacks, self.save_config_callback = [], None
        elif config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, LastCheckpoint)]
        elif self.subcommand == "fit":
            callbacks = [*callbacks, Interruption()]
        trainer = super()._instantiate_trainer(config, callbacks)
        if isinstance(trainer.strategy, DDPStrategy) and trainer.strategy._start_method == "spawn":
            raise ValueError(
                "ddp_spawn cannot be used on the command line: its processes would be handed the parsed configuration, "
                "which cannot be copied. Use --trainer.strategy ddp, whose processes read the command line themselves."
            )
        return trainer

    def before_fit(self) -> None:
        """Begin with the weights of another run, if asked to."""
        if path := self._get(self.config, "init_from"):
            self.model.init_from(path)

    def before_test(self) -> None:
        """Let loggers record at the step of the checkpoint."""
        record_at_step(self.trainer, self.step)

    before_validate = before_test

    def after_fit(self) -> None:
        """Test, if asked to, and say where the report is and what comes next."""
        if tests := self._get(self.config, "test_after_fit"):
            record_at_step(self.trainer, self.trainer.global_step)
            self.trainer.test(self.model, datamodule=self.datamodule)
            self._say_figures()
        self._say_report()
        say_next_of_run(self.trainer, self.model, tested=tests)

    def after_test(self) -> None:
        """Say the figures that matter and where the report is."""
        self._say_figures()
        self._say_report()

    def _say_figures(self) -> None:
        results = self.trainer.callback_metrics
        if self.trainer.is_global_zero:
            speakers: list[Any] = [self.model, *self.trainer.callbacks]  # type: ignore[attr-defined]
            for speaker in speakers:
                for name, line in getattr(speaker, "headlines", dict)().items():
                    if name in results:
                        print(line.format(results[name]))

    def _say_report(self) -> None:
        page = run_folder(self.trainer) / PAGE
        reports = any(isinstance(callback, Report) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if keeps_files(self.trainer) and reports and page.is_file():
            print(f"Report: {page}", flush=True)


def use_all_cores() -> None:
    """Where a CPU trains, let it do so on all cores that this process may use, unless the user says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def run_trainer(
    arguments: list[str], kind: type[CommandLine] = CommandLine, trainer_class: type[Trainer] = Trainer
) -> int:
    """Run `fit`, `validate`, `test` or `predict`, or the subcommands of another kind of command line."""
    quiet_lightning(trains=arguments[0] == "fit")
    try:
        with _naming_damage():
            kind(
                GenerativeModule,
                pl.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
                trainer_class=trainer_class,
                parser_class=Parser,
                # Errors of the parser are raised, so that the command line can say them in fewer words.
                parser_kwargs={"prog": "lightning-gen", "exit_on_error": False, "allow_abbrev": False},
                args=with_configs(arguments),
            )
    except RunIsOver as over:
        if _is_first():
            print(over)
    return 0


def _is_first() -> bool:
    """Whether this is the first of several processes, or the only one, before Lightning has brought them together."""
    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def _naming_damage() -> Iterator[None]:
    """What goes wrong within Lightning's restoring of a run is the checkpoint's fault."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        restoring = any(
            (code.co_filename.endswith("checkpoint_connector.py") and "restore" in code.co_name)
            or code.co_filename == resuming.__file__
            for code in codes
        )
        if isinstance(error, CheckpointError) or not restoring:
            raise
        raise CheckpointError(
            "The checkpoint is damaged: what it holds of the run cannot be restored "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error
