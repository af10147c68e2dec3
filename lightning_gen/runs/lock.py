"""One process at a time trains in a run's folder."""

from __future__ import annotations

import atexit
import os
import platform
from io import TextIOWrapper
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_held: dict[tuple[int, Path], TextIOWrapper] = {}  # by process, for a forked one has no part in its parent's locks


def lock_run(folder: Path) -> None:
    """Keep others from training in a run's folder, until `unlock_run` or the end of this process, however it ends.

    Raises:
        BlockingIOError: If another process trains there; the message says which.
    """
    folder = folder.resolve()
    if fcntl is None or (os.getpid(), folder) in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        file = (folder / LOCK).open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "Another process"
            file.close()
            raise BlockingIOError(
                f"{holder} is training in {folder}, and two would write over each other's files. Wait until it has "
                "ended, or end it."
            ) from None
        except OSError:  # a file system without locks
            file.close()
            return
        if (folder / LOCK).exists() and os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
            break
        file.close()  # whoever had it has taken the file away in the meantime
    file.truncate(0)
    file.write(f"Process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _held[os.getpid(), folder] = file
    atexit.register(unlock_run, folder)


def was_left_locked(folder: Path) -> bool:
    """Whether a process that trained in a run's folder has ended without giving it free, as a kill leaves it."""
    folder = folder.resolve()
    if fcntl is None or (os.getpid(), folder) in _held:  # to open and close the file would give it free
        return False
    try:
        with (folder / LOCK).open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # there is none, somebody has it, or a file system without locks
        return False


def unlock_run(folder: Path) -> None:
    """Let others train there again."""
    file = _held.pop((os.getpid(), folder.resolve()), None)
    if file is not None:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
