"""Perceptual losses: how far pictures are from others in the eyes of a network that has learned to see.

An object is a recipe, numbers and names that a checkpoint can hold. The network is loaded when it is first needed; it
is frozen and float32, follows the pictures from device to device, and is no part of a model that has such a loss: its
weights, 58 MB of VGG-16, stand in no checkpoint. `extractors.FeatureDistance` makes one of any extractor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Backbone = Literal["vgg", "alex", "squeeze"]


class PerceptualLoss(ABC):
    """Base of perceptual losses. A subclass says what network it is, and how far two pictures are in it."""

    _network: nn.Module | None = None
    _place: torch.device | None = None  # where the network is

    @abstractmethod
    def load(self) -> nn.Module:
        """The network with its weights, never with random ones; the global random state stays as found.

        Raises:
            FileNotFoundError: If the weights cannot be had.
        """

    @abstractmethod
    def distances(self, network: Any, reconstructions: Tensor, images: Tensor) -> Tensor:
        """How far each reconstruction is from its picture: `[N]`, of two batches float32 `[N, C, H, W]`."""

    def prepare(self, image_shape: Sequence[int]) -> None:
        """Load the network and try it on a blank picture, for what is wrong should come out when a run starts.

        Raises:
            FileNotFoundError: If its weights cannot be had.
            ValueError: If it cannot read pictures of (channels, height, width).
        """
        network, blank = self.network(), torch.zeros(1, *image_shape, device=self._place)
        try:
            with torch.no_grad(), torch.autocast(blank.device.type, enabled=False):
                self.distances(network, blank, blank)
        except RuntimeError as error:
            raise ValueError(f"{self} cannot read pictures of shape {list(image_shape)}: {error}") from error

    def network(self) -> nn.Module:
        """The network, loaded at the first call.

        Raises:
            FileNotFoundError: If its weights cannot be had.
        """
        if self._network is None:
            try:
                network = self.load()
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{type(self).__name__}: {error} Or take another perceptual loss: FeatureDistance, of "
                    "lightning_gen.extractors, needs no file from elsewhere; a weight of 0 leaves it out."
                ) from error
            self._network = network.eval().requires_grad_(False)
        return self._network

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """The mean distance, a float32 scalar; gradients reach the reconstructions and nothing else.

        Args:
            reconstructions: `[N, C, H, W]`, about [-1, 1].
            images: `[N, C, H, W]` in [-1, 1].

        Raises:
            ValueError: If the shapes differ.
        """
        if reconstructions.shape != images.shape:
            raise ValueError(
                f"Reconstructions and pictures must have one shape, got {list(reconstructions.shape)} and "
                f"{list(images.shape)}."
            )
        if self._network is None:
            self.prepare(images.shape[1:])
        network = self.network()
        if self._place != images.device:
            network.to(images.device)
            self._place = images.device
        with torch.autocast(images.device.type, enabled=False):
            return self.distances(network, reconstructions.float(), images.detach().float()).mean()


def layered_distances(layers: Sequence[Tensor], originals: Sequence[Tensor]) -> Tensor:
    """The squared distance of features over their mean square in the original, so that scales do not matter; `[N]`.

    A sum over layers, each a mean over places. LPIPS brings features to one length place by place; where a small
    network sees next to nothing, as in a clear sky, that makes much of it, and decoders learn to fill it with noise.

    Args:
        layers: Of some pictures, each `[N, C, h, w]`, or `[N, C]` of one place.
        originals: Of those that they should equal, likewise.
    """
    distances = []
    for layer, original in zip(layers, originals, strict=True):
        squares, scale = (layer - original).square().flatten(1).mean(1), original.square().flatten(1).mean(1)
        distances.append(squares / (scale + 1e-8))
    return torch.stack(distances).sum(0)


def _as_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@dataclass
class LPIPSDistance(PerceptualLoss):
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924), which was trained to judge as people do; by torchmetrics' network.

    It needs the weights of a torchvision network, which are downloaded once. Grey is repeated as RGB. At least 16 x 16
    pixels for "vgg", 31 x 31 for "alex", 17 x 17 for "squeeze".

    Args:
        net: The network: "vgg", with which people train, "alex", with which they measure, or the small "squeeze".

    Raises:
        ValueError: If it is none of these.
    """

    net: Backbone = "vgg"
    files: ClassVar[dict[str, str]] = {
        "vgg": "VGG16_Weights",
        "alex": "AlexNet_Weights",
        "squeeze": "SqueezeNet1_1_Weights",
    }

    def __post_init__(self) -> None:
        if self.net not in self.files:
            raise ValueError(f"net must be 'vgg', 'alex' or 'squeeze', got {self.net!r}.")

    def load(self) -> nn.Module:
        """See the class."""
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        # Weights are drawn before they are loaded.
        with _weights_of(self.files[self.net]), torch.random.fork_rng(devices=[]):
            network: nn.Module = LearnedPerceptualImagePatchSimilarity(self.net).net
        return network

    def distances(self, network: Any, reconstructions: Tensor, images: Tensor) -> Tensor:
        """`[N]`."""
        distances: Tensor = network(_as_rgb(reconstructions), _as_rgb(images))
        return distances.flatten(1).sum(1)


@dataclass
class VGGDistance(PerceptualLoss):
    """The feature reconstruction loss of Johnson et al. 2016 (arXiv 1603.08155, equation 2), on torchvision's VGG.

    Mean squared differences of feature maps, summed over layers; relu3_3 in the paper for style transfer, relu2_2 for
    super-resolution. Grey is repeated as RGB.

    Deviation: torchvision's weights take pictures divided by the deviations of ImageNet's colours, so features are of
    another scale than with the paper's.

    Args:
        layers: Names such as "relu3_3": the third of the convolutions between the second pooling and the third.
        depth: 16 or 19.

    Raises:
        ValueError: If there is no such network, or it has no such layer.
    """

    layers: Sequence[str] = ("relu3_3",)
    depth: Literal[16, 19] = 16

    def __post_init__(self) -> None:
        if self.depth not in (16, 19):
            raise ValueError(f"depth must be 16 or 19, got {self.depth}.")
        known = list(_vgg_layers(self.depth))
        if not self.layers or (unknown := set(self.layers) - set(known)):
            got = ", ".join(sorted(unknown)) if self.layers else "none"
            raise ValueError(f"VGG-{self.depth} has the layers {', '.join(known)}; got {got}.")

    def load(self) -> nn.Module:
        """See the class."""
        import torchvision.models

        with _weights_of(f"VGG{self.depth}_Weights") as weights:
            state = weights.get_state_dict(progress=False, check_hash=True)
        own = {name.removeprefix("features."): w for name, w in state.items() if name.startswith("features.")}
        with torch.device("meta"):
            network: nn.Sequential = getattr(torchvision.models, f"vgg{self.depth}")().features
        network.load_state_dict(own, assign=True)
        for module in network:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # what a layer gave is looked at after the next one
        places = _vgg_layers(self.depth)
        return nn.Sequential(_ImageNetColours(), *network[: max(places[name] for name in self.layers) + 1])

    def distances(self, network: Any, reconstructions: Tensor, images: Tensor) -> Tensor:
        """`[N]`."""
        maps = zip(self._maps(network, reconstructions), self._maps(network, images), strict=True)
        return torch.stack([F.mse_loss(*pair, reduction="none").flatten(1).mean(1) for pair in maps]).sum(0)

    def _maps(self, network: nn.Sequential, images: Tensor) -> list[Tensor]:
        features, places, maps = _as_rgb(images), _vgg_layers(self.depth), []
        for place, layer in enumerate(network, -1):
            features = layer(features)
            maps += [features for name in self.layers if places[name] == place]
        return maps


class _ImageNetColours(nn.Module):
    """Pictures in [-1, 1] as torchvision's classifiers take them."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images * 0.5 + 0.5 - self.mean) / self.std


def _vgg_layers(depth: int) -> dict[str, int]:
    """The activations of torchvision's VGG by name, and their places."""
    names, place = {}, 0
    for block, convolutions in enumerate((2, 2, 3, 3, 3) if depth == 16 else (2, 2, 4, 4, 4), 1):
        for number in range(1, convolutions + 1):
            names[f"relu{block}_{number}"] = place + 1
            place += 2
        place += 1  # pooling
    return names


@contextmanager
def _weights_of(name: str) -> Iterator[Any]:
    """The weights of a torchvision network, such as `VGG16_Weights`, to be read, or downloaded, within it.

    Raises:
        FileNotFoundError: If they are not at hand and cannot be downloaded.
    """
    import torchvision.models

    weights = getattr(torchvision.models, name).DEFAULT
    try:
        yield weights
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name} of torchvision are not at hand and could not be downloaded ({error}). Put {weights.url} into "
            f"{torch.hub.get_dir()}/checkpoints."
        ) from error
