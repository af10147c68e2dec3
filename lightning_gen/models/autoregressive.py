"""What all autoregressive models share: training by likelihood, and one sampler for all networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.orders import raster_order
from lightning_gen.losses.categorical import images_to_levels, rounding
from lightning_gen.losses.pixels import PixelLikelihood
from lightning_gen.models.likelihood import LikelihoodModule
from lightning_gen.models.training import NonFiniteLossError, OptimizerFactory
from lightning_gen.modes import evaluating
from lightning_gen.networks.pixel_sampler import Method, draw_pixels
from lightning_gen.randomness import fresh_generator
from lightning_gen.sampling import samples_at_once

Context: TypeAlias = Mapping[str, Tensor]
"""What a network is given beside pictures, by the name of its argument, such as labels."""


class AutoregressiveModule(LikelihoodModule):
    """A picture's probability as a product over its pixels, each given those before: p(x) = prod_i p(x_i | x_<i).

    A subclass makes `self.network`, which maps pictures to the parameters of all pixels in one pass, and names the
    `likelihood` that these are of. If the network has `init_cache` and `step`, as
    `lightning_gen.networks.stepping.CachedNetwork` says, a picture is drawn at the cost of about one pass; without, it
    takes a pass for each pixel.

    Pictures must hold levels and nothing else: 2k / (L - 1) - 1 for k of 0 to L - 1.

    Args:
        image_shape: (channels, height, width).
        likelihood: Of a pixel's levels, given the network's parameters.
        num_classes: Number of classes of a conditional model; None leaves labels out, whether the data has them or not.
        condition_channels: Channels of the map that a model is conditioned on, `[N, channels, H, W]`, which batches
            have under "condition"; None where there is none.
        learning_rate: Of the optimizer.
        lr_decay: Factor by which the rate is multiplied after each step.
        optimizer: Replaces the model's own; called with the parameters.
        channels_last: Whether weights lie channels-last in memory, which is faster on tensor cores and AMX.
        compile: Whether the network goes through `torch.compile` for training.

    Raises:
        ValueError: If a number is out of range; in a batch, if a picture is NaN or off the levels, or labels are
            missing or out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        likelihood: PixelLikelihood,
        *,
        num_classes: int | None = None,
        condition_channels: int | None = None,
        learning_rate: float = 1e-3,
        lr_decay: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape, likelihood.num_levels)
        self.save_hyperparameters()
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}.")
        if not 0 < lr_decay <= 1:
            raise ValueError(
                f"lr_decay, a factor for each step, must be above 0 and at most 1 (constant); got {lr_decay}."
            )
        self.declare_context(num_classes=num_classes, condition_channels=condition_channels)
        self.network: nn.Module
        self.likelihood = likelihood
        self.num_levels: int = likelihood.num_levels
        self.learning_rate, self.lr_decay, self.optimizer = learning_rate, lr_decay, optimizer
        self.channels_last, self.compile_network = channels_last, compile
        self._bad_step: Tensor | None = None  # the first whose loss was not finite

    # -- likelihood -------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, **context: Any) -> Tensor:
        """The parameters of all pixels, as `likelihood` takes them, in the mode that the network is in.

        It is what `torch.export` and `to_onnx` take; `log_prob` makes a probability of them.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            **context: What the network is given besides, such as `labels` `[N]`.
        """
        return self.network(self.own(images), **context)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Minimise -log p(x), in nats a dimension."""
        images, context = self.images_and_context(batch)
        levels = images_to_levels(images, self.num_levels, validate=False)  # that was done before the transfer
        log_prob = self.log_prob_of_levels(self(images, **self.training_context(context)), levels)
        loss = -log_prob.mean() / images[0].numel()
        self.images_seen += len(images) * self.trainer.world_size
        self.log("train/nll", -log_prob.detach().mean(), prog_bar=True)
        self._record(loss)
        return loss

    def training_context(self, context: Context) -> dict[str, Any]:
        """What the network is given in a training step beside the pictures."""
        return dict(context)

    def log_prob_of_levels(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Nats of each picture, `[N]`, given its pixels' parameters."""
        return self.likelihood.log_prob(parameters, levels).flatten(1).sum(1)

    def log_prob(self, images: Tensor, labels: Tensor | int | None = None, condition: Tensor | None = None) -> Tensor:
        """The exact log-probability of each picture's levels, in nats, in evaluation mode.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, of levels only.
            labels: Classes `[N]`, int64, or one for all. None in a model with classes averages the probability over all
                of them, as likely as each other.
            condition: `[N, condition_channels, H, W]`, where the model has one.

        Returns:
            float32 `[N]`, with a graph if gradients are enabled.

        Raises:
            ValueError: If a picture has another shape, is NaN, or is off the levels; or labels or condition do not fit.
        """
        images = self.checked_images(images).to(self.device)
        levels = self.levels_of(images)
        averaged = labels is None and self.num_classes is not None
        context = self.context(len(images), 0 if averaged else labels, condition)
        with evaluating(self.network):
            if not averaged:
                return self._log_prob(images, levels, context)
            classes = torch.arange(self.num_classes or 0, device=self.device)
            every = [self._log_prob(images, levels, {**context, "labels": c.expand(len(images))}) for c in classes]
            return torch.stack(every).logsumexp(0) - math.log(len(every))

    def _log_prob(self, images: Tensor, levels: Tensor, context: Context) -> Tensor:
        """Nats `[N]` of pictures and their levels, in the mode that the network is in."""
        return self.log_prob_of_levels(self(images, **context), levels)

    def batch_log_prob(self, batch: Any) -> Tensor:
        """Nats of each picture of a batch, given its labels where the model has classes."""
        images, context = self.images_and_context(batch)
        return self.log_prob(images, **context)

    # -- pictures ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        labels: Tensor | int | None = None,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        method: Method = "cached",
        compile: bool = False,
    ) -> Tensor:
        """Draw pictures, pixel after pixel.

        Args:
            num_samples: N, any number.
            labels: Classes `[N]`, int64, or one for all; None draws them evenly. Only for models with classes.
            condition: `[N, condition_channels, H, W]`, where the model has one.
            generator: On the CPU, whatever the model's device. Makes the result a function of its state; None draws
                from fresh entropy.
            temperature: 1 draws from the model, less is closer to the likeliest; 0 always takes the likeliest level.
            method: "cached" computes each pixel once; "naive" makes a whole pass for each, as a reference.
            compile: Whether the cached steps go through `torch.compile` first, which takes minutes and pays where many
                are drawn. (On CUDA steps are replayed as graphs without it.)

        Returns:
            float32 `[N, C, H, W]` in `[-1, 1]`, of levels only.

        Raises:
            ValueError: If a setting is out of range, or labels or condition do not fit.
        """
        context = self.sampling_context(num_samples, labels, condition)
        images = torch.zeros(num_samples, *self.image_shape)
        hole = torch.ones(num_samples, *self.image_shape[1:], dtype=torch.bool)
        settings = {"temperature": temperature, "method": method, "compile": compile}
        return self._fill(images, hole, self.sampling_order(), context, generator, **settings)

    @torch.no_grad()
    def complete(
        self,
        images: Tensor,
        known: Tensor,
        *,
        labels: Tensor | int | None = None,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        method: Method = "cached",
        compile: bool = False,
    ) -> Tensor:
        """Draw the pixels that are not known, given those that come before them in the order of generation.

        A model with a fixed order, such as the raster of PixelCNN, sees of the known pixels only those before; the
        pixels before the first unknown one cost one pass together.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, of levels where known, of anything elsewhere.
            known: Bool, True where pixels stay: `[H, W]`, or `[N, H, W]` for a mask of its own for each picture.
            labels: Classes `[N]`, int64, or one for all; None draws them evenly. Only for models with classes.
            condition: `[N, condition_channels, H, W]`, where the model has one.
            generator: As in `sample`.
            temperature: As in `sample`.
            method: As in `sample`.
            compile: As in `sample`.

        Returns:
            float32 `[N, C, H, W]`: known pixels bit for bit as they were, the others drawn.

        Raises:
            ValueError: If the mask has another size or type, or one picture's hides nothing or everything; if a picture
                has another shape or known pixels off the levels; if labels or condition do not fit, or a setting is out
                of range.
        """
        images = self.checked_images(images).float().cpu()
        hole = self._checked_hole(known, len(images))
        context = self.sampling_context(len(images), labels, condition)
        blank = images.masked_fill(hole.unsqueeze(1), -1.0)
        self.levels_of(blank)
        result = torch.empty_like(images, device=self.device)
        generator = generator or fresh_generator()
        # Pictures with one mask have one order, and go together.
        masks, which = hole.unique(dim=0, return_inverse=True)
        settings = {"temperature": temperature, "method": method, "compile": compile}
        for number, mask in enumerate(masks):
            rows = (which == number).nonzero().flatten()
            part = {name: value[rows.to(value.device)] for name, value in context.items()}
            drawn = self._fill(blank[rows], hole[rows], self.completion_order(~mask), part, generator, **settings)
            result[rows.to(self.device)] = drawn
        return torch.where(hole.unsqueeze(1).to(self.device), result, images.to(self.device))

    def sampling_order(self) -> Order:
        """In which pictures are drawn: the raster, unless a subclass has another."""
        return Order(raster_order(*self.image_shape[1:]))

    def completion_order(self, known: Tensor) -> Order:
        """In which the hole of a picture is filled, whose mask of known pixels is bool `[H, W]`."""
        return self.sampling_order()

    def _fill(
        self,
        images: Tensor,
        hole: Tensor,
        order: Order,
        context: Context,
        generator: torch.Generator | None,
        **settings: Any,
    ) -> Tensor:
        """Pictures on the model's device whose pixels in the hole are drawn in an order."""
        generator = generator or fresh_generator()
        if settings["method"] == "cached" and not hasattr(self.network, "step"):
            settings["method"] = "naive"
        parts = [images[:0].to(self.device)]
        with evaluating(self.network):
            size = samples_at_once(self.image_shape)
            for start in range(0, len(images), size):
                part = slice(start, start + size)
                given = {name: value[part] for name, value in context.items()} | dict(order.settings)
                parts.append(
                    draw_pixels(
                        self.network, self.likelihood, images[part], hole[part], order.positions, generator,
                        settings=given, **settings,
                    )
                )  # fmt: skip
        return torch.cat(parts)

    # -- what goes in -----------------------------------------------------------------------------------------------

    def levels_of(self, images: Tensor) -> Tensor:
        """The levels of pictures, which a trainer of half precision has rounded to it before the model sees them.

        Raises:
            ValueError: If a picture is NaN or off the levels, or its type too coarse to tell them apart.
        """
        return images_to_levels(images, self.num_levels, tolerance=rounding(images.dtype))

    def checked_images(self, images: Tensor) -> Tensor:
        """Pictures of the model's shape.

        Raises:
            ValueError: If they are of another.
        """
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"Pictures must be [N, {', '.join(map(str, self.image_shape))}] for this {type(self).__name__}, got "
                f"{list(images.shape)}."
            )
        return images

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at levels too, on the host."""
        self.levels_of(self.images_and_labels(batch)[0])
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def _checked_hole(self, known: Tensor, number: int) -> Tensor:
        """The pixels to draw, bool `[N, H, W]`, on the CPU."""
        size = self.image_shape[1:]
        if known.dtype != torch.bool or known.shape not in (size, (number, *size)):
            raise ValueError(
                f"The mask of known pixels must be bool {list(size)}, or {[number, *size]} for one of each picture; "
                f"got {known.dtype} {list(known.shape)}."
            )
        hole = ~known.cpu().expand(number, *size)
        for fault, places, hint in (
            ("leaves nothing known", hole.flatten(1).all(1), "`sample` draws whole pictures."),
            ("hides nothing", ~hole.flatten(1).any(1), "There is nothing to complete."),
        ):
            if bool(places.any()):
                raise ValueError(f"The mask of picture {int(places.nonzero()[0])} {fault}. {hint}")
        return hole

    # -- around it --------------------------------------------------------------------------------------------------

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """The optimizer where none was given: Adam."""
        return torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its rate, which falls by a factor at each step."""
        optimizer = made_by(self.optimizer or self.default_optimizer, Optimizer, self.network.parameters())
        # A function, not an object: its numbers must not come back from a checkpoint.
        schedule = LambdaLR(optimizer, lambda step: self.lr_decay**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def setup(self, stage: str) -> None:
        """Lay out and compile the network."""
        super().setup(stage)
        if self.channels_last:
            # Weights only: DDP fails on a mask in that layout which is the only one (PyTorch 2.14).
            for weight in (parameter for parameter in self.network.parameters() if parameter.ndim == 4):
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        if self.compile_network and stage == "fit":
            self.network.compile()

    def on_fit_start(self) -> None:
        """Forget what went wrong in an earlier run of the same model."""
        super().on_fit_start()
        self._bad_step = None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the loggers' x-axis; now, so that the names of checkpoints that this step brings have it too."""
        step = torch.full((), float(self.trainer.global_step + 1), device=self.device)
        self.log("step", step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the loss where the device waits anyway, because it is logged."""
        cadence = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if cadence and (self.batches_before + 1) % cadence == 0:
            self._raise_if_bad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save after a loss that was not finite."""
        self._raise_if_bad()
        super().on_save_checkpoint(checkpoint)

    def _record(self, loss: Tensor) -> None:
        """Note the first step whose loss was not finite; on a CPU, stop before it is taken."""
        never = torch.iinfo(torch.int64).max
        step = torch.where(loss.detach().isfinite(), never, self.trainer.global_step)
        self._bad_step = step if self._bad_step is None else torch.minimum(self._bad_step, step)
        if self.device.type == "cpu":
            self._raise_if_bad()

    def _raise_if_bad(self) -> None:
        if self._bad_step is not None and (step := int(self._bad_step)) < torch.iinfo(torch.int64).max:
            raise NonFiniteLossError(
                f"train/nll became NaN or infinite in the step after {step} updates. Training stopped and no "
                "checkpoint was written since. Go on from the last one with a lower learning rate or in float32."
            )


@dataclass(frozen=True)
class Order:
    """An order of generation.

    Args:
        positions: Flat indices of all pixels, int64 `[H * W]`.
        settings: What the network is given to follow it, beside pictures; nothing where it has but one.
    """

    positions: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)
