"""What a prior adds to VQ-VAE: pictures of codes that are drawn in four ways (1711.00937, section 3.2).

An autoencoder makes 8 x 8 codes out of 128 of built-in landscapes, and pictures of any codes. Which codes belong
together it does not know. So they are drawn uniformly; each as often as it is used; each as often as it is used there,
at its place; and by a small GPT of the codes, which has learned what stands beside what. The claim: each draw is closer
to real pictures than the one before, by the Fréchet distance, and none as close as codes of pictures not seen before.

    python examples/what_a_prior_adds.py
"""

from functools import partial
from itertools import pairwise

import lightning.pytorch as pl
import torch
from plot import fit, output_folder, write_table
from torch import Tensor

from lightning_gen import networks as nets
from lightning_gen.data import Codes, Scenes
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.layers import VectorQuantizer
from lightning_gen.metrics.frechet import Gaussian, frechet_distance
from lightning_gen.models import VQVAE, CodePrior

SHAPE, CODES, COUNT = (3, 32, 32), 128, 2000
SIZE = {"filters": 32, "residual_filters": 16}
STEPS = 700


def scenes(batch_size: int) -> Scenes:
    """Landscapes of 32 x 32."""
    return Scenes(32, num_train=20000, num_val=COUNT, num_test=1, batch_size=batch_size, num_workers=0)


def drawn(codes: Tensor, count: int) -> dict[str, Tensor]:
    """Codes `[count, places]` drawn in three ways after those of pictures, `[N, places]`."""
    generator, shape = torch.Generator().manual_seed(0), (count, codes.shape[1])
    any_code = torch.randint(codes.numel(), shape, generator=generator)
    any_picture = torch.randint(len(codes), shape, generator=generator)
    return {
        "uniform": torch.randint(CODES, shape, generator=generator),
        "by use": codes.flatten()[any_code],
        "by use there": codes.gather(0, any_picture),
    }


def train() -> tuple[CodePrior, Codes]:
    """An autoencoder of pictures, then a prior of its codes, and these."""
    pl.seed_everything(0, verbose=False)
    parts = partial(nets.VQVAEEncoder, **SIZE), partial(nets.VQVAEDecoder, **SIZE)
    first = VQVAE(SHAPE, *parts, partial(VectorQuantizer, num_codes=CODES), channels=32, learning_rate=1e-3)
    fit(first, scenes(32), max_steps=STEPS)
    network = partial(nets.GPTNetwork, width=96, layers=3, heads=3, dropout=0.0)
    prior = CodePrior(SHAPE, first, network, learning_rate=2e-3, lr_decay=0.998)
    codes = Codes(scenes(32), batch_size=64, num_workers=0)
    fit(prior, codes, max_steps=STEPS, gradient_clip_val=1.0)
    return prior.eval(), codes


def main() -> None:
    """Train, draw, measure, show, and check the claim."""
    folder = output_folder("what_a_prior_adds", __doc__)
    torch.set_num_threads(1)
    prior, data = train()
    used, unseen = (torch.from_numpy(part.rows["codes"][:, 0].astype("int64")) for part in
                    (data.train_set(), data.val_set()))  # fmt: skip
    decode = prior.first_stage.decode
    pictures = {way: decode(codes.unflatten(1, (8, 8))) for way, codes in drawn(used, COUNT).items()}
    pictures["by the prior"] = prior.sample(COUNT, generator=torch.Generator().manual_seed(0))
    pictures["unseen"] = decode(unseen.unflatten(1, (8, 8)))

    extractor, examples = SceneFeatures(32), scenes(1).train_set()

    def gaussian(images: Tensor) -> Gaussian:
        return Gaussian.fit(torch.cat([extractor(to_uint8(part)).features for part in images.split(500)]))

    real = gaussian(examples.images(examples.scenes[:8000], "day"))
    distances = {way: frechet_distance(real, gaussian(images)) for way, images in pictures.items()}
    for way, distance in distances.items():
        print(f"{way:14} {distance:8.2f}")
    picture_grid({way: [to_uint8(image) for image in images[:8]] for way, images in pictures.items()}).save(
        folder / "what_a_prior_adds.png"
    )
    write_table(folder / "what_a_prior_adds.csv", ["codes", "Fréchet distance"], list(distances.items()))
    assert all(a > b for a, b in pairwise(distances.values())), "each should be closer than the one before"
    assert distances["by use there"] > 2 * distances["by the prior"], "the prior should be far closer"


if __name__ == "__main__":
    main()
