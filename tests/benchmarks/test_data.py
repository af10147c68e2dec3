"""That contestants load the same pictures, and what these are."""

import os

import pytest
import torch

from benchmarks.data import (
    SMALL,
    contestants,
    main,
    make_files,
    memory_of,
    own_caches,
    photographs,
    start_run,
    tiles,
    write_pictures,
)

SIZE = 64
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")


@pytest.fixture
def folder(tmp_path):
    pictures = list(photographs(6, SIZE))
    for name in ("train", "val", "trainA", "testA", "testB"):
        write_pictures(tmp_path / "both" / name, pictures[:4], "jpg")
    write_pictures(tmp_path / "both" / "trainB", pictures[2:], "jpg")
    return tmp_path / "both"


def of_one_domain(folder, tmp_path):
    for name in ("train", "val"):
        (tmp_path / "one").mkdir(exist_ok=True)
        (folder / name).rename(tmp_path / "one" / name)
    return tmp_path / "one"


def assert_equal_epochs(one, other):
    for _ in range(2):
        batches = list(one()), list(other())
        assert len(batches[0]) == len(batches[1])
        for ours, theirs in zip(*batches, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_earlier_reader_gives_the_pictures_that_ours_gives_exactly(folder, tmp_path):
    unpaired = contestants(folder, "jpg", 36, 32, 1)
    assert_equal_epochs(unpaired["ours, exact_decode"], unpaired["earlier"])
    single = contestants(of_one_domain(folder, tmp_path), "jpg", 16, 16, 2)
    assert_equal_epochs(single["ours, exact_decode"], single["earlier"])


def test_all_who_load_give_the_same_pictures_but_for_kernels_and_chance(folder, tmp_path):
    found = contestants(of_one_domain(folder, tmp_path), "jpg", 32, 32, 4)
    assert len(list(found.pop("decoding alone")())) == 1
    expected = next(found["ours, exact_decode"]())["image"]
    # Of an order and a side that are drawn, the mean of rows over all pictures keeps what is left.
    rows = expected.mean((0, 3))
    assert rows.std() > 0.1
    for name, batches in found.items():
        (batch,) = batches()
        pictures = batch["image"]
        assert pictures.shape == (4, 3, 32, 32), name
        assert pictures.dtype == torch.float32, name
        torch.testing.assert_close(pictures.mean((0, 3)), rows, atol=0.05, rtol=0, msg=name)


def test_pictures_have_as_many_bits_as_photographs(tmp_path):
    write_pictures(tmp_path, photographs(2, 1024), "jpg")
    for file in (tmp_path / "all").iterdir():
        assert 1.5 < 8 * file.stat().st_size / 1024**2 < 3


def test_tiles_lie_side_by_side():
    picture = torch.arange(3 * 4 * 6).view(3, 4, 6)
    picture = torch.cat([picture, picture], 1)[:, :6]
    found = tiles([picture], 3)
    assert len(found) == 4
    assert torch.equal(torch.cat([torch.cat(found[:2], 2), torch.cat(found[2:], 2)], 1), picture)


def test_starts_over_many_files_are_measured(tmp_path):
    make_files(tmp_path / "many", 1100)
    with own_caches(tmp_path / "caches"):
        assert len(list((tmp_path / "many" / "train").rglob("*.png"))) == 1100
        found = start_run(tmp_path / "many")
        assert 0 < found["list"] < found["first batch"]
        assert memory_of(tmp_path / "many") > 0


def test_it_measures_every_part_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", "mine")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    main(["--small", "--turns", "1"])
    printed = capsys.readouterr().out
    for part in ("drawings", "png", "webp", "pairs", f"-> {SMALL.tile}", "in memory"):
        assert part in printed
    assert os.environ["LIGHTNING_GEN_CACHE"] == "mine"
    assert not list(tmp_path.iterdir())
