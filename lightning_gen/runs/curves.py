"""Curves of a history: which share a chart, how few points show them, and which colour each name has."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_gen.runs.figures import Figure, way
from lightning_gen.runs.history import Line, number

MAX_POINTS = 240  # of a curve; a longer one is drawn as means of stretches, with their range behind
MAX_MOMENTS = 2000  # of the table from steps to images seen and seconds
MAX_LINES = 6  # training losses in one chart; if there are more, each kind gets its own
_NO_CURVE = ("step", "seconds", "images_seen", "memory_gib")
_DEVIATION = re.compile(r"_(std|stderr)(?=-|$)")


def curves_of(history: Sequence[Line]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each metric, in the order in which they come; of learning rates only those that change."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in history:
        for name, text in line.items():
            if name not in _NO_CURVE and (value := number(text)) is not None:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return {
        name: (steps, values)
        for name, (steps, values) in curves.items()
        if not name.startswith("lr") or len(set(values)) > 1
    }


def moments_of(history: Sequence[Line], most: int = MAX_MOMENTS) -> dict[str, list[float]]:
    """Where the axes lie: "step", and beside each "kimg" (thousands of real pictures seen) and "seconds" where known.

    All grow. There are so many moments at most, between which the axes are straight.
    """
    known: dict[int, Line] = {line["step"]: line for line in history}
    steps = sorted(known)
    if len(steps) > most:
        steps = [steps[i * (len(steps) - 1) // (most - 1)] for i in range(most)]
    axes: dict[str, list[float]] = {"step": [float(step) for step in steps]}
    for axis, name, unit in (("kimg", "images_seen", 1000), ("seconds", "seconds", 1)):
        values = [number(known[step].get(name)) for step in steps]
        finite = [value / unit for value in values if value is not None and math.isfinite(value)]
        if steps and len(finite) == len(steps) and finite == sorted(finite):
            axes[axis] = finite
    return axes


def charts_of(history: Sequence[Line], domains: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The curves, in groups that share a chart. A deviation is no curve but the band of its figure.

    Directions and domains have the data's own names. A name that shares a chart with others has one colour, a number
    from 0 on, wherever it stands; one that stands alone has the first.
    """
    curves = curves_of(history)
    deviations = {_DEVIATION.sub("", name): name for name in curves if _DEVIATION.search(name)}
    deviations = {name: deviation for name, deviation in deviations.items() if name in curves}
    charts: list[dict[str, Any]] = []
    groups = groups_of(name for name in curves if name not in deviations.values())
    for title, group in sorted(groups.items(), key=_place):
        lines = []
        for name in group:
            curve = thinned(*curves[name], deviation=curves.get(deviations.get(name, "")))
            lines.append({"name": _label(name, title, domains), "last": curves[name][1][-1], **curve})
        charts.append({"title": title, "lines": lines})
    colours: dict[str, int] = {}
    for chart in charts:
        if len(chart["lines"]) > 1:
            for line in chart["lines"]:
                colours.setdefault(line["name"], len(colours))
    for chart in charts:
        for line in chart["lines"]:
            line["colour"] = colours.get(line["name"], 0)
    return charts


def _place(item: tuple[str, list[str]]) -> tuple[bool, int]:
    """Where a chart stands: losses of training first, then what says most."""
    title, group = item
    return not title.startswith("train"), min(Figure.of(name).rank for name in group)


def _label(name: str, title: str, domains: Sequence[str]) -> str:
    label = name.removeprefix(title).lstrip("/_-") if name.startswith(title) else ""
    label = label or name.rpartition("/")[2]
    if match := re.fullmatch(r"(.*_)?(AtoB|BtoA|A|B)", label):
        label = f"{match[1] or ''}{way(match[2], domains)}".replace("_", " ") if domains else label
    return label


def groups_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Metrics that belong in one chart, by its title.

    These are training losses, what differs only in direction, domain or level, a figure and its error, shares of
    samples, and numbers of codes.
    """

    def kind(name: str) -> str:
        name = re.sub(r"/(precision|recall|density|coverage)(?=-|$)", "/precision, recall, density, coverage", name)
        name = re.sub(r"/(perplexity|dead_codes)(?=_\d|$)", "/perplexity, dead codes", name)
        name = _DEVIATION.sub("", name)  # of the figure so called
        return "lr" if name.startswith(("lr-", "lr/")) else re.sub(r"(_(AtoB|BtoA|A|B|step|epoch|\d+))+$", "", name)

    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_kind[kind(name)].append(name)
    training = {title: group for title, group in by_kind.items() if title.startswith("train/")}
    few = sum(map(len, training.values())) <= MAX_LINES
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for title, group in by_kind.items():
        groups["train" if title in training and (few or len(group) == 1) else title] += group
    return dict(groups)


def thinned(
    steps: list[int],
    values: list[float],
    most: int = MAX_POINTS,
    deviation: tuple[list[int], list[float]] | None = None,
) -> dict[str, Any]:
    """A curve of at most so many points, None where a value is not finite: x, y, and a band from low to high.

    The band is the deviation on either side, or else the range of the values that a point is the mean of.
    """
    stretch = max(1, math.ceil(len(steps) / most))
    apart: Mapping[int, float] = dict(zip(*deviation, strict=True)) if deviation else {}
    curve: dict[str, Any] = {"x": [], "y": []}
    if apart:
        curve["deviation"] = []
    elif stretch > 1:
        curve |= {"low": [], "high": []}
    for i in range(0, len(steps), stretch):
        finite = [value for value in values[i : i + stretch] if math.isfinite(value)] or [math.nan]
        curve["x"].append(steps[min(i + stretch, len(steps)) - 1])
        curve["y"].append(_rounded(sum(finite) / len(finite)))
        if apart:
            some = [abs(apart[step]) for step in steps[i : i + stretch] if step in apart]
            curve["deviation"].append(_rounded(sum(some) / len(some)) if some else None)
        elif stretch > 1:
            curve["low"].append(_rounded(min(finite)))
            curve["high"].append(_rounded(max(finite)))
    return curve


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
