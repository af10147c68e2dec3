"""Lightning's CSV logger, for a run that may be stopped and go on."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger


class RunLogger(CSVLogger):
    """Gives a run its folder, SAVE_DIR/NAME/version_N, and keeps `metrics.csv` in it.

    Lightning's own logger deletes the table when a run goes on in its folder; this one keeps the rows.

    Args:
        save_dir: Parent of all runs.
        name: Of this kind of run.
        version: Of this run; None takes the next free number.
        keep_until: Where a run goes on: the step up to which earlier rows are kept.
        flush_logs_every_n_steps: How often the table is written.
    """

    def __init__(
        self,
        save_dir: str = "runs",
        name: str = "run",
        version: int | str | None = None,
        keep_until: int | None = None,
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=flush_logs_every_n_steps)
        self.keep_until = keep_until

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """Lightning's writer, with the earlier rows put back."""
        if self._experiment is None:
            table = Path(self.log_dir) / _ExperimentWriter.NAME_METRICS_FILE
            earlier = []
            if self.keep_until is not None and table.is_file():
                with table.open(newline="") as file:
                    earlier = [row for row in csv.DictReader(file) if float(row["step"]) <= self.keep_until]
                table.unlink()
            writer = super().experiment
            writer.metrics = [{key: value for key, value in row.items() if value != ""} for row in earlier]
            writer.save()
        return super().experiment
