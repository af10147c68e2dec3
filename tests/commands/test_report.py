import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_gen.commands.report import report
from lightning_gen.files import write_atomically


def test_the_page_is_written_again_from_what_the_run_has_recorded(tiny, command):
    tiny["trainer"]["max_steps"] = 2
    command("fit", "--config", tiny.write())
    run = Path("runs/cyclegan/version_0")
    page = run / "index.html"
    before = page.read_text()
    page.unlink()
    ended = command("report", run)
    assert ended.code == 0, ended.err
    assert ended.out == f"Report: {page}\n"
    assert page.read_text() == before

    # More has happened since, and the folder has moved.
    with (run / "history.jsonl").open("a") as history:
        history.write('{"step": 77, "seconds": 1.0, "train/cycle_A": 0.5}\n')
    moved = run.rename("moved")
    assert command("report", moved).code == 0
    assert "77" in (moved / "index.html").read_text()


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_that_is_no_runs(tmp_path, monkeypatch, command, folder):
    monkeypatch.chdir(tmp_path)
    ended = command("report", folder)
    assert ended.code == 1
    assert f"{folder} is not the folder of a run" in ended.err
    assert "Traceback" not in ended.err
    assert not any(tmp_path.iterdir())


def test_it_can_be_called_from_python(tmp_path, capsys):
    (tmp_path / "history.jsonl").write_text('{"step": 1, "train/a": 1.0}\n')
    assert report(tmp_path) == 0
    assert capsys.readouterr().out == f"Report: {tmp_path / 'index.html'}\n"


def write_run(folder, steps=(0, 5)):
    write_atomically(folder / "history.jsonl", '{"step": 5, "val/psnr": 20.0}\n')
    for step in steps:
        path = folder / "images" / "samples" / f"step_{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(path)
    return folder


def test_a_folder_of_runs_has_a_page_over_all_of_them(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        write_run(Path(f"runs/gan/version_{number}"))
    assert command("report", "runs/gan/version_0").code == 0
    ended = command("report", "runs")
    assert (ended.code, ended.out) == (0, "Report: runs/index.html\n")
    page = Path("runs/index.html").read_text()
    assert '<a href="gan/version_0/index.html">gan/version_0</a>' in page
    assert "gan/version_1" in page
    assert not Path("runs/gan/version_1/index.html").exists()


def test_a_page_to_mail_and_a_film_are_asked_for_by_a_word(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("run"))
    ended = command("report", run, "--embed", "--film")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert re.fullmatch(r"Report: run/report\.html, one file of \d+ kB with all 2 pictures", lines[0])
    assert re.fullmatch(r"Film: run/films/samples\.gif, \d+ kB", lines[1])
    ended = command("report", "--film", "false", run, "--embed=true")
    assert ended.out.startswith("Report: run/report.html, one file")
    assert "Film" not in ended.out
    ended = command("report", "--film", "gif", run)
    assert (ended.code, ended.out.splitlines()[0]) == (0, lines[1])
    monkeypatch.setitem(sys.modules, "av", None)
    ended = command("report", run, "--film", "mp4")
    assert (ended.code, "pip install av" in ended.err) == (1, True)
    shutil.rmtree(run / "images")
    ended = command("report", run, "--film")
    assert (ended.code, "no pictures of several steps" in ended.err) == (1, True)
    (run / "history.jsonl").unlink()
    ended = command("report", run, "--embed")
    assert (ended.code, "is not the folder of a run" in ended.err) == (1, True)


def test_no_page_waits_for_torch(tmp_path):
    write_run(tmp_path / "a")
    script = (
        "import sys; from pathlib import Path; from lightning_gen.commands.report import report; "
        "report(Path('.')); report(Path('a'), True, True); print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"
