"""The record of a run: `history.jsonl`, a strict JSON object in a line of its own for every moment of logging.

`pandas.read_json("RUN/history.jsonl", lines=True)` is the table.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_gen.files import write_atomically

Line = dict[str, Any]
MAX_STEP = 2**53  # beyond which a number is damage and no step


def strict_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become the strings "NaN", "Infinity" and "-Infinity"."""

    def strict(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return "NaN" if math.isnan(item) else "Infinity" if item > 0 else "-Infinity"
        if isinstance(item, Mapping):
            return {str(key): strict(part) for key, part in item.items()}
        if isinstance(item, list | tuple):
            return [strict(part) for part in item]
        return item

    return json.dumps(strict(value), allow_nan=False, indent=indent)


def number(value: Any) -> float | None:
    """A value of a JSON file as a number; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def read_history(path: Path) -> list[Line]:
    """The lines of a record, none if it cannot be read.

    A line is a flat object with a "step". What else stands there is left out: a line cut short by a kill or a full
    disk, or damage.
    """
    lines = []
    for text in read_text(path).split("\n"):
        line = _object(text)
        step = line.get("step")
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= MAX_STEP:
            lines.append({name: value for name, value in line.items() if not isinstance(value, dict | list)})
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none."""
    return _object(read_text(path))


def read_text(path: Path) -> str:
    """A file's text, empty where there is none."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def add_to_history(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, which is on its way to the disk when this returns, so that a kill costs none; or `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        # What a kill or a full disk cut short must not take this line with it.
        begin = "\n" if file.read(1) not in (b"", b"\n") else ""
        file.write(f"{begin}{strict_json(line)}\n".encode())


def write_history(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the whole record, or leave what stood there; `OSError` if it cannot be written."""
    write_atomically(path, "".join(strict_json(line) + "\n" for line in lines))


def sync_history(path: Path) -> None:
    """Wait until the disk has the record, so that it outlasts what a power cut leaves of the run; or `OSError`."""
    if path.is_file():
        with path.open("ab") as file:
            os.fsync(file.fileno())
