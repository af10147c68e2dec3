"""What the pictures of a dataset are, as one short string: equal for equal pictures, and different for others."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
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

PROBES = 64  # pictures that are looked at where the rest is known without
_BATCH_SIZE = 64


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
    return files.digest(json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode())


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
        return _files([value])
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return _files(value) if value and all(isinstance(item, Path) for item in value) else [_plain(v) for v in value]
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


def _files(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    folder = os.path.commonpath([path.parent for path in paths])
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in paths)
    return [(place, status.st_size, status.st_mtime_ns) for place, status in found]


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
