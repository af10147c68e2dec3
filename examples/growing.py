"""Growing (Progressive GAN, 1710.10196, figure 1): small pictures first, and what that saves.

The small StyleGAN of `truncation_trick.py` learns landscapes of 8 x 8, then 16 x 16, then 32 x 32. A second one, with
the same weights at first, learns as many in full size from the start. Of both the CPU time is taken after every batch,
and the distance of their pictures to real ones at the end. The claim: growing takes less time to as many pictures.

    python examples/growing.py
"""

import time
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor
from truncation_trick import COUNT, scenes, train

from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.metrics.frechet import frechet_distance_between
from lightning_gen.models import StyleGAN
from lightning_gen.modes import evaluating
from lightning_gen.schedules import Growing

STEPS = 1500
GROWING = Growing((8, 16, 32), learning_rates=(4e-3,), stable_images=6000, fade_images=2000)


class Watch(pl.Callback):
    """Notes CPU seconds after every batch, and draws pictures of the same latents before each resolution is left.

    Args:
        latents: `[N, D]`.
    """

    def __init__(self, latents: Tensor) -> None:
        self.latents, self.images, self.seconds = latents, [0], [0.0]
        self.pictures: dict[int, Tensor] = {}
        self.before = time.process_time()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw when a resolution has just been left."""
        left, now = (GROWING(images).resolution for images in (self.images[-2:] * 2)[:2])
        if pl_module.growing and left != now:
            with torch.no_grad(), evaluating(pl_module.generator):
                images = pl_module.generator(self.latents, height=left)
            self.pictures[left] = F.interpolate(images, 32).clamp(-1, 1)
        self.before = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what the batch has taken."""
        self.images.append(pl_module.images_seen)
        self.seconds.append(self.seconds[-1] + time.process_time() - self.before)


def main() -> None:
    """Train twice, measure, show, and check the claims."""
    folder = output_folder("growing", __doc__)
    latents = torch.randn(COUNT, 64, generator=torch.Generator().manual_seed(0))
    watches = {"growing": Watch(latents), "full size": Watch(latents)}
    models: dict[str, StyleGAN] = {
        name: train(GROWING if name == "growing" else None, [watch], STEPS) for name, watch in watches.items()
    }
    extractor, examples = SceneFeatures(32), scenes().val_set()

    def features(images: Tensor) -> Tensor:
        return torch.cat([extractor(to_uint8(part)).features for part in images.split(500)])

    real = features(examples.images(examples.scenes[:COUNT], "day"))
    last = {name: model.generate(latents) for name, model in models.items()}
    distances = {name: frechet_distance_between(features(images), real) for name, images in last.items()}
    columns = {str(side): images for side, images in watches["growing"].pictures.items()}
    columns |= {"32": last["growing"], "at once": last["full size"]}
    picture_grid({name: list(to_uint8(images[:8])) for name, images in columns.items()}).save(folder / "grown.png")

    rows = zip(watches["growing"].images, *(watch.seconds for watch in watches.values()), strict=True)
    write_table(folder / "growing.csv", ["pictures", *(f"{name}, CPU s" for name in watches)], list(rows)[::50])
    most, longest = watches["growing"].images[-1], max(watch.seconds[-1] for watch in watches.values())
    chart = Chart("Time to so many pictures", "pictures", "CPU s", (0, most), (0, longest), legend="upper left")
    for color, (name, watch) in zip(COLORS, watches.items(), strict=False):
        chart.line(watch.images, watch.seconds, name, color)
        print(f"{name:12} {watch.seconds[-1]:.0f} CPU s to {watch.images[-1]} pictures, distance {distances[name]:.2f}")
    save(folder / "growing.png", [chart])
    assert watches["growing"].seconds[-1] < watches["full size"].seconds[-1] / 1.2, "growing should take less time"


if __name__ == "__main__":
    main()
