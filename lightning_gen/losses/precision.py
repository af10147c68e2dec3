"""Losses in full precision, also where a trainer computes in halves."""

from __future__ import annotations

import torch
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float32 or float64 already."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
