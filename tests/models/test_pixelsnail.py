"""What PixelSNAIL promises as a model: exact probabilities, samples, its start from pictures, and its optimizer."""

import itertools
import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_gen.callbacks import EMA
from lightning_gen.layers.weight_norm import WeightNormalized
from lightning_gen.losses.categorical import images_to_levels, levels_to_images
from lightning_gen.losses.pixels import Bernoulli, LogisticMixture
from lightning_gen.models.pixelsnail import PixelSNAIL
from lightning_gen.models.weight_normalized import INIT_IMAGES
from lightning_gen.networks import PixelSNAILNetwork
from tests.shared import Before

SMALL = {"filters": 8, "num_blocks": 1, "num_resnets": 1, "attention_keys": 4, "attention_values": 8, "dropout": 0.0}
BINARY = levels_to_images(torch.tensor(list(itertools.product((0, 1), repeat=9))).view(-1, 1, 3, 3), 2)
"""All 512 pictures of 3 x 3 in black and white."""


def make(image_shape=(1, 4, 4), num_levels=5, seed=0, moved=False, sizes=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = partial(PixelSNAILNetwork, **SMALL | (sizes or {}))
        model = PixelSNAIL(image_shape, num_levels, network=network, **{"num_components": 2, **settings})
        if moved:
            with torch.no_grad():
                for parameter in model.network.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(number, image_shape=(1, 4, 4), num_levels=5, seed=0):
    return levels_to_images(torch.randint(num_levels, (number, *image_shape), generator=seeded(seed)), num_levels)


def trainer_of(steps=1, **settings):
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


# Probabilities


@pytest.mark.parametrize(("image_shape", "num_levels"), [((1, 3, 3), 2), ((3, 2, 1), 3), ((2, 2, 2), 2)])
def test_the_probabilities_of_all_pictures_sum_to_one(image_shape, num_levels):
    model = make(image_shape, num_levels, moved=True).eval()
    every = torch.tensor(list(itertools.product(range(num_levels), repeat=math.prod(image_shape))))
    with torch.no_grad():
        log_prob = model.log_prob(levels_to_images(every.view(-1, *image_shape), num_levels))
    assert log_prob.std() > 0.05  # pictures differ, so this says something
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_samples_have_the_probabilities():
    """Shares of all pictures of 3 x 3 among 4,000 draws, by chi-square over those expected five times and more."""
    model, number = make((1, 3, 3), 2, moved=True).eval(), 4_000
    with torch.no_grad():
        p = model.log_prob(BINARY).double().exp()
    drawn = model.sample(number, generator=seeded())
    places = (images_to_levels(drawn, 2).flatten(1) * 2 ** torch.arange(9).flip(0)).sum(1)
    counts, expected = torch.bincount(places, minlength=512), p * number
    often = expected >= 5
    assert often.sum() > 50
    statistic = ((counts - expected).square() / expected)[often].sum().item()
    assert statistic < often.sum() + 5 * math.sqrt(2 * often.sum())


@pytest.mark.parametrize(("image_shape", "num_levels"), [((1, 4, 5), 2), ((3, 3, 2), 6)])
def test_cached_and_naive_draw_the_same_pictures(image_shape, num_levels):
    model = make(image_shape, num_levels, moved=True).eval()
    cached, naive = (model.sample(4, generator=seeded(), method=method) for method in ("cached", "naive"))
    assert torch.equal(cached, naive)
    known = torch.ones(image_shape[1:], dtype=torch.bool)
    known[1:, 1] = False
    filled = [model.complete(cached, known, generator=seeded(1), method=method) for method in ("cached", "naive")]
    assert torch.equal(*filled)
    assert torch.equal(filled[0][..., known], cached[..., known])


def test_classes_reach_the_likelihood():
    model = make(num_classes=3, moved=True).eval()
    with torch.no_grad():
        images = pictures(4)
        by_class = torch.stack([model.log_prob(images, label) for label in range(3)])
        assert by_class.std(0).min() > 0.01
        torch.testing.assert_close(model.log_prob(images), by_class.logsumexp(0) - torch.tensor(3.0).log())


def test_attention_learns_to_copy_what_convolutions_cannot_see():
    """The last pixel of a row of 12 is the first; one residual block sees only three to the left."""
    generator = seeded()

    def draw(number):
        levels = torch.randint(2, (number, 1, 1, 12), generator=generator)
        levels[..., -1] = levels[..., 0]
        return levels_to_images(levels, 2), levels[..., -1].flatten()

    model = make((1, 1, 12), 2, sizes={"filters": 16, "attention_keys": 8})
    model.network.initialize(draw(256)[0])
    optimizer = torch.optim.Adam(model.network.parameters(), lr=5e-3)
    for _ in range(150):
        images, first = draw(64)
        logits = model.network(images)[..., -1].flatten()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, first.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, first = draw(256)
    with torch.no_grad():
        logits = model.network(images)[..., -1].flatten()
    assert ((logits > 0) == (first == 1)).float().mean() > 0.99


# Training


def test_black_and_white_is_a_bernoulli_and_more_levels_are_a_mixture():
    assert isinstance(make(num_levels=2).likelihood, Bernoulli)
    assert isinstance(make(num_levels=3).likelihood, LogisticMixture)
    assert make((3, 4, 4), 2).network.last.v.shape[0] == 3
    assert make((3, 4, 4), 256).network.last.v.shape[0] == 2 * 10


def test_layers_start_from_pictures_spread_over_the_training_data():
    model, images, before = make(), pictures(64), Before()
    trainer_of(callbacks=[before]).fit(model, DataLoader(TensorDataset(images), 8))
    model.load_state_dict(before.weights, strict=False)
    found = {}
    for name, layer in model.network.named_modules():
        if isinstance(layer, WeightNormalized):
            layer.register_forward_hook(lambda _, __, result, name=name: found.__setitem__(name, result))
    with torch.no_grad():
        model.network(images[torch.arange(INIT_IMAGES) * len(images) // INIT_IMAGES])
    assert len(found) == 14
    for name, result in found.items():
        mean, std = result.mean((0, 2, 3)), result.std((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4, msg=name)
        assert ((std - (0.1 if name.endswith("conv2") else 1.0)).abs() < 1e-3).all(), name


def test_a_checkpoint_is_not_initialised_again(tmp_path):
    model = make()
    trainer = trainer_of(2)
    trainer.fit(model, DataLoader(pictures(64), 8))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    again, before = make(seed=1), Before()
    trainer_of(3, callbacks=[before]).fit(again, DataLoader(pictures(64), 8), ckpt_path=tmp_path / "model.ckpt")
    assert all(torch.equal(before.weights[name], raw[name]) for name in raw)
    loaded = PixelSNAIL.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.initialized
    assert loaded.network.blocks[0].attention_values == 8


@pytest.mark.parametrize(
    ("settings", "given", "decays"),
    [({}, [], [0.9995]), ({"ema_decay": None}, [], []), ({}, [EMA(["network"], 0.5)], [0.5])],
)
def test_one_average_at_most(settings, given, decays):
    trainer = trainer_of(1, callbacks=list(given))
    trainer.fit(make(**settings), DataLoader(pictures(16), 8))
    assert [callback.decay for callback in trainer.callbacks if isinstance(callback, EMA)] == decays


def test_the_papers_optimizer():
    trainer = trainer_of(3)
    trainer.fit(make(), DataLoader(pictures(32), 8))
    (group,) = trainer.optimizers[0].param_groups
    assert group["betas"] == (0.95, 0.9995)
    assert group["lr"] == pytest.approx(1e-3 * 0.999998**3, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema_decay": 1.0}, "ema_decay must lie in"),
        ({"num_components": 0}, "num_components of at least 1"),
        ({"sizes": {"num_resnets": 0}}, "num_resnets, attention_keys and attention_values must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)
