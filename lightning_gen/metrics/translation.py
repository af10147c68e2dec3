"""How far a translated picture is from its true counterpart, where the data has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from lightning_gen.data.images import to_uint8


class TranslationMetrics(nn.Module):
    """PSNR and SSIM for each direction, averaged over pictures, on pictures as they would be stored (8 bits).

    PSNR is each picture's own, in dB with peak 255, then averaged. SSIM is Wang et al. 2004 with its 11 x 11 Gaussian,
    averaged over all pixels of pictures reflected at their edges (the authors' program leaves the edges out).

    Args:
        directions: Such as ("AtoB", "BtoA").
        prefix: Of the metric names: "val/" gives `val/psnr_AtoB` and so on.
    """

    def __init__(self, directions: Sequence[str], prefix: str) -> None:
        super().__init__()
        self.directions = nn.ModuleDict(
            {
                direction: MetricCollection(
                    {
                        f"psnr_{direction}": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
                        f"ssim_{direction}": StructuralSimilarityIndexMeasure(data_range=1.0),
                    },
                    prefix=prefix,
                )
                for direction in directions
            }
        )

    def update(self, direction: str, translated: Tensor, target: Tensor) -> MetricCollection:
        """Add a batch.

        Args:
            direction: One of the directions.
            translated: `[N, C, H, W]` in `[-1, 1]`.
            target: The true counterparts, same shape.

        Returns:
            The direction's metrics, ready for `LightningModule.log_dict`.
        """
        metrics = cast(MetricCollection, self.directions[direction])
        # Within autocast, SSIM's variances would be differences of bfloat16 numbers.
        with torch.autocast(translated.device.type, enabled=False):
            metrics.update(to_uint8(translated).float() / 255, to_uint8(target).float() / 255)
        return metrics
