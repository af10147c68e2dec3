"""The update of one player: what it touches, what it counts, when it refuses, and the schedule beside it."""

import csv
import functools
import warnings
import weakref
from copy import deepcopy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.shipped import small_model
from lightning_gen.layers.freezing import layers_in_order
from lightning_gen.losses import Drift, GradientPenalty, Penalty, Wasserstein, WeightClipping
from lightning_gen.models import SNGAN, VQGAN, WGAN, WGANGP, CycleGAN, Pix2Pix, StyleGAN
from lightning_gen.models.adversarial import AdversarialModule
from lightning_gen.models.training import NonFiniteLossError, linear_decay
from lightning_gen.networks import (
    DCGANDiscriminator,
    PatchDiscriminator,
    ResidualDiscriminator,
    ResNetGenerator,
    StyleGANDiscriminator,
    UNetGenerator,
)
from lightning_gen.schedules import Linear
from tests.shared import save, trainer

SHAPE = (3, 16, 16)
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)
NETWORKS = ("generator_AtoB", "generator_BtoA", "discriminator_A", "discriminator_B")

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")


def small(**settings):
    return CycleGAN(SHAPE, GENERATOR, DISCRIMINATOR, **settings)


def data(number=4, size=1):
    draw = torch.Generator().manual_seed(1)
    return DataLoader(
        [{d: torch.rand(size, *SHAPE, generator=draw) * 2 - 1 for d in "AB"} for _ in range(number)], None
    )


class Player(nn.Module):
    """One weight; its loss is its square."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))


class Duel(AdversarialModule):
    """The smallest game, whose every number is known: SGD at rate 1 on weighted squares."""

    def __init__(self, moves=("critic", "generator"), bad=None):
        super().__init__((1, 1, 1))
        self.generator, self.critic = Player(3.0), Player(5.0)
        self.moves, self.bad = moves, bad
        self.seen = []

    def configure_optimizers(self):
        return [torch.optim.SGD(player.parameters(), lr=0.1) for player in (self.generator, self.critic)]

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        for move in self.moves:
            optimizer = {"generator": generator, "critic": critic}[move]
            self.update(optimizer, lambda m=move: self.losses(m), count=move == "generator")
        self.finish_step(images=2)

    def losses(self, move):
        self.seen.append((move, {name: p.requires_grad for name, p in self.named_parameters()}))
        player = getattr(self, move)
        scale = float("nan") if self.bad == (move, self.trainer.global_step) else 1.0
        # The other player is in the graph, as a discriminator is in the generator's.
        both = self.generator.weight * self.critic.weight
        return {move: player.weight.square(), f"{move}_weighted": 3 * player.weight * scale, "tie": 0 * both}


def play(model, steps=1, **settings):
    t = trainer(max_steps=steps, **settings)
    t.fit(model, DataLoader(list(range(100)), None))
    return t


# -- what an update touches -----------------------------------------------------------------------------------------


def test_the_sum_of_the_terms_is_minimised():
    model = Duel()
    play(model)
    # w - 0.1 (2 w + 3), once for each.
    assert model.generator.weight.item() == pytest.approx(3 - 0.1 * 9)
    assert model.critic.weight.item() == pytest.approx(5 - 0.1 * 13)


@pytest.mark.parametrize(("moves", "moved"), [(("generator",), "generator"), (("critic",) * 3, "critic")])
def test_only_the_updated_player_moves_and_gets_gradients(moves, moved):
    model = Duel(moves)
    play(model, max_epochs=1, limit_train_batches=1)
    other = "critic" if moved == "generator" else "generator"
    start = Duel()
    assert getattr(model, moved).weight != getattr(start, moved).weight
    assert getattr(model, other).weight == getattr(start, other).weight
    assert getattr(model, other).weight.grad is None
    assert model.seen == [(moved, {f"{moved}.weight": True, f"{other}.weight": False})] * len(moves)
    assert all(p.requires_grad for p in model.parameters())


def test_a_parameter_frozen_by_the_user_stays_frozen():
    model = Duel(("critic",))
    model.generator.weight.requires_grad_(False)
    play(model, max_epochs=1, limit_train_batches=1)
    assert not model.generator.weight.requires_grad
    assert model.critic.weight.requires_grad


def test_after_an_exception_all_players_learn_again():
    model = Duel(bad=("critic", 0))
    with pytest.raises(NonFiniteLossError):
        play(model)
    assert all(p.requires_grad for p in model.parameters())


def test_in_cyclegan_each_update_leaves_the_other_networks_alone():
    class Watched(CycleGAN):
        def update(self, optimizer, *losses, count=True):
            before = {n: p.detach().clone() for n, p in self.named_parameters()}
            grads = {n: p.grad for n, p in self.named_parameters()}
            kept = {n: None if g is None else g.clone() for n, g in grads.items()}
            super().update(optimizer, *losses, count=count)
            player = "generator" if count else "discriminator"
            changed = {n.split("_")[0] for n, p in self.named_parameters() if not torch.equal(p, before[n])}
            assert changed == {player}
            for name, parameter in self.named_parameters():
                assert parameter.requires_grad
                if not name.startswith(player):
                    assert parameter.grad is grads[name]
                    assert parameter.grad is None or torch.equal(parameter.grad, kept[name])

    trainer(max_steps=2).fit(Watched(SHAPE, GENERATOR, DISCRIMINATOR), data())


# -- what is counted ------------------------------------------------------------------------------------------------


def test_the_step_counts_generator_updates_alone():
    model = Duel(("critic", "critic", "critic", "generator"))
    t = play(model, steps=3)
    assert t.global_step == 3
    assert [move for move, _ in model.seen].count("generator") == 3
    assert [move for move, _ in model.seen].count("critic") == 9
    assert model.images_seen == 6


def test_max_steps_is_reached_in_generator_updates_when_some_batches_have_none():
    class EverySecond(Duel):
        def training_step(self, batch, batch_idx):
            self.moves = ("critic", "generator") if batch_idx % 2 else ("critic",)
            super().training_step(batch, batch_idx)

    model = EverySecond()
    t = play(model, steps=3)
    assert t.global_step == 3
    assert [move for move, _ in model.seen].count("critic") == 6
    assert model.images_seen == 12


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_loggers_x_axis_is_generator_updates_in_training_and_validation(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    paired = DataLoader([{d: torch.zeros(1, *SHAPE) for d in "AB"} | {"paired": torch.ones(1)}] * 3, None)
    t = trainer(max_steps=4, logger=logger, log_every_n_steps=1, val_check_interval=2, num_sanity_val_steps=0)
    t.fit(small(), data(), paired)
    table = rows(tmp_path)
    assert [int(row["step"]) for row in table if row["train/cycle_A"]] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in table if row["val/psnr_AtoB"]] == [2, 4]


def test_the_step_is_exact_also_in_a_long_validation():
    """The mean of equal float32 numbers need not be that number, and loggers cut it to a whole one."""

    class LongAgo(pl.Callback):
        def on_train_start(self, trainer, module):
            trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = 200_002

    t = trainer(max_steps=200_003, num_sanity_val_steps=0, val_check_interval=1, callbacks=[LongAgo()])
    t.fit(small(), data(1), DataLoader([{d: torch.zeros(3, *SHAPE) for d in "AB"}] * 70, None))
    assert t.callback_metrics["step"] == 200_003


def test_a_step_without_a_generator_update_advances_no_schedule():
    class EverySecond(Duel):
        def configure_optimizers(self):
            optimizers = super().configure_optimizers()
            return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5) for optimizer in optimizers]

        def training_step(self, batch, batch_idx):
            generator, critic = self.optimizers()
            self.update(critic, lambda: self.losses("critic"), count=False)
            if batch_idx % 2:
                self.update(generator, lambda: self.losses("generator"))
            self.finish_step(images=2, schedules=bool(batch_idx % 2))
            self.rates = [*getattr(self, "rates", []), generator.param_groups[0]["lr"]]

    model = EverySecond()
    play(model, steps=3)
    assert model.rates == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025, 0.0125])


def test_penalties_have_names_of_their_own_and_lazy_ones_their_batches():
    class Constant(Penalty):
        def __init__(self, weight, interval=1):
            self.weight, self.interval = weight, interval

        def __call__(self, discriminator, real, fake):
            return self.weight * discriminator(real).sum() + 0 * fake.sum()

    model = Duel()
    model.penalties = [Constant(1.0), Drift(0.5, interval=2), Constant(3.0, interval=3), Constant(0.5)]
    ones, found = torch.ones(2, 1, 1, 1), []
    for model.batches_before in range(4):
        terms = model.penalty_losses(lambda images: images.flatten(1).mean(1), ones, ones)
        found.append({name: term.item() for name, term in terms.items()})
    both = {"Constant": 2.0, "Constant_3": 1.0}
    assert found == [
        both | {"Drift": 1.0, "Constant_2": 18.0},
        both,
        both | {"Drift": 1.0},
        both | {"Constant_2": 18.0},
    ]


# -- clipping, and batches in pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("plugins", [[], [MixedPrecision("16-mixed", "cpu")]], ids=["plain", "scaled"])
def test_the_gradient_of_each_player_is_clipped_by_itself(plugins):
    model = Duel()
    model.gradient_clip_norm = 10.0
    play(model, plugins=plugins)
    assert model.generator.weight.item() == pytest.approx(3 - 0.1 * 9)
    assert model.critic.weight.item() == pytest.approx(5 - 0.1 * 10)  # in place of 13


def test_the_norm_is_that_of_all_weights_of_a_player():
    norms = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    trainer(max_steps=2, callbacks=[Watch()]).fit(small(gradient_clip_norm=0.01), data())
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_clip_norm": 0}, "gradient_clip_norm must be above 0, or null for none; got 0"),
        ({"micro_batches": 0}, "micro_batches must be at least 1, got 0"),
    ],
)
def test_clipping_and_pieces_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_a_batch_smaller_than_its_pieces():
    with pytest.raises(ValueError, match=r"A batch of 1 cannot be cut into micro_batches=2 pieces\. Raise data\.batch"):
        trainer(max_steps=1).fit(small(micro_batches=2), data())


def test_terms_of_pieces_are_logged_as_those_of_the_batch_and_penalties_keep_their_batches():
    class Told(AdversarialModule):
        def __init__(self):
            super().__init__((1, 1, 1), micro_batches=3)
            self.critic, self.penalties, self.calls = Player(1.0), [Drift(0.5, interval=2)], []

        def configure_optimizers(self):
            return torch.optim.SGD(self.critic.parameters(), lr=0.0)

        def training_step(self, batch, batch_idx):
            self.update(self.optimizers(), *self.in_pieces(self.losses, batch, None, "kept whole"))
            self.finish_step(images=len(batch))

        def losses(self, images, nothing, word):
            self.calls.append((self.batches_before, len(images), nothing, word))
            mean = {"mean": self.critic.weight * images.mean()}
            return mean | self.penalty_losses(lambda x: self.critic.weight * x, images, images)

    model, told = Told(), []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            told.append({name: value.item() for name, value in trainer.callback_metrics.items() if "train/" in name})

    batch = torch.arange(7.0).view(7, 1, 1, 1)
    t = trainer(max_steps=2, callbacks=[Keep()])
    t.fit(model, DataLoader([batch, batch], None))
    assert t.global_step == 2
    assert model.images_seen == 14
    assert model.calls == [(b, size, None, "kept whole") for b in range(2) for size in (3, 2, 2)]
    assert told[0] == pytest.approx({"train/mean": 3.0, "train/Drift": 2 * 0.5 * 13.0})
    assert told[1]["train/mean"] == pytest.approx(3.0)


class Kept:
    """A tensor that a graph keeps for its backward."""

    def __init__(self, tensor):
        self.tensor = tensor


class Counted(AdversarialModule):
    """One player with two losses, each of which notes how much of earlier graphs is alive; the second is lazy."""

    def __init__(self, apart, micro_batches=1):
        super().__init__((1, 1, 1), micro_batches=micro_batches)
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        self.apart, self.kept, self.alive = apart, weakref.WeakSet(), []

    def configure_optimizers(self):
        return torch.optim.SGD(self.generator.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        def both(images):
            return {**self.main(images), **self.lazy(images)}

        with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept.tensor):
            losses = [self.main, self.lazy] if self.apart else [both]
            self.update(self.optimizers(), *(piece for loss in losses for piece in self.in_pieces(loss, batch)))
        self.finish_step(len(batch))

    def keep(self, tensor):
        kept = Kept(tensor)
        self.kept.add(kept)
        return kept

    def main(self, images):
        self.alive.append(len(self.kept))
        return {"main": self.generator(images).square().mean()}

    def lazy(self, images):
        self.alive.append(len(self.kept))
        return {"lazy": 2 * self.generator[:2](images).square().mean()} if self.batches_before % 2 == 0 else {}


@pytest.mark.parametrize("pieces", [1, 3])
def test_losses_apart_teach_what_their_sum_does_and_only_one_graph_is_alive(pieces):
    batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    weights, terms = [], []
    for apart in (False, True):
        model = Counted(apart, pieces)
        t = trainer(max_steps=3)
        t.fit(model, DataLoader([batch, batch, batch], None))
        weights.append(list(model.parameters()))
        terms.append({name: value.item() for name, value in t.callback_metrics.items() if "train/" in name})
        assert (set(model.alive) == {0}) == apart
    for whole, piecewise in zip(*weights, strict=True):
        torch.testing.assert_close(piecewise, whole, rtol=1e-6, atol=1e-7)
    assert terms[1] == pytest.approx(terms[0], rel=1e-6)
    assert terms[1].keys() == {"train/main", "train/lazy"}


# -- losses that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("player", "step"), [("generator", 0), ("generator", 2), ("critic", 1)])
def test_a_nan_stops_the_run_with_its_name_before_the_weights_are_touched(player, step, tmp_path):
    model = Duel(bad=(player, step))
    weights = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            weights.append((trainer.global_step, optimizer.param_groups[0]["params"][0].item()))

    with pytest.raises(NonFiniteLossError, match=rf"^train/{player}_weighted became NaN .* after {step} generator upd"):
        play(model, steps=5, callbacks=[Watch()])
    assert all(p.isfinite().all() for p in model.parameters())
    # The critic moves first: one more step of it than of the generator where the generator's loss is bad.
    assert len(weights) == 2 * step + (player == "generator")
    # Nor can the state be saved as if nothing had happened.
    with pytest.raises(NonFiniteLossError, match="no checkpoint was written since"):
        model.trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert not list(tmp_path.iterdir())


def test_terms_that_go_bad_together_are_all_named_and_the_first_step_is_kept():
    model = Duel()
    never = torch.iinfo(torch.int64).max
    model._first_bad_step = {n: torch.tensor(s) for n, s in (("a", 7), ("b", never), ("c", 7), ("d", 9))}
    with pytest.raises(NonFiniteLossError, match=r"^train/a, train/c became NaN .* after 7 generator"):
        model.on_save_checkpoint({"state_dict": {}})


def test_on_an_accelerator_nothing_waits_until_the_next_logging_step():
    class Elsewhere(Duel):
        device = property(lambda self: torch.device("meta"))

        def log(self, *args, **kwargs):
            pass

    model = Elsewhere()
    # Three batches a generator update; Lightning logs every fifth batch.
    for batches, loss in ((0, 1.0), (5, 1.0), (11, float("nan")), (12, 1.0)):
        model._trainer = SimpleNamespace(global_step=batches // 3, log_every_n_steps=5)
        model.batches_before = batches
        model.watch({"generator": torch.tensor(loss)})
        model.on_train_batch_end(None, None, 0)
    with pytest.raises(NonFiniteLossError, match="after 3 generator updates"):  # by then, no checkpoint can be written
        model.on_save_checkpoint({"state_dict": {}})
    model.batches_before = 14
    with pytest.raises(NonFiniteLossError, match=r"^train/generator became NaN .* after 3 generator updates"):
        model.on_train_batch_end(None, None, 0)
    model._trainer.log_every_n_steps = 0
    model.on_train_batch_end(None, None, 0)


def test_the_same_model_can_go_on_from_its_checkpoint_after_a_nan(tmp_path):
    model = Duel(bad=("generator", 3))
    path = tmp_path / "good.ckpt"

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 2:
                trainer.save_checkpoint(path)

    with pytest.raises(NonFiniteLossError):
        play(model, steps=5, callbacks=[Save()])
    model.bad = None
    t = trainer(max_steps=5)
    t.fit(model, DataLoader(list(range(100)), None), ckpt_path=path)
    assert t.global_step == 5


# -- the learning rate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("start", [0.0, 0.25, 0.5, 0.9])
def test_the_rate_is_constant_then_linear_and_ends_at_exactly_zero(total, start):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    factor = linear_decay(optimizer, total, start).lr_lambdas[0]
    for step in range(total + 1):
        if step <= start * total:
            assert factor(step) == 1
        else:  # the line through (start * total, 1) and (total, 0)
            assert factor(step) == pytest.approx(min(1, (total - step) / max(1, total - start * total)))
    assert factor(total) == 0
    assert factor(total + 5) == 0
    assert factor(total - 1) > 0


def test_a_start_of_one_never_decays():
    factor = linear_decay(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3), 0, 1.0).lr_lambdas[0]
    assert [factor(step) for step in (0, 1, 10**9)] == [1, 1, 1]


class Rates(pl.Callback):
    """The rates in use when each optimizer steps."""

    def __init__(self):
        self.generators, self.discriminators = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        first = optimizer is trainer.optimizers[0]
        (self.generators if first else self.discriminators).append(optimizer.param_groups[0]["lr"])


def rates_of(loader=None, ckpt_path=None, save=None, model=None, **settings):
    rates = Rates()
    t = trainer(callbacks=[rates], **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.*")
        t.fit(model or small(), loader or data(8), ckpt_path=ckpt_path)
    if save:
        t.save_checkpoint(save)
    final = [group["lr"] for optimizer in t.optimizers for group in optimizer.param_groups]
    assert rates.generators == rates.discriminators
    return [rate / 2e-4 for rate in rates.generators], final


def test_every_step_uses_the_scheduled_rate_and_the_last_leaves_zero():
    rates, final = rates_of(max_steps=8)
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert final == [0, 0]


def test_rates_and_betas_may_be_schedules_of_pictures_or_of_steps():
    for by, scale in (("images", 2), ("steps", 1)):
        rate, other, beta = (
            Linear(start, end, 4 * scale, by=by) for start, end in ((2e-4, 1e-4), (1e-5, 2e-5), (0.5, 0.9))
        )
        seen = []

        class Watch(pl.Callback):
            def on_before_optimizer_step(self, trainer, module, optimizer):
                group = optimizer.param_groups[0]
                seen.append((trainer.optimizers.index(optimizer), group["lr"], group["betas"]))  # noqa: B023

        model = small(learning_rate=rate, discriminator_learning_rate=other, betas=(0.25, beta), decay_start=1)
        trainer(max_steps=6, callbacks=[Watch()]).fit(model, data(6, size=2))
        for step in range(6):
            of_step = {player: numbers for player, *numbers in seen[2 * step : 2 * step + 2]}
            place = step * scale
            assert of_step == {0: [rate(place), (0.25, beta(place))], 1: [other(place), (0.25, beta(place))]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": Linear(1, 0, 9)}, "learning_rate must be above 0"),
        ({"learning_rate": Linear(2, 1, 9), "decay_start": 0.5}, "Leave one out"),
        ({"discriminator_learning_rate": Linear(0, 1, 9), "decay_start": 1}, "discriminator_learning_rate must be"),
        ({"betas": (0.0, Linear(0.9, 1.0, 9))}, r"betas must lie in \[0, 1\)"),
        ({"betas": (1.5, 0.9)}, r"betas must lie in \[0, 1\)"),
    ],
)
def test_schedules_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_epochs_are_turned_into_steps():
    rates, final = rates_of(loader=data(2), max_epochs=3, model=small(decay_start=0))
    assert rates == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert final == [0, 0]


def test_a_constant_rate_needs_no_end():
    rates, final = rates_of(max_steps=-1, max_epochs=-1, max_time={"seconds": 1}, model=small(decay_start=1))
    assert set(rates) == {1}
    assert final == [2e-4, 2e-4]


def test_a_falling_rate_in_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"the run has no end\. Set trainer\.max_steps.*decay_start: 1"):
        trainer(max_steps=-1, max_epochs=-1).fit(small(), data())


def test_a_run_that_goes_on_for_longer_follows_the_new_schedule_from_its_first_step(tmp_path):
    rates_of(max_steps=4, loader=data(4), save=tmp_path / "a.ckpt")  # ends at rate 0
    rates, final = rates_of(max_steps=12, loader=data(4), ckpt_path=tmp_path / "a.ckpt")
    assert rates == pytest.approx([1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert final == [0, 0]


def test_a_run_that_goes_on_unchanged_uses_the_same_rates_to_the_bit(tmp_path):
    through, _ = rates_of(max_steps=8, loader=data(4))
    model = small()

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            trainer.should_stop = trainer.global_step == 4

    t = trainer(max_steps=8, callbacks=[Stop()])
    t.fit(model, data(4))
    t.save_checkpoint(tmp_path / "a.ckpt")
    rates, _ = rates_of(max_steps=8, loader=data(4), ckpt_path=tmp_path / "a.ckpt")
    assert rates == through[4:]


# -- compilation ----------------------------------------------------------------------------------------------------

EAGER_BACKEND = "aot_eager"  # traces forward and backward as the real one does, and writes no C++


@pytest.fixture
def quick_compile(monkeypatch):
    """`Module.compile` without the code generator, keeping a list of what was compiled."""
    compiled, compile = [], nn.Module.compile

    def quick(self, *args, **kwargs):
        compiled.append(self)
        compile(self, *args, backend=EAGER_BACKEND, **kwargs)

    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", quick)
    yield compiled
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (GENERATOR, 16),
        (functools.partial(UNetGenerator, filters=2, depth=5, dropout=0.0), 32),
        (DISCRIMINATOR, 16),
    ],
    ids=["resnet", "unet", "patchgan"],
)
def test_networks_compile_whole_and_equal_themselves(make, size):
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = make((3, size, size), init_std=0.2)
    images = torch.randn(2, 3, size, size)
    results = []
    for function in (network, torch.compile(deepcopy(network), fullgraph=True, backend=EAGER_BACKEND)):
        given = images.clone().requires_grad_()
        result = function(given)
        result.square().sum().backward()
        results.append([result.detach(), given.grad, *(p.grad for p in function.parameters())])
    largest = max(tensor.abs().max() for tensor in results[0]).item()
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6 * largest)
    torch._dynamo.reset()


def one_step(compile, **settings):
    torch.manual_seed(0)
    settings = {"generator_optimizer": DESCENT, "discriminator_optimizer": DESCENT, **settings}
    model = small(compile=compile, **settings)
    # In float32 both ways are rounded, each in its own manner: by 3e-5 here.
    trainer(max_steps=1, precision="64-true").fit(model, data())
    return model


DESCENT = functools.partial(torch.optim.SGD, lr=1.0)  # Adam would make whole steps of gradients that are rounding


def test_a_compiled_step_equals_the_eager_one_and_keeps_the_names_of_the_weights(quick_compile):
    eager = one_step(False)
    assert not quick_compile
    compiled = one_step(True)
    assert {id(m) for m in quick_compile} == {id(getattr(compiled, name)) for name in NETWORKS}
    assert list(compiled.state_dict()) == list(eager.state_dict())
    assert not any("_orig_mod" in name for name in compiled.state_dict())
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_discriminators_under_a_gradient_penalty_are_not_compiled(quick_compile):
    settings = {"loss": Wasserstein(), "penalties": [GradientPenalty()]}
    compiled, eager = one_step(True, **settings), one_step(False, **settings)
    assert {id(m) for m in quick_compile} == {id(compiled.generator_AtoB), id(compiled.generator_BtoA)}
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_nothing_is_compiled_for_evaluation(quick_compile):
    trainer(limit_test_batches=1).test(small(compile=True), data(), verbose=False)
    assert not quick_compile


# -- mixed precision ------------------------------------------------------------------------------------------------


def test_under_autocast_a_second_update_sees_the_weights_of_the_first():
    """Autocast keeps low-precision copies of weights, which an optimizer step within it makes stale."""

    class Twice(AdversarialModule):
        def __init__(self):
            super().__init__((1, 1, 1))
            self.net = nn.Linear(1, 1, bias=False)
            nn.init.ones_(self.net.weight)
            self.outputs = []

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.25)

        def training_step(self, batch, batch_idx):
            for _ in range(3):
                self.update(self.optimizers(), self.losses)

        def losses(self):
            output = self.net(torch.ones(1, 1)).sum()
            self.outputs.append(output.item())
            return {"net": output}

    model = Twice()
    play(model, precision="bf16-mixed")
    assert model.outputs == [1.0, 0.75, 0.5]


# -- layers that are frozen -------------------------------------------------------------------------------------------


def conv_gan(base, discriminator, **settings):
    """A model of pictures whose discriminators are those, and a batch that it takes."""
    if base is CycleGAN:
        return CycleGAN(SHAPE, GENERATOR, discriminator, **settings), data()
    pictures = DataLoader([{"image": batch["A"].repeat(2, 1, 1, 1)} for batch in data()], None)
    return small_model(base, SHAPE, discriminator=discriminator, latent_size=4, **settings)(), pictures


FROZEN = {
    "GAN": (WGAN, functools.partial(DCGANDiscriminator, filters=4, norm="none"), {"constraint": WeightClipping(1e-3)}),
    "gradient penalty": (WGANGP, functools.partial(DCGANDiscriminator, filters=4, norm="instance"), {}),
    "spectral norm": (SNGAN, functools.partial(ResidualDiscriminator, filters=4, spectral_norm="reshape"), {}),
    "growing": (StyleGAN, functools.partial(StyleGANDiscriminator, **StyleGANDiscriminator.small), {}),
    "translation": (CycleGAN, DISCRIMINATOR, {}),
}


@pytest.mark.filterwarnings("ignore:freeze_discriminator")
@pytest.mark.parametrize("kind", FROZEN)
def test_first_layers_keep_their_bits_and_have_no_gradient(kind, fresh_process):
    train_frozen(kind, "auto")
    fresh_process(train_frozen, kind, "ddp")  # which leaves a process group behind


def train_frozen(kind, strategy):
    base, discriminator, settings = FROZEN[kind]
    torch.manual_seed(0)
    model, pictures = conv_gan(base, discriminator, freeze_discriminator=2, **settings)
    before = deepcopy(model.state_dict())
    learning, counted = dict(model.named_parameters()), set()

    class Gradients(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            counted.update(name for name, p in module.named_parameters() if p.grad is not None)

    t = trainer(max_steps=2, max_epochs=20, callbacks=[Gradients()], limit_val_batches=0, strategy=strategy, devices=1)
    t.fit(model, pictures)
    frozen = set()
    for name, network in model.named_children():
        if name.startswith("discriminator"):
            of = {id(module): f"{name}.{inner}." for inner, module in network.named_modules()}
            frozen |= {of[id(module)] for layer in layers_in_order(network)[:2] for module in layer}
    assert frozen
    for name, tensor in model.state_dict().items():
        if name.startswith(tuple(frozen)):
            assert torch.equal(tensor, before[name])  # vectors of spectral norm, too
            assert name not in counted
        elif name in learning and "_image." not in name:  # which lower resolutions have
            assert name in counted
            assert not torch.equal(tensor, before[name]) or not tensor.any()


@pytest.mark.filterwarnings("ignore:freeze_discriminator")
def test_a_run_goes_on_with_other_layers_frozen(tmp_path):
    def fit(steps, checkpoint=None, **settings):
        torch.manual_seed(0)
        model = small(decay_start=1.0, **settings)
        t = trainer(max_steps=steps, limit_val_batches=0)
        t.fit(model, data(2), ckpt_path=checkpoint, weights_only=True)
        t.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return model.state_dict()

    first = fit(2, freeze_discriminator=1)
    through = fit(4, freeze_discriminator=1)
    again = fit(4, tmp_path / "2.ckpt", freeze_discriminator=1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in through.items())
    freed = fit(4, tmp_path / "2.ckpt")
    name = "discriminator_A.layers.0.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], freed[name])


def test_frozen_layers_that_nobody_trained_are_spoken_of(tmp_path):
    path = save(small(), tmp_path / "a.ckpt")
    for start, words in ((None, "8 of their 8"), (path, None)):
        model = small(freeze_discriminator=2)
        if start:
            model.init_from(start)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(max_steps=1, limit_val_batches=0).fit(model, data())
        told = [str(warning.message) for warning in caught if "freeze_discriminator" in str(warning.message)]
        assert len(told) == (words is not None)
        assert words is None or words in told[0]


@pytest.mark.parametrize("base", [WGAN, CycleGAN, Pix2Pix, VQGAN])
def test_layers_to_freeze_are_looked_at_when_the_model_is_made(base):
    shape = (3, 32, 32) if base is Pix2Pix else SHAPE
    make = small_model(base, shape, discriminator=functools.partial(PatchDiscriminator, filters=2, layers=1))
    with pytest.raises(
        ValueError, match=r"^freeze_discriminator: PatchDiscriminator has 3 layers, from the picture on"
    ):
        make(freeze_discriminator=3)
    with pytest.raises(ValueError, match=r"^freeze_discriminator must be 0 or more, got -1"):
        make(freeze_discriminator=-1)
    assert make(freeze_discriminator=2).freeze_discriminator == 2
