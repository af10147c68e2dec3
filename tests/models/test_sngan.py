"""SNGAN against its algorithm written again by hand, and what it brings along."""

import functools
from copy import deepcopy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from lightning_gen.callbacks.spectral_norm import SpectralNormPowerIteration
from lightning_gen.layers.spectral_norm import spectral_norms
from lightning_gen.losses import Hinge, NonSaturating
from lightning_gen.models import SNGAN
from lightning_gen.networks.resnet import ResidualDiscriminator, ResidualGenerator

SHAPE = (1, 8, 8)
GENERATOR = functools.partial(ResidualGenerator, filters=2)
DISCRIMINATOR = functools.partial(ResidualDiscriminator, filters=2, spectral_norm="reshape")
CLASSES = 3

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def make(base=SNGAN, **settings):
    return base(SHAPE, **{"generator": GENERATOR, "discriminator": DISCRIMINATOR, "latent_size": 3, **settings})


def batches(number, size=4):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.rand(size, *SHAPE, generator=draw) * 2 - 1, torch.randint(CLASSES, (size,), generator=draw))
        for _ in range(number)
    ]


def fit(model, data, callbacks=(), **settings):
    settings = {"max_epochs": 1, "accelerator": "cpu", **settings}
    t = pl.Trainer(callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False,
                   enable_model_summary=False, **settings)  # fmt: skip
    t.fit(model, DataLoader(data, batch_size=None))
    return t


class Game(SNGAN):
    """Keeps the random state in which each of its steps begins."""

    def training_step(self, batch, batch_idx):
        self.states = [*getattr(self, "states", []), torch.get_rng_state()]
        super().training_step(batch, batch_idx)


class ByHand:
    """Hinge loss, n_dis discriminator updates, linear decay; one power iteration a batch by the textbook."""

    def __init__(self, model, n_dis, steps):
        self.G, self.D, self.n_dis, self.updates = deepcopy(model.generator), deepcopy(model.discriminator), n_dis, 0
        self.adams = [torch.optim.Adam(p.parameters(), 2e-4, (0.0, 0.9)) for p in (self.G, self.D)]
        self.conditional, self.steps = model.num_classes, steps

    def iterate(self):
        for norm, weight in spectral_norms(self.D).values():
            matrix = weight.detach().flatten(1)
            v = matrix.T @ norm.u
            norm.v.copy_(v / v.norm())
            u = matrix @ norm.v
            norm.u.copy_(u / u.norm())

    def fake(self, number):
        labels = [torch.randint(CLASSES, (number,))] if self.conditional else []
        return self.G(torch.randn(number, 3, dtype=torch.float64), *labels), labels

    def step(self, real, labels):
        self.iterate()
        for adam in self.adams:
            adam.param_groups[0]["lr"] = 2e-4 * (1 - self.updates // self.n_dis / self.steps)
        fake, fake_labels = self.fake(len(real))
        real_scores = self.D(real.double(), *([labels] if self.conditional else []))
        loss = (1 - real_scores).clamp(min=0).mean() + (1 + self.D(fake.detach(), *fake_labels)).clamp(min=0).mean()
        self.adams[1].zero_grad()
        loss.backward()
        self.adams[1].step()
        self.updates += 1
        if self.updates % self.n_dis == 0:
            fake, fake_labels = self.fake(2 * len(real))
            self.adams[0].zero_grad()
            (-self.D(fake, *fake_labels).mean()).backward()
            self.adams[0].step()


def assert_equal_to_the_algorithm(model, data, n_dis=5):
    expected = ByHand(model, n_dis, len(data) // n_dis)
    start = deepcopy([*expected.G.parameters(), *expected.D.parameters()])
    fit(model, data, precision="64-true")
    for state, batch in zip(model.states, data, strict=True):
        torch.set_rng_state(state)
        expected.step(*batch)
    for (name, mine), theirs in zip(model.discriminator.named_buffers(), expected.D.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}")
    ends = [*expected.G.parameters(), *expected.D.parameters()]
    way = max((end - begin).abs().max() for end, begin in zip(ends, start, strict=True)).item()
    for mine, theirs in zip([*model.generator.parameters(), *model.discriminator.parameters()], ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * way)


@pytest.mark.parametrize("num_classes", [None, CLASSES], ids=["unconditional", "conditional"])
def test_two_iterations_equal_the_algorithm(num_classes):
    torch.manual_seed(0)
    assert_equal_to_the_algorithm(make(Game, num_classes=num_classes).double(), batches(10))


class BatchLabelsForFakes(Game):
    def discriminator_losses(self, real, labels):
        self.random_labels = lambda number: labels
        try:
            return super().discriminator_losses(real, labels)
        finally:
            del self.random_labels


@pytest.mark.parametrize(
    "settings",
    [
        {"base": BatchLabelsForFakes},
        {"n_critic": 4},
        {"generator_batch_factor": 1},
        {"decay_start": 1},
        {"loss": NonSaturating()},
        {"betas": (0.5, 0.9)},
    ],
    ids=lambda settings: " ".join(getattr(v, "__name__", f"{k}={v}") for k, v in settings.items()),
)
def test_a_planted_mistake_is_seen(settings):
    torch.manual_seed(0)
    model = make(**{"base": Game, "num_classes": CLASSES, **settings}).double()
    with pytest.raises(AssertionError):
        assert_equal_to_the_algorithm(model, batches(10))


def test_power_iterations_come_with_the_model_once_a_batch():
    iterations = []

    class Counting(SpectralNormPowerIteration):
        def on_train_batch_start(self, *arguments):
            before = [norm.u.clone() for norm, _ in self.weights.values()]
            super().on_train_batch_start(*arguments)
            now = [norm.u for norm, _ in self.weights.values()]
            iterations.append(any(not torch.equal(u, old) for u, old in zip(now, before, strict=True)))

    t = fit(make(n_critic=2), batches(2))
    (own,) = [c for c in t.callbacks if isinstance(c, SpectralNormPowerIteration)]
    assert (own.n_iterations, own.every_n_steps) == (1, 1)
    # The user's own takes its place.
    t = fit(make(n_critic=2), batches(4), [Counting(n_iterations=3, every_n_steps=2)])
    assert [type(c) for c in t.callbacks if isinstance(c, SpectralNormPowerIteration)] == [Counting]
    assert iterations == [True, False, True, False]


def test_every_layer_of_the_discriminator_is_normalised_and_none_of_the_generator():
    model = make(num_classes=CLASSES)
    layers = [m for m in model.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == len(spectral_norms(model.discriminator)) == 11
    assert all(parametrize.is_parametrized(m, "weight") for m in layers)
    assert not spectral_norms(model.generator)


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_after_training_every_spectral_norm_is_one(kind):
    torch.manual_seed(0)
    model = make(discriminator=functools.partial(ResidualDiscriminator, filters=8, spectral_norm=kind), n_critic=1)
    fit(model, batches(100))  # with a rate that falls to zero
    true = [weight.true_sigma().item() for weight in spectral_norms(model.discriminator).values()]
    assert true == pytest.approx([1] * 10, rel=0.01)


def test_the_defaults_are_the_paper_s():
    model = SNGAN((3, 32, 32))
    assert model.loss == Hinge()
    assert (model.n_critic, model.generator_batch_factor, model.latent_size) == (5, 2, 128)
    assert (model.learning_rates[0], model.betas, model.decay_start) == (2e-4, (0.0, 0.9), 0.0)
    assert model.latent_distribution == "normal"
    counts = [sum(p.numel() for p in network.parameters()) for network in (model.generator, model.discriminator)]
    assert counts == [4_276_739, 1_053_825]


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"the run has no end\. Set trainer\.max_steps.*decay_start: 1"):
        fit(make(), batches(1), max_epochs=-1)
