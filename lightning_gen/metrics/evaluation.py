"""All figures of a set of pictures from one pass through one extractor, on one process or several.

Pictures come in global batches: rank r of W takes the batches r, r + W, ..., so the figures do not depend on W. Each
rank reads its own pictures; what is sent is one all-reduce of the packed moments, and the features to rank 0 where a
figure needs them one by one. Rank 0 computes, and all ranks get the figures. Splits, blocks and subsets are dealt as
the metrics of `lightning_gen.metrics` deal them, whatever the order of the pictures.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_gen.data.base import examples_of, in_order
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.images import to_uint8
from lightning_gen.generative import Samples, check_range, images_and_labels
from lightning_gen.latents import generator_for
from lightning_gen.metrics.features import FeatureExtractor, Features
from lightning_gen.metrics.frechet import Moments, frechet_distance, frechet_infinity
from lightning_gen.metrics.manifold import authenticity, precision_recall
from lightning_gen.metrics.processes import from_rank_zero, gathered, rank, together, total, world_size
from lightning_gen.metrics.scores import in_canonical_order, inception_score, kernel_distance
from lightning_gen.metrics.statistics import ReferenceStatistics, cached, load_statistics

Figure = Literal["fid", "fid_infinity", "is", "kid", "prdc", "authpct"]
READ_AT_ONCE = 100  # real pictures
QUANTIZER = "round((x + 1) * 127.5), clipped to 0 .. 255"


@dataclass(frozen=True)
class Protocol:
    """What is measured, and all choices beside pictures, extractor and reference that may move a figure.

    Attributes:
        figures: Which. "fid": Fréchet distance (1706.08500). "is": score of the extractor's classes (1606.03498), with
            its deviation over the splits. "kid": kernel distance (1801.01401) with its standard error. "prdc": improved
            precision and recall (1904.06991), density and coverage (2002.09797). "authpct": percentage of samples that
            are no copies of a training picture (2102.08921, 2306.04675). "fid_infinity": Fréchet distance extrapolated
            to infinitely many samples (1911.07023).
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
        }  # fmt: skip
        return {figure: needed[figure] for figure in self.figures}

    def check_reference(self, reference: Reference) -> None:
        """Raise a `ValueError` if there are fewer real pictures than a figure needs."""
        for figure, needed in self.least_samples().items():
            if figure != "is" and 0 < reference.count < needed:
                split = reference.record.get("split", "the reference")
                raise ValueError(f"{figure} needs at least {needed} real pictures, but {split} has {reference.count}.")

    @property
    def needs_reference(self) -> bool:
        """Whether a figure compares with real pictures."""
        return set(self.figures) != {"is"}

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
    extractor: FeatureExtractor, reference: str | Path, chosen: Sequence[Figure] | None, num_samples: int
) -> tuple[Figure, ...]:
    """The figures that can be had.

    Args:
        extractor: "is" needs its classes.
        reference: "train", "val", "test", or anything else for pictures or statistics from elsewhere. "authpct" needs
            training pictures.
        chosen: Those wanted; None means all that can be had but "fid_infinity".
        num_samples: The fewest that there will be.

    Raises:
        ValueError: If a wanted one can't be had.
    """
    hindered: dict[str, str] = {}
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
    return tuple(f for f in chosen or Protocol.figures if f not in hindered)


def suffix_of(extractor: FeatureExtractor) -> str:
    """What follows the names of its figures: nothing for the published Inception, else "-" and its name."""
    return "" if extractor.standard else f"-{extractor.name}"


def versions() -> dict[str, str]:
    """Of what computes the figures."""
    names = ("lightning-gen", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in names}


def draw(model: Samples, number: int, size: int, protocol: Protocol) -> Tensor:
    """Batch `number` of the samples of a protocol's seed, whose classes take turns: float `[size, C, H, W]`."""
    labels = None
    if model.num_classes is not None:
        first = number * protocol.batch_size
        labels = torch.arange(first, first + size) % model.num_classes
    return model.sample(size, labels=labels, generator=generator_for(protocol.seed, number), **protocol.sampling)


Pictures: TypeAlias = Tensor | list[Tensor]
"""A batch `[N, C, H, W]`; or N pictures `[C, H, W]` of different sizes, for an extractor that `resizes`."""


def pictures_in(batch: Any) -> Pictures:
    """Those of a batch, in `[-1, 1]`."""
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), list):  # of `collate_sizes`
        pictures: list[Tensor] = batch["image"]
        return pictures
    return images_and_labels(batch, "An evaluation")[0]


def as_read(images: Pictures, extractor: FeatureExtractor) -> Pictures:
    """Float pictures in `[-1, 1]` as the extractor takes them: of 8 bits, or points as they are.

    Raises:
        ValueError: If one is not finite; the message says which.
    """
    if isinstance(images, list):
        return [as_read(image[None], extractor)[0] for image in images]
    broken = (~images.isfinite()).flatten(1).any(1)
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        raise ValueError(
            f"{int(broken.sum())} of {len(images)} pictures in a batch have values that are not finite; the first is "
            f"picture {first}. A model that draws such pictures has diverged."
        )
    return to_uint8(images) if extractor.quantized else images.float()


def features_of(images: Pictures, extractor: FeatureExtractor) -> Features:
    """What an extractor sees in pictures as it takes them, on any device; those of one size go through it together."""
    if isinstance(images, Tensor):
        return extractor(images.to(extractor.device))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(tuple(image.shape), []).append(place)
    groups = list(by_size.values())
    seen = [extractor(torch.stack([images[place] for place in group]).to(extractor.device)) for group in groups]
    order = torch.tensor([place for group in groups for place in group]).argsort().to(extractor.device)
    logits = [part.logits for part in seen if part.logits is not None]
    return Features(torch.cat([part.features for part in seen])[order], torch.cat(logits)[order] if logits else None)


@dataclass(frozen=True, eq=False)
class Reference:
    """What samples are compared with.

    Attributes:
        record: What the pictures are and how they were read.
        count: Of pictures; 0 where that is not known.
        mean: Of their features `[D]`, float64, on the CPU; None where no figure needs moments.
        statistics: On rank 0; None elsewhere.
    """

    record: dict[str, Any]
    count: int
    mean: Tensor | None
    statistics: ReferenceStatistics | None

    @classmethod
    def of(cls, statistics: ReferenceStatistics | None) -> Reference:
        """From what rank 0 has, on all ranks; all must call it."""
        known = None
        if statistics is not None:
            mean = statistics.gaussian.mean if statistics.gaussian else None
            known = statistics.record, statistics.count, mean
        known = from_rank_zero(known)
        assert known is not None
        return cls(*known, statistics)

    @classmethod
    def none(cls, extractor: FeatureExtractor) -> Reference:
        """For figures that compare with nothing."""
        features, indices = torch.empty(0, extractor.num_features), torch.empty(0, dtype=torch.int64)
        return cls({}, 0, None, ReferenceStatistics({"count": 0}, None, features, indices))


def reference_of_loader(
    extractor: FeatureExtractor, loader: Any, *, name: str, split: str, max_features: int, moments: bool = True
) -> Reference:
    """Statistics of the pictures behind a loader, from the cache or computed by all ranks together.

    Args:
        extractor: On the device where it shall work.
        loader: Over batches of pictures, of which the data set counts and not the order.
        name: Of the data.
        split: "train", "val", "test" or another word for these pictures.
        max_features: Pictures, evenly spaced, of which the features are kept.
        moments: Whether mean and covariance of the features are needed.
    """

    def pictures_of(batch: Any) -> Pictures:
        images = pictures_in(batch)
        if extractor.quantized and isinstance(images, Tensor):  # to 8 bits all outside would be black or white
            check_range(images, "An evaluation", "the data")
        return as_read(images, extractor)

    with together():
        num_images = len(examples_of(loader))  # type: ignore[arg-type]
        record = {
            "data": name,
            "split": split,
            "pictures": fingerprint(loader, pictures_of) if rank() == 0 else "",
            "count": num_images,
            "max_features": max_features,
            "quantizer": QUANTIZER if extractor.quantized else "none",
            "extractor": extractor.record,
        }

    def compute() -> ReferenceStatistics | None:
        batches = in_order(loader, READ_AT_ONCE, num_replicas=world_size(), rank=rank())
        read = ((number, pictures_of(batch)) for number, batch in batches)
        with isolate_rng():  # a dataset of the user's own may draw from the global random state
            return reference_statistics(extractor, read, READ_AT_ONCE, num_images, max_features, wanted, moments)

    wanted = record if moments else {**record, "moments": "none"}
    return Reference.of(cached(wanted, compute, more=record))


def reference_of_file(path: str | Path, extractor: FeatureExtractor) -> Reference:
    """Saved statistics: ours, or an .npz with `mu` and `sigma`; read by rank 0.

    Raises:
        StatisticsError: If they are damaged, or of another extractor.
    """
    statistics = None
    with together():
        if rank() == 0:
            statistics = load_statistics(path, extractor)
    return Reference.of(statistics)


class Evaluation:
    """Collects the features of samples, batch by batch, and gives the figures.

    Args:
        extractor: On the device where it shall work.
        protocol: What is measured.
        shift: Mean of the reference's features `[D]`, the same on all ranks, so that no digits cancel in the moments.
    """

    def __init__(self, extractor: FeatureExtractor, protocol: Protocol, shift: Tensor | None = None) -> None:
        self.extractor = extractor
        self.protocol = protocol
        self.moments = Moments(extractor.num_features, shift) if "fid" in protocol.figures else None
        self.one_by_one = bool(set(protocol.figures) - {"fid"})
        self.features: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.places: list[Tensor] = []

    def add(self, number: int, images: Pictures) -> None:
        """Read a batch.

        Args:
            number: Of the batch, over all ranks.
            images: As the extractor takes them, on any device.
        """
        features, logits = features_of(images, self.extractor)
        if self.moments is not None:
            self.moments.update(features)
        if self.one_by_one:
            first = number * self.protocol.batch_size
            self.places.append(torch.arange(first, first + len(images)))
            self.features.append(features.cpu())
            if logits is not None:
                self.logits.append(logits.cpu())

    def figures(self, reference: ReferenceStatistics | None) -> dict[str, float]:
        """The figures by name, on all ranks; all ranks must call it, and rank 0 with the reference."""
        protocol = self.protocol
        moments = None
        if self.moments is not None:
            moments = Moments.unpack(total(self.moments.pack()), self.moments.shift)
        features = logits = None
        if self.one_by_one:
            features = gathered(self.features, self.places, self.extractor.num_features)
            if "is" in protocol.figures:
                logits = gathered(self.logits, self.places, self.extractor.num_classes or 0)
        figures: dict[str, float] = {}
        with together():
            if rank() == 0:
                assert reference is not None
                figures = _figures(protocol, moments, features, logits, reference)
        return from_rank_zero(figures)


def _figures(
    protocol: Protocol,
    moments: Moments | None,
    features: Tensor | None,
    logits: Tensor | None,
    real: ReferenceStatistics,
) -> dict[str, float]:
    figures: dict[str, float] = {}
    wanted = protocol.figures
    if moments is not None:
        figures["fid"] = frechet_distance(real.moments(), moments.gaussian())
    if features is None:
        return figures
    if "fid_infinity" in wanted:
        figures["fid_infinity"], figures["fid_infinity_stderr"] = frechet_infinity(
            real.moments(), in_canonical_order(features)
        )[:2]
    if "is" in wanted and logits is not None:
        figures["is"], figures["is_std"] = inception_score(in_canonical_order(logits), protocol.splits)
    few = features[: protocol.max_features]
    if "kid" in wanted:
        figures["kid"], error = kernel_distance(
            in_canonical_order(real.features), in_canonical_order(few), block_size=protocol.block_size
        )[:2]
        if math.isfinite(error):  # there is none of a single block
            figures["kid_stderr"] = error
    if "prdc" in wanted:
        figures |= precision_recall(real.features, few, protocol.k, real_radii=real.radii(protocol.k))._asdict()
    if "authpct" in wanted:
        figures["authpct"] = authenticity(real.features, few)
    return figures


def reference_statistics(
    extractor: FeatureExtractor,
    batches: Iterable[tuple[int, Pictures]],
    batch_size: int,
    num_images: int,
    max_features: int,
    record: Mapping[str, Any],
    with_moments: bool = True,
) -> ReferenceStatistics | None:
    """Statistics of real pictures: collective, whole on rank 0 and None elsewhere.

    Args:
        extractor: On the device where it shall work.
        batches: Of this rank: (number over all ranks, pictures as the extractor takes them).
        batch_size: Of all batches but the last.
        num_images: Pictures over all ranks.
        max_features: Pictures, evenly spaced, of which the features are kept.
        record: What the pictures are and how they were read.
        with_moments: Whether to compute mean and covariance.
    """
    kept = torch.arange(min(num_images, max_features)) * num_images // min(num_images, max_features)
    read = ((number, features_of(images, extractor).features) for number, images in batches)
    with together():
        first = next(read, None)
    # Rank 0 has the first batch of all.
    shift = from_rank_zero(None if first is None else first[1].double().mean(0).cpu())
    if shift is None:
        raise ValueError("There are no real pictures to compare with.")
    moments = Moments(extractor.num_features, shift) if with_moments else None
    rows: list[Tensor] = []
    places: list[Tensor] = []
    with together():
        for number, features in itertools.chain([first] if first else [], read):
            if moments is not None:
                moments.update(features)
            start = number * batch_size
            here = kept[(kept >= start) & (kept < start + len(features))]
            places.append(here)
            rows.append(features[(here - start).to(features.device)].cpu())
    packed = None if moments is None else total(moments.pack())
    kept_features = gathered(rows, places, extractor.num_features)
    if rank() != 0:
        return None
    gaussian = None if packed is None else Moments.unpack(packed, shift).gaussian()
    return ReferenceStatistics(dict(record), gaussian, kept_features, kept)
