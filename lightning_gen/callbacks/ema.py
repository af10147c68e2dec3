"""An exponential moving average of some submodules, used wherever the model is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_gen.callbacks.throughput import images_in
from lightning_gen.schedules import Schedule, ends
from lightning_gen.starts import Start


class EMA(pl.Callback):
    """Averages the weights of the named submodules over generator updates.

    Validation, test, pictures and sampling use the average; training goes on with the raw weights. In checkpoints the
    average stands in `state_dict`, so that `load_from_checkpoint` gives it, and the raw weights in `raw_state_dict`,
    so that a run goes on exactly. Buffers are not averaged but copied: the average uses the current ones. Of weights in
    half precision the average is float32, for in halves it would stand still; in checkpoints it stands beside the
    rounded one.

    How long the average remembers is given in one of two ways: by `decay`, counted in updates, or by `half_life_kimg`,
    counted in pictures (Progressive GAN, arXiv 1710.10196: 10 kimg), which means the same at every batch size.

    Args:
        modules: Names of submodules of the model, such as `[generator_AtoB, generator_BtoA]`.
        decay: Share of the old average that each update keeps, in `[0, 1)`; None means 0.999.
        ramp_up: Whether the first updates keep less, so that the average forgets the random weights it starts from:
            the decay is at most (1 + n) / (10 + n) at update n, the half-life at most 0.05 of the pictures seen before
            the update's own (as the code of StyleGAN2, arXiv 1912.04958, does). Weights that began with those of
            another run (`init_from`) are not random, and their average forgets as slowly as ever (as there).
        half_life_kimg: Thousands of real pictures, over all ranks, after which half of the old average is left: an
            update keeps 0.5 ** (pictures since the last update / half-life). All pictures count that are shown
            between two generator updates, by the model's `images_seen` or, of a model that does not count, by the
            length of the first tensor in a batch. A schedule is asked at what was before the update: the pictures of
            this average, or its updates. Where it is 0 the average is the weights themselves.

    Raises:
        ValueError: If the decay or the half-life is out of range, or both are given; or (when training starts) the
            model has no submodule of a name or a `ModelCheckpoint` has `save_weights_only=True`; or (in training) a
            half-life has no pictures to count.
    """

    def __init__(
        self,
        modules: Sequence[str],
        decay: float | None = None,
        ramp_up: bool = True,
        half_life_kimg: float | Schedule | None = None,
    ) -> None:
        super().__init__()
        if decay is not None and half_life_kimg is not None:
            raise ValueError(
                f"EMA takes a decay or half_life_kimg, got both: {decay} and {half_life_kimg}. Leave one out."
            )
        self.decay = 0.999 if decay is None else decay
        if not 0 <= self.decay < 1:
            raise ValueError(f"EMA needs a decay in [0, 1), got {decay}.")
        if half_life_kimg is not None:
            shortest, longest = sorted(ends(half_life_kimg))
            if not 0 <= shortest <= longest < float("inf") or not longest:
                raise ValueError(f"EMA needs a half_life_kimg above 0, got {half_life_kimg}.")
        if isinstance(modules, str):
            raise ValueError(f"EMA needs a list of submodule names, got the string {modules!r}.")
        self.modules = list(modules)
        self.ramp_up = ramp_up
        self.half_life_kimg = half_life_kimg
        self.average: dict[str, Tensor] = {}
        self.updates = 0
        self.images = 0  # up to the last update
        self.new_images = 0  # since then
        self.seen: int | None = None  # by the model, before the batch
        self.last_step = 0
        self.from_random = True  # whether the weights began at random
        self.raw: dict[str, Tensor] = {}  # the weights themselves, while the average is in their place

    @property
    def swapped(self) -> bool:
        """Whether the model has the average at the moment."""
        return bool(self.raw)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the names, and that checkpoints will hold the average."""
        known = dict(pl_module.named_modules())
        for name in self.modules:
            if name not in known:
                children = ", ".join(child for child, _ in pl_module.named_children())
                raise ValueError(f"EMA: {type(pl_module).__name__} has no submodule {name!r}. It has: {children}.")
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise ValueError(
                "EMA: ModelCheckpoint(save_weights_only=True) saves without asking callbacks, so its files would hold "
                "the raw weights instead of the average. Leave save_weights_only out."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the average that a checkpoint brought, if it is of these weights."""
        parameters = self._parameters(pl_module)
        if self.average.keys() != parameters.keys():
            self.average = {}
        self.average = {name: average.to(_precise(parameters[name])) for name, average in self.average.items()}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Start from the weights before the first batch, which a model may have set in its `on_train_start`.

        Of a model that began with the weights of another run, from the average that the run kept of them.
        """
        self.seen = getattr(pl_module, "images_seen", None)
        start: Start | None = getattr(pl_module, "started_from", None)
        self.from_random = start is None or not start.has(self.modules)
        if not self.average:
            self.average = {name: _precise(p.detach().clone()) for name, p in self._parameters(pl_module).items()}
            for name, average in getattr(pl_module, "average_at_start", {}).items():
                if name in self.average:
                    self.average[name].copy_(average)
            self.updates, self.last_step, self.images, self.new_images = 0, trainer.global_step, 0, 0

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Move the average towards the weights, once a generator update."""
        if self.half_life_kimg is not None:
            if not (images := images_in(batch, self.seen, trainer, pl_module)):
                raise ValueError(
                    f"EMA counts pictures for half_life_kimg, but a batch ({type(batch).__name__}) holds no tensor of "
                    "them. Give batches of tensors, or set decay instead."
                )
            self.new_images += images
        if trainer.global_step == self.last_step:
            return
        self.last_step = trainer.global_step
        parameters: list[Tensor] = [_precise(p) for p in self._parameters(pl_module).values()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - self._share_kept())
        self.updates += 1
        self.images, self.new_images = self.images + self.new_images, 0

    def _share_kept(self) -> float:
        """Of the old average, at the update that is due."""
        ramp_up = self.ramp_up and self.from_random
        if self.half_life_kimg is None:
            return min(self.decay, (1 + self.updates) / (10 + self.updates)) if ramp_up else self.decay
        kimg = self.half_life_kimg
        half_life = 1000 * (kimg.at(images=self.images, step=self.updates) if isinstance(kimg, Schedule) else kimg)
        if ramp_up:
            half_life = min(half_life, 0.05 * self.images)
        return 0.5 ** (self.new_images / half_life) if half_life else 0.0

    # -- where the average is used ----------------------------------------------------------------------------------

    def _put_in(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module, True)

    def _take_out(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException | None = None
    ) -> None:
        self._swap(pl_module, False)

    on_validation_start = on_test_start = on_predict_start = _put_in
    on_validation_end = on_test_end = on_predict_end = on_exception = _take_out

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule, averaged: bool) -> None:
        if averaged == self.swapped or not self.average:
            return
        raw, self.raw = self.raw, {}
        for name, parameter in self._parameters(pl_module).items():
            if averaged:
                self.raw[name] = parameter.detach().clone()
            parameter.copy_(self.average[name] if averaged else raw[name])

    def _parameters(self, pl_module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
        prefixes = tuple(f"{name}." for name in self.modules)
        return {name: p for name, p in pl_module.named_parameters() if name.startswith(prefixes)}

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The counts; the weights stand in the checkpoint itself."""
        return {name: getattr(self, name) for name in ("updates", "last_step", "images", "new_images")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the counts back."""
        self.updates, self.last_step = state_dict["updates"], state_dict["last_step"]
        # Checkpoints of earlier versions have no count of pictures.
        self.images, self.new_images = state_dict.get("images", 0), state_dict.get("new_images", 0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the average as the weights that load, and the raw ones beside them."""
        if not self.average:
            return
        weights = checkpoint["state_dict"]
        average = {name: value.to(weights[name].dtype) for name, value in self.average.items()}
        checkpoint["state_dict"] = {**weights, **average}
        checkpoint["raw_state_dict"] = {name: self.raw.get(name, weights[name]) for name in self.average}
        if any(value.dtype != average[name].dtype for name, value in self.average.items()):
            checkpoint["precise_average"] = dict(self.average)

    @torch.no_grad()
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average back, and give the model its raw weights."""
        raw = checkpoint.get("raw_state_dict", {})
        average = checkpoint.get("precise_average", checkpoint["state_dict"])
        self.raw = {}
        self.average = {name: average[name].clone() for name in raw}
        for name, parameter in pl_module.named_parameters():
            if name in raw:
                parameter.copy_(raw[name])


@contextmanager
def averaged_weights(trainer: pl.Trainer, pl_module: pl.LightningModule, averaged: bool = True) -> Iterator[None]:
    """Within it the model has its averaged weights, if the run keeps an average; a no-op where it has them already.

    Without `averaged` it is the other way round: within it the model has the weights that are trained.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [callback for callback in callbacks if isinstance(callback, EMA) and callback.swapped != averaged]
    for average in averages:
        average._swap(pl_module, averaged)
    try:
        yield
    finally:
        for average in averages:
            average._swap(pl_module, not averaged)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
