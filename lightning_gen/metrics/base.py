"""What metrics that must not lose digits share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class FullPrecision(Metric):
    """States that `.to(dtype)` and the precision plugins of Lightning move to a device, but do not round."""

    full_state_update = False
    is_differentiable = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            without_float64 = device.type == "mps" and tensor.dtype == torch.float64
            return tensor if without_float64 else tensor.to(device)

        return super()._apply(move, exclude_state)
