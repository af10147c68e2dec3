"""PixelCNN++ (Salimans et al. 2017, 1701.05517)."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_gen.callbacks.ema import EMA
from lightning_gen.data.base import examples_of
from lightning_gen.losses.pixels import LogisticMixture
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.networks.pixelcnn_pp import PixelCNNPPNetwork

INIT_IMAGES = 16  # that weight norm is initialised from


class PixelCNNPP(AutoregressiveModule):
    """Shifted convolutions over three resolutions with shortcuts, and a discretised mixture of logistics.

    The defaults are those of the paper's code: Adam at 1e-3 with (0.95, 0.9995), a rate that falls by 0.999995 a step,
    dropout 0.5, weights averaged with 0.9995, batches of 16 on each of 8 GPUs. Before the first step, weight norm is
    initialised from pictures, rank 0's, so that all layers start with activations of mean 0 and variance 1.

    Deviations: these are 16 pictures spread evenly over the training data, not the first batch; pictures are rounded to
    levels when drawn; the loss is the mean in nats a dimension, not the sum, which makes no difference to Adam.

    Args:
        image_shape: (channels, height, width); height and width divisible by 4 (with 3 scales).
        num_levels: L of each channel.
        num_components: K, of the mixture.
        filters: Features of each of both streams.
        num_blocks: Gated residual blocks of each scale.
        num_scales: Resolutions, each half the one before.
        dropout: Share of single features dropped in each block.
        num_classes: Number of classes, each a bias in every block; None leaves labels out.
        ema_decay: Of the averaged weights; None keeps none. A run's own `EMA` takes its place.
        learning_rate: Of Adam.
        lr_decay: Factor by which the rate is multiplied after each step.
        betas: Of Adam.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    network: PixelCNNPPNetwork
    initialized: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        num_components: int = 10,
        filters: int = 160,
        num_blocks: int = 5,
        num_scales: int = 3,
        dropout: float = 0.5,
        num_classes: int | None = None,
        ema_decay: float | None = 0.9995,
        learning_rate: float = 1e-3,
        lr_decay: float = 0.999995,
        betas: tuple[float, float] = (0.95, 0.9995),
        **settings: Any,
    ) -> None:
        likelihood = LogisticMixture(num_levels, num_components)
        super().__init__(
            image_shape,
            likelihood,
            num_classes=num_classes,
            condition_channels=None,
            learning_rate=learning_rate,
            lr_decay=lr_decay,
            **settings,
        )
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), or be null for no average; got {ema_decay}.")
        self.ema_decay, self.betas = ema_decay, betas
        self.network = PixelCNNPPNetwork(
            self.image_shape,
            outputs=likelihood.num_parameters(self.image_shape[0]),
            filters=filters,
            num_blocks=num_blocks,
            num_scales=num_scales,
            dropout=dropout,
            num_classes=num_classes,
        )
        # A checkpoint is initialised, whether or not a step was taken.
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def on_train_start(self) -> None:
        """Initialise from training pictures, unless a checkpoint brought weights."""
        if not self.initialized:
            loader: Any = self.trainer.train_dataloader
            try:
                examples = examples_of(loader)
            except TypeError:  # a stream, or what is no Dataset
                with torch.random.fork_rng(devices=[]):  # a loader's iterator may take from it
                    self.initialize(next(iter(loader)))
                return
            count = len(examples)  # type: ignore[arg-type]
            # Not the loader's own first batch, which would be taken from training.
            spread = [examples[i * count // INIT_IMAGES] for i in range(INIT_IMAGES)]
            self.initialize(loader.collate_fn(spread))

    @torch.no_grad()
    def initialize(self, batch: Any) -> None:
        """Scale and shift every layer by its activations on a batch; with several processes, on that of rank 0."""
        images, context = self.images_and_context(batch)
        self.network.initialize(images.to(self.device), **context)
        if dist.is_available() and dist.is_initialized():
            for parameter in self.network.parameters():
                dist.broadcast(parameter, 0)
        self.initialized.fill_(True)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The average of the weights, unless the run has one of its own, which Lightning would otherwise replace."""
        given = self._trainer is not None and any(isinstance(c, EMA) for c in self._trainer.callbacks)  # type: ignore[attr-defined]
        return [] if given or self.ema_decay is None else [EMA(["network"], decay=self.ema_decay)]

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """Adam, with the paper's betas."""
        return torch.optim.Adam(parameters, lr=self.learning_rate, betas=self.betas, fused=True)
