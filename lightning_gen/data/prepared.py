"""Folders of prepared pictures that need no other file, to carry to another machine."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch.utils.data import Dataset

from lightning_gen.data.augmentation import CropFlip, PairedPictures, SinglePictures, UnpairedPictures
from lightning_gen.data.base import ImageDataModule, Split
from lightning_gen.data.cache import CacheFileError, KeptPictures
from lightning_gen.data.collection import PictureDataModule
from lightning_gen.data.listing import existing_root
from lightning_gen.files import digest, write_atomically
from lightning_gen.processes import everywhere

CONTENTS = "contents.json"
SCHEMA = 1  # of that file; another number is another meaning of its content

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (SinglePictures, UnpairedPictures, PairedPictures)}


class PreparedFolder(ImageDataModule):
    """The pictures of a folder that `lightning-gen prepare` has made of any data module of picture files.

    They come from memory-mapped files, decoded and resized, with the labels, captions and domains that they had there,
    and nothing else is needed. Batches are those of the other data module, bit for bit, under the same arguments.

    How pictures were read and how large they are is settled; that includes the size of crops. Whether training pictures
    are mirrored can be chosen anew, and where their crop is: at random only where they were prepared with something to
    crop from, as by `crop: random` of an `ImageFolder` or by the `resize` of an `UnpairedImageFolder`.

    Args:
        root: The folder.
        crop: Which part of a training picture is kept, the central or a random one; None as it was prepared for.
        flip: Whether training pictures are mirrored left to right, half of them; None as they were prepared for.
        **loader: As `ImageDataModule`.

    Raises:
        ValueError: If an argument is out of range, or a file in the folder is damaged or another than it was.
        FileNotFoundError: If one is missing.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        crop: Literal["center", "random"] | None = None,
        flip: bool | None = None,
        batch_size: int = 64,
        **loader: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **loader)
        if crop not in (None, "center", "random"):
            raise ValueError(f"crop must be 'center' or 'random' (or null for what was prepared), got {crop!r}.")
        self.root = existing_root(root, "PreparedFolder takes what `lightning-gen prepare` has made.")
        chosen = {"random_crop": None if crop is None else crop == "random", "flip": flip}
        self._chosen: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        self._contents = _read_contents(self.root)
        self._datasets: dict[str, Dataset[Any]] = {split: self._restored(split) for split in get_args(Split)}
        self.class_names = self._contents["class_names"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every picture; of each half of a pair."""
        channels, height, width = self._contents["image_shape"]
        return channels, height, width

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None where pictures have no labels."""
        number: int | None = self._contents["num_classes"]
        return number

    def setup(self, stage: str) -> None:
        """Compare what the processes have found; a `RuntimeError` if it differs."""
        if len(set(everywhere(_digest(self._contents)))) > 1:
            raise RuntimeError(f"PreparedFolder: {self.root} holds other pictures on one machine than on another.")

    def dataset(self, split: Split) -> Dataset[Any]:
        """The examples of a split: to train on, augmented; to validate and to test with, in order."""
        return self._datasets[split]

    def captions(self) -> Iterator[str]:
        """All captions of training pictures, from which a tokenizer may learn.

        Raises:
            ValueError: If the pictures have none.
        """
        found = getattr(self._datasets["train"], "captions", None)
        if found is None:
            raise ValueError(f"The pictures in {self.root} have no captions.")
        return (caption for captions in found for caption in captions)

    def _restored(self, split: str) -> Dataset[Any]:
        """The dataset of a split, as `prepare` has found it."""
        described = dict(self._contents["splits"][split])
        kind = _KINDS[described.pop("kind")]
        for name, value in described.items():
            if name == "transform":
                transform = CropFlip(**{**value, "crop": tuple(value["crop"])})
                described[name] = replace(transform, **self._chosen) if split == "train" else transform
            elif name == "captions" and value is not None:
                path = self.root / value["file"]
                if digest(text := path.read_bytes()) != value["digest"]:
                    raise ValueError(f"{path} is not what was prepared. Copy the folder again, or prepare it again.")
                described[name] = json.loads(text)
            elif isinstance(value, Mapping):
                described[name] = _opened(self.root / value["file"], value["key"])
        dataset: Any = kind(**described, seed=self.seed if split == "train" else None)
        if isinstance(dataset, SinglePictures) and dataset.captions is None:
            random = dataset.transform.random_crop or dataset.transform.flip
            dataset = replace(dataset, seed=dataset.seed if random else None)
        return dataset


def prepare(data: PictureDataModule, folder: Path) -> dict[str, int]:
    """Make a folder for `PreparedFolder` of all pictures of a data module.

    The file of its contents is written last, and replaces one that is there. Started again after a kill, it goes on.

    Args:
        data: Has the pictures.
        folder: Where they go; it is made if need be.

    Returns:
        The number of examples of each split.

    Raises:
        ImageError: If a picture or a caption cannot be read.
        OSError: If the folder cannot be written, or there is no room in it.
        TypeError: If the data module gives anything but pictures with what belongs to them.
    """
    folder = Path(folder)
    data = copy.copy(data)
    data.cache, data._sets = folder, {}
    datasets = {split: data.dataset(split) for split in get_args(Split)}
    contents = {
        "data": type(data).__name__,
        "image_shape": data.image_shape,
        "num_classes": data.num_classes,
        "class_names": None if data.class_names is None else list(data.class_names),
        "splits": {split: _described(dataset, folder, split) for split, dataset in datasets.items()},
    }
    write_atomically(folder / CONTENTS, json.dumps({"digest": _digest(contents), "contents": contents}))
    return {split: len(dataset) for split, dataset in datasets.items()}  # type: ignore[arg-type]


def _described(dataset: Dataset[Any], folder: Path, split: str) -> dict[str, Any]:
    """A dataset as plain data, but for its pictures and captions, which are in files of the folder."""
    if type(dataset) not in _KINDS.values():
        raise TypeError(f"A {type(dataset).__name__} cannot be prepared: expected one of {', '.join(_KINDS)}.")
    described: dict[str, Any] = {"kind": type(dataset).__name__}
    for field in fields(dataset):  # type: ignore[arg-type]
        value = getattr(dataset, field.name)
        if isinstance(value, KeptPictures):
            described[field.name] = {"file": value.path.name, "key": value.key}
        elif isinstance(value, CropFlip):
            described[field.name] = asdict(value)
        elif field.name == "captions" and value is not None:
            text = json.dumps([list(value[i]) for i in range(len(dataset))])  # type: ignore[arg-type]
            described[field.name] = {"file": f"{split}_captions.json", "digest": digest(text.encode())}
            write_atomically(folder / described[field.name]["file"], text)
        elif field.name == "labels" and value is not None:
            described[field.name] = [int(label) for label in value]
        elif field.name != "seed":  # which is that of a run
            described[field.name] = value
    return described


def _opened(path: Path, key: str) -> KeptPictures:
    """The file of pictures that has a key."""
    found = KeptPictures(path)
    try:
        if found.key == key:
            return found
        fault = "it is not the one that was prepared"
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing. Copy the folder again, or prepare it again.") from None
    except CacheFileError as error:
        fault = str(error)
    raise ValueError(f"{path} cannot be used: {fault}. Copy the folder again, or prepare it again.")


def _read_contents(root: Path) -> dict[str, Any]:
    """What a folder of prepared pictures says of itself."""
    path = root / CONTENTS
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        contents: dict[str, Any] = written["contents"]
        if written["digest"] == _digest(contents):
            return contents
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{root} is no folder of prepared pictures, as it has no {CONTENTS}. "
            f"Make one with lightning-gen prepare --data ... --output {root}."
        ) from None
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path} is damaged or of another version. Copy the folder again, or prepare it again.")


def _digest(contents: Mapping[str, Any]) -> str:
    return digest(json.dumps([SCHEMA, contents], sort_keys=True).encode())
