"""The lower half of digits as six autoregressive models complete it, each trained for less than a minute.

They see the upper half of each test digit, 8 x 8 and of 17 levels, and draw the lower one, twice. A completion is of
the right class if the training digit nearest to the whole is; others have a red frame. The claim: with every model far
more are right than with the half of any digit, or with pixels drawn each by itself. It is no ranking, of so small
networks, and no record: the half that belongs to the nearest upper half is right more often, but always the same.

    python examples/completions.py
"""

import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product, zip_longest
from multiprocessing import get_context

import lightning.pytorch as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from plot import COLORS, fit, output_folder, write_table
from torch import Tensor

from lightning_gen import networks as nets
from lightning_gen.callbacks.ema import EMA, averaged_weights
from lightning_gen.data.datasets import Digits
from lightning_gen.losses.categorical import images_to_levels
from lightning_gen.models import DiagonalBiLSTM, GatedPixelCNN, LMConv, PixelCNN, PixelCNNPP, RowLSTM
from lightning_gen.models.autoregressive import AutoregressiveModule

SHAPE, SIZE, KNOWN = (1, 8, 8), {"filters": 32, "head_filters": 64}, torch.arange(8)[:, None].expand(8, 8) < 4
MODELS: dict[str, tuple] = {  # steps, rate and size; LMConv in one order, the S-curve, where the lower half comes last
    "PixelCNN": (PixelCNN, 1200, 2e-3, {"network": partial(nets.PixelCNNNetwork, layers=4, **SIZE)}),
    "Row LSTM": (RowLSTM, 1000, 3e-3, {"network": partial(nets.RowLSTMNetwork, layers=2, **SIZE)}),
    "Diagonal BiLSTM": (DiagonalBiLSTM, 900, 3e-3, {"network": partial(nets.DiagonalBiLSTMNetwork, layers=2, **SIZE)}),
    "Gated PixelCNN": (
        GatedPixelCNN, 1000, 3e-3, {"network": partial(nets.GatedPixelCNNNetwork, layers=3, kernel_size=3, **SIZE)}),
    "PixelCNN++": (PixelCNNPP, 500, 2e-3, {
        "num_components": 5, "network": partial(nets.PixelCNNPPNetwork, filters=24, num_blocks=1, dropout=0.25)}),
    "LMConv": (LMConv, 300, 3e-3, {
        "num_components": 5, "num_orders": 1, "network": partial(nets.LMConvNetwork, filters=16, num_blocks=1)}),
}  # fmt: skip


@torch.no_grad()
def bits(model: AutoregressiveModule, images: Tensor) -> float:
    """-log2 p(unknown pixels | known pixels), a pixel, on average."""
    parameters = model.eval().network(images, **model.completion_order(KNOWN).settings)
    nats = model.likelihood.log_prob(parameters, images_to_levels(images, model.num_levels))
    return -nats[:, ~KNOWN].mean().item() / math.log(2)


def learn(name: str) -> tuple[Tensor, float]:
    """Train a model, complete all test digits twice, `[2, N, 1, 8, 8]`, and measure the bits of the true halves."""
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    make, steps, rate, size = MODELS[name]
    model = make(SHAPE, num_levels=17, learning_rate=rate, lr_decay=0.997, **size)
    average = EMA(["network"], decay=0.99)
    trainer = fit(model, Digits(batch_size=35, num_workers=0), max_steps=steps, callbacks=[average])
    images = 2 * Digits().load("test")[0] - 1
    with averaged_weights(trainer, model):
        filled = model.complete(images.repeat(2, 1, 1, 1), KNOWN, generator=torch.Generator().manual_seed(0))
        return filled.unflatten(0, (2, -1)), bits(model, images)


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """Which of the others `[M, D]` is nearest to each point `[..., D]`."""
    return torch.cdist(points, others).argmin(-1)


def without_model(images: Tensor, train: Tensor) -> dict[str, Tensor]:
    """Completions by simpler means, `[2, N, 1, 8, 8]` each."""
    generator, twice = torch.Generator().manual_seed(0), images.repeat(2, 1, 1, 1)
    halves = {
        "any half": train[torch.randint(len(train), twice.shape[:1], generator=generator)],
        "independent pixels": train.gather(0, torch.randint(len(train), twice.shape, generator=generator)),
        "nearest half": train[nearest(twice[:, 0, KNOWN], train[:, 0, KNOWN])],
    }
    return {name: twice.where(KNOWN, half).unflatten(0, (2, -1)) for name, half in halves.items()}


def draw(columns: Tensor, right: Tensor) -> Image.Image:
    """Digits `[columns, rows, 8, 8]`, from those given to the true ones, in a frame if they are not right."""
    picture = Image.new("RGB", (828, 34 + 52 * columns.shape[1]), "white")
    pen, pixels = ImageDraw.Draw(picture), columns.add(1).mul(127.5).byte().numpy()
    for column, row in product(*map(range, right.shape)):
        x, y = 4 + 52 * column + 14 * ((column + 1) // 2), 32 + 52 * row
        pen.rectangle((x - 2, y - 2, x + 49, y + 49), "white" if right[column, row] else COLORS[1])
        picture.paste(Image.fromarray(pixels[column, row]).resize((48, 48), Image.Resampling.NEAREST), (x, y))
    for number, name in enumerate(["given", *MODELS, "truth"]):
        pen.text((4 + 118 * number - 52 * (number > 0), 22), name, "black", ImageFont.load_default(13), anchor="ls")
    return picture


def main() -> None:
    """Train, complete, draw, and check the claim."""
    folder = output_folder("completions", __doc__)
    (train, classes), (images, labels) = (Digits().load(split) for split in ("train", "test"))
    train, images = 2 * train - 1, 2 * images - 1
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        fills, costs = zip(*pool.map(learn, MODELS), strict=True)
    filled = dict(zip(MODELS, fills, strict=True)) | without_model(images, train) | {"truth": images[None]}
    right = {name: classes[nearest(each.flatten(-3), train.flatten(1))] == labels for name, each in filled.items()}
    share = {name: 100 * each.double().mean().item() for name, each in right.items()}
    rows = list(zip_longest(share, share.values(), costs, fillvalue=math.nan))
    print("\n".join("{:18} {:5.1f} % of the right class, {:.3f} bits a pixel".format(*row) for row in rows))
    write_table(folder / "completions.csv", ["completed by", "of the right class in %", "bits a pixel"], rows)
    shown = torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(10)])
    columns = [images.where(KNOWN, 1.0)[None], *fills, images[None]]
    frames = [right["truth"], *(right[name] for name in MODELS), right["truth"]]
    draw(torch.cat(columns)[:, shown, 0], torch.cat(frames)[:, shown]).save(folder / "completions.png")
    for name, each in zip(MODELS, fills, strict=True):
        assert (each == images)[..., KNOWN].all(), f"{name} should keep what is known"
        assert (each[0] != each[1]).flatten(1).any(1).all(), f"{name} should go on in different ways"
        assert share[name] > max(share["any half"], share["independent pixels"]) + 5, f"{name} is hardly better"


if __name__ == "__main__":
    main()
