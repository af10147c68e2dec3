"""The average is the closed form, and who looks at the model sees it, but training does not notice."""

import functools
import math
from copy import deepcopy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.callbacks import EMA, averaged_weights
from lightning_gen.models import CycleGAN
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator
from lightning_gen.schedules import Cosine

SHAPE = (3, 16, 16)
NAMES = ["generator_AtoB", "generator_BtoA"]
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1, norm="batch")
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:You're resuming from", "ignore:Be aware that"
)


def trainer(callbacks=(), **settings):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, **settings})


class Walk(pl.LightningModule):
    """Its weights fall by 1 a step: w_n = w_0 - n."""

    def __init__(self, start=3.0):
        super().__init__()
        self.walker, self.walker_two = nn.Linear(1, 2), nn.Linear(1, 2)
        for parameter in self.parameters():
            nn.init.constant_(parameter, start)

    def training_step(self, batch, batch_idx):
        return sum(parameter.sum() for parameter in self.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def numbers(count=100):
    return DataLoader(list(range(count)), None)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_with_a_constant_decay_it_is_the_weighted_sum_of_all_weights(decay, steps):
    ema = EMA(["walker"], decay, ramp_up=False)
    trainer([ema], max_steps=steps).fit(Walk(), numbers())
    # d^n w_0 + sum_k (1 - d) d^(n - k) w_k
    expected = decay**steps * 3 + sum((1 - decay) * decay ** (steps - k) * (3 - k) for k in range(1, steps + 1))
    assert ema.updates == steps
    assert set(ema.average) == {"walker.weight", "walker.bias"}
    for average in ema.average.values():
        torch.testing.assert_close(average, torch.full_like(average, expected))


def test_the_average_of_half_precision_weights_is_precise_also_when_a_run_goes_on(tmp_path):
    """In bfloat16 a weight of 3 that has lost 0.01 is still 3."""

    class Slow(Walk):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.25)

    settings = {"precision": "bf16-true"}
    through, stopped, again = (EMA(["walker"], 0.99, ramp_up=False) for _ in range(3))
    model, first, second = Slow(), Slow(), Slow()
    trainer([through], max_steps=4, **settings).fit(model, numbers())
    expected = 0.99**4 * 3 + sum(0.01 * 0.99 ** (4 - k) * (3 - 0.25 * k) for k in range(1, 5))
    assert expected < 3
    for average in through.average.values():
        torch.testing.assert_close(average, torch.full_like(average, expected, dtype=torch.float32))
    assert model.walker.weight.dtype == torch.bfloat16

    t = trainer([stopped], max_steps=2, **settings)
    t.fit(first, numbers())
    t.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    trainer([again], max_steps=4, **settings).fit(second, numbers(), ckpt_path=tmp_path / "a.ckpt")
    assert equal(again.average, through.average)


def test_the_ramp_up_keeps_less_at_first():
    ema, decay, steps = EMA(["walker"], decay=0.3), 0.3, 20
    expected = 3.0
    for n in range(steps):
        keep = min(decay, (1 + n) / (10 + n))  # 1/10, 2/11, 3/12, then 0.3
        expected = keep * expected + (1 - keep) * (3 - (n + 1))
    trainer([ema], max_steps=steps).fit(Walk(), numbers())
    torch.testing.assert_close(ema.average["walker.bias"], torch.full((2,), expected))
    assert EMA(["walker"]).decay == 0.999
    assert expected != 3 * decay**steps + sum((1 - decay) * decay ** (steps - k) * (3 - k) for k in range(1, steps + 1))


# -- half-life ------------------------------------------------------------------------------------------------------


class Steady(pl.LightningModule):
    """Its weights become 1 at once; from 0 on, the average tells what share of the old one is left.

    It makes one update in `n_critic` batches.
    """

    def __init__(self, n_critic=1):
        super().__init__()
        self.automatic_optimization = False
        self.walker, self.n_critic = nn.Linear(1, 2), n_critic
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def training_step(self, batch, batch_idx):
        if (self.trainer.fit_loop.epoch_loop.total_batch_idx + 1) % self.n_critic == 0:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            optimizer.step()
            for parameter in self.parameters():
                nn.init.ones_(parameter)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def batches(count, size, wrap=lambda images: {"label": torch.zeros(()), "image": images}):
    return DataLoader([wrap(torch.zeros(size, 1, 1, 1)) for _ in range(count)], None)


def left(ema):
    (share,) = {round(1 - float(value), 6) for weights in ema.average.values() for value in weights.flatten()}
    return share


@pytest.mark.parametrize(
    "wrap",
    [
        lambda images: images,
        lambda images: [images, torch.zeros(5)],
        lambda images: {"paired": True, "A": images, "B": torch.zeros(7, 1)},
        lambda images: ({"image": images},),
    ],
    ids=["pictures", "pair", "dictionary", "nested"],
)
def test_after_the_half_life_half_is_left_and_after_two_a_quarter(wrap):
    for count, share in ((4, 0.5), (8, 0.25), (6, 0.5**1.5)):  # 0.1 kimg are four batches of 25
        ema = EMA(["walker"], half_life_kimg=0.1, ramp_up=False)
        trainer([ema], max_epochs=1).fit(Steady(), batches(count, 25, wrap))
        assert left(ema) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("size", [5, 10, 50])
def test_the_half_life_means_the_same_at_every_batch_size_and_n_critic(size):
    for n_critic in (1, 2):
        ema = EMA(["walker"], half_life_kimg=0.1, ramp_up=False)
        trainer([ema], max_epochs=1).fit(Steady(n_critic), batches(200 // size, size))
        assert (ema.images, ema.updates) == (200, 200 // size // n_critic)
        assert left(ema) == pytest.approx(0.25, abs=1e-6)


def test_a_model_that_counts_is_asked():
    class Counting(Steady):
        images_seen = 1000

        def training_step(self, batch, batch_idx):
            self.images_seen += len(batch["image"])
            return super().training_step(batch, batch_idx)

    ema = EMA(["walker"], half_life_kimg=0.1, ramp_up=False)
    data = batches(4, 25, lambda images: {"weights of the batch": torch.zeros(3), "image": images})
    trainer([ema], max_epochs=1).fit(Counting(), data)
    assert (ema.images, left(ema)) == (100, pytest.approx(0.5, abs=1e-6))


def test_all_ranks_count():
    ema = EMA(["walker"], half_life_kimg=0.1, ramp_up=False)
    model = Steady()
    t = trainer([ema], max_epochs=1)
    t.fit(model, batches(1, 25))

    class Two:
        world_size, global_step = 2, 9

    ema.on_train_batch_end(Two, model, None, torch.zeros(25, 1), 0)
    assert left(ema) == pytest.approx(0.5**0.25 * 0.5**0.5, abs=1e-6)


def test_the_half_life_ramps_up_with_the_pictures_seen():
    # StyleGAN2's rule, at three updates of 20 pictures: the first finds none seen and keeps nothing, then the
    # half-life is 0.05 of those seen before, and at most 100.
    ema, seen, shares = EMA(["walker"], half_life_kimg=0.1), 0, []

    class Shares(pl.Callback):
        def on_train_batch_start(self, *_):
            ema.new_images += 20
            shares.append(ema._share_kept())
            ema.new_images -= 20

    trainer([Shares(), ema], max_epochs=1).fit(Steady(), batches(200, 20))
    for share in shares:
        half_life = min(100, 0.05 * seen)
        assert share == (0.5 ** (20 / half_life) if half_life else 0)
        seen += 20
    assert shares[0] == 0
    assert shares[1] == 0.5**20
    assert shares[-1] == 0.5**0.2
    assert ema.images == 4000


def test_a_half_life_may_be_a_schedule_of_the_pictures_before_an_update_or_of_updates():
    for by, until in (("images", 40), ("steps", 4)):
        half_life, shares = Cosine(0.0, 0.02, until, by=by), []

        class Recorded(EMA):
            def _share_kept(self):
                shares.append(super()._share_kept())  # noqa: B023
                return shares[-1]  # noqa: B023

        trainer([Recorded(["walker"], half_life_kimg=half_life, ramp_up=False)], max_steps=6).fit(
            Steady(), DataLoader([torch.zeros(10, 1)] * 6, None)
        )
        # Half a cosine from 0 to 20 pictures, in batches of 10, over 4 of them.
        expected = [0.0, *(0.5 ** (10 / (10 * (1 - math.cos(math.pi * n / 4)))) for n in (1, 2, 3, 4)), 0.5**0.5]
        assert shares == pytest.approx(expected)


def test_a_half_life_goes_on_exactly_between_two_generator_updates(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.fit_loop.epoch_loop.total_batch_idx == 6:  # seven batches: one since the second update
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    def batch_list():
        return DataLoader([torch.zeros(size, 1) for size in (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25)], None)

    runs = []
    for path in (None, tmp_path / "a.ckpt"):
        ema = EMA(["walker"], half_life_kimg=0.2)
        # The loader gives out the last five batches only, as one that knows how to go on does.
        data = batch_list() if path is None else DataLoader(list(batch_list())[7:], None)
        t = trainer([ema, Save()], max_steps=4, enable_checkpointing=False)
        t.fit(Steady(3), data, ckpt_path=path)
        runs.append((ema.images, ema.new_images, ema.updates, ema.average))
        if path is None:
            saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["EMA"]
            assert saved == {"updates": 2, "last_step": 2, "images": 48, "new_images": 15}
    assert runs[0][:3] == runs[1][:3] == (168, 0, 4)
    assert equal(runs[0][3], runs[1][3])


def test_a_state_of_before_there_was_a_count_still_loads():
    ema = EMA(["walker"], half_life_kimg=1.0)
    ema.load_state_dict({"updates": 3, "last_step": 3})
    assert (ema.updates, ema.images, ema.new_images) == (3, 0, 0)


def test_a_half_life_needs_pictures_to_count():
    with pytest.raises(ValueError, match=r"a batch \(int\) holds no tensor of them"):
        trainer([EMA(["walker"], half_life_kimg=1.0)], max_steps=1).fit(Steady(), numbers())


def pictures(number=4, **extra):
    draw = torch.Generator().manual_seed(1)
    return DataLoader([{d: torch.rand(2, *SHAPE, generator=draw) for d in "AB"} | extra for _ in range(number)], None)


class Looking(CycleGAN):
    """Keeps the generators' weights as they are wherever the model is looked at."""

    def __init__(self, image_shape, fail_at=None):
        super().__init__(image_shape, GENERATOR, DISCRIMINATOR, learning_rate=0.01)
        self.looks, self.fail_at = {"val": [], "test": [], "predict": []}, fail_at

    def look(self, where):
        self.looks[where].append({n: p.detach().clone() for n, p in self.named_parameters()})

    def validation_step(self, batch, batch_idx):
        self.look("val")
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("a validation that fails")
        super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.look("test")

    def predict_step(self, batch, batch_idx):
        self.look("predict")
        return batch


def looking(**settings):
    torch.manual_seed(0)
    return Looking(SHAPE, **settings)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def weights(model, names=NAMES):
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith(tuple(names))}


def only(state, names=NAMES):
    return {n: p for n, p in state.items() if n.startswith(tuple(names))}


def test_training_does_not_notice_and_everybody_else_sees_the_average():
    without, model, ema = looking(), looking(), EMA(NAMES, 0.9)
    averages, raw = [], []

    class Witness(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):  # stands after the EMA, before the validation
            averages.append(deepcopy(ema.average))
            raw.append(weights(module, [""]))

    for m, callbacks in ((without, []), (model, [ema, Witness()])):
        # The global state, which the random state of every batch comes from, is the same for both.
        torch.manual_seed(1)
        trainer(callbacks, max_steps=4, val_check_interval=2).fit(m, pictures(), pictures(1))
    assert equal(weights(model, [""]), weights(without, [""]))
    assert all(torch.equal(b, without.get_buffer(n)) for n, b in model.named_buffers() if "metrics" not in n)

    assert len(model.looks["val"]) == 2
    for look, i in zip(model.looks["val"], (1, 3), strict=True):
        assert equal(only(look), averages[i])
        assert not equal(only(look), only(raw[i]))
        # What is not named is not averaged.
        assert equal(only(look, ["discriminator"]), only(raw[i], ["discriminator"]))

    t = trainer([ema])
    t.test(model, pictures(1), verbose=False)
    t.predict(model, pictures(1))
    t.validate(model, pictures(1), verbose=False)
    for where in ("test", "predict", "val"):
        assert equal(only(model.looks[where][-1]), averages[-1])
    assert equal(weights(model), only(raw[-1]))


def test_a_sanity_check_before_training_leaves_the_start_as_it_is():
    model, ema = looking(), EMA(NAMES, 0.9, ramp_up=False)
    start = weights(model)
    trainer([ema], max_steps=1, num_sanity_val_steps=1).fit(model, pictures(1), pictures(1))
    assert equal(only(model.looks["val"][0]), start)
    for name, average in ema.average.items():
        torch.testing.assert_close(average, 0.9 * start[name] + 0.1 * model.get_parameter(name))


def test_it_is_updated_once_a_generator_update_whatever_else_a_step_does():
    ema = EMA(NAMES, 0.9)
    trainer([ema], max_steps=3).fit(looking(), pictures())
    assert (ema.updates, ema.last_step) == (3, 3)  # though each step makes two optimizer steps

    class EverySecond(Looking):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2:
                super().training_step(batch, batch_idx)

    ema = EMA(NAMES, 0.9)
    trainer([ema], max_epochs=1, max_steps=9).fit(EverySecond(SHAPE), pictures(6))
    assert ema.updates == 3


def test_an_exception_in_validation_puts_the_raw_weights_back():
    model, through, ema = looking(fail_at=2), looking(), EMA(NAMES, 0.9)
    torch.manual_seed(1)
    trainer(max_steps=2).fit(through, pictures())
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="a validation that fails"):
        trainer([ema], max_steps=4, val_check_interval=2).fit(model, pictures(), pictures(1))
    assert not equal(only(model.looks["val"][0]), weights(through))
    assert equal(weights(model), weights(through))
    assert not ema.swapped


# -- checkpoints ----------------------------------------------------------------------------------------------------


def test_checkpoints_give_the_average_and_keep_the_raw_weights_also_while_they_are_swapped(tmp_path):
    class Save(pl.Callback):
        def on_validation_batch_end(self, trainer, module, *_):
            assert ema.swapped
            trainer.save_checkpoint(tmp_path / "swapped.ckpt")

        def on_validation_end(self, trainer, module):
            assert not ema.swapped
            trainer.save_checkpoint(tmp_path / "plain.ckpt")

    ema, model = EMA(NAMES, 0.9), looking()
    best = ModelCheckpoint(tmp_path, "best", monitor="val/psnr_AtoB", mode="max")
    t = trainer([best, ema, Save()], max_steps=2, val_check_interval=2, enable_checkpointing=True)
    t.fit(model, pictures(2), pictures(1, paired=True))
    for name in ("swapped", "plain", "best"):
        checkpoint = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert equal({n: checkpoint["state_dict"][n] for n in ema.average}, ema.average)
        assert equal(checkpoint["raw_state_dict"], weights(model))
        assert checkpoint["state_dict"].keys() == model.state_dict().keys()
        others = {n: p for n, p in checkpoint["state_dict"].items() if n not in ema.average}
        assert all(torch.equal(p, model.state_dict()[n]) for n, p in others.items() if "metrics" not in n)
        loaded = Looking.load_from_checkpoint(tmp_path / f"{name}.ckpt")
        assert equal(weights(loaded), ema.average)
        assert equal(weights(loaded, ["discriminator"]), weights(model, ["discriminator"]))


@pytest.mark.parametrize("swapped", [True, False], ids=["saved in validation", "saved after it"])
def test_going_on_equals_never_having_stopped(tmp_path, swapped):
    """Also in a new process, that is with a new model and a new callback."""

    class Save(pl.Callback):
        def save(self, trainer):
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

        def on_validation_start(self, trainer, module):
            if swapped:
                self.save(trainer)

        def on_train_epoch_end(self, trainer, module):
            if not swapped:
                self.save(trainer)

    settings = {"max_steps": 4, "check_val_every_n_epoch": 1}
    through, model = EMA(NAMES, 0.9), looking()
    trainer([through, Save()], **settings).fit(model, pictures(2), pictures(1))
    again, other = EMA(NAMES, 0.9), Looking(SHAPE)
    trainer([again], **settings).fit(other, pictures(2), pictures(1), ckpt_path=tmp_path / "a.ckpt")
    assert (again.updates, again.last_step) == (4, 4)
    assert equal(weights(other, [""]), weights(model, [""]))
    assert equal(again.average, through.average)


def fitted(path, callbacks, steps=2):
    model = looking()
    t = trainer(callbacks, max_steps=steps)
    t.fit(model, pictures())
    t.save_checkpoint(path)
    return t, model


def test_testing_a_checkpoint_after_a_run_uses_the_checkpoint_s_average(tmp_path):
    early = EMA(NAMES, 0.9)
    fitted(tmp_path / "early.ckpt", [early], steps=1)
    ema = EMA(NAMES, 0.9)
    t, model = fitted(tmp_path / "late.ckpt", [ema], steps=4)
    late = deepcopy(ema.average)
    t.test(model, pictures(1), ckpt_path=tmp_path / "early.ckpt", verbose=False)
    assert equal(only(model.looks["test"][-1]), early.average)
    t.test(model, pictures(1), ckpt_path=tmp_path / "late.ckpt", verbose=False)
    assert equal(only(model.looks["test"][-1]), late)
    # Without the callback, too: the average is what the file gives.
    other = Looking(SHAPE)
    trainer().test(other, pictures(1), ckpt_path=tmp_path / "early.ckpt", verbose=False)
    assert equal(only(other.looks["test"][-1]), early.average)


def test_a_checkpoint_without_an_average_starts_one_from_its_weights(tmp_path):
    _, saved = fitted(tmp_path / "without.ckpt", [], steps=2)
    ema = EMA(NAMES, 0.9, ramp_up=False)
    # The callback has an average of its own from an earlier run, which must not leak in.
    fitted(tmp_path / "other.ckpt", [ema], steps=3)
    model = Looking(SHAPE)
    trainer([ema], max_steps=3).fit(model, pictures(), ckpt_path=tmp_path / "without.ckpt")
    assert ema.updates == 1
    for name, average in ema.average.items():
        torch.testing.assert_close(average, 0.9 * saved.get_parameter(name) + 0.1 * model.get_parameter(name))

    t = trainer([ema])
    t.test(model, pictures(1), ckpt_path=tmp_path / "without.ckpt", verbose=False)
    assert equal(only(model.looks["test"][-1]), weights(saved))


# -- pictures -------------------------------------------------------------------------------------------------------


def test_within_averaged_weights_the_model_has_them_and_afterwards_it_has_not():
    ema, model = EMA(NAMES, 0.9), looking()
    t = trainer([ema], max_steps=2)
    t.fit(model, pictures())
    raw, average = weights(model), deepcopy(ema.average)
    with averaged_weights(t, model):
        assert equal(weights(model), average)
        with averaged_weights(t, model):  # already there
            assert equal(weights(model), average)
        assert equal(weights(model), average)
    assert equal(weights(model), raw)
    with pytest.raises(ZeroDivisionError), averaged_weights(t, model):
        _ = 1 / 0
    assert equal(weights(model), raw)
    assert equal(ema.average, average)
    with averaged_weights(trainer(), model):  # a run without an average
        assert equal(weights(model), raw)


# -- mistakes -------------------------------------------------------------------------------------------------------


def test_an_unknown_module_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no submodule 'generator'\. It has: .*generator_AtoB, generator_BtoA"):
        trainer([EMA(["generator"])], max_steps=1).fit(looking(), pictures())


def test_wrong_settings_are_refused(tmp_path):
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"decay in \[0, 1\)"):
            EMA(NAMES, decay)
    for half_life in (0, -1.0, float("inf"), float("nan"), Cosine(-1.0, 1.0, 9), Cosine(0.0, 0.0, 9)):
        with pytest.raises(ValueError, match="half_life_kimg above 0"):
            EMA(NAMES, half_life_kimg=half_life)
    with pytest.raises(ValueError, match=r"takes a decay or half_life_kimg, got both: 0.5 and 10"):
        EMA(NAMES, 0.5, half_life_kimg=10)
    with pytest.raises(ValueError, match="list of submodule names, got the string 'generator_AtoB'"):
        EMA("generator_AtoB")
    best = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(ValueError, match="hold the raw weights"):
        trainer([EMA(NAMES), best], max_steps=1, enable_checkpointing=True).fit(looking(), pictures())
