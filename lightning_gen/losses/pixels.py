"""Likelihoods of pixels as objects: what an autoregressive network's parameters mean, and how to draw from them.

Parameters of pixels are `[N, P, C, *space]`, P for each channel, or `[N, P, *space]`, all of the pixel in one axis. The
functions behind are in `categorical.py` and `logistic_mixture.py`, whose conventions hold: levels of 0 to L - 1, nats
in float32 at least, and `*space` is `H, W` for pictures and nothing for one pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gen.losses.categorical import (
    bernoulli_pixel_log_prob,
    bernoulli_sample,
    categorical_pixel_log_prob,
    categorical_sample,
    check_num_levels,
    keep_likeliest,
)
from lightning_gen.losses.logistic_mixture import (
    logistic_mixture_channels,
    logistic_mixture_pixel_log_prob,
    logistic_mixture_sample,
)


class PixelLikelihood(ABC):
    """Base of the likelihoods: a distribution over the levels of a pixel's channels, given parameters."""

    num_levels: int
    """L, of each channel."""

    @abstractmethod
    def num_parameters(self, channels: int) -> int:
        """How many numbers a network must give for each pixel of so many channels."""

    def num_uniforms(self, channels: int) -> int:
        """How many uniform numbers it takes to draw one pixel: one for each parameter, if a subclass says nothing."""
        return self.num_parameters(channels)

    @abstractmethod
    def log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Nats of each pixel, `[N, *space]`.

        Args:
            parameters: `[N, P, C, *space]` or, in one axis, `[N, P, *space]`.
            levels: Int64 `[N, C, *space]` of 0 to L - 1; values are not checked here.

        Raises:
            ValueError: If the shapes do not belong together.
        """

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor, channels: int, temperature: float = 1.0) -> Tensor:
        """Draw levels, a function of the noise.

        Args:
            parameters: As in `log_prob`.
            noise: Uniform numbers in `[0, 1)`, `[N, num_uniforms(channels), *space]`.
            channels: C.
            temperature: T >= 0; 1 draws from the model, 0 gives the likeliest levels.

        Returns:
            Int64 `[N, C, *space]`.

        Raises:
            ValueError: If the shapes do not belong together, or the temperature is out of range.
        """

    def of_likeliest(
        self, parameters: Tensor, channels: int, top_k: int | None, top_p: float, temperature: float = 1.0
    ) -> Tensor:
        """Parameters of one pixel under which none but the likeliest levels are drawn, for likelihoods that can.

        Args:
            parameters: `[N, P, C]` or `[N, P C]`.
            channels: C.
            top_k: As of `lightning_gen.losses.categorical.keep_likeliest`.
            top_p: As there.
            temperature: That of `sample`.

        Returns:
            `[N, P, C]`.

        Raises:
            ValueError: If a number is out of range, or this likelihood is no softmax.
        """
        raise ValueError(f"top_k and top_p choose among the levels of a softmax, which {self} is not. Leave them out.")


def pixel_likelihood(num_levels: int) -> Bernoulli | Categorical:
    """One logit a channel for 2 levels, a softmax for more; a `ValueError` by `check_num_levels`."""
    return Bernoulli() if check_num_levels(num_levels) == 2 else Categorical(num_levels)


def mixture_likelihood(num_levels: int, num_components: int) -> Bernoulli | LogisticMixture:
    """One logit a channel for 2 levels, a mixture of logistics for more; a `ValueError` if a number is out of range."""
    return Bernoulli() if num_levels == 2 else LogisticMixture(num_levels, num_components)


@dataclass(frozen=True)
class Categorical(PixelLikelihood):
    """A softmax over all levels for each channel (1601.06759, section 3.2).

    In one axis its parameters come level by level, channels within.

    Args:
        num_levels: L, from 2 to 65536.
    """

    num_levels: int = 256

    def __post_init__(self) -> None:
        check_num_levels(self.num_levels)

    def num_parameters(self, channels: int) -> int:
        """L for each channel."""
        return self.num_levels * channels

    def log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Nats of each pixel, `[N, *space]`: the sum over its channels."""
        logits = _by_channel(parameters, levels.shape[1], levels.ndim)
        return categorical_pixel_log_prob(logits, levels).sum(1)

    def sample(self, parameters: Tensor, noise: Tensor, channels: int, temperature: float = 1.0) -> Tensor:
        """Levels `[N, C, *space]`, by the Gumbel-max trick."""
        logits = _by_channel(parameters, channels, noise.ndim)
        return categorical_sample(logits, noise.unflatten(1, (self.num_levels, channels)), temperature)

    def of_likeliest(
        self, parameters: Tensor, channels: int, top_k: int | None, top_p: float, temperature: float = 1.0
    ) -> Tensor:
        """Logits `[N, L, C]`, -inf for levels that are not drawn."""
        return keep_likeliest(_by_channel(parameters, channels, 2), top_k, top_p, temperature)


@dataclass(frozen=True)
class Bernoulli(PixelLikelihood):
    """One logit for each channel of binary pictures: the softmax over 2 levels with one of its logits at 0."""

    num_levels: int = 2

    def __post_init__(self) -> None:
        if self.num_levels != 2:
            raise ValueError(f"A Bernoulli has 2 levels, got num_levels={self.num_levels}. Categorical takes more.")

    def num_parameters(self, channels: int) -> int:
        """One for each channel."""
        return channels

    def log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Nats of each pixel, `[N, *space]`: the sum over its channels."""
        logits = _by_channel(parameters, levels.shape[1], levels.ndim).squeeze(1)
        return bernoulli_pixel_log_prob(logits, levels).sum(1)

    def sample(self, parameters: Tensor, noise: Tensor, channels: int, temperature: float = 1.0) -> Tensor:
        """Levels `[N, C, *space]`, 0 or 1."""
        return bernoulli_sample(_by_channel(parameters, channels, noise.ndim).squeeze(1), noise, temperature)

    def of_likeliest(
        self, parameters: Tensor, channels: int, top_k: int | None, top_p: float, temperature: float = 1.0
    ) -> Tensor:
        """Logits `[N, 1, C]`, infinite where one level is left."""
        logits = _by_channel(parameters, channels, 2)
        both = keep_likeliest(torch.cat([torch.zeros_like(logits), logits], dim=1), top_k, top_p, temperature)
        return both[:, 1:] - both[:, :1]


@dataclass(frozen=True)
class LogisticMixture(PixelLikelihood):
    """The discretised mixture of logistics of PixelCNN++ (1701.05517), whose channels lean on each other.

    Args:
        num_levels: L, from 2 to 65536.
        num_components: K, 10 in the paper.

    Raises:
        ValueError: If a number is out of range.
    """

    num_levels: int = 256
    num_components: int = 10

    def __post_init__(self) -> None:
        check_num_levels(self.num_levels)
        logistic_mixture_channels(self.num_components, 1)

    def num_parameters(self, channels: int) -> int:
        """3 K for gray pictures, 10 K for colour."""
        return logistic_mixture_channels(self.num_components, channels)

    def num_uniforms(self, channels: int) -> int:
        """K for the component, and one for each channel."""
        return self.num_components + channels

    def log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Nats of each pixel, `[N, *space]`."""
        return logistic_mixture_pixel_log_prob(parameters, levels, self.num_levels)

    def sample(self, parameters: Tensor, noise: Tensor, channels: int, temperature: float = 1.0) -> Tensor:
        """Levels `[N, C, *space]`, each channel before the next leans on it."""
        return logistic_mixture_sample(parameters, channels, self.num_levels, noise, temperature)


def _by_channel(parameters: Tensor, channels: int, ndim_in_one_axis: int) -> Tensor:
    """`[N, P, C, *space]`, also from `[N, P C, *space]`."""
    return parameters.unflatten(1, (-1, channels)) if parameters.ndim == ndim_in_one_axis else parameters
