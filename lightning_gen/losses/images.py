"""Likelihoods of whole pictures as objects: what a decoder's parameters mean, and how to draw from them.

Given its latents, a picture's pixels are independent. Parameters are `[N, P, H, W]`, P by `num_parameters`, row by row
with channels within where there are several of a channel. Nats are sums over all pixels of a picture in [-1, 1],
computed in float32 at least.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.categorical import check_temperature, images_to_levels, levels_to_images, rounding, uniform
from lightning_gen.losses.densities import (
    LOGIT_LAPLACE_EPS,
    gaussian_log_prob,
    logit_laplace_log_prob,
    logit_laplace_map,
    logit_laplace_unmap,
)
from lightning_gen.losses.pixels import Bernoulli, Categorical, PixelLikelihood
from lightning_gen.losses.precision import full

MIN_LOG_STD = -6.0
"""Below it no learned deviation falls, as in the code of 2006.13202: else a pixel that never changes has no bound."""


class ImageLikelihood(ABC):
    """Base of the likelihoods: a distribution over pictures, given a decoder's parameters."""

    num_levels: int | None = None
    """Of each channel, where it is a probability of levels; None for a density."""

    @abstractmethod
    def num_parameters(self, channels: int) -> int:
        """P, how many numbers a decoder must give for each pixel of so many channels."""

    def num_uniforms(self, channels: int) -> int:
        """How many uniform numbers it takes to draw one pixel: one for each channel, if a subclass says nothing."""
        return channels

    @abstractmethod
    def log_prob(self, parameters: Tensor, images: Tensor, *, validate: bool = True) -> Tensor:
        """Nats of each picture, `[N]`: the sum over its pixels.

        Args:
            parameters: Float `[N, P, H, W]`.
            images: Float `[N, C, H, W]` in `[-1, 1]`.
            validate: Whether pictures are searched for values that have no level, for which the host waits for the
                device.

        Raises:
            ValueError: If the shapes do not belong together, or a picture has values that the likelihood does not.
        """

    @abstractmethod
    def mean(self, parameters: Tensor, channels: int) -> Tensor:
        """The picture to show for each distribution: `[N, C, H, W]`, its mean unless the subclass says otherwise.

        Args:
            parameters: As in `log_prob`.
            channels: C.

        Raises:
            ValueError: If P does not belong to C.
        """

    @abstractmethod
    def sample(
        self, parameters: Tensor, noise: Tensor | torch.Generator, channels: int, temperature: float = 1.0
    ) -> Tensor:
        """Draw pictures, a function of the noise.

        Args:
            parameters: As in `log_prob`.
            noise: Uniform numbers in `[0, 1)`, `[N, num_uniforms(channels), H, W]`, or a generator that draws them.
            channels: C.
            temperature: T >= 0; 1 draws from the model, 0 gives the likeliest picture.

        Returns:
            Float `[N, C, H, W]`.

        Raises:
            ValueError: If P does not belong to C, the noise has another shape, or the temperature is out of range.
        """

    def _check(self, parameters: Tensor, channels: int, images: Tensor | None = None) -> None:
        """Raise a `ValueError` where parameters are not of so many channels, or not of these pictures."""
        if parameters.ndim < 2 or parameters.shape[1] != self.num_parameters(channels):
            raise ValueError(
                f"{type(self).__name__} takes parameters [N, {self.num_parameters(channels)}, H, W] of pictures with "
                f"{channels} channels, got {list(parameters.shape)}. num_parameters({channels}) is what a decoder must "
                "give."
            )
        if images is not None and parameters.shape[:1] + parameters.shape[2:] != images.shape[:1] + images.shape[2:]:
            raise ValueError(
                f"Parameters [N, P, H, W] and pictures [N, C, H, W] must agree but for P and C, got "
                f"{list(parameters.shape)} and {list(images.shape)}."
            )

    def _rows(self, parameters: Tensor, channels: int, images: Tensor | None = None) -> Tensor:
        """`[N, rows, C, H, W]` in full precision."""
        self._check(parameters, channels, images)
        return full(parameters).unflatten(1, (-1, channels))

    def _noise(self, noise: Tensor | torch.Generator, parameters: Tensor, channels: int) -> Tensor:
        """Uniform numbers strictly between 0 and 1, `[N, num_uniforms, H, W]`."""
        shape = torch.Size([len(parameters), self.num_uniforms(channels), *parameters.shape[2:]])
        return uniform(noise, shape, parameters)


@dataclass(frozen=True)
class Pixelwise(ImageLikelihood):
    """Pixels that have levels, each by the same likelihood: `Bernoulli`, `Categorical` or `LogisticMixture`.

    `mean` is the mean of a Bernoulli, grey between its two levels, and of a softmax. Of a mixture of logistics, whose
    channels lean on each other, it is the level nearest to the mean of the heaviest component.

    Args:
        pixels: Of one pixel.
    """

    pixels: PixelLikelihood = field(default_factory=Bernoulli)

    @property
    def num_levels(self) -> int:  # type: ignore[override]
        """Of each channel."""
        return self.pixels.num_levels

    def num_parameters(self, channels: int) -> int:
        """Those of the pixel."""
        return self.pixels.num_parameters(channels)

    def num_uniforms(self, channels: int) -> int:
        """Those of the pixel."""
        return self.pixels.num_uniforms(channels)

    def log_prob(self, parameters: Tensor, images: Tensor, *, validate: bool = True) -> Tensor:
        """Nats of each picture's levels, `[N]`, which a trainer of half precision may have rounded to it."""
        self._check(parameters, images.shape[1], images)
        tolerance = rounding(images.dtype)
        levels = images_to_levels(images, self.num_levels, validate=validate, tolerance=tolerance)
        return self.pixels.log_prob(parameters, levels).flatten(1).sum(1)

    def mean(self, parameters: Tensor, channels: int) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]`."""
        if isinstance(self.pixels, Bernoulli):
            return self._rows(parameters, channels).squeeze(1).sigmoid() * 2 - 1
        if isinstance(self.pixels, Categorical):
            rows = self._rows(parameters, channels)
            values = torch.linspace(-1, 1, self.num_levels, dtype=rows.dtype, device=rows.device)
            return (rows.softmax(1) * values.view(-1, *[1] * (rows.ndim - 2))).sum(1)
        shape = (len(parameters), self.num_uniforms(channels), *parameters.shape[2:])
        unused = parameters.new_full((), 0.5).expand(shape)
        return self.sample(parameters, unused, channels, temperature=0)

    def sample(
        self, parameters: Tensor, noise: Tensor | torch.Generator, channels: int, temperature: float = 1.0
    ) -> Tensor:
        """Pictures `[N, C, H, W]` of levels."""
        self._check(parameters, channels)
        levels = self.pixels.sample(parameters, self._noise(noise, parameters, channels), channels, temperature)
        return levels_to_images(levels, self.num_levels, full(parameters).dtype)


@dataclass(frozen=True)
class GaussianPixels(ImageLikelihood):
    """Gaussian pixels, of a deviation that the decoder gives (1312.6114, appendix C.2) or of a fixed one.

    A learned deviation is given as its logarithm v and bounded below, smoothly: `MIN_LOG_STD` + softplus(v -
    `MIN_LOG_STD`), which for v > -3 is v within 0.05 (2006.13202). With a fixed one, log p is -|x - m|^2 / (2 std^2)
    and a constant, so std^2 = 1/2 gives the plain sum of squares.

    Deviation: the mean is the decoder's number itself, where 1312.6114 has a sigmoid; pictures are cut to [-1, 1]
    when they are shown or drawn.

    Args:
        std: In units of `[-1, 1]`; None where the decoder gives one for each number, after all means.
        cut: Whether `mean` and `sample` cut pictures to `[-1, 1]`; False for data without bounds, such as points.

    Raises:
        ValueError: If the deviation is not above 0 and finite.
    """

    std: float | None = None
    cut: bool = True

    def __post_init__(self) -> None:
        if self.std is not None and not 0 < self.std < math.inf:
            raise ValueError(f"std must be above 0 and finite, or None for a learned one; got {self.std}.")

    def num_parameters(self, channels: int) -> int:
        """A mean for each channel, and a logarithm of the deviation where that is learned."""
        return channels if self.std is not None else 2 * channels

    def log_prob(self, parameters: Tensor, images: Tensor, *, validate: bool = True) -> Tensor:
        """Nats of each picture, `[N]`."""
        means, log_stds = self._split(self._rows(parameters, images.shape[1], images))
        return gaussian_log_prob(images, means, 2 * log_stds).flatten(1).sum(1)

    def mean(self, parameters: Tensor, channels: int) -> Tensor:
        """Pictures `[N, C, H, W]`."""
        return self._shown(self._split(self._rows(parameters, channels))[0])

    def sample(
        self, parameters: Tensor, noise: Tensor | torch.Generator, channels: int, temperature: float = 1.0
    ) -> Tensor:
        """Pictures `[N, C, H, W]`, by the inverse CDF; the temperature multiplies the deviation."""
        check_temperature(temperature)
        means, log_stds = self._split(self._rows(parameters, channels))
        normal = torch.special.ndtri(self._noise(noise, parameters, channels))
        return self._shown(means + temperature * log_stds.exp() * normal)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of deviations, each `[N, C, H, W]`."""
        if self.std is not None:
            means = rows.squeeze(1)
            return means, torch.full_like(means, math.log(self.std))
        means, raw = rows.unbind(1)
        return means, MIN_LOG_STD + F.softplus(raw - MIN_LOG_STD)

    def _shown(self, images: Tensor) -> Tensor:
        return images.clamp(-1, 1) if self.cut else images


@dataclass(frozen=True)
class LogitLaplace(ImageLikelihood):
    """The logit-Laplace of DALL-E (2102.12092, appendix A.3), see `losses.densities.logit_laplace_log_prob`.

    A decoder gives mu for each channel, then log b for each. `mean` is the median, unmap(sigmoid(mu)), as in the paper.

    Args:
        eps: Pictures are mapped to `[eps, 1 - eps]`.

    Raises:
        ValueError: If eps is out of range.
    """

    eps: float = LOGIT_LAPLACE_EPS

    def __post_init__(self) -> None:
        logit_laplace_map(torch.zeros(()), self.eps)

    def num_parameters(self, channels: int) -> int:
        """Two for each channel."""
        return 2 * channels

    def log_prob(self, parameters: Tensor, images: Tensor, *, validate: bool = True) -> Tensor:
        """Nats of each picture, `[N]`."""
        locations, log_scales = self._rows(parameters, images.shape[1], images).unbind(1)
        return logit_laplace_log_prob(images, locations, log_scales, self.eps).flatten(1).sum(1)

    def mean(self, parameters: Tensor, channels: int) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]`: the medians."""
        return logit_laplace_unmap(self._rows(parameters, channels)[:, 0].sigmoid(), self.eps)

    def sample(
        self, parameters: Tensor, noise: Tensor | torch.Generator, channels: int, temperature: float = 1.0
    ) -> Tensor:
        """Pictures `[N, C, H, W]`, cut to `[-1, 1]`, by the inverse CDF; the temperature multiplies b."""
        check_temperature(temperature)
        locations, log_scales = self._rows(parameters, channels).unbind(1)
        centred = self._noise(noise, parameters, channels) - 0.5
        laplace = -centred.sign() * (-2 * centred.abs()).log1p()
        return logit_laplace_unmap((locations + temperature * log_scales.exp() * laplace).sigmoid(), self.eps)
