"""What is measured, and the forms in which each algorithm competes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch

ALONE = 2  # steps of ours before the others are made: in the second, gradients and optimizer states are all in memory

Step: TypeAlias = Callable[[Any], None]


@dataclass(frozen=True)
class Settings:
    """What is measured, as the command line was given it; 0 where a model has no such size."""

    model: str
    image_size: int
    batch_size: int
    precision: str
    filters: int
    blocks: int
    generator_batch_factor: int
    channels_last: bool
    compile: bool
    forbid_sync: bool
    steps: int
    warmup: int
    threads: int

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """In which convolutions are computed."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the weights of ours and of the plain loop."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures."""
        return 3, self.image_size, self.image_size

    @property
    def total(self) -> int:
        """Steps of the Lightning run."""
        return ALONE + self.warmup + self.steps

    def autocast(self) -> torch.autocast:
        """The mixed precision of ours and of the plain loop."""
        return torch.autocast(self.device.type, torch.bfloat16, self.dtype == torch.bfloat16)


@dataclass(frozen=True)
class Contestants:
    """One algorithm, three times.

    Args:
        ours: The model, to be trained by Lightning.
        plain: Makes the step of a plain loop with the same networks, precision and memory format.
        naive: Makes the step of the plain loop in float32 and contiguous memory, as well-known implementations have it.
        batch: What all of them train on.
        convolution: `[N, channels, height, width]` that goes into the 3 x 3 convolution of which the step has most.
        batches: Of ours in one step; the others' step takes one and uses it as often.
    """

    ours: pl.LightningModule
    plain: Callable[[], Step]
    naive: Callable[[], Step]
    batch: Any
    convolution: tuple[int, int, int, int]
    batches: int = 1
