"""Pictures as an extractor reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_gen.data.batches import images_and_labels
from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.base import FeatureExtractor, Features

Pictures: TypeAlias = Tensor | list[Tensor]
"""A batch `[N, C, H, W]`; or N pictures `[C, H, W]` of different sizes, for an extractor that `resizes`."""


def pictures_in(batch: Any) -> Pictures:
    """Those of a batch, in `[-1, 1]`."""
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), list):  # of `collate_sizes`
        pictures: list[Tensor] = batch["image"]
        return pictures
    return images_and_labels(batch, "An evaluation")[0]


def as_read(images: Pictures, extractor: FeatureExtractor) -> Pictures:
    """Float pictures in `[-1, 1]` as the extractor takes them: of 8 bits, or points as they are.

    Raises:
        ValueError: If one is not finite; the message says which.
    """
    if isinstance(images, list):
        return [as_read(image[None], extractor)[0] for image in images]
    broken = (~images.isfinite()).flatten(1).any(1)
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        raise ValueError(
            f"{int(broken.sum())} of {len(images)} pictures in a batch have values that are not finite; the first is "
            f"picture {first}. A model that draws such pictures has diverged."
        )
    return to_uint8(images) if extractor.quantized else images.float()


def features_of(images: Pictures, extractor: FeatureExtractor) -> Features:
    """What an extractor sees in pictures as it takes them, on any device; those of one size go through it together."""
    if isinstance(images, Tensor):
        return extractor(images.to(extractor.device))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(tuple(image.shape), []).append(place)
    groups = list(by_size.values())
    seen = [extractor(torch.stack([images[place] for place in group]).to(extractor.device)) for group in groups]
    order = torch.tensor([place for group in groups for place in group]).argsort().to(extractor.device)
    logits = [part.logits for part in seen if part.logits is not None]
    return Features(torch.cat([part.features for part in seen])[order], torch.cat(logits)[order] if logits else None)
