"""Any extractor of this collection as a perceptual loss."""

# No future import: of annotations that are strings, jsonargparse does not read the signature of a dataclass's factory.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.hyperparameters import made_by
from lightning_gen.losses.perceptual import PerceptualLoss, layered_distances


@dataclass
class FeatureDistance(PerceptualLoss):
    """How far pictures are from others in the layers of an extractor, relative to the size of features.

    With the extractors that train on the spot it needs no file from elsewhere. A figure by the extractor that a model
    was trained with flatters that model: judge it with another, such as `SceneFeatures(seed=1)`.

    Args:
        extractor: Makes one that shows its layers: `SceneFeatures`, `ClassifierFeatures` or `InceptionFeatures`. Called
            when a run starts.
    """

    extractor: Callable[[], FeatureExtractor] = SceneFeatures

    def load(self) -> nn.Module:
        """See the class."""
        return made_by(self.extractor, FeatureExtractor)  # type: ignore[type-abstract]

    def prepare(self, image_shape: Sequence[int]) -> None:
        """As `PerceptualLoss.prepare`."""
        extractor = self.network()
        assert isinstance(extractor, FeatureExtractor)
        extractor.check_shape(image_shape)  # which may be what makes the network
        super().prepare(image_shape)

    def distances(self, network: Any, reconstructions: Tensor, images: Tensor) -> Tensor:
        """`[N]`."""
        return layered_distances(network.layers_of(reconstructions), network.layers_of(images))
