"""Pictures of what a text says: its tokens and the codes of the picture are one sequence, learnt by one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.capabilities import HasCodes, Tokenizer
from lightning_gen.hyperparameters import accepts
from lightning_gen.losses.precision import full
from lightning_gen.models.code_prior import CodeNetworks, CodePrior
from lightning_gen.modes import evaluating
from lightning_gen.networks.text_gpt import TextGPTNetwork
from lightning_gen.text import BaseTokenizer, BPETokenizer

TextNetworkFactory: TypeAlias = Callable[[tuple[int, int, int], int, Tokenizer], nn.Module]
"""Makes a network as `TextGPTNetwork` of (channels, height, width), the number of parameters of each position, and the
tokenizer as `text`."""

TOKENIZER = BPETokenizer(length=256, num_tokens=16_384)


class TextToImage(CodePrior):
    """A `CodePrior` that is given a caption, and learns captions, too.

    DALL-E (2102.12092): 64 layers, 62 heads of 64, sparse attention, over 256 tokens of 16,384 and 32 x 32 codes of
    8,192 of `GumbelVAE`, the likeliest of each place; softmax, text 1/8 of the loss, codes 7/8; AdamW (.9, .96), weight
    decay .045 of matrices; batch 1,024; 430,000 steps; the best of 512 samples in the eyes of CLIP.

    Captions are dropped with a probability that is the network's, `label_dropout`, so that pictures can be drawn with
    `guidance` (2207.12598); of those that are dropped no text is learnt. Without captions pictures are drawn, completed
    and judged as those whose captions were dropped.

    `log_prob` is of the codes, given the caption: `val/nll-codes`, in nats. `val/nll-text` is that of captions, with
    all tokens that fill them up to their length.

    Deviations: the network and optimizer of `CodePrior` (LlamaGen-B, 111 M parameters), whose attention is dense; codes
    have rotary positions; captions are dropped, which the paper does not do; no joins of byte pairs are passed over
    unless the tokenizer has a `dropout` (.1 in the paper).

    Args:
        image_shape: (channels, height, width), that of the first stage.
        first_stage: Makes codes of pictures, in one map, and pictures of codes.
        network: Makes the network.
        tokenizer: Reads captions. One that has yet to learn its vocabulary learns it from the captions of the data.
        text_weight: Share of the text in the loss, where both are means over tokens: below 1.
        learning_rate: Of AdamW.
        **settings: All others as in `CodePrior`.

    Raises:
        ValueError: As `CodePrior`; or if the network takes no text, the first stage has several maps, or the share is
            out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        first_stage: HasCodes,
        network: TextNetworkFactory = TextGPTNetwork,
        tokenizer: BaseTokenizer = TOKENIZER,
        text_weight: float = 1 / 8,
        learning_rate: float = 1e-4,
        **settings: Any,
    ) -> None:
        target = network.func if isinstance(network, partial) else network
        if not accepts(target, "text"):
            raise ValueError(
                f"{getattr(target, '__name__', type(target).__name__)} takes no text. Take TextGPTNetwork, or one like "
                "it."
            )
        if not 0 <= text_weight < 1:
            raise ValueError(f"text_weight must be at least 0 and below 1, got {text_weight}.")
        with_text = partial(cast(Callable[..., nn.Module], network), text=tokenizer)
        super().__init__(image_shape, first_stage, with_text, learning_rate=learning_rate, **settings)
        self.declare_context(text=tokenizer)
        if len(self.level_shapes) > 1:
            raise ValueError(
                f"TextToImage takes a first stage of one map of codes, and this {type(first_stage).__name__} has "
                f"{len(self.level_shapes)}. Take VQVAE, GumbelVAE or VQGAN."
            )
        self.text_weight = text_weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Minimise 1/8 of the nats of a token of text and 7/8 of those of a code."""
        images, context = self.images_and_context(batch)
        (codes,) = images if isinstance(images, list) else self.to_levels(images)
        captions = context["captions"]
        dropped = torch.rand(len(captions), device=captions.device) < self.text_network.label_dropout
        given = captions.masked_fill(dropped.unsqueeze(1), self.text_network.padding)
        ((text_logits, parameters),) = self.network([codes], captions=given, with_text=True)
        of_text = text_nats(text_logits, captions).masked_fill(dropped, 0.0).sum() / (~dropped).sum().clamp(min=1)
        of_codes = -self.log_probs([parameters], [codes])[0].mean()
        text_loss, code_loss = of_text / captions.shape[1], of_codes / codes[0].numel()
        loss = self.text_weight * text_loss + (1 - self.text_weight) * code_loss
        self.images_seen += len(codes) * self.trainer.world_size
        self.log_dict({"train/nll-codes": of_codes.detach(), "train/nll-text": of_text.detach()}, prog_bar=True)
        self.watch({"nll": loss})
        return loss

    @property
    def text_network(self) -> TextGPTNetwork:
        """The network, of text and codes."""
        return cast(TextGPTNetwork, cast(CodeNetworks, self.network).levels[0])

    def log_prob(  # type: ignore[override]
        self,
        images: Tensor | list[Tensor],
        labels: None = None,
        condition: None = None,
        captions: Sequence[str] | Tensor | None = None,
    ) -> Tensor:
        """The exact log-probability of each picture's codes given its caption, in nats, in evaluation mode.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, or their codes as `to_levels` gives them.
            labels: None.
            condition: None.
            captions: N texts; None is no caption.

        Returns:
            float32 `[N]`, with a graph if gradients are enabled.

        Raises:
            ValueError: If pictures have another shape, or captions do not fit.
        """
        maps = images if isinstance(images, list) else self.to_levels(self.checked_images(images).to(self.device))
        levels: Any = [codes.to(self.device) for codes in maps]
        context = self.sampling_context(len(levels[0]), labels, condition, captions)
        with evaluating(self.network):
            return self._log_prob(levels, levels, context)

    def sampling_context(self, num_samples: int, labels: Any = None, *others: Any) -> dict[str, Tensor]:
        """As the base, and without captions the one that stands for none, if the network knows it."""
        condition, captions = (*others, None, None)[:2]
        null = self.text_network.null_label
        if captions is None and null is not None and self.text is not None:
            captions = torch.full((max(0, num_samples), self.text.length), null)
        return super().sampling_context(num_samples, labels, condition, captions)

    def _evaluate(self, batch: Any, batch_idx: int, part: str) -> None:
        super()._evaluate(batch, batch_idx, part)
        captions = self.images_and_context(batch)[1]["captions"]
        nats = text_nats(self.text_network.text_logits(captions), captions).mean()
        self.log(f"{part}/nll-text", nats, on_epoch=True, sync_dist=True, batch_size=len(captions))


def text_nats(logits: Tensor, captions: Tensor) -> Tensor:
    """Nats of each caption, `[N]`: of logits `[N, T, number of tokens]` and tokens int64 `[N, T]`."""
    return F.cross_entropy(full(logits).mT, captions, reduction="none").sum(1)
