"""Perceptual path length: how far pictures move, as an eye sees it, when their latents move a little."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.capabilities import HasLatents, HasStyles
from lightning_gen.extractors.base import full_float32
from lightning_gen.latents import slerp
from lightning_gen.losses.perceptual import LPIPSDistance
from lightning_gen.modes import evaluating
from lightning_gen.randomness import generator_for

Distance = Callable[[Tensor, Tensor], Tensor]
"""From two batches of pictures, float `[N, C, H, W]` in `[-1, 1]`, to N distances, of the order of a squared length."""


class PathLength(NamedTuple):
    """What `perceptual_path_length` finds.

    Attributes:
        mean: Of the distances that were kept, each divided by epsilon^2.
        std: Of those, with divisor n - 1.
        distances: All of them divided by epsilon^2, in the order of the pairs, float64 `[num_samples]` on the CPU.
    """

    mean: float
    std: float
    distances: Tensor


class LPIPS(nn.Module):
    """The distance of the paper: LPIPS on VGG-16 (Zhang et al. 2018, arXiv 1801.03924).

    Sides above 256 pixels are first reduced by averaging over blocks, as the paper does; grey is repeated as RGB.

    Args:
        crop_faces: Look only at the part of the picture where FFHQ has the face, as the first paper did.

    Raises:
        RuntimeError: If the weights of VGG-16 are not at hand and cannot be downloaded.
    """

    def __init__(self, crop_faces: bool = False) -> None:
        super().__init__()
        self.crop_faces = crop_faces
        try:
            self.network = LPIPSDistance("vgg").load()
        except FileNotFoundError as error:
            raise RuntimeError(
                f"LPIPS could not be had: {error} perceptual_path_length takes another distance too: any callable "
                "from two batches of pictures to [N]."
            ) from error

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances `[N]` of pictures `[N, 1 or 3, H, W]` in `[-1, 1]`, sides of at least 16 pixels."""
        distances: Tensor = self.network(self._prepared(a), self._prepared(b))
        return distances.flatten()

    def _prepared(self, images: Tensor) -> Tensor:
        if self.crop_faces:
            eighth = images.shape[2] // 8
            images = images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]
        if min(images.shape[2:]) < 16:
            raise ValueError(f"VGG-16 halves pictures four times, so a side of {list(images.shape[2:])} is too short.")
        factor = max(images.shape[2:]) // 256
        return F.avg_pool2d(images, factor) if factor > 1 else images


def perceptual_path_length(
    model: HasLatents,
    distance: Distance | None = None,
    *,
    num_samples: int = 50_000,
    epsilon: float = 1e-4,
    space: Literal["z", "w"] = "z",
    sampling: Literal["full", "end"] = "full",
    discard: float = 0.01,
    batch_size: int = 64,
    seed: int = 0,
) -> PathLength:
    """The mean of d(G(t), G(t + epsilon)) / epsilon^2 over paths between pairs of latents (StyleGAN, arXiv 1812.04948).

    Lower is smoother. The lowest and highest distances are discarded, as the authors' code does. Pair i depends on the
    seed and on i alone, so (but for rounding) the batch size does not move the figure; both ends of a step have the
    same label, drawn evenly, and are drawn in one batch.

    Steps of 1e-4 need all digits of float32: autocast and TF32 are off, models in half precision are refused, and no
    picture is quantized. So a distance that takes uint8 pictures will not do.

    One deviation: slerp in the paper's code gives latents of length 1, which its generator would make them anyway. Here
    the length goes evenly from that of one latent to that of the other (`slerp`), so that other generators see latents
    as long as those they know; for those that normalize latents it is the same path.

    Args:
        model: Draws and has latents. It is asked in evaluation mode, without a graph, and left as it was.
        distance: Of pictures; a module is put into evaluation mode meanwhile. None takes `LPIPS`.
        num_samples: Pairs. Each costs two pictures.
        epsilon: The step, as a share of the path.
        space: "z" for great circles between latents, "w" for lines between the w of a `HasStyles`.
        sampling: "full" takes t evenly from [0, 1) for each pair; "end" takes t = 0, so it stays where latents are
            drawn (StyleGAN2, arXiv 1912.04958, reports that in w).
        discard: Share of the distances that is discarded at either end, from 0 to below 0.5.
        batch_size: Pairs at a time.
        seed: 0 or more.

    Raises:
        ValueError: If an argument is out of range, the model has not what the space needs or is in half precision,
            equal latents have not equal pictures, or a distance is not a finite number for each pair.
        RuntimeError: If the weights of `LPIPS` cannot be had.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if epsilon <= 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}.")
    if not 0 <= discard < 0.5:
        raise ValueError(f"discard must be from 0 to below 0.5, got {discard}.")
    if sampling not in ("full", "end"):
        raise ValueError(f"sampling must be full or end, got {sampling!r}.")
    if space not in ("z", "w"):
        raise ValueError(f"space must be z or w, got {space!r}.")
    if not isinstance(model, HasLatents):
        raise ValueError(
            f"{type(model).__name__} is no model with latents: those have latent_shape, num_classes, draw_latents, "
            "generate and sample."
        )
    if isinstance(model, nn.Module) and any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        raise ValueError("Half precision cannot tell such near pictures apart. Measure copy.deepcopy(model).float().")
    map_latents: Callable[..., Tensor] | None = None
    draw: Callable[..., Tensor] = model.generate
    between: Callable[..., Tensor] = slerp
    if space == "w":
        if not isinstance(model, HasStyles):
            raise ValueError(f"{type(model).__name__} has no w (map_latents, synthesize); take space='z'.")
        map_latents, draw, between = model.map_latents, model.synthesize, _lerp

    device = model.draw_latents(1, generator_for(seed, 0)).device
    distance = LPIPS().to(device) if distance is None else distance
    parts: list[Tensor] = []
    with ExitStack() as stack:
        for network in (model, distance):
            if isinstance(network, nn.Module):
                stack.enter_context(evaluating(network))
        for context in (torch.no_grad(), torch.autocast(device.type, enabled=False), full_float32()):
            stack.enter_context(context)
        for pairs in torch.arange(num_samples).split(batch_size):
            start, end, t, labels = _draw_pairs(model, pairs.tolist(), seed)
            if sampling == "end":
                t = torch.zeros_like(t)
            if map_latents is not None:
                start, end = _both(map_latents, start, end, labels)
                labels = None
            ends = start.flatten(1), end.flatten(1)
            here, there = (between(*ends, at).view(start.shape) for at in (t, t + epsilon))
            if not parts:
                image, again = _both(draw, here[:1], here[:1], None if labels is None else labels[:1])
                if not torch.allclose(image, again, rtol=0, atol=1e-5):
                    raise ValueError(
                        f"The model drew two pictures of one latent that differ by {(image - again).abs().max():g}, so "
                        "its noise would be measured. Its pictures must be a function of the latents and labels alone."
                    )
            distances = distance(*_both(draw, here, there, labels))
            parts.append(_checked(distances, pairs) / epsilon**2)

    found = torch.cat(parts)
    lowest = found.quantile(discard, interpolation="lower")
    highest = found.quantile(1 - discard, interpolation="higher")
    kept = found[(found >= lowest) & (found <= highest)]
    return PathLength(kept.mean().item(), kept.std().item(), found)


def _draw_pairs(model: HasLatents, numbers: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Both latents, t in [0, 1) and, where the model has classes, the label of each pair."""
    drawn = []
    for number in numbers:
        generator = generator_for(seed, number)
        start, end = model.draw_latents(1, generator), model.draw_latents(1, generator)
        t = torch.rand(1, generator=generator, dtype=torch.float64)
        drawn.append((start, end, t, torch.randint(model.num_classes or 1, (1,), generator=generator)))
    start, end, t, labels = (torch.cat(things) for things in zip(*drawn, strict=True))
    return start, end, t.to(start.device), None if model.num_classes is None else labels


def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Straight lines `[N, D]` at one weight each, `[N]`, reckoned as `slerp` does."""
    return torch.lerp(start.double(), end.double(), weight[:, None]).to(start)


def _both(function: Callable[..., Tensor], a: Tensor, b: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a function gives for two batches with the same labels, asked once."""
    batch = torch.cat([a, b])
    first, second = (function(batch) if labels is None else function(batch, labels.repeat(2))).chunk(2)
    return first, second


def _checked(distances: Tensor, pairs: Tensor) -> Tensor:
    """float64 `[N]` on the CPU."""
    if distances.numel() != len(pairs):
        raise ValueError(f"The distance of {len(pairs)} pairs must be [{len(pairs)}], got {list(distances.shape)}.")
    distances = distances.double().cpu().flatten()
    if not bool(distances.isfinite().all()):
        bad = int((~distances.isfinite()).nonzero()[0])
        raise ValueError(
            f"The distance of pair {int(pairs[bad])} is {distances[bad].item()}. Look at the model's pictures: they "
            "must be finite and in [-1, 1]."
        )
    return distances
