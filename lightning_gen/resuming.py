"""How a run goes on from a checkpoint exactly where it was, whenever that was written."""

from __future__ import annotations

from typing import Any


def as_if_not_ended(loop: dict[str, Any], accumulate: int = 1) -> None:
    """Put the state of Lightning's fit loop right that was saved when an epoch, or the training, had ended.

    There the epoch counts as complete, also one that `max_steps`, `max_time` or a callback cut short, what is left of
    which Lightning would skip. And of the epoch after a complete one it would skip as many batches as that had.

    Args:
        loop: `checkpoint["loops"]["fit_loop"]`; changed in place. What was saved within an epoch stays as it is.
        accumulate: Batches to one optimizer step.
    """
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if not 0 < epochs["total"]["started"] == epochs["total"]["processed"] or not batches["total"]["ready"]:
        return
    complete = batches["is_last_batch"]
    for count in (epochs["total"], epochs["current"]):
        count["ready"] = count["started"]
        count["processed"] = count["completed"] = count["started"] - (not complete)
    if complete:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
        loop["state_dict"].pop("combined_loader", None)
        return
    # As it was when the last batch had ended, a moment at which Lightning knows how to go on.
    for count in (batches["total"], batches["current"]):
        count["completed"] = count["processed"] - 1
    if batches["current"]["ready"] % accumulate == 0:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
