"""Rules of thumb as tables: numbers in, numbers out."""

import re

import pytest

from lightning_gen import advice
from lightning_gen.advice import Case

CHOICES = (16, 32, 64, 128, 256, 512)


def case(**given):
    settings = {"family": "gan", "training": 500, "epoch": 500, "sizes": [(300, 300)], "size": (64, 64), "batch": 32}
    return Case(**settings | given)


@pytest.mark.parametrize(
    ("sizes", "detail", "most", "expected", "reason"),
    [
        ([(128, 128)], {}, 256, 128, "at 256, 100% of the pictures would be enlarged; here 0%"),
        ([(128, 128)], {64: 30.0}, 64, 64, "the pictures have 128, and this machine trains no more than 64"),
        ([(128, 128)], {16: 20.0, 32: 41.2, 64: 55.0}, 256, 32, "no more is in the pictures: brought .* keep 41 dB"),
        ([(300, 200)], {}, 512, 128, "at 256"),  # by the shorter side
        ([(100, 100)] * 95 + [(50, 50)] * 5, {}, 256, 64, "at 128, 100% .* here 5%"),  # a few are enlarged
        ([(100, 100)] * 94 + [(50, 50)] * 6, {}, 256, 32, "at 64, 6% of the pictures would be enlarged"),
        ([(8, 8)], {}, 256, 16, "the smallest there is, although 100% of the pictures are enlarged"),
        ([(900, 900)], {}, 999, 512, "the largest there is"),
    ],
)
def test_the_resolution_loses_least(sizes, detail, most, expected, reason):
    found = advice.resolution(sizes, detail, most, CHOICES)
    assert found.value == expected
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(100, 100)], (64, 64)),
        ([(100, 110)], (64, 64)),  # a square loses 9 %
        ([(100, 150)], (64, 96)),
        ([(150, 100)], (96, 64)),
        ([(100, 177)], (64, 112)),
        ([(100, 150), (150, 100)], (64, 64)),  # neither is like the other
        ([(100, 150)] * 3 + [(150, 100)], (64, 96)),
        ([(100, 900)], (64, 192)),  # not wider than 3 : 1
    ],
)
def test_the_crop_loses_least(sizes, expected):
    found = advice.shape(sizes, 64)
    assert found.value == expected
    assert all(side % 16 == 0 for side in found.value)
    assert "loses" in found.reason


@pytest.mark.parametrize(
    ("size", "batch", "gamma"), [((1024, 1024), 32, 6.55), ((32, 32), 64, 0.0032), ((64, 96), 16, 0.0768)]
)
def test_gamma_is_that_of_the_authors_code(size, batch, gamma):
    """sg2-ada's train.py: spec.gamma = 0.0002 * (res ** 2) / spec.mb."""
    assert advice.r1_weight(size, batch).value == pytest.approx(gamma, rel=1e-3)


@pytest.mark.parametrize(("pictures", "expected"), [(1000, 64), (128, 64), (127, 32), (20, 8), (5, 2), (2, 1)])
def test_an_epoch_has_two_batches(pictures, expected):
    found = advice.batch_size(pictures, 64)
    assert found.value == expected
    assert 2 * expected <= pictures


@pytest.mark.parametrize(
    ("a_picture", "whole", "memory", "expected"),
    [
        (10, 100, 10_000, 64),
        (10, 100, 800, 32),  # 100 + 640 > 640 = 0.8 x 800
        (10, 100, 550, 32),
        (10, 100, 500, 16),
        (10, 100, 300, 8),
    ],
)
def test_the_piece_of_a_batch_that_fits(a_picture, whole, memory, expected):
    tried = []

    def costs(size):
        tried.append(size)
        assert whole + a_picture * size <= memory, (
            "what would not fit must not be tried, for a CPU has no second chance"
        )
        return whole + a_picture * size

    assert advice.fitting_batch(costs, 64, memory).value == expected
    assert tried == sorted(tried), "small ones first"


def test_a_piece_that_an_accelerator_refuses():
    assert advice.fitting_batch(lambda size: None if size > 16 else 1, 64, 10**9).value == 16
    with pytest.raises(MemoryError, match="Not even a step of 8 pictures fits"):
        advice.fitting_batch(lambda size: None, 64, 10**9)
    assert advice.fitting_batch(lambda size: 1, 1, 100).value == 1


@pytest.mark.parametrize(
    ("wanted", "rate", "hours", "expected", "reason"),
    [
        (5000, None, 24, 5000, "was not measured"),
        (5000, 1000, 24, 5000, "about 1.39 hours at 1,000 pictures a second"),
        (5000, 10, 24, 864, "what 24 hours give at 10 pictures a second; 5000 take 5.79 days"),
        (5000, 0.001, 1, 1, "what 1 hours"),
    ],
)
def test_how_long_goes_by_the_rate(wanted, rate, hours, expected, reason):
    found = advice.kimg(wanted, rate, hours)
    assert found.value == expected
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize(
    ("pictures", "first", "samples"),
    [(200, "kid", 200), (4999, "kid", 4999), (5000, "fid", 5000), (70_000, "fid", 5000)],
)
def test_which_figures_are_honest(pictures, first, samples):
    assert advice.figures(pictures).value[0] == first
    assert advice.num_samples(pictures).value == samples


@pytest.mark.parametrize(("pictures", "expected"), [(100, True), (19_999, True), (20_000, False)])
def test_few_pictures_are_augmented(pictures, expected):
    assert advice.augments(pictures).value == expected


# -- all of it together -----------------------------------------------------------------------------------------------


def values(settings):
    return {".".join(place): each.value for place, each in settings.items()}


def test_settings_of_a_folder():
    one = case(
        sized="image_size", colours=True, gray=1.0, excluded={"a/b.png": "copies of others"}, r1={"interval": 16},
        augment={"class_path": "ADA"}, can_accumulate=True, measures=True, warns=True, num_classes=7,
    )  # fmt: skip
    found = advice.data_settings(one)
    assert values(found) == {
        "data.init_args.image_size": 256,
        "data.init_args.channels": 1,
        "data.init_args.exclude": ["a/b.png"],
        "data.init_args.batch_size": 32,
    }
    assert advice.size_in(one, found) == (256, 256)
    assert values(advice.model_settings(one, (256, 256), 32, advice.Advice(8, "it fits"))) == {
        "model.init_args.num_classes": 7,
        "model.init_args.penalties": [{"class_path": "R1", "init_args": {"interval": 16, "weight": 0.41}}],
        "model.init_args.augment": {"class_path": "ADA"},
        "model.init_args.micro_batches": 4,
    }
    assert values(advice.run_settings(one, 32, 100.0, 24)) == {
        "trainer.max_steps": 156_250,
        "trainer.val_check_interval": 6250,
        "trainer.check_val_every_n_epoch": None,
        "pictures.every_n_steps": 6250,
        "checkpoint.every_n_steps": 1875,  # ten minutes
        "checkpoint.best": "val/kid",
    }
    made = [made for made, _ in advice.callbacks(one)]
    assert made[0]["init_args"] == {
        "figures": ["kid", "prdc", "authpct"], "num_samples": 500, "test_num_samples": 1000, "block_size": 500
    }  # fmt: skip
    assert made[1] == {"class_path": "EarlyWarning"}


def test_settings_of_what_can_be_told_little():
    """Data that has its size, and a model that neither augments nor cuts batches, trained as its configuration says."""
    one = case(family="other", kimg=320, gray=1.0, n_critic=5)
    assert values(advice.data_settings(one)) == {"data.init_args.batch_size": 32}
    assert advice.size_in(one, {}) == (64, 64)
    assert not advice.model_settings(one, (64, 64), 32, advice.Advice(8, "it fits"))
    found = values(advice.run_settings(one, 32, None, 24))
    assert found["trainer.max_steps"] == 2000  # 320,000 pictures, 160 a step
    assert found["trainer.val_check_interval"] == 400  # in batches, of which a step has five
    assert not advice.callbacks(one)


def test_translation_is_trained_for_200_epochs_on_crops():
    one = case(family="translation", batch=1, training=631, epoch=664, sized="crop", sizes=[(300, 450)], most=64)
    assert values(advice.data_settings(one)) == {
        "data.init_args.crop": [64, 96], "data.init_args.resize": [72, 107], "data.init_args.batch_size": 1
    }  # fmt: skip
    assert values(advice.run_settings(one, 1, None, 24))["trainer.max_steps"] == 132_800


def test_every_setting_has_a_reason():
    one = case(sized="image_size", r1={}, augment={"class_path": "ADA"})
    for settings in (
        advice.data_settings(one), advice.model_settings(one, (64, 64), 32, None), advice.run_settings(one, 32, 9.0, 1)
    ):  # fmt: skip
        assert all(len(each.reason) > 8 for each in settings.values())


@pytest.mark.parametrize(
    ("pictures", "words"), [(0, "There is no picture to train on"), (1, "There is one single picture to")]
)
def test_nothing_can_be_learnt_of_one_picture(pictures, words):
    with pytest.raises(ValueError, match=words):
        advice.warnings_of(case(training=pictures))


def test_what_is_said_beforehand():
    assert advice.warnings_of(case()) == []
    (few,) = advice.warnings_of(case(training=99))
    assert "99 pictures are very few" in few
    (gray,) = advice.warnings_of(case(gray=0.5))
    assert "50% of the pictures are gray" in gray
