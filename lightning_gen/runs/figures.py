"""What the name of a metric says: which figure it is, in which unit, whether more of it is better, and of what."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Kind(NamedTuple):
    """A figure that papers report."""

    label: str
    more_is_better: bool | None
    unit: str = ""  # "%" for a share, which is recorded in [0, 1]


# Those that say most come first. A distance of points says little beside the modes that they cover.
KINDS: dict[str, Kind] = {
    "modes": Kind("modes covered", True),
    "high_quality": Kind("samples of high quality", True, "%"),
    "attributes": Kind("attributes as asked for", True, "%"),
    "attributes_held_out": Kind("attributes in combinations never seen", True, "%"),
    "attributes_pictures": Kind("pictures all as asked for", True, "%"),
    "attributes_held_out_pictures": Kind("pictures in combinations never seen", True, "%"),
    "accuracy": Kind("accuracy", True, "%"),
    "bpd": Kind("bits per dim", False),
    "nll": Kind("negative log-likelihood", False, "nats"),
    "iwae": Kind("IWAE bound", False, "nats"),
    "elbo": Kind("ELBO bound", False, "nats"),
    "fid": Kind("FID", False),
    "fid_infinity": Kind("FID, infinitely many samples", False),
    "rfid": Kind("FID of reconstructions", False),
    "psnr": Kind("PSNR", True, "dB"),
    "ssim": Kind("SSIM", True),
    "is": Kind("Inception Score", True),
    "kid": Kind("KID", False),
    "precision": Kind("precision", True),
    "recall": Kind("recall", True),
    "density": Kind("density", True),
    "coverage": Kind("coverage", True),
    "authpct": Kind("AuthPct", True),
    "ppl_z": Kind("perceptual path length in z", False),
    "ppl_w": Kind("perceptual path length in w", False),
    "mode_kl": Kind("KL of modes", False, "nats"),
    "wasserstein_1": Kind("Wasserstein-1", False),
    "perplexity": Kind("codes used (perplexity)", True),
    "used": Kind("codes used", True, "%"),
    "dead_codes": Kind("dead codes", False),
}
BASELINES = {
    "color_mapping": "colour mapping",
    "chance": "by chance",
    "marginal": "the most frequent",
    "shuffled": "of other captions",
}
_RANK = {base: rank for rank, base in enumerate(KINDS)}
_BASELINE_BEHIND = re.compile(r"(attributes(?:_held_out)?(?:_pictures)?)_(chance|marginal|shuffled)")


@dataclass(frozen=True)
class Figure:
    """A metric by its name: "test/psnr_AtoB" or "val/fid-scenes128".

    Attributes:
        name: As it is logged.
        split: "train", "val" or "test"; empty where the name has none.
        base: What is measured: "psnr".
        extractor: What follows the figure: "scenes128", or the levels of a likelihood.
        direction: "AtoB", "A" or "0"; empty for most.
        baseline: Whose figure it is, where that is not the model: "color_mapping".
        is_deviation: Whether it is the deviation, or the standard error, of the figure of that name.
    """

    name: str
    split: str
    base: str
    extractor: str = ""
    direction: str = ""
    baseline: str = ""
    is_deviation: bool = False

    @classmethod
    def of(cls, name: str) -> Figure:
        """What a name says."""
        split, slash, rest = name.partition("/")
        if not slash or split not in ("train", "val", "test"):
            split, rest = "", name
        baseline = ""
        if rest.startswith("color_mapping_"):
            baseline, rest = "color_mapping", rest.removeprefix("color_mapping_")
        direction = ""
        if rest not in KINDS and (match := re.fullmatch(r"(.+?)_(AtoB|BtoA|A|B|\d+)", rest)):
            rest, direction = match.groups()
        base, _, extractor = rest.partition("-")
        if match := _BASELINE_BEHIND.fullmatch(base):
            base, baseline = match.groups()
        deviation = re.fullmatch(r"(.+)_(std|stderr)", base)
        return cls(name, split, deviation[1] if deviation else base, extractor, direction, baseline, bool(deviation))

    @cached_property
    def kind(self) -> Kind:
        """Which figure it is."""
        return KINDS.get(self.base, Kind(self.base.replace("_", " "), None))

    @property
    def rank(self) -> int:
        """Its place among all figures; those that are unknown come last."""
        return _RANK.get(self.base, len(_RANK))

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for all splits, for a figure and its deviation, and for the model and a baseline."""
        return self.base, self.extractor, self.direction

    def label(self, domains: Sequence[str] = ()) -> str:
        """In words: "PSNR, day to night"."""
        parts = [f"{self.kind.label} ({self.extractor})" if self.extractor else self.kind.label]
        if self.direction:
            parts.append(way(self.direction, domains))
        return ", ".join(parts)

    def value(self, number: float, deviation: float | None = None) -> str:
        """A number in the figure's unit, and how far it may be off where that is known: "26.5 ± 0.2 dB"."""
        if not math.isfinite(number):
            return str(number)
        scale, digits = (100, 3) if self.kind.unit == "%" else (1, 4)
        text = f"{number:,.0f}".replace(",", "\u2009") if abs(number) >= 1000 else f"{scale * number:.{digits}g}"
        apart = "" if deviation is None else f" ± {scale * deviation:.2g}"
        return f"{text}{apart} {self.kind.unit}".rstrip()

    @property
    def arrow(self) -> str:
        """The direction of better: up, down, or empty where that is not known."""
        better = self.kind.more_is_better
        return "" if better is None else "\u2191" if better else "\u2193"


def way(direction: str, domains: Sequence[str] = ()) -> str:
    """A direction or a domain in the data's own words: "AtoB" is "day to night", and "A" is "day"."""
    names = dict(zip("AB", domains, strict=False))
    return " to ".join(names.get(side, side) for side in direction.split("to"))


def best_of(figure: Figure, values: Mapping[int, float]) -> tuple[int, float] | None:
    """The step at which a figure was best, the first of them, and the value; None where nobody knows what is better."""
    finite = {step: value for step, value in values.items() if math.isfinite(value)}
    if figure.kind.more_is_better is None or not finite:
        return None
    sign = 1 if figure.kind.more_is_better else -1
    step = max(finite, key=lambda step: (sign * finite[step], -step))
    return step, finite[step]
