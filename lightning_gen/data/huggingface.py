"""Pictures in a Hugging Face dataset: rows of Arrow files, which are mapped into memory."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path, PurePath
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm

from lightning_gen.data.fingerprint import digest
from lightning_gen.data.images import ImageError, readable_formats
from lightning_gen.data.listing import BEGINNING, fault_of_beginning, faults_of
from lightning_gen.data.tables import TableCollection
from lightning_gen.files import cache_folder, write_atomically

_SPLITS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}
SCHEMA = 1  # of what is kept of a look at the pictures; another number is another meaning of it
_ROWS = 1000  # that are looked at together
_SILENCE = 2.0  # seconds before progress is shown
_RACY = 2.0  # seconds within which a file may be changed twice and its time be the same


class HuggingFaceImages(TableCollection):
    """A Hugging Face dataset, with class labels or captions if wanted: `pip install 'lightning-gen[huggingface]'`.

    `path` is what the library `datasets` opens: a folder that `save_to_disk` wrote; a folder of parquet files, or of
    pictures in its layout `imagefolder`; a parquet or Arrow file, or a pattern of such (`data/*.parquet`); or a name on
    the hub (`user/name`), which is downloaded once and from then on found in its cache (`$HF_HOME`), without a network
    too (`HF_HUB_OFFLINE=1` keeps it from asking). Arrow is mapped into memory and not copied; of parquet, `datasets`
    makes Arrow in its cache once. Pictures are read from the bytes of their files, by the same rules as in folders.

    The splits are the dataset's own: train, validation (or val) and test, of which one of the latter may serve for
    both. Where there is train alone, or a single split of another name, its rows are split by a hash of their numbers:
    the same split on every machine and with every seed.

    Classes are numbers with names (`ClassLabel`); whole numbers; or strings, which are numbered in an order in which
    digits count as numbers. Numbers that are not 0 .. K - 1 are taken as names. A caption is a string; of a list of
    strings one is drawn, as `Collection` says, which also says what items hold.

    A fingerprint counts the Arrow files by size and time of last change, so a `save_to_disk` folder can be moved, or
    copied along with its times, but what was made of parquet on another machine is taken for other pictures. What goes
    unnoticed is a change of a file that leaves its size and puts its time back, unless it is in one of 64 pictures.

    Args:
        path: Of the dataset.
        name: Of its configuration, where it has several.
        revision: Of a dataset on the hub: a branch, a tag or a commit.
        image_column: With the pictures; may be left out where there is one alone.
        label_column: With the classes, if they are wanted.
        caption_column: With the captions, if they are wanted.
        train_split: The dataset's name of the split to train on, where it is none of those above.
        val_split: Likewise, to validate with.
        test_split: Likewise, to test with.
        val_fraction: Share of the pictures split off for validation, where no split settles it.
        test_fraction: Share of the pictures split off for testing, where no split settles it.
        **reading: As `Collection`, `PictureDataModule` and `ImageDataModule`. Rows without a picture, a label or a
            caption that is asked for count as broken.

    Raises:
        ModuleNotFoundError: If `datasets` is not installed.
        FileNotFoundError: If there is no such dataset.
        ConnectionError: If the hub cannot be reached.
        ValueError: If an argument is out of range, a column or a split is not there or holds something else, or there
            are too few pictures to split.
        ImageError: As `PictureDataModule`.
    """

    caption_hint = "Name the column: caption_column (--data.caption_column)."

    def __init__(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        caption_column: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self.path = str(path)
        wanted = {"train": train_split, "val": val_split, "test": test_split}
        chosen = _splits(_load(self.path, name, revision), wanted, self.path)
        features = next(iter(chosen.values()))[1].features
        image_column = _image_column(features, image_column, self.path)
        names = _class_names(features, label_column, self.path)
        _check_captions(features, caption_column, self.path)
        columns = [column for column in (image_column, label_column, caption_column) if column]
        for own, dataset in chosen.values():
            if odd := [column for column in columns if dataset.features.get(column) != features[column]]:
                first = next(iter(chosen.values()))[0]
                raise ValueError(
                    f"{self.path}: the column '{odd[0]}' is not the same in the split '{own}' as in '{first}'. Give "
                    "both the same features, or choose other splits."
                )
        tables = {
            split: ArrowTable(dataset, f"{self.path}, {own}", image_column, label_column, caption_column)
            for split, (own, dataset) in chosen.items()
        }
        label = f"column '{label_column}'" if label_column else ""
        self.take(tables, where=self.path, label=label, classes=names, captions=caption_column is not None)


@dataclass(frozen=True, eq=False)
class ArrowTable:
    """The rows of a split.

    Args:
        dataset: Of `datasets`.
        where: What messages call it.
        image: Column of the pictures.
        label: Column of the classes, if they are wanted.
        caption: Column of the captions, if they are wanted.
    """

    dataset: Any
    where: str
    image: str
    label: str | None
    caption: str | None

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def _pictures(self) -> Any:
        column = self.dataset.select_columns([self.image])
        if _is_image(column.features[self.image]):
            column = column.cast_column(self.image, _library().Image(decode=False))
        return column

    def picture(self, row: int) -> bytes | Path:
        """The bytes in the row, or the file that it names."""
        value = self._pictures[row][self.image]
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None and value and value["path"]:
            return Path(value["path"])
        if content is None:
            raise ImageError(f"{self.name(row)} has no picture.")
        return content

    @cached_property
    def _captions(self) -> Any:
        return self.dataset.select_columns([self.caption])

    def captions(self, row: int) -> list[str]:
        """Those in the row."""
        if found := _said(self._captions[row][self.caption]):
            return found
        raise ImageError(f"{self.name(row)} has no caption in the column '{self.caption}'.")

    def labels(self) -> list[Any]:
        """The column of labels, as it is."""
        return [value for column in self._columns(self.label) for value in column.to_pylist()]

    def faults(self) -> dict[int, str]:
        """Rows without a picture or a caption, and those whose pictures do not begin like one.

        To look at the beginnings in large files is to read much of them, so what is found is kept in the cache folder
        for as long as these files stay what they were.
        """
        files = self._files()
        path = (
            cache_folder() / "tables" / f"{digest([SCHEMA, files, self.image, self.caption, readable_formats()])}.json"
        )
        found = _kept_faults(path, len(self))
        if found is None:
            found = self._find_faults()
            newest = max((file.stat().st_mtime for file in files), default=time.time())
            if time.time() - newest > _RACY:
                try:
                    write_atomically(path, json.dumps({"rows": len(self), "faults": found}), sync=False)
                except OSError as error:
                    rank_zero_warn(
                        f"What is wrong in {self.where} cannot be kept ({error}), and is looked for each time."
                    )
        elsewhere = dict(self._elsewhere())
        faults = faults_of(list(elsewhere.values())) if elsewhere else {}
        return found | {row: faults[path] for row, path in elsewhere.items() if path in faults}

    def _find_faults(self) -> dict[int, str]:
        found: dict[int, str] = {}
        quiet: dict[str, Any] = {"delay": _SILENCE, "leave": False, "disable": None}
        columns = tqdm(self._columns(self.image), desc="looking at the pictures", **quiet)
        beginnings = (beginning for column in columns for beginning in _beginnings(column))
        for row, (content, path) in enumerate(beginnings):
            if content is not None and (fault := fault_of_beginning(content, _ending(path))):
                found[row] = fault
            elif content is None and not path:
                found[row] = "no picture"
        if self.caption:
            values = (value for column in self._columns(self.caption) for value in column.to_pylist())
            found |= {row: "no caption" for row, value in enumerate(values) if not _said(value) and row not in found}
        return found

    def _files(self) -> list[Path]:
        return [Path(file["filename"]) for file in self.dataset.cache_files]

    def _elsewhere(self) -> Iterator[tuple[int, Path]]:
        """The files that rows but name, by row."""
        row = 0
        for column in self._columns(self.image):
            if hasattr(column, "field") and (contents := _contents(column)).null_count:
                paths = _compute().struct_field(column, "path").to_pylist()
                named = zip(contents.is_null().to_pylist(), paths, strict=True)
                yield from ((row + i, Path(path)) for i, (is_null, path) in enumerate(named) if is_null and path)
            row += len(column)

    def name(self, row: int) -> str:
        """The dataset, the split and the number of the row, from 0."""
        return f"{self.where}, row {row}"

    def place(self, row: int) -> bytes:
        """The number of the row."""
        return str(row).encode()

    def signature(self) -> str:
        """Of the sizes of the pictures."""
        return self._sizes

    @cached_property
    def _sizes(self) -> str:
        compute = _compute()
        sizes = (compute.binary_length(_contents(column)).fill_null(-1) for column in self._columns(self.image))
        return digest([digest(part.to_numpy()) for part in sizes])

    def recipe(self) -> Any:
        """The files of the rows, those of pictures that rows but name, and the sizes of the others."""
        return {
            "files": self._files(),
            "elsewhere": [path for _, path in self._elsewhere()],
            "column": self.image,
            "sizes": self._sizes,
        }

    def _columns(self, name: str | None) -> Iterator[Any]:
        """A column, in parts, as arrays of Arrow."""
        for part in self.dataset.select_columns([name]).with_format("arrow").iter(_ROWS):
            yield from part.column(name).chunks


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "HuggingFaceImages needs the library datasets: pip install 'lightning-gen[huggingface]'."
        ) from error
    return datasets


def _compute() -> Any:
    import pyarrow.compute

    return pyarrow.compute


def _load(path: str, name: str | None, revision: str | None) -> Mapping[str, Any]:
    """The splits of a dataset by their names.

    Raises:
        FileNotFoundError: If there is none.
        ConnectionError: If the hub cannot be reached.
        ValueError: If `datasets` cannot open it.
    """
    library = _library()
    place = Path(path).expanduser()
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            found = library.load_from_disk(str(place))
        elif place.suffix == ".arrow" and place.is_file():
            found = library.Dataset.from_file(str(place))
        elif place.suffix in (".parquet", ".arrow") and (files := sorted(glob(str(place)))):  # noqa: PTH207
            found = library.load_dataset(place.suffix[1:], data_files=files)
        elif place.is_dir():
            found = library.load_dataset(str(place), name)
        elif re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) and place.suffix not in (".parquet", ".arrow"):
            found = library.load_dataset(path, name, revision=revision)
        else:
            raise FileNotFoundError("there is no such file or folder, and no name on the hub looks like that")
    except ConnectionError as error:
        raise ConnectionError(
            f"{path} is no file or folder here, and as a name on the hub it is not in the cache, and the hub cannot be "
            f"reached ({error}). Mend the path, or run once with a network (and without HF_HUB_OFFLINE)."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} cannot be opened as a Hugging Face dataset: {error}.") from error
    except (ValueError, OSError, library.exceptions.DatasetsError) as error:
        raise ValueError(f"{path} cannot be opened as a Hugging Face dataset: {error}") from error
    return found if isinstance(found, dict) else {str(found.split or "train"): found}


def _splits(found: Mapping[str, Any], wanted: Mapping[str, str | None], path: str) -> dict[str, tuple[str, Any]]:
    """The splits to train, validate and test with: the dataset's own name of each, and the rows."""
    there = ", ".join(found)
    if unknown := [own for own in wanted.values() if own and own not in found]:
        raise ValueError(f"{path} has no split '{unknown[0]}'. It has: {there}.")
    names = {split: own or next((n for n in _SPLITS[split] if n in found), None) for split, own in wanted.items()}
    if names["train"] is None and len(found) == 1:
        names["train"] = next(iter(found))
    if names["train"] is None:
        raise ValueError(f"{path} has no split 'train'. Choose one with train_split. It has: {there}.")
    if double := [split for split in ("val", "test") if names[split] == names["train"]]:
        raise ValueError(f"{path}: the split '{names['train']}' cannot be both train_split and {double[0]}_split.")
    return {split: (own, found[own]) for split, own in names.items() if own}


def _is_image(feature: Any) -> bool:
    return isinstance(feature, _library().Image)


def _missing(column: str, option: str, features: Mapping[str, Any], path: str) -> ValueError:
    return ValueError(f"{path} has no column '{column}' ({option}). It has: {', '.join(features)}.")


def _image_column(features: Mapping[str, Any], column: str | None, path: str) -> str:
    """The column of pictures, checked; where none is named, the one that there is."""
    images = [name for name, feature in features.items() if _is_image(feature)]
    if column is None and len(images) == 1:
        return images[0]
    held = f"{path} has {len(images) or 'no'} columns of pictures{': ' if images else ''}{', '.join(images)}"
    if column is None:
        others = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items() if name not in images)
        raise ValueError(f"{held}. Name the one to read: image_column. Other columns: {others or 'none'}.")
    if column not in features:
        raise _missing(column, "image_column", features, path)
    if column not in images and getattr(features[column], "dtype", "") not in ("binary", "large_binary"):
        raise ValueError(f"{path}: the column '{column}' (image_column) holds {_kind(features[column])}. {held}.")
    return column


def _class_names(features: Mapping[str, Any], column: str | None, path: str) -> list[str] | None:
    """The names of classes, where the column of labels has them; it is checked."""
    if column is None:
        return None
    if column not in features:
        raise _missing(column, "label_column", features, path)
    names = getattr(features[column], "names", None)
    if names is None and not re.match(r"u?int|bool|string|large_string|float|double|null", _kind(features[column])):
        raise ValueError(
            f"{path}: the column '{column}' (label_column) holds {_kind(features[column])}. Classes are whole numbers "
            "or strings."
        )
    return names


def _check_captions(features: Mapping[str, Any], column: str | None, path: str) -> None:
    if column is None:
        return
    if column not in features:
        raise _missing(column, "caption_column", features, path)
    feature = features[column]
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    if getattr(inner, "dtype", "") not in ("string", "large_string"):
        raise ValueError(
            f"{path}: the column '{column}' (caption_column) holds {_kind(feature)}. Captions are a string a row, or a "
            "list of strings."
        )


def _kind(feature: Any) -> str:
    """What a column holds, in words."""
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__


def _kept_faults(path: Path, rows: int) -> dict[int, str] | None:
    """What `ArrowTable.faults` has kept, if it is there and whole."""
    try:
        kept = json.loads(path.read_text())
        return {int(row): str(fault) for row, fault in kept["faults"].items()} if kept["rows"] == rows else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        rank_zero_warn(f"{path} is damaged ({error}). What it told is looked for anew.")
        return None


def _contents(column: Any) -> Any:
    """The bytes of pictures, an array of Arrow."""
    return _compute().struct_field(column, "bytes") if hasattr(column, "field") else column


def _beginnings(column: Any) -> Iterator[tuple[bytes | None, str | None]]:
    """The first bytes and the path of each picture, as far as there are any."""
    paths = _compute().struct_field(column, "path").to_pylist() if hasattr(column, "field") else [None] * len(column)
    return zip(_compute().binary_slice(_contents(column), 0, BEGINNING).to_pylist(), paths, strict=True)


def _ending(path: str | None) -> str:
    return PurePath(path).suffix.lower() if path else ""


def _said(value: str | Sequence[str] | None) -> list[str]:
    """The captions in a row."""
    found = [value] if isinstance(value, str) else value or []
    return [caption.strip() for caption in found if caption and caption.strip()]
