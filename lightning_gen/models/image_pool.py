"""The history of generated pictures of Shrivastava et al. (1612.07828), as CycleGAN uses it."""

from __future__ import annotations

import torch
from torch import Tensor


class ImagePool:
    """Shows the discriminator pictures from a history instead of only the latest ones.

    Until the pool is full every picture is stored and passed through. Then each picture, with probability 1/2, takes
    the place of a random stored one, which is given in its stead; otherwise it is passed through and forgotten.

    It is not a module: each rank has a history of its own, and DDP would overwrite buffers with those of rank 0. The
    draws come from torch's global CPU generator.

    Args:
        size: Number of pictures; 0 passes everything through.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"An image pool needs size >= 0, got {size}.")
        self.size = size
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Give `[N, C, H, W]` for `[N, C, H, W]`, without a graph."""
        if self.size == 0:
            return images.detach()
        given = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
                given.append(image)
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                given.append(self.images[place].to(image.device))
                self.images[place] = image.clone()
            else:
                given.append(image)
        return torch.stack(given)

    def state(self) -> Tensor | None:
        """The stored pictures `[n, C, H, W]`, or None while there are none."""
        return torch.stack(self.images).cpu() if self.images else None

    def load(self, state: Tensor | None) -> None:
        """Take back what `state` gave."""
        self.images = [] if state is None else list(state)[: self.size]
