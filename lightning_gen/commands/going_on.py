"""Going on with a run: the configuration that its checkpoint brings, and whether there is something left to do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lightning_gen.commands.configs import find_config
from lightning_gen.runs.folder import find_checkpoint
from lightning_gen.runs.layout import CONFIG, run_folder_of_checkpoint
from lightning_gen.runs.lock import lock_run, unlock_run
from lightning_gen.runs.page import finish_record
from lightning_gen.trust import restrict_configurations


class RunIsOver(Exception):
    """There is nothing left to do in a run that was asked to go on; the message says why, and what to raise."""


def check_that_it_is_not_over(checkpoint: dict[str, Any], config: Namespace, folder: Path | None) -> None:
    """Look whether there is something left to do before anything is built; if not, finish the record of the run.

    The folder is that of the run, if it lies in one and this process is to write there.

    Raises:
        RunIsOver: If there is nothing left.
        BlockingIOError: As `lock_run`.
    """
    limit = limit_reached(checkpoint, config.trainer)
    if limit is None:
        return
    if folder:
        lock_run(folder)
        with suppress(OSError, LookupError, TypeError, ValueError):  # it is as it was
            finish_record(folder, checkpoint["callbacks"]["Report"].get("facts", {}))
        unlock_run(folder)
    raise RunIsOver(
        f"This run has ended at step {int(checkpoint['global_step'])}: it has reached {limit}. Raise that to go "
        f"on. To test it: lightning-gen test --ckpt_path {shlex.quote(str(config.ckpt_path))}. To start another "
        f"run from its weights: lightning-gen fit --config FILE --init_from {shlex.quote(str(config.ckpt_path))}"
    )


def limit_reached(checkpoint: dict[str, Any], settings: Namespace) -> str | None:
    """What of the trainer's settings would end a run again at once: "trainer.max_steps (600)"; None if it goes on."""
    with suppress(LookupError, TypeError, AttributeError):  # a damaged checkpoint is another's matter
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"]["total"], loop["epoch_loop.batch_progress"]
        if epochs["completed"] < epochs["started"]:  # the end of the epoch is still due
            return None
        complete = epochs["completed"] - (batches["current"]["ready"] > 0 and not batches["is_last_batch"])
        if 0 <= (settings.max_steps or -1) <= checkpoint["global_step"]:
            return f"trainer.max_steps ({settings.max_steps})"
        if settings.max_epochs is not None and 0 <= settings.max_epochs <= complete:
            return f"trainer.max_epochs ({settings.max_epochs})"
        states = checkpoint["callbacks"]
        if settings.max_time is not None and "Timer" in states:
            timer = Timer(settings.max_time)
            timer.load_state_dict(states["Timer"])
            if (timer.time_remaining() or 0) <= 0:
                return f"trainer.max_time ({settings.max_time})"
        for callback in settings.callbacks or ():
            arguments = callback.get("init_args") or Namespace()
            if callback.class_path.endswith("EarlyStopping"):
                state = states.get(EarlyStopping(arguments.monitor, mode=arguments.mode).state_key)
                if state and state["wait_count"] >= arguments.patience:
                    return f"the patience of EarlyStopping ({arguments.patience})"
    return None


def with_configs(arguments: list[str]) -> list[str]:
    """Arguments with shipped configurations as paths, and with the configuration of the run that a checkpoint is of.

    Raises:
        FileNotFoundError: If there is no such configuration or checkpoint.
        ValueError: If the checkpoint lies in the folder of no run and nothing else says what is to be trained; or
            if weights to start from are given beside what they do not go with.
    """
    found = list(arguments)
    _check_start(arguments)
    for place, name in _values_of(arguments, "--config", "-c"):
        found[place] = arguments[place].removesuffix(name) + find_config(name)
    if any(_values_of(arguments, "--config", "-c")):
        return found
    for _, name in _values_of(arguments, "--ckpt_path"):
        if name in ("", "null"):
            continue
        checkpoint = find_checkpoint(name)
        folder = run_folder_of_checkpoint(checkpoint)
        if folder and (folder / CONFIG).is_file():
            restrict_configurations(arguments)
            found[1:1] = ["--config", str(folder / CONFIG)]
        elif not all(any(_values_of(arguments, flag)) for flag in ("--model", "--data")):
            raise ValueError(
                f"{checkpoint} lies in the folder of no run, whose {CONFIG} would say what it was trained on, and how. "
                "Name that configuration: --config FILE."
            )
        break
    return found


def _check_start(arguments: Sequence[str]) -> None:
    """Raise a `ValueError` where weights to start from are given beside what they do not go with."""
    start, checkpoint = (
        next((name for _, name in _values_of(arguments, flag) if name not in ("", "null")), None)
        for flag in ("--init_from", "--ckpt_path")
    )
    if start is None:
        return
    if arguments[0] != "fit":
        raise ValueError(
            f"--init_from starts a run of fit. For {arguments[0]}, weights are given as --ckpt_path {start}"
        )
    if checkpoint is not None:
        raise ValueError(
            "--init_from and --ckpt_path were both given. --ckpt_path goes on with a run where it stopped, with its "
            "data, optimizers and counts. --init_from starts a new run that begins with the weights of another one. "
            "Leave one of them out."
        )
    if not any(_values_of(arguments, "--config", "-c")) and not all(
        any(_values_of(arguments, flag)) for flag in ("--model", "--data")
    ):
        raise ValueError(
            "--init_from brings weights and no settings. Name a configuration too, with your data and with networks "
            "such as the other run has in its config.yaml: --config FILE."
        )


def _values_of(arguments: Sequence[str], *flags: str) -> Iterator[tuple[int, str]]:
    """What stands after these flags, and the places in the list that it ends."""
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in flags and equals:
            yield i, value
        elif flag in flags and i + 1 < len(arguments):
            yield i + 1, arguments[i + 1]
