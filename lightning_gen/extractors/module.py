"""Any module as an extractor, and points as they are."""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gen.data.images import from_uint8
from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.files import digest
from lightning_gen.trust import check_program


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


_PIXELS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "uint8": ("none", lambda images: images),
    "unit": ("x / 255", lambda images: images.float().div(255)),
    "symmetric": ("x / 127.5 - 1", from_uint8),
}


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
            preprocessing=_PIXELS[pixels][0],
            num_features=num_features or int(getattr(network, "num_features", 0)),
            image_shape=image_shape or (None, None, None),
            weights=None if content is None else digest(content),
            # Where functions are printed, their addresses say nothing of them.
            details={"module": path, "structure": digest(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode())},
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
        output = self.network(_PIXELS[self.pixels][1](images))
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
