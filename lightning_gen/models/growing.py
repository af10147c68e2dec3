"""The two-player game between networks that grow (Karras et al. 2017, 1710.10196)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_gen.data.images import average_down
from lightning_gen.losses.adversarial import AdversarialLoss
from lightning_gen.models.gan import GAN, GeneratorFactory
from lightning_gen.models.training import NetworkFactory
from lightning_gen.schedules import Growing, Stage
from lightning_gen.starts import Start


class GrowingGAN(GAN):
    """A `GAN` that learns small pictures first, and larger ones as its schedule says.

    The stage is a function of `images_seen`: there is no state to keep but the weights, all of which exist from the
    start. While a level fades in, real pictures are as much like their halves as fakes are. In evaluation pictures are
    of full size, those of an earlier stage enlarged by repetition, and cut to [-1, 1], for the networks end without a
    tanh.

    Gradients that penalties look at are those by pixels of the last size, as in the authors' code, which enlarges all
    pictures before the discriminator sees them. At a stage whose pictures are f times lower, the gradient's norm is so
    1 / f of that by the pixels of the stage: R1 is 1 / f^2 of it, and a norm of 1 is wanted where that of the stage
    is f.

    Where a fade begins and where it ends, both optimizers forget their moments, as in the authors' code.

    Args:
        image_shape: (channels, height, width) of the last pictures.
        generator: As for `GAN`, of a network that grows: it has `heights`, and takes `height=` and `fade=`.
        discriminator: Likewise; it takes pictures of each of its heights, and `fade=`.
        loss: As for `GAN`.
        growing: The schedule, which the data must follow too (`data.growing`). Its learning rates hold for both
            players. None trains in full size from the start.
        **settings: All others are `GAN`'s.

    Raises:
        ValueError: As `GAN`; if a network does not grow, or not through the resolutions of the schedule; when a run
            starts, if the data follows another.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory,
        discriminator: NetworkFactory,
        loss: AdversarialLoss | None = None,
        *,
        growing: Growing | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, generator, discriminator, loss, **settings)
        self.growing = growing
        self._check_growing()

    # -- the stage --------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """What holds for the next picture."""
        return (self.growing or Growing((self.image_shape[1],)))(self.images_seen)

    @property
    def fade(self) -> float | Tensor:
        """Of the stage, as networks take it: a number once a level is there in full, a tensor `[]` before."""
        fade = self.stage.fade
        if fade == 1:
            return fade
        return torch.full((), fade, device=self.device, dtype=torch.promote_types(self.dtype, torch.float32))

    def on_train_start(self) -> None:
        """Set the learning rates of the stage."""
        super().on_train_start()
        self._set_rates()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Say of which shape pictures are now."""
        super().on_train_batch_start(batch, batch_idx)
        channels, height, width = self.image_shape
        factor = self.stage.enlargement
        self.training_shape = (channels, height // factor, width // factor)

    def finish_step(self, images: int, *, schedules: bool = True) -> None:
        """As in `AdversarialModule`; what changes with the stage changes here, so that a checkpoint has it."""
        before = self.stage
        super().finish_step(images, schedules=schedules)
        after = self.stage
        if (before.resolution, before.fade < 1) != (after.resolution, after.fade < 1):
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
            if self.compile_networks:  # what was compiled for the stage before, of which no more than eight are kept
                torch.compiler.reset()
        self._set_rates()

    def _set_rates(self) -> None:
        if self.growing is not None:
            for optimizer in self.trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.stage.learning_rate

    # -- its pieces -------------------------------------------------------------------------------------------------

    def images_and_context(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Real pictures as the discriminator sees them at the stage, and what else is in a batch."""
        images, context = super().images_and_context(batch)
        images, fade = self._at_stage(images), self.stage.fade
        if fade < 1:
            halved = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0)
            images = torch.lerp(halved, images, fade)
        return images, context

    def labels_beside(self, real: Tensor, labels: Tensor | None) -> Tensor | None:
        """Those of the real pictures, as in the authors' code."""
        return labels

    def generate_from(self, latents: Tensor, labels: Tensor | None, **settings: Any) -> Tensor:
        """G(z) or G(z, y), with a graph: of `training_shape` in training mode, else of `image_shape`.

        Settings are those that the network's forward takes besides.
        """
        given = (self.own(latents),) if labels is None else (self.own(latents), labels)
        return self._finished(self.generator(*given, height=self.stage.resolution, fade=self.fade, **settings))

    def _finished(self, images: Tensor) -> Tensor:
        """Pictures as they are shown, where the model is not in training mode."""
        if self.training:
            return images
        return F.interpolate(images, scale_factor=float(self.stage.enlargement)).clamp(-1, 1)

    def judge(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x) or D(x, y), of pictures of the stage as the discriminator is shown them; see `as_shown`."""
        given = () if labels is None else (labels,)
        scores: Tensor = self.discriminator(self.as_shown(self._at_stage(images)), *given, fade=self.fade)
        return scores

    def _at_stage(self, images: Tensor) -> Tensor:
        return average_down(images, self.stage.resolution)

    def penalty_losses(
        self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        """As in `AdversarialModule`, by pixels of the last size.

        With y = f x the gradient by y is 1 / f of that by x. f is a power of two, so nothing is rounded.
        """
        factor = self.stage.enlargement
        return super().penalty_losses(lambda points: discriminator(points / factor), factor * real, factor * fake)

    # -- around it --------------------------------------------------------------------------------------------------

    def init_from(self, checkpoint: str | Path) -> Start:
        """As of every model, and say where the schedule begins."""
        start = super().init_from(checkpoint)
        if self.growing is not None:
            rank_zero_info(
                f"The schedule begins anew too, with pictures {self.stage.resolution} pixels high. Leave growing out "
                "of model and data (growing: null) to train in full size from the start."
            )
        return start

    def setup(self, stage: str) -> None:
        """Compare the schedule with that of the data."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and getattr(data, "growing", self.growing) != self.growing:
            raise ValueError(
                f"The data and the model must follow the same schedule, or none: data.growing is {data.growing}, and "
                f"model.growing is {self.growing}."
            )

    def _check_growing(self) -> None:
        name = type(self).__name__
        if self.growing is None:
            steps: tuple[int, ...] = (self.image_shape[1],)
        else:
            steps = self.growing.resolutions
            if self.decay_start < 1:
                raise ValueError(f"{name}: growing has the learning rates. Leave out decay_start, or growing.")
        if steps[-1] != self.image_shape[1]:
            raise ValueError(
                f"{name}: growing ends with pictures {steps[-1]} pixels high, but image_shape is {self.image_shape}."
            )
        for player, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            heights: tuple[int, ...] | None = getattr(network, "heights", None)
            if heights is None:
                raise ValueError(
                    f"{name}: the {player} {type(network).__name__} does not grow. It needs an attribute `heights`, "
                    "and to take `fade=`, as ProGANGenerator and ProGANDiscriminator do."
                )
            missing = [step for step in steps if step not in heights]
            if missing or any(2 * low != high != low for low, high in pairwise(steps)):
                raise ValueError(
                    f"{name}: growing must go through heights of the {player}, one after the other, which are "
                    f"{', '.join(map(str, heights))}; got {', '.join(map(str, steps))}."
                )
