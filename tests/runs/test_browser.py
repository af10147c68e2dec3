"""The pages in a browser: their script draws what it should, and they fit a telephone."""

import html
import json
import os
import re
import shutil
import subprocess
import time

import pytest
import torch
from PIL.PngImagePlugin import PngInfo

from lightning_gen.data.grids import picture_grid
from lightning_gen.files import write_atomically
from lightning_gen.runs.overview import write_overview
from lightning_gen.runs.page import write_embedded_report, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
NASTY = "</script><script>document.title='taken over'</script>"
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom")


def write_run(folder, rate=0.1):
    lines = []
    for s in range(1, 9):
        line = {"step": s, "seconds": s, "images_seen": 64 * s, "val/is": s, "val/is_std": 1}
        lines.append({**line, "train/a_A": 1 / s, "train/a_B": 2 / s})
    lines.append({"step": 9, "images_seen": 600, "val/psnr": 20})
    write_atomically(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    settings = {"model": {"class_path": "GAN", "init_args": {"rate": rate, "note": NASTY}}}
    write_atomically(folder / "config.yaml", json.dumps(settings))
    environment = {"model": NASTY, "data": "Scenes", "status": "stopped: x", "domains": ["day", "night"]}
    write_atomically(folder / "environment.json", json.dumps(environment))
    write_atomically(folder / "checkpoints" / "last.ckpt", b"x")
    for step in (0, 8):
        columns = {"day": [torch.full((3, 8, 8), 250).byte()], "day to night": [torch.full((3, 8, 8), step).byte()]}
        path = folder / "images" / "AtoB" / f"step_{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid, layout = picture_grid(columns), PngInfo()
        layout.add_text("layout", grid.info["layout"])
        grid.save(path, pnginfo=layout)
    return folder


def seen(page, width, script):
    """What a script finds in a page of a width: the value of an expression of JavaScript, after `load`."""
    probe = f"""<script>
    const errors = [];
    addEventListener("error", event => errors.push(event.message));
    addEventListener("load", () => {{
      let found; try {{ found = (() => {{ {script} }})(); }} catch (error) {{ errors.push(String(error)); }}
      top.document.body.dataset.found = JSON.stringify({{ found, errors }});
    }});
    </script>"""
    copy = page.with_name("probed.html")
    copy.write_text(page.read_text().replace("<style>", f"{probe}<style>", 1))
    frame = page.with_name("frame.html")
    frame.write_text(f'<body><iframe src="{copy.name}" style="width:{width}px;height:900px;border:0"></iframe></body>')
    command = [CHROMIUM, *OPTIONS, f"file://{frame}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    answer = json.loads(html.unescape(re.search(r'data-found="(.*?)"', ended.stdout)[1]))
    assert answer["errors"] == []
    return answer["found"]


LARGE = """
  const all = selector => [...document.querySelectorAll(selector)];
  document.querySelector("#panel-0 a").click();
  return {
    wide: document.documentElement.scrollWidth - innerWidth, title: document.title,
    open: document.getElementById("large").open, compared: document.getElementById("compare").selectedOptions[0].text,
    axes: all("#axis option").filter(option => !option.disabled).map(option => option.value),
    bands: all(".band").length, points: all("circle[r='3.4']").length,
    legend: all(".legend button").map(button => button.textContent),
  };
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("write", [write_report, lambda folder: write_embedded_report(folder).path])
def test_a_run_s_page_draws_its_curves_and_opens_its_pictures(tmp_path, width, write):
    found = seen(write(write_run(tmp_path / "a")), width, LARGE)
    assert found["wide"] <= 0, "nothing is cut off"
    assert found["title"] == f"{NASTY} on Scenes"
    assert (found["open"], found["compared"]) == (True, "day | day to night")
    assert found["axes"] == ["step", "kimg"], "seconds are not known for the last line"
    assert found["bands"] == 1
    assert found["points"] == 1, "a single point is seen"
    assert found["legend"][:2] == ["a day0.125", "a night0.25"]
    assert any(words.endswith("8 \u00b1 1") for words in found["legend"]), "the score has its deviation"


ALL = """
  const all = selector => [...document.querySelectorAll(selector)];
  const names = () => all("tbody[data-run] label").map(label => label.textContent.trim());
  const before = names(), [head] = all("#runs thead button");
  head.click();
  head.click();
  return {
    wide: document.documentElement.scrollWidth - innerWidth, title: document.title, before, after: names(),
    settings: all("#settings tbody tr").map(row => [...row.children].map(cell => cell.textContent)),
    lines: all(".plot path:not(.band)").length,
  };
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_over_all_runs_sorts_lays_curves_over_each_other_and_compares_settings(tmp_path, width):
    for number, rate in enumerate((0.1, 0.2)):
        write_run(tmp_path / f"version_{number}", rate)
    found = seen(write_overview(tmp_path), width, ALL)
    assert found["wide"] <= 0
    assert found["title"] == f"2 runs in {tmp_path.name}"
    assert found["before"] == ["version_0", "version_1"]
    assert found["after"] == ["version_1", "version_0"]
    assert found["settings"] == [["model.rate", "0.1", "0.2"]]
    assert found["lines"] == 2


@pytest.mark.parametrize(("age", "shown"), [(60, False), (7200, True)])
def test_a_run_that_has_been_silent_for_long_says_how_it_could_go_on(tmp_path, age, shown):
    """Whoever is killed leaves a page that says "running"."""
    run = write_run(tmp_path / "a")
    write_atomically(run / "environment.json", json.dumps({"status": "running"}))
    for name in ("history.jsonl", "environment.json"):
        os.utime(run / name, (time.time() - age,) * 2)
    script = "const box = document.getElementById('silent'); return [!box.hidden, box.textContent];"
    visible, words = seen(write_report(run), 390, script)
    assert visible is shown
    assert f"lightning-gen fit --ckpt_path {run}/checkpoints/last.ckpt" in words


def test_the_page_over_thirty_long_runs_of_five_configurations_is_light(tmp_path):
    """What it weighs and draws does not grow with the length of runs, by which it opens at once."""
    for kind in range(5):
        for number in range(6):
            run = write_run(tmp_path / f"kind_{kind}" / f"version_{number}", number / 10)
            lines = [
                {
                    "step": s,
                    "seconds": s,
                    "images_seen": 64 * s,
                    "train/a_A": s % 7,
                    "train/b": s % 5,
                    "val/psnr": s % 9,
                }
                for s in range(1, 1001)
            ]
            write_atomically(run / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            environment = {"model": f"M{kind}", "data": "Scenes", "status": "finished", "domains": None}
            write_atomically(run / "environment.json", json.dumps(environment))
    script = """
      const lines = [...document.querySelectorAll(".plot path:not(.band)")];
      return {
        rows: document.querySelectorAll("tbody[data-run]").length,
        chips: document.getElementById("chips").children.length,
        lines: lines.length,
        places: Math.max(...lines.map(line => line.getAttribute("d").match(/[ML]/g).length)),
        elements: document.querySelectorAll("*").length,
      };
    """
    page = write_overview(tmp_path)
    found = seen(page, 1280, script)
    assert (found["rows"], found["chips"], found["lines"]) == (30, 6, 30)
    assert page.stat().st_size < 400_000
    assert found["places"] < 200, "of a thousand"
    assert found["elements"] < 1000
