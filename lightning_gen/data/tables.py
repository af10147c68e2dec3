"""Collections whose pictures are rows of tables, which may hold a class and captions beside each of them.

A table says what is in its rows. What becomes of it is here, and the same for all: what is left out, the split into
train, val and test, the numbers of classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lightning_gen.data.base import Split
from lightning_gen.data.collection import Collection, check_fractions, split_by_hash
from lightning_gen.data.folders import natural_order
from lightning_gen.data.images import ImageError
from lightning_gen.data.listing import by_kind
from lightning_gen.data.preparation import Preparation
from lightning_gen.data.sources import Captions, Source
from lightning_gen.processes import everywhere, world_size


class Table(Protocol):
    """Rows with a picture each, the same ones in every process."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def picture(self, row: int) -> bytes | Path:
        """The content of a picture file, or where it lies.

        Raises:
            ImageError: If it is not there.
        """
        ...

    def captions(self, row: int) -> list[str]:
        """Of a row, at least one.

        Raises:
            ImageError: If there is none.
        """
        ...

    def labels(self) -> Sequence[Any]:
        """What stands for the class in every row."""
        ...

    def faults(self) -> Mapping[int, str]:
        """What is wrong with rows, in a few words, as far as a quick look tells."""
        ...

    def name(self, row: int) -> str:
        """What a message calls a picture."""
        ...

    def place(self, row: int) -> bytes:
        """What decides into which split a picture falls, if nothing else does."""
        ...

    def signature(self) -> str:
        """Equal for the same table on another machine, and hardly ever for another."""
        ...

    def recipe(self) -> Any:
        """All that decides the pictures, for `fingerprint`."""
        ...


@dataclass(frozen=True, eq=False)
class TableSource:
    """The pictures of some rows."""

    table: Table
    rows: NDArray[np.int64]
    prepare: Preparation

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.prepare(self.encoded(index), self.name(index))

    def encoded(self, index: int) -> bytes | Path:
        """The picture in the row."""
        return self.table.picture(int(self.rows[index]))

    def name(self, index: int) -> str:
        """That of the row."""
        return self.table.name(int(self.rows[index]))

    def recipe(self) -> Any:
        """The table, the rows and the preparation."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class TableCaptions:
    """The captions of some rows."""

    table: Table
    rows: NDArray[np.int64]

    def __getitem__(self, index: int) -> list[str]:
        return self.table.captions(int(self.rows[index]))

    def __iter__(self) -> Iterator[str]:
        return (caption for index in range(len(self.rows)) for caption in self[index])


class TableCollection(Collection):
    """Base of collections in tables. A subclass calls `take` when it is made.

    Args:
        val_fraction: Share of the pictures split off for validation, where nothing else settles it.
        test_fraction: Share of the pictures split off for testing, where nothing else settles it.
        **reading: As `Collection`.
    """

    tables: Mapping[str, Table]
    rows: Mapping[str, NDArray[np.int64]]
    labels: Mapping[str, NDArray[np.int64]] | None
    where: str

    def __init__(self, *, val_fraction: float = 0.05, test_fraction: float = 0.05, **reading: Any) -> None:
        super().__init__(**reading)
        check_fractions(val_fraction, test_fraction)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._captioned = False
        self._num_classes: int | None = None

    def take(
        self,
        tables: Mapping[str, Table],
        *,
        where: str,
        label: str = "",
        classes: int | Sequence[str] | None = None,
        captions: bool = False,
    ) -> None:
        """Decide which row is in which split, and of which class.

        Args:
            tables: Of "train", "val" and "test". One of the last two may serve for both; where there is "train" alone,
                its pictures are split by a hash of their places.
            where: What messages call the data set.
            label: What they call that which stands for the class; "" if classes are not asked for.
            classes: Number or names of the classes, where they are known.
            captions: Whether captions are asked for.

        Raises:
            ValueError: If there are too few pictures, or a label is no class.
            ImageError: If rows are broken and not to be skipped.
        """
        self.where, self._captioned = where, captions
        values = {split: table.labels() for split, table in tables.items()} if label else None
        rows = self._usable(tables, values)
        if values is not None:
            values = {split: [values[split][row] for row in rows[split]] for split in rows}
            self.class_names, numbers = number_classes(values, f"{where}: {label}", classes)
            found = 1 + max(int(each.max()) for each in numbers.values())
            self._num_classes = classes if isinstance(classes, int) else len(self.class_names or range(found))
        else:
            numbers = {}
        if tables.keys() == {"train"}:
            table, own = tables["train"], rows["train"]
            places = (table.place(row) for row in own.tolist())
            split = split_by_hash(places, self.val_fraction, self.test_fraction, where)
            tables = dict.fromkeys(split, table)
            rows = {name: own[part] for name, part in split.items()}
            numbers = {name: each[part] for each in numbers.values() for name, part in split.items()}
        self.tables, self.rows, self.labels = (_val_and_test(each) for each in (tables, rows, numbers))

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None where they were not asked for."""
        return self._num_classes

    def setup(self, stage: str) -> None:
        """Compare what the processes have found; a `RuntimeError` if they differ."""
        if world_size() == 1:
            return
        found = {split: (table.signature(), len(self.rows[split])) for split, table in self.tables.items()}
        if any(others != found for others in everywhere(found)):
            raise RuntimeError(
                f"{type(self).__name__}: the processes have found different pictures in {self.where}. It must be the "
                "same on all machines, and stay as it is while a run starts."
            )

    def source(self, split: Split, prepare: Preparation) -> Source:
        """The pictures of a split."""
        return TableSource(self.tables[split], self.rows[split], prepare)

    def labels_of(self, split: Split) -> Any:
        """The classes of the pictures of a split, int64, if they were asked for."""
        return self.labels[split] if self.labels else None

    def captions_of(self, split: Split) -> Captions | None:
        """The captions of the pictures of a split, if they were asked for."""
        return TableCaptions(self.tables[split], self.rows[split]) if self._captioned else None

    def captions(self) -> Iterator[str]:
        """All captions of training pictures, from which a tokenizer may learn.

        Raises:
            ValueError: If none were asked for.
        """
        if not self._captioned:
            raise ValueError(f"{type(self).__name__} was not told where captions are. {self.caption_hint}")
        return iter(TableCaptions(self.tables["train"], self.rows["train"]))

    caption_hint: str
    """How to say where captions are."""

    def _usable(
        self, tables: Mapping[str, Table], values: Mapping[str, Sequence[Any]] | None
    ) -> dict[str, NDArray[np.int64]]:
        """The rows that can be used."""
        rows: dict[str, NDArray[np.int64]] = {}
        broken: list[tuple[str, str]] = []
        for split, table in tables.items():
            faults = dict(table.faults())
            for row, value in enumerate(values[split] if values is not None else ()):
                if is_missing(value):
                    faults.setdefault(row, "no label")
            broken += [(table.name(row), faults[row]) for row in sorted(faults)]
            rows[split] = np.setdiff1d(np.arange(len(table)), np.array(list(faults), np.int64))
        if broken:
            total = sum(map(len, tables.values()))
            words = f"{self.where}: {len(broken)} of {total} pictures cannot be used. {by_kind(broken)}."
            if not self.skip_broken:
                raise ImageError(f"{words} Mend or remove them, or leave them out with skip_broken: true.")
            self.left_out.append(f"{words} They are left out.")
            rank_zero_warn(self.left_out[-1])
        if empty := [split for split in rows if not len(rows[split])]:
            raise ValueError(f"{self.where} has no pictures of the split {' and '.join(empty)} that can be used.")
        return rows


def is_missing(label: Any) -> bool:
    """Whether a label says that there is none: None, NaN, an empty name, or a number below 0."""
    if isinstance(label, float):
        return math.isnan(label)
    return label is None or (isinstance(label, int) and label < 0) or (isinstance(label, str) and not label.strip())


def number_classes(
    labels: Mapping[str, Sequence[Any]], what: str, classes: int | Sequence[str] | None = None
) -> tuple[list[str] | None, dict[str, NDArray[np.int64]]]:
    """The names of classes, if they have any, and their numbers, from 0.

    Whole numbers 0 .. K - 1, all of which occur, are taken as they are. All other whole numbers, and names, are classes
    in the order in which digits count as numbers.

    Args:
        labels: Of the pictures of each split; none `is_missing`.
        what: Begins messages.
        classes: Their number or their names, where they are known.

    Raises:
        ValueError: If labels are floats or anything else, or none of the classes known; or if pictures to evaluate with
            are of a class that no training picture has.
    """
    for value in (value for each in labels.values() for value in each if not isinstance(value, int | str)):
        kind = "floats" if isinstance(value, float) else type(value).__name__
        raise ValueError(
            f"{what} holds {kind}, such as {value!r}. Classes are whole numbers or names. Convert them, name another, "
            "or leave labels out."
        )
    found = {split: set(each) for split, each in labels.items()}
    distinct = set[int | str]().union(*found.values())
    if classes is not None:
        number_of = {value: class_number(value, classes, what) for value in distinct}
        names = None if isinstance(classes, int) else list(classes)
    elif all(isinstance(value, int) for value in distinct) and distinct == set(range(len(distinct))):
        number_of, names = {value: int(value) for value in distinct}, None
    else:
        names = sorted({str(value) for value in distinct}, key=natural_order)
        if numbers := [value for value in distinct if isinstance(value, int)]:
            rank_zero_info(
                f"{what} holds {len(numbers)} different numbers from {min(numbers)} to {max(numbers)}, which are taken "
                "as the names of classes, in their order."
            )
        number_of = {value: names.index(str(value)) for value in distinct}
    if "train" in found:
        called = {number: str(names[number] if names else number) for number in number_of.values()}
        trained = {number_of[value] for value in found["train"]}
        if strange := [called[number] for number in sorted(set(number_of.values()) - trained)]:
            raise ValueError(
                f"{what}: no training pictures are of class {_some(strange)}, which pictures to evaluate with are of. "
                "Leave these out, or choose other splits."
            )
        if names and (empty := [name for number, name in enumerate(names) if number not in called]):
            rank_zero_warn(f"{what}: {len(empty)} of {len(names)} classes have no pictures: {_some(empty)}.")
    return names, {split: np.array([number_of[value] for value in each], np.int64) for split, each in labels.items()}


def class_number(label: Any, classes: int | Sequence[str], what: str) -> int:
    """The number of a class, from 0, which may be given by its name.

    Args:
        label: What stands for it.
        classes: The number of classes, or their names.
        what: Begins messages.

    Raises:
        ValueError: If it is none of them.
    """
    total = classes if isinstance(classes, int) else len(classes)
    if isinstance(label, int) and 0 <= label < total:
        return int(label)
    if not isinstance(classes, int) and label in classes:
        return classes.index(label)
    known = f"0 to {total - 1}" if isinstance(classes, int) else f"0 to {total - 1} or {_some(classes)}"
    raise ValueError(f"{what} holds {label!r}, which is none of the {total} classes: {known}.")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if names[10:] else "")


def _val_and_test(splits: Mapping[str, Any]) -> dict[str, Any]:
    """With one of val and test in place of the other, where that is missing."""
    if not splits:
        return {}
    return {"val": splits.get("test"), "test": splits.get("val")} | dict(splits)
