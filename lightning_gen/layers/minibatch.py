"""What a discriminator sees of a whole minibatch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MinibatchStd(nn.Module):
    """Appends one map: how much the pictures of a group differ, on average (1710.10196, section 3).

    N pictures make M groups of the largest divisor of N that is at most `group_size`; picture i is in group i mod M, as
    in the authors' code. Of each feature at each place the standard deviation over a group is taken, and the mean of
    them is the one number that all pictures of the group get. It is computed in float32 at least.

    Args:
        group_size: Pictures of a group at most; with 1 the map is constant, and pictures know nothing of each other.

    Raises:
        ValueError: If the size is below 1.
    """

    def __init__(self, group_size: int = 4) -> None:
        super().__init__()
        if group_size < 1:
            raise ValueError(f"MinibatchStd needs a group_size of at least 1, got {group_size}.")
        self.group_size = group_size
        self.ties_samples = group_size > 1

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C + 1, H, W]`."""
        number, _, height, width = features.shape
        group = next(size for size in range(min(self.group_size, number), 0, -1) if number % size == 0)
        groups = features.to(torch.promote_types(features.dtype, torch.float32)).unflatten(0, (group, -1))
        std = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # [M]; eps: a root has no slope at 0
        maps = std.repeat(group).view(-1, 1, 1, 1).expand(-1, 1, height, width)
        return torch.cat([features, maps.to(features.dtype)], dim=1)
