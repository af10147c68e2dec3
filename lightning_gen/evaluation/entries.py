"""The file of evaluations: what was measured, of what, and under which conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning_gen.files import write_atomically


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The evaluations in a file; none if there is no file, and a `ValueError` if it is another one."""
    if not path.exists():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())["evaluations"]
        return [dict(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no file of evaluations ({error}). Name another output.") from error


def is_of(entry: Mapping[str, Any], content: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of this content under these conditions."""
    plain = json.loads(json.dumps(conditions))
    samples = entry.get("samples", {})
    return all(entry.get(key) == value for key, value in plain.items()) and all(
        samples.get(key) == value for key, value in content.items()
    )


def known_entry(path: Path | None, content: Mapping[str, Any], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation of this content under these conditions that is in a file; empty if there is none."""
    entries = read_entries(path) if path else []
    return next((entry for entry in entries if is_of(entry, content, conditions)), {})


def write_entry(
    path: Path, entry: Mapping[str, Any], content: Mapping[str, Any], conditions: Mapping[str, Any]
) -> None:
    """Add an evaluation to a file, and when it was made, in place of one of the same content and conditions."""
    # Others may have written there while this one was made.
    others = [other for other in read_entries(path) if not is_of(other, content, conditions)]
    made = {**entry, "finished": datetime.now().astimezone().isoformat(timespec="seconds")}
    write_atomically(path, json.dumps({"evaluations": [*others, made]}, indent=2, allow_nan=False) + "\n")


def table(title: str, entry: Mapping[str, Any]) -> str:
    """The figures of an evaluation, for people."""
    columns = ["value", "std", "samples", "reference", "floor"]
    floor = entry.get("floor", {})
    figures = {name: figure | {"floor": floor.get(name, {}).get("value")} for name, figure in entry["figures"].items()}
    if "memorisation_ratio" in entry:
        ratio = entry["memorisation_ratio"]
        figures["memorisation_ratio"] = ratio | {"reference": ratio["training"]}
    shown = [column for column in columns if any(figure.get(column) is not None for figure in figures.values())]
    rows = [["", *shown]]
    for name, figure in figures.items():
        values = [figure.get(column) for column in shown]
        rows.append([name, *("" if v is None else str(v) if isinstance(v, int) else f"{v:.6g}" for v in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    if floor:
        lines.append(f"The floor is that of {max(figure['samples'] for figure in floor.values())} test pictures.")
    return "\n".join([title, *lines])
