"""The folder of a run: where it is, and what lies in it.

| in the folder                  | what                                                                 |
| ------------------------------ | -------------------------------------------------------------------- |
| config.yaml                    | the settings, as the command line was given them                     |
| checkpoints/                   | what `ModelCheckpoint` saves                                         |
| images/PANEL/step_00001000.png | pictures through time (`log_picture`)                                |
| history.jsonl                  | the metrics, one strict JSON object per logging moment (`Report`)    |
| environment.json               | versions, devices, command line, and how the run ended (`Report`)    |
| results.json                   | the metrics of the last test (`Report`)                              |
| evaluation.json                | what FID and company were measured on, and how (`GenerativeMetrics`) |
| evaluations.json               | the figures that `lightning-gen evaluate` measured, and on what      |
| index.html                     | all of this on one page (`Report`)                                   |
"""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
HISTORY = "history.jsonl"
ENVIRONMENT = "environment.json"
RESULTS = "results.json"
EVALUATION = "evaluation.json"
PAGE = "index.html"

# Rank zero's answer, on every rank. Loggers number their folders by looking at the disk, and other ranks look later.
_agreed: WeakKeyDictionary[pl.Trainer, Path] = WeakKeyDictionary()


def run_folder(trainer: pl.Trainer) -> Path:
    """The folder of the present run: the one in which `ModelCheckpoint` makes its `checkpoints`.

    That is `save_dir/name/version` of the first logger (the `log_dir` of TensorBoard and CSV loggers), or
    `default_root_dir` where there is no logger. Testing, validating or predicting from a checkpoint belongs to the run
    that wrote the checkpoint, once the checkpoint is loaded (after `setup`).

    The folder need not exist yet, and asking starts no logger; a Weights & Biases run has its folder from `setup` on.

    Under several processes the answer is rank zero's. The first call in a process is a broadcast, so all ranks must
    make it together (the callbacks here do so in `setup`); later calls communicate nothing.
    """
    if trainer.state.fn not in (None, TrainerFn.FITTING) and trainer.ckpt_path is not None:
        folder = run_folder_of_checkpoint(trainer.ckpt_path)
        if folder is not None:
            return folder
    if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return _folder_of_logger(trainer)
    if trainer not in _agreed:
        _agreed[trainer] = trainer.strategy.broadcast(_folder_of_logger(trainer))
    return _agreed[trainer]


def run_folder_of_checkpoint(path: str | os.PathLike[str]) -> Path | None:
    """The run that wrote a checkpoint: RUN for `RUN/checkpoints/NAME.ckpt`, None where that is no folder of a run."""
    path = Path(path)
    folder = path.parent.parent
    if path.parent.name != CHECKPOINTS:
        return None
    return folder if any((folder / name).is_file() for name in (CONFIG, HISTORY, ENVIRONMENT)) else None


def keeps_files(trainer: pl.Trainer) -> bool:
    """Whether this process writes into the run's folder: rank zero does, except under `fast_dev_run`."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def pictures_in(panel: Path) -> dict[int, Path]:
    """The pictures of a panel's folder by step, in order."""
    found = ((path.stem.removeprefix("step_"), path) for path in panel.glob("step_*.png"))
    return dict(sorted((int(step), path) for step, path in found if step.isdigit()))


def _folder_of_logger(trainer: pl.Trainer) -> Path:
    root = Path(trainer.default_root_dir)
    if not trainer.loggers:
        return root
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or root) / str(logger.name) / version
