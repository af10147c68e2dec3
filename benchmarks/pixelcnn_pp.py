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
import math
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from benchmarks.turns import Clock, add_arguments, begin, ratio, take_turns, write
from lightning_gen.layers.weight_norm import WeightNormalized
from lightning_gen.losses.categorical import images_to_levels, levels_to_images
from lightning_gen.models import PixelCNNPP
from lightning_gen.networks.pixelcnn_pp import GatedResnet, PixelCNNPPNetwork

LEVELS, COMPONENTS = 256, 10


# -- the port ---------------------------------------------------------------------------------------------------------


class PortConv(nn.Module):
    """Zeros around, then a convolution with weight norm.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        size: (height, width) of the kernel.
        zeros: To the left, to the right, above and below.
        stride: Of rows and columns.
    """

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int], zeros: tuple[int, int, int, int], stride: int = 1
    ) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(zeros)
        self.layer = weight_norm(nn.Conv2d(inputs, outputs, size, stride))

    def forward(self, features: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`."""
        return self.layer(self.pad(features))


def port_down(inputs: int, outputs: int, stride: int = 1) -> PortConv:
    """Of stream u: 2 x 3, up to the pixel's row."""
    return PortConv(inputs, outputs, (2, 3), (1, 1, 1, 0), stride)


def port_down_right(inputs: int, outputs: int, stride: int = 1) -> PortConv:
    """Of stream ul: 2 x 2, up to the pixel."""
    return PortConv(inputs, outputs, (2, 2), (1, 0, 1, 0), stride)


class PortTransposed(nn.Module):
    """A transposed convolution with weight norm and a stride of 2, and what is too much cut off.

    Args:
        filters: Channels in and out.
        width: Of the kernel, 2 rows high.
        left: Columns cut off there.
    """

    def __init__(self, filters: int, width: int, left: int) -> None:
        super().__init__()
        self.left = left
        self.layer = weight_norm(nn.ConvTranspose2d(filters, filters, (2, width), 2, output_padding=1), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, filters, H, W]` to `[N, filters, 2 H, 2 W]`."""
        height, width = features.shape[2:]
        return self.layer(features)[:, :, : 2 * height, self.left : self.left + 2 * width]


class PortPointwise(nn.Module):
    """A linear layer with weight norm, for which the channels go last and come back."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = weight_norm(nn.Linear(inputs, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H, W]`."""
        last = features.permute(0, 2, 3, 1).contiguous()
        number, height, width, channels = last.shape
        out = self.layer(last.view(-1, channels))
        return out.view(number, height, width, -1).permute(0, 3, 1, 2)


class PortResnet(nn.Module):
    """The gated residual block of one stream; `beside` are the channels that come through the shortcut."""

    def __init__(self, conv: Callable[[int, int], PortConv], filters: int, beside: int) -> None:
        super().__init__()
        self.conv1 = conv(2 * filters, filters)
        self.shortcut = PortPointwise(2 * beside, filters) if beside else None
        self.dropout = nn.Dropout2d(0.5)
        self.conv2 = conv(2 * filters, 2 * filters)

    def forward(self, features: Tensor, beside: Tensor | None = None) -> Tensor:
        """To the same shape."""
        hidden = self.conv1(port_concat_elu(features))
        if self.shortcut is not None and beside is not None:
            hidden = hidden + self.shortcut(port_concat_elu(beside))
        values, gates = self.conv2(self.dropout(port_concat_elu(hidden))).chunk(2, dim=1)
        return features + values * torch.sigmoid(gates)


class PortBlock(nn.Module):
    """A residual block of each stream."""

    def __init__(self, filters: int, *, shortcuts: bool) -> None:
        super().__init__()
        self.u = PortResnet(port_down, filters, filters * shortcuts)
        self.ul = PortResnet(port_down_right, filters, filters * (1 + shortcuts))


class PortStage(nn.Module):
    """The blocks of a scale on the way up or down, and the layers of both streams that lead there, if there are any."""

    def __init__(self, blocks: list[PortBlock], to_u: nn.Module | None, to_ul: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.to_u, self.to_ul = to_u, to_ul


class Port(nn.Module):
    """PixelCNN++ for colour at three scales.

    Args:
        filters: Channels of each stream.
        num_blocks: Of each scale on the way up.
    """

    def __init__(self, filters: int, num_blocks: int) -> None:
        super().__init__()
        self.first_u = PortConv(4, filters, (2, 3), (1, 1, 1, 0))
        self.first_above = PortConv(4, filters, (1, 3), (1, 1, 0, 0))
        self.first_left = PortConv(4, filters, (2, 1), (0, 0, 1, 0))
        up, down = [], []
        for scale in range(3):
            up_blocks = [PortBlock(filters, shortcuts=False) for _ in range(num_blocks)]
            strided = (port_down(filters, filters, 2), port_down_right(filters, filters, 2)) if scale else (None, None)
            up.append(PortStage(up_blocks, *strided))
            down_blocks = [PortBlock(filters, shortcuts=True) for _ in range(num_blocks + (scale < 2))]
            transposed = (PortTransposed(filters, 3, 1), PortTransposed(filters, 2, 0)) if scale < 2 else (None, None)
            down.append(PortStage(down_blocks, *transposed))
        self.up, self.down = nn.ModuleList(up), nn.ModuleList(down)  # the finest scale first
        self.last = PortPointwise(filters, 10 * COMPONENTS)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` to parameters `[N, 10 K, H, W]`."""
        ones = torch.ones(len(images), 1, *images.shape[2:], device=images.device, dtype=images.dtype)
        inputs = torch.cat([images, ones], dim=1)
        down, right = nn.ZeroPad2d((0, 0, 1, 0)), nn.ZeroPad2d((1, 0, 0, 0))
        u = down(self.first_u(inputs)[:, :, :-1])
        ul = down(self.first_above(inputs)[:, :, :-1]) + right(self.first_left(inputs)[:, :, :, :-1])
        us, uls = [u], [ul]
        for stage in cast(Sequence[PortStage], self.up):
            if stage.to_u is not None and stage.to_ul is not None:
                us.append(stage.to_u(us[-1]))
                uls.append(stage.to_ul(uls[-1]))
            for block in cast(Sequence[PortBlock], stage.blocks):
                us.append(block.u(us[-1]))
                uls.append(block.ul(uls[-1], us[-1]))
        u, ul = us.pop(), uls.pop()
        for stage in reversed(list(cast(Sequence[PortStage], self.down))):
            if stage.to_u is not None and stage.to_ul is not None:
                u, ul = stage.to_u(u), stage.to_ul(ul)
            for block in cast(Sequence[PortBlock], stage.blocks):
                u = block.u(u, us.pop())
                ul = block.ul(ul, torch.cat([u, uls.pop()], dim=1))
        return self.last(F.elu(ul))


def port_concat_elu(features: Tensor) -> Tensor:
    """ELU of the features and of their negatives."""
    return F.elu(torch.cat([features, -features], dim=1))


def port_log_prob(parameters: Tensor, images: Tensor) -> Tensor:
    """Nats of each picture, `[N]`, with sigmoids' differences, and density times width where these vanish.

    Args:
        parameters: `[N, 10 K, H, W]`: K logits, then for each colour K means, K log scales and K coefficients: of green
            on red, of blue on red, of blue on green.
        images: `[N, 3, H, W]` in `[-1, 1]`.
    """
    x = images.permute(0, 2, 3, 1).unsqueeze(-1)
    parameters = parameters.permute(0, 2, 3, 1)
    logits = parameters[..., :COMPONENTS]
    means, log_scales, coefficients = parameters[..., COMPONENTS:].unflatten(-1, (3, 3 * COMPONENTS)).chunk(3, dim=-1)
    log_scales = torch.clamp(log_scales, min=-7.0)
    coefficients = torch.tanh(coefficients)
    red, green = x[..., 0, :], x[..., 1, :]
    green_mean = means[..., 1, :] + coefficients[..., 0, :] * red
    blue_mean = means[..., 2, :] + coefficients[..., 1, :] * red + coefficients[..., 2, :] * green
    means = torch.stack([means[..., 0, :], green_mean, blue_mean], dim=-2)

    centered = x - means
    inverse_scales = torch.exp(-log_scales)
    plus, minus = inverse_scales * (centered + 1 / 255), inverse_scales * (centered - 1 / 255)
    difference = torch.sigmoid(plus) - torch.sigmoid(minus)
    middle = inverse_scales * centered
    log_density = middle - log_scales - 2 * F.softplus(middle)
    log_mass = torch.where(
        difference > 1e-5, torch.log(torch.clamp(difference, min=1e-12)), log_density - math.log(127.5)
    )
    log_mass = torch.where(x > 0.999, -F.softplus(minus), log_mass)
    log_mass = torch.where(x < -0.999, plus - F.softplus(plus), log_mass)
    return torch.logsumexp(log_mass.sum(-2) + F.log_softmax(logits, dim=-1), dim=-1).flatten(1).sum(1)


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
    model = PixelCNNPP(cast(Any, tuple(images.shape[1:])), filters=filters, num_blocks=num_blocks).to(images)
    model.network.eval()
    model.network.initialize(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's newer weight norm
        port = Port(filters, num_blocks).to(images)
    copy_weights(model.network, port)
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
    network = PixelCNNPPNetwork(
        model.image_shape,
        outputs=model.likelihood.num_parameters(3),
        filters=model.network.filters,
        num_blocks=len(model.network.up[0].blocks),
    ).to(images)
    network.load_state_dict(model.network.state_dict())
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
