"""Vector quantization, forward and backward, beside a plain version and vector-quantize-pytorch.

    python -m benchmarks.quantizers
    python -m benchmarks.quantizers --codes 8192 --json figures.json

All quantize the same tokens with a codebook of running means (decay 0.99, commitment 0.25) and give the gradient of a
loss to the features. Ours takes part twice, the second time as its defaults are, with codes that begin anew. The plain
version is what a notebook has: no restarts, no processes, no blocks. The library is compared if it is installed,
with the same settings and else its defaults. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.turns import add_arguments, begin, ratio, take_turns, write
from lightning_gen.layers import VectorQuantizer

LIBRARY = "vector-quantize-pytorch"


class Plain(nn.Module):
    """A codebook of running means in as few lines as will do: tokens `[T, D]` to vectors and a loss."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.randn(num_codes, size) * size**-0.5)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize, then learn."""
        with torch.no_grad():
            distances = torch.addmm(self.codebook.square().sum(1), tokens, self.codebook.T, alpha=-2)
            codes = distances.argmin(1)
            quantized = F.embedding(codes, self.codebook)
            self.counts.lerp_(torch.bincount(codes, minlength=len(self.counts)).to(tokens.dtype), 0.01)
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, tokens), 0.01)
            total = self.counts.sum()
            counts = (self.counts + 1e-5) / (total + 1e-5 * len(self.counts)) * total
            self.codebook.copy_(self.sums / counts.unsqueeze(1))
        return tokens + (quantized - tokens).detach(), 0.25 * F.mse_loss(tokens, quantized)


def step(quantize: Callable[[Tensor], tuple[Tensor, Tensor]], features: Tensor, direction: Tensor) -> None:
    """Forward and backward, through vectors and loss."""
    features.grad = None
    quantized, loss = quantize(features)
    torch.autograd.backward([quantized, loss], [direction, torch.ones_like(loss)])


def of_ours(quantizer: VectorQuantizer, features: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors and loss."""
    quantized, _, losses = quantizer(features)
    return quantized, sum(losses.values(), torch.zeros((), device=features.device))


def of_plain(quantizer: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors and loss, to and from tokens."""
    last = features.movedim(1, -1)
    quantized, loss = quantizer(last.reshape(-1, last.shape[-1]))
    return quantized.view(last.shape).movedim(-1, 1), loss


def of_library(quantizer: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors and loss."""
    quantized, _, loss = quantizer(features)
    return quantized, loss


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print a table, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantizers", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1024, help="of each picture")
    parser.add_argument("--size", type=int, default=64, help="of a token and a code")
    parser.add_argument("--codes", type=int, default=512)
    add_arguments(parser, turns=5)
    given = parser.parse_args(arguments)
    if min(given.pictures, given.tokens, given.size) < 1 or given.codes < 2:
        parser.error("--pictures, --tokens and --size must be 1 or more, and --codes 2 or more")
    clock = begin(parser, given)
    features = torch.randn(given.pictures, given.size, given.tokens, device=clock.device, requires_grad=True)
    direction = torch.randn_like(features)
    quantizers: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], nn.Module]] = {
        "ours": (of_ours, VectorQuantizer(given.size, given.codes, restart_below=0)),
        "ours, with restarts": (of_ours, VectorQuantizer(given.size, given.codes)),
        "plain": (of_plain, Plain(given.size, given.codes)),
    }
    try:
        from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-not-found]

        settings: dict[str, Any] = {"decay": 0.99, "commitment_weight": 0.25, "channel_last": False}
        name = f"{LIBRARY} {version(LIBRARY)}"
        for rotation in (True, False):
            quantizer = VectorQuantize(given.size, codebook_size=given.codes, rotation_trick=rotation, **settings)
            quantizers[name if rotation else f"{name}, straight-through"] = of_library, quantizer
    except (ImportError, PackageNotFoundError):
        print(f"{LIBRARY} is not installed")
    contestants = {
        name: partial(step, partial(run, quantizer.to(clock.device)), features, direction)
        for name, (run, quantizer) in quantizers.items()
    }
    take_turns(contestants, 1, clock)  # first calls
    seconds = take_turns(contestants, given.turns, clock)
    print(f"{given.pictures} x {given.tokens} tokens of {given.size}, {given.codes} codes, forward and backward\n")
    print(f"{'':50}{'ms':>8}{'it / ours':>11}")
    over = {name: ratio(seconds, name, "ours") for name in seconds}
    for name, times in seconds.items():
        last = "" if name == "ours" else f"{over[name]:10.2f}x"
        print(f"{name:50}{1000 * median(times):8.1f}{last}")
    write(given.json, clock, {"settings": vars(given) | {"json": None}, "seconds": seconds, "over_ours": over})


if __name__ == "__main__":
    main()
