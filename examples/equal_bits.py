"""What is left of pictures at 512 bits each, through four autoencoders and by a simpler means.

Landscapes of 32 x 32 as 8 x 8 codes out of 256, by VQ-VAE (1711.00937), the discrete VAE of DALL-E (2102.12092; here
with Gaussian pixels) and VQGAN (2012.09841), with the same encoders and decoders; and by a VAE (1312.6114), whose bits
are its KL divergence, for latents that are drawn. Beside them squares of 4 x 4 pixels in 256 colours: as many bits
without a network. VQGAN is not after squared errors alone and makes more of them than VQ-VAE, but what another network
sees in its pictures is nearer to the original. All learn briefly: it is no ranking.

    python examples/equal_bits.py
"""

import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from plot import fit, output_folder, write_table
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gen import networks as nets
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.data.scenes import Scenes
from lightning_gen.extractors.distance import FeatureDistance
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.layers.quantize import VectorQuantizer
from lightning_gen.losses.images import GaussianPixels
from lightning_gen.losses.latents import gaussian_kl
from lightning_gen.metrics import psnr
from lightning_gen.metrics.frechet import frechet_distance_between
from lightning_gen.models import VAE, VQGAN, VQVAE, GumbelVAE
from lightning_gen.schedules import Cosine

SHAPE, CODES, BITS, SIZE = (3, 32, 32), 256, 512, {"filters": 32, "residual_filters": 16}
ENCODER, DECODER = partial(nets.VQVAEEncoder, **SIZE), partial(nets.VQVAEDecoder, **SIZE)
quantizer = partial(VectorQuantizer, num_codes=CODES)
WIDE = {"max_filters": 128, "widths": ()}
MODELS: dict[str, tuple] = {  # and steps
    "VAE": (partial(
        VAE, SHAPE, partial(nets.ConvEncoder, **WIDE), partial(nets.ConvDecoder, **WIDE), GaussianPixels(std=0.045),
        latent_size=128, importance_samples=None), 1000),
    "VQ-VAE": (partial(VQVAE, SHAPE, ENCODER, DECODER, quantizer, learning_rate=1e-3), 1200),
    "GumbelVAE": (partial(
        GumbelVAE, SHAPE, ENCODER, DECODER, GaussianPixels(std=0.1), num_codes=CODES, code_size=64, features=64,
        temperature=Cosine(1.0, 1 / 16, 600), kl_weight=Cosine(0.0, 1.0, 200), learning_rate=Cosine(2e-3, 1e-4, 1000),
        ema_decay=None), 1000),
    "VQGAN": (partial(
        VQGAN, SHAPE, ENCODER, DECODER, quantizer, partial(nets.PatchDiscriminator, filters=16, layers=2),
        perceptual=FeatureDistance(SceneFeatures), perceptual_weight=0.1, discriminator_weight=0.1, channels=64,
        learning_rate=1e-3, discriminator_learning_rate=1e-4, betas=(0.9, 0.95), discriminator_start=500), 900),
}  # fmt: skip


def scenes(split: str) -> Tensor:
    """`[N, 3, 32, 32]` in `[-1, 1]`."""
    data = Scenes(image_size=32, num_train=20000, num_val=1, num_test=256, batch_size=64, num_workers=0)
    data.setup("fit" if split == "train" else "test")
    return torch.cat([batch["image"] for batch in getattr(data, f"{split}_dataloader")()]).float()


@torch.no_grad()
def learn(name: str) -> tuple[Tensor, float]:
    """Train a model; its reconstructions of the test pictures, and the bits of one."""
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    make, steps = MODELS[name]
    model = make()
    with torch.enable_grad():
        fit(model, DataLoader(scenes("train"), 32, shuffle=True, drop_last=True), max_steps=steps)
    images = scenes("test")
    if not isinstance(model, VAE):
        return model.reconstruct(images), float(BITS)
    means, log_variances = model.eval().encode(images)
    drawn = means + (log_variances / 2).exp() * torch.randn_like(means)
    return model.generate(drawn), gaussian_kl(means, log_variances).mean().item() / math.log(2)


def squares(train: Tensor, images: Tensor) -> Tensor:
    """Pictures whose squares of 4 x 4 pixels have one of the 256 colours that suit training pictures best."""
    palette = VectorQuantizer(3, CODES, kmeans_iterations=20)
    palette(F.avg_pool2d(train, 4))
    return F.interpolate(palette.eval()(F.avg_pool2d(images, 4)).quantized, scale_factor=4)


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """`[N, 128]`, by another reader of scenes than the one that VQGAN learns with."""
    return SceneFeatures(seed=1)(to_uint8(images)).features


def main() -> None:
    """Train, reconstruct, draw, and check the claims."""
    folder, images = output_folder("equal_bits", __doc__), scenes("test")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = dict(zip(MODELS, pool.map(learn, MODELS), strict=True))
    results["squares"] = squares(scenes("train")[:2000], images), float(BITS)
    real, columns, decibels, distances, rows = features(images), [("original", list(to_uint8(images[:8])))], {}, {}, []
    for name, (pictures, bits) in results.items():
        decibels[name] = psnr(pictures, images).mean().item()
        distances[name] = frechet_distance_between(features(pictures), real)
        rows.append((name, bits, decibels[name], distances[name]))
        columns.append((f"{name} {decibels[name]:.1f}", list(to_uint8(pictures[:8]))))
        print("{:10} {:4.0f} bits, {:.2f} dB, Frechet distance {:.2f}".format(*rows[-1]))
    picture_grid(columns).save(folder / "equal_bits.png")
    write_table(folder / "equal_bits.csv", ["by", "bits", "PSNR, dB", "Frechet distance of features"], rows)

    assert max(bits for _, bits in results.values()) < 1.1 * BITS, "no model should need more bits"
    for name in MODELS:
        assert decibels[name] > decibels["squares"] + 1, f"{name} should be nearer to the pictures than squares"
    assert max(distances.values()) == distances["squares"], "networks should be better than squares"
    assert distances["VQGAN"] < 0.5 * distances["VQ-VAE"], "VQGAN should keep what networks see in pictures"


if __name__ == "__main__":
    main()
