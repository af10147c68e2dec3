"""What the commands about styles share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gen.capabilities import HasLayerStyles
from lightning_gen.commands.common import check_written, classes_in_turn
from lightning_gen.generative import load_model
from lightning_gen.latents import numbered_latents
from lightning_gen.settings import checked_settings
from lightning_gen.styles import Points


class Styled:
    """The model of a checkpoint, whose layers have styles, and pictures of one class, if it has classes.

    Args:
        checkpoint: As for `load_model`.
        label: The class, by number or name.
        sampling: Settings of the model's own `sample`.

    Raises:
        ValueError: If it has no such styles, the class is missing or unknown, or a setting is out of range.
        ArgumentError: If a setting is unknown.
    """

    def __init__(self, checkpoint: Path, label: int | str | None, sampling: dict[str, Any] | None = None) -> None:
        self.model: Any = load_model(checkpoint, HasLayerStyles, "has no styles that layers have each for itself")
        check_written(checkpoint, "draws", self.model)
        classes = classes_in_turn(self.model, label)
        if classes and len(classes) > 1:
            name = type(self.model).__name__
            raise ValueError(f"This {name} has {self.model.num_classes} classes. Choose one with the label.")
        self.label = classes[0] if classes else None
        self.points = Points(self.model, "w", checked_settings(self.model, sampling))
        self.num_layers = self.numbered([0], 0).shape[1]

    def numbered(self, numbers: Iterable[int], seed: int) -> Tensor:
        """The styles `[N, layers, width]` of the pictures of a seed that have these numbers."""
        latents = numbered_latents(self.model, numbers, seed)
        labels = None if self.label is None else torch.full((len(latents),), self.label)
        return self.points.of(latents, labels)

    def draw(self, styles: Tensor) -> Tensor:
        """Their pictures `[N, C, H, W]` on the CPU."""
        return self.points.draw(styles, None).cpu()
