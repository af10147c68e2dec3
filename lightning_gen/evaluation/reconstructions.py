"""What a model leaves of pictures of the data, beside these pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_gen.data.base import in_order
from lightning_gen.data.batches import images_and_labels
from lightning_gen.evaluation.engine import Batch
from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.evaluation.reference import Reference, reference_of_loader
from lightning_gen.evaluation.sources import count_of, evenly_spaced
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.processes import rank, world_size
from lightning_gen.randomness import seed_from


@dataclass(frozen=True, eq=False)
class Originals:
    """The pictures that a model is to reconstruct: those of a split, evenly spaced if not all are wanted.

    Attributes:
        loader: Of these pictures.
        reference: Their statistics, for the Fréchet distance of reconstructions to the pictures that they are of.
        protocol: Of the figures of reconstructions alone, and of as many pictures as there are.
    """

    loader: Any
    reference: Reference
    protocol: EvaluationProtocol

    @classmethod
    def of(
        cls, loader: Any, extractor: FeatureExtractor, protocol: EvaluationProtocol, *, name: str, split: str
    ) -> Originals | None:
        """Those of a split, by the name of its data; None where the protocol has no figures of reconstructions."""
        there = count_of(loader)
        if (wanted := protocol.of("reconstructions", there)) is None:
            return None
        chosen = loader if wanted.num_samples == there else evenly_spaced(loader, wanted.num_samples, there)
        reference = reference_of_loader(
            extractor, chosen, name=name, split=split, max_features=0, moments=wanted.needs_moments
        )
        return cls(chosen, reference, wanted)

    def batches(self, model: Any, within: Callable[[], AbstractContextManager[Any]]) -> Iterator[Batch]:
        """Those of this rank, reconstructed within a context; batch b has the noise of (seed, b), if it takes some."""
        with isolate_rng():  # a dataset of the user's own may draw from the global random state
            places = {"num_replicas": world_size(), "rank": rank()}
            for number, batch in in_order(self.loader, self.protocol.batch_size, **places):
                originals = images_and_labels(batch, "An evaluation")[0].to(model.device)
                with within(), torch.no_grad():
                    torch.manual_seed(seed_from(self.protocol.seed, number))
                    images: Tensor = model.reconstruct(originals)
                yield Batch(number, images, originals)
