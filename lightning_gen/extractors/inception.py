"""The Inception network of the published FID and Inception Score, and what is done to a picture before it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.files import digest
from lightning_gen.limits import load_tensors

Layer = Literal[64, 192, 768, 2048]
Resize = Literal["tf1", "pil", "antialias"]

SIZE = 299
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# The same bytes, as torch-fidelity and pytorch-fid call them.
_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
_STEM = 7  # layers up to the second pooling
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class InceptionFeatures(FeatureExtractor):
    """The Inception-v3 of 2015-12-05, by which FID (1706.08500) and Inception Score (1606.03498) are published.

    The network is torch-fidelity's, with batch norm folded into the convolutions and channels last in memory: about
    twice as fast, and its features agree within 1e-5 relative. It begins from uint8 pictures of any size. Its logits
    are those of 1008 classes without their bias, as the Inception Score has been computed from the start.

    With bfloat16 it is 3.5 to 6 times as fast as torch-fidelity where the processor has instructions for it. Features
    move by 1 to 2 %, and figures with them; they do not compare with figures in float32, and bear another name.

    Its figures carry its name, "inception" and the layer, then "-pil" or "-antialias", "-bf16", and the first 8 digits
    of the weights' hash if they are not the published ones. The published one with its own resize has no suffix.

    Args:
        feature: The layer: 2048 for the published figures; 64, 192 and 768 are the ends of earlier blocks, averaged
            over the picture, and have no logits. The network runs no further than it must.
        weights: Their file, in the layout of torch-fidelity and pytorch-fid. None means the published ones, from
            `torch.hub.get_dir()/checkpoints` under either project's name, or downloaded to there.
        resize: To 299 x 299. "tf1": bilinear as the TensorFlow 1 graph of the original, and torch-fidelity, have it.
            "pil": bicubic and antialiased by Pillow, in floats, as clean-fid (2104.11222). "antialias": bilinear with
            antialiasing, as torchmetrics since 1.8.
        precision: Of the network; resize and average stay in float32.
        gray: What becomes of pictures with one channel: an error, or three equal channels.
        sha256: What the hash of the file must begin with.

    Raises:
        FileNotFoundError: If there is no such file, and none can be downloaded.
        ModuleNotFoundError: If torch-fidelity is not installed.
        ValueError: If the file has the wrong hash, or holds no weights of this network.
    """

    resizes = True

    def __init__(
        self,
        feature: Layer = 2048,
        *,
        weights: str | Path | None = None,
        resize: Resize = "tf1",
        precision: Literal["float32", "bfloat16"] = "float32",
        gray: Literal["error", "repeat"] = "error",
        sha256: str | None = None,
    ) -> None:
        for argument, value, known in (
            ("feature", feature, get_args(Layer)),
            ("resize", resize, get_args(Resize)),
            ("precision", precision, tuple(_DTYPES)),
            ("gray", gray, ("error", "repeat")),
        ):
            if value not in known:
                raise ValueError(f"{argument} must be one of {', '.join(map(str, known))}; got {value!r}.")
        network = build_network(feature)
        path = _published_weights() if weights is None else Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"There are no weights at {path}. The published ones are at {URL}.")
        found = digest(path)
        if weights is None and found != SHA256:
            raise ValueError(
                f"{path} is damaged or another file: its sha256 is {found}, not {SHA256}. Delete it, and the right "
                f"one is downloaded; or put {URL} in its place, or give the path of such a file as weights."
            )
        if sha256 is not None and not found.startswith(sha256.lower()):
            raise ValueError(f"The sha256 of {path} is {found}; it should begin with {sha256.lower()}.")
        network, classes = _load(network, path)
        network = nn.Sequential(network[:_STEM], network[_STEM:]).to(_DTYPES[precision])
        words = [_RESIZES[resize][1], "(x - 128) / 128"]
        if gray == "repeat":
            words.append("gray three times")
        suffixes = (
            "" if resize == "tf1" else f"-{resize}",
            "-bf16" if precision == "bfloat16" else "",
            "" if found == SHA256 else f"-{found[:8]}",
        )
        super().__init__(
            network.to(memory_format=torch.channels_last),
            name=f"inception{feature}{''.join(suffixes)}",
            preprocessing="; ".join(words),
            num_features=feature,
            num_classes=None if classes is None else len(classes),
            image_shape=(3, None, None),
            precision=precision,
            weights=found,
            details={"layer": feature},
        )
        self.standard = self.name == "inception2048"
        self.resize = resize
        self.dtype = _DTYPES[precision]
        self.gray = gray
        self.classes: Tensor | None
        self.register_buffer("classes", classes)

    def check_shape(self, image_shape: Sequence[int]) -> None:
        """Raise a `ValueError` unless it takes pictures of (channels, height, width)."""
        if len(image_shape) == 3 and image_shape[0] == 1:
            if self.gray == "error":
                raise ValueError(
                    f"{self.name} knows pictures with 3 channels; these are gray, {list(image_shape)}. A classifier of "
                    "such pictures says more about them (ClassifierFeatures); else InceptionFeatures(gray='repeat') "
                    "takes the channel three times."
                )
            image_shape = (3, *image_shape[1:])
        super().check_shape(image_shape)

    def extract(self, images: Tensor) -> Features:
        """The layer averaged over the picture, and the logits behind the last one."""
        stem, blocks = self.network.children()
        # The pictures of the stem are large; as many as fit a CPU's cache are read up to 1.4 times as fast.
        few, some = (4, 16) if images.device.type == "cpu" else (len(images), len(images))
        layers = []
        for part in images.split(some):
            layer = blocks(torch.cat([stem(self._prepare(pictures)) for pictures in part.split(few)]))
            layers.append(layer.float().mean((2, 3)))
        features = torch.cat(layers)
        return Features(features, None if self.classes is None else F.linear(features, self.classes))

    def layers_of(self, images: Tensor) -> list[Tensor]:
        """The ends of those of the four blocks that the network has."""
        if self.resize == "pil":
            raise ValueError(f"{self.name} resizes by Pillow, through which no gradient goes; take another resize.")
        layers, found = self._prepare((images + 1) * 127.5), []
        for part in self.network.children():
            for name, block in part.named_children():
                layers = block(layers)
                found += [layers.float()] if name in ("MaxPool_1", "MaxPool_2", "Mixed_6e", "Mixed_7c") else []
        return found

    def _prepare(self, images: Tensor) -> Tensor:
        pixels = _RESIZES[self.resize][0](images).sub(128).div(128).expand(-1, 3, -1, -1)
        return pixels.to(self.dtype).contiguous(memory_format=torch.channels_last)


def build_network(feature: Layer) -> nn.Sequential:
    """Torch-fidelity's blocks up to a layer, on the meta device, under the names in the file of weights."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "InceptionFeatures needs torch-fidelity, whose network it is: pip install 'torch-fidelity>=0.4'"
        ) from error
    convolution = fidelity.BasicConv2d
    with torch.device("meta"):
        blocks: dict[Layer, dict[str, nn.Module]] = {
            64: {
                "Conv2d_1a_3x3": convolution(3, 32, kernel_size=3, stride=2),
                "Conv2d_2a_3x3": convolution(32, 32, kernel_size=3),
                "Conv2d_2b_3x3": convolution(32, 64, kernel_size=3, padding=1),
                "MaxPool_1": nn.MaxPool2d(3, stride=2),
            },
            192: {
                "Conv2d_3b_1x1": convolution(64, 80, kernel_size=1),
                "Conv2d_4a_3x3": convolution(80, 192, kernel_size=3),
                "MaxPool_2": nn.MaxPool2d(3, stride=2),
            },
            768: {
                "Mixed_5b": fidelity.InceptionA(192, pool_features=32),
                "Mixed_5c": fidelity.InceptionA(256, pool_features=64),
                "Mixed_5d": fidelity.InceptionA(288, pool_features=64),
                "Mixed_6a": fidelity.InceptionB(288),
                "Mixed_6b": fidelity.InceptionC(768, channels_7x7=128),
                "Mixed_6c": fidelity.InceptionC(768, channels_7x7=160),
                "Mixed_6d": fidelity.InceptionC(768, channels_7x7=160),
                "Mixed_6e": fidelity.InceptionC(768, channels_7x7=192),
            },
            2048: {
                "Mixed_7a": fidelity.InceptionD(768),
                "Mixed_7b": fidelity.InceptionE_1(1280),
                "Mixed_7c": fidelity.InceptionE_2(2048),
            },
        }
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for end, block in blocks.items():
        if end <= feature:
            layers.update(block)
    return nn.Sequential(layers).eval()


def has_published_weights() -> bool:
    """Whether a file of the published weights is on this machine already."""
    return any(path.is_file() for path in _places())


def _places() -> list[Path]:
    return [Path(torch.hub.get_dir()) / "checkpoints" / name for name in _FILES]


def _published_weights() -> Path:
    """Where the published weights are, after they have been downloaded if need be; their hash is yet to be checked."""
    if found := [path for path in _places() if path.is_file()]:
        return found[0]
    path = _places()[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"The weights of the Inception network could not be downloaded ({error}). Put {URL} to {path}; or give the "
            "path of such a file as weights."
        ) from error
    return path


def _load(network: nn.Sequential, path: Path) -> tuple[nn.Sequential, Tensor | None]:
    """The network with weights and batch norm folded into its convolutions, in float32; and the classes' weights."""
    try:
        state = load_tensors(path)
        names = network.state_dict().keys()
        # Files of older torch have no counters of batches; folded away, they are not missed.
        network.load_state_dict(
            {name: state[name].double() for name in names if not name.endswith("num_batches_tracked")},
            strict=False,
            assign=True,
        )
        classes = state["fc.weight"].float() if hasattr(network, "Mixed_7c") else None
    except Exception as error:  # a file of anything at all can raise anything at all
        reason = (str(error).strip().splitlines() or ["nothing said"])[0]
        raise ValueError(
            f"{path} does not hold the weights of the FID's Inception network ({type(error).__name__}: {reason}). "
            f"They are at {URL}."
        ) from error
    for block in network.modules():
        if hasattr(block, "bn"):
            block.conv = fuse_conv_bn_eval(cast(nn.Conv2d, block.conv), cast(nn.BatchNorm2d, block.bn))
            block.bn = nn.Identity()
    return network.float(), classes


def _resize_tf1(images: Tensor) -> Tensor:
    """Pixel i of the new picture lies at i times the ratio of sizes in the old one, with no half pixel to it."""
    pixels = images.float()
    for axis in (3, 2):
        size = pixels.shape[axis]
        places = torch.arange(SIZE, dtype=torch.float32, device=images.device)
        places = places * torch.tensor(size / SIZE, dtype=torch.float32)
        before = places.long()
        weight = (places - before).view(-1, *[1] * (3 - axis))
        left, right = (pixels.index_select(axis, side) for side in (before, (before + 1).clamp(max=size - 1)))
        pixels = left + (right - left) * weight
    return pixels


def _resize_pil(images: Tensor) -> Tensor:
    planes = images.float().flatten(0, 1).cpu().numpy()
    resized = [Image.fromarray(plane).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for plane in planes]
    pixels = torch.from_numpy(np.stack([np.asarray(plane) for plane in resized]))
    return pixels.clamp(0, 255).unflatten(0, images.shape[:2]).to(images.device)


def _resize_antialias(images: Tensor) -> Tensor:
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)


_RESIZES: dict[Resize, tuple[Callable[[Tensor], Tensor], str]] = {
    "tf1": (_resize_tf1, "bilinear to 299 x 299 as TensorFlow 1 has it"),
    "pil": (_resize_pil, "bicubic to 299 x 299 by Pillow, antialiased, in floats, clipped to 0..255"),
    "antialias": (_resize_antialias, "bilinear to 299 x 299, antialiased"),
}
