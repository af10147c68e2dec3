"""What all autoregressive models share: training by likelihood, and one sampler for all networks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_gen.hyperparameters import accepts, import_path, made_by
from lightning_gen.layers.orders import raster_order
from lightning_gen.losses.categorical import images_to_levels, levels_to_images, rounding
from lightning_gen.losses.pixels import PixelLikelihood
from lightning_gen.models.likelihood import LikelihoodModule
from lightning_gen.models.training import OptimizerFactory, WatchedModule, prepare_networks
from lightning_gen.modes import evaluating
from lightning_gen.networks.building import listed
from lightning_gen.networks.density import LevelEmbedding
from lightning_gen.networks.pixel_sampler import Method, draw_pixels, look_of
from lightning_gen.randomness import chosen_generator, fresh_generator
from lightning_gen.sampling import samples_at_once

Context: TypeAlias = Mapping[str, Tensor]
"""What a network is given beside pictures, by the name of its argument, such as labels."""
DensityFactory: TypeAlias = Callable[[tuple[int, int, int], int], nn.Module]
"""Makes a network of (channels, height, width) and the number of parameters of each pixel, and of `num_classes` and
`condition_channels` where the model has them."""


class AutoregressiveModule(WatchedModule, LikelihoodModule):
    """A picture's probability as a product over its pixels, each given those before: p(x) = prod_i p(x_i | x_<i).

    The network maps pictures to the parameters of all pixels in one pass. Any `nn.Module` will do that does so, made by
    a `DensityFactory`; `lightning_gen.testing` has checks for it. If it has `init_cache` and `step`, as
    `lightning_gen.networks.stepping.CachedNetwork` says, a picture is drawn at the cost of about one pass; without, it
    takes a pass for each pixel. If it has `embed`, it looks at what that makes of levels.

    Pictures must hold levels and nothing else: 2k / (L - 1) - 1 for k of 0 to L - 1. A model of other levels, such as
    codes, overrides `to_levels` and `to_images`, and sets `level_shape` and `network` itself.

    Args:
        image_shape: (channels, height, width).
        likelihood: Of a pixel's levels, given the network's parameters.
        network: Makes the network, whose sizes are its own arguments; None where a subclass sets `network`.
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

    network: nn.Module

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        likelihood: PixelLikelihood,
        network: DensityFactory | None = None,
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
        self.likelihood, self.level_shape = likelihood, self.image_shape
        self.learning_rate, self.lr_decay, self.optimizer = learning_rate, lr_decay, optimizer
        self.channels_last, self.compile_network = channels_last, compile
        if network is not None:
            self.network = self.network_of(network)

    # -- likelihood -------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Minimise -log p(x), in nats a dimension."""
        images, context = self.images_and_context(batch)
        levels = self.to_levels(images, validate=False)  # that was done before the transfer
        parameters = self.network(self.seen(images, levels), **self.training_context(context))
        log_prob = self.log_prob_of_levels(parameters, levels)
        loss = -log_prob.mean() / levels[0].numel()
        self.images_seen += len(images) * self.trainer.world_size
        self.log("train/nll", -log_prob.detach().mean(), prog_bar=True)
        self.watch({"nll": loss})
        return loss

    def training_context(self, context: Context) -> dict[str, Any]:
        """What the network is given in a training step beside the pictures."""
        return dict(context)

    def log_prob_of_levels(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Nats of each picture, `[N]`, given its pixels' parameters."""
        return self.likelihood.log_prob(parameters, levels).flatten(1).sum(1)

    def forward(self, images: Tensor, **context: Any) -> Tensor:
        """The parameters of all pixels, as `likelihood` takes them, in the mode that the network is in.

        It is what `torch.export` and `to_onnx` take; `log_prob` makes a probability of them.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            **context: What the network is given besides, such as `labels` `[N]`.
        """
        return self.network(self.seen(images), **context)

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
        levels = self.to_levels(images)
        return self._log_prob_given(self.seen(images, levels), levels, len(images), labels, condition)

    def _log_prob_given(
        self, seen: Tensor, levels: Tensor, number: int, labels: Tensor | int | None, condition: Tensor | None = None
    ) -> Tensor:
        """Nats `[N]` of levels and what the network looks at, in evaluation mode; without labels over all classes."""
        averaged = labels is None and self.num_classes is not None
        context = self.context(number, 0 if averaged else labels, condition)
        with evaluating(self.network):
            if not averaged:
                return self._log_prob(seen, levels, context)
            classes = torch.arange(self.num_classes or 0, device=self.device)
            every = [self._log_prob(seen, levels, {**context, "labels": c.expand(number)}) for c in classes]
            return torch.stack(every).logsumexp(0) - math.log(len(every))

    def _log_prob(self, seen: Tensor, levels: Tensor, context: Context) -> Tensor:
        """Nats `[N]` of levels and what the network looks at, in the mode that it is in."""
        return self.log_prob_of_levels(self.network(seen, **context), levels)

    # -- levels -----------------------------------------------------------------------------------------------------

    def to_levels(self, images: Tensor, *, validate: bool = True) -> Tensor:
        """The levels of pictures, int64 `[N, *level_shape]` of 0 to L - 1, the alphabet of the likelihood.

        A trainer of half precision has rounded pictures to it before the model sees them.

        Args:
            images: `[N, C, H, W]`.
            validate: Whether values are looked at, for which the host waits for the device.

        Raises:
            ValueError: If a picture is NaN or off the levels, or its type too coarse to tell them apart.
        """
        tolerance = rounding(images.dtype)
        return images_to_levels(images, self.likelihood.num_levels, validate=validate, tolerance=tolerance)

    def to_images(self, levels: Tensor) -> Tensor:
        """Pictures float32 `[N, C, H, W]` of levels `[N, *level_shape]`."""
        return levels_to_images(levels, self.likelihood.num_levels)

    def seen(self, images: Tensor, levels: Tensor | None = None) -> Tensor:
        """What the network looks at: pictures of numbers in order, or else what it takes for their levels."""
        if self.level_shape == self.image_shape and not hasattr(self.network, "embed"):
            return self.own(images)
        levels = self.to_levels(images, validate=False) if levels is None else levels
        return self.own(look_of(self.network, self.likelihood.num_levels)(levels))

    def network_of(
        self,
        factory: DensityFactory,
        level_shape: tuple[int, int, int] | None = None,
        condition_channels: int | None = None,
    ) -> nn.Module:
        """The network for these levels, this likelihood, and what the model is given besides.

        Args:
            factory: Makes it.
            level_shape: Of levels that are only a part of the model's; None for all of them.
            condition_channels: Of a map that these are conditioned on in place of the model's.

        Raises:
            ValueError: If the factory makes no module, or one that has vectors for more or fewer levels; or does not
                take what the model is given.
        """
        shape = level_shape or self.level_shape
        given = {"num_classes": self.num_classes, "condition_channels": condition_channels or self.condition_channels}
        context = {name: number for name, number in given.items() if number is not None}
        target = factory.func if isinstance(factory, partial) else factory
        if refused := [name for name in context if not accepts(target, name)]:
            name = getattr(target, "__name__", type(target).__name__)
            raise ValueError(
                f"{name} takes no {listed(refused)}, which this {type(self).__name__} gives its network. Take one that "
                "does, such as GatedPixelCNNNetwork or GPTNetwork."
            )
        network = made_by(factory, nn.Module, shape, self.likelihood.num_parameters(shape[0]), **context)
        embed, num_levels = getattr(network, "embed", None), self.likelihood.num_levels
        if isinstance(embed, LevelEmbedding) and embed.num_embeddings != num_levels:
            raise ValueError(
                f"An embedding is of levels in no order, whose likelihood is a softmax; {self.likelihood} of "
                f"{num_levels} levels is none. Leave the embedding out."
            )
        return network

    # -- pictures ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        labels: Tensor | int | None = None,
        condition: Tensor | None = None,
        captions: Sequence[str] | Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
        method: Method = "cached",
        compile: bool = False,
    ) -> Tensor:
        """Draw pictures, pixel after pixel.

        Args:
            num_samples: N, any number.
            labels: Classes `[N]`, int64, or one for all; None draws them evenly. Only for models with classes.
            condition: `[N, condition_channels, H, W]`, where the model has one.
            captions: N texts, where the model reads them.
            generator: On the CPU, whatever the model's device. Makes the result a function of its state; None draws
                from fresh entropy.
            seed: In place of a generator, 0 or more, as of `lightning-gen sample` where one batch has them all.
            temperature: 1 draws from the model, less is closer to the likeliest; 0 always takes the likeliest level.
            top_k: Draw among so many of the likeliest levels of each channel; None is all. For a likelihood that is a
                softmax.
            top_p: Draw among the fewest of the likeliest levels that have this probability together, at the
                temperature; 1 is all. Likewise.
            guidance: s of null + s (cond - null) in logits, where cond are those of the label and null those of none
                (2207.12598): above 1 pictures are more of their class, and vary less. For networks that were trained
                with labels dropped; 1 is none.
            method: "cached" computes each pixel once; "naive" makes a whole pass for each, as a reference.
            compile: Whether the cached steps go through `torch.compile` first, which takes minutes and pays where many
                are drawn. (On CUDA steps are replayed as graphs without it.)

        Returns:
            float32 `[N, C, H, W]` in `[-1, 1]`, of levels only.

        Raises:
            ValueError: If a setting is out of range, or labels, condition or captions do not fit.
        """
        generator = chosen_generator(generator, seed)
        context = self.sampling_context(num_samples, labels, condition, captions)
        choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        settings = {**choice, "method": method, "compile": compile}
        return self.to_images(self.draw_levels(num_samples, context, generator, **settings))

    @torch.no_grad()
    def complete(
        self,
        images: Tensor,
        known: Tensor,
        *,
        labels: Tensor | int | None = None,
        condition: Tensor | None = None,
        captions: Sequence[str] | Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
        method: Method = "cached",
        compile: bool = False,
    ) -> Tensor:
        """Draw the pixels that are not known, given those that come before them in the order of generation.

        A model with a fixed order, such as the raster of PixelCNN, sees of the known pixels only those before; the
        pixels before the first unknown one cost one pass together.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, of levels where known, of anything elsewhere.
            known: Bool, True where pixels stay: `[H, W]`, or `[N, H, W]` for a mask of its own for each picture, or
                `[N, 1, H, W]`.
            labels: Classes `[N]`, int64, or one for all; None draws them evenly. Only for models with classes.
            condition: `[N, condition_channels, H, W]`, where the model has one.
            captions: N texts, where the model reads them.
            generator: As in `sample`.
            temperature: As in `sample`.
            top_k: As in `sample`.
            top_p: As in `sample`.
            guidance: As in `sample`.
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
        context = self.sampling_context(len(images), labels, condition, captions)
        choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        settings = {**choice, "method": method, "compile": compile}
        filled = self.fill_hole(images, hole, context, generator or fresh_generator(), **settings)
        return torch.where(hole.unsqueeze(1).to(self.device), filled, images.to(self.device))

    def draw_levels(self, num_samples: int, context: Context, generator: torch.Generator, **settings: Any) -> Tensor:
        """Levels of so many pictures, as `to_images` takes them."""
        levels = torch.zeros(num_samples, *self.level_shape, dtype=torch.int64)
        hole = torch.ones(num_samples, *self.level_shape[1:], dtype=torch.bool)
        return self.fill(levels, hole, self.sampling_order(), context, generator, **settings)

    def fill_hole(
        self, images: Tensor, hole: Tensor, context: Context, generator: torch.Generator, **settings: Any
    ) -> Tensor:
        """Pictures whose hole, bool `[N, H, W]`, is filled, and that may be anything elsewhere; given on the CPU.

        Those with one mask have one order, and go together.
        """
        levels = self.to_levels(images.masked_fill(hole.unsqueeze(1), -1.0))
        result = torch.empty_like(levels, device=self.device)
        masks, which = hole.unique(dim=0, return_inverse=True)
        for number, mask in enumerate(masks):
            rows = (which == number).nonzero().flatten()
            part = {name: value[rows.to(value.device)] for name, value in context.items()}
            drawn = self.fill(levels[rows], hole[rows], self.completion_order(~mask), part, generator, **settings)
            result[rows.to(self.device)] = drawn
        return self.to_images(result)

    def sampling_order(self) -> Order:
        """In which pictures are drawn: the raster, unless a subclass has another."""
        return Order(raster_order(*self.level_shape[1:]))

    def completion_order(self, known: Tensor) -> Order:
        """In which the hole of a picture is filled, whose mask of known pixels is bool `[H, W]`."""
        return self.sampling_order()

    def fill(
        self,
        levels: Tensor,
        hole: Tensor,
        order: Order,
        context: Context,
        generator: torch.Generator,
        network: nn.Module | None = None,
        **settings: Any,
    ) -> Tensor:
        """Levels on the model's device whose pixels in the hole are drawn in an order, by a network or the model's."""
        network = network or self.network
        if settings["method"] == "cached" and not hasattr(network, "step"):
            settings["method"] = "naive"
        parts = [levels[:0].to(self.device)]
        with evaluating(network):
            size = samples_at_once(self.image_shape)
            for start in range(0, len(levels), size):
                part = slice(start, start + size)
                given = {name: value[part] for name, value in context.items()} | dict(order.settings)
                parts.append(
                    draw_pixels(
                        network, self.likelihood, levels[part], hole[part], order.positions, generator,
                        settings=given, **settings,
                    )
                )  # fmt: skip
        return torch.cat(parts)

    # -- what goes in -----------------------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at levels too, on the host, where they are the pictures' own."""
        if self.likelihood_of is None and self.level_shape == self.image_shape:
            self.to_levels(self.images_and_labels(batch)[0])
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def _checked_hole(self, known: Tensor, number: int) -> Tensor:
        """The pixels to draw, bool `[N, H, W]`, on the CPU."""
        size = self.image_shape[1:]
        known = known.squeeze(1) if known.ndim == 4 else known
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
        compiled = self.compile_network and stage == "fit"
        prepare_networks([self.network], channels_last=self.channels_last, compile=compiled, ambiguous=False)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the loggers' x-axis; now, so that the names of checkpoints that this step brings have it too."""
        step = torch.full((), float(self.trainer.global_step + 1), device=self.device)
        self.log("step", step)

    @classmethod
    def upgraded(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Earlier versions had the sizes of the network among the model's own arguments."""
        argument = inspect.signature(cls).parameters.get("network")
        if argument is None or saved.get("network"):
            return dict(saved)
        sizes = [name for name in saved if not accepts(cls, name) and accepts(argument.default, name)]
        others = {name: value for name, value in saved.items() if name not in sizes}
        if not sizes:
            return others
        init_args = {name: saved[name] for name in sizes}
        return others | {"network": {"class_path": import_path(argument.default), "init_args": init_args}}


@dataclass(frozen=True)
class Order:
    """An order of generation.

    Args:
        positions: Flat indices of all pixels, int64 `[H * W]`.
        settings: What the network is given to follow it, beside pictures; nothing where it has but one.
    """

    positions: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)
