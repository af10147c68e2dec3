"""Kernel density estimation: no network, no gradient; the training pictures are the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_gen.losses.kernel_density import (
    KERNELS,
    Kernel,
    best_bandwidth,
    kernel_noise,
    log_density,
    log_level_probability,
    rule_of_thumb,
)
from lightning_gen.models.likelihood import LikelihoodModule
from lightning_gen.randomness import chosen_generator

RULES = ("cv", "scott", "silverman")


class KDE(LikelihoodModule):
    """A kernel at every training picture: p(x) = 1 / (n h^d) sum_i K((x - x_i) / h).

    Rosenblatt 1956 and Parzen 1962. Training is one pass over the training data, which are kept as the buffer
    `centres`, so a checkpoint holds them all. There is no gradient and no optimizer; a batch counts as a step
    (`trainer.global_step`, `max_steps`), so that checkpoints and pictures come when they do in other models. Training
    ends by itself after one pass, and another `fit` begins anew. The data modules here leave a smaller last batch out,
    so a batch size that divides the number of pictures keeps them all. With several processes each reads its share of
    the data and all hold the whole.

    What `log_prob` means:

    * Without `num_levels` it is a log density over `[-1, 1]^d`, as of scikit-learn's KernelDensity. Of pictures whose
      pixels have levels it is no likelihood of these and no bound on it: it rises without limit as the bandwidth falls
      onto repeated values. For a bound, spread levels with noise in the data, then `BitsPerDim(density_over=...)`.
    * With `num_levels` it is the log probability of a picture's levels: the Gaussian kernel integrated exactly over the
      cell around the picture, the outer cells taking the tails, so that the probabilities of all pictures sum to 1.
      Bits per dim compare with those of other models of levels. Other kernels have no such closed form.

    Deviations from scikit-learn: "scott" and "silverman" take the data's scale into account; the cosine kernel is
    normalised in every number of dimensions (there in odd and few ones).

    Args:
        image_shape: (channels, height, width).
        kernel: K: gaussian, tophat, epanechnikov, exponential, linear or cosine; functions of the distance, of width h.
        bandwidth: h, in `[-1, 1]` units; or the rule "scott" or "silverman", right for Gaussian data; or "cv", the
            width under which training pictures are likeliest when each is left out of its own density. That of few,
            or with copies, tends to be too small; with kernels of bounded reach, outliers decide it.
        num_levels: Of a pixel, evenly spaced from -1 to 1: 17 for Digits, 256 for 8 bits. None for a density.
        cv_images: Pictures that "cv" scores, evenly spaced, all against all others.

    Attributes:
        centres: float32 `[n, C, H, W]`.
        width: h, a float64 scalar; 0 before it is chosen.

    Raises:
        ValueError: If a setting is out of range; in a batch, if a picture is NaN, or off the levels.
    """

    instead_of: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("gradient_clip_val", "accumulate_grad_batches"), "A KDE has no gradients. Leave it out."
    )
    centres: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        kernel: Kernel = "gaussian",
        bandwidth: float | Literal["cv", "scott", "silverman"] = "cv",
        num_levels: int | None = None,
        cv_images: int = 2000,
    ) -> None:
        super().__init__(image_shape, num_levels)
        self.save_hyperparameters()
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}.")
        if bandwidth not in RULES and (isinstance(bandwidth, str) or not 0 < bandwidth < math.inf):
            raise ValueError(f"bandwidth must be a number above 0, or one of {', '.join(RULES)}; got {bandwidth!r}.")
        if num_levels is not None and (num_levels < 2 or kernel != "gaussian"):
            raise ValueError(
                "num_levels must be at least 2, and goes with the gaussian kernel, which alone has a closed integral "
                f"over a pixel's cell; got {num_levels} and {kernel}. num_levels: null gives a density."
            )
        if cv_images < 1:
            raise ValueError(f"cv_images must be at least 1, got {cv_images}.")
        self.automatic_optimization = False
        self.kernel, self.bandwidth, self.cv_images = kernel, bandwidth, cv_images
        # A parameter, although nothing learns it, because DDP takes no model without.
        self.width = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("centres", torch.empty(0, *self.image_shape))
        self._new: list[Tensor] = []  # pictures that are not yet in `centres`, which would be copied for each batch

    # -- training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Keep the pictures of all ranks."""
        images, _ = self.images_and_labels(batch)
        if self.trainer.world_size > 1:  # in the order in which one process would have seen them
            images = self.all_gather(images).transpose(0, 1).flatten(0, 1)  # type: ignore[union-attr]
        self.add(images)
        self.images_seen += len(images)
        # A step without an optimizer's: a gradient scaler would look in vain for what it has scaled.
        steps = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        steps.increment_ready()
        steps.increment_completed()
        self.log("train/centres", float(self.num_centres))
        self.log("step", float(self.trainer.global_step))

    def configure_optimizers(self) -> None:
        """There is nothing to optimise."""

    def on_train_epoch_start(self) -> None:
        """Begin anew; a run that goes on in the middle of its pass does not come here."""
        self.centres, self._new = self.centres.new_empty(0, *self.image_shape), []

    def on_train_epoch_end(self) -> None:
        """One pass is all."""
        self.trainer.should_stop = True

    def add(self, images: Tensor) -> None:
        """Put a kernel at each of these pictures, `[N, C, H, W]` in `[-1, 1]`, and choose the bandwidth anew.

        Raises:
            ValueError: If a picture has another shape, is not finite, or is off the levels.
        """
        images = self._checked(images)
        self._new.append(images.detach().to(self.centres))

    @property
    def num_centres(self) -> int:
        """n, how many pictures there are."""
        return len(self.centres) + sum(map(len, self._new))

    # -- density ----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """`log_prob`. There is no network to export: `torch.export` and `to_onnx` do not take a KDE."""
        return self.log_prob(images)

    def log_prob(self, images: Tensor) -> Tensor:
        """Nats of each picture, by a density or, with `num_levels`, by the probability of its levels.

        Memory does not grow with the number of pictures times that of centres.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.

        Returns:
            float64 `[N]`, without a graph; -inf for a picture that no kernel of bounded reach covers.

        Raises:
            ValueError: If a picture has another shape, is not finite, or is off the levels; if there is no data yet, or
                a bandwidth cannot be chosen.
        """
        images = self._checked(images)
        self._choose()
        return self._log_prob(images.to(self.device), self.width.item())

    def _log_prob(self, images: Tensor, bandwidth: float, own: Tensor | None = None) -> Tensor:
        points, centres = images.flatten(1), self.centres.flatten(1)
        if self.num_levels is None:
            return log_density(points, centres, bandwidth, self.kernel, own)
        points, centres = (self._levels(each).round().long() for each in (points, centres))
        return log_level_probability(points, centres, bandwidth, self.num_levels, own)

    def _levels(self, images: Tensor) -> Tensor:
        """Pixels in `[-1, 1]` as levels from 0 to num_levels - 1, not rounded."""
        assert self.num_levels is not None
        return (images.double() + 1) * ((self.num_levels - 1) / 2)

    # -- samples ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        labels: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """The smoothed bootstrap: training pictures drawn with replacement, each plus noise from its kernel.

        With `num_levels` pixels go to the nearest level, and so have the distribution of `log_prob`. Without, those of
        pictures are cut off at -1 and 1, and points (pictures of one pixel) are not. Before a run's first batch there
        is nothing to draw from, and pictures of the run are grey.

        Args:
            num_samples: N, any number.
            labels: None; there are no classes.
            generator: On the CPU, whatever the model's device; None draws from fresh entropy.
            seed: In place of a generator, 0 or more, as of `lightning-gen sample` where one batch has them all.

        Returns:
            float32 `[N, C, H, W]`, without a graph.

        Raises:
            ValueError: If `num_samples` is negative or labels are given; if there is no data yet, or a bandwidth cannot
                be chosen.
        """
        self.sampling_context(num_samples, labels)
        if self._trainer is not None and self.trainer.training and not self.num_centres:
            return torch.zeros(num_samples, *self.image_shape, device=self.device)
        self._choose()
        generator = chosen_generator(generator, seed)
        chosen = torch.randint(len(self.centres), (num_samples,), generator=generator)
        noise = kernel_noise(self.kernel, num_samples, math.prod(self.image_shape), generator)
        images = self.centres[chosen.to(self.device)].cpu() + self.width.item() * noise.view(-1, *self.image_shape)
        if self.num_levels is not None:
            images = self._levels(images).round() * (2 / (self.num_levels - 1)) - 1
        if self.num_levels is not None or self.image_shape[1:] != (1, 1):
            images = images.clamp(-1, 1)
        return images.float().to(self.device)

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log nats and bits per dim, once there is data."""
        if not self.trainer.sanity_checking:
            super().validation_step(batch, batch_idx)

    def setup(self, stage: str) -> None:
        """Refuse a precision to which the trainer would round the pictures.

        Raises:
            ValueError: If the trainer has one.
        """
        if (precision := self.trainer.precision) in ("16-true", "bf16-true"):
            raise ValueError(
                f"A KDE is the training pictures themselves, which precision {precision} would round. Use 32-true or "
                "64-true."
            )
        super().setup(stage)

    # -- data and bandwidth -----------------------------------------------------------------------------------------

    def _checked(self, images: Tensor) -> Tensor:
        images = self.checked_images(images)
        faults = {"have pixels that are NaN or infinite": ~images.isfinite()}
        if self.num_levels is not None:
            levels, last = self._levels(images), self.num_levels - 1
            off = ((levels - levels.round()).abs() > 0.01) | (levels < -0.01) | (levels > last + 0.01)
            faults[f"are off the {self.num_levels} levels from -1 to 1 that num_levels means"] = off
        for fault, places in faults.items():
            if numbers := places.flatten(1).any(1).nonzero().flatten().tolist():
                raise ValueError(
                    f"{len(numbers)} of {len(images)} pictures of this batch {fault}, the first being picture "
                    f"{numbers[0]}."
                )
        return images

    def _join(self) -> None:
        """Take the new pictures into the buffer; then the bandwidth is to be chosen anew."""
        if self._new:
            with torch.inference_mode(False), torch.no_grad():
                self.centres, self._new = torch.cat([self.centres, *self._new]), []
                self.width.zero_()

    def _choose(self) -> None:
        """Choose the bandwidth, unless that is done."""
        self._join()
        if not len(self.centres):
            raise ValueError("This KDE has no data yet. Train it first (trainer.fit), or load a checkpoint of one.")
        if self.width == 0:
            with torch.inference_mode(False), torch.no_grad():
                self.width.fill_(self._chosen())

    def _chosen(self) -> float:
        if not isinstance(self.bandwidth, str):
            return float(self.bandwidth)
        points = self.centres.flatten(1)
        if self.bandwidth != "cv":
            return rule_of_thumb(points, self.bandwidth, self.kernel)
        number = min(self.cv_images, len(points))
        own = torch.arange(number, device=points.device) * len(points) // number
        return best_bandwidth(
            lambda h: self._log_prob(self.centres[own], h, own).mean().item(),
            start=rule_of_thumb(points, "silverman", self.kernel),
        )

    @property  # type: ignore[misc]  # Lightning's, which has a setter that refuses
    def dtype(self) -> torch.dtype:
        """Of the pictures."""
        return self.centres.dtype

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """With all pictures so far and their bandwidth; 0 where none can be chosen yet."""
        with suppress(ValueError):
            if not self.centres.is_meta:  # an outline, which has shapes alone
                self._choose()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of every module, but of any number of pictures."""
        self._make_room(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the pictures."""
        self._make_room(checkpoint["state_dict"])
        super().on_load_checkpoint(checkpoint)

    def _make_room(self, saved: Mapping[str, Any]) -> None:
        """Forget the own pictures, and take as many as there are, if they are of the own shape."""
        if "centres" in saved and saved["centres"].shape[1:] == self.image_shape:
            self._new = []
            self.centres = self.centres.new_zeros(saved["centres"].shape)
