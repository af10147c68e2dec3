"""The truncation trick (StyleGAN, 1812.04948, section B): less variety for more quality, after training.

A small StyleGAN learns built-in landscapes of 32 x 32. Its styles w are then drawn to their mean by psi, in all layers.
Precision, the share of fakes among real pictures, and recall, the share of real pictures among fakes, are measured in
the features of a network that has learned to read the scenes. The claim: as psi falls from 1 to 0, pictures differ less
and less, recall falls, and precision rises until few kinds of pictures are left; at psi 0 there is one picture.

    python examples/truncation_trick.py
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise

import lightning.pytorch as pl
import torch
from plot import COLORS, Chart, fit, output_folder, save, write_table
from torch import Tensor

from lightning_gen.callbacks.ema import EMA, averaged_weights
from lightning_gen.data import Scenes
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.losses import R1
from lightning_gen.metrics.manifold import precision_recall
from lightning_gen.models import StyleGAN
from lightning_gen.networks import StyleGANDiscriminator, StyleGANGenerator
from lightning_gen.schedules import Growing

SHAPE, COUNT, STEPS = (3, 32, 32), 1000, 5000
GROWING = Growing((8, 16, 32), learning_rates=(4e-3,), stable_images=20_000, fade_images=8_000)
PSIS = (1.0, 0.85, 0.7, 0.5, 0.3, 0.0)


def scenes(growing: Growing | None = GROWING) -> Scenes:
    """Landscapes of 32 x 32, of less height at first; without a schedule in full size from the start."""
    return Scenes(32, num_train=20_000, num_val=COUNT, num_test=1, growing=growing, batch_size=16, num_workers=0)


def make(growing: Growing | None = GROWING) -> StyleGAN:
    """A model with a hundredth of the paper's parameters."""
    generator = partial(StyleGANGenerator, style_size=64, mapping_layers=4, filters=512, max_filters=64)
    discriminator = partial(StyleGANDiscriminator, filters=512, max_filters=64)
    penalties = [R1(1.0, interval=4)]
    return StyleGAN(
        SHAPE,
        generator,
        discriminator,
        penalties=penalties,
        growing=growing,
        mixing_probability=0.5,
        latent_size=64,
        learning_rate=4e-3,
    )


def train(growing: Growing | None = GROWING, callbacks: Sequence[pl.Callback] = (), steps: int = STEPS) -> StyleGAN:
    """The model with averaged weights after `steps` batches of 16 pictures."""
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    model = make(growing)
    trainer = fit(model, scenes(growing), max_steps=steps, callbacks=[EMA(["generator"], decay=0.995), *callbacks])
    with averaged_weights(trainer, model):
        averaged = deepcopy(model.generator.state_dict())
    model.generator.load_state_dict(averaged)
    return model.eval()


def spread(images: Tensor) -> float:
    """How much pictures `[N, C, H, W]` deviate from their mean, as the root of the mean square."""
    return (images - images.mean(0)).square().mean().sqrt().item()


def sweep(model: StyleGAN, count: int) -> dict[float, Tensor]:
    """Pictures of the same latents at each psi, in all layers."""
    styles = model.map_latents(model.draw_latents(count, torch.Generator().manual_seed(0)))
    return {psi: model.synthesize(model.truncate(styles, psi, styles.shape[1])) for psi in PSIS}


def main() -> None:
    """Train, draw, measure, show, and check the claim."""
    folder = output_folder("truncation_trick", __doc__)
    pictures = sweep(train(), COUNT)
    extractor, examples = SceneFeatures(32), scenes().val_set()

    def features(images: Tensor) -> Tensor:
        return torch.cat([extractor(to_uint8(part)).features for part in images.split(500)])

    real = features(examples.images(examples.scenes[:COUNT], "day"))
    table = []
    for psi, images in pictures.items():
        found = precision_recall(real, features(images), k=3)
        table.append((psi, found.precision, found.recall, spread(images)))
        print("psi {:.2f}  precision {:.3f}  recall {:.3f}  deviation {:.3f}".format(*table[-1]))
    write_table(folder / "truncation_trick.csv", ["psi", "precision", "recall", "deviation"], table)
    columns = {f"{psi:g}": [to_uint8(image) for image in images[:8]] for psi, images in pictures.items()}
    picture_grid(columns).save(folder / "truncated_styles.png")
    psis, precisions, recalls, deviations = zip(*table, strict=True)
    chart = Chart("Truncated styles", "psi", "share, or deviation in [-1, 1]", (0, 1), (0, 1), legend="upper left")
    lines = {"precision": precisions, "recall": recalls, "deviation": deviations}
    for number, (label, values) in enumerate(lines.items()):
        chart.line(psis, values, label, COLORS[number])
    save(folder / "truncation_trick.png", [chart])
    assert all(a > b for a, b in pairwise(deviations)), "pictures should differ less and less"
    assert deviations[-1] < 1e-5, "at psi 0 there should be one picture"
    assert recalls[2] < recalls[0], "recall should fall"
    assert precisions[2] > precisions[0], "precision should rise at first"


if __name__ == "__main__":
    main()
