"""Measures one source of pictures after the other under the same conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_gen.capabilities import HasLatents, HasLogProb, Samples
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import Kernel, to_uint8
from lightning_gen.evaluation.engine import Batch, Evaluation
from lightning_gen.evaluation.likelihood import likelihood, no_likelihood
from lightning_gen.evaluation.path_length import no_path_lengths, path_lengths
from lightning_gen.evaluation.pictures import Sizing, folder_loaders
from lightning_gen.evaluation.protocol import (
    ALONE,
    OF_RECONSTRUCTIONS,
    EvaluationProtocol,
    Figure,
    check_wanted,
    default_extractor,
    figures_for,
    hindrances,
    name_of,
    versions,
)
from lightning_gen.evaluation.reconstructions import Originals
from lightning_gen.evaluation.reference import Reference, reference_of_file, reference_of_loader
from lightning_gen.evaluation.sources import SPLITS, Drawn, Read, batches_of, count_of, loader_of, pictures_at, shape_of
from lightning_gen.evaluation.statistics import ReferenceStatistics
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.metrics.manifold import memorisation_ratio, nearest_neighbours

NUM_SAMPLES = 50_000  # of a model, as in publications
PAIRS = 16  # of neighbours: the closest ones, and as many evenly spaced ones
ROWS = 8


@dataclass(eq=False)
class Bench:
    """Where pictures are measured, all in the same way.

    `kind` is "train", "val", "test", or another word for the reference, `shape` that of its pictures, which others must
    have, or None where any will do; `originals` are the data's test pictures where they are to be reconstructed;
    `seeds` are None where nothing is drawn.
    """

    extractor: FeatureExtractor
    reference: Reference
    kind: str
    shape: tuple[int, int, int] | None
    protocol: EvaluationProtocol
    data: pl.LightningDataModule | None
    originals: Originals | None
    sizing: Sizing
    seeds: Sequence[int] | None
    precision: str

    @classmethod
    def of(
        cls,
        drawn: Drawn | None,
        images: Path | None,
        data: pl.LightningDataModule | None,
        reference: str,
        extractor: FeatureExtractor | None,
        device: torch.device,
        resize: Kernel | None,
        figures: Sequence[Figure] | None,
        num_samples: int | None,
        seeds: Sequence[int],
        precision: str,
        with_moments: bool,
        **settings: Any,
    ) -> tuple[Bench, Read | None]:
        """One for what is drawn or for a folder of pictures, which is given too.

        What does not fit is a `ValueError` before pictures are read in earnest, which takes long; what cannot be read
        is an `OSError`. `drawn` is of a checkpoint, the first of several; `with_moments` asks for mean and covariance
        in any case; the settings are of the protocol, and all else is as in `commands.evaluate`.
        """
        model = drawn.model if drawn else None
        draws = drawn is None or isinstance(model, Samples)
        # Compared with nothing?
        few = figures and set(figures) <= set(ALONE)
        alone = (bool(few) or not draws) and not with_moments
        if data is None and (not draws or (reference in SPLITS and not alone)):
            raise ValueError(NO_DATA)
        hindered = hindrances(model)
        check_wanted(figures, hindered)  # before weights of an extractor are looked for
        extractor = (extractor or default_extractor(figures)).to(device)
        if figures and "ppl" in figures and (why := no_path_lengths(extractor, settings.get("sampling") or {})):
            check_wanted(figures, {"ppl": why})
        real = loader_of(data, reference) if data and reference in SPLITS else None
        shape = None if real is None else shape_of(real)
        channels = (drawn.image_shape if drawn else shape or extractor.image_shape)[0] or 3
        there, wanted = _as_folder(reference), drawn.image_shape if drawn else shape
        whose = "the model's pictures" if drawn else f"those of the reference {reference}"
        loaders, sizing = folder_loaders(
            [there, images], channels, extractor, resize, wanted[1:] if wanted else None, whose
        )
        if there:
            real, shape = loaders[there], (channels, *sizing.size) if sizing.size else None
        read = Read(images, loaders[images]) if images else None
        if num_samples is None:
            num_samples = NUM_SAMPLES if read is None else len(read)
        if read and num_samples > len(read):
            raise ValueError(f"{images} has {len(read)} pictures, fewer than the {num_samples} of num_samples.")
        one = read or drawn
        assert one is not None
        extractor.check_shape(shape or one.image_shape)
        _check_shape(one, shape, reference, extractor)
        compared = reference_of_file(reference, extractor) if real is None and not alone else None
        kind = str(compared.record.get("split", reference)) if compared else reference
        if data is None:
            nothing = "there is no data whose test pictures could be reconstructed; name it with --data"
            hindered = dict.fromkeys(OF_RECONSTRUCTIONS, nothing) | hindered
        if (not figures or "likelihood" in figures) and (why := no_likelihood(model, data)):
            hindered["likelihood"] = why
        protocol = EvaluationProtocol(
            figures_for(extractor, kind, figures, num_samples, hindered), num_samples, seed=seeds[0], **settings
        )
        drawing, originals = protocol.of("samples"), None
        if data and protocol.of("reconstructions"):
            originals = Originals.of(
                loader_of(data, "test"), extractor, protocol, name=type(data).__name__, split="test"
            )
        if alone:
            compared = Reference.none(extractor)
        elif compared is None:
            compared = reference_of_loader(
                extractor, real, name=type(data).__name__ if reference in SPLITS else "folder", split=reference,
                max_features=protocol.max_features, moments=with_moments or bool(drawing and drawing.needs_moments),
            )  # fmt: skip
        seeds_of = seeds if drawn else None
        return cls(extractor, compared, kind, shape, protocol, data, originals, sizing, seeds_of, precision), read

    @property
    def statistics(self) -> ReferenceStatistics:
        """Of the reference; there is one process here."""
        assert self.reference.statistics is not None
        return self.reference.statistics

    @property
    def conditions(self) -> dict[str, Any]:
        """All that figures depend on but the pictures, as plain data."""
        protocol = {key: value for key, value in self.protocol.record.items() if key != "seed"}
        records = {"reference": self.reference.record}
        if self.originals:
            records["reconstructed"] = self.originals.reference.record
        return {
            "protocol": protocol
            | {"precision": self.precision}
            | ({"resize": self.sizing.words} if self.sizing.words else {}),
            "seeds": self.seeds,
            "extractor": self.extractor.record if self.protocol.needs_extractor else None,
            **{
                name: {key: value for key, value in record.items() if key not in ("extractor", "moments")}
                for name, record in records.items()
            },
        }

    def entry(
        self, samples: Drawn | Read, known: Mapping[str, Any], floor: bool = False, neighbours: Path | None = None
    ) -> dict[str, Any]:
        """An evaluation as it is written, beyond what is known already."""
        _check_shape(samples, self.shape, str(self.kind), self.extractor)
        hindered = hindrances(getattr(samples, "model", None))
        for figure in self.protocol.figures:
            if figure in hindered:
                raise ValueError(f"{figure} can't be computed of {samples.path}: {hindered[figure]}.")
        if neighbours and "fid" in hindered:
            raise ValueError(f"neighbours draws samples, but {hindered['fid']}. Leave it out.")
        entry: dict[str, Any] = {**known, "samples": samples.record}
        if floor:
            entry["floor"] = self.floor
        entry["figures"], features = self.measure(samples, keep=neighbours is not None)
        if neighbours:
            entry["memorisation_ratio"] = self.neighbours(samples, features, neighbours)
        return {**entry, **self.conditions, "versions": versions()}

    def measure(self, samples: Drawn | Read, keep: bool) -> tuple[dict[str, Any], list[Tensor]]:
        """The figures over the seeds, and the features of the first seed, if they are to be kept."""
        figures: dict[str, Any] = {}
        measured: list[dict[str, float]] = []
        features: list[Tensor] = []
        model, protocol = getattr(samples, "model", None), self.protocol
        if self.originals and isinstance(samples, Drawn):
            originals = self.originals
            evaluation = self._read(originals.batches(model, samples.fabric.autocast), originals.protocol)
            figures = self._described([evaluation.figures(originals.reference.statistics)], originals.protocol)
            del evaluation
        if "likelihood" in protocol.figures and isinstance(model, HasLogProb):
            figures |= likelihood(model, self._data(), protocol.num_samples, protocol.batch_size, protocol.seed)
        drawing = protocol.of("samples") or replace(protocol, figures=("likelihood",))  # which is none of samples
        for seed in self.seeds or [0]:
            found: dict[str, float] = {}
            if protocol.of("samples") or keep:
                drawing = replace(drawing, seed=seed)
                evaluation = self._read(samples.batches(drawing), drawing, keep)
                if keep and not measured:
                    features = evaluation.features
                found |= evaluation.figures(self.statistics)
                del evaluation  # the features of one seed take memory enough
            if protocol.of("latents") and isinstance(model, HasLatents):
                found |= path_lengths(model, self.extractor, replace(protocol, seed=seed))
            measured.append(found)
        return self._described(measured, protocol) | figures, features

    @cached_property
    def floor(self) -> dict[str, Any]:
        """The figures of the data's test pictures."""
        if (wanted := self.protocol.of("samples")) is None:
            raise ValueError(
                f"The floor is of the figures of samples, and there are none among {', '.join(self.protocol.figures)}. "
                "Leave it out."
            )
        loader = loader_of(self._data(), "test")
        number = min(wanted.num_samples, count_of(loader))
        figures = figures_for(self.extractor, self.kind, wanted.figures, number, {})
        protocol = replace(wanted, figures=figures, num_samples=number)
        evaluation = self._read(batches_of(loader, protocol), protocol)
        return self._described([evaluation.figures(self.statistics)], protocol)

    def neighbours(self, samples: Drawn | Read, kept: Sequence[Tensor], path: Path) -> dict[str, Any]:
        """Draw samples of the first seed beside the training pictures nearest to them; gives the ratio of distances.

        On the left the 16 pairs that are closest of all, the very closest on top; on the right those of 16 samples
        evenly spaced, as they come.
        """
        features, loader = torch.cat([*kept])[: self.protocol.max_features], loader_of(self._data(), "train")
        given: Any = {"name": type(self.data).__name__, "max_features": self.protocol.max_features, "moments": False}
        train, val = (
            reference_of_loader(self.extractor, loader_of(self._data(), split), split=split, **given).statistics
            for split in ("train", "val")
        )
        assert train is not None
        assert val is not None
        distances, nearest = nearest_neighbours(features, train.features)
        number = min(PAIRS, len(features))
        closest, spaced = distances.argsort(stable=True)[:number], torch.arange(number) * len(features) // number
        columns: list[tuple[str, list[Tensor]]] = []
        for title, places in (("closest", closest), ("sample", spaced)):
            own = samples.pictures(self.protocol, places.tolist())
            beside = pictures_at(loader, train.indices[nearest[places]].tolist())
            for start in range(0, number, ROWS):
                for name, pictures in ((title, own), ("training", beside)):
                    columns.append((name, [to_uint8(picture) for picture in pictures[start : start + ROWS]]))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture_grid(columns).save(path)
        return {
            "value": memorisation_ratio(train.features, features, val.features),
            "samples": len(features),
            "training": len(train.features),
            "validation": len(val.features),
        }

    def _read(self, batches: Iterator[Batch], protocol: EvaluationProtocol, keep: bool = False) -> Evaluation:
        def tell(seconds: float) -> None:
            if (minutes := seconds * protocol.num_batches / 60) > 1 / 3:
                print(f"Making and reading {protocol.num_samples} pictures takes about {minutes:.1f} min ...")

        evaluation = Evaluation(self.extractor, protocol)
        evaluation.one_by_one |= keep
        evaluation.read(batches, tell)
        return evaluation

    def _described(self, measured: Sequence[Mapping[str, float]], protocol: EvaluationProtocol) -> dict[str, Any]:
        """Figures by name as they are written: with the numbers of pictures, and the mean over several seeds."""
        described: dict[str, Any] = {}
        for name in measured[0] if measured else ():
            values = torch.tensor([figures[name] for figures in measured], dtype=torch.float64)
            number, real = self._numbers(name, protocol)
            entry: dict[str, Any] = {"value": _json(values.mean()), "samples": number, "reference": real}
            title = name_of(name, self.extractor)
            if name in OF_RECONSTRUCTIONS:
                entry["split"] = "test"
            elif self.sizing.words:
                title += f"-{self.sizing.words}"
            if len(values) > 1:
                entry |= {"std": _json(values.std()), "by_seed": [_json(value) for value in values]}
            described[title] = entry
        return described

    def _numbers(self, name: str, protocol: EvaluationProtocol) -> tuple[int, int | None]:
        """Of how many samples and real pictures a figure is; None where it is of none or of who knows how many."""
        if name in OF_RECONSTRUCTIONS:
            return protocol.num_samples, protocol.num_samples
        if name.startswith(("is", "ppl")):
            return protocol.num_samples, None
        if name.startswith("fid"):
            return protocol.num_samples, self.reference.count or None
        samples, real = min(protocol.num_samples, protocol.max_features), len(self.statistics.features)
        return (min(samples, real),) * 2 if name.startswith("kid") else (samples, real)

    def _data(self) -> pl.LightningDataModule:
        if self.data is None:
            raise ValueError(NO_DATA)
        return self.data


NO_DATA = (
    "There is no data with real pictures: name it, as in `--data MNIST --data.root data`, or name a folder of pictures "
    "or saved statistics as --reference (floor and neighbours need the data). A checkpoint in the folder of its run "
    "needs none of this."
)


def _json(value: Tensor) -> float | None:
    """Strict JSON knows no NaN."""
    return value.item() if value.isfinite() else None


def _as_folder(reference: str) -> Path | None:
    """The folder of pictures that a reference is; None where it is a split of the data, or a file."""
    if reference in SPLITS or Path(reference).is_file():
        return None
    if not Path(reference).is_dir():
        raise FileNotFoundError(f"The reference {reference} is none of {', '.join(SPLITS)}, nor a folder, nor a file.")
    return Path(reference)


def _check_shape(
    samples: Drawn | Read, shape: tuple[int, int, int] | None, reference: str, extractor: FeatureExtractor
) -> None:
    """Raise a `ValueError` if pictures have another shape than those of the reference, and nothing mends it."""
    if shape and not extractor.resizes and samples.image_shape != shape:
        raise ValueError(
            f"The pictures of {samples.path} have the shape {samples.image_shape}, but those of the reference "
            f"{reference} have {shape}. Name other data, or write the samples into a folder and give --images and "
            "--resize."
        )
