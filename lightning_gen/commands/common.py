"""What commands that write pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from lightning_gen.commands.results import GRID
from lightning_gen.data.images import ImageError, Kernel, fit_image, image_endings
from lightning_gen.data.listing import find_images

Labels = int | list[int | str] | str
"""A class or several, by number or by name."""


def device_of(accelerator: str) -> torch.device:
    """The first device of an accelerator, by Lightning's name for it."""
    return Fabric(accelerator=accelerator, devices=1).device


def input_files(input: Path, output: Path) -> tuple[Sequence[Path], Path]:
    """The picture files of an input, one or a folder of them, and that folder, which the output must not be.

    The output may lie inside: what an earlier command has left there, and its overview beside it, are no input.
    """
    files: Sequence[Path]
    files, root = ([input], input.parent) if input.is_file() else (find_images(input), input)
    if output.resolve() == (input if names_file(input, output) else root).resolve():
        raise ValueError(f"The output {output} is the input's own; its files would be overwritten. Name another.")
    if not input.is_file() and output.resolve().is_relative_to(root.resolve()):
        inside = root / output.resolve().relative_to(root.resolve())
        own = inside.with_name(f"{inside.name}{GRID}")
        files = [file for file in files if not file.is_relative_to(inside) and file != own]
        if not files:
            raise FileNotFoundError(f"{input} holds no pictures but those of the output {output}.")
    return files, root


def names_file(input: Path, output: Path) -> bool:
    """Whether the result of one picture file is to have the name that the output is, of a picture file itself."""
    return input.is_file() and output.suffix.lower() in image_endings() and not output.is_dir()


def check_written(checkpoint: Path, does: str, model: Any) -> None:
    """Refuse a model whose pictures no file can hold, a word for what it does with them at hand."""
    channels = model.image_shape[0]
    if channels not in (1, 3):
        raise ValueError(f"{checkpoint} {does} pictures of {channels} channels, which files do not have.")


def fitted(pixels: Tensor, size: tuple[int, int], file: Path, kernel: Kernel | None, option: str) -> Tensor:
    """A picture of (height, width), which another one is made into only if that is wanted.

    Args:
        pixels: `[C, H, W]`, uint8 or float32 in `[0, 1]`.
        size: That of the model's pictures.
        file: Where they are from.
        kernel: Of the resize; None refuses pictures of other sizes.
        option: What would have them resized.

    Raises:
        ImageError: If they are of another size and not to be resized.
    """
    height, width = pixels.shape[-2:]
    if kernel is None and (height, width) != size:
        raise ImageError(
            f"{file} is {height} x {width} (height x width), but the model's pictures are {size[0]} x {size[1]}. "
            f"{option} makes it of their size."
        )
    return pixels if kernel is None else fit_image(pixels, size, kernel)


def classes_in_turn(model: Any, labels: Labels | None) -> list[int] | None:
    """The classes that pictures have in turn: those given, or all of the model's; None for a model without classes.

    Names can be given where the model knows `class_names`, as of the checkpoints of runs on data that has them. Where
    all names are themselves numbers, a number is a name: classes called 1 to 10 are asked for as 1 to 10.

    Raises:
        ValueError: If the model has no classes and labels are given, or one is unknown or out of range.
    """
    given = [labels] if isinstance(labels, int | str) else labels
    num_classes: int | None = getattr(model, "num_classes", None)
    if num_classes is None:
        if given is not None:
            raise ValueError(f"This {type(model).__name__} has no classes to choose from. Leave the labels out.")
        return None
    if given is None:
        return list(range(num_classes))
    names: list[str] = getattr(model, "class_names", None) or []
    known: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    # A command line has numbers where names look like some.
    known |= {int(name): number for number, name in enumerate(names) if name.isdecimal()}
    if not names or not all(name.isdecimal() for name in names):
        known |= {number: number for number in range(num_classes)}
    wrong = [str(label) for label in given if label not in known]
    if wrong or not given:
        allowed = f"lie in 0 .. {num_classes - 1}"
        if names:
            allowed += f", or be one of {', '.join(names[:20])}{', ...' if names[20:] else ''},"
        raise ValueError(
            f"Labels must {allowed} for this {type(model).__name__}, got {', '.join(wrong) or 'none at all'}."
        )
    return [known[label] for label in given]


def labels_of(numbers: Sequence[int], classes: Sequence[int] | None) -> Tensor | None:
    """The labels `[N]` of numbered pictures whose classes take turns."""
    return None if classes is None else torch.tensor([classes[number % len(classes)] for number in numbers])
