"""Keeps spectrally normalised layers normalised while they learn."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_gen.layers.spectral_norm import NormalizedWeight, power_iteration, spectral_norms


class SpectralNormPowerIteration(pl.Callback):
    """Runs the power iteration of all spectrally normalised layers together, before a training batch is used.

    One batch is one update of the critic, however many optimizers step in it. Logs `sigma/LAYER`, what the raw weight
    of each layer is divided by, at the trainer's logging steps.

    One iteration a batch is the paper's. It lags while other directions overtake the first: small critics under Adam
    had true norms up to 1.2 in the first tens of updates, and about 1.02 after a thousand (1.09 with
    `kind="convolution"`, whose singular values lie closer). More iterations shorten the lag and do not end it.

    The models here bring this callback along; give your own for other settings, or to a model of your own:

        def configure_callbacks(self):
            return power_iteration_callbacks(self)

    Args:
        n_iterations: Iterations each time (1802.05957, algorithm 1).
        every_n_steps: Training batches from one time to the next, counted over the whole run, also across a stop.

    Raises:
        ValueError: If a number is below 1, or (when training starts) the model has no such layer.
    """

    def __init__(self, n_iterations: int = 1, every_n_steps: int = 1) -> None:
        super().__init__()
        if n_iterations < 1 or every_n_steps < 1:
            raise ValueError(
                "SpectralNormPowerIteration needs n_iterations >= 1 and every_n_steps >= 1, "
                f"got {n_iterations} and {every_n_steps}."
            )
        self.n_iterations = n_iterations
        self.every_n_steps = every_n_steps
        self.weights: dict[str, NormalizedWeight] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a model without normalised layers."""
        if not spectral_norms(pl_module):  # not in `setup`: layers may be made in `configure_model`, which comes after
            raise ValueError(
                f"SpectralNormPowerIteration: {type(pl_module).__name__} has no spectrally normalised layer. Normalise "
                "its discriminator with lightning_gen.layers.add_spectral_norm(network, image_shape) (layers of "
                "torch.nn.utils iterate by themselves), or leave this callback out."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers, now that they are on their device; of those that are frozen, nothing moves."""
        found = spectral_norms(pl_module).items()
        self.weights = {name: weight for name, weight in found if weight.weight.requires_grad}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Iterate where it is due, and log.

        Every rank does so for itself: equal weights give equal u and v, so nothing need be sent.
        """
        batches = trainer.fit_loop.epoch_loop.total_batch_idx
        if batches % self.every_n_steps == 0:
            power_iteration(self.weights.values(), self.n_iterations)
        cadence = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if cadence and (batches + 1) % cadence == 0:
            for name, weight in self.weights.items():
                pl_module.log(f"sigma/{name}", weight.sigma())


def power_iteration_callbacks(pl_module: pl.LightningModule) -> list[pl.Callback]:
    """What a model's `configure_callbacks` returns so that nobody can forget the power iteration.

    One `SpectralNormPowerIteration` if the model has normalised layers. None if the trainer has one already, which
    Lightning would otherwise replace by the model's.
    """
    trainer = pl_module._trainer
    given = trainer is not None and any(isinstance(c, SpectralNormPowerIteration) for c in trainer.callbacks)  # type: ignore[attr-defined]
    return [] if given or not spectral_norms(pl_module) else [SpectralNormPowerIteration()]
