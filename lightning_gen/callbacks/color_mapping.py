"""Puts the figure of a mere colour mapping beside the model's, in the same test run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_gen.capabilities import Translates
from lightning_gen.data.batches import as_floats
from lightning_gen.data.images import from_uint8, to_uint8
from lightning_gen.metrics.color_mapping import HistogramMatching
from lightning_gen.metrics.translation import TranslationMetrics


class ColorMappingBaseline(pl.Callback):
    """Logs `test/color_mapping_psnr_AtoB` and so on: what per-channel histogram matching reaches on the test pairs.

    The mapping is fitted on the training sets, unpaired, at the start of the test.

    Args:
        num_images: Training pictures of each domain that are counted, at least.

    Raises:
        ValueError: If that is below 1.
    """

    def __init__(self, num_images: int = 1000) -> None:
        super().__init__()
        if num_images < 1:
            raise ValueError(f"ColorMappingBaseline needs num_images >= 1, got {num_images}.")
        self.num_images = num_images
        self.mapping: HistogramMatching | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit the mapping; every rank by itself, on the same pictures or its share of them."""
        self.mapping = None
        data = getattr(trainer, "datamodule", None)
        if data is None or not isinstance(pl_module, Translates):
            return
        self.mapping, seen = HistogramMatching(pl_module.image_shape[0]), 0  # type: ignore[arg-type, index]
        for batch in data.train_dataloader():
            for domain in "AB":
                self.mapping.update(domain, to_uint8(as_floats(batch[domain], type(self).__name__)))
            seen += len(batch["A"])
            if seen >= self.num_images:
                break
        self.metrics = TranslationMetrics(pl_module.directions, "test/color_mapping_").to(pl_module.device)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Measure it where the batch has true counterparts."""
        if self.mapping is None or "paired" not in batch:
            return
        pictures = {domain: as_floats(batch[domain], type(self).__name__) for domain in "AB"}
        for direction in self.metrics.directions:
            mapped = from_uint8(self.mapping(to_uint8(pictures[direction[0]]), direction))
            self.metrics.update(direction, mapped, pictures[direction[-1]])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures."""
        if self.mapping is None:
            return
        for metrics in self.metrics.directions.values():
            if any(metric.update_called for metric in metrics.values()):  # type: ignore[operator]
                pl_module.log_dict(metrics.compute(), sync_dist=True)  # type: ignore[operator]
            metrics.reset()  # type: ignore[operator]

    def headlines(self) -> dict[str, str]:
        """What the mapping reaches."""
        words = "Colour mapping by histogram matching"
        return {f"test/color_mapping_psnr_{way}": f"{words} {way}: {{:.1f}} dB" for way in ("AtoB", "BtoA")}
