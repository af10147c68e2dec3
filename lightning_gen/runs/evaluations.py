"""What `lightning-gen evaluate` has measured of a run's checkpoints, as its page shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

from lightning_gen.runs.figures import Figure
from lightning_gen.runs.history import number, read_json
from lightning_gen.runs.layout import CHECKPOINTS, EVALUATIONS
from lightning_gen.runs.rendering import thousands

MOST = 12  # evaluations on a page
FACTS = ("samples", "compared with", "seeds", "sampling", "measured")
_SPLITS = {"train": "training pictures", "val": "validation pictures", "test": "test pictures"}


@dataclass(frozen=True)
class Evaluated:
    """One evaluation, in words.

    Attributes:
        of: The checkpoint, below the run's `checkpoints`, or the folder of pictures.
        step: Of the checkpoint; None where there is none.
        figures: By name: the value, with its deviation over seeds where there are several.
        floors: By name: what real pictures reach in the place of samples.
        fewer: By name: how many samples a figure is of, where that is fewer than those of "samples".
        facts: On what it depends, by `FACTS`.
    """

    of: str
    step: int | None
    figures: Mapping[str, str]
    floors: Mapping[str, str]
    fewer: Mapping[str, str]
    facts: Mapping[str, str]


def evaluations_of(folder: Path) -> list[Evaluated]:
    """The last evaluations in a run's folder, the newest first; what is damaged is left out."""
    entries = read_json(folder / EVALUATIONS).get("evaluations")
    found = []
    for entry in reversed(entries if isinstance(entries, list) else []):
        with suppress(Exception):  # whatever stands in a file
            if (one := _evaluated(entry)).figures:
                found.append(one)
    return found[:MOST]


def figures_in(evaluations: Sequence[Evaluated]) -> list[Figure]:
    """The figures that any of them has, with what says most first."""
    names = dict.fromkeys(name for one in evaluations for name in one.figures)
    return sorted(map(Figure.of, names), key=lambda figure: figure.rank)


def facts_in(evaluations: Sequence[Evaluated]) -> list[str]:
    """The names of the facts that any of them has."""
    return [name for name in FACTS if any(name in one.facts for one in evaluations)]


def _evaluated(entry: Mapping[str, Any]) -> Evaluated:
    samples, measured = entry["samples"], dict(entry["figures"])
    if "memorisation_ratio" in entry:
        ratio = entry["memorisation_ratio"]
        measured["memorisation_ratio"] = ratio | {"reference": ratio["training"]}
    path, step = PurePath(str(samples.get("checkpoint") or samples["images"])), number(samples.get("global_step"))
    inside = path.parts[len(path.parts) - path.parts[::-1].index(CHECKPOINTS) :] if CHECKPOINTS in path.parts else ()
    drawn = {name: number(one.get("samples")) for name, one in measured.items() if not one.get("split")}
    most = max((count for count in drawn.values() if count), default=None)
    return Evaluated(
        of="/".join(inside) or path.name,
        step=None if step is None else int(step),
        figures=_in_words(measured),
        floors=_in_words(entry.get("floor", {})),
        fewer={name: thousands(count) for name, count in drawn.items() if count and count != most},
        facts={name: words for name, words in _facts(entry, measured, most) if words},
    )


def _in_words(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Values by the names of their figures; the deviation of a figure that has a name of its own stands behind it."""
    apart = {
        Figure.of(name).key: number(one["value"]) for name, one in measured.items() if Figure.of(name).is_deviation
    }
    words = {}
    for name, one in measured.items():
        figure, value = Figure.of(name), number(one["value"])
        if not figure.is_deviation:
            deviation = number(one.get("std", apart.get(figure.key)))
            words[name] = "no number" if value is None else figure.value(value, deviation)
    return words


def _facts(
    entry: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]], most: float | None
) -> Iterator[tuple[str, str]]:
    yield "samples", "" if most is None else thousands(most)
    of_samples = [one for one in measured.values() if not one.get("split")]
    of_pictures = [one for one in measured.values() if one.get("split")]
    beside = (_pictures(of_samples, entry, "reference"), _pictures(of_pictures, entry, "reconstructed"))
    yield "compared with", ", ".join(words for words in beside if words)
    yield "seeds", ", ".join(map(str, entry.get("seeds") or ()))
    sampling = entry.get("protocol", {}).get("sampling") or {}
    yield "sampling", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sampling.items())
    if moment := entry.get("finished"):  # which those of earlier versions do not have
        yield "measured", datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M")


def _pictures(figures: Sequence[Mapping[str, Any]], entry: Mapping[str, Any], record: str) -> str:
    """The real pictures that figures depend on, in words; empty where they depend on none."""
    counts = [count for one in figures if (count := number(one.get("reference"))) is not None]
    if not counts:
        return ""
    known = entry.get(record) or {}
    if file := known.get("file"):
        return str(file)
    split, data = str(known.get("split", figures[0].get("split"))), known.get("data", "folder")
    words = f"{thousands(max(counts))} {_SPLITS.get(split, f'pictures of {split}')}"
    return f"{words} of {data}" if split in _SPLITS and data != "folder" else words
