"""Which picture files lie under a folder, and what a look at all of them tells."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lightning_gen.data.images import image_endings, readable_formats

_NAMED = 3  # files of each kind that a message names


@dataclass(frozen=True)
class Search:
    """What lies under a folder.

    Attributes:
        folder: Where was looked.
        images: Picture files, known by their endings, sorted by their place below the folder.
        others: All other files.
        folders: The folders right below it.
    """

    folder: Path
    images: list[Path]
    others: list[Path]
    folders: list[Path]

    def checked(self) -> Search:
        """Itself, if there are pictures, else a `FileNotFoundError` that says which other files there are."""
        if not self.images:
            there = f", only {count_endings(self.others)}" if self.others else ""
            readable = "jpg, png, webp, tif and others that Pillow reads"
            raise FileNotFoundError(f"{self.folder} holds no pictures ({readable}){there}.")
        return self


def search_images(folder: str | Path) -> Search:
    """All that lies under a folder; no file is looked into.

    Links are followed, but each folder is searched once: under its own place where it has one below `folder`, else
    under that of the first link to it. Links to what they lie in, and hidden files and folders (`.name`), are passed
    over.

    Args:
        folder: Where to look; all paths begin with it as it is given.

    Raises:
        FileNotFoundError: If it does not exist.
        OSError: If a folder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}.")
    endings = tuple(image_endings())
    images: list[Path] = []
    others: list[Path] = []
    below: list[Path] = []
    searched: set[tuple[int, int]] = set()
    waiting, linked = [folder], list[Path]()
    while waiting or linked:
        here = waiting.pop() if waiting else linked.pop(0)
        status = here.stat()
        if (status.st_dev, status.st_ino) in searched:
            continue
        searched.add((status.st_dev, status.st_ino))
        with os.scandir(here) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        for entry in found:
            path = Path(entry.path)
            if not entry.is_dir():
                (images if entry.name.lower().endswith(endings) else others).append(path)
                continue
            below += [path] if here == folder else []
            if not entry.is_symlink():
                waiting.append(path)
            elif not here.resolve().is_relative_to(path.resolve()):
                linked.append(path)
    return Search(folder, sorted(images, key=Path.as_posix), others, below)


def find_images(folder: str | Path) -> list[Path]:
    """The picture files under a folder, as `search_images` finds them.

    Args:
        folder: Where to look.

    Returns:
        The paths, each beginning with `folder` as given, sorted by their place below it.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no pictures.
    """
    return search_images(folder).checked().images


def count_endings(paths: Iterable[Path]) -> str:
    """How many files have which ending, the most frequent first: "12 .txt, 3 .heic, 1 without an ending"."""
    counts = Counter(path.suffix.lower() or "without an ending" for path in paths)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {ending}" for ending, number in ordered)


def faults_of(paths: Sequence[Path]) -> dict[Path, str]:
    """What is wrong with picture files as far as their status and their first bytes tell, by path.

    Args:
        paths: Files that should be pictures. Of each, no more is read than its first bytes.

    Returns:
        For those that cannot be read, in the order of `paths`: "empty", "a link to nothing", "not a file" ...
    """
    # Threads, because on a disk elsewhere each file is a wait.
    parts = [paths[start : start + 500] for start in range(0, len(paths), 500)]
    with ThreadPoolExecutor(16) as threads:
        found = [fault for part in threads.map(lambda part: [_fault(path) for path in part], parts) for fault in part]
    return {path: fault for path, fault in zip(paths, found, strict=True) if fault}


def in_words(faults: Mapping[Path, str], among: int, root: Path, what: str = "picture files cannot be read") -> str:
    """A sentence about all `faults_of` the files below a folder: how many of each kind, and the first of them.

    Args:
        faults: At least one.
        among: How many files were looked at.
        root: Below which they are named.
        what: Was looked at, and what is wrong.
    """
    kinds: dict[str, list[str]] = {}
    for path, fault in faults.items():
        kinds.setdefault(fault, []).append(path.relative_to(root).as_posix())
    found = "; ".join(
        f"{fault}: {len(names)} ({', '.join(names[:_NAMED])}{', ...' if names[_NAMED:] else ''})"
        for fault, names in kinds.items()
    )
    return f"{root}: {len(faults)} of {among} {what}. {found}."


def _fault(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a file"  # to open a named pipe would be to wait for the other end
        if not status.st_size:
            return "empty"
        with path.open("rb", buffering=0) as file:
            start = file.read(16).ljust(16, b"\0")
    except OSError as error:
        return "a link to nothing" if path.is_symlink() and not path.exists() else str(error.strerror).lower()
    tests = {name: Image.OPEN[name][1] for name in readable_formats()}
    # Of formats without a test, such as TGA, the beginning tells nothing.
    if tests.get(image_endings().get(path.suffix.lower(), ""), bool) is None:
        return ""
    return "" if any(test and test(start) is True for test in tests.values()) else "no picture by its first bytes"
