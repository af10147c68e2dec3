"""The discrete variational autoencoder of DALL-E (Ramesh et al. 2021, 2102.12092)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lightning_gen.layers.quantize import GumbelQuantizer
from lightning_gen.losses.categorical import images_to_levels, rounding
from lightning_gen.losses.images import ImageLikelihood, LogitLaplace
from lightning_gen.models.autoencoder import DecoderFactory, Encoded, EncoderFactory, TrainedAutoencoder
from lightning_gen.models.training import average_of, check_decay
from lightning_gen.networks.dalle import DALLEDecoder, DALLEEncoder
from lightning_gen.schedules import Cosine, Schedule, ends


class GumbelVAE(TrainedAutoencoder):
    """Pictures as maps of codes, which the encoder draws: in training relaxed, by the Gumbel-softmax (1611.01144).

    The objective is -log p(x | z) + beta KL(q(z | x) || p(z)), divided by the C H W values of a picture. p(z) is
    uniform, and the KL divergence that of the encoder's softmax, whatever the temperature. Where a token stands for
    f x f pixels, its mean over tokens has the weight beta / (C f^2), which is beta / 192 in the paper.

    Paper (2102.12092, appendix A; 256 x 256): residual networks of widths 256 to 2048, 8 x 8 pixels to a token, 8192
    codes; logit-Laplace; AdamW (0.9, 0.999) at 1e-4 to 1.25e-6 over 1,200,000 steps, weight decay 1e-4; temperature 1
    to 1/16 over 150,000 steps, beta 0 to 6.6 over 5000, each by half a cosine; weights averaged with 0.999; batch 512;
    3,000,000 steps. It publishes no figure of the reconstructions.

    `train/` and `val/` have `reconstruction` and `kl`, nats a value of the picture. In validation they are of the
    likeliest codes, as pictures are when they are reconstructed; while a model is fitted, `val/reconstruction-relaxed`
    is what training sees, and `val/gap` by how much the codes are worse. It closes as the temperature falls, and is
    below 0 where the noise of training costs more than the relaxation gains.

    Deviations: nats are of pictures in [-1, 1], a constant apart from the paper's. The average forgets its first
    weights faster, see `EMA`.

    Args:
        image_shape: (channels, height, width), of a size that the networks can halve.
        encoder: Called with (image_shape, features); maps pictures to features `[N, features, h, w]`.
        decoder: Called with (image_shape, code_size, P); maps vectors `[N, code_size, h, w]` to the P numbers that the
            likelihood takes for each pixel, `[N, P, H, W]`.
        likelihood: Of a picture, given what the decoder says; None means `LogitLaplace()`.
        num_codes: K, at least 2.
        code_size: Of the vectors that codes stand for.
        features: Channels of the features, which logits of the codes are linear in.
        straight_through: Whether training decodes the drawn codes themselves, with the gradient of the relaxed ones.
        temperature: Of the relaxation, above 0; or a schedule. None means the paper's.
        kl_weight: Beta, at least 0; or a schedule. None means the paper's.
        learning_rate: Of AdamW; or a schedule of steps. None means the paper's.
        ema_decay: Of the averaged weights; None keeps none. A run's own `EMA` takes its place.
        **settings: All others as in `TrainedAutoencoder`.

    Raises:
        ValueError: If a number is out of range, or a network does not fit the shapes; in a batch, if a picture is off
            the levels of the likelihood.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        encoder: EncoderFactory = DALLEEncoder,
        decoder: DecoderFactory = DALLEDecoder,
        likelihood: ImageLikelihood | None = None,
        *,
        num_codes: int = 8192,
        code_size: int = 128,
        features: int = 2048,
        straight_through: bool = False,
        temperature: float | Schedule | None = None,
        kl_weight: float | Schedule | None = None,
        learning_rate: float | Schedule | None = None,
        ema_decay: float | None = 0.999,
        **settings: Any,
    ) -> None:
        rate = Cosine(1e-4, 1.25e-6, 1_200_000) if learning_rate is None else learning_rate
        super().__init__(image_shape, learning_rate=rate, **settings)
        self.save_hyperparameters()
        self.temperature = Cosine(1.0, 1 / 16, 150_000) if temperature is None else temperature
        self.kl_weight = Cosine(0.0, 6.6, 5_000) if kl_weight is None else kl_weight
        self.ema_decay, self.likelihood = check_decay(ema_decay), likelihood or LogitLaplace()
        self._check_numbers()
        self.num_levels = self.likelihood.num_levels
        outputs = self.likelihood.num_parameters(self.image_shape[0])
        quantizer = partial(
            GumbelQuantizer, num_codes=num_codes, code_size=code_size, straight_through=straight_through
        )
        self.build(encoder, quantizer, decoder, features, outputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Minimise the objective, at the temperature and with the weight of this step."""
        images = self.images_and_context(batch)[0]
        temperature, beta = self.scheduled(self.temperature), self.scheduled(self.kl_weight)
        terms = self.terms(images, self.encode(images, temperature=temperature))
        self.images_seen += len(images) * self.trainer.world_size
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()}, prog_bar=True)
        self.log_dict({"train/temperature": temperature, "train/kl_weight": beta})
        self.watch(terms)
        return terms["reconstruction"] + beta * terms["kl"]

    def terms(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        """-log p(x | z) and KL(q(z | x) || p(z)), nats a value of the picture; both in full, whatever beta is."""
        log_prob = self.likelihood.log_prob(self.decoded(encoded.maps), images, validate=False)
        values, tokens = math.prod(self.image_shape), encoded.codes[0][0].numel()
        return {"reconstruction": -log_prob.mean() / values, "kl": encoded.losses["kl"] * (tokens / values)}

    def pictures_of(self, output: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]`, as the likelihood shows them."""
        return self.likelihood.mean(output, self.image_shape[0]).clamp(-1, 1)

    def figures(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        """The terms, and in a fit the reconstruction of relaxed codes at the temperature of the step."""
        figures = self.terms(images, encoded)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return figures  # there is no step
        relaxed = self.encode(images, relaxed=True, temperature=self.scheduled(self.temperature))
        reconstruction = self.terms(images, relaxed)["reconstruction"]
        gap = figures["reconstruction"] - reconstruction
        return {**figures, "reconstruction-relaxed": reconstruction, "gap": gap}

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """The optimizer where none was given: AdamW, as in the paper."""
        return torch.optim.AdamW(parameters, lr=self.base_rate, betas=(0.9, 0.999), weight_decay=1e-4, fused=True)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The average of the weights, unless the run has one of its own."""
        return [*super().configure_callbacks(), *average_of(self, ["encoder", "quantizer", "decoder"], self.ema_decay)]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at levels too, on the host, where the likelihood has any."""
        if self.num_levels is not None:
            images = self.images_and_labels(batch)[0]
            images_to_levels(images, self.num_levels, tolerance=rounding(images.dtype))
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def _check_numbers(self) -> None:
        """Look at the first and the last of schedules."""
        for name, value in (("temperature", self.temperature), ("kl_weight", self.kl_weight)):
            if not all(0 <= number < math.inf and (number or name == "kl_weight") for number in ends(value)):
                limit = "0 or more" if name == "kl_weight" else "above 0, from the first step to the last"
                raise ValueError(f"{name} must be {limit}; got {value}.")
