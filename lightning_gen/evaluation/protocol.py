"""What is measured, and the choices that move a figure."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_gen.extractors.base import FeatureExtractor

Figure = Literal["fid", "fid_infinity", "is", "kid", "prdc", "authpct", "likelihood"]


@dataclass(frozen=True)
class EvaluationProtocol:
    """What is measured, and all choices beside pictures, extractor and reference that may move a figure.

    Attributes:
        figures: Which. "fid": Fréchet distance (1706.08500). "is": score of the extractor's classes (1606.03498), with
            its deviation over the splits. "kid": kernel distance (1801.01401) with its standard error. "prdc": improved
            precision and recall (1904.06991), density and coverage (2002.09797). "authpct": percentage of samples that
            are no copies of a training picture (2102.08921, 2306.04675). "fid_infinity": Fréchet distance extrapolated
            to infinitely many samples (1911.07023). "likelihood": nats of test pictures, and bits per dim where they
            have levels; for models with `log_prob`, in evaluations outside of a run, whose validation has them anyway.
        num_samples: Pictures of the model.
        splits: Of "is".
        k: Neighbours of "prdc".
        block_size: Pictures in one block of "kid".
        max_features: Pictures on either side of "kid", "prdc" and "authpct" at most, evenly spaced over the reference
            and the first ones of the samples; they cost memory and, the latter two, the square of this in time.
        batch_size: Pictures drawn at once; the noise is that of each batch.
        seed: Of the noise.
        sampling: Settings of the model's own `sample`, beside labels and generator.

    Raises:
        ValueError: If a number is out of range, or so few samples are asked for that a figure cannot be computed.
    """

    figures: tuple[Figure, ...] = ("fid", "is", "kid", "prdc", "authpct")
    num_samples: int = 50_000
    splits: int = 10
    k: int = 5
    block_size: int = 1000
    max_features: int = 10_000
    batch_size: int = 64
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = get_args(Figure)
        unknown = [name for name in self.figures if name not in known]
        if unknown or not self.figures:
            raise ValueError(f"figures must be some of {', '.join(known)}; got {', '.join(unknown) or 'none'}.")
        for name, least in (("splits", 1), ("k", 1), ("block_size", 2), ("max_features", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")
        for figure, needed in self.least_samples().items():
            if self.num_samples < needed:
                raise ValueError(f"{figure} needs at least {needed} samples, got num_samples {self.num_samples}.")

    def least_samples(self) -> dict[Figure, int]:
        """How many pictures each of the figures needs on either side."""
        needed: dict[Figure, int] = {
            "fid": 2, "fid_infinity": 20, "is": self.splits, "kid": 2, "prdc": self.k + 1, "authpct": 2,
            "likelihood": 1,
        }  # fmt: skip
        return {figure: needed[figure] for figure in self.figures}

    @property
    def needs_samples(self) -> bool:
        """Whether a figure is of the model's samples."""
        return set(self.figures) != {"likelihood"}

    @property
    def needs_reference(self) -> bool:
        """Whether a figure compares with real pictures."""
        return not set(self.figures) <= {"is", "likelihood"}

    @property
    def needs_moments(self) -> bool:
        """Whether a figure needs mean and covariance of the real pictures' features."""
        return bool({"fid", "fid_infinity"} & set(self.figures))

    @property
    def num_batches(self) -> int:
        """Of the samples."""
        return math.ceil(self.num_samples / self.batch_size)

    def batches(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int]]:
        """(number, size) of the batches of one process."""
        for number in range(rank, self.num_batches, world_size):
            yield number, min(self.batch_size, self.num_samples - number * self.batch_size)

    @property
    def record(self) -> dict[str, Any]:
        """As plain data; without settings of sampling where there are none."""
        record = {**asdict(self), "figures": list(self.figures)}
        return record if self.sampling else {name: value for name, value in record.items() if name != "sampling"}


def figures_for(
    extractor: FeatureExtractor,
    reference: str | Path,
    chosen: Sequence[Figure] | None,
    num_samples: int,
    no_likelihood: str = "validation and test log it, where the model has a log_prob",
) -> tuple[Figure, ...]:
    """The figures that can be had.

    Args:
        extractor: "is" needs its classes.
        reference: "train", "val", "test", or anything else for pictures or statistics from elsewhere. "authpct" needs
            training pictures.
        chosen: Those wanted; None means all that can be had but "fid_infinity".
        num_samples: The fewest that there will be.
        no_likelihood: Why there is no likelihood; empty where there is one.

    Raises:
        ValueError: If a wanted one can't be had.
    """
    hindered: dict[str, str] = {"likelihood": no_likelihood} if no_likelihood else {}
    if extractor.num_classes is None:
        hindered["is"] = f"the extractor {extractor.name} has no classes"
    if reference != "train":
        hindered["authpct"] = f"it asks for copies of training pictures, and the reference is {reference}"
    if str(reference).endswith(".npz"):
        hindered |= dict.fromkeys(("kid", "prdc", "authpct"), f"{reference} holds a mean and a covariance alone")
    least = 2 * extractor.num_features + 20
    if num_samples < least:
        hindered["fid_infinity"] = f"{extractor.num_features} features need {least} samples, of {num_samples}"
    for figure in chosen or ():
        if figure in hindered:
            raise ValueError(f"{figure} can't be computed: {hindered[figure]}. Leave it out of figures.")
    possible: tuple[Figure, ...] = (*EvaluationProtocol.figures, "likelihood")
    return tuple(f for f in chosen or possible if f not in hindered)


def suffix_of(extractor: FeatureExtractor) -> str:
    """What follows the names of its figures: nothing for the published Inception, else "-" and its name."""
    return "" if extractor.standard else f"-{extractor.name}"


def versions() -> dict[str, str]:
    """Of what computes the figures."""
    names = ("lightning-gen", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in names}
