"""PixelCNN++ as ports to PyTorch commonly have it; in what it differs from ours, `benchmarks.pixelcnn_pp` says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import weight_norm

COMPONENTS = 10


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
