"""DCGAN and LSGAN: the game of `GAN` with convolutions, and with least squares."""

import functools

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_gen.losses import LeastSquares, NonSaturating
from lightning_gen.models import DCGAN, LSGAN
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator

GENERATOR = functools.partial(DCGANGenerator, filters=2)
DISCRIMINATOR = functools.partial(DCGANDiscriminator, filters=2)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def fit(model, data):
    t = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                   enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    t.fit(model, DataLoader(data, batch_size=None))
    return {name: value.item() for name, value in t.callback_metrics.items()}


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        model = DCGAN((3, 64, 64))
        least_squares = LSGAN((3, 64, 64))
    assert model.loss == NonSaturating()
    assert (model.latent_size, model.latent_distribution, model.n_critic) == (100, "uniform", 1)
    assert (model.learning_rates[0], model.betas, model.decay_start) == (2e-4, (0.5, 0.999), 1.0)
    for made in (model, least_squares):
        counts = [sum(p.numel() for p in network.parameters()) for network in (made.generator, made.discriminator)]
        assert counts == [12_658_432, 11_036_160]
    assert least_squares.loss == LeastSquares()
    assert LSGAN((1, 8, 8), GENERATOR, DISCRIMINATOR, LeastSquares(-1.0, 1.0, 0.0)).loss.a == -1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 48), (2, 13, 9)])
def test_any_size_and_number_of_channels(shape):
    model = DCGAN(shape, GENERATOR, DISCRIMINATOR)
    fit(model, [torch.rand(3, *shape) * 2 - 1])
    images = model.sample(3)
    assert images.shape == (3, *shape)
    assert images.abs().max() <= 1


@pytest.mark.gpu
def test_a_seed_draws_the_same_pictures_on_a_gpu():
    """The noise is drawn on the CPU."""
    model = DCGAN((3, 16, 16), GENERATOR, DISCRIMINATOR)
    on_cpu = model.sample(5, generator=torch.Generator().manual_seed(0))
    on_gpu = model.cuda().sample(5, generator=torch.Generator().manual_seed(0))
    # Products in TF32 have 10 bits.
    assert (on_gpu.cpu() - on_cpu).norm() < 0.02 * (on_cpu - on_cpu.mean(0)).norm()


def test_batch_norm_keeps_the_statistics_of_fakes_of_both_moves():
    """The generator normalises by the batch also while the discriminator learns, and its averages move with each."""
    model = DCGAN((1, 8, 8), GENERATOR, DISCRIMINATOR, n_critic=3)
    fit(model, [torch.rand(3, 1, 8, 8)] * 3)
    assert model.generator.layers[2].num_batches_tracked == 4


def test_lsgan_s_losses_are_squared_distances():
    class Watched(LSGAN):
        def discriminator_losses(self, real, labels):
            return {k: v for k, v in super().discriminator_losses(real, labels).items() if self.keep(real)}

        def keep(self, real):
            self.real = self.discriminator(real).detach()
            return True

    pl.seed_everything(0, verbose=False)
    model = Watched((1, 8, 8), GENERATOR, functools.partial(DISCRIMINATOR, norm="none"), generator_optimizer=STILL,
                    discriminator_optimizer=STILL)  # fmt: skip
    scores = []
    model.discriminator.register_forward_hook(lambda _, inputs, output: scores.append(output.detach()))
    logged = fit(model, [torch.rand(3, 1, 8, 8)])
    both, _, fake = scores
    assert logged["train/discriminator"] == pytest.approx(
        (((both[:3] - 1) ** 2).mean() + (both[3:] ** 2).mean()).item()
    )
    assert logged["train/generator"] == pytest.approx(((fake - 1) ** 2).mean().item())


STILL = functools.partial(torch.optim.SGD, lr=0.0)
