"""The same pictures in a folder and elsewhere, and what a run sees of either."""

import hashlib
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies.launchers import multiprocessing as launching
from PIL import Image

from lightning_gen.data.batches import as_floats
from tests.shared import trainer

CLASSES = ("cat", "dog")


def make_folder(root: Path) -> Path:
    """26 pictures to train on and 5 to validate with, of two classes and two formats, each with two captions."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 26), ("val", 5)):
        for i in range(count):
            path = root / split / CLASSES[i % 2] / f"{i:03}.{'jpg' if i % 3 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (14 + i % 4, 17, 3), np.uint8)).save(path)
            path.with_suffix(".txt").write_text(f"one {split} {i}\nanother {split} {i}\n")
    return root


def pictures(root: Path, split: str) -> list[Path]:
    """Those of a split, in the order in which ImageFolder has them."""
    return sorted((path for path in (root / split).rglob("*") if path.suffix in (".jpg", ".png")), key=Path.as_posix)


class Watches(pl.LightningModule):
    """Writes down which batches it sees, a line each."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == self.trainer.max_steps:
            self.trainer.save_checkpoint(self.folder / "a.ckpt")

    def note(self, kind, batch):
        image = as_floats(batch["image"], "Watches")
        content = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        with (self.folder / f"{self.trainer.global_rank}.txt").open("a") as file:
            file.write(f"{kind} {content} {batch['label'].tolist()} {batch['caption']}\n")

    def training_step(self, batch, batch_idx):
        self.note("train", batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def seen(make, folder: Path, *, devices: int = 1, stop: int | None = None, epochs: int = 2) -> list[str]:
    """What each rank of a run sees; with `stop` the run stops after so many steps, and another goes on.

    Args:
        make: Makes the data module, for each run anew.
        folder: Of the notes.
        devices: Ranks.
        stop: Steps.
        epochs: Of the whole run.
    """
    folder.mkdir()
    launching._check_bad_cuda_fork = lambda: None  # nothing here uses CUDA

    def fit(checkpoint=None, **limits):
        strategy = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto"}
        running = trainer(num_sanity_val_steps=0, **strategy, **limits)
        running.fit(Watches(folder), make(), ckpt_path=checkpoint, weights_only=False)

    if stop:
        fit(max_steps=stop)
    fit(folder / "a.ckpt" if stop else None, max_epochs=epochs)
    return [(folder / f"{rank}.txt").read_text() for rank in range(devices)]
