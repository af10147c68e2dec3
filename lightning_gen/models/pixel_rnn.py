"""PixelRNN (van den Oord et al. 2016, 1601.06759): Row LSTM and Diagonal BiLSTM."""

from __future__ import annotations

from typing import Any

from lightning_gen.models.autoregressive import DensityFactory
from lightning_gen.models.pixelcnn import PixelCNN
from lightning_gen.networks.pixel_rnn import DiagonalBiLSTMNetwork, RowLSTMNetwork


class RowLSTM(PixelCNN):
    """An LSTM that goes down the picture row by row, all columns at once; a pixel sees a triangle above it.

    Paper (1601.06759, CIFAR-10): 12 LSTMs of 128 features and kernels of 3 after one layer of 7 x 7, head of 1024;
    softmax; RMSProp; batch 16; 3.07 bits per dim. For binary MNIST it has 7 layers of 16 features and a head of 32.

    Arguments are those of `PixelCNN`, from the same paper.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_levels: int = 256, network: DensityFactory = RowLSTMNetwork,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_shape, num_levels, network, **settings)


class DiagonalBiLSTM(PixelCNN):
    """Two LSTMs that go along the diagonals, from both upper corners; together they see all of the past.

    Paper (1601.06759, CIFAR-10): 12 pairs of LSTMs of 128 features after one layer of 7 x 7, head of 1024; softmax;
    RMSProp; batch 16; 3.00 bits per dim. For binary MNIST it has 7 layers of 16 features and a head of 32.

    Arguments are those of `PixelCNN`, from the same paper.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_levels: int = 256, network: DensityFactory = DiagonalBiLSTMNetwork,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_shape, num_levels, network, **settings)
