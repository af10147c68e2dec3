"""Adaptive discriminator augmentation (Karras et al. 2020, 2006.06676)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_gen.layers.augment import Augmentation, check_names, drawn, integers, uniform
from lightning_gen.layers.warp import affine_warp
from lightning_gen.processes import total
from lightning_gen.schedules import Schedule

LEAKING = 0.85  # from about this p on fakes are seen to look augmented (2006.06676, section 2.2)


@dataclass(frozen=True)
class ADA(Augmentation):
    """Adaptive discriminator augmentation (2006.06676), whose p rises where the discriminator learns pictures by heart.

    With a target, p begins at its value and moves every `interval` batches: up where r, the mean sign of the scores of
    real pictures beside the loss's `boundary`, is above the target, and down where it is below; from 0 to 1 it takes
    `kimg` thousand pictures. Without one p stays as it is, or follows its schedule.

    "blit" mirrors, turns by right angles, and moves by whole pixels, up to 1/8 of the picture; "geometric" scales by
    2^N(0, 0.2^2), likewise one axis against another, turns by any angle, and moves by N(0, 1/8^2) of the picture; both
    are one affine warp, `affine_warp`. "color" adds N(0, 0.2^2) to brightness, multiplies contrast by 2^N(0, 0.5^2) and
    saturation by 2^N(0, 1), mirrors brightness, and turns hue by any angle. So together they are the paper's "bgc".

    Deviations: p is held below 1, too. Pictures are mirrored at their edges after they were enlarged, in the authors'
    code before, where they end in black behind the first reflection.

    Args:
        pipe: Kinds of transforms.
        p: Probability of each transform at the beginning.
        target: For r, in (0, 1); None holds p.
        interval: Batches from one move of p to the next.
        kimg: Thousand pictures in which p can go from 0 to 1; 100 in the paper for a start from trained weights.

    Raises:
        ValueError: If there is no transform, an unknown one, or one twice, or a number is out of range.
    """

    pipe: tuple[Literal["blit", "geometric", "color"], ...] = ("blit", "geometric", "color")
    p: float | Schedule = 0.0
    target: float | None = 0.6
    interval: int = 4
    kimg: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("ADA", "pipe", self.pipe, ("blit", "geometric", "color"))
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError(
                f"ADA needs a target in (0, 1) for the mean sign of scores (0.6 in the paper), or null for a p that "
                f"stays; got {self.target}."
            )
        if self.target is not None and isinstance(self.p, Schedule):
            raise ValueError("ADA: p is a schedule, and with a target it follows the scores. Set target to null.")
        for name in ("interval", "kimg"):
            if getattr(self, name) < 1:
                raise ValueError(f"ADA needs {name} of at least 1, got {getattr(self, name)}.")

    @property
    def transforms(self) -> tuple[str, ...]:
        """The pipe."""
        return self.pipe

    def transformed(self, images: Tensor, p: Tensor, pictures: int) -> tuple[Tensor, Tensor]:
        """See `Augmentation`."""
        number, (height, width) = len(images), images.shape[-2:]
        result, changed = images, torch.zeros(number, dtype=torch.bool, device=images.device)
        inverse = None
        if "blit" in self.pipe:
            inverse, chosen = _blits(number, width, height, p)
            changed = changed | chosen
        if "geometric" in self.pipe:
            further, chosen = _geometric(number, width, height, p)
            inverse = further if inverse is None else inverse @ further
            changed = changed | chosen
        if inverse is not None:
            result = affine_warp(result, inverse[:, :2].to(images.dtype))
        if "color" in self.pipe:
            luma, chroma, shift, chosen = _colors(number, p)
            changed = changed | chosen
            each = result.unflatten(1, (pictures, -1))
            if each.shape[2] == 3:
                matrices = (luma.view(-1, 1, 1) * chroma.new_ones(3, 3) / 3 + chroma).to(images.dtype).unsqueeze(1)
                colored = (matrices @ each.flatten(3)).view_as(each)
            else:
                colored = each * luma.to(images.dtype).view(-1, 1, 1, 1, 1)
            result = (colored + shift.to(images.dtype).view(-1, 1, 1, 1, 1)).flatten(1, 2)
        return result, changed


class AdaptiveProbability(nn.Module):
    """The p of an `ADA` with a target: the same on all ranks, and a whole number of pictures, which nothing rounds.

    Args:
        augmentation: Says where p begins, and how it moves.
    """

    counts: Tensor
    """int64 `[4]`: p in pictures; and since it last moved, pictures, scores of real ones, the sum of their signs."""

    def __init__(self, augmentation: ADA) -> None:
        super().__init__()
        self.augmentation, self.whole = augmentation, 1000 * augmentation.kimg
        assert not isinstance(augmentation.p, Schedule)
        counts = torch.tensor([round(augmentation.p * self.whole), 0, 0, 0])
        self.register_buffer("counts", counts, persistent=False)
        self._high_since: int | None = None
        self._warned = False
        self._noted: list[Tensor] = []  # of this rank and batch

    @property
    def p(self) -> Tensor:
        """The probability: float32 `[]`."""
        return self.counts[0] / self.whole

    @property
    def r(self) -> Tensor:
        """The mean sign of scores since p last moved: float32 `[]`; 0 where there are none."""
        return self.counts[3] / self.counts[2].clamp(min=1)

    def note(self, margins: Tensor) -> None:
        """Note the scores of real pictures, of any shape, beside the score that is neither real nor fake."""
        signs = margins.detach().sign().long().sum()
        self._noted.append(torch.stack([torch.full_like(signs, margins.numel()), signs]))

    def advance(self, pictures: int) -> None:
        """End a batch of so many pictures over all ranks, with what all ranks have noted."""
        self.counts[1] += pictures
        if self._noted:
            self.counts[2:] += total(torch.stack(self._noted).sum(0))
            self._noted = []

    def move(self) -> None:
        """Let p follow the scores, and forget them."""
        p, pictures, scores, signs = self.counts.unbind()
        target = self.augmentation.target or 0.0
        direction = (signs - target * scores).sign().long()  # 0 where there were no scores
        self.counts[0] = (p + direction * pictures).clamp(0, self.whole)
        self.counts[1:] = 0

    def watch(self, images_seen: int) -> None:
        """Warn, once, where p has stayed so high for a fifth of `kimg` that the generator may learn what is augmented.

        It waits for the device.

        Args:
            images_seen: Real pictures so far, over all ranks.
        """
        if self.p.item() < LEAKING:
            self._high_since = None
        elif self._high_since is None:
            self._high_since = images_seen
        elif not self._warned and images_seen - self._high_since >= self.whole // 5:
            self._warned = True
            rank_zero_warn(
                f"The p of ADA has stayed above {LEAKING} for {images_seen - self._high_since} pictures, up to "
                f"{images_seen}. The discriminator knows the pictures by heart all the same, and fakes may look "
                "augmented. Stop at the best checkpoint; or try a stronger penalty, such as R1, smaller networks, more "
                "pictures, mirrored ones (data.flip), or a start from weights of another run."
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as plain data."""
        return {"counts": self.counts.tolist(), "kimg": self.augmentation.kimg}

    def load(self, state: dict[str, Any]) -> None:
        """Take it back; p stays what it was where `kimg` is another now.

        Raises:
            ValueError: If it is none.
        """
        pictures, *others = (int(count) for count in state["counts"])
        if len(others) != 3 or not 0 <= pictures <= 1000 * state["kimg"]:
            raise ValueError(f"{state} is no state of an adaptive probability.")
        self.counts.copy_(torch.tensor([pictures * self.augmentation.kimg // state["kimg"], *others]))


# -- of ADA: inverses [N, 3, 3] of affine maps of the plane, in pixels from the middle of the picture ----------------


def _blits(number: int, width: int, height: int, p: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror images, quarter turns, moves by whole pixels; and for which pictures one was drawn."""
    chosen = drawn(number, 3, p)
    mirrored = 1 - 2 * integers(number, 0, 1, p) * chosen[:, 0]
    angle = integers(number, 0, 3, p) * chosen[:, 1] * (math.pi / 2)
    x, y = (uniform(number, 2, p) / 8).unbind(1)
    x, y = (x * width).round() * chosen[:, 2], (y * height).round() * chosen[:, 2]
    turned = _rotation(-angle)
    linear = torch.stack([turned[:, 0] * mirrored.unsqueeze(1), turned[:, 1]], dim=1)
    return _inverse(linear, x, y), chosen.any(1)


def _geometric(number: int, width: int, height: int, p: Tensor) -> tuple[Tensor, Tensor]:
    """Scaling, turning, scaling of one axis, turning, moving; and for which pictures one was drawn."""
    chosen, turns = drawn(number, 3, p), drawn(number, 2, 1 - (1 - p).sqrt())  # so that p of all are turned
    scale, stretch, x, y = torch.randn(number, 4, device=p.device).unbind(1)
    scale, stretch = torch.exp2(0.2 * scale * chosen[:, 0]), torch.exp2(0.2 * stretch * chosen[:, 1])
    before, after = (math.pi * uniform(number, 2, p) * turns).unbind(1)
    x, y = x * chosen[:, 2] * (width / 8), y * chosen[:, 2] * (height / 8)
    scales = torch.stack([1 / (scale * stretch), stretch / scale], dim=1)
    linear = _rotation(-before) @ (scales.unsqueeze(2) * _rotation(-after))
    return _inverse(linear, x, y), chosen.any(1) | turns.any(1)


def _rotation(angles: Tensor) -> Tensor:
    """`[N, 2, 2]`."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _inverse(linear: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`[N, 3, 3]` of the inverse `[N, 2, 2]` of what comes before a move by (x, y)."""
    inverse = torch.zeros(len(linear), 3, 3, device=linear.device)
    inverse[:, :2, :2] = linear
    inverse[:, :2, 2] = -(linear @ torch.stack([x, y], dim=1).unsqueeze(2)).squeeze(2)
    inverse[:, 2, 2] = 1
    return inverse


def _colors(number: int, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What becomes of colors; and for which pictures a transform was drawn.

    Brightness is the part of a color along (1, 1, 1). It has a factor `[N]`, and the rest, which hue turns around it, a
    matrix `[N, 3, 3]`. What is added to brightness is `[N]`, too.
    """
    chosen = drawn(number, 5, p)
    shift, contrast, saturation = torch.randn(number, 3, device=p.device).unbind(1)
    contrast = torch.exp2(0.5 * contrast * chosen[:, 1])
    mirrored = 1 - 2 * integers(number, 0, 1, p) * chosen[:, 2]
    angle = math.pi * uniform(number, 1, p)[:, 0] * chosen[:, 3]
    saturation = torch.exp2(saturation * chosen[:, 4])
    luma = contrast * mirrored
    one = torch.eye(3, device=p.device)
    across = one - 1 / 3
    turned = (one.roll(1, 1) - one.roll(-1, 1)) / -math.sqrt(3)  # the cross product with (1, 1, 1) / sqrt(3)
    cos, sin = ((contrast * saturation * part).view(-1, 1, 1) for part in (angle.cos(), angle.sin()))
    return luma, cos * across + sin * turned, luma * 0.2 * shift * chosen[:, 0], chosen.any(1)
