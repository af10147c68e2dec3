"""The page of a run's folder."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lightning_gen import __version__
from lightning_gen.files import write_atomically
from lightning_gen.runs.folder import CONFIG, ENVIRONMENT, HISTORY, IMAGES, PAGE, RESULTS, START, pictures_in
from lightning_gen.runs.history import Line, number, read_history, read_json, read_text, strict_json

if TYPE_CHECKING:
    from jinja2 import Template

REFRESH = 30  # seconds after which the page of a run that goes on loads itself again
MAX_POINTS = 240  # of a curve on the page; a longer one is drawn as means of stretches, with their range behind
MAX_LINES = 6  # training losses in one chart; if there are more, each kind gets its own
_NO_CURVE = ("step", "seconds", "images_seen")


def write_report(folder: str | os.PathLike[str], status: str | None = None) -> Path:
    """Write `index.html` of a run from the files in its folder.

    The page is one static file that needs nothing else but the pictures beside it: no server, no network. While the
    status is "running" it loads itself again every 30 seconds.

    Args:
        folder: The run's folder.
        status: "running", "finished" or "stopped: REASON"; None means what `environment.json` says.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder holds nothing of a run.
        OSError: If the page cannot be written; an earlier one stays.
    """
    folder = Path(folder)
    panels = _panels(folder)
    results = read_json(folder / RESULTS)
    if not (panels or results or (folder / HISTORY).is_file()):
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it holds neither {HISTORY} nor pictures in {IMAGES}/. "
            "Give the folder in which the run wrote its checkpoints/."
        )
    history = read_history(folder / HISTORY)
    environment = read_json(folder / ENVIRONMENT)
    tested = [name] if (name := _text(results.get("checkpoint"))) else []
    tested += [f"step {_thousands(step)}"] if (step := number(results.get("step"))) is not None else []
    text = _template().render(
        version=__version__,
        refresh=REFRESH,
        model=_text(environment.get("model")) or folder.resolve().name,
        data=_text(environment.get("data")),
        where="/".join(folder.resolve().parts[-3:]).lstrip("/"),
        status=status or _text(environment.get("status")),
        progress=_progress(history, environment),
        news=_last_news(folder),
        tested=tested,
        tables=_tables(results.get("metrics")),
        panels=panels,
        charts=_charts(history),
        start=read_text(folder / START),
        config=read_text(folder / CONFIG),
        environment={name.replace("_", " "): _text(value) for name, value in environment.items() if value is not None},
    )
    page = folder / PAGE
    write_atomically(page, text.encode(errors="replace"))  # the names of files may hold what is no character
    return page


def finish_record(folder: Path) -> None:
    """Say that a run is over that was killed between its last checkpoint and the end of its record."""
    if read_json(folder / ENVIRONMENT).get("status") == "running":
        write_status(folder, "finished")
    write_report(folder)


def write_status(folder: Path, status: str) -> None:
    """Note in `environment.json` how a run is, or how it ended."""
    path = folder / ENVIRONMENT
    write_atomically(path, strict_json({**read_json(path), "status": status}, indent=2))


def _panels(folder: Path) -> list[dict[str, Any]]:
    """Name, folder (as a relative address) and steps of each panel, those of tests last."""
    panels = []
    for path in sorted({picture.parent for picture in (folder / IMAGES).rglob("step_*.png")}):
        name = path.relative_to(folder / IMAGES).as_posix()
        address = quote(os.fsencode(f"{IMAGES}/{name}"))
        panels.append({"name": name, "folder": address, "steps": list(pictures_in(path))})
    return sorted((panel for panel in panels if panel["steps"]), key=lambda panel: panel["name"].startswith("test"))


def _charts(history: Sequence[Line]) -> list[dict[str, Any]]:
    """The curves, in groups that share a chart."""
    steps: defaultdict[str, list[int]] = defaultdict(list)
    values: defaultdict[str, list[float]] = defaultdict(list)
    for line in history:
        for name in line.keys() - _NO_CURVE:
            value = number(line[name])
            if value is not None:
                steps[name].append(line["step"])
                values[name].append(value)
    names = dict.fromkeys(name for line in history for name in line if name in values)
    charts = []
    for title, group in sorted(_groups(names).items(), key=lambda item: not item[0].startswith("train")):
        lines = []
        for name in group:
            label = name.removeprefix(title).lstrip("/_-") if name.startswith(title) else ""
            label = label or name.rpartition("/")[2]
            lines.append({"name": label, "last": values[name][-1], **_thinned(steps[name], values[name])})
        charts.append({"title": title, "lines": lines})
    return charts


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Metrics that belong in one chart, by its title.

    These are training losses, what differs only in direction, domain or level, a figure and its error, shares of
    samples, and numbers of codes.
    """

    def kind(name: str) -> str:
        name = re.sub(r"/(precision|recall|density|coverage)(?=-|$)", "/precision, recall, density, coverage", name)
        name = re.sub(r"/(perplexity|dead_codes)(?=_\d|$)", "/perplexity, dead codes", name)
        name = re.sub(r"_(std|stderr)(?=-|$)", "", name)  # of the figure so called
        return "lr" if name.startswith("lr-") else re.sub(r"(_(AtoB|BtoA|A|B|step|epoch|\d+))+$", "", name)

    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_kind[kind(name)].append(name)
    training = {title: group for title, group in by_kind.items() if title.startswith("train/")}
    few = sum(map(len, training.values())) <= MAX_LINES
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for title, group in by_kind.items():
        groups["train" if title in training and (few or len(group) == 1) else title] += group
    return dict(groups)


def _thinned(steps: list[int], values: list[float]) -> dict[str, Any]:
    """A curve of at most `MAX_POINTS` points, None where a value is not finite: x, y, and the range low to high."""

    def rounded(value: float) -> float | None:
        return float(f"{value:.6g}") if math.isfinite(value) else None

    if len(steps) <= MAX_POINTS:
        return {"x": steps, "y": [rounded(value) for value in values]}
    stretch = math.ceil(len(steps) / MAX_POINTS)
    curve: dict[str, Any] = {"x": [], "y": [], "low": [], "high": []}
    for i in range(0, len(steps), stretch):
        finite = [value for value in values[i : i + stretch] if math.isfinite(value)] or [math.nan]
        curve["x"].append(steps[min(i + stretch, len(steps)) - 1])
        curve["y"].append(rounded(sum(finite) / len(finite)))
        curve["low"].append(rounded(min(finite)))
        curve["high"].append(rounded(max(finite)))
    return curve


def _progress(history: Sequence[Line], environment: Mapping[str, Any]) -> dict[str, float | None] | None:
    """How far the run is, by the last line of its history: steps done and to do, the share in percent, and so on."""
    if not history:
        return None
    step, steps, seconds = history[-1]["step"], number(environment.get("max_steps")), number(history[-1].get("seconds"))
    return {
        "step": step,
        "steps": steps,
        "share": min(100.0, 100 * step / steps) if steps else None,
        "seconds": seconds if seconds is not None and math.isfinite(seconds) else None,
        "images": next((number(line["images_seen"]) for line in reversed(history) if "images_seen" in line), None),
    }


def _last_news(folder: Path) -> datetime | None:
    written = [path.stat().st_mtime for name in (HISTORY, RESULTS, ENVIRONMENT) if (path := folder / name).is_file()]
    with suppress(ValueError, OverflowError, OSError):  # no moment at all, or one that no calendar has
        return datetime.fromtimestamp(max(written)).astimezone()
    return None


def _tables(metrics: Any) -> list[dict[str, Any]]:
    """The metrics of the last test: those of directions in a table with a column for each, the others in another."""
    directed: defaultdict[str, dict[str, str]] = defaultdict(dict)
    plain: dict[str, dict[str, str]] = {}
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        figure = number(value)
        text = "" if figure is None else f"{figure:.4g}"
        name = name.removeprefix("test/")
        match = re.fullmatch(r"(.+)_(AtoB|BtoA|A|B)", name)
        if match:
            directed[match[1]][match[2].replace("to", " to ")] = text
        else:
            plain[name] = {"": text}
    return [
        {"columns": list(dict.fromkeys(column for row in rows.values() for column in row)), "rows": rows}
        for rows in (directed, plain)
        if rows
    ]


def _text(value: Any) -> str:
    """Whatever stands in a file, in words; empty where nothing does."""
    try:
        return "" if value is None else str(value)
    except RecursionError:
        return "..."


def _thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u2009") if math.isfinite(value) else str(value)


def _duration(seconds: float) -> str:
    minutes, hours, days = round(seconds / 60), round(seconds / 3600), seconds / 86400
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{days:.1f} days"


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # which commands without a page need not wait for

    # What a run's files say may be anybody's words: all of it is escaped.
    loader = PackageLoader("lightning_gen.runs", "")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"thousands": _thousands, "duration": _duration}
    pages.policies |= {"json.dumps_function": strict_json, "json.dumps_kwargs": {}}
    return pages.get_template("page.html")
