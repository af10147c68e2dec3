"""The table of a run that is stopped and goes on has each row once."""

import csv

import pytest

from lightning_gen.callbacks import RunLogger

# Lightning's own word about a folder that is not empty; here the rows are kept.
pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory")


def table(logger):
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:  # noqa: PTH123
        return list(csv.DictReader(file))


def log(logger, rows):
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    logger.save()
    logger.finalize("success")


FIRST = [(1, {"train/a": 0.5}), (2, {"train/a": 0.25}), (2, {"val/b": 1.5}), (3, {"train/a": 0.125})]


def test_runs_are_numbered_and_each_has_its_folder(tmp_path):
    for number in range(2):
        logger = RunLogger(str(tmp_path), "cyclegan")
        log(logger, FIRST)
        assert logger.log_dir == str(tmp_path / "cyclegan" / f"version_{number}")
        assert [row["step"] for row in table(logger)] == ["1", "2", "2", "3"]


def test_a_run_that_goes_on_keeps_the_rows_up_to_its_checkpoint_and_adds_its_own(tmp_path):
    log(RunLogger(str(tmp_path), "run", "version_0"), FIRST)
    again = RunLogger(str(tmp_path), "run", "version_0", keep_until=2)
    # A column of its own, too.
    log(again, [(3, {"train/a": 9.0, "train/c": 7.0}), (4, {"train/a": 8.0})])
    rows = table(again)
    assert [row["step"] for row in rows] == ["1", "2", "2", "3", "4"]
    assert [row["train/a"] for row in rows] == ["0.5", "0.25", "", "9.0", "8.0"]
    assert [row["val/b"] for row in rows] == ["", "", "1.5", "", ""]
    assert [row["train/c"] for row in rows] == ["", "", "", "7.0", ""]
    # And again, from the very start.
    third = RunLogger(str(tmp_path), "run", "version_0", keep_until=0)
    log(third, [(1, {"train/a": 0.0})])
    assert [row["step"] for row in table(third)] == ["1"]


def test_the_rows_are_on_disk_before_anything_new_is_logged(tmp_path):
    log(RunLogger(str(tmp_path), "run", "version_0"), FIRST)
    again = RunLogger(str(tmp_path), "run", "version_0", keep_until=10)
    assert again.experiment is again.experiment
    assert [row["step"] for row in table(again)] == ["1", "2", "2", "3"]


def test_without_keep_until_it_starts_anew_as_lightning_s_does(tmp_path):
    log(RunLogger(str(tmp_path), "run", "version_0"), FIRST)
    again = RunLogger(str(tmp_path), "run", "version_0")
    log(again, [(1, {"train/a": 3.0})])
    assert [row["train/a"] for row in table(again)] == ["3.0"]
