"""FID, IS and company of whatever model samples or reconstructs, in validation and test."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from lightning_gen.callbacks.loaded import KnowsStep
from lightning_gen.callbacks.panels import require
from lightning_gen.callbacks.pictures import log_picture, looking
from lightning_gen.capabilities import Reconstructs, Samples
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.evaluation.engine import Batch, Evaluation, draw
from lightning_gen.evaluation.pictures import as_read, features_of
from lightning_gen.evaluation.protocol import (
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
from lightning_gen.evaluation.sources import pictures_at
from lightning_gen.evaluation.statistics import ReferenceStatistics
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.files import write_atomically
from lightning_gen.metrics.manifold import nearest_neighbours
from lightning_gen.processes import failing_together, rank, world_size
from lightning_gen.runs.folder import keeps_files, run_folder
from lightning_gen.runs.layout import EVALUATION
from lightning_gen.settings import checked_settings

SHOWN = 8  # samples beside the nearest training pictures
LOGGED_ANYWAY = "validation and test log it, where the model has a log_prob"
LATER = "lightning-gen evaluate measures it, of a checkpoint"


class GenerativeMetrics(KnowsStep):
    """Logs how far a model's samples and reconstructions are from real pictures, at validations of a fit and at a test.

    One pass of pictures and one pass through the extractor serve all figures of samples: `val/fid`, `val/is` and
    `val/is_std`, `val/kid` and `val/kid_stderr`, `val/precision`, `val/recall`, `val/density`, `val/coverage`,
    `val/authpct`; and another all of reconstructions, where a model can `reconstruct`: `val/rfid`, `val/psnr` (dB) and
    `val/ssim`; under `test/` in a test. These plain names are kept for the published Inception and its last layer; with
    every other extractor the name of the extractor follows, as `val/fid-lenet64`, but for PSNR and SSIM, which have
    none. They can be monitored by `ModelCheckpoint`.

    * Samples are drawn with averaged weights, if the run keeps them (by `EMA` or by Lightning's callback, in whichever
      order the callbacks stand), in evaluation mode and in the trainer's precision; they are rounded to 8 bits. The
      extractor works outside of autocast.
    * Batch b of the samples has its own noise, from (seed, b), and comes from rank b mod W: any number of processes
      gives the same pictures and the same figures, and training does not notice. Classes take turns.
    * Reconstructions are of the validation pictures, in a test of the test pictures, evenly spaced where there are more
      than are wanted, and are compared with these pictures alone, as in publications.
    * Statistics of the real pictures are computed once and kept in the cache folder (`$LIGHTNING_GEN_CACHE`,
      `~/.cache/lightning-gen`) under all that may move them. Training pictures are read as epoch 0 shows them.
    * The first samples are shown beside the training pictures that are nearest to them in the extractor's eyes, as the
      panel "nearest" of the run's page, where the reference is the training pictures.
    * Extractor and figures are no part of the model or of its checkpoints. What was measured, and how, stands in the
      run's folder as `evaluation.json`, and in the configuration that loggers show.

    Figures of fewer samples are higher (Fréchet distance) or lower (score) than those of many; compare equal numbers
    only. `trainer.validate` and `fit` use `num_samples`, `trainer.test` uses `test_num_samples`.

    Args:
        extractor: Reads the pictures; None means the published Inception, `InceptionFeatures()`.
        figures: Some of fid, is, kid, prdc, authpct, fid_infinity, rfid, psnr, ssim; None means all but fid_infinity
            that model, extractor and reference allow ("is" needs classes, "authpct" training pictures).
        num_samples: Pictures drawn at each validation, and reconstructed at most.
        test_num_samples: Pictures drawn in a test, and reconstructed at most.
        reference: "train", "val" or "test": the data's pictures to compare with (published figures take the training
            pictures); or the path of saved statistics, ours or an .npz with `mu` and `sigma`.
        batch_size: Pictures drawn or reconstructed at once.
        splits: Of the score.
        k: Neighbours of precision, recall, density and coverage.
        block_size: Pictures in one block of the kernel distance.
        max_features: Pictures on either side of kid, prdc and authpct, at most.
        seed: Of the noise.
        sampling: Settings of the model's own `sample`, such as `{"temperature": 0.5}`.

    Raises:
        ArgumentError: When the trainer starts, if the model's `sample` does not take a setting.
        ValueError: If a number is out of range, or (when the trainer starts) the extractor does not fit the pictures or
            a figure cannot be computed.
        TypeError: If the model neither draws samples nor reconstructs pictures (when the trainer starts).
    """

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        figures: Sequence[Figure] | None = None,
        *,
        num_samples: int = 5000,
        test_num_samples: int = 50_000,
        reference: str | Path = "train",
        batch_size: int = 64,
        splits: int = 10,
        k: int = 5,
        block_size: int = 1000,
        max_features: int = 10_000,
        seed: int = 0,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if extractor is not None and not isinstance(extractor, FeatureExtractor):
            raise TypeError(
                f"The extractor of GenerativeMetrics must be a FeatureExtractor, got a {type(extractor).__name__}. A "
                "network of yours becomes one as ModuleFeatures(network) of lightning_gen.metrics."
            )
        self.extractor = extractor
        self.chosen = figures
        self.settings: dict[str, Any] = {
            "splits": splits, "k": k, "block_size": block_size, "max_features": max_features,
            "batch_size": batch_size, "seed": seed,
        }  # fmt: skip
        self.sampling = sampling
        self.num_samples = {"val/": num_samples, "test/": test_num_samples}
        for number in self.num_samples.values():
            self._protocol(tuple(figures or ("fid",)), number)
        self.reference = reference
        self.compared_with: Reference | None = None  # samples are
        self.originals: dict[str, Originals | None] = {}  # of reconstructions, in validation and in a test
        self.evaluations: list[tuple[Evaluation, Reference]] = []  # of samples and of reconstructions
        self.measured_on: dict[str, dict[str, int]] = {}  # what each figure is of
        self.training: Any = None  # the loader of the pictures that samples are compared with, if they are these
        self.told: set[str] = set()
        self.started = 0.0  # the clock when training began
        self.seconds = 0.0  # since then, spent here

    def _protocol(self, figures: tuple[Figure, ...], num_samples: int) -> EvaluationProtocol:
        return EvaluationProtocol(figures, num_samples, **self.settings)

    # -- when -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there are samples or reconstructions, and that extractor and figures suit them."""
        if stage == "predict":
            return
        if not isinstance(pl_module, Reconstructs):
            require(Samples, "GenerativeMetrics", pl_module)
        self.settings["sampling"] = checked_settings(pl_module, self.sampling, "GenerativeMetrics")
        hindered: dict[Figure, str] = {"likelihood": LOGGED_ANYWAY, **hindrances(pl_module), "ppl": LATER}
        check_wanted(self.chosen, hindered)  # before weights of an extractor are looked for
        if self.extractor is None:
            self.extractor = default_extractor(self.chosen)
        shape = getattr(pl_module, "image_shape", None)
        if shape is not None:
            self.extractor.check_shape(shape)
        number = min(self.num_samples.values())
        self.figures = figures_for(self.extractor, self.reference, self.chosen, number, hindered)
        for number in self.num_samples.values():
            self._protocol(self.figures, number)
        self.compared_with, self.originals, self.evaluations = None, {}, []
        run_folder(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the real pictures now, for what is wrong with them should not come out in the middle of the run."""
        self.started = time.perf_counter()
        if trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._prepare(trainer, pl_module, "val/")
        self.seconds = time.perf_counter() - self.started

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what it took."""
        if self.compared_with or self.originals:
            total = time.perf_counter() - self.started
            rank_zero_info(f"GenerativeMetrics took {self.seconds:.1f} of {total:.1f} s, {self.seconds / total:.1%}.")

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw and reconstruct, before any callback takes averaged weights out again."""
        self._once(trainer, pl_module, "val/")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/...`."""
        self._measure(trainer, pl_module, "val/")

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw and reconstruct."""
        self._once(trainer, pl_module, "test/")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `test/...`."""
        self._measure(trainer, pl_module, "test/")

    def headlines(self) -> dict[str, str]:
        """The Fréchet distances of a test, and how many pictures they are of, and how alike reconstructions are."""
        lines: dict[str, str] = {}
        if self.extractor is None:
            return lines
        if self.compared_with:
            numbers = f"({self.num_samples['test/']} samples, {self.compared_with.count} real pictures)"
            for name in (name_of(figure, self.extractor) for figure in ("fid", "fid_infinity")):
                lines[f"test/{name}"] = f"Test {name}: {{:.4g}} {numbers}"
        if originals := self.originals.get("test/"):
            numbers, name = f"({originals.protocol.num_samples} reconstructions)", name_of("rfid", self.extractor)
            lines[f"test/{name}"] = f"Test {name}: {{:.4g}} {numbers}"
            lines["test/psnr"] = f"Test PSNR: {{:.2f}} dB {numbers}"
            lines["test/ssim"] = f"Test SSIM: {{:.3f}} {numbers}"
        return lines

    # -- what -------------------------------------------------------------------------------------------------------

    def _once(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str) -> None:
        """Draw and reconstruct the pictures of this validation or test, and read them, unless that is done."""
        if self.evaluations or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        began = time.perf_counter()
        extractor = self._prepare(trainer, pl_module, prefix)
        if self.compared_with and (protocol := self._protocol(self.figures, self.num_samples[prefix]).of("samples")):
            against = f" against {self.compared_with.count} pictures" if self.compared_with.count else ""
            what = f"{protocol.num_samples} samples{against}: drawing"
            batches = self._showing(trainer, self._drawn(trainer, pl_module, protocol), prefix)
            self._read(Evaluation(extractor, protocol), self.compared_with, batches, what, prefix)
        if originals := self.originals[prefix]:
            what = f"{originals.protocol.num_samples} reconstructions: making"
            batches = originals.batches(pl_module, partial(looking, trainer, pl_module))
            self._read(Evaluation(extractor, originals.protocol), originals.reference, batches, what, prefix)
        self.seconds += time.perf_counter() - began

    def _drawn(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, protocol: EvaluationProtocol
    ) -> Iterator[Batch]:
        for number, size in protocol.batches(rank(), world_size()):
            with looking(trainer, pl_module):
                images = draw(cast(Samples, pl_module), number, size, protocol)
            yield Batch(number, images)

    def _showing(self, trainer: pl.Trainer, batches: Iterator[Batch], prefix: str) -> Iterator[Batch]:
        """The same, the first of which are shown beside the training pictures that the extractor finds nearest."""
        for batch in batches:
            real = self.compared_with.statistics if self.compared_with else None
            if batch.number == 0 and real and len(real.features) and self.training is not None and _has_folder(trainer):
                images = batch.images
                if isinstance(images, Tensor) and images.shape[1] in (1, 3) and images.shape[2:] != (1, 1):
                    name = "nearest" if prefix == "val/" else "test_nearest"
                    log_picture(trainer, name, self._nearest(images[:SHOWN], real), self.step_of_weights(trainer))
            yield batch

    def _nearest(self, samples: Tensor, real: ReferenceStatistics) -> Image.Image:
        """Samples beside the training pictures that are nearest to them."""
        assert self.extractor is not None
        features = features_of(as_read(samples, self.extractor), self.extractor).features.cpu()
        places = real.indices[nearest_neighbours(features, real.features).indices].tolist()
        with isolate_rng():  # a dataset of the user's own may draw from the global random state
            found = [to_uint8(picture) for picture in pictures_at(self.training, places)]
        drawn, half = to_uint8(samples).cpu(), (len(samples) + 1) // 2
        columns: list[tuple[str, Sequence[Tensor]]] = []
        for some in (slice(half), slice(half, None)):
            columns += [("sample", list(drawn[some])), ("nearest in training", found[some])]
        return picture_grid(columns[: 2 * len(samples)])

    def _read(
        self, evaluation: Evaluation, reference: Reference, batches: Iterator[Batch], what: str, prefix: str
    ) -> None:
        self.evaluations.append((evaluation, reference))

        def tell(seconds: float) -> None:
            if what not in self.told:
                self.told.add(what)
                own = len(range(rank(), evaluation.protocol.num_batches, world_size()))
                rank_zero_info(
                    f"{what} and reading them takes about {seconds * own:.1f} s at each "
                    f"{'validation' if prefix == 'val/' else 'test'}."
                )

        with failing_together():
            evaluation.read(batches, tell)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str) -> None:
        """Log the figures; the same on every rank."""
        self._once(trainer, pl_module, prefix)
        evaluations, self.evaluations = self.evaluations, []
        began, device = time.perf_counter(), pl_module.device  # whose backend sends them
        for evaluation, reference in evaluations:
            logged = {
                f"{prefix}{name_of(name, evaluation.extractor)}": torch.tensor(
                    value, dtype=torch.float32, device=device
                )
                for name, value in evaluation.figures(reference.statistics).items()
            }
            pl_module.log_dict(logged, sync_dist=True)
            self.measured_on |= {name: {"samples": evaluation.protocol.num_samples} for name in logged}
        self.seconds += time.perf_counter() - began

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str) -> FeatureExtractor:
        """Have the statistics of the real pictures, and give the extractor where it shall work."""
        assert self.extractor is not None
        extractor = self.extractor.to(pl_module.device)
        protocol = self._protocol(self.figures, self.num_samples[prefix])
        name = type(_data_of(trainer) or pl_module).__name__
        known = self.compared_with, prefix in self.originals
        if self.compared_with is None and (drawing := protocol.of("samples")):
            if not drawing.needs_reference:
                self.compared_with = Reference.none(extractor)
            elif self.reference in ("train", "val", "test"):
                loader = loader_in(trainer, self.reference, "GenerativeMetrics")
                self.training = loader if self.reference == "train" else None
                self.compared_with = reference_of_loader(
                    extractor,
                    loader,
                    name=name,
                    split=self.reference,
                    max_features=self.settings["max_features"],
                    moments=drawing.needs_moments,
                )
            else:
                self.compared_with = reference_of_file(self.reference, extractor)
            self.compared_with.check(drawing)
        if prefix not in self.originals:
            split = prefix.strip("/")
            self.originals[prefix] = None
            if protocol.of("reconstructions"):
                loader = loader_in(trainer, split, "GenerativeMetrics")
                self.originals[prefix] = Originals.of(loader, extractor, protocol, name=name, split=split)
        if known != (self.compared_with, True):
            self._record(trainer)
        return extractor

    def _record(self, trainer: pl.Trainer) -> None:
        """Write down what is measured on what, and how."""
        assert self.extractor is not None
        record: dict[str, Any] = {
            "samples": {prefix.strip("/"): number for prefix, number in self.num_samples.items()},
            "protocol": {**self._protocol(self.figures, self.num_samples["val/"]).record, "num_samples": None},
            "reference": self.compared_with.record if self.compared_with else {},
            "extractor": self.extractor.record,
            "versions": versions(),
        }
        if any(self.originals.values()):
            originals = self.originals.items()
            record["reconstructed"] = {prefix.strip("/"): each.reference.record for prefix, each in originals if each}
        if _has_folder(trainer):
            write_atomically(run_folder(trainer) / EVALUATION, json.dumps(record, indent=2, sort_keys=True))
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):  # which would begin a second table of settings
                logger.log_hyperparams({"evaluation": record})


def _has_folder(trainer: pl.Trainer) -> bool:
    """Whether there is a folder to write to: a run without a logger has none, and a file at hand would be litter."""
    return keeps_files(trainer) and run_folder(trainer) != Path(trainer.default_root_dir)


def _data_of(trainer: pl.Trainer) -> Any:
    """The data module that has the pictures, or None."""
    data = getattr(trainer, "datamodule", None)
    return data.pictures if isinstance(data, ImageDataModule) else data


def loader_in(trainer: pl.Trainer, split: str, owner: str) -> Any:
    """The loader of a split: of the data module, or what the trainer was given.

    Raises:
        ValueError: If there is none, or several; in the name of the callback that looks at its pictures.
    """
    data = _data_of(trainer)
    if data is not None:
        return getattr(data, f"{split}_dataloader")()
    given = {"train": "train_dataloader", "val": "val_dataloaders", "test": "test_dataloaders"}[split]
    loader = getattr(trainer, given)
    if isinstance(loader, list) and len(loader) == 1:
        loader = loader[0]
    if loader is None or isinstance(loader, list | dict):
        raise ValueError(
            f"{owner} looks at the {split} pictures, but the trainer has "
            f"{'no loader' if loader is None else 'several loaders'} for them here. Give it a data module, or, where "
            "they are its reference, set that to another split or to saved statistics."
        )
    return loader
