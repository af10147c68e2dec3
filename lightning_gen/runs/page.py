"""The page of a run's folder."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_gen import __version__
from lightning_gen.files import write_atomically
from lightning_gen.runs.folder import (
    CONFIG,
    ENVIRONMENT,
    HISTORY,
    IMAGES,
    PAGE,
    RESULTS,
    pictures_in,
)
from lightning_gen.runs.history import (
    Line,
    number,
    read_history,
    read_object,
    strict_json,
)

REFRESH = 30  # seconds after which the page of a run that goes on loads itself again
MAX_POINTS = 240  # of a curve on the page; a longer one is drawn as means of stretches, with their range behind
MAX_LINES = 6  # training losses in one chart; if there are more, each kind gets its own
_NO_CURVE = ("step", "seconds", "images_seen")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none."""
    try:
        return read_object(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}


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
    results = _read_json(folder / RESULTS)
    if not (panels or results or (folder / HISTORY).is_file()):
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it holds neither {HISTORY} nor pictures in {IMAGES}/. "
            "Give the folder in which the run wrote its checkpoints/."
        )
    history = read_history(folder / HISTORY)
    environment = _read_json(folder / ENVIRONMENT)
    status = status or _text(environment.get("status"))
    model, data = _text(environment.get("model")) or folder.resolve().name, _text(environment.get("data"))
    slots = {
        "title": escape(f"{model} on {data}" if data else model),
        "heading": escape(model) + (f" <small>on {escape(data)}</small>" if data else ""),
        "where": escape("/".join(folder.resolve().parts[-3:]).lstrip("/")),
        "refresh": f'<meta http-equiv="refresh" content="{REFRESH}">\n' if status == "running" else "",
        "status": _status_html(folder, status, history, environment),
        "results": _results_html(results),
        "pictures": _pictures_html(panels),
        "curves": _CURVES if any(set(line) - set(_NO_CURVE) for line in history) else "",
        "details": _details_html(folder, environment),
        "version": __version__,
        # Within <script>, "<" could end the script.
        "data": strict_json({"panels": panels, "charts": _charts(history)}).replace("<", "\\u003c"),
    }
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page = folder / PAGE
    text = re.sub(r"\{\{ (\w+) \}\}", lambda slot: slots[slot[1]], template)
    write_atomically(page, text.encode(errors="replace"))  # the names of files may hold what is no character
    return page


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
            last = values[name][-1]
            lines.append({"name": label, "last": last, **_thinned(steps[name], values[name])})
        charts.append({"title": title, "lines": lines})
    return charts


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Metrics that belong in one chart, by its title.

    These are training losses, what differs only in direction or domain, a figure and its error, and shares of samples.
    """

    def kind(name: str) -> str:
        name = re.sub(r"/(precision|recall|density|coverage)(?=-|$)", "/precision, recall, density, coverage", name)
        name = re.sub(r"_(std|stderr)(?=-|$)", "", name)  # of the figure so called
        return "lr" if name.startswith("lr-") else re.sub(r"(_(AtoB|BtoA|A|B|step|epoch))+$", "", name)

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


def _status_html(folder: Path, status: str, history: Sequence[Line], environment: Mapping[str, Any]) -> str:
    parts = []
    if status:
        kind = status.partition(":")[0]
        parts.append(f'<span class="pill {escape(kind)}">{escape(status[:500])}</span>')
    bar = ""
    if history:
        last, total = history[-1], number(environment.get("max_steps"))
        of = f" of {_thousands(total)}" if total else ""
        parts.append(f"<span>step <b>{_thousands(last['step'])}</b>{of}</span>")
        if total:
            share = min(1.0, last["step"] / total)
            bar = f'<div class="done"><i style="width:{share:.2%}"></i></div>' if status == "running" else ""
        seconds = number(last.get("seconds"))
        if seconds is not None and math.isfinite(seconds):
            parts.append(f"<span>{_duration(seconds)} of training</span>")
        images = next((number(line["images_seen"]) for line in reversed(history) if "images_seen" in line), None)
        if images is not None:
            parts.append(f"<span>{_thousands(images)} images seen</span>")
    written = [path.stat().st_mtime for name in (HISTORY, RESULTS, ENVIRONMENT) if (path := folder / name).is_file()]
    with suppress(ValueError, OverflowError, OSError):  # no moment at all, or one that no calendar has
        moment = datetime.fromtimestamp(max(written)).astimezone()
        parts.append(f'<span>last news <time datetime="{moment.isoformat()}">{moment:%Y-%m-%d %H:%M}</time></span>')
    return f'<div class="status">{"".join(parts)}</div>{bar}'


def _results_html(results: Mapping[str, Any]) -> str:
    """The metrics of the last test: those of directions in a table with a column for each, the others in one beside."""
    metrics = results.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return ""
    directed: defaultdict[str, dict[str, str]] = defaultdict(dict)
    plain: dict[str, dict[str, str]] = {}
    for name, value in metrics.items():
        figure = number(value)
        text = "" if figure is None else f"{figure:.4g}"
        name = name.removeprefix("test/")
        match = re.fullmatch(r"(.+)_(AtoB|BtoA|A|B)", name)
        if match:
            directed[match[1]][match[2].replace("to", " to ")] = text
        else:
            plain[name] = {"": text}
    tables = "".join(_table_html(rows) for rows in (directed, plain) if rows)
    tested = [name] if (name := _text(results.get("checkpoint"))) else []
    tested += [f"step {_thousands(step)}"] if (step := number(results.get("step"))) is not None else []
    return f"""<section>
<div class="heading"><h2>Test</h2><p>{escape(", ".join(tested))}</p></div>
<div class="tables">{tables}</div>
</section>"""


def _table_html(rows: Mapping[str, Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    titles = "".join(f"<th>{escape(column)}</th>" for column in columns)
    head = f"<thead><tr><th></th>{titles}</tr></thead>" if any(columns) else ""
    body = ""
    for name, row in rows.items():
        cells = "".join(f"<td>{escape(row.get(column, ''))}</td>" for column in columns)
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return f'<div class="card scroll"><table class="results">{head}<tbody>{body}</tbody></table></div>'


_CURVES = """<section>
<div class="heading"><h2>Curves</h2><div class="controls">
<label><input type="checkbox" id="log"> logarithmic</label>
<label>smoothing <input type="range" id="smooth" min="0" max="0.98" step="0.02" value="0"></label>
</div></div>
<div class="charts" id="charts"></div>
<noscript>The curves are drawn by a script in this page; the numbers are in history.jsonl.</noscript>
</section>"""
_TIME = """<div class="controls time" id="time-controls" hidden>
<button type="button" id="play" aria-label="Play">▶</button>
<input type="range" id="time" min="0" aria-label="Step"><output id="now" for="time"></output></div>"""


def _pictures_html(panels: Sequence[Mapping[str, Any]]) -> str:
    if not panels:
        return ""
    figures = []
    for i, panel in enumerate(panels):
        step, name = panel["steps"][-1], escape(panel["name"])
        source = escape(f"{panel['folder']}/step_{step:08d}.png")
        figures.append(
            f'<figure class="card" id="panel-{i}" data-step="{step}">'
            f"<figcaption><b>{name}</b><span>step {_thousands(step)}</span></figcaption>"
            f'<a href="{source}"><img src="{source}" alt="{name}" loading="lazy"></a></figure>'
        )
    pictures = "\n".join(figures)
    return f"""<section>
<div class="heading"><h2>Pictures</h2>{_TIME}</div>
<div class="panels">
{pictures}
</div>
</section>"""


def _details_html(folder: Path, environment: Mapping[str, Any]) -> str:
    parts = []
    if (folder / CONFIG).is_file():
        with suppress(OSError):
            config = escape((folder / CONFIG).read_text(encoding="utf-8", errors="replace"))
            parts.append(f'<details class="card" id="config"><summary>Settings</summary><pre>{config}</pre></details>')
    facts = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(_text(value))}</td></tr>"
        for name, value in environment.items()
        if value is not None
    )
    if facts:
        table = f'<div class="scroll"><table class="facts">{facts}</table></div>'
        parts.append(f'<details class="card" id="environment"><summary>Environment</summary>{table}</details>')
    return "\n".join(parts)


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
