"""Where pictures come from: sequences of prepared pictures, with nothing random about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lightning_gen.data.images import ImageError
from lightning_gen.data.preparation import Preparation


class Source(Protocol):
    """Prepared pictures by number, the same ones in every process."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> Tensor:
        """Pixels `[..., C, H, W]`, uint8, or float32 in `[0, 1]` of files of more than 8 bits.

        Raises:
            ImageError: If the picture cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """What a message calls a picture."""
        ...

    def recipe(self) -> Any:
        """All that decides the pictures, for `fingerprint`."""
        ...


@runtime_checkable
class EncodedSource(Source, Protocol):
    """A source that reads each picture from the content of a file."""

    prepare: Preparation

    def encoded(self, index: int) -> bytes | Path:
        """That content, or where the file lies.

        Raises:
            ImageError: If it is not there.
        """
        ...


class Captions(Protocol):
    """The captions of pictures, by their numbers."""

    def __getitem__(self, index: int) -> Sequence[str]:
        """Of one picture, at least one."""
        ...


@dataclass(frozen=True, eq=False)
class FileSource:
    """Pictures in files of their own."""

    files: Sequence[Path]
    prepare: Preparation

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.prepare(self.files[index])

    def encoded(self, index: int) -> Path:
        """The path."""
        return self.files[index]

    def name(self, index: int) -> str:
        """The path."""
        return str(self.files[index])

    def recipe(self) -> Any:
        """The files and the preparation."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class CaptionFiles:
    """The captions of pictures, each in a text file beside it."""

    files: Sequence[Path]

    def __getitem__(self, index: int) -> list[str]:
        return captions_of(self.files[index])


class CaptionError(ImageError):
    """A picture has no caption that can be read: `path` is the picture, `fault` what is wrong in a few words."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} has {fault}: {caption_file(path).name} must hold one caption a line, in UTF-8.")
        self.path, self.fault = path, fault


def caption_file(path: Path) -> Path:
    """Where the captions of a picture file stand."""
    return path.with_suffix(".txt")


def captions_of(path: Path) -> list[str]:
    """The captions of a picture, in the text file beside it.

    Raises:
        CaptionError: If the file is missing, no text or empty.
    """
    try:
        lines = caption_file(path).read_text(encoding="utf-8-sig").splitlines()
        if captions := [line.strip() for line in lines if line.strip()]:
            return captions
        raise CaptionError(path, "an empty caption")
    except FileNotFoundError:
        raise CaptionError(path, "no caption") from None
    except UnicodeDecodeError:
        raise CaptionError(path, "a caption that is not UTF-8") from None
    except OSError as error:
        raise CaptionError(path, f"a caption that cannot be read ({error.strerror})") from error
