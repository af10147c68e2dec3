"""The page of a run: it needs nothing from anywhere, escapes all that it shows, and survives damage."""

import base64
import json
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote, unquote_to_bytes

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightning_gen.files import write_atomically
from lightning_gen.runs.page import write_embedded_report, write_report
from lightning_gen.runs.rendering import duration


def strict(text):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def page_data(run):
    return page_data_of((run / "index.html").read_text())


def page_data_of(page):
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


OUTSIDE = r"https?:|//|@import|url\((?!#)"


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
    assert not re.search(OUTSIDE, re.sub(r"(?s)<pre>.*?</pre>", "", page).replace("url(#", ""))
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
    for name in ("environment.json", "results.json", "evaluations.json"):
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


NASTY = "</script><script>alert(1)</script>\"'&{{7*7}}"


def test_whatever_a_run_s_files_say_is_no_part_of_the_page_s_program(folder):
    environment = json.loads((folder / "environment.json").read_text())
    environment |= dict.fromkeys(("model", "data", "device", "odd", NASTY), NASTY)
    checkpoints = [{"monitor": NASTY, "value": 1, "step": 2, "path": "config.yaml"}]
    more = {"domains": [NASTY, NASTY], "status": f"stopped: {NASTY}", "best_checkpoints": checkpoints}
    write_atomically(folder / "environment.json", json.dumps(environment | more))
    metrics = {"test/psnr_AtoB": 1, "test/color_mapping_psnr_AtoB": 2, f"test/{NASTY}": 3}
    write_atomically(folder / "results.json", json.dumps({"checkpoint": NASTY, "metrics": metrics, "pictures": NASTY}))
    write_atomically(folder / "checkpoints" / "last.ckpt", b"x")
    evaluation = {"samples": {"checkpoint": NASTY, "global_step": 1}, "figures": {f"fid-{NASTY}": {"value": 1}}}
    evaluation |= {"seeds": [NASTY], "protocol": {"sampling": {NASTY: NASTY}}, "reference": {"file": NASTY}}
    write_atomically(folder / "evaluations.json", json.dumps({"evaluations": [evaluation]}))
    layout = PngInfo()
    cells = {"left": 0, "top": 0, "width": 1, "height": 1, "right": 1, "down": 1, "rows": 1}
    layout.add_text("layout", json.dumps({"titles": [NASTY, NASTY], **cells}))
    Image.new("RGB", (4, 4)).save(folder / "images" / "AtoB" / "step_00000020.png", pnginfo=layout)
    pages = [write_report(folder), write_embedded_report(folder).path]
    for page in pages:
        text = page.read_text()
        assert References(text).tags.count("script") == 2
        assert "<script>alert" not in text
        assert "7*7" in text
    assert panels_of(folder)[0]["columns"]["titles"] == [NASTY, NASTY]
    assert "It can go on from where it stopped" in pages[0].read_text()
    assert "Evaluations" in pages[0].read_text()


def test_the_figures_that_say_most_come_first_with_units_counts_and_baselines(folder):
    metrics = {"test/own": 1.5, "test/psnr_AtoB": 26.514, "test/color_mapping_psnr_AtoB": 12.2, "test/fid": "NaN"}
    results = {"checkpoint": "last.ckpt", "step": 3600, "metrics": metrics, "pictures": 128}
    write_atomically(folder / "results.json", json.dumps(results))
    write_atomically(folder / "checkpoints" / "last.ckpt", b"x")
    words = " ".join(re.sub(r"<[^>]*>", " ", write_report(folder).read_text().partition("</style>")[2]).split())
    first = "FID ↓ nan 128 test pictures PSNR, A to B ↑ 26.51 dB colour mapping: 12.2 dB 128 test pictures"
    assert first in words
    assert "last checkpoint checkpoints/last.ckpt" in words
    assert "Figures test of last.ckpt, step 3 600" in words
    row = "PSNR, A to B ↑ 26.51 dB 12.2 dB colour mapping 49 dB step 49 128 test pictures"
    assert row in words
    assert words.index(first) < words.index(row) < words.index("own 1.5") < words.index("Pictures")


def test_the_most_memory_that_a_process_of_the_run_has_held_is_a_small_fact(folder):
    assert "of memory at most" not in write_report(folder).read_text()
    with (folder / "history.jsonl").open("a") as file:
        file.writelines(f'{{"step": {s}, "memory_gib": {held}}}\n' for s, held in ((50, 2.5), (51, 1.5), (52, '"NaN"')))
    page = write_report(folder).read_text()
    assert "2.5 GiB of memory at most" in page
    assert not any("memory" in line["name"] for chart in page_data(folder)["charts"] for line in chart["lines"])


def test_without_a_script_the_last_pictures_and_all_figures_are_there(folder):
    write_atomically(folder / "results.json", json.dumps({"metrics": {"test/psnr": 20.0}}))
    page = re.sub(r"(?s)<script.*?</script>", "", write_report(folder).read_text())
    assert 'src="images/AtoB/step_00000020.png"' in page
    assert "20 dB" in page


# -- one file


def inlined(page):
    """The pictures in a page, as files."""
    return re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)


def test_one_file_has_all_pictures_and_needs_nothing_else(folder):
    made = write_embedded_report(folder)
    assert made.path == folder / "report.html"
    page = made.path.read_text()
    files = [path.read_bytes() for path in (folder / "images").rglob("*.png")]
    assert sorted(map(base64.b64decode, inlined(page))) == sorted(files), "each once"
    assert (made.size, made.pictures, made.of) == (made.path.stat().st_size, 6, 6)
    assert {reference[:22] for reference in References(page).found} == {"#", "data:image/png;base64,"}
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(OUTSIDE, re.sub(r"(?s)<pre>.*?</pre>", "", rest).replace("url(#", ""))
    (panel,) = (panel for panel in page_data_of(page)["panels"] if panel["name"] == "AtoB")
    assert panel["steps"] == [0, 10, 20]
    assert list(panel["pictures"]) == ["0", "10"], "the last one stands in its place"


def test_one_file_to_mail_stays_small_and_keeps_the_ends(folder):
    for step in range(100):
        Image.effect_noise((64, 64), 99).save(folder / "images" / "AtoB" / f"step_{step:08d}.png")
    made = write_embedded_report(folder, most=60_000)
    page = made.path.read_text()
    (panel,) = (panel for panel in page_data_of(page)["panels"] if panel["name"] == "AtoB")
    assert panel["steps"][0] == 0
    assert panel["steps"][-1] == 99
    assert 5 < len(panel["steps"]) < 20
    gaps = [b - a for a, b in zip(panel["steps"], panel["steps"][1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert sum(len(base64.b64decode(picture)) for picture in inlined(page)) <= 60_000
    assert (made.pictures, made.of) == (len(panel["steps"]) + 3, 103)
    assert write_embedded_report(folder, most=1).pictures == 2 + 2 + 1


def test_page_is_a_function_of_the_folder(folder):
    assert write_report(folder).read_bytes() == write_report(str(folder)).read_bytes()
    assert (folder / "index.html").exists()


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither history.jsonl nor pictures in images/"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (3540, "59 min"), (3600, "1 h 00 min"), (3630 * 48, "2.0 days")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
