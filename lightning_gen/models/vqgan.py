"""VQGAN: an autoencoder with a codebook, a perceptual loss and a discriminator (Esser et al. 2021, 2012.09841)."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.quantize import VectorQuantizer
from lightning_gen.layers.ties import on_both
from lightning_gen.losses.adversarial import AdversarialLoss, Hinge
from lightning_gen.losses.perceptual import LPIPSDistance, PerceptualLoss
from lightning_gen.losses.precision import full
from lightning_gen.models.adversarial import (
    AdversarialModule,
    Losses,
    check_augmentation,
    check_penalties,
    generator_loss,
)
from lightning_gen.models.autoencoder import (
    Autoencoder,
    DecoderFactory,
    Encoded,
    EncoderFactory,
    QuantizerFactory,
)
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.patchgan import PatchDiscriminator
from lightning_gen.networks.vqgan import GaussianLatent, VQGANDecoder, VQGANEncoder
from lightning_gen.processes import total, world_size


class VQGAN(Autoencoder, AdversarialModule):
    """An autoencoder of codes whose reconstructions a perceptual loss compares and a discriminator judges by patches.

    A step trains the autoencoder, then the discriminator on the same reconstructions: one pass, in which the codebook
    moves once. The autoencoder's loss is the distance of pixels, that of features, what the quantizer adds, and the
    adversarial term times `discriminator_weight` and, where `adaptive`, times the ratio of the gradients of distances
    and adversarial term at the decoder's last layer, at most 10,000: `train/adaptive_weight`. Until
    `discriminator_start` the last term is left out.

    Paper (2012.09841, and the authors' code for ImageNet at 256 x 256): residual networks with attention, 16 x 16
    pixels to a code; 1024 codes of 256 by gradient, commitment 0.25; L1 and LPIPS of equal weight; PatchGAN of 3
    layers with batch norm, hinge loss, weight 0.8 x adaptive, after 250,000 steps; Adam (0.5, 0.9) at 4.5e-6 x the
    pictures in a batch of all GPUs; batch 12; 7.94 FID of reconstructions (4.98 with 16,384 codes).

    The rate is a plain number here: 5.4e-5 for 12 pictures. With a `GaussianLatent` in place of a quantizer it is the
    autoencoder of latent diffusion (2112.10752): `channels` are then twice those of the latents, and there are no
    codes.

    Deviations: the commitment is weighted by 0.25 and the codebook by 1, as in the paper; the authors' code has it the
    other way round. Codes that are hardly used begin anew (`VectorQuantizer(restart_below=0)` is the paper's). Theirs
    runs the autoencoder again before the discriminator learns. Over several ranks gradients are averaged before their
    ratio is taken; of `micro_batches` each has its own.

    Args:
        image_shape: (channels, height, width), of multiples of the networks' factor.
        encoder: Makes the network from pictures to features.
        decoder: Makes the network from vectors to pictures.
        quantizer: Makes the quantizer, any of `lightning_gen.layers.quantize`, or a `GaussianLatent`; None means 1024
            codes learned by gradient.
        discriminator: Makes the discriminator; None means a `PatchDiscriminator` with batch norm.
        loss: Adversarial loss; None means `Hinge()`. The discriminator's is halved.
        perceptual: None means `LPIPSDistance()`, which needs the weights of VGG-16 when a run starts.
        channels: D, of the features.
        reconstruction: Distance of pixels, a mean over numbers: "l1" or "l2", squares.
        perceptual_weight: Of the perceptual loss; with 0 its network is not even loaded.
        discriminator_weight: Of the adversarial term.
        adaptive: Whether that is multiplied by the ratio of gradients.
        discriminator_start: Steps before the adversarial term counts.
        discriminator_warmup: The last of these in which the discriminator learns already; none in the paper. With some
            the discriminator knows something when it is first listened to.
        learning_rate: Of both players' optimizers.
        betas: Of Adam.
        **settings: All others as in `AdversarialModule`, where the autoencoder is the generator; `R1(interval=16)`
            among penalties is lazy, and needs a discriminator without batch norm.

    Raises:
        ValueError: If a number is out of range, or the parts do not fit together; when a run starts, if the perceptual
            loss cannot read the pictures.
        FileNotFoundError: When a run starts, if the perceptual loss has no weights.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        encoder: EncoderFactory = VQGANEncoder,
        decoder: DecoderFactory = VQGANDecoder,
        quantizer: QuantizerFactory | None = None,
        discriminator: NetworkFactory | None = None,
        loss: AdversarialLoss | None = None,
        perceptual: PerceptualLoss | None = None,
        *,
        channels: int = 256,
        reconstruction: Literal["l1", "l2"] = "l1",
        perceptual_weight: float = 1.0,
        discriminator_weight: float = 0.8,
        adaptive: bool = True,
        discriminator_start: int = 250_000,
        discriminator_warmup: int = 0,
        learning_rate: float = 5.4e-5,
        betas: tuple[float, float] = (0.5, 0.9),
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, learning_rate=learning_rate, betas=betas, **settings)
        self.save_hyperparameters()
        for name, weight in {"perceptual": perceptual_weight, "discriminator": discriminator_weight}.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name}_weight must be 0 or more, got {weight}.")
        if not 0 <= discriminator_warmup <= discriminator_start:
            raise ValueError(
                "discriminator_warmup are some of the steps before discriminator_start, from 0 to all of them; got "
                f"{discriminator_warmup} of {discriminator_start}."
            )
        if reconstruction not in ("l1", "l2"):
            raise ValueError(f"reconstruction must be 'l1' or 'l2', got {reconstruction!r}.")
        quantizer = quantizer or partial(VectorQuantizer, num_codes=1024, codebook="gradient")
        self.build(encoder, quantizer, decoder, channels, self.image_shape[0])
        judge = discriminator or partial(PatchDiscriminator, norm="batch")
        self.discriminator = made_by(judge, nn.Module, self.image_shape)
        check_penalties(type(self).__name__, self.discriminator, self.penalties)
        self.freeze_layers()
        self.loss, self.perceptual = loss or Hinge(), perceptual or LPIPSDistance()
        check_augmentation(type(self).__name__, self.augment, self.loss)
        self.reconstruction, self.perceptual_weight = reconstruction, perceptual_weight
        self.discriminator_weight, self.adaptive = discriminator_weight, adaptive
        self.discriminator_start, self.discriminator_warmup = discriminator_start, discriminator_warmup

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """The autoencoder, then the discriminator, on one batch and its reconstructions."""
        generator, discriminator = cast(list[LightningOptimizer], self.optimizers())
        images = self.images_and_context(batch)[0]
        left = self.discriminator_start - self.trainer.global_step  # before the discriminator is listened to
        shown: list[Tensor] = []
        self.update(generator, *self.in_pieces(partial(self.generator_losses, shown, left <= 0), images))
        if left <= self.discriminator_warmup:
            self.update(discriminator, *self.in_pieces(self.discriminator_losses, images, shown), count=False)
        self.finish_step(images=len(images))

    def generator_losses(self, shown: list[Tensor], judged: bool, images: Tensor) -> Losses:
        """What is left of pictures, compared and judged; `shown` gets the reconstructions."""
        encoded = self.encode(images)
        reconstructions = self.decoded(encoded.maps)
        shown.append(reconstructions.detach())
        distances = self.distances(reconstructions, images)
        if not judged:
            return distances | encoded.losses
        judge = partial(self.judged, self.discriminator)
        adversarial = generator_loss(self.loss, judge(reconstructions), lambda: judge(images))
        weight = self.discriminator_weight
        if self.adaptive:
            ratio = self.adaptive_weight(torch.stack(list(distances.values())).sum(), adversarial)
            self.log("train/adaptive_weight", ratio)
            return {**distances, **encoded.losses, "generator": weight * ratio * adversarial}
        return {**distances, **encoded.losses, "generator": weight * adversarial}

    def discriminator_losses(self, images: Tensor, reconstructions: Tensor) -> Losses:
        """Pictures against what was left of them."""
        reconstructions = reconstructions.to(images.dtype)
        judge = partial(self.judged, self.discriminator)
        scores = on_both(self.discriminator, images, reconstructions, call=judge)
        self.note_scores(self.loss, scores[0])
        return {
            "discriminator": 0.5 * self.loss.discriminator(*scores),
            **self.penalty_losses(judge, images, reconstructions),
        }

    def distances(self, reconstructions: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The distance of pixels and that of features, weighted."""
        distance = F.l1_loss if self.reconstruction == "l1" else F.mse_loss
        distances = {"reconstruction": distance(full(reconstructions), full(images))}
        if self.perceptual_weight:
            distances["perceptual"] = self.perceptual_weight * self.perceptual(reconstructions, images)
        return distances

    def adaptive_weight(self, distances: Tensor, adversarial: Tensor) -> Tensor:
        """The ratio of the norms of two losses' gradients at the decoder's last weight, float32 without a graph."""
        last = [weight for weight in self.decoder.parameters() if weight.ndim > 1][-1]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of float16, where small gradients are 0
        scale = full(distances.new_ones(())) if scaler is None else scaler.scale(full(distances.new_ones(())))
        with torch.autocast(self.device.type, enabled=False):
            losses = (scale * full(distances), scale * full(adversarial))
            gradients = [full(torch.autograd.grad(loss, last, retain_graph=True)[0]) for loss in losses]
            means = total(torch.stack(gradients)) / (world_size() * scale)
            ours, theirs = means.flatten(1).norm(dim=1)
            # Of float16 that ran over there is none; the trainer will skip this step and make losses less large.
            return (ours / (theirs + 1e-4)).nan_to_num(0.0, 0.0).clamp(max=1e4)

    # -- its pieces -------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, **settings: Any) -> Encoded:
        """As `Autoencoder.encode`; all losses are means over the numbers of a picture."""
        encoded = super().encode(images, **settings)
        if isinstance(self.quantizer, GaussianLatent):
            encoded.losses["kl"] = encoded.losses["kl"] / images[0].numel()
        return encoded

    def terms(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        """The autoencoder's objective without the adversarial term, which compares nothing."""
        return self.distances(self.decoded(encoded.maps), images) | encoded.losses

    def players(self) -> dict[str, list[nn.Module]]:
        """The autoencoder and the discriminator."""
        return {"generator": [self.encoder, self.quantizer, self.decoder], "discriminator": [self.discriminator]}

    def setup(self, stage: str) -> None:
        """Lay out the networks, and load that of the perceptual loss."""
        super().setup(stage)
        # The schedule of the discriminator's rate also counts the steps in which it does not learn yet.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step\\(\\)` before")
        if self.perceptual_weight and stage != "predict":
            self.perceptual.prepare(self.image_shape)
