"""Whether a run that is asked to go on has something left to do."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lightning_gen.callbacks.report import finish_record
from lightning_gen.runs.lock import lock_run, unlock_run


class RunIsOver(Exception):
    """There is nothing left to do in a run that was asked to go on; the message says why, and what to raise."""


def check_that_it_is_not_over(checkpoint: dict[str, Any], config: Namespace, folder: Path | None) -> None:
    """Look whether there is something left to do before anything is built; if not, finish the record of the run.

    Args:
        checkpoint: That a run is to go on from.
        config: Of `fit`, as it is now.
        folder: Of the run, if it lies in one and this process is to write there.

    Raises:
        RunIsOver: If there is nothing left.
        BlockingIOError: As `lock_run`.
    """
    limit = limit_reached(checkpoint, config.trainer)
    if limit:
        if folder:
            lock_run(folder)
            with suppress(OSError):  # it is as it was
                finish_record(folder)
            unlock_run(folder)
        raise RunIsOver(
            f"This run has ended at step {int(checkpoint['global_step'])}: it has reached {limit}. Raise that to go "
            f"on. To test it: lightning-gen test --ckpt_path {shlex.quote(str(config.ckpt_path))}"
        )


def limit_reached(checkpoint: dict[str, Any], settings: Namespace) -> str | None:
    """What ended a run and would end it again at once, such as "trainer.max_steps (600)"; None where it goes on.

    Args:
        checkpoint: That it is to go on from.
        settings: Of the trainer, as they are now.
    """
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
