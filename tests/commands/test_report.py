from pathlib import Path

import pytest

from lightning_gen.commands.report import report


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
