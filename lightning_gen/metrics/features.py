"""Feature extractors: a figure such as FID is a distance between features, and means nothing without their name.

An extractor is a frozen network together with all that is done to a picture before it. Its `record` says in words and
hashes which one it is, and `fingerprint` is the hash of that, so that neither figures nor stored statistics of two
extractors are ever mixed. The Inception network of the published FID is in `lightning_gen.metrics.inception`.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_gen.cache import cache_folder
from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointError, read_checkpoint
from lightning_gen.data.images import from_uint8
from lightning_gen.metrics.scene_attributes import SceneAttributeReader, train_reader
from lightning_gen.networks.lenet import LeNet
from lightning_gen.trust import check_program

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
        return _digest(json.dumps(self.record, sort_keys=True).encode())

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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of a state dict, on whatever device it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def _count_not_finite(values: Tensor) -> int:
    return int((~values.isfinite()).flatten(1).any(1).sum())


def _load_network(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A network made on the meta device, now with weights, in float32.

    Made there it draws no random numbers, and the default type, which "bf16-true" changes, does not matter.
    """
    network.load_state_dict(state, assign=True)
    return network.float()


class PointFeatures(FeatureExtractor):
    """The coordinates of toy points themselves: float `[N, dimensions, 1, 1]` to `[N, dimensions]`.

    Args:
        dimensions: Of the points.
    """

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__(
            nn.Identity(),
            name=f"points{dimensions}",
            preprocessing="none",
            num_features=dimensions,
            image_shape=(dimensions, 1, 1),
            quantized=False,
        )

    def extract(self, images: Tensor) -> Features:
        """The coordinates."""
        return Features(images.flatten(1))


_PIXELS = {"uint8": "none", "unit": "x / 255", "symmetric": "x / 127.5 - 1"}


class ModuleFeatures(FeatureExtractor):
    """Features by any network: a module, or a TorchScript file.

    The network maps a batch of pictures to features `[N, D]`, or to (features `[N, D]`, logits `[N, K]`). It is copied,
    so that training it elsewhere does not move the figures. The fingerprint is of weights, class and printed structure,
    or of all of a TorchScript file. It is not of the code of a class: give it another name when that changes.

    Args:
        module: The network, on the CPU; or the path of a file that `torch.jit.save` wrote. Such a file may run code of
            its own: take none that you do not trust.
        num_features: D; None means the module's attribute of that name. What neither says is measured with a blank
            picture, as soon as `check_shape` or the first batch gives the shape: until then `num_features` is 0 and
            `num_classes` None.
        image_shape: (channels, height, width) of the pictures; others are then refused, and D is measured at once.
        pixels: What the network is given: "uint8", "unit" for floats in `[0, 1]`, "symmetric" for `[-1, 1]`.
        name: By default its class in lower case, and D where that is known from the start.

    Raises:
        FileNotFoundError: If there is no file at that path.
        ValueError: If the file is not TorchScript, or the network does not give features of these shapes.
    """

    def __init__(
        self,
        module: nn.Module | str | Path,
        *,
        num_features: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        pixels: Literal["uint8", "unit", "symmetric"] = "symmetric",
        name: str | None = None,
    ) -> None:
        if pixels not in _PIXELS:
            raise ValueError(f"pixels must be one of {', '.join(_PIXELS)}; got {pixels!r}.")
        if isinstance(module, nn.Module):
            network, content = copy.deepcopy(module), None
        else:
            network, content = _load_script(Path(module)), Path(module).read_bytes()
        kind, path = type(network).__name__, f"{type(network).__module__}.{type(network).__qualname__}"
        if isinstance(network, torch.jit.ScriptModule):
            kind, path = str(network.original_name), "TorchScript"
            content = content or _script_bytes(network)  # what was frozen is in no state dict
        super().__init__(
            network,
            name=name or kind.lower(),
            preprocessing=_PIXELS[pixels],
            num_features=num_features or int(getattr(network, "num_features", 0)),
            image_shape=image_shape or (None, None, None),
            weights=None if content is None else _digest(content),
            # Where functions are printed, their addresses say nothing of them.
            details={"module": path, "structure": _digest(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode())},
        )
        self.pixels = pixels
        self.measured = False
        if image_shape is not None:
            self.check_shape(image_shape)
        if name is None and self.num_features:
            self.name += str(self.num_features)
            self.record["name"] = self.name

    def check_shape(self, image_shape: Sequence[int]) -> None:
        """Raise a `ValueError` unless it takes pictures of (channels, height, width); the first time by trying."""
        super().check_shape(image_shape)
        if not self.measured:
            blank = torch.zeros(2, *image_shape, dtype=torch.uint8, device=self.device)
            try:
                with torch.no_grad():
                    features, logits = self.extract(blank)
            except RuntimeError as error:
                raise ValueError(f"{self.name} cannot read pictures {list(image_shape)}: {error}") from error
            self.num_features = features.shape[1]
            self.num_classes = None if logits is None else logits.shape[1]
            self.measured = True

    def extract(self, images: Tensor) -> Features:
        """What the network says, if its shapes are right."""
        pixels = images
        if self.pixels == "unit":
            pixels = images.to(torch.float32).div(255)
        elif self.pixels == "symmetric":
            pixels = from_uint8(images)
        output = self.network(pixels)
        features, logits = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
        for what, values, size in (("features", features, self.num_features), ("logits", logits, self.num_classes)):
            if values is None and what == "logits":
                continue
            if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(images):
                got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ValueError(
                    f"{self.name} must map {list(images.shape)} to features [{len(images)}, D], or to them and logits "
                    f"[{len(images)}, K]; its {what} are {got}."
                )
            if size and values.shape[1] != size:
                raise ValueError(f"{self.name} was to give {size} {what}, but gives {values.shape[1]}.")
        return Features(features, logits)

    def __getstate__(self) -> dict[str, Any]:
        """TorchScript goes to another process as the bytes of its file, for it cannot be pickled."""
        state: dict[str, Any] = super().__getstate__()
        if isinstance(self.network, torch.jit.ScriptModule):
            state["_modules"] = {"network": _script_bytes(self.network)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        network = state["_modules"]["network"]
        if isinstance(network, bytes):
            with _quiet_script():
                state["_modules"] = {"network": torch.jit.load(io.BytesIO(network))}
        super().__setstate__(state)


def _load_script(path: Path) -> nn.Module:
    if not path.is_file():
        raise FileNotFoundError(f"There is no TorchScript file at {path}.")
    check_program(path)
    try:
        with _quiet_script():
            script: nn.Module = torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not TorchScript, or damaged. A file of weights alone needs its network: give that as module."
        ) from error
    return script


def _script_bytes(network: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    with _quiet_script():
        torch.jit.save(network, buffer)
    return buffer.getvalue()


@contextmanager
def _quiet_script() -> Iterator[None]:
    """What torch advises its authors to write is nothing that the reader of a file can mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.(load|save)` is deprecated", FutureWarning)
        yield


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


def classifier_file(data: str, image_shape: Sequence[int]) -> Path:
    """Where the classifier for this data, in pictures of this shape, is kept: `classifiers/mnist-1x28x28.ckpt`."""
    return cache_folder() / "classifiers" / f"{data.lower()}-{'x'.join(map(str, image_shape))}.ckpt"


class SceneFeatures(FeatureExtractor):
    """128 features of the built-in scenes: the last hidden layer of a `SceneAttributeReader`.

    The reader is trained on the spot the first time, in 15 s or so, and kept in the cache folder. Its training is a
    function of the arguments up to the rounding of the machine, which it amplifies: to compare figures of two machines,
    carry the file over. Its statements do not exclude one another, so they are no classes.

    Args:
        image_size: Of the pictures: the side of a square, or (height, width). None takes that of the first pictures it
            is shown or told of; until then there is no reader.
        num_scenes: Scenes that the reader learns from.
        epochs: How often it sees each.
        seed: Of its training.
        domain: One of `lightning_gen.data.scenes.DOMAINS`.
        weights: The file of a reader of pictures of this size, whatever it was trained with; None means the one in the
            cache folder that was trained with these settings.

    Raises:
        CheckpointError: If `weights` is missing, damaged or of another size.
        ValueError: If the size is below 16 x 16 or the domain unknown.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] | None = None,
        *,
        num_scenes: int = 6000,
        epochs: int = 8,
        seed: int = 0,
        domain: str = "day",
        weights: str | Path | None = None,
    ) -> None:
        settings = {"num_scenes": num_scenes, "epochs": epochs, "seed": seed, "domain": domain, "weights": weights}
        if image_size is None:
            nothing = {"name": "scenes128", "preprocessing": "unknown", "num_features": 128}
            super().__init__(nn.Identity(), image_shape=(3, None, None), **nothing)  # type: ignore[arg-type]
            self.settings = settings
            return
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        training = f"{num_scenes} scenes by {domain}, {epochs} epochs, seed {seed}"
        if weights is not None:
            reader, training = _read_reader(Path(weights), size)
        else:
            words = "-".join(map(str, (domain, f"{size[0]}x{size[1]}", num_scenes, epochs, seed)))
            path = cache_folder() / "extractors" / f"scenes128-{words}-v{SCHEMA}.pt"
            kept = _kept_reader(path, size)
            if kept is None:
                rank_zero_info(f"SceneFeatures trains a reader of scenes, once and for some 15 s: {path}")
                kept = train_reader((3, *size), domain, num_scenes, epochs, seed)
                _keep_reader(path, kept, size, training)
            reader = kept
        super().__init__(
            reader,
            name="scenes128",
            preprocessing="x / 127.5 - 1; mean over each cell of a grid of {} x {}".format(*reader.size),
            num_features=128,
            image_shape=(3, *size),
            details={"training": training},
        )
        self.settings = settings

    def check_shape(self, image_shape: Sequence[int]) -> None:
        """Raise a `ValueError` unless it takes pictures of (channels, height, width); the first ones settle it."""
        super().check_shape(image_shape)
        if isinstance(self.network, nn.Identity):
            device = self.device
            SceneFeatures.__init__(self, (image_shape[1], image_shape[2]), **self.settings)  # type: ignore[arg-type]
            self.to(device)

    def extract(self, images: Tensor) -> Features:
        """The last hidden layer."""
        reader = self.network
        assert isinstance(reader, SceneAttributeReader)
        return Features(reader.features(from_uint8(images)))


def _read_reader(path: Path, size: tuple[int, int]) -> tuple[SceneAttributeReader, str]:
    """The reader of pictures of this size in a file, and the words for its training."""
    try:
        kept = read_checkpoint(path)
        if tuple(kept["image_size"]) != size:
            raise ValueError(f"its pictures have {kept['image_size']}")
        with torch.device("meta"):
            reader = SceneAttributeReader(*size)
        _load_network(reader, kept["state_dict"])
        return reader, str(kept["training"])
    except Exception as error:  # a file of anything at all can raise anything at all
        raise CheckpointError(f"{path} holds no reader of scenes of {size[0]} x {size[1]} pixels: {error}") from error


def _kept_reader(path: Path, size: tuple[int, int]) -> SceneAttributeReader | None:
    if not path.exists():
        return None
    try:
        return _read_reader(path, size)[0]
    except CheckpointError as error:
        rank_zero_warn(f"{error} A new one takes its place.")
        return None


def _keep_reader(path: Path, reader: SceneAttributeReader, size: tuple[int, int], training: str) -> None:
    kept = {"state_dict": reader.state_dict(), "image_size": list(size), "training": training}
    try:
        AtomicCheckpointIO().save_checkpoint(kept, path)
    except OSError as error:
        rank_zero_warn(f"The reader of scenes could not be kept, and will be trained again next time: {error}")
