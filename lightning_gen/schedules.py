"""Numbers that change in training: pure functions of the images seen or of the steps taken, and of nothing else.

Each is a frozen dataclass of numbers, so that a configuration and a checkpoint can name it, and a run that goes on
needs no state of it. A model takes `float | Schedule` and asks `GenerativeModule.scheduled`:

    kl_weight: {class_path: Cosine, init_args: {start: 0.0, end: 6.6, until: 5000}}
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Literal, NamedTuple

Clock = Literal["images", "steps"]


class Schedule(ABC):
    """A number as a function of a place in training.

    Attributes:
        by: What places are counted in: "steps" (`trainer.global_step`, generator updates in adversarial models) or
            "images" (`images_seen`, over all ranks), which means the same at every batch size.
    """

    by: Clock = "steps"

    @abstractmethod
    def __call__(self, place: float) -> float:
        """The number at a place, 0 or more."""

    def at(self, *, images: int, step: int) -> float:
        """The number where so many images have been seen in so many steps."""
        return self(images if self.by == "images" else step)


def ends(value: float | Schedule) -> tuple[float, float]:
    """What a schedule begins and ends with, between which its numbers are taken to lie; a number itself, twice.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, Schedule | Real):  # NumPy's, too, as sweeps give them
        raise TypeError(f"A number or a schedule was expected, got {value!r}.")
    return (value(0), value(2**62)) if isinstance(value, Schedule) else (value, value)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same number throughout."""

    value: float
    by: Clock = "steps"

    def __call__(self, place: float) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """`start` up to the place `begin`, `end` from `until` on, and a straight line between them; a jump if they are one.

    Raises:
        ValueError: If the end comes before the beginning.
    """

    start: float
    end: float
    until: float
    begin: float = 0
    by: Clock = "steps"

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.until < math.inf:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= begin <= until, a finite place; got begin={self.begin} and "
                f"until={self.until}."
            )

    def __call__(self, place: float) -> float:
        """The number at a place."""
        if place >= self.until or place <= self.begin:
            return self.end if place >= self.until else self.start
        left = self.left((self.until - place) / (self.until - self.begin))
        return self.start * left + self.end * (1 - left)

    def left(self, share: float) -> float:
        """The share of `start` in the number, where this share of the way is still to go."""
        return share


class Cosine(Linear):
    """As `Linear`, but along half a cosine, which sets out and arrives gently (1608.03983, without restarts)."""

    def left(self, share: float) -> float:
        """The share of `start` in the number, where this share of the way is still to go."""
        return (1 - math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Exponential(Schedule):
    """Halved on every `half_life`, but no lower than `lowest`, as temperatures are (1611.01144).

    Raises:
        ValueError: If the half-life is not above 0.
    """

    start: float
    half_life: float
    lowest: float = 0.0
    by: Clock = "steps"

    def __post_init__(self) -> None:
        if not self.half_life > 0:
            raise ValueError(f"Exponential needs a half_life above 0, got {self.half_life}.")

    def __call__(self, place: float) -> float:
        """The number at a place."""
        return max(self.lowest, self.start * 0.5 ** (place / self.half_life))


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines between points (place, number), such as a warm-up and a decay; constant before and after them.

    Of two points at the same place the second holds from there on: a jump.

    Raises:
        ValueError: If there is no point, or places are below 0 or do not ascend.
    """

    points: tuple[tuple[float, float], ...]
    by: Clock = "steps"

    def __post_init__(self) -> None:
        places = [place for place, _ in self.points]
        if not places or places != sorted(places) or not 0 <= places[0] <= places[-1] < math.inf:
            raise ValueError(
                f"Piecewise needs points (place, number) in ascending order from 0 on, got {list(self.points)}."
            )

    def __call__(self, place: float) -> float:
        """The number at a place."""
        for (begin, start), (until, end) in pairwise(self.points):
            if begin <= place < until:
                return Linear(start, end, until, begin)(place)
        return self.points[0 if place < self.points[0][0] else -1][1]


class Stage(NamedTuple):
    """What holds at a moment of a run that grows.

    Attributes:
        resolution: Height of the pictures; their width is in proportion.
        fade: Share in [0, 1] that the layers of this resolution have in the picture; 1 once they are there in full.
        batch_size: Examples per process and training step.
        learning_rate: Of all optimizers.
        enlargement: How many times as high the last pictures will be.
    """

    resolution: int
    fade: float
    batch_size: int
    learning_rate: float
    enlargement: int = 1

    @property
    def penalty_scale(self) -> float:
        """1 / enlargement^2, by which the squared norm of a gradient shrinks if it is taken by pixels of the last size.

        The papers' code enlarges all pictures by repetition before a discriminator sees them. A penalty of weight w on
        the squared norm is then w * penalty_scale of that by the pixels of the stage; for one on its distance from 1
        (1704.00028) it is the distance from `enlargement`, likewise.
        """
        return 1 / self.enlargement**2


class Phase(NamedTuple):
    """A part of a schedule that grows, in which a resolution is faded in, or trained in full.

    Attributes:
        start: Images seen at its first batch, over all processes.
        batches: How many it has; None for the last one, which ends with the run.
        middle: Images seen at the batch in its middle; of the last one, at its first.
        stage: What holds in the middle.
    """

    start: int
    batches: int | None
    middle: int
    stage: Stage


@dataclass(frozen=True)
class Growing:
    """Progressive growing (Karras et al. 2017, arXiv:1710.10196): images seen to `Stage`.

    The first resolution is trained with `stable_images`; each further one is faded in over `fade_images`, then trained
    with `stable_images`, and the last to the end of the run. A resolution may stand twice in a row, so that the batch
    size changes alone, and nothing fades in.

    Args:
        resolutions: Heights of the pictures, from the first to the last; each is a multiple of the one before.
        batch_sizes: For each resolution, examples per process and training step; or one for all.
        learning_rates: For each resolution; or one for all. A resolution has its own from its first image on.
        stable_images: With which a resolution is trained, over all processes (the paper: 800,000; its code: 600,000).
        fade_images: In which a resolution is faded in, likewise.

    Raises:
        ValueError: If a number is out of range, resolutions do not grow in whole steps, or there is neither one number
            for all resolutions nor one for each.
    """

    resolutions: tuple[int, ...]
    batch_sizes: tuple[int, ...] = (16,)
    learning_rates: tuple[float, ...] = (0.001,)
    stable_images: int = 600_000
    fade_images: int = 600_000

    def __post_init__(self) -> None:
        if not self.resolutions or min(self.resolutions) < 1:
            raise ValueError(f"resolutions must be one height or more, each at least 1, got {self.resolutions}.")
        for low, high in pairwise(self.resolutions):
            if high % low:
                raise ValueError(f"Each of resolutions must be a multiple of the one before; {high} is none of {low}.")
        for name, least in (("batch_sizes", 1), ("learning_rates", 0)):
            values = getattr(self, name)
            if len(values) not in (1, len(self.resolutions)) or min(values) < least:
                raise ValueError(
                    f"{name} must be one number, or one for each of {len(self.resolutions)} resolutions, each at least "
                    f"{least}; got {values}."
                )
        if self.stable_images < 1 or self.fade_images < 0:
            raise ValueError(
                "stable_images must be at least 1 and fade_images at least 0, got "
                f"{self.stable_images} and {self.fade_images}."
            )

    def __call__(self, images_seen: int) -> Stage:
        """The stage in which the next image is seen."""
        number, fade = len(self.resolutions) - 1, 1.0
        phase, within = divmod(images_seen, self.stable_images + self.fade_images)
        if phase < number:
            number = phase
            if within > self.stable_images:  # the next one is being faded in
                number, fade = phase + 1, (within - self.stable_images) / self.fade_images
        resolution = self.resolutions[number]
        if resolution == self.resolutions[max(0, number - 1)]:  # whose layers have been there before
            fade = 1.0
        return Stage(
            resolution,
            fade,
            self.batch_sizes[number % len(self.batch_sizes)],
            self.learning_rates[number % len(self.learning_rates)],
            self.resolutions[-1] // resolution,
        )

    def phases(self, processes: int = 1) -> list[Phase]:
        """The parts of the schedule, in order, for so many processes; those in which no batch begins are left out."""
        found: list[Phase] = []
        seen, last = 0, len(self.resolutions) - 1
        for number, resolution in enumerate(self.resolutions):
            whole = number * (self.stable_images + self.fade_images)
            fades = number > 0 and resolution != self.resolutions[number - 1]
            # A fade begins behind the images before it, and not at the last of them.
            end = whole + self.stable_images + (self.fade_images > 0)
            for until in (whole, None if number == last else end) if fades else (None if number == last else end,):
                step = processes * self.batch_sizes[number % len(self.batch_sizes)]
                batches = None if until is None else max(0, -((seen - until) // step))
                if batches != 0:
                    middle = seen + (batches or 0) // 2 * step
                    found.append(Phase(seen, batches, middle, self(middle)))
                    seen += (batches or 0) * step
        return found

    def images_after(self, batches: int, processes: int = 1) -> int:
        """Images seen after so many batches of each of so many processes."""
        for phase in self.phases(processes):
            if phase.batches is None or batches <= phase.batches:
                break
            batches -= phase.batches
        return phase.start + batches * processes * phase.stage.batch_size
