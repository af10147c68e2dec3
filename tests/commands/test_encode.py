"""Codes for other programs."""

import json

import numpy as np
import pytest
import torch

from lightning_gen.checkpoints import digest_weights
from lightning_gen.data import Codes, Digits
from tests.data.test_codes import Blocks, Pyramid
from tests.shared import Mute, save

DIGITS = "--data", "Digits", "--data.num_workers", 0


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("kind", [Blocks, Pyramid])
def test_the_file_has_codes_labels_and_what_they_are_of(kind, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    save(kind())
    ended = command("encode", "--checkpoint", "a.ckpt", *DIGITS, "--output", "out/codes.npz", "--split", "test")
    assert ended.code == 0, ended.err
    found, digits = read("out/codes.npz"), Digits(num_workers=0).test_set()
    codes = kind().codes(digits.images * 2 - 1)
    names = ["codes"] if kind is Blocks else ["codes_0", "codes_1"]
    for name, expected in zip(names, codes if isinstance(codes, list) else [codes], strict=True):
        assert np.array_equal(found[name], expected.numpy())
        assert found[name].dtype == np.uint16
    assert np.array_equal(found["labels"], digits.labels.numpy())
    meta = json.loads(str(found["meta"]))
    assert meta["weights"] == digest_weights(kind().state_dict())
    assert (meta["num_codes"], meta["data"], meta["split"]) == (5, "Digits", "test")


def test_views_are_a_dimension_and_are_those_that_training_sees(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    save(Blocks())
    arguments = ["encode", "--checkpoint", "a.ckpt", *DIGITS, "--output", "codes.npz", "--crops", 5, "--flip", "true"]
    assert command(*arguments).code == 0
    rows = Codes(Digits(num_workers=0), "a.ckpt", crops=5, flip=True).dataset("train").rows
    assert np.array_equal(read("codes.npz")["codes"].reshape(len(rows), 10, 4), rows["codes"])
    ended = command(*arguments)
    assert ended.code == 1
    assert "codes.npz is there already" in ended.err


def test_wrong_input_is_said(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    save(Blocks())
    arguments = ["encode", "--checkpoint", "a.ckpt", *DIGITS, "--output"]
    assert "must end in .npz" in command(*arguments, "codes.txt").err
    assert "There is no checkpoint" in command("encode", "--checkpoint", "b", *DIGITS, "--output", "c.npz").err
    assert "gives pictures of (1, 12, 12)" in command(*arguments, "codes.npz", "--data.pad", 2).err
    torch.manual_seed(0)
    save(Mute((1, 8, 8)))
    assert "a.ckpt holds a Mute, which makes no codes" in command(*arguments, "codes.npz").err
