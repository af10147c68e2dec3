"""`evaluate` tells how likely a model holds test pictures, in a bound's own name where it is one."""

import json
import math
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_gen.checkpoints import AtomicCheckpointIO
from lightning_gen.commands.evaluate import evaluate
from lightning_gen.data import Digits
from lightning_gen.data.images import to_float
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.extractors.module import ModuleFeatures
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import GatedPixelCNN
from lightning_gen.networks import GatedPixelCNNNetwork

SHAPE = (1, 8, 8)


class Guess(GenerativeModule):
    """Holds every level of every pixel as likely, but for one class of pictures; draws noise."""

    def __init__(self, image_shape: tuple[int, int, int], num_levels: int | None = 17, num_classes: int | None = None):
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.declare_context(num_classes=num_classes)
        self.num_levels = num_levels
        self.weight = nn.Parameter(torch.zeros(1))

    def sample(self, num_samples, *, labels=None, generator=None):
        return torch.rand(num_samples, *self.image_shape, generator=generator) * 2 - 1

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        nats = images.new_full((len(images),), -images[0].numel() * math.log(self.num_levels or 2))
        return nats if labels is None else nats - (labels == 3).to(nats)


class Silent(Guess):
    """Has no density."""

    log_prob = None


class Elbo(Guess):
    """A bound, by noise of its own."""

    bound = "elbo"

    def log_prob(self, images: Tensor) -> Tensor:
        return super().log_prob(images) - torch.rand(len(images))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_GEN_TRUST", "tests")


def save(model, name="a.ckpt"):
    checkpoint = {"state_dict": model.state_dict(), "pytorch-lightning_version": pl.__version__}
    model.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, name)
    return name


def figures_of(model, figures=None, **settings):
    extractor = ModuleFeatures(nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), image_shape=SHAPE, name="means")
    given = {"data": Digits(num_workers=0), "extractor": extractor, "num_samples": 100, "accelerator": "cpu"}
    evaluate(figures=figures, **{"checkpoint": save(model), **given, **settings})
    return json.loads(Path("evaluations.json").read_text())["evaluations"][-1]["figures"]


def digits(split="test"):
    pictures, labels = Digits().load(split)
    return torch.stack([to_float(image) for image in pictures]), torch.as_tensor(labels)


def test_nats_and_bits_stand_among_the_figures():
    figures = figures_of(Guess(SHAPE))
    assert {"fid-means", "nll", "nll_stderr", "bpd-17level", "bpd_stderr-17level"} <= figures.keys()
    of = {"samples": None, "reference": 100, "split": "test"}
    assert figures["bpd-17level"] == {"value": pytest.approx(math.log2(17), rel=1e-6), **of}
    assert figures["nll"] == {"value": pytest.approx(64 * math.log(17), rel=1e-6), **of}
    assert figures["bpd_stderr-17level"]["value"] == pytest.approx(0, abs=1e-5)
    assert figures_of(Guess(SHAPE), num_samples=1000)["nll"]["reference"] == 164  # as many as there are
    assert "nll" not in figures_of(Guess(SHAPE), "fid")
    assert "bpd-17level" not in figures_of(Guess(SHAPE, None))  # a density


def test_models_without_it_are_measured_beside_those_with_it():
    save(Guess(SHAPE), "a.ckpt")
    save(Silent(SHAPE), "b.ckpt")
    figures_of(Guess(SHAPE), checkpoint=["a.ckpt", "b.ckpt"])
    first, second = (entry["figures"] for entry in json.loads(Path("evaluations.json").read_text())["evaluations"])
    assert first.keys() - second.keys() == {"nll", "nll_stderr", "bpd-17level", "bpd_stderr-17level"}


def test_labels_of_the_data_are_given_to_the_model():
    labels = digits()[1][[i * 164 // 100 for i in range(100)]]
    share = (labels == 3).double()
    figures = figures_of(Guess(SHAPE, num_classes=10), ["likelihood"])
    assert figures["nll"]["value"] == pytest.approx(64 * math.log(17) + share.mean().item(), rel=1e-6)
    assert figures["nll_stderr"]["value"] == pytest.approx((share.std() / 10).item(), rel=1e-4)


def test_a_bound_goes_by_its_own_name_and_its_noise_by_the_seed():
    figures = figures_of(Elbo(SHAPE), "likelihood")
    assert figures.keys() == {"elbo", "elbo_stderr", "bpd-17level-elbo", "bpd_stderr-17level-elbo"}
    assert -1 < figures["elbo"]["value"] + 64 * math.log(17) < 0
    torch.rand(3)
    assert figures_of(Elbo(SHAPE), "likelihood", seeds=1) != figures
    Path("evaluations.json").unlink()
    assert figures_of(Elbo(SHAPE), "likelihood") == figures


def test_it_is_what_the_model_says_and_neither_extractor_nor_samples_are_needed(monkeypatch):
    torch.manual_seed(0)
    model = GatedPixelCNN(SHAPE, 17, partial(GatedPixelCNNNetwork, filters=2, layers=2)).eval()
    monkeypatch.setattr(GatedPixelCNN, "sample", lambda *_, **__: pytest.fail("drawn"))
    monkeypatch.setattr(InceptionFeatures, "__init__", lambda *_, **__: pytest.fail("made"))
    figures = figures_of(model, ["likelihood"], extractor=None, num_samples=164)
    with torch.no_grad():
        nats = -model.log_prob(digits()[0]).double()
    assert figures["nll"]["value"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert figures["nll_stderr"]["value"] == pytest.approx((nats.std() / 164**0.5).item(), rel=1e-4)
    assert figures["bpd-17level"]["value"] == pytest.approx(nats.mean().item() / 64 / math.log(2), rel=1e-6)
    entry = json.loads(Path("evaluations.json").read_text())["evaluations"][-1]
    assert entry["extractor"] is None
    assert entry["protocol"]["figures"] == ["likelihood"]


def test_it_is_left_out_or_refused_where_there_is_none():
    assert "nll" not in figures_of(Guess(SHAPE, 2))  # of other levels than the data
    with pytest.raises(
        ValueError, match=r"likelihood can't be computed: Digits gives pictures of 17 levels, but this Gu"
    ):
        figures_of(Guess(SHAPE, 2), ["likelihood"])
    assert "nll" not in figures_of(Guess(SHAPE, num_classes=7))  # which the data's labels do not fit
    with pytest.raises(ValueError, match=r"likelihood can't be computed: Labels must lie in 0 .. 6"):
        figures_of(Guess(SHAPE, num_classes=7), ["likelihood"])
    with pytest.raises(ValueError, match=r"likelihood can't be computed: there is no data whose test pictures"):
        figures_of(Guess(SHAPE), ["likelihood"], data=None)
    with pytest.raises(ValueError, match="The floor is of the figures of samples, and there are none among likelihood"):
        figures_of(Guess(SHAPE), ["likelihood"], floor=True)
