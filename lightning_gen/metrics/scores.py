"""Figures of features that have been extracted: the Inception Score, and the kernel distance of two sets."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_gen.metrics.base import checked_rows


class InceptionScoreResult(NamedTuple):
    """What `inception_score` finds.

    Attributes:
        mean: Over the splits, from 1 to the number of classes.
        std: Over the splits, with divisor `splits`, as papers report it.
    """

    mean: float
    std: float


class KernelDistance(NamedTuple):
    """What `kernel_distance` finds.

    Attributes:
        value: Mean over the blocks or subsets. Its expectation is 0 for equal distributions, so it may be negative.
        standard_error: Of the value, from the scatter of independent blocks. NaN if there is one block alone, and for
            subsets, which overlap.
        std: Over the blocks or subsets, with their number as divisor.
        blocks: Number of blocks or subsets.
        block_size: Samples of either side in each.
    """

    value: float
    standard_error: float
    std: float
    blocks: int
    block_size: int


def inception_score(logits: Tensor, splits: int = 10, *, shuffle_seed: int | None = 2020) -> InceptionScoreResult:
    """The Inception Score exp(E_x KL(p(y | x) || p(y))) of each split (Salimans et al. 2016, arXiv 1606.03498).

    It is 1 where every picture gets the same class probabilities, and the number of classes where all of them are
    drawn, equally often and without doubt. p(y) is the mean over the split, so the score rises with the size of the
    splits: figures of different N or `splits` do not compare. The original has 50 000 pictures in 10 splits.

    Args:
        logits: `[N, K]`, of any floating type; the score is computed in float64.
        splits: Parts of N / splits pictures, of sizes that differ by 1 at most.
        shuffle_seed: Of the order in which pictures are dealt to the splits; None keeps the order given, for which a
            set sorted by class has a score far too low. The default is torch-fidelity's, which gives the same figure.

    Raises:
        ValueError: If logits are not `[N, K]`, one is not finite, or N is less than `splits`.
    """
    logits = checked_rows(logits, "logits", 1)
    count = len(logits)
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}.")
    if count < splits:
        raise ValueError(
            f"An Inception Score over {splits} splits needs at least {splits} pictures, got {count}. "
            "Give more (papers use 50 000) or fewer splits."
        )
    if shuffle_seed is not None:
        order = np.random.RandomState(shuffle_seed).permutation(count)
        logits = logits[torch.from_numpy(order).to(logits.device)]
    scores = []
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits].double()
        log_p = part.log_softmax(dim=1)
        # The mean of probabilities in logarithms: a class that underflows everywhere gives no 0 * inf.
        log_marginal = log_p.logsumexp(dim=0) - math.log(len(part))
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp().item())
    return InceptionScoreResult(float(np.mean(scores)), float(np.std(scores)))


def kernel_distance(
    x: Tensor,
    y: Tensor,
    *,
    block_size: int = 1000,
    subsets: int | None = None,
    seed: int = 2020,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
) -> KernelDistance:
    """The unbiased squared maximum mean discrepancy with the kernel (gamma x.y + coef0)^degree.

    On Inception features it is the Kernel Inception Distance (Bińkowski et al. 2018, arXiv 1801.01401). Unlike the
    Fréchet distance its expectation does not depend on the number of samples, nor on the size of the blocks.

    By default the samples are dealt at random to disjoint blocks of one size: as many as there are `block_size` in the
    smaller set, but at least one. They use all of that set but for a rest of less than their number, so they are up to
    twice as large as `block_size`, or smaller where there are fewer samples. Of the larger set the surplus is not used.
    One block has no standard error; a smaller `block_size` gives more of them.

    With `subsets` it is the mean over random subsets of `block_size`, as torch-fidelity and torchmetrics have it: for
    the same seed, torch-fidelity's own subsets. They tell no more for their time: 100 subsets of 1000 take ten times as
    long as the ten blocks of 10 000 samples.

    Products are computed in float32 about the common mean, or in float64 if both sides are, and all else in float64. A
    value of 1e-5 on 1000 Inception-like features is right to 1e-7 relative; without the common mean, to 1e-5.

    Args:
        x: Features `[N, D]`, N at least 2.
        y: Features `[M, D]`, M at least 2.
        block_size: Samples of either side in a block or subset, at least 2.
        subsets: Number of random subsets, or None for disjoint blocks.
        seed: Of the dealing.
        degree: Of the kernel.
        gamma: Of the kernel; None means 1 / D.
        coef0: Of the kernel.

    Raises:
        ValueError: If features are not `[N, D]` of the same D, one is not finite, there are fewer than 2 of them, or
            fewer than `block_size` where `subsets` are asked for.
    """
    x, y = checked_rows(x, "x", 1), checked_rows(y, "y", 1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be of the same extractor, got {x.shape[1]} and {y.shape[1]} features.")
    count = min(len(x), len(y))
    if block_size < 2 or (subsets is not None and subsets < 1):
        raise ValueError(f"block_size must be at least 2 and subsets 1, got {block_size} and {subsets}.")
    if count < 2:
        raise ValueError(f"A kernel distance needs at least 2 samples on either side, got {len(x)} and {len(y)}.")
    if subsets is not None and count < block_size:
        raise ValueError(
            f"Subsets of {block_size} samples need as many on either side, got {len(x)} and {len(y)}. "
            "Give more samples or a smaller subset size."
        )
    y = y.to(x.device)
    random = np.random.RandomState(seed)
    if subsets is None:
        blocks = max(1, count // block_size)
        size = count // blocks
        orders = random.permutation(len(x)), random.permutation(len(y))
        places = ([order[i * size : (i + 1) * size] for order in orders] for i in range(blocks))
    else:
        blocks, size = subsets, block_size
        places = ([random.choice(len(rows), size, replace=False) for rows in (x, y)] for _ in range(blocks))
    center = (x.mean(dim=0).double() + y.mean(dim=0).double()) / 2
    # Float32 elsewhere may be TensorFloat-32.
    exact = x.device.type != "cpu" or x.dtype == y.dtype == torch.float64
    dtype = torch.float64 if exact else torch.float32
    gamma = 1 / x.shape[1] if gamma is None else gamma

    def kernel(a: _Centered, b: _Centered) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            products = (a.rows @ b.rows.T).double()
        return products.add_(a.offsets[:, None]).add_(b.offsets).mul_(gamma).add_(coef0).pow_(degree)

    def pairs(a: _Centered) -> float:
        """The sum over pairs of different rows; tiles below the diagonal are those above."""
        tiles = [_Centered(*tile) for tile in zip(a.rows.split(256), a.offsets.split(256), strict=True)]
        total = 0.0
        for i, tile in enumerate(tiles):
            own = kernel(tile, tile)
            total += float(own.sum() - own.trace()) + 2 * sum(float(kernel(tile, t).sum()) for t in tiles[i + 1 :])
        return total

    values = []
    for in_x, in_y in places:
        a = _Centered.of(x[torch.from_numpy(in_x).to(x.device)], center, dtype)
        b = _Centered.of(y[torch.from_numpy(in_y).to(x.device)], center, dtype)
        within = (pairs(a) + pairs(b)) / (size * (size - 1))
        values.append(within - 2 * kernel(a, b).mean().item())
    std = float(np.std(values))
    error = std / math.sqrt(blocks - 1) if subsets is None and blocks > 1 else math.nan
    return KernelDistance(float(np.mean(values)), error, std, blocks, size)


class _Centered(NamedTuple):
    """Features x as x - c, whose products keep in float32 the digits that those of x would lose.

    x.y = (x - c).(y - c) + s(x) + s(y), where s(x) = (x - c).c + c.c / 2 is computed in float64.
    """

    rows: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, x: Tensor, center: Tensor, dtype: torch.dtype) -> _Centered:
        rows = x - center
        return cls(rows.to(dtype), rows @ center + center @ center / 2)
