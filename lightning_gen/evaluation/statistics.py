"""Statistics of the pictures that samples are compared with: kept in a file that says what they are of, found again.

They take longer to compute than anything else in an evaluation, and a figure against the wrong ones looks like any
other. So a file carries a record of all that may move it, and a digest of its content; what does not fit is computed
anew, never trusted.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_gen import files
from lightning_gen.data.fingerprint import digest
from lightning_gen.files import cache_folder, write_atomically
from lightning_gen.limits import LimitError, check_inflation, load_tensors
from lightning_gen.metrics.frechet import Gaussian
from lightning_gen.metrics.manifold import radii
from lightning_gen.processes import failing_together, from_rank_zero, rank

if TYPE_CHECKING:
    from lightning_gen.extractors.base import FeatureExtractor

SCHEMA = 1  # of the files; another number is another meaning of their content


class StatisticsError(ValueError):
    """A file of statistics cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What an extractor sees in a set of pictures.

    Attributes:
        record: What the pictures are and how they were read, as plain data. "count" is the number of pictures.
        gaussian: Of the features of all pictures; None where no figure was asked for that needs it, because for wide
            features it takes longer than all else.
        features: `[M, D]`, float32, those of some of the pictures, evenly spaced; M is 0 where they are not known.
        indices: `[M]`, int64, which pictures these are.

    Raises:
        ValueError: If the shapes do not fit together, or the record is no plain data.
    """

    record: dict[str, Any]
    gaussian: Gaussian | None
    features: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        shapes = list(self.features.shape), list(self.indices.shape)
        wanted = "D" if self.gaussian is None else str(len(self.gaussian.mean))
        if len(shapes[0]) != 2 or wanted not in ("D", str(shapes[0][1])) or shapes[1] != shapes[0][:1]:
            raise ValueError(
                f"Statistics of {wanted} features need features [M, {wanted}] and indices [M], got the shapes "
                f"{shapes[0]} and {shapes[1]}."
            )
        try:
            json.dumps(self.record)
        except TypeError as error:
            raise ValueError(f"The record of statistics must be plain data, such as JSON can hold: {error}.") from error

    @property
    def fingerprint(self) -> str:
        """sha256 of the record."""
        return digest(self.record)

    def radii(self, k: int) -> Tensor:
        """`manifold.radii` of the features, computed once: `[M]`."""
        if k not in self._radii:
            self._radii[k] = radii(self.features, k)
        return self._radii[k]

    @cached_property
    def _radii(self) -> dict[int, Tensor]:
        return {}

    @property
    def count(self) -> int:
        """Number of pictures; 0 where it is not known."""
        return int(self.record.get("count", self.gaussian.count if self.gaussian else 0))

    def moments(self) -> Gaussian:
        """The Gaussian of all pictures.

        Raises:
            StatisticsError: If there is none.
        """
        if self.gaussian is None:
            raise StatisticsError(
                "These statistics hold features alone, but the Fréchet distance needs their mean and covariance."
            )
        return self.gaussian

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all; folders are made as needed.

        It holds tensors and plain data alone, for `torch.load(..., weights_only=True)`, and the covariance's factor, so
        that nobody has to compute it again.

        Raises:
            OSError: If it cannot be written.
        """
        names = () if self.gaussian is None else ("count", "mean", "covariance", "factor")
        content = {
            "schema": SCHEMA,
            "record": json.dumps(self.record, sort_keys=True),
            **{name: getattr(self.gaussian, name) for name in names},
            "features": self.features.detach().to("cpu", torch.float32),
            "indices": self.indices.detach().to("cpu", torch.int64),
        }
        # A part of a larger tensor would bring the whole of it along.
        content = {name: value.clone() if isinstance(value, Tensor) else value for name, value in content.items()}
        buffer = io.BytesIO()
        torch.save({**content, "digest": digest(content)}, buffer)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReferenceStatistics:
        """Read what `save` has written.

        Raises:
            StatisticsError: If there is no such file, or it is damaged, of another kind or of another version.
        """
        with _reading(path, "no file of statistics"):
            content = load_tensors(Path(path))
            written = content.pop("digest")
            schema, intact = content["schema"], digest(content) == written
        if schema != SCHEMA:
            raise StatisticsError(f"{path} is of version {schema}, but this program reads and writes version {SCHEMA}.")
        if not intact:
            raise StatisticsError(f"{path} is damaged: its content does not have the digest that was written with it.")
        gaussian = None
        if "mean" in content:
            gaussian = Gaussian(content["count"], content["mean"], content["covariance"])
            vars(gaussian)["factor"] = content["factor"]  # as if it had been computed
        return cls(json.loads(content["record"]), gaussian, content["features"], content["indices"])

    def to_npz(self, path: str | os.PathLike[str]) -> None:
        """Write `mu` and `sigma`, float64, as TTUR, pytorch-fid and clean-fid read them; whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(buffer, mu=self.moments().mean.numpy(), sigma=self.moments().covariance.numpy())
        write_atomically(path, buffer.getvalue())

    @classmethod
    def from_npz(cls, path: str | os.PathLike[str]) -> ReferenceStatistics:
        """Read `mu` and `sigma` as TTUR, pytorch-fid and clean-fid write them.

        They tell neither the number of pictures nor the extractor, and have no features: the Fréchet distance is all
        that can be computed with them.

        Raises:
            StatisticsError: If there is no such file, or it does not hold a mean and a covariance.
        """
        with _reading(path, "no .npz file that holds `mu` [D] and `sigma` [D, D]"):
            check_inflation(Path(path), times=10)  # some are compressed
            data = Path(path).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                mean, covariance = (torch.from_numpy(file[name].astype(np.float64)) for name in ("mu", "sigma"))
            gaussian = Gaussian(2, mean, covariance)  # the least number that has a covariance
        record = {"file": Path(path).name, "sha256": files.digest(data), "count": 0}
        return cls(record, gaussian, torch.empty(0, len(mean)), torch.empty(0, dtype=torch.int64))


@contextmanager
def _reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StatisticsError(f"There are no statistics to read at {path}: {error.strerror}.") from error
    except LimitError as error:
        raise StatisticsError(str(error)) from error
    except Exception as error:  # whatever the damage leads to; what torch says of it can mislead
        raise StatisticsError(f"{path} is cut short, damaged, or {what}.") from error


def load_statistics(path: str | os.PathLike[str], extractor: FeatureExtractor) -> ReferenceStatistics:
    """Read statistics to be compared with what an extractor sees: ours, or another program's `.npz`.

    Raises:
        StatisticsError: If the file cannot be used, or is of another extractor (an `.npz` tells it by its size alone).
    """
    foreign = Path(path).suffix.lower() == ".npz"
    statistics = ReferenceStatistics.from_npz(path) if foreign else ReferenceStatistics.load(path)
    num_features = statistics.features.shape[1]
    if num_features != extractor.num_features:
        raise StatisticsError(
            f"{path} has statistics of {num_features} features, but {extractor.name} gives {extractor.num_features}. "
            "Choose the extractor and the layer that they were computed with."
        )
    theirs, ours = statistics.record.get("extractor"), extractor.record
    if not foreign and theirs != ours:
        theirs = theirs or {}
        keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        differences = "; ".join(f"{key}: {theirs.get(key)} there, {ours.get(key)} here" for key in keys)
        raise StatisticsError(f"{path} has statistics of another extractor than {extractor.name} ({differences}).")
    return statistics


def cached(
    record: Mapping[str, Any],
    compute: Callable[[], ReferenceStatistics | None],
    folder: str | os.PathLike[str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> ReferenceStatistics | None:
    """The statistics that belong to a record, from the cache or computed and put there: on rank 0, elsewhere None.

    Rank 0 alone reads and writes, and decides for all whether to compute. Damaged files and those of another record are
    computed anew and replaced, with a warning. Any number of runs may do so at once. Where nothing can be written, a
    warning says so, and the statistics are used as they are.

    The record has all that may move the statistics, "data", "split" and "extractor" among it, and `more` is that of
    statistics of the same pictures that hold more, which serve as well. All ranks compute, or none.
    """
    found: ReferenceStatistics | None = None
    path = Path()
    with failing_together():
        if rank() == 0:
            for one in [record] if more is None else [more, record]:
                name = f"{one['data']}-{one['split']}-{one['extractor']['name']}"
                name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:100]
                path = Path(folder or cache_folder()) / "statistics" / f"{name}-{digest(one)[:16]}.pt"
                found = found or _find(path, one)
    if from_rank_zero(found is not None):
        return found
    computed = compute()
    with failing_together():
        if rank() == 0 and computed is not None:
            try:
                computed.save(path)
            except OSError as error:
                rank_zero_warn(f"The statistics {path} could not be kept ({error}); the next run computes them again.")
    return computed if rank() == 0 else None


def _find(path: Path, record: Mapping[str, Any]) -> ReferenceStatistics | None:
    """The statistics in a file, if they can be trusted to be those of the record."""
    try:
        found = ReferenceStatistics.load(path)
    except StatisticsError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            rank_zero_warn(f"{error} They are computed anew.")
        return None
    if found.fingerprint != digest(record):
        rank_zero_warn(f"{path} has statistics of other pictures than its name says. They are computed anew.")
        return None
    return found
