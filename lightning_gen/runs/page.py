"""The page of a run's folder."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from lightning_gen.files import write_atomically
from lightning_gen.runs.curves import charts_of, moments_of
from lightning_gen.runs.evaluations import evaluations_of, facts_in, figures_in
from lightning_gen.runs.history import number, read_json, read_text, strict_json
from lightning_gen.runs.layout import EMBEDDED, ENVIRONMENT, HISTORY, IMAGES, PAGE, START, is_run
from lightning_gen.runs.record import Measured, Record, text
from lightning_gen.runs.rendering import template, thousands

REFRESH = 30  # seconds after which the page of a run that goes on loads itself again
MAX_EMBEDDED = 12_000_000  # bytes of pictures in a page to mail, which become a third more in it
_CHANGING = ("measured_on", "best_checkpoints", "last_checkpoint")
_NO_FACTS = ("domains", *_CHANGING, "status")


def write_report(folder: str | os.PathLike[str], status: str | None = None) -> Path:
    """Write `index.html` of a run from the files in its folder.

    The page is one static file that needs nothing else but the pictures beside it: no server, no network. While the
    status is "running" it loads itself again every 30 seconds.

    Args:
        folder: The run's folder.
        status: "running", "finished" or "stopped: REASON"; None means what `environment.json` says, or that a run is
            stopped whose process is no longer there.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder holds nothing of a run.
        OSError: If the page cannot be written; an earlier one stays.
    """
    record = _record(folder, status)
    page = record.folder / PAGE
    write_atomically(page, _rendered(record, record.panels))
    return page


@dataclass(frozen=True)
class Embedded:
    """A page that is one file.

    Attributes:
        path: Where it is.
        size: In bytes.
        pictures: How many it has.
        of: How many the run has.
    """

    path: Path
    size: int
    pictures: int
    of: int


def write_embedded_report(folder: str | os.PathLike[str], most: int = MAX_EMBEDDED) -> Embedded:
    """Write `report.html` of a run: its page with the pictures in it, one file to mail.

    Args:
        folder: The run's folder.
        most: Bytes of pictures at most. Where there are more, those of steps as evenly spaced as can be are taken, the
            first and the last of each panel in any case.

    Raises:
        FileNotFoundError: If the folder holds nothing of a run.
        OSError: If the page cannot be written.
    """
    record = _record(folder)
    panels, of = record.panels, sum(len(panel["steps"]) for panel in record.panels)
    sizes = [{step: _picture(record, panel, step).stat().st_size for step in panel["steps"]} for panel in panels]
    number = max((len(steps) for steps in sizes), default=0)
    while number > 2 and sum(steps[step] for steps in sizes for step in _spaced([*steps], number)) > most:
        number -= 1
    chosen = [{**panel, "steps": _spaced(panel["steps"], number)} for panel in panels]
    for panel in chosen:
        panel["pictures"] = {step: _data_address(_picture(record, panel, step)) for step in panel["steps"]}
    page = record.folder / EMBEDDED
    content = _rendered(record, chosen)
    write_atomically(page, content)
    return Embedded(page, len(content), sum(len(panel["steps"]) for panel in chosen), of)


def finish_record(folder: Path, facts: Mapping[str, Any]) -> None:
    """Say that a run is over that was killed between its last checkpoint and the end of its record.

    The facts are those that this checkpoint has of what `environment.json` says.
    """
    if read_json(folder / ENVIRONMENT).get("status") == "running":
        note(folder, **{name: facts[name] for name in _CHANGING if name in facts}, status="finished")
    write_report(folder)


def note(folder: Path, **facts: Any) -> None:
    """Note facts in `environment.json`, such as the status of a run, beside those that stand there."""
    path = folder / ENVIRONMENT
    write_atomically(path, strict_json({**read_json(path), **facts}, indent=2))


def _spaced(steps: Sequence[int], number: int) -> list[int]:
    """So many of the steps, the first and the last among them."""
    if len(steps) <= max(2, number):
        return list(steps)
    return [steps[i * (len(steps) - 1) // (number - 1)] for i in range(number)]


def _picture(record: Record, panel: Mapping[str, Any], step: int) -> Path:
    return record.folder / os.fsdecode(unquote_to_bytes(panel["folder"])) / f"step_{step:08d}.png"


def _data_address(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _record(folder: str | os.PathLike[str], status: str | None = None) -> Record:
    if not is_run(Path(folder)):
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it holds neither {HISTORY} nor pictures in {IMAGES}/. "
            "Give the folder in which the run wrote its checkpoints/, or one that holds such folders."
        )
    return Record(Path(folder), status)


def _rendered(record: Record, panels: Sequence[Mapping[str, Any]]) -> bytes:
    step = number(record.results.get("step"))
    tested = [name for name in (text(record.results.get("checkpoint")),) if name]
    tested += [f"step {thousands(step)}"] if step is not None else []
    facts = {name: value for name, value in record.environment.items() if name not in _NO_FACTS}
    page = template("page.html").render(
        refresh=REFRESH,
        record=record,
        where="/".join(record.folder.resolve().parts[-3:]).lstrip("/"),
        tested=tested,
        tiles=[_tile(record, one) for one in record.leading],
        panels=panels,
        listed=[_listed(panel) for panel in panels],
        charts=charts_of(record.history, record.domains),
        axes=moments_of(record.history),
        evaluations=(evaluations := evaluations_of(record.folder)),
        evaluated_figures=figures_in(evaluations),
        evaluation_facts=facts_in(evaluations),
        start=read_text(record.folder / START),
        environment={name.replace("_", " "): text(value) for name, value in facts.items() if value is not None},
    )
    return page.encode(errors="replace")  # the names of files may hold what is no character


def _listed(panel: Mapping[str, Any]) -> Mapping[str, Any]:
    """A panel as the script of the page needs it, which finds the last picture in its place."""
    if "pictures" not in panel:
        return panel
    earlier = {step: picture for step, picture in panel["pictures"].items() if step != panel["steps"][-1]}
    return {**panel, "pictures": earlier}


def _tile(record: Record, one: Measured) -> dict[str, Any]:
    """A figure on top of the page: its value, and beside it what others reach, and of what it is."""
    notes = [] if one.value is not None or not one.best else [f"best of the validations, step {thousands(one.best[0])}"]
    notes += [one.of] if one.of else []
    return {
        "label": one.figure.label(record.domains),
        "arrow": one.figure.arrow,
        "value": one.text(one.shown),
        "baselines": {who: one.text(value) for who, value in one.baselines.items()},
        "notes": notes,
    }
