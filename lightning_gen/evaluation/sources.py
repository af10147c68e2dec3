"""Where the pictures come from that are measured: a checkpoint, a folder, the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_gen.capabilities import Reconstructs, Samples
from lightning_gen.checkpoints import read_checkpoint
from lightning_gen.data.base import examples_of, in_order, makes_batches
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.evaluation.engine import Batch, draw
from lightning_gen.evaluation.pictures import Pictures, pictures_in
from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.files import digest
from lightning_gen.generative import load_model
from lightning_gen.hyperparameters import import_path
from lightning_gen.runs.layout import EVALUATIONS, run_folder_of_checkpoint

SPLITS = ("train", "val", "test")
DRAWS_NONE = (
    "draws no pictures from noise. Let `lightning-gen translate` or `lightning-gen reconstruct` write what it makes of "
    "the pictures of a folder, and give the folder with the results as --images"
)


def loader_of(data: pl.LightningDataModule, split: str) -> Any:
    """The loader of a split of a data module that no trainer has."""
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    return getattr(data, f"{split}_dataloader")()


def shape_of(loader: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the pictures of a loader."""
    (image,) = pictures_at(loader, [0])
    channels, height, width = image.shape
    return channels, height, width


def pictures_at(loader: Any, places: Sequence[int]) -> Pictures:
    """Some of the pictures of a loader."""
    examples = examples_of(loader)
    return pictures_in(loader.collate_fn([examples[place] for place in places]))


def count_of(loader: Any) -> int:
    """How many pictures a loader is of."""
    return len(examples_of(loader))  # type: ignore[arg-type]


def batches_of(loader: Any, protocol: EvaluationProtocol) -> Iterator[Batch]:
    """Those of as many pictures as are wanted."""
    chosen = evenly_spaced(loader, protocol.num_samples, protocol.max_features)
    return (Batch(number, pictures_in(batch)) for number, batch in in_order(chosen, protocol.batch_size))


def evenly_spaced(loader: Any, number: int, first: int) -> DataLoader[Any]:
    """A loader over a number of another's pictures, evenly spaced, of which also the first ones are evenly spaced."""
    examples: Dataset[Any] = examples_of(loader)
    places = [i * len(examples) // number for i in range(number)]  # type: ignore[arg-type]
    early = {i * number // first for i in range(first)} if first < number else set()
    places = [places[i] for i in sorted(range(number), key=lambda i: i not in early)]
    settings = {name: getattr(loader, name) for name in ("num_workers", "collate_fn")}
    return DataLoader(Subset(examples, places), batch_size=1 if makes_batches(loader) else None, **settings)


@dataclass(eq=False)
class Drawn:
    """What the model of a checkpoint draws, or reconstructs."""

    path: Path
    fabric: Fabric

    @cached_property
    def model(self) -> Any:
        """The model; loaded when something of it is asked for."""
        return load_model(self.path, (Samples, Reconstructs), DRAWS_NONE).to(self.fabric.device)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        shape: tuple[int, int, int] = self.model.image_shape
        return shape

    @cached_property
    def content(self) -> dict[str, str]:
        """What makes it the same checkpoint under another name."""
        return {"sha256": digest(self.path)}

    @cached_property
    def record(self) -> dict[str, Any]:
        """What it is."""
        step = read_checkpoint(self.path).get("global_step")
        return {
            "checkpoint": str(self.path),
            **self.content,
            "class": import_path(type(self.model)),
            "global_step": None if step is None else int(step),
        }

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return f"{self.path}: {type(self.model).__name__}, step {self.record['global_step']}"

    @property
    def output(self) -> Path:
        """Where its figures go."""
        return (run_folder_of_checkpoint(self.path) or self.path.parent) / EVALUATIONS

    def batches(self, protocol: EvaluationProtocol) -> Iterator[Batch]:
        """Its samples."""
        return (Batch(number, self._draw(protocol, number, size)) for number, size in protocol.batches())

    def pictures(self, protocol: EvaluationProtocol, places: Sequence[int]) -> Tensor:
        """Some of them, drawn again: `[N, C, H, W]`."""
        sizes = dict(protocol.batches())
        numbers = {place // protocol.batch_size for place in places}
        batches = {number: self._draw(protocol, number, sizes[number]) for number in numbers}
        return torch.stack([batches[place // protocol.batch_size][place % protocol.batch_size] for place in places])

    def _draw(self, protocol: EvaluationProtocol, number: int, size: int) -> Tensor:
        with self.fabric.autocast():
            return draw(self.model, number, size, protocol)


@dataclass(eq=False)
class Read:
    """Pictures of a loader, evenly spaced if not all are wanted."""

    path: Path
    loader: Any
    output: Path | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return shape_of(self.loader)

    def __len__(self) -> int:
        return count_of(self.loader)

    @cached_property
    def content(self) -> dict[str, str]:
        """What makes them the same pictures in another place."""
        return {"pictures": fingerprint(self.loader)}

    @property
    def record(self) -> dict[str, Any]:
        """What they are."""
        return {"images": str(self.path), **self.content, "count": len(self)}

    @property
    def title(self) -> str:
        """What they are, in a line."""
        return f"{self.path}: {len(self)} pictures"

    def batches(self, protocol: EvaluationProtocol) -> Iterator[Batch]:
        """As many of them as are wanted."""
        return batches_of(self.loader, protocol)

    def pictures(self, protocol: EvaluationProtocol, places: Sequence[int]) -> Pictures:
        """Some of those in the batches."""
        return pictures_at(evenly_spaced(self.loader, protocol.num_samples, protocol.max_features), places)
