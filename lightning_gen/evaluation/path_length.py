"""How far pictures move, as an eye sees it, when latents or styles move a little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from lightning_gen.capabilities import HasLatents, HasStyles
from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.losses.perceptual import layered_distances
from lightning_gen.metrics.path_length import LPIPS, perceptual_path_length


def no_path_lengths(extractor: FeatureExtractor, sampling: Mapping[str, Any]) -> str:
    """Why an extractor and settings of sampling allow none, in words; empty where they do.

    Raises:
        RuntimeError: If the weights of LPIPS are needed and cannot be had.
    """
    if sampling:
        return f"it is of pictures as a model draws them by itself, and {', '.join(sampling)} is given"
    if extractor.standard:
        LPIPS()
    elif type(extractor).layers_of is FeatureExtractor.layers_of:
        return f"the extractor {extractor.name} does not show its layers, as SceneFeatures and ClassifierFeatures do"
    return ""


def path_lengths(model: HasLatents, extractor: FeatureExtractor, protocol: EvaluationProtocol) -> dict[str, float]:
    """Perceptual path length in z, "ppl_z", and of models that have styles in w, "ppl_w".

    It is that of `metrics.perceptual_path_length`, over whole paths, of as many pairs as the protocol has samples, and
    of pictures without settings of sampling. By LPIPS where the extractor is the published Inception, whose figures are
    to be compared with published ones; else by the layers of the extractor, as `extractors.FeatureDistance` has them.

    Args:
        model: On the device of the extractor.
        extractor: One that shows its layers, or the published Inception.
        protocol: Its number of samples, batch size and seed.

    Raises:
        ValueError: As `perceptual_path_length`.
    """

    def distance(images: Tensor, others: Tensor) -> Tensor:
        return layered_distances(extractor.layers_of(images), extractor.layers_of(others))

    spaces: tuple[Literal["z", "w"], ...] = ("z", "w") if isinstance(model, HasStyles) else ("z",)
    settings: dict[str, Any] = {
        "num_samples": protocol.num_samples,
        "batch_size": protocol.batch_size,
        "seed": protocol.seed,
    }
    by = None if extractor.standard else distance
    return {f"ppl_{space}": perceptual_path_length(model, by, space=space, **settings).mean for space in spaces}
