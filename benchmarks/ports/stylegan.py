"""A training step of StyleGAN as the well-known ports write it down, for one resolution.

Layers are modules of their own: doubling, convolution, blur, one after the other; weights are scaled in every forward
pass; the blur is a convolution with a group for each channel; the style of a layer is an instance norm, a linear layer,
a product and a sum. All is float32 and contiguous. The penalty is taken on the scores of real pictures that the loss
has used, and each term goes back by itself. Weights are registered in the order of `lightning_gen`'s networks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam


class EqualLinear(nn.Module):
    """Weights from N(0, 1), scaled in the forward pass."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2), multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / multiplier)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.multiplier = gain / math.sqrt(inputs) * multiplier, multiplier

    def forward(self, features: Tensor) -> Tensor:
        """`[N, inputs]` to `[N, outputs]`."""
        return F.linear(features, self.weight * self.scale, self.bias * self.multiplier)


class EqualConv2d(nn.Module):
    """Likewise."""

    def __init__(self, inputs: int, outputs: int, kernel: int, gain: float = math.sqrt(2), bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = gain / math.sqrt(inputs * kernel**2)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H, W]`."""
        return F.conv2d(features, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class BlurLayer(nn.Module):
    """[1, 2, 1] x [1, 2, 1] / 16, a group for each channel."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(line, line).repeat(channels, 1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """To the same shape."""
        return F.conv2d(features, self.kernel, padding=1, groups=features.shape[1])


class PixelNorm(nn.Module):
    """Latents by their root mean square."""

    def forward(self, latents: Tensor) -> Tensor:
        """To the same shape."""
        return latents / torch.sqrt(latents.square().mean(dim=1, keepdim=True) + 1e-8)


class NoiseLayer(nn.Module):
    """Noise, of another strength in each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """To the same shape."""
        noise = torch.randn(len(features), 1, *features.shape[2:], device=features.device)
        return features + self.strength.view(1, -1, 1, 1) * noise


class StyleMod(nn.Module):
    """Instance norm, then scale and shift by a style."""

    def __init__(self, channels: int, style_size: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, eps=1e-8)
        self.linear = EqualLinear(style_size, 2 * channels, gain=1.0)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """To the same shape."""
        scale, shift = self.linear(style)[:, :, None, None].chunk(2, dim=1)
        return self.norm(features) * (scale + 1) + shift


class StyledLayer(nn.Module):
    """[Doubling,] convolution, [blur,] noise, bias, leaky ReLU, style."""

    def __init__(self, inputs: int | None, outputs: int, style_size: int, up: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        layers: list[nn.Module] = [nn.Upsample(scale_factor=2)] if up else []
        layers += [] if inputs is None else [EqualConv2d(inputs, outputs, 3, bias=False)]
        layers += [BlurLayer(outputs)] if up else []
        self.convolution = nn.Sequential(*layers)
        self.noise = NoiseLayer(outputs)
        self.activation = nn.LeakyReLU(0.2)
        self.style = StyleMod(outputs, style_size)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """`[N, inputs, ...]` to `[N, outputs, ...]`."""
        features = self.noise(self.convolution(features)) + self.bias.view(1, -1, 1, 1)
        modulated: Tensor = self.style(self.activation(features), style)
        return modulated


class NaiveGenerator(nn.Module):
    """As `StyleGANGenerator` for one resolution; the styles of each layer are chosen in a loop.

    Args:
        channels: Of the pictures.
        levels: Resolutions from 4 x 4 on.
        width: Of all layers, latents and styles.
        mapping_layers: Of the mapping.
    """

    def __init__(self, channels: int, levels: int, width: int, mapping_layers: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.ones(1, width, 4, 4))
        # Those of lower resolutions are there and not used.
        self.to_image = nn.ModuleList(EqualConv2d(width, channels, 1, gain=1.0) for _ in range(levels))
        mapping: list[nn.Module] = [PixelNorm()]
        for _ in range(mapping_layers):
            mapping += [EqualLinear(width, width, multiplier=0.01), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*mapping)
        self.layers = nn.ModuleList()
        for level in range(levels):
            self.layers.append(StyledLayer(width if level else None, width, width, up=level > 0))
            self.layers.append(StyledLayer(width, width, width, up=False))

    def forward(self, latents: Tensor, others: Tensor, cutoff: int) -> Tensor:
        """Latents `[N, width]`, and others whose styles the layers from `cutoff` on have, to pictures."""
        styles = self.mapping(latents), self.mapping(others)
        features = self.constant.repeat(len(latents), 1, 1, 1)
        for number, layer in enumerate(self.layers):
            features = layer(features, styles[number >= cutoff])
        images: Tensor = self.to_image[-1](features)
        return images


class StdLayer(nn.Module):
    """One more map: the deviation over groups of four."""

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C + 1, H, W]`."""
        number, channels, height, width = features.shape
        groups = features.view(min(4, number), -1, channels, height, width)
        groups = groups - groups.mean(dim=0, keepdim=True)
        std = torch.sqrt(groups.square().mean(dim=0) + 1e-8).mean(dim=(1, 2, 3), keepdim=True)
        return torch.cat([features, std.repeat(min(4, number), 1, height, width)], dim=1)


class NaiveDiscriminator(nn.Module):
    """As `StyleGANDiscriminator` for one resolution.

    Args:
        channels: Of the pictures.
        levels: Resolutions down to 4 x 4.
        width: Of all layers.
    """

    def __init__(self, channels: int, levels: int, width: int) -> None:
        super().__init__()
        self.from_image = nn.ModuleList(
            nn.Sequential(EqualConv2d(channels, width, 1), nn.LeakyReLU(0.2)) for _ in range(levels)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                EqualConv2d(width, width, 3),
                nn.LeakyReLU(0.2),
                BlurLayer(width),
                EqualConv2d(width, width, 3),
                nn.AvgPool2d(2),
                nn.LeakyReLU(0.2),
            )
            for _ in range(levels - 1)
        )
        self.head = nn.Sequential(
            StdLayer(),
            EqualConv2d(width + 1, width, 3),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            EqualLinear(width * 16, width),
            nn.LeakyReLU(0.2),
            EqualLinear(width, 1, gain=1.0),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores `[N]`."""
        features = self.from_image[-1](images)
        for block in reversed(self.blocks):
            features = block(features)
        scores: Tensor = self.head(features)
        return scores.squeeze(1)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """From a network of `lightning_gen` to that of a port, or back; both have their weights in one order."""
    with torch.no_grad():
        for given, own in zip(source.parameters(), target.parameters(), strict=True):
            own.copy_(given)


class NaiveStyleGAN:
    """The game as the ports play it, see the head of this file; weights that are not learned have no gradients.

    Args:
        generator: G.
        discriminator: D.
        penalty_weight: Of R1; 0 leaves it out.
    """

    def __init__(
        self, generator: NaiveGenerator, discriminator: NaiveDiscriminator, penalty_weight: float = 10.0
    ) -> None:
        self.generator, self.discriminator, self.penalty_weight = generator, discriminator, penalty_weight
        self.optimizers = [
            Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.99)) for network in (generator, discriminator)
        ]
        self.log: dict[str, float] = {}

    def step(self, real: Tensor) -> None:
        """One update of the discriminator and one of the generator."""
        for network in (self.discriminator, self.generator):  # what follows needs no weights of the other
            network.zero_grad()
        self._learn(self.discriminator)
        self.discriminator_gradients(real)
        self.optimizers[1].step()
        self._learn(self.generator)
        loss = F.softplus(-self.discriminator(self.fakes(len(real)))).mean()
        loss.backward()
        self.optimizers[0].step()
        self.log["loss_G"] = loss.item()

    def discriminator_gradients(self, real: Tensor) -> None:
        """Of real pictures, the penalty on them, and fakes, each by itself."""
        real = real.detach().requires_grad_(self.penalty_weight > 0)
        scores = self.discriminator(real)
        loss = F.softplus(-scores).mean()
        loss.backward(retain_graph=self.penalty_weight > 0)
        if self.penalty_weight:
            (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            penalty = self.penalty_weight / 2 * gradient.flatten(1).square().sum(1).mean()
            penalty.backward()
            self.log["penalty"] = penalty.item()
        fake_loss = F.softplus(self.discriminator(self.fakes(len(real)))).mean()
        fake_loss.backward()
        self.log["loss_D"] = (loss + fake_loss).item()

    def fakes(self, number: int) -> Tensor:
        """With styles mixed from a random layer on, nine times out of ten."""
        width, layers = self.generator.constant.shape[1], len(self.generator.layers)
        cutoff = int(torch.randint(1, layers, ())) if torch.rand(()) < 0.9 else layers
        images: Tensor = self.generator(torch.randn(number, width), torch.randn(number, width), cutoff)
        return images

    def _learn(self, network: nn.Module) -> None:
        for each in (self.generator, self.discriminator):
            each.requires_grad_(each is network)
