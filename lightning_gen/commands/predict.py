"""What `lightning-gen predict` leaves: pictures as files, numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_gen.commands.results import Results
from lightning_gen.files import write_atomically
from lightning_gen.generative import GenerativeModule
from lightning_gen.processes import everywhere
from lightning_gen.runs.folder import run_folder

TABLE = "predictions.csv"


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` gives, one file or one row for each picture of the test data.

    * Pictures `[N, 1 or 3, H, W]` become PNG files, 000000.png and so on, by the place of the picture that they are of.
    * Numbers `[N]` and rows `[N, D]`, or points `[N, D, 1, 1]`, become a table, predictions.csv. Its column is called
      as the model says (`prediction_name`, such as "log_prob"), else "value".
    * Of a dictionary each entry is written so: pictures in a folder of its name, numbers in a column.
    * Anything else is kept by `torch.save`, a file for each batch.

    Args:
        output: Folder; None means `predictions` in the folder of the run that the checkpoint is of.
        overwrite: Whether to write into a folder that holds pictures already. What was predicted into it before is
            removed first; other files stay.

    Raises:
        FileExistsError: When predicting starts, if it holds pictures or predictions and `overwrite` is not set.
        NotADirectoryError: Then, if it is a file.
    """

    def __init__(self, output: Path | None = None, overwrite: bool = False) -> None:
        super().__init__("batch")
        self.output = output
        self.overwrite = overwrite

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the folder, on all ranks before any of them writes."""
        own = r"(\w+/)*(\d{6,}\.png|batch_\d{6,}\.pt)|" + TABLE
        self.results = Results(self.output or run_folder(trainer) / "predictions", own, self.overwrite)
        self.column = str(getattr(pl_module, "prediction_name", GenerativeModule.prediction_name))
        self.rows: dict[int, dict[str, str]] = {}
        self.count = 0  # of this rank's pictures
        trainer.strategy.barrier()
        self.results.clear(only_forget=not trainer.is_global_zero)
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the pictures, and keep the numbers for the table."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        entries = prediction if isinstance(prediction, Mapping) else {"": prediction}
        rank, world = trainer.global_rank, trainer.world_size
        number = max([len(values) for values in entries.values() if _is_by_picture(values)], default=0)
        # Data that has no numbers is counted, as it is dealt to the ranks in turn.
        places = batch_indices or range(rank + world * self.count, rank + world * (self.count + number), world)
        self.count += number
        for key, values in entries.items():
            if not _is_by_picture(values):
                if values is not None:
                    path = self.results.file(f"{key or '.'}/batch_{batch_idx * world + rank:06d}.pt")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    torch.save(values, path)
            elif values.ndim == 4 and values.shape[2:] != (1, 1):
                for place, image in zip(places, values, strict=True):
                    self.results.write(f"{key or '.'}/{place:06d}.png", image)
            else:
                self._keep(key, values, places)

    def _keep(self, key: str, values: Tensor, places: Sequence[int]) -> None:
        """Numbers `[N]`, or rows `[N, D]` or `[N, D, 1, 1]`, for the table."""
        names = [key or self.column]
        if values.ndim > 1:
            names = [f"{key or 'x'}{i}" for i in range(values[0].numel())]
        values = values.detach().cpu()
        rows = (values.float() if values.dtype == torch.bfloat16 else values).reshape(len(values), -1).numpy()
        for place, row in zip(places, rows, strict=True):
            # NumPy writes the fewest digits that give the same number again.
            self.rows.setdefault(place, {}).update(zip(names, map(str, row), strict=True))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the rows of all ranks, and say where everything is."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        count = 0
        rows: dict[int, dict[str, str]] = {}
        for others, more in everywhere((self.count, self.rows)):
            count, rows = count + others, rows | more
        if not trainer.is_global_zero:
            return
        if rows:
            names = list(dict.fromkeys(name for row in rows.values() for name in row))
            lines = [f"{place},{','.join(row.get(name, '') for name in names)}" for place, row in sorted(rows.items())]
            write_atomically(self.results.file(TABLE), "\n".join([",".join(["picture", *names]), *lines]) + "\n")
        print(f"Predictions for {count} pictures written into {self.results.folder}")


def _is_by_picture(values: Any) -> bool:
    """Whether it is a picture, a number or a row for each picture of a batch."""
    if not isinstance(values, Tensor) or values.ndim not in (1, 2, 4) or not len(values):
        return False
    return values.ndim < 4 or values.shape[2:] == (1, 1) or values.shape[1] in (1, 3)
