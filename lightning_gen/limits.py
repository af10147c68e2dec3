"""What a file may become in memory, so that a small one from elsewhere does not fill it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

INFLATED_GB = "LIGHTNING_GEN_MAX_INFLATED_GB"
CONFIG_VALUES = "LIGHTNING_GEN_MAX_CONFIG_VALUES"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, and eight times as fast, where PyYAML has it


class LimitError(ValueError):
    """A file would become larger than is allowed. The message names the environment variable that allows more."""


def limit_of(variable: str, default: float) -> float:
    """The number in an environment variable, or the default where it is not set.

    Raises:
        ValueError: If it is no number above 0.
    """
    text = os.environ.get(variable) or str(default)
    try:
        limit = float(text)
    except ValueError:
        limit = float("nan")
    if not limit >= 0:
        raise ValueError(f"The environment variable {variable} must be a number of 0 or more, got {text!r}.")
    return limit


def check_inflation(path: Path, times: float = 1) -> None:
    """Refuse a file of `torch.save` or `numpy.savez` that would be much larger in memory than it is on the disk.

    PyTorch's records are stored as they are, so that never happens by itself; but the format is zip, whose records may
    be compressed, or lie over one another.

    Args:
        path: The file.
        times: How often its size its records may have: 1 where they are not compressed.

    Raises:
        LimitError: If they are larger, and larger than `$LIGHTNING_GEN_MAX_INFLATED_GB`.
        zipfile.BadZipFile: If it begins like a zip file and has no directory.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # an older format, which has no compression
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    # Where a file holds two directories, PyTorch could read the other one; then this one's records do not begin at 0.
    if min((record.header_offset for record in records), default=1):
        raise zipfile.BadZipFile("its directory is not that of the file")
    inflated, size = sum(record.file_size for record in records), path.stat().st_size
    if inflated > max(times * size, limit_of(INFLATED_GB, 0) * 1e9):
        raise LimitError(
            f"{path} is a file of {size / 1e6:.3g} MB that becomes {inflated / 1e6:.3g} MB in memory, which files of "
            f"its kind do not. If you trust it, set the environment variable {INFLATED_GB} to {inflated / 1e9:.3g} or "
            "more, or save it anew."
        )


def load_tensors(path: Path, map_location: Any = "cpu") -> Any:
    """`torch.load` of a file from anywhere: tensors and plain data only, and no more of it than the file is large.

    Raises:
        LimitError: As `check_inflation`.
        Exception: Whatever `torch.load` raises.
    """
    import torch  # which configurations need not wait for

    check_inflation(path)
    return torch.load(path, map_location=map_location, weights_only=True)


def check_aliases(text: str) -> None:
    """Refuse YAML that is far larger than its text because parts of it stand for others (`&name` and `*name`).

    Raises:
        LimitError: If it has, written out, more than `$LIGHTNING_GEN_MAX_CONFIG_VALUES` values, by default 100,000.
            What is part of itself has infinitely many.
        yaml.YAMLError: If it is no YAML.
    """
    if "&" not in text or "*" not in text:
        return
    limit = limit_of(CONFIG_VALUES, 100_000)
    sizes: dict[str | None, float] = {}
    names: list[str | None] = []
    totals = [0.0]  # of the values read so far in each collection that is not at its end
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            totals[-1] += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent):
            totals[-1] += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            totals.append(1)
            names.append(event.anchor)
            sizes[event.anchor] = float("inf")  # until it ends
        elif isinstance(event, yaml.CollectionEndEvent):
            sizes[names.pop()] = size = totals.pop()
            totals[-1] += size
        if totals[-1] > limit:
            raise LimitError(
                f"A configuration has more than {limit:,.0f} values when its aliases (*name) are written out, or one "
                f"of them is part of itself. If you trust it, set the environment variable {CONFIG_VALUES} to more."
            )


def load_yaml(text: str) -> Any:
    """What `yaml.safe_load` gives, sooner, after `check_aliases`.

    Raises:
        LimitError: As `check_aliases`.
        yaml.YAMLError: If it is no YAML.
    """
    check_aliases(text)
    return yaml.load(text, Loader=_LOADER)
