"""How a network gives one pixel at a time, in pieces that each become one graph.

A `step` may have to look at where it is: a new row, a level of another resolution. It does so on the host, and hands
everything else to pieces that get tensors only, the position among them. So a piece does the same operations on the
same memory whenever it comes, and can be compiled once for all positions, or recorded as a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]
"""Calls a piece: `run(piece, cache, place, *flags)`, where `piece` is a method of the network, `cache` its cache,
`place` a position as int64 `[1]` on the device, and flags are what there are few of: bools and strings. Running a piece
again at a place changes nothing. What it gives holds until it is run again."""


def call(piece: Callable[..., Any], *arguments: Any) -> Any:
    """The `Run` that does nothing but call."""
    return piece(*arguments)


def places_of(height: int, width: int, device: torch.device) -> Tensor:
    """All flat positions of a picture, int64 `[H * W, 1]`: row p is the `place` of position p."""
    return torch.arange(height * width, device=device).unsqueeze(1)
