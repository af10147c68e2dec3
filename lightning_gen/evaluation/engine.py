"""All figures of a set of pictures from one pass through one extractor, on one process or several.

Pictures come in global batches: rank r of W takes the batches r, r + W, ..., so the figures do not depend on W. Each
rank reads its own pictures; what is sent is one all-reduce of the packed moments, and the features to rank 0 where a
figure needs them one by one. Rank 0 computes, by the metrics of `lightning_gen.metrics`, and all ranks get the figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.capabilities import Samples
from lightning_gen.evaluation.pictures import Pictures, as_read, features_of
from lightning_gen.evaluation.protocol import WITHOUT_EXTRACTOR, EvaluationProtocol
from lightning_gen.evaluation.statistics import ReferenceStatistics
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.metrics.base import in_canonical_order
from lightning_gen.metrics.feature_metrics import InceptionScore, KernelInceptionDistance, PrecisionRecall
from lightning_gen.metrics.frechet import Moments, frechet_distance, frechet_infinity
from lightning_gen.metrics.manifold import authenticity
from lightning_gen.metrics.similarity import psnr, ssim
from lightning_gen.processes import failing_together, from_rank_zero, gathered, rank, total
from lightning_gen.randomness import generator_for


def draw(model: Samples, number: int, size: int, protocol: EvaluationProtocol) -> Tensor:
    """Batch `number` of the samples of a protocol's seed, whose classes take turns: float `[size, C, H, W]`."""
    labels = None
    if model.num_classes is not None:
        first = number * protocol.batch_size
        labels = torch.arange(first, first + size) % model.num_classes
    return model.sample(size, labels=labels, generator=generator_for(protocol.seed, number), **protocol.sampling)


class Batch(NamedTuple):
    """Pictures of a model or of a folder."""

    number: int
    """Over all ranks."""
    images: Pictures
    """Uint8, or floats in `[-1, 1]`."""
    originals: Tensor | None = None
    """What they are reconstructions of, on the same device."""


class Evaluation:
    """Collects what an extractor, where it lies, sees in pictures batch by batch, and gives the protocol's figures.

    They are figures of one source, of samples or of reconstructions.
    """

    def __init__(self, extractor: FeatureExtractor, protocol: EvaluationProtocol) -> None:
        self.extractor = extractor
        self.protocol = protocol
        self.moments = Moments(extractor.num_features) if {"fid", "rfid"} & set(protocol.figures) else None
        self.one_by_one = bool(set(protocol.figures) - {"fid", "rfid", *WITHOUT_EXTRACTOR})
        self.pairwise = [function for function in (psnr, ssim) if function.__name__ in protocol.figures]
        self.similarities: list[Tensor] = []
        self.features: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.places: list[Tensor] = []

    def read(self, batches: Iterable[Batch], tell: Callable[[float], None]) -> None:
        """Read batches; after the second, tell how many seconds it took."""
        start = time.perf_counter()
        for done, batch in enumerate(batches):
            self.add(batch)
            if done == 0:
                start = time.perf_counter()  # what comes first takes longer
            elif done == 1:
                tell(time.perf_counter() - start)

    def add(self, batch: Batch) -> None:
        """Read a batch, whose pictures may lie on any device."""
        images, first = as_read(batch.images, self.extractor), batch.number * self.protocol.batch_size
        self.places.append(torch.arange(first, first + len(images)))
        if self.pairwise:
            assert isinstance(batch.images, Tensor)
            assert batch.originals is not None
            columns = [function(batch.images, batch.originals) for function in self.pairwise]
            self.similarities.append(torch.stack(columns, dim=1).cpu())
        if self.moments is None and not self.one_by_one:
            return
        features, logits = features_of(images, self.extractor)
        if self.moments is not None:
            self.moments.update(features)
        if self.one_by_one:
            self.features.append(features.cpu())
            if logits is not None:
                self.logits.append(logits.cpu())

    def figures(self, reference: ReferenceStatistics | None) -> dict[str, float]:
        """The figures by name, on all ranks; all ranks must call it, and rank 0 with the reference."""
        protocol = self.protocol
        moments = None if self.moments is None else Moments.unpack(total(self.moments.pack()))
        features = logits = similarities = None
        if self.pairwise:
            similarities = gathered(self.similarities, self.places, len(self.pairwise))
        if self.one_by_one:
            features = gathered(self.features, self.places, self.extractor.num_features)
            if "is" in protocol.figures:
                logits = gathered(self.logits, self.places, self.extractor.num_classes or 0)
        figures: dict[str, float] = {}
        with failing_together():
            if rank() == 0:
                assert reference is not None
                figures = self._figures(moments, features, logits, reference)
                if similarities is not None:
                    means = similarities.double().mean(0).tolist()
                    figures |= dict(zip((function.__name__ for function in self.pairwise), means, strict=True))
        return from_rank_zero(figures)

    def _figures(
        self, moments: Moments | None, features: Tensor | None, logits: Tensor | None, real: ReferenceStatistics
    ) -> dict[str, float]:
        figures: dict[str, float] = {}
        protocol, wanted = self.protocol, self.protocol.figures
        if moments is not None:
            figures["rfid" if "rfid" in wanted else "fid"] = frechet_distance(real.moments(), moments.gaussian())
        if features is None:
            return figures
        if "fid_infinity" in wanted:
            figures["fid_infinity"], figures["fid_infinity_stderr"] = frechet_infinity(
                real.moments(), in_canonical_order(features)
            )[:2]
        if logits is not None:
            figures["is"], figures["is_std"] = InceptionScore(self.extractor, protocol.splits).score_of(logits)
        few = features[: protocol.max_features]
        if "kid" in wanted:
            distance = KernelInceptionDistance(self.extractor, subset_size=protocol.block_size).distance_of(
                real.features, few
            )
            figures["kid"] = distance.value
            if math.isfinite(distance.standard_error):  # there is none of a single block
                figures["kid_stderr"] = distance.standard_error
        if "prdc" in wanted:
            prdc = PrecisionRecall(self.extractor, protocol.k).figures_of(real.features, few, real.radii(protocol.k))
            figures |= prdc._asdict()
        if "authpct" in wanted:
            figures["authpct"] = authenticity(real.features, few)
        return figures
