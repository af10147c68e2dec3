"""DCGAN (1511.06434): generator and discriminator of strided convolutions, for pictures of any size."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from lightning_gen.layers.conditional import append_labels
from lightning_gen.layers.normalization import Norm, conv_bias, norm_layer
from lightning_gen.networks.building import (
    SpectralNormKind,
    base_size,
    check_sizes,
    count_halvings,
    crop_center,
    initialize_normal,
    normalize_spectrum,
)


class DCGANGenerator(nn.Module):
    """Project and reshape, then doublings by transposed convolutions, ReLU between, tanh at the end.

    One builder serves every size. The picture is halved until its smaller side would fall below `base`, which gives the
    size to start from: 4 x 4 and four doublings for 64 x 64 (the paper), 7 x 7 and two for 28 x 28, 5 x 12 and two for
    20 x 48. Where a side is not a multiple of 2^doublings, the next multiple is made and its middle is kept. The last
    hidden layer has `filters` channels, each one before it twice as many, up to 8 x filters.

    Parameters for (3, 64, 64) and 100 latents: 12,658,432 with the paper's 128 filters; 3,576,704 with the 64 of the
    well-known re-implementations.

    With classes, the one-hot label is concatenated to the latents (1411.1784).

    Deviation: kernels are 4 x 4 where the paper has 5 x 5. Their size is a multiple of the stride, so every pixel gets
    as many terms as its neighbour, which makes checkerboards weaker.

    Args:
        image_shape: (channels, height, width), of any size.
        latent_size: Width of the latents; 100 in the paper.
        filters: Channels of the last hidden layer.
        norm: Of all layers but the last; "batch" in the paper.
        base: Smallest height or width to start from.
        num_classes: Number of classes; None for a network without labels.
        init_std: Standard deviation of the initial weights.

    Raises:
        ValueError: If a size is below 1.
    """

    small: ClassVar = {"filters": 4}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        filters: int = 128,
        norm: Norm = "batch",
        base: int = 4,
        num_classes: int | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, latent_size=latent_size, filters=filters, base=base)
        self.image_shape = image_shape
        self.latent_size = latent_size
        self.num_classes = num_classes
        doublings, bias = max(1, count_halvings(image_shape, base)), conv_bias(norm)
        height, width = base_size(image_shape, doublings)
        channels = [filters * min(2**i, 8) for i in reversed(range(doublings))]
        layers: list[nn.Module] = [
            nn.Linear(latent_size + (num_classes or 0), channels[0] * height * width, bias=bias),
            nn.Unflatten(1, (channels[0], height, width)),
            *norm_layer(norm, channels[0]),
            nn.ReLU(),
        ]
        for inputs, outputs in pairwise(channels):
            layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias))
            layers += [*norm_layer(norm, outputs), nn.ReLU()]
        layers += [nn.ConvTranspose2d(channels[-1], image_shape[0], 4, stride=2, padding=1, bias=bias), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        initialize_normal(self, init_std)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to pictures `[N, C, H, W]` in `[-1, 1]`."""
        return crop_center(self.layers(append_labels(latents, labels, self.num_classes)), self.image_shape)


class DCGANDiscriminator(nn.Module):
    """Halvings by strided convolutions with leaky ReLU, then one linear score.

    The mirror of `DCGANGenerator`: the picture is halved, rounding down, as long as its smaller side stays at `base` or
    above. A convolution that rounds an odd side down still sees the last row. The first layer has `filters` channels,
    each one after it twice as many, up to 8 x filters. Nothing normalises the first layer or the score.

    Parameters for (3, 64, 64): 11,036,160 with the paper's 128 filters; 2,765,568 with the 64 of the well-known
    re-implementations.

    With classes, one constant map a class, 1 for the picture's own and 0 for the others, joins the picture's channels.

    Deviations: kernels are 4 x 4 where the paper has 5 x 5. The score is a logit; the sigmoid belongs to the loss.

    Args:
        image_shape: (channels, height, width), of any size.
        filters: Channels of the first layer.
        norm: Of all layers but the first and the score; "batch" in the paper. A critic under a gradient penalty needs
            "none" or "instance": batch norm makes a score depend on the other pictures of the batch.
        spectral_norm: Normalise every layer's weight: "reshape" (1802.05957) or "convolution", the exact operator norm.
            Take `norm="none"` with it.
        base: Smallest height or width that the convolutions end with.
        num_classes: Number of classes; None for a network without labels.
        init_std: Standard deviation of the initial weights.

    Raises:
        ValueError: If a size is below 1, or the pictures are less than 2 pixels high or wide.
    """

    small: ClassVar = {"filters": 4}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: int = 128,
        norm: Norm = "batch",
        spectral_norm: SpectralNormKind = "none",
        base: int = 4,
        num_classes: int | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, filters=filters, base=base)
        _, height, width = image_shape
        if min(height, width) < 2:
            raise ValueError(
                f"DCGANDiscriminator halves its pictures, so they need at least 2 x 2 pixels, got {height} x {width}. "
                "For points take MLPDiscriminator."
            )
        self.image_shape = image_shape
        self.num_classes = num_classes
        inputs, bias = image_shape[0] + (num_classes or 0), conv_bias(norm)
        layers: list[nn.Module] = []
        halvings = max(1, count_halvings(image_shape, base))
        for i in range(halvings):
            outputs = filters * min(2**i, 8)
            layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=bias))
            layers += [*(norm_layer(norm, outputs) if i else []), nn.LeakyReLU(0.2)]
            inputs = outputs
        layers += [nn.Flatten(), nn.Linear(inputs * (height >> halvings) * (width >> halvings), 1, bias=bias)]
        self.layers = nn.Sequential(*layers)
        initialize_normal(self, init_std)
        normalize_spectrum(self, image_shape, spectral_norm, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]`, and labels int64 `[N]` where there are classes, to scores `[N]`."""
        return self.layers(append_labels(images, labels, self.num_classes)).squeeze(1)
