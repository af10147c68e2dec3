"""FID, IS and company of whatever model samples, in validation and test."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_gen.callbacks.panels import require
from lightning_gen.callbacks.pictures import looking
from lightning_gen.capabilities import Samples
from lightning_gen.evaluation.engine import Evaluation, draw
from lightning_gen.evaluation.protocol import EvaluationProtocol, Figure, figures_for, suffix_of, versions
from lightning_gen.evaluation.reference import Reference, reference_of_file, reference_of_loader
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.files import write_atomically
from lightning_gen.processes import failing_together, rank, world_size
from lightning_gen.runs.folder import EVALUATION, keeps_files, run_folder
from lightning_gen.settings import checked_settings


class GenerativeMetrics(pl.Callback):
    """Logs how far a model's samples are from real pictures, at every validation of a fit and at a test.

    One pass of pictures and one pass through the extractor serve all figures: `val/fid`, `val/is` and `val/is_std`,
    `val/kid` and `val/kid_stderr`, `val/precision`, `val/recall`, `val/density`, `val/coverage`, `val/authpct`; under
    `test/` in a test. These plain names are kept for the published Inception and its last layer; with every other
    extractor the name of the extractor follows: `val/fid-lenet64`. They can be monitored by `ModelCheckpoint`.

    * Samples are drawn with averaged weights, if the run keeps them (by `EMA` or by Lightning's callback, in whichever
      order the callbacks stand), in evaluation mode and in the trainer's precision; they are rounded to 8 bits. The
      extractor works outside of autocast.
    * Batch b of the samples has its own noise, from (seed, b), and comes from rank b mod W: any number of processes
      gives the same pictures and the same figures, and training does not notice. Classes take turns.
    * Statistics of the real pictures are computed once and kept in the cache folder (`$LIGHTNING_GEN_CACHE`,
      `~/.cache/lightning-gen`) under all that may move them. Training pictures are read as epoch 0 shows them.
    * Extractor and figures are no part of the model or of its checkpoints. What was measured, and how, stands in the
      run's folder as `evaluation.json`, and in the configuration that loggers show.

    Figures of fewer samples are higher (Fréchet distance) or lower (score) than those of many; compare equal numbers
    only. `trainer.validate` and `fit` use `num_samples`, `trainer.test` uses `test_num_samples`.

    Args:
        extractor: Reads the pictures; None means the published Inception, `InceptionFeatures()`.
        figures: Some of fid, is, kid, prdc, authpct, fid_infinity; None means those of the first five that extractor
            and reference allow ("is" needs classes, "authpct" training pictures).
        num_samples: Pictures drawn at each validation.
        test_num_samples: Pictures drawn in a test.
        reference: "train", "val" or "test": the data's pictures to compare with (published figures take the training
            pictures); or the path of saved statistics, ours or an .npz with `mu` and `sigma`.
        batch_size: Pictures drawn at once.
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
        TypeError: If the model draws no samples (when the trainer starts).
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
        self.compared_with: Reference | None = None
        self.evaluation: Evaluation | None = None
        self.told = False
        self.started = 0.0  # the clock when training began
        self.seconds = 0.0  # since then, spent here

    def _protocol(self, figures: tuple[Figure, ...], num_samples: int) -> EvaluationProtocol:
        return EvaluationProtocol(figures, num_samples, **self.settings)

    # -- when -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there are samples, and that extractor and figures suit them."""
        if stage == "predict":
            return
        require(Samples, "GenerativeMetrics", pl_module)
        self.settings["sampling"] = checked_settings(pl_module, self.sampling, "GenerativeMetrics")
        if self.extractor is None:
            self.extractor = InceptionFeatures()
        shape = getattr(pl_module, "image_shape", None)
        if shape is not None:
            self.extractor.check_shape(shape)
        self.figures = figures_for(self.extractor, self.reference, self.chosen, min(self.num_samples.values()))
        for number in self.num_samples.values():
            self._protocol(self.figures, number)
        self.compared_with = self.evaluation = None
        run_folder(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the real pictures now, for what is wrong with them should not come out in the middle of the run."""
        self.started = time.perf_counter()
        if trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._prepare(trainer, pl_module)
        self.seconds = time.perf_counter() - self.started

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what it took."""
        if self.compared_with is not None:
            total = time.perf_counter() - self.started
            rank_zero_info(f"GenerativeMetrics took {self.seconds:.1f} of {total:.1f} s, {self.seconds / total:.1%}.")

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw and read the samples, before any callback takes averaged weights out again."""
        self._once(trainer, pl_module, "val/")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/...`."""
        self._measure(trainer, pl_module, "val/")

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw and read the samples."""
        self._once(trainer, pl_module, "test/")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `test/...`."""
        self._measure(trainer, pl_module, "test/")

    def headlines(self) -> dict[str, str]:
        """The Fréchet distances of a test, and how many pictures they are of."""
        if self.extractor is None or self.compared_with is None:
            return {}
        numbers = f"({self.num_samples['test/']} samples, {self.compared_with.count} real pictures)"
        names = [f"{figure}{suffix_of(self.extractor)}" for figure in ("fid", "fid_infinity")]
        return {f"test/{name}": f"Test {name}: {{:.4g}} {numbers}" for name in names}

    # -- what -------------------------------------------------------------------------------------------------------

    def _once(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str) -> None:
        """Draw and read the samples of this validation or test, unless that is done."""
        if self.evaluation is not None or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        began = time.perf_counter()
        reference, extractor = self._prepare(trainer, pl_module)
        protocol = self._protocol(self.figures, self.num_samples[prefix])
        self.evaluation = Evaluation(extractor, protocol)
        plan = list(protocol.batches(rank(), world_size()))

        def drawn() -> Iterator[tuple[int, Tensor]]:
            for number, size in plan:
                with looking(trainer, pl_module):
                    images = draw(cast(Samples, pl_module), number, size, protocol)
                yield number, images

        def tell(seconds: float) -> None:
            if not self.told:
                self.told = True
                against = f" against {reference.count} pictures" if reference.count else ""
                rank_zero_info(
                    f"{protocol.num_samples} samples{against}: drawing and reading them takes about "
                    f"{seconds * len(plan):.1f} s at each {'validation' if prefix == 'val/' else 'test'}."
                )

        with failing_together():
            self.evaluation.read(drawn(), tell)
        self.seconds += time.perf_counter() - began

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prefix: str) -> None:
        """Log the figures; the same on every rank."""
        self._once(trainer, pl_module, prefix)
        evaluation, self.evaluation = self.evaluation, None
        if evaluation is None or self.compared_with is None:
            return
        began = time.perf_counter()
        figures = evaluation.figures(self.compared_with.statistics)
        self.seconds += time.perf_counter() - began
        suffix = suffix_of(evaluation.extractor)
        device = pl_module.device  # whose backend sends them
        logged = {name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in figures.items()}
        pl_module.log_dict({f"{prefix}{name}{suffix}": value for name, value in logged.items()}, sync_dist=True)

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Reference, FeatureExtractor]:
        """The real pictures' statistics, and the extractor where it shall work."""
        assert self.extractor is not None
        extractor = self.extractor.to(pl_module.device)
        if self.compared_with is None:
            protocol = self._protocol(self.figures, self.num_samples["val/"])
            if not protocol.needs_reference:
                self.compared_with = Reference.none(extractor)
            elif self.reference in ("train", "val", "test"):
                self.compared_with = reference_of_loader(
                    extractor,
                    _loader(trainer, self.reference),
                    name=type(getattr(trainer, "datamodule", None) or pl_module).__name__,
                    split=self.reference,
                    max_features=self.settings["max_features"],
                    moments=protocol.needs_moments,
                )
            else:
                self.compared_with = reference_of_file(self.reference, extractor)
            self.compared_with.check(protocol)
            self._record(trainer)
        return self.compared_with, extractor

    def _record(self, trainer: pl.Trainer) -> None:
        """Write down what is measured on what, and how."""
        assert self.extractor is not None
        assert self.compared_with is not None
        record = {
            "samples": {prefix.strip("/"): number for prefix, number in self.num_samples.items()},
            "protocol": {**self._protocol(self.figures, self.num_samples["val/"]).record, "num_samples": None},
            "reference": self.compared_with.record,
            "extractor": self.extractor.record,
            "versions": versions(),
        }
        folder = run_folder(trainer)
        # Without a logger a run has no folder of its own, and a file in the folder at hand would be litter.
        if keeps_files(trainer) and folder != Path(trainer.default_root_dir):
            write_atomically(folder / EVALUATION, json.dumps(record, indent=2, sort_keys=True))
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):  # which would begin a second table of settings
                logger.log_hyperparams({"evaluation": record})


def _loader(trainer: pl.Trainer, split: str) -> Any:
    """The loader of a split: of the data module, or what the trainer was given."""
    data = getattr(trainer, "datamodule", None)
    if data is not None:
        return getattr(data, f"{split}_dataloader")()
    given = {"train": "train_dataloader", "val": "val_dataloaders", "test": "test_dataloaders"}[split]
    loader = getattr(trainer, given)
    if isinstance(loader, list) and len(loader) == 1:
        loader = loader[0]
    if loader is None or isinstance(loader, list | dict):
        raise ValueError(
            f"GenerativeMetrics compares with the {split} pictures, but the trainer has "
            f"{'no loader' if loader is None else 'several loaders'} for them here. Give it a data module, or set "
            "reference to another split or to saved statistics."
        )
    return loader
