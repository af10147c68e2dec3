"""Discrete pictures: their levels, and likelihoods that give each level a probability of its own.

A picture in `[-1, 1]` with L levels a channel holds level k of 0 to L - 1 as 2k / (L - 1) - 1. Log-probabilities are
nats, computed in float32, or in float64 where the logits are; never in autocast's halves.

Trailing axes are free: `*space` is `H, W` for whole pictures, `1, 1` or nothing at all for the one pixel of a step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.precision import full

MAX_LEVELS = 2**16
"""Beyond it, float32 pictures would not tell levels apart with certainty."""

# In [-1, 1]: eight times the rounding of float32 there, so that any way of writing 2k / (L - 1) - 1 passes.
_TOLERANCE = 1e-6


def check_num_levels(num_levels: int) -> int:
    """`num_levels` itself; a `ValueError` if it is not a whole number from 2 to 65536."""
    if isinstance(num_levels, bool) or not isinstance(num_levels, int) or not 2 <= num_levels <= MAX_LEVELS:
        raise ValueError(
            f"num_levels must be a whole number from 2 to {MAX_LEVELS} (256 for 8 bits), got {num_levels!r}."
        )
    return num_levels


def rounding(dtype: torch.dtype) -> float:
    """How far values in `[-1, 1]` may lie from a level that they were before they became floats of this type."""
    return max(_TOLERANCE, torch.finfo(dtype).eps / 4) if dtype.is_floating_point else _TOLERANCE


def images_to_levels(
    images: Tensor, num_levels: int, *, validate: bool = True, tolerance: float = _TOLERANCE
) -> Tensor:
    """The levels of pictures that hold nothing else.

    Args:
        images: Float `[N, C, *space]` in `[-1, 1]`; each value within the tolerance of a level. (So half precision will
            do for levels that it holds exactly, such as the 17 of Digits, but not for 256.)
        num_levels: L, of 2 to 65536.
        validate: Whether values are looked at, for which the host waits for the device. Without, they are rounded
            to the nearest level unseen, as in a function that is to compile.
        tolerance: 1e-6, unless pictures are known to have been of levels before they were rounded; see `rounding`.

    Returns:
        int64 `[N, C, *space]` of 0 to L - 1.

    Raises:
        ValueError: If the type is no float, or a picture holds NaN, a value outside the range, or one between levels;
            the message names the first such picture of the batch. If the tolerance reaches from level to level. Or by
            `check_num_levels`.
    """
    if not images.is_floating_point():
        raise ValueError(
            f"Pictures must be floats in [-1, 1], got {images.dtype}. "
            "Convert levels with levels_to_images, or uint8 with lightning_gen.data.images.from_uint8."
        )
    half = (check_num_levels(num_levels) - 1) / 2
    places = full(images).add(1).mul(half)
    levels = places.round().clamp(0, num_levels - 1)
    if validate:
        if tolerance * half >= 0.5:
            raise ValueError(
                f"Pictures of {num_levels} levels in {images.dtype} do not tell them apart. Give them in float32, as a "
                "trainer of precision 32-true or bf16-mixed does."
            )
        # Not "> tolerance", which NaN is not either.
        fits = (places - levels).abs() <= tolerance * half
        if not bool(fits.all()):
            raise ValueError(_misfit(images, fits, num_levels))
    return levels.long()


def levels_to_images(levels: Tensor, num_levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The exact inverse of `images_to_levels`.

    Args:
        levels: Integers of 0 to L - 1, of any shape.
        num_levels: L; with 256, the pictures are `from_uint8`'s bit for bit.
        dtype: Of the pictures.

    Returns:
        2k / (L - 1) - 1, of the same shape.

    Raises:
        ValueError: If the levels are no integers, or by `check_num_levels`.
    """
    check_integers(levels)
    return levels.to(dtype).div((check_num_levels(num_levels) - 1) / 2).sub(1)


def categorical_pixel_log_prob(logits: Tensor, levels: Tensor) -> Tensor:
    """Log-probability of each sub-pixel's level under a softmax of its own (1601.06759, section 3.2).

    Args:
        logits: Float `[N, L, C, *space]`: the levels' axis is the second, as for `cross_entropy`.
        levels: Integers `[N, C, *space]` of 0 to L - 1, as `images_to_levels` gives them; values are not checked here.

    Returns:
        Nats `[N, C, *space]`; float32, or float64 as the logits.

    Raises:
        ValueError: If the shapes do not belong together, or the levels are no integers.
    """
    check_integers(levels)
    if logits.ndim < 3 or logits.shape[:1] + logits.shape[2:] != levels.shape:
        raise ValueError(
            f"Logits [N, L, C, ...] and levels [N, C, ...] must agree but for L, got {list(logits.shape)} and "
            f"{list(levels.shape)}. Channels of a convolution: unflatten(1, (num_levels, image_channels))."
        )
    # Not cross_entropy, which passes over a level of -100 in silence. Where levels are next to each other in memory, as
    # after a linear layer, they come last here too, which is three times as fast on a CPU and copies nothing.
    axis = -1 if logits.stride(1) == 1 else 1
    logits = logits.movedim(1, axis)
    return F.log_softmax(full(logits), dim=axis).gather(axis, levels.long().unsqueeze(axis)).squeeze(axis)


def categorical_log_prob(logits: Tensor, levels: Tensor) -> Tensor:
    """The sum of `categorical_pixel_log_prob` over each picture: nats `[N]`. Same arguments and errors."""
    return categorical_pixel_log_prob(logits, levels).flatten(1).sum(1)


def categorical_sample(logits: Tensor, noise: Tensor | torch.Generator, temperature: float = 1.0) -> Tensor:
    """Draw levels, by the Gumbel-max trick: the argmax over k of logit_k - T log(-log u_k).

    An inverse CDF would need one uniform number a sub-pixel, not L. But rounding in the logits moves each of its L - 1
    thresholds, where here it matters only in a near tie of the two best: ways of computing one network, cached and
    naive, agree on whole pictures.

    Args:
        logits: Float `[N, L, C, *space]`.
        noise: A generator, or uniform numbers in [0, 1) of the logits' shape that were drawn ahead.
        temperature: T >= 0 divides the logits; 1 draws from the model, 0 gives the likeliest levels.

    Returns:
        int64 `[N, C, *space]` of 0 to L - 1.

    Raises:
        ValueError: If the temperature is out of range, or the noise has another shape.
    """
    check_temperature(temperature)
    return (full(logits) + temperature * gumbel(uniform(noise, logits.shape, logits))).argmax(1)


def keep_likeliest(logits: Tensor, top_k: int | None = None, top_p: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Logits of the likeliest levels as they are, and -inf for those that are then never drawn.

    Args:
        logits: Float `[N, L, C, *space]`; -inf where a level cannot be drawn anyway, which does not count.
        top_k: How many are kept, exactly, if as many can be drawn; None keeps all.
        top_p: The fewest are kept whose probabilities add up to so much, of what `top_k` has kept; 1 keeps all.
        temperature: At which these probabilities are taken.

    Returns:
        The same shape; with `top_k` L or None and `top_p` 1, the logits themselves.

    Raises:
        ValueError: By `check_likeliest`.
    """
    check_likeliest(top_k, top_p, logits.shape[1])
    if top_k is not None and top_k < logits.shape[1]:
        kept = logits.topk(top_k, dim=1)
        logits = torch.full_like(logits, -torch.inf).scatter(1, kept.indices, kept.values)
    if top_p < 1 and temperature > 0:
        p, places = (full(logits) / temperature).softmax(1).sort(dim=1, descending=True, stable=True)
        surplus = p.cumsum(1) - p >= top_p  # where the likelier ones suffice
        logits = logits.masked_fill(surplus.scatter(1, places, surplus), -torch.inf)
    return logits


def bernoulli_pixel_log_prob(logits: Tensor, levels: Tensor) -> Tensor:
    """Log-probability of binary pictures, sub-pixel by sub-pixel; level 1 has the probability sigmoid(logit).

    As `categorical_pixel_log_prob`, errors included, with float logits `[N, C, *space]` and levels 0 or 1.
    """
    check_integers(levels)
    if logits.ndim < 2 or logits.shape != levels.shape:
        raise ValueError(
            f"Logits and levels must both be [N, C, ...], got {list(logits.shape)} and {list(levels.shape)}."
        )
    logits = full(logits)
    return F.logsigmoid(logits * (2 * levels.to(logits.dtype) - 1))


def bernoulli_log_prob(logits: Tensor, levels: Tensor) -> Tensor:
    """The sum of `bernoulli_pixel_log_prob` over each picture: nats `[N]`. Same arguments and errors."""
    return bernoulli_pixel_log_prob(logits, levels).flatten(1).sum(1)


def bernoulli_sample(logits: Tensor, noise: Tensor | torch.Generator, temperature: float = 1.0) -> Tensor:
    """Draw binary levels, int64 `[N, C, *space]` of 0 or 1: `categorical_sample` of float logits of that shape."""
    check_temperature(temperature)
    return (full(logits) + temperature * uniform(noise, logits.shape, logits).logit() > 0).long()


def uniform(noise: Tensor | torch.Generator, shape: torch.Size, like: Tensor) -> Tensor:
    """Uniform numbers strictly between 0 and 1, so that `logit` and `gumbel` of them are finite.

    Args:
        noise: Uniform numbers in [0, 1) of that shape, or a generator that draws them: always as float32 and on its
            own device, so that they are the same for a network in float64 or on another device.
        shape: Wanted.
        like: A tensor of the type (float32 at least) and on the device wanted.

    Raises:
        ValueError: If the noise has another shape.
    """
    if not isinstance(noise, Tensor):  # asked this way round, it compiles
        noise = torch.rand(shape, generator=noise, device=noise.device, dtype=torch.float32)
    elif noise.shape != shape:
        raise ValueError(f"The noise must be uniform numbers of shape {list(shape)}, got {list(noise.shape)}.")
    # The smallest step of float32 numbers below 1, at both ends.
    return noise.to(like.device, full(like).dtype).clamp(2**-24, 1 - 2**-24)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform ones strictly between 0 and 1."""
    return -(-uniform.log()).log()


def check_integers(levels: Tensor) -> None:
    """Raise a `ValueError` where levels are no integers, as pictures that nobody converted."""
    if levels.is_floating_point() or levels.is_complex():
        raise ValueError(f"Levels must be integers, got {levels.dtype}. Convert pictures with images_to_levels.")


def check_temperature(temperature: float) -> None:
    """Raise a `ValueError` where a temperature is below 0 or not finite."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 (the likeliest) or more and finite, got {temperature}.")


def check_likeliest(top_k: int | None, top_p: float, num_levels: int) -> None:
    """Raise a `ValueError` unless `top_k` is None or of 1 to L, and `top_p` above 0 and at most 1."""
    if top_k is not None and not 1 <= top_k <= num_levels:
        raise ValueError(
            f"top_k, how many of the {num_levels} levels or codes may be drawn, must be 1 to {num_levels}, or None for "
            f"all; got {top_k}."
        )
    if not 0 < top_p <= 1:
        raise ValueError(
            f"top_p, the probability of the likeliest levels that may be drawn, must be above 0 and at most 1 (all); "
            f"got {top_p}."
        )


def _misfit(images: Tensor, fits: Tensor, num_levels: int) -> str:
    """What is wrong with the first picture that does not fit."""
    unfit = fits.flatten(1).all(1).logical_not().nonzero().flatten().tolist()
    image, place = images[unfit[0]], tuple(fits[unfit[0]].logical_not().nonzero()[0].tolist())
    whose = f"Sample {unfit[0]} of the batch ({len(unfit)} of {len(images)} are unfit)"
    if bool(image.isnan().any()):
        return f"{whose} holds NaN in {int(image.isnan().sum())} of its {image.numel()} values. Look at its file."
    low, high = image.min().item(), image.max().item()
    if low < -1 - _TOLERANCE or high > 1 + _TOLERANCE:
        return f"{whose} ranges from {low:g} to {high:g}, but pictures lie in [-1, 1]. Scale them, or clamp them."
    hint = "" if images.dtype in (torch.float32, torch.float64) else f" (and {images.dtype} may be too coarse for them)"
    return (
        f"{whose} holds {image[place].item():.7g} at {place}, which is none of the {num_levels} levels "
        f"2k / {num_levels - 1} - 1{hint}. Quantize the pictures, or set num_levels to what they have."
    )
