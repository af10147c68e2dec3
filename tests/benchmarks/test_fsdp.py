"""Shares beside copies, on two processes of this machine, as small as can be."""

import json

import pytest

from benchmarks.fsdp import main


def test_both_learn_the_same_and_shares_hold_half(tmp_path, capfd):
    options = ["--accelerator", "cpu", "--sizes", "tiny", "--side", "2", "--pictures", "1", "--steps", "3"]
    main([*options, "--json", str(tmp_path / "a.json")])
    found = json.loads((tmp_path / "a.json").read_text())["figures"]["tiny"]
    assert 0 <= found["apart"] < 1e-3
    copies, shares = (found[strategy]["held"] for strategy in ("ddp", "fsdp"))
    assert copies[0] == copies[1]
    # Shares are of rows, which a matrix of an odd number of them has not as many of on the last rank.
    assert sum(shares) == pytest.approx(copies[0], rel=0.02)
    assert found["fsdp"]["peak"] == [None, None]
    assert "apart by" in capfd.readouterr().out


def test_as_many_gpus_as_processes(capsys):
    with pytest.raises(SystemExit):
        main(["--devices", "99"])
    assert "--devices 99 needs as many GPUs" in capsys.readouterr().err
