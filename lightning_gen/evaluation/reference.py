"""The real pictures that samples are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_gen.data.base import examples_of, in_order
from lightning_gen.data.batches import check_range
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.evaluation.pictures import Pictures, as_read, features_of, pictures_in
from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.evaluation.statistics import ReferenceStatistics, cached, load_statistics
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.metrics.base import evenly_spaced
from lightning_gen.metrics.frechet import Moments
from lightning_gen.processes import failing_together, from_rank_zero, gathered, rank, total, world_size

READ_AT_ONCE = 100  # real pictures
QUANTIZER = "round((x + 1) * 127.5), clipped to 0 .. 255"


@dataclass(frozen=True, eq=False)
class Reference:
    """What samples are compared with.

    Attributes:
        record: What the pictures are and how they were read.
        count: Of pictures; 0 where that is not known.
        statistics: On rank 0; None elsewhere.
    """

    record: dict[str, Any]
    count: int
    statistics: ReferenceStatistics | None

    @classmethod
    def of(cls, statistics: ReferenceStatistics | None) -> Reference:
        """From what rank 0 has, on all ranks; all must call it."""
        known = from_rank_zero(None if statistics is None else (statistics.record, statistics.count))
        assert known is not None
        return cls(*known, statistics)

    @classmethod
    def none(cls, extractor: FeatureExtractor) -> Reference:
        """For figures that compare with nothing."""
        features, indices = torch.empty(0, extractor.num_features), torch.empty(0, dtype=torch.int64)
        return cls({}, 0, ReferenceStatistics({"count": 0}, None, features, indices))

    def check(self, protocol: EvaluationProtocol) -> None:
        """Raise a `ValueError` if there are fewer real pictures than a figure needs."""
        for figure, needed in protocol.least_samples().items():
            if figure not in ("is", "psnr", "ssim", "likelihood") and 0 < self.count < needed:
                split = self.record.get("split", "the reference")
                raise ValueError(f"{figure} needs at least {needed} real pictures, but {split} has {self.count}.")


def reference_of_loader(
    extractor: FeatureExtractor, loader: Any, *, name: str, split: str, max_features: int, moments: bool = True
) -> Reference:
    """Statistics of the pictures behind a loader, from the cache or computed by all ranks together.

    The data set of the loader counts, not its order; `name` and `split`, "train" or another word, are part of the
    record. The features of `max_features` pictures, evenly spaced, are kept; mean and covariance of all where `moments`
    are needed. Where neither is, it is the record alone.
    """

    def pictures_of(batch: Any) -> Pictures:
        images = pictures_in(batch)
        if extractor.quantized and isinstance(images, Tensor) and images.is_floating_point():
            # To 8 bits, all outside would be black or white.
            check_range(images, "An evaluation", "the data")
        return as_read(images, extractor)

    with failing_together():
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

    if not (moments or max_features):
        nothing = torch.empty(0, extractor.num_features), torch.empty(0, dtype=torch.int64)
        return Reference.of(ReferenceStatistics(record, None, *nothing) if rank() == 0 else None)

    def compute() -> ReferenceStatistics | None:
        if num_images == 0:
            raise ValueError("There are no real pictures to compare with.")
        kept = evenly_spaced(num_images, max_features)
        sums = Moments(extractor.num_features) if moments else None
        rows: list[Tensor] = []
        places: list[Tensor] = []
        with isolate_rng(), failing_together():  # a dataset of the user's own may draw from the global random state
            for number, batch in in_order(loader, READ_AT_ONCE, num_replicas=world_size(), rank=rank()):
                features = features_of(pictures_of(batch), extractor).features
                if sums is not None:
                    sums.update(features)
                start = number * READ_AT_ONCE
                here = kept[(kept >= start) & (kept < start + len(features))]
                places.append(here)
                rows.append(features[(here - start).to(features.device)].cpu())
        packed = None if sums is None else total(sums.pack())
        kept_features = gathered(rows, places, extractor.num_features)
        if rank() != 0:
            return None
        gaussian = None if packed is None else Moments.unpack(packed).gaussian()
        return ReferenceStatistics(wanted, gaussian, kept_features, kept)

    wanted = record if moments else {**record, "moments": "none"}
    return Reference.of(cached(wanted, compute, more=record))


def reference_of_file(path: str | Path, extractor: FeatureExtractor) -> Reference:
    """Saved statistics: ours, or an .npz with `mu` and `sigma`; read by rank 0.

    Raises:
        StatisticsError: If they are damaged, or of another extractor.
    """
    statistics = None
    with failing_together():
        if rank() == 0:
            statistics = load_statistics(path, extractor)
    return Reference.of(statistics)
