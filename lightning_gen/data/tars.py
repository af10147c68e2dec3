"""What is in tar shards, in the layout of WebDataset: which files belong together, and where they are in local ones."""

from __future__ import annotations

import json
import os
import re
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_gen.data.fingerprint import digest
from lightning_gen.data.images import ImageError, image_endings
from lightning_gen.data.listing import BEGINNING, fault_of_beginning
from lightning_gen.files import cache_folder, opened_atomically
from lightning_gen.files import digest as digest_bytes

SCHEMA = 1  # of kept indices; another number is another meaning of their content
_SILENCE = 2.0  # seconds before progress is shown
_RACY = 2 * 10**9  # nanoseconds within which a file may be changed twice and its time be the same
_NAMED = 3  # that a message names


@dataclass(frozen=True)
class Keys:
    """The endings by which the files of a key are told apart.

    Args:
        image: Of pictures, one or several with semicolons; None for all that pictures have.
        label: Of classes, or None where they are not wanted.
        caption: Of captions, or None where they are not wanted.
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None

    @cached_property
    def _images(self) -> set[str] | None:
        return set(self.image.lower().split(";")) if self.image else None

    def is_picture(self, ending: str) -> bool:
        """Whether files with an ending are the pictures."""
        return f".{ending.rpartition('.')[2]}" in image_endings() if self._images is None else ending in self._images

    def label_in(self, content: bytes) -> Any:
        """What stands for the class in a file of labels; None where nothing does."""
        value = _value(self.label or "", content)
        if not isinstance(value, str) or "json." in (self.label or ""):
            return value
        text = value.strip()
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        return float(text) if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?|nan", text, re.IGNORECASE) else text

    def captions_in(self, content: bytes) -> list[str]:
        """The captions in a file of captions; none where nothing is said."""
        value = _value(self.caption or "", content)
        lines = value if isinstance(value, list) else [value] if "json." in (self.caption or "") else _lines(value)
        return [line.strip() for line in lines if isinstance(line, str) and line.strip()]


def member_of(key: str) -> str:
    """The ending of the file in which that stands which a key names: of `json.FIELD` it is `json`."""
    before, found, _ = key.partition("json.")
    return f"{before}json" if found else key


def _value(key: str, content: bytes) -> Any:
    """What a key names in a file: the text, or a field; None where it is not there."""
    field = key.partition("json.")[2]
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text)[field] if field else text
    except (ValueError, LookupError, TypeError):
        return None


def _lines(text: Any) -> list[str]:
    return text.splitlines() if isinstance(text, str) else []


# -- where shards and their members are ------------------------------------------------------------------------------


PIPES = "LIGHTNING_GEN_PIPES"
"""The environment variable by which shards may come from programs."""


def is_remote(url: str) -> bool:
    """Whether a shard is not a file here."""
    return re.match(r"[a-z][a-z0-9+.-]+:", url) is not None and not Path(url).exists()


def expand(urls: str | Path | Sequence[str | Path]) -> list[str]:
    """The shards that patterns stand for, in order.

    Raises:
        ModuleNotFoundError: If a pattern has braces, and the library that reads them is missing.
        FileNotFoundError: If one that is a file is not there, or a pattern stands for none.
        ValueError: If there are none, one is named twice, or one is a program to run (`pipe:COMMAND`) and
            `$LIGHTNING_GEN_PIPES` is not 1: configurations that come with a checkpoint must not run any.
    """
    found: list[str] = []
    for url in map(str, [urls] if isinstance(urls, str | Path) else urls):
        for each in _without_braces(url):
            if each.startswith("pipe:") and os.environ.get(PIPES) != "1":
                raise ValueError(f"{each} would run a program in a shell. If you trust it, set {PIPES}=1.")
            path = each if is_remote(each) else str(Path(each).expanduser())
            matches = sorted(glob(path)) if has_magic(path) and not is_remote(each) else [path]  # noqa: PTH207  # of absolute paths too
            if not matches or not (is_remote(each) or Path(matches[0]).is_file()):
                a_folder = f"it is a folder. Name the shards in it: {Path(each) / '*.tar'}"
                found_there = a_folder if Path(path).is_dir() else "there is no such file"
                raise FileNotFoundError(f"{each} is no shard: {found_there}.")
            found += matches
    if not found:
        raise ValueError("There are no shards to read: urls is empty.")
    if twice := [url for url, number in Counter(found).items() if number > 1]:
        raise ValueError(f"The shard {twice[0]} is named twice. Name each once.")
    return found


def _without_braces(url: str) -> list[str]:
    if not re.search(r"\{.*\}", url):
        return [url]
    try:
        from braceexpand import braceexpand
    except ModuleNotFoundError as error:
        raise missing_library() from error
    return list(braceexpand(url))


def missing_library() -> ModuleNotFoundError:
    """The error that says what to install."""
    return ModuleNotFoundError("WebDatasetImages needs the library webdataset: pip install 'lightning-gen[shards]'.")


def in_words(shards: Sequence[str]) -> str:
    """Shards as messages call them."""
    return shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"


def split_name(name: str) -> tuple[str, str]:
    """The key and the ending, in lower case, of a member; no ending where it has none of its own or is hidden."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return (f"{folder}{slash}{stem}", ending.lower()) if stem and dot else (name, "")


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The files in a shard, in order.

    Attributes:
        names: Of each.
        offsets: Of their first bytes in the shard, int64.
        sizes: Numbers of bytes, int64.
        beginnings: Their first bytes, filled up with zeros, uint8 `[files, BEGINNING]`.
        fault: What is wrong with the shard, or "".
    """

    names: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    beginnings: NDArray[np.uint8]
    fault: str = ""


def indices_of(shards: Sequence[Path]) -> list[ShardIndex]:
    """The index of each shard, from the cache or made and put there.

    Raises:
        ImageError: If one is no tar, or a compressed one.
        OSError: If one cannot be read.
    """
    quiet: dict[str, Any] = {"delay": _SILENCE, "leave": False, "disable": None}
    with ThreadPoolExecutor(8) as threads:  # on a disk elsewhere each file is a wait
        found = threads.map(index_of, shards)
        return list(tqdm(found, desc="finding what is in the shards", total=len(shards), **quiet))


def index_of(shard: Path) -> ShardIndex:
    """As `indices_of`, of one."""
    status = shard.stat()
    kept = cache_folder() / "shards" / f"{digest_bytes(str(shard.absolute()).encode('utf-8', 'surrogateescape'))}.npz"
    mark = np.array([SCHEMA, status.st_size, status.st_mtime_ns])
    try:
        with np.load(kept, allow_pickle=False) as found:
            if np.array_equal(found["mark"], mark):
                names = found["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
                index = ShardIndex(names, found["offsets"], found["sizes"], found["beginnings"], str(found["fault"]))
                if len(names) == len(index.offsets) == len(index.sizes) == len(index.beginnings):
                    return index
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever damaged archives lead to
        rank_zero_warn(f"{kept} is damaged ({error}). {shard} is looked through anew.")
    index = find_members(shard)
    if time.time_ns() - status.st_mtime_ns > _RACY:
        names = "".join(f"{name}\0" for name in index.names).encode("utf-8", "surrogateescape")
        parts: dict[str, Any] = {"names": np.frombuffer(names, np.uint8), "fault": index.fault}
        parts |= {name: getattr(index, name) for name in ("offsets", "sizes", "beginnings")}
        try:
            with opened_atomically(kept, sync=False) as file:
                np.savez(file, mark=mark, **parts)
        except OSError as error:
            rank_zero_warn(f"What is in {shard} cannot be kept ({error}), and is found out anew at every start.")
    return index


def find_members(shard: Path) -> ShardIndex:
    """Look through a shard.

    Raises:
        ImageError: If it is no tar, or a compressed one.
        OSError: If it cannot be read.
    """
    names: list[str] = []
    places: list[tuple[int, int]] = []
    beginnings: list[bytes] = []
    faults: list[str] = []
    size = shard.stat().st_size
    with shard.open("rb") as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # which leaves the file open
            whole = True
            while whole and (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if not member.isreg() or member.issparse():
                    continue
                whole = member.offset_data + member.size <= size
                if whole:
                    file.seek(member.offset_data)
                    beginnings.append(file.read(min(BEGINNING, member.size)).ljust(BEGINNING, b"\0"))
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
        except tarfile.TarError as error:
            if not names:
                raise ImageError(
                    f"{shard} is no shard that can be read by places: {error}. It must be a tar, not compressed (or "
                    "read as a stream: stream: true)."
                ) from error
            whole = False
        if whole:  # a tar ends with zeros, without which it was cut between two members, or one is damaged
            file.seek(tar.offset)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if not whole:
        faults.append(f"ends early or is damaged (after {len(names)} files)")
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        listed = ", ".join(twice[:_NAMED]) + (", ..." if twice[_NAMED:] else "")
        faults.append(f"holds {len(twice)} names more than once ({listed})")
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T
    first = np.frombuffer(b"".join(beginnings), np.uint8).reshape(-1, BEGINNING)
    return ShardIndex(names, offsets, sizes, first, " and ".join(faults))


# -- the pictures in local shards ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ShardTable:
    """The keys with a picture in local shards, in their order.

    Args:
        shards: The files.
        indices: Of each.
        keys: By which the files of a key are told apart.
    """

    shards: Sequence[Path]
    indices: Sequence[ShardIndex] = field(repr=False)
    keys: Keys

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Number of the shard, and in its index those of picture, label and captions, -1 for none: `[keys, 4]`."""
        endings = [member_of(key or "").lower() for key in (self.keys.label, self.keys.caption)]
        is_picture = cache(self.keys.is_picture)
        rows: list[tuple[int, int, int, int]] = []
        for number, (shard, index) in enumerate(zip(self.shards, self.indices, strict=True)):
            samples: dict[str, dict[str, int]] = {}
            for member, name in enumerate(index.names):
                key, ending = split_name(name)
                samples.setdefault(key, {}).setdefault(ending, member)
            for key, members in samples.items():
                pictures = [ending for ending in members if ending and is_picture(ending)]
                if len(pictures) > 1:
                    raise ValueError(
                        f"{shard}: {key} has {len(pictures)} pictures: {', '.join(f'.{each}' for each in pictures)}. "
                        f"Name the one to read: image_key={pictures[0]}."
                    )
                if pictures:
                    label, caption = (members.get(ending, -1) if ending else -1 for ending in endings)
                    rows.append((number, members[pictures[0]], label, caption))
        return np.array(rows, np.int64).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, row: int) -> bytes:
        """The content of the file in the shard."""
        return self._read(row, 1)

    def captions(self, row: int) -> list[str]:
        """Those in the file of captions."""
        if self.rows[row, 3] >= 0 and (found := self.keys.captions_in(self._read(row, 3))):
            return found
        raise ImageError(f"{self.name(row)} has no caption in .{self.keys.caption} (in UTF-8).")

    def labels(self) -> list[Any]:
        """What stands in the files of labels."""
        of_shards = np.split(np.arange(len(self)), np.flatnonzero(np.diff(self.rows[:, 0])) + 1)
        with ThreadPoolExecutor(8) as threads:  # on a disk elsewhere each file is a wait
            parts = threads.map(lambda rows: [self._label(int(row)) for row in rows], of_shards)
            return [label for part in parts for label in part]

    def _label(self, row: int) -> Any:
        return self.keys.label_in(self._read(row, 2)) if self.rows[row, 2] >= 0 else None

    def faults(self) -> dict[int, str]:
        """Keys without a caption that is asked for, and those whose pictures do not begin like one."""
        found: dict[int, str] = {}
        fault_of = lru_cache(1 << 16)(fault_of_beginning)
        for row, (number, picture, _, caption) in enumerate(self.rows.tolist()):
            index = self.indices[number]
            beginning = index.beginnings[picture].tobytes()[: index.sizes[picture]]
            if fault := fault_of(beginning, f".{index.names[picture].rpartition('.')[2].lower()}"):
                found[row] = fault
            elif self.keys.caption and (caption < 0 or not index.sizes[caption]):
                found[row] = "no caption"
        return found

    def name(self, row: int) -> str:
        """The shard and the file in it."""
        number, picture = self.rows[row, :2]
        return f"{self.shards[number]}: {self.indices[number].names[picture]}"

    def place(self, row: int) -> bytes:
        """The name of the file in the shard."""
        number, picture = self.rows[row, :2]
        return self.indices[number].names[picture].encode("utf-8", "surrogateescape")

    def signature(self) -> str:
        """Of the names of files, and their sizes."""
        return digest([[index.names, index.sizes] for index in self.indices])

    def recipe(self) -> Any:
        """The shards, and the places of the pictures in them."""
        places = [[self.indices[number].offsets[picture] for number, picture in self.rows[:, :2].tolist()]]
        return {"shards": list(self.shards), "places": np.array(places), "numbers": self.rows[:, 0]}

    def _read(self, row: int, column: int) -> bytes:
        number, member = self.rows[row, 0], self.rows[row, column]
        index, shard = self.indices[number], self.shards[number]
        try:
            with shard.open("rb", buffering=0) as file:
                file.seek(index.offsets[member])
                content = file.read(index.sizes[member])
        except OSError as error:
            raise ImageError(f"{self.name(row)} cannot be read: {error.strerror}.") from error
        if len(content) < index.sizes[member]:
            raise ImageError(f"{self.name(row)} cannot be read: {shard} has become shorter since the start.")
        return content
