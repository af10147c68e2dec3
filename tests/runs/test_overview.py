"""The page over all runs: one row each, curves and settings to compare, nothing from outside, all escaped."""

import json
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from lightning_gen.files import write_atomically
from lightning_gen.runs.layout import runs_in
from lightning_gen.runs.overview import differences, write_overview

NASTY = "</script><script>alert(1)</script>\"'&{{7*7}}"


def write_run(folder, *, rate=0.1, status="finished", metrics=None, extra="", steps=3):
    lines = [
        {"step": s, "seconds": s, "images_seen": 64 * s, "val/fid-a": 9.0 - s, "train/g": s} for s in range(1, steps)
    ]
    write_atomically(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(folder / "environment.json", json.dumps({"model": "DCGAN", "data": "Scenes", "status": status}))
    write_atomically(
        folder / "config.yaml", f"model: {{class_path: DCGAN, init_args: {{rate: {rate}{extra}}}}}\nseed: 0\n"
    )
    if metrics:
        write_atomically(folder / "results.json", json.dumps({"metrics": metrics}))
    return folder


class Table(HTMLParser):
    """The cells of the table of runs, the addresses, and all tags."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.links, self.tags, self.open = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.links += [given[name] for name in ("href", "src") if name in given]
        if tag == "tbody" and "data-run" in given:
            self.rows.append([])
            self.open = True
        elif tag in ("td", "th") and self.open:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.open = self.open and tag != "tbody"

    def handle_data(self, data):
        if self.open and self.rows[-1]:
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_each_run_is_a_row_with_its_figure_checkpoint_and_the_way_to_go_on(tmp_path):
    write_run(tmp_path / "dcgan" / "version_10", metrics={"test/fid-a": 3.25})
    stopped = write_run(tmp_path / "dcgan" / "version_9", status="stopped: interrupted")
    write_atomically(stopped / "checkpoints" / "last.ckpt", b"x")
    (stopped / "index.html").touch()
    page = write_overview(tmp_path)
    assert page == tmp_path / "index.html"
    table = Table(page.read_text())
    first, second = table.rows
    assert first[:4] == ["dcgan/version_9", "DCGAN on Scenes", "stopped: interrupted", "7"]
    assert second[:4] == ["dcgan/version_10", "DCGAN on Scenes", "finished", "3.25"]
    assert first[4:8] == ["2", "0.128", "2 s", "last.ckpt"]
    assert f"lightning-gen fit --ckpt_path {stopped}/checkpoints/last.ckpt" in first[8]
    assert table.links == ["dcgan/version_9/index.html"]


def test_curves_and_differences_of_settings_are_in_the_page(tmp_path):
    for number, rate in enumerate((0.1, 0.2)):
        write_run(tmp_path / f"version_{number}", rate=rate, extra=", own: [1]" if number else "")
    data = data_of(write_overview(tmp_path).read_text())
    assert data["metrics"] == ["val/fid-a", "train/g"], "what says most comes first"
    assert [run["curves"]["val/fid-a"] for run in data["runs"]] == [{"x": [1, 2], "y": [8.0, 7.0]}] * 2
    assert data["runs"][0]["axes"] == {"step": [1, 2], "kimg": [0.064, 0.128], "seconds": [1, 2]}
    assert data["settings"] == [
        {"name": "model.rate", "values": ["0.1", "0.2"]},
        {"name": "model.own", "values": [None, "[1]"]},
    ]


def test_runs_without_settings_do_not_differ_from_others():
    assert differences([{"a": "1", "b": "2"}, {}, {"a": "1", "b": "3"}]) == [{"name": "b", "values": ["2", None, "3"]}]


def test_nothing_comes_from_outside_and_all_is_escaped(tmp_path):
    folder = tmp_path / NASTY.replace("/", "\u2215") / "version_0"
    write_run(folder, metrics={f"test/fid-{NASTY}": 1.0})
    environment = {"model": NASTY, "data": NASTY, "status": f"stopped: {NASTY}"}
    write_atomically(folder / "environment.json", json.dumps(environment))
    write_atomically(folder / "config.yaml", json.dumps({NASTY: NASTY}))
    (folder / "index.html").touch()
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, f"val/{NASTY}": 1.0}) + "\n")
    write_run(tmp_path / "b")
    page = write_overview(tmp_path).read_text()
    assert "<script>alert" not in page
    assert Table(page).tags.count("script") == 2
    assert NASTY in json.dumps(data_of(page)["settings"][0]["name"]) or data_of(page)["settings"][0]["name"] == NASTY
    assert not re.search(r"https?:|//|@import|url\((?!#)", page.replace("url(#", ""))
    assert not {"link", "iframe", "object", "img"} & set(Table(page).tags)
    (link,) = Table(page).links
    assert (tmp_path / unquote(link)).is_file()


def test_runs_are_found_wherever_they_lie_but_not_within_others(tmp_path):
    for name in (
        "a/version_10",
        "a/version_9",
        "b/c/d/version_0",
        ".hidden/version_0",
        "a/version_9/inner",
        "1/2/3/4/5",
    ):
        write_run(tmp_path / name)
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in runs_in(tmp_path)]
    assert found == ["a/version_9", "a/version_10", "b/c/d/version_0"]


def test_what_cannot_be_read_is_left_out(tmp_path, damage):
    write_run(tmp_path / "a")
    broken = write_run(tmp_path / "b")
    for name in ("environment.json", "results.json", "config.yaml", "history.jsonl"):
        (broken / name).write_text(damage)
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "pipe")
    first, second = Table(write_overview(tmp_path).read_text()).rows
    assert (first[0], second[0]) == ("a", "b")


def test_settings_that_grow_without_end_are_not_read(tmp_path):
    folder = write_run(tmp_path / "a")
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    write_atomically(folder / "config.yaml", "\n".join(lines))
    assert data_of(write_overview(tmp_path).read_text())["settings"] == []


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run and holds none"):
        write_overview(tmp_path)


def test_it_is_a_function_of_the_folder(tmp_path):
    write_run(tmp_path / "a")
    assert write_overview(tmp_path).read_bytes() == write_overview(str(tmp_path)).read_bytes()
