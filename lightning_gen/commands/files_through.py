"""Picture files in, picture files out: what commands share that keep the names of their input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_gen.callbacks.progress import ProgressBar
from lightning_gen.commands.common import fitted, names_file
from lightning_gen.commands.results import Skipped
from lightning_gen.commands.trainer import quiet_lightning
from lightning_gen.data.images import ImageError, Kernel, Picture, open_image, to_float, to_uint8, write_image
from lightning_gen.processes import everywhere

Change = Callable[[Tensor], Tensor]
"""From pictures `[N, C, H, W]` in `[-1, 1]` to as many."""


@dataclass(frozen=True)
class PictureFiles(Dataset[dict[str, Any]]):
    """Files as a model takes them, each with what is to be kept of it; or why it cannot be read.

    Attributes:
        files: Sorted.
        channels: 1 or 3.
        background: Colour behind transparent pixels.
        size: (height, width) that all must have; None for any.
        kernel: Brings those of another size to it; None refuses them.
    """

    files: Sequence[Path]
    channels: int
    background: str
    size: tuple[int, int] | None = None
    kernel: Kernel | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]

        try:
            picture = open_image(file)
            pixels, alpha = picture.flatten(self.channels, self.background), picture.alpha
            if self.size is not None:
                pixels = fitted(pixels, self.size, file, self.kernel, "--resize bicubic")
                if alpha is not None:  # opacity is a gray picture
                    alpha = fitted(Picture(alpha).flatten(1), self.size, file, self.kernel, "--resize bicubic")
        except ImageError as error:
            return {"file": str(file), "error": str(error)}
        kept = {"file": str(file), "number": index, "pixels": picture.pixels, "alpha": alpha}
        return {"image": to_float(pixels), **kept}


def _batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of `PictureFiles`, of one size: what can be read as a batch, and the rest as (file, reason)."""
    read = [item for item in items if "error" not in item]
    return {
        "images": torch.stack([item.pop("image") for item in read]) if read else None,
        "items": read,
        "failures": [(item["file"], item["error"]) for item in items if "error" in item],
    }


class FilesThrough(pl.LightningModule):
    """Writes what becomes of the pictures of `PictureFiles`, under their names and in their formats.

    Args:
        model: Is moved to the device.
        change: What becomes of pictures; of the model.
        root: Folder of the input.
        output: Folder of the results; of one file it may be the name of another.
        beside: Whether each file has the original at the left of what becomes of it.
        shown: How many of the first files are kept for an overview.

    Attributes:
        failures: (file, reason) of all ranks in the end.
        pairs: By the number of their file, the original and what became of it, uint8 `[C, H, W]`; likewise.
    """

    def __init__(
        self, model: pl.LightningModule, change: Change, root: Path, output: Path, beside: bool = False, shown: int = 0
    ) -> None:
        super().__init__()
        self.model, self.change, self.root, self.output = model, change, root, output
        self.beside, self.shown = beside, shown
        self.failures: list[tuple[str, str]] = []
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Some files. What goes wrong with one must not stop the others."""
        self.failures += batch["failures"]
        if not batch["items"]:
            return
        for item, image, result in zip(batch["items"], batch["images"], self._changed(batch["images"]), strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                self._write(item, image.float().cpu(), result.float().cpu())
            except (OSError, RuntimeError, ValueError) as error:
                words = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.failures.append((item["file"], words))

    def _changed(self, images: Tensor) -> list[Tensor | Exception]:
        """What becomes of each; one by one where together they fail, as for lack of memory."""
        try:
            return list(self.change(images))
        except (RuntimeError, ValueError) as error:
            if len(images) == 1:
                return [error]
            return [result for image in images.split(1) for result in self._changed(image)]

    def _write(self, item: dict[str, Any], image: Tensor, result: Tensor) -> None:
        alpha = None if item["alpha"] is None else item["alpha"].cpu()
        whole = result
        if self.beside:
            whole = torch.cat([image, result], -1)
            alpha = None if alpha is None else torch.cat([alpha, alpha], -1)
        file = Path(item["file"])
        place = self.output if names_file(file, self.output) else self.output / file.relative_to(self.root)
        write_image(place, whole, like=Picture(item["pixels"].cpu(), alpha))
        if item["number"] < self.shown:
            self.pairs[item["number"]] = to_uint8(image), to_uint8(result)

    def on_predict_end(self) -> None:
        """Bring together what all ranks have."""
        found = everywhere((self.failures, self.pairs))
        self.failures = sorted({failure for failures, _ in found for failure in failures})
        self.pairs = dict(sorted(pair for _, pairs in found for pair in pairs.items()))


def run_through(
    through: FilesThrough,
    files: PictureFiles,
    done: str,
    *,
    batch_size: int = 1,
    accelerator: str,
    devices: int | str,
    precision: str,
    num_workers: int,
) -> bool:
    """Let a trainer give all files to its devices, and tell on rank zero what was skipped and how many are done.

    Args:
        through: Takes them.
        files: Of one size where a batch is of several.
        done: The word for it, such as "translated".
        batch_size: Files at once on each device.
        accelerator: As in Lightning.
        devices: As in Lightning.
        precision: As in Lightning.
        num_workers: Processes that read ahead, for each device.

    Returns:
        Whether this is rank zero.
    """
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
    loader = DataLoader(files, batch_size=batch_size, num_workers=num_workers, collate_fn=_batch)
    trainer.predict(through, loader, return_predictions=False)
    if trainer.is_global_zero:
        skipped = Skipped()
        for file, reason in through.failures:
            skipped.add(file, reason)
        skipped.count()
        print(f"{len(files) - len(skipped)} of {len(files)} pictures {done} into {through.output}")
    return trainer.is_global_zero
