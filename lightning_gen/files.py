"""Files that are written whole or not at all, and what dead processes have left of theirs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def _machine() -> str:
    """Where the numbers of processes mean what they mean here: a host, or a container on it."""
    name = re.sub(r"[^A-Za-z0-9-]+", "-", platform.node())[:40] or "localhost"
    with suppress(OSError):
        name += re.sub(r"[^0-9]", "", str(Path("/proc/self/ns/pid").readlink()))
    return name


_HOST = _machine()
_TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.tmp")
_OLD = 24 * 3600.0  # seconds after which nobody is still writing
_MINUTE = 60.0  # after which one that writes all the time must have
_cleaned: set[tuple[int, Path]] = set()  # process and folder; a fork looks again


@contextmanager
def opened_atomically(path: str | os.PathLike[str], *, sync: bool = True, going_on: bool = False) -> Iterator[BinaryIO]:
    """A file to write into, which takes its place and name when all has been written; makes the folder.

    Until then, and if something goes wrong, what stood there stays. The new content lies beside it meanwhile, as
    `.NAME.HOST.PID.tmp`; where a process was killed while it wrote, the next one on its machine that writes into the
    folder removes that, and any other after a day.

    Args:
        path: Of the file.
        sync: Whether to wait until the disk has it, so that it outlasts a power cut too.
        going_on: Whether to take over what a killed process of this machine had written of the same file. It is opened
            to read and write, at its start, and who writes must find out how much of it is sound. What Ctrl-C stops is
            left to go on with, too.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{_HOST}.{os.getpid()}.tmp")
    taken = going_on and any(_took_over(entry, temporary) for entry in _unfinished(path))
    _remove_left_behind(path.parent, but=temporary.name if taken else "")
    try:
        with temporary.open("r+b" if taken else "w+b") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, Exception) or not going_on:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, sync: bool = True) -> None:
    """Write a whole file, or leave what stood there; see `opened_atomically`.

    Raises:
        OSError: If it cannot be written.
    """
    with opened_atomically(path, sync=sync) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def is_being_written(path: str | os.PathLike[str]) -> bool:
    """Whether another process of this machine is inside `opened_atomically` of a file, and has written in this minute.

    Whoever waits for it does not wait for one that hangs, or that is another and has but the number of a dead one.
    """
    for entry in _unfinished(Path(path)):
        match = _TEMPORARY.fullmatch(entry.name)
        with suppress(FileNotFoundError):
            is_young = time.time() - entry.stat().st_mtime < _MINUTE
            if match and match["host"] == _HOST and is_young and _is_written_by(entry, _HOST, int(match["pid"])):
                return True
    return False


def _unfinished(path: Path) -> list[os.DirEntry[str]]:
    """What processes have begun of a file."""
    with suppress(OSError):
        return [entry for entry in os.scandir(path.parent) if entry.name.startswith(f".{path.name[:40]}.")]
    return []


def _took_over(entry: os.DirEntry[str], temporary: Path) -> bool:
    """Whether what a dead process left has become this one's; of several that want it, one gets it."""
    match = _TEMPORARY.fullmatch(entry.name)
    with suppress(OSError):
        if match and match["host"] == _HOST and not _is_written_by(entry, _HOST, int(match["pid"])):
            Path(entry.path).rename(temporary)
            return True
    return False


def _remove_left_behind(folder: Path, but: str = "") -> None:
    """Remove unfinished files of processes that are no more, once for each folder and process."""
    key = (os.getpid(), folder.absolute())
    if key in _cleaned:
        return
    _cleaned.add(key)
    with suppress(OSError):  # to tidy up is not worth a run
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and entry.name != but and not _is_written_by(entry, match["host"], int(match["pid"])):
                Path(entry.path).unlink(missing_ok=True)


def _is_written_by(entry: os.DirEntry[str], host: str, pid: int) -> bool:
    """Whether the process lives; where that cannot be seen from here, whether the file is young."""
    if host != _HOST or os.name == "nt":  # where signal 0 is not a question
        return time.time() - entry.stat().st_mtime < _OLD
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return pid != os.getpid()  # for this one has not begun


def cache_folder() -> Path:
    """`$LIGHTNING_GEN_CACHE`, or `lightning-gen` in the user's cache folder. It need not exist, and may be deleted."""
    chosen = os.environ.get("LIGHTNING_GEN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-gen"


def digest(content: bytes | memoryview | Path) -> str:
    """SHA-256 of bytes, or of a file, in hexadecimal."""
    if not isinstance(content, Path):
        return hashlib.sha256(content).hexdigest()
    found = hashlib.sha256()
    with content.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
