"""What commands leave behind: pictures in a folder, their overview beside it, and word of skipped files."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from torch import Tensor

from lightning_gen.data.images import image_endings, write_image
from lightning_gen.files import write_atomically

GRID = "_grid.png"  # after the folder's name, the overview beside it
NAMED = 3  # files that are skipped for one reason, beyond which they are counted


class Results:
    """The pictures that a command writes into a folder, which holds no earlier ones unless that is wanted.

    Their overview, a grid, stands beside the folder: FOLDER_grid.png. So all pictures of the folder are results, for
    whoever reads it.

    Args:
        folder: Made when the first picture is written.
        own: Pattern of the names below the folder that the command gives. Under `overwrite` files of such names are
            removed before the first picture is written. None for a command that takes the names over from its input.
        overwrite: Whether earlier pictures are no hindrance.
        grid: Whether there will be an overview.

    Raises:
        NotADirectoryError: If the folder is a file.
        FileExistsError: If it holds pictures, or files of such names, or the overview is there; not under `overwrite`.
    """

    def __init__(self, folder: Path, own: str | None, overwrite: bool = False, grid: bool = True) -> None:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"The output {folder} is a file. Name a folder.")
        self.folder = folder
        place = folder.resolve() if folder.name in ("", "..") else folder
        self.grid = place.parent / f"{place.name}{GRID}"
        files = [Path(root) / name for root, _, names in os.walk(folder) for name in names if not name.startswith(".")]
        self.earlier = [file for file in files if own and re.fullmatch(own, file.relative_to(folder).as_posix())]
        pictures = {file for file in files if file.suffix.lower() in image_endings()}
        hint = "Name another output, or take --overwrite true, which replaces what this command wrote there."
        if overwrite:
            return
        if number := len(pictures.union(self.earlier)):
            what = f"{number} {'picture' if pictures else 'file'}{'s' if number > 1 else ''}"
            raise FileExistsError(f"The output {folder} holds {what} already, with which new ones would mix. {hint}")
        if grid and self.grid.exists():
            raise FileExistsError(f"The overview of an earlier output is there already, {self.grid}. {hint}")

    def clear(self, only_forget: bool = False) -> None:
        """Remove earlier results; or leave that to another process, which must do it before anything is written."""
        for file in self.earlier:
            if not only_forget:
                file.unlink(missing_ok=True)
        self.earlier = []

    def file(self, name: str) -> Path:
        """The place of a file by its name below the folder, from which earlier results are gone."""
        self.clear()
        return self.folder / name

    def write(self, name: str, image: Tensor) -> None:
        """A picture `[C, H, W]` in `[-1, 1]`, by its name below the folder."""
        write_image(self.file(name), image)

    def table(self, name: str, rows: Iterable[Iterable[str | int | float]]) -> None:
        """Numbers as a CSV file, its head among the rows, by its name below the folder; six digits of floats."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
        write_atomically(self.file(name), text.getvalue())

    def overview(self, grid: Image.Image) -> None:
        """Write the grid beside the folder. Where that may not be written, a word says so."""
        try:
            grid.save(self.grid)
        except OSError as error:
            print(f"The overview {self.grid} could not be written: {error.strerror or error}", file=sys.stderr)


def check_new(file: Path, overwrite: bool) -> None:
    """Refuse a file that is there already, unless it is to be replaced."""
    if file.exists() and not overwrite:
        raise FileExistsError(f"The output {file} is there already. Name another, or replace it with --overwrite true.")


class Skipped:
    """Files that a command could not use: the first ones of each reason by name, and how many there are."""

    def __init__(self) -> None:
        self.reasons: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.reasons.values()))

    def add(self, file: str | Path, message: str) -> None:
        """Say why a file is skipped, unless the same has been said of some others; the words may name it."""
        # Sizes differ from file to file, and the reason is the same.
        reason = re.sub(r"\d+", "0", message.replace(str(file), "").strip())
        files = self.reasons.setdefault(reason, [])
        files.append(str(file))
        if len(files) <= NAMED:
            print(f"skipped {message}" if str(file) in message else f"skipped {file}: {message}", file=sys.stderr)

    def count(self) -> None:
        """Say how many more there were of each reason."""
        for files in self.reasons.values():
            if more := len(files[NAMED:]):
                print(f"skipped {more} more for the same reason as {files[0]}: {len(files)} in all", file=sys.stderr)
