"""The record of a run: strict, complete, and readable whatever has happened to it."""

import json
import os
import signal

import pytest

from lightning_gen.runs.history import add_to_history, number, read_history, strict_json, sync_history, write_history


def test_lines_are_strict_json_and_read_back(tmp_path):
    path = tmp_path / "run" / "history.jsonl"
    lines = [{"step": 1, "a": 0.5}, {"step": 2, "b": float("nan"), "c": float("-inf")}]
    for line in lines:
        add_to_history(path, line)
    assert path.read_text() == '{"step": 1, "a": 0.5}\n{"step": 2, "b": "NaN", "c": "-Infinity"}\n'
    assert read_history(path) == [{"step": 1, "a": 0.5}, {"step": 2, "b": "NaN", "c": "-Infinity"}]
    write_history(path, read_history(path)[:1])
    assert path.read_text() == '{"step": 1, "a": 0.5}\n'


def test_what_a_full_disk_cut_short_costs_no_other_line(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "train/')
    add_to_history(path, {"step": 3})
    assert read_history(path) == [{"step": 1}, {"step": 3}]
    assert path.read_text().endswith('"train/\n{"step": 3}\n')


def write_until_killed(path):
    for step in range(100):
        add_to_history(path, {"step": step})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_costs_no_line(tmp_path, fresh_process):
    path = tmp_path / "history.jsonl"
    fresh_process(write_until_killed, path)
    assert [line["step"] for line in read_history(path)] == list(range(100))


def test_what_is_no_line_is_left_out(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    assert read_history(tmp_path) == []
    steps = ["true", "-1", "1.0", '"1"', "null", "[1]", "1" + "0" * 40, "1" + "0" * 5000]
    lines = [
        '{"step": 7, "a": 1, "b": [1], "c": {}}',
        "x",
        "1",
        "[" * 10**5,
        *(f'{{"step": {step}}}' for step in steps),
    ]
    path.write_text("\n".join(lines))
    assert read_history(path) == [{"step": 7, "a": 1}]
    path.write_bytes(b'\xff\xfe\x00\n{"step": 8, "\xff": 1}\r\n')
    assert read_history(path) == [{"step": 8, "�": 1}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), ("2.5", 2.5), (True, None), (None, None), ("x", None), ([1], None), (10**400, None)],
)
def test_numbers(value, expected):
    assert number(value) == expected


def test_json_knows_no_nan():
    text = strict_json({"a": [float("inf"), (float("nan"),)], 1: {"b": 0.5}})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": ["Infinity", ["NaN"]], "1": {"b": 0.5}}


def test_syncing_makes_no_file(tmp_path):
    sync_history(tmp_path / "history.jsonl")
    assert not list(tmp_path.iterdir())
    add_to_history(tmp_path / "history.jsonl", {"step": 1})
    sync_history(tmp_path / "history.jsonl")
    assert read_history(tmp_path / "history.jsonl") == [{"step": 1}]
