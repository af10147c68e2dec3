"""The page of a run: it needs nothing from anywhere, escapes all that it shows, and survives damage."""

import json
import math
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote, unquote_to_bytes

import pytest
import torch
from PIL import Image

from lightning_gen.files import write_atomically
from lightning_gen.runs.curves import MAX_POINTS, groups_of, thinned
from lightning_gen.runs.page import write_report
from lightning_gen.runs.rendering import duration


def strict(text):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def page_data(run):
    page = (run / "index.html").read_text()
    return strict(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture
def folder(tmp_path):
    """A finished run's folder, made by hand."""
    folder = tmp_path / "runs" / "a & <b>"
    lines = [
        {
            "step": s,
            "seconds": s / 2,
            "train/generator": 1 / s,
            "train/discriminator": "NaN",
            "val/psnr_AtoB": s,
            "val/psnr_BtoA": -s,
        }
        for s in range(1, 50)
    ]
    write_atomically(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(folder / "config.yaml", "note: </pre><script>alert(1)</script>\n")
    write_atomically(folder / "environment.json", json.dumps({"model": "<i>GAN", "data": "A&B", "status": "finished"}))
    for panel, steps in {"AtoB": (0, 10, 20), "val/50% #1": (5, 20), "test_AtoB": (20,)}.items():
        for step in steps:
            path = folder / "images" / panel / f"step_{step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
    return folder


class References(HTMLParser):
    """All that a page would fetch, and all tags."""

    def __init__(self, page):
        super().__init__()
        self.found, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "action", "poster")
        ]


def test_page_needs_nothing_from_outside(folder):
    page = write_report(folder).read_text()
    references = References(page)
    assert not re.search(r"https?:|//|@import|url\((?!#)", re.sub(r"(?s)<pre>.*?</pre>", "", page).replace("url(#", ""))
    assert not {"link", "iframe", "object"} & set(references.tags)
    pictures = {reference for reference in references.found if reference.endswith(".png")}
    assert pictures == set(references.found)
    assert len(pictures) == 3
    for picture in pictures:
        assert (folder / unquote(picture)).is_file()


def test_page_has_all_curves_and_panels(folder):
    write_report(folder)
    data = page_data(folder)
    curves = {chart["title"]: {line["name"]: line for line in chart["lines"]} for chart in data["charts"]}
    assert {title: list(lines) for title, lines in curves.items()} == {
        "train": ["generator", "discriminator"],
        "val/psnr": ["AtoB", "BtoA"],
    }
    assert curves["val/psnr"]["BtoA"]["x"] == list(range(1, 50))
    assert curves["val/psnr"]["BtoA"]["y"] == [-s for s in range(1, 50)]
    assert curves["train"]["discriminator"]["y"] == [None] * 49
    assert curves["train"]["discriminator"]["last"] == "NaN"
    assert [(panel["name"], panel["steps"]) for panel in data["panels"]] == [
        ("AtoB", [0, 10, 20]),
        ("val/50% #1", [5, 20]),
        ("test_AtoB", [20]),
    ]


def test_page_escapes_what_it_shows(folder):
    write_atomically(
        folder / "results.json", json.dumps({"checkpoint": "<c>", "metrics": {"test/<m>_AtoB": 1, "x": None}})
    )
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps({"step": 50, "</script><b>": 1}) + "\n")
    page = write_report(folder, "stopped: <s>").read_text()
    for raw in ("<script>alert", "<i>GAN", "<c>", "<m>", "<s>", "<b>GAN", "</script><b>"):
        assert raw not in page
    assert "<title>&lt;i&gt;GAN on A&amp;B</title>" in page
    assert "a &amp; &lt;b&gt;" in page
    assert page_data(folder)["charts"][-1]["title"] == "</script><b>"


def test_page_of_damaged_files_shows_what_can_be_read(folder, damage):
    good = (folder / "history.jsonl").read_text()
    for name in ("environment.json", "results.json"):
        (folder / name).write_text(damage)
    (folder / "history.jsonl").write_text(f"{damage}\n{good}{damage}")
    write_report(folder)
    curves = {line["name"]: line for chart in page_data(folder)["charts"] for line in chart["lines"]}
    assert curves["BtoA"]["x"] == list(range(1, 50))


def test_pictures_of_odd_names_are_shown_or_left_out(folder):
    images, names = folder / "images", {panel["name"] for panel in panels_of(folder)}
    for name in (
        "step_².png",
        "step_5.png",
        "step_0000000x.png",
        f"step_{'9' * 200}.png",
        "step_-0000001.png",
        "step_.png",
    ):
        (images / "AtoB" / name).write_bytes(b"")
        (images / "odd only").mkdir(exist_ok=True)
        (images / "odd only" / name).write_bytes(b"")
    strange = [
        images / os.fsdecode(b"\xff\xfe"),
        images / '"><script>',
        images / "a\nb",
        images / "%2e%2e",
        images / "AtoB" / "x",
    ]
    for panel in strange:
        panel.mkdir()
        Image.new("RGB", (4, 4)).save(panel / "step_00000003.png")
    shown = panels_of(folder)
    assert {panel["name"] for panel in shown} == names | {path.relative_to(images).as_posix() for path in strange}
    assert next(panel["steps"] for panel in shown if panel["name"] == "AtoB") == [0, 10, 20]
    for panel in shown:
        assert (folder / os.fsdecode(unquote_to_bytes(panel["folder"]))).is_dir()
    assert "<script>" not in (folder / "index.html").read_text().replace("<script>\n", "")


def panels_of(folder):
    write_report(folder)
    return page_data(folder)["panels"]


def test_page_is_a_function_of_the_folder(folder):
    assert write_report(folder).read_bytes() == write_report(str(folder)).read_bytes()
    assert (folder / "index.html").exists()


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither history.jsonl nor pictures in images/"):
        write_report(tmp_path)


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


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (3540, "59 min"), (3600, "1 h 00 min"), (3630 * 48, "2.0 days")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
