"""The reader of what captions say, against scenes of which it is known."""

import pytest
import torch

from lightning_gen.data.images import from_uint8
from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scene_captions import ATTRIBUTES, classes_of
from lightning_gen.data.scene_painting import render
from lightning_gen.extractors import scene_reader as module
from lightning_gen.extractors.scene_reader import SceneReader, scene_reader, train_scene_reader
from lightning_gen.metrics import AttributeAccuracy


@pytest.fixture(scope="module")
def reader():
    return train_scene_reader((3, 20, 24), "night", num_scenes=3000, epochs=8)


def test_it_reads_unseen_scenes_better_than_what_is_usual(reader):
    scenes = SceneAttributes.draw(400, 99)
    images, truth = from_uint8(render(scenes, "night", 20, 24)), torch.from_numpy(classes_of(scenes))
    found = reader(images)
    assert (found.shape, found.dtype) == ((400, len(ATTRIBUTES)), torch.int64)
    metric = AttributeAccuracy(reader, ATTRIBUTES)
    metric.update(images, truth)
    figures = metric.compute()
    assert figures["overall"] > figures["marginal"] + 0.15 * (1 - figures["marginal"])
    for name in ("height", "walls", "roof"):  # the easy ones, and what it says about itself
        usual = torch.bincount(truth[:, list(ATTRIBUTES).index(name)]).max() / 400
        assert figures[name] > usual + 0.2 * (1 - usual)
        assert abs(figures[name] - reader.accuracy[name]) < 4 * (0.25 * (1 / 400 + 1 / 1000)) ** 0.5


def test_training_leaves_the_random_state_and_is_repeatable():
    before = torch.get_rng_state()
    first = train_scene_reader((3, 16, 16), num_scenes=64, epochs=1)
    with torch.inference_mode():  # as a validation is
        second = train_scene_reader((3, 16, 16), num_scenes=64, epochs=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_it_is_trained_once_and_kept(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    calls = []
    monkeypatch.setattr(module, "train_scene_reader", lambda *args: calls.append(args) or reader)
    images = torch.rand(5, 3, 20, 24) * 2 - 1
    first, second = scene_reader((20, 24), "night"), scene_reader((20, 24), "night")
    assert calls == [((3, 20, 24), "night")]
    assert torch.equal(first(images), second(images))
    assert not second.training


def test_pictures_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="3 channels, but these have 1"):
        train_scene_reader((1, 16, 16))
    assert SceneReader(16, 18)(torch.zeros(2, 3, 16, 18)).shape == (2, 7)
