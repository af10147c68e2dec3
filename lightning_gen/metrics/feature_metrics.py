"""FID, Inception Score, kernel distance and precision/recall as `torchmetrics.Metric`s.

They are constructed and used as torchmetrics' own (`update`, `compute`, `reset`, `sync`, `plot`, `MetricCollection`),
have the same attributes (`inception`, `real_features_num_samples` ...) and errors of the same types. What differs:

* Sums are float64 and features float32, whatever `set_dtype`, precision plugin or autocast is around them.
* The extractor is frozen, in eval mode, and no part of the module tree: a checkpoint does not grow, an optimizer or
  `DistributedDataParallel` sees no weights, copies share it. It works where the pictures are.
* A figure is a function of the set of pictures and a fixed seed. It does not depend on their order, nor on how they
  are shared out to processes, of which some may have seen fewer pictures or none. No global random state is used.
* The same pictures in the same batches have the very figures of the callback `GenerativeMetrics` and of the command
  `evaluate`, which use these classes. So figures of neighbours and kernels are of `max_features` pictures a side: the
  first generated ones and evenly spaced real ones, of several processes in turn.
* Float pictures are rounded to 8 bits, and their range is checked.
* The Inception network resizes as that of the published figures does. torchmetrics has resized with antialiasing since
  its version 1.8; `antialias=True` does too. Figures of the two do not compare.
* `metric(...)` is `update(...)`, and returns None: a figure of one batch means nothing.
* `update` also takes `Features` that an extractor has made of pictures already.

Several metrics can use one extractor: make it first, as `InceptionFeatures()`, and give it to each as `feature`.

A plain module as `feature` is given the pictures as they come. One for floats reads uint8 pictures as
`ModuleFeatures(module)`, whose `pixels` says which floats; or it begins with `images / 127.5 - 1` itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.inception import InceptionFeatures, Layer
from lightning_gen.metrics.base import FullPrecision, checked_rows, evenly_spaced, in_canonical_order
from lightning_gen.metrics.frechet import Moments, frechet_distance
from lightning_gen.metrics.manifold import PrecisionRecallResult, precision_recall
from lightning_gen.metrics.scores import InceptionScoreResult, KernelDistance, inception_score, kernel_distance


class TooFewPicturesError(ValueError, RuntimeError):
    """A figure needs more pictures; torchmetrics raises now the one and now the other."""


class _Outside:
    """Keeps a frozen network out of the module tree; copies of its owner share it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __deepcopy__(self, memo: dict[int, Any]) -> _Outside:
        return self


_WRITE = (
    "In place of the module, ModuleFeatures(module, image_shape=(3, 32, 32)) of lightning_gen.metrics says what size "
    "of pictures it reads, and makes floats of uint8 for it. FrechetInceptionDistance tries a module that has no "
    "num_features at input_img_size."
)


class _FeatureMetric(FullPrecision):
    """What the metrics here share: the extractor, states that keep their type, and lists of features over ranks."""

    def __init__(
        self,
        feature: int | nn.Module,
        normalize: bool,
        feature_extractor_weights_path: str | Path | None = None,
        antialias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _expect("normalize", normalize, "a bool", bool)
        self.normalize = normalize
        if isinstance(feature, nn.Module):
            if feature_extractor_weights_path is not None:
                raise ValueError("feature_extractor_weights_path is for the Inception network, not for a module.")
            own = isinstance(feature, FeatureExtractor)
            network = feature if own else copy.deepcopy(feature).requires_grad_(False).eval()
        elif isinstance(feature, (int, str)):
            if feature not in (layers := get_args(Layer)):
                known = ", ".join(map(str, layers))
                raise ValueError(f"Integer input to argument `feature` must be one of {known}, got {feature!r}.")
            network = InceptionFeatures(
                cast(Layer, feature),
                weights=feature_extractor_weights_path,
                resize="antialias" if antialias else "tf1",
            )
        else:
            raise TypeError(
                f"Got unknown input to argument `feature`: {feature!r}, no layer of the Inception network nor a module."
            )
        self._outside = _Outside(network)

    @property
    def extractor(self) -> nn.Module:
        """The frozen network: a `FeatureExtractor`, or a copy of the module that was given."""
        return self._outside.network

    inception = extractor  # torchmetrics' name

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw a figure, or a list of figures; by default that of `compute`, without its deviation."""
        val = self.compute() if val is None else val
        return self._plot(val[0] if isinstance(val, tuple) else val, ax)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """The same as `update`."""
        self.update(*args, **kwargs)

    def _read(self, imgs: Tensor | Features) -> Features:
        """Features and logits of pictures; what a plain module gives is taken for either."""
        if self._is_synced:
            raise TorchMetricsUserError("The metric is synced; what is added now would be lost. Call unsync() first.")
        network = self.extractor
        if isinstance(imgs, Features):
            features, logits = imgs
        elif isinstance(network, FeatureExtractor):
            features, logits = network.to(imgs.device)(self._as_8_bits(imgs) if network.quantized else imgs)
        else:
            features = logits = self._read_by_module(network, imgs)
        return Features(features.to(self.device), None if logits is None else logits.to(self.device))

    def _read_by_module(self, network: nn.Module, imgs: Tensor) -> Tensor:
        """What a plain module makes of pictures as they come, `[N, d]` in float32."""
        place = next(network.to(imgs.device).parameters(), None)
        if place is not None and imgs.is_floating_point():
            imgs = imgs.to(place.dtype)
        try:
            with torch.no_grad(), torch.autocast(imgs.device.type, enabled=False):
                output = network(imgs)
        except RuntimeError as error:
            raise ValueError(
                f"{type(network).__name__} is given pictures as they come, and cannot read {list(imgs.shape)} of "
                f"{imgs.dtype}: {error}. {_WRITE}"
            ) from error
        if isinstance(output, Tensor) and output.ndim == 1 and len(imgs) == 1:
            output = output.unsqueeze(0)
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(imgs):
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            given = list(imgs.shape)
            raise ValueError(f"The module must map {given} to features [{len(imgs)}, d], got {got}. {_WRITE}")
        return checked_rows(output, "the features of the module").float()

    def _as_8_bits(self, imgs: Tensor) -> Tensor:
        if not self.normalize:
            if imgs.dtype != torch.uint8:
                raise ValueError(
                    f"Expecting image as torch.Tensor with dtype=torch.uint8, got {imgs.dtype}. Floats in [0, 1] need "
                    "normalize=True; those in [-1, 1] become uint8 by lightning_gen.data.images.to_uint8."
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

    def _figure(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32 if self.device.type == "mps" else torch.float64).to(self.device)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # One gather of each state, whatever the number of updates, to which a rank may bring nothing.
        for name in self._defaults:
            rows = _joined(getattr(self, name)).to(self.device)
            parts = dist_sync_fn(rows, group=process_group or self.process_group)
            # The ranks in turn, as pictures are dealt to them.
            places = torch.cat([torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)])
            if len(places):
                rows = torch.cat([part for part in parts if len(part)])[places.argsort().to(rows.device)]
                setattr(self, name, [rows.cpu() if self.compute_on_cpu else rows])


class _RealAndFake(_FeatureMetric):
    """A metric of two sets of pictures, of which the real one may be kept."""

    def __init__(self, feature: int | nn.Module, reset_real_features: bool, normalize: bool, **kwargs: Any) -> None:
        super().__init__(feature, normalize, **kwargs)
        _expect("reset_real_features", reset_real_features, "a bool", bool)
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

    def __init__(self, *args: Any, max_features: int | None = 10_000, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _expect("max_features", max_features, "integer larger than 1, or `None`", int | None, 1)
        self.max_features = max_features
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("fake_features", default=[], dist_reduce_fx="cat")

    def update(self, imgs: Tensor | Features, real: bool) -> None:
        """Add a batch.

        Args:
            imgs: `[N, C, H, W]`; see the class.
            real: Whether the pictures are real or generated.
        """
        (self.real_features if real else self.fake_features).append(self._read(imgs).features)

    def _sides(self, what: str, least: int) -> tuple[Tensor, Tensor]:
        """The features of real and of generated pictures, at most `max_features` of each."""
        real, fake = _joined(self.real_features), _joined(self.fake_features)
        if min(len(real), len(fake)) < least:
            raise TooFewPicturesError(
                f"{what} needs at least {least} real and {least} generated pictures, got {len(real)} and {len(fake)}."
            )
        if self.max_features is None:
            return real, fake
        return real[evenly_spaced(len(real), self.max_features).to(real.device)], fake[: self.max_features]


class FrechetInceptionDistance(_RealAndFake):
    """The Fréchet distance of the features of real and generated pictures (Heusel et al. 2017, arXiv 1706.08500).

    With the default `feature` it is the published FID. It falls with the number of pictures, so figures of different
    numbers do not compare; 50 000 generated ones are usual. Its states are sums in float64, 33.6 MB a side at 2048
    features, and one all-reduce of half of that synchronizes both sides.

    `compute` gives a float64 scalar, 0 or more.

    Args:
        feature: 64, 192, 768 or 2048, the layer of the Inception network; a `FeatureExtractor`; or any module that
            maps pictures to `[N, d]`. A copy of that is used, in eval mode, and it is given the pictures as they come.
        reset_real_features: Whether `reset` forgets the real pictures too.
        normalize: Whether pictures are floats in `[0, 1]`, not uint8. (A plain module is given either.)
        input_img_size: Shape of the pictures, by which a module without the attribute `num_features` is tried.
        feature_extractor_weights_path: The Inception network's weights; None looks for them where torch hub keeps
            them, and downloads them if they are not there.
        antialias: Resize with antialiasing. Unlike in torchmetrics it is off, as in the published figures.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If pictures are not of the type and range expected; from `compute` a `TooFewPicturesError` if there
            are fewer than 2 real or 2 generated ones.
        FileNotFoundError: If there are no weights, and none can be downloaded.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

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
        kwargs |= {"feature_extractor_weights_path": feature_extractor_weights_path, "antialias": antialias}
        super().__init__(feature, reset_real_features, normalize, **kwargs)
        self.num_features = self._find_num_features(input_img_size)
        for side in ("real", "fake"):
            for name, value in self._states_of(side, Moments(self.num_features)):
                self.add_state(name, value, dist_reduce_fx="sum")

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

    def _moments(self, side: str) -> Moments:
        """Those of a side; of states made in inference mode, which can't be changed outside of it, a copy."""
        # No shift: ranks could not share it. Features are float32, whose own rounding is more than what cancels.
        count, sums, products = (getattr(self, f"{side}_features_{name}") for name in ("num_samples", "sum", "cov_sum"))
        sums, products = (state.clone() if state.is_inference() else state for state in (sums, products))
        return Moments.of(int(count), sums, products)

    @staticmethod
    def _states_of(side: str, moments: Moments) -> Iterator[tuple[str, Tensor]]:
        count = torch.tensor(moments.count, device=moments.sum.device)
        for name, value in (("num_samples", count), ("sum", moments.sum), ("cov_sum", moments.products)):
            yield f"{side}_features_{name}", value

    def update(self, imgs: Tensor | Features, real: bool) -> None:
        """Add a batch.

        Args:
            imgs: `[N, C, H, W]`; see the class.
            real: Whether the pictures are real or generated.
        """
        features = self._read(imgs).features
        if features.shape[1] != self.num_features:
            raise ValueError(f"The extractor was to give {self.num_features} features, but gives {features.shape[1]}.")
        side = "real" if real else "fake"
        moments = self._moments(side)
        moments.update(features)
        for name, value in self._states_of(side, moments):
            setattr(self, name, value)

    def compute(self) -> Tensor:
        """The distance."""
        real, fake = self._moments("real"), self._moments("fake")
        if min(real.count, fake.count) < 2:
            raise TooFewPicturesError(
                "More than one sample is required for both the real and fake distributed to compute FID: at least 2 "
                f"real and 2 generated ones, and thousands to mean something; got {real.count} and {fake.count}."
            )
        return self._figure(frechet_distance(real.gaussian(), fake.gaussian()))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        group = process_group or self.process_group
        both = torch.cat([self._moments(side).pack() for side in ("real", "fake")])
        if dist_sync_fn is gather_all_tensors:
            torch.distributed.all_reduce(both, group=group)
        else:
            both = torch.stack(dist_sync_fn(both, group=group)).sum(dim=0)
        for side, pack in zip(("real", "fake"), both.chunk(2), strict=True):
            for name, value in self._states_of(side, Moments.unpack(pack)):
                setattr(self, name, value)


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
        **kwargs: All others are those of `FrechetInceptionDistance`.

    Raises:
        ValueError: As `FrechetInceptionDistance`; there may not be fewer pictures than splits, nor no classes.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    features: list[Tensor]

    def __init__(
        self,
        feature: str | nn.Module = "logits_unbiased",
        splits: int = 10,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(feature, (int, str)) and feature != "logits_unbiased":
            raise ValueError(
                "Integer input to argument `feature` must be one of the layers with classes, for the score is of them: "
                f"'logits_unbiased' or a module, got {feature!r}."
            )
        _expect("splits", splits, "integer larger than 0", int, 0)
        network: Any = 2048 if isinstance(feature, str) else feature
        super().__init__(network, normalize, **kwargs)
        self.splits = splits
        self.add_state("features", default=[], dist_reduce_fx="cat")

    def update(self, imgs: Tensor | Features) -> None:
        """Add a batch `[N, C, H, W]`; see the class."""
        logits = self._read(imgs).logits
        if logits is None:
            raise ValueError(f"The Inception Score is of classes, and {cast(Any, self.extractor).name} has none.")
        self.features.append(logits)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) over the splits."""
        logits = _joined(self.features)
        if len(logits) < self.splits:
            raise TooFewPicturesError(f"{self.splits} splits need at least as many pictures, got {len(logits)}.")
        mean, std = self.score_of(logits)
        return self._figure(mean), self._figure(std)

    def score_of(self, logits: Tensor) -> InceptionScoreResult:
        """The score of logits `[N, K]`, in whatever order they are."""
        return inception_score(in_canonical_order(logits), self.splits)


class KernelInceptionDistance(_TwoSamples):
    """The kernel distance of the features of real and generated pictures (Bińkowski et al. 2018, arXiv 1801.01401).

    `compute` gives a tuple of float64 scalars, (value, its standard error), from disjoint blocks; with `subsets` it is
    (value, standard deviation over the subsets), as in torchmetrics. To log it: `value, error = metric.compute();
    self.log("val/kid", value)`. It may be negative. See `metrics.scores.kernel_distance`.

    The pictures are dealt to blocks or subsets at random, by a fixed seed and whatever their order. All features are
    kept: 410 MB for 50 000 pictures at 2048 features, in the CPU's memory with `compute_on_cpu=True`.

    Args:
        subsets: Number of random subsets, 100 in torchmetrics. None takes disjoint blocks, which are ten times as fast
            for 10 000 pictures and have a standard error.
        subset_size: Pictures of either side in a subset or block. With fewer, there is one block of all and no
            standard error (NaN).
        degree: Of the kernel (gamma x.y + coef)^degree.
        gamma: None means 1 / d.
        coef: Of the kernel.
        **kwargs: `max_features` (10 000), pictures of either side that blocks are dealt from, at most, or None for all;
            subsets are always drawn from all. All others are those of `FrechetInceptionDistance`.

    Raises:
        ValueError: As `FrechetInceptionDistance`; with `subsets` there may not be fewer pictures than `subset_size`.
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
        **kwargs: Any,
    ) -> None:
        _expect("subsets", subsets, "integer larger than 0, or `None`", int | None, 0)
        _expect("subset_size", subset_size, "integer larger than 0, and 2 at least", int, 1)
        _expect("degree", degree, "integer larger than 0", int, 0)
        _expect("gamma", gamma, "`None` or float larger than 0", float | int | None, 0)
        _expect("coef", coef, "float larger than 0", float | int, 0)
        super().__init__(feature, reset_real_features, normalize, **kwargs)
        self.max_features = None if subsets else self.max_features
        self.subsets = subsets
        self.subset_size = subset_size
        self.degree = degree
        self.gamma = gamma
        self.coef = coef

    def compute(self) -> tuple[Tensor, Tensor]:
        """(value, standard error), or with `subsets` (value, standard deviation)."""
        distance = self.distance_of(*self._sides("A kernel distance", self.subset_size if self.subsets else 2))
        return self._figure(distance.value), self._figure(distance.std if self.subsets else distance.standard_error)

    def distance_of(self, real: Tensor, fake: Tensor) -> KernelDistance:
        """The distance of features `[N, D]` and `[M, D]`, in whatever order they are."""
        return kernel_distance(
            in_canonical_order(real),
            in_canonical_order(fake),
            block_size=self.subset_size,
            subsets=self.subsets,
            degree=self.degree,
            gamma=self.gamma,
            coef0=self.coef,
        )


class PrecisionRecall(_TwoSamples):
    """Improved precision and recall, density and coverage (arXiv 1904.06991 and 2002.09797).

    `compute` gives a dict of float64 scalars, `precision`, `recall`, `density` and `coverage`, for `self.log_dict`. See
    `metrics.manifold.precision_recall`. All features are kept, and the time goes with the square of their number: some
    5 000 to 10 000 pictures on either side are usual, as many real as generated ones.

    Args:
        k: The neighbour up to which the ball of a picture reaches.
        **kwargs: `max_features` (10 000), pictures of either side, at most, or None for all. All others are those of
            `FrechetInceptionDistance`.

    Raises:
        ValueError: As `FrechetInceptionDistance`; there must be more than k real and k generated pictures, and the real
            ones may not all have the same features.
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(
        self,
        feature: int | nn.Module = 2048,
        k: int = 5,
        reset_real_features: bool = True,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        _expect("k", k, "integer larger than 0", int, 0)
        super().__init__(feature, reset_real_features, normalize, **kwargs)
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """The four by name."""
        figures = self.figures_of(*self._sides(f"Precision and recall with k = {self.k}", self.k + 1))
        return {name: self._figure(value) for name, value in figures._asdict().items()}

    def figures_of(self, real: Tensor, fake: Tensor, real_radii: Tensor | None = None) -> PrecisionRecallResult:
        """The four of features `[N, D]` and `[M, D]`, in whatever order they are; see `manifold.precision_recall`."""
        return precision_recall(real, fake, self.k, real_radii=real_radii)


def _joined(parts: list[Tensor]) -> Tensor:
    """`[N, D]`; `[0, 0]` where there is nothing."""
    return torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float32)


def _expect(argument: str, given: Any, what: str, kinds: Any, above: float | None = None) -> None:
    """Raise a `ValueError` in torchmetrics' words if an argument is not what it should be."""
    if not isinstance(given, kinds) or (above is not None and given is not None and not given > above):
        raise ValueError(f"Argument `{argument}` expected to be {what}, got {given!r}.")
