"""What lies in the folder of a run, and where the runs are.

| in the folder                  | what                                                                 |
| ------------------------------ | -------------------------------------------------------------------- |
| config.yaml                    | the settings, as the command line was given them                     |
| checkpoints/                   | what `LastCheckpoint` and `ModelCheckpoint` save                     |
| images/PANEL/step_00001000.png | pictures through time (`log_picture`)                                |
| history.jsonl                  | the metrics, one strict JSON object per logging moment (`Report`)    |
| environment.json               | versions, devices, command line, and how the run ended (`Report`)    |
| started_from.txt               | which weights of another run it began with, if any (`Report`)        |
| results.json                   | the metrics of the last test (`Report`)                              |
| evaluation.json                | what FID and company were measured on, and how (`GenerativeMetrics`) |
| evaluations.json               | the figures that `lightning-gen evaluate` measured, and on what      |
| index.html                     | all of this on one page (`Report`)                                   |
| report.html                    | the same as one file to mail (`lightning-gen report --embed`)        |
| films/PANEL.gif, .mp4          | the pictures of a panel one after the other (`report --film`)        |
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
HISTORY = "history.jsonl"
ENVIRONMENT = "environment.json"
START = "started_from.txt"
RESULTS = "results.json"
EVALUATION = "evaluation.json"
EVALUATIONS = "evaluations.json"
FILMS = "films"
PAGE = "index.html"
EMBEDDED = "report.html"
LAST = "last.ckpt"
MAX_DEPTH = 4  # of a run below the folder in which runs are looked for


def pictures_in(panel: Path) -> dict[int, Path]:
    """The pictures of a panel's folder by step, in order; files of other names than `log_picture` gives are none."""
    found = (
        (re.fullmatch(r"step_([0-9]{8}|[1-9][0-9]{8,15})\.png", path.name), path) for path in panel.glob("step_*.png")
    )
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def is_run(folder: Path) -> bool:
    """Whether a folder holds something of a run that a page could show."""
    records = (HISTORY, RESULTS)
    return any((folder / name).is_file() for name in records) or any((folder / IMAGES).rglob("step_*.png"))


def run_folder_of_checkpoint(path: str | os.PathLike[str]) -> Path | None:
    """The run that a checkpoint is of: the nearest folder above it that has a run's files and `checkpoints`.

    A run's folder is its own. None where there is no such folder, as above a copy that lies elsewhere.
    """
    path = Path(path)
    for folder in (path, *path.parents, *path.absolute().parents, *path.resolve().parents):
        if (folder / CHECKPOINTS).is_dir() and any(
            (folder / name).is_file() for name in (CONFIG, HISTORY, ENVIRONMENT)
        ):
            return folder
    return None


def runs_in(folder: Path) -> list[Path]:
    """The runs below a folder, by name, with version_9 before version_10; what lies within a run is none.

    Links are followed, and no folder is looked into twice.
    """
    seen = {folder.resolve()}

    def below(place: Path, depth: int) -> Iterator[Path]:
        try:
            inner = sorted((Path(entry) for entry in os.scandir(place) if entry.is_dir()), key=by_number)
        except OSError:  # not ours to read
            return
        for path in inner:
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            if is_run(path):
                yield path
            elif depth > 1 and not path.name.startswith("."):
                yield from below(path, depth - 1)

    return list(below(folder, MAX_DEPTH))


def by_number(path: Path) -> list[tuple[str, int]]:
    """A key that puts step=900 before step=1000."""
    return [(words, int(digits or 0)) for words, digits in re.findall(r"(\D*)(\d*)", str(path))]
