"""What a discriminator is shown in place of pictures where there are few: the same, augmented at random.

A generator learns the distribution of pictures all the same, as long as augmenting could be undone in distribution:
pictures that differ in law still do when both are augmented (2006.06676, section 2.1). Augmentations hold numbers only,
so that a checkpoint can name them. Draws are from PyTorch's global generator on the pictures' device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_gen.schedules import Schedule


class Augmentation(ABC):
    """Random transforms of pictures, each drawn for each picture with probability p.

    Attributes:
        p: The probability, in [0, 1], or a schedule of it; where there is a `target`, that of the beginning.
        target: Where it is not None, p follows how sure the discriminator is of real pictures; see `ADA`.

    Raises:
        ValueError: At construction, if p is out of range.
    """

    p: float | Schedule
    target: float | None = None
    # Without annotations, which jsonargparse would look up in the modules of subclasses.
    of_colors = "color"  # the transform that knows only pictures of 1 or 3 channels

    def __post_init__(self) -> None:
        if not isinstance(self.p, Schedule):
            check_probability(type(self).__name__, self.p)

    @property
    @abstractmethod
    def transforms(self) -> tuple[str, ...]:
        """Names of the transforms."""

    @abstractmethod
    def transformed(self, images: Tensor, p: Tensor, pictures: int) -> tuple[Tensor, Tensor]:
        """Pictures `[N, pictures * C, H, W]` transformed, and bool `[N]`: for which of them anything was drawn."""

    def __call__(self, images: Tensor, p: Tensor, pictures: int = 1) -> Tensor:
        """Pictures with transforms of their own; one for which none is drawn stays as it is, to the bit.

        It is computed in float32 at least, and can be differentiated twice.

        Args:
            images: `[N, pictures * C, H, W]` in `[-1, 1]`.
            p: The probability: `[]`, float32.
            pictures: So many, which lie side by side in the channels, are transformed alike.
        """
        with torch.autocast(images.device.type, enabled=False):
            exact = images.to(torch.promote_types(images.dtype, torch.float32))
            result, changed = self.transformed(exact, p, pictures)
            return torch.where(changed.view(-1, 1, 1, 1), result, exact).to(images.dtype)

    def check(self, owner: str, image_shape: tuple[int, int, int]) -> None:
        """Whether pictures of a shape can be augmented so.

        Raises:
            ValueError: If not; in the name of `owner`.
        """
        channels, height, width = image_shape
        what = self.of_colors if channels not in (1, 3) else ""
        reason = f"knows the colors of pictures of 1 or 3 channels, and image_shape is {image_shape}"
        if min(height, width) < 2:
            others = [name for name in self.transforms if name != self.of_colors]
            what, reason = (others or [""])[0], f"moves the pixels of pictures, and image_shape is {image_shape}"
        if what in self.transforms:
            rest = [name for name in self.transforms if name != what]
            instead = f"Leave it out ({', '.join(rest)} would be left)" if rest else "Leave augment out"
            raise ValueError(f"{owner}: {what!r} of {type(self).__name__} {reason}. {instead}.")


@dataclass(frozen=True)
class DiffAugment(Augmentation):
    """Differentiable augmentation (2006.10738), always the same.

    "color" moves brightness by up to 1/2 (1/4 of the range), and multiplies saturation by 0 to 2 and contrast by 1/2 to
    3/2; "translation" moves by whole pixels, up to 1/8 of the picture, and fills with 0; "cutout" sets a square of half
    the picture's size to 0, which may reach over its edge.

    Args:
        policy: Transforms, in order.
        p: Probability of each of them; 1 in the paper.

    Raises:
        ValueError: If there is no transform, an unknown one, or one twice, or p is out of range.
    """

    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    p: float | Schedule = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("DiffAugment", "policy", self.policy, ("color", "translation", "cutout"))

    @property
    def transforms(self) -> tuple[str, ...]:
        """The policy."""
        return self.policy

    def transformed(self, images: Tensor, p: Tensor, pictures: int) -> tuple[Tensor, Tensor]:
        """See `Augmentation`."""
        number, size = len(images), images.shape[-2:]
        changed = torch.zeros(number, dtype=torch.bool, device=images.device)
        for name in self.policy:
            chosen = drawn(number, 1, p)[:, 0]
            changed = changed | chosen
            if name == "color":
                images = _recolored(images.unflatten(1, (pictures, -1)), chosen).flatten(1, 2)
            elif name == "translation":
                reaches = ((side + 4) // 8 for side in size)
                down, right = (integers(number, -reach, reach, p) * chosen for reach in reaches)
                images = _translated(images, down, right)
            else:
                images = images * ~(_squares(number, size, p) & chosen.view(-1, 1, 1, 1))
        return images, changed


def check_probability(owner: str, p: float) -> None:
    """Raise a `ValueError`, in the name of `owner`, where p is none."""
    if not 0 <= p <= 1:
        raise ValueError(f"{owner} needs p in [0, 1], the probability of each transform; got {p}.")


def check_names(owner: str, argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise a `ValueError`, in the name of `owner`, where a list of names has not one or more known ones, each once."""
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise ValueError(
            f"{owner} needs {argument} of one or more of {', '.join(known)}, each once; got {list(names)}. To augment "
            "nothing leave augment out."
        )


# -- draws ----------------------------------------------------------------------------------------------------------


def drawn(number: int, transforms: int, p: Tensor) -> Tensor:
    """Which transforms are drawn for which pictures: bool `[N, transforms]`. At 0 none is, at 1 all are."""
    return torch.rand(number, transforms, device=p.device) < p


def uniform(number: int, size: int, p: Tensor) -> Tensor:
    """In [-1, 1): `[N, size]`."""
    return torch.rand(number, size, device=p.device) * 2 - 1


def integers(number: int, lowest: int, highest: int, p: Tensor) -> Tensor:
    """From the lowest to the highest: int64 `[N]`."""
    return torch.randint(lowest, highest + 1, (number,), device=p.device)


# -- of DiffAugment -------------------------------------------------------------------------------------------------


def _recolored(images: Tensor, chosen: Tensor) -> Tensor:
    """Brightness, saturation and contrast of `[N, pictures, C, H, W]`, of those that are chosen."""
    strengths = torch.rand(len(images), 3, device=images.device)
    moved, saturation, contrast = strengths.to(images.dtype).view(-1, 3, 1, 1, 1, 1).unbind(1)
    kept = ~chosen.view(-1, 1, 1, 1, 1)
    moved, saturation, contrast = moved - 0.5, saturation * 2, contrast + 0.5
    images = images + moved.masked_fill(kept, 0.0)
    gray = images.mean(2, keepdim=True)
    images = torch.lerp(gray, images, saturation.masked_fill(kept, 1.0))
    mean = images.mean((2, 3, 4), keepdim=True)
    return torch.lerp(mean, images, contrast.masked_fill(kept, 1.0))


def _translated(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Pictures moved by whole pixels `[N]`, with 0 where there was nothing."""
    for dim, shifts in ((2, down), (3, right)):
        size = images.shape[dim]
        source = torch.arange(size, device=images.device) - shifts.view(-1, 1)
        shape = (-1, 1, size, 1) if dim == 2 else (-1, 1, 1, size)
        index = source.clamp(0, size - 1).view(shape).expand_as(images)
        images = images.gather(dim, index) * ((source >= 0) & (source < size)).view(shape)
    return images


def _squares(number: int, size: torch.Size, p: Tensor) -> Tensor:
    """Squares of half the size whose middles are anywhere in the picture: bool `[N, 1, H, W]`."""
    inside = []
    for side in size:
        half = (side + 1) // 2  # of the picture, which the square is as large as
        first = integers(number, 0, side - half % 2, p) - half // 2
        places = torch.arange(side, device=p.device)
        inside.append((places >= first.view(-1, 1)) & (places < first.view(-1, 1) + half))
    return (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)
