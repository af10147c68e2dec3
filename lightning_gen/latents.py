"""Latents by number, and the ways between them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_gen.capabilities import HasLatents
from lightning_gen.randomness import generator_for


def numbered_latents(model: HasLatents, numbers: Iterable[int], seed: int) -> Tensor:
    """Latents `[N, *latent_shape]`, of which each depends on the seed and its own number alone.

    So picture i of a seed is the same however many are drawn, and in whatever company.

    Args:
        model: Whose prior they are drawn from.
        numbers: Of the N latents, 0 or more each.
        seed: 0 or more.

    Raises:
        ValueError: If a number or the seed is negative.
    """
    return torch.cat([model.draw_latents(1, generator_for(seed, number)) for number in numbers])


def slerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985; for latents White 2016, arXiv 1609.04468).

    The direction moves along the great circle at constant angular speed, and the length linearly from one to the
    other. For vectors of equal length that is Shoemake's formula; for others that formula can let the length swing far
    beyond both ends, where Gaussian latents are rare. Both ends are given back bit for bit. Between opposite vectors
    there are many great circles; the one through the axis along which they are shortest is taken. Where a vector is
    zero, it is linear interpolation.

    Args:
        start: `[..., D]`.
        end: `[..., D]`.
        weight: Share of the way from start to end, in `[0, 1]`; one, or one for each vector, `[...]`.

    Returns:
        `[..., D]`, of the same type.
    """
    weight = torch.as_tensor(weight, dtype=torch.float64, device=start.device).unsqueeze(-1)
    a, b = torch.broadcast_tensors(start.double(), end.double())
    long_a, long_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    u, v = a / long_a, b / long_b
    cosine = (u * v).sum(-1, keepdim=True)
    sideways = v - cosine * u
    sine = sideways.norm(dim=-1, keepdim=True)
    # Nearly opposite vectors say by their rounding errors alone which way to go.
    shortest = torch.nn.functional.one_hot(u.abs().argmin(-1), u.shape[-1]).to(u)
    any_way = shortest - (shortest * u).sum(-1, keepdim=True) * u
    sideways = torch.where((cosine < 0) & (sine < 1e-7), any_way, sideways)
    sideways = sideways / sideways.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    angle = weight * torch.atan2(sine, cosine)
    between = torch.lerp(long_a, long_b, weight) * (angle.cos() * u + angle.sin() * sideways)
    between = torch.where((long_a > 0) & (long_b > 0), between, torch.lerp(a, b, weight)).to(start)
    # Both ends bit for bit.
    return torch.where(weight == 0, start, torch.where(weight == 1, end, between))
