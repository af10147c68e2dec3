"""What a global colour curve, fitted without pairs, does at a translation: what a model must beat."""

from __future__ import annotations

import torch
from torch import Tensor


class HistogramMatching:
    """One monotone curve a channel that gives pictures of domain A the colour distribution of domain B.

    Fitted on unpaired pictures by their histograms, as a translation model is. Level v becomes the level of B with the
    same rank: Q_B(F_A(v)), with F_A taken in the middle of the level's mass.

    Args:
        channels: Of the pictures.
    """

    def __init__(self, channels: int = 3) -> None:
        self.counts = {domain: torch.zeros(channels, 256, dtype=torch.float64) for domain in "AB"}

    def update(self, domain: str, images: Tensor) -> None:
        """Count the levels of some pictures.

        Args:
            domain: "A" or "B".
            images: uint8 `[N, C, H, W]`.
        """
        for channel, pixels in enumerate(images.transpose(0, 1).flatten(1).cpu()):
            self.counts[domain][channel] += torch.bincount(pixels.long(), minlength=256)

    def tables(self, direction: str) -> Tensor:
        """The curves as lookup tables, uint8 `[C, 256]`.

        Args:
            direction: "AtoB" or "BtoA".

        Raises:
            ValueError: If a domain has had no pictures.
        """
        source, target = self.counts[direction[0]], self.counts[direction[-1]]
        if not (source.sum() and target.sum()):
            raise ValueError("HistogramMatching needs pictures of both domains before it can map one to the other.")
        rank = (source.cumsum(1) - source / 2) / source.sum(1, keepdim=True)
        quantiles = target.cumsum(1) / target.sum(1, keepdim=True)
        return torch.searchsorted(quantiles, rank).clamp(max=255).to(torch.uint8)

    def __call__(self, images: Tensor, direction: str) -> Tensor:
        """Map uint8 `[N, C, H, W]` to uint8 of the same shape."""
        tables = self.tables(direction).to(images.device)
        mapped = [table[pixels.long()] for table, pixels in zip(tables, images.transpose(0, 1), strict=True)]
        return torch.stack(mapped, dim=1)
