"""A classifier of this collection as an extractor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_gen.checkpoints import CheckpointError, read_checkpoint
from lightning_gen.data.images import from_uint8
from lightning_gen.extractors.base import FeatureExtractor, Features, _load_network, activations
from lightning_gen.files import cache_folder
from lightning_gen.networks.lenet import LeNet


class ClassifierFeatures(FeatureExtractor):
    """The last hidden layer and the classes of a classifier that `lightning-gen fit --config classifier` trained.

    For pictures that are not like ImageNet's, such as small gray ones. The distance between features has been called
    Fréchet classifier distance; the score over its classes is that of 1606.03498 with this classifier in Inception's
    place, K at most. Figures by two classifiers cannot be compared, even where they differ by their seed alone.

    Args:
        weights: A checkpoint of `models.Classifier`; None means the one in the cache folder, where its training leaves
            it, which `data` and `image_shape` then name.
        data: Name of the data module it was trained on, such as "MNIST".
        image_shape: (channels, height, width) of the pictures.
        name: By default "lenet" and the number of features.

    Raises:
        CheckpointError: If the file is damaged or not such a checkpoint.
        FileNotFoundError: If there is none.
        ValueError: If the classifier was trained on other data or other shapes than those given.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        data: str | None = None,
        image_shape: tuple[int, int, int] | None = None,
        name: str | None = None,
    ) -> None:
        if weights is None and (data is None or image_shape is None):
            raise ValueError("ClassifierFeatures needs weights, or data and image_shape: which classifier shall it be?")
        path = Path(weights) if weights is not None else classifier_file(str(data), image_shape or ())
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no classifier at {path}. `lightning-gen fit --config classifier --data {data or 'MNIST'}` "
                "trains one in a minute or so and leaves it in the cache folder."
            )
        checkpoint = read_checkpoint(path)
        state = {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}
        settings = checkpoint.get("hyper_parameters", {})
        try:
            shape = channels, height, width = tuple(settings["image_shape"])
            num_classes, num_features = int(settings["num_classes"]), int(settings["num_features"])
            with torch.device("meta"):
                network: nn.Module = LeNet(shape, num_classes=num_classes, num_features=num_features)
            _load_network(network, state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of models.Classifier: {error}") from error
        training = checkpoint.get("classifier", {})
        trained_on, accuracy = str(training.get("data") or "unknown"), training.get("val_accuracy")
        if data is not None and trained_on.lower() not in ("unknown", data.lower()):
            raise ValueError(f"The classifier at {path} knows the classes of {trained_on}, not those of {data}.")
        super().__init__(
            network,
            name=name or f"lenet{num_features}",
            preprocessing="x / 127.5 - 1",
            num_features=num_features,
            num_classes=num_classes,
            image_shape=(channels, height, width),
            details={"data": trained_on, "validation accuracy": "unknown" if accuracy is None else f"{accuracy:.4f}"},
        )
        if image_shape is not None:
            self.check_shape(image_shape)

    def extract(self, images: Tensor) -> Features:
        """Features and logits."""
        return Features(*self.network(from_uint8(images)))

    def layers_of(self, images: Tensor) -> list[Tensor]:
        """Two maps and the features."""
        network = self.network
        assert isinstance(network, LeNet)
        return activations(network.features, images)


def classifier_file(data: str, image_shape: Sequence[int]) -> Path:
    """Where the classifier for this data, in pictures of this shape, is kept: `classifiers/mnist-1x28x28.ckpt`."""
    return cache_folder() / "classifiers" / f"{data.lower()}-{'x'.join(map(str, image_shape))}.ckpt"
