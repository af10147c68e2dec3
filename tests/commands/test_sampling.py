"""Settings of a model's own `sample` are options, without a command knowing the model."""

import json
from argparse import ArgumentError
from functools import partial
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gen.callbacks import GenerativeMetrics
from lightning_gen.cli import with_sampling
from lightning_gen.commands.evaluate import evaluate
from lightning_gen.commands.latents import interpolate
from lightning_gen.commands.sample import sample
from lightning_gen.data.images import read_image, to_uint8
from lightning_gen.extractors.module import ModuleFeatures
from lightning_gen.generative import GenerativeModule
from lightning_gen.latents import numbered_latents, slerp
from lightning_gen.models import GatedPixelCNN
from lightning_gen.networks import GatedPixelCNNNetwork
from lightning_gen.randomness import generator_for
from lightning_gen.settings import checked_settings
from tests.shared import save


class Sprayer(GenerativeModule):
    """Draws without latents, under settings of every kind."""

    num_classes = None

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.zeros(1))

    def sample(
        self,
        num_samples: int,
        *,
        labels: Tensor | int | None = None,
        place: Tensor | None = None,
        generator: torch.Generator | None = None,
        strength: float = 1.0,
        way: Literal["up", "down"] = "up",
        soft: bool = False,
        cells: int | None = None,
    ) -> Tensor:
        images = torch.rand(num_samples, *self.image_shape, generator=generator)
        return self.painted(images, strength, way, soft)

    def painted(self, images, strength=1.0, way="up", soft=False):
        return images * strength * (-1 if way == "down" else 1) * (0.5 if soft else 1)


class Latent(Sprayer):
    latent_shape = (16,)

    def draw_latents(self, num_samples, generator=None):
        return torch.rand(num_samples, 16, generator=generator)

    def generate(self, latents, labels=None, **settings):
        return self.painted(latents.view(-1, *self.image_shape), **settings)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))


def test_options_that_the_command_does_not_have_are_the_models():
    arguments = ["--checkpoint", "a b", "--strength", "-0.5", "--seed=1", "--way=down", "--soft", "--labels", "[1,2]"]
    kept = ["--checkpoint", "a b", "--seed=1", "--labels", "[1,2]"]
    assert with_sampling(sample, arguments) == [
        '--sampling={"strength": "-0.5", "way": "down", "soft": "true"}',
        *kept,
    ]
    assert with_sampling(sample, kept) == kept
    named = [
        "--data.root",
        "x",
        "--checkpoint",
        "a",
        "b",
        "--help",
        "--extractor.weights=c",
        "--seeds+",
        "1",
        "--floor",
    ]
    assert with_sampling(evaluate, named) == named


def test_settings_are_typed_by_the_models_annotations():
    model = Sprayer((1, 4, 4))
    given = {"strength": "0.5", "way": "down", "soft": "true", "cells": "3"}
    assert checked_settings(model, given) == {"strength": 0.5, "way": "down", "soft": True, "cells": 3}
    assert checked_settings(model, {"strength": "1", "cells": "null", "soft": "false"}) == {}  # as they are anyway
    assert checked_settings(model, None) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strenght": 1}, r"--strenght: neither .* Sprayer's `sample` takes, which are strength, way, soft, cells\."),
        ({"place": "x"}, "Unknown option --place"),
        ({"labels": "1"}, "Unknown option --labels"),
        ({"num_samples": "1"}, "Unknown option --num_samples"),
        ({"strength": "much"}, '"strength":\n  Expected a'),
        ({"way": "left"}, r"'up', 'down'\]. Got value: left"),
    ],
)
def test_what_the_model_does_not_take_is_refused_by_name(given, message):
    with pytest.raises(ArgumentError, match=message):
        checked_settings(Sprayer((1, 4, 4)), given)
    with pytest.raises(ArgumentError, match=f"--{next(iter(given))}: .* a folder of pictures takes"):
        checked_settings(None, given)


@pytest.mark.parametrize("make", [partial(Sprayer, (1, 4, 4)), partial(Latent, (1, 4, 4))])
def test_pictures_are_drawn_under_them(make, command):
    model = make()
    arguments = ["--checkpoint", save(model), "--num_samples", 2, "--batch_size", 2, "--accelerator", "cpu"]
    ended = command("sample", *arguments, "--output", "out", "--way", "down", "--strength=0.5")
    assert ended.code == 0, ended.err
    if isinstance(model, Latent):
        latents = torch.cat([torch.rand(1, 16, generator=generator_for(0, i)) for i in range(2)])
        images = latents.view(2, 1, 4, 4)
    else:
        images = torch.rand(2, 1, 4, 4, generator=generator_for(0, 0))
    for i in range(2):
        assert torch.equal(read_image(f"out/00000{i}.png", 1), to_uint8(-0.5 * images[i]))
    ended = command("sample", *arguments, "--output", "other", "--strenth", 1)
    assert ended.code == 2
    assert "Unknown option --strenth: neither one of the command, nor" in ended.err
    assert not Path("other").exists()


def test_the_temperature_of_an_autoregressive_model():
    model = GatedPixelCNN((1, 4, 4), network=partial(GatedPixelCNNNetwork, filters=2, layers=2))
    sample(save(model), Path("cold"), num_samples=3, sampling={"temperature": 0.0}, accelerator="cpu")
    likeliest = to_uint8(model.sample(1, temperature=0.0))[0]
    assert all(torch.equal(read_image(f"cold/00000{i}.png", 1), likeliest) for i in range(3))


def test_figures_say_under_which_they_were_drawn():
    checkpoint = save(Sprayer((1, 4, 4)))
    sample(checkpoint, Path("real"), num_samples=40, accelerator="cpu")
    settings = {"reference": "real", "figures": ["fid"], "num_samples": 40, "accelerator": "cpu"}
    settings["extractor"] = ModuleFeatures(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), image_shape=(1, 4, 4))
    for sampling in (None, {"strength": 0.5}, {"strength": 1.0}, {"strength": 0.5, "soft": True}):
        evaluate(str(checkpoint), sampling=sampling, **settings)
    entries = json.loads(Path("evaluations.json").read_text())["evaluations"]
    # The default setting is none, and was measured before.
    assert [entry["protocol"].get("sampling") for entry in entries] == [
        None,
        {"strength": 0.5},
        {"strength": 0.5, "soft": True},
    ]
    assert len({entry["figures"]["fid-sequential4"]["value"] for entry in entries}) == 3
    with pytest.raises(ArgumentError, match=r"--strength: .* a folder of pictures takes"):
        evaluate(images=Path("real"), sampling={"strength": 1}, **settings)


# -- one setting, every door ----------------------------------------------------------------------------------------


class Truncated(Latent):
    """A model with a setting that nobody else has: latents are pulled to their mean by psi."""

    def sample(self, num_samples, *, labels=None, generator=None, psi: float = 1.0):
        return self.generate(self.draw_latents(num_samples, generator), labels, psi=psi)

    def generate(self, latents, labels=None, *, psi: float = 1.0):
        return (0.5 + psi * (latents - 0.5)).view(-1, *self.image_shape) * 2 - 1

    def validation_step(self, batch, batch_idx):
        pass


def pulled(latents, psi):
    return to_uint8((0.5 + psi * (latents - 0.5)).view(-1, 1, 4, 4) * 2 - 1)


QUARTERS = partial(ModuleFeatures, nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), image_shape=(1, 4, 4))


def test_a_setting_of_the_models_own_arrives_in_pictures_of_the_commands(command):
    model = Truncated((1, 4, 4))
    checkpoint = ["--checkpoint", save(model), "--accelerator", "cpu"]
    ended = command("sample", *checkpoint, "--num_samples", 3, "--output", "out", "--psi", 0.25)
    assert ended.code == 0, ended.err
    latents = numbered_latents(model, range(3), 0)
    for i, image in enumerate(pulled(latents, 0.25)):
        assert torch.equal(read_image(f"out/00000{i}.png", 1), image)
    ended = command("interpolate", *checkpoint, "--pairs", 1, "--steps", 3, "--output", "between", "--psi=0.25")
    assert ended.code == 0, ended.err
    middle = pulled(slerp(latents[0], latents[1], 0.5), 0.25)[0]
    assert torch.equal(read_image("between/pair_000/001.png", 1), middle)
    for name in ("sample", "interpolate"):
        ended = command(name, *checkpoint, "--output", "none", "--psy", 0.25)
        assert ended.code == 2
        assert "Unknown option --psy: neither one of the command, nor a setting that Truncated's `sample` takes, " in (
            ended.err
        )
    ended = command("evaluate", *checkpoint[2:], *checkpoint[:2], "--psy", 0.25)  # no second checkpoint
    assert "Unknown option --psy: neither one of the command, nor a setting that Truncated's `sample`" in ended.err
    with pytest.raises(ArgumentError, match=r"takes, which are psi\."):
        interpolate(Path("a.ckpt"), Path("none"), sampling={"psy": 1})
    assert not Path("none").exists()


def test_a_setting_of_the_models_own_arrives_in_figures():
    checkpoint = save(Truncated((1, 4, 4)))
    sample(checkpoint, Path("real"), num_samples=40, accelerator="cpu")
    images = torch.stack([read_image(f"real/{i:06d}.png", 1) for i in range(40)])
    loader = DataLoader(TensorDataset(images), batch_size=40)
    figures = {}
    for psi in (None, 1.0, 0.25):
        sampling = None if psi is None else {"psi": psi}
        evaluate(
            str(checkpoint), reference="real", extractor=QUARTERS(), figures=["fid"], num_samples=40, sampling=sampling,
            output=Path(f"{psi}.json"), accelerator="cpu",
        )  # fmt: skip
        (entry,) = json.loads(Path(f"{psi}.json").read_text())["evaluations"]
        metrics = GenerativeMetrics(QUARTERS(), ["fid"], num_samples=40, reference="val", sampling=sampling)
        logger = pl.loggers.CSVLogger(".", "run", str(psi))
        trainer = pl.Trainer(accelerator="cpu", callbacks=[metrics], logger=logger, enable_progress_bar=False)
        (results,) = trainer.validate(Truncated((1, 4, 4)), loader, verbose=False)
        record = json.loads(Path(f"run/{psi}/evaluation.json").read_text())
        figures[psi] = entry["figures"]["fid-sequential4"]["value"]
        assert results["val/fid-sequential4"] == pytest.approx(figures[psi], rel=1e-6)
        # A setting that is as it is anyway leaves no trace.
        expected = {"psi": 0.25} if psi == 0.25 else None
        assert record["protocol"].get("sampling") == entry["protocol"].get("sampling") == expected
    assert figures[None] == figures[1.0] != figures[0.25]
    metrics = GenerativeMetrics(QUARTERS(), sampling={"psy": 0.25})
    trainer = pl.Trainer(accelerator="cpu", callbacks=[metrics], logger=False, enable_progress_bar=False)
    with pytest.raises(ArgumentError, match=r"^GenerativeMetrics has sampling psy: not a setting that Truncated's "):
        trainer.validate(Truncated((1, 4, 4)), loader, verbose=False)
