"""`lightning-gen complete`: a checkpoint and pictures with a part hidden in, whole pictures out."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightning_gen.capabilities import Completes
from lightning_gen.commands.common import (
    Labels,
    check_written,
    classes_in_turn,
    device_of,
    fitted,
    input_files,
    labels_of,
)
from lightning_gen.commands.results import Results, Skipped
from lightning_gen.commands.what_next import say_next
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import (
    ImageError,
    Kernel,
    background_color,
    read_image,
    to_float,
    to_uint8,
)
from lightning_gen.generative import load_model
from lightning_gen.losses.categorical import check_temperature, images_to_levels, levels_to_images
from lightning_gen.randomness import generator_for
from lightning_gen.settings import checked_settings

MAX_ROWS = 50  # pictures in the overview


def complete(
    checkpoint: Path,
    input: Path,
    output: Path,
    mask: str = "bottom",
    samples: int = 5,
    labels: Labels | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    sampling: dict[str, Any] | None = None,
    resize: bool = False,
    background: str = "white",
    limit: int | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Hide a part of one picture file, or of all of a folder, and draw it anew several times.

    For each picture NAME it writes OUTPUT/completions/NAME_0.png, NAME_1.png and so on, and OUTPUT/strips/NAME.png with
    the occluded picture, its completions and the original side by side; OUTPUT_grid.png, beside the folder, has the
    first 50 strips under each other.

    Pictures go to the nearest of the model's levels first, which is the original then; its known pixels stay bit for
    bit. What is drawn depends on the checkpoint, the seed, the picture's place among the sorted files, and `samples`.

    A file that cannot be read, or has another size than the model's pictures, is skipped; the first ones are named, all
    are counted, and the exit code is then 1.

    Args:
        checkpoint: Checkpoint of a model that completes pictures, a file or RUN or RUN/best; it is all that is needed.
        input: A picture file, or a folder that is searched recursively.
        output: Folder for the results; made if needed.
        mask: What is hidden: the top, bottom, left or right half (of an odd number of pixels the smaller part), or the
            center, of half the height and half the width. Or a picture file of the size of the model's pictures: what
            is black in it, or darker than half, is hidden, and what is white is known.
        samples: Completions of each picture, which are drawn at once.
        labels: A class by its number or name, or several as [0,1,2] or [cat,dog], which the completions of a picture
            have in turn. By default all classes take turns.
        seed: Of the noise, 0 or more.
        temperature: 1 draws from the model, 0 takes the likeliest level of each pixel.
        sampling: Other settings of the model's own `complete`, each an option.
        resize: Whether a picture of another size is cut, at the center, to the model's aspect ratio and then resized.
        background: Colour behind transparent pixels.
        limit: How many files are taken, the first in order; by default all.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    for name, number in (("samples", samples), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    check_temperature(temperature)
    background_color(background)
    model = load_model(checkpoint, Completes, "does not complete pictures")
    settings = checked_settings(model, {"temperature": temperature, **(sampling or {})}, method="complete")
    check_written(checkpoint, "completes", model)
    channels, size = model.image_shape[0], model.image_shape[1:]
    kernel: Kernel | None = "bicubic" if resize else None
    turns = labels_of(range(samples), classes_in_turn(model, labels))
    known = known_pixels(mask, size)
    files, names = _files_and_names(input, output)
    results = Results(output, r"(completions|strips)/.*\.png", overwrite)
    model.to(device_of(accelerator))

    rows: list[list[Tensor]] = []
    skipped = Skipped()
    for number, (file, name) in enumerate(list(zip(files, names, strict=True))[:limit]):
        generator = generator_for(seed, number)
        try:
            pixels = fitted(read_image(file, channels, background), size, file, kernel, "--resize true")
        except ImageError as error:
            skipped.add(file, str(error))
            continue
        image = levels_to_images(images_to_levels(to_float(pixels), model.num_levels, validate=False), model.num_levels)
        images = model.complete(
            image.repeat(samples, 1, 1, 1).to(model.device),
            known.to(model.device),
            labels=turns,
            generator=generator,
            **settings,
        ).cpu()
        for i, completion in enumerate(images):
            results.write(f"completions/{name}_{i}.png", completion)
        row = list(to_uint8(torch.stack([image.where(known, 0.0), *images, image])))
        strip = results.file(f"strips/{name}.png")
        strip.parent.mkdir(parents=True, exist_ok=True)
        _grid([row]).save(strip)
        rows += [row] if len(rows) < MAX_ROWS else []
    if rows:
        results.overview(_grid(rows))
    skipped.count()
    total = min(len(files), limit or len(files))
    print(f"{total - len(skipped)} of {total} pictures completed into {output}")
    if rows:
        given = shlex.quote(str(input))
        say_next(checkpoint, f"complete --checkpoint {{}} --input {given} --output FOLDER --seed {seed + 1}")
    return 1 if skipped else 0


def known_pixels(mask: str, size: tuple[int, int]) -> Tensor:
    """Where a picture of (height, width) is known, bool `[height, width]`, by the mask as `complete` takes it.

    Raises:
        FileNotFoundError: If the mask is none of these.
        ImageError: If the file cannot be read.
        ValueError: If the file has another size, or if it hides nothing or everything.
    """
    height, width = size
    known = torch.ones(height, width, dtype=torch.bool)
    h, w = height // 2, width // 2
    top, left = (height - h) // 2, (width - w) // 2
    hidden = {
        "top": known[:h],
        "bottom": known[height - h :],
        "left": known[:, :w],
        "right": known[:, width - w :],
        "center": known[top : top + h, left : left + w],
    }
    if mask in hidden:
        hidden[mask].fill_(False)
    elif not Path(mask).is_file():
        raise FileNotFoundError(
            f"There is no mask {mask}. It must be top, bottom, left, right or center, which is then hidden, or a "
            "picture file, black where pixels are hidden."
        )
    else:
        known = to_float(read_image(mask, channels=1))[0] >= 0
        if known.shape != (height, width):
            raise ValueError(
                f"The mask {mask} is {known.shape[0]} x {known.shape[1]} (height x width), but the model's pictures "
                f"are {height} x {width}. Make it of their size."
            )
    if known.all() or not known.any():
        what = "hides nothing" if known.all() else "hides everything, for which there is `lightning-gen sample`"
        raise ValueError(f"The mask {mask} {what}. Of {height} x {width} pixels some must be hidden and some known.")
    return known


def _files_and_names(input: Path, output: Path) -> tuple[Sequence[Path], list[str]]:
    """The pictures, and what their results are called: their place below the input, without the ending."""
    files, root = input_files(input, output)
    names = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    name, number = Counter(names).most_common(1)[0]
    if number > 1:
        raise ValueError(f"{number} pictures of {input} are called {name}, as would be their results. Rename them.")
    return files, names


def _grid(rows: list[list[Tensor]]) -> Image.Image:
    """Rows of an occluded picture, its completions and the original, under their titles."""
    columns = list(zip(*rows, strict=True))
    titles = ["occluded", *map(str, range(len(columns) - 2)), "original"]
    return picture_grid(list(zip(titles, columns, strict=True)))
