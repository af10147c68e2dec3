"""How far a translated picture is from its true counterpart, where the data has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_gen.metrics.similarity import MeanSimilarity, psnr, ssim


class TranslationMetrics(nn.Module):
    """`psnr` and `ssim` for each direction, averaged over pictures.

    Args:
        directions: Such as ("AtoB", "BtoA").
        prefix: Of the metric names: "val/" gives `val/psnr_AtoB` and so on.
    """

    def __init__(self, directions: Sequence[str], prefix: str) -> None:
        super().__init__()
        self.directions = nn.ModuleDict(
            {
                direction: MetricCollection(
                    {f"{function.__name__}_{direction}": MeanSimilarity(function) for function in (psnr, ssim)},
                    prefix=prefix,
                    compute_groups=False,
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
        metrics.update(translated, target)
        return metrics
