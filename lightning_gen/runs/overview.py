"""The page over all runs of a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_gen.files import write_atomically
from lightning_gen.limits import load_yaml
from lightning_gen.runs.curves import moments_of, thinned
from lightning_gen.runs.figures import Figure
from lightning_gen.runs.layout import PAGE, runs_in
from lightning_gen.runs.record import Measured, Record
from lightning_gen.runs.rendering import duration, template, thousands

MAX_FIGURES = 16  # columns of the table
MAX_POINTS = 120  # of a curve
MAX_MOMENTS = 200  # as in `curves`
MAX_WORDS = 200  # characters of a setting


def write_overview(folder: str | os.PathLike[str]) -> Path:
    """Write `index.html` of a folder that holds runs: a page over all of them, which needs nothing else.

    A table to sort, with the figures that say most, the best checkpoint of each run, and for runs that have stopped the
    command to go on; curves of several runs laid over each other; and the settings in which they differ.

    Args:
        folder: The runs lie in it, or up to four folders below.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If there is no run.
        OSError: If the page cannot be written; an earlier one stays.
    """
    folder = Path(folder)
    places = runs_in(folder)
    if not places:
        raise FileNotFoundError(
            f"{folder} is not the folder of a run and holds none: nowhere in it is a history.jsonl or a results.json. "
            "Give the folder in which a run wrote its checkpoints/, or one that holds such folders."
        )
    records = [Record(place) for place in places]
    columns = _columns(records)
    metrics = Counter(name for record in records for name in record.curves)
    page = template("overview.html").render(
        where=folder.resolve().name,
        runs=[_run(record, folder, columns, number) for number, record in enumerate(records)],
        columns=[_heading(column, records) for column in columns],
        data={
            "runs": [_curves(record, folder) for record in records],
            "metrics": sorted(metrics, key=lambda name: (*_place(name), -metrics[name], name)),
            "settings": differences([_settings(record) for record in records]),
        },
    )
    path = folder / PAGE
    write_atomically(path, page.encode(errors="replace"))
    return path


def _place(name: str) -> tuple[bool, int]:
    """Which curve is worth looking at first: that of the figure which says most, in validations."""
    figure = Figure.of(name)
    known = figure.split == "val" and bool(figure.arrow) and not figure.is_deviation
    return not known, figure.rank


def _columns(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """The figures that the table has, by key: what leads the most runs, with what says most first."""
    leading = [one.figure for record in records for one in record.leading]
    counts = Counter(figure.key for figure in leading)
    ranks = {figure.key: figure.rank for figure in leading}
    chosen = sorted(counts, key=lambda key: -counts[key])[:MAX_FIGURES]
    return sorted(chosen, key=lambda key: ranks[key])


def _heading(key: tuple[str, str, str], records: Sequence[Record]) -> dict[str, Any]:
    named = [record.domains for record in records if any(one.figure.key == key for one in record.figures)]
    base, extractor, direction = key
    figure = Figure("", "", base, extractor, direction)
    return {
        "label": figure.label(named[0] if all(domains == named[0] for domains in named) else ()),
        "arrow": figure.arrow,
        "first": any(one.figure.base == base for record in records for one in record.leading[:1]),
    }


def _run(record: Record, folder: Path, columns: Sequence[tuple[str, str, str]], number: int) -> dict[str, Any]:
    """A row of the table: words to show, and numbers to sort by."""
    place = record.folder.relative_to(folder)
    figures = {one.figure.key: one for one in record.figures}
    progress = record.progress or {}
    step, seconds, images = (progress.get(name) for name in ("step", "seconds", "images"))
    return {
        "number": number,
        "name": place.as_posix(),
        "page": quote(os.fsencode((place / PAGE).as_posix())) if (record.folder / PAGE).is_file() else "",
        "configuration": record.model + (f" on {record.data}" if record.data else ""),
        "status": record.status,
        "kind": record.status.partition(":")[0],
        "going_on": record.going_on,
        "step": (step, "" if step is None else thousands(step)),
        "images": (images, "" if images is None else _kimg(images)),
        "seconds": (seconds, "" if seconds is None else duration(seconds)),
        "figures": [_cell(figures.get(column)) for column in columns],
        "checkpoint": record.checkpoints[0] if record.checkpoints else None,
    }


def _kimg(images: float) -> str:
    return thousands(images / 1000) if images >= 100_000 else f"{images / 1000:.3g}"


def _cell(one: Measured | None) -> dict[str, Any]:
    if one is None or one.shown is None:
        return {"value": None, "words": "", "title": "", "tested": False}
    tested = one.value is not None
    what = "test" if tested or not one.best else f"best validation, step {thousands(one.best[0])}"
    others = [f"{who} {one.text(value)}" for who, value in one.baselines.items()]
    notes = [what, *([one.of] if one.of else []), *others]
    return {"value": one.shown, "words": one.text(one.shown), "title": ", ".join(notes), "tested": tested}


def _curves(record: Record, folder: Path) -> dict[str, Any]:
    curves = {}
    for name, (steps, values) in record.curves.items():
        curve = thinned(steps, values, MAX_POINTS)
        curves[name] = {"x": curve["x"], "y": curve["y"]}
    place = record.folder.relative_to(folder).as_posix()
    moments = moments_of(record.history, MAX_MOMENTS).items()
    axes = {axis: [float(f"{value:.6g}") for value in values] for axis, values in moments}
    return {"name": place, "axes": axes, "curves": curves}


# -- settings ----------------------------------------------------------------------------------------------------------


def _settings(record: Record) -> dict[str, str]:
    """The settings of a run, each by its path: "model.init_args.learning_rate"; none where they cannot be read."""
    with suppress(Exception):  # whatever a file says
        return dict(_flat(load_yaml(record.config)))
    return {}


def _flat(value: Any, path: str = "") -> Sequence[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{path}.{name}" if path else str(name))]
    if isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        # Callbacks and penalties are known by their class, whatever their order.
        names = [str(inner.get("class_path", i)).rpartition(".")[2] if isinstance(inner, Mapping) else str(i)
                 for i, inner in enumerate(value)]  # fmt: skip
        return [pair for name, inner in zip(names, value, strict=True) for pair in _flat(inner, f"{path}.{name}")]
    words = str(value)
    return [(path, words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]} ...")]


def differences(settings: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """The settings that are not the same everywhere: "name", and the "values" of each run, None where it has none.

    Of a class and of what belongs to it, names without `init_args` are shown. What no two runs share in any case, such
    as a run's own folder, is left out.
    """
    known = [one for one in settings if one]
    names = dict.fromkeys(name for one in known for name in one)
    found = []
    for name in names:
        if name in _OWN or len({one.get(name) for one in known}) < 2:
            continue
        shown = name.replace(".init_args", "").removesuffix(".class_path")
        found.append({"name": shown, "values": [one.get(name) for one in settings]})
    return found


_OWN = ("trainer.default_root_dir", "trainer.logger.init_args.save_dir", "ckpt_path")
