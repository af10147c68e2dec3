"""Data modules over folders of picture files: unpaired domains, pairs side by side, and plain collections."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lightning_gen.data.augmentation import CropFlip, PairedPictures, UnpairedPictures
from lightning_gen.data.base import Split
from lightning_gen.data.collection import Collection, PictureDataModule, check_fractions, split_by_hash
from lightning_gen.data.images import ImageError, height_and_width
from lightning_gen.data.listing import Files, Search, count_endings, existing_root, in_words, list_images
from lightning_gen.data.preparation import Keep, Preparation, Stretch
from lightning_gen.data.sources import (
    CaptionError,
    CaptionFiles,
    Captions,
    FileSource,
    Source,
    captions_of,
)
from lightning_gen.processes import everywhere, world_size


class FolderDataModule(PictureDataModule):
    """Base of the data modules of folders, which see to it that all processes see the same files.

    A subclass sets `image_size`, (height, width), and `files`, and says in `layout` what the folder must hold. Of
    10,000 pictures and more, the list is kept from one run to the next, with what is wrong with them; `list_images`
    says when it is made anew.

    Args:
        root: The folder of the data set.
        exclude: Files that are left out, by their places below root, with slashes, or by patterns of these, such as
            "train/blurred/*".
        **reading: As `PictureDataModule` and `ImageDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing or holds no pictures.
        ValueError, ImageError: As `PictureDataModule`.
    """

    layout = ""

    def __init__(self, root: str | Path, *, exclude: Sequence[str] = (), **reading: Any) -> None:
        super().__init__(**reading)
        self.root = existing_root(root, self.layout)
        self.exclude = list(exclude)
        self.files: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Compare what the processes have found; a `RuntimeError` if they differ."""
        if world_size() == 1:
            return
        groups = [group for files in self.files.values() for group in (files if isinstance(files, list) else [files])]
        # By their places below root, which may be another on each machine.
        found = [(files.root.relative_to(self.root).as_posix(), files.digest()) for files in groups]
        if any(others != found for others in everywhere(found)):
            raise RuntimeError(
                f"{type(self).__name__}: the processes have found different pictures in {self.root}. It must hold the "
                "same files on all machines, and stay as it is while a run starts."
            )


class UnpairedImageFolder(FolderDataModule):
    """Two domains without correspondence, in the layout of CycleGAN (Zhu et al. 2017, arXiv:1703.10593).

    `root` holds the folders `trainA`, `trainB`, `testA` and `testB`, searched recursively, and may hold `valA` and
    `valB`. Validation without `val` folders uses the test folders, and a test without `test` folders uses the
    validation folders.

    Training pictures are resized, then cropped at random, then flipped at random, as in the paper. An epoch has
    max(|A|, |B|) examples: each goes with the A picture of its index (modulo |A|) and with a B picture drawn at random.
    Evaluation pictures come in order, modulo the size of their domain, resized straight to `crop` (or, where `resize`
    is None, cut from the centre), without a flip.

    Items are `{"A", "B"}`, `[channels, *crop]` as `PictureDataModule` has them, and with `paired_evaluation` also
    `{"paired": True}` in evaluation.

    Args:
        root: The folder of the data set.
        resize: Size before the crop: (height, width), an int for a square, or None to leave pictures as they are. The
            aspect ratio is not kept.
        crop: Size of the pictures given: (height, width), or an int for a square.
        flip: Whether training pictures are mirrored left to right, half of them, A and B independently.
        paired_evaluation: Whether evaluation pictures of A and B with the same name (up to its ending) show the same
            scene, so that translations can be compared with the truth.
        names: What A and B are called on panels and pages, such as ("horse", "zebra"); None leaves them A and B.
        **reading: As `FolderDataModule` and `ImageDataModule`; the papers take a batch_size of 1.

    Raises:
        ValueError: If an argument is out of range, or `paired_evaluation` is asked for and the names differ.
        FileNotFoundError: As `FolderDataModule`.
        ImageError: Likewise; while loading, if a picture is smaller than the crop.
    """

    layout = "UnpairedImageFolder expects trainA, trainB, testA and testB (and, if you like, valA and valB)."

    def __init__(
        self,
        root: str | Path,
        *,
        resize: int | tuple[int, int] | None = 286,
        crop: int | tuple[int, int] = 256,
        flip: bool = True,
        paired_evaluation: bool = False,
        # Not `domains`, as of built-in data: a configuration of these that is laid under would name the user's folders.
        names: tuple[str, str] | None = None,
        **reading: Any,
    ) -> None:
        super().__init__(root, **reading)
        self.domains = _two_names(names)
        self.resize, self.image_size = _resize_and_crop(resize, crop)
        self.flip = flip
        self.paired_evaluation = paired_evaluation
        found = _find_splits(self, sides=("A", "B"))
        self.files = {split: [search.images for search in searches] for split, searches in found.items()}
        if paired_evaluation:
            for split in ("val", "test"):
                self.files[split] = _pair_by_name(self.files[split])

    def dataset(self, split: Split) -> Dataset[Any]:
        """Pictures of A, each with a random one of B and augmented to train on, else in order."""
        source_A, source_B = (_resized(self, files, split) for files in self.files[split])
        transform, training = CropFlip(self.image_size, random_crop=True, flip=self.flip), split == "train"
        seed = self.seed if training else None
        return UnpairedPictures(source_A, source_B, transform, seed, paired=self.paired_evaluation and not training)


class PairedImageFolder(FolderDataModule):
    """Pairs side by side in one file, A left and B right: the layout of pix2pix (Isola et al. 2017, arXiv:1611.07004).

    `root` holds the folders `train`, `val` and `test`, searched recursively; of `val` and `test` one is enough and then
    serves for both. Training pairs are resized, then cropped at random, then flipped at random, both halves alike.
    Evaluation pairs come in order, resized straight to `crop` (or, where `resize` is None, cut from the centre),
    without a flip.

    Items are `{"A", "B", "paired": True}` in every split, pictures `[channels, *crop]` as `PictureDataModule` has them.

    Args:
        root: The folder of the data set.
        resize: Size of each half before the crop: (height, width), an int for a square, or None to leave it as it is.
            The aspect ratio is not kept.
        crop: Size of the pictures given: (height, width), or an int for a square.
        flip: Whether training pairs are mirrored left to right, half of them. (A remains the left half of the file.)
        swap: Whether A is the right half and B the left one (the files' direction BtoA in pix2pix).
        names: What A and B are called on panels and pages, such as ("map", "photo"); None leaves them A and B.
        **reading: As `FolderDataModule` and `ImageDataModule`; the papers take a batch_size of 1 to 10 by data set.

    Raises:
        ValueError: If an argument is out of range.
        FileNotFoundError: As `FolderDataModule`.
        ImageError: Likewise; while loading, if a file has an odd width, or halves smaller than the crop.
    """

    layout = "PairedImageFolder expects train, and val or test, holding A|B pairs."

    def __init__(
        self,
        root: str | Path,
        *,
        resize: int | tuple[int, int] | None = 286,
        crop: int | tuple[int, int] = 256,
        flip: bool = True,
        swap: bool = False,
        names: tuple[str, str] | None = None,
        **reading: Any,
    ) -> None:
        super().__init__(root, **reading)
        self.domains = _two_names(names)
        self.resize, self.image_size = _resize_and_crop(resize, crop)
        self.flip = flip
        self.swap = swap
        found = _find_splits(self, sides=("",))
        self.files = {split: search.images for split, (search,) in found.items()}

    def dataset(self, split: Split) -> Dataset[Any]:
        """The pairs of a split; to train on, augmented."""
        source = _resized(self, self.files[split], split, halves=True)
        transform = CropFlip(self.image_size, random_crop=True, flip=self.flip)
        return PairedPictures(source, transform, self.seed if split == "train" else None, self.swap)


class ImageFolder(Collection, FolderDataModule):
    """A collection of pictures, with class labels or captions if wanted.

    `root` holds the folders `train`, and `val` or `test` or both (one then serves for both). Where there is `train`
    alone, or none of the three, all its pictures are split by a hash of their place below it: the same split on every
    machine and with every seed. With `labels`, the first folder below names the class.

    With `captions`, each picture has a text file (UTF-8) of its name beside it, as a.png and a.txt, with a caption in
    each line.

    Sizes, crops and what items hold are as `Collection` says.

    Args:
        root: The folder of the data set.
        labels: Whether the folders are classes, numbered in the order of their names, in which digits count as numbers.
        captions: Whether each picture has captions in a file beside it.
        val_fraction: Share of the pictures split off for validation, where no folder settles it.
        test_fraction: Share of the pictures split off for testing, where no folder settles it.
        **reading: As `Collection`, `FolderDataModule`, `PictureDataModule` and `ImageDataModule`.

    Raises:
        ValueError: If an argument is out of range, there are too few pictures to split, or classes are asked for and a
            picture has none, or a class no picture.
        FileNotFoundError, ImageError: As `FolderDataModule`. Captions that are missing, empty or without a picture
            count as broken files, and are left out with their pictures where those are to be skipped.
    """

    layout = "ImageFolder expects train beside val or test, or none of the three."

    def __init__(
        self,
        root: str | Path,
        *,
        labels: bool = False,
        captions: bool = False,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        **reading: Any,
    ) -> None:
        super().__init__(root=root, **reading)
        check_fractions(val_fraction, test_fraction)
        self.labels = labels
        self.captioned = captions

        folder = self.root / "train" if (self.root / "train").is_dir() else self.root
        self._class_place = len(folder.parts) - len(self.root.parts)  # of the class folder in a path below root
        split_by_folder = any((self.root / split).is_dir() for split in ("val", "test"))
        if split_by_folder:
            found = _find_splits(self, sides=("",), captions=captions)
            self.files = {split: search.images for split, (search,) in found.items()}
            search = found["train"][0]
        else:
            search = list_images(folder, *([fault_of_captions] if captions else [])).checked()
            (search,) = _usable(self, [search], captions)
            files = search.images.sorted()
            parts = split_by_hash(files.encoded_places(), val_fraction, test_fraction, folder)
            self.files = {split: files[part] for split, part in parts.items()}
        self.class_names = self._find_classes(search, split_by_folder) if labels else None

    @property
    def num_classes(self) -> int | None:
        """Number of class folders, or None without `labels`."""
        return len(self.class_names) if self.class_names else None

    def source(self, split: Split, prepare: Preparation) -> Source:
        """The files of a split."""
        return FileSource(self.files[split], prepare)

    def labels_of(self, split: Split) -> NDArray[np.int64] | None:
        """The number of each picture's class folder, with `labels`."""
        if not self.class_names:
            return None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        examples, which = self.files[split].by_folder()
        return np.array([numbers[self._class_of(path)] for path in examples])[which]

    def captions_of(self, split: Split) -> Captions | None:
        """Those in the text files beside the pictures, with `captions`."""
        return CaptionFiles(self.files[split]) if self.captioned else None

    def captions(self) -> Iterator[str]:
        """All captions of training pictures, from which a tokenizer may learn.

        Raises:
            ValueError: If the pictures have none.
        """
        if not self.captioned:
            raise ValueError("This ImageFolder has no captions. Give it captions=True (--data.captions true).")
        return (caption for path in self.files["train"] for caption in captions_of(path))

    def _find_classes(self, search: Search, split_by_folder: bool) -> list[str]:
        names = {split: set(map(self._class_of, files.by_folder()[0])) for split, files in self.files.items()}
        unknown = (names["val"] | names["test"]) - names["train"]
        found = sorted(names["train"] | unknown, key=natural_order)
        if split_by_folder and unknown:
            raise ValueError(
                f"{self.root}: no training pictures are of class {', '.join(sorted(unknown))}. Train has the classes "
                f"{', '.join(sorted(names['train'], key=natural_order))}. Name the class folders of val and test alike."
            )
        if empty := [folder for folder in search.folders if folder.name not in found]:
            there = {f: count_endings(_inside(search.others, f.name)) for f in empty}
            holding = ", ".join(f"{f.name} (it holds {there[f] or 'nothing of its own'})" for f in sorted(empty))
            raise ValueError(
                f"{search.folder}: no picture that can be read is of class {holding}. Convert the pictures, or move "
                "the folder away if it is no class."
            )
        return found

    def _class_of(self, path: Path) -> str:
        parts = path.relative_to(self.root).parts
        if len(parts) < self._class_place + 2:
            raise ValueError(f"{path} is in no class folder. Move it into one, or set labels to false.")
        return parts[self._class_place]


def _resize_and_crop(
    resize: int | tuple[int, int] | None, crop: int | tuple[int, int]
) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Both as (height, width), checked."""
    before = None if resize is None else height_and_width("resize", resize)
    after = height_and_width("crop", crop)
    if before and (before[0] < after[0] or before[1] < after[1]):
        raise ValueError(f"resize must be as large as crop or larger, both ways, got {resize} and {crop}.")
    return before, after


def _two_names(names: tuple[str, str] | None) -> tuple[str, str] | None:
    """Those of A and B; a `ValueError` unless they are two that can be told apart."""
    if names is None:
        return None
    if len(names) != 2 or not all(names) or len({*names}) == 1:
        raise ValueError(f"names must be two different ones, of A and of B, got {names}.")
    return names[0], names[1]


def _resized(
    module: UnpairedImageFolder | PairedImageFolder, files: Sequence[Path], split: Split, halves: bool = False
) -> Source:
    """Pictures to crop from; to evaluate with, they are brought straight to the size of the crop, or its center."""
    size, center = (module.resize, None) if split == "train" else (module.image_size, module.image_size)
    sizing = Stretch(size) if module.resize and size else Keep()
    return module.kept(FileSource(files, module.preparation(sizing, center=center, halves=halves)))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key to sort names by, in which digits count as numbers: "3" comes before "12"."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _find_splits(
    module: FolderDataModule, *, sides: tuple[str, ...], captions: bool = False
) -> dict[str, list[Search]]:
    """What is in train, val and test, for each side; of val and test, one may stand in for the other."""
    root = module.root
    looks = [fault_of_captions] if captions else []
    found: dict[str, list[Search]] = {}
    for split in ("train", "val", "test"):
        folders = [root / f"{split}{side}" for side in sides]
        required = split == "train" or (split == "test" and "val" not in found)
        if required or any(folder.is_dir() for folder in folders):
            try:
                found[split] = [list_images(folder, *looks).checked() for folder in folders]
            except FileNotFoundError as error:
                names = sorted(path.name for path in root.iterdir())
                there = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                raise FileNotFoundError(f"{error} {module.layout} {root} holds: {there or 'nothing'}.") from None
    searches = [search for searches in found.values() for search in searches]
    usable = iter(_usable(module, searches, captions))
    found = {split: [next(usable) for _ in searches] for split, searches in found.items()}
    return {"val": found.get("test", []), "test": found.get("val", [])} | found


def _usable(module: FolderDataModule, searches: Sequence[Search], captions: bool = False) -> list[Search]:
    """Searches without the files that cannot be read, if these are to be skipped, with a word for what is left out."""
    root = module.root
    if module.exclude:
        searches = [_without_excluded(module, search) for search in searches]
    total = sum(len(search.images) for search in searches)
    left_out = [search.others.where(_is_no_caption) if captions else search.others for search in searches]
    if any(left_out):
        said = f"{root}: {total} picture files; left out by their endings: {count_endings(*left_out)}."
        module.left_out.append(said)
        rank_zero_info(said)
    faults = [{p: f for search in searches for p, f in search.faults[look].items()} for look in range(1 + captions)]
    if captions:
        faults[1] |= {path: "a caption without a picture" for search in searches for path in _lonely_captions(search)}
    wrong = ["picture files cannot be read", "pictures lack a caption, or it a picture"]
    words = [in_words(found, total, root, what) for found, what in zip(faults, wrong, strict=False) if found]
    if words:
        if not module.skip_broken:
            raise ImageError(f"{' '.join(words)} Mend or remove them, or leave them out with skip_broken: true.")
        said = f"{' '.join(words)} They are left out."
        module.left_out.append(said)
        rank_zero_warn(said)
    return [
        replace(search, images=search.images.without(set[Path]().union(*search.faults))).checked()
        for search in searches
    ]


def _without_excluded(module: FolderDataModule, search: Search) -> Search:
    """A search without the files that are to be left out, with a word for how many these are."""
    named, below = set(module.exclude), search.folder.relative_to(module.root)
    patterns = [re.compile(fnmatch.translate(pattern)) for pattern in module.exclude if re.search(r"[*?[]", pattern)]

    def stays(place: str) -> bool:
        place = (below / place).as_posix()
        return place not in named and not any(pattern.match(place) for pattern in patterns)

    images = search.images.where(stays)
    if gone := len(search.images) - len(images):
        module.left_out.append(f"{search.folder}: {gone} of {len(search.images)} picture files are excluded.")
    kept = set(images) if any(search.faults) else set[Path]()
    faults = [{path: fault for path, fault in found.items() if path in kept} for found in search.faults]
    return replace(search, images=images, faults=faults)


def fault_of_captions(path: Path) -> str:
    """What is wrong with the captions of a picture file, or ""."""
    try:
        captions_of(path)
        return ""
    except CaptionError as error:
        return error.fault


def _is_no_caption(place: str) -> bool:
    return not place.endswith(".txt")


def _lonely_captions(search: Search) -> Files:
    """Text files that belong to no picture."""
    told = {_stem(place) for place in search.images.places()}
    return search.others.where(lambda place: place.endswith(".txt") and _stem(place) not in told)


def _stem(place: str) -> str:
    """The place of a file without its ending, which it must have."""
    return place[: place.rindex(".")]


def _inside(files: Files, folder: str) -> Files:
    return files.where(lambda place: place.startswith(f"{folder}/"))


def _pair_by_name(sides: list[Files]) -> list[Files]:
    """The pictures of A and of B, both in the order of the names that they share, which must be all."""
    named: list[dict[str, int]] = [{}, {}]
    for numbers, files in zip(named, sides, strict=True):
        for number, place in enumerate(files.places()):
            first = numbers.setdefault(_stem(place), number)
            if first != number:
                raise ValueError(
                    f"paired_evaluation: {files[first]} and {files[number]} have the same name. Remove one."
                )
    for here, there, side in ((0, 1, "B"), (1, 0, "A")):
        if alone := [str(sides[here][number]) for name, number in named[here].items() if name not in named[there]]:
            raise ValueError(
                "paired_evaluation needs each evaluation picture in both domains under the same name; "
                f"without a partner in {side} are {len(alone)}: {', '.join(alone[:5])}{', ...' if alone[5:] else ''}"
            )
    return [
        files[np.array([numbers[name] for name in sorted(numbers)])]
        for numbers, files in zip(named, sides, strict=True)
    ]
