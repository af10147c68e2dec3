"""The logger of a run that keeps its own record, and Lightning's table where a run goes on."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger


class RunLogger(Logger):
    """Gives a run its folder, SAVE_DIR/NAME/version_N, and writes nothing: the record is `Report`'s `history.jsonl`.

    Args:
        save_dir: Parent of all runs.
        name: Of this kind of run.
        version: Of this run: its number, or the name of its folder; None takes the next free number.
    """

    def __init__(self, save_dir: str = "runs", name: str = "run", version: int | str | None = None) -> None:
        super().__init__()
        self._save_dir = save_dir
        self._name = name
        self._version = version

    @property
    def save_dir(self) -> str:
        """Parent of all runs, from the root: what is saved of it must hold in whatever folder the run goes on."""
        return str(Path(self._save_dir).absolute())

    @property
    def name(self) -> str:
        """Of this kind of run."""
        return self._name

    @property
    def version(self) -> int | str:
        """Of this run, from the first time that anybody asks."""
        if self._version is None:
            taken = [re.fullmatch(r"version_(\d+)", path.name) for path in Path(self.save_dir, self.name).glob("*")]
            self._version = max((int(match[1]) for match in taken if match), default=-1) + 1
        return self._version

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return str(Path(self.save_dir, self.name, version))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Nothing: see `Report`."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in the run's config.yaml and in its checkpoints."""


class ResumedCSVLogger(CSVLogger):
    """Lightning's CSV logger in the folder of a run that goes on, whose `metrics.csv` it would begin anew.

    Args:
        save_dir: As in Lightning, like all arguments but the last.
        keep_until: The step up to which earlier rows are kept.
    """

    def __init__(self, save_dir: str, *args: Any, keep_until: int = 0, **kwargs: Any) -> None:
        super().__init__(save_dir, *args, **kwargs)
        self.keep_until = keep_until

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """Lightning's writer, with the earlier rows put back."""
        if self._experiment is None:
            table = Path(self.log_dir) / _ExperimentWriter.NAME_METRICS_FILE
            earlier = list(_rows(table, self.keep_until))
            table.unlink(missing_ok=True)
            writer = super().experiment
            writer.metrics = earlier
            writer.save()
        return super().experiment


def _rows(table: Path, last_step: int) -> Iterator[dict[str, str]]:
    """The rows of a table up to a step, without lines that are cut short or no rows."""
    if not table.is_file():
        return
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for row in csv.DictReader(line for line in lines if line.endswith("\n")):
        whole = None not in row and None not in row.values() and re.fullmatch(r"\d{1,18}", row.get("step", ""))
        if whole and int(row["step"]) <= last_step:
            yield {name: value for name, value in row.items() if value != ""}
