"""What a picture of the built-in scenes shows, as read by a small network that is trained on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointError, read_checkpoint
from lightning_gen.data.images import from_uint8
from lightning_gen.data.scene_attributes import ROOFS, WALLS, SceneAttributes
from lightning_gen.data.scene_painting import render
from lightning_gen.extractors.base import SCHEMA, FeatureExtractor, Features, _load_network, activations
from lightning_gen.files import cache_folder

SIZE = 32  # larger pictures are read at this size

Reader = TypeVar("Reader", bound=nn.Module)

_Statement = Callable[[SceneAttributes], Any]  # gives bool [N]


def _painted(scenes: SceneAttributes, part: str, index: int) -> NDArray[Any]:
    """Whether there is a house whose walls or roof have this colour."""
    painted: NDArray[Any] = scenes.house_present & (getattr(scenes, f"house_{part}") == index)
    return painted


STATEMENTS: dict[str, _Statement] = {
    "house": lambda scenes: scenes.house_present,
    "trees": lambda scenes: scenes.tree_present.any(axis=1),
    "conifers": lambda scenes: (scenes.tree_present & scenes.tree_conifer).any(axis=1),
    "clouds": lambda scenes: scenes.cloud_present.any(axis=1),
    # As `captions` says it.
    "sun left": lambda scenes: scenes.body_x < 0.4,
    "sun right": lambda scenes: scenes.body_x > 0.6,
    "sun low": lambda scenes: scenes.body_y > 0.22,
    "lush ground": lambda scenes: scenes.ground_hue > 0.5,
    **{f"{color} roof": partial(_painted, part="roof", index=i) for i, color in enumerate(ROOFS)},
    **{f"{color} walls": partial(_painted, part="wall", index=i) for i, color in enumerate(WALLS)},
}
"""What can be said about a scene, by the words for it; "no " before them says the opposite."""

_OPPOSITES = {"sun high": "sun low", "dry ground": "lush ground"}


def parse_conditions(text: str) -> dict[str, bool]:
    """What "house, no clouds, sun high" asks for: `{"house": True, "clouds": False, "sun low": False}`.

    Raises:
        ValueError: If it says something that is not one of `STATEMENTS`, or both a thing and its opposite.
    """
    conditions: dict[str, bool] = {}
    for words in (" ".join(part.lower().split()).replace("moon", "sun") for part in text.split(",")):
        statement, expected = words.removeprefix("no "), not words.startswith("no ")
        if statement in _OPPOSITES:
            statement, expected = _OPPOSITES[statement], not expected
        if statement not in STATEMENTS:
            known = ", ".join([*STATEMENTS, *_OPPOSITES])
            raise ValueError(f"Scenes have no attribute {words!r}. Known are: {known}; each may follow 'no'.")
        if conditions.setdefault(statement, expected) != expected:
            raise ValueError(f"{text!r} asks for {statement!r} and for its opposite.")
    return conditions


class SceneAttributeReader(nn.Module):
    """Says how likely each of `STATEMENTS` is true of a picture.

    Args:
        height: Of the pictures.
        width: Of the pictures.

    Attributes:
        accuracy: For each statement the share of unseen rendered scenes about which it is right; `train_reader`
            measures it.
    """

    unit: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # Root mean square of the last hidden layer on unseen scenes; `train_reader` measures it.
        self.register_buffer("unit", torch.ones(()))
        self.size = (min(height, SIZE), min(width, SIZE))
        self.accuracy: dict[str, float] = {}
        rows, columns = (-(-side // 8) for side in self.size)
        self.network = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(48, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * rows * columns, 128),
            nn.ReLU(),
            nn.Linear(128, len(STATEMENTS)),
        )

    def features(self, images: Tensor) -> Tensor:
        """The last hidden layer over its unit: `[N, 3, H, W]` in `[-1, 1]` to `[N, 128]`."""
        features: Tensor = self.network[:-1](F.adaptive_avg_pool2d(images, self.size)) / self.unit
        return features

    def logits(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` in `[-1, 1]` to `[N, len(STATEMENTS)]`."""
        logits: Tensor = self.network[-1](self.features(images) * self.unit)
        return logits

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The probabilities of all statements: `[N, 3, H, W]` in `[-1, 1]` to `[N, len(STATEMENTS)]`."""
        return torch.cat([self.logits(part).sigmoid() for part in images.split(256)])

    @staticmethod
    def chance(probabilities: Tensor, conditions: Mapping[str, bool]) -> Tensor:
        """The smallest probability `[N]` of any of the conditions, from what `forward` gives."""
        places = list(STATEMENTS)
        each = [
            probabilities[:, places.index(name)] if expected else 1 - probabilities[:, places.index(name)]
            for name, expected in conditions.items()
        ]
        return torch.stack(each).amin(0)


def train_reader(
    image_shape: tuple[int, int, int], domain: str = "day", num_scenes: int = 6000, epochs: int = 8, seed: int = 0
) -> SceneAttributeReader:
    """Train a reader on rendered scenes with a little noise, and measure it on 1000 others.

    Args:
        image_shape: Of the pictures: (3, height, width), at least 16 x 16.
        domain: One of `lightning_gen.data.scene_painting.DOMAINS`.
        num_scenes: Scenes to learn from.
        epochs: How often each is seen.
        seed: Of weights, order and noise; the global random state stays as found.

    Raises:
        ValueError: If pictures do not have 3 channels or are too small, or the domain is unknown.
    """
    channels, height, width = image_shape
    if channels != 3:
        raise ValueError(f"Scenes are pictures of 3 channels, but the model draws {channels}.")
    batch_size = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = SceneAttributeReader(height, width)
        images, truth = _examples(num_scenes, (seed, 0), domain, height, width, reader.size)
        steps = epochs * (num_scenes // batch_size)
        optimizer = torch.optim.Adam(reader.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for chosen in torch.randperm(num_scenes).split(batch_size)[: num_scenes // batch_size]:
                # Generated pictures are not as clean as rendered ones.
                noisy = images[chosen] + 0.1 * torch.randn_like(images[chosen])
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(reader.logits(noisy), truth[chosen]).backward()
                optimizer.step()
                schedule.step()
        images, truth = _examples(1000, (seed, 1), domain, height, width, reader.size)
    with torch.no_grad():
        reader.unit = reader.features(images).square().mean().sqrt()
    right = ((reader(images) > 0.5) == (truth > 0.5)).float().mean(0)
    reader.accuracy = dict(zip(STATEMENTS, right.tolist(), strict=True))
    return reader


def _examples(
    num: int, seed: tuple[int, int], domain: str, height: int, width: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Pictures at the size they are read at, and what is true of them, float32 `[num, len(STATEMENTS)]`."""
    scenes = SceneAttributes.draw(num, seed)
    truth = np.stack([statement(scenes) for statement in STATEMENTS.values()], axis=1)
    return _pictures(scenes, domain, height, width, size), torch.from_numpy(truth).float()


def _pictures(scenes: SceneAttributes, domain: str, height: int, width: int, size: tuple[int, int]) -> Tensor:
    """Pictures of scenes at the size they are read at: float32 `[N, 3, *size]` in `[-1, 1]`."""
    parts = (render(scenes[i : i + 256], domain, height, width) for i in range(0, len(scenes), 256))
    return torch.cat([F.adaptive_avg_pool2d(from_uint8(part), size) for part in parts])


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
        domain: One of `lightning_gen.data.scene_painting.DOMAINS`.
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
            reader, training = _read_reader(Path(weights), size, SceneAttributeReader)
        else:
            words = "-".join(map(str, (domain, f"{size[0]}x{size[1]}", num_scenes, epochs, seed)))
            path = cache_folder() / "extractors" / f"scenes128-{words}-v{SCHEMA}.pt"
            reader = _cached_reader(
                path,
                size,
                training,
                lambda: train_reader((3, *size), domain, num_scenes, epochs, seed),
                SceneAttributeReader,
                seconds=15,
            )
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

    def layers_of(self, images: Tensor) -> list[Tensor]:
        """Three maps of the picture at its full size, whatever size it is read at, and the last hidden layer."""
        reader = self.network
        assert isinstance(reader, SceneAttributeReader)
        return [*activations(reader.network[:6], images), reader.features(images)]


def _read_reader(path: Path, size: tuple[int, int], kind: Callable[[int, int], Reader]) -> tuple[Reader, str]:
    """The reader of pictures of this size in a file, and the words for its training."""
    try:
        kept = read_checkpoint(path)
        if tuple(kept["image_size"]) != size:
            raise ValueError(f"its pictures have {kept['image_size']}")
        with torch.device("meta"):
            reader = kind(*size)
        _load_network(reader, kept["state_dict"])
        return reader, str(kept["training"])
    except Exception as error:  # a file of anything at all can raise anything at all
        raise CheckpointError(f"{path} holds no reader of scenes of {size[0]} x {size[1]} pixels: {error}") from error


def _cached_reader(
    path: Path,
    size: tuple[int, int],
    training: str,
    train: Callable[[], Reader],
    kind: Callable[[int, int], Reader],
    seconds: int,
) -> Reader:
    """The reader in the file, or a new one, which is then put there."""
    if path.exists():
        try:
            return _read_reader(path, size, kind)[0]
        except CheckpointError as error:
            rank_zero_warn(f"{error} A new one takes its place.")
    rank_zero_info(f"A reader of scenes is trained, once and for some {seconds} s: {path}")
    reader = train()
    kept = {"state_dict": reader.state_dict(), "image_size": list(size), "training": training}
    try:
        AtomicCheckpointIO().save_checkpoint(kept, path)
    except OSError as error:
        rank_zero_warn(f"The reader of scenes could not be kept, and will be trained again next time: {error}")
    return reader
