"""What is measured, and the choices that move a figure."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from lightning_gen.capabilities import HasLatents, Reconstructs, Samples
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.extractors.module import ModuleFeatures
from lightning_gen.metrics.similarity import SSIM_SIDE

Figure = Literal["fid", "fid_infinity", "is", "kid", "prdc", "authpct", "rfid", "psnr", "ssim", "likelihood", "ppl"]
Source = Literal["samples", "reconstructions", "pictures", "latents"]
OF_SAMPLES: tuple[Figure, ...] = ("fid", "is", "kid", "prdc", "authpct")  # and fid_infinity, where it is asked for
OF_RECONSTRUCTIONS: tuple[Figure, ...] = ("rfid", "psnr", "ssim")
ALONE: tuple[Figure, ...] = ("is", "likelihood", "ppl", *OF_RECONSTRUCTIONS)  # which compare samples with nothing
WITHOUT_EXTRACTOR = ("psnr", "ssim", "likelihood")


def source_of(figure: Figure) -> Source:
    """What a figure is of: pictures that a model draws, what it leaves of pictures of the data, these, or latents."""
    if figure in OF_RECONSTRUCTIONS:
        return "reconstructions"
    others: dict[Figure, Source] = {"likelihood": "pictures", "ppl": "latents"}
    return others.get(figure, "samples")


@dataclass(frozen=True)
class EvaluationProtocol:
    """What is measured, and all choices beside pictures, extractor and reference that may move a figure.

    Attributes:
        figures: Which. "fid": Fréchet distance (1706.08500). "is": score of the extractor's classes (1606.03498), with
            its deviation over the splits. "kid": kernel distance (1801.01401) with its standard error. "prdc": improved
            precision and recall (1904.06991), density and coverage (2002.09797). "authpct": percentage of samples that
            are no copies of a training picture (2102.08921, 2306.04675). "fid_infinity": Fréchet distance extrapolated
            to infinitely many samples (1911.07023).
            Of models that reconstruct, "rfid": Fréchet distance between reconstructions and the very pictures of the
            data that they are of, which are not those of training; "psnr" and "ssim" (`lightning_gen.metrics`): mean
            over these pairs, as stored with 8 bits. "likelihood": nats of test pictures, and bits per dim where they
            have levels; for models with `log_prob`, in evaluations outside of a run, whose validation has them anyway.
            "ppl": perceptual path length (1812.04948) in z and, where a model has styles, in w; likewise.
        num_samples: Pictures of the model; of reconstructions as many, evenly spaced over the data's, or all there are;
            of "ppl" pairs of them.
        splits: Of "is".
        k: Neighbours of "prdc".
        block_size: Pictures in one block of "kid".
        max_features: Pictures on either side of "kid", "prdc" and "authpct" at most, evenly spaced over the reference
            and the first ones of the samples; they cost memory and, the latter two, the square of this in time.
        batch_size: Pictures drawn at once; the noise is that of each batch.
        seed: Of the noise, that of a `reconstruct` that takes some too.
        sampling: Settings of the model's own `sample`, beside labels and generator.

    Raises:
        ValueError: If a number is out of range, or so few samples are asked for that a figure cannot be computed.
    """

    figures: tuple[Figure, ...] = OF_SAMPLES
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
            "rfid": 2, "psnr": 1, "ssim": 1, "likelihood": 1, "ppl": 2,
        }  # fmt: skip
        return {figure: needed[figure] for figure in self.figures}

    def of(self, source: Source, most: int | None = None) -> EvaluationProtocol | None:
        """The protocol of the figures of one source alone, of so many pictures at most; None where there are none."""
        figures = tuple(figure for figure in self.figures if source_of(figure) == source)
        number = self.num_samples if most is None else min(self.num_samples, most)
        return replace(self, figures=figures, num_samples=number) if figures else None

    @property
    def needs_extractor(self) -> bool:
        """Whether a figure is one of features."""
        return not set(self.figures) <= set(WITHOUT_EXTRACTOR)

    @property
    def needs_reference(self) -> bool:
        """Whether a figure of samples compares with real pictures."""
        return not set(self.figures) <= set(ALONE)

    @property
    def needs_moments(self) -> bool:
        """Whether a figure needs mean and covariance of the real pictures' features."""
        return bool({"fid", "fid_infinity", "rfid"} & set(self.figures))

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
    hindered: Mapping[Figure, str],
) -> tuple[Figure, ...]:
    """The figures that can be had.

    Args:
        extractor: "is" needs its classes.
        reference: "train", "val", "test", or anything else for pictures or statistics from elsewhere. "authpct" needs
            training pictures.
        chosen: Those wanted; None means all that can be had but "fid_infinity" and "ppl".
        num_samples: The fewest that there will be.
        hindered: Why some can't be had for other reasons.

    Raises:
        ValueError: If a wanted one can't be had.
    """
    hindered = dict(hindered)
    if extractor.num_classes is None:
        hindered["is"] = f"the extractor {extractor.name} has no classes"
    if reference != "train":
        hindered["authpct"] = f"it asks for copies of training pictures, and the reference is {reference}"
    if str(reference).endswith(".npz"):
        hindered |= dict.fromkeys(("kid", "prdc", "authpct"), f"{reference} holds a mean and a covariance alone")
    least = 2 * extractor.num_features + 20
    if num_samples < least:
        hindered["fid_infinity"] = f"{extractor.num_features} features need {least} samples, of {num_samples}"
    check_wanted(chosen, hindered)
    possible: tuple[Figure, ...] = (*OF_SAMPLES, *OF_RECONSTRUCTIONS, "likelihood")
    return tuple(f for f in chosen or possible if f not in hindered)


def check_wanted(chosen: Sequence[Figure] | None, hindered: Mapping[Figure, str]) -> None:
    """See whether the figures that are wanted can be had; what hinders some stands beside them.

    Raises:
        ValueError: If one can't.
    """
    for figure in chosen or ():
        if figure in hindered:
            raise ValueError(f"{figure} can't be computed: {hindered[figure]}. Leave it out of figures.")


def hindrances(model: Any) -> dict[Figure, str]:
    """Why figures can't be had of a model that can't do what they are of; None is for pictures of a folder."""
    found: dict[Figure, str] = {}
    name = "a folder of pictures" if model is None else f"this {type(model).__name__}"
    if model is not None and not isinstance(model, Samples):
        found |= dict.fromkeys((*OF_SAMPLES, "fid_infinity"), f"{name} draws no pictures; it has no sample")
    if not isinstance(model, HasLatents):
        found["ppl"] = f"{name} has no latents"
    if not isinstance(model, Reconstructs):
        found |= dict.fromkeys(OF_RECONSTRUCTIONS, f"{name} has no reconstruct")
    elif min(shape := getattr(model, "image_shape", (SSIM_SIDE,))[1:], default=SSIM_SIDE) < SSIM_SIDE:
        sides = " x ".join(map(str, shape))
        found["ssim"] = f"its window takes pictures of at least {SSIM_SIDE} x {SSIM_SIDE}, and these are {sides}"
    return found


def default_extractor(figures: Sequence[Figure] | None) -> FeatureExtractor:
    """The published Inception, or a stand-in where none of the figures is one of features."""
    read = figures is None or not set(figures) <= set(WITHOUT_EXTRACTOR)
    return InceptionFeatures() if read else ModuleFeatures(nn.Flatten())


def name_of(figure: str, extractor: FeatureExtractor) -> str:
    """The figure's name and "-" and the extractor's, unless that is the published Inception or has no part in it."""
    return figure if extractor.standard or figure in WITHOUT_EXTRACTOR else f"{figure}-{extractor.name}"


def versions() -> dict[str, str]:
    """Of what computes the figures."""
    names = ("lightning-gen", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in names}
