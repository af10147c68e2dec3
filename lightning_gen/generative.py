"""The contract: all that callbacks, metrics and the command line may rely on in a model."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_gen.capabilities import Tokenizer
from lightning_gen.checkpoints import CheckpointError, check_going_on, digest_weights, first_line, read_checkpoint
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.batches import batch_pictures, check_range, images_and_labels, parts_of
from lightning_gen.data.images import from_uint8
from lightning_gen.hyperparameters import (
    CLASS_KEY,
    WEIGHTS_KEY,
    Recipe,
    accepts,
    hyperparameters_of,
    import_path,
    with_defaults,
)
from lightning_gen.loops import use_own_loop
from lightning_gen.networks.building import check_image_shape
from lightning_gen.randomness import seed_from
from lightning_gen.resuming import SETTINGS, differences, keep_changes, training_settings
from lightning_gen.runs.folder import find_checkpoint
from lightning_gen.schedules import Schedule
from lightning_gen.starts import Start, fitting, start_of
from lightning_gen.text import BPETokenizer, trained_with

TO_START = "For a new run that begins with its weights, with other data, classes or sizes, give --init_from instead."
LOOKED_AT = 4  # batches of each kind whose values are looked at

Model = TypeVar("Model", bound="GenerativeModule")


class GenerativeModule(pl.LightningModule):
    """Base of all models.

    It gives a model four habits:

    * *A checkpoint is enough.* `load_from_checkpoint` needs the file alone, whether the model was made from a
      configuration or in Python, and refuses what a stranger may have put into it.
    * *Noise is a function of (seed, rank, batch).* Before every training batch the random state is set from these
      three, so ranks differ, and a run that goes on after a stop draws what it would have drawn.
    * *`images_seen`* counts the real images shown so far, over all ranks: a number of the host, which schedules may
      ask at every step. It stands in checkpoints, so it resumes.
    * *Pictures are in `[-1, 1]`*, whatever loader they come from: uint8 is converted, and the first batches of other
      values are refused, or spoken about where nothing in them is below 0.
    * *`forward` is what `torch.export` and `to_onnx` take*: what a user's program asks of the model, as a function of
      tensors, in the mode that it is in and with a graph.

    A subclass calls `self.save_hyperparameters()` in its `__init__`. One that contains another model takes it as an
    argument, annotated as `GenerativeModule` or as a protocol of `lightning_gen.capabilities`, and keeps it as a part,
    most often `self.first_stage = frozen(first_stage)`. On the command line it is given as the path of a checkpoint.
    The outer model's checkpoint holds what the inner one is made of, its weights and their digest, and is enough.

    Args:
        image_shape: (channels, height, width).
    """

    instead_of: ClassVar[Mapping[str, str]] = {}
    """Settings of the trainer that are refused in training, and what to do instead."""
    prediction_name = "value"
    """What the numbers are that `predict_step` gives, where it gives numbers: the name of their column."""
    progress_figures: ClassVar[Sequence[str]] = ()
    """Beginnings of the names of those figures of training that the progress bar shows first, such as "cycle", of
    several with the same beginning their mean; others that are logged with `prog_bar=True` follow."""
    # What the model is given besides pictures; see `declare_context`.
    num_classes: int | None = None
    condition_channels: int | None = None
    text: Tokenizer | None = None

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        check_image_shape(image_shape)
        self.image_shape: tuple[int, int, int] = tuple(image_shape)  # type: ignore[assignment]
        self._models: dict[str, GenerativeModule] = {}  # arguments of the constructor that are models
        self._stays_frozen = False
        self.training_shape = self.image_shape  # of the batches of training, which are smaller where a model grows
        self.noise_seed: int | None = None
        self._going_on_from: dict[str, Any] | None = None  # the checkpoint, until its states have been restored
        self._training_settings: dict[str, Any] | None = None
        self.batches_before = 0  # training batches before the present one, over all epochs
        self.class_names: list[str] | None = None  # by number, where the model has classes and the data names them
        # The lowest values in the first batches of each loader, by name.
        self._lowest: dict[tuple[Any, int], list[dict[str, float]]] = {}
        self._has_spoken = False
        self.images_seen = 0
        self.started_from: Start | None = None  # where the weights began, if not at random
        self.average_at_start: dict[str, Tensor] = {}  # of another run's weights, for a callback that averages

    def train(self: Model, mode: bool = True) -> Model:
        """As `torch.nn.Module.train`, but of what is `frozen` the mode stays."""
        return super().train(mode and not self._stays_frozen)

    # -- precision --------------------------------------------------------------------------------------------------

    @property  # type: ignore[misc]  # Lightning's, which has a setter that refuses
    def dtype(self) -> torch.dtype:
        """Of the weights, however they came to it: by a trainer's precision, a checkpoint or `to`."""
        floats = (parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        return next(floats, torch.float32)

    def own(self, tensor: Tensor) -> Tensor:
        """Floats as the networks take them: of the type of the weights. uint8 is taken for pictures, in `[-1, 1]` then.

        All that comes into a model passes here, so that weights of any type can be trained and sampled from. Under
        mixed precision weights are float32, and autocast does the rest.
        """
        return (from_uint8(tensor) if tensor.dtype == torch.uint8 else tensor).to(self.dtype)

    # -- clipping ---------------------------------------------------------------------------------------------------

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, but by norm also for a fused optimizer under float16, which takes gradients as scaled."""
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if fused and gradient_clip_val and gradient_clip_algorithm != "value":
            self.clip_to_norm(optimizer, gradient_clip_val, scaled=True)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_to_norm(self, optimizer: Optimizer, norm: float, *, scaled: bool) -> None:
        """Clip the gradient of all of an optimizer's parameters together.

        Args:
            optimizer: Whose parameters.
            norm: That the gradient has at most.
            scaled: Whether gradients are still as much larger as the loss was, where the trainer scales it.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaled and scaler is not None:
            found = found / scaler.scale(torch.ones_like(found))
        torch.nn.utils.clip_grads_with_norm_(parameters, norm, found)

    # -- noise ------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Take the seed of `seed_everything`, unless a checkpoint brought one, and let changed settings hold.

        A checkpoint brings back the settings of its optimizers and schedules with their states.
        """
        # Gradients of 1 x 1 convolutions have this or that stride in dimensions of size 1, where strides mean nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Checkpoints are to have the weights of their step, and all of a run's state, which is read safely.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(_says_something)
        if self.noise_seed is None:
            self.noise_seed = torch.initial_seed() % 2**63
        optimizers = self.trainer.optimizers
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        self._training_settings = training_settings(optimizers, schedules)
        checkpoint, self._going_on_from = self._going_on_from, None
        if checkpoint is not None:
            changes = keep_changes(checkpoint, optimizers, schedules)
            before = with_defaults(type(self), self.upgraded(checkpoint.get("hyper_parameters", {})))
            changes = differences(before, with_defaults(type(self), hyperparameters_of(self.hparams))) or changes
            if changes:
                rank_zero_info(f"Changed since the checkpoint: {', '.join(map(str, changes))}")

    def on_train_start(self) -> None:
        """Let this run's schedules hold from the first step.

        A checkpoint brings the last learning rates of the run before, whose end, for one, may have been another.
        """
        for schedule in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            if isinstance(schedule, LambdaLR):
                rates = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
                for group, base, factor in rates:
                    group["lr"] = base * factor(schedule.last_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the random state from (seed, rank, batches so far)."""
        self.average_at_start = {}  # callbacks have it by now
        self.batches_before = self.trainer.fit_loop.epoch_loop.total_batch_idx
        self._set_noise(self.batches_before)

    def on_validation_start(self) -> None:
        """Set the random state likewise, so that a validation is the same where a run goes on with it."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._set_noise(self.trainer.fit_loop.epoch_loop.total_batch_idx + 1, 1)

    def _set_noise(self, *place: int) -> None:
        if self.noise_seed is None:
            return
        seed = seed_from(self.noise_seed, self.global_rank, *place)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for every kind of device, which takes long
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def scheduled(self, value: float | Schedule) -> float:
        """A number, or what a schedule says here: at the images seen, or the steps taken, before this batch."""
        if isinstance(value, Schedule):
            return value.at(images=self.images_seen, step=self.trainer.global_step)
        return value

    # -- batches ----------------------------------------------------------------------------------------------------

    def images_and_labels(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Pictures `[N, C, H, W]` and, where there are any, labels `[N]` of a batch.

        Args:
            batch: As `lightning_gen.data.batches.images_and_labels` takes it.

        Raises:
            ValueError: If it does not, or its pictures have another shape than `image_shape` (in training:
                `training_shape`).
        """
        images, labels = images_and_labels(batch, type(self).__name__)
        expected = self.training_shape if self.training else self.image_shape
        if images.shape[1:] != expected:
            raise ValueError(
                f"The data gives pictures of shape {tuple(images.shape[1:])}, but this {type(self).__name__} was made "
                f"for image_shape {expected}."
            )
        return self.own(images), labels

    # -- what is given besides pictures -----------------------------------------------------------------------------

    def declare_context(
        self,
        *,
        num_classes: int | None = None,
        condition_channels: int | None = None,
        text: Tokenizer | None = None,
    ) -> None:
        """Say what the model is given besides pictures; None leaves it out, whether the data has it or not.

        Args:
            num_classes: Classes, of which batches have a "label" each.
            condition_channels: Channels of a map `[N, channels, H, W]`, which batches have under "condition".
            text: Makes tokens of captions, a list of strings, which batches have under "caption".

        Raises:
            ValueError: If a number is below 1.
        """
        for name, number in (("num_classes", num_classes), ("condition_channels", condition_channels)):
            if number is not None and number < 1:
                what = "labels" if name == "num_classes" else "a condition"
                raise ValueError(f"{name} must be at least 1, or null for a model without {what}; got {number}.")
        self.num_classes, self.condition_channels, self.text = num_classes, condition_channels, text

    def context(
        self,
        number: int,
        labels: Tensor | int | None = None,
        condition: Tensor | None = None,
        captions: Sequence[str] | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What networks are given besides so many pictures, by the names of their arguments, on the model's device.

        Args:
            number: N.
            labels: Classes `[N]`, int64, or one for all. Their range is looked at on the host only: on a device that
                would wait for it.
            condition: `[N, condition_channels, H, W]`.
            captions: N texts, or what `text` has made of them.

        Returns:
            All of "labels" `[N]`, "condition" and "captions" (int64 `[N, length]`, of tokens) that the model takes.

        Raises:
            ValueError: If one is missing, surplus, of another shape or not as many, or labels are out of range.
        """
        context: dict[str, Tensor] = {}
        name = f"This {type(self).__name__}"
        for value, taken, words in (
            (labels, self.num_classes, "has no classes (num_classes), but labels were given"),
            (condition, self.condition_channels, "is conditioned on no map (condition_channels), but one was given"),
            (captions, self.text, "reads no captions (text), but some were given"),
        ):
            if value is not None and taken is None:
                raise ValueError(f"{name} {words}.")
        if self.num_classes is not None:
            if labels is None:
                raise ValueError(
                    f"{name} has num_classes={self.num_classes}, but no labels were given. Give them (data needs a "
                    "'label'; ImageFolder gives it with --data.labels true), or leave num_classes out."
                )
            labels = torch.as_tensor(labels, dtype=torch.int64)
            if labels.ndim > 1 or (labels.ndim and len(labels) != number):
                raise ValueError(f"Labels must be [N] or one for all, got {list(labels.shape)} for {number} pictures.")
            self._look_at_labels(labels)
            context["labels"] = labels.expand(number).to(self.device)
        if self.condition_channels is not None:
            shape = (number, self.condition_channels, *self.image_shape[1:])
            if condition is None or condition.shape != shape:
                raise ValueError(
                    f"{name} needs a condition of shape {list(shape)}, got "
                    f"{'none' if condition is None else list(condition.shape)}."
                )
            context["condition"] = condition.to(self.device, self.dtype)  # numbers as they are, also of uint8
        if self.text is not None:
            if captions is None or isinstance(captions, str) or len(captions) != number:
                got = "none" if captions is None else repr(captions) if isinstance(captions, str) else len(captions)
                raise ValueError(
                    f"{name} needs {number} captions, a list of strings, got {got}. Give them (data needs a 'caption'; "
                    "ImageFolder gives it with --data.captions true)."
                )
            context["captions"] = (captions if isinstance(captions, Tensor) else self.text(captions)).to(self.device)
        return context

    def _look_at_labels(self, labels: Tensor) -> None:
        if self.num_classes is None or labels.device.type != "cpu" or not labels.numel():
            return
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < self.num_classes:
            raise ValueError(
                f"Labels must lie in 0 .. {self.num_classes - 1} for num_classes={self.num_classes}; got "
                f"{low} .. {high}."
            )

    def sampling_context(self, num_samples: int, labels: Tensor | int | None = None, *others: Any) -> dict[str, Tensor]:
        """As `context`, of pictures that are to be drawn: without labels all classes come in turn.

        Raises:
            ValueError: As `context`, or if the number is negative.
        """
        if num_samples < 0:
            raise ValueError(f"num_samples must be 0 or more, got {num_samples}.")
        if labels is None and self.num_classes is not None:
            labels = torch.arange(num_samples) % self.num_classes
        labels = None if labels is None else torch.as_tensor(labels).cpu()  # where a look costs no wait
        return self.context(num_samples, labels, *others)

    def images_and_context(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures of a batch, and of what else is in it all that the model is given.

        Raises:
            ValueError: As `images_and_labels` and `context`.
        """
        images, labels = self.images_and_labels(batch)
        others: Mapping[str, Any] = batch if isinstance(batch, Mapping) else {}
        return images, self.context(
            len(images),
            None if self.num_classes is None else labels,
            None if self.condition_channels is None else others.get("condition"),
            None if self.text is None else others.get("caption"),
        )

    def setup(self, stage: str) -> None:
        """Compare the number of classes with that of the data, take their names, and begin to look at pictures anew.

        For training, a tokenizer that has yet to learn its vocabulary learns it from the captions of the data.

        Raises:
            ValueError: If they differ, or the data has no labels; for training in a precision that is too coarse; or if
                there are no captions to learn from.
        """
        if stage == "fit" and self.trainer.precision == "16-true":
            raise ValueError(
                "Training with precision 16-true was asked for. Optimizers divide by the root of mean squared "
                "gradients, and in float16 the square of a gradient below 0.0002 is zero. Use 16-mixed, which keeps "
                "weights in float32, or bf16-true, bf16-mixed or 32-true."
            )
        # Of a hook that a data module could have in our place, but need not.
        warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer` in `LightningModule`")
        self._lowest, self._has_spoken = {}, False
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and self.text is not None:
            self._take_tokenizer(trained_with(self.text, data))
        own, known = self.num_classes, getattr(data, "num_classes", -1)
        if own is None or known in (own, -1):
            names = getattr(data, "class_names", None)
            if own is not None and isinstance(names, list | tuple) and len(names) == own:
                self.class_names = [str(name) for name in names]
                if stage == "fit":
                    self._compare_class_names(self.started_from)
            return
        options = [name for name in ("labels", "labelled") if getattr(data, name, None) is False]
        hint = f" Give it --data.{options[0]} true, or leave num_classes out." if options and known is None else ""
        raise ValueError(
            f"The model has num_classes={own}, but {type(data).__name__} has "
            f"{'no labels' if known is None else f'{known} classes'}.{hint}"
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at labels and the first pictures, on the host, where that costs no wait, and make tokens of captions.

        Points (pictures of one pixel) may lie anywhere. Where something is done to batches on the device, it may well
        be what brings them to `[-1, 1]`, and nothing is looked at.

        Raises:
            ValueError: If a value is outside `[-1, 1]`, or a label no class.
        """
        labels = parts_of(batch)[1]
        if isinstance(labels, Tensor) and labels.ndim == 1:
            self._look_at_labels(labels)
        if self.text is not None and isinstance(batch, Mapping) and isinstance(batch.get("caption"), list):
            batch = {**batch, "caption": self.text(batch["caption"], self._rng_of_text())}
        stage = None if self._trainer is None else self.trainer.state.stage
        seen = self._lowest.setdefault((stage, dataloader_idx), [])
        if stage is None or len(seen) == LOOKED_AT or self.image_shape[1:] == (1, 1) or self._changed_on_device():
            return batch
        found = batch_pictures(batch).items()
        pictures = {name: images for name, images in found if images.is_floating_point() and len(images)}
        if not pictures:
            return batch
        own = type(self).__name__
        seen.append({name: check_range(images, own, f"{name} in a batch") for name, images in pictures.items()})
        bright = [name for name in seen[0] if all(lowest.get(name, -1) >= 0 for lowest in seen)]
        if len(seen) == LOOKED_AT and bright and not self._has_spoken:
            self._has_spoken = True
            rank_zero_warn(
                f"Nothing is below 0 in {' and '.join(bright)} of the first {LOOKED_AT} batches ({stage.value}). "
                "Models take pictures in [-1, 1], where -1 is black: if these are in [0, 1], give 2 x - 1, or uint8."
            )
        return batch

    def _rng_of_text(self) -> np.random.Generator | None:
        """In training, what is random about the tokens of the batch that comes: of (seed, rank, batch), as all noise.

        The random state itself is set later, when the batch has arrived.
        """
        if self._trainer is None or not self.trainer.training or self.noise_seed is None:
            return None
        place = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return np.random.default_rng(seed_from(self.noise_seed, self.global_rank, place, 2))

    def _changed_on_device(self) -> bool:
        data = getattr(self.trainer, "datamodule", None)
        known = ImageDataModule if isinstance(data, ImageDataModule) else None  # which leaves floats as they are
        hooks = ("transfer_batch_to_device", "on_after_batch_transfer")
        return any(is_overridden(hook, self) or is_overridden(hook, data, known) for hook in hooks)

    # -- what is logged, shown and saved ----------------------------------------------------------------------------
    #
    # A model says all of it by what is here and by what it can do: the terminal shows what it logs with `prog_bar=True`
    # and its `headlines`, pictures have a panel for each of its capabilities, the column of predictions is its
    # `prediction_name`, and what it needs beside its weights, such as an average of them, it brings as callbacks.

    def headlines(self) -> dict[str, str]:
        """The figures of a test with which `fit` ends: by name, as {"test/accuracy": "Test accuracy: {:.2%}"}."""
        return {}

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """As Lightning's, but a mean is that of all pictures also where processes do not have as many each.

        Lightning takes the mean of their numbers of pictures, which of 4 and 5, as integers, is 4.
        """
        if options.get("batch_size") is not None:
            options["batch_size"] = float(options["batch_size"])
        super().log(name, value, *args, **options)

    def configure_callbacks(self) -> list[pl.Callback]:
        """None. But here, before Lightning refuses to clip and to accumulate by hand, is where to say what does so.

        Raises:
            ValueError: If the trainer was told to do what this model does another way.
        """
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            idle = {"accumulate_grad_batches": 1}
            for setting, instead in self.instead_of.items():
                value = getattr(self.trainer, setting)
                if value and value != idle.get(setting):
                    raise ValueError(f"The trainer was given {setting}={value}. {instead.format(value=value)}")
        return []

    # -- weights of another run -------------------------------------------------------------------------------------

    def init_from(self, checkpoint: str | Path) -> Start:
        """Begin with the weights of another run: for other data, other classes, or pictures of another size.

        Networks take what fits by name and shape, and nothing is cut to fit; the rest keeps its first values. Weights
        take the raw weights of the run, and an average of them (`EMA`) takes its average, if it kept one, and moves at
        its full decay from the first step. All else begins anew: optimizers, schedules, `images_seen`, the random
        state. That is the difference to `ckpt_path`, by which the other run goes on where it stopped.

        The model's own checkpoints then say where it began, in `started_from`, and do not need the file.

        Args:
            checkpoint: The file, or a run's folder, or RUN/best; see `lightning_gen.runs.folder.find_checkpoint`. It is
                read as safely as by `load_from_checkpoint`, and no class is made of it.

        Returns:
            What was taken and what was not, by name and shape; it is printed too.

        Raises:
            FileNotFoundError: If there is none.
            CheckpointError: If it is none, or nothing in it fits.
        """
        path = find_checkpoint(checkpoint)
        contents = read_checkpoint(path)
        raw = contents.get("raw_state_dict", {})
        taken = fitting(self, contents["state_dict"] | raw)
        start = start_of(self, taken, contents, str(path))
        self.load_state_dict(self.state_dict() | taken)
        average = fitting(self, contents["state_dict"] | contents.get("precise_average", {}))
        self.average_at_start = {name: tensor for name, tensor in average.items() if name in raw}
        if isinstance(self.text, BPETokenizer) and not self.text.vocabulary:
            self._take_vocabulary(contents.get("hyper_parameters", {}))
        self.started_from = start
        rank_zero_info(str(start))
        return start

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save_hyperparameters(self, *args: Any, ignore: Any = None, frame: Any = None, logger: bool = True) -> None:
        """As Lightning's, but as plain data: factories and losses are saved by import path."""
        caller = inspect.currentframe()
        frame = frame or (caller.f_back if caller else None)
        earlier, given = dict(self.hparams), _given_to_constructor(frame, self)
        ignore = {ignore} if isinstance(ignore, str) else {*(ignore or ())}
        models = {name: value for name, value in given.items() if isinstance(value, GenerativeModule)}
        self._models = {name: model for name, model in models.items() if name not in ignore}
        super().save_hyperparameters(*args, ignore=[*ignore, *models], frame=frame, logger=logger)
        saved = dict(self.hparams)
        if "_instantiator" not in saved:
            # Lightning adds what a subclass hands on to its base, which must not be given to it again, and the
            # arguments of a model around this one.
            known = earlier | given
            saved = {name: known[name] for name in saved if name in known}
        saved |= self._models
        # The command line also hands over what it has linked to other models' arguments.
        plain = {
            name: value
            for name, value in hyperparameters_of(saved).items()
            if name.startswith("_") or accepts(type(self), name)
        }
        self.hparams.clear()
        self.hparams.update(plain)
        self._hparams_initial = copy.deepcopy(self._hparams)  # what Lightning shows to loggers

    @classmethod
    def upgraded(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Hyper-parameters of a checkpoint as this version has them; for classes whose earlier versions had others."""
        return dict(saved)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not save: the class, images seen, the seed of the noise, and the names of classes."""
        try:
            class_path = import_path(type(self))
        except TypeError:  # a class made inside a function: it can be resumed, not rebuilt from its name
            class_path = type(self).__qualname__
        parameters = {**hyperparameters_of(self.hparams), CLASS_KEY: class_path}
        for name, model in self._models.items():
            if name in parameters:  # it says which it is, by its class and its weights
                parameters[name] = parameters[name] | {WEIGHTS_KEY: digest_weights(model.state_dict())}
        checkpoint["hyper_parameters"] = parameters
        checkpoint["images_seen"], checkpoint["noise_seed"] = self.images_seen, self.noise_seed
        if self.class_names:
            checkpoint["class_names"] = self.class_names
        if self.started_from is not None:
            checkpoint["started_from"] = self.started_from.plain()
        if self._training_settings is not None:
            checkpoint[SETTINGS] = self._training_settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take count, seed and names back, and refuse the weights of another model with a word instead of a list.

        Raises:
            CheckpointError: If the checkpoint was written by another class, its weights have other shapes, the data has
                other names for the classes than it has, or a run is to go on from weights alone.
        """
        written_by = checkpoint.get("hyper_parameters", {}).get(CLASS_KEY)
        name = type(self).__name__
        if written_by is not None and written_by.rpartition(".")[2] not in {c.__name__ for c in type(self).__mro__}:
            raise CheckpointError(
                f"The checkpoint was written by {written_by} and cannot go on as {name}.{self._instead()}"
            )
        # Earlier versions counted in a buffer.
        self.images_seen = int(checkpoint["state_dict"].pop("images_seen", checkpoint.get("images_seen", 0)))
        self._check_weights(checkpoint["state_dict"])
        self._take_class_names(checkpoint.get("class_names"))
        self._take_vocabulary(checkpoint.get("hyper_parameters", {}))
        self.noise_seed = checkpoint.get("noise_seed")
        self.started_from, self.average_at_start = Start.of_plain(checkpoint.get("started_from")), {}
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return
        check_going_on(checkpoint)
        use_own_loop(trainer)
        self._going_on_from = checkpoint
        states = checkpoint.get("callbacks", {})
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in states:
                states[callback.state_key]["patience"] = callback.patience

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the count from a state dict of an earlier version, where it was a buffer."""
        if (count := state_dict.pop(f"{prefix}images_seen", None)) is not None:
            self.images_seen = int(count)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _take_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Read with another tokenizer from here on, which the hyper-parameters name, too."""
        plain = hyperparameters_of({"text": tokenizer})
        for name in self._arguments_of_text():
            self.hparams[name] = plain["text"]
        self.text = tokenizer

    def _arguments_of_text(self) -> list[str]:
        """The names under which the constructor was given the tokenizer."""
        plain = hyperparameters_of({"text": self.text}).get("text")
        return [name for name, value in self.hparams.items() if plain is not None and value == plain]

    def _take_vocabulary(self, saved: Mapping[str, Any]) -> None:
        """Read as the run did whose hyper-parameters these are, whatever captions the data has today."""
        own = self.text
        if not isinstance(own, BPETokenizer):
            return
        for name in self._arguments_of_text():
            vocabulary = (saved.get(name) or {}).get("init_args", {}).get("vocabulary")
            if vocabulary and vocabulary != list(own.vocabulary):
                self._take_tokenizer(dataclasses.replace(own, vocabulary=tuple(vocabulary)))

    def _take_class_names(self, saved: Any) -> None:
        if saved is None:  # the data has no names, or the checkpoint is older than they are
            return
        number = self.num_classes
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved) or len(saved) != number:
            raise CheckpointError(f"class_names in the checkpoint must be the names of {number} classes.")
        for i, (before, now) in enumerate(zip(saved, self.class_names or saved, strict=True)):
            if before != now:
                raise CheckpointError(
                    f"In the checkpoint class {i} is called {before!r}, but in the data it is {now!r}. Classes are "
                    f"numbered in the order of their names: give the data the same class folders.{self._instead()}"
                )
        self.class_names = saved

    def _compare_class_names(self, start: Start | None) -> None:
        """Say so where weights of classes were taken, which go by number, and the classes are called otherwise now."""
        pairs = zip(start.class_names, self.class_names or (), strict=False) if start else ()
        renamed = [f"{i} was {before!r} and is {now!r}" for i, (before, now) in enumerate(pairs) if before != now]
        if start and renamed and len(start.class_names) == self.num_classes:
            more = f", and {len(renamed) - 1} others likewise" if len(renamed) > 1 else ""
            rank_zero_info(f"Weights of classes were taken by number: {renamed[0]}{more}.")

    def _instead(self) -> str:
        """What else somebody may have meant who goes on from a checkpoint."""
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return f" {TO_START}" if fitting else ""

    def _check_weights(self, saved: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        wrong = [f"{k}: {tuple(saved[k].shape)} saved, {tuple(v.shape)} here" for k, v in own.items()
                 if k in saved and saved[k].shape != v.shape]  # fmt: skip
        absent = [key for key in own if key not in saved] if self.strict_loading else []
        surplus = [key for key in saved if key not in own] if self.strict_loading else []
        for fault, keys in (("differ in shape", wrong), ("are missing", absent), ("are unknown here", surplus)):
            if keys:
                raise CheckpointError(
                    f"The checkpoint does not fit this {type(self).__name__}: {len(keys)} weights {fault}, the first "
                    f"being {keys[0]}. Build the model with the settings it was trained with (its config.yaml, or "
                    f"{type(self).__name__}.load_from_checkpoint).{self._instead()}"
                )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls: type[Model],
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trust: Sequence[str] = (),
        **overrides: Any,
    ) -> Model:
        """The model that a checkpoint holds, with the weights for use (averaged ones where the run kept them).

        Safe on files of unknown origin: they are read with `weights_only=True`; nothing is imported but what
        `lightning_gen.trust` lets through; every class and value is checked against the model's annotations before
        anything is called; and a model of this package's own classes is built without weights first, compared with the
        file, and then takes the file's.

        Args:
            checkpoint_path: The file.
            map_location: Device of the result.
            hparams_file: Not used; the checkpoint holds its hyper-parameters.
            strict: Whether unknown or missing weights are an error; None means yes.
            weights_only: Not used; always True.
            trust: Packages whose classes and functions the file may name, beside lightning_gen, torch.nn and
                torch.optim, as ("mypackage",). What has been imported of the package that this class is defined in
                needs no mention.
            **overrides: Constructor arguments that replace the saved ones, such as a factory that has no import path.

        Raises:
            CheckpointError: If the file is no checkpoint, or of another class, or was refused.
        """
        if hparams_file is not None:
            raise ValueError("hparams_file is not used: the checkpoint holds its hyper-parameters. Leave it out.")
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        if not isinstance(checkpoint.get("hyper_parameters", {}).get(CLASS_KEY), str):
            raise CheckpointError(
                f"{checkpoint_path} does not say which model it holds; lightning-gen did not write it."
            )
        weights = checkpoint["state_dict"]
        try:
            recipe = Recipe(checkpoint["hyper_parameters"], cls, overrides, trust)
            outline = recipe.is_of_this_package and strict is not False
            model = recipe.build_outline(len(weights)) if outline else recipe.build()
            distinct, all_names = model.parameters(), model.named_parameters(remove_duplicate=False)
            if outline and len(list(distinct)) < len(list(all_names)):  # tied ones, which would take two tensors
                outline, model = False, recipe.build()
            if strict is not None:
                model.strict_loading = strict
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(_own(weights, model.state_dict()), strict=model.strict_loading, assign=outline)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint_path}: {error}") from error
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint_path} is damaged: what it holds of this {cls.__name__} cannot be used "
                f"({type(error).__name__}: {first_line(error)})."
            ) from error
        return model.to(next((weight.device for weight in weights.values()), "cpu"))


def frozen(model: Model) -> Model:
    """A model as a part of another: without gradients, and in evaluation mode in whatever mode the other is."""
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    model._stays_frozen = True
    model.freeze()
    return model


def _says_something(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning's is of use to whoever trains one of our models."""
    return "`weights_only` was not set" not in record.getMessage()


def _own(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a file in the types of a model's, each in memory that is nobody else's."""
    result, places = {}, set()
    for name, weight in weights.items():
        storage = weight.untyped_storage()
        shared = storage.nbytes() > weight.numel() * weight.itemsize or storage.data_ptr() in places
        places.add(storage.data_ptr())
        result[name] = weight.to(like[name].dtype if name in like else weight.dtype, copy=shared)
    return result


def _given_to_constructor(frame: FrameType | None, thing: Any) -> dict[str, Any]:
    """The arguments, by name, with which the outermost `__init__` of an object was called, from a frame inside it.

    What that takes as `*args` has the names that it has in the base's constructor, to which it is handed on.
    """
    given: dict[str, Any] = {}
    positional: list[str] = []
    while frame is not None and frame.f_code.co_name == "__init__":
        names, rest, keywords, values = inspect.getargvalues(frame)
        if not names or values[names[0]] is not thing:
            break
        given = {name: values[name] for name in names[1:]}
        given |= dict(zip(positional, values[rest], strict=False)) if rest else {}
        given |= values[keywords] if keywords else {}
        positional = [*names[1 : frame.f_code.co_argcount], *(positional if rest else [])]
        frame = frame.f_back
    return given


def load_model(checkpoint: str | Path, protocol: type | tuple[type, ...], cannot: str) -> Any:
    """The model of a checkpoint.

    Args:
        checkpoint: The file, or what `find_checkpoint` takes for one.
        protocol: What it must be able to do, one of the protocols of `lightning_gen.capabilities`, or one of several.
        cannot: Words for a model that is not able to, such as "draws no pictures from noise".

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it cannot be loaded.
        ValueError: If it does not follow the protocol.
    """
    model = GenerativeModule.load_from_checkpoint(find_checkpoint(checkpoint))
    if not isinstance(model, protocol):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__}, which {cannot}.")
    return model
