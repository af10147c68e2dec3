"""`lightning-gen reconstruct`: a checkpoint and pictures in, what is left of them out."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from lightning_gen.capabilities import Reconstructs
from lightning_gen.commands.common import check_written, input_files
from lightning_gen.commands.files_through import FilesThrough, PictureFiles, run_through
from lightning_gen.commands.results import Results
from lightning_gen.commands.what_next import say_next
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import Kernel, background_color
from lightning_gen.generative import load_model

MAX_GRID = 64  # pictures in the overview
ROWS = 16  # of the overview, above which another two columns begin


def reconstruct(
    checkpoint: Path,
    input: Path,
    output: Path,
    side_by_side: bool = False,
    resize: Kernel | None = None,
    batch_size: int = 64,
    background: str = "white",
    overwrite: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: str = "32-true",
    num_workers: int = 0,
) -> int:
    """Encode one picture file, or all of a folder, and decode them again; names, sub-folders and formats are kept.

    The first 64 stand beside their originals in OUTPUT_grid.png, beside the folder.

    A file that cannot be read, or has another size than the model's pictures, is skipped; the first ones are named, all
    are counted, and the exit code is then 1.

    Args:
        checkpoint: Checkpoint of a model that reconstructs pictures, a file or RUN or RUN/best; it is all that is
            needed.
        input: A picture file, or a folder that is searched recursively.
        output: Folder for the results; made if needed.
        side_by_side: Whether each file has the original at the left of its reconstruction, twice as wide.
        resize: Brings pictures of another size to that of the model's by this kernel, with antialiasing: bicubic or
            bilinear. They are cut, at the center, to the model's aspect ratio first.
        batch_size: Pictures reconstructed at once. (Another one rounds sums of floats in another order.)
        background: Colour behind transparent pixels while they are reconstructed; the transparency itself is kept.
        overwrite: Whether to write into a folder that holds pictures already. Those of the same names are replaced.
        accelerator: As in Lightning: auto, cpu, gpu, ...
        devices: How many devices share the files.
        precision: As in Lightning: 32-true, bf16-mixed, 16-mixed, ...
        num_workers: Processes that read files ahead, for each device.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    model = load_model(checkpoint, Reconstructs, "reconstructs no pictures")
    check_written(checkpoint, "reconstructs", model)
    background_color(background)
    files, root = input_files(input, output)
    results = Results(output, None, overwrite)
    channels, *size = model.image_shape
    through = FilesThrough(model, model.reconstruct, root, output, beside=side_by_side, shown=MAX_GRID)
    given = PictureFiles(files, channels, background, (size[0], size[1]), resize)
    is_first = run_through(
        through, given, "reconstructed",
        batch_size=batch_size, accelerator=accelerator, devices=devices, precision=precision, num_workers=num_workers,
    )  # fmt: skip
    if is_first and through.pairs:
        results.overview(_grid(list(through.pairs.values())))
        say_next(checkpoint, "evaluate --checkpoint {}")
    return 1 if through.failures else 0


def _grid(pairs: list[tuple[Tensor, Tensor]]) -> Image.Image:
    """Originals and reconstructions in neighbouring columns, of which there are as many as it takes."""
    times = -(-len(pairs) // ROWS)
    columns = [zip(*pairs[start::times], strict=True) for start in range(times)]
    titles = ("original", "reconstruction")
    return picture_grid([pair for column in columns for pair in zip(titles, column, strict=True)])
