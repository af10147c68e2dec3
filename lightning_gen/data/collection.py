"""What data modules have in common whose pictures must be read, wherever they lie."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lightning_gen.data.augmentation import CropFlip, SinglePictures
from lightning_gen.data.base import ImageDataModule, Split
from lightning_gen.data.cache import cached
from lightning_gen.data.images import ImageError, background_color, check_channels, height_and_width, image_size
from lightning_gen.data.preparation import Cover, Keep, Preparation, Stretch
from lightning_gen.data.sources import Captions, EncodedSource, Source
from lightning_gen.files import cache_folder


class PictureDataModule(ImageDataModule):
    """Base of the data modules of picture files: how they are read.

    A subclass sets `image_size`, (height, width), and says in `left_out`, a sentence each, what it found and does not
    take. Pictures of items are uint8, and those of files of more than 8 bits are float32 in `[-1, 1]`. A batch with
    such a one is of floats, and so are all that a trainer has on its device.

    Args:
        channels: 3 for RGB, 1 for gray; pictures of the other kind are converted.
        background: Colour behind transparent pixels: any name or `#rrggbb` that Pillow knows.
        exact_decode: Whether JPEGs are decoded in full and then resized. By default one that is larger than is wanted
            is decoded at 1/2, 1/4 or 1/8 of its size, but at least twice that wanted, which is up to twice as fast.
            Photographs then differ by 0.2 to 1.4 of 255 levels in the mean, and by 15 at most.
        skip_broken: Whether picture files that cannot be read, as far as a look at all of them tells when the module is
            made (links to nothing, empty files, files that do not begin like a picture), are left out with a word.
        cache: Whether pictures are read and resized once, with what random crops need around them, and kept, so that
            later epochs and runs find them: in the cache folder (`$LIGHTNING_GEN_CACHE`, `~/.cache/lightning-gen`), or
            in a folder that is named. They are the same to the bit, and a change of the files or of how they are
            prepared is seen, and makes another file; delete those that are not needed. Crops and flips stay random. A
            file takes as many bytes as the resized pictures have values.
        **loader: As `ImageDataModule`.

    Raises:
        ValueError: If an argument is out of range.
        ImageError: If files are broken and not to be skipped; while loading, if one cannot be read.
        OSError: With `cache`, when training starts, if it cannot be written.
    """

    image_size: tuple[int, int]

    def __init__(
        self,
        *,
        channels: int = 3,
        background: str = "white",
        exact_decode: bool = False,
        skip_broken: bool = False,
        cache: bool | str | Path = False,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.channels = check_channels(channels)
        background_color(background)  # checked now rather than at the first transparent picture
        self.background = background
        self.exact_decode = exact_decode
        self.skip_broken = skip_broken
        if not (isinstance(cache, bool) or str(cache).strip()):
            raise ValueError("cache is empty. Name a folder for it, or set it to true or false.")
        self.cache = cache
        self.left_out: list[str] = []

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every picture; of each half of a pair."""
        return (self.channels, *self.image_size)

    def preparation(self, sizing: Cover | Keep | Stretch, **options: Any) -> Preparation:
        """How pictures are read and brought to a size; options are the others of `Preparation`."""
        return Preparation(
            sizing, channels=self.channels, background=self.background, exact_decode=self.exact_decode, **options
        )

    def kept(self, source: Source) -> Source:
        """A source itself or, if there is to be a cache, its pictures from there; all processes must call it."""
        if self.cache is False:
            return source
        return cached(source, cache_folder() / "pictures" if self.cache is True else Path(self.cache).expanduser())


class Collection(PictureDataModule):
    """Base of the data modules of plain collections, whose pictures may have class labels or captions.

    Pictures are resized, keeping their aspect ratio, to just cover `image_size`, and what sticks out is cropped off.

    Items are `{"image"}`, `[channels, *image_size]`, with labels also `{"label"}`, int64, and with
    captions also `{"caption"}`, a string: of several, one is drawn anew each time a training picture is shown, and
    evaluation has the first.

    Args:
        image_size: Size of the pictures given: (height, width), or an int for a square.
        crop: Which part of a training picture is kept, the central or a random one. Evaluation keeps the central one.
        flip: Whether training pictures are mirrored left to right, half of them.
        enlarge: Whether pictures that are smaller than `image_size` are enlarged. If not, all sizes are looked at when
            training starts, which reads the beginning of each file, and smaller ones are named.
        **reading: As `PictureDataModule` and `ImageDataModule`.

    Raises:
        ValueError: If an argument is out of range.
        ImageError: When training starts, if pictures are smaller and not to be enlarged.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 64,
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        enlarge: bool = True,
        batch_size: int = 64,
        **reading: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **reading)
        if crop not in ("center", "random"):
            raise ValueError(f"crop must be 'center' or 'random', got {crop!r}.")
        self.image_size = height_and_width("image_size", image_size)
        self.random_crop = crop == "random"
        self.flip = flip
        self.enlarge = enlarge

    @abstractmethod
    def source(self, split: Split, prepare: Preparation) -> Source:
        """The pictures of a split."""

    def labels_of(self, split: Split) -> Sequence[int] | NDArray[np.int64] | None:
        """The classes of the pictures of a split, from 0, if they have any."""
        return None

    def captions_of(self, split: Split) -> Captions | None:
        """The captions of the pictures of a split, if they have any."""
        return None

    def dataset(self, split: Split) -> Dataset[Any]:
        """The pictures of a split; to train on, augmented."""
        captions = self.captions_of(split)
        transform, prepare, is_random = self.reading(split, captions is not None)
        source = self.source(split, prepare)
        if not self.enlarge and isinstance(source, EncodedSource):
            check_none_is_smaller(source, self.image_size)
        seed = self.seed if is_random else None
        return SinglePictures(self.kept(source), transform, seed, self.labels_of(split), captions)

    def reading(self, split: Split, captioned: bool) -> tuple[CropFlip, Preparation, bool]:
        """What is random about the pictures of a split, how they are read before, and whether any of it is random."""
        training = split == "train"
        transform = CropFlip(self.image_size, self.random_crop and training, self.flip and training)
        prepare = self.preparation(Cover(self.image_size), center=None if transform.random_crop else self.image_size)
        return transform, prepare, training and (self.random_crop or self.flip or captioned)


def check_none_is_smaller(source: EncodedSource, size: tuple[int, int]) -> None:
    """Raise an `ImageError` that names the first pictures of a source that are smaller than (height, width)."""
    found = []
    for index in range(len(source)):
        height, width = image_size(source.encoded(index), name=source.name(index))
        if height < size[0] or width < size[1]:
            found.append(f"{source.name(index)} ({height} x {width})")
    if found:
        raise ImageError(
            f"{len(found)} of {len(source)} pictures are smaller than the {size[0]} x {size[1]} (height x width) asked "
            f"for: {', '.join(found[:3])}{', ...' if found[3:] else ''}. Lower image_size, remove them, or have them "
            "enlarged (enlarge: true)."
        )


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise a `ValueError` unless pictures can be split by these shares."""
    if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            "val_fraction and test_fraction must be above 0 and together below 1, "
            f"got {val_fraction} and {test_fraction}."
        )


def split_by_hash(
    places: Iterable[bytes], val_fraction: float, test_fraction: float, where: object
) -> dict[str, NDArray[np.bool_]]:
    """Split pictures by the hash of their places: the same split on every machine and with every seed.

    Args:
        places: Of all pictures.
        val_fraction: Share of them for validation, which gets one at least.
        test_fraction: Likewise for testing.
        where: They are, for messages.

    Returns:
        For "train", "val" and "test", which of the pictures are in it.

    Raises:
        ValueError: If there are too few.
    """
    hashes = bytearray()
    for place in places:
        hashes += hashlib.sha256(place).digest()[:8]  # which tell any number of files apart
    total = len(hashes) // 8
    num_val, num_test = (max(1, round(share * total)) for share in (val_fraction, test_fraction))
    if num_val + num_test >= total:
        raise ValueError(f"{where} holds {total} picture(s): too few to split into train, val and test.")
    by_hash = np.frombuffer(hashes, ">u8").argsort(kind="stable")
    ranks = np.empty_like(by_hash)
    ranks[by_hash] = np.arange(total)
    val, held_out = ranks < num_val, ranks < num_val + num_test
    return {"train": ~held_out, "val": val, "test": held_out & ~val}
