"""The two-player game against its algorithm written again by hand, and all that the family inherits from it."""

import csv
import functools
import itertools
import math
from copy import deepcopy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.data import DataLoader

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.capabilities import HasLatents, Samples, Translates
from lightning_gen.commands.trainer import Trainer
from lightning_gen.data.folders import ImageFolder
from lightning_gen.data.toy import GridOfGaussians
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import (
    R1,
    GradientPenalty,
    Hinge,
    InstanceNoise,
    LabelFlipping,
    LabelSmoothing,
    LeastSquares,
    Minimax,
    NonSaturating,
    RelativisticPairing,
)
from lightning_gen.losses.constraints import WeightClipping
from lightning_gen.models import DCGAN, FGAN, GAN, LSGAN, SNGAN, WGAN, WGANGP
from lightning_gen.models.training import NonFiniteLossError
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator
from lightning_gen.networks.resnet import ResidualDiscriminator, ResidualGenerator
from tests.shared import trainer

SHAPE = (2, 1, 1)
GENERATOR = functools.partial(MLPGenerator, widths=[8], output="linear")
DISCRIMINATOR = functools.partial(MLPDiscriminator, widths=[8], maxout=1, dropout=0, input_dropout=0)
FAMILY = [GAN, DCGAN, LSGAN, WGAN, WGANGP, SNGAN, FGAN]

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")


def make(base=GAN, **settings):
    return base(SHAPE, **{"generator": GENERATOR, "discriminator": DISCRIMINATOR, "latent_size": 3, **settings})


def batches(number, size=4, num_classes=None):
    draw = torch.Generator().manual_seed(1)
    made = [{"image": torch.rand(size, *SHAPE, generator=draw) * 2 - 1} for _ in range(number)]
    for batch in made if num_classes else ():
        batch["label"] = torch.randint(num_classes, (size,), generator=draw)
    return made


def fit(model, data, callbacks=(), **settings):
    t = trainer(callbacks=list(callbacks), **{"max_epochs": 1, **settings})
    t.fit(model, DataLoader(data, batch_size=None))
    return t


class Recorder(pl.Callback):
    """Which player moved when, at which rate, and what was logged."""

    def __init__(self):
        self.moves, self.rates, self.terms = "", [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.moves += "G" if optimizer is trainer.optimizers[0] else "D"
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        logged = trainer.callback_metrics.items()
        self.terms.append({name.removeprefix("train/"): float(v) for name, v in logged if name.startswith("train/")})


# -- the algorithm --------------------------------------------------------------------------------------------------


class Game(GAN):
    """Keeps the random state in which each of its steps begins."""

    def training_step(self, batch, batch_idx):
        self.states = [*getattr(self, "states", []), torch.get_rng_state()]
        super().training_step(batch, batch_idx)


class ByHand:
    """Algorithm 1 of 1406.2661 with the loss of its section 3 and Adam, sharing nothing with the package."""

    def __init__(self, model, k, factor=1):
        self.G, self.D, self.k, self.factor = deepcopy(model.generator), deepcopy(model.discriminator), k, factor
        self.adam_G, self.adam_D = (torch.optim.Adam(p.parameters(), 2e-4, (0.5, 0.999)) for p in (self.G, self.D))
        self.updates = 0

    def noise(self, number):
        return torch.rand(number, 3, dtype=torch.float64) * 2 - 1

    def step(self, real):
        real = real.double()
        one, zero = torch.ones(len(real)).double(), torch.zeros(len(real)).double()
        fake = self.G(self.noise(len(real))).detach()
        loss_D = F.binary_cross_entropy_with_logits(self.D(real), one)
        loss_D = loss_D + F.binary_cross_entropy_with_logits(self.D(fake), zero)
        self.adam_D.zero_grad()
        loss_D.backward()
        self.adam_D.step()
        terms = {"discriminator": loss_D.item()}
        self.updates += 1
        if self.updates % self.k == 0:
            scores = self.D(self.G(self.noise(self.factor * len(real))))
            loss_G = F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))
            self.adam_G.zero_grad()
            loss_G.backward()
            self.adam_G.step()
            terms["generator"] = loss_G.item()
        return terms


def assert_equal_to_the_algorithm(model, data, k, factor=1):
    recorder, expected = Recorder(), ByHand(model, k, factor)
    start = deepcopy([*expected.G.parameters(), *expected.D.parameters()])
    fit(model, data, [recorder], precision="64-true")
    for state, batch, logged in zip(model.states, data, recorder.terms, strict=True):
        torch.set_rng_state(state)
        terms = expected.step(batch["image"])
        assert {name: logged[name] for name in terms} == pytest.approx(terms, rel=1e-5)
    ends = [*expected.G.parameters(), *expected.D.parameters()]
    way = max((end - begin).abs().max() for end, begin in zip(ends, start, strict=True)).item()
    for mine, theirs in zip([*model.generator.parameters(), *model.discriminator.parameters()], ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7 * way)


@pytest.mark.parametrize(("k", "factor"), [(1, 1), (2, 1), (3, 2)])
def test_its_steps_equal_the_algorithm_by_hand(k, factor):
    model = make(Game, n_critic=k, generator_batch_factor=factor).double()
    assert_equal_to_the_algorithm(model, batches(2 * k), k, factor)


class OldFakes(Game):
    """One draw of noise for both players."""

    def latents(self, num):
        torch.set_rng_state(self.states[-1])
        return super().latents(num)


class GeneratorFirst(Game):
    def training_step(self, batch, batch_idx):
        self.states = [*getattr(self, "states", []), torch.get_rng_state()]
        generator, discriminator = self.optimizers()
        real, labels = self.real_images(batch)
        self.update(generator, lambda: self.generator_losses(len(real)))
        self.update(discriminator, lambda: self.discriminator_losses(real, labels), count=False)
        self.finish_step(len(real))


@pytest.mark.parametrize(
    "settings",
    [
        {"base": OldFakes},
        {"base": GeneratorFirst},
        {"n_critic": 2},
        {"generator_batch_factor": 2},
        {"loss": Minimax()},
        {"latent_distribution": "normal"},
        {"betas": (0.9, 0.999)},
        {"discriminator_learning_rate": 1e-4},
        {"instance_noise": InstanceNoise(0.01)},
        {"constraint": WeightClipping(0.1)},
    ],
    ids=lambda settings: " ".join(getattr(v, "__name__", f"{k}={v}") for k, v in settings.items()),
)
def test_a_planted_mistake_is_seen(settings):
    model = make(**{"base": Game, **settings}).double()
    with pytest.raises((AssertionError, KeyError)):
        assert_equal_to_the_algorithm(model, batches(2), 1)


def test_each_critic_update_has_a_batch_of_its_own_and_every_kth_makes_a_generator_update():
    seen = []

    class Watched(GAN):
        def discriminator_losses(self, real, labels):
            seen.append(real)
            return super().discriminator_losses(real, labels)

    recorder, data = Recorder(), batches(8)
    model = make(Watched, n_critic=3)
    t = fit(model, data, [recorder])
    assert recorder.moves == "DDDGDDDGDD"
    assert [torch.equal(real, batch["image"]) for real, batch in zip(seen, data, strict=True)] == [True] * 8
    assert t.global_step == 2
    assert model.images_seen == 8 * 4
    # A new epoch goes on with the count, and max_steps counts generator updates.
    recorder = Recorder()
    t = fit(make(n_critic=3), data, [recorder], max_epochs=-1, max_steps=5)
    assert recorder.moves == "DDDG" * 5
    assert t.global_step == 5


def test_critic_steps_have_no_graph_of_the_generator_and_generator_steps_no_gradient_of_the_critic():
    calls = []

    class Watched(GAN):
        def discriminator_losses(self, real, labels):
            losses = super().discriminator_losses(real, labels)
            assert all(p.requires_grad for p in self.discriminator.parameters())
            return losses

        def generator_losses(self, num_fakes):
            assert not any(p.requires_grad for p in self.discriminator.parameters())
            assert all(p.requires_grad for p in self.generator.parameters())
            return super().generator_losses(num_fakes)

        def update(self, optimizer, *losses, count=True):
            others = self.discriminator if count else self.generator
            kept = [
                (p.grad, None if p.grad is None else p.grad.clone(), p.detach().clone()) for p in others.parameters()
            ]
            super().update(optimizer, *losses, count=count)
            for parameter, (grad, values, weight) in zip(others.parameters(), kept, strict=True):
                assert parameter.grad is grad
                assert grad is None or torch.equal(grad, values)
                assert torch.equal(parameter, weight)

    model = make(Watched, n_critic=2)
    model.generator.register_forward_hook(lambda _, inputs, output: calls.append((len(output), output.requires_grad)))
    fit(model, batches(4))
    assert calls == [(4, False), (4, False), (4, True)] * 2


def test_the_generator_s_batch_is_a_multiple_of_the_real_one_also_when_that_is_small():
    sizes = []
    model = make(generator_batch_factor=3, n_critic=2)
    model.generator.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    fit(model, [*batches(2, size=5), *batches(2, size=2)])
    assert sizes == [5, 5, 15, 2, 2, 6]


def test_one_call_of_the_discriminator_where_statistics_allow_and_two_where_they_do_not():
    for norm, expected in (("none", [8, 4]), ("batch", [4, 4, 4])):
        sizes = []
        discriminator = functools.partial(DCGANDiscriminator, filters=2, norm=norm)
        model = DCGAN((1, 16, 16), functools.partial(DCGANGenerator, filters=2), discriminator)
        model.discriminator.register_forward_hook(lambda _, inputs, output, to=sizes: to.append(len(output)))
        fit(model, [torch.rand(4, 1, 16, 16)])
        assert sizes == expected


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loss_of_pairs_compares_fakes_with_the_pictures_and_classes_of_the_last_critic_update(micro_batches):
    """The generator's loss is computed again, from what its step began with."""

    class Watched(GAN):
        def generator_losses(self, *given):
            torch.manual_seed(2)
            terms = super().generator_losses(*given)
            torch.manual_seed(2)
            number, real, labels = given
            fakes = self.generate_from(self.latents(number), labels)
            differences = self.discriminator(fakes, labels) - self.discriminator(real, labels)
            torch.testing.assert_close(terms["generator"], (1 + (-differences).exp()).log().mean())
            seen.append((real, labels))
            return terms

    seen, data = [], batches(4, size=6, num_classes=3)
    model = make(Watched, loss=RelativisticPairing(), num_classes=3, n_critic=2, micro_batches=micro_batches)
    calls = []
    model.generator.register_forward_hook(lambda _, inputs, output: calls.append(inputs[1]))
    fit(model, data)
    for i, name in enumerate(("image", "label")):
        assert torch.equal(torch.cat([pair[i] for pair in seen]), torch.cat([batch[name] for batch in data[1::2]]))
    assert torch.equal(torch.cat(calls[:micro_batches]), data[0]["label"])  # the critic's fakes have those classes too


def test_pictures_are_judged_beside_the_generator_s_fakes_only_where_its_loss_is_of_pairs():
    for loss, expected in ((Hinge(), [8, 4]), (RelativisticPairing(), [8, 4, 4])):
        calls = []
        model = make(loss=loss)
        model.discriminator.register_forward_hook(
            lambda _, inputs, output, to=calls: to.append((len(output), output.requires_grad))
        )
        fit(model, batches(1))
        assert [size for size, _ in calls] == expected
        assert [graph for _, graph in calls] == [True, True, False][: len(expected)]


def test_pairs_need_as_many_fakes_as_pictures():
    with pytest.raises(ValueError, match=r"RelativisticPairing compares each fake.*generator_batch_factor=2"):
        make(loss=RelativisticPairing(), generator_batch_factor=2)


@pytest.mark.parametrize("form", ["dictionary", "pair", "list of one", "tensor"])
def test_batches_of_any_usual_form(form):
    (batch,) = batches(1)
    image = batch["image"]
    given = {"dictionary": batch, "pair": (image, torch.zeros(4)), "list of one": [image], "tensor": image}[form]
    recorder = Recorder()
    fit(make(), [given], [recorder])
    assert recorder.moves == "DG"


# -- schedules ------------------------------------------------------------------------------------------------------


def test_the_rate_falls_with_generator_updates_and_ends_at_exactly_zero():
    for settings in ({"max_steps": 4, "max_epochs": -1}, {"max_epochs": 2}):
        recorder = Recorder()
        t = fit(make(n_critic=5, decay_start=0), batches(10), [recorder], **settings)
        assert t.global_step == 4
        assert recorder.moves == "DDDDDG" * 4
        # The whole cycle at one rate, critic and generator alike.
        expected = [share for share in (1, 0.75, 0.5, 0.25) for _ in range(6)]
        assert [rate / 2e-4 for rate in recorder.rates] == pytest.approx(expected)
        assert [group["lr"] for optimizer in t.optimizers for group in optimizer.param_groups] == [0, 0]


def test_epochs_that_are_no_multiple_of_the_cycle_are_planned_over_their_joints():
    """2 epochs of 7 batches are 14 critic updates, 4 generator updates and 2 critic updates that come to nothing."""
    recorder = Recorder()
    t = fit(make(n_critic=3, decay_start=0), batches(7), [recorder], max_epochs=2)
    assert t.global_step == 4
    assert recorder.rates[-3] == pytest.approx(2e-4 / 4)
    assert t.optimizers[0].param_groups[0]["lr"] == 0
    # The fewer of max_steps and max_epochs end the run.
    for steps in (3, 40):
        t = fit(make(n_critic=3, decay_start=0), batches(7), max_epochs=2, max_steps=steps)
        assert t.optimizers[1].param_groups[0]["lr"] == 0


@pytest.mark.parametrize("n_critic", [1, 2, 5])
def test_steps_in_a_number_of_batches(n_critic):
    model = make(n_critic=n_critic)
    assert [model.steps_in(batches) for batches in range(12)] == [batches // n_critic for batches in range(12)]


def test_a_run_that_ends_before_the_generator_s_first_update_is_refused():
    with pytest.raises(
        ValueError, match=r"the run has 4 training batches.* comes with batch 5 \(n_critic\)\. Train on"
    ):
        fit(make(n_critic=5), batches(2), max_epochs=2)
    assert fit(make(n_critic=4), batches(2), max_epochs=2).global_step == 1


def test_a_development_run_updates_both_players_at_the_rates_of_a_step():
    recorder = Recorder()
    model = make(n_critic=5, decay_start=0.5)
    assert fit(model, batches(2), [recorder], fast_dev_run=2).global_step == 2
    assert recorder.moves == "DGDG"
    assert recorder.rates == [2e-4] * 4


def test_two_rates_and_optimizers_of_the_user_s_own():
    t = fit(make(learning_rate=1e-3, discriminator_learning_rate=4e-3), batches(1))
    assert [optimizer.param_groups[0]["lr"] for optimizer in t.optimizers] == [1e-3, 4e-3]
    model = make(generator_optimizer=functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9), decay_start=0)
    t = fit(model, batches(2))
    assert isinstance(t.optimizers[0], torch.optim.SGD)
    assert t.optimizers[0].param_groups[0]["momentum"] == 0.9
    assert isinstance(t.optimizers[1], torch.optim.Adam)
    assert {id(p) for p in t.optimizers[0].param_groups[0]["params"]} == {id(p) for p in model.generator.parameters()}
    assert {id(p) for p in t.optimizers[1].param_groups[0]["params"]} == {
        id(p) for p in model.discriminator.parameters()
    }


def test_what_is_logged_stands_at_the_step_it_belongs_to(tmp_path):
    """Also the generator's loss, which most batches do not have."""
    fit(make(n_critic=3), batches(12), logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Lightning repeats the last known value of what a batch did not have, at the step that it is of.
    generator = dict.fromkeys((int(row["step"]), row["train/generator"]) for row in rows if row["train/generator"])
    assert [step for step, _ in generator] == [1, 2, 3, 4]
    critic = [(int(row["step"]), row["train/discriminator"]) for row in rows if row["train/discriminator"]]
    assert [step for step, _ in critic] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    assert len(set(critic)) == 12


def test_names_of_checkpoints_count_generator_updates(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    fit(make(n_critic=3), batches(14), [saving], enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt"]
    checkpoints = [torch.load(path, weights_only=True) for path in sorted(tmp_path.iterdir())]
    assert [checkpoint["images_seen"] for checkpoint in checkpoints] == [4 * 3 * 2, 4 * 3 * 4]


# -- a stop anywhere ------------------------------------------------------------------------------------------------


def points(**settings):
    return GridOfGaussians(
        **{"num_train": 20, "num_val": 4, "num_test": 4, "batch_size": 4, "num_workers": 0, **settings}
    )


def play(model, steps, callbacks=(), ckpt_path=None):
    t = trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), limit_val_batches=0)
    t.fit(model, datamodule=points(), ckpt_path=ckpt_path)
    return t


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 8])
def test_a_stop_between_two_critic_updates_changes_nothing(tmp_path, stop):
    """3 critic updates a step and 5 batches an epoch: the stops lie within cycles, at their ends and at an epoch's."""

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == stop:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def fresh(seed):
        pl.seed_everything(seed, verbose=False)
        return make(
            n_critic=3, decay_start=0, instance_noise=InstanceNoise(0.1, 3), loss=LabelFlipping(NonSaturating())
        )

    through = play(fresh(0), 4, [Save()])
    middle = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert middle["critic_updates"] == stop % 3
    assert middle["global_step"] == stop // 3
    assert middle["images_seen"] == 4 * stop
    again = play(fresh(1), 4, ckpt_path=tmp_path / "middle.ckpt")
    assert again.global_step == through.global_step == 4
    expected, found = (t.lightning_module.state_dict() for t in (through, again))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert again.lightning_module.images_seen == 12 * 4
    for mine, theirs in zip(again.optimizers, through.optimizers, strict=True):
        for key, state in theirs.state_dict()["state"].items():
            assert all(torch.equal(mine.state_dict()["state"][key][name], value) for name, value in state.items())


def test_a_run_stopped_by_time_between_critic_updates_goes_on_exactly(tmp_path):
    """The checkpoint for going on is the one of the last generator update; what came after it is done again."""

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            trainer.should_stop |= trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 7  # as Timer does

    def run(folder, callbacks=(), ckpt_path=None):
        pl.seed_everything(0 if ckpt_path is None else 1, verbose=False)
        t = Trainer(accelerator="cpu", max_steps=4, max_epochs=-1, callbacks=[LastCheckpoint(2), *callbacks],
                    default_root_dir=folder, limit_val_batches=0, enable_progress_bar=False,
                    enable_model_summary=False)  # fmt: skip
        t.fit(make(n_critic=3), datamodule=points(), ckpt_path=ckpt_path)
        (path,) = folder.rglob("last.ckpt")
        return path

    through = torch.load(run(tmp_path / "through"), weights_only=True)["state_dict"]
    middle = run(tmp_path / "stopped", [Stop()])
    assert torch.load(middle, weights_only=True)["global_step"] == 2
    again = torch.load(run(tmp_path / "again", ckpt_path=middle), weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], tensor) for name, tensor in through.items())


# -- losses, penalties and tricks -----------------------------------------------------------------------------------


def test_a_lazy_penalty_comes_in_every_kth_batch_and_is_k_times_as_strong():
    always, lazy = Recorder(), Recorder()
    for recorder, interval in ((always, 1), (lazy, 3)):
        pl.seed_everything(0, verbose=False)
        still = functools.partial(torch.optim.SGD, lr=0.0)
        model = make(penalties=[R1(2.0, interval=interval)], discriminator_optimizer=still, generator_optimizer=still)
        fit(model, batches(7), [recorder], log_every_n_steps=1)
    new = [lazy.terms[i]["R1"] / always.terms[i]["R1"] for i in (0, 3, 6)]
    assert new == pytest.approx([3, 3, 3])
    # What is logged between is the value before it.
    assert [lazy.terms[i]["R1"] for i in (1, 2, 4)] == [lazy.terms[i]["R1"] for i in (0, 0, 3)]


def test_a_lazy_penalty_costs_nothing_between():
    calls = []

    class Counting(GAN):
        def penalty_losses(self, discriminator, real, fake):
            losses = super().penalty_losses(discriminator, real, fake)
            calls.append(sorted(losses))
            return losses

    fit(make(Counting, penalties=[R1(interval=2), GradientPenalty(), R1()]), batches(4))
    assert calls == [["GradientPenalty", "R1", "R1_2"], ["GradientPenalty", "R1_2"]] * 2


def test_instance_noise_is_on_all_that_the_discriminator_sees_and_anneals_with_generator_updates():
    seen, steps = [], []

    class Watched(GAN):
        def noisy(self, images):
            noisy = super().noisy(images)
            seen.append((noisy - images).std().item())
            steps.append(self.trainer.global_step)
            return noisy

    fit(make(Watched, n_critic=2, instance_noise=InstanceNoise(0.5, anneal_steps=2)), batches(6, size=2000))
    # Real and fake of two critic updates, then the generator's fakes: at each of steps 0, 1 and 2.
    assert steps == [0] * 5 + [1] * 5 + [2] * 5
    assert seen == pytest.approx([0.5] * 5 + [0.25] * 5 + [0.0] * 5, rel=0.05)


def test_the_penalty_is_taken_where_the_discriminator_looks():
    """With instance noise that is at noisy pictures; with labels at their labels."""
    given = []

    class Watched(GAN):
        def penalty_losses(self, discriminator, real, fake):
            given.append((discriminator(real), self.discriminator(real, self.real_labels)))
            return super().penalty_losses(discriminator, real, fake)

        def discriminator_losses(self, real, labels):
            self.real_labels = labels
            return super().discriminator_losses(real, labels)

    fit(make(Watched, num_classes=3, penalties=[R1()]), batches(2, num_classes=3))
    assert len(given) == 2
    assert all(torch.equal(*pair) for pair in given)


def test_labels_go_with_their_pictures():
    """The discriminator sees real pictures with their labels and fakes with the labels they were made from."""
    pairs, made = [], []

    class Watched(GAN):
        def generate_from(self, latents, labels):
            images = super().generate_from(latents, labels)
            made.append((images.detach(), labels))
            return images

    model = make(Watched, num_classes=5)
    del made[:]  # the constructor's check
    model.discriminator.register_forward_pre_hook(lambda _, inputs: pairs.append([t.detach() for t in inputs]))
    (batch,) = batches(1, size=64, num_classes=5)
    fit(model, [batch])
    (images, labels), (judged, judged_labels) = pairs
    (fake, fake_labels), (new, new_labels) = made
    assert torch.equal(images, torch.cat([batch["image"], fake]))
    assert torch.equal(labels, torch.cat([batch["label"], fake_labels]))
    assert torch.equal(judged, new)
    assert torch.equal(judged_labels, new_labels)
    # Fakes are of all classes, whatever those of the batch, and new ones each time.
    assert set(fake_labels.tolist()) == set(range(5))
    assert not torch.equal(fake_labels, new_labels)
    assert not torch.equal(fake_labels, batch["label"])


def test_a_model_without_classes_leaves_labels_out():
    fit(make(), batches(1, num_classes=3))
    assert make().random_labels(3) is None


CONDITIONAL = {
    "perceptrons": (GAN, GENERATOR, DISCRIMINATOR, SHAPE),
    "concatenation": (
        DCGAN,
        functools.partial(DCGANGenerator, filters=2),
        functools.partial(DCGANDiscriminator, filters=2),
        (3, 8, 12),
    ),
    "conditional batch norm and projection": (
        SNGAN,
        functools.partial(ResidualGenerator, filters=2),
        functools.partial(ResidualDiscriminator, filters=2, spectral_norm="reshape"),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_conditional_forms_learn_from_labels_and_draw_by_them(kind):
    cls, generator, discriminator, shape = CONDITIONAL[kind]
    torch.manual_seed(0)
    settings = {"latent_size": 3, "n_critic": 1, "learning_rate": 1e-2}
    model = cls(shape, generator, discriminator, num_classes=4, **settings)
    data = [{"image": torch.rand(8, *shape) * 2 - 1, "label": torch.arange(8) % 4} for _ in range(3)]
    fit(model, data)
    latents = torch.randn(1, 3).expand(4, 3)
    images = model.generate(latents, torch.arange(4))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(images, 2))
    torch.testing.assert_close(model.generate(latents, 2), images[2:3].expand(4, *shape), rtol=1e-4, atol=1e-5)
    scores = model.discriminator(data[0]["image"][:1].expand(4, *shape), torch.arange(4))
    assert len(scores.unique()) == 4
    # Without a wish, all classes alike.
    draw = torch.Generator().manual_seed(3)
    mixed = model.sample(6, generator=draw)
    expected = model.sample(6, labels=torch.arange(6) % 4, generator=draw.manual_seed(3))
    assert torch.equal(mixed, expected)


# -- evaluation -----------------------------------------------------------------------------------------------------


def test_validation_logs_the_held_out_loss_and_leaves_training_as_it_was():
    class Watched(DCGAN):
        def validation_step(self, batch, batch_idx):
            state = torch.get_rng_state()
            super().validation_step(batch, batch_idx)
            assert torch.equal(torch.get_rng_state(), state)

    def run(**settings):
        pl.seed_everything(0, verbose=False)
        model = Watched((1, 8, 8), SMALL[DCGAN]["generator"], SMALL[DCGAN]["discriminator"])
        t = trainer(max_epochs=2, num_sanity_val_steps=0, **settings)
        draw = torch.Generator().manual_seed(5)
        train, held_out = ([torch.rand(4, 1, 8, 8, generator=draw) for _ in range(3)] for _ in range(2))
        t.fit(model, DataLoader(train, batch_size=None), DataLoader(held_out, batch_size=None))
        return model, t, held_out

    with_validation, t, held_out = run(val_check_interval=1)
    without, _, _ = run(limit_val_batches=0)
    for name, tensor in without.state_dict().items():  # batch norm's statistics too
        assert torch.equal(with_validation.state_dict()[name], tensor)
    # The mean over held-out batches of the discriminator's loss in evaluation mode, against the same fakes each time.
    model, expected = with_validation.eval(), []
    for i, real in enumerate(held_out):
        noise = torch.rand(4, 100, generator=torch.Generator().manual_seed(i)) * 2 - 1
        with torch.no_grad():
            scores = model.discriminator(real), model.discriminator(model.generator(noise))
        expected.append(NonSaturating().discriminator(*scores))
    assert t.callback_metrics["val/discriminator"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    (result,) = trainer().test(model, DataLoader(held_out, batch_size=None), verbose=False)
    assert result["test/discriminator"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_prediction_is_as_many_samples_as_the_batch_has_pictures():
    model = make()
    first, second = (trainer().predict(model, DataLoader([torch.zeros(n, *SHAPE) for n in (2, 5)], batch_size=None))
                     for _ in range(2))  # fmt: skip
    assert [len(images) for images in first] == [2, 5]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- pictures from noise --------------------------------------------------------------------------------------------


def test_it_can_what_it_says():
    model = make()
    assert isinstance(model, Samples)
    assert isinstance(model, HasLatents)
    assert not isinstance(model, Translates)


@pytest.mark.parametrize(("distribution", "moments"), [("uniform", (1 / 3, 1.0)), ("normal", (1.0, 3.5))])
def test_latents_come_from_the_prior(distribution, moments):
    model = make(latent_distribution=distribution, latent_size=16)
    torch.manual_seed(0)
    for latents in (model.latents(4000), model.draw_latents(4000, torch.Generator().manual_seed(0))):
        assert latents.shape == (4000, 16)
        assert latents.mean().item() == pytest.approx(0, abs=0.02)
        assert latents.var().item() == pytest.approx(moments[0], rel=0.02)  # of U(-1, 1): 1/3
        assert (latents.abs().max() <= 1) == (distribution == "uniform")
        assert latents.abs().max() >= moments[1] * 0.99


def test_many_samples_are_made_in_parts_that_do_not_show():
    model = make().eval()
    sizes = []
    model.generator.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    latents = model.draw_latents(256 + 3, torch.Generator().manual_seed(0))
    images = model.generate(latents)
    assert sizes == [256, 3]
    with torch.no_grad():
        torch.testing.assert_close(images, model.generator(latents))
    assert torch.equal(images, model.sample(256 + 3, generator=torch.Generator().manual_seed(0)))


def test_samples_go_by_the_running_statistics_and_leave_them_alone():
    model = DCGAN((1, 8, 8), SMALL[DCGAN]["generator"], SMALL[DCGAN]["discriminator"])
    fit(model, [torch.rand(4, 1, 8, 8)])
    model.train()
    model.generator.layers[3].eval()
    modes = [module.training for module in model.modules()]
    before = deepcopy(model.state_dict())
    latents = model.draw_latents(5)
    together, alone = model.generate(latents), torch.cat([model.generate(latent) for latent in latents.split(1)])
    torch.testing.assert_close(together, alone)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- bad input ------------------------------------------------------------------------------------------------------


class WrongShape(nn.Module):
    def __init__(self, image_shape, latent_size):
        super().__init__()
        self.layer = nn.Linear(latent_size, 3)

    def forward(self, latents):
        return self.layer(latents)[:, :, None, None]


class OneScore(nn.Module):
    def __init__(self, image_shape):
        super().__init__()
        self.layer = nn.Linear(math.prod(image_shape), 1)

    def forward(self, images):
        return self.layer(images.flatten(1)).mean()


class Blind(nn.Module):
    def __init__(self, image_shape):
        super().__init__()
        self.score = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.score.expand(len(images))


class OwnWidth(WrongShape):
    """Does not care for the width it is given."""

    def __init__(self, image_shape, latent_size):
        super().__init__(image_shape, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_critic": 0}, "n_critic must be at least 1, got 0"),
        ({"n_critic": -5}, "n_critic must be at least 1, got -5"),
        ({"generator_batch_factor": 0}, "generator_batch_factor must be at least 1, got 0"),
        ({"latent_size": 0}, "latent_size must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, or null for a model without labels; got 0"),
        ({"latent_distribution": "cauchy"}, "latent_distribution must be 'normal' or 'uniform', got 'cauchy'"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"discriminator_learning_rate": 0}, "discriminator_learning_rate must be above 0, .* got 0"),
        ({"decay_start": 2}, r"decay_start is a share of the run, in \[0, 1\]; got 2"),
        (
            {"generator": WrongShape},
            r"generator WrongShape makes pictures of shape \(3, 1, 1\) from latents of width 3; the data has "
            r"image_shape \(2, 1, 1\)",
        ),
        ({"discriminator": OneScore}, r"discriminator OneScore must give scores \[N, ...\], but .* the shape \(\)"),
        ({"image_shape": (2, 1)}, r"image_shape must be \(channels, height, width\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_settings_that_make_no_game_are_refused_when_it_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        GAN(
            **{"image_shape": SHAPE, "generator": GENERATOR, "discriminator": DISCRIMINATOR, "latent_size": 3}
            | settings
        )


def test_latents_of_the_wrong_width():
    model = make()
    for latents in (torch.zeros(2, 4), torch.zeros(3), torch.zeros(2, 3, 1)):
        with pytest.raises(ValueError, match=r"Latents must be \[N, 3\] for this GAN, got \[[\d, ]+\]"):
            model.generate(latents)
    with pytest.raises(ValueError, match=r"OwnWidth .*latents of width 3"):
        make(generator=OwnWidth)


def test_labels_without_classes_and_out_of_range():
    model = make()
    for draw in (lambda: model.sample(2, labels=0), lambda: model.generate(torch.zeros(2, 3), torch.zeros(2).long())):
        with pytest.raises(ValueError, match=r"This GAN has no classes \(num_classes\), but labels were given"):
            draw()
    model = make(num_classes=3)
    for labels in (3, -1, torch.tensor([0, 3])):
        with pytest.raises(ValueError, match=r"Labels must lie in 0 \.\. 2 for num_classes=3; got .*\d \.\. -?\d"):
            model.sample(2, labels=labels)
    with pytest.raises(ValueError, match=r"one for all, got \[3\] for 2 pictures"):
        model.sample(2, labels=torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"num_classes=3, but no labels were given\. Give them"):
        model.generate(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"one for all, got \[2\] for 3 pictures"):
        model.generate(torch.zeros(3, 3), torch.zeros(2).long())
    with pytest.raises(ValueError, match="num_samples must be 0 or more, got -1"):
        model.sample(-1)
    # In training too: labels that are not there, and labels of other data.
    with pytest.raises(ValueError, match=r"num_classes=3, but no labels were given.*leave num_classes out"):
        fit(make(num_classes=3), batches(1))
    with pytest.raises(ValueError, match=r"Labels must lie in 0 \.\. 2 for num_classes=3"):
        fit(make(num_classes=3), [(torch.zeros(2, *SHAPE), torch.tensor([1, 3]))])


def test_data_whose_labels_are_an_option_is_asked_for_them(tmp_path):
    for i in range(3):
        Image.new("L", (2, 2)).save(tmp_path / f"{i}.png")
    pictures = ImageFolder(tmp_path, image_size=2, channels=1)
    for model, data, words in (
        (
            make(num_classes=3),
            points(side=2),
            r"GridOfGaussians has no labels\. Give it --data.labelled true, or leave",
        ),
        (GAN((1, 2, 2), num_classes=3), pictures, r"ImageFolder has no labels\. Give it --data.labels true, or leave"),
    ):
        with pytest.raises(ValueError, match=words):
            trainer(max_steps=1).fit(model, datamodule=data)


def test_the_data_s_number_of_classes():
    data = points(side=2, labelled=True)
    with pytest.raises(ValueError, match="The model has num_classes=3, but GridOfGaussians has 4 classes"):
        trainer(max_steps=1).fit(make(num_classes=3), datamodule=data)
    trainer(max_steps=1, limit_val_batches=0).fit(make(num_classes=4), datamodule=points(side=2, labelled=True))


def test_data_of_another_shape_or_form():
    with pytest.raises(ValueError, match=r"pictures of shape \(3, 1, 1\), but this GAN .* image_shape \(2, 1, 1\)"):
        fit(make(), [torch.zeros(2, 3, 1, 1)])
    with pytest.raises(ValueError, match=r"'image' \(and 'label'\), a pair .* got keys \['A', 'B'\]"):
        fit(make(), [{"A": torch.zeros(2, *SHAPE), "B": torch.zeros(2, *SHAPE)}])


def test_a_batch_of_one_with_batch_norm():
    def small():
        return DCGAN((1, 8, 8), SMALL[DCGAN]["generator"], SMALL[DCGAN]["discriminator"])

    with pytest.raises(ValueError, match=r"A batch of one picture gives batch norm nothing .* Raise data\.batch_size"):
        fit(small(), [torch.zeros(1, 1, 8, 8)])
    fit(make(), batches(1, size=1))  # without batch norm one is enough
    trainer().test(small(), DataLoader([torch.zeros(1, 1, 8, 8)], batch_size=None), verbose=False)


def test_a_piece_of_one_with_batch_norm():
    model = DCGAN((1, 8, 8), SMALL[DCGAN]["generator"], SMALL[DCGAN]["discriminator"], micro_batches=2)
    with pytest.raises(ValueError, match=r"A piece \(micro_batches=2\) of one picture gives batch norm nothing"):
        fit(model, [torch.zeros(3, 1, 8, 8)])


def test_a_penalty_on_a_critic_that_ignores_its_input():
    with pytest.raises(ValueError, match="GradientPenalty: the discriminator's scores do not depend on its input"):
        fit(make(WGANGP, discriminator=Blind), batches(5))


def test_batch_norm_under_a_gradient_penalty():
    for penalty in (GradientPenalty(), R1()):
        with pytest.raises(ValueError, match=r"^DCGAN: a penalty .* without batch norm.*Choose another norm"):
            DCGAN((1, 16, 16), discriminator=functools.partial(DCGANDiscriminator, filters=2), penalties=[penalty])
    with pytest.raises(ValueError, match=r"^WGANGP: a penalty"):
        WGANGP((1, 8, 8), discriminator=functools.partial(ResidualDiscriminator, filters=2, norm="batch"))


class MinibatchDeviation(nn.Module):
    """The deviation over the samples of a call beside each one's numbers, as in 1710.10196."""

    ties_samples = True

    def __init__(self, image_shape):
        super().__init__()
        self.layer = nn.Linear(math.prod(image_shape) + 1, 1)

    def forward(self, images):
        points = images.flatten(1)
        deviation = points.std(dim=0, correction=0).mean()
        return self.layer(torch.cat([points, deviation.expand(len(points), 1)], dim=1)).squeeze(1)


def test_statistics_of_a_minibatch_may_stand_under_a_gradient_penalty_and_see_one_kind_of_pictures():
    sizes = []
    for penalty in (GradientPenalty(), R1()):
        model = make(discriminator=MinibatchDeviation, penalties=[penalty])
        model.discriminator.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
        fit(model, batches(1, size=4))
    assert sizes == [4, 4, 4, 4] * 2  # real, fake, the penalty's points; and the generator's


def test_parts_are_looked_at_without_computing_what_they_give_and_not_at_all_when_loaded(tmp_path):
    seen = []

    class Telling(MLPGenerator):
        def forward(self, latents, labels=None):
            seen.append(latents.device.type)
            return super().forward(latents, labels)

    class Drawing(Telling):
        def forward(self, latents, labels=None):
            return super().forward(latents + torch.randn(len(latents), 1), labels)

    make(generator=functools.partial(Telling, widths=[4]))
    assert seen == ["meta"]
    make(generator=functools.partial(Drawing, widths=[4]))  # adds numbers that are on the CPU
    assert seen == ["meta", "cpu"]
    calls = []
    handle = register_module_forward_pre_hook(lambda module, inputs: calls.append(module))
    try:
        model = make()
        assert calls
        calls.clear()
        t = fit(model, batches(1))
        t.save_checkpoint(tmp_path / "a.ckpt")
        calls.clear()
        GAN.load_from_checkpoint(tmp_path / "a.ckpt")
        assert not calls
    finally:
        handle.remove()


def test_clipping_together_with_spectral_norm():
    normalised = functools.partial(DISCRIMINATOR, spectral_norm="reshape")
    for constraint in (WeightClipping(), None):  # None is clipping in WGAN
        with pytest.raises(ValueError, match=r"^WGAN: WeightClipping and spectral norm .* Choose one of them"):
            make(WGAN, discriminator=normalised, constraint=constraint)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stays(tmp_path):
    class Broken(GAN):
        def generator_losses(self, num_fakes):
            losses = super().generator_losses(num_fakes)
            return {n: term * (math.nan if self.trainer.global_step == 3 else 1) for n, term in losses.items()}

    t = Trainer(accelerator="cpu", max_steps=6, callbacks=[LastCheckpoint(2)], default_root_dir=tmp_path,
                limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with pytest.raises(NonFiniteLossError, match=r"^train/generator became NaN .* after 3 generator updates"):
        t.fit(make(Broken, n_critic=2), datamodule=points())
    (path,) = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point())


# -- hyper-parameters -----------------------------------------------------------------------------------------------


SMALL = {
    GAN: {
        "image_shape": SHAPE,
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "loss": LabelSmoothing(LabelFlipping(NonSaturating(), 0.1), real=0.2),
        "instance_noise": InstanceNoise(0.2, 7),
        "generator_optimizer": functools.partial(torch.optim.SGD, lr=0.25, momentum=0.5),
        "penalties": [R1(3.0, interval=2)],
        "num_classes": 3,
        "betas": (0.1, 0.2),
    },
    DCGAN: {
        "image_shape": (1, 8, 8),
        "generator": functools.partial(DCGANGenerator, filters=2),
        "discriminator": functools.partial(DCGANDiscriminator, filters=2),
        "loss": Hinge(),
        "n_critic": 2,
    },
    LSGAN: {
        "image_shape": (1, 8, 8),
        "generator": functools.partial(DCGANGenerator, filters=2),
        "discriminator": functools.partial(DCGANDiscriminator, filters=2),
        "loss": LeastSquares(-1.0, 1.0, 0.0),
    },
    WGAN: {
        "image_shape": SHAPE,
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "constraint": WeightClipping(0.5, normalization=False),
        "warmup_critic_updates": 7,
        "latent_size": 4,
    },
    WGANGP: {
        "image_shape": SHAPE,
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "penalties": [GradientPenalty(2.0, one_sided=True)],
        "generator_batch_factor": 3,
        "channels_last": False,
    },
    SNGAN: {
        "image_shape": (1, 8, 8),
        "generator": functools.partial(ResidualGenerator, filters=2),
        "discriminator": functools.partial(ResidualDiscriminator, filters=2, spectral_norm="convolution"),
        "num_classes": 2,
        "n_critic": 1,
    },
    FGAN: {
        "image_shape": SHAPE,
        "generator": GENERATOR,
        "discriminator": DISCRIMINATOR,
        "divergence": "reverse_kl",
        "generator_loss": "alternative",
        "n_critic": 2,
    },
}


@pytest.mark.parametrize("cls", FAMILY)
def test_a_checkpoint_is_enough(tmp_path, cls):
    model = cls(**SMALL[cls])
    shape, classes = SMALL[cls]["image_shape"], model.num_classes
    images = torch.rand(4, *shape) * 2 - 1
    t = fit(model, [(images, torch.arange(4) % classes) if classes else images] * 2, max_steps=1, max_epochs=-1)
    t.save_checkpoint(tmp_path / "a.ckpt")
    for through in (GenerativeModule, cls):
        loaded = through.load_from_checkpoint(tmp_path / "a.ckpt")
        assert type(loaded) is cls
        assert loaded.hparams == model.hparams
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
        for name in ("loss", "penalties", "constraint", "instance_noise", "n_critic", "num_classes", "latent_size",
                     "generator_batch_factor", "betas", "decay_start", "learning_rates",
                     "latent_distribution"):  # fmt: skip
            assert getattr(loaded, name) == getattr(model, name)
        if cls is GAN:
            (optimizers, _) = loaded.configure_optimizers()
            assert (optimizers[0].defaults["lr"], optimizers[0].defaults["momentum"]) == (0.25, 0.5)
        draw = torch.Generator().manual_seed(0)
        expected = model.sample(3, generator=draw)
        torch.testing.assert_close(loaded.sample(3, generator=draw.manual_seed(0)), expected)
    again = cls(**SMALL[cls])
    fit(again, [(images, torch.arange(4) % classes) if classes else images] * 9, max_steps=2, max_epochs=-1)


@pytest.mark.parametrize("cls", FAMILY)
def test_a_typo_is_refused_by_name(cls):
    with pytest.raises(TypeError, match="n_critics"):
        cls(**SMALL[cls], n_critics=2)


@pytest.mark.parametrize("cls", FAMILY)
def test_image_shape_alone_is_enough(cls):
    model = cls((3, 16, 16))
    assert model.sample(2).shape == (2, 3, 16, 16)


def from_yaml(settings):
    from jsonargparse import ArgumentParser

    import lightning_gen.data
    import lightning_gen.losses.constraints
    import lightning_gen.networks  # noqa: F401

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(GenerativeModule, "model")
    return parser.instantiate_classes(parser.parse_object({"model": settings})).model


def test_tricks_optimizers_and_networks_by_their_short_names_in_yaml():
    model = from_yaml(
        {
            "class_path": "WGANGP",
            "init_args": {
                "image_shape": [2, 1, 1],
                "generator": {"class_path": "MLPGenerator", "init_args": {"widths": [4]}},
                "discriminator": {"class_path": "MLPDiscriminator", "init_args": {"widths": [4], "maxout": 1}},
                "loss": {
                    "class_path": "LabelSmoothing",
                    "init_args": {
                        "loss": {
                            "class_path": "LabelFlipping",
                            "init_args": {"loss": {"class_path": "NonSaturating"}, "probability": 0.25},
                        },
                        "fake": 0.1,
                    },
                },
                "instance_noise": {"std": 0.3, "anneal_steps": 10},
                "constraint": {"class_path": "WeightClipping", "init_args": {"bound": 0.3}},
                "penalties": [{"class_path": "R1", "init_args": {"interval": 4}}],
                "discriminator_optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
                "n_critic": 2,
                "num_classes": 4,
                "latent_distribution": "uniform",
                "compile": False,
            },
        }
    )
    assert type(model) is WGANGP
    assert model.loss == LabelSmoothing(LabelFlipping(NonSaturating(), 0.25), fake=0.1)
    assert model.instance_noise == InstanceNoise(0.3, 10)
    assert model.constraint == WeightClipping(0.3)
    assert model.penalties == [R1(interval=4)]
    assert (model.n_critic, model.num_classes, model.latent_distribution) == (2, 4, "uniform")
    fit(model, [{"image": torch.zeros(2, 2, 1, 1), "label": torch.tensor([0, 3])}] * 2, max_epochs=1)
    assert isinstance(model.optimizers()[1].optimizer, torch.optim.SGD)


@pytest.mark.parametrize("cls", FAMILY)
def test_a_typo_in_yaml_is_refused_by_name(cls):
    from jsonargparse import ArgumentError

    with pytest.raises(ArgumentError, match="n_critics"):
        from_yaml({"class_path": cls.__name__, "init_args": {"image_shape": [2, 1, 1], "n_critics": 2}})


# -- compilation and precision --------------------------------------------------------------------------------------


@pytest.fixture
def quick_compile(monkeypatch):
    """`Module.compile` without the code generator, keeping a list of what was compiled."""
    compiled, compile = [], nn.Module.compile

    def quick(self, *args, **kwargs):
        compiled.append(self)
        compile(self, *args, backend="aot_eager", **kwargs)

    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", quick)
    yield compiled
    torch._dynamo.reset()


DESCENT = functools.partial(torch.optim.SGD, lr=0.1)  # Adam would make whole steps of gradients that are rounding


@pytest.mark.parametrize(
    "settings", [{"num_classes": 2}, {"penalties": [GradientPenalty()]}], ids=["conditional", "penalised"]
)
def test_compiled_steps_equal_eager_ones_and_the_critic_under_a_penalty_stays_as_it_is(quick_compile, settings):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    models = []
    for compile in (False, True):
        pl.seed_everything(0, verbose=False)
        network = functools.partial(ResidualDiscriminator, filters=2, spectral_norm="reshape")
        optimizers = {"generator_optimizer": DESCENT, "discriminator_optimizer": DESCENT}
        model = SNGAN((1, 8, 8), functools.partial(ResidualGenerator, filters=2), network, latent_size=3, n_critic=2,
                      decay_start=1, compile=compile, **optimizers, **settings)  # fmt: skip
        fit(model, [(images, torch.arange(4) % 2)] * 2)
        models.append(model)
    eager, compiled = models
    expected = [compiled.generator, *([] if "penalties" in settings else [compiled.discriminator])]
    assert [id(m) for m in quick_compile] == [id(m) for m in expected]
    assert list(compiled.state_dict()) == list(eager.state_dict())
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", FAMILY)
def test_it_trains_in_bfloat16_with_weights_and_penalties_in_float32(cls):
    model = cls(**SMALL[cls])
    shape, classes = model.image_shape, model.num_classes
    images = torch.rand(4, *shape) * 2 - 1
    recorder = Recorder()
    fit(model, [(images, torch.arange(4) % (classes or 1))] * 10, [recorder], precision="bf16-mixed", max_steps=2)
    assert all(math.isfinite(value) for terms in recorder.terms for value in terms.values())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert model.sample(2).dtype == torch.float32
