"""Models that grow: a step of StyleGAN beside the form that well-known ports have, and what growing saves.

    python -m benchmarks.growing                # both parts
    python -m benchmarks.growing step --json figures.json
    python -m benchmarks.growing stages --configs stylegan paper/stylegan_ffhq256

"step": an update of the discriminator and one of the generator, at 32 x 32 with the networks of the paper, R1 in every
update and in every sixteenth. The port (`benchmarks/ports/stylegan.py`) starts from the same weights; before anything
is timed, its pictures and gradients must be those of ours. "stages": pictures per second at each resolution of a
schedule, and the time to as many pictures in full size from the start. Ours are steps of the model without Lightning.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from statistics import median
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.ports.stylegan import NaiveDiscriminator, NaiveGenerator, NaiveStyleGAN, copy_weights
from benchmarks.shipped import model_of, settings_of
from benchmarks.turns import Clock, add_arguments, begin, ratio, take_turns, write
from lightning_gen.commands.data import table
from lightning_gen.models import StyleGAN
from lightning_gen.models.growing import GrowingGAN
from lightning_gen.models.training import prepare_networks
from lightning_gen.networks import StyleGANDiscriminator, StyleGANGenerator
from lightning_gen.networks.stylegan import StyleLayer
from lightning_gen.schedules import Growing, Phase

PARTS = ("step", "stages")
INTERVAL = 16  # of lazy R1
NAIVE = "port, float32"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Loop:
    """The steps of a model that grows as a script would make them: losses, gradients, Adam.

    Args:
        model: Which is trained.
        dtype: Of autocast; float32 for none.
    """

    def __init__(self, model: GrowingGAN, dtype: torch.dtype) -> None:
        self.model, self.dtype, self.penalties = model.train(), dtype, model.penalties
        prepare_networks([model.generator, model.discriminator], channels_last=model.channels_last, compile=False)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=1e-3, betas=model.betas, fused=True)
            for network in (model.generator, model.discriminator)
        ]

    def __call__(self, real: Tensor, penalized: bool = True) -> None:
        """One update of the discriminator, with its penalties or without, and one of the generator."""
        model, (generator, discriminator) = self.model, self.optimizers
        model.penalties = self.penalties if penalized else []
        self._learn(model.discriminator, model.generator)
        self._update(discriminator, lambda: model.discriminator_losses(real, None))
        self._learn(model.generator, model.discriminator)
        self._update(generator, lambda: model.generator_losses(len(real)))

    def _update(self, optimizer: torch.optim.Optimizer, losses: Callable[[], Any]) -> None:
        optimizer.zero_grad()
        with torch.autocast(self.model.device.type, torch.bfloat16, self.dtype == torch.bfloat16):
            terms = losses()
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        optimizer.step()

    def _learn(self, network: nn.Module, other: nn.Module) -> None:
        network.requires_grad_(True)
        other.requires_grad_(False)


# -- a step -----------------------------------------------------------------------------------------------------------


def model_at(side: int, width: int, mapping_layers: int) -> StyleGAN:
    """StyleGAN in full size from the start, with layers of one width, which the paper's have up to 32 x 32."""
    sizes: dict[str, Any] = {"filters": 16 * width, "max_filters": width}
    generator = partial(StyleGANGenerator, style_size=width, mapping_layers=mapping_layers, **sizes)
    discriminator = partial(StyleGANDiscriminator, **sizes)
    model = StyleGAN((3, side, side), generator, discriminator, latent_size=width)
    for layer in model.synthesis.layers:  # else the first instance norm would divide nothing by nothing
        nn.init.constant_(cast(StyleLayer, layer).noise.strength, 0.1)
    return model


def naive_beside(model: StyleGAN) -> NaiveStyleGAN:
    """The port, with the weights of ours."""
    levels, width = len(model.synthesis.sizes), model.latent_size
    mapping_layers = len(model.synthesis.mapping.layers) // 2
    naive = NaiveStyleGAN(NaiveGenerator(3, levels, width, mapping_layers), NaiveDiscriminator(3, levels, width))
    copy_weights(model.generator, naive.generator)
    copy_weights(model.discriminator, naive.discriminator)
    return naive


def differences(model: StyleGAN, naive: NaiveStyleGAN, real: Tensor) -> dict[str, float]:
    """How far pictures and gradients are apart in float32, each relative to its own size."""
    latents, others, direction = *torch.randn(2, len(real), model.latent_size), torch.randn_like(real)
    state, pictures = torch.get_rng_state(), []
    for draw in (model.train().generator, naive.generator):
        torch.set_rng_state(state)  # of the noise
        pictures.append(draw(latents, others=others, cutoff=3))
    drawn = [
        torch.autograd.grad(images, list(network.parameters()), direction, allow_unused=True)
        for images, network in zip(pictures, (model.generator, naive.generator), strict=True)
    ]
    fake = pictures[0].detach()
    with patch.object(model, "fakes", lambda *_: fake), patch.object(naive, "fakes", lambda _: fake):
        loss = torch.stack(list(model.discriminator_losses(real, None).values())).sum()
        judged = torch.autograd.grad(loss, list(model.discriminator.parameters()), allow_unused=True)
        naive.discriminator_gradients(real)
    theirs = [weight.grad for weight in naive.discriminator.parameters()]
    return {
        "pictures": _apart(pictures[:1], pictures[1:]),
        "gradients of the generator": _apart(drawn[0], drawn[1]),
        "gradients of the discriminator": _apart(judged, theirs),
    }


def _apart(own: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float:
    pairs = [(a, b) for a, b in zip(own, other, strict=True) if a is not None or b is not None]
    size = sum(b.detach().square().sum().item() for _, b in pairs if b is not None)
    return math.sqrt(sum((a - b).detach().square().sum().item() for a, b in pairs) / size)  # type: ignore[operator,misc]


def step(given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """The port, and ours in both precisions, with R1 in every update and in one of sixteen."""
    torch.manual_seed(0)
    real = torch.rand(given.batch_size, 3, given.side, given.side) * 2 - 1
    model = model_at(given.side, given.width, given.mapping_layers)
    naive = naive_beside(model)
    apart = differences(model, naive, real)
    counts = [sum(map(Tensor.numel, network.parameters())) for network in (model.generator, model.discriminator)]
    print(f"\n{given.side} x {given.side}, {given.batch_size} pictures, {counts[0]:,} and {counts[1]:,} parameters")
    print("apart in float32: " + ", ".join(f"{name} {value:.0e}" for name, value in apart.items()))
    if max(apart.values()) > 1e-3:
        raise RuntimeError(f"The port does not do the same: {apart}")
    contestants: dict[str, Callable[[], None]] = {NAIVE: partial(naive.step, real)}
    for name, dtype in PRECISIONS.items():
        loop = Loop(deepcopy(model), dtype)
        contestants[name] = partial(loop, real)
        contestants[f"{name}, without R1"] = partial(loop, real, penalized=False)
    take_turns(contestants, 1, clock)  # first calls
    seconds = take_turns(contestants, given.turns, clock)
    for name in PRECISIONS:
        both = zip(seconds[name], seconds.pop(f"{name}, without R1"), strict=True)
        seconds[f"{name}, R1 in every {INTERVAL}th"] = [(a + (INTERVAL - 1) * b) / INTERVAL for a, b in both]
    rows = [["", "s a step", "pictures/s", "port / it"]]
    for name, times in seconds.items():
        took = median(times)
        rows.append([name, f"{took:.2f}", f"{given.batch_size / took:.2f}", f"{ratio(seconds, NAIVE, name):.2f}"])
    print(f"\n{table(rows)}")
    return {"apart": apart, "parameters": counts, "seconds": seconds}


# -- stages -----------------------------------------------------------------------------------------------------------


class Stages:
    """A configuration whose model grows, at the stages of its schedule.

    Args:
        name: Of the configuration.
        side: The resolution that it ends with; 0 for its own.
        largest: Batches are cut to so many pictures.
        dtype: Of autocast.
    """

    def __init__(self, name: str, side: int, largest: int, dtype: torch.dtype) -> None:
        settings = settings_of(name)
        given = settings["data"]["init_args"]["growing"]
        kept = sum(resolution <= (side or resolution) for resolution in given["resolutions"])
        growing = {key: value[:kept] if isinstance(value, list) else value for key, value in given.items()}
        self.last = growing["resolutions"][-1]
        model = model_of(settings, growing=growing, image_shape=(3, self.last, self.last))
        assert isinstance(model, GrowingGAN)
        self.name, self.largest, self.loop = name, largest, Loop(model, dtype)
        self.growing: Growing = model.growing  # type: ignore[assignment]
        self.end = self.growing.images_after(settings["trainer"]["max_steps"])

    def contestants(self) -> dict[str, Callable[[], None]]:
        """A step at each resolution, while it fades in and when it is there."""
        return {str(key): partial(self.step, phase) for key, phase in self.phases().items()}

    def phases(self) -> dict[tuple[int, bool], Phase]:
        """One of each kind: the resolution, and whether it fades in."""
        return {_kind(phase): phase for phase in self.growing.phases()}

    def batch_size(self, phase: Phase) -> int:
        """Of a step that is timed."""
        return min(self.largest, phase.stage.batch_size)

    def step(self, phase: Phase) -> None:
        """One of the stage in the middle of a phase."""
        model, side = self.loop.model, phase.stage.resolution
        model.images_seen, model.training_shape = phase.middle, (3, side, side)
        real, _ = model.real_images({"image": torch.rand(self.batch_size(phase), 3, side, side) * 2 - 1})
        self.loop(real)

    def hours(self, rates: dict[tuple[int, bool], float], images: int) -> tuple[float, float]:
        """To so many pictures, at rates in pictures per second: growing, and in full size from the start."""
        seconds, phases = 0.0, self.growing.phases()
        ends = [phase.start for phase in phases[1:]] + [images]
        for phase, end in zip(phases, ends, strict=True):
            seconds += max(0, min(end, images) - phase.start) / rates[_kind(phase)]
        return seconds / 3600, images / rates[_kind(phases[-1])] / 3600


def _kind(phase: Phase) -> tuple[int, bool]:
    return phase.stage.resolution, phase.stage.fade < 1


def stages(given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Pictures per second by stage, and what growing saves."""
    figures: dict[str, Any] = {}
    for name in given.configs:
        torch.manual_seed(0)
        tried = Stages(name, given.side, given.largest_batch, PRECISIONS[given.precision])
        contestants, phases = tried.contestants(), tried.phases()
        take_turns(contestants, 1, clock)
        seconds = take_turns(contestants, given.turns, clock)
        rates = {key: tried.batch_size(phase) / median(seconds[str(key)]) for key, phase in phases.items()}
        rows = [["resolution", "fade", "batch", "pictures/s"]]
        for (resolution, fades), phase in phases.items():
            rate = rates[resolution, fades]
            rows.append([str(resolution), "0 to 1" if fades else "1", str(tried.batch_size(phase)), f"{rate:.3g}"])
        print(f"\n{name}, to {tried.last} x {tried.last}, {given.precision}\n\n{table(rows)}\n")
        rows, found = [["pictures", "growing, h", "in full size, h", "times as long"]], {}
        for images in (tried.growing.phases()[-1].start, tried.end):
            grown, full = tried.hours(rates, images)
            rows.append([f"{images:,}", f"{grown:.3g}", f"{full:.3g}", f"{full / grown:.2f}"])
            found[images] = {"growing": grown, "full": full}
        print(table(rows))
        figures[name] = {"seconds": seconds, "rates": {str(key): rate for key, rate in rates.items()}, "hours": found}
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print tables, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growing", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=" or ".join(PARTS))
    parser.add_argument("--batch-size", type=int, default=4, help="of a step")
    parser.add_argument("--width", type=int, default=512, help="of all layers of a step")
    parser.add_argument("--mapping-layers", type=int, default=8, help="of a step")
    parser.add_argument("--configs", nargs="+", default=["stylegan", "progan"], help="whose stages are timed")
    parser.add_argument("--side", type=int, default=32, help="of a step, and where schedules end")
    parser.add_argument("--largest-batch", type=int, default=32, help="at a stage; larger ones are cut")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bfloat16", help="of stages")
    add_arguments(parser, turns=3)
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"parts are {' and '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if min(given.batch_size, given.width, given.mapping_layers, given.largest_batch) < 1 or given.side < 8:
        parser.error("sizes must be 1 or more, and --side 8 or more")
    warnings.filterwarnings("ignore", module="jsonargparse")
    clock = begin(parser, given)
    figures = {part: {"step": step, "stages": stages}[part](given, clock) for part in given.parts}
    write(given.json, clock, figures)


if __name__ == "__main__":
    main()
