"""The Fréchet distance rises as pictures get worse, or as fewer kinds of them are left (1706.08500, figure 3).

Built-in landscapes of 32 x 32, and the features of a small network that reads them, trained the first time. Of the
paper's corruptions rectangles and swirls are left out; truncation, JPEG, the choice of a resize kernel, missing modes
and repeated pictures are added. The floor is the distance of clean pictures from the 8000 others that all are compared
with; it is not 0, since their number is finite.

    python examples/fid_under_corruption.py
"""

import io
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from PIL import Image
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scene_painting import render
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.metrics.frechet import Gaussian, frechet_distance

SIZE, STRENGTHS = 32, 5


def draw(count: int, domain: str = "day", size: int = SIZE, colors: int = 0, seed: int = 1) -> Tensor:
    """Clean pictures, uint8 `[count, 3, size, size]`; no house has a roof of one of the first so many colours."""
    scenes = SceneAttributes.draw(10 * count if colors else count, seed)
    kept = ~(scenes.house_present & (scenes.house_roof < colors))
    return render(scenes[kept][:count], domain, size, size)


def random(images: Tensor, sample: Callable[..., Tensor] = torch.rand) -> Tensor:
    """The same numbers at each call, in the shape of the pictures; by default uniform in [0, 1)."""
    return sample(images.shape, generator=torch.Generator().manual_seed(0))


def jpeg(images: Tensor, lost: int) -> Tensor:
    """Through JPEG of quality 100 - lost."""
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        F.to_pil_image(image).save(file, "JPEG", quality=100 - lost)
    return torch.stack([F.pil_to_tensor(Image.open(file)) for file in files])


def resized(images: Tensor, kernel: int) -> Tensor:
    """Pictures of the same scenes, drawn twice as large and made smaller; kernel 1 is the mean of four pixels."""
    mode, filtered = [("bilinear", False), ("bicubic", True), ("bilinear", True), ("nearest", False)][kernel - 1]
    return F.resize(draw(len(images), size=2 * SIZE), [SIZE, SIZE], F.InterpolationMode(mode), antialias=filtered)


# Words for the strength, its steps, the corruption, and how many pictures a side of its examples has.
CORRUPTIONS: dict[str, tuple[str, float, Callable[..., Tensor], int]] = {
    "Gaussian blur": ("deviation in pixels", 0.5, lambda x, s: F.gaussian_blur(x, 2 * math.ceil(3 * s) + 1, s), 1),
    "Gaussian noise": ("deviation in gray levels", 20, lambda x, s:
                       (x + s * random(x, torch.randn)).round().clamp(0, 255).byte(), 1),
    "Salt and pepper": ("% of pixels", 1, lambda x, p:
                        x.where(random(x[:, :1]) > p / 100, 255 * (random(x[:, :1]) > p / 200).byte()), 1),
    "Truncation": ("bits of 8 lost", 1, lambda x, bits: x >> bits << bits, 1),
    "JPEG": ("100 - quality", 20, jpeg, 1),
    "Resize kernel": ("1 area, 2 bicubic filter, 3 bilinear filter, 4 nearest", 1, resized, 1),
    "Pictures by night": ("%", 5, lambda x, p: x.where(random(x[:, :1, :1, :1]) > p / 100, draw(len(x), "night")), 4),
    "Missing modes": ("roof colours left out (4: no house)", 1, lambda x, colors: draw(len(x), colors=colors), 3),
    "Repeated pictures": ("log2 of how often each", 2, lambda x, power: x[torch.arange(len(x)) // 2**power], 3),
}  # fmt: skip


class Panel(Chart):
    """A distance against the strength of a corruption, with examples below each point."""

    examples: list[Tensor]

    def image(self) -> Image.Image:
        """The finished chart."""
        image = super().image()
        for i, example in enumerate(self.examples):
            pixels = Image.fromarray(example.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BOX)
            image.paste(pixels, (62 + round(342 * (i + 0.5) / STRENGTHS) - 32, 260))  # the frame is 342 wide
        return image


def main() -> None:
    """Corrupt, measure, draw, and check the claim."""
    folder = output_folder("fid_under_corruption", __doc__)
    torch.set_num_threads(1)
    extractor, clean = SceneFeatures(SIZE), draw(2500)

    def fit(images: Tensor) -> Gaussian:
        return Gaussian.fit(torch.cat([extractor(part).features for part in images.split(500)]))

    reference, panels, found = fit(draw(8000, seed=0)), [], dict[str, list[float]]()
    for title, (unit, step, corrupt, side) in CORRUPTIONS.items():
        strengths = [i * step for i in range(STRENGTHS)]
        pictures = [clean, *(corrupt(clean, strength) for strength in strengths[1:])]
        found[title] = [frechet_distance(reference, fit(images)) for images in pictures]
        print(f"{title:18}", *(f"{distance:8.3f}" for distance in found[title]))
        panel = Panel(title, unit, "Frechet distance", (-step / 2, 4.5 * step), (0.1, 300), log_y=True, size=(420, 260))
        panel.size = (420, 336)  # room for examples below
        panel.line([-step, 5 * step], [found[title][0]] * 2, "" if panels else "the floor", COLORS[5], width=1)
        panel.line(strengths, found[title], "", COLORS[0])
        panel.dots(strengths, found[title], "", COLORS[0])
        panel.examples = [make_grid(images[16 : 16 + side**2], side, padding=0) for images in pictures]
        panels.append(panel)
    save(folder / "fid_under_corruption.png", panels, columns=3)
    rows = [(title, i * CORRUPTIONS[title][1], row[i]) for title, row in found.items() for i in range(STRENGTHS)]
    write_table(folder / "fid_under_corruption.csv", ["corruption", "strength", "Fréchet distance"], rows)

    for title, (floor, *distances) in found.items():
        assert min(distances) > floor, f"{title}: all should be above the floor"
        assert title == "Resize kernel" or all(a < b for a, b in pairwise(distances)), f"{title}: it should rise"


if __name__ == "__main__":
    main()
