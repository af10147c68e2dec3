"""Curves: which share a chart, what a band is, one colour a name, and the axes."""

import json
import math

import pytest
import torch

from lightning_gen.runs.curves import MAX_MOMENTS, MAX_POINTS, charts_of, groups_of, moments_of, thinned
from lightning_gen.runs.history import strict_json


def history(**metrics):
    return [{"step": s, **{name: value * s for name, value in metrics.items()}} for s in range(1, 6)]


def test_many_losses_are_grouped_by_kind():
    kinds = ("generator", "cycle", "identity", "discriminator")
    names = [f"train/{kind}_{domain}" for kind in kinds for domain in "AB"] + [
        "train/total",
        "lr-generator",
        "lr-discriminator",
    ]
    groups = groups_of(names)
    assert list(groups) == [f"train/{kind}" for kind in kinds] + ["train", "lr"]
    assert groups["train"] == ["train/total"]
    assert groups["lr"] == ["lr-generator", "lr-discriminator"]
    assert groups_of(["lr/generator", "lr/discriminator"]) == {"lr": ["lr/generator", "lr/discriminator"]}


def test_a_figure_and_its_error_share_a_chart_and_so_do_shares_of_samples():
    shares = [f"val/{name}-lenet64" for name in ("precision", "recall", "density", "coverage")]
    names = ["val/fid-lenet64", "val/is", "val/is_std", "val/kid-lenet64", "val/kid_stderr-lenet64", *shares]
    assert list(groups_of(names).values()) == [names[:1], names[1:3], names[3:5], shares]


def test_use_of_codes_is_a_chart_of_numbers_and_one_of_the_share():
    names = ["val/psnr", "val/rfid", "val/perplexity", "val/used", "val/dead_codes"]
    groups = groups_of(names)
    assert groups["val/perplexity, dead codes"] == ["val/perplexity", "val/dead_codes"]
    assert groups["val/used"] == ["val/used"]
    assert len(groups) == 4
    levels = [f"val/{name}_{level}" for level in (0, 1) for name in ("perplexity", "used", "dead_codes")]
    groups = groups_of(levels)
    assert len(groups["val/perplexity, dead codes"]) == 4
    assert groups["val/used"] == ["val/used_0", "val/used_1"]


def test_a_name_has_one_colour_in_all_charts():
    names = [f"{kind}_{side}" for kind, sides in (
        ("train/generator", ("AtoB", "BtoA")), ("train/cycle", ("A", "B")), ("train/discriminator", ("B", "A")),
        ("train/identity", ("B", "A")), ("val/psnr", ("BtoA", "AtoB")),
    ) for side in sides]  # fmt: skip
    charts = charts_of(history(**dict.fromkeys([*names, "val/fid", "val/own_A"], 1.0)), ["day", "night"])
    colours = {}
    for chart in charts:
        for line in chart["lines"]:
            colours.setdefault(line["name"], set()).add(line["colour"])
    assert {name: len(found) for name, found in colours.items()} == dict.fromkeys(colours, 1)
    assert len({*map(tuple, (colours[name] for name in ("day", "night", "day to night", "night to day")))}) == 4
    assert colours["fid"] == {0}, "what stands alone needs none of its own"
    assert colours["day"] == {2}


def test_a_deviation_is_the_band_of_its_figure_and_no_line():
    lines = [{"step": s, "val/kid-a": 10.0 * s, "val/kid_stderr-a": 0.5 * s, "val/own_std": 1.0} for s in (1, 2, 3)]
    del lines[1]["val/kid_stderr-a"]
    charts = {chart["title"]: chart["lines"] for chart in charts_of(lines)}
    (kid,) = charts["val/kid-a"]
    assert (kid["y"], kid["deviation"]) == ([10.0, 20.0, 30.0], [0.5, None, 1.5])
    assert [line["name"] for line in charts["val/own"]] == ["std"], "of which there is no figure"


def test_losses_come_first_and_then_what_says_most():
    names = ["lr/generator", "val/own", "val/kid-a", "train/a", "val/fid-a", "val/modes"]
    titles = [chart["title"] for chart in charts_of(history(**dict.fromkeys(names, 1.0)))]
    assert titles == ["train", "val/modes", "val/fid-a", "val/kid-a", "lr", "val/own"]


def test_long_curves_keep_mean_and_range():
    values = [float(v) for v in torch.rand(7 * MAX_POINTS, dtype=torch.float64)]
    values[3] = math.nan
    curve = thinned(list(range(len(values))), values)
    assert len(curve["x"]) == len(curve["y"]) == MAX_POINTS
    assert curve["x"][-1] == len(values) - 1
    for i in (0, 17, MAX_POINTS - 1):
        stretch = [v for v in values[7 * i : 7 * i + 7] if math.isfinite(v)]
        assert curve["y"][i] == pytest.approx(sum(stretch) / len(stretch), rel=1e-5)
        assert (curve["low"][i], curve["high"][i]) == pytest.approx((min(stretch), max(stretch)), rel=1e-5)


def test_a_single_point_is_a_curve():
    assert thinned([7], [0.5]) == {"x": [7], "y": [0.5]}


def test_axes_are_those_that_are_known_everywhere():
    lines = [{"step": s, "seconds": s / 2, "images_seen": 3000 * s} for s in (1, 2, 2, 5)]
    assert moments_of(lines) == {"step": [1, 2, 5], "kimg": [3, 6, 15], "seconds": [0.5, 1, 2.5]}
    del lines[0]["images_seen"]
    lines[1]["seconds"] = lines[2]["seconds"] = "NaN"
    assert moments_of(lines) == {"step": [1, 2, 5]}
    assert moments_of([{"step": 1, "seconds": 9}, {"step": 2, "seconds": 8}]) == {"step": [1, 2]}, (
        "time does not go back"
    )
    assert moments_of([]) == {"step": []}
    many = moments_of([{"step": s, "seconds": s} for s in range(5 * MAX_MOMENTS)])
    assert len(many["step"]) == MAX_MOMENTS
    assert (many["step"][0], many["seconds"][-1]) == (0, 5 * MAX_MOMENTS - 1)


def test_charts_are_plain_data():
    assert json.loads(strict_json(charts_of(history(**{"train/a": math.inf}))))[0]["lines"][0]["last"] == "Infinity"
