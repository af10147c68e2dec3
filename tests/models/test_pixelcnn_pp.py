"""How PixelCNN++ is trained: where its weights start, how they are averaged, and its optimizer."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from lightning_gen.callbacks import EMA
from lightning_gen.layers.weight_norm import WeightNormalized
from lightning_gen.losses.categorical import levels_to_images
from lightning_gen.models import PixelCNNPP
from lightning_gen.models.weight_normalized import INIT_IMAGES
from lightning_gen.networks import PixelCNNPPNetwork
from tests.shared import Before

SMALL = {"filters": 6, "num_blocks": 1, "num_scales": 2, "dropout": 0.0}


def make(seed=0, num_components=2, sizes=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = partial(PixelCNNPPNetwork, **SMALL | (sizes or {}))
        return PixelCNNPP((1, 4, 4), 5, num_components, network, **settings)


def pictures(number, seed=0):
    return levels_to_images(torch.randint(5, (number, 1, 4, 4), generator=torch.Generator().manual_seed(seed)), 5)


def trainer_of(steps=1, **settings):
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def outputs(network, images):
    """What each weight-normalised layer gives, by name."""
    found = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, result, name=name: found.__setitem__(name, result))
        for name, layer in network.named_modules()
        if isinstance(layer, WeightNormalized)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


def test_layers_start_from_pictures_spread_over_the_training_data():
    model, images, before = make(), pictures(64), Before()
    fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer_of(callbacks=[before]).fit(model, DataLoader(TensorDataset(images), 8))
    assert any(not torch.equal(before.weights[name], fresh[name]) for name in fresh)
    model.load_state_dict(before.weights, strict=False)
    chosen = images[torch.arange(INIT_IMAGES) * len(images) // INIT_IMAGES]
    with torch.no_grad():
        found = outputs(model.network, chosen)
    assert len(found) > 20
    for name, result in found.items():
        mean, std = result.mean((0, 2, 3)), result.std((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4, msg=name)
        expected = 0.1 if name.endswith("conv2") else 1.0
        assert ((std - expected).abs() < 1e-3).all(), name


@pytest.mark.parametrize("data", [TensorDataset(pictures(32)), pictures(32)])  # the latter is no Dataset
def test_the_order_of_training_is_not_disturbed(data):
    seen = {}

    class Keep(pl.Callback):
        def __init__(self, key):
            self.key = key

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.setdefault(self.key, []).append(torch.stack(list(batch)).clone())

    for key in ("initialised", "not"):
        model = make()
        model.initialized.fill_(key == "not")
        torch.manual_seed(3)
        trainer_of(4, callbacks=[Keep(key)]).fit(model, DataLoader(data, 8, shuffle=True))
    assert all(torch.equal(a, b) for a, b in zip(seen["initialised"], seen["not"], strict=True))


def test_a_checkpoint_is_not_initialised_again(tmp_path):
    model = make()
    trainer = trainer_of(2)
    trainer.fit(model, DataLoader(pictures(64), 8))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    again, before = make(seed=1), Before()
    trainer_of(3, callbacks=[before]).fit(again, DataLoader(pictures(64), 8), ckpt_path=tmp_path / "model.ckpt")
    assert all(torch.equal(before.weights[name], raw[name]) for name in raw)
    assert PixelCNNPP.load_from_checkpoint(tmp_path / "model.ckpt").initialized


def _initialize(rank):
    model = make(seed=rank)
    model.initialize(pictures(8, seed=rank))
    weights = torch.cat([p.detach().flatten() for p in model.network.parameters()])
    if rank == 0:
        alone = make(seed=0)
        alone.network.initialize(pictures(8, seed=0))
        expected = torch.cat([p.detach().flatten() for p in alone.network.parameters()])
        assert torch.equal(weights, expected)
    others = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(others, weights)
    assert torch.equal(*others)
    return bool(model.initialized)


def test_all_ranks_start_from_the_batch_of_rank_0(on_ranks):
    assert on_ranks(_initialize) == [True, True]


def test_the_average_starts_where_the_weights_do_and_is_what_is_validated():
    model, before = make(ema_decay=0.9), Before()
    trainer = trainer_of(1, callbacks=[before])
    trainer.fit(model, DataLoader(pictures(16), 8), DataLoader(pictures(16), 8))
    (average,) = (callback for callback in trainer.callbacks if isinstance(callback, EMA))
    kept = 0.1  # of the first update, while the average ramps up
    for name, value in average.average.items():
        weight = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(value, kept * before.weights[name] + (1 - kept) * weight, rtol=1e-4, atol=1e-6)


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
    assert group["lr"] == pytest.approx(1e-3 * 0.999995**3, rel=1e-12)


def test_classes_reach_the_likelihood():
    model = make(num_classes=3).eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        images = pictures(4)
        by_class = torch.stack([model.log_prob(images, label) for label in range(3)])
        assert by_class.std(0).min() > 0.01
        torch.testing.assert_close(model.log_prob(images), by_class.logsumexp(0) - torch.tensor(3.0).log())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema_decay": 1.0}, "ema_decay must lie in"),
        ({"num_components": 0}, "num_components of at least 1"),
        ({"sizes": {"num_scales": 4}}, "must be multiples of 8"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)
