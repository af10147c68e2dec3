"""What the name of a metric says."""

import math

import pytest

from lightning_gen.runs.figures import Figure, best_of, way


@pytest.mark.parametrize(
    ("name", "split", "base", "extractor", "direction", "baseline", "label", "arrow"),
    [
        ("test/psnr_AtoB", "test", "psnr", "", "AtoB", "", "PSNR, day to night", "↑"),
        ("test/color_mapping_psnr_BtoA", "test", "psnr", "", "BtoA", "color_mapping", "PSNR, night to day", "↑"),
        ("val/fid-scenes128", "val", "fid", "scenes128", "", "", "FID (scenes128)", "↓"),
        ("val/fid_infinity-a", "val", "fid_infinity", "a", "", "", "FID, infinitely many samples (a)", "↓"),
        ("val/bpd-5bit", "val", "bpd", "5bit", "", "", "bits per dim (5bit)", "↓"),
        ("val/wasserstein_1", "val", "wasserstein_1", "", "", "", "Wasserstein-1", "↓"),
        ("val/perplexity_0", "val", "perplexity", "", "0", "", "codes used (perplexity), 0", "↑"),
        ("test/attributes_chance", "test", "attributes", "", "", "chance", "attributes as asked for", "↑"),
        ("train/cycle_A", "train", "cycle", "", "A", "", "cycle, day", ""),
        ("lr-generator", "", "lr", "generator", "", "", "lr (generator)", ""),
        ("own/a_b", "", "own/a_b", "", "", "", "own/a b", ""),
    ],
)  # fmt: skip
def test_a_name_is_taken_apart(name, split, base, extractor, direction, baseline, label, arrow):
    figure = Figure.of(name)
    found = (figure.split, figure.base, figure.extractor, figure.direction, figure.baseline)
    assert found == (split, base, extractor, direction, baseline)
    assert not figure.is_deviation
    assert (figure.label(["day", "night"]), figure.arrow) == (label, arrow)


def test_a_deviation_belongs_to_its_figure():
    for name, figure in (("val/kid_stderr-lenet64", "val/kid-lenet64"), ("test/is_std", "test/is")):
        assert Figure.of(name).is_deviation
        assert Figure.of(name).key == Figure.of(figure).key


def test_modes_and_quality_say_more_than_a_distance():
    names = ["val/fid-points", "val/wasserstein_1", "val/own", "val/high_quality", "val/mode_kl", "val/modes"]
    ranked = sorted(names, key=lambda name: Figure.of(name).rank)
    assert ranked[:2] == ["val/modes", "val/high_quality"]
    assert ranked[-1] == "val/own"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("test/psnr", 26.514, "26.51 dB"),
        ("test/high_quality", 0.9384, "93.8 %"),
        ("test/nll", 1234.4, "1\u2009234 nats"),
        ("test/fid", 0.00042, "0.00042"),
        ("test/fid", math.nan, "nan"),
    ],
)
def test_values_have_units(name, value, words):
    assert Figure.of(name).value(value) == words


def test_the_best_is_the_first_of_the_best():
    values = {1: 3.0, 2: math.nan, 3: 1.0, 4: 1.0, 5: math.inf, 6: 3.0}
    assert best_of(Figure.of("val/fid"), values) == (3, 1.0)
    assert best_of(Figure.of("val/psnr"), values) == (1, 3.0)
    assert best_of(Figure.of("val/own"), values) is None
    assert best_of(Figure.of("val/fid"), {1: math.nan}) is None


def test_directions_have_names_where_the_data_has():
    assert [way(side, ["day", "night"]) for side in ("AtoB", "BtoA", "A", "B")] == [
        "day to night", "night to day", "day", "night",
    ]  # fmt: skip
    assert way("AtoB") == "A to B"
