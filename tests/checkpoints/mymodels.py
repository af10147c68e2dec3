"""A model of a user's own, as one of the checkpoints beside it names it."""

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from lightning_gen.losses import PixelLikelihood
from lightning_gen.models.autoregressive import AutoregressiveModule


class OwnPixels(AutoregressiveModule):
    def __init__(
        self,
        image_shape: tuple[int, int, int],
        network: Callable[..., nn.Module],
        likelihood: PixelLikelihood,
        optimizer: Callable[..., Optimizer] | None = None,
    ):
        super().__init__(image_shape, likelihood, optimizer=optimizer)
        self.network = network(self.image_shape)
