"""What models share whose networks have weight norm: a start from pictures, an average of the weights, and Adam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gen.data.base import examples_of
from lightning_gen.losses.pixels import PixelLikelihood
from lightning_gen.models.autoregressive import AutoregressiveModule, DensityFactory
from lightning_gen.models.training import average_of, check_decay
from lightning_gen.processes import make_alike
from lightning_gen.starts import Start

INIT_IMAGES = 16  # that weight norm is initialised from


class WeightNormalizedModule(AutoregressiveModule):
    """A model whose `network` has `initialize`, which is called before the first step.

    It is called with pictures of rank 0, after which all layers start with activations of mean 0 and variance 1.

    Deviations from the papers' code: these are 16 pictures spread evenly over the training data, not the first batch;
    pictures are rounded to levels when drawn; the loss is the mean in nats a dimension, not the sum, which makes no
    difference to Adam.

    Args:
        num_classes: Number of classes, each a bias in every block; None leaves labels out.
        ema_decay: Of the averaged weights; None keeps none. A run's own `EMA` takes its place.
        learning_rate: Of Adam.
        betas: Of Adam.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    initialized: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        likelihood: PixelLikelihood,
        network: DensityFactory,
        *,
        num_classes: int | None = None,
        ema_decay: float | None = 0.9995,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.9995),
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            likelihood,
            network,
            num_classes=num_classes,
            condition_channels=None,
            learning_rate=learning_rate,
            **settings,
        )
        self.ema_decay, self.betas = check_decay(ema_decay), betas
        # A checkpoint is initialised, whether or not a step was taken.
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def init_from(self, checkpoint: str | Path) -> Start:
        """As of every model; pictures then need not say where layers start."""
        start = super().init_from(checkpoint)
        self.initialized.fill_(True)
        return start

    def on_train_start(self) -> None:
        """Initialise from training pictures, unless a checkpoint brought weights."""
        super().on_train_start()
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
        network: Any = self.network  # any that has `initialize`
        network.initialize(self.seen(images.to(self.device)), **context)
        make_alike(self.network.parameters())
        self.initialized.fill_(True)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The average of the weights, unless the run has one of its own, which Lightning would otherwise replace."""
        return average_of(self, ["network"], self.ema_decay)

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """Adam, with the model's betas."""
        return torch.optim.Adam(parameters, lr=self.learning_rate, betas=self.betas, fused=True)
