"""What all autoregressive models promise, on pictures so small that all of them can be written down."""

import itertools
import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.capabilities import Completes, HasLogProb, Samples
from lightning_gen.data import Digits
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers.orders import random_order
from lightning_gen.losses import Bernoulli
from lightning_gen.losses.categorical import images_to_levels, levels_to_images
from lightning_gen.models import DiagonalBiLSTM, GatedPixelCNN, LMConv, PixelCNN, PixelCNNPP, PixelSNAIL, RowLSTM
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.models.training import NonFiniteLossError
from lightning_gen.networks import (
    DiagonalBiLSTMNetwork,
    GatedPixelCNNNetwork,
    LMConvNetwork,
    PixelCNNNetwork,
    PixelCNNPPNetwork,
    PixelSNAILNetwork,
    RowLSTMNetwork,
)
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive

SIDE = 3
BINARY = levels_to_images(torch.tensor(list(itertools.product((0, 1), repeat=SIDE**2))).view(-1, 1, SIDE, SIDE), 2)
"""All 512 pictures of 3 x 3 in black and white."""

SIZES = {"filters": 8, "layers": 2, "head_filters": 16}
SNAIL = {"filters": 8, "num_blocks": 1, "num_resnets": 1, "attention_keys": 4, "attention_values": 8}
MODELS = {
    "RowLSTM": (RowLSTM, partial(RowLSTMNetwork, **SIZES)),
    "DiagonalBiLSTM": (DiagonalBiLSTM, partial(DiagonalBiLSTMNetwork, **SIZES)),
    "PixelCNN": (PixelCNN, partial(PixelCNNNetwork, **SIZES)),
    "GatedPixelCNN": (GatedPixelCNN, partial(GatedPixelCNNNetwork, kernel_size=3, **SIZES)),
    "PixelCNNPP": (
        partial(PixelCNNPP, num_components=2),
        partial(PixelCNNPPNetwork, filters=8, num_blocks=1, num_scales=1, dropout=0.0),
    ),
    "PixelSNAIL": (partial(PixelSNAIL, num_components=2), partial(PixelSNAILNetwork, dropout=0.0, **SNAIL)),
    "LMConv": (partial(LMConv, num_components=2), partial(LMConvNetwork, filters=8, num_blocks=1)),
}
TINY = partial(PixelCNNNetwork, filters=4, layers=1, head_filters=4)
ONE_BLOCK = partial(LMConvNetwork, filters=4, num_blocks=1)
ORDERED = ("RowLSTM", "DiagonalBiLSTM", "PixelCNN", "GatedPixelCNN")


@pytest.fixture(params=MODELS)
def make(request):
    """A small model of each kind, with its weights moved away from where training starts them."""

    def build(image_shape=(1, SIDE, SIDE), num_levels=2, seed=0, moved=True, sizes=None, **settings):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            kind, network = MODELS[request.param]
            model = kind(image_shape, num_levels=num_levels, network=partial(network, **(sizes or {})), **settings)
            if moved:
                with torch.no_grad():
                    for parameter in model.network.parameters():
                        parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    build.name = request.param
    return build


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(number, image_shape, num_levels, seed=0):
    return levels_to_images(torch.randint(num_levels, (number, *image_shape), generator=seeded(seed)), num_levels)


def ising():
    """Probabilities `[512]` of `BINARY`: neighbours like to agree, the centre likes to be white."""
    spins = BINARY[:, 0].double()
    energy = 0.8 * (spins[:, 1:] * spins[:, :-1]).sum((1, 2)) + 0.4 * (spins[:, :, 1:] * spins[:, :, :-1]).sum((1, 2))
    return (energy + 0.5 * spins[:, 1, 1] - 0.3 * spins[:, 0, 2]).softmax(0)


# Probabilities


@pytest.mark.parametrize(
    ("image_shape", "num_levels"), [((1, 3, 3), 2), ((3, 1, 2), 2), ((3, 2, 1), 3), ((1, 2, 3), 3), ((2, 2, 2), 2)]
)
def test_the_probabilities_of_all_pictures_sum_to_one(make, image_shape, num_levels):
    model = make(image_shape, num_levels)
    size = math.prod(image_shape)
    every = torch.tensor(list(itertools.product(range(num_levels), repeat=size))).view(-1, *image_shape)
    with torch.no_grad():
        log_prob = model.log_prob(levels_to_images(every, num_levels))
    assert log_prob.std() > 0.05  # pictures differ, so this says something
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_fitted_to_known_probabilities_the_likelihood_reaches_the_entropy(make):
    """Cross entropy is entropy plus KL, so no model can go below; within 0.05 nats it has learnt the distribution."""
    p = ising()
    entropy = -(p * p.log()).sum().item()
    assert entropy < 4  # of at most 6.24
    settings = {"num_orders": 2} if make.name == "LMConv" else {}
    model = make(moved=False, **settings).train()
    if make.name in ("PixelCNNPP", "PixelSNAIL"):
        model.initialize(BINARY[torch.multinomial(p, 64, replacement=True, generator=seeded())])
    optimizer = torch.optim.Adam(model.parameters())
    levels = images_to_levels(BINARY, 2)
    steps = 100 if make.name == "LMConv" else 200
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        context = {"order": step % 2} if make.name == "LMConv" else {}
        loss = -(p * model.log_prob_of_levels(model.network(BINARY, **context), levels)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        log_prob = model.log_prob(BINARY).double()
    assert entropy <= -(p * log_prob).sum().item() < entropy + 0.05
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_samples_have_the_probabilities(make):
    """Shares of all pictures of 3 x 3 among 4,000 draws, by chi-square over those expected five times and more."""
    model, number = make(), 4_000
    settings = {"labels": None}
    with torch.no_grad():
        p = model.log_prob(BINARY).double().exp()
        if make.name == "LMConv":  # it draws by its first order, and averages its likelihood over all
            p = model.log_prob_of_levels(model.network(BINARY, 0), images_to_levels(BINARY, 2)).double().exp()
    drawn = model.sample(number, generator=seeded(), **settings)
    places = (images_to_levels(drawn, 2).flatten(1) * 2 ** torch.arange(SIDE**2).flip(0)).sum(1)
    counts, expected = torch.bincount(places, minlength=512), p * number
    often = expected >= 5
    assert often.sum() > 50
    statistic = ((counts - expected).square() / expected)[often].sum().item()
    assert statistic < often.sum() + 5 * math.sqrt(2 * often.sum())
    assert abs(counts[~often].sum() - expected[~often].sum()) < 5 * expected[~often].sum().sqrt() + 5


def test_the_order_of_generation_is_kept(make):
    for image_shape in ((1, 4, 3), (3, 2, 4)):
        model = make(image_shape, 4)
        channels = "ordered" if make.name in ORDERED else "joint"
        for order in range(len(model.network.orders)) if make.name == "LMConv" else [None]:
            network, positions = model.network, None
            if order is not None:
                network, positions = InOrder(network, order), network.orders[order]
            assert_autoregressive(network, image_shape, positions, channels=channels, num_draws=1)
            assert_cached_equals_naive(network, image_shape, positions)


class InOrder(nn.Module):
    """A network of several orders, in one of them."""

    def __init__(self, network, order):
        super().__init__()
        self.network, self.order = network, order

    def forward(self, images):
        return self.network(images, self.order)

    def init_cache(self, batch, device):
        return self.network.init_cache(batch, device, order=self.order)

    def step(self, cache, position):
        return self.network.step(cache, position)


def test_cached_and_naive_draw_the_same_pictures(make):
    for image_shape, num_levels in (((1, 4, 5), 2), ((3, 3, 2), 6)):
        model = make(image_shape, num_levels)
        cached, naive = (model.sample(4, generator=seeded(), method=method) for method in ("cached", "naive"))
        assert torch.equal(cached, naive)
        assert cached.dtype == torch.float32
        images_to_levels(cached, num_levels)
        cold = model.sample(4, generator=seeded(), temperature=0.0)
        assert torch.equal(cold, model.sample(4, generator=seeded(1), temperature=0.0))  # no noise is left


# Completion


@pytest.mark.parametrize("image_shape", [(1, 4, 5), (3, 4, 2)])
def test_completion_keeps_known_pixels_and_draws_the_others(make, image_shape):
    model, images = make(image_shape, 6), pictures(3, image_shape, 6)
    known = torch.rand(image_shape[1:], generator=seeded(1)) < 0.5
    known[0, 0], known[-1, -1] = True, False
    garbage = images.masked_fill(~known, float("nan"))
    filled, other = (model.complete(garbage, known, generator=seeded(seed)) for seed in (0, 1))
    assert torch.equal(filled[..., known], images[..., known])
    assert not torch.equal(filled, other)
    images_to_levels(filled, 6)
    naive = model.complete(garbage, known, generator=seeded(), method="naive")
    assert torch.equal(filled, naive)
    assert not filled.requires_grad


def test_masks_of_their_own(make):
    image_shape = (1, 3, 4)
    model, images = make(image_shape, 3), pictures(4, image_shape, 3)
    known = torch.ones(4, 3, 4, dtype=torch.bool)
    known[0, 1:] = known[1, 0, 0] = known[2, 1:] = known[3, :, 2] = False
    filled = model.complete(images, known, generator=seeded())
    assert torch.equal(filled[:, 0][known], images[:, 0][known])
    assert filled.shape == images.shape
    assert torch.equal(filled, model.complete(images, known[:, None], generator=seeded())), "with an axis of channels"


def test_a_hole_at_the_end_is_filled_with_its_exact_distribution(make):
    """The last two pixels of a picture of 2 x 2, in black and white: 4 fills, against the conditional probabilities."""
    model = make((1, 2, 2), 2, **({"orders": "raster", "num_orders": 1} if make.name == "LMConv" else {}))
    known = torch.tensor([[True, True], [False, False]])
    images = pictures(1, (1, 2, 2), 2, seed=3)
    fills = images.repeat(4, 1, 1, 1)
    fills[:, 0, 1] = levels_to_images(torch.tensor(list(itertools.product((0, 1), repeat=2))), 2)
    with torch.no_grad():
        p = model.log_prob(fills).double().softmax(0)
    number = 4_000
    drawn = model.complete(images.expand(number, -1, -1, -1), known, generator=seeded())
    places = (images_to_levels(drawn[:, :, 1], 2).flatten(1) * torch.tensor([2, 1])).sum(1)
    shares = torch.bincount(places, minlength=4).double() / number
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt()).all()


# Training


def fit(model, data, **settings):
    trainer = pl.Trainer(
        max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", **settings,
    )  # fmt: skip
    trainer.fit(model.train(), *([data] if isinstance(data, pl.LightningDataModule) else [data, data]))
    return trainer


def test_it_trains_measures_and_is_what_it_promises(make):
    image_shape, num_levels = (1, 4, 4), 5
    model = make(image_shape, num_levels, moved=False)
    images = pictures(16, image_shape, num_levels)
    assert isinstance(model, HasLogProb)
    assert isinstance(model, Samples)
    assert isinstance(model, Completes)
    trainer = fit(model, DataLoader(images, 6))
    assert model.images_seen == 16
    nll = trainer.callback_metrics["val/nll"].item()
    with torch.no_grad():
        log_prob = model.log_prob(images)
    if make.name not in ("PixelCNNPP", "PixelSNAIL"):  # which was validated with averaged weights
        assert nll == pytest.approx(-log_prob.mean().item(), rel=1e-5)  # the ragged last batch weighs what it should
    bits = trainer.callback_metrics["val/bpd-5level"].item()
    assert bits == pytest.approx(nll / 16 / math.log(2), rel=1e-6)


def test_log_prob_is_that_of_evaluation_mode(make):
    sizes = {"dropout": 0.5} if make.name in ("PixelCNNPP", "PixelSNAIL", "LMConv") else {}
    model = make((1, 4, 4), 5, sizes=sizes).train()
    images = pictures(4, (1, 4, 4), 5)
    state = torch.get_rng_state()
    assert torch.equal(model.log_prob(images), model.log_prob(images))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model.log_prob(images).requires_grad


def test_weights_decay_by_step():
    model = PixelCNN((1, 4, 4), num_levels=5, network=TINY, learning_rate=0.5, lr_decay=0.5)
    trainer = fit(model, DataLoader(pictures(16, (1, 4, 4), 5), 2))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5**4
    assert isinstance(trainer.optimizers[0], torch.optim.RMSprop)


# Wrong input


def test_pictures_that_do_not_fit(make):
    model = make((1, 4, 4), 5)
    images = pictures(3, (1, 4, 4), 5)
    for wrong, words in (
        (images + 0.01, "Sample 0 of the batch"),
        (images * 2, "pictures lie in"),
        (pictures(3, (1, 4, 4), 6), "none of the 5 levels"),
        (images.masked_fill(torch.arange(3).view(3, 1, 1, 1) == 2, float("nan")), "Sample 2 of the batch .* NaN"),
        (pictures(3, (1, 4, 3), 5), r"must be \[N, 1, 4, 4\]"),
        ((images * 4).long(), "floats"),
    ):
        with pytest.raises(ValueError, match=words):
            model.log_prob(wrong)
    nan = images.clone()
    nan[1, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match=r"Sample 1 of the batch .* NaN"):
        fit(model, DataLoader(nan, 3))
    for mask, words in (
        (torch.ones(4, 3, dtype=torch.bool), r"must be bool \[4, 4\]"),
        (torch.ones(4, 4), r"must be bool"),
        (torch.zeros(4, 4, dtype=torch.bool), "leaves nothing known"),
        (torch.ones(4, 4, dtype=torch.bool), "hides nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            model.complete(images, mask)
    with pytest.raises(ValueError, match="Sample 1 of the batch"):
        model.complete(nan, torch.tensor([True, True, True, False]).expand(4, 4))
    for settings, words in (
        ({"temperature": -1.0}, "temperature"),
        ({"method": "fast"}, "cached"),
        ({"labels": 0}, "no classes"),
        ({"condition": torch.zeros(2, 1, 4, 4)}, "conditioned on no map"),
    ):
        with pytest.raises(ValueError, match=words):
            model.sample(2, **settings)
    with pytest.raises(ValueError, match="num_samples"):
        model.sample(-1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_levels": 1}, "num_levels must be a whole number from 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"lr_decay": 1.5}, "lr_decay, a factor for each step"),
    ],
)
def test_settings_out_of_range(make, settings, words):
    with pytest.raises(ValueError, match=words):
        make((1, 4, 4), **{"num_levels": 5, **settings})


def test_levels_of_the_data_are_compared():
    model = PixelCNN((1, 8, 8), num_levels=16, network=TINY)
    with pytest.raises(ValueError, match=r"Digits gives pictures of 17 levels.* num_levels=16"):
        fit(model, Digits())


def test_the_binarization_is_in_the_name():
    model = PixelCNN((1, 8, 8), num_levels=2, network=TINY)
    trainer = fit(model, Digits(binarization="static"), limit_train_batches=1, limit_val_batches=1)
    assert {"val/nll-static", "val/bpd-1bit"} <= trainer.callback_metrics.keys()


def test_a_loss_that_is_not_finite_stops_training():
    model = PixelCNN((1, 4, 4), num_levels=5, network=TINY)
    with torch.no_grad():
        next(iter(model.network.parameters())).fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"train/nll became NaN or infinite in the step after 0 updates"):
        fit(model, DataLoader(pictures(4, (1, 4, 4), 5), 2), num_sanity_val_steps=0)


# Classes and maps


def gated(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GatedPixelCNN((1, 3, 3), num_levels=2, network=MODELS["GatedPixelCNN"][1], **settings).eval()
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_the_probability_without_a_label_is_the_mean_over_classes():
    model = gated(num_classes=3)
    by_class = torch.stack([model.log_prob(BINARY, label) for label in range(3)])
    assert by_class.std(0).mean() > 0.01
    torch.testing.assert_close(model.log_prob(BINARY).exp(), by_class.exp().mean(0))
    assert model.log_prob(BINARY).exp().sum().item() == pytest.approx(1, abs=1e-5)
    labels = torch.arange(512) % 3
    torch.testing.assert_close(model.log_prob(BINARY, labels), by_class.gather(0, labels[None])[0])


def test_samples_are_of_their_class():
    model = gated(num_classes=3)
    labels = torch.tensor([2, 0, 1, 1])
    assert torch.equal(
        model.sample(4, generator=seeded()), model.sample(4, labels=torch.arange(4) % 3, generator=seeded())
    )
    drawn = [model.sample(4, labels=labels, generator=seeded(), method=method) for method in ("cached", "naive")]
    assert torch.equal(*drawn)
    for wrong, words in ((3, "0 .. 2"), (torch.tensor([0, 1]), "for 4 pictures"), (-1, "0 .. 2")):
        with pytest.raises(ValueError, match=words):
            model.sample(4, labels=wrong)
    with pytest.raises(ValueError, match="no labels were given"):
        fit(model, DataLoader(BINARY, 64))


def test_a_map_conditions_each_place():
    model = gated(condition_channels=2)
    condition = torch.randn(4, 2, 3, 3, generator=seeded())
    drawn = [model.sample(4, condition=condition, generator=seeded(), method=method) for method in ("cached", "naive")]
    assert torch.equal(*drawn)
    with torch.no_grad():
        p = model.log_prob(BINARY, condition=condition[:1].expand(512, -1, -1, -1)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    known = torch.tensor([True, False, False]).expand(3, 3)
    filled = [
        model.complete(BINARY[:4], known, condition=condition, generator=seeded(), method=method)
        for method in ("cached", "naive")
    ]
    assert torch.equal(*filled)
    for wrong in (None, condition[:2], condition[:, :1]):
        with pytest.raises(ValueError, match=r"needs a condition of shape \[4, 2, 3, 3\]"):
            model.sample(4, condition=wrong)
    batch = [{"image": image, "condition": c} for image, c in zip(BINARY[:4], condition, strict=True)]
    fit(model, DataLoader(batch, 2))


# A network of one's own


class Own(AutoregressiveModule):
    """A logit for each pixel from the one to its left; no steps, so it is drawn by whole passes."""

    def __init__(self, image_shape, slope=2.0):
        super().__init__(image_shape, Bernoulli(), learning_rate=0.1)
        self.network = Left(slope)


class Left(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, images):
        return self.slope * nn.functional.pad(images, (1, 0))[..., :-1].unsqueeze(1)


def test_a_network_of_ones_own_that_has_no_steps(tmp_path):
    model = Own((1, 2, 3))
    assert_autoregressive(model.network, (1, 2, 3), channels="ordered")
    every = levels_to_images(torch.tensor(list(itertools.product((0, 1), repeat=6))).view(-1, 1, 2, 3), 2)
    with torch.no_grad():
        assert model.log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-5)
    drawn = model.sample(2000, generator=seeded())
    agree = (drawn[..., 1:] == drawn[..., :-1]).float().mean().item()
    assert agree == pytest.approx(1 / (1 + math.exp(-2)), abs=0.02)
    trainer = fit(model, DataLoader(drawn, 500))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert Own.load_from_checkpoint(tmp_path / "own.ckpt").network.slope == model.network.slope


# Orders


def test_orders_of_ones_own():
    order = random_order(3, 3, seed=5)
    model = LMConv((1, 3, 3), num_levels=2, network=ONE_BLOCK, orders=[order.tolist()])
    assert torch.equal(model.network.orders[0], order)
    for orders, words in (
        ("zigzag", "raster, s_curve"), ([], "empty list"), ([[0, 1, 2, 3, 4, 5, 6, 7, 7]], "no permutation"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            LMConv((1, 3, 3), num_levels=2, network=ONE_BLOCK, orders=orders)
    with pytest.raises(ValueError, match="1, 2, 4 or 8"):
        LMConv((1, 3, 3), num_levels=2, network=ONE_BLOCK, num_orders=3)
    with pytest.raises(ValueError, match="power of two"):
        LMConv((1, 3, 3), num_levels=2, network=ONE_BLOCK, orders="hilbert")


@pytest.mark.parametrize("orders", ["raster", "s_curve", "generalized_hilbert", "random"])
@pytest.mark.parametrize("num_orders", [1, 2, 4, 8])
def test_lmconv_averages_over_its_orders(orders, num_orders):
    model = LMConv((1, 2, 3), num_levels=2, network=MODELS["LMConv"][1], orders=orders, num_orders=num_orders).eval()
    images = pictures(5, (1, 2, 3), 2)
    assert len(model.network.orders) == num_orders
    with torch.no_grad():
        each = [
            model.log_prob_of_levels(model.network(images, order), images_to_levels(images, 2)).double().exp()
            for order in range(num_orders)
        ]
        torch.testing.assert_close(model.log_prob(images).double().exp(), sum(each) / num_orders, rtol=1e-5, atol=0)


def test_lmconv_sees_all_known_pixels_when_it_completes():
    """The first pixel of the hole is drawn from a distribution that depends on every known pixel in reach."""
    network = partial(LMConvNetwork, filters=8, num_blocks=2)
    model = LMConv((1, 4, 4), num_levels=2, network=network, orders="raster", num_orders=1).eval()
    known = torch.ones(4, 4, dtype=torch.bool)
    known[0, 1] = False  # in raster order it would see one pixel
    order = model.completion_order(known)
    assert order.positions[-1] == 1
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(), dtype=parameter.dtype))
    images = pictures(1, (1, 4, 4), 2).requires_grad_()
    model.network(images, **order.settings)[0, 0, 0, 1].backward()
    seen = images.grad[0, 0] != 0
    assert seen[0, 0]
    assert seen[0, 2:].any()
    assert seen[1].all()
    assert not seen[0, 1]


def test_a_checkpoint_is_enough(make, tmp_path):
    model = make((1, 4, 4), 5)
    trainer = fit(model, DataLoader(pictures(16, (1, 4, 4), 5), 8))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = GenerativeModule.load_from_checkpoint(tmp_path / "model.ckpt")
    assert type(loaded) is type(model)
    with torch.no_grad():
        for name, tensor in torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"].items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.sample(2).shape == (2, 1, 4, 4)
