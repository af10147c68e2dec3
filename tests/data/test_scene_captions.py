"""Captions of built-in scenes: they say what is there, in many words, and hold combinations out."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from lightning_gen.data import CaptionedScenes, Draw
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.scene_attributes import ROOFS, WALLS, SceneAttributes
from lightning_gen.data.scene_captions import ATTRIBUTES, classes_of, draw_scenes, sentence, split_of
from lightning_gen.data.scene_painting import render
from lightning_gen.data.scenes import captions

NAMES = list(ATTRIBUTES)
EVERY = [
    row
    for row in product(*(range(len(values)) for values in ATTRIBUTES.values()))
    if (row[3] == 0) == (row[4] == 0) and (row[5] == 0) == (row[6] == 0) and not (row[5] == 1 and row[6] == 3)
]
NUMBERS = {"no": 0, "not": 0, "one": 1, "two": 2, "three": 3, "single": 1, "pair": 2, "cloudless": 0}


def read(text):
    """The classes that a caption says, by other means than those that wrote it."""
    words = text.replace(",", " ").replace("-", " ").split()
    sky = next(i for i, word in enumerate(words) if word in ("sun", "moon"))
    clouds = next(i for i, word in enumerate(words) if word.startswith("cloud"))
    clouds = NUMBERS.get(words[clouds], NUMBERS.get(words[clouds - 1], NUMBERS.get(words[clouds - 2])))
    tree = next(i for i, word in enumerate(words) if word.rstrip("s") in ("tree", "conifer", "fir"))
    number = next(NUMBERS[word] for word in words[tree::-1] if word in NUMBERS.keys() - {"single"})
    around = words[tree - 2 : tree + 5]
    mixed = "different" in around or "both" in around or ("pointed" in around and "round" in around)
    kind = 3 if mixed else 2 if words[tree][0] in "cf" or "pointed" in around else 1
    walls = next((i for i, name in enumerate(WALLS, 1) if f"{name} house" in text or f"{name} walls" in text), 0)
    roof = next((i for i, name in enumerate(ROOFS, 1) if f"{name} roof" in text or f"{name}-roofed" in text), 0)
    near = words[max(0, sky - 2) : sky + 9]
    side = 0 if "left" in near else 2 if "right" in near else 1
    return side, int("low" in near), clouds, walls, roof, number, kind if number else 0


def test_every_sentence_says_all_that_it_is_given():
    random = np.random.default_rng(0)
    for classes in EVERY:
        assert read(sentence(classes, "sun")) == classes
    said = {}
    for classes in random.permutation(EVERY)[:300].tolist():
        for choice in random.integers(0, 2**60, 30).tolist():
            text = sentence(classes, "moon", choice)
            assert read(text) == tuple(classes), text
            assert said.setdefault(text, classes) == classes, "no sentence means two things"
            assert "moon" in text
            assert text == " ".join(text.split())


def test_a_picture_has_hundreds_of_sentences_all_about_as_often():
    sentences = {sentence((0, 1, 2, 3, 4, 2, 3), "sun", choice) for choice in range(432)}
    assert len(sentences) == 432
    assert sentence((0, 1, 2, 3, 4, 2, 3), "sun", 432) == sentence((0, 1, 2, 3, 4, 2, 3), "sun")


def test_classes_are_what_other_captions_say():
    scenes = SceneAttributes.draw(300, 5)
    for classes, text in zip(classes_of(scenes).tolist(), captions(scenes, "day"), strict=True):
        side, height, clouds, walls, roof, *_ = classes
        assert ["on the left", "in the middle", "on the right"][side] in text
        assert f"a {ATTRIBUTES['height'][height]} sun" in text
        assert [" and" not in text.split(" under ")[-1], "one cloud," in text, "two clouds," in text][clouds]
        assert (f" {ATTRIBUTES['walls'][walls]} house" in text) if walls else "house" not in text
        assert (f"a {ATTRIBUTES['roof'][roof]}-roofed" in text) if roof else "roof" not in text


def test_held_out_combinations_are_never_in_training():
    data = CaptionedScenes(16, num_train=3000, num_val=200, num_test=200)
    places = [NAMES.index(name) for name in ("walls", "roof", "trees")]
    found = {
        split: {tuple(row) for row in classes_of(data.scenes[split])[:, places].tolist()}
        for split in ("train", "val", "test")
    }
    houses = {row for row in found["train"] if row[0]}
    assert len(found["val"]) == len(found["test"]) == 8
    assert len(houses) == 48
    assert all(not a & b for a, b in combinations(found.values(), 2))
    # Any two of the three have been seen together.
    for pair in combinations(range(3), 2):
        seen = {tuple(row[i] for i in pair) for row in houses}
        assert len(seen) == 16
    # Each value comes as often in validation and in the test as any other.
    for split in ("val", "test"):
        for i in range(3):
            assert sorted(row[i] for row in found[split]) == sorted([value + (i < 2) for value in range(4)] * 2)
    assert (data.scenes["train"].house_present == 0).any()


def test_scenes_of_a_split_are_a_prefix_of_more():
    few, many = draw_scenes(3, (1,), "test"), draw_scenes(40, (1,), "test")
    np.testing.assert_array_equal(few.body_x, many.body_x[:3])
    assert set(split_of(classes_of(many))) == {"test"}


def test_an_example_is_a_function_of_seed_epoch_and_position():
    data = CaptionedScenes(16, domain="night", num_train=40, num_val=10, num_test=10)
    train, val = data.dataset("train"), data.dataset("val")
    draws = [Draw(2, i, i) for i in range(40)]
    together = train.__getitems__(draws)
    for draw, item in zip(draws, together, strict=True):
        alone = train[draw]
        assert alone["caption"] == item["caption"]
        assert torch.equal(alone["image"], item["image"])
        assert read(item["caption"]) == tuple(item["attributes"].tolist())
    again = train.__getitems__([draw._replace(epoch=3) for draw in draws])
    assert sum(a["caption"] == b["caption"] for a, b in zip(together, again, strict=True)) < 5
    other = CaptionedScenes(16, domain="night", num_train=40, seed=1).dataset("train").__getitems__(draws)
    assert sum(a["caption"] == b["caption"] for a, b in zip(together, other, strict=True)) < 5
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(together, other, strict=True))
    assert fingerprint(train, lambda batch: batch["image"]) == fingerprint(
        CaptionedScenes(16, domain="night", num_train=40, seed=1).dataset("train"), lambda batch: batch["image"]
    )
    plainest = [val[Draw(epoch, 0, 0)]["caption"] for epoch in range(3)]
    assert plainest == [sentence(val.classes[0].tolist(), "moon")] * 3
    expected = render(data.scenes["val"][:1], "night", 16, 16)[0] / 127.5 - 1
    torch.testing.assert_close(val[Draw(0, 0, 0)]["image"], expected)


def test_batches_and_captions_to_learn_from():
    data = CaptionedScenes(16, num_train=20, num_val=4, batch_size=4, num_workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["attributes"].shape == (4, len(ATTRIBUTES))
    assert [type(caption) for caption in batch["caption"]] == [str] * 4
    sentences = list(data.captions())
    assert [read(text) for text in sentences] == [tuple(row) for row in data.dataset("train").classes.tolist()] * 100
    assert len(set(sentences)) > 1500


@pytest.mark.parametrize(
    ("settings", "words"), [({"num_val": 0}, "num_val"), ({"domain": "dusk"}, "dusk"), ({"image_size": 8}, "16")]
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        CaptionedScenes(**settings)
