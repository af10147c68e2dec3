"""Prepared pictures, made once and kept as bytes that every process maps into memory.

A cache is a file of what a `Source` gives, bit for bit, and a `Source` itself. All numbers in it are little-endian:

* 64 bytes: what it is and which version of it, then the 32 bytes of its key.
* Of each picture, one after the other: 64 bytes that begin with its `_HEAD`, its pixels, zeros up to a multiple of 64.
* The heads of all pictures once more, without what lies between them; where all are alike the first alone.
* JSON: key, number of pictures, where they end, a checksum of these heads.
* 16 bytes: the length of that JSON, and `_END`.

So pictures that are alike in size stand at equal distances, and a file that has no end yet still tells which of its
pictures are sound. Its name has the key, a digest of all that decides the pictures.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lightning_gen import files
from lightning_gen.data.base import _leave_signals_alone
from lightning_gen.data.fingerprint import PROBES, digest
from lightning_gen.data.images import ImageError
from lightning_gen.data.sources import Source
from lightning_gen.files import is_being_written, opened_atomically
from lightning_gen.processes import everywhere, failing_together, from_rank_zero, rank

ENDING = ".pictures"
SCHEMA = 1  # of the file; another number is another meaning of its content

_BEGINNING = f"lightning-gen pictures {SCHEMA}\n".encode().ljust(32, b"\0")
_END = b"PICTURES"
_ALIGNMENT = 64  # a cache line, and more than any number needs
_HEAD = np.dtype([("check", "<u4"), ("type", "<u2"), ("dimensions", "<u2"), ("shape", "<u4", (4,))])
_TYPES = (np.dtype("u1"), np.dtype("<f4"))  # of pixels, by their number in a head

_BLOCK = 64  # pictures that are read and written together, or fewer if they are large
_BLOCK_BYTES = 1 << 20
_BLOCKS_EACH = 4  # at least, for a process to be worth its start
_NAMED = 3  # pictures that cannot be read
_SILENCE = 2.0  # seconds before progress is shown
_MISSING = "it is missing"
_PULSE = 5.0  # seconds after which the other processes hear that the one that works does


class CacheFileError(ValueError):
    """A file of kept pictures that is damaged, cut short or something else. The message says so in a few words."""


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KeptPictures:
    """The pictures in the file of a cache, a `Source`. What of it is in memory, all processes share.

    Args:
        path: Of the file. A worker opens it for itself.
    """

    path: Path

    # Raises, as all that needs it, what `_Content` does.
    @cached_property
    def _content(self) -> _Content:
        return _Content(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return self._content.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self._content.picture(index))

    def name(self, index: int) -> str:
        """Its number in the file."""
        return f"picture {index} of {self.path}"

    @property
    def key(self) -> str:
        """What stands for all that decided the pictures when they were made, 64 hexadecimal digits."""
        return self._content.key

    def recipe(self) -> Any:
        """The key."""
        return {"key": self.key}


@dataclass(frozen=True, eq=False)
class CachedSource(KeptPictures):
    """The pictures of a source, from the file of a cache. For names and fingerprints it is that source.

    Args:
        path: Of the file.
        source: Whose pictures these are.
    """

    source: Source

    def name(self, index: int) -> str:
        """As the source says."""
        return self.source.name(index)

    def recipe(self) -> Any:
        """As the source says."""
        return self.source.recipe()


class _Content:
    """A file, mapped into memory, whose structure has been checked.

    Raises:
        CacheFileError: If it is not sound.
        FileNotFoundError: If there is none.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(_BEGINNING):
                raise CacheFileError("it is cut short")
            content = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
        beginning = content[: len(_BEGINNING)].tobytes()
        if beginning != _BEGINNING:
            ours = beginning.startswith(_BEGINNING.partition(b"pictures")[0])
            raise CacheFileError("it is of another version" if ours else "it is something else")
        if content[-len(_END) :].tobytes() != _END:
            raise CacheFileError("it is cut short")
        try:
            end = size - 16
            start = end - int(content[end : end + 8].view("<u8")[0])
            described = json.loads(content[start:end].tobytes())
            self.key: str = described["key"]
            self.count: int = described["count"]
            stop: int = described["end"]
            heads = content[stop:start].tobytes()
            self.heads = np.frombuffer(heads, _HEAD)
            lengths = _lengths(self.heads)
            is_sound = (
                files.digest(heads) == described["heads"]
                and len(lengths) in (1, self.count)
                and content[32:64].tobytes().hex() == self.key
                and stop == 64 + int(lengths.sum()) * (self.count if len(lengths) == 1 else 1)
            )
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            is_sound = False
        if not is_sound:
            raise CacheFileError("it is damaged")
        self._bytes = content
        # Of pictures that are alike, the first tells where all of them stand.
        self._alike = (*_form(self.heads[0]), int(lengths[0])) if len(lengths) == 1 else None
        self._starts = 64 + np.cumsum(lengths) - lengths

    def picture(self, index: int) -> NDArray[Any]:
        """Pixels of a picture, a copy, for the file must not be written to."""
        if self._alike:
            shape, kind, length = self._alike
            start = 64 + range(self.count)[index] * length
        else:
            (shape, kind), start = _form(self.heads[index]), int(self._starts[index])
        return np.ndarray(shape, kind, self._bytes, start + 64).copy()


def _form(head: np.void) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the pixels that a head is of."""
    dimensions = int(head["dimensions"])
    return tuple(head["shape"][:dimensions].tolist()), _TYPES[int(head["type"])]


def _lengths(heads: NDArray[np.void]) -> NDArray[np.int64]:
    """Of pictures in the file, with all that belongs to them."""
    held = np.where(np.arange(4) < heads["dimensions"][:, None], heads["shape"], 1).astype(np.int64)
    sizes = np.array([kind.itemsize for kind in _TYPES])[heads["type"]]
    lengths: NDArray[np.int64] = 64 + -(-(held.prod(1) * sizes) // _ALIGNMENT) * _ALIGNMENT
    return lengths


# -- making ---------------------------------------------------------------------------------------------------------


def cached(source: Source, folder: Path) -> CachedSource:
    """The pictures of a source from its cache, which is made unless it is there; all ranks must call it.

    One rank makes it, by as many processes as there are cores, and where ranks of another machine do not see its file,
    one of them does. Of several runs that want the same one, the first makes it and the others wait for it. A file has
    its name when it is whole. What a killed process had made of it, the next one of the machine goes on with.

    Args:
        source: Of the pictures.
        folder: Of the cache, which is made if need be.

    Raises:
        ImageError: If pictures cannot be read; it names all of them, or the first.
        OSError: If there is no room for the file, or it cannot be written.
        RuntimeError: If the pictures change meanwhile; on ranks that wait, if another fails.
    """
    recipe, key, size = "", "", 0.0
    with failing_together():
        if rank() == 0:
            recipe = digest(source.recipe())
            key, size = _key(source, recipe)
    key, size = from_rank_zero((key, size))
    path = folder / f"{key[:16]}{ENDING}"
    while lacking := [number for number, fault in enumerate(everywhere(_fault(path, key, len(source)))) if fault]:
        making = _making(source, path, recipe, key, size) if rank() == lacking[0] else iter(())
        while True:  # so that ranks hear of each other, for none waits for ever
            with failing_together():
                working = next(making, None) is not None
            if not any(everywhere(working)):
                break
    return CachedSource(path, source)


def _key(source: Source, recipe: str) -> tuple[str, float]:
    """A digest of all that decides pictures, and how many bytes one has on average, from some of them.

    Other versions of what decodes and resizes are told apart by their pictures, as in `fingerprint`.
    """
    total = len(source)
    number = min(PROBES, total)
    probes = [source[i * total // number] for i in range(number)]
    heads = np.array([_head(picture.numpy()) for picture in probes], _HEAD)
    return digest([SCHEMA, total, recipe, probes]), float(_lengths(heads).mean())


def _fault(path: Path, key: str, count: int) -> str:
    """Why a file is not that of so many pictures, under a key; empty if it is."""
    try:
        content = _Content(path)
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    except (CacheFileError, OSError) as error:
        return str(error)
    return "" if (content.key, content.count) == (key, count) else "it is of other pictures than its name says"


def _making(source: Source, path: Path, recipe: str, key: str, size: float) -> Iterator[bool]:
    """Make a file, or wait for another run to make it; a True now and then says that it goes on."""
    if is_being_written(path):
        rank_zero_info(f"Another run is making the cache {path}. Waiting for it.")
    while is_being_written(path):
        time.sleep(0.2)
        yield True
    if not (fault := _fault(path, key, len(source))):
        return
    if fault != _MISSING:
        rank_zero_warn(f"The cache {path} cannot be used: {fault}. It is made anew.")
    recipe = recipe or digest(source.recipe())  # on another machine files may have other times
    with _explaining(path.parent, len(source), size), opened_atomically(path, going_on=True) as file:
        heads = _sound_heads(file, key)
        begun = f", of which {len(heads)} are there" if len(heads) else ""
        rank_zero_info(f"Making the cache {path} of {len(source)} pictures{begun}.")
        needed, free = (len(source) - len(heads)) * size, shutil.disk_usage(path.parent).free
        if needed > free:
            raise OSError(f"it has {in_bytes(free)} free")
        parts, done, beat, faults = [heads], len(heads), time.monotonic(), list[str]()
        shown: dict[str, Any] = {"total": len(source), "initial": done, "delay": _SILENCE, "leave": False}
        with tqdm(desc="caching", unit=" pictures", **shown) as progress:
            for block in _blocks(source, done, size):
                faults += block.faults
                if not faults:
                    file.write(block.records.numpy().data)
                    parts.append(block.heads)
                progress.update(block.number)
                if time.monotonic() - beat > _PULSE:
                    file.flush()
                    os.fsync(file.fileno())  # so that there is little to wait for at the end
                    yield True
                    beat = time.monotonic()
        if faults:  # of all, for whoever mends one has the others read anew
            first = " ".join(faults[:_NAMED]) + (" ..." if faults[_NAMED:] else "")
            several = f"{len(faults)} of {len(source)} pictures cannot be read. " if faults[1:] else ""
            raise ImageError(f"{several}{first}")
        _write_end(file, np.concatenate(parts), key)
        if not _is_still(source, recipe):
            raise RuntimeError(f"The pictures have changed while their cache {path} was made. Start again.")


def _is_still(source: Source, recipe: str) -> bool:
    """Whether a source has the recipe with this digest."""
    try:
        return digest(source.recipe()) == recipe
    except OSError:  # a file is gone
        return False


@contextmanager
def _explaining(folder: Path, count: int, size: float) -> Iterator[None]:
    """Add to an error of the system what was wanted, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"The cache of {count} pictures takes {in_bytes(count * size)}, but it cannot be written into {folder}: "
            f"{error.strerror or error}. Name another folder (cache: FOLDER), or leave it out (cache: false)."
        ) from error


def in_bytes(number: float) -> str:
    """A number of bytes as people read it: "12.3 MB"."""
    units = [("bytes", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)]
    unit, size = next((each for each in reversed(units) if number >= each[1]), units[0])
    return f"{number / size:.3g} {unit}"


def _head(pixels: NDArray[Any]) -> tuple[int, int, int, tuple[int, ...]]:
    """What stands in the head of a picture, but for the checksum."""
    return 0, _TYPES.index(pixels.dtype), pixels.ndim, (*pixels.shape, 0, 0, 0, 0)[:4]


def _check(head: NDArray[np.void], pixels: Any) -> int:
    """A checksum of a head, but for this one, and of the pixels."""
    return zlib.crc32(pixels, zlib.crc32(head.tobytes()[4:]))


def _record(pixels: NDArray[Any]) -> tuple[NDArray[np.void], NDArray[np.uint8]]:
    """A picture's head, and the picture as it stands in the file, with it."""
    content = np.ascontiguousarray(pixels)
    head = np.array(_head(content), _HEAD)
    head["check"] = _check(head, content.reshape(-1).view(np.uint8).data)
    record = np.zeros(int(_lengths(head.reshape(1))[0]), np.uint8)
    record[: _HEAD.itemsize] = np.frombuffer(head.tobytes(), np.uint8)
    record[64 : 64 + content.nbytes] = content.reshape(-1).view(np.uint8)
    return head, record


def _sound_heads(file: BinaryIO, key: str) -> NDArray[np.void]:
    """The heads of the pictures that a file begins with, of which it is left at the end; all else in it is removed."""
    beginning = _BEGINNING + bytes.fromhex(key)
    heads: list[Any] = []
    end, size = len(beginning), os.fstat(file.fileno()).st_size
    if file.read(end) == beginning:
        while len(found := file.read(64)) == 64:
            head = np.frombuffer(found, _HEAD, 1)
            if head["type"][0] >= len(_TYPES) or not 3 <= head["dimensions"][0] <= 4:
                break
            length = int(_lengths(head)[0])
            if end + length > size:
                break
            shape, kind = _form(head[0])
            pixels = file.read(length - 64)[: int(np.prod(shape)) * kind.itemsize]
            if head["check"][0] != _check(head[0], pixels):
                break
            heads.append(head[0])
            end += length
    file.seek(0)
    if not heads:
        file.write(beginning)
    file.truncate(end)
    file.seek(end)
    return np.array(heads, _HEAD)


def _write_end(file: BinaryIO, heads: NDArray[np.void], key: str) -> None:
    forms = heads.view(np.uint8).reshape(len(heads), -1)[:, 4:]  # without the checksums
    content = (heads[:1] if (forms == forms[0]).all() else heads).tobytes()
    end = file.tell()
    described = {"key": key, "count": len(heads), "end": end, "heads": files.digest(content)}
    text = json.dumps(described).encode()
    file.write(content + text + len(text).to_bytes(8, "little") + _END)


class _Blocks(Dataset[Any]):
    """Pictures as they stand in the file, several at a time, made wherever they are read.

    Processes and not threads, because what Python itself does for a small picture takes as long as its decoder.
    """

    def __init__(self, source: Source, starts: Sequence[int], size: int) -> None:
        self.source, self.starts, self.size = source, starts, size

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> _Block:
        start = self.starts[number]
        numbers = range(start, min(start + self.size, len(self.source)))
        heads: list[Any] = []
        records: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        faults: list[str] = []
        for i in numbers:
            try:
                head, record = _record(self.source[i].numpy())
            except ImageError as error:
                faults.append(str(error))
            else:
                heads.append(head)
                records.append(record)
        # As a tensor, which takes the way of shared memory: a pipe that is full would hold a worker of a dead process.
        return _Block(len(numbers), np.array(heads, _HEAD), torch.from_numpy(np.concatenate(records)), faults)


class _Block(NamedTuple):
    """Pictures that come one after the other.

    Attributes:
        number: How many.
        heads: Those of the pictures that could be read.
        records: How these stand in the file.
        faults: A message of each of the others.
    """

    number: int
    heads: NDArray[np.void]
    records: Tensor
    faults: list[str]


def _blocks(source: Source, start: int, size: float) -> Iterator[_Block]:
    """Blocks of pictures, in order, from one on."""
    together = max(1, min(_BLOCK, int(_BLOCK_BYTES / max(1.0, size))))
    blocks = _Blocks(source, range(start, len(source), together), together)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(blocks) // _BLOCKS_EACH)
    loader: DataLoader[Any] = DataLoader(
        blocks,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers if workers > 1 else 0,
        worker_init_fn=_leave_signals_alone,
        generator=torch.Generator(),  # its own, so that the random state of training does not move
    )
    return iter(loader)


def _as_it_is(block: Any) -> Any:
    return block
