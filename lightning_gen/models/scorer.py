"""A judge of whether a caption is of a picture, as CLIP is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gen.capabilities import Tokenizer
from lightning_gen.hyperparameters import made_by
from lightning_gen.losses.contrastive import contrastive_loss
from lightning_gen.models.training import OptimizerFactory, TrainedModule
from lightning_gen.modes import evaluating
from lightning_gen.networks.contrastive import CaptionEncoder, PictureEncoder
from lightning_gen.processes import gathered_with_gradient, rank
from lightning_gen.sampling import samples_at_once
from lightning_gen.schedules import Schedule
from lightning_gen.text import BaseTokenizer, BPETokenizer

PictureEncoderFactory: TypeAlias = Callable[[tuple[int, int, int], int], nn.Module]
"""Makes a network of (channels, height, width) and D: pictures to features `[N, D]`."""
CaptionEncoderFactory: TypeAlias = Callable[[Tokenizer, int], nn.Module]
"""Makes a network of a tokenizer and D: tokens `[N, length]` to features `[N, D]`."""

TOKENIZER = BPETokenizer(length=64)
MAX_SCALE = 100.0


class Scorer(TrainedModule):
    """Two encoders that agree on which caption belongs to which picture of a batch.

    CLIP (2103.00020): ResNet-50 and a causal Transformer of 12 layers, 512 wide, of which the last token is read, 76
    tokens of 49,152; symmetric cross-entropy of cosines over a learned temperature that starts at 0.07, logits scaled
    by at most 100; Adam (0.9, 0.98), rate 5e-4 with warm-up and a cosine, decoupled weight decay 0.2; batches of
    32,768; 32 epochs of 400 million pairs; 76.2 % zero-shot on ImageNet for the largest.

    It generates nothing. Its `score` ranks pictures by how well they fit what was asked for. With several processes
    each tells its pictures from the captions of all, so that the loss is that of the joined batch.

    Deviations: small encoders (convolutions; 2 layers, 128 wide, without a causal mask, whose mean is read), their
    features 128 wide; 64 tokens of 1,024; weight decay on all parameters; a constant rate unless a schedule is given.

    Args:
        image_shape: (channels, height, width).
        picture_encoder: Makes a network of `image_shape` and `num_features`.
        caption_encoder: Makes a network of the tokenizer and `num_features`.
        tokenizer: Reads captions. One that has yet to learn its vocabulary learns it from the captions of the data.
        num_features: D, in which pictures and captions meet.
        temperature: Before training, in (0, 1].
        learning_rate: Of AdamW; or a schedule of steps.
        optimizer: Replaces AdamW; called with the parameters.
        channels_last: As `TrainedModule.declare_training`.
        compile: Likewise.

    Raises:
        ValueError: If a number is out of range; in a batch, if captions are missing or cannot be read.
    """

    prediction_name = "score"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        picture_encoder: PictureEncoderFactory = PictureEncoder,
        caption_encoder: CaptionEncoderFactory = CaptionEncoder,
        tokenizer: BaseTokenizer = TOKENIZER,
        num_features: int = 128,
        temperature: float = 0.07,
        learning_rate: float | Schedule = 5e-4,
        optimizer: OptimizerFactory | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.declare_context(text=tokenizer)
        self.declare_training(learning_rate, optimizer, channels_last=channels_last, compile=compile)
        if num_features < 1 or not 1 / MAX_SCALE <= temperature <= 1:
            raise ValueError(
                f"Scorer needs num_features of at least 1 and a temperature from {1 / MAX_SCALE} to 1, got "
                f"{num_features} and {temperature}."
            )
        self.picture_encoder = made_by(picture_encoder, nn.Module, self.image_shape, num_features)
        self.caption_encoder = made_by(caption_encoder, nn.Module, tokenizer, num_features)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    # -- training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Tell each picture's caption from all others, and each caption's picture."""
        images, context = self.images_and_context(batch)
        with torch.no_grad():  # the number itself: were only its use limited, no gradient would bring it back
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        pictures, texts = self(images, context["captions"])
        everything = gathered_with_gradient(pictures), gathered_with_gradient(texts)
        loss = contrastive_loss(pictures, texts, self.scale, *everything, first=rank() * len(images))
        self.images_seen += len(images) * self.trainer.world_size
        right = _share_right(pictures, texts, context["captions"])
        self.log_dict({"train/loss": loss.detach(), "train/accuracy": right}, prog_bar=True)
        self.log("train/temperature", 1 / self.scale.detach())
        self.watch({"loss": loss})
        return loss

    def networks(self) -> list[nn.Module]:
        """What is laid out and compiled."""
        return [self.picture_encoder, self.caption_encoder]

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """AdamW."""
        return torch.optim.AdamW(parameters, self.base_rate, betas=(0.9, 0.98), weight_decay=0.2, fused=True)

    # -- what it can do ---------------------------------------------------------------------------------------------

    @property
    def scale(self) -> Tensor:
        """Of cosines to logits: one over the temperature."""
        return self.log_scale.exp()

    def forward(self, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Features of length 1, `[N, D]` each, of pictures `[N, C, H, W]` and of tokens int64 `[M, length]`."""
        pictures, texts = self.picture_encoder(self.own(images)), self.caption_encoder(captions)
        return F.normalize(pictures.float(), dim=1), F.normalize(texts.float(), dim=1)

    @torch.no_grad()
    def score(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """How well captions fit pictures: their cosines, float32 `[N]`; see `capabilities.ScoresCaptions`.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            captions: N texts.

        Raises:
            ValueError: If pictures have another shape than the model's, or captions are not as many, or unreadable.
        """
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"Pictures must be [N, {', '.join(map(str, self.image_shape))}] for this {type(self).__name__}, got "
                f"{list(images.shape)}."
            )
        tokens = self.context(len(images), captions=captions)["captions"]
        channels, height, width = self.image_shape
        size = samples_at_once((channels, height, width))
        scores = [torch.empty(0, device=self.device)]
        with evaluating(self):
            for part, said in zip(images.split(size), tokens.split(size), strict=True):
                pictures, texts = self(part.to(self.device), said)
                scores.append((pictures * texts).sum(1))
        return torch.cat(scores)

    # -- evaluation -------------------------------------------------------------------------------------------------

    def headlines(self) -> dict[str, str]:
        """How often a picture's caption was told from those of its batch."""
        return {"test/accuracy": "Captions told from those of their batch: {:.1%}"}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss, and how often a picture's caption is told from those of its batch."""
        self._evaluate(batch, "val")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.trainer.global_step), reduce_fx="max", sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`, under `test/`."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """How well each picture fits its caption: cosines `[N]`."""
        images, context = self.images_and_context(batch)
        pictures, texts = self(images, context["captions"])
        return (pictures * texts).sum(1)

    def _evaluate(self, batch: Any, part: str) -> None:
        images, context = self.images_and_context(batch)
        pictures, texts = self(images, context["captions"])
        figures = {
            f"{part}/loss": contrastive_loss(pictures, texts, self.scale),
            f"{part}/accuracy": _share_right(pictures, texts, context["captions"]),
            f"{part}/score": (pictures * texts).sum(1).mean(),
        }
        self.log_dict(figures, on_epoch=True, prog_bar=part == "val", batch_size=len(images), sync_dist=True)


def _share_right(pictures: Tensor, texts: Tensor, captions: Tensor) -> Tensor:
    """The share of pictures whose nearest caption of the batch is theirs, or one of the very same words."""
    nearest = (pictures.detach().float() @ texts.detach().float().T).argmax(1)
    return (captions[nearest] == captions).all(1).float().mean()
