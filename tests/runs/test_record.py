"""What the folder of a run tells: status, figures, checkpoints, pictures."""

import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightning_gen.files import write_atomically
from lightning_gen.runs.lock import LOCK, lock_run, unlock_run
from lightning_gen.runs.record import KILLED, Record


@pytest.fixture
def run(tmp_path):
    """Writes files of a run, JSON from dictionaries and lists of lines, and gives its record."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / {"history": "history.jsonl", "config": "config.yaml"}.get(name, f"{name}.json")
            text = "".join(json.dumps(line) + "\n" for line in content) if name == "history" else json.dumps(content)
            write_atomically(path, text)
        return Record(tmp_path)

    return write


# -- figures


def names(figures):
    return [one.figure.name for one in figures]


def test_a_translator_leads_with_its_figure_beside_the_baseline(run):
    metrics = {"test/ssim_AtoB": 0.8, "test/psnr_AtoB": 26.5, "test/psnr_BtoA": 25.0, "test/own": 1.0}
    baseline = {"test/color_mapping_psnr_AtoB": 12.2, "test/color_mapping_psnr_BtoA": 11.1}
    record = run(
        results={"metrics": baseline | metrics, "pictures": 128},
        history=[{"step": 10, "val/psnr_AtoB": 27.0}, {"step": 20, "val/psnr_AtoB": 26.0}],
    )
    assert names(record.leading) == ["test/psnr_AtoB", "test/psnr_BtoA", "test/ssim_AtoB"]
    first = record.leading[0]
    assert (first.text(first.shown), first.baselines, first.of) == (
        "26.5 dB",
        {"colour mapping": 12.2},
        "128 test pictures",
    )
    assert first.best == (10, 27.0)
    assert names(record.figures)[-1] == "test/own"


def test_points_lead_with_modes_and_quality(run):
    metrics = {"test/fid-points": 0.01, "test/wasserstein_1": 0.1, "test/high_quality": 0.938, "test/modes": 25.0}
    measured_on = {"test/modes": {"samples": 2500, "most": 25}, "test/high_quality": {"samples": 2500}}
    record = run(results={"metrics": metrics, "measured_on": measured_on, "pictures": 256})
    texts = [(one.figure.base, one.text(one.shown), one.of) for one in record.leading]
    assert texts == [("modes", "25 of 25", "2\u2009500 samples"), ("high_quality", "93.8 %", "2\u2009500 samples")]


def test_without_a_test_the_best_of_the_validations_leads(run):
    history = [{"step": s, "val/fid-a": abs(s - 3.0), "val/is_std": 1.0, "train/fid": 0.0} for s in (1, 2, 3, 4)]
    record = run(history=history, environment={"measured_on": {"val/fid-a": {"samples": 5000}}})
    (fid,) = record.leading
    assert (fid.value, fid.best, fid.shown, fid.of) == (None, (3, 0.0), 0.0, "5\u2009000 samples")


def test_a_test_and_validations_are_each_of_their_own_number_of_pictures(run):
    def measured(samples, tested):
        return run(
            results={"metrics": {"test/fid-a": 7.0}, "measured_on": {"test/fid-a": {"samples": tested}}},
            environment={"measured_on": {"val/fid-a": {"samples": samples}}},
            history=[{"step": 1, "val/fid-a": 9.0}],
        ).figures

    (fid,) = measured(500, 10_000)
    assert (fid.best, fid.of, fid.best_of) == ((1, 9.0), "10\u2009000 samples", "500 samples")
    (fid,) = measured(500, 500)
    assert (fid.of, fid.best_of) == ("500 samples", "")


def test_reconstructions_and_likelihoods_have_an_order(run):
    metrics = dict.fromkeys(["test/ssim", "test/psnr", "test/rfid-a", "test/perplexity"], 1.0)
    assert [one.figure.base for one in run(results={"metrics": metrics}).leading] == ["rfid", "psnr"]
    metrics = dict.fromkeys(["test/fid-a", "test/nll-static", "test/bpd-static"], 1.0)
    assert [one.figure.base for one in run(results={"metrics": metrics}).leading] == ["bpd", "nll"]


# -- how it is


def hold(folder):
    lock_run(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_whose_process_was_killed_has_stopped_and_says_how_to_go_on(run, fresh_process, tmp_path):
    record = run(environment={"status": "running"}, config={}, history=[{"step": 1}])
    assert record.is_going_on, "nobody says otherwise"
    write_atomically(tmp_path / "checkpoints" / "last.ckpt", b"x")
    fresh_process(hold, tmp_path)
    assert (tmp_path / LOCK).exists()
    record = Record(tmp_path)
    assert record.status == KILLED
    assert record.going_on == f"lightning-gen fit --ckpt_path {tmp_path}/checkpoints/last.ckpt"
    assert Record(tmp_path, "running").is_going_on, "who trains knows better"
    lock_run(tmp_path)
    assert Record(tmp_path).is_going_on
    assert Record(tmp_path).is_going_on, "to look takes no lock away"
    unlock_run(tmp_path)


def test_only_what_can_go_on_says_how(run, tmp_path):
    assert run(environment={"status": "stopped: x"}, config={}).going_on == "", "without a checkpoint"
    write_atomically(tmp_path / "checkpoints" / "last.ckpt", b"x")
    assert Record(tmp_path).going_on
    for status in ("finished", "running"):
        assert run(environment={"status": status}).going_on == ""
    (tmp_path / "config.yaml").unlink()
    assert run(environment={"status": "stopped: x"}).going_on == "", "a run of a trainer of one's own"


def test_the_command_to_go_on_is_quoted(tmp_path):
    folder = tmp_path / "it's; here"
    write_atomically(folder / "environment.json", '{"status": "stopped: interrupted"}')
    write_atomically(folder / "config.yaml", "a: 1")
    write_atomically(folder / "checkpoints" / "last.ckpt", b"x")
    assert Record(folder).going_on.endswith(f"'{tmp_path}/it'\"'\"'s; here/checkpoints/last.ckpt'")


# -- checkpoints


def test_checkpoints_are_those_that_are_there_the_best_first(run, tmp_path):
    for name in ("last", "step=20"):
        write_atomically(tmp_path / "checkpoints" / f"{name}.ckpt", b"x")
    best = [
        {"monitor": "val/psnr", "value": 26.514, "step": 20, "path": "checkpoints/step=20.ckpt"},
        {"monitor": "val/fid", "value": 3.0, "step": 10, "path": "checkpoints/lost.ckpt"},
        {"monitor": "val/odd", "path": ["x"]},
        "odd",
    ]
    found = run(environment={"best_checkpoints": best, "last_checkpoint": 30}).checkpoints
    assert [(one.path, one.step, one.by, one.words) for one in found] == [
        ("checkpoints/step=20.ckpt", 20, "val/psnr", "26.51 dB"),
        ("checkpoints/last.ckpt", 30, "", ""),
    ]
    for odd in ("x" * 10_000, "a\0b"):
        assert len(run(environment={"best_checkpoints": [{"path": odd}]}).checkpoints) == 1


# -- pictures


def picture(path, layout=None, size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    if layout is not None:
        info.add_text("layout", layout if isinstance(layout, str) else json.dumps(layout))
    Image.new("RGB", size).save(path, pnginfo=info)


def test_panels_have_the_data_s_names_and_an_order(run, tmp_path):
    for name in ("AtoB", "test_BtoA", "real", "nearest", "samples", "latent_map", "test_nearest"):
        picture(tmp_path / "images" / name / "step_00000001.png")
    titles = [panel["title"] for panel in run(environment={"domains": ["day", "night"]}).panels]
    assert titles == [
        "samples",
        "real pictures",
        "samples and the nearest training pictures",
        "day to night",
        "latent map",
        "samples and the nearest training pictures, test",
        "night to day, test",
    ]
    assert [panel["title"] for panel in run(environment={"domains": 7}).panels][3] == "A to B"


GOOD = {"titles": ["a", "b"], "left": 2, "top": 4, "width": 12, "height": 14, "right": 14, "down": 16, "rows": 1}


@pytest.mark.parametrize(
    "layout",
    [
        None,
        "x",
        "[1]",
        "[" * 10**5,
        GOOD | {"titles": ["a", "b", "c"]},  # beyond the edge
        GOOD | {"rows": 2},
        GOOD | {"rows": 0},
        GOOD | {"left": -3},
        GOOD | {"width": "x"},
        GOOD | {"titles": ["a"]},  # nothing to compare
    ],
)
def test_columns_are_believed_where_they_lie_within_the_picture(run, tmp_path, layout):
    path = Path(tmp_path / "images" / "AtoB" / "step_00000001.png")
    picture(path, GOOD)
    (panel,) = run(environment={}).panels
    assert panel["columns"] == GOOD
    picture(path, layout)
    (panel,) = Record(tmp_path).panels
    assert "columns" not in panel
