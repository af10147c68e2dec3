"""`lightning-gen translate`: a checkpoint and pictures in, pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset

from lightning_gen.callbacks.progress import ProgressBar
from lightning_gen.capabilities import Direction, Translates
from lightning_gen.commands.common import input_files
from lightning_gen.commands.results import Results, Skipped
from lightning_gen.commands.trainer import quiet_lightning
from lightning_gen.data.images import (
    ImageError,
    Picture,
    background_color,
    open_image,
    to_float,
    write_image,
)
from lightning_gen.generative import load_model
from lightning_gen.processes import everywhere


def translate(
    checkpoint: Path,
    input: Path,
    output: Path,
    direction: Direction = "AtoB",
    background: str = "white",
    overwrite: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: str = "32-true",
    num_workers: int = 0,
) -> int:
    """Translate one picture file or all of a folder; names, sub-folders, formats and sizes are kept.

    A file that cannot be read or translated is skipped; the first ones are named, all are counted, and the exit code is
    then 1.

    Args:
        checkpoint: Checkpoint of a translation model, a file or RUN or RUN/best; it is all that is needed.
        input: A picture file, or a folder that is searched recursively.
        output: Folder for the results; made if needed.
        direction: AtoB or BtoA.
        background: Colour behind transparent pixels while they are translated; the transparency itself is kept.
        overwrite: Whether to write into a folder that holds pictures already. Those of the same names are replaced.
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
    Results(output, None, overwrite)  # which looks at the folder; what is written has its names from the input
    quiet_lightning()
    trainer = pl.Trainer(
        callbacks=[ProgressBar()],
        accelerator=accelerator,
        devices=devices,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    translator = _FileTranslator(model, direction, root, output)
    loader = DataLoader(_Files(files, model.image_shape[0], background), batch_size=None, num_workers=num_workers)
    trainer.predict(translator, loader, return_predictions=False)
    if trainer.is_global_zero:
        skipped = Skipped()
        for file, reason in translator.failures:
            skipped.add(file, reason)
        skipped.count()
        print(f"{len(files) - len(translator.failures)} of {len(files)} pictures translated into {output}")
    return 1 if translator.failures else 0


class _Files(Dataset[dict[str, Any]]):
    """Picture files as `{file, picture, image}`, or `{file, error}` for one that cannot be read."""

    def __init__(self, files: list[Path], channels: int, background: str) -> None:
        self.files, self.channels, self.background = files, channels, background

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        try:
            picture = open_image(file)
            image = to_float(picture.flatten(self.channels, self.background))
        except ImageError as error:
            return {"file": str(file), "error": str(error)}
        return {"file": str(file), "image": image, "pixels": picture.pixels, "alpha": picture.alpha}


class _FileTranslator(pl.LightningModule):
    """Translates what `_Files` gives and writes it; `failures` holds (file, reason) of all ranks in the end."""

    def __init__(self, model: Any, direction: Direction, root: Path, output: Path) -> None:
        super().__init__()
        self.model, self.direction, self.root, self.output = model, direction, root, output
        self.failures: list[tuple[str, str]] = []

    def predict_step(self, item: dict[str, Any], batch_idx: int) -> None:
        """One file. What goes wrong with it must not stop the others."""
        file = Path(item["file"])
        if "error" in item:
            self.failures.append((item["file"], item["error"]))
            return
        try:
            translated = self.model.translate(item["image"][None], self.direction)[0]
            like = Picture(item["pixels"].cpu(), item["alpha"].cpu() if item["alpha"] is not None else None)
            write_image(self.output / file.relative_to(self.root), translated, like=like)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: out of memory, among others
            self.failures.append((item["file"], str(error).splitlines()[0] if str(error) else type(error).__name__))

    def on_predict_end(self) -> None:
        """Bring the failures of all ranks together."""
        self.failures = sorted({failure for rank in everywhere(self.failures) for failure in rank})
