"""Pictures through time: written to the run's folder and shown by every logger that can."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lightning_gen.callbacks.ema import averaged_weights
from lightning_gen.callbacks.loaded import KnowsStep
from lightning_gen.callbacks.panels import (
    AugmentationPanel,
    CaptionPanel,
    FirstPictures,
    LatentMapPanel,
    Panel,
    PointPanel,
    RealPanel,
    ReconstructionPanel,
    SamplePanel,
    StylePanel,
    TranslationPanel,
)
from lightning_gen.capabilities import Samples
from lightning_gen.data.grids import LAYOUT, _pil
from lightning_gen.files import write_atomically
from lightning_gen.modes import evaluating
from lightning_gen.runs.folder import keeps_files, run_folder
from lightning_gen.runs.layout import IMAGES, pictures_in


def log_picture(trainer: pl.Trainer, name: str, image: Tensor | Image.Image, step: int | None = None) -> None:
    """Keep a picture as `images/NAME/step_00001000.png` in the run's folder, and show it in the loggers.

    Weights & Biases and TensorBoard show it at the right step; loggers that cannot show pictures are left out. A
    picture is not worth a run: what goes wrong while it is written or shown is a warning. Only rank zero does anything,
    and nothing is kept under `fast_dev_run`.

    Args:
        trainer: Whose run it is.
        name: Of the panel, the same through time.
        image: uint8 `[1 or 3, H, W]`, or a PIL image.
        step: Generator updates so far; None means `trainer.global_step`.

    Raises:
        ValueError: If a tensor is not uint8 with 1 or 3 channels.
    """
    if not keeps_files(trainer):
        return
    step = trainer.global_step if step is None else step
    picture = _pil(image) if isinstance(image, Tensor) else image.convert("RGB")
    png = io.BytesIO()
    layout = PngInfo()
    if LAYOUT in picture.info:  # the page takes the columns apart by it
        layout.add_text(LAYOUT, picture.info[LAYOUT])
    picture.save(png, format="PNG", pnginfo=layout)
    path = run_folder(trainer) / IMAGES / name / f"step_{step:08d}.png"
    try:
        write_atomically(path, png.getvalue())
    except OSError as error:
        rank_zero_warn(f"The picture {path} could not be written ({error}); training goes on.")
    for logger in trainer.loggers:
        try:
            if isinstance(logger, WandbLogger):
                # Lightning's `step` is W&B's "trainer/global_step", the x-axis; without it the picture would stand at
                # the step of the last metrics.
                logger.log_image(name, [picture], step=step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
        except Exception as error:
            rank_zero_warn(f"{type(logger).__name__} could not show the picture {name!r} ({error}); training goes on.")


@contextmanager
def looking(trainer: pl.Trainer, pl_module: pl.LightningModule, *, averaged: bool = True) -> Iterator[None]:
    """The state in which a model in training is looked at, with everything put back afterwards.

    Evaluation mode, no gradients, the trainer's precision, averaged weights if the run keeps them (or, without
    `averaged`, those that are trained), and random numbers that start from the same seed each time.
    """
    with (
        evaluating(pl_module),
        torch.no_grad(),
        isolate_rng(),
        averaged_weights(trainer, pl_module, averaged),
        trainer.precision_plugin.forward_context(),
    ):
        torch.manual_seed(0)
        yield


class Pictures(KnowsStep):
    """Shows what a model can do again and again while it learns: a panel for each of its capabilities.

    Panels are those of `callbacks.panels`: translations; samples, as pictures beside real ones, as pictures of captions
    of the data, or as points of which the data knows the true distribution; a map of the latents, where there are two;
    what styles do; reconstructions; what augmented pictures a discriminator is shown.
    It draws before training, whenever the generator updates pass a multiple of `every_n_steps`, and after training.
    Only rank zero draws, and nothing is communicated. Training does not notice: see `looking`. What another callback
    draws alone, such as a `SampleGrid` with settings of its own, is left to it.

    Pictures of the data are the first of the validation data, as the sanity check and the first validation bring them;
    without a sanity check, the first of the training data. They stay the same throughout the run and when it is
    resumed. Testing draws what becomes of the first pictures of the test data once, as `test_AtoB` and so on.

    Args:
        every_n_steps: Generator updates from one drawing to the next; there is also one before and one after training.
        num_images: Pictures of each panel, at most, or its points; None leaves the number to the panel.
        sampling: Settings of the model's own `sample`, such as a temperature.

    Raises:
        ValueError: If a number is below 1, or (when the trainer starts) settings are given and nothing is sampled.
        ArgumentError: If a setting is not one of the model's (when the trainer starts).
    """

    kinds: ClassVar[tuple[type[Panel], ...]] = (
        TranslationPanel,
        PointPanel,
        SamplePanel,
        RealPanel,
        CaptionPanel,
        LatentMapPanel,
        StylePanel,
        ReconstructionPanel,
        AugmentationPanel,
    )

    def __init__(
        self, every_n_steps: int = 500, num_images: int | None = None, sampling: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("num_images", num_images)):
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {value}.")
        self.every_n_steps = every_n_steps
        self.known = [kind(num_images, sampling) for kind in self.kinds]
        self.panels: list[Panel] = []  # those of them that suit the model, and have not shown all that they ever will
        self.inputs, self.test_inputs = FirstPictures(), FirstPictures()
        self.last_drawn: int | None = None
        self.seconds = 0.0  # that the last drawing took

    @property
    def _legacy_state_key(self) -> str:  # type: ignore[override]
        """Where Lightning looks for the state, too: earlier versions had a callback for each kind of panel."""
        names = {TranslationPanel: "TranslationGrid", PointPanel: "PointCloud", SamplePanel: "SampleGrid"}
        return next((names[type(panel)] for panel in self.panels if type(panel) in names), self.state_key)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let all ranks agree on the run's folder, and find the panels that suit the model."""
        run_folder(trainer)
        owner, self.panels = type(self).__name__, []
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        alone = {type(c.known[0]) for c in callbacks if isinstance(c, Pictures) and len(c.known) == 1 and c is not self}
        for panel in self.known:
            if type(panel) in alone:
                continue
            try:
                panel.check(owner, trainer, pl_module)
            except (TypeError, ValueError):
                if len(self.known) == 1:  # it was asked for by name
                    raise
            else:
                self.panels.append(panel)
        given = self.known[0].sampling
        if given and not any(panel.needs is Samples for panel in self.panels):
            raise ValueError(f"{owner} has sampling {given}, but draws no samples of {type(pl_module).__name__}.")
        self.inputs.limit = max((panel.number for panel in self.panels if panel.shows_data), default=0)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the panels now."""
        began = time.monotonic()
        self.last_drawn = trainer.global_step
        if trainer.is_global_zero:
            for name, image in self.pictures(trainer, pl_module, self.panels, self.inputs).items():
                log_picture(trainer, name, image)
                if keeps_files(trainer):
                    # Pictures from later steps show what a resumed run has taken back.
                    for step, path in pictures_in(run_folder(trainer) / IMAGES / name).items():
                        if step > trainer.global_step:
                            path.unlink(missing_ok=True)
        self.seconds = time.monotonic() - began

    def pictures(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, panels: Sequence[Panel], inputs: FirstPictures
    ) -> dict[str, Image.Image]:
        """What panels show, by name; each as if it were the only one."""
        shown: dict[str, Image.Image] = {}
        for panel in panels:
            with looking(trainer, pl_module):
                shown |= panel.draw(trainer, pl_module, inputs)
        return shown

    # -- when ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the drawings of another run."""
        if self.last_drawn is not None and self.last_drawn > trainer.global_step:
            self.last_drawn = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look from the first batch on."""
        self.inputs.passed = 0

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Take the first pictures."""
        if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
            self.inputs.take(batch, "validation")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Draw once before training, from training data if there was no other."""
        if trainer.is_global_zero:
            self.inputs.take(batch, "training")
        if self.last_drawn is None:
            self.draw(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw if it is time."""
        # Steps may advance by none or several per batch: "passed a multiple", not "is a multiple".
        if trainer.global_step // self.every_n_steps > (self.last_drawn or 0) // self.every_n_steps:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the final state."""
        if self.last_drawn is not None and self.last_drawn < trainer.global_step:
            self.draw(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the pictures of an earlier test."""
        self.test_inputs = FirstPictures(self.inputs.limit)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Take the first test pictures."""
        if trainer.is_global_zero:
            self.test_inputs.take(batch, "test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them once."""
        if trainer.is_global_zero:
            panels = [panel for panel in self.panels if panel.shows_data]
            for name, image in self.pictures(trainer, pl_module, panels, self.test_inputs).items():
                log_picture(trainer, f"test_{name}", image, self.step_of_weights(trainer))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """When it drew last, and pictures of the data, so that a resumed run shows the same ones."""
        return {"last_drawn": self.last_drawn, "inputs": asdict(self.inputs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.last_drawn = state_dict["last_drawn"]
        if "inputs" in state_dict:
            self.inputs = FirstPictures(**state_dict["inputs"])


class TranslationGrid(Pictures):
    """A `TranslationPanel` while a model learns; an error when the trainer starts if the model does not translate."""

    kinds = (TranslationPanel,)


class SampleGrid(Pictures):
    """A `SamplePanel` while a model learns; an error when the trainer starts if the model samples no pictures."""

    kinds = (SamplePanel,)


class PointCloud(Pictures):
    """A `PointPanel` while a model learns.

    Args:
        every_n_steps: As in `Pictures`, like `sampling`.
        num_samples: Points of the model, and as many of the truth.
        size: Width and height in pixels.
        landscape: Whether to show the discriminator's scores.
        seed: Of the samples, and of the points from the truth.
        sampling: Settings of the model's own `sample`.

    Raises:
        ValueError: If a number is below 1, or points have more than two coordinates (when the trainer starts).
        TypeError: If the model draws no samples or the data has no `distribution` (when the trainer starts).
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 1000,
        *,
        size: int = 512,
        landscape: bool = True,
        seed: int = 0,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(every_n_steps, sampling=sampling)
        if num_samples < 1 or size < 1:
            raise ValueError(f"PointCloud needs num_samples >= 1 and size >= 1, got {num_samples} and {size}.")
        self.known = [PointPanel(num_samples, sampling, size, landscape, seed)]
