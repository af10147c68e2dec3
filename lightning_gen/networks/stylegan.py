"""StyleGAN (1812.04948): a mapping of latents to styles, a synthesis that styles modulate, and the discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.equalized import EqualizedConv2d, EqualizedLinear
from lightning_gen.layers.normalization import PixelNorm
from lightning_gen.layers.style import AdaIN, Blur, Noise, NoiseInjection
from lightning_gen.networks.building import check_sizes
from lightning_gen.networks.progan import SLOPE, GrowingDiscriminator, GrowingGenerator


class MappingNetwork(nn.Module):
    """Latents normed, then linear layers with leaky ReLU, which learn a hundred times as slowly as others.

    2,101,248 parameters with the defaults. With classes, an embedding of the label as wide as the latents, drawn from
    N(0, 1), is concatenated to the latents, and both are normed together, as in the authors' code.

    Args:
        latent_size: Width of the latents.
        style_size: Width of the styles, and of the layers between.
        num_layers: 8 in the paper; 0 gives the normed latents themselves, of the width of the styles then.
        lr_multiplier: See `EqualizedLinear`.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: If a number is out of range, or there are no layers and widths differ.
    """

    def __init__(
        self,
        latent_size: int,
        style_size: int = 512,
        *,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        inputs = latent_size * (1 if num_classes is None else 2)
        if num_layers < 0 or (num_layers == 0 and inputs != style_size):
            raise ValueError(
                "MappingNetwork needs 0 layers or more, and without any, styles as wide as what is mapped; got "
                f"{num_layers} layers from {inputs} to {style_size}."
            )
        self.num_classes = num_classes
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, latent_size)
        self.norm = PixelNorm()
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [EqualizedLinear(inputs, style_size, lr_multiplier=lr_multiplier), nn.LeakyReLU(SLOPE)]
            inputs = style_size
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to styles `[N, style_size]`."""
        check_labels(labels, self.num_classes)
        if self.embedding is not None:
            latents = torch.cat([latents, self.embedding(labels).to(latents.dtype)], dim=1)
        styles: Tensor = self.layers(self.norm(latents))
        return styles


class StyleLayer(nn.Module):
    """[Convolution], noise, bias, leaky ReLU, and the mean and deviation that a style gives.

    Args:
        inputs: Channels in; None for a layer without a convolution.
        outputs: Channels out.
        size: Height and width of the result.
        style_size: Width of a style.
        up: Whether the picture is doubled before the convolution, and blurred after it.
    """

    def __init__(
        self, inputs: int | None, outputs: int, size: tuple[int, int], style_size: int, *, up: bool = False
    ) -> None:
        super().__init__()
        self.convolution = nn.Sequential()
        if inputs is not None:
            self.convolution.append(EqualizedConv2d(inputs, outputs, 3, bias=False, resample="up" if up else "none"))
        if up:
            self.convolution.append(Blur())
        self.noise = NoiseInjection(outputs, size)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.style = AdaIN(outputs, style_size)

    def forward(
        self,
        features: Tensor,
        styles: Tensor,
        noise: Noise | Tensor,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """`[N, inputs, ...]` and styles `[N, style_size]` to `[N, outputs, H, W]`."""
        features = self.noise(self.convolution(features), noise, generators)
        features = features + self.bias.to(features.dtype).view(-1, 1, 1)
        modulated: Tensor = self.style(F.leaky_relu(features, SLOPE), styles)
        return modulated


class StyleGANGenerator(GrowingGenerator):
    """A mapping network, and a synthesis from a learned constant, in which styles and noise say all.

    Each level has two layers and each layer a style of its own: w, the result of the mapping network, in all of them,
    unless styles are mixed. The running mean of w, `mean_style`, is moved by the model that trains the network; psi
    draws styles towards it.

    | picture | parameters (RGB, 512 latents), mapping and all |
    | --- | --- |
    | 32 x 32 | 22,841,356 |
    | 1024 x 1024 | 26,219,627 |

    Deviations: none from the authors' code.

    Args:
        image_shape: As for `GrowingNetwork`.
        latent_size: Width of the latents; 512 in the paper.
        style_size: Width of a style.
        mapping_layers: Of `MappingNetwork`.
        filters: As for `GrowingNetwork`.
        max_filters: As for `GrowingNetwork`.
        base: As for `GrowingNetwork`.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: As `GrowingNetwork` and `MappingNetwork`.
    """

    small: ClassVar = {"filters": 32, "max_filters": 8, "style_size": 8, "mapping_layers": 2}
    mean_style: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        style_size: int = 512,
        mapping_layers: int = 8,
        filters: int = 8192,
        max_filters: int = 512,
        base: tuple[int, int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(image_shape, filters, max_filters, base)
        check_sizes(self, image_shape, latent_size=latent_size, style_size=style_size)
        self.latent_size, self.num_classes = latent_size, num_classes
        self.num_layers = 2 * len(self.sizes)
        self.mapping = MappingNetwork(latent_size, style_size, num_layers=mapping_layers, num_classes=num_classes)
        self.register_buffer("mean_style", torch.zeros(style_size))
        self.constant = nn.Parameter(torch.ones(1, self.widths[0], *self.sizes[0]))
        self.layers = nn.ModuleList()
        for level, (size, width) in enumerate(zip(self.sizes, self.widths, strict=True)):
            inputs = self.widths[level - 1] if level else None
            self.layers.append(StyleLayer(inputs, width, size, style_size, up=level > 0))
            self.layers.append(StyleLayer(width, width, size, style_size))

    def forward(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        *,
        others: Tensor | None = None,
        cutoff: int | Tensor = 0,
        psi: float = 1.0,
        truncated_layers: int = 0,
        height: int | None = None,
        fade: float | Tensor = 1.0,
        noise: Noise | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to pictures `[N, C, height, ...]`.

        Args:
            latents: Of any length, which norming takes away.
            labels: See above.
            others: Latents `[N, latent_size]` whose styles the layers from `cutoff` on have instead.
            cutoff: See `others`; a number, or `[]`, without a wait for it.
            psi: As for `truncate`.
            truncated_layers: As for `truncate`, which comes after the mixing.
            height: Of the pictures; None means the last.
            fade: As for `ProGANGenerator`.
            noise: As for `synthesize`.
            generators: As for `synthesize`.
        """
        styles = self.map_latents(latents, labels)
        if others is not None:
            styles = mix(styles, self.map_latents(others, labels), cutoff)
        styles = self.truncate(styles, psi, truncated_layers)
        return self.synthesize(styles, height=height, fade=fade, noise=noise, generators=generators)

    def map_latents(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents, and labels with classes, to styles `[N, num_layers, style_size]`, the same in all layers."""
        styles: Tensor = self.mapping(latents, labels)
        return styles[:, None].expand(-1, self.num_layers, -1)

    def truncate(self, styles: Tensor, psi: float, layers: int) -> Tensor:
        """Styles `[N, L, style_size]`, of which the first layers' are at psi of their way from the mean."""
        if psi == 1 or layers == 0:
            return styles
        mean = self.mean_style.to(styles.dtype)
        return torch.cat([torch.lerp(mean, styles[:, :layers], psi), styles[:, layers:]], dim=1)

    def synthesize(
        self,
        styles: Tensor,
        *,
        height: int | None = None,
        fade: float | Tensor = 1.0,
        noise: Noise | Sequence[Tensor] | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Styles `[N, num_layers, style_size]` to pictures `[N, C, height, ...]`.

        Args:
            styles: Those of layers that a height does not need are not looked at.
            height: As for `forward`.
            fade: As for `forward`.
            noise: As for `NoiseInjection`, or the maps of each layer; None means random noise in training and fixed
                noise in evaluation mode.
            generators: As for `NoiseInjection`.
        """
        kind = noise or ("random" if self.training else "fixed")

        def features_at(level: int, features: Tensor | None) -> Tensor:
            result = self.constant.expand(len(styles), -1, -1, -1) if features is None else features
            for layer in (2 * level, 2 * level + 1):
                given = kind if isinstance(kind, str) else kind[layer]
                result = self.layers[layer](result, styles[:, layer], given, generators)
            return result

        return self.draw(height, fade, features_at)


def mix(styles: Tensor, others: Tensor, cutoff: int | Tensor) -> Tensor:
    """Styles `[N, L, D]` of the layers before a cutoff, and others from there on (style mixing)."""
    layers = torch.arange(styles.shape[1], device=styles.device)[:, None]
    return torch.where(layers < cutoff, styles, others)


class StyleGANDiscriminator(GrowingDiscriminator):
    """As `ProGANDiscriminator`, but blurred before each mean; as many parameters.

    With classes it has an output for each, and the score of a picture is that of its label, as in the authors' code.

    Deviations: none from the authors' code.

    Args and errors are those of `GrowingDiscriminator`.
    """

    blurs = True

    def forward(self, images: Tensor, labels: Tensor | None = None, *, fade: float | Tensor = 1.0) -> Tensor:
        """Pictures `[N, C, height, ...]`, and labels int64 `[N]` where there are classes, to scores `[N]`.

        Args:
            images: Of any height of the network.
            labels: See above.
            fade: As for `ProGANGenerator`.
        """
        check_labels(labels, self.num_classes)
        outputs = self.judge(images, fade)
        return outputs.squeeze(1) if labels is None else outputs.gather(1, labels[:, None]).squeeze(1)
