"""A discriminator that learns by heart and a generator that collapses are seen, and what is well is left in peace."""

import math
import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gen.callbacks import EMA, EarlyWarning, LastCheckpoint
from lightning_gen.callbacks.early_warning import _Examples
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import GAN, Pix2Pix
from lightning_gen.networks import MLPDiscriminator, MLPGenerator
from lightning_gen.sampling import LatentSampling
from tests.shared import trainer

SHAPE = (1, 4, 4)
OVER_FITS, ALIKE = "The discriminator over-fits: r_v is", "Samples become alike"


def noise(number, seed, mark=None):
    """Pictures of which none is like another; a mark, if any, is the first of their pixels."""
    pictures = torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    if mark is not None:
        pictures[:, 0, 0, 0] = mark
    return pictures


class Data(pl.LightningDataModule):
    def __init__(self, train, val, batch_size=16):
        super().__init__()
        self.sets, self.batch_size = {"train": train, "val": val}, batch_size

    def loader(self, split):
        return DataLoader(TensorDataset(self.sets[split]), self.batch_size, shuffle=split == "train")

    def train_dataloader(self):
        return self.loader("train")

    def val_dataloader(self):
        return self.loader("val")


class Planted(LatentSampling, GenerativeModule):
    """Its scores are the marks of pictures; fakes, whose mark is -1, are as different as `spread` says at a step."""

    def __init__(self, spread=lambda step: 1.0, shift=0.0, scale=1.0):
        super().__init__(SHAPE)
        self.weight = nn.Parameter(torch.zeros(()))
        self.latent_shape, self.latent_size, self.latent_distribution = (16,), 16, "uniform"
        self.spread, self.shift, self.scale = spread, shift, scale

    def generate_from(self, latents, labels):
        pictures = latents.view(-1, *SHAPE) * self.spread(self.trainer.global_step)
        pictures[:, 0, 0, 0] = -1
        return pictures

    def judge(self, images, labels=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        torch.rand(1)  # must not move the training
        return self.scale * images[:, 0, :1, :1] + self.shift

    def training_step(self, batch, batch_idx):
        self.log("train/chance", torch.rand(()), batch_size=1)
        return self.weight.square()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Values(pl.Callback):
    """What is logged at each validation."""

    def __init__(self):
        self.logged = []

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fitted(model, data, *callbacks, steps=4, every=1, **settings):
    """What was logged, and what was said."""
    values = Values()
    settings = {"max_steps": steps, "val_check_interval": every, "check_val_every_n_epoch": None} | settings
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(callbacks=[*callbacks, values], **settings).fit(model, datamodule=data)
    found = [str(warning.message) for warning in said]
    return values.logged, [words for words in found if OVER_FITS in words or ALIKE in words]


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (-5, 1), (3, 100)])
@pytest.mark.parametrize("held_out", [1.0, 0.7, 0.5, -1.0])
def test_how_much_it_over_fits_is_the_ratio_of_mean_scores(held_out, shift, scale):
    data = Data(noise(48, 0, 1.0), noise(32, 1, held_out))
    logged, said = fitted(Planted(shift=shift, scale=scale), data, EarlyWarning())
    for values in logged:
        assert values["val/r_v"] == pytest.approx((1 - held_out) / 2, abs=1e-5)
        assert values["val/r_t"] == math.copysign(1, shift + scale)
        # 15 of 16 values are uniform in both.
        assert values["val/sample_distance"] == pytest.approx(1, rel=0.1)
    assert len(said) == (held_out < 0.6)
    if said:
        assert f"r_v is {(1 - held_out) / 2:.2f}" in said[0]
        assert all(hint in said[0] for hint in ("model.augment", "--init_from", "freeze_discriminator", "checkpoint."))


def test_scores_that_differ_by_chance_are_no_over_fitting():
    """A few held-out pictures whose scores are spread widely may have a low mean."""
    train, val = noise(64, 0, 1.0), noise(4, 1)
    train[:, 0, 0, 0], val[:, 0, 0, 0] = torch.linspace(-1, 1, 64), torch.tensor([-1.0, -1.0, -0.9, 0.8])
    logged, said = fitted(Planted(), Data(train, val), EarlyWarning(overfitting=0.5))
    assert logged[-1]["val/r_v"] > 0.5
    assert not said
    val[:, 0, 0, 0] = -0.8
    assert fitted(Planted(), Data(train, val), EarlyWarning(overfitting=0.5))[1]


def test_over_fitting_is_said_once_and_at_the_first_validation():
    assert len(fitted(Planted(), Data(noise(48, 0, 1.0), noise(32, 1, 0.4)), EarlyWarning(), steps=1)[1]) == 1


@pytest.mark.parametrize(("boundary", "expected"), [(0.0, 1.0), (2.0, -1.0), (None, None)])
def test_signs_are_by_the_boundary_of_the_loss(boundary, expected):
    model = Planted()
    model.loss = SimpleNamespace(boundary=boundary)
    logged, _ = fitted(model, Data(noise(48, 0, 1.0), noise(32, 1, 0.0)), EarlyWarning(), steps=1)
    assert logged[-1].get("val/r_t") == expected
    assert logged[-1]["val/r_v"] == pytest.approx(0.5)


def test_there_is_no_ratio_while_fakes_get_the_better_scores():
    logged, said = fitted(Planted(scale=-1), Data(noise(48, 0, 1.0), noise(32, 1, -1.0)), EarlyWarning())
    assert "val/r_v" not in logged[-1]
    assert logged[-1]["val/r_t"] == -1
    assert not said


@pytest.mark.parametrize(
    ("spread", "warns"),
    [
        (lambda step: 1.0, False),
        (lambda step: min(1.0, 0.01 * 4**step), False),  # samples that become different as it learns
        (lambda step: 1.0 if step < 4 else 0.3, True),
        (lambda step: 0.3 if step == 4 else 1.0, False),  # once is no reason
        (lambda step: 0.01, True),  # collapsed from the start
    ],
    ids=["well", "learning", "collapse", "once", "never different"],
)
def test_samples_that_become_alike_are_seen(spread, warns):
    data = Data(noise(48, 0, 1.0), noise(32, 1, 1.0))
    logged, said = fitted(Planted(spread), data, EarlyWarning(), steps=7)
    for step, values in enumerate(logged, 1):
        assert values["val/sample_distance"] == pytest.approx(spread(step), rel=0.1)
    assert len(said) == warns
    assert not said or ("val/sample_distance is" in said[0] and "R1" in said[0])


@pytest.mark.parametrize("name", ["val/recall-scenes128", "val/coverage", "val/precision"])
def test_recall_and_coverage_that_fall_are_seen(name):
    class Falls(Planted):
        def validation_step(self, batch, batch_idx):
            self.log(name, 0.8 if self.trainer.global_step < 3 else 0.3, batch_size=1)

    said = fitted(Falls(), Data(noise(48, 0, 1.0), noise(32, 1, 1.0)), EarlyWarning())[1]
    assert len(said) == ("precision" not in name)
    assert not said or f"{name} is 0.3, and was 0.8" in said[0]


def test_what_was_seen_and_said_is_known_when_a_run_goes_on(tmp_path):
    data = Data(noise(48, 0, 1.0), noise(32, 1, -1.0))

    def fit(steps, **settings):
        model = Planted(lambda step: 1.0 if step < 3 else 0.3)
        kept = {"enable_checkpointing": True, "default_root_dir": tmp_path}
        return fitted(model, data, EarlyWarning(), LastCheckpoint(), steps=steps, **kept)[1]

    assert [OVER_FITS in words for words in fit(3)] == [True], "and alike once only"
    model, goes_on = Planted(lambda step: 0.3), EarlyWarning()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        settings = {"max_steps": 4, "val_check_interval": 1, "check_val_every_n_epoch": None}
        trainer(
            callbacks=[goes_on, LastCheckpoint()], enable_checkpointing=True, default_root_dir=tmp_path, **settings
        ).fit(model, datamodule=data, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert sum(ALIKE in str(warning.message) for warning in said) == 1
    assert not any(OVER_FITS in str(warning.message) for warning in said)
    assert goes_on.told == ["overfitting", "collapse"]


def test_training_does_not_notice():
    data, chances = Data(noise(48, 0, 1.0), noise(32, 1, 1.0)), []
    for callbacks in ([], [EarlyWarning()]):
        torch.manual_seed(0)
        logged, _ = fitted(Planted(), data, *callbacks)
        chances.append([values["train/chance"] for values in logged])
    assert chances[0] == chances[1]


def test_fakes_are_of_the_weights_that_are_trained():
    class Moving(Planted):
        def generate_from(self, latents, labels):
            seen.append((self.weight.item(), average.swapped))
            return super().generate_from(latents, labels)

    seen, average = [], EMA(["generator"], 0.9)
    model = Moving()
    model.generator = nn.Linear(1, 1)
    fitted(model, Data(noise(48, 0, 1.0), noise(32, 1, 1.0)), average, EarlyWarning())
    assert seen
    assert not any(swapped for _, swapped in seen)


def ranked(rank):
    callback, model = EarlyWarning(num_images=40, batch_size=8), Planted(lambda step: 0.7)
    train, val = noise(48, 0, 0.8), noise(11, 1, 0.1)
    train[::3, 0, 0, 0] = -0.4
    examples = {"train": Data(train, val).train_dataloader(), "val": Data(train, val).val_dataloader()}
    callback.examples = {split: _Examples.of(loader, 40) for split, loader in examples.items()}
    model.trainer = trainer()
    found = callback._found(model.trainer, model)
    return found.figures(), found.is_certain


def test_any_number_of_processes_finds_the_same(on_ranks):
    alone = on_ranks(ranked, world_size=1)[0]
    together = on_ranks(ranked, world_size=3)
    assert not isinstance(alone, BaseException), alone
    for figures, certain in together:
        assert figures == pytest.approx(alone[0], rel=1e-12)
        assert certain == alone[1]


# -- models that learn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pictures", "warns"), [(16, True), (4096, False)], ids=["few pictures", "many"])
def test_a_critic_that_learns_by_heart_is_seen(pictures, warns):
    """Pictures are noise, about which there is nothing to learn but by heart."""
    torch.manual_seed(0)
    model = GAN(
        SHAPE,
        lambda shape, size, num_classes=None: MLPGenerator(shape, size, widths=[64, 64]),
        lambda shape, num_classes=None: MLPDiscriminator(
            shape, widths=[256, 256], maxout=1, dropout=0, input_dropout=0
        ),
        latent_size=16,
        learning_rate=1e-3,
        discriminator_learning_rate=5e-3,
    )
    data = Data(noise(pictures, 0), noise(256, 1))
    # So small a generator makes fakes that are easy to tell, from which pictures of neither kind are far away.
    logged, said = fitted(model, data, EarlyWarning(), steps=240, every=40)
    assert any(OVER_FITS in words for words in said) == warns, [values.get("val/r_v") for values in logged]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_model_without_a_discriminator_of_single_pictures_is_refused():
    with pytest.raises(TypeError, match="discriminator of single pictures, and Pix2Pix has none"):
        EarlyWarning().setup(trainer(), Pix2Pix((3, 256, 256)), "fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 1}, "num_images must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"overfitting": 1.0}, "overfitting must lie between 0 and 1, got 1.0"),
        ({"collapse": 0.0}, "collapse must lie between 0 and 1, got 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EarlyWarning(**settings)


def test_a_state_of_before_is_taken_back():
    warning = EarlyWarning()
    state = {"best": {}, "told": ["overfitting"], "validations": 7, "in_a_row": {"overfitting": 1, "collapse": 2}}
    warning.load_state_dict(state)
    assert (warning.alike_in_a_row, warning.validations, warning.told) == (2, 7, ["overfitting"])
