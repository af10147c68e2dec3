"""What the pictures of a dataset are, as one short string: equal for equal pictures, and different for others."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_gen import files
from lightning_gen.data.base import InOrder, collate_sizes, examples_of, in_order
from lightning_gen.data.batches import collate
from lightning_gen.data.listing import Files, in_threads

PROBES = 64  # pictures that are looked at where the rest is known without
_BATCH_SIZE = 64
_LATER = "\0the files of a list stand here"


@runtime_checkable
class HasRecipe(Protocol):
    """A dataset, or a source of one, that can say what its pictures are without reading them."""

    def recipe(self) -> Any:
        """All that decides the pictures, as `digest` takes it: settings, seeds, tensors, paths of files."""
        ...


def fingerprint(data: DataLoader[Any] | Dataset[Any], pictures: Callable[[Any], Any] | None = None) -> str:
    """A digest of all pictures of a dataset, whatever the order in which a loader takes them.

    * Of a dataset that `HasRecipe`, as all of this library: its recipe, and 64 of its pictures, evenly spaced, by which
      other versions of whatever reads or draws them are told apart. Files count by place, size and time of last change;
      their content is not read. So a folder can be moved, or copied along with its times. What goes unnoticed is a
      change of a file that leaves its size and puts its time back, unless it is one of the 64.
    * Of any other, and where the loader has its own `collate_fn`: all pictures, in one pass of reading.

    A dataset whose pictures are random beyond its recipe may have another fingerprint every time.

    Args:
        data: A loader or a dataset, as `in_order` takes them.
        pictures: Gives the pictures of a batch, so that nothing else in it counts; None takes the batch as it is.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: As `in_order`, or if the recipe or a batch holds something that `digest` does not take.
        ValueError: As `in_order`.
        OSError: If a file is missing.
    """
    pictures = pictures or (lambda batch: batch)
    examples = examples_of(data)
    dataset = examples.dataset if isinstance(examples, InOrder) else examples
    with isolate_rng():  # a dataset of the user's own may draw from the global random state
        together = data.collate_fn if isinstance(data, DataLoader) else collate
        if isinstance(dataset, HasRecipe) and together in (collate, default_collate, collate_sizes):
            total = len(examples)  # type: ignore[arg-type]
            number = min(PROBES, total)
            probes = together([examples[i * total // number] for i in range(number)])
            return digest([_name(type(dataset)), total, dataset.recipe(), pictures(probes)])
        return digest([digest(pictures(batch)) for _, batch in in_order(data, _BATCH_SIZE)])


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of plain data, which may hold tensors, arrays, paths and dataclasses.

    Args:
        value: None, bools, numbers, strings, sequences and mappings with strings as keys; tensors and arrays, by type,
            shape and bytes; what `HasRecipe`, by that; dataclasses, by class and fields; functions and their partials,
            by name and arguments; paths of files, by size and time of last change and by their place below the folder
            that all paths of the same sequence have in common.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: If it holds anything else.
        OSError: If a file is missing.
    """
    lists: list[_FileList] = []

    def later(found: _FileList) -> str:  # the JSON of a million files is not to be held
        lists.append(found)
        return _LATER

    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), default=later)
    first, *others = text.split(json.dumps(_LATER))
    found = hashlib.sha256(first.encode())
    for paths, text in zip(lists, others, strict=True):
        for part in paths.json():
            found.update(part.encode())
        found.update(text.encode())
    return found.hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray) and value.dtype != object:
        pixels = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return {"array": [value.dtype.str, value.shape, files.digest(pixels.data)]}
    if isinstance(value, Tensor):
        pixels = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return {"tensor": [str(value.dtype), value.shape, files.digest(pixels.data)]}
    if isinstance(value, Path):
        return _FileList([value])
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        holds_paths = isinstance(value, Files) or all(isinstance(item, Path) for item in value)
        return _FileList(value) if value and holds_paths else [_plain(item) for item in value]
    if isinstance(value, HasRecipe) and not isinstance(value, type):
        return _plain(value.recipe())
    if is_dataclass(value) and not isinstance(value, type):
        return {_name(type(value)): {field.name: _plain(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, partial):
        return {"partial": [_plain(value.func), _plain(value.args), _plain(value.keywords)]}
    if inspect.isfunction(value) and "<" not in value.__qualname__:
        return {"function": _name(value)}
    raise TypeError(
        f"A fingerprint can be of numbers, strings, tensors, arrays, paths, dataclasses and collections of them, but "
        f"not of {value!r}."
    )


def _size_and_time(file: str) -> tuple[int, int]:
    status = os.stat(file)  # noqa: PTH116 (paths are slow to make, and these may be a million)
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class _FileList:
    """Files that stand for their place, size and time of last change."""

    paths: Sequence[Path]

    def json(self) -> Iterator[str]:
        """The parts of what stands for them."""
        names = self.paths.names() if isinstance(self.paths, Files) else map(str, self.paths)
        rows = zip(self._places(), in_threads(_size_and_time, names), strict=True)
        before = "["
        while block := [(place, *status) for place, status in islice(rows, 1000)]:
            yield before + json.dumps(block, separators=(",", ":"))[1:-1]
            before = ","
        yield "]"

    def _places(self) -> Iterator[str]:
        """Below the folder that they have in common."""
        if not isinstance(self.paths, Files):
            folder = os.path.commonpath([path.parent for path in self.paths])
            return (path.relative_to(folder).as_posix() for path in self.paths)
        folder = os.path.commonpath([path.parent for path in self.paths.by_folder()[0]])
        above = Path(folder).relative_to(self.paths.root).as_posix()
        start = 0 if above == "." else len(above) + 1
        return (place[start:] for place in self.paths.places())


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
