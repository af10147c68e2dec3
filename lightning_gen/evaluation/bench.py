"""Measures one source of pictures after the other under the same conditions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

import lightning_gen.data  # noqa: F401  (so that short class names are known)
from lightning_gen.data.images import to_uint8
from lightning_gen.evaluation.engine import Evaluation
from lightning_gen.evaluation.neighbours import neighbour_grid
from lightning_gen.evaluation.picture_files import Sizing
from lightning_gen.evaluation.pictures import Pictures, as_read
from lightning_gen.evaluation.protocol import EvaluationProtocol, figures_for, suffix_of
from lightning_gen.evaluation.reference import Reference
from lightning_gen.evaluation.sources import (
    Drawn,
    Read,
    _count,
    _pictures_at,
    batches_of,
    loader_of,
    statistics_of,
)
from lightning_gen.evaluation.statistics import ReferenceStatistics
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.metrics.manifold import memorisation_ratio


@dataclass(eq=False)
class Bench:
    """Where samples are measured, all in the same way."""

    extractor: FeatureExtractor
    reference: Reference
    kind: str
    protocol: EvaluationProtocol
    data: pl.LightningDataModule | None
    sizing: Sizing

    @property
    def statistics(self) -> ReferenceStatistics:
        """Of the reference; there is one process here."""
        assert self.reference.statistics is not None
        return self.reference.statistics

    def measure(self, samples: Drawn | Read, seeds: Sequence[int], keep: bool) -> tuple[dict[str, Any], list[Tensor]]:
        """The figures over the seeds, and the features of the first seed, if they are to be kept."""
        measured: list[dict[str, float]] = []
        features: list[Tensor] = []
        for seed in seeds:
            protocol = replace(self.protocol, seed=seed)
            evaluation = self._read(samples.batches(protocol), protocol, keep)
            if keep and not measured:
                features = evaluation.features
            measured.append(evaluation.figures(self.statistics))
            del evaluation  # the features of one seed take memory enough
        return self._described(measured, self.protocol), features

    @cached_property
    def floor(self) -> dict[str, Any]:
        """The figures of the data's test pictures."""
        loader = loader_of(self._data(), "test")
        number = min(self.protocol.num_samples, _count(loader))
        figures = figures_for(self.extractor, self.kind, self.protocol.figures, number)
        protocol = replace(self.protocol, figures=figures, num_samples=number)
        evaluation = self._read(batches_of(loader, protocol), protocol)
        return self._described([evaluation.figures(self.statistics)], protocol)

    def neighbours(self, samples: Drawn | Read, kept: Sequence[Tensor], path: Path) -> dict[str, Any]:
        """Draw the samples of the first seed that are nearest to training pictures; gives the ratio of distances."""
        features = torch.cat([*kept])[: self.protocol.max_features]
        loader = loader_of(self._data(), "train")
        train, val = (
            statistics_of(
                loader_of(self._data(), split),
                type(self.data).__name__,
                split,
                self.extractor,
                self.protocol.max_features,
                moments=False,
            )
            for split in ("train", "val")
        )
        assert train.statistics is not None
        assert val.statistics is not None
        grid = neighbour_grid(
            features,
            lambda places: [to_uint8(image) for image in samples.pictures(self.protocol, places)],
            train.statistics,
            lambda places: [to_uint8(image) for image in _pictures_at(loader, places)],
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)
        return {
            "value": memorisation_ratio(train.statistics.features, features, val.statistics.features),
            "samples": len(features),
            "training": len(train.statistics.features),
            "validation": len(val.statistics.features),
        }

    def _read(
        self, batches: Iterator[tuple[int, Pictures]], protocol: EvaluationProtocol, keep: bool = False
    ) -> Evaluation:
        evaluation = Evaluation(self.extractor, protocol)
        evaluation.one_by_one |= keep
        start = time.perf_counter()
        for done, (number, images) in enumerate(batches):
            evaluation.add(number, as_read(images, self.extractor))
            if done == 0:
                start = time.perf_counter()  # what comes first takes longer
            elif done == 1 and (seconds := (time.perf_counter() - start) * protocol.num_batches) > 20:
                print(f"Drawing and reading {protocol.num_samples} pictures takes about {seconds / 60:.1f} min ...")
        return evaluation

    def _described(self, measured: Sequence[Mapping[str, float]], protocol: EvaluationProtocol) -> dict[str, Any]:
        """Figures by name as they are written: with the numbers of pictures, and the mean over several seeds."""
        suffix = suffix_of(self.extractor) + (f"-{self.sizing.words}" if self.sizing.words else "")
        described: dict[str, Any] = {}
        for name in measured[0]:
            values = torch.tensor([figures[name] for figures in measured], dtype=torch.float64)
            number, real = self._numbers(name, protocol)
            entry: dict[str, Any] = {"value": _json(values.mean()), "samples": number, "reference": real}
            if len(values) > 1:
                entry |= {"std": _json(values.std()), "by_seed": [_json(value) for value in values]}
            described[name + suffix] = entry
        return described

    def _numbers(self, name: str, protocol: EvaluationProtocol) -> tuple[int, int | None]:
        """Of how many samples and real pictures a figure is; None where it is of none or of who knows how many."""
        if name.startswith("is"):
            return protocol.num_samples, None
        if name.startswith("fid"):
            return protocol.num_samples, self.reference.count or None
        samples, real = min(protocol.num_samples, protocol.max_features), len(self.statistics.features)
        return (min(samples, real),) * 2 if name.startswith("kid") else (samples, real)

    def _data(self) -> pl.LightningDataModule:
        assert self.data is not None
        return self.data


def _json(value: Tensor) -> float | None:
    """Strict JSON knows no NaN."""
    return value.item() if value.isfinite() else None
