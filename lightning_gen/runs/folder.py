"""The folder of a run: where it is, and which of its checkpoints a name means. `layout` says what lies in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn

from lightning_gen.checkpoints import read_checkpoint
from lightning_gen.runs.layout import CHECKPOINTS, LAST, by_number, run_folder_of_checkpoint

MAX_NAMED = 8  # of checkpoints or runs in a message

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


def keeps_files(trainer: pl.Trainer) -> bool:
    """Whether this process writes into the run's folder: rank zero does, except under `fast_dev_run`."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def _folder_of_logger(trainer: pl.Trainer) -> Path:
    root = Path(trainer.default_root_dir)
    if not trainer.loggers:
        return root
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or root) / str(logger.name) / version
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder  # as people write it


# -- finding checkpoints -----------------------------------------------------------------------------------------------


def find_checkpoint(name: str | os.PathLike[str]) -> Path:
    """The one checkpoint that a name means, by the rule of all commands.

    * A file is itself.
    * A run's folder RUN, or RUN/checkpoints, or RUN/last, is its `last.ckpt`; where there is none, the one with the
      most steps.
    * RUN/best is what its `ModelCheckpoint` found best by the metric that it monitors.

    Raises:
        FileNotFoundError: If there is none; the message says which there are.
        ValueError: If several are the best of a run, each by a metric of its own.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() and (found := _checkpoints_in(path)):
        return _last_of(found)
    if path.name in ("last", "best") and (found := _checkpoints_in(path.parent)):
        return _last_of(found) if path.name == "last" else _best_of(path.parent, found)
    raise FileNotFoundError(_what_there_is(path))


def find_checkpoints(names: str | Sequence[str]) -> list[Path]:
    """All checkpoints under these names, by number: those of `find_checkpoint`, all of a folder, those of a pattern.

    Raises:
        FileNotFoundError: If there is none under one of the names; the message says which there are.
        ValueError: As `find_checkpoint`.
    """
    found: list[Path] = []
    for path in [Path(names)] if isinstance(names, str) else map(Path, names):
        several = _checkpoints_in(path) if path.is_dir() else []
        several = several or [file for match in _matching(path) for file in _checkpoints_in(match)]
        found += several or [find_checkpoint(path)]
    return found


def _checkpoints_in(path: Path) -> list[Path]:
    """A file; or what a run's folder, or another, has of checkpoints, also in folders of their own."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    # A folder like any other may be very deep.
    files = folder.rglob("*.ckpt") if CHECKPOINTS in folder.absolute().parts else folder.glob("*.ckpt")
    return sorted((file for file in files if file.is_file()), key=by_number)


def _matching(pattern: Path) -> Iterator[Path]:
    """What matches a pattern, in which folders that exist are meant literally, whatever brackets they have."""
    folder = next(parent for parent in (pattern, *pattern.parents) if parent.exists())
    rest = str(pattern.relative_to(folder))
    return iter(sorted(folder.glob(rest), key=by_number)) if rest != "." else iter([folder])


def _last_of(files: Sequence[Path]) -> Path:
    named = [file for file in files if file.name == LAST]
    return named[0] if named else files[0] if len(files) == 1 else max(files, key=_step_of)


def _step_of(path: Path) -> int:
    return int(read_checkpoint(path).get("global_step", 0))


def _best_of(run: Path, files: Sequence[Path]) -> Path:
    """What the callbacks of the latest checkpoint call the best."""
    callbacks = read_checkpoint(max(files, key=_step_of)).get("callbacks", {})
    best: dict[Path, str] = {}
    for name, state in callbacks.items():
        if name.startswith("ModelCheckpoint") and state.get("monitor") and state.get("best_model_path"):
            # The run may have been moved since.
            path = Path(os.path.relpath(state["best_model_path"], state.get("dirpath") or "."))
            best[path] = state["monitor"]
    if not best:
        raise FileNotFoundError(
            f"No checkpoint of {run} is the best one: no ModelCheckpoint with a `monitor` was among its callbacks. "
            f"It has {_listed(files, run)}."
        )
    if len(best) > 1:
        listed = ", ".join(f"{path} by {monitor}" for path, monitor in best.items())
        raise ValueError(f"Several checkpoints of {run} are the best: {listed}. Name one of them.")
    ((path, monitor),) = best.items()
    for file in files:
        if file.parts[-len(path.parts) :] == path.parts:
            return file
    raise FileNotFoundError(
        f"{path}, the best checkpoint of {run} by {monitor}, is not there any more. It has {_listed(files, run)}."
    )


def _what_there_is(path: Path) -> str:
    """Words for a checkpoint that does not exist."""
    words = f"There is no checkpoint at {path}."
    if path.name in ("last", "best") and path.parent == Path():
        words += f" {path.name} is that of a run, as in RUN/{path.name}."
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    run = run_folder_of_checkpoint(folder / LAST)
    if run and (files := _checkpoints_in(run)):
        return f"{words} {run} has {_listed(files, run)}."
    runs = [found.parent for depth in ("*", "*/*", "*/*/*") for found in folder.glob(f"{depth}/{CHECKPOINTS}")]
    if runs:
        words += f" {folder.absolute()} has the runs {_listed(sorted(runs, key=by_number), folder)}."
    return words


def _listed(paths: Sequence[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in paths[:MAX_NAMED]]
    more = len(paths) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
