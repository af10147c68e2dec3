"""WGAN and WGAN-GP against the algorithm boxes of their papers."""

import ast
import functools
from copy import deepcopy

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from lightning_gen.losses import GradientPenalty, LeastSquares, Wasserstein
from lightning_gen.losses.constraints import WeightClipping
from lightning_gen.models import WGAN, WGANGP
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator

SHAPE = (2, 1, 1)
GENERATOR = functools.partial(MLPGenerator, widths=[8], output="linear")
CRITIC = functools.partial(MLPDiscriminator, widths=[8], maxout=1, dropout=0, input_dropout=0)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def make(base, **settings):
    return base(SHAPE, **{"generator": GENERATOR, "discriminator": CRITIC, "latent_size": 3, **settings})


def batches(number, size=4):
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(size, *SHAPE, generator=draw) * 2 - 1 for _ in range(number)]


def fit(model, data, callbacks=(), **settings):
    settings = {"max_epochs": 1, "logger": False, "accelerator": "cpu", **settings}
    t = pl.Trainer(callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False,
                   enable_model_summary=False, **settings)  # fmt: skip
    t.fit(model, DataLoader(data, batch_size=None))
    return t


class Recorder(pl.Callback):
    """Which player moved when, and what was logged."""

    def __init__(self):
        self.moves, self.terms = "", []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.moves += "G" if optimizer is trainer.optimizers[0] else "D"

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        logged = trainer.callback_metrics.items()
        self.terms.append({name.removeprefix("train/"): float(v) for name, v in logged if name.startswith("train/")})


def keeping_states(base):
    """The model, keeping the random state in which each of its steps begins."""

    class Game(base):
        def training_step(self, batch, batch_idx):
            self.states = [*getattr(self, "states", []), torch.get_rng_state()]
            super().training_step(batch, batch_idx)

    return Game


class ByHand:
    """The algorithm boxes, sharing nothing with the package."""

    def __init__(self, model, n_critic, optimizer, weight=0.0, bound=None):
        self.G, self.C, self.n_critic, self.weight, self.bound = (
            deepcopy(model.generator),
            deepcopy(model.discriminator),
            n_critic,
            weight,
            bound,
        )
        self.optimizer_G, self.optimizer_C = optimizer(self.G.parameters()), optimizer(self.C.parameters())
        self.updates = 0

    def step(self, real):
        real = real.double()
        fake = self.G(torch.randn(len(real), 3, dtype=torch.float64)).detach()
        terms = {"discriminator": self.C(fake).mean() - self.C(real).mean()}
        if self.weight:
            # One epsilon a sample, and the norm over all of it.
            epsilon = torch.rand(len(real), 1, 1, 1, dtype=torch.float64)
            between = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(self.C(between).sum(), between, create_graph=True)
            norm = (gradient**2).sum(dim=(1, 2, 3)) ** 0.5
            terms["GradientPenalty"] = self.weight * ((norm - 1) ** 2).mean()
        self.optimizer_C.zero_grad()
        sum(terms.values()).backward()
        self.optimizer_C.step()
        if self.bound:
            for weights in self.C.parameters():
                weights.data.clamp_(-self.bound, self.bound)
        self.updates += 1
        if self.updates % self.n_critic == 0:
            terms["generator"] = -self.C(self.G(torch.randn(len(real), 3, dtype=torch.float64))).mean()
            self.optimizer_G.zero_grad()
            terms["generator"].backward()
            self.optimizer_G.step()
        return {name: term.item() for name, term in terms.items()}


def assert_equal_to_the_algorithm(model, expected, data):
    recorder = Recorder()
    start = deepcopy([*expected.G.parameters(), *expected.C.parameters()])
    fit(model, data, [recorder], precision="64-true")
    for state, real, logged in zip(model.states, data, recorder.terms, strict=True):
        torch.set_rng_state(state)
        terms = expected.step(real)
        assert {name: logged[name] for name in terms} == pytest.approx(terms, rel=1e-5)
    ends = [*expected.G.parameters(), *expected.C.parameters()]
    way = max((end - begin).abs().max() for end, begin in zip(ends, start, strict=True)).item()
    for mine, theirs in zip([*model.generator.parameters(), *model.discriminator.parameters()], ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 * way)


ADAM = functools.partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.9))
RMSPROP = functools.partial(torch.optim.RMSprop, lr=5e-5)


def test_two_iterations_of_wgan_gp_equal_the_algorithm():
    model = make(keeping_states(WGANGP)).double()
    assert_equal_to_the_algorithm(model, ByHand(model, 5, ADAM, weight=10.0), batches(10))


def test_two_iterations_of_wgan_equal_the_algorithm():
    model = make(keeping_states(WGAN)).double()
    assert_equal_to_the_algorithm(model, ByHand(model, 5, RMSPROP, bound=0.01), batches(10))


class OneEpsilonAPixel(GradientPenalty):
    def points(self, real, fake):
        return torch.lerp(fake, real, torch.rand_like(real))


class OneEpsilonABatch(GradientPenalty):
    def points(self, real, fake):
        return torch.lerp(fake, real, torch.rand(1, dtype=real.dtype))


class NormOverChannels(GradientPenalty):
    def cost(self, gradients):
        return (gradients.unflatten(1, SHAPE).norm(dim=2) - 1).square().mean(dim=(1, 2))


@pytest.mark.parametrize(
    "settings",
    [
        {"penalties": [OneEpsilonAPixel()]},
        {"penalties": [OneEpsilonABatch()]},
        {"penalties": [NormOverChannels()]},
        {"penalties": [GradientPenalty(one_sided=True)]},
        {"penalties": []},
        {"n_critic": 4},
        {"loss": LeastSquares()},
        {"betas": (0.5, 0.9)},
        {"decay_start": 0},
    ],
    ids=str,
)
def test_a_mistake_planted_in_wgan_gp_is_seen(settings):
    model = make(keeping_states(WGANGP), **settings).double()
    with pytest.raises((AssertionError, KeyError)):
        assert_equal_to_the_algorithm(model, ByHand(model, 5, ADAM, weight=10.0), batches(10))


class ClipsFirst(WGAN):
    def update(self, optimizer, *losses, count=True):
        if not count:
            WeightClipping()(self.discriminator)
        super().update(optimizer, *losses, count=count)


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        (ClipsFirst, {"constraint": WeightClipping(1e9)}),
        (WGAN, {"constraint": WeightClipping(0.02)}),
        (WGAN, {"discriminator_optimizer": ADAM}),
        (WGAN, {"n_critic": 6}),
    ],
    ids=["clips before the step", "bound", "Adam", "n_critic"],
)
def test_a_mistake_planted_in_wgan_is_seen(base, settings):
    model = make(keeping_states(base), **settings).double()
    with pytest.raises((AssertionError, KeyError)):
        assert_equal_to_the_algorithm(model, ByHand(model, 5, RMSPROP, bound=0.01), batches(10))


def test_the_critic_is_within_bounds_right_after_each_of_its_steps_and_the_generator_is_not_clipped():
    class Watched(WGAN):
        def generator_losses(self, num_fakes):
            assert all(p.abs().max() <= 0.01 for p in self.discriminator.parameters())
            return super().generator_losses(num_fakes)

        def update(self, optimizer, *losses, count=True):
            super().update(optimizer, *losses, count=count)
            if (
                not count and self.images_seen > 0
            ):  # the step itself leaves the bounds, so clipping before it is too early
                assert any(p.abs().max() > 0.01 for p in self.discriminator.parameters())

    class Bounds(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            assert all(p.abs().max() <= 0.01 for p in module.discriminator.parameters())

    model = make(Watched, learning_rate=1e-3)
    start = deepcopy(model.generator.state_dict())
    fit(model, batches(10), [Bounds()])
    for name, weight in model.generator.named_parameters():
        assert weight.abs().max() > 0.05
        assert not torch.equal(weight, start[name])


def test_the_critic_s_warm_up():
    """Of the authors' code: 100 critic updates before the first 25 generator updates, and before every 500th."""
    model = make(WGAN, warmup_critic_updates=100)
    many = [step for step in range(1600) if model.critic_updates_before(step) == 100]
    assert many == [*range(25), 500, 1000, 1500]
    assert {model.critic_updates_before(step) for step in range(1600)} == {5, 100}
    assert model.steps_in(2499) == 24
    assert model.steps_in(2500) == 25
    assert model.steps_in(2500 + 5 * 475) == 500
    assert model.steps_in(2500 + 5 * 475 + 99) == 500
    assert model.steps_in(2500 + 5 * 475 + 100) == 501
    # As in the paper's box, there is none.
    model = make(WGAN)
    assert {model.critic_updates_before(step) for step in range(1600)} == {5}


def test_a_run_with_warm_up():
    recorder = Recorder()
    model = make(WGAN, warmup_critic_updates=3, n_critic=1, decay_start=0)
    t = fit(model, batches(80), [recorder])
    # 25 generator updates after three critic updates each, five after one each.
    assert recorder.moves == "DDDG" * 25 + "DG" * 5
    assert t.global_step == 30
    assert t.optimizers[1].param_groups[0]["lr"] == 0  # the decay is planned with the warm-up


@pytest.mark.parametrize("updates", [0, -1])
def test_a_warm_up_of_nothing_is_refused(updates):
    with pytest.raises(ValueError, match=f"warmup_critic_updates must be at least 1, or null; got {updates}"):
        make(WGAN, warmup_critic_updates=updates)


def test_the_defaults_are_the_papers():
    model = WGAN((3, 32, 32))
    assert model.loss == Wasserstein()
    assert model.constraint == WeightClipping(0.01)
    assert (model.n_critic, model.generator_batch_factor, model.latent_distribution) == (5, 1, "normal")
    (optimizers, _) = model.configure_optimizers()
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.RMSprop] * 2
    assert [optimizer.defaults["lr"] for optimizer in optimizers] == [5e-5] * 2
    with torch.device("meta"):
        model = WGANGP((3, 32, 32))
    assert model.loss == Wasserstein()
    assert model.penalties == [GradientPenalty(10.0)]
    assert (model.n_critic, model.learning_rates[0], model.betas) == (5, 1e-4, (0.0, 0.9))
    counts = [sum(p.numel() for p in network.parameters()) for network in (model.generator, model.discriminator)]
    assert counts == [4_276_739, 1_053_825]
    assert make(WGANGP, penalties=[]).penalties == []


# -- two processes --------------------------------------------------------------------------------------------------


class Witness(pl.Callback):
    """What is sent in each training batch, as the profiler sees it, also from within C++; and what ranks share."""

    def __init__(self, path):
        self.path, self.sent, self.gradients, self.latents = path, [], [], []

    def on_train_start(self, trainer, module):
        draw = module.latents

        def kept(num):
            self.latents.append(draw(num))
            return self.latents[-1]

        module.latents = kept

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True)
        self.profile.start()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients += [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]

    def on_train_batch_end(self, trainer, module, *_):
        self.profile.stop()
        sent = [event for event in self.profile.events() if event.name.startswith("gloo:")]
        self.sent.append([[event.name, *event.input_shapes[0]] for event in sent])

    def on_train_end(self, trainer, module):
        assert not trainer.strategy._ddp_kwargs.get("find_unused_parameters", False)  # plain ddp
        weights = [p.detach().flatten() for p in module.parameters()]
        for mine, equal in ((self.gradients, True), (weights, True), (self.latents, False)):
            joined = torch.cat([tensor.flatten() for tensor in mine])
            both = [torch.empty_like(joined) for _ in range(2)]
            dist.all_gather(both, joined)
            assert torch.equal(*both) == equal
        self.path.with_suffix(f".{trainer.global_rank}").write_text(repr(self.sent))


def fit_on_two_ranks(path):
    launching._check_bad_cuda_fork = lambda: None  # Lightning refuses to fork where CUDA was touched; nothing uses it
    pl.seed_everything(0, verbose=False)
    settings = {"devices": 2, "strategy": "ddp_fork", "max_steps": 2, "use_distributed_sampler": False}
    fit(make(WGANGP), batches(10), [Witness(path)], **settings)


def test_an_update_sends_the_gradients_of_the_updated_network_and_nothing_else(fresh_process, tmp_path):
    """Five critic updates and one of the generator cost 5 |D| + |G| numbers, not 6 (|D| + |G|)."""
    fresh_process(fit_on_two_ranks, tmp_path / "sent")
    networks = (CRITIC(SHAPE), GENERATOR(SHAPE, 3))
    critic, generator = (["gloo:all_reduce", sum(p.numel() for p in network.parameters())] for network in networks)
    for rank in range(2):
        sent = ast.literal_eval((tmp_path / f"sent.{rank}").read_text())
        assert sent == ([[critic]] * 4 + [[critic, generator]]) * 2
