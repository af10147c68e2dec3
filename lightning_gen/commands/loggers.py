"""Loggers where a run goes on: in its folder, in its W&B run, at its step."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from lightning_gen.commands.configs import NUMBERING_LOGGERS, config_folder, shipped_configs

RUNS = "runs"  # the folder of all runs, where nothing else is said


def run_name(config: Namespace) -> str:
    """What the runs of a configuration are called: as the shipped one, or the one that is shipped for the model.

    `--config paper/wgan_gp_cifar10` gives "wgan_gp_cifar10", and a file of one's own with the model WGANGP "wgan_gp". A
    model for which no configuration is shipped has its own name, in small letters.
    """
    shipped = [Path(name).stem for name in shipped_configs()]
    for file in reversed(config.get("config") or []):
        path = Path(str(file)).resolve()
        if path.is_relative_to(config_folder().resolve()) and path.stem in shipped:
            return path.stem
    name = str(config.model.class_path).rpartition(".")[2].lower()
    return next((one for one in shipped if one.replace("_", "") == name), name)


def place_loggers(loggers: Any, parent: str | os.PathLike[str], name: str) -> None:
    """Let loggers that number their folders do it where runs lie: PARENT/NAME/version_N, unless they are told where.

    Their configurations, one or a list, are changed in place. TensorBoard gets no `hp_metric`, whose -1 says nothing.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        kind = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        if kind in NUMBERING_LOGGERS:
            arguments = logger.init_args
            arguments.save_dir = arguments.get("save_dir") or str(parent)
            if arguments.get("name") == "lightning_logs":
                arguments.name = name
            if kind == "TensorBoardLogger":
                arguments.default_hp_metric = False


def record_at_step(trainer: pl.Trainer, step: int) -> None:
    """Let what is logged outside of training have a step, in place of the number of batches that Lightning counts."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def go_on_in_folder(loggers: Any, folder: Path, step: int) -> None:
    """Let the logger that gives a run its folder, the first one, go on in the folder of an earlier run.

    Its configuration is changed in place if it is one that numbers its folders, and none is named: `RunLogger`,
    `CSVLogger` or `TensorBoardLogger`. What it has recorded after the step is dropped.
    """
    logger = loggers[0] if isinstance(loggers, list) and loggers else loggers
    name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
    if name not in ("RunLogger", *NUMBERING_LOGGERS):
        return
    arguments = logger.init_args
    if arguments.get("version") is None:
        arguments.save_dir, arguments.name = str(folder.parent.parent), folder.parent.name
        arguments.version = folder.name
        if name == "TensorBoardLogger":
            arguments["purge_step"] = step + 1
    if name == "CSVLogger" and Path(CSVLogger(**arguments.as_dict()).log_dir).resolve() == folder:
        logger.class_path = "lightning_gen.runs.logger.ResumedCSVLogger"
        arguments["keep_until"] = step


def prepare_wandb(loggers: Any, checkpoint: dict[str, Any] | None) -> None:
    """Let W&B loggers, of one configuration or a list, go on with the run of a checkpoint; offline without a login."""
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


def _logged_in(wandb: Any) -> bool:
    if "prompt" in inspect.signature(wandb.login).parameters:  # from wandb 0.31 on, which warns about `wandb.api`
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)
