"""R3GAN against its algorithm written again by hand, its schedules, and what its loss does to modes."""

import functools
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_gen.callbacks import EMA
from lightning_gen.data.toy import GridOfGaussians
from lightning_gen.losses import R1, R2, RelativisticPairing
from lightning_gen.metrics.toy import mode_coverage
from lightning_gen.models import GAN, R3GAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator, R3GANDiscriminator, R3GANGenerator
from lightning_gen.schedules import Cosine
from tests.shared import save, trainer

SHAPE, BATCH = (3, 8, 8), 4
GENERATOR, DISCRIMINATOR = (functools.partial(each, **each.small) for each in (R3GANGenerator, R3GANDiscriminator))
END = 5 * BATCH  # of the schedules, in pictures
NEAR = {"rtol": 0, "atol": 1e-6}  # of weights that go 0.01 a step: Adam magnifies the rounding of gradients near zero

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")


def make(base=R3GAN, **settings):
    torch.manual_seed(0)
    schedules = {
        "learning_rate": Cosine(0.01, 0.002, END, by="images"),
        "betas": (0.0, Cosine(0.9, 0.99, END, by="images")),
        "penalties": [R1(Cosine(2.0, 0.2, END, by="images")), R2(Cosine(2.0, 0.2, END, by="images"))],
    }
    return base(SHAPE, GENERATOR, DISCRIMINATOR, latent_size=3, **{**schedules, **settings})


def batches(number):
    draw = torch.Generator().manual_seed(1)
    return [{"image": torch.rand(BATCH, *SHAPE, generator=draw) * 2 - 1} for _ in range(number)]


def average():
    return EMA(["generator"], half_life_kimg=Cosine(0.0, 0.02, END, by="images"), ramp_up=False)


def fit(model, data, callbacks=(), **settings):
    t = trainer(callbacks=list(callbacks), **{"max_epochs": 1, **settings})
    t.fit(model, DataLoader(data, batch_size=None))
    return t


class Game(R3GAN):
    """Keeps the random state in which each of its steps begins."""

    def training_step(self, batch, batch_idx):
        self.states = [*getattr(self, "states", []), torch.get_rng_state()]
        super().training_step(batch, batch_idx)


def along(start, end, place):
    """Half a cosine, as the authors write it."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(place / END, 1)))


def by_hand(model, data, states):
    """The game with every number set by hand; gives both players and the average."""
    G, D, ema = (deepcopy(each).double() for each in (model.generator, model.discriminator, model.generator))
    adams = [torch.optim.Adam(player.parameters(), 0.01, (0.0, 0.9)) for player in (G, D)]
    for i, (batch, state) in enumerate(zip(data, states, strict=True)):
        torch.set_rng_state(state)
        place, real = i * BATCH, batch["image"].double()
        for adam in adams:
            adam.param_groups[0].update(lr=along(0.01, 0.002, place), betas=(0.0, along(0.9, 0.99, place)))
        gamma = along(2.0, 0.2, place)
        x, y = real.clone().requires_grad_(), G(torch.randn(BATCH, 3).double()).detach().requires_grad_()
        adams[1].zero_grad()
        for a, b in zip(D(x).split(1), D(y).split(1), strict=True):  # pair by pair
            F.softplus(b - a).sum().div(BATCH).backward(retain_graph=True)
        for points in (x, y):
            (gradient,) = torch.autograd.grad(D(points).sum(), points, create_graph=True)
            (gamma / 2 * gradient.square().sum() / BATCH).backward()
        adams[1].step()
        adams[0].zero_grad()
        F.softplus(D(real) - D(G(torch.randn(BATCH, 3).double()))).mean().backward()
        adams[0].step()
        half_life = along(0.0, 20.0, place)
        kept = 0.5 ** (BATCH / half_life) if half_life else 0.0
        with torch.no_grad():
            for mean, weight in zip(ema.parameters(), G.parameters(), strict=True):
                mean.copy_(kept * mean + (1 - kept) * weight)
    return G, D, ema


def test_its_steps_equal_the_algorithm_by_hand_with_all_its_schedules():
    model, data, ema = make(Game).double(), batches(7), average()
    begun = deepcopy(model)
    t = fit(model, data, [ema], precision="64-true")
    G, D, mean = by_hand(begun, data, model.states)
    for mine, theirs in ((model.generator, G), (model.discriminator, D)):
        for (name, weight), expected in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, **NEAR, msg=lambda m, name=name: f"{name}: {m}")
    for weight, expected in zip(ema.average.values(), mean.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, **NEAR)
    assert t.optimizers[0].param_groups[0]["lr"] == 0.002  # 28 pictures, beyond the end


@pytest.mark.parametrize(
    "settings",
    [
        {"penalties": [R1(Cosine(2.0, 0.2, END, by="images"))]},
        {"penalties": [R1(2.0), R2(2.0)]},
        {"learning_rate": 0.01},
        {"betas": (0.0, 0.9)},
        {"learning_rate": Cosine(0.01, 0.002, END, by="steps")},
    ],
    ids=["no R2", "constant gamma", "constant rate", "constant beta", "another clock"],
)
def test_a_planted_mistake_is_seen(settings):
    model, data = make(Game, **settings).double(), batches(4)
    begun = deepcopy(model)
    fit(model, data, precision="64-true")
    G, _, _ = by_hand(begun, data, model.states)
    pairs = zip(model.generator.parameters(), G.parameters(), strict=True)
    assert not all(torch.allclose(mine, theirs, **NEAR) for mine, theirs in pairs)


def test_the_defaults_are_the_paper_s():
    with torch.device("meta"):
        model = R3GAN((3, 32, 32))
    assert isinstance(model.generator, R3GANGenerator)
    assert isinstance(model.discriminator, R3GANDiscriminator)
    assert (model.loss, model.latent_size, model.n_critic) == (RelativisticPairing(), 64, 1)
    assert [type(penalty) for penalty in model.penalties] == [R1, R2]
    rates, beta1 = model.learning_rates, model.betas[0]
    assert rates[0] is rates[1]
    assert beta1 == 0
    # Half a cosine over 20 million pictures: half the way at 10 million, and (1 - cos(pi / 4)) / 2 of it at 5 million.
    quarter = (1 - math.cos(math.pi / 4)) / 2
    numbers = (rates[0], 2e-4, 5e-5), (model.betas[1], 0.9, 0.99), (model.penalties[1].weight, 0.05, 0.005)
    for schedule, start, end in numbers:
        for images, share in ((0, 0), (5_000_000, quarter), (10_000_000, 0.5), (20_000_000, 1), (10**9, 1)):
            expected = start + share * (end - start)
            assert schedule.at(images=images, step=7) == pytest.approx(expected, rel=1e-12)


def test_a_run_that_goes_on_equals_one_that_never_stopped(tmp_path):
    """In the middle of every schedule, the average's too."""
    whole, averages = make(), [average() for _ in range(3)]
    fit(whole, batches(2), [averages[0]], max_epochs=2)
    fit(make(), batches(2), [averages[1]]).save_checkpoint(tmp_path / "a.ckpt")
    model, t = make(), trainer(callbacks=[averages[2]], max_epochs=2)
    t.fit(model, DataLoader(batches(2), batch_size=None), ckpt_path=tmp_path / "a.ckpt")
    assert (t.global_step, model.images_seen) == (4, 4 * BATCH)
    for (name, expected), weight in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(weight, expected), name
    for name, expected in averages[0].average.items():
        assert torch.equal(averages[2].average[name], expected), name
    assert t.optimizers[1].param_groups[0]["lr"] == Cosine(0.01, 0.002, END)(4 * BATCH)


def test_a_checkpoint_brings_its_schedules_back(tmp_path):
    model = make()
    loaded = R3GAN.load_from_checkpoint(save(model, tmp_path / "a.ckpt"))
    for name in ("learning_rates", "betas", "penalties", "loss"):
        assert getattr(loaded, name) == getattr(model, name), name


def test_samples_are_pictures_and_training_sees_what_the_network_gives():
    model = make().eval()
    with torch.no_grad():
        model.generator.maps.mul_(100)
    latents = torch.randn(4, 3)
    images = model.generate(latents)
    assert (images.min(), images.max()) == (-1, 1)
    assert model.train().generate_from(latents, None).abs().max() > 1


def test_its_loss_with_both_penalties_finds_all_25_modes_of_the_grid():
    torch.manual_seed(0)
    steps, batch, grid, widths = 2000, 128, GridOfGaussians().distribution, (64, 64, 64)
    model = GAN(
        (2, 1, 1),
        functools.partial(MLPGenerator, widths=widths, output="linear"),
        functools.partial(MLPDiscriminator, widths=widths, maxout=1, dropout=0, input_dropout=0),
        RelativisticPairing(),
        penalties=[R1(0.02), R2(0.02)],
        latent_size=2,
        latent_distribution="normal",
        learning_rate=Cosine(4e-3, 4e-4, steps * batch, by="images"),
        betas=(0.0, Cosine(0.9, 0.99, steps * batch, by="images")),
    )
    fit(model, grid.sample(steps * batch).view(steps, batch, 2, 1, 1))
    samples = model.sample(2500, generator=torch.Generator().manual_seed(0)).flatten(1)
    found = mode_coverage(samples, grid.means, grid.std)
    assert found.modes == 25
    assert found.kl_divergence < 0.1
