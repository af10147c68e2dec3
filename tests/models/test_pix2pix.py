"""pix2pix against the published algorithm, written again in plain PyTorch; and how it translates."""

import functools
from copy import deepcopy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.losses import GradientPenalty, LeastSquares, NonSaturating, RelativisticPairing
from lightning_gen.models import Pix2Pix
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator, UNetGenerator
from tests.shared import Recorder

SHAPE = (3, 64, 64)
# Weights ten times as large as the paper's, so that gradients of such small networks stand well above rounding.
GENERATOR = functools.partial(UNetGenerator, filters=2, depth=6, init_std=0.2)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1, norm="batch", init_std=0.2)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def batches(number, size=2):
    draw = torch.Generator().manual_seed(1)
    return [{d: torch.rand(size, *SHAPE, generator=draw) * 2 - 1 for d in "AB"} for _ in range(number)]


def fit(model, data, callbacks=(), precision="64-true"):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=len(data),
        precision=precision,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=None))
    return trainer


class Model(Pix2Pix):
    """Keeps the random state in which each of its steps begins."""

    def training_step(self, batch, batch_idx):
        self.states.append(torch.get_rng_state())
        super().training_step(batch, batch_idx)


def make(base=Model, **settings):
    # Not channels-last: dropout draws in the order of memory.
    settings = {"decay_start": 1, "channels_last": False, **settings}
    model = base(SHAPE, **{"generator": GENERATOR, "discriminator": DISCRIMINATOR, **settings})
    model.states = []
    return model


class Published:
    """Section 3 of the paper and what its reference implementation settles, sharing nothing with the package."""

    def __init__(self, model):
        self.G, self.D = deepcopy(model.generator_AtoB), deepcopy(model.discriminator)
        self.adam_G = torch.optim.Adam(self.G.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.adam_D = torch.optim.Adam(self.D.parameters(), lr=2e-4, betas=(0.5, 0.999))

    @staticmethod
    def cross_entropy(scores, real):
        return nn.BCEWithLogitsLoss()(scores, torch.full_like(scores, float(real)))

    def step(self, a, b):
        fake = self.G(a)
        real_scores, fake_scores = self.D(torch.cat([a, b], 1)), self.D(torch.cat([a, fake.detach()], 1))
        loss_D = (self.cross_entropy(real_scores, True) + self.cross_entropy(fake_scores, False)) * 0.5
        self.adam_D.zero_grad()
        loss_D.backward()
        gradients = [p.grad.clone() for p in self.D.parameters()]
        self.adam_D.step()

        self.D.requires_grad_(False)
        adversarial = self.cross_entropy(self.D(torch.cat([a, fake], 1)), True)
        distance = 100 * (fake - b).abs().mean()
        self.adam_G.zero_grad()
        (adversarial + distance).backward()
        self.D.requires_grad_(True)
        gradients += [p.grad.clone() for p in self.G.parameters()]
        self.adam_G.step()
        return {"discriminator": loss_D, "generator": adversarial, "L1": distance}, gradients


def assert_equal_to_the_published_algorithm(model, published, data):
    """All in float64, where Adam magnifies the rounding of gradients near zero; see the test of CycleGAN."""
    recorder = Recorder()
    start = deepcopy([*published.G.parameters(), *published.D.parameters()])
    fit(model, data, [recorder])
    for i, batch in enumerate(data):
        torch.set_rng_state(model.states[i])
        terms, gradients = published.step(batch["A"].double(), batch["B"].double())
        assert recorder.terms[i] == pytest.approx({k: v.item() for k, v in terms.items()}, rel=1e-5)
        largest = max(g.abs().max() for g in gradients).item()
        for mine, theirs in zip(recorder.gradients[i], gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-6 * largest)
    expected = [*published.G.parameters(), *published.D.parameters()]
    way = max((p - begin).abs().max() for p, begin in zip(expected, start, strict=True)).item()
    for mine, theirs in zip(
        [*model.generator_AtoB.parameters(), *model.discriminator.parameters()], expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 * way)
    # One pass of the generator a step, two of the discriminator for itself and one for the generator.
    for mine, theirs in ((model.generator_AtoB, published.G), (model.discriminator, published.D)):
        for (name, buffer), expected in zip(mine.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_three_steps_equal_the_published_algorithm():
    """With dropout and batch norm, so the fake that both players see must be the same one."""
    model = make().double()
    assert_equal_to_the_published_algorithm(model, Published(model), batches(3))


def test_in_pieces_both_players_see_the_same_fakes_which_are_made_twice():
    """Dropout and all; and running statistics move once."""

    class Seen(Pix2Pix):
        def discriminator_losses(self, real_A, real_B, fake_B):
            seen["discriminator"].append(fake_B)
            return super().discriminator_losses(real_A, real_B, fake_B)

        def generator_losses(self, real_A, real_B, fake_B):
            seen["generator"].append(fake_B.detach())
            return super().generator_losses(real_A, real_B, fake_B)

    seen = {"discriminator": [], "generator": [], "dropped": []}
    model = Seen(SHAPE, GENERATOR, DISCRIMINATOR, micro_batches=2)
    dropout = next(module for module in model.generator_AtoB.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda _, inputs, output: seen["dropped"].append(output.detach()))
    first = next(module for module in model.generator_AtoB.modules() if isinstance(module, nn.BatchNorm2d))
    means = []
    first.register_forward_hook(lambda _, inputs, output: means.append(inputs[0].detach().mean((0, 2, 3))))
    fit(model, batches(1, size=4), precision="32-true")
    assert [len(fake) for fake in seen["generator"]] == [2, 2]
    for one, piece in enumerate(seen["discriminator"]):
        assert torch.equal(seen["generator"][one], piece)
        assert torch.equal(seen["dropped"][one], seen["dropped"][2 + one])  # when its gradient was computed
    torch.testing.assert_close(first.running_mean, first.momentum * (means[0] + means[1]) / 2)


class TwoFakes(Model):
    def generator_losses(self, real_A, real_B, fake_B):
        return super().generator_losses(real_A, real_B, self.generator_AtoB(real_A))


class WithoutCondition(Model):
    def discriminator_losses(self, real_A, real_B, fake_B):
        return super().discriminator_losses(torch.zeros_like(real_A), real_B, fake_B)


class OtherOrder(Model):
    def training_step(self, batch, batch_idx):
        self.states.append(torch.get_rng_state())
        generator, discriminator = self.optimizers()
        a, b = self.domains(batch)
        fake = self.generator_AtoB(a)
        self.update(generator, lambda: self.generator_losses(a, b, fake))
        self.update(discriminator, lambda: self.discriminator_losses(a, b, fake.detach()), count=False)
        self.finish_step(len(a))


class Unhalved(Model):
    def discriminator_losses(self, real_A, real_B, fake_B):
        return {name: 2 * term for name, term in super().discriminator_losses(real_A, real_B, fake_B).items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"base": TwoFakes},
        {"base": WithoutCondition},
        {"base": OtherOrder},
        {"base": Unhalved},
        {"loss": LeastSquares()},
        {"lambda_L1": 10},
        {"learning_rate": 1e-4},
    ],
    ids=lambda settings: " ".join(getattr(v, "__name__", f"{k}={v}") for k, v in settings.items()),
)
def test_a_planted_mistake_is_seen(settings):
    model = make(**settings).double()
    with pytest.raises(AssertionError):
        assert_equal_to_the_published_algorithm(model, Published(model), batches(3))


def test_the_discriminator_sees_a_beside_b():
    class Spy(nn.Module):
        def __init__(self, image_shape):
            super().__init__()
            assert image_shape == (6, 64, 64)
            self.conv, self.seen = nn.Conv2d(6, 1, 1), []

        def forward(self, pairs):
            self.seen.append(pairs.detach().clone())
            return self.conv(pairs)

    model, (batch,) = make(discriminator=Spy), batches(1)
    fit(model, [batch], precision="32-true")
    together, for_generator = model.discriminator.seen  # without batch norm, real and fake go in one call
    real, fake = together.chunk(2)
    assert torch.equal(real, torch.cat([batch["A"], batch["B"]], dim=1))
    assert torch.equal(fake[:, :3], batch["A"])
    assert torch.equal(for_generator, fake)
    assert not torch.equal(fake[:, 3:], batch["B"])


def test_the_defaults_are_the_paper_s():
    with torch.device("meta"):
        model = Pix2Pix((3, 256, 256))
    assert model.loss == NonSaturating()
    assert model.lambda_L1 == 100
    assert (model.learning_rates[0], model.betas) == (2e-4, (0.5, 0.999))
    assert sum(p.numel() for p in model.generator_AtoB.parameters()) == 54_413_955
    # Conv 6 -> 64 with bias, three convolutions without before batch norm, and the head: 2,768,705 as published.
    assert sum(p.numel() for p in model.discriminator.parameters()) == 2_768_705
    assert model.directions == ("AtoB",)
    with pytest.raises(ValueError, match="lambda_L1 must be 0 or more"):
        make(lambda_L1=-1)


def test_a_penalty_is_added_to_the_discriminator_s_loss_on_pairs_and_halved_with_it():
    seen = []

    class Watched(Model):
        def penalty_losses(self, discriminator, real, fake):
            seen.append(super().penalty_losses(discriminator, real, fake))
            assert real.shape == fake.shape == (2, 6, 64, 64)
            return seen[-1]

    recorder = Recorder()
    instance = functools.partial(DISCRIMINATOR, norm="instance")
    fit(make(Watched, penalties=[GradientPenalty(3.0)], discriminator=instance), batches(1), [recorder], "32-true")
    (penalties,) = seen
    assert penalties["GradientPenalty"] > 0
    assert recorder.terms[0]["GradientPenalty"] == pytest.approx(penalties["GradientPenalty"].item() / 2)


# -- translating ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    """A model whose running statistics are not those it started with."""
    torch.manual_seed(0)
    model = make(base=Pix2Pix)
    with torch.no_grad():
        for _ in range(3):
            model.generator_AtoB(torch.randn(4, *SHAPE))
    return model


def images(number=3):
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_dropout_and_the_picture_s_own_statistics_are_used_as_in_the_paper(trained):
    image = images(1)
    result = trained.translate(image)
    with torch.no_grad():
        network = deepcopy(trained.generator_AtoB).train()
        torch.manual_seed(0)  # the fixed seed of translation
        assert torch.equal(result, network(image))
        torch.manual_seed(1)
        assert not torch.equal(result, network(image))
        # Neither is evaluation mode the same, nor dropout alone.
        network = deepcopy(trained.generator_AtoB).eval()
        assert not torch.equal(result, network(image))
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        torch.manual_seed(0)
        assert not torch.equal(result, network(image))


def test_a_translation_does_not_depend_on_the_other_pictures_of_its_batch(trained):
    batch = images()
    together = trained.translate(batch)
    for image, result in zip(batch.split(1), together.split(1), strict=True):
        assert torch.equal(trained.translate(image), result)


def test_without_noise_running_statistics_are_used_and_nothing_is_dropped(trained):
    trained.noise_at_test = False
    with torch.no_grad():
        expected = deepcopy(trained.generator_AtoB).eval()(images())
    assert torch.equal(trained.translate(images()), expected)


@pytest.mark.parametrize("noise_at_test", [True, False])
def test_translating_leaves_everything_as_found(trained, noise_at_test):
    trained.noise_at_test = noise_at_test
    trained.generator_AtoB.train()
    trained.generator_AtoB.up[1].eval()
    before = deepcopy(trained.state_dict())
    modes = [(m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None))
             for m in trained.modules()]  # fmt: skip
    state = torch.get_rng_state()
    first = trained.translate(images())
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [(m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None))
                     for m in trained.modules()]  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    torch.manual_seed(5)
    assert torch.equal(first, trained.translate(images()))  # whatever the global random state
    # Not finite numbers in a picture must not reach the running statistics either.
    trained.translate(torch.full((1, *SHAPE), float("nan")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.gpu
def test_translating_on_a_gpu_leaves_its_random_state_as_found(trained):
    trained.cuda().train()
    state = torch.cuda.get_rng_state()
    first = trained.translate(images().cuda())
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.cuda.manual_seed(5)
    # Transposed convolutions may add up in any order there; other dropout would make far more of a difference.
    torch.testing.assert_close(trained.translate(images().cuda()), first, rtol=0, atol=1e-3)
    assert all(module.training for module in trained.modules())


def test_an_exception_inside_leaves_everything_as_found(trained):
    normed = [m for m in trained.generator_AtoB.modules() if isinstance(m, nn.BatchNorm2d)]
    with pytest.raises(RuntimeError):
        trained.translate(torch.zeros(1, 5, 64, 64))
    assert all(m.training and m.track_running_stats for m in normed)


def test_any_generator_and_any_size_will_do():
    model = make(generator=functools.partial(ResNetGenerator, filters=2, blocks=1))
    assert model.translate(torch.zeros(2, 3, 30, 41)).shape == (2, 3, 30, 41)
    model = make()
    assert model.translate(torch.zeros(1, 3, 70, 33)).shape == (1, 3, 70, 33)


def test_a_loss_of_pairs_compares_the_fake_with_the_picture_that_was_wanted():
    model = make(loss=RelativisticPairing()).eval()
    (batch,) = batches(1)
    a, b = batch["A"], batch["B"]
    fake = model.generator_AtoB(a)
    real_scores, fake_scores = (model.discriminator(torch.cat([a, picture], 1)) for picture in (b, fake))
    term = model.generator_losses(a, b, fake)["generator"]
    torch.testing.assert_close(term, (1 + (real_scores - fake_scores).exp()).log().mean())
