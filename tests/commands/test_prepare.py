"""Prepared pictures by the command line."""

import pytest
import yaml

from lightning_gen.data import ImageFolder, PreparedFolder
from tests.data.test_cache import folders, paint
from tests.shared import differences


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "pictures")
    return "pictures"


def same(folder, data):
    found = PreparedFolder(folder, batch_size=data.batch_size, num_workers=0, seed=data.seed)
    return not differences([*found.train_dataloader()], [*data.train_dataloader()])


def test_data_by_options(root, command):
    data = "--data", "ImageFolder", "--data.root", root, "--data.image_size", 8, "--data.flip", "true"
    ended = command("prepare", *data, "--output", "made/prepared")
    assert ended.code == 0, ended.err
    assert "made/prepared holds the examples: 10 train, 1 val, 1 test. Train on them with --data Prep" in ended.out
    assert same("made/prepared", ImageFolder(root, image_size=8, flip=True, num_workers=0, batch_size=3)) is True
    again = command("prepare", *data, "--output", "made/prepared")
    assert again.code == 1
    assert "made/prepared holds prepared pictures already. Name another folder, or replace" in again.err
    other = *data[:-1], "false"
    assert command("prepare", *other, "--output", "made/prepared", "--overwrite", "true").code == 0
    assert same("made/prepared", ImageFolder(root, image_size=8, num_workers=0, batch_size=3))


def test_data_of_a_configuration(root, command, tmp_path):
    data = {"class_path": "ImageFolder", "init_args": {"root": "nowhere", "image_size": 8, "batch_size": 2}}
    settings = {"model": {"class_path": "WGANGP"}, "trainer": {"max_steps": 5}, "data": data}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    ended = command("prepare", "--config", "run.yaml", "--data.root", root, "--output", "prepared")
    assert ended.code == 0, ended.err
    assert same("prepared", ImageFolder(root, image_size=8, num_workers=0, batch_size=2))
    (tmp_path / "run.yaml").write_text("trainer: {}")
    assert "run.yaml configures no data" in command("prepare", "--config", "run.yaml", "--output", "x").err


def test_a_shipped_configuration(root, command, tmp_path):
    folders(tmp_path / "data")
    arguments = "--data.root", "data", "--data.resize", 12, "--data.crop", 9
    ended = command("prepare", "--config", "paper/cyclegan_horse2zebra", *arguments, "--output", "prepared")
    assert ended.code == 0, ended.err
    assert PreparedFolder("prepared").image_shape == (3, 9, 9)


def test_wrong_input_is_said(root, command):
    ended = command("prepare", "--data", "Digits", "--output", "prepared")
    assert ended.code == 1
    assert "prepare is for pictures that are read from files, as those of ImageFolder; Digits has none" in ended.err
    ended = command("prepare", "--data", "ImageFolder", "--data.root", root, "--data.imge_size", 8, "--output", "x")
    assert ended.code == 2
    assert "imge_size" in ended.err


def test_a_run_takes_its_pictures_from_a_cache_or_a_prepared_folder(root, command, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "own"))
    data = "--data", "ImageFolder", "--data.root", root, "--data.image_size", 32, "--data.num_workers", 0
    fit = "fit", "--config", "wgan_gp", *data, "--data.batch_size", 4, "--trainer.max_steps", 1
    for cache, folder in (("true", tmp_path / "own" / "pictures"), ("some/place", tmp_path / "some" / "place")):
        ended = command(*fit, "--data.cache", cache, "--trainer.callbacks", "null")
        assert ended.code == 0, ended.err
        assert [*folder.glob("*.pictures")]
    assert command("prepare", *data, "--output", "prepared").code == 0
    prepared = "--data", "PreparedFolder", "--data.root", "prepared", "--data.batch_size", 4, "--data.num_workers", 0
    ended = command("fit", "--config", "wgan_gp", *prepared, "--trainer.max_steps", 1, "--trainer.callbacks", "null")
    assert ended.code == 0, ended.err
