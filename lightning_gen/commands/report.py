"""`lightning-gen report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lightning_gen.runs.film import Format, write_films
from lightning_gen.runs.layout import is_run
from lightning_gen.runs.overview import write_overview
from lightning_gen.runs.page import write_embedded_report, write_report
from lightning_gen.runs.rendering import size


def with_flags(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a bare `--embed` or `--film` is true."""
    following = [*arguments, ""][1:]
    values = {"--embed": ("true", "false"), "--film": ("true", "false", *get_args(Format))}
    return [
        f"{argument}=true" if argument in values and after.lower() not in values[argument] else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def report(folder: Path, embed: bool = False, film: bool | Format = False) -> int:
    """Write the page of a run again from what it has recorded, or a page over all runs of a folder.

    Args:
        folder: That of a run, as training has made it, or one that holds such folders, such as runs.
        embed: Write one file to mail, report.html, with the pictures in it.
        film: Write the pictures of each panel through time as films/PANEL.gif, or as mp4, which needs the library PyAV.
    """
    if not is_run(folder) and not (embed or film):
        print(f"Report: {write_overview(folder)}")
        return 0
    # A run that goes on writes its page itself.
    page = write_report(folder)
    if embed:
        one = write_embedded_report(folder)
        some = f"{one.pictures} of {one.of}" if one.pictures < one.of else f"all {one.of}"
        print(f"Report: {one.path}, one file of {size(one.size)} with {some} pictures")
    if film:
        for path in write_films(folder, "gif" if film is True else film):
            print(f"Film: {path}, {size(path.stat().st_size)}")
    if not (embed or film):
        print(f"Report: {page}")
    return 0
