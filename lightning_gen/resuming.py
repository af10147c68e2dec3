"""What is changed when a run goes on from a checkpoint holds, and what is not stays as it is, to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

SETTINGS = "training_settings"


class Change(NamedTuple):
    """A setting that is another than in the run that wrote the checkpoint."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} {self.before} -> {self.now}"


def training_settings(optimizers: Iterable[Optimizer], schedules: Iterable[Any]) -> dict[str, Any]:
    """What optimizers and schedules were made with, as plain data; to be asked before the first step.

    A checkpoint keeps it beside their states, in which a setting that a schedule has moved cannot be told from one that
    was chosen.
    """

    def groups_of(optimizer: Optimizer) -> list[Any]:
        return [_plain({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]

    return {
        "optimizers": [{"class": _class_of(optimizer), "groups": groups_of(optimizer)} for optimizer in optimizers],
        "schedules": [{"class": _class_of(schedule), "state": _plain(schedule.state_dict())} for schedule in schedules],
    }


def keep_changes(checkpoint: dict[str, Any], optimizers: Sequence[Optimizer], schedules: Sequence[Any]) -> list[Change]:
    """Let what was changed since a checkpoint hold when optimizers and schedules take their states from it.

    What was chosen otherwise then and now is taken as it is now, and all else as it is in the checkpoint, to the bit. A
    learning rate is multiplied by the same factor as the one it started from. An optimizer of another kind starts
    without a state, and a schedule that the checkpoint has none for starts at its step.

    The checkpoint is changed in place; optimizers and schedules are as they were just made. Gives what was changed.
    """
    changes: list[Change] = []
    now = training_settings(optimizers, schedules)
    states, schedule_states = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    before = checkpoint.get(SETTINGS) or _guessed(states, schedule_states, now)
    for i, (optimizer, old, new) in enumerate(zip(optimizers, before["optimizers"], now["optimizers"], strict=False)):
        name = f"optimizer {i}"
        if not _share_a_state(old["class"], type(optimizer)):
            changes.append(Change(name, old["class"], new["class"]))
            states[i] = optimizer.state_dict()
            continue
        for saved, *chosen in zip(states[i].get("param_groups", []), old["groups"], new["groups"], strict=False):
            base, base_now = (group.get("initial_lr", group.get("lr")) for group in chosen)
            if base != base_now:
                changes.append(Change(f"{name}.lr", base, base_now))
                saved["lr"] = saved["lr"] * (base_now / base) if base else base_now
            _take_changes(saved, chosen[0], chosen[1], f"{name}.", changes)
    for i, (schedule, new) in enumerate(zip(schedules, now["schedules"], strict=True)):
        if i >= len(schedule_states):
            step = int(checkpoint["global_step"])
            schedule_states.append({**schedule.state_dict(), "last_epoch": step, "_step_count": step + 1})
            continue
        saved, old = schedule_states[i], before["schedules"][i]
        if _kind(old["class"]) != _kind(new["class"]):
            changes.append(Change(f"schedule {i}", old["class"], new["class"]))
            place = {name: saved[name] for name in ("last_epoch", "_step_count") if name in saved}
            schedule_states[i] = {**schedule.state_dict(), **place}
        else:
            _take_changes(saved, old["state"], new["state"], f"schedule {i}.", changes)
    return changes


def differences(before: Any, now: Any, name: str = "") -> list[Change]:
    """Where two structures of plain data differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        classes = before.get("class_path"), now.get("class_path")
        if name and _kind(classes[0]) != _kind(classes[1]):  # whose arguments have nothing to do with each other
            return [Change(name, *classes)]
        found = []
        for key in dict.fromkeys((*before, *now)):
            if key != "class_path" and not str(key).startswith("_"):
                found += differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        return found
    return [] if _equal(before, now) else [Change(name, before, now)]


def _take_changes(saved: Any, before: Any, now: Any, name: str, changes: list[Change]) -> None:
    """Replace in a saved structure what was chosen otherwise, in place."""
    places = range(len(saved)) if isinstance(saved, list) else list(saved)
    for place in places:
        try:
            old, new = before[place], now[place]
        except (KeyError, IndexError):
            continue
        if place in ("lr", "_last_lr") or _equal(old, new):
            continue
        inner = isinstance(saved[place], dict) or (isinstance(saved[place], list) and isinstance(saved[place][0], dict))
        if inner:
            _take_changes(saved[place], old, new, f"{name}{place}.", changes)
        else:
            saved[place] = new
            if place not in ("initial_lr", "base_lrs"):  # which are `lr` again
                changes.append(Change(f"{name}{place}", old, new))


def _equal(a: Any, b: Any) -> bool:
    return list(a) == list(b) if isinstance(a, list | tuple) and isinstance(b, list | tuple) else bool(a == b)


def _class_of(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _kind(path: Any) -> tuple[str, str]:
    """A class that a file names: its package and its name, which stay where the file that it is defined in moves."""
    return str(path).partition(".")[0], str(path).rpartition(".")[2]


def _share_a_state(before: str, now: type) -> bool:
    """Whether an optimizer can go on with the state of another, as AdamW with that of Adam."""
    earlier = getattr(torch.optim, before.rpartition(".")[2], None) if before.startswith("torch.optim.") else None
    same = _kind(before) == _kind(f"{now.__module__}.{now.__qualname__}")
    return same or bool(earlier and (issubclass(now, earlier) or issubclass(earlier, now)))


def _plain(value: Any) -> Any:
    """A copy of what can be saved as plain data of a structure."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if _is_plain(item)}
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Tensor | Mapping)


def _guessed(states: Sequence[Any], schedule_states: Sequence[Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings behind a checkpoint of an earlier version, which did not keep them: those of its states."""
    optimizers = []
    for state, new in zip(states, now["optimizers"], strict=False):
        saved = state.get("param_groups", [])  # a model without an optimizer has a placeholder
        groups = [{name: group[name] for name in group if name != "params"} for group in saved]
        names = groups[0].keys() ^ new["groups"][0].keys() if groups else set()
        optimizers.append({"class": new["class"] if names <= {"initial_lr"} else "another kind", "groups": groups})
    schedules = [
        {"class": new["class"], "state": new["state"] | {"base_lrs": old["base_lrs"]} if "base_lrs" in old else {}}
        for old, new in zip(schedule_states, now["schedules"], strict=False)
    ]
    return {"optimizers": optimizers, "schedules": schedules}
