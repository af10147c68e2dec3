"""`fit`, `validate`, `test` and `predict`: Lightning's command line, with run folders and our defaults."""

from __future__ import annotations

import inspect
import logging
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

import lightning_gen.callbacks
import lightning_gen.data
import lightning_gen.losses
import lightning_gen.models
from lightning_gen import resuming
from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.callbacks.generative_metrics import GenerativeMetrics
from lightning_gen.callbacks.interruption import Interruption
from lightning_gen.callbacks.pictures import Pictures
from lightning_gen.callbacks.progress import ProgressBar
from lightning_gen.callbacks.report import Report
from lightning_gen.callbacks.summary import NetworkSummary
from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointError, check_going_on, read_checkpoint
from lightning_gen.commands.configs import find_config
from lightning_gen.commands.going_on import RunIsOver, check_that_it_is_not_over
from lightning_gen.commands.inner_models import Parser, load_inner_models
from lightning_gen.commands.predict import PredictionWriter
from lightning_gen.commands.readers import follow_data
from lightning_gen.evaluation.protocol import suffix_of
from lightning_gen.extractors.classifier import classifier_file
from lightning_gen.files import cache_folder, write_atomically
from lightning_gen.generative import GenerativeModule
from lightning_gen.runs.folder import CONFIG, find_checkpoint, keeps_files, run_folder, run_folder_of_checkpoint
from lightning_gen.runs.lock import lock_run, unlock_run
from lightning_gen.trust import restrict_configurations

# Settings that Lightning refuses beside `barebones`, which many a configuration has.
REFUSED_BY_BAREBONES = (
    "logger",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "num_sanity_val_steps",
)


class Trainer(pl.Trainer):
    """Lightning's Trainer with checkpoints written atomically, in one folder, and our progress bar and summary.

    The limits are declared again because the command line would otherwise read 1, one batch, as 1.0, all of them.
    """

    def __init__(
        self,
        *args: Any,
        callbacks: list[pl.Callback] | pl.Callback | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        barebones: bool = False,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        shows_progress = enable_progress_bar is not False and not barebones
        if shows_progress and not any(isinstance(c, LightningProgressBar) for c in callbacks):
            callbacks = [*callbacks, ProgressBar()]
        shows_summary = enable_model_summary is not False and not barebones
        if shows_summary and not any(isinstance(c, ModelSummary) for c in callbacks):
            callbacks = [*callbacks, NetworkSummary()]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint):
                name_flatly(callback)
        super().__init__(
            *args,
            callbacks=callbacks,
            enable_progress_bar=enable_progress_bar,
            enable_model_summary=enable_model_summary,
            barebones=barebones,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = AtomicCheckpointIO()


def name_flatly(callback: ModelCheckpoint) -> None:
    """Let the slash in the name of a metric not make a folder: `{val/fid:.2f}` becomes `val_fid=12.34`."""
    if callback.auto_insert_metric_name and re.search(r"\{[^:}]*/", callback.filename or ""):
        callback.auto_insert_metric_name = False
        callback.filename = re.sub(
            r"\{([^:}]*)", lambda field: f"{field[1].replace('/', '_')}={field[0]}", callback.filename or ""
        )


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
        write_atomically(run_folder(trainer) / "config.yaml", config)
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
        given = config.clone()
        checkpoint = None
        if self.subcommand:
            # A run that config.yaml starts anew must not begin with this one's checkpoint.
            given.ckpt_path = None
            config.ckpt_path = str(find_checkpoint(config.ckpt_path)) if config.ckpt_path else None
            checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None
            if checkpoint and self.subcommand == "fit":
                check_going_on(checkpoint, config.ckpt_path)
            config.weights_only = True
        self.step = int(checkpoint["global_step"]) if checkpoint else 0
        self.save_config_kwargs = {**self.save_config_kwargs, "given": given}
        if config.trainer.barebones:
            for name in REFUSED_BY_BAREBONES:
                config.trainer[name] = None
        elif config.trainer.logger in (None, True):
            config.trainer.logger = self._run_logger(config)
        folder = run_folder_of_checkpoint(config.ckpt_path) if checkpoint else None
        if checkpoint and self.subcommand == "fit":
            writes = _is_first() and not config.trainer.fast_dev_run
            check_that_it_is_not_over(checkpoint, config, folder if writes else None)
        if checkpoint and folder and self.subcommand == "fit":
            if writes:
                lock_run(folder)
            go_on_in_folder(config.trainer.logger, folder.resolve(), self.step)
        prepare_wandb(config.trainer.logger, checkpoint)
        train_missing_classifiers(config)
        self._dump_config()  # as it was given, with the paths of models
        load_inner_models(config.model, checkpoint)
        if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
            torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)

    def _run_logger(self, config: Namespace) -> Namespace | bool:
        if self.subcommand not in ("fit", None):
            return False
        arguments = {
            "save_dir": str(config.trainer.default_root_dir or "runs"),
            "name": config.model.class_path.rpartition(".")[2].lower(),
            "version": None,
        }
        return Namespace(class_path="lightning_gen.callbacks.RunLogger", init_args=Namespace(**arguments))

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

    def before_test(self) -> None:
        """Let loggers record at the step of the checkpoint."""
        record_at_step(self.trainer, self.step)

    def before_validate(self) -> None:
        """Let loggers record at the step of the checkpoint."""
        record_at_step(self.trainer, self.step)

    def after_fit(self) -> None:
        """Test, if asked to, and end with the figures that matter and the report's address."""
        if not self._get(self.config, "test_after_fit"):
            return
        record_at_step(self.trainer, self.trainer.global_step)
        (results,) = self.trainer.test(self.model, datamodule=self.datamodule) or [{}]
        if self.trainer.is_global_zero:
            for name in [name for name in results if name.startswith("test/psnr_")]:
                direction = name.removeprefix("test/psnr_")
                mapping = results.get(f"test/color_mapping_psnr_{direction}")
                beside = f" (colour mapping by histogram matching: {mapping:.1f} dB)" if mapping is not None else ""
                print(f"Test PSNR {direction}: {results[name]:.1f} dB{beside}")
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, GenerativeMetrics) and callback.extractor and callback.compared_with:
                    numbers = callback.num_samples["test/"], callback.compared_with.count
                    for figure in ("fid", "fid_infinity"):
                        name = f"{figure}{suffix_of(callback.extractor)}"
                        if f"test/{name}" in results:
                            value = results[f"test/{name}"]
                            print(f"Test {name}: {value:.4g} ({numbers[0]} samples, {numbers[1]} real pictures)")
            if "test/accuracy" in results:
                print(f"Test accuracy: {results['test/accuracy']:.2%}")
            if any(isinstance(callback, Report) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
                print(f"Report: {run_folder(self.trainer) / 'index.html'}")


def record_at_step(trainer: pl.Trainer, step: int) -> None:
    """Let what is logged outside of training have a step, in place of the number of batches that Lightning counts."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def go_on_in_folder(loggers: Any, folder: Path, step: int) -> None:
    """Let the logger that gives a run its folder, the first one, go on in the folder of an earlier run.

    Args:
        loggers: One logger's configuration or a list of them; changed in place. Only loggers that number their folders
            are, where none is named: `RunLogger`, `CSVLogger` and `TensorBoardLogger`.
        folder: Of the earlier run.
        step: The last one that counts; what the logger has recorded after it is dropped.
    """
    logger = loggers[0] if isinstance(loggers, list) and loggers else loggers
    name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
    if name not in ("RunLogger", "CSVLogger", "TensorBoardLogger"):
        return
    arguments = logger.init_args
    numbered = arguments.get("version") is None
    if numbered:
        place = {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}
        for argument, value in place.items():
            arguments[argument] = value
    if name == "TensorBoardLogger" and numbered:
        arguments["purge_step"] = step + 1
    if name == "CSVLogger" and Path(CSVLogger(**arguments.as_dict()).log_dir).resolve() == folder:
        logger.class_path = "lightning_gen.runs.logger.ResumedCSVLogger"
        arguments["keep_until"] = step


def prepare_wandb(loggers: Any, checkpoint: dict[str, Any] | None) -> None:
    """Let W&B loggers go on with the run of a checkpoint, and work offline where nobody is logged in.

    Args:
        loggers: One logger's configuration or a list of them; changed in place.
        checkpoint: The checkpoint that the run goes on from, if it does.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not str(getattr(logger, "class_path", "")).endswith("WandbLogger"):
            continue
        try:
            import wandb
        except ImportError:
            raise ModuleNotFoundError("WandbLogger needs the package wandb: pip install wandb.") from None
        arguments = logger.init_args
        run_id = (checkpoint or {}).get("wandb_id")
        if run_id and not (arguments.get("id") or arguments.get("version")):
            arguments["id"] = run_id
        # The command line hands every argument of `wandb.init` over, and None in place of Lightning's own "allow".
        arguments["resume"] = arguments.get("resume") or "allow"
        chosen = "WANDB_MODE" in os.environ or arguments.get("offline") or arguments.get("mode")
        if not chosen and not _logged_in(wandb):
            arguments["mode"] = "offline"
            warnings.warn(
                "Nobody is logged in to Weights & Biases, so the run is recorded offline; `wandb sync` uploads it "
                "later. `wandb login` before the run, or WANDB_MODE, chooses otherwise.",
                stacklevel=2,
            )


def train_missing_classifiers(config: Namespace) -> None:
    """Train what `ClassifierFeatures` in a configuration would look for in the cache in vain, in processes of its own.

    So the random state of this one stays as it was. Under a launcher of several processes nothing is trained, and the
    extractor says what is missing.
    """
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1:
        return
    for callback in config.trainer.callbacks or ():
        extractor = (callback.get("init_args") or Namespace()).get("extractor")
        if not isinstance(extractor, Namespace) or not extractor.class_path.endswith(".ClassifierFeatures"):
            continue
        wanted = extractor.init_args
        if wanted.get("weights") or not (wanted.get("data") and wanted.get("image_shape")):
            continue
        # The configuration may be a stranger's, so nothing in it becomes a class, or an option, of the new command.
        if not hasattr(lightning_gen.data, wanted.data) or classifier_file(wanted.data, wanted.image_shape).is_file():
            continue
        print(f"There is no classifier for {wanted.data} yet: training one, which takes about a minute.", flush=True)
        command = [sys.executable, "-m", "lightning_gen", "fit", "--config", "classifier", "--data", wanted.data]
        own = config.data.init_args if config.data.class_path.endswith(f".{wanted.data}") else Namespace()
        for name in ("root", "download", "image_size", "pad", "num_workers"):
            if own.get(name) is not None:
                command.append(f"--data.{name}={own.get(name)}")
        subprocess.run([*command, f"--trainer.default_root_dir={cache_folder() / 'runs'}"], check=True)


def _logged_in(wandb: Any) -> bool:
    if "prompt" in inspect.signature(wandb.login).parameters:  # from wandb 0.31 on, which warns about `wandb.api`
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)


def run_trainer(arguments: list[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict`."""
    quiet_lightning()
    try:
        with _naming_damage():
            _run_command_line(arguments)
    except RunIsOver as over:
        if _is_first():
            print(over)
    return 0


def _is_first() -> bool:
    """Whether this is the first of several processes, or the only one, before Lightning has brought them together."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _run_command_line(arguments: list[str]) -> None:
    CommandLine(
        GenerativeModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
        trainer_class=Trainer,
        parser_class=Parser,
        # Errors of the parser are raised, so that the command line can say them in fewer words.
        parser_kwargs={"prog": "lightning-gen", "exit_on_error": False},
        args=with_configs(arguments),
    )


@contextmanager
def _naming_damage() -> Iterator[None]:
    """What goes wrong within Lightning's restoring of a run is the checkpoint's fault."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        places = [
            (frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in traceback.walk_tb(error.__traceback__)
        ]
        restoring = any(
            (file.endswith("checkpoint_connector.py") and "restore" in function) or file == resuming.__file__
            for file, function in places
        )
        if isinstance(error, CheckpointError) or not restoring:
            raise
        raise CheckpointError(
            "The checkpoint is damaged: what it holds of the run cannot be restored "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})."
        ) from error


def with_configs(arguments: list[str]) -> list[str]:
    """Arguments with shipped configurations as paths, and with the configuration of the run that a checkpoint is of.

    Raises:
        FileNotFoundError: If there is no such configuration or checkpoint.
        ValueError: If the checkpoint lies in the folder of no run and nothing else says what is to be trained.
    """
    found = list(arguments)
    for place, name in _values_of(arguments, "--config", "-c"):
        found[place] = arguments[place].removesuffix(name) + str(find_config(name))
    if any(_is_one_of(argument, "--config", "-c") for argument in arguments):
        return found
    for _, name in _values_of(arguments, "--ckpt_path"):
        if name in ("", "null"):
            continue
        checkpoint = find_checkpoint(name)
        folder = run_folder_of_checkpoint(checkpoint)
        if folder and (folder / CONFIG).is_file():
            restrict_configurations(arguments)
            found[1:1] = ["--config", str(folder / CONFIG)]
        elif not all(any(_is_one_of(argument, name) for argument in arguments) for name in ("--model", "--data")):
            raise ValueError(
                f"{checkpoint} lies in the folder of no run, whose {CONFIG} would say what it was trained on, and how. "
                "Name that configuration: --config FILE."
            )
        break
    return found


def _is_one_of(argument: str, *flags: str) -> bool:
    return argument.partition("=")[0] in flags


def _values_of(arguments: Sequence[str], *flags: str) -> Iterator[tuple[int, str]]:
    """What stands after these flags, and the places in the list that it ends."""
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in flags and equals:
            yield i, value
        elif flag in flags and i + 1 < len(arguments):
            yield i + 1, arguments[i + 1]


_SAYING_NOTHING = (
    "Tip:",
    "`weights_only` was not set",
    "Detected KeyboardInterrupt",
    "already configured with model summary",
)


def quiet_lightning() -> None:
    """Silence messages that say nothing to a user of ours."""
    for pattern in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*is smaller than the logging interval.*",
        ".*predict returned None.*",
        # Its checkpoints are to have the weights of their step.
        "Using ModelCheckpoint with manual optimization.*",
        "LightningCLI's args parameter is intended.*",
        ".*not supported by the model summary.*",
        ".*self.log\\(\\)` but `Trainer\\(barebones=True\\).*",
        # `Pictures` takes their states.
        ".*Please add the following callbacks: \\['(TranslationGrid|SampleGrid|PointCloud)'\\].*",
    ):
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).addFilter(
            lambda record: not any(words in record.getMessage() for words in _SAYING_NOTHING)
        )
