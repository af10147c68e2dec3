"""Feature extractors: a figure such as FID is a distance between features, and means nothing without their name.

An extractor is a frozen network together with all that is done to a picture before it. Its `record` says in words and
hashes which one it is, and `fingerprint` is the hash of that, so that neither figures nor stored statistics of two
extractors are ever mixed. The Inception network of the published FID is in `lightning_gen.extractors.inception`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.checkpoints import digest_weights
from lightning_gen.files import digest

SCHEMA = 1  # goes up when a change here moves a feature by more than rounding


class Features(NamedTuple):
    """What an extractor makes of N pictures.

    Attributes:
        features: float32 `[N, D]`.
        logits: float32 `[N, K]` of its classes, or None where it has none.
    """

    features: Tensor
    logits: Tensor | None = None


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from pictures to features that says exactly which one it is.

    Its parameters ask for no gradients, it is in eval mode whatever `train` is told, and neither autocast nor a
    permission of TF32 reaches its arithmetic. It can be copied, pickled and moved to a device; its fingerprint stays.

    Args:
        network: Frozen in place.
        name: Suffix of the names of its figures, such as "lenet64".
        preprocessing: All that happens to a picture before the network, in words.
        num_features: D.
        num_classes: K, or None where the network classifies nothing.
        image_shape: (channels, height, width) of the pictures it takes; None where any will do.
        quantized: Whether it takes uint8 pictures, as figures should be of; else float ones, as they are.
        precision: Of the network's arithmetic.
        weights: sha256 of the weights; by default that of the network's state dict.
        details: What else belongs in the record.

    Attributes:
        resizes: Whether it brings pictures of any size to one by itself, so that those of different sizes compare.
        standard: Whether it is the extractor of the published FID, whose figures carry no suffix.
        record: All that may move a figure.
    """

    resizes = False

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        preprocessing: str,
        num_features: int,
        num_classes: int | None = None,
        image_shape: tuple[int | None, int | None, int | None] = (None, None, None),
        quantized: bool = True,
        precision: str = "float32",
        weights: str | None = None,
        details: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        for parameter in network.parameters():  # TorchScript has no requires_grad_ for all at once
            parameter.requires_grad_(False)
        self.name = name
        self.num_features = num_features
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.quantized = quantized
        self.standard = False
        self.record: dict[str, str | int] = {
            "class": type(self).__name__,
            "name": name,
            **(details or {}),
            "preprocessing": preprocessing,
            "precision": precision,
            "weights": weights or digest_weights(network.state_dict()),
            "schema": SCHEMA,
        }
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self.train(False)

    @property
    def fingerprint(self) -> str:
        """sha256 of the record."""
        return digest(json.dumps(self.record, sort_keys=True).encode())

    @property
    def device(self) -> torch.device:
        """Where it works; there its pictures must lie."""
        place: Tensor = self.get_buffer("_place")
        return place.device

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in eval mode."""
        return super().train(False)

    def check_shape(self, image_shape: Sequence[int]) -> None:
        """Raise a `ValueError` unless it takes pictures of (channels, height, width)."""
        fits = all(want in (None, got) for want, got in zip(self.image_shape, image_shape, strict=False))
        if len(image_shape) != 3 or min(image_shape) < 1 or not fits:
            sides = zip(self.image_shape, ("channels", "height", "width"), strict=True)
            wanted = ", ".join(str(side or word) for side, word in sides)
            raise ValueError(f"{self.name} takes pictures [{wanted}]; these are {list(image_shape)}.")

    def forward(self, images: Tensor) -> Features:
        """The features of a batch of pictures, without a graph.

        Args:
            images: uint8 `[N, C, H, W]`, or float where the extractor is not `quantized`.

        Raises:
            ValueError: If type or shape are not those, or if pictures or features are not finite.
        """
        if self.quantized and images.dtype != torch.uint8:
            raise ValueError(f"{self.name} takes uint8 pictures; got {images.dtype}. to_uint8 makes them of [-1, 1].")
        if not self.quantized and not images.is_floating_point():
            raise ValueError(f"{self.name} takes floats; got {images.dtype}.")
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"{self.name} takes batches [N, C, H, W], N at least 1; got {list(images.shape)}.")
        self.check_shape(images.shape[1:])
        if not self.quantized and (bad := _count_not_finite(images)):
            raise ValueError(f"{bad} of {len(images)} pictures for {self.name} are not finite.")

        with torch.no_grad(), torch.autocast(images.device.type, enabled=False), full_float32():
            features, logits = self.extract(images)
        result = Features(features.float(), None if logits is None else logits.float())
        if bad := max(_count_not_finite(values) for values in result if values is not None):
            raise ValueError(
                f"{self.name} gives values that are not finite for {bad} of {len(images)} pictures: "
                f"its weights are damaged, or {self.record['precision']} is too narrow for them."
            )
        return result

    @abstractmethod
    def extract(self, images: Tensor) -> Features:
        """The features of pictures `[N, C, H, W]` that have been checked, in any float type."""

    def layers_of(self, images: Tensor) -> list[Tensor]:
        """What several layers make of pictures, from the first to the last, with a graph: for losses by features.

        Args:
            images: Float `[N, C, H, W]` in `[-1, 1]`, or a little outside, whatever the extractor itself takes.

        Returns:
            `[N, channels, h, w]` or `[N, D]` each.

        Raises:
            ValueError: If the extractor shows none.
        """
        raise ValueError(
            f"{self.name} ({type(self).__name__}) does not show its layers. Take SceneFeatures, ClassifierFeatures or "
            "InceptionFeatures, or a subclass of your own with layers_of."
        )


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products in float32, though the training may have allowed TF32 or bfloat16 in them.

    What `fp32_precision` of torch 2.9 was set to in ways that the older functions refuse to read stays as it is.
    """
    try:
        precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        yield
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def activations(layers: Iterable[nn.Module], images: Tensor) -> list[Tensor]:
    """What every ReLU in a row of layers gives."""
    found = []
    for layer in layers:
        images = layer(images)
        found += [images] if isinstance(layer, nn.ReLU) else []
    return found


def _count_not_finite(values: Tensor) -> int:
    return int((~values.isfinite()).flatten(1).any(1).sum())


def _load_network(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A network made on the meta device, now with weights, in float32.

    Made there it draws no random numbers, and the default type, which "bf16-true" changes, does not matter.
    """
    network.load_state_dict(state, assign=True)
    return network.float()
