"""Telling which of many belongs to which, from pictures and captions in one space of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.precision import full


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor, all_images: Tensor | None = None, all_texts: Tensor | None = None,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """The symmetric InfoNCE of CLIP (2103.00020, figure 3): cross-entropy of one's own among all, both ways.

    Of N pairs it is log N in the mean where features say nothing.

    Args:
        images: `[N, D]` of length 1.
        texts: `[N, D]` of length 1, row by row of the same pairs.
        scale: Of cosines to logits, one over the temperature: a scalar.
        all_images: `[M, D]`, among which the own one is told; None for `images`.
        all_texts: The same of texts.
        first: Place of the first pair among all.

    Returns:
        The mean over the N pairs and both ways, in nats: float32, a scalar.
    """
    own = first + torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # which would round the products to halves
        images, texts, scale = full(images), full(texts), full(scale)
        of_images = scale * images @ (texts if all_texts is None else full(all_texts)).T
        of_texts = scale * texts @ (images if all_images is None else full(all_images)).T
        return (F.cross_entropy(of_images, own) + F.cross_entropy(of_texts, own)) / 2
