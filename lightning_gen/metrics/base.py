"""What figures share: states that lose no digits, and features `[N, D]` as they take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
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


def checked_rows(x: Tensor, name: str = "features", least: int = 0, num_features: int | None = None) -> Tensor:
    """X without its graph, if finite `[N, D]`, N at least `least`, D at least 1 or as given; else a `ValueError`."""
    x = with_float64(x)
    expected = "D" if num_features is None else num_features
    if x.ndim != 2 or x.shape[1] != (num_features or max(x.shape[-1], 1)) or not x.is_floating_point():
        raise ValueError(f"{name} must be a floating tensor [N, {expected}], got the shape {list(x.shape)}, {x.dtype}.")
    if len(x) < least:
        raise ValueError(f"{name} must have at least {least} rows, got {len(x)}.")
    # The sum of finite float32 numbers is finite in float64; only where it is not are they looked at one by one.
    if not bool(x.sum(dtype=torch.float64).isfinite()) and len(bad := (~x.isfinite()).nonzero()):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{len(bad[:, 0].unique())} of the {len(x)} rows of {name} are not finite; the first is row {row}, whose "
            f"feature {column} is {x[row, column].item()}. Look at those pictures, and at the extractor."
        )
    return x


def with_float64(x: Tensor) -> Tensor:
    """The tensor without its graph, on the CPU if its device has no float64."""
    return x.detach().cpu() if x.device.type == "mps" else x.detach()


def evenly_spaced(number: int, most: int) -> Tensor:
    """Places among a number of rows, int64: of all of them, or of `most`."""
    return torch.arange(min(number, most)) * number // max(min(number, most), 1)


def in_canonical_order(rows: Tensor) -> Tensor:
    """The rows `[N, D]` in an order that depends on nothing but what is in them: by their product with fixed noise.

    Whoever deals pictures at random to splits, blocks or subsets deals them in this order, so that a figure is one of
    the set: it does not depend on names of files, on the order of batches, or on the number of processes.
    """
    if not len(rows):
        return rows
    rows = with_float64(rows)
    noise = torch.from_numpy(np.random.RandomState(0).standard_normal(rows.shape[1])).to(rows.device)
    return rows[torch.cat([part.double() @ noise for part in rows.split(4096)]).argsort()]
