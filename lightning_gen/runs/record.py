"""What the folder of a run tells: how the run is, what it was measured to be, and which of its checkpoints to take."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from lightning_gen.runs.curves import curves_of
from lightning_gen.runs.figures import BASELINES, Figure, best_of, way
from lightning_gen.runs.history import Line, number, read_history, read_json, read_text
from lightning_gen.runs.layout import CHECKPOINTS, CONFIG, ENVIRONMENT, HISTORY, IMAGES, LAST, RESULTS, pictures_in
from lightning_gen.runs.lock import was_left_locked
from lightning_gen.runs.rendering import thousands

MAX_LEADING = 4  # figures on top of a page
KILLED = "stopped: its process has ended without a word"
LAYOUT = "layout"  # the name under which a picture says where its cells lie


@dataclass(frozen=True)
class Measured:
    """A figure, and all that a run knows of it.

    Attributes:
        figure: Which.
        value: Of the last test; None where there was none.
        baselines: What others reach in the same test, by who they are.
        best: The step at which a validation found it best, and the value there.
        of: How many pictures the test was of, or else the validations, in words; empty where nobody knows.
        best_of: The same of the validations, where it is not that of the test.
        most: The highest value there can be, such as the number of modes; empty where there is none.
    """

    figure: Figure
    value: float | None
    baselines: Mapping[str, float]
    best: tuple[int, float] | None
    of: str = ""
    most: str = ""
    best_of: str = ""

    @property
    def shown(self) -> float | None:
        """The value to show first."""
        return self.best[1] if self.value is None and self.best else self.value

    def text(self, value: float | None) -> str:
        """A value in words; empty for none."""
        if value is None:
            return ""
        return self.figure.value(value) + (f" of {self.most}" if self.most else "")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a run has.

    Attributes:
        path: Below the folder of the run.
        step: Where it was written; None where that is not known.
        by: The metric by which it is the best; empty for the last one.
        value: Of this metric.
    """

    path: str
    step: int | None
    by: str = ""
    value: float | None = None

    @property
    def words(self) -> str:
        """The value in the unit of its metric; empty for none."""
        return "" if self.value is None else Figure.of(self.by).value(self.value)


class Record:
    """All that the files of a run say, whatever state they are in.

    Args:
        folder: Of the run.
        status: "running", "finished" or "stopped: REASON"; None means what `environment.json` says, unless that is
            "running" and the lock of the folder says that nobody does.
    """

    def __init__(self, folder: Path, status: str | None = None) -> None:
        self.folder = folder
        self.environment = read_json(folder / ENVIRONMENT)
        self.results = read_json(folder / RESULTS)
        self.history: list[Line] = read_history(folder / HISTORY)
        recorded = status or text(self.environment.get("status"))
        self.status = KILLED if status is None and recorded == "running" and was_left_locked(folder) else recorded
        self.model = text(self.environment.get("model")) or folder.resolve().name
        self.data = text(self.environment.get("data"))
        domains = self.environment.get("domains")
        self.domains = [text(name) for name in domains[:2]] if isinstance(domains, list) else []

    @property
    def is_going_on(self) -> bool:
        """Whether it trains now."""
        return self.status == "running"

    @property
    def is_stopped(self) -> bool:
        """Whether it has ended before its end."""
        return self.status.startswith("stopped")

    @cached_property
    def config(self) -> str:
        """The settings, as they stand in the file."""
        return read_text(self.folder / CONFIG)

    @cached_property
    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of each metric."""
        return curves_of(self.history)

    @cached_property
    def progress(self) -> dict[str, float | None] | None:
        """How far the run is, by the last line of its history: steps done and to do, the share in percent, ..."""
        if not self.history:
            return None
        last = self.history[-1]
        step, steps, seconds = last["step"], number(self.environment.get("max_steps")), number(last.get("seconds"))
        images = (number(line["images_seen"]) for line in reversed(self.history) if "images_seen" in line)
        held = [number(line.get("memory_gib")) for line in self.history]  # by each process that has gone on with it
        return {
            "step": step,
            "steps": steps,
            "share": min(100.0, 100 * step / steps) if steps else None,
            "seconds": seconds if seconds is not None and math.isfinite(seconds) else None,
            "images": next(images, None),
            "memory": max((size for size in held if size is not None and math.isfinite(size)), default=None),
        }

    @property
    def news(self) -> datetime | None:
        """When the run wrote something last."""
        records = [self.folder / name for name in (HISTORY, RESULTS, ENVIRONMENT)]
        written = [path.stat().st_mtime for path in records if path.is_file()]
        with suppress(ValueError, OverflowError, OSError):  # no moment at all, or one that no calendar has
            return datetime.fromtimestamp(max(written)).astimezone()
        return None

    # -- figures ------------------------------------------------------------------------------------------------------

    @cached_property
    def figures(self) -> list[Measured]:
        """What was measured in the last test or in validations, with what says most first."""
        metrics = self.results.get("metrics")
        tested: dict[tuple[str, str, str], tuple[Figure, float]] = {}
        baselines: dict[tuple[str, str, str], dict[str, float]] = {}
        for name, recorded in metrics.items() if isinstance(metrics, dict) else ():
            figure, value = Figure.of(name), number(recorded)
            if value is None or figure.is_deviation:
                continue
            if figure.baseline:
                baselines.setdefault(figure.key, {})[BASELINES[figure.baseline]] = value
            else:
                tested[figure.key] = figure, value
        validated: dict[tuple[str, str, str], tuple[Figure, dict[int, float]]] = {}
        for name, (steps, values) in self.curves.items():
            figure = Figure.of(name)
            if figure.split == "val" and not (figure.is_deviation or figure.baseline):
                validated[figure.key] = figure, dict(zip(steps, values, strict=True))
        found = []
        for key in dict.fromkeys([*tested, *validated]):
            best = best_of(*validated[key]) if key in validated else None
            in_test = tested.get(key)
            figure = in_test[0] if in_test else validated[key][0]
            if in_test or best:
                value, (of, most) = in_test[1] if in_test else None, self._conditions(figure.name)
                validated_on = self._conditions(validated[key][0].name)[0] if best else ""
                apart = validated_on if validated_on != of else ""
                found.append(Measured(figure, value, baselines.get(key, {}), best, of, most, apart))
        # As many directions as there are stand together, in the order in which they come.
        return sorted(found, key=lambda one: one.figure.rank)

    def _conditions(self, name: str) -> tuple[str, str]:
        """On how many pictures a figure was measured, and what is the most that it can be, in words."""
        record = self.results if name.startswith("test/") else self.environment
        known = record.get("measured_on")
        found = known.get(name) if isinstance(known, dict) else None
        given = found if isinstance(found, dict) else {}
        samples, most = (_count(given.get(key)) for key in ("samples", "most"))
        pictures = _count(record.get("pictures")) if name.startswith("test/") else ""
        return f"{samples} samples" if samples else f"{pictures} test pictures" if pictures else "", most

    @property
    def leading(self) -> list[Measured]:
        """The figures to look at first: those of the two kinds that say most."""
        kinds = list(dict.fromkeys(one.figure.base for one in self.figures if one.figure.arrow))[:2]
        return [one for one in self.figures if one.figure.base in kinds][:MAX_LEADING]

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The best ones that are there, by the metrics that `ModelCheckpoint` looks at, and the last one."""
        found = []
        monitored = self.environment.get("best_checkpoints")
        for one in monitored if isinstance(monitored, list) else ():
            path = text(one.get("path")) if isinstance(one, dict) else ""
            if path and self._has(path):
                step = number(one.get("step"))
                by, value = text(one.get("monitor")), number(one.get("value"))
                found.append(Checkpoint(path, None if step is None else int(step), by, value))
        last = f"{CHECKPOINTS}/{LAST}"
        if self._has(last):
            saved = number(self.environment.get("last_checkpoint"))
            found.append(Checkpoint(last, None if saved is None else int(saved)))
        return found

    def _has(self, path: str) -> bool:
        with suppress(OSError, ValueError):
            return (self.folder / path).is_file()
        return False

    @property
    def going_on(self) -> str:
        """The command that goes on with a run that has stopped; empty where there is nothing to go on from."""
        return self.how_to_go_on if self.is_stopped else ""

    @property
    def how_to_go_on(self) -> str:
        """The command that goes on from the last checkpoint; empty where there is none."""
        last = self.folder.resolve() / CHECKPOINTS / LAST
        return f"lightning-gen fit --ckpt_path {shlex.quote(str(last))}" if last.is_file() and self.config else ""

    # -- pictures -----------------------------------------------------------------------------------------------------

    @cached_property
    def panels(self) -> list[dict[str, Any]]:
        """Name, title, folder (as a relative address) and steps of each panel, those of tests last.

        Real pictures, and the training pictures nearest to samples, stand beside the samples. Where a picture is a
        table of columns, "columns" says where its cells lie.
        """
        images = self.folder / IMAGES
        panels: list[dict[str, Any]] = []
        for path in {picture.parent for picture in images.rglob("step_*.png")}:
            if files := pictures_in(path):
                name = path.relative_to(images).as_posix()
                panel: dict[str, Any] = {"name": name, "title": self._title(name), "steps": list(files)}
                panel["folder"] = quote(os.fsencode(f"{IMAGES}/{name}"))
                if columns := _columns_of(files[max(files)]):
                    panel["columns"] = columns
                panels.append(panel)
        beside = ("samples", "real", "nearest")

        def place(panel: Mapping[str, Any]) -> tuple[bool, int, str]:
            name = panel["name"].removeprefix("test_")
            return (
                panel["name"].startswith("test"),
                beside.index(name) if name in beside else len(beside),
                panel["name"],
            )

        return sorted(panels, key=place)

    def _title(self, name: str) -> str:
        tested, plain = name.startswith("test_"), name.removeprefix("test_")
        if plain in ("AtoB", "BtoA"):
            title = way(plain, self.domains)
        elif plain == "real":
            title = "real pictures"
        elif plain == "nearest":
            title = "samples and the nearest training pictures"
        else:
            title = plain.replace("_", " ")
        return f"{title}, test" if tested else title


def _columns_of(path: Path) -> dict[str, Any] | None:
    """Where the cells of a picture lie, if it says so."""
    with suppress(Exception):  # whatever lies there under that name
        with Image.open(path) as picture:
            layout = json.loads(str(picture.info.get(LAYOUT, "null")))
            size = picture.size
        titles = [str(title) for title in layout["titles"]]
        left, top, width, height, right, down, rows = (int(layout[key]) for key in _CELLS)
        inside = left + (len(titles) - 1) * right + width <= size[0] and top + (rows - 1) * down + height <= size[1]
        if len(titles) > 1 and min(width, height, rows) > 0 and min(left, top, right, down) >= 0 and inside:
            return {"titles": titles, **{key: int(layout[key]) for key in _CELLS}}
    return None


_CELLS = ("left", "top", "width", "height", "right", "down", "rows")


def _count(value: Any) -> str:
    """A number above 0 of a file with thin spaces; empty for what is none."""
    count = number(value)
    return thousands(count) if count is not None and 0 < count < 1e15 else ""


def text(value: Any) -> str:
    """Whatever stands in a file, in words; empty where nothing does."""
    try:
        return "" if value is None else str(value)
    except RecursionError:
        return "..."
