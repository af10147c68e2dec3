"""What a decoder of codes costs: a token drawn by kept keys and values and by whole passes, and a training step.

    python -m benchmarks.gpt
    python -m benchmarks.gpt sampling --sizes small --pictures 1 16
    python -m benchmarks.gpt growth
    python -m benchmarks.gpt training --precision bf16-mixed --turns 5

A turn of `sampling` is one drawing of all codes by cached steps, and one pass of the naive method, which makes such a
pass for each code; what is in the codes makes no difference to a pass, so one stands for all. In the same turn the
machine shows what it can do: a large matrix product, and one of a matrix and a vector, which reads weights as a step of
one picture does. A turn of `training` is a step of ours in Lightning, one of a plain loop with the same network, and
the matrix product in the precision of both. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.contestants import ALONE
from benchmarks.sampling import exponent, generator
from benchmarks.train_step import Matmul, TakingTurns
from benchmarks.turns import Clock, add_arguments, begin, ratio, take_turns, write
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers.orders import raster_order
from lightning_gen.losses import Categorical
from lightning_gen.models import CodePrior
from lightning_gen.networks import GPTNetwork
from lightning_gen.networks.pixel_sampler import Method, draw_pixels

SIZES: dict[str, tuple[dict[str, int], int]] = {
    "B": ({"width": 768, "layers": 12, "heads": 12}, 16_384),
    "small": ({"width": 256, "layers": 6, "heads": 4}, 512),
    "tiny": ({"width": 16, "layers": 1, "heads": 2}, 8),
}
"""Of the network, and how many codes there are."""
GROWTH_SIDES = (8, 16, 32)


def network_of(name: str, side: int, device: torch.device) -> GPTNetwork:
    """With labels, and with weights in its head that are not zero."""
    sizes, codes = SIZES[name]
    torch.manual_seed(0)
    network = GPTNetwork((1, side, side), codes, num_classes=1000, **sizes)
    torch.nn.init.normal_(network.head.weight, std=0.02)
    return network.to(device).eval()


def work(network: GPTNetwork, sequences: int) -> int:
    """Floating-point operations of a pass over so many sequences: matrices, and attention to all tokens before."""
    length, width = network.rotation.shape[1], network.head.in_features
    matrices = [p for p in [*network.blocks.parameters(), *network.head.parameters()] if p.ndim == 2]
    attention = len(network.blocks) * 2 * 2 * width * length * (length + 1) // 2
    return sequences * (2 * length * sum(p.numel() for p in matrices) + attention)


# -- sampling ---------------------------------------------------------------------------------------------------------


def drawing(network: GPTNetwork, pictures: int, method: Method, hole: Tensor | None = None) -> Callable[[], Tensor]:
    """Draws all codes, or those of one hole in all pictures."""
    side, codes = network.image_shape[1], network.head.out_features
    levels = torch.zeros(pictures, 1, side, side, dtype=torch.int64)
    hole = torch.ones(side, side, dtype=torch.bool) if hole is None else hole
    settings = {"labels": torch.arange(pictures, device=network.rotation.device)}
    arguments = (network, Categorical(codes), levels, hole.expand(pictures, -1, -1), raster_order(side, side))
    return lambda: draw_pixels(*arguments, generator(), settings=settings, method=method)


def sampling(name: str, pictures: int, given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Times and shares at one size."""
    network = network_of(name, given.side, clock.device)
    tokens = given.side**2
    middle = torch.zeros(given.side, given.side, dtype=torch.bool)
    middle[given.side // 2, 0] = True
    matmul = Matmul(SimpleNamespace(device=clock.device, dtype=torch.float32))
    matrix = torch.randn(4096, 4096, device=clock.device)
    contestants = {
        "cached": drawing(network, pictures, "cached"),
        "naive": drawing(network, pictures, "naive", middle),
        "matmul": partial(matmul, None),
        "reading": lambda: [matrix @ matrix[0] for _ in range(8)],
    }
    if clock.device.type == "cuda":
        from unittest.mock import patch

        eager = contestants["cached"]

        def without_graphs() -> Tensor:
            with patch("lightning_gen.networks.pixel_sampler._runner", lambda *_: lambda piece, *rest: piece(*rest)):
                return eager()

        contestants["eager"] = without_graphs
    take_turns(contestants, 1, clock)  # first calls
    seconds = take_turns(contestants, given.turns, clock)
    seconds["naive"] = [each * tokens for each in seconds["naive"]]
    weights = sum(p.numel() * p.itemsize for p in [*network.blocks.parameters(), *network.head.parameters()])
    return {
        "ms_per_token": {each: 1e3 * median(seconds[each]) / tokens for each in ("cached", "naive")},
        "naive_over_cached": ratio(seconds, "naive", "cached"),
        "share_of_matmul": ratio(seconds, "matmul", "cached") * work(network, pictures) / matmul.flops,
        "share_of_reading": ratio(seconds, "reading", "cached") * tokens * weights / (8 * matrix.nbytes),
        **({"eager_over_cached": ratio(seconds, "eager", "cached")} if "eager" in seconds else {}),
        "seconds": seconds,
    }


def growth(name: str, given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Cached drawing of one picture at several sizes, which take turns."""
    contestants = {str(side): drawing(network_of(name, side, clock.device), 1, "cached") for side in GROWTH_SIDES}
    contestants[str(GROWTH_SIDES[0])]()
    seconds = take_turns(contestants, given.turns, clock)
    totals = {side: median(seconds[str(side)]) for side in GROWTH_SIDES}
    return {"exponent": exponent([side**2 for side in GROWTH_SIDES], list(totals.values())), "seconds": seconds}


# -- training ---------------------------------------------------------------------------------------------------------


class Given(GenerativeModule):
    """A first stage that costs nothing: the levels of a picture are its codes."""

    def __init__(self, image_shape: tuple[int, int, int], num_codes: int) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.num_codes, self.code_shape = num_codes, image_shape[1:]

    def codes(self, images: Tensor) -> Tensor:
        """int64 `[N, h, w]`."""
        return ((images[:, 0] + 1) * (self.num_codes - 1) / 2).round().long()

    def decode(self, codes: Tensor) -> Tensor:
        """`[N, 1, h, w]`."""
        return (codes.float() * 2 / (self.num_codes - 1) - 1).unsqueeze(1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """As they are."""
        return self.decode(self.codes(images))


def prior_of(name: str, side: int, **settings: Any) -> CodePrior:
    """Of codes that are given."""
    sizes, codes = SIZES[name]
    torch.manual_seed(0)
    shape = (1, side, side)
    return CodePrior(shape, Given(shape, codes), partial(GPTNetwork, **sizes, **settings), num_classes=1000)


def plain_step(model: CodePrior, codes: Tensor, labels: Tensor, precision: str) -> Callable[[Any], Tensor]:
    """A step of a loop without Lightning, with a copy of the model's network and its optimizer."""
    network: Any = copy.deepcopy(model.network.levels[0]).train()
    parameters = [*network.parameters()]
    optimizer = model.default_optimizer(parameters)

    def step(_: Any) -> Tensor:
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = network(network.embed(codes.unsqueeze(1)), labels)
        loss = F.cross_entropy(logits.float(), codes.unsqueeze(1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.detach()

    return step


def training(name: str, pictures: int, given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Times of a step, and shares."""
    model = prior_of(name, given.side)
    number, shape = SIZES[name][1], (pictures, given.side, given.side)
    codes, labels = torch.randint(number, shape), torch.arange(pictures) % 1000
    batch = {"image": model.first_stage.decode(codes), "label": labels}
    dtype = torch.bfloat16 if given.precision == "bf16-mixed" else torch.float32
    matmul = Matmul(SimpleNamespace(device=clock.device, dtype=dtype))

    def others() -> dict[str, Callable[[Any], Any]]:
        plain = plain_step(model, codes.to(clock.device), labels.to(clock.device), given.precision)
        plain(None)
        matmul(None)
        return {"plain": plain, "matmul": matmul}

    turns = TakingTurns(SimpleNamespace(device=clock.device, warmup=1), 1, others)
    total = ALONE + 1 + given.turns
    with tempfile.TemporaryDirectory() as folder:
        pl.Trainer(
            max_steps=total, precision=given.precision, gradient_clip_val=1.0, accelerator=clock.device.type, devices=1,
            logger=CSVLogger(folder), callbacks=[turns], enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(model, DataLoader([batch] * total, batch_size=None))  # fmt: skip
    which = "cpu" if clock.name == "CPU" else "wall"
    seconds = {each: [getattr(moment, which) for moment in times] for each, times in turns.times.items()}
    network: Any = model.network.levels[0]
    flops = 3 * work(network, pictures)
    return {
        "seconds_per_step": {each: median(times) for each, times in seconds.items()},
        "lightning_share": ratio(seconds, "ours", "plain") - 1,
        "flops_per_second": flops / median(seconds["ours"]),
        "share_of_matmul": ratio(seconds, "matmul", "ours") * flops / matmul.flops,
        "tokens_per_second": pictures * given.side**2 / median(seconds["ours"]),
        "seconds": seconds,
    }


# -- the command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print tables, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpt", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("what", choices=["sampling", "growth", "training", "all"], nargs="?", default="all")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["B", "small"], help="of networks")
    parser.add_argument("--pictures", nargs="+", type=int, default=[1, 16], help="drawn, or learnt from, at once")
    parser.add_argument("--side", type=int, default=16, help="codes are side x side")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed", help="of training")
    add_arguments(parser, turns=3)
    given = parser.parse_args(arguments)
    if min(*given.pictures, given.side - 1) < 1:
        parser.error(f"--pictures must be 1 or more and --side 2 or more, got {given.pictures} and {given.side}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    clock = begin(parser, given)
    figures: dict[str, Any] = {}
    cases = [(name, pictures) for name in given.sizes for pictures in given.pictures]
    if given.what in ("sampling", "all"):
        print(
            f"\n{f'{given.side**2} codes, ms a token':26}{'pictures':>9}{'cached':>9}{'naive':>9}{'ratio':>8}", end=""
        )
        print(f"{'of matmul':>11}{'of reading':>12}")
        for name, pictures in cases:
            found = figures[f"sampling {name} {pictures}"] = sampling(name, pictures, given, clock)
            ms = found["ms_per_token"]
            print(
                f"{name:26}{pictures:9}{ms['cached']:9.2f}{ms['naive']:9.1f}{found['naive_over_cached']:7.1f}x", end=""
            )
            print(f"{found['share_of_matmul']:11.0%}{found['share_of_reading']:12.0%}", end="")
            print(f"   graphs {found['eager_over_cached']:.1f}x" if "eager_over_cached" in found else "", flush=True)
        print("of matmul: operations that are needed, over those of a matrix product in float32 in the time")
        print("of reading: weights, read once a step, over what a product with a vector reads in the time")
    if given.what in ("growth", "all"):
        print(
            f"\n{'cached, ms a token at':26}"
            + "".join(f"{f'{s} x {s}':>10}" for s in GROWTH_SIDES)
            + f"{'exponent':>10}"
        )
        for name in given.sizes:
            found = figures[f"growth {name}"] = growth(name, given, clock)
            ms = "".join(f"{1e3 * median(found['seconds'][str(side)]) / side**2:10.2f}" for side in GROWTH_SIDES)
            print(f"{name:26}{ms}{found['exponent']:10.2f}", flush=True)
    if given.what in ("training", "all"):
        print(f"\n{f'{given.precision}, s a step':26}{'pictures':>9}{'ours':>9}{'plain':>9}{'share':>8}", end="")
        print(f"{'GFLOP/s':>9}{'of matmul':>11}{'tokens/s':>10}")
        for name, pictures in cases:
            found = figures[f"training {name} {pictures}"] = training(name, pictures, given, clock)
            s = found["seconds_per_step"]
            print(f"{name:26}{pictures:9}{s['ours']:9.3f}{s['plain']:9.3f}{found['lightning_share']:8.1%}", end="")
            print(f"{found['flops_per_second'] / 1e9:9.0f}{found['share_of_matmul']:11.0%}", end="")
            print(f"{found['tokens_per_second']:10.0f}", flush=True)
        print("share: ours / plain - 1; operations are three times those of a pass")
    write(given.json, clock, figures)


if __name__ == "__main__":
    main()
