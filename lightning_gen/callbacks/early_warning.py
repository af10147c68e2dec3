"""Says while a run lasts that a discriminator learns its pictures by heart, or that samples become alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gen.callbacks.generative_metrics import loader_in
from lightning_gen.callbacks.pictures import looking
from lightning_gen.capabilities import Judges
from lightning_gen.data.base import examples_of
from lightning_gen.data.batches import collate
from lightning_gen.processes import failing_together, rank, total, world_size
from lightning_gen.randomness import generator_for

OVERFITTING = (
    "Augment what it sees (model.augment, as ADA), give more pictures, start from another run's weights (--init_from) "
    "and train its last layers alone (model.freeze_discriminator), or stop here and use the best checkpoint "
    "(checkpoint.best)."
)
COLLAPSE = (
    "Go back to an earlier checkpoint and lower the learning rate, penalise the discriminator's gradient (R1 in "
    "model.penalties, or more of it), show it larger batches (data.batch_size), or let it see how alike a batch is (a "
    "discriminator with MinibatchStd)."
)
SIDE = 32  # pixels at most of the pictures whose distances are measured
EARLY = 4  # validations before which samples may well be all the same
CERTAIN = 3.0  # standard errors by which means must differ


class EarlyWarning(pl.Callback):
    """Warns when the discriminator over-fits and when samples collapse, and says what to try.

    At each validation of a fit the discriminator scores training pictures, held-out ones (those of validation) and
    fakes, all as evaluation sees them, and logs

    * `val/r_v`: (E D(train) - E D(held out)) / (E D(train) - E D(fake)), which is 0 as long as it takes new pictures
      for real as it does those that it learns from, and 1 when it takes them for fakes (2006.06676, eq. 1). No shift or
      scale of the scores changes it, so it means the same for every loss. It is left out while fakes get better scores.
    * `val/r_t`: The share of training pictures that it takes for real less that of all others, which goes to 1
      (likewise): E sign(D(train) - b) with the loss's boundary b, 0 for cross-entropy and hinge. Of losses that have
      none it is left out.
    * `val/sample_distance`: The distance between two fakes, as that between two held-out pictures: 1 where fakes are as
      different as pictures are, 0 where they are all the same. It is the root mean square over pixels of pictures
      brought to 32 rows or fewer.

    Fakes come from the weights that are trained, not from their average, for with these the discriminator plays.

    It warns of over-fitting when `r_v` is above `overfitting`, and held-out scores are lower than those of training
    pictures by more than chance (three standard errors), which need be so in one validation only: when the generator
    gets worse, the discriminator has been over-fitting for long. It warns of collapse when the distance between
    samples, or a recall or coverage that `GenerativeMetrics` logs, falls below the share `collapse` of the best that it
    was, or when that distance is still below 0.1 from the fifth validation on, in `patience` validations in a row. Each
    is said once in a run.

    The bound is of runs like `configs/few_pictures.yaml`, some with a little R1, six validations each. In four on 200
    pictures without augmentation `r_v` first passed 0.2 after 75,000 to 100,000 pictures, at 0.22 to 0.33, where the
    Fréchet distance was the least so far or at most 1.4 times that; it ended at 17 to 48, in one at 2.5 times its least
    while `r_v` was never above 0.28. In five with ADA, which ended at 7 to 10, `r_v` was 0.18 at most, and on 20,000
    pictures 0.02. But it is the discriminator that is looked at: with a lower rate and R1 it over-fitted as much, with
    an `r_v` of 0.57 after 225,000 pictures, and the distance had fallen to 5. So after a warning look at what metrics
    say of samples.

    Any number of processes share the pictures. Training does not notice.

    Args:
        num_images: Training pictures, held-out ones and fakes, at most, evenly spaced over their data.
        batch_size: Scored at once.
        overfitting: Bound of `r_v`.
        collapse: Share of the best so far.
        patience: Validations in a row that show a collapse.

    Raises:
        ValueError: If a number is out of range.
        TypeError: When the trainer starts, if the model has no discriminator of single pictures, `judge`.
    """

    def __init__(
        self,
        num_images: int = 512,
        batch_size: int = 64,
        overfitting: float = 0.2,
        collapse: float = 0.5,
        patience: int = 2,
    ) -> None:
        super().__init__()
        for name, least, number in (
            ("num_images", 2, num_images),
            ("batch_size", 1, batch_size),
            ("patience", 1, patience),
        ):
            if number < least:
                raise ValueError(f"EarlyWarning: {name} must be at least {least}, got {number}.")
        for name, share in (("overfitting", overfitting), ("collapse", collapse)):
            if not 0 < share < 1:
                raise ValueError(f"EarlyWarning: {name} must lie between 0 and 1, got {share}.")
        self.num_images, self.batch_size, self.patience = num_images, batch_size, patience
        self.overfitting, self.collapse = overfitting, collapse
        self.examples: dict[str, _Examples] = {}
        self.best: dict[str, float] = {}  # of what shows a collapse, by name
        self.alike_in_a_row = 0
        self.told: list[str] = []
        self.validations = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there is a discriminator."""
        if stage == "fit" and not isinstance(pl_module, Judges):
            raise TypeError(
                f"EarlyWarning looks at a discriminator of single pictures, and {type(pl_module).__name__} has none "
                "(no `judge`). Leave the callback out."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the pictures, for what is wrong with them should not come out in the middle of the run."""
        if trainer.enable_validation:
            loaders = {split: loader_in(trainer, split, "EarlyWarning") for split in ("train", "val")}
            self.examples = {split: _Examples.of(loader, self.num_images) for split, loader in loaders.items()}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/r_v`, `val/r_t` and `val/sample_distance`."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not self.examples:
            return
        found = self._found(trainer, pl_module)
        figures = found.figures()
        device = pl_module.device  # whose backend sends them
        logged = {
            f"val/{name}": torch.tensor(value, dtype=torch.float32, device=device) for name, value in figures.items()
        }
        pl_module.log_dict(logged, sync_dist=True)
        if figures.get("r_v", 0.0) > self.overfitting and found.is_certain:
            self._warn(
                "overfitting",
                f"The discriminator over-fits: r_v is {figures['r_v']:.2f}, so to it pictures that it has not seen "
                f"are {figures['r_v']:.0%} of the way from those that it learns from to fakes. {OVERFITTING}",
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at all that has been logged of how different samples are."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not self.examples:
            return
        fallen = []
        self.validations += 1
        for name, value in trainer.callback_metrics.items():
            figure = name.removeprefix("val/").partition("-")[0]
            if not name.startswith("val/") or figure not in ("sample_distance", "recall", "coverage"):
                continue
            now = float(value)
            self.best[name] = best = max(self.best.get(name, 0.0), min(now, 1.0))
            if now < self.collapse * best or (figure == "sample_distance" and self.validations > EARLY and now < 0.1):
                fallen.append(f"{name} is {now:.2g}, and was {best:.2g}")
        self.alike_in_a_row = self.alike_in_a_row + 1 if fallen else 0
        if self.alike_in_a_row >= self.patience:
            self._warn("collapse", f"Samples become alike: {'; '.join(fallen)}. {COLLAPSE}")

    def _warn(self, kind: str, words: str) -> None:
        if kind not in self.told:
            self.told.append(kind)
            rank_zero_warn(words)

    # -- what there is to see ---------------------------------------------------------------------------------------

    def _found(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> _Found:
        """The same on every rank."""
        model: Any = pl_module
        boundary: float | None = getattr(getattr(model, "loss", None), "boundary", 0.0)
        scores = {name: torch.zeros(4, dtype=torch.float64) for name in ("train", "val", "fake")}
        values = model.image_shape[0] * math.prod(min(SIDE, size) for size in model.image_shape[1:])
        pixels = {name: torch.zeros(1 + 2 * values, dtype=torch.float64) for name in ("val", "fake")}
        with failing_together(), isolate_rng():  # a dataset of the user's own may draw from the global random state
            for split, examples in self.examples.items():
                for number, batch in examples.batches(self.batch_size):
                    batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                    with looking(trainer, pl_module, averaged=False):
                        images, context = model.images_and_context(batch)
                        labels = context.get("labels")
                        scores[split] += _sums_of_scores(model.judge(images, labels), boundary)
                        if split == "val":
                            pixels["val"] += _sums_of_pixels(model.images_and_labels(batch)[0])
                            continue
                        latents = model.draw_latents(len(images), generator_for(0, number))
                        fakes = model.generate(latents, labels).to(images.dtype)
                        scores["fake"] += _sums_of_scores(model.judge(fakes, labels), boundary)
                        pixels["fake"] += _sums_of_pixels(fakes)
        means = {name: _Mean.of(total(sums)) for name, sums in scores.items()}
        distances = {name: _distance(total(sums)) for name, sums in pixels.items()}
        return _Found(
            means["train"], means["val"], means["fake"], distances["val"], distances["fake"], boundary is not None
        )

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What has been seen and said so far."""
        kept = {"best": dict(self.best), "alike_in_a_row": self.alike_in_a_row, "told": list(self.told)}
        return {**kept, "validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best, self.told = dict(state_dict["best"]), list(state_dict["told"])
        before = state_dict.get("in_a_row", {}).get("collapse", 0)  # which counted for over-fitting, too
        self.alike_in_a_row = state_dict.get("alike_in_a_row", before)
        self.validations = state_dict["validations"]


@dataclass(frozen=True, eq=False)
class _Examples:
    """Some of the pictures of a loader, evenly spaced, without its workers: they are few."""

    dataset: Any
    places: list[int]
    together: Callable[[Any], Any]

    @classmethod
    def of(cls, loader: Any, number: int) -> _Examples:
        dataset: Any = examples_of(loader)
        number = min(number, len(dataset))
        together = loader.collate_fn if isinstance(loader, DataLoader) else collate
        return cls(dataset, [i * len(dataset) // number for i in range(number)], together)

    def batches(self, size: int) -> Iterator[tuple[int, Any]]:
        """(number, batch) of those of this rank."""
        for number, start in list(enumerate(range(0, len(self.places), size)))[rank() :: world_size()]:
            yield number, self.together([self.dataset[place] for place in self.places[start : start + size]])


class _Mean(NamedTuple):
    """Of scores: how many, their mean, its standard error, and the mean of their signs."""

    number: float
    mean: float
    error: float
    sign: float

    @classmethod
    def of(cls, sums: Tensor) -> _Mean:
        number, first, second, signs = sums.tolist()
        variance = max(second / number - (first / number) ** 2, 0.0)
        return cls(number, first / number, math.sqrt(variance / number), signs / number)


class _Found(NamedTuple):
    """Of scores of training pictures, held-out ones and fakes, and distances between those and between these."""

    train: _Mean
    held_out: _Mean
    fake: _Mean
    real_distance: float
    fake_distance: float
    has_boundary: bool = True

    def figures(self) -> dict[str, float]:
        """By name; what is not defined is left out."""
        found = {"r_t": self.train.sign} if self.has_boundary else {}
        if (span := self.train.mean - self.fake.mean) > 0:
            found["r_v"] = (self.train.mean - self.held_out.mean) / span
        if self.real_distance > 0:
            found["sample_distance"] = self.fake_distance / self.real_distance
        return found

    @property
    def is_certain(self) -> bool:
        """Whether held-out pictures get lower scores, and fakes too, by more than chance."""
        return all(
            self.train.mean - other.mean > CERTAIN * math.hypot(self.train.error, other.error)
            for other in (self.held_out, self.fake)
        )


def _sums_of_scores(scores: Tensor, boundary: float | None) -> Tensor:
    """Number, sum, sum of squares and sum of signs `[4]` of what pictures get, the mean of all scores of each."""
    each = scores.double().reshape(len(scores), -1).mean(1)
    return torch.stack([torch.ones_like(each), each, each.square(), (each - (boundary or 0.0)).sign()]).sum(1).cpu()


def _sums_of_pixels(images: Tensor) -> Tensor:
    """Number of pictures, then sums of each of their values, then of the squares: `[1 + 2 D]`."""
    height, width = images.shape[-2:]
    rows = F.adaptive_avg_pool2d(images.double(), (min(SIDE, height), min(SIDE, width))).flatten(1)
    return torch.cat([rows.new_full((1,), float(len(rows))), rows.sum(0), rows.square().sum(0)]).cpu()


def _distance(sums: Tensor) -> float:
    """The root mean square distance between two of the pictures that `_sums_of_pixels` are of."""
    means, squares = (sums[1:] / sums[0]).chunk(2)
    return math.sqrt(max(2 * float((squares - means.square()).sum()), 0.0))
