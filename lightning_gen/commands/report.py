"""`lightning-gen report`."""

from __future__ import annotations

from pathlib import Path

from lightning_gen.runs.page import write_report


def report(run_folder: Path) -> int:
    """Write index.html of a run folder again, from what the run has recorded there.

    Args:
        run_folder: A folder that a training run has made.
    """
    print(f"Report: {write_report(run_folder)}")
    return 0
