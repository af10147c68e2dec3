"""PixelRNN (van den Oord et al. 2016, 1601.06759): Row LSTM and Diagonal BiLSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.networks.pixel_rnn import DiagonalBiLSTMNetwork, RowLSTMNetwork


class PixelRNN(AutoregressiveModule):
    """What both forms share: all but the network, a class attribute.

    The defaults are the paper's for CIFAR-10 (batch 16); for binary MNIST it has `num_levels=2`, 7 layers, 16 filters
    and `head_filters=32`. The learning rate of RMSProp is ours: the paper chose the highest that converged, and does
    not print it.

    Args:
        image_shape: (channels, height, width).
        num_levels: L of each channel; 2 for black and white.
        filters: h, of each LSTM; features are 2h between.
        layers: LSTM layers after the first 7 x 7 layer.
        head_filters: Features of the head.
        learning_rate: Of RMSProp.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    network_class: type[RowLSTMNetwork | DiagonalBiLSTMNetwork]

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        filters: int = 128,
        layers: int = 12,
        head_filters: int = 1024,
        learning_rate: float = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            pixel_likelihood(num_levels),
            num_classes=None,
            condition_channels=None,
            learning_rate=learning_rate,
            **settings,
        )
        self.network = self.network_class(
            self.image_shape, num_levels=num_levels, filters=filters, layers=layers, head_filters=head_filters
        )

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """RMSProp, as in the paper."""
        return torch.optim.RMSprop(parameters, lr=self.learning_rate)


class RowLSTM(PixelRNN):
    """An LSTM that goes down the picture row by row, all columns at once; a pixel sees a triangle above it.

    Arguments, defaults and errors are those of `PixelRNN`.
    """

    network_class = RowLSTMNetwork


class DiagonalBiLSTM(PixelRNN):
    """Two LSTMs that go along the diagonals, from both upper corners; together they see all of the past.

    Arguments, defaults and errors are those of `PixelRNN`.
    """

    network_class = DiagonalBiLSTMNetwork
