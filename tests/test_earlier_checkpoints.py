"""Files of earlier versions load for ever, whatever has moved since: those of tests/checkpoints, as they are."""

import copy
import functools
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import lightning_gen.models
from lightning_gen.callbacks import EMA, LastCheckpoint
from lightning_gen.data import Digits, PairedScenes, UnpairedScenes
from lightning_gen.generative import GenerativeModule
from lightning_gen.hyperparameters import CLASS_KEY
from lightning_gen.losses import (
    DRAGAN,
    R1,
    R2,
    Drift,
    GradientPenalty,
    Hinge,
    InstanceNoise,
    LabelFlipping,
    LabelSmoothing,
    LeastSquares,
    LogisticMixture,
    NonSaturating,
    WeightClipping,
)
from lightning_gen.schedules import Growing

FOLDER = Path(__file__).parent / "checkpoints"
EXPECTED = torch.load(FOLDER / "expected.pt", weights_only=True)
NAMES = sorted(EXPECTED)
OWN = "OwnPixels"  # of a user's own module, beside the files
STEPS = 2  # that each run had made
# Of those that grow, in the middle of a fade when they were written.
GROWING = Growing((4, 8), (4,), learning_rates=(1e-3, 2e-3), stable_images=3, fade_images=8)
COUNT = "images_seen"  # a buffer of the model in the first of these files, and beside its weights in later ones

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from", "ignore:Be aware that when using `ckpt_path`")

ASKED = {
    "sample": lambda model, images: model.sample(3, generator=seeded()),
    "log_prob": lambda model, images: model.log_prob(images),
    "translate AtoB": lambda model, images: model.translate(images, "AtoB"),
    "translate BtoA": lambda model, images: model.translate(images, "BtoA"),
    "features": lambda model, images: model.eval()(images)[0],
    "logits": lambda model, images: model.eval()(images)[1],
    "truncated": lambda model, images: model.sample(3, generator=seeded(), psi=0.5, noise="none"),
    "synthesized": lambda model, images: model.synthesize(
        model.map_latents(model.draw_latents(3, seeded())).flip(0), noise="random", generator=seeded()
    ),
}


def seeded():
    return torch.Generator().manual_seed(2)


@pytest.fixture(params=NAMES)
def name(request, monkeypatch):
    if request.param == OWN:
        monkeypatch.syspath_prepend(FOLDER)
    return request.param


def contents(name):
    return torch.load(FOLDER / f"{name}.ckpt", weights_only=True)


def count_in(checkpoint):
    return checkpoint["state_dict"].get(COUNT, checkpoint.get(COUNT))


def load(name):
    return GenerativeModule.load_from_checkpoint(FOLDER / f"{name}.ckpt", trust=("mymodels",) if name == OWN else ())


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_it_holds_the_class_the_weights_and_the_count(name):
    model, checkpoint = load(name), contents(name)
    saved = checkpoint["state_dict"]
    assert type(model).__name__ == name
    assert name == OWN or type(model) is getattr(lightning_gen.models, name)
    assert int(model.images_seen) == int(count_in(checkpoint)) > 0
    saved.pop(COUNT, None)
    weights = model.state_dict()
    weights.pop(COUNT, None)
    equal(dict(weights), dict(saved))


def paths_in(value):
    """The import paths in plain data."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("class_path", CLASS_KEY) if key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from paths_in(item)


def test_what_it_names_is_public_when_it_is_written_again(name):
    checkpoint = contents(name)
    model = load(name)
    model.on_save_checkpoint(checkpoint)
    saved = model.upgraded(contents(name)["hyper_parameters"])
    before, now = (list(paths_in(hyperparameters)) for hyperparameters in (saved, checkpoint["hyper_parameters"]))
    assert sorted(path.rpartition(".")[2] for path in now) == sorted(path.rpartition(".")[2] for path in before)
    assert [path for path in now if path.count(".") > 2] == []


@torch.no_grad()
def test_it_gives_what_it_gave(name):
    model, expected = load(name), dict(EXPECTED[name])
    images = expected.pop("images", None)
    for asked, values in expected.items():
        # Other processors and versions of PyTorch add up in another order.
        torch.testing.assert_close(ASKED[asked](model, images), values, rtol=1e-4, atol=1e-4, msg=asked)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "GAN",
            {
                "loss": LabelSmoothing(NonSaturating(), 0.2),
                "penalties": [R1(2.0), DRAGAN(interval=2)],
                "instance_noise": InstanceNoise(0.2, anneal_steps=100),
            },
        ),
        ("LSGAN", {"loss": LabelFlipping(LeastSquares(-1.0, 1.0, 0.0), 0.25)}),
        ("WGAN", {"constraint": WeightClipping(0.3, normalization=False)}),
        ("WGANGP", {"penalties": [GradientPenalty(5.0, one_sided=True), Drift(0.01)]}),
        ("SNGAN", {"loss": Hinge()}),
        ("FGAN", {"penalties": [R2(0.5)]}),
        ("CycleGAN", {"loss": LeastSquares(0.0, 0.9, 1.0), "penalties": [R1(0.1, interval=2)]}),
        ("OwnPixels", {"likelihood": LogisticMixture(17, 2)}),
        ("ProGAN", {"penalties": [GradientPenalty(5.0), Drift(0.01)], "growing": GROWING, "num_classes": 10}),
        ("StyleGAN", {"penalties": [R1(2.0, interval=2)], "growing": GROWING, "mixing_probability": 0.5}),
    ],
    indirect=["name"],
)
def test_what_it_names_is_made_again(name, parts):
    model = load(name)
    assert {part: getattr(model, part) for part in parts} == parts


@pytest.mark.parametrize("name", ["ProGAN", "StyleGAN"], indirect=True)
def test_what_grows_is_in_its_fade(name):
    assert load(name).stage == (8, 5 / 8, 4, 2e-3, 1)


@pytest.mark.parametrize(
    ("name", "argument", "cls"),
    [
        ("GAN", "generator_optimizer", torch.optim.RMSprop),
        ("CycleGAN", "discriminator_optimizer", torch.optim.NAdam),
        ("PixelCNN", "optimizer", torch.optim.AdamW),
        ("GatedPixelCNN", "optimizer", torch.optim.Adamax),
        ("OwnPixels", "optimizer", torch.optim.Adagrad),
        ("StyleGAN", "generator_optimizer", torch.optim.NAdam),
    ],
    indirect=["name"],
)
def test_an_optimizer_that_it_names_is_made_again(name, argument, cls):
    factory = getattr(load(name), argument)
    assert type(factory([torch.nn.Parameter(torch.zeros(1))])) is cls


class Start(pl.Callback):
    """What the run goes on from."""

    def on_train_start(self, trainer, module):
        self.step, self.images = trainer.global_step, int(module.images_seen)
        self.weights = {name: weight.clone() for name, weight in module.state_dict().items() if name != COUNT}
        self.optimizers = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers]


# The files whose runs had a callback that averages; that of PixelCNNPP is the model's own.
AVERAGES = {
    "DCGAN": functools.partial(EMA, ["generator"], decay=0.5),
    "WGANGP": functools.partial(EMA, ["generator"], half_life_kimg=0.01),
    "CycleGAN": functools.partial(EMA, ["generator_AtoB", "generator_BtoA"], decay=0.5),
    "PixelCNN": functools.partial(EMA, ["network"], decay=0.5),
    "GatedPixelCNN": functools.partial(EMA, ["network"], decay=0.5),
    "StyleGAN": functools.partial(EMA, ["generator"], decay=0.5),
}


def data_for(name):
    if name in ("CycleGAN", "Pix2Pix"):
        kind, size = (UnpairedScenes, 16) if name == "CycleGAN" else (PairedScenes, 32)
        return kind(size, num_train=6, num_val=2, num_test=2, num_workers=0)
    return Digits(batch_size=4, num_workers=0, growing=GROWING if name in ("ProGAN", "StyleGAN") else None)


# A KDE is done after one pass over the data, however many steps that takes.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "KDE"], indirect=True)
def test_a_run_goes_on_from_it(name, tmp_path):
    model, saved, start = load(name), contents(name), Start()
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[start, LastCheckpoint(), *([AVERAGES[name]()] if name in AVERAGES else [])],
        max_steps=STEPS + 1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data_for(name), ckpt_path=FOLDER / f"{name}.ckpt", weights_only=True)

    weights = saved["state_dict"] | saved.get("raw_state_dict", {})
    assert (start.step, start.images) == (STEPS, count_in(saved))
    weights.pop(COUNT, None)
    equal(start.weights, weights)
    equal(start.optimizers, [optimizer["state"] for optimizer in saved["optimizer_states"]])

    assert trainer.global_step == STEPS + 1
    assert int(model.images_seen) == start.images // STEPS * (STEPS + 1)
    assert [c.updates for c in trainer.callbacks if isinstance(c, EMA)] == [STEPS + 1] * ("raw_state_dict" in saved)
    assert any(not torch.equal(weight, weights[key]) for key, weight in model.state_dict().items() if key != COUNT)
    again = type(model).load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert int(again.images_seen) == int(model.images_seen)
