"""The encoder and decoder of VQGAN (2012.09841): residual blocks with attention, for any factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.quantize import Quantized
from lightning_gen.layers.resampling import UpsamplingConv2d
from lightning_gen.losses.latents import gaussian_kl
from lightning_gen.losses.precision import full
from lightning_gen.networks.building import check_divisible, check_sizes


class VQGANEncoder(nn.Module):
    """Residual blocks at every resolution, halvings between them, attention where maps are small; then to the features.

    A 3 x 3 convolution; for each multiplier `blocks` residual blocks of filters times that, and after all but the last
    a convolution of stride 2; a residual block, attention and another one; group norm, swish, a 3 x 3 convolution to
    `z_channels`, and a 1 x 1 convolution to the features. At sides in `attention` every residual block is followed by
    attention. With the defaults, of factor 16, the network of the paper's models of 256 x 256 pixels.

    Parameters for (3, 256, 256) and 256 channels: 29,363,968.

    Deviation: where 32 groups do not divide the channels of a small network in two or more, group norm has fewer.

    Args:
        image_shape: (channels, height, width), of multiples of 2^(multipliers - 1).
        channels: D, of the features.
        filters: Of the first convolution.
        multipliers: Of `filters`, one for each resolution; so the factor is 2^(their number - 1).
        blocks: Residual blocks at each resolution.
        attention: Heights of maps at which there is attention.
        z_channels: Before the last convolution; None for as many as there are features.
        dropout: In residual blocks, after the second activation; 0 in the paper's models.

    Raises:
        ValueError: If a number is out of range, or a side of the pictures is no multiple of the factor.
    """

    small: ClassVar = {"filters": 8, "multipliers": (1, 2), "blocks": 1, "z_channels": None}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        *,
        filters: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        z_channels: int | None = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        z_channels = channels if z_channels is None else z_channels
        widths = _widths(
            self, image_shape, filters, multipliers, channels=channels, blocks=blocks, z_channels=z_channels
        )
        height = image_shape[1]
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], filters, 3, padding=1)]
        for level, (before, width) in enumerate(pairwise([filters, *widths])):
            layers += [_Downsampling(before)] if level else []
            layers += _blocks(before, width, blocks, dropout, attend=height >> level in attention)
        layers += [*_middle(widths[-1], dropout), *_head(widths[-1], z_channels), nn.Conv2d(z_channels, channels, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` to features `[N, channels, h, w]`."""
        return self.layers(images)


class VQGANDecoder(nn.Module):
    """The mirror of `VQGANEncoder`, with one residual block more at each resolution, and doublings between them.

    Parameters for (3, 256, 256), 256 channels and 3 outputs: 42,515,587.

    Args:
        image_shape: (channels, height, width), of multiples of 2^(multipliers - 1).
        channels: D, of the vectors.
        outputs: Channels of what it gives.
        filters: As the encoder's.
        multipliers: As the encoder's.
        blocks: As the encoder's; there is one more at each resolution.
        attention: As the encoder's.
        z_channels: After the first convolution; None for as many as the vectors have.
        dropout: As the encoder's.

    Raises:
        ValueError: As from `VQGANEncoder`.
    """

    small: ClassVar = VQGANEncoder.small

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: int,
        outputs: int,
        *,
        filters: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        z_channels: int | None = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        z_channels = channels if z_channels is None else z_channels
        sizes = {"channels": channels, "outputs": outputs, "blocks": blocks, "z_channels": z_channels}
        widths = _widths(self, image_shape, filters, multipliers, **sizes)[::-1]
        height = image_shape[1]
        layers: list[nn.Module] = [nn.Conv2d(channels, z_channels, 1), nn.Conv2d(z_channels, widths[0], 3, padding=1)]
        layers += _middle(widths[0], dropout)
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            layers += [UpsamplingConv2d(before, before)] if level else []
            attend = height >> len(widths) - 1 - level in attention
            layers += _blocks(before, width, blocks + 1, dropout, attend=attend)
        self.layers = nn.Sequential(*layers, *_head(widths[-1], outputs))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[N, channels, h, w]` to `[N, outputs, H, W]`."""
        return self.layers(vectors)


class _Residual(nn.Module):
    """Shortcut + twice group norm, swish, 3 x 3 convolution; the shortcut is 1 x 1 where widths differ."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.residual = nn.Sequential(
            *(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)),
            *(
                _norm(outputs),
                nn.SiLU(),
                nn.Dropout(dropout) if dropout else nn.Identity(),
                nn.Conv2d(outputs, outputs, 3, padding=1),
            ),
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[N, inputs, h, w]` to `[N, outputs, h, w]`."""
        return self.shortcut(features) + self.residual(features)


class _Attention(nn.Module):
    """Features + what each place gathers from all others, by one head of as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, channels, h, w]` to the same shape."""
        maps = self.query_key_value(self.norm(features)).flatten(2).transpose(1, 2)  # [N, h w, 3 channels]
        gathered = F.scaled_dot_product_attention(*maps.chunk(3, 2))
        return features + self.out(gathered.transpose(1, 2).reshape(features.shape))


class _Downsampling(nn.Conv2d):
    """A 3 x 3 convolution of stride 2 with zeros at the right and below, none at the left and above."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, channels, H, W]` to `[N, channels, H / 2, W / 2]`."""
        return super().forward(F.pad(features, (0, 1, 0, 1)))


class GaussianLatent(nn.Module):
    """A Gaussian in place of a quantizer: the latent of the "KL autoencoders" of latent diffusion (2112.10752).

    Half of the features are means, half log-variances, cut to [-30, 20] as in the authors' code. In training mode a
    vector is drawn, in evaluation mode it is the mean. It has the quantizers' convention, with no codes. The loss `kl`
    is the KL divergence from N(0, 1), nats a picture, so that beta means beta beside sums over a picture's numbers.

    Args:
        channels: Of the features, an even number: twice as many as the latents have.
        kl_weight: Beta, at least 0; 1e-6 in the paper's models.

    Attributes:
        vector_size: Channels of the latents.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, channels: int, kl_weight: float = 1e-6) -> None:
        super().__init__()
        if channels < 2 or channels % 2 or not 0 <= kl_weight < math.inf:
            raise ValueError(
                "GaussianLatent needs an even number of channels, for means and log-variances, and a kl_weight of 0 or "
                f"more; got {channels} and {kl_weight}."
            )
        self.channels, self.vector_size, self.kl_weight = channels, channels // 2, kl_weight

    def forward(self, features: Tensor) -> Quantized:
        """Features `[N, channels, h, w]` to latents `[N, channels / 2, h, w]`, codes `[N, 0, h, w]`, and the loss."""
        means, log_variances = features.chunk(2, 1)
        log_variances = full(log_variances).clamp(-30, 20)
        latents = means
        if self.training:
            latents = (full(means) + (log_variances / 2).exp() * torch.randn_like(log_variances)).to(means.dtype)
        losses = {"kl": self.kl_weight * gaussian_kl(full(means), log_variances).mean()}
        none = torch.empty(len(features), 0, *features.shape[2:], dtype=torch.int64, device=features.device)
        return Quantized(latents, none, losses)


def _norm(channels: int) -> nn.GroupNorm:
    # Of two channels a group at least, for one alone at one place would become nothing.
    return nn.GroupNorm(math.gcd(32, max(1, channels // 2)), channels, eps=1e-6)


def _blocks(inputs: int, outputs: int, number: int, dropout: float, *, attend: bool) -> list[nn.Module]:
    """Residual blocks, each followed by attention where there is any."""
    widths = pairwise([inputs, *[outputs] * number])
    blocks = [[_Residual(*pair, dropout), *([_Attention(outputs)] if attend else [])] for pair in widths]
    return list(chain.from_iterable(blocks))


def _middle(channels: int, dropout: float) -> list[nn.Module]:
    return [_Residual(channels, channels, dropout), _Attention(channels), _Residual(channels, channels, dropout)]


def _head(inputs: int, outputs: int) -> list[nn.Module]:
    return [_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)]


def _widths(
    network: nn.Module, image_shape: tuple[int, int, int], filters: int, multipliers: Sequence[int], **sizes: int
) -> list[int]:
    """The channels at each resolution, from that of the pictures on.

    Raises:
        ValueError: If a size is below 1, or a side of the pictures no multiple of the factor.
    """
    check_sizes(network, image_shape, filters=filters, **sizes)
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers of {type(network).__name__} must be at least 1 each, got {list(multipliers)}.")
    check_divisible(image_shape, 2 ** (len(multipliers) - 1), type(network).__name__)
    return [filters * multiplier for multiplier in multipliers]
