"""CycleGAN against the published algorithm, written again in plain PyTorch."""

import functools
from copy import deepcopy
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerState
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.losses import GradientPenalty, LeastSquares, NonSaturating, RelativisticPairing, Wasserstein
from lightning_gen.models import CycleGAN
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator
from tests.shared import Recorder

SHAPE = (3, 16, 16)
# Weights ten times as large as the paper's, so that gradients of such small networks stand well above rounding.
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1, init_std=0.2)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1, init_std=0.2)
NETWORKS = ("generator_AtoB", "generator_BtoA", "discriminator_A", "discriminator_B")

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def batches(number, size=2):
    draw = torch.Generator().manual_seed(1)
    return [{d: torch.rand(size, *SHAPE, generator=draw) * 2 - 1 for d in "AB"} for _ in range(number)]


def fit(model, data, callbacks=(), precision="64-true", **settings):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=len(data),
        precision=precision,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, DataLoader(data, batch_size=None))
    return trainer


def mean_squared(scores, real):
    return nn.MSELoss()(scores, torch.full_like(scores, float(real)))


def cross_entropy(scores, real):
    return nn.BCEWithLogitsLoss()(scores, torch.full_like(scores, float(real)))


def wasserstein(scores, real):
    return -scores.mean() if real else scores.mean()


class Published:
    """Section 3 and 4 of the paper and what its reference implementation settles, sharing nothing with the package."""

    adam = functools.partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))

    def __init__(self, model, criterion, identity=0.5, pool_size=50, penalty=0.0, optimizer=adam):
        self.G, self.F, self.D_X, self.D_Y = (deepcopy(getattr(model, name)) for name in NETWORKS)
        self.criterion, self.identity, self.pool_size, self.penalty = criterion, identity, pool_size, penalty
        self.optimizer_G = optimizer(chain(self.G.parameters(), self.F.parameters()))
        self.optimizer_D = optimizer(chain(self.D_X.parameters(), self.D_Y.parameters()))
        self.history = {"A": [], "B": []}
        self.replaced = 0

    def parameters(self):
        return [p for network in (self.G, self.F, self.D_X, self.D_Y) for p in network.parameters()]

    def pool(self, domain, images):
        stored, given = self.history[domain], []
        for image in images.detach():
            if self.pool_size and len(stored) == self.pool_size and torch.rand((), dtype=images.dtype) < 0.5:
                place = int(torch.randint(self.pool_size, ()))
                given.append(stored[place])
                stored[place] = image.clone()
                self.replaced += 1
            else:
                if len(stored) < self.pool_size:
                    stored.append(image.clone())
                given.append(image)
        return torch.stack(given)

    def gradient_penalty(self, D, real, fake):
        epsilon = torch.rand(len(real), 1, 1, 1, dtype=real.dtype)
        between = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
        total = sum(scores.mean() for scores in D(between))
        (gradient,) = torch.autograd.grad(total, between, create_graph=True)
        return self.penalty * ((gradient.pow(2).sum(dim=(1, 2, 3)).sqrt() - 1) ** 2).mean()

    def step(self, a, b):
        fake_b, fake_a = self.G(a), self.F(b)
        terms = {
            "generator_AtoB": self.criterion(self.D_Y(fake_b), True),
            "generator_BtoA": self.criterion(self.D_X(fake_a), True),
            "cycle_A": 10 * (self.F(fake_b) - a).abs().mean(),
            "cycle_B": 10 * (self.G(fake_a) - b).abs().mean(),
        }
        if self.identity:
            terms["identity_A"] = 10 * self.identity * (self.F(a) - a).abs().mean()
            terms["identity_B"] = 10 * self.identity * (self.G(b) - b).abs().mean()
        self.optimizer_G.zero_grad()
        sum(terms.values()).backward()
        gradients = [p.grad.clone() for p in chain(self.G.parameters(), self.F.parameters())]
        self.optimizer_G.step()

        shown = {"A": self.pool("A", fake_a), "B": self.pool("B", fake_b)}
        self.optimizer_D.zero_grad()
        for domain, D, real in (("A", self.D_X, a), ("B", self.D_Y, b)):
            # The whole objective of the discriminators is halved, whatever it is made of.
            loss = 0.5 * (self.criterion(D(real), True) + self.criterion(D(shown[domain]), False))
            terms[f"discriminator_{domain}"] = loss
            if self.penalty:
                terms[f"GradientPenalty_{domain}"] = 0.5 * self.gradient_penalty(D, real, shown[domain])
                loss = loss + terms[f"GradientPenalty_{domain}"]
            loss.backward()
        gradients += [p.grad.clone() for p in chain(self.D_X.parameters(), self.D_Y.parameters())]
        self.optimizer_D.step()
        return terms, gradients


def make(**settings):
    """A model that keeps the random state in which each of its steps begins."""

    class Model(settings.pop("base", CycleGAN)):
        def training_step(self, batch, batch_idx):
            self.states.append(torch.get_rng_state())
            super().training_step(batch, batch_idx)

    model = Model(
        SHAPE, **{"generator": GENERATOR, "discriminator": DISCRIMINATOR, "decay_start": 1, "pool_size": 2, **settings}
    )
    model.states = []
    return model


def assert_equal_to_the_published_algorithm(model, published, data, precision, rtol, atol):
    """`atol` is relative: to the largest of a step's gradients, and to the longest way that a weight has gone."""
    recorder = Recorder()
    start = [p.clone() for p in published.parameters()]
    fit(model, data, [recorder], precision)
    for i, batch in enumerate(data):
        torch.set_rng_state(model.states[i])
        dtype = torch.float64 if precision == "64-true" else torch.float32
        terms, gradients = published.step(batch["A"].to(dtype), batch["B"].to(dtype))
        assert recorder.terms[i] == pytest.approx({k: v.item() for k, v in terms.items()}, rel=1e-5, abs=1e-6)
        assert len(gradients) == len(recorder.gradients[i])
        largest = max(g.abs().max() for g in gradients).item()
        for mine, theirs in zip(recorder.gradients[i], gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol * largest)
    way = max((p - begin).abs().max() for p, begin in zip(published.parameters(), start, strict=True)).item()
    own = [p for name in NETWORKS for p in getattr(model, name).parameters()]
    for mine, theirs in zip(own, published.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol * way)


# All in float64. (Adam magnifies the rounding in the gradients of biases before an instance norm, which are zero: from
# 1e-16 to about 1e-7 of the way that a weight has gone; in float32 it would make whole steps of it.)
DOUBLE = {"precision": "64-true", "rtol": 1e-9, "atol": 1e-6}


@pytest.mark.parametrize("identity", [0.5, 0.0], ids=["identity", "no identity"])
@pytest.mark.parametrize(
    ("loss", "criterion"),
    [(None, mean_squared), (NonSaturating(), cross_entropy)],
    ids=["least squares", "non-saturating"],
)
def test_three_steps_equal_the_published_algorithm(loss, criterion, identity):
    model, data = make(loss=loss, lambda_identity=identity).double(), batches(3)
    published = Published(model, criterion, identity, pool_size=2)
    assert_equal_to_the_published_algorithm(model, published, data, **DOUBLE)
    assert published.replaced  # the history was in play


def test_a_smaller_last_batch_and_no_history():
    model, data = make(pool_size=0).double(), [*batches(1), *batches(1, size=1)]
    assert_equal_to_the_published_algorithm(model, Published(model, mean_squared, pool_size=0), data, **DOUBLE)


DESCENT = functools.partial(torch.optim.SGD, lr=0.01)


def penalised(**settings):
    # The penalty is computed in float32, in which Adam would make whole steps of gradients that are mere rounding, as
    # that of the critic's last bias is.
    return make(loss=Wasserstein(), generator_optimizer=DESCENT, discriminator_optimizer=DESCENT, **settings).double()


def test_the_wasserstein_loss_with_its_gradient_penalty():
    torch.manual_seed(0)
    model, data = penalised(penalties=[GradientPenalty(7.0)]), batches(3)
    start = deepcopy(model.state_dict())
    published = Published(model, wasserstein, pool_size=2, penalty=7.0, optimizer=DESCENT)
    assert_equal_to_the_published_algorithm(model, published, data, **DOUBLE)
    # And the penalty matters: without it the discriminators go elsewhere.
    without = penalised()
    without.load_state_dict(start)
    fit(without, data, precision="64-true")
    for name in NETWORKS[2:]:
        pairs = zip(getattr(model, name).parameters(), getattr(without, name).parameters(), strict=True)
        assert max((mine - theirs).abs().max() for mine, theirs in pairs) > 1e-3


# -- the comparison would see a mistake -----------------------------------------------------------------------------


class FakesAfterTheUpdate(CycleGAN):
    def discriminator_losses(self, real_A, real_B, fakes):
        with torch.no_grad():
            fakes = self.generator_BtoA(real_B), self.generator_AtoB(real_A)
        return super().discriminator_losses(real_A, real_B, fakes)


class SwappedDiscriminators(CycleGAN):
    def generator_losses(self, real_A, real_B):
        self.discriminator_A, self.discriminator_B = self.discriminator_B, self.discriminator_A
        try:
            return super().generator_losses(real_A, real_B)
        finally:
            self.discriminator_A, self.discriminator_B = self.discriminator_B, self.discriminator_A


class WrongCycle(CycleGAN):
    def generator_losses(self, real_A, real_B):
        losses = super().generator_losses(real_A, real_B)
        twice = self.generator_AtoB(self.generator_AtoB(real_A))
        return {**losses, "cycle_A": self.lambda_A * F.l1_loss(twice, real_A)}


class WrongIdentity(CycleGAN):
    def generator_losses(self, real_A, real_B):
        losses = super().generator_losses(real_A, real_B)
        own = self.generator_AtoB(real_A)
        return {**losses, "identity_A": self.lambda_A * self.lambda_identity * F.l1_loss(own, real_A)}


class Unhalved(CycleGAN):
    def discriminator_losses(self, real_A, real_B, fakes):
        return {name: 2 * term for name, term in super().discriminator_losses(real_A, real_B, fakes).items()}


class MeanOfTerms(CycleGAN):
    """Adam forgives the scale; the gradients show it."""

    def manual_backward(self, loss, *args, **kwargs):
        super().manual_backward(loss / 2, *args, **kwargs)


class HalvedGenerator(LeastSquares):
    def generator(self, fake_scores):
        return super().generator(fake_scores) / 2


@pytest.mark.parametrize(
    "settings",
    [
        {"base": FakesAfterTheUpdate},
        {"base": SwappedDiscriminators},
        {"base": WrongCycle},
        {"base": WrongIdentity},
        {"base": Unhalved},
        {"base": MeanOfTerms},
        {"loss": HalvedGenerator()},
        {"pool_size": 0},
        {"betas": (0.9, 0.999)},
        {"learning_rate": 1e-4},
        {"decay_start": 0},
        {"lambda_A": 5},
    ],
    ids=lambda settings: " ".join(getattr(v, "__name__", f"{k}={v}") for k, v in settings.items()),
)
def test_a_planted_mistake_is_seen(settings):
    model, data = make(**settings).double(), batches(3)
    with pytest.raises(AssertionError):
        assert_equal_to_the_published_algorithm(model, Published(model, mean_squared, pool_size=2), data, **DOUBLE)


# -- the rest -------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_paper_s():
    with torch.device("meta"):
        model = CycleGAN((3, 256, 256))
    assert model.loss == LeastSquares()
    assert (model.lambda_A, model.lambda_B, model.lambda_identity) == (10, 10, 0.5)
    assert model.pool_A.size == model.pool_B.size == 50
    assert (model.learning_rates[0], model.betas, model.decay_start) == (2e-4, (0.5, 0.999), 0.5)
    counts = [sum(p.numel() for p in getattr(model, name).parameters()) for name in NETWORKS]
    assert counts == [11_378_179, 11_378_179, 2_764_737, 2_764_737]
    assert model.pool_A is not model.pool_B


def test_optimizers_of_the_user_s_own_replace_adam():
    model = make(
        generator_optimizer=functools.partial(torch.optim.SGD, lr=0.5),
        discriminator_optimizer=functools.partial(torch.optim.RMSprop, lr=0.25),
    )
    trainer = fit(model, batches(1), precision="32-true")
    (generators, discriminators) = trainer.optimizers
    assert isinstance(generators, torch.optim.SGD)
    assert isinstance(discriminators, torch.optim.RMSprop)
    assert generators.param_groups[0]["lr"] == 0.5
    assert {id(p) for p in generators.param_groups[0]["params"]} == {
        id(p) for name in NETWORKS[:2] for p in getattr(model, name).parameters()
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_A": -1}, "lambda_A, lambda_B and lambda_identity must be 0 or more"),
        ({"pool_size": -1}, "size >= 0"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"decay_start": 1.5}, r"decay_start is a share of the run, in \[0, 1\]"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_histories_stand_in_the_checkpoint_and_come_back(tmp_path):
    model = make(pool_size=3)
    trainer = fit(model, batches(2), precision="32-true")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = CycleGAN(SHAPE, GENERATOR, DISCRIMINATOR, pool_size=3)
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] = {}  # a class made inside a function has no name to compare
    again.on_load_checkpoint(checkpoint)
    assert torch.equal(again.pool_A.state(), model.pool_A.state())
    assert torch.equal(again.pool_B.state(), model.pool_B.state())
    assert len(again.pool_A.images) == 3
    # On another number of ranks there is a history for everyone.
    checkpoint["image_pools"] = [checkpoint["image_pools"][0]]
    again._trainer = type("Trainer", (), {"global_rank": 5, "state": TrainerState()})()
    again.on_load_checkpoint(checkpoint)
    assert len(again.pool_B.images) == 3


def test_it_trains_in_bfloat16():
    model = make()
    recorder = Recorder()
    fit(model, batches(2), [recorder], precision="bf16-mixed")
    assert all(torch.isfinite(g).all() for step in recorder.gradients for g in step)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_loss_of_pairs_compares_each_fake_with_a_real_picture_of_its_domain():
    model = make(loss=RelativisticPairing())
    (batch,) = batches(1)
    a, b = batch["A"], batch["B"]
    terms = model.generator_losses(a, b)
    for name, D, real, fake in (
        ("AtoB", model.discriminator_B, b, model.generator_AtoB(a)),
        ("BtoA", model.discriminator_A, a, model.generator_BtoA(b)),
    ):
        torch.testing.assert_close(terms[f"generator_{name}"], (1 + (D(real) - D(fake)).exp()).log().mean())
