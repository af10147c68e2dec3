"""Which picture files lie under a folder, and what a look at all of them tells; of a million files, found out once."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import PIL
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lightning_gen.data.base import data_root
from lightning_gen.data.images import image_endings, readable_formats
from lightning_gen.files import cache_folder, digest, opened_atomically

SCHEMA = 1  # of kept listings; another number is another meaning of their content
_KEPT = 10_000  # files from which on a listing is kept; fewer are listed anew sooner than the mistake is explained
_COMPARED = 20_000  # files whose status is compared before a kept listing is trusted
_RACY = 3 * 10**9  # nanoseconds; the clocks of file systems tick every two seconds or faster
_SILENCE = 2.0  # seconds before progress is shown
_THREADS = 16  # that look at files
_PART = 500  # files that one of them looks at in a turn
_BLOCK = 64 * _PART  # files of which the answers are held at once
BEGINNING = 16  # bytes of a picture file by which its format is known
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar")  # endings of what is to be unpacked first
_NAMED = 3  # files of each kind that a message names

S = TypeVar("S")
T = TypeVar("T")
Look = Callable[[Path], str]
"""Says what is wrong with a file, or ""."""
_Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Tree:
    """All files below a folder: by the folders they lie in, and there by name.

    Attributes:
        root: The folder.
        folders: The places of all folders below it, and of itself, "", which is the first; each behind its parent.
        firsts: `[folders + 1]`; the files `firsts[k]` to `firsts[k + 1]` lie in folder k.
        names: Of all files, as the file system has them, each with a zero behind it.
        starts: `[files + 1]`; where each name begins.
    """

    root: Path
    folders: list[str]
    firsts: _Numbers
    names: bytes
    starts: _Numbers

    def name(self, number: int) -> str:
        """The name of a file in its folder."""
        return os.fsdecode(self.names[self.starts[number] : self.starts[number + 1] - 1])

    def ordered(self, separator: str) -> _Numbers:
        """The numbers of all files in the order of their places, were these written with such a separator."""
        below: dict[str, list[tuple[str, int]]] = {}
        for number, place in enumerate(self.folders[1:], 1):
            parent, _, name = place.rpartition("/")
            below.setdefault(parent, []).append((name + separator, number))
        parts: list[_Numbers] = []
        waiting: list[int | range] = [0]
        while waiting:
            here = waiting.pop()
            if isinstance(here, range):
                parts.append(np.arange(here.start, here.stop))
                continue
            first, last = int(self.firsts[here]), int(self.firsts[here + 1])
            inside: list[int | range] = []
            for name, folder in sorted(below.get(self.folders[here], ())):
                cut = bisect_left(range(last), name, first, key=self.name)
                inside += [range(first, cut), folder]
                first = cut
            waiting += reversed([*inside, range(first, last)])
        return np.concatenate(parts)


class Files(Sequence[Path]):
    """Paths below a folder, all of which begin with it as it was given.

    A file takes its name and 16 bytes more. What is taken out of it by a slice, a mask `[len]` or an array of numbers
    shares the names, and takes 8 bytes a file. It equals any sequence of the same paths.
    """

    def __init__(self, tree: _Tree, numbers: _Numbers) -> None:
        self._tree, self._numbers = tree, numbers

    @property
    def root(self) -> Path:
        """The folder below which they lie."""
        return self._tree.root

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> Files: ...

    def __getitem__(self, index: int | slice | NDArray[Any]) -> Path | Files:
        if isinstance(index, slice | np.ndarray):
            return Files(self._tree, self._numbers[index])
        number = self._numbers[index]
        folder = self._tree.folders[int(np.searchsorted(self._tree.firsts, number, "right")) - 1]
        return self.root.joinpath(folder, self._tree.name(number))

    def __iter__(self) -> Iterator[Path]:
        return map(self.root.joinpath, self.places())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} files below {self.root}>"

    def names(self) -> Iterator[str]:
        """The paths as strings, which are made sooner."""
        return map(f"{self.root}/".__add__, self.places())

    def places(self) -> Iterator[str]:
        """Where each lies below the root, with slashes."""
        return map(os.fsdecode, self.encoded_places())

    def encoded_places(self) -> Iterator[bytes]:
        """The same as the file system has them."""
        tree = self._tree
        prefixes = [os.fsencode(f"{place}/") if place else b"" for place in tree.folders]
        # In parts, because numbers of Python take four times the room.
        for start in range(0, len(self), 10_000):
            numbers = self._numbers[start : start + 10_000]
            folders = np.searchsorted(tree.firsts, numbers, "right") - 1
            spans = zip(folders.tolist(), tree.starts[numbers].tolist(), tree.starts[numbers + 1].tolist(), strict=True)
            for folder, first, end in spans:
                yield prefixes[folder] + tree.names[first : end - 1]

    def by_folder(self) -> tuple[list[Path], NDArray[np.intp]]:
        """The first file of each folder that has any, and for each file `[len]` which of these lies beside it."""
        folders = np.searchsorted(self._tree.firsts, self._numbers, "right") - 1
        _, first, inverse = np.unique(folders, return_index=True, return_inverse=True)
        return [self[int(number)] for number in first], inverse

    def sorted(self) -> Files:
        """The same in the order of `sorted`, in which paths compare part by part."""
        ordered = self._tree.ordered("\0")
        ranks = np.empty_like(ordered)
        ranks[ordered] = np.arange(len(ordered))
        return self[ranks[self._numbers].argsort(kind="stable")]

    def where(self, holds: Callable[[str], bool]) -> Files:
        """Those of whose places something holds."""
        return self[np.fromiter(map(holds, self.places()), bool, len(self))]

    def without(self, paths: Collection[Path]) -> Files:
        """All but those."""
        gone = {path.relative_to(self.root).as_posix() for path in paths}
        return self.where(lambda place: place not in gone) if gone else self

    def digest(self) -> str:
        """SHA-256 of their places, in hexadecimal."""
        found = hashlib.sha256()
        for place in self.encoded_places():
            found.update(place + b"\0")
        return found.hexdigest()


@dataclass(frozen=True)
class Search:
    """What lies under a folder.

    Attributes:
        folder: Where was looked.
        images: Picture files, known by their endings, sorted by their place below the folder.
        others: All other files, sorted likewise.
        folders: The folders right below it.
        faults: What is wrong with pictures, for each look at them all.
    """

    folder: Path
    images: Files
    others: Files
    folders: list[Path]
    faults: list[dict[Path, str]] = field(default_factory=list)

    def checked(self) -> Search:
        """Itself, if there are pictures, else a `FileNotFoundError` that says which other files there are."""
        if not self.images:
            there = f", only {count_endings(self.others)}" if self.others else ""
            readable = "jpg, png, webp, tif and others that Pillow reads"
            unpack = next(filter(None, map(unpack_first, self.others)), "")
            raise FileNotFoundError(f"{self.folder} holds no pictures ({readable}){there}.{unpack}")
        return self


def unpack_first(path: Path) -> str:
    """A sentence for an error about something that is no folder of pictures: of an archive that it is one, else ""."""
    packed = path.name.lower().endswith(_ARCHIVES) and path.is_file()
    return f" Unpack {path.name} first, and give its folder." if packed else ""


def existing_root(root: str | Path, layout: str = "") -> Path:
    """As `data_root`, of data that must be there.

    Args:
        root: As a user names it.
        layout: What it must hold, as a sentence.

    Raises:
        FileNotFoundError: If it is no folder; where it is relative, the words say what it is from here.
        ValueError: If the name is empty.
    """
    folder = data_root(root)
    if not folder.is_dir():
        here = "" if folder.is_absolute() else f", which from here is {folder.absolute()}: give --data.root FOLDER"
        raise FileNotFoundError(f"root={root} is not a folder{here}.{unpack_first(folder)} {layout}".strip())
    return folder


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
    return _Findings.of(Path(folder)).search


def find_images(folder: str | Path) -> Files:
    """The picture files under a folder, as `search_images` finds them.

    Args:
        folder: Where to look.

    Returns:
        The paths, each beginning with `folder` as given, sorted by their place below it.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no pictures.
    """
    return search_images(folder).checked().images


def list_images(folder: str | Path, *looks: Look) -> Search:
    """What `search_images` finds, and what is wrong with the pictures; of many, that of the last time if it holds.

    From 10,000 pictures on, it is kept in the cache folder (`$LIGHTNING_GEN_CACHE`, `~/.cache/lightning-gen`). It holds
    as long as every folder is the one that it was and has its times of change, so that files added, removed or renamed
    are always seen; as long as broken files are broken in the same way; and as long as files have their size and time:
    all of up to 20,000, and as many, evenly spaced, of more. What may go unnoticed is that one of more files was
    overwritten where it lies. It is read as it then is; if it is broken, that is said only then. (`fingerprint` looks
    at every file.)

    Args:
        folder: Where to look; all paths begin with it as it is given.
        *looks: Say of a picture what is wrong with it, or "", beside `fault_of`, which comes first; public functions.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If a folder cannot be read.
    """
    folder = Path(folder)
    every = (fault_of, *looks)
    made_for = [str(folder.absolute()), *(f"{look.__module__}.{look.__qualname__}" for look in every)]
    path = cache_folder() / "listings" / digest(os.fsencode("\0".join(made_for)))[:32]
    made_for += [str(SCHEMA), PIL.__version__, *sorted(image_endings())]
    found = _Findings.kept(path, folder, made_for)
    if found is None or not found.hold(every):
        began = time.time_ns()
        found = _Findings.of(folder)
        # A change in the tick of the clock in which a folder was searched would go unnoticed for ever.
        keep = len(found.search.images) >= _KEPT and found.stamps[:, 1:].max() < began - _RACY
        found = (found.with_status() if keep else found).looked_at(every)
        if keep:
            found.keep(path, made_for)
    images, faults = found.search.images, [dict[Path, str]() for _ in every]
    for (look, number), fault in zip(found.broken.tolist(), found.faults, strict=True):
        faults[look][images[number]] = fault
    return replace(found.search, faults=faults)


@dataclass(frozen=True, eq=False)
class _Findings:
    """What a search has found, and what shows whether it would find the same again.

    Attributes:
        tree: The files.
        pictures: `[files]`; which of them are pictures by their endings.
        marks: Places on which the search depends: the tree's folders, then links to nothing and to folders passed over.
        stamps: `[marks, 3]`; the inode that is there, and of folders the times of last change of content and of
            anything (which cannot be put back), in nanoseconds; or -1.
        status: `[files, 2]`; size and time of last change, or -1.
        broken: `[faults, 2]`; the number of a look, and that of a picture with which it found something wrong.
        faults: What it was.
    """

    tree: _Tree
    pictures: NDArray[np.bool_]
    marks: list[str]
    stamps: _Numbers
    status: _Numbers
    broken: _Numbers
    faults: list[str]

    @classmethod
    def of(cls, root: Path) -> _Findings:
        """Those of a search; no file is looked at yet."""
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root} {'is not a folder' if root.exists() else 'does not exist'}.{unpack_first(root)}"
            )
        endings = tuple(image_endings())
        folders, firsts, names = list[str](), [0], bytearray()
        lengths, pictures = array("q"), bytearray()
        stamps, passed = list[tuple[int, int, int]](), list[str]()
        searched: set[tuple[int, int]] = set()
        waiting, linked = [""], list[str]()
        with _progress(f"listing {root}") as bar:
            while waiting or linked:
                place = waiting.pop() if waiting else linked.pop(0)
                here = root / place
                status = here.stat()  # before it is searched, so that a change meanwhile shows
                if (status.st_dev, status.st_ino) in searched:
                    passed.append(place)
                    continue
                searched.add((status.st_dev, status.st_ino))
                folders.append(place)
                stamps.append(_stamps(status))
                with os.scandir(here) as entries:
                    shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
                for entry in shown:
                    path = f"{place}/{entry.name}" if place else entry.name
                    if not entry.is_dir():
                        name = os.fsencode(entry.name)
                        names += name + b"\0"
                        lengths.append(len(name) + 1)
                        pictures.append(entry.name.lower().endswith(endings))
                        if entry.is_symlink() and not entry.is_file():
                            passed.append(path)
                    elif not entry.is_symlink():
                        waiting.append(path)
                    else:
                        inside = here.resolve().is_relative_to(Path(entry.path).resolve())
                        (passed if inside else linked).append(path)
                firsts.append(len(lengths))
                bar.update(firsts[-1] - firsts[-2])
        starts = np.concatenate([[0], np.cumsum(np.array(lengths), dtype=np.int64)])
        stamps += [(_stamps_of(root / place)[0], -1, -1) for place in passed]
        none = np.empty((0, 2), np.int64)
        return cls(
            tree=_Tree(root, folders, np.array(firsts, np.int64), bytes(names), starts),
            pictures=np.array(pictures).astype(np.bool_),
            marks=folders + passed,
            stamps=np.array(stamps, np.int64),
            status=none,
            broken=none,
            faults=[],
        )

    @cached_property
    def search(self) -> Search:
        """The files in order."""
        ordered, root = self.tree.ordered("/"), self.tree.root
        pictures = self.pictures[ordered]
        right_below = zip(self.marks, self.stamps[:, 0].tolist(), strict=True)
        folders = sorted(root / place for place, inode in right_below if place and "/" not in place and inode != -1)
        return Search(root, Files(self.tree, ordered[pictures]), Files(self.tree, ordered[~pictures]), folders)

    @property
    def _all(self) -> Files:
        return Files(self.tree, np.arange(len(self.pictures)))

    def with_status(self) -> _Findings:
        """The same with the status of all files, which must be asked before they are looked at."""
        status = array("q")
        for numbers in in_threads(_status, self._all.names(), len(self.pictures)):
            status.extend(numbers)
        return replace(self, status=np.array(status).reshape(-1, 2))

    def looked_at(self, looks: Sequence[Look]) -> _Findings:
        """The same with what is wrong with pictures."""
        broken, faults = list[tuple[int, int]](), list[str]()
        for k, look in enumerate(looks):
            for number, fault in enumerate(in_threads(look, self.search.images, len(self.search.images))):
                if fault:
                    broken.append((k, number))
                    faults.append(fault)
        return replace(self, broken=np.array(broken, np.int64).reshape(-1, 2), faults=faults)

    def hold(self, looks: Sequence[Look]) -> bool:
        """Whether folders, broken files and, as far as they are compared, all others are as they were."""
        stamps = np.array(list(in_threads(_stamps_of, map(self.tree.root.joinpath, self.marks))))
        stamps[len(self.tree.folders) :, 1:] = -1
        if not np.array_equal(stamps, self.stamps):
            return False
        for k, look in enumerate(looks):
            broken = self.search.images[self.broken[self.broken[:, 0] == k, 1]]
            faults = [fault for (number, _), fault in zip(self.broken, self.faults, strict=True) if number == k]
            if list(in_threads(look, broken)) != faults:
                return False
        compared = np.linspace(0, len(self.status) - 1, min(len(self.status), _COMPARED)).astype(np.int64)
        status = np.array(list(in_threads(_status, self._all[compared].names())), np.int64)
        return np.array_equal(status, self.status[compared])

    def keep(self, path: Path, made_for: list[str]) -> None:
        """Write them into a file, if that can be done."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            made_for=_packed(made_for),
            folders=len(self.tree.folders),
            firsts=self.tree.firsts,
            names=np.array(bytearray(self.tree.names)),
            starts=self.tree.starts,
            pictures=self.pictures,
            marks=_packed(self.marks),
            stamps=self.stamps,
            status=self.status,
            broken=self.broken,
            faults=_packed(self.faults),
        )
        content = buffer.getbuffer()
        try:
            with opened_atomically(path, sync=False) as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
        except OSError as error:
            rank_zero_warn(f"The list of the files in {self.tree.root} is not kept for the next time: {error}.")

    @classmethod
    def kept(cls, path: Path, root: Path, made_for: list[str]) -> _Findings | None:
        """Those in a file, unless it is damaged or made for something else; they need not hold."""
        try:
            content = memoryview(path.read_bytes())
        except OSError:
            return None
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            rank_zero_warn(f"{path} is damaged. The files in {root} are listed anew.")
            return None
        with np.load(io.BytesIO(content[32:])) as kept:
            if _unpacked(kept["made_for"]) != made_for:
                return None
            marks = _unpacked(kept["marks"])
            tree = _Tree(root, marks[: kept["folders"]], kept["firsts"], kept["names"].tobytes(), kept["starts"])
            numbers = {name: kept[name] for name in ("pictures", "stamps", "status", "broken")}
            return cls(tree=tree, marks=marks, faults=_unpacked(kept["faults"]), **numbers)


def count_endings(*groups: Files) -> str:
    """How many files have which ending, the most frequent first: "12 .txt, 3 .heic, 1 without an ending"."""
    endings = (os.path.splitext(place)[1].rstrip(".").lower() for files in groups for place in files.places())  # noqa: PTH122
    counts = Counter(ending or "without an ending" for ending in endings)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {ending}" for ending, number in ordered)


def fault_of(path: Path) -> str:
    """What is wrong with a picture file as far as its status and its first bytes tell, or ""."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a file"  # to open a named pipe would be to wait for the other end
        if not status.st_size:
            return "empty"
        with path.open("rb", buffering=0) as file:
            beginning = file.read(BEGINNING)
    except OSError as error:
        return "a link to nothing" if path.is_symlink() and not path.exists() else str(error.strerror).lower()
    return fault_of_beginning(beginning, path.suffix.lower())


def fault_of_beginning(beginning: bytes, ending: str = "") -> str:
    """What is wrong with a picture file as far as its first bytes tell, or "".

    Args:
        beginning: Of the file, `BEGINNING` bytes where it has as many.
        ending: Of its name, in lower case, if it has one.
    """
    if not beginning:
        return "empty"
    start = beginning.ljust(BEGINNING, b"\0")
    own = _tests().get(image_endings().get(ending, ""), bool)
    # Of formats without a test, such as TGA, the beginning tells nothing.
    good = own is None or own(start) is True or any(test and test(start) is True for test in _tests().values())
    return "" if good else "no picture by its first bytes"


def faults_of(paths: Sequence[Path]) -> dict[Path, str]:
    """What is wrong with picture files as far as their status and their first bytes tell, by path.

    Args:
        paths: Files that should be pictures. Of each, no more is read than its first bytes.

    Returns:
        For those that cannot be read, in the order of `paths`: "empty", "a link to nothing", "not a file" ...
    """
    return {path: fault for path, fault in zip(paths, in_threads(fault_of, paths, len(paths)), strict=True) if fault}


def in_words(faults: Mapping[Path, str], among: int, root: Path, what: str = "picture files cannot be read") -> str:
    """A sentence about all `faults_of` the files below a folder: how many of each kind, and the first of them.

    Args:
        faults: At least one.
        among: How many files were looked at.
        root: Below which they are named.
        what: Was looked at, and what is wrong.
    """
    found = by_kind((path.relative_to(root).as_posix(), fault) for path, fault in faults.items())
    return f"{root}: {len(faults)} of {among} {what}. {found}."


def by_kind(faults: Iterable[tuple[str, str]]) -> str:
    """How many of each kind of fault there are, and the first of them, from what has it and the fault."""
    kinds: dict[str, list[str]] = {}
    for name, fault in faults:
        kinds.setdefault(fault, []).append(name)
    return "; ".join(
        f"{fault}: {len(names)} ({', '.join(names[:_NAMED])}{', ...' if names[_NAMED:] else ''})"
        for fault, names in kinds.items()
    )


def in_threads(function: Callable[[S], T], files: Iterable[S], total: int | None = None) -> Iterator[T]:
    """What a function says of each file, in order; in threads, because on a disk elsewhere each file is a wait.

    With a total, progress is shown where it lasts.
    """
    files = iter(files)
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        _progress("looking at files", total) if total else nullcontext() as bar,
    ):
        while block := list(islice(files, _BLOCK)):
            parts = [block[start : start + _PART] for start in range(0, len(block), _PART)]
            for part in threads.map(lambda part: [function(file) for file in part], parts):
                yield from part
            if bar is not None:
                bar.update(len(block))


def _progress(words: str, total: int | None = None) -> Any:
    """A bar that is shown by one process, and only of what lasts."""
    hidden = None if getattr(rank_zero_only, "rank", 0) == 0 else True
    return tqdm(desc=words, total=total, unit=" files", delay=_SILENCE, leave=False, disable=hidden)


@cache
def _tests() -> dict[str, Callable[[bytes], Any] | None]:
    """By which Pillow knows the beginning of a file of each format."""
    return {name: Image.OPEN[name][1] for name in readable_formats()}


def _status(path: str) -> tuple[int, int]:
    """Size and time of last change of a file, or -1."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _stamps_of(folder: Path) -> tuple[int, int, int]:
    try:
        return _stamps(folder.stat())
    except OSError:
        return -1, -1, -1


def _stamps(status: os.stat_result) -> tuple[int, int, int]:
    inode = status.st_ino & (2**63 - 1)  # some file systems have longer ones
    return inode, status.st_mtime_ns, status.st_ctime_ns


def _packed(words: Iterable[str]) -> NDArray[np.uint8]:
    """Words that have no zeros, as bytes with a zero behind each."""
    return np.array(bytearray().join(os.fsencode(word) + b"\0" for word in words))


def _unpacked(packed: NDArray[np.uint8]) -> list[str]:
    return [os.fsdecode(word) for word in packed.tobytes().split(b"\0")[:-1]]
