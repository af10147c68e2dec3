"""Variational autoencoders (Kingma and Welling 2013, 1312.6114)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gen.hyperparameters import made_by
from lightning_gen.losses.categorical import images_to_levels, rounding
from lightning_gen.losses.images import ImageLikelihood, Pixelwise
from lightning_gen.losses.latents import free_bits, gaussian_kl, gaussian_latent_kl, importance_weighted_bound
from lightning_gen.losses.precision import full
from lightning_gen.models.adversarial import shape_of
from lightning_gen.models.likelihood import LikelihoodModule
from lightning_gen.models.training import OptimizerFactory, TrainedModule
from lightning_gen.modes import evaluating
from lightning_gen.networks.vae import MLPDecoder, MLPEncoder
from lightning_gen.outlines import is_outline
from lightning_gen.randomness import fresh_generator, seed_from
from lightning_gen.sampling import LatentSampling, samples_at_once
from lightning_gen.schedules import Schedule

EncoderFactory: TypeAlias = Callable[[tuple[int, int, int], int], nn.Module]
"""Makes a network of (channels, height, width) and D: pictures to means and log-variances, `[N, D]` each."""
DecoderFactory: TypeAlias = Callable[[tuple[int, int, int], int, int], nn.Module]
"""Makes a network of (channels, height, width), D and P: latents `[N, D]` to parameters `[N, P, H, W]`."""


class VAE(LatentSampling, TrainedModule, LikelihoodModule):
    """Pictures from Gaussian latents, p(x) = E p(x | z), trained by the evidence lower bound of log p(x).

    The bound is E log p(x | z) - KL(q(z | x) || p(z)), with z from the encoder's Gaussian q: sums over pixels and over
    latents in nats, and the mean over the batch, so that beta is the same number for all sizes of pictures and latents.

    Paper (1312.6114, MNIST): a hidden layer of 500 tanh units in encoder and decoder, 3 to 200 latents; Bernoulli
    pixels, one sample of z, the KL divergence in closed form; Adagrad at 0.01 to 0.1; batch 100; 10^8 digits shown; its
    bounds are curves (figure 2). With two hidden layers of 200, 50 latents, batch 20 and 3,280 epochs of Adam, -88.7
    nats of the binarised digits of Larochelle and Murray (1509.00519, 5,000 importance samples).

    Validation and test log the bound, `val/elbo`, that of 1509.00519 by so many samples, `val/iwae-64`, and the parts
    of the first, `val/reconstruction` - `val/kl`; see `LikelihoodModule` for their names.

    Deviations: Adam at 1e-3 with epsilon 1e-4, as in 1509.00519. No weight decay. A picture is the mean of its pixels.

    Args:
        image_shape: (channels, height, width).
        encoder: Called with (image_shape, latent_size), and `num_classes=` where there are classes. Any network will do
            that maps pictures (and labels `[N]`) to means and log-variances of the latents, `[N, latent_size]` each.
        decoder: Called with (image_shape, latent_size, P), and `num_classes=` likewise; maps latents (and labels) to
            the P numbers that the likelihood takes for each pixel, `[N, P, H, W]`.
        likelihood: Of a picture, given what the decoder says; None means `Pixelwise()`, pixels black or white.
        latent_size: Width of the latents, D.
        num_classes: Number of classes of a conditional model; None leaves labels out, whether the data has them or not.
        beta: Weight of the KL divergence (1804.03599): 1 is the bound. A schedule from 0 to 1 warms it up (1602.02282).
        free_bits: Nats of KL divergence that each latent may spend for nothing; see `losses.latents.free_bits`.
        importance_samples: K of the bound `iwae-K`, at least 2; None leaves it out.
        learning_rate: Of Adam; or a schedule of steps, which holds for an optimizer of your own too.
        optimizer: Replaces the model's own; called with the parameters.
        channels_last: Whether weights lie channels-last in memory, which is faster on tensor cores and AMX.
        compile: Whether the networks go through `torch.compile` for training.

    Raises:
        ValueError: If a number is out of range or a network does not fit; when a run starts, if the data has other
            levels or classes; in a batch, if a picture is NaN or off the levels, or labels are missing or out of range.
    """

    bound: ClassVar[str | None] = "elbo"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        encoder: EncoderFactory = MLPEncoder,
        decoder: DecoderFactory = MLPDecoder,
        likelihood: ImageLikelihood | None = None,
        *,
        latent_size: int = 20,
        num_classes: int | None = None,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        importance_samples: int | None = 64,
        learning_rate: float | Schedule = 1e-3,
        optimizer: OptimizerFactory | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        likelihood = likelihood or Pixelwise()
        super().__init__(image_shape, likelihood.num_levels)
        self.save_hyperparameters()
        for name, value, least in (
            ("latent_size", latent_size, 1),
            ("beta", 0.0 if isinstance(beta, Schedule) else beta, 0),
            ("free_bits", free_bits, 0),
            ("importance_samples", importance_samples or 2, 2),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"{name} must be {least} or more, got {value}.")
        self.declare_context(num_classes=num_classes)
        self.declare_training(learning_rate, optimizer, channels_last=channels_last, compile=compile)
        self.likelihood, self.beta, self.free_bits = likelihood, beta, free_bits
        self.latent_size, self.latent_shape = latent_size, (latent_size,)
        self.bounds = {"elbo": {}}
        if importance_samples:
            self.bounds[f"iwae-{importance_samples}"] = {"num_samples": importance_samples}
        classes = {} if num_classes is None else {"num_classes": num_classes}
        outputs = likelihood.num_parameters(self.image_shape[0])
        self.encoder = made_by(encoder, nn.Module, self.image_shape, latent_size, **classes)
        self.decoder = made_by(decoder, nn.Module, self.image_shape, latent_size, outputs, **classes)
        if not is_outline():  # of a checkpoint, whose weights have been trained
            self._check_networks(outputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Maximise the bound."""
        images, context = self.images_and_context(batch)
        means, log_variances = self.encode(images, **context)
        latents = means + (log_variances / 2).exp() * self.latents(len(images))
        reconstruction = self.judge(latents, images, context).mean()
        kl = gaussian_latent_kl(means, log_variances)
        loss = self.scheduled(self.beta) * free_bits(kl, self.free_bits) - reconstruction
        self.images_seen += len(images) * self.trainer.world_size
        parts = {"train/reconstruction": reconstruction.detach(), "train/kl": kl.detach().sum(1).mean()}
        self.log_dict({"train/loss": loss.detach(), **parts}, prog_bar=True)
        self.watch({"loss": loss})
        return loss

    # -- its pieces -------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means and log-variances of q(z | x), float32 `[N, D]` each, with a graph and in the mode of the encoder."""
        images = self.own(images)
        means, log_variances = self.encoder(images) if labels is None else self.encoder(images, labels)
        return full(means), full(log_variances)

    def decoded(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the decoder says of latents `[N, D]`: parameters `[N, P, H, W]` of the likelihood."""
        latents = self.own(latents)
        return self.decoder(latents) if labels is None else self.decoder(latents, labels)

    def judge(self, latents: Tensor, images: Tensor, context: Mapping[str, Tensor], validate: bool = False) -> Tensor:
        """Log p(x | z) of each picture, nats `[N]`."""
        return self.likelihood.log_prob(self.decoded(latents, **context), images, validate=validate)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]` encoded as their means and decoded, as `torch.export` and `to_onnx` take it."""
        return self.generate_from(self.encode(images, labels)[0], labels)

    def generate_from(
        self,
        latents: Tensor,
        labels: Tensor | None,
        *,
        pixels: Literal["mean", "sample"] = "mean",
        temperature: float = 1.0,
    ) -> Tensor:
        """The pictures of latents, with a graph and in the mode that the decoder is in; for settings see `sample`."""
        if pixels not in ("mean", "sample"):
            raise ValueError(f"pixels must be 'mean' or 'sample', got {pixels!r}.")
        parameters = self.decoded(temperature * latents, labels)
        if pixels == "mean":
            return self.likelihood.mean(parameters, self.image_shape[0])
        shape = (self.likelihood.num_uniforms(self.image_shape[0]), *self.image_shape[1:])
        # A picture is a function of its latents, and so is its noise.
        words = latents.float().cpu().contiguous().numpy().view("uint32").tolist()
        noise = [torch.rand(shape, generator=torch.Generator().manual_seed(seed_from(*row))) for row in words]
        return self.likelihood.sample(parameters, torch.stack(noise).to(self.device), self.image_shape[0])

    # -- likelihood -------------------------------------------------------------------------------------------------

    def log_prob(
        self,
        images: Tensor,
        labels: Tensor | int | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A lower bound of log p(x) in evaluation mode, higher on average the more samples are drawn from q(z | x).

        With one it is the evidence lower bound, its KL divergence in closed form; with more the importance-weighted one
        (1509.00519), in parts, so that memory does not grow with their number (without gradients).

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            labels: Classes `[N]`, int64, or one for all. None in a model with classes averages the probability over all
                of them, as likely as each other.
            num_samples: K, at least 1.
            generator: On the CPU, whatever the model's device. Makes the result a function of its state; None draws
                from fresh entropy.

        Returns:
            Nats, float32 `[N]`, with a graph if gradients are enabled.

        Raises:
            ValueError: If a picture has another shape, is NaN or off the levels, labels do not fit, or K is below 1.
        """
        images = self.checked_images(images).to(self.device)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        averaged = labels is None and self.num_classes is not None
        contexts = self._classes(len(images)) if averaged else [self.context(len(images), labels)]
        generator = generator or fresh_generator()
        with evaluating(self):
            every = [self._bound(images, context, num_samples, generator) for context in contexts]
        return torch.stack(every).logsumexp(0) - math.log(len(every)) if averaged else every[0]

    def _bound(self, images: Tensor, context: Mapping[str, Tensor], number: int, generator: torch.Generator) -> Tensor:
        means, log_variances = self.encode(images, **context)
        deviations, log_weights = (log_variances / 2).exp(), []
        at_once = max(1, samples_at_once(self.image_shape) // max(1, len(images)))
        for start in range(0, number, at_once):
            part = min(at_once, number - start)
            noise = torch.stack([self.draw_latents(len(images), generator) for _ in range(part)])
            latents = means + deviations * noise  # [part, N, D]
            repeated = {name: value.repeat(part) for name, value in context.items()}
            pictures = images.repeat(part, 1, 1, 1)
            nats = self.judge(latents.flatten(0, 1), pictures, repeated, validate=not start).view(part, len(images))
            if number == 1:
                return nats[0] - gaussian_kl(means, log_variances)
            # log p(z) - log q(z | x), in which log 2 pi cancels.
            log_weights.append(nats + (noise.square() + log_variances - latents.square()).sum(2) / 2)
        return importance_weighted_bound(torch.cat(log_weights).T)

    def _classes(self, number: int) -> list[dict[str, Tensor]]:
        """What the networks are given with so many pictures of each class."""
        return [{"labels": torch.full((number,), c, device=self.device)} for c in range(self.num_classes or 0)]

    def _evaluate(self, batch: Any, batch_idx: int, part: str) -> None:
        """The bounds, and the parts of the first of them."""
        super()._evaluate(batch, batch_idx, part)
        images, context = self.images_and_context(batch)
        kl = gaussian_kl(*self.encode(images, **context))
        reconstruction = self.batch_log_prob(batch, generator=self.noise_of(batch_idx)) + kl
        parts = {f"{part}/reconstruction": reconstruction.mean(), f"{part}/kl": kl.mean()}
        self.log_dict(parts, on_epoch=True, batch_size=len(images), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The bound for each picture."""
        return self.batch_log_prob(batch, generator=self.noise_of(batch_idx))

    # -- pictures ---------------------------------------------------------------------------------------------------

    def sample(
        self,
        num_samples: int,
        *,
        labels: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        pixels: Literal["mean", "sample"] = "mean",
        temperature: float = 1.0,
    ) -> Tensor:
        """Pictures from noise; see `lightning_gen.capabilities.Samples`.

        Args:
            num_samples: N, any number.
            labels: Classes `[N]`, int64, or one for all; None draws them evenly. Only for models with classes.
            generator: On the CPU, whatever the model's device. Makes the result a function of its state; None draws
                from fresh entropy.
            seed: In place of a generator: the pictures of `lightning-gen sample --seed`; see `LatentSampling`.
            pixels: "mean" shows what the likelihood takes for the picture of its parameters, as papers do; "sample"
                draws each pixel, by noise that is a function of the latents.
            temperature: Factor of the latents; less than 1 stays closer to the most common pictures.

        Returns:
            float32 `[N, C, H, W]` in `[-1, 1]`.

        Raises:
            ValueError: If `num_samples` is negative, `pixels` is unknown, or labels are surplus, out of range or not
                `num_samples` many.
        """
        labels = self.sampling_context(num_samples, labels).get("labels")
        latents = self.chosen_latents(num_samples, generator, seed)
        return self.generate(latents, labels, pixels=pixels, temperature=temperature)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """What is left of pictures when they are encoded as the mean of q(z | x) and decoded; see `Reconstructs`.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            labels: Classes `[N]`, int64, or one for all. None in a model with classes takes for each picture the one
                under which that is the likeliest.

        Returns:
            float32 `[N, C, H, W]`.

        Raises:
            ValueError: If pictures have another shape, or labels do not fit.
        """
        images = self.checked_images(images)
        given = {} if labels is None else self.context(len(images), labels)
        size, parts = samples_at_once(self.image_shape), [torch.empty(0, *self.image_shape, device=self.device)]
        with evaluating(self):
            for start in range(0, len(images), size):
                part = images[start : start + size].to(self.device)
                context = {name: value[start : start + size] for name, value in given.items()}
                if labels is None and self.num_classes is not None:
                    every = [self.judge(self.encode(part, **each)[0], part, each) for each in self._classes(len(part))]
                    context["labels"] = torch.stack(every).argmax(0)
                parts.append(self(part, **context).float())
        return torch.cat(parts)

    # -- around it --------------------------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at levels too, on the host."""
        if self.num_levels is not None:
            images = self.images_and_labels(batch)[0]
            images_to_levels(images, self.num_levels, tolerance=rounding(images.dtype))
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """The optimizer where none was given: Adam, as in 1509.00519."""
        return torch.optim.Adam(parameters, lr=self.base_rate, eps=1e-4, fused=True)

    def _check_networks(self, outputs: int) -> None:
        """Look whether the networks fit the shapes."""
        labels = () if self.num_classes is None else (torch.zeros(1, dtype=torch.int64),)
        expected = (1, outputs, *self.image_shape[1:])
        if (found := shape_of(self.decoder, torch.zeros(1, self.latent_size), *labels)) != expected:
            raise ValueError(
                f"{type(self).__name__}: the decoder {type(self.decoder).__name__} gives {list(found)} for a vector of "
                f"latents, but {type(self.likelihood).__name__} needs {list(expected)}: how many numbers it gives for "
                "each pixel is its third argument."
            )
        with torch.no_grad(), evaluating(self.encoder):
            made = self.encoder(torch.zeros(1, *self.image_shape), *labels)
        if not isinstance(made, tuple) or [tuple(each.shape) for each in made] != [(1, self.latent_size)] * 2:
            raise ValueError(
                f"{type(self).__name__}: the encoder {type(self.encoder).__name__} must give means and log-variances, "
                f"[N, {self.latent_size}] each."
            )
