"""What the networks of PixelCNN++ and PixelSNAIL share: gated residual blocks of layers with weight norm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.dropout import Dropout
from lightning_gen.layers.weight_norm import WeightNormalized, WeightNormConv2d, data_dependent_init
from lightning_gen.networks.density import DensityNetwork


class WeightNormalizedNetwork(DensityNetwork):
    """Base of the two, with the arguments of `DensityNetwork`; call `initialize` before training."""

    def initialize(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Set g and b of all layers from a batch; see `lightning_gen.layers.weight_norm.data_dependent_init`.

        The mode stays as it is. In training mode dropout is at work, as in the authors' code.
        """
        with data_dependent_init(self):
            self(images, labels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]`, and int64 `[N]` of classes, to parameters `[N, outputs, H, W]`."""
        self.check_given(images, labels)
        return self._whole(images, labels, None)

    @abstractmethod
    def _whole(self, images: Tensor, labels: Tensor | None, maps: Any) -> Tensor:
        """The parameters; what the steps need of all layers goes into `maps`."""
        raise NotImplementedError


class GatedResidual(nn.Module):
    """x + a * sigmoid(b), where a and b come from x through two convolutions, and from a shortcut between them.

    Args:
        conv: Makes the two convolutions.
        channels: F, of x.
        shortcut_channels: Of what comes through the shortcut; 0 for none.
        dropout: Before the second convolution.
        num_classes: None without labels.
    """

    widening: ClassVar[int] = 1
    """Channels that the nonlinearity makes of each."""

    def __init__(
        self,
        conv: Callable[..., WeightNormalized],
        channels: int,
        shortcut_channels: int,
        dropout: float,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.conv1 = conv(self.widening * channels, channels)
        self.shortcut = self._pointwise(shortcut_channels, channels) if shortcut_channels else None
        self.dropout = Dropout(dropout)
        self.conv2 = conv(self.widening * channels, 2 * channels, init_scale=0.1)
        self.classes = None
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes, 2 * channels)
            nn.init.normal_(self.classes.weight, std=0.05)

    def _pointwise(self, inputs: int, outputs: int) -> WeightNormalized:
        return WeightNormConv2d(inputs, outputs)

    def _activated(self, features: Tensor) -> Tensor:
        return F.elu(features)

    def forward(
        self, features: Tensor, activated: Tensor, beside: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The block's x, and what goes into the second convolution, `[N, widening F, H, W]`.

        Args:
            features: The x that comes in, `[N, F, H, W]`.
            activated: What the nonlinearity makes of it.
            beside: What comes through the shortcut, `[N, shortcut_channels, H, W]`.
            labels: int64 `[N]`.
        """
        hidden = self.conv1(activated)
        if self.shortcut is not None:
            hidden = hidden + self.shortcut(beside)
        hidden = self.dropout(self._activated(hidden))
        update = self.conv2(hidden)
        if self.classes is not None:
            update = update + self.classes(labels)[:, :, None, None].to(update.dtype)
        values, gates = update.chunk(2, dim=1)
        # Side by side in memory, as else sigmoid takes up to eight times as long on a CPU.
        return features + values * gates.contiguous(memory_format=torch.channels_last).sigmoid(), hidden

    def first_bias(self) -> Tensor:
        """All that is added to the first convolution, `[F]`."""
        return self.conv1.b if self.shortcut is None else self.conv1.b + self.shortcut.b

    def second_bias(self, labels: Tensor | None) -> Tensor:
        """All that is added to the second convolution, `[N, 2 F]`, or `[1, 2 F]` without labels."""
        return self.conv2.b.detach()[None] if self.classes is None else self.conv2.b + self.classes(labels)


def with_ones(images: Tensor) -> Tensor:
    """Pictures with ones, which tell black pixels from those outside, channels last, as is fastest."""
    return torch.cat([images, torch.ones_like(images[:, :1])], dim=1).contiguous(memory_format=torch.channels_last)


def first_taps(above: WeightNormalized, left: WeightNormalized) -> tuple[Tensor, Tensor]:
    """Of two first layers, 1 x 3 above and 2 x 1 to the left: by pixel above, `[3, C + 1, F]`, and of that to the left.

    Each bias is added to the weights of the ones at a pixel that is inside the picture where the shifted convolution
    has an output.
    """
    of_above = above.weight().squeeze(2).permute(2, 1, 0).clone()
    of_above[1, -1] += above.b
    above_left, of_left = left.weight().squeeze(3).permute(2, 1, 0).clone()
    of_left[-1] += left.b
    of_above[0] += above_left
    return of_above, of_left


def taps_of(kernels: Tensor) -> Tensor:
    """Kernels `[out, in, 2, 2]` as matrices `[4, in, out]`: to the left above, above, to the left, and the pixel."""
    return kernels.permute(2, 3, 1, 0).flatten(0, 1)
