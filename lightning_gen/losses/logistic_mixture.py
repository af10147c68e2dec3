"""The discretised mixture of logistics of PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517, sections 2.1 and 2.2).

A pixel's colour is drawn by one of K components, the same for all its C channels. In component i, channel c has a
logistic distribution over the reals with scale s and the mean

    mu_c = m_c + sum over b < c of a_cb x_b,        a = tanh(raw), x_b the pixel's own channels before, in [-1, 1]

(for RGB: green leans on red; blue on red and green), and level k of L gets the mass between the edges halfway to its
neighbours. The lowest and highest levels get the tails as well, so that the masses sum to 1.

A network gives `logistic_mixture_channels(K, C)` channels for it. Read as `[rows, K]`, row by row they are

    1            logits of the components
    C            means m_c
    C            logarithms of the scales in [-1, 1] units, raised to -7 where below
    C (C - 1)/2  raw coefficients a_10, a_20, a_21, a_30, ...

Deviations from the paper's code:

* A mass that rounds to nothing is there replaced by density times width, at a jump. Here all of it is in log-space,
  log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b)), which nowhere cancels, and
  edges are counted in levels, so that neighbours share theirs to the last bit.
* Samples are rounded to levels, each channel before the next leans on it, as in training.
* C and L are free, and the channels of the parameters come in another order.

Log-probabilities are nats, computed in float32, or in float64 where the parameters are; never in autocast's halves.
They and their gradients are finite for raw parameters up to 1e30 either way. Trailing axes are free: `*space` is `H, W`
for whole pictures, `1, 1` or nothing at all for the one pixel of a step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.categorical import (
    check_integers,
    check_temperature,
    gumbel,
    images_to_levels,
    levels_to_images,
    uniform,
)
from lightning_gen.losses.precision import full

MIN_LOG_SCALE = -7.0
"""Lower bound of the logarithm of a scale, in `[-1, 1]` units, as in the paper's code."""


def logistic_mixture_channels(num_components: int, channels: int) -> int:
    """How many channels a network must give: K (1 + 2 C + C (C - 1) / 2), which is 3 K for gray and 10 K for RGB.

    Args:
        num_components: K; 10 in the paper.
        channels: C, of the pictures.

    Raises:
        ValueError: If one of them is below 1.
    """
    for name, value in (("num_components", num_components), ("channels", channels)):
        if value < 1:
            raise ValueError(f"A mixture of logistics needs {name} of at least 1, got {value}.")
    return num_components * _rows(channels)


def logistic_mixture_pixel_log_prob(parameters: Tensor, levels: Tensor, num_levels: int) -> Tensor:
    """Log-probability of each pixel's colour; its channels share a component, so they have none of their own.

    Args:
        parameters: Float `[N, P, *space]`, P as by `logistic_mixture_channels`.
        levels: Integers `[N, C, *space]` of 0 to L - 1, as `images_to_levels` gives them; values are not checked here.
        num_levels: L.

    Returns:
        Nats `[N, *space]`; float32, or float64 as the parameters.

    Raises:
        ValueError: If the shapes do not belong together, the levels are no integers, or by `check_num_levels`.
    """
    check_integers(levels)
    if levels.ndim < 2 or parameters.shape[:1] + parameters.shape[2:] != levels.shape[:1] + levels.shape[2:]:
        raise ValueError(
            f"Parameters [N, P, ...] and levels [N, C, ...] must agree but for P and C, got {list(parameters.shape)} "
            f"and {list(levels.shape)}."
        )
    channels = levels.shape[1]
    mixture = _split(_unflatten(parameters, channels), channels)
    images = levels_to_images(levels, num_levels, mixture.means.dtype)
    means = torch.stack([mixture.mean(channel, images) for channel in range(channels)], dim=1)

    # In units of levels, in which edges are exact and a level is 1 wide: a float's error in the mean moves all edges.
    log_width = math.log(2 / (num_levels - 1)) - mixture.log_scales  # of a level, in scales
    level = levels.to(means.dtype).unsqueeze(2)
    center = (means + 1) * ((num_levels - 1) / 2)
    width = log_width.exp()
    upper, lower = (level + 0.5 - center) * width, (level - 0.5 - center) * width

    first, last = level == 0, level == num_levels - 1
    log_mass = (
        F.logsigmoid(upper).masked_fill(last, 0)
        + F.logsigmoid(-lower).masked_fill(first, 0)
        + _log1mexp(log_width).masked_fill(first | last, 0)
    )
    return (F.log_softmax(mixture.logits, dim=1) + log_mass.sum(1)).logsumexp(1)


def logistic_mixture_log_prob(parameters: Tensor, levels: Tensor, num_levels: int) -> Tensor:
    """The sum of `logistic_mixture_pixel_log_prob` over each picture: nats `[N]`. Same arguments and errors."""
    return logistic_mixture_pixel_log_prob(parameters, levels, num_levels).unsqueeze(-1).flatten(1).sum(1)


def logistic_mixture_sample(
    parameters: Tensor,
    channels: int,
    num_levels: int,
    noise: Tensor | torch.Generator,
    temperature: float = 1.0,
) -> Tensor:
    """Draw levels: a component by the Gumbel-max trick, then channel after channel by the logistic's inverse CDF.

    Args:
        parameters: Float `[N, P, *space]`, P as by `logistic_mixture_channels`.
        channels: C.
        num_levels: L.
        noise: A generator, or uniform numbers in [0, 1) drawn ahead, `[N, K + C, *space]`: K for the component, then
            one a channel.
        temperature: T >= 0 divides the logits and multiplies the scales; means and coefficients stay. 1 draws from the
            model, 0 gives the means of the heaviest component.

    Returns:
        int64 `[N, C, *space]` of 0 to L - 1.

    Raises:
        ValueError: If P does not belong to C, the temperature is out of range, the noise has another shape, or by
            `check_num_levels`.
    """
    check_temperature(temperature)
    rows = _unflatten(parameters, channels)
    num_samples, num_rows, num_components, *space = rows.shape
    noise = uniform(noise, torch.Size([num_samples, num_components + channels, *space]), rows)
    for_component, for_channels = noise.split([num_components, channels], dim=1)

    component = (rows[:, 0] + temperature * gumbel(for_component)).argmax(1, keepdim=True)
    chosen = _split(rows.gather(2, component.unsqueeze(1).expand(-1, num_rows, -1, *space)), channels)
    deviations = temperature * chosen.log_scales.exp() * for_channels.logit().unsqueeze(2)

    levels = component.new_empty(num_samples, 0, *space)
    for channel in range(channels):
        before = levels_to_images(levels, num_levels, rows.dtype)
        drawn = chosen.mean(channel, before) + deviations[:, channel]
        levels = torch.cat([levels, images_to_levels(drawn, num_levels, validate=False)], dim=1)
    return levels


class _Mixture(NamedTuple):
    """The parts of parameters `[N, rows, K, *space]`; scales raised and coefficients squashed."""

    logits: Tensor  # [N, K, *space]
    means: Tensor  # [N, C, K, *space]
    log_scales: Tensor  # [N, C, K, *space]
    coefficients: Tensor  # [N, C (C - 1) / 2, K, *space]

    def mean(self, channel: int, images: Tensor) -> Tensor:
        """Mean mu of a channel, `[N, K, *space]`, given at least the channels before it: `[N, channel.., *space]`."""
        first = channel * (channel - 1) // 2
        leanings = self.coefficients[:, first : first + channel] * images[:, :channel].unsqueeze(2)
        return self.means[:, channel] + leanings.sum(1)


def _rows(channels: int) -> int:
    return 1 + 2 * channels + channels * (channels - 1) // 2


def _unflatten(parameters: Tensor, channels: int) -> Tensor:
    """`[N, P, *space]` to `[N, rows, K, *space]`, in full precision."""
    rows = _rows(channels)
    if parameters.ndim < 2 or parameters.shape[1] == 0 or parameters.shape[1] % rows:
        raise ValueError(
            f"Parameters must be [N, P, ...] with P a multiple of {rows} for pictures of {channels} channels, got "
            f"{list(parameters.shape)}. logistic_mixture_channels(num_components, {channels}) gives P."
        )
    return full(parameters).unflatten(1, (rows, -1))


def _split(rows: Tensor, channels: int) -> _Mixture:
    logits, means, log_scales, raw = rows.split([1, channels, channels, channels * (channels - 1) // 2], dim=1)
    return _Mixture(logits.squeeze(1), means, log_scales.clamp(min=MIN_LOG_SCALE), raw.tanh())


def _log1mexp(log_x: Tensor) -> Tensor:
    """log(1 - exp(-x)) from log x, also where x underflows."""
    x = log_x.clamp(min=-20).exp()  # the clamp keeps the other branch's gradient from infinity
    return torch.where(log_x > -20, (-torch.expm1(-x)).log(), log_x - log_x.clamp(max=-20).exp() / 2)
