"""How well pictures fit their captions, in the eyes of a model that scores both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gen.capabilities import ScoresCaptions
from lightning_gen.data.batches import as_floats
from lightning_gen.metrics.base import FullPrecision


class CaptionScore(FullPrecision):
    """The mean score of pictures and their captions, over all pictures of all ranks, as CLIPScore is one (2104.08718).

    Its numbers mean something beside those of true pictures, and only by the same scorer. Beside it stands what the
    same pictures reach with the caption of another one of their batch (`shuffled`).

    Args:
        scorer: Such as a `lightning_gen.models.Scorer`, on the device of the pictures.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        TypeError: If it scores nothing.
    """

    higher_is_better = True
    sums: Tensor
    numbers: Tensor

    def __init__(self, scorer: ScoresCaptions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(scorer, ScoresCaptions):
            raise TypeError(f"CaptionScore needs a model that scores captions, got a {type(scorer).__name__}.")
        self._scorer = (scorer,)  # no part: its weights belong in no checkpoint of a model
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("numbers", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, captions: Sequence[str]) -> None:
        """Score pictures.

        Args:
            images: `[N, C, H, W]`, uint8 or floats in `[-1, 1]`.
            captions: N texts.

        Raises:
            ValueError: As the scorer does, or if the pictures are neither.
        """
        (scorer,), images = self._scorer, as_floats(images, "CaptionScore")
        scores = [scorer.score(images, captions)]
        if len(captions) > 1:  # a picture alone has no other's caption
            scores.append(scorer.score(images, [*captions[1:], captions[0]]))
        sums, numbers = torch.zeros_like(self.sums, device="cpu"), torch.zeros_like(self.numbers, device="cpu")
        for i, each in enumerate(scores):
            sums[i], numbers[i] = each.double().sum().cpu(), len(each)
        self.sums = self.sums + sums.to(self.sums.device)
        self.numbers = self.numbers + numbers.to(self.numbers.device)

    def compute(self) -> dict[str, Tensor]:
        """`score`, and where a batch had several pictures `shuffled`, float64 each.

        Raises:
            ValueError: If there were no pictures on any rank.
        """
        if not self.numbers[0]:
            raise ValueError("CaptionScore has seen no pictures on any rank; update it before compute.")
        means = self.sums / self.numbers
        return {
            name: mean for name, mean, number in zip(("score", "shuffled"), means, self.numbers, strict=True) if number
        }
