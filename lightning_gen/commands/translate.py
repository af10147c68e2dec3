"""`lightning-gen translate`: a checkpoint and pictures in, pictures out."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from lightning_gen.capabilities import Direction, Translates
from lightning_gen.commands.common import input_files, names_file
from lightning_gen.commands.files_through import FilesThrough, PictureFiles, run_through
from lightning_gen.commands.results import Results, check_new
from lightning_gen.commands.what_next import say_next
from lightning_gen.data.images import background_color
from lightning_gen.generative import load_model
from lightning_gen.hyperparameters import accepts


def translate(
    checkpoint: Path,
    input: Path,
    output: Path,
    direction: Direction = "AtoB",
    tile: int | None = None,
    background: str = "white",
    overwrite: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: str = "32-true",
    num_workers: int = 0,
) -> int:
    """Translate one picture file or all of a folder; names, sub-folders, formats and sizes are kept.

    A file can also become a file of another name, whose ending says its format: --input a.jpg --output b.png.

    A file that cannot be read or translated is skipped; the first ones are named, all are counted, and the exit code is
    then 1.

    Args:
        checkpoint: Checkpoint of a translation model, a file or RUN or RUN/best; it is all that is needed.
        input: A picture file, or a folder that is searched recursively.
        output: Folder for the results; made if needed. It may lie inside the input, whose pictures are then all others.
            Or, for one file, the file to write.
        direction: AtoB or BtoA.
        tile: Height and width of the tiles in which larger pictures are translated, where memory does not suffice for
            the whole: tiles overlap by a quarter and are blended. Local networks give the same as for the whole, up to
            rounding; a norm over the picture (instance norm) goes by each tile, which changes colours a little.
        background: Colour behind transparent pixels while they are translated; the transparency itself is kept.
        overwrite: Whether to write into a folder that holds pictures already, or over a file. Those of the same names
            are replaced.
        accelerator: As in Lightning: auto, cpu, gpu, ...
        devices: How many devices share the files.
        precision: As in Lightning: 32-true, bf16-mixed, 16-mixed, ...
        num_workers: Processes that read files ahead, for each device.
    """
    model = load_model(checkpoint, Translates, "does not translate pictures")
    if direction not in model.directions:
        raise ValueError(f"{checkpoint} translates {' and '.join(model.directions)}, not {direction}.")
    background_color(background)
    files, root = input_files(input, output)
    if names_file(input, output):
        check_new(output, overwrite)
    else:  # looks at the folder; what is written has its names from the input
        Results(output, None, overwrite, grid=False)
    change = partial(model.translate, direction=direction)
    if tile is not None:
        if not accepts(model.translate, "tile"):
            raise ValueError(f"{type(model).__name__} does not translate in tiles. Leave --tile out.")
        change = partial(change, tile=tile)
    through = FilesThrough(model, change, root, output)
    given = PictureFiles(files, model.image_shape[0], background)
    is_first = run_through(
        through, given, "translated",
        accelerator=accelerator, devices=devices, precision=precision, num_workers=num_workers,
    )  # fmt: skip
    if is_first and len(through.failures) < len(files):
        ways = [each for each in model.directions if each != direction]
        back = [f"translate --checkpoint {{}} --input PICTURES --output FOLDER --direction {way}" for way in ways]
        compare = f"evaluate --images {shlex.quote(str(output))} --reference PICTURES_OF_{direction[-1]}"
        say_next(checkpoint, *back, *([] if names_file(input, output) else [compare]))
    return 1 if through.failures else 0
