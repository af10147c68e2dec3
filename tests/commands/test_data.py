"""A look at data before anything is trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data import ImageFolder, rates
from lightning_gen.data.images import read_image, to_uint8
from tests.data.test_looking import write
from tests.shared import tile

ALONE = "--seconds", 0  # of each rate
QUICK = "--seconds", 0.05


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """A folder of two classes, with files that are no pictures."""
    monkeypatch.chdir(tmp_path)
    for split, number in (("train", 5), ("val", 2)):
        for name in ("daisy", "rose"):
            for i in range(number):
                write(Path("flowers") / split / name / f"{split}{i}.png", 12, 16)
    Path("flowers/train/daisy/notes.md").write_text("roses are red")
    Path("flowers/train/rose/empty.png").touch()
    options = {"root": "flowers", "image_size": 8, "batch_size": 4, "num_workers": 0}
    return "--data", "ImageFolder", *(f"--data.{name}={value}" for name, value in options.items())


@pytest.fixture
def measured(monkeypatch):
    """Lets rates be what a test says: by numbers of workers, and of the model."""

    def set_to(loading, training):
        monkeypatch.setattr(rates, "numbers_of_workers", lambda: list(loading))
        monkeypatch.setattr(rates, "loading_rate", lambda data, workers, seconds: loading[workers or 0])
        monkeypatch.setattr(rates, "training_rate", lambda *_: training)

    return set_to


def test_a_folder_without_a_model(flowers, command):
    options = (*flowers, "--data.labels", "true", "--data.skip_broken", "true", "--data.crop", "random")
    ended = command("data", *options, "--output", "look", "--json", "facts.json", "--looks", 2, *QUICK)
    assert ended.code == 0, ended.err
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0][:11] == ["ImageFolder,", "whose", "pictures", "are", "given", "as", "3", "x", "8", "x", "8"]
    assert ["pictures", "10", "4", "4"] in lines
    assert ["daisy", "5", "2", "2"] in lines
    assert "val and test are the same pictures" in ended.out
    assert "flowers: 15 picture files; left out by their endings: 1 .md." in ended.out
    assert "1 of 15 picture files cannot be read. empty: 1 (train/rose/empty.png). They are left out." in ended.out
    assert ["train", "12,", "12,", "12", "16,", "16,", "16", "0%"] in lines
    assert "train: resized to just cover 8 x 8, their aspect ratio kept, cropped at random to 8 x 8" in ended.out
    said = {number: f"with {number} worker{'s' if number > 1 else ''} " for number in rates.numbers_of_workers()}
    assert all(words in ended.out for number, words in said.items() if number)
    assert "without workers" in ended.out

    facts = json.loads(Path("facts.json").read_text())
    assert facts["splits"]["train"]["examples"] == 10
    assert facts["splits"]["train"]["counts"] == {"daisy": 5, "rose": 5}
    assert facts["splits"]["train"]["files"]["image"]["heights"] == [12, 12, 12]
    assert len(facts["left_out"]) == 2
    assert [int(number) for number in facts["loading"]] == rates.numbers_of_workers()
    assert min(facts["loading"].values()) > 0
    assert {path.name for path in Path().iterdir()} == {"flowers", "look", "facts.json"}  # and no run

    grid = torch.from_numpy(np.array(Image.open("look/data_val.png"))).permute(2, 0, 1)
    assert min(grid.shape[1:]) > 4
    again = command("data", *options, "--output", "look", *ALONE)
    assert again.code == 1
    assert "look/data_train.png is there already. Name another place, or replace it with --overwrite" in again.err
    assert command("data", *options, "--output", "look", "--overwrite", "true", *ALONE).code == 0


def test_the_pictures_are_those_of_training(flowers, command):
    Path("flowers/train/rose/empty.png").unlink()
    ended = command("data", *flowers, "--data.flip", "true", "--looks", 2, *ALONE)
    assert ended.code == 0, ended.err
    grid = torch.from_numpy(np.array(Image.open("data_train.png"))).permute(2, 0, 1)
    data = ImageFolder("flowers", image_size=8, flip=True, batch_size=10, num_workers=0)
    loader = data.train_dataloader()
    (batch,) = loader
    for row in range(8):
        picture = batch["image"][row]
        expected = picture if picture.dtype == torch.uint8 else to_uint8(picture)
        assert torch.equal(tile(grid, row, 0, rows=8), expected)


def test_what_the_data_refuses_is_refused_as_in_training(flowers, command):
    fit = command("fit", "--model", "VAE", *flowers)
    look = command("data", *flowers)
    assert (look.code, look.err) == (fit.code, fit.err)
    assert "or leave them out with skip_broken: true" in look.err
    wrong = command("data", *flowers, "--data.image_siz", 8)
    assert wrong.code == 2
    assert "Option 'image_siz' is not accepted" in wrong.err
    assert command("data", "--config", "cyclegan", "--lookz", 2).code == 2
    assert "looks must be at least 1" in command("data", "--data", "Digits", "--looks", 0).err
    assert not list(Path().glob("*.png"))


def test_a_model_is_measured_and_nothing_is_kept(tiny, command):
    ended = command("data", "--config", tiny.write(), *QUICK, "--json", "facts.json")
    assert ended.code == 0, ended.err
    assert ["pairs", "3", "2", "2"] in [line.split() for line in ended.out.splitlines()]
    facts = json.loads(Path("facts.json").read_text())
    assert facts["unit"] == "pairs"
    assert facts["training"] > 0
    assert facts["device"] == "cpu"
    assert "CycleGAN takes " in ended.out
    assert " pairs a second on cpu with precision 32-true." in ended.out
    assert {path.name for path in Path().iterdir()} == {"tiny.yaml", "data_train.png", "data_val.png", "facts.json"}
    picture = read_image("data_train.png")
    assert picture.shape[2] == 2 + 8 * (96 + 2)  # four epochs of A and B


@pytest.mark.parametrize(
    ("loading", "training", "words"),
    [
        ({0: 3000.0, 2: 400.0}, 100.0, "It is fed without workers: --data.num_workers 0"),
        ({0: 300.0, 2: 500.0, 4: 20000.0}, 512.0, "It is fed with 4 workers: --data.num_workers 4"),
        ({0: 300.0, 2: 900.0, 4: 500.0}, 1800.0, "None feeds it. With 2 workers it waits least: 67% of the time."),
    ],
)
def test_which_workers_feed_the_model(tiny, command, measured, loading, training, words):
    measured(loading, training)
    ended = command("data", "--config", tiny.write(), "--json", "facts.json")
    assert ended.code == 0, ended.err
    assert words in ended.out
    assert ("\nTrain where there are more cores." in ended.out) == ("None" in words)  # of files there are none
    workers = json.loads(Path("facts.json").read_text())["workers"]
    assert workers == (None if "None" in words else int(words[-1]))


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "Decode the pictures once, by --data.cache true; or keep"),
        (["--data.exact_decode", "true"], "once, by --data.cache true; or decode only what the size asks for, by"),
        (["--data.cache", "true", "--data.batch_size", 8], "Keep the files smaller; or train where"),
    ],
)
def test_what_to_do_where_no_number_of_workers_is_enough(flowers, command, measured, options, advice):
    measured({0: 100.0, 2: 200.0}, 1000.0)
    Path("flowers/train/rose/empty.png").unlink()
    ended = command("data", "--config", "dcgan", *flowers, *options, "--data.image_size", 32)
    assert ended.code == 0, ended.err
    assert "None feeds it. With 2 workers it waits least: 83% of the time." in ended.out
    assert advice in ended.out


def test_a_run_is_looked_at_again(tiny, command):
    assert command("fit", "--config", tiny.write(), "--trainer.max_steps", 1).code == 0
    run = Path("runs/cyclegan/version_0")
    before = sorted(run.rglob("*"))
    ended = command("data", "--ckpt_path", run, *ALONE)
    assert ended.code == 0, ended.err
    assert "UnpairedScenes" in ended.out
    assert command("data", "--config", run / "config.yaml", "--overwrite", "true", *ALONE).code == 0
    assert sorted(run.rglob("*")) == before


def test_points_and_codes_and_a_first_stage_that_is_not_there(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    points = command("data", "--config", "wgan_gp", *ALONE, "--output", "points")
    assert points.code == 0, points.err
    assert points.out.splitlines()[3].split() == ["points", "100000", "2560", "2560"]
    assert Image.open("points/data_train.png").size == (512, 512)

    codes = command("data", "--config", "vqvae_prior", "--output", "codes")
    assert codes.code == 0, codes.err
    assert "How fast the model is cannot be measured: it is made of another, vqvae.yaml" in codes.out
    assert "Scenes, whose pictures are given as 3 x 32 x 32" in codes.out
    assert "Codes are made of these pictures once" in codes.out
    assert not (tmp_path / "cache").exists()
