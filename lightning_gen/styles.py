"""What the styles of a model can be used for: mixing, directions without labels, and finding those of a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.capabilities import HasLatents, HasLayerStyles
from lightning_gen.latents import slerp
from lightning_gen.randomness import generator_for

Space = Literal["z", "w"]
Distance = Callable[[Tensor, Tensor], Tensor]
"""From pictures `[N, C, H, W]` and those that they should equal, their mean distance, a scalar with a graph."""


class Points:
    """Points of a latent space, and their pictures.

    Args:
        model: A `HasStyles` for "w".
        space: "z" for the latents themselves, "w" for the styles that they are mapped to.
        settings: Of the model's own `sample`; in w those of truncation are heeded on the way there.
    """

    def __init__(self, model: HasLatents, space: Space, settings: Mapping[str, Any]) -> None:
        self.model: Any = model
        self.space: Space = space
        truncation = {name: settings[name] for name in ("psi", "truncated_layers") if name in settings}
        self.truncation = {"psi": 1.0, **truncation} if truncation and space == "w" else {}
        self.settings = {name: value for name, value in settings.items() if name not in self.truncation}

    def of(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """The points `[N, ...]` of latents `[N, *latent_shape]`, with labels `[N]` where there are classes."""
        if self.space == "z":
            return latents
        styles: Tensor = self.model.map_latents(latents, labels)
        return self.model.truncate(styles, **self.truncation) if self.truncation else styles

    def between(self, start: Tensor, end: Tensor, steps: int, *, straight: bool) -> Tensor:
        """Points `[steps, ...]` from one point to another, both among them, on a line or as `slerp` has them."""
        way = torch.lerp if straight else slerp
        ends = start.flatten(), end.flatten()
        return torch.stack([way(*ends, step / (steps - 1)) for step in range(steps)]).unflatten(1, start.shape)

    def draw(self, points: Tensor, labels: Tensor | None) -> Tensor:
        """The pictures `[N, C, H, W]` of points; labels are looked at in z only, for w holds them."""
        images: Tensor
        if self.space == "z":
            images = self.model.generate(points, labels, **self.settings)
        else:
            images = self.model.synthesize(points, **self.settings)
        return images


# -- mixing ---------------------------------------------------------------------------------------------------------


def bands_of(num_layers: int) -> dict[str, range]:
    """The layers that are called coarse, middle and fine, by these names, without those of which there are none.

    0 to 3, 4 to 7 and the rest, as in the paper (1812.04948, figure 3); of eight layers or fewer, a third of the levels
    each, a level being two layers.

    Args:
        num_layers: Of the model.
    """
    first, second = (4, 8) if num_layers > 8 else (2 * round(num_layers / 6), 2 * round(num_layers / 3))
    bands = {"coarse": range(first), "middle": range(first, second), "fine": range(second, num_layers)}
    return {name: layers for name, layers in bands.items() if layers}


def parse_layers(text: str, num_layers: int) -> list[int]:
    """The layers in "0-3,8", from 0 on.

    Raises:
        ValueError: If it cannot be read so, or there are no such layers.
    """
    layers: list[int] = []
    for part in text.strip().strip("[]").split(","):
        if not (span := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())):
            raise ValueError(f"Layers are numbers from 0 on and ranges of them, such as 0-3,8; got {text!r}.")
        layers += range(int(span[1]), int(span[2] or span[1]) + 1)
    if not layers or max(layers) >= num_layers:
        raise ValueError(f"The layers of this model are 0 to {num_layers - 1}; got {text!r}.")
    return sorted(set(layers))


def mixed(styles: Tensor, others: Tensor, layers: Sequence[int]) -> Tensor:
    """Styles `[..., L, D]` with those of others, `[..., L, D]` too, in the layers given."""
    chosen = torch.zeros(styles.shape[-2], 1, dtype=torch.bool, device=styles.device)
    chosen[list(layers)] = True
    return torch.where(chosen, others, styles)


# -- directions -----------------------------------------------------------------------------------------------------


def factorized_directions(weights: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
    """Where styles move what layers make of them the most: closed-form factorisation (SeFa, 2007.06600).

    They are the top eigenvectors of A^T A, A being the weights of all layers, one below the other. Their sign is free;
    here the largest coordinate is positive.

    Args:
        weights: By which styles `[D]` are multiplied, each `[outputs, D]`.
        number: Of directions, at most D.

    Returns:
        Orthonormal directions `[number, D]`, and the eigenvalue of each, a share of the sum of all.

    Raises:
        ValueError: If there are fewer directions.
    """
    width = weights[0].shape[1]
    if not 1 <= number <= width:
        raise ValueError(f"Styles {width} wide have 1 to {width} directions; got {number}.")
    stacked = torch.cat([weight.detach().double().cpu() for weight in weights])
    values, vectors = torch.linalg.eigh(stacked.T @ stacked)
    top = vectors.T.flip(0)[:number]
    signs = top.gather(1, top.abs().argmax(1, keepdim=True)).sign()
    return (top * signs).float(), (values.flip(0)[:number] / values.sum()).float()


def drawn_styles(model: HasLayerStyles, number: int, label: int | None = None, seed: int = 0) -> Tensor:
    """Styles w `[number, D]` of latents from the prior, of one class where there are classes."""
    latents = model.draw_latents(number, generator_for(seed, 0))
    return torch.cat([model.map_latents(part, label)[:, 0] for part in latents.split(1000)])


# -- projection -----------------------------------------------------------------------------------------------------


class Projection(NamedTuple):
    """What `project` finds.

    Attributes:
        styles: `[L, D]`, those of the last step.
        noise: Maps `[1, 1, H, W]` of the noise of each layer, likewise: the model's own ones where they stay.
        steps: S steps, from 0 to the last.
        path: Styles `[S, L, D]` after these steps, from the mean of all to those that were found.
        images: Their pictures `[S, C, H, W]`, in [-1, 1].
        distances: Of these to the target, `[S]` on the CPU.
    """

    styles: Tensor
    noise: list[Tensor]
    steps: list[int]
    path: Tensor
    images: Tensor
    distances: Tensor


def pixel_distance(images: Tensor, targets: Tensor) -> Tensor:
    """The mean squared difference of pictures `[N, C, H, W]`, reduced to 64 pixels if they are larger; a scalar."""
    return F.mse_loss(reduced(images, 64), reduced(targets, 64))


def reduced(images: Tensor, side: int) -> Tensor:
    """Pictures `[N, C, H, W]` whose longer side is below twice so many pixels, each the mean of a square of them."""
    factor = max(images.shape[2:]) // side
    return F.avg_pool2d(images, factor) if factor > 1 else images


def project(
    model: HasLayerStyles,
    target: Tensor,
    distance: Distance = pixel_distance,
    *,
    space: Literal["w", "w+"] = "w",
    steps: int = 1000,
    learning_rate: float = 0.1,
    style_noise: float = 0.05,
    noise: Literal["fixed", "optimised"] = "fixed",
    noise_weight: float = 1e5,
    num_styles: int = 10_000,
    snapshots: int = 6,
    label: int | None = None,
    seed: int = 0,
) -> Projection:
    """The styles whose picture is nearest to a given one, by gradient descent (StyleGAN2, 1912.04958, appendix D).

    It begins at the mean of many w. Adam's rate grows in the first twentieth of the steps and falls along a cosine in
    the last quarter. Meanwhile w is moved by noise, which ends after three quarters of the steps.

    Deviation: by default the maps of noise of the layers stay as the model has them, so that what is found is a picture
    of the styles alone. In the paper they are optimised too, from others that are drawn; here from those of the model.

    Args:
        model: Whose styles are looked for; its weights and modes stay as found.
        target: `[C, H, W]` in [-1, 1], of the model's shape.
        distance: What shall be small.
        space: "w" for the same style in all layers, "w+" for one in each, which comes nearer, but may leave what the
            model knows.
        steps: Of Adam.
        learning_rate: At its height.
        style_noise: On w at the start, as a share of its deviation.
        noise: Whether the maps of noise of the layers are optimised too. They have mean 0 and deviation 1 after every
            step, and `noise_correlation` keeps them from holding what styles should say.
        noise_weight: Of `noise_correlation`.
        num_styles: From how many w their mean and deviation are.
        snapshots: S at most, at even steps, both ends among them.
        label: The class that the mean of w is of; needed where the model has classes.
        seed: Of the w and of the noise.

    Raises:
        ValueError: If the target has another shape, or a number is out of range.
    """
    if tuple(target.shape) != tuple(model.image_shape):
        raise ValueError(
            f"The target must be {list(model.image_shape)}, as the model's pictures; got {[*target.shape]}."
        )
    for name, value, least in (("steps", steps, 1), ("num_styles", num_styles, 2), ("snapshots", snapshots, 2)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if learning_rate <= 0 or min(style_noise, noise_weight) < 0:
        raise ValueError(
            "learning_rate must be above 0, and style_noise and noise_weight 0 or more; got "
            f"{learning_rate}, {style_noise} and {noise_weight}."
        )
    if noise not in ("fixed", "optimised"):
        raise ValueError(f"noise must be 'fixed' or 'optimised', got {noise!r}.")
    known = drawn_styles(model, num_styles, label, seed)
    mean = known.mean(0)
    deviation = (known - mean).square().sum(1).mean().sqrt()
    layers = model.map_latents(model.draw_latents(1, generator_for(seed, 0)), label).shape[1]
    place = mean.repeat(1 if space == "w" else layers, 1).requires_grad_()
    maps = [each.detach().clone() for each in model.noise_maps()]
    # One pixel has no deviation to keep.
    moving = [each.requires_grad_() for each in maps if each.numel() > 1] if noise == "optimised" else []
    wanted, generator = target.to(mean)[None], generator_for(seed, 1)
    optimizer = torch.optim.Adam([place, *moving], lr=learning_rate)
    shown = sorted({round(number * steps / (snapshots - 1)) for number in range(snapshots)})

    def picture_of(styles: Tensor) -> Tensor:
        return model.synthesize_from(styles.expand(1, layers, -1), noise=maps)

    path, images, distances = [], [], []
    for step in range(steps + 1):
        if step in shown:
            with torch.no_grad():
                image = picture_of(place)
                path.append(place.detach().expand(layers, -1).clone())
                images.append(image[0].clamp(-1, 1))
                distances.append(distance(image, wanted).cpu())
        if step < steps:
            optimizer.param_groups[0]["lr"] = learning_rate * _ramp(step / steps)
            shift = torch.randn(place.shape, generator=generator).to(place)
            moved = place + shift * deviation * style_noise * max(0.0, 1 - step / steps / 0.75) ** 2
            loss = distance(picture_of(moved), wanted)
            if moving:
                loss = loss + noise_weight * noise_correlation(moving)
            gradients = torch.autograd.grad(loss, [place, *moving])  # the model's weights get none
            for each, gradient in zip([place, *moving], gradients, strict=True):
                each.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for each in moving:
                    each.sub_(each.mean()).div_(each.square().mean().sqrt())
    found = [each.detach() for each in maps]
    return Projection(path[-1], found, shown, torch.stack(path), torch.stack(images), torch.stack(distances))


def noise_correlation(maps: Sequence[Tensor]) -> Tensor:
    """How much neighbours in maps of noise are alike, 0 for white noise of many pixels; a scalar with a graph.

    The sum over maps, and over their sizes from their own down to 8 pixels, of the squared mean product of neighbours
    below and beside each other, around the edges too (StyleGAN2, 1912.04958, appendix D). A map is halved by means of
    2 x 2, times 2, so that white noise stays of deviation 1.

    Args:
        maps: `[1, 1, H, W]` each.
    """
    terms = []
    for each in maps:
        level = each
        while True:
            terms += [(level * level.roll(1, side)).mean().square() for side in (2, 3)]
            if min(level.shape[2:]) <= 8 or any(side % 2 for side in level.shape[2:]):
                break
            level = 2 * F.avg_pool2d(level, 2)
    return torch.stack(terms).sum()


def _ramp(t: float) -> float:
    """The share of the rate at a share of the steps."""
    return min(1.0, t / 0.05) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / 0.25)))
