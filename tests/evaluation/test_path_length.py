"""Perceptual path length as a figure of checkpoints: in z and in w, by the eyes of the extractor."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_gen.commands.evaluate import evaluate
from lightning_gen.evaluation import path_length as evaluation
from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.extractors import ModuleFeatures
from lightning_gen.metrics import path_length
from lightning_gen.metrics.path_length import perceptual_path_length
from tests.commands.test_latents import small as without_styles
from tests.commands.test_styles import SHAPE
from tests.commands.test_styles import small as with_styles
from tests.shared import save


class Means(ModuleFeatures):
    """Sees means of squares of pixels."""

    def __init__(self, shape=SHAPE, standard=False):
        super().__init__(nn.Sequential(nn.AvgPool2d(4, ceil_mode=True), nn.Flatten()), image_shape=shape, name="means")
        self.standard = standard

    def layers_of(self, images):
        return [self.network(images)]


def relative(images, others):
    found, expected = (nn.functional.avg_pool2d(each, 4).flatten(1) for each in (images, others))
    return (found - expected).square().mean(1) / (expected.square().mean(1) + 1e-8)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def figures_of(model, figures=("ppl",), extractor=None, **settings):
    given = {"extractor": extractor or Means(), "num_samples": 20, "batch_size": 8, "accelerator": "cpu"}
    evaluate(str(save(model, Path("a.ckpt"))), figures=list(figures), **given | settings)
    return json.loads(Path("evaluations.json").read_text())["evaluations"][-1]


def test_it_is_that_of_the_metric_in_both_spaces():
    entry, model = figures_of(with_styles(), seeds=[3, 4]), with_styles()
    for space in ("z", "w"):
        lengths = [perceptual_path_length(model, relative, space=space, num_samples=20, seed=s).mean for s in (3, 4)]
        found = entry["figures"].pop(f"ppl_{space}-means")
        assert found["by_seed"] == pytest.approx(lengths, rel=0.02)  # steps of 1e-4 in float32
        assert (found["samples"], found["reference"]) == (20, None)
        assert all(length > 0 for length in lengths)
    assert entry["figures"] == {}
    assert entry["extractor"]["name"] == "means"


def test_without_styles_there_is_z_and_it_is_measured_only_where_it_is_asked_for():
    model = without_styles()
    assert figures_of(model, extractor=Means(model.image_shape))["figures"].keys() == {"ppl_z-means"}


def test_with_the_published_inception_it_is_by_lpips(monkeypatch):
    class Far(nn.Module):
        def forward(self, a, b):
            return torch.full((len(a),), 2e-8)

    for module in (path_length, evaluation):
        monkeypatch.setattr(module, "LPIPS", Far)
    figures = figures_of(with_styles(), extractor=Means(standard=True))["figures"]
    assert {name: figure["value"] for name, figure in figures.items()} == {
        "ppl_z": pytest.approx(2.0),
        "ppl_w": pytest.approx(2.0),
    }


def test_what_it_cannot_be_of():
    with pytest.raises(ValueError, match=r"ppl can't be .* as a model draws them by itself, and psi is given\. Leave"):
        figures_of(with_styles(), sampling={"psi": 0.5})
    extractor = ModuleFeatures(nn.Flatten(), image_shape=SHAPE, name="pixels")
    with pytest.raises(ValueError, match=r"ppl can't be computed: the extractor pixels does not show its layers"):
        figures_of(with_styles(), extractor=extractor)
    assert "ppl" not in EvaluationProtocol().figures
