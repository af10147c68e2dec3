"""Figures of densities: nats an image, bits a dimension, and the Parzen window estimate for models without one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from lightning_gen.data.binarization import Binarization
from lightning_gen.hyperparameters import accepts
from lightning_gen.metrics.base import FullPrecision
from lightning_gen.networks.building import check_image_shape


class _MeanOverImages(FullPrecision):
    """Sums of nats over images, and as the figure their mean times `scale` plus `offset`."""

    higher_is_better = False
    bound: str | None = None  # which of a model's bounds it is of, where they are not likelihoods
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, name: str, scale: float = 1.0, offset: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.scale = scale
        self.offset = offset
        for state in ("total", "squares"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_prob: Tensor) -> None:
        """Add images by their log-probabilities.

        Args:
            log_prob: Nats of each image, float `[N]`, as a model's `log_prob` gives them. -inf, of an image that the
                model holds impossible, makes the figure infinite.

        Raises:
            ValueError: If they are not `[N]` floats, one is NaN or +inf, or one is above 0 that should be the
                logarithm of a probability (`BitsPerDim` without `density_over`).
        """
        self._check(log_prob)
        nats = -log_prob.detach().to(self.total.device).double()
        # Not in place: a state made under inference mode could not be added to outside of it.
        self.total = self.total + nats.sum()
        self.squares = self.squares + nats.square().sum()
        self.count = self.count + len(nats)

    def compute(self) -> Tensor:
        """The figure over all images of all ranks, a float64 scalar.

        Raises:
            ValueError: If there was no image on any rank.
        """
        if self.count == 0:
            raise ValueError(f"{type(self).__name__} has seen no image on any rank; update it before compute.")
        return self.scale * self.total / self.count + self.offset

    def standard_error(self) -> Tensor:
        """Of the figure, from the scatter of all images of all ranks; every rank must call it. NaN for one image."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            variance = (self.squares - self.total.square() / self.count).clamp(min=0) / (self.count - 1)
            return abs(self.scale) * (variance / self.count).sqrt()

    def _check(self, log_prob: Tensor) -> None:
        if log_prob.ndim != 1 or not log_prob.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} takes the nats of each image, float [N], so that a smaller last batch weighs "
                f"no more than it should; got {log_prob.dtype} {list(log_prob.shape)}."
            )
        if places := (log_prob.isnan() | log_prob.isposinf()).nonzero().flatten().tolist():
            raise ValueError(
                f"log_prob of {len(places)} of {len(log_prob)} images of this batch is NaN or +inf, the first being "
                f"image {places[0]} with {log_prob[places[0]].item()}. Look at that image and at the model's output."
            )


class NegativeLogLikelihood(_MeanOverImages):
    """Mean of -log p(x) over images, in nats an image. Where `log_prob` is a lower bound, this is an upper one.

    Every image weighs the same whatever the sizes of batches and the shares of ranks; sums are float64.

    Published nats of MNIST compare only where its grey became black and white in the same way, so the way is part of
    the figure's name.

    Args:
        binarization: "fixed" for the published file (Larochelle and Murray 2011), which most papers use,
            "static" for a draw of each pixel with its grey as probability, once and for all by a seed, "dynamic" for
            a new draw whenever an image is shown, "threshold" for a cut at half. None where pixels are as they are.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Attributes:
        name: Of the figure in logs: "nll", or with the binarization "nll-static" and so on.

    Raises:
        ValueError: If the binarization is none of these.
    """

    def __init__(self, binarization: Binarization | None = None, **kwargs: Any) -> None:
        known = get_args(Binarization)
        if binarization not in (None, *known):
            raise ValueError(f"binarization must be one of {', '.join(known)}, or None; got {binarization!r}.")
        super().__init__(f"nll-{binarization}" if binarization else "nll", **kwargs)


class LowerBound(NegativeLogLikelihood):
    """Mean of a lower bound of log p(x) over images, in nats an image, such as a VAE's ELBO: more is better.

    Args:
        bound: Its name, which takes the place of "nll" in that of the figure.
        binarization: As of `NegativeLogLikelihood`.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.
    """

    higher_is_better = True

    def __init__(self, bound: str, binarization: Binarization | None = None, **kwargs: Any) -> None:
        super().__init__(binarization, **kwargs)
        self.name, self.scale = self.name.replace("nll", bound), -1.0


class BitsPerDim(_MeanOverImages):
    """Mean of -log2 P(x) over images and their dimensions, in bits: 8 for 256 levels that are all as likely.

    Every image weighs the same whatever the sizes of batches and the shares of ranks; sums are float64.

    A density p of pictures whose levels were spread evenly over `[low, high]`, level l by noise over the l-th of
    `num_levels` cells, bounds the probability of levels (Theis et al. 2016, arXiv 1511.01844). It counts as p times
    the volume of a cell, which adds log2(num_levels / (high - low)) bits to each dimension.

    Args:
        image_shape: (channels, height, width).
        num_levels: Of each channel of a pixel: 2 to the power of the bit depth.
        density_over: (low, high) where `log_prob` is of a density, such as (-1, 1); None where it is the probability
            of levels. Noise around the levels of `from_uint8` reaches from -1 - 1/255 to 1 + 1/255.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Attributes:
        name: Of the figure in logs: "bpd" for 8 bits, else with the depth, "bpd-5bit" or "bpd-17level".

    Raises:
        ValueError: If there are fewer than 2 levels, or high is not above low.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        density_over: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        check_image_shape(image_shape)
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {num_levels}.")
        if density_over is not None and not density_over[0] < density_over[1]:
            raise ValueError(f"density_over must be (low, high) with low < high, got {density_over}.")
        bits = num_levels.bit_length() - 1
        depth = f"{bits}bit" if num_levels == 2**bits else f"{num_levels}level"
        cell = 1.0 if density_over is None else (density_over[1] - density_over[0]) / num_levels
        scale = 1 / (math.prod(image_shape) * math.log(2))
        super().__init__("bpd" if num_levels == 256 else f"bpd-{depth}", scale, -math.log2(cell), **kwargs)
        self.density_over = density_over

    def _check(self, log_prob: Tensor) -> None:
        super()._check(log_prob)
        # Rounding may lift a probability of 1 by a little.
        if self.density_over is None and bool((log_prob > 1e-2).any()):
            raise ValueError(
                f"log_prob of levels cannot be above 0, but one is {log_prob.max().item():g}. If the model has a "
                "density, say over what: BitsPerDim(..., density_over=(-1, 1))."
            )


def likelihood_metrics(model: Any, data: Any) -> list[NegativeLogLikelihood | BitsPerDim]:
    """Nats and, where pictures have levels, bits per dim, under the names that they have for this model and data.

    Args:
        model: Has `image_shape`. Its `num_levels` are those of pictures, its `likelihood_of` is what `log_prob` is of
            where it is not of pictures, such as "codes"; both may be None or missing. For its bounds see `bounds_of`.
        data: Has the pictures; its `binarization` is part of the names.

    Raises:
        ValueError: If the data is known to have other levels than the model.
    """
    if (of := getattr(model, "likelihood_of", None)) is not None:
        nats = NegativeLogLikelihood()
        nats.name += f"-{of}"
        return [nats]
    levels, known = (getattr(each, "num_levels", None) for each in (model, data))
    if None not in (levels, known) and known != levels:
        takes = accepts(type(model), "num_levels")
        hint = f"Set model.num_levels to {known}" if takes else f"Give the model a likelihood of {known} levels"
        raise ValueError(
            f"{type(data).__name__} gives pictures of {known} levels, but this {type(model).__name__} has "
            f"num_levels={levels}. {hint}, or change the data."
        )
    binarization = getattr(data, "binarization", None)
    metrics: list[NegativeLogLikelihood | BitsPerDim] = []
    for bound in bounds_of(model):
        own: list[NegativeLogLikelihood | BitsPerDim]
        own = [LowerBound(bound, binarization) if bound else NegativeLogLikelihood(binarization)]
        if levels is not None:
            own.append(BitsPerDim(model.image_shape, levels))
            own[-1].name += f"-{bound}" if bound else ""
        for metric in own:
            metric.bound = bound
        metrics += own
    return metrics


def bounds_of(model: Any) -> Mapping[str | None, Mapping[str, Any]]:
    """What a model's `log_prob` gives: the name of each bound, with the settings that make it so; None where exact.

    A model that says nothing is exact. One whose `log_prob` is a bound names it, as `bound = "elbo"`, and one that has
    several says by `bounds` how to ask for each, as {"elbo": {}, "iwae-64": {"num_samples": 64}}.
    """
    return getattr(model, "bounds", None) or {getattr(model, "bound", None): {}}


def update_likelihoods(
    metrics: Iterable[NegativeLogLikelihood | BitsPerDim],
    model: Any,
    images: Tensor,
    context: Mapping[str, Tensor],
    generator: torch.Generator,
) -> None:
    """Add pictures to what `likelihood_metrics` gave, asking the model once for each of its bounds.

    Args:
        metrics: Of the model.
        model: Has `log_prob`.
        images: `[N, C, H, W]`.
        context: What the model is given besides, by name.
        generator: Of the noise of a bound, where `log_prob` takes one.
    """
    noise = {"generator": generator} if "generator" in inspect.signature(model.log_prob).parameters else {}
    for bound, settings in bounds_of(model).items():
        log_prob = model.log_prob(images, **context, **noise, **settings)
        for metric in metrics:
            if metric.bound == bound:
                metric.update(log_prob)
