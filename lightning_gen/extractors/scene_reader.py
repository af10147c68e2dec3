"""What a picture of the built-in scenes shows of what captions say, read by a network that is trained on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scene_captions import ATTRIBUTES, classes_of
from lightning_gen.extractors.base import SCHEMA
from lightning_gen.extractors.scenes import SIZE, _cached_reader, _pictures
from lightning_gen.files import cache_folder


class SceneReader(nn.Module):
    """Says which value each of `lightning_gen.data.scene_captions.ATTRIBUTES` has in a picture.

    Args:
        height: Of the pictures.
        width: Of the pictures.

    Attributes:
        attributes: What it reads, by name, and the values of each.
        accuracy: For each of them the share of unseen rendered scenes about which it is right; of a reader out of the
            cache it is not known.
    """

    attributes: Mapping[str, Sequence[str]] = ATTRIBUTES

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (min(height, SIZE), min(width, SIZE))
        self.accuracy: dict[str, float] = {}
        rows, columns = (-(-side // 4) // 2 for side in self.size)
        self.widths = [len(values) for values in ATTRIBUTES.values()]
        self.network = nn.Sequential(
            *(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(64 * rows * columns, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, sum(self.widths))),
        )

    def logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """Of pictures `[N, 3, H, W]` in `[-1, 1]`, for each attribute those of its values, `[N, V]`."""
        return self.network(F.adaptive_avg_pool2d(images, self.size)).split(self.widths, 1)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The likeliest values: `[N, 3, H, W]` in `[-1, 1]` to int64 `[N, 7]`."""
        found = [[each.argmax(1) for each in self.logits(part)] for part in images.split(256)]
        return torch.cat([torch.stack(columns, 1) for columns in found])


def train_scene_reader(
    image_shape: tuple[int, int, int], domain: str = "day", num_scenes: int = 12000, epochs: int = 8, seed: int = 0
) -> SceneReader:
    """Train a reader on rendered scenes with a little noise, and measure it on 1000 others.

    Args:
        image_shape: Of the pictures: (3, height, width), at least 16 x 16.
        domain: One of `lightning_gen.data.scene_painting.DOMAINS`.
        num_scenes: Scenes to learn from, of all combinations.
        epochs: How often each is seen.
        seed: Of weights, order and noise; the global random state stays as found.

    Raises:
        ValueError: If pictures do not have 3 channels or are too small, or the domain is unknown.
    """
    channels, height, width = image_shape
    if channels != 3:
        raise ValueError(f"Scenes are pictures of 3 channels, but these have {channels}.")
    batch_size = 64
    steps = max(1, num_scenes // batch_size)
    # Whoever measures, and so is the first to ask for a reader, does it without gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = SceneReader(height, width)
        scenes = SceneAttributes.draw(num_scenes, (seed, 0))
        images, classes = _pictures(scenes, domain, height, width, reader.size), torch.from_numpy(classes_of(scenes))
        optimizer = torch.optim.AdamW(reader.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
        for _ in range(epochs):
            for chosen in torch.randperm(num_scenes).split(batch_size)[:steps]:
                # Generated pictures are not as clean as rendered ones.
                noisy = images[chosen] + 0.1 * torch.randn_like(images[chosen])
                losses = map(F.cross_entropy, reader.logits(noisy), classes[chosen].unbind(1))
                optimizer.zero_grad()
                torch.stack(list(losses)).sum().backward()
                optimizer.step()
                schedule.step()
        unseen = SceneAttributes.draw(1000, (seed, 1))
        right = reader.eval()(_pictures(unseen, domain, height, width, reader.size)) == torch.from_numpy(
            classes_of(unseen)
        )
    reader.accuracy = dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True))
    return reader.requires_grad_(False)


def scene_reader(image_size: tuple[int, int], domain: str = "day") -> SceneReader:
    """The reader of pictures of (height, width); trained the first time, in half a minute or so, and kept in the cache.

    Raises:
        ValueError: As `train_scene_reader`.
    """
    height, width = image_size
    path = cache_folder() / "extractors" / f"scene-reader-{domain}-{height}x{width}-v{SCHEMA}.pt"
    training = f"12000 scenes by {domain}, 8 epochs, seed 0"
    reader = _cached_reader(
        path, (height, width), training, lambda: train_scene_reader((3, height, width), domain), SceneReader, 40
    )
    return reader.eval().requires_grad_(False)
