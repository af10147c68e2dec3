"""An extractor for the built-in scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointError, read_checkpoint
from lightning_gen.data.images import from_uint8
from lightning_gen.extractors.base import SCHEMA, FeatureExtractor, Features, _load_network
from lightning_gen.extractors.scene_attributes import SceneAttributeReader, train_reader
from lightning_gen.files import cache_folder


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
