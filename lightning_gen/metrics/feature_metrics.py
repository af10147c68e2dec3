"""FID, Inception Score, kernel distance and precision/recall as `torchmetrics.Metric`s.

They are constructed and used as torchmetrics' own (`update`, `compute`, `reset`, `sync`, `MetricCollection`). What is
different:

* Sums are float64 and features float32, whatever precision plugin or autocast is around them.
* The extractor is frozen, in eval mode, and no part of the module tree: a checkpoint does not grow, an optimizer or
  `DistributedDataParallel` sees no weights, copies share it. It works where the pictures are.
* A figure is a function of the set of pictures and a fixed seed. It does not depend on their order, nor on how they
  are shared out to processes, of which some may have seen fewer pictures or none. No global random state is used.
* Float pictures are rounded to 8 bits, and their range is checked.
* The Inception network resizes as that of the published figures does. torchmetrics has resized with antialiasing since
  its version 1.8; `antialias=True` does too. Figures of the two do not compare.
* `metric(...)` is `update(...)`, and returns None: a figure of one batch means nothing.

Several metrics can use one extractor: make it first, as `InceptionFeatures()`, and give it to each as `feature`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.metrics.base import FullPrecision
from lightning_gen.metrics.frechet import Moments, frechet_distance
from lightning_gen.metrics.manifold import precision_recall
from lightning_gen.metrics.scores import check_rows, in_canonical_order, inception_score, kernel_distance


class _Outside:
    """Keeps a frozen network out of the module tree; copies of its owner share it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __deepcopy__(self, memo: dict[int, Any]) -> _Outside:
        return self


class _FeatureMetric(FullPrecision):
    """What the metrics here share: the extractor, states that keep their type, and lists of features over ranks."""

    def __init__(
        self,
        feature: int | nn.Module,
        normalize: bool,
        feature_extractor_weights_path: str | Path | None,
        antialias: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.normalize = normalize
        if isinstance(feature, nn.Module):
            if feature_extractor_weights_path is not None:
                raise ValueError("feature_extractor_weights_path is for the Inception network, not for a module.")
            own = isinstance(feature, FeatureExtractor)
            network = feature if own else copy.deepcopy(feature).requires_grad_(False).eval()
        elif isinstance(feature, (int, str)):
            network = InceptionFeatures(
                cast(Any, feature),
                weights=feature_extractor_weights_path,
                resize="antialias" if antialias else "tf1",
            )
        else:
            raise TypeError(f"feature must be a layer of the Inception network or a module, got {feature!r}.")
        self._outside = _Outside(network)

    @property
    def extractor(self) -> nn.Module:
        """The frozen network: a `FeatureExtractor`, or a copy of the module that was given."""
        return self._outside.network

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """The same as `update`."""
        self.update(*args, **kwargs)

    def _read(self, imgs: Tensor) -> Features:
        """Features and logits of pictures; what a plain module gives is taken for either."""
        if self._is_synced:
            raise TorchMetricsUserError("The metric is synced; what is added now would be lost. Call unsync() first.")
        network = self.extractor
        if isinstance(network, FeatureExtractor):
            features, logits = network.to(imgs.device)(self._as_8_bits(imgs) if network.quantized else imgs)
        else:
            place = next(network.to(imgs.device).parameters(), None)
            if place is not None and imgs.is_floating_point():
                imgs = imgs.to(place.dtype)
            with torch.no_grad(), torch.autocast(imgs.device.type, enabled=False):
                features = logits = self._rows_of(network(imgs), imgs)
        return Features(features.to(self.device), None if logits is None else logits.to(self.device))

    def _as_8_bits(self, imgs: Tensor) -> Tensor:
        if not self.normalize:
            if imgs.dtype != torch.uint8:
                raise ValueError(
                    f"Expected uint8 pictures, got {imgs.dtype}. Floats in [0, 1] need normalize=True; those in "
                    "[-1, 1] become uint8 by lightning_gen.data.images.to_uint8."
                )
            return imgs
        tolerance = 1e-3  # a resize may overshoot by rounding
        if not imgs.is_floating_point() or not bool(((imgs >= -tolerance) & (imgs <= 1 + tolerance)).all()):
            low, high = (imgs.min().item(), imgs.max().item()) if imgs.numel() else ("none", "none")
            raise ValueError(
                f"With normalize=True expected floats in [0, 1], got {imgs.dtype} from {low} to {high}. Give uint8 "
                "pictures with normalize=False; lightning_gen.data.images.to_uint8 makes them of floats in [-1, 1]."
            )
        return imgs.float().mul(255).round().clamp(0, 255).to(torch.uint8)

    @staticmethod
    def _rows_of(output: Any, imgs: Tensor) -> Tensor:
        """What a plain module gave, `[N, d]` in float32."""
        if isinstance(output, Tensor) and output.ndim == 1 and len(imgs) == 1:
            output = output.unsqueeze(0)
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(imgs):
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"The module must map {list(imgs.shape)} to features [{len(imgs)}, d], got {got}.")
        check_rows(output, "the features of the module")
        return output.float()

    def _figure(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32 if self.device.type == "mps" else torch.float64).to(self.device)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # One gather of each state, whatever the number of updates, to which a rank may bring nothing.
        for name in self._defaults:
            rows = _joined(getattr(self, name)).to(self.device)
            parts = dist_sync_fn(rows, group=process_group or self.process_group)
            setattr(self, name, [part.cpu() if self.compute_on_cpu else part for part in parts if len(part)])


class _RealAndFake(_FeatureMetric):
    """A metric of two sets of pictures, of which the real one may be kept."""

    def __init__(
        self,
        feature: int | nn.Module,
        reset_real_features: bool,
        normalize: bool,
        feature_extractor_weights_path: str | Path | None,
        antialias: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, normalize, feature_extractor_weights_path, antialias, **kwargs)
        self.reset_real_features = reset_real_features

    def reset(self) -> None:
        """Forget all pictures; the real ones only if `reset_real_features`."""
        if self._is_synced:
            self.unsync()
        kept = {} if self.reset_real_features else {n: getattr(self, n) for n in self._defaults if n.startswith("real")}
        kept = {name: value.copy() if isinstance(value, list) else value for name, value in kept.items()}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)


class _TwoSamples(_RealAndFake):
    """A metric of the features of two sets, one by one."""

    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("fake_features", default=[], dist_reduce_fx="cat")

    def update(self, imgs: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            imgs: `[N, C, H, W]`; see the class.
            real: Whether the pictures are real or generated.
        """
        (self.real_features if real else self.fake_features).append(self._read(imgs).features)


class FrechetInceptionDistance(_RealAndFake):
    """The Fréchet distance of the features of real and generated pictures (Heusel et al. 2017, arXiv 1706.08500).

    With the default `feature` it is the published FID. It falls with the number of pictures, so figures of different
    numbers do not compare; 50 000 generated ones are usual. Its states are two packs of float64 moments (see
    `metrics.frechet.Moments`), 16.8 MB each at 2048 features, and one all-reduce of both synchronizes them.

    `compute` gives a float64 scalar, 0 or more.

    Args:
        feature: 64, 192, 768 or 2048, the layer of the Inception network; a `FeatureExtractor`; or any module that
            maps pictures to `[N, d]`. A copy of that is used, in eval mode, and it is given the pictures as they come.
        reset_real_features: Whether `reset` forgets the real pictures too.
        normalize: Whether pictures are floats in `[0, 1]`, not uint8. (A plain module is given either.)
        input_img_size: Shape of the pictures, by which a module without the attribute `num_features` is tried.
        feature_extractor_weights_path: The Inception network's weights; None looks for them where torch hub keeps
            them, and downloads them if they are not there.
        antialias: Resize with antialiasing. Unlike in torchmetrics it is off, as in the published FID.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If pictures are not of the type and range expected; from `compute` if there are fewer than 2 real
            or 2 generated ones.
        FileNotFoundError: If there are no weights, and none can be downloaded.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    real_moments: Tensor
    fake_moments: Tensor

    def __init__(
        self,
        feature: int | nn.Module = 2048,
        reset_real_features: bool = True,
        normalize: bool = False,
        input_img_size: tuple[int, int, int] = (3, 299, 299),
        feature_extractor_weights_path: str | Path | None = None,
        antialias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, normalize, feature_extractor_weights_path, antialias, **kwargs)
        self.num_features = self._find_num_features(input_img_size)
        # No shift: ranks could not share it. Features are float32, whose own rounding is more than what cancels.
        empty = Moments(self.num_features).pack()
        self.add_state("real_moments", default=empty, dist_reduce_fx="sum")
        self.add_state("fake_moments", default=empty.clone(), dist_reduce_fx="sum")

    def _find_num_features(self, input_img_size: tuple[int, int, int]) -> int:
        network = self.extractor
        if not int(getattr(network, "num_features", 0)):
            if isinstance(network, FeatureExtractor):
                network.check_shape(input_img_size)  # measures it
            else:
                dtype = torch.float32 if self.normalize else torch.uint8
                place = next(network.parameters(), torch.empty(0))
                blank = torch.zeros(2, *input_img_size, dtype=dtype, device=place.device)
                return self._read(blank).features.shape[1]
        return int(cast(Any, network.num_features))

    def update(self, imgs: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            imgs: `[N, C, H, W]`; see the class.
            real: Whether the pictures are real or generated.
        """
        features = self._read(imgs).features
        if features.shape[1] != self.num_features:
            raise ValueError(f"The extractor was to give {self.num_features} features, but gives {features.shape[1]}.")
        name = "real_moments" if real else "fake_moments"
        state: Tensor = getattr(self, name)
        moments = Moments(self.num_features)
        moments.update(features)
        # Not in place: in inference mode a state may have been made that can't be changed outside of it.
        setattr(self, name, state + moments.pack().to(state.device))

    def compute(self) -> Tensor:
        """The distance."""
        real, fake = Moments.unpack(self.real_moments), Moments.unpack(self.fake_moments)
        if min(real.count, fake.count) < 2:
            raise ValueError(
                "A Fréchet distance needs at least 2 real and 2 generated pictures, and thousands to mean something; "
                f"got {real.count} and {fake.count}."
            )
        return self._figure(frechet_distance(real.gaussian(), fake.gaussian()))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        group = process_group or self.process_group
        both = torch.cat([self.real_moments, self.fake_moments])
        if dist_sync_fn is gather_all_tensors:
            torch.distributed.all_reduce(both, group=group)
        else:
            both = torch.stack(dist_sync_fn(both, group=group)).sum(dim=0)
        self.real_moments, self.fake_moments = both.chunk(2)


class InceptionScore(_FeatureMetric):
    """The Inception Score of generated pictures (Salimans et al. 2016, arXiv 1606.03498).

    `compute` gives a tuple (mean, standard deviation) over the splits, float64 scalars; the deviation has the divisor
    `splits`, as published ones have. To log it: `mean, std = metric.compute(); self.log("val/is", mean)`.

    The pictures are dealt to the splits at random, by a fixed seed and whatever their order. All logits are kept: with
    Inception 200 MB for 50 000 pictures, in the CPU's memory with `compute_on_cpu=True`.

    Args:
        feature: "logits_unbiased" for the Inception network; a `FeatureExtractor` that has classes; or any module that
            maps pictures to logits `[N, K]`, of which a copy is used. The layers that torchmetrics takes here, 2048 and
            so on, have no classes.
        splits: Their number; each has 1 / splits of the pictures.
        normalize: As of `FrechetInceptionDistance`, and so are those that follow.
        feature_extractor_weights_path: Of the Inception network.
        antialias: Of its resize; torchmetrics always has it here.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If pictures are not of the type and range expected, the extractor has no classes; from `compute` if
            there are fewer pictures than splits.
        FileNotFoundError: If there are no weights, and none can be downloaded.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    features: list[Tensor]

    def __init__(
        self,
        feature: str | nn.Module = "logits_unbiased",
        splits: int = 10,
        normalize: bool = False,
        feature_extractor_weights_path: str | Path | None = None,
        antialias: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(feature, nn.Module) and feature != "logits_unbiased":
            raise ValueError(
                f"The score is of classes: feature must be 'logits_unbiased' or a module, got {feature!r}."
            )
        if splits < 1:
            raise ValueError(f"splits must be at least 1, got {splits}.")
        network = feature if isinstance(feature, nn.Module) else 2048
        super().__init__(network, normalize, feature_extractor_weights_path, antialias, **kwargs)
        self.splits = splits
        self.add_state("features", default=[], dist_reduce_fx="cat")

    def update(self, imgs: Tensor) -> None:
        """Add a batch `[N, C, H, W]`; see the class."""
        logits = self._read(imgs).logits
        if logits is None:
            raise ValueError(f"The Inception Score is of classes, and {cast(Any, self.extractor).name} has none.")
        self.features.append(logits)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) over the splits."""
        logits = in_canonical_order(_joined(self.features))
        if len(logits) < self.splits:
            raise ValueError(f"{self.splits} splits need at least as many pictures, got {len(logits)}.")
        mean, std = inception_score(logits, self.splits)
        return self._figure(mean), self._figure(std)


class KernelInceptionDistance(_TwoSamples):
    """The kernel distance of the features of real and generated pictures (Bińkowski et al. 2018, arXiv 1801.01401).

    `compute` gives a tuple of float64 scalars, (value, its standard error), from disjoint blocks; with `subsets` it is
    (value, standard deviation over the subsets), as in torchmetrics. To log it: `value, error = metric.compute();
    self.log("val/kid", value)`. It may be negative. See `metrics.scores.kernel_distance`.

    The pictures are dealt to blocks or subsets at random, by a fixed seed and whatever their order. All features are
    kept: 410 MB for 50 000 pictures at 2048 features, in the CPU's memory with `compute_on_cpu=True`.

    Args:
        feature: As of `FrechetInceptionDistance`.
        subsets: Number of random subsets, 100 in torchmetrics. None takes disjoint blocks, which are ten times as fast
            for 10 000 pictures and have a standard error.
        subset_size: Pictures of either side in a subset or block. With fewer, there is one block of all and no
            standard error (NaN).
        degree: Of the kernel (gamma x.y + coef)^degree.
        gamma: None means 1 / d.
        coef: Of the kernel.
        reset_real_features: As of `FrechetInceptionDistance`, and so are those that follow.
        normalize: Whether pictures are floats in `[0, 1]`.
        feature_extractor_weights_path: Of the Inception network.
        antialias: Of its resize; torchmetrics always has it here.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If pictures are not of the type and range expected; from `compute` if there are fewer than 2 real
            or 2 generated ones, or with `subsets` fewer than `subset_size`.
        FileNotFoundError: If there are no weights, and none can be downloaded.
    """

    higher_is_better = False

    def __init__(
        self,
        feature: int | nn.Module = 2048,
        subsets: int | None = None,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        reset_real_features: bool = True,
        normalize: bool = False,
        feature_extractor_weights_path: str | Path | None = None,
        antialias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, normalize, feature_extractor_weights_path, antialias, **kwargs)
        if subset_size < 2 or (subsets is not None and subsets < 1):
            raise ValueError(f"subset_size must be at least 2 and subsets 1, got {subset_size} and {subsets}.")
        self.subsets = subsets
        self.subset_size = subset_size
        self.degree = degree
        self.gamma = gamma
        self.coef = coef

    def compute(self) -> tuple[Tensor, Tensor]:
        """(value, standard error), or with `subsets` (value, standard deviation)."""
        real, fake = (in_canonical_order(_joined(side)) for side in (self.real_features, self.fake_features))
        _check_counts("A kernel distance", real, fake, self.subset_size if self.subsets else 2)
        result = kernel_distance(
            real,
            fake,
            block_size=self.subset_size,
            subsets=self.subsets,
            degree=self.degree,
            gamma=self.gamma,
            coef0=self.coef,
        )
        return self._figure(result.value), self._figure(result.std if self.subsets else result.standard_error)


class PrecisionRecall(_TwoSamples):
    """Improved precision and recall, density and coverage (arXiv 1904.06991 and 2002.09797).

    `compute` gives a dict of float64 scalars, `precision`, `recall`, `density` and `coverage`, for `self.log_dict`. See
    `metrics.manifold.precision_recall`. All features are kept, and the time goes with the square of their number: some
    5 000 to 10 000 pictures on either side are usual, as many real as generated ones.

    Args:
        feature: As of `FrechetInceptionDistance`.
        k: The neighbour up to which the ball of a picture reaches.
        reset_real_features: As of `FrechetInceptionDistance`, and so are those that follow.
        normalize: Whether pictures are floats in `[0, 1]`.
        feature_extractor_weights_path: Of the Inception network.
        antialias: Of its resize; torchmetrics always has it here.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If pictures are not of the type and range expected; from `compute` if there are not more than k
            real and k generated ones, or all real ones have the same features.
        FileNotFoundError: If there are no weights, and none can be downloaded.
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(
        self,
        feature: int | nn.Module = 2048,
        k: int = 5,
        reset_real_features: bool = True,
        normalize: bool = False,
        feature_extractor_weights_path: str | Path | None = None,
        antialias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, normalize, feature_extractor_weights_path, antialias, **kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """The four by name."""
        real, fake = _joined(self.real_features), _joined(self.fake_features)
        _check_counts(f"Precision and recall with k = {self.k}", real, fake, self.k + 1)
        figures = precision_recall(real, fake, self.k)._asdict()
        return {name: self._figure(value) for name, value in figures.items()}


def _joined(parts: list[Tensor]) -> Tensor:
    """`[N, D]`; `[0, 0]` where there is nothing."""
    return torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float32)


def _check_counts(what: str, real: Tensor, fake: Tensor, least: int) -> None:
    if min(len(real), len(fake)) < least:
        raise ValueError(
            f"{what} needs at least {least} real and {least} generated pictures, got {len(real)} and {len(fake)}."
        )
