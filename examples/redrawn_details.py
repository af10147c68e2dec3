"""What the two maps of VQ-VAE-2 hold: fine codes drawn again under coarse ones that stay (1906.00446, section 3.1).

Built-in landscapes of 32 x 32 as 4 x 4 codes and 8 x 8 codes given these, and a prior of both, p(top) p(bottom | top).
Of each picture the coarse codes are kept, and the fine ones are drawn anew, three times. Where the sun and a house
stand remains, their colours do not. The claim: what is drawn differs, but looks more like the picture whose coarse
codes it has than like another, in all pixels and a little more in means of many.

    python examples/redrawn_details.py
"""

from functools import partial

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from plot import fit, output_folder, write_table
from torch import Tensor

from lightning_gen import networks as nets
from lightning_gen.data import Codes, Scenes
from lightning_gen.data.base import Draw
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.layers import VectorQuantizer
from lightning_gen.models import VQVAE2, CodePrior

SHAPE, STEPS, COUNT, SHOWN = (3, 32, 32), 1200, 128, 8
SIZE = {"filters": 32, "residual_filters": 16}


def scenes(batch_size: int) -> Scenes:
    """Landscapes of 32 x 32."""
    return Scenes(32, num_train=20000, num_val=1, num_test=COUNT, batch_size=batch_size, num_workers=0)


def train() -> CodePrior:
    """An autoencoder of pictures, then a prior of its codes."""
    pl.seed_everything(0, verbose=False)
    parts = partial(nets.VQVAE2Encoder, **SIZE), partial(nets.VQVAE2Decoder, **SIZE)
    first = VQVAE2(SHAPE, *parts, partial(VectorQuantizer, num_codes=128, decay=0.97), channels=32, learning_rate=1e-3)
    fit(first, scenes(32), max_steps=STEPS)
    network = partial(nets.GPTNetwork, width=96, layers=3, heads=3, dropout=0.0)
    prior = CodePrior(SHAPE, first, network, learning_rate=2e-3, lr_decay=0.998)
    fit(prior, Codes(scenes(32), batch_size=64, num_workers=0), max_steps=STEPS, gradient_clip_val=1.0)
    return prior.eval()


@torch.no_grad()
def redrawn(prior: CodePrior, images: Tensor, seed: int) -> Tensor:
    """Pictures with the coarse codes of others, and fine codes that are drawn given these."""
    maps = prior.to_levels(images)
    holes = [torch.full((len(images), *codes.shape[2:]), number > 0) for number, codes in enumerate(maps)]
    settings = {"temperature": 1.0, "method": "cached"}
    return prior.to_images(prior.fill_all(maps, holes, {}, torch.Generator().manual_seed(seed), **settings))


def difference(a: Tensor, b: Tensor, of: int = 1) -> float:
    """Mean squared difference of pictures, of the means of so many pixels in each direction."""
    return (F.avg_pool2d(a, of) - F.avg_pool2d(b, of)).square().mean().item()


def main() -> None:
    """Train, draw, measure, show, and check the claims."""
    folder = output_folder("redrawn_details", __doc__)
    torch.set_num_threads(1)
    prior, test = train(), scenes(1).test_set()
    images = torch.stack([test[Draw(0, i, i)]["image"] for i in range(COUNT)])
    left, draws = prior.first_stage.reconstruct(images), [redrawn(prior, images, seed) for seed in range(3)]
    rows = []
    for name, of in (("pixels", 1), ("means of 8 x 8", 8)):
        own, others = (sum(difference(draw, each, of) for draw in draws) / 3 for each in (left, left.roll(1, 0)))
        among = difference(draws[0], draws[1], of)
        rows.append((name, own, others, among))
        print(f"{name:15} from their picture {own:.4f}, from another {others:.4f}, from each other {among:.4f}")
    columns = {"picture": images, "reconstruction": left, **{f"redrawn {n + 1}": draw for n, draw in enumerate(draws)}}
    grid = {title: [to_uint8(image) for image in each[:SHOWN]] for title, each in columns.items()}
    picture_grid(grid).save(folder / "redrawn_details.png")
    header = ["compared", "with the picture", "with another", "with each other"]
    write_table(folder / "redrawn_details.csv", header, rows)

    for name, own, others, among in rows:
        assert own < 0.8 * others, f"{name}: what is redrawn should look like its picture"
        assert among > own / 2, f"{name}: and not always the same"
    assert rows[1][1] / rows[1][2] < rows[0][1] / rows[0][2], "most of all without details"


if __name__ == "__main__":
    main()
