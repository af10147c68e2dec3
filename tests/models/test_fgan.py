"""f-GAN: the divergence is the loss, and its bound is logged."""

import functools
import math
from typing import get_args

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.losses import R1, FDivergence, Minimax
from lightning_gen.losses.divergences import DivergenceName
from lightning_gen.models import FGAN, GAN
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator

SHAPE = (2, 1, 1)
GENERATOR = functools.partial(MLPGenerator, widths=[8], output="linear")
DISCRIMINATOR = functools.partial(MLPDiscriminator, widths=[8], maxout=1, dropout=0, input_dropout=0)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def make(base=FGAN, **settings):
    return base(SHAPE, **{"generator": GENERATOR, "discriminator": DISCRIMINATOR, "latent_size": 3, **settings})


def fit(model, data, **settings):
    t = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                   enable_progress_bar=False, enable_model_summary=False, **settings)  # fmt: skip
    t.fit(model, DataLoader(data, batch_size=None))
    return {name: value.item() for name, value in t.callback_metrics.items()}


def batches(number, size=4):
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(size, *SHAPE, generator=draw) * 2 - 1 for _ in range(number)]


class Constant(nn.Module):
    """The same score for all, which the graph does not know."""

    def __init__(self, image_shape, score=0.0):
        super().__init__()
        self.score = nn.Parameter(torch.tensor(score))

    def forward(self, images):
        return self.score + 0 * images.flatten(1).sum(1)


# f*(t) of the scores' activation, from tables 2 and 6 of the paper, at the score 0.3.
V = 0.3
BY_HAND = {
    "total_variation": (math.tanh(V) / 2, math.tanh(V) / 2),
    "kl": (V, math.exp(V - 1)),
    "reverse_kl": (-math.exp(-V), V - 1),
    "pearson": (V, V**2 / 4 + V),
    "neyman": (1 - math.exp(-V), 2 - 2 * math.exp(-V / 2)),
    "squared_hellinger": (1 - math.exp(-V), (1 - math.exp(-V)) / math.exp(-V)),
    "jensen_shannon": (
        math.log(2) - math.log1p(math.exp(-V)),
        -math.log(2 - 2 / (1 + math.exp(-V))),
    ),
    "gan": (-math.log1p(math.exp(-V)), -math.log(1 - 1 / (1 + math.exp(-V)))),
}


@pytest.mark.parametrize("divergence", get_args(DivergenceName))
def test_the_bound_is_logged_and_is_what_the_discriminator_raises(divergence):
    """E g_f(V(x)) - E f*(g_f(V(G(z)))), equation 6, by hand for a constant score."""
    still = functools.partial(torch.optim.SGD, lr=0.0)
    constant = functools.partial(Constant, score=V)
    logged = fit(make(divergence=divergence, discriminator=constant, discriminator_optimizer=still), batches(1))
    activation, conjugate = BY_HAND[divergence]
    assert logged["train/bound"] == pytest.approx(activation - conjugate, rel=1e-5, abs=1e-6)
    assert logged["train/bound"] == -logged["train/discriminator"]
    assert logged["train/generator"] == pytest.approx(-conjugate, rel=1e-5, abs=1e-6)


def test_with_the_divergence_of_the_gan_it_is_the_gan():
    results = []
    for base, settings in ((FGAN, {"divergence": "gan"}), (GAN, {"loss": Minimax()})):
        pl.seed_everything(0, verbose=False)
        model = make(base, **settings)
        fit(model, batches(6))
        results.append(model.state_dict())
    for name, tensor in results[1].items():
        torch.testing.assert_close(results[0][name], tensor)


def test_penalties_do_not_count_in_the_bound():
    logged = fit(make(penalties=[R1(100.0)]), batches(1))
    assert logged["train/R1"] > 0
    assert logged["train/bound"] == -logged["train/discriminator"]


def test_settings():
    model = make()
    assert model.loss == FDivergence("jensen_shannon", "minimax")
    assert make(divergence="kl", generator_loss="alternative").loss == FDivergence("kl", "alternative")
    with pytest.raises(ValueError, match="total_variation, kl"):
        make(divergence="kullback")
    with pytest.raises(TypeError, match="loss"):
        make(loss=Minimax())
