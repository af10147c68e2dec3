"""The reader against scenes whose attributes are known, in words that `captions` uses too."""

import numpy as np
import pytest
import torch

from lightning_gen.data.images import from_uint8
from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scene_painting import render
from lightning_gen.data.scenes import captions
from lightning_gen.extractors.scenes import STATEMENTS, SceneAttributeReader, _examples, parse_conditions, train_reader


def test_statements_are_what_captions_say():
    scenes = SceneAttributes.draw(300, 1)
    sentences = captions(scenes, "day")
    for statement, words in {
        "house": "house",
        "trees": "tree",
        "clouds": "cloud",
        "sun left": "sun on the left",
        "sun right": "sun on the right",
        "sun low": "a low sun",
        "red roof": "red-roofed",
        "green roof": "green-roofed",
        "blue walls": "blue house",
    }.items():
        said = np.array([words in sentence for sentence in sentences])
        if statement == "trees":
            said |= np.array(["conifer" in sentence for sentence in sentences])
        assert np.array_equal(STATEMENTS[statement](scenes), said), statement


@pytest.fixture(scope="module")
def reader():
    return train_reader((3, 16, 24), "day", num_scenes=2000, epochs=8)


def test_it_reads_unseen_scenes(reader):
    scenes = SceneAttributes.draw(400, 99)
    probabilities = reader(from_uint8(render(scenes, "day", 16, 24)))
    assert probabilities.shape == (400, len(STATEMENTS))
    assert not probabilities.requires_grad
    for statement in ("house", "sun left", "sun low"):
        truth = torch.from_numpy(STATEMENTS[statement](scenes))
        right = ((reader.chance(probabilities, {statement: True}) > 0.5) == truth).float().mean()
        usual = max(truth.float().mean(), 1 - truth.float().mean())
        assert right > usual + 0.4 * (1 - usual), "no better than always saying what is usual"
        # What it says about itself holds, within four standard deviations.
        assert abs(right - reader.accuracy[statement]) < 4 * (0.25 * (1 / 400 + 1 / 1000)) ** 0.5


def test_several_conditions_hold_as_surely_as_the_least_sure():
    probabilities = torch.rand(7, len(STATEMENTS))
    places = list(STATEMENTS)
    house, low = probabilities[:, places.index("house")], probabilities[:, places.index("sun low")]
    chance = SceneAttributeReader.chance(probabilities, {"house": True, "sun low": False})
    assert torch.equal(chance, torch.minimum(house, 1 - low))


def test_training_is_deterministic_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_reader((3, 16, 16), num_scenes=128, epochs=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    second = train_reader((3, 16, 16), num_scenes=128, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("house", {"house": True}),
        ("no house,  Sun LOW ", {"house": False, "sun low": True}),
        ("moon high, no red roof", {"sun low": False, "red roof": False}),
        ("no sun high, house, house", {"sun low": True, "house": True}),
    ],
)
def test_conditions_in_words(text, conditions):
    assert parse_conditions(text) == conditions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("castle", r"no attribute 'castle'\. Known are: house, trees, .*sun high"),
        ("", "no attribute ''"),
        ("house, no house", "asks for 'house' and for its opposite"),
        ("sun low, sun high", "asks for 'sun low' and for its opposite"),
    ],
)
def test_words_that_make_no_condition(text, message):
    with pytest.raises(ValueError, match=message):
        parse_conditions(text)


def test_pictures_that_cannot_be_scenes():
    with pytest.raises(ValueError, match="3 channels, but the model draws 1"):
        train_reader((1, 28, 28))
    with pytest.raises(ValueError, match="at least 16 x 16"):
        train_reader((3, 8, 8))


def test_features_have_the_size_of_one_and_lead_to_the_same_answers():
    reader = train_reader((3, 16, 16), num_scenes=128, epochs=1)
    # Those that the unit was measured on.
    images, _ = _examples(1000, (0, 1), "day", 16, 16, reader.size)
    features = reader.features(images)
    assert features.square().mean().item() == pytest.approx(1, rel=1e-4)
    hidden = reader.network[:-1](images)
    assert torch.allclose(reader.logits(images), reader.network[-1](hidden), atol=1e-4)
    assert hidden.square().mean().sqrt().item() == pytest.approx(reader.unit.item(), rel=1e-4)
