"""Pictures through time: written to the run's folder and shown by every logger that can."""

from __future__ import annotations

import io
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from lightning_gen.callbacks.ema import averaged_weights
from lightning_gen.capabilities import Direction, Samples, Translates
from lightning_gen.data.grids import _pil, picture_grid, square_grid
from lightning_gen.data.images import from_uint8, to_uint8
from lightning_gen.files import write_atomically
from lightning_gen.generative import GenerativeModule, as_floats
from lightning_gen.runs.folder import IMAGES, keeps_files, pictures_in, run_folder


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
    picture.save(png, format="PNG")
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
def looking(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """The state in which a model in training is looked at, with everything put back afterwards.

    Evaluation mode, no gradients, the trainer's precision, averaged weights if the run keeps them, and random numbers
    that start from the same seed each time.
    """
    modes = {module: module.training for module in pl_module.modules()}
    pl_module.eval()
    try:
        with (
            torch.no_grad(),
            isolate_rng(),
            averaged_weights(trainer, pl_module),
            trainer.precision_plugin.forward_context(),
        ):
            torch.manual_seed(0)
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class PicturesThroughTime(pl.Callback, ABC):
    """Base of callbacks that draw the same panels again and again while the model learns.

    It draws before training, whenever the generator updates pass a multiple of `every_n_steps`, and after training.
    Only rank zero draws, and nothing is communicated. Training does not notice: see `looking`.

    Args:
        every_n_steps: Generator updates from one drawing to the next.

    Raises:
        ValueError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"{type(self).__name__}: every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.last_drawn: int | None = None
        self.seconds = 0.0  # that the last drawing took

    @abstractmethod
    def panels(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Mapping[str, Image.Image]:
        """The panels by name, drawn from the present weights; called within `looking`, on rank zero."""

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the panels now."""
        began = time.monotonic()
        self.last_drawn = trainer.global_step
        if trainer.is_global_zero:
            with looking(trainer, pl_module):
                panels = self.panels(trainer, pl_module)
            for name, image in panels.items():
                log_picture(trainer, name, image)
                if keeps_files(trainer):
                    # Pictures from later steps show what a resumed run has taken back.
                    for step, path in pictures_in(run_folder(trainer) / IMAGES / name).items():
                        if step > trainer.global_step:
                            path.unlink(missing_ok=True)
        self.seconds = time.monotonic() - began

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let all ranks agree on the run's folder."""
        run_folder(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the drawings of another run."""
        if self.last_drawn is not None and self.last_drawn > trainer.global_step:
            self.last_drawn = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Draw once before training."""
        if self.last_drawn is None:
            self.draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Draw if it is time."""
        # Steps may advance by none or several per batch: "passed a multiple", not "is a multiple".
        if trainer.global_step // self.every_n_steps > (self.last_drawn or 0) // self.every_n_steps:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the final state."""
        if self.last_drawn is not None and self.last_drawn < trainer.global_step:
            self.draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """When it drew last."""
        return {"last_drawn": self.last_drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.last_drawn = state_dict["last_drawn"]


@dataclass
class FirstPictures:
    """The first pictures that come along in batches.

    Attributes:
        limit: How many of each domain.
        pictures: By domain, uint8 `[C, H, W]` each; sizes may differ.
        source: Where the first ones came from; no others are taken.
        paired: Whether A and B show the same scenes.
        passed: How many have come along in this pass over the source.
    """

    limit: int
    pictures: dict[str, list[Tensor]] = field(default_factory=dict)
    source: str = ""
    paired: bool = False
    passed: int = 0

    def take(self, batch: Any, source: str) -> None:
        """Take pictures from a batch `{"A", "B"}` until there are enough.

        A pass that begins anew (set `passed` to 0) shows those again that an earlier one has shown; they are left out.
        """
        if not isinstance(batch, Mapping) or self.source not in ("", source):
            return
        passed = self.passed
        for domain in batch.keys() & {"A", "B"}:
            taken = self.pictures.setdefault(domain, [])
            if len(taken) < self.limit:
                known = max(0, len(taken) - self.passed)
                new = batch[domain][known : known + self.limit - len(taken)]
                taken.extend(to_uint8(as_floats(new.detach(), type(self).__name__)).cpu())
                self.source, self.paired = source, "paired" in batch
            passed = self.passed + len(batch[domain])
        self.passed = passed


class TranslationGrid(PicturesThroughTime):
    """Shows what a translation model makes of a few fixed pictures while it learns, one panel for each direction.

    The panel AtoB has a row for each picture of A and the columns "A", "A to B", and where the model translates back,
    "A to B to A" and "identity of A": what the translator into A makes of A itself, which should be A. Where the data
    is paired, "B (target)" shows the true counterpart. The panel BtoA is its mirror image.

    The pictures are the first of the validation data, as the sanity check and the first validation bring them; without
    a sanity check, the first of the training data. They stay the same throughout the run and when it is resumed.
    Testing draws the first pictures of the test data once, in the panels `test_AtoB` and `test_BtoA`.

    Args:
        every_n_steps: Generator updates from one drawing to the next; there is also one before and one after training.
        num_images: Rows of each panel.

    Raises:
        ValueError: If a number is below 1.
        TypeError: If the model does not translate (when the trainer starts).
    """

    def __init__(self, every_n_steps: int = 500, num_images: int = 4) -> None:
        super().__init__(every_n_steps)
        if num_images < 1:
            raise ValueError(f"TranslationGrid: num_images must be at least 1, got {num_images}.")
        self.num_images = num_images
        self.inputs = FirstPictures(num_images)
        self.test_inputs = FirstPictures(num_images)
        self.loaded_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the model translates."""
        super().setup(trainer, pl_module, stage)
        if not isinstance(pl_module, Translates):
            raise TypeError(
                f"TranslationGrid draws models with `translate` and `directions`; {type(pl_module).__name__} has not "
                "both. Take TranslationGrid out of trainer.callbacks."
            )

    def panels(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Image.Image]:
        """One grid for each direction, by its name."""
        return self.grids(trainer, pl_module, self.inputs)

    def grids(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures
    ) -> dict[str, Image.Image]:
        """The translations of some inputs as one grid for each direction."""
        model = cast(Translates, pl_module)

        def translate(images: list[Tensor], direction: Direction) -> list[Tensor]:
            """One by one, for pictures may differ in size."""
            convert = trainer.precision_plugin.convert_input
            return [model.translate(convert(image[None]), direction)[0] for image in images]

        grids: dict[str, Image.Image] = {}
        for direction in model.directions:
            source, target = direction[0], direction[-1]
            back = cast(Direction, f"{target}to{source}")
            real = [from_uint8(picture).to(pl_module.device) for picture in inputs.pictures.get(source, ())]
            if not real:
                continue
            fake = translate(real, direction)
            columns = {source: real, f"{source} to {target}": fake}
            if back in model.directions:
                columns[f"{source} to {target} to {source}"] = translate(fake, back)
                columns[f"identity of {source}"] = translate(real, back)
            pictures = {title: [to_uint8(image).cpu() for image in images] for title, images in columns.items()}
            if inputs.paired:
                pictures[f"{target} (target)"] = inputs.pictures[target]
            grids[direction] = picture_grid(pictures)
        return grids

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
        super().on_train_batch_start(trainer, pl_module, batch)

    # -- test -------------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the pictures of an earlier test."""
        self.test_inputs = FirstPictures(self.num_images)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Take the first test pictures."""
        if trainer.is_global_zero:
            self.test_inputs.take(batch, "test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them once."""
        if trainer.is_global_zero:
            with looking(trainer, pl_module):
                grids = self.grids(trainer, pl_module, self.test_inputs)
            step = self.loaded_step if trainer.ckpt_path else trainer.global_step
            for direction, image in grids.items():
                log_picture(trainer, f"test_{direction}", image, step)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the step, which Lightning does not restore for testing."""
        self.loaded_step = checkpoint["global_step"]

    def state_dict(self) -> dict[str, Any]:
        """The pictures too, so that a resumed run shows the same ones."""
        return {**super().state_dict(), "inputs": asdict(self.inputs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state_dict)
        self.inputs = FirstPictures(**state_dict["inputs"])


class SampleGrid(PicturesThroughTime):
    """Shows what a model draws from the same noise again and again while it learns, in the panel "samples".

    Models with classes have a row for each, in order, no longer than a square grid's, or a square of one picture of
    each class where there are too many for that.

    Args:
        every_n_steps: Generator updates from one drawing to the next; there is also one before and one after training.
        num_images: How many pictures, at most.

    Raises:
        ValueError: If a number is below 1, or (when the trainer starts) pictures have neither 1 nor 3 channels.
        TypeError: If the model does not sample (when the trainer starts).
    """

    def __init__(self, every_n_steps: int = 500, num_images: int = 64) -> None:
        super().__init__(every_n_steps)
        if num_images < 1:
            raise ValueError(f"SampleGrid: num_images must be at least 1, got {num_images}.")
        self.num_images = num_images

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the model samples pictures."""
        super().setup(trainer, pl_module, stage)
        name = type(pl_module).__name__
        if not isinstance(pl_module, Samples):
            raise TypeError(
                f"SampleGrid draws models with `sample` and `num_classes`; {name} has not both. "
                "Take SampleGrid out of trainer.callbacks."
            )
        if isinstance(pl_module, GenerativeModule) and pl_module.image_shape[0] not in (1, 3):
            raise ValueError(
                f"SampleGrid draws pictures of 1 or 3 channels; {name} has image_shape {pl_module.image_shape}. "
                "Take SampleGrid out of trainer.callbacks."
            )

    def panels(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Image.Image]:
        """The one panel."""
        model = cast(Samples, pl_module)
        labels, columns = self.labels(model.num_classes)
        number = self.num_images if labels is None else len(labels)
        images = model.sample(number, labels=labels, generator=torch.Generator().manual_seed(0))
        return {"samples": square_grid(list(to_uint8(images).cpu()), columns)}

    def labels(self, num_classes: int | None) -> tuple[Tensor | None, int]:
        """Classes of the pictures, row by row, and how many stand in a row."""
        square = math.ceil(math.sqrt(self.num_images))
        if num_classes is None:
            return None, square
        in_a_row = min(square, self.num_images // num_classes)
        if in_a_row < 2:
            labels = torch.arange(min(num_classes, self.num_images))
            return labels, math.ceil(math.sqrt(len(labels)))
        return torch.arange(num_classes).repeat_interleave(in_a_row), in_a_row
