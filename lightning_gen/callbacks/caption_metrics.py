"""Whether pictures show what was asked for, in validation and test."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_gen.callbacks.generative_metrics import _data_of, loader_in
from lightning_gen.callbacks.pictures import looking
from lightning_gen.data.base import in_order
from lightning_gen.evaluation.sources import count_of, evenly_spaced
from lightning_gen.generative import GenerativeModule
from lightning_gen.metrics.attributes import AttributeAccuracy
from lightning_gen.processes import failing_together, rank, world_size
from lightning_gen.randomness import generator_for
from lightning_gen.settings import checked_settings


class CaptionMetrics(pl.Callback):
    """Logs which share of what captions ask for pictures show, at validations of a fit and at a test.

    One picture is drawn for each of a number of captions of the split, and of as many of the training data; a reader
    of attributes, see `lightning_gen.metrics.AttributeAccuracy`, finds what they show. Logged are `val/attributes`, the
    share that is right, and by name `val/attributes_roof` and so on; `val/attributes_pictures`, the share of pictures
    in which all are right; where the data knows which combinations training never shows, as `CaptionedScenes` does,
    `val/attributes_held_out` and `val/attributes_held_out_pictures`, of these alone; and beside them what is reached
    without listening: `val/attributes_chance`, `val/attributes_marginal` and `val/attributes_shuffled`. Under `test/`
    in a test.

    Pictures are drawn as `GenerativeMetrics` draws: with averaged weights if the run keeps them, each batch with noise
    of its own, the same for any number of processes.

    Args:
        num_samples: Captions of the validation split, and as many of the training data.
        test_num_samples: Likewise in a test.
        reader: Gives int64 `[N, A]`, the value of each attribute, of pictures, and says by `attributes` which these
            are, by name, and the values of each; None takes the one of the built-in scenes.
        batch_size: Pictures drawn at once.
        seed: Of the noise.
        sampling: Settings of the model's own `sample`, such as `{"guidance": 3.0}`.

    Raises:
        ValueError: If a number is below 1; when training starts, if the data has no captions with attributes.
        TypeError: If the model reads no captions (when the trainer starts).
        ArgumentError: If a setting is not one of the model's (when the trainer starts).
    """

    def __init__(
        self,
        num_samples: int = 200,
        test_num_samples: int = 1000,
        *,
        reader: nn.Module | None = None,
        batch_size: int = 64,
        seed: int = 0,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if min(num_samples, test_num_samples, batch_size) < 1:
            raise ValueError(
                "CaptionMetrics needs num_samples, test_num_samples and batch_size of at least 1, got "
                f"{num_samples}, {test_num_samples} and {batch_size}."
            )
        self.num_samples = {"val": num_samples, "test": test_num_samples}
        self.reader, self.batch_size, self.seed, self.sampling = reader, batch_size, seed, sampling
        self.metric: AttributeAccuracy | None = None  # of this validation or test
        self.measured_on: dict[str, dict[str, int]] = {}  # what each figure is of

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the model reads captions."""
        if stage == "predict":
            return
        if not isinstance(pl_module, GenerativeModule) or pl_module.text is None or not hasattr(pl_module, "sample"):
            raise TypeError(
                f"CaptionMetrics needs a model that draws pictures of captions, as TextToImage does; "
                f"{type(pl_module).__name__} does not. Take CaptionMetrics out of trainer.callbacks."
            )
        self.settings = checked_settings(pl_module, self.sampling, "CaptionMetrics")
        self.metric = None

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw, before any callback takes averaged weights out again."""
        self._once(trainer, pl_module, "val")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/...`."""
        self._measure(trainer, pl_module, "val")

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw."""
        self._once(trainer, pl_module, "test")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `test/...`."""
        self._measure(trainer, pl_module, "test")

    def headlines(self) -> dict[str, str]:
        """The shares of a test."""
        numbers = f"({self.num_samples['test']} captions)"
        return {
            "test/attributes": f"Test attributes as asked for: {{:.1%}} {numbers}",
            "test/attributes_held_out": f"Test attributes of combinations never seen: {{:.1%}} {numbers}",
        }

    def _once(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> None:
        """Draw the pictures of this validation or test, and read them, unless that is done."""
        if self.metric is not None or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data: Any = _data_of(trainer)
        attributes = None if self.reader is None else cast(Any, self.reader).attributes
        self.metric = AttributeAccuracy(self.reader, attributes, domain=getattr(data, "domain", "day"))
        held_out = getattr(data, "is_held_out", None)
        with failing_together():
            for number, part in enumerate((split, "train")):
                self._read(
                    trainer,
                    pl_module,
                    loader_in(trainer, part, "CaptionMetrics"),
                    self.num_samples[split],
                    number,
                    held_out,
                )

    def _read(self, trainer: pl.Trainer, pl_module: Any, loader: Any, number: int, salt: int, held_out: Any) -> None:
        assert self.metric is not None
        wanted = min(number, count_of(loader))
        with isolate_rng():
            chosen = evenly_spaced(loader, wanted, wanted)
            for place, batch in in_order(chosen, self.batch_size, num_replicas=world_size(), rank=rank()):
                if not isinstance(batch, dict) or not {"caption", "attributes"} <= batch.keys():
                    raise ValueError(
                        "CaptionMetrics needs data with a 'caption' and 'attributes', as CaptionedScenes has them. "
                        "Take CaptionMetrics out of trainer.callbacks for other data."
                    )
                asked: Tensor = batch["attributes"]
                noise = generator_for(self.seed, 2 * place + salt)
                with looking(trainer, pl_module):
                    captions = batch["caption"]
                    images = pl_module.sample(len(asked), captions=captions, generator=noise, **self.settings)
                self.metric.update(images, asked, None if held_out is None else held_out(asked))

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> None:
        """Log the figures; the same on every rank."""
        self._once(trainer, pl_module, split)
        metric, self.metric = self.metric, None
        if metric is None:
            return
        figures = metric.to(pl_module.device).compute()  # whose backend sends them
        names = {name: f"{split}/attributes" + ("" if name == "overall" else f"_{name}") for name in figures}
        logged = {names[name]: torch.as_tensor(value, dtype=torch.float32) for name, value in figures.items()}
        self.measured_on |= {name: {"samples": self.num_samples[split]} for name in logged}
        pl_module.log_dict({name: value.to(pl_module.device) for name, value in logged.items()}, sync_dist=True)
