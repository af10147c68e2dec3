"""A training step of PixelCNN++, beside a plain implementation as ports to PyTorch commonly have it.

    python -m benchmarks.pixelcnn_pp
    python -m benchmarks.pixelcnn_pp --filters 160 --batch-size 16 --device cuda

A step is forward pass, likelihood, backward pass and Adam, in a loop without Lightning; all have the same weights to
start from. The port is float32 and contiguous. It pads in a layer of its own and cuts off what is too much after a
transposed convolution; has PyTorch's `weight_norm` on every layer, and concat_elu by `torch.cat`; computes the mixture
by the differences of sigmoids and what stands in for them where they vanish; and drops whole maps, by `nn.Dropout2d`,
where we drop single features, as the paper. All else is the same mathematics: without dropout both give the same
likelihood, and how far they differ is printed. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.ports.pixelcnn_pp import COMPONENTS, Port, PortBlock, PortResnet, PortStage, port_log_prob
from benchmarks.turns import Clock, add_arguments, begin, ratio, take_turns, write
from lightning_gen.layers.weight_norm import WeightNormalized
from lightning_gen.losses.categorical import images_to_levels, levels_to_images
from lightning_gen.models import PixelCNNPP
from lightning_gen.networks.pixelcnn_pp import GatedResnet, PixelCNNPPNetwork

LEVELS = 256


@torch.no_grad()
def copy_weights(ours: PixelCNNPPNetwork, port: Port) -> None:
    """Give the port our weights, whose channels come in another order at the shortcuts and at the end."""
    filters = ours.filters

    def copy(from_layer: nn.Module, to: nn.Module, outputs: Sequence[int] = (), inputs: Sequence[int] = ()) -> None:
        source, layer = cast(WeightNormalized, from_layer), cast(Any, to).layer
        chosen = outputs if outputs else slice(None)
        v = source.v[chosen]
        layer.weight_v.copy_(v[:, inputs] if inputs else v)
        layer.weight_g.copy_(source.g[chosen].view_as(layer.weight_g))
        layer.bias.copy_(source.b[chosen])

    # Of u and of the stream beside it: ours are u, -u, beside, -beside; the port's are u, beside, -u, -beside.
    both = [*range(filters), *range(2 * filters, 3 * filters), *range(filters, 2 * filters)]
    both += range(3 * filters, 4 * filters)

    def copy_resnet(source: GatedResnet, to: PortResnet) -> None:
        copy(source.conv1, to.conv1)
        copy(source.conv2, to.conv2)
        if source.shortcut is not None and to.shortcut is not None:
            copy(source.shortcut, to.shortcut, inputs=both if source.shortcut.v.shape[1] == len(both) else ())

    for name in ("first_u", "first_above", "first_left"):
        copy(getattr(ours, name), getattr(port, name))
    # Ours are logits, all means, all scales, all coefficients; the port's are logits, then all three of each colour.
    rows = (0, 1, 4, 7, 2, 5, 8, 3, 6, 9)
    copy(ours.last, port.last, [row * COMPONENTS + component for row in rows for component in range(COMPONENTS)])
    for our_stages, port_stages in ((ours.up, port.up), (ours.down, port.down)):
        for stage, to_stage in zip(our_stages, cast(Sequence[PortStage], port_stages), strict=True):
            if stage.resampling is not None and to_stage.to_u is not None and to_stage.to_ul is not None:
                copy(stage.resampling.u, to_stage.to_u)
                copy(stage.resampling.ul, to_stage.to_ul)
            for block, to_block in zip(stage.blocks, cast(Sequence[PortBlock], to_stage.blocks), strict=True):
                copy_resnet(block.u, to_block.u)
                copy_resnet(block.ul, to_block.ul)


# -- what takes turns -------------------------------------------------------------------------------------------------


def ours_and_port(filters: int, num_blocks: int, images: Tensor) -> tuple[PixelCNNPP, Port]:
    """Both with the same weights, initialised on these pictures, on their device."""
    shape = cast(tuple[int, int, int], tuple(images.shape[1:]))
    model = PixelCNNPP(shape, network=partial(PixelCNNPPNetwork, filters=filters, num_blocks=num_blocks)).to(images)
    network = cast(PixelCNNPPNetwork, model.network.eval())
    network.initialize(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's newer weight norm
        port = Port(filters, num_blocks).to(images)
    copy_weights(network, port)
    return model, port


@torch.no_grad()
def largest_difference(model: PixelCNNPP, port: Port, images: Tensor) -> float:
    """Of the likelihoods of pictures, in nats a dimension, without dropout."""
    model.network.eval()
    port.eval()
    levels = images_to_levels(images, LEVELS)
    ours = model.log_prob_of_levels(model.network(images), levels)
    return float((ours - port_log_prob(port(images), images)).abs().max()) / images[0].numel()


def our_step(model: PixelCNNPP, images: Tensor, precision: str) -> Callable[[], None]:
    """Our network and likelihood, in the layout and with the optimizer that the model has."""
    network = deepcopy(model.network).train()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    optimizer = model.default_optimizer(network.parameters())
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")

    def step() -> None:
        optimizer.zero_grad()
        levels = images_to_levels(images, LEVELS)
        with autocast:
            loss = -model.log_prob_of_levels(network(images), levels).mean() / images[0].numel()
        loss.backward()
        optimizer.step()

    return step


def port_step(port: Port, model: PixelCNNPP, images: Tensor) -> Callable[[], None]:
    """The port, as it is."""
    port.train()
    optimizer = torch.optim.Adam(port.parameters(), lr=model.learning_rate, betas=model.betas)

    def step() -> None:
        optimizer.zero_grad()
        loss = -port_log_prob(port(images), images).mean() / images[0].numel()
        loss.backward()
        optimizer.step()

    return step


def measure(given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """All figures."""
    levels = torch.randint(LEVELS, (given.batch_size, 3, given.image_size, given.image_size))
    images = levels_to_images(levels, LEVELS).to(clock.device)
    model, port = ours_and_port(given.filters, given.blocks, images)
    difference = largest_difference(model, port, images)
    contestants = {"port, 32-true": port_step(port, model, images)}
    contestants |= {f"ours, {precision}": our_step(model, images, precision) for precision in ("32-true", "bf16-mixed")}
    take_turns(contestants, given.warmup, clock)
    seconds = take_turns(contestants, given.turns, clock)
    return {
        "parameters": {
            "ours": sum(parameter.numel() for parameter in model.network.parameters()),
            "port": sum(parameter.numel() for parameter in port.parameters()),
        },
        "nats_per_dim_differ_by": difference,
        "ms": {name: 1e3 * median(times) for name, times in seconds.items()},
        "port_over": {name: ratio(seconds, "port, 32-true", name) for name in contestants},
        "seconds": seconds,
    }


# -- the command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print a table, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pixelcnn_pp", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--filters", type=int, default=40, help="channels of each stream; 160 in the paper")
    parser.add_argument("--blocks", type=int, default=5, help="residual blocks of each scale")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32, help="height and width, a multiple of 4")
    parser.add_argument("--warmup", type=int, default=1, help="turns before, which do not count")
    add_arguments(parser, turns=7)
    given = parser.parse_args(arguments)
    if min(given.filters, given.blocks, given.batch_size) < 1 or given.image_size < 4 or given.image_size % 4:
        parser.error("--filters, --blocks and --batch-size must be 1 or more, and --image-size a multiple of 4")
    clock = begin(parser, given)
    figures = measure(given, clock)
    count = figures["parameters"]
    print(
        f"{given.image_size} px, batch {given.batch_size}, {given.filters} filters, {given.blocks} blocks; parameters: "
        f"{count['ours']:,}, of the port {count['port']:,}\n"
        f"with the same weights, without dropout, nats a dimension differ by {figures['nats_per_dim_differ_by']:.0e}\n"
    )
    print(f"{'':24}{'ms a step':>10}{'images/s':>10}{'port / it':>11}")
    for name, ms in figures["ms"].items():
        print(f"{name:24}{ms:10.0f}{1e3 * given.batch_size / ms:10.1f}{figures['port_over'][name]:10.2f}x")
    write(given.json, clock, figures)


if __name__ == "__main__":
    main()
