"""The logger of a run that keeps its own record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger


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
