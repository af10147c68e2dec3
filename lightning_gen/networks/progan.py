"""Progressive GAN (1710.10196): networks that grow, and what StyleGAN's have in common with them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import append_labels, check_labels
from lightning_gen.layers.equalized import EqualizedConv2d, EqualizedLinear
from lightning_gen.layers.freezing import Layers
from lightning_gen.layers.minibatch import MinibatchStd
from lightning_gen.layers.normalization import PixelNorm
from lightning_gen.layers.style import Blur
from lightning_gen.networks.building import check_image_shape, check_sizes

SLOPE = 0.2  # of all leaky ReLUs


class GrowingNetwork(nn.Module):
    """Base of networks that exist in full from the start, and are used up to a height.

    The picture is halved down to `base`. Level i of the network works at the base doubled i times, and has
    min(filters / 2^(i + 1), max_filters) channels: with the defaults 512 up to 32 x 32, then 256, 128, 64, 32, and 16
    at 1024 x 1024.

    Args:
        image_shape: (channels, height, width) of the last pictures.
        filters: See above; 8192 in the papers.
        max_filters: Channels at most; 512 in the papers.
        base: Height and width of the first level, from which the picture is reached by doublings. None halves the
            picture as long as both sides are even and stay at 4 or above: 4 x 4 for 1024 x 1024, 4 x 8 for 256 x 512,
            7 x 7 for 28 x 28.

    Raises:
        ValueError: If a number is out of range, or the picture cannot be reached from the base.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], filters: int, max_filters: int, base: tuple[int, int] | None
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, filters=filters, max_filters=max_filters)
        self.image_shape = image_shape
        self.sizes = sizes_from(base, image_shape)
        self.heights = tuple(height for height, _ in self.sizes)
        self.max_filters = min(filters, max_filters)
        self.widths = [min(max(1, filters // 2 ** (level + 1)), max_filters) for level in range(len(self.sizes))]

    def level(self, height: int | None) -> int:
        """The level that works at a height; None means the last."""
        if height is None:
            return len(self.heights) - 1
        if height not in self.heights:
            raise ValueError(
                f"This {type(self).__name__} works at the heights {', '.join(map(str, self.heights))}; got {height}. "
                f"It was made for image_shape {self.image_shape}."
            )
        return self.heights.index(height)


def sizes_from(base: tuple[int, int] | None, image_shape: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """Heights and widths from the base to the picture, each twice the one before.

    Raises:
        ValueError: If the picture is not the base doubled some times.
    """
    check_image_shape(image_shape)
    sizes = [tuple(image_shape[1:])]
    smallest = 4 if base is None else 1
    while sizes[-1] != base and all(side % 2 == 0 and side // 2 >= smallest for side in sizes[-1]):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    if base is not None and sizes[-1] != tuple(base):
        height, width = image_shape[1:]
        possible = ", ".join(f"{h} x {w}" for h, w in sizes)
        raise ValueError(
            f"Pictures of {height} x {width} (height x width) are not a base of {base[0]} x {base[1]} doubled some "
            f"times. From them these can be reached: {possible}."
        )
    return tuple(reversed(sizes))  # type: ignore[arg-type]


class GrowingGenerator(GrowingNetwork):
    """A generator that draws pictures of the height it is asked for.

    Each level has a layer of its own, linear and without tanh, that makes a picture of its features. While a level
    fades in, the picture is a mixture of its own and of the one before, enlarged by repetition.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], filters: int, max_filters: int, base: tuple[int, int] | None
    ) -> None:
        super().__init__(image_shape, filters, max_filters, base)
        self.to_image = nn.ModuleList(EqualizedConv2d(width, image_shape[0], 1, gain=1.0) for width in self.widths)

    def draw(
        self, height: int | None, fade: float | Tensor, features_at: Callable[[int, Tensor | None], Tensor]
    ) -> Tensor:
        """Pictures `[N, C, height, ...]`, of what gives the features of a level from those of the one before."""
        last = self.level(height)
        features: Tensor | None = None
        before: Tensor | None = None
        for level in range(last + 1):
            if level == last and features is not None and is_fading(fade):
                before = F.interpolate(self.to_image[level - 1](features), scale_factor=2.0)
            features = features_at(level, features)
        image: Tensor = self.to_image[last](features)
        return image if before is None else mixture(before, image, fade)


def is_fading(fade: float | Tensor) -> bool:
    """Whether it is a share below 1; a tensor is taken for one, whatever is in it, so that nobody waits for it."""
    return isinstance(fade, Tensor) or fade < 1


def mixture(before: Tensor, after: Tensor, fade: float | Tensor) -> Tensor:
    """As much of a level that fades in as a share says."""
    return torch.lerp(before, after, fade.to(after.dtype) if isinstance(fade, Tensor) else fade)


class ProGANGenerator(GrowingGenerator):
    """Latents normed, a linear layer to 4 x 4, then doublings and 3 x 3 convolutions; pixel norm after each.

    | picture | parameters (RGB, 512 latents) |
    | --- | --- |
    | 32 x 32 | 20,719,628 |
    | 256 x 256 | 23,044,309 |
    | 1024 x 1024 | 23,079,115 |

    With classes, the one-hot label is concatenated to the latents before they are normed, as in the authors' code.

    Deviations: none from the authors' code, in whose order bias, leaky ReLU and pixel norm come.

    Args:
        image_shape: As for `GrowingNetwork`.
        latent_size: Width of the latents; 512 in the paper.
        filters: As for `GrowingNetwork`.
        max_filters: As for `GrowingNetwork`.
        base: As for `GrowingNetwork`.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: As `GrowingNetwork`.
    """

    small: ClassVar = {"filters": 32, "max_filters": 8}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        filters: int = 8192,
        max_filters: int = 512,
        base: tuple[int, int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(image_shape, filters, max_filters, base)
        check_sizes(self, image_shape, latent_size=latent_size)
        self.latent_size, self.num_classes = latent_size, num_classes
        (height, width), channels = self.sizes[0], self.widths[0]
        inputs = latent_size + (num_classes or 0)
        self.norm = PixelNorm()
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    # As if the fan in were that of a 4 x 4 convolution, which this layer is in the paper.
                    EqualizedLinear(inputs, channels * height * width, gain=2**0.5 / 4, bias=False),
                    nn.Unflatten(1, (channels, height, width)),
                    ChannelBias(channels),
                    *_activation(),
                    EqualizedConv2d(channels, channels, 3),
                    *_activation(),
                )
            ]
        )
        for inputs, outputs in pairwise(self.widths):
            convolutions = EqualizedConv2d(inputs, outputs, 3, resample="up"), EqualizedConv2d(outputs, outputs, 3)
            self.blocks.append(nn.Sequential(convolutions[0], *_activation(), convolutions[1], *_activation()))

    def forward(
        self, latents: Tensor, labels: Tensor | None = None, *, height: int | None = None, fade: float | Tensor = 1.0
    ) -> Tensor:
        """Latents `[N, latent_size]`, and labels int64 `[N]` with classes, to pictures `[N, C, height, ...]`.

        Args:
            latents: Of any length, which norming takes away.
            labels: See above.
            height: Of the pictures; None means the last.
            fade: Share of the level of that height in the picture; 1 once it is there in full. A tensor `[]` in its
                place lets a compiled network take another share without being compiled again.
        """
        normed = self.norm(append_labels(latents, labels, self.num_classes))
        return self.draw(height, fade, lambda level, features: self.blocks[level](normed if level == 0 else features))


class ChannelBias(nn.Module):
    """Adds a number to each channel, which starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        return features + self.bias.view(-1, 1, 1)


def _activation() -> list[nn.Module]:
    return [nn.LeakyReLU(SLOPE), PixelNorm()]


class GrowingDiscriminator(GrowingNetwork):
    """Judges pictures of any of its heights: 3 x 3 convolutions and means of 2 x 2, then statistics of the minibatch.

    Each level has a 1 x 1 convolution of its own that takes pictures in. While a level fades in, its result is mixed
    with what the level below makes of the picture averaged down. Nothing is normalised. A subclass says whether
    features are blurred before a mean, and how many numbers there are for a picture.

    Args:
        image_shape: As for `GrowingNetwork`.
        filters: As for `GrowingNetwork`.
        max_filters: As for `GrowingNetwork`.
        base: As for `GrowingNetwork`.
        group_size: Of `MinibatchStd`; 4 in the papers.
        num_classes: Number of classes; None for a network without labels.

    Raises:
        ValueError: As `GrowingNetwork`.
    """

    small: ClassVar = {"filters": 32, "max_filters": 8}
    blurs: ClassVar[bool] = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: int = 8192,
        max_filters: int = 512,
        base: tuple[int, int] | None = None,
        group_size: int = 4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(image_shape, filters, max_filters, base)
        (height, width), first = self.sizes[0], self.widths[0]
        self.from_image = nn.ModuleList(
            nn.Sequential(EqualizedConv2d(image_shape[0], width, 1), nn.LeakyReLU(SLOPE)) for width in self.widths
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                EqualizedConv2d(inputs, inputs, 3),
                nn.LeakyReLU(SLOPE),
                *([Blur()] if self.blurs else []),
                EqualizedConv2d(inputs, outputs_, 3, resample="down"),
                nn.LeakyReLU(SLOPE),
            )
            for outputs_, inputs in pairwise(self.widths)
        )
        self.head = nn.Sequential(
            MinibatchStd(group_size),
            EqualizedConv2d(first + 1, first, 3),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
            EqualizedLinear(first * height * width, self.max_filters),
            nn.LeakyReLU(SLOPE),
            EqualizedLinear(self.max_filters, self.outputs_for(num_classes), gain=1.0),
        )
        self.num_classes = num_classes

    @staticmethod
    def outputs_for(num_classes: int | None) -> int:
        """How many numbers there are for a picture."""
        return num_classes or 1

    def layers_in_order(self) -> Layers:
        """Each level with the convolution that takes its pictures in, the highest first; the last has the head."""
        levels = zip(self.from_image[1:], self.blocks, strict=True)
        return [*([*pair] for pair in reversed([*levels])), [self.from_image[0], self.head]]

    def judge(self, images: Tensor, fade: float | Tensor) -> Tensor:
        """Pictures `[N, C, height, ...]`, of any height of the network, to all of its numbers `[N, ...]`."""
        last = self.level(images.shape[-2])
        features = self.from_image[last](images)
        for level in range(last, 0, -1):
            features = self.blocks[level - 1](features)
            if level == last and is_fading(fade):
                features = mixture(self.from_image[level - 1](F.avg_pool2d(images, 2)), features, fade)
        scores: Tensor = self.head(features)
        return scores


class ProGANDiscriminator(GrowingDiscriminator):
    """The mirror of `ProGANGenerator`, with the deviation over the minibatch as one more map at the last level.

    | picture | parameters (RGB) |
    | --- | --- |
    | 32 x 32 | 20,726,785 |
    | 256 x 256 | 23,052,353 |
    | 1024 x 1024 | 23,087,249 |

    With classes it is the discriminator of an AC-GAN: it is not told the labels, but has a logit for each class beside
    the score. It then gives what `AuxiliaryClassifier` takes.

    Deviations: none from the authors' code, which takes the mean of 2 x 2 before bias and leaky ReLU. The paper's table
    has it after them.

    Args and errors are those of `GrowingDiscriminator`.
    """

    @staticmethod
    def outputs_for(num_classes: int | None) -> int:
        """The score, and a logit for each class."""
        return 1 + (num_classes or 0)

    def forward(self, images: Tensor, labels: Tensor | None = None, *, fade: float | Tensor = 1.0) -> Tensor:
        """Pictures `[N, C, height, ...]`, and labels int64 `[N]` where there are classes, to scores.

        Args:
            images: Of any height of the network.
            labels: See above.
            fade: As for `ProGANGenerator`.

        Returns:
            `[N]`; with classes `[N, 2]`: the score, and the log-probability of the label.
        """
        check_labels(labels, self.num_classes)
        outputs = self.judge(images, fade)
        if labels is None:
            return outputs.squeeze(1)
        log_probs = F.log_softmax(outputs[:, 1:], dim=1).gather(1, labels[:, None])
        return torch.cat([outputs[:, :1], log_probs.to(outputs.dtype)], dim=1)
