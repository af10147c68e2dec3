"""How much of a codebook is in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CodebookUsage(Metric):
    """Use of the codes of a discrete latent space, over all pictures of all ranks.

    Of a batch these figures mislead: a batch cannot use more codes than it has. The perplexity is that of van den Oord
    et al. 2017 (arXiv 1711.00937): exp of the entropy of the codes' shares, from 1, where one code stands for all, to
    `num_codes`, where all are as frequent.

    Args:
        num_codes: Size of the codebook, K.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If `num_codes` is below 1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    counts: Tensor

    def __init__(self, num_codes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_codes < 1:
            raise ValueError(f"num_codes must be at least 1, got {num_codes}.")
        self.num_codes = num_codes
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Add codes.

        Args:
            codes: int64 of any shape, each from 0 to `num_codes` - 1.

        Raises:
            ValueError: If they are of another type, or one is out of range.
        """
        if codes.dtype != torch.int64:
            raise ValueError(f"Codes must be int64, got {codes.dtype}.")
        if codes.numel():
            lowest, highest = (int(code) for code in codes.aminmax())
            if lowest < 0 or highest >= self.num_codes:
                raise ValueError(
                    f"Codes must be from 0 to {self.num_codes - 1}, got {lowest if lowest < 0 else highest}. "
                    "num_codes must be the size of the model's codebook."
                )
        # Not in place: a state made under inference mode could not be added to outside of it.
        self.counts = self.counts + torch.bincount(codes.flatten(), minlength=self.num_codes)

    def compute(self) -> dict[str, Tensor]:
        """The figures, each a scalar.

        Returns:
            `perplexity`, float64 from 1 to K; `used`, the share of codes that occur, float64 in (0, 1]; `dead_codes`,
            the number of those that do not, int64.

        Raises:
            ValueError: If there were no codes on any rank.
        """
        total = self.counts.sum()
        if total == 0:
            raise ValueError("CodebookUsage has seen no codes on any rank; update it before compute.")
        shares = self.counts.double() / total
        dead = (self.counts == 0).sum()
        return {
            "perplexity": torch.special.entr(shares).sum().exp(),
            "used": 1 - dead.double() / self.num_codes,
            "dead_codes": dead,
        }
