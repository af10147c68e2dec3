"""Results do not mix with what was there before, and skipped files are counted."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.commands.complete import complete
from lightning_gen.commands.latents import arithmetic, interpolate
from lightning_gen.commands.results import Results, Skipped
from lightning_gen.commands.sample import sample
from lightning_gen.commands.translate import translate
from lightning_gen.models import GAN, CycleGAN, GatedPixelCNN
from lightning_gen.networks import (
    GatedPixelCNNNetwork,
    MLPDiscriminator,
    MLPGenerator,
    PatchDiscriminator,
    ResNetGenerator,
)
from tests.shared import save


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(path, height=8, width=8):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width), np.uint8)).save(path)
    return Path(path)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def gan(shape=(1, 8, 8)):
    generator, discriminator = partial(MLPGenerator, widths=(4,)), partial(MLPDiscriminator, widths=(4,))
    return GAN(shape, generator, discriminator, latent_size=3)


def cyclegan():
    generator = partial(ResNetGenerator, filters=2, blocks=1)
    return CycleGAN((1, 8, 8), generator, partial(PatchDiscriminator, filters=2, layers=1))


def pixelcnn():
    return GatedPixelCNN((1, 8, 8), network=partial(GatedPixelCNNNetwork, filters=2, layers=2))


COMMANDS = {
    "sample": (gan, partial(sample, num_samples=2), ["000000.png", "000001.png"]),
    "points": (partial(gan, (2, 1, 1)), partial(sample, num_samples=2), ["points.csv"]),
    "interpolate": (gan, partial(interpolate, pairs=1, steps=2), ["pair_000/000.png", "pair_000/001.png"]),
    "arithmetic": (
        gan,
        partial(arithmetic, a="0", b="1", c="2"),
        [*(f"{c}_{i}.png" for c in "abc" for i in (0, "mean")), *(f"result_{i}.png" for i in range(9))],
    ),
    "complete": (
        pixelcnn,
        partial(complete, input=Path("in"), samples=1),
        ["completions/b_0.png", "strips/b.png"],
    ),
    "translate": (cyclegan, partial(translate, input=Path("in")), ["b.png"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_holds_results_is_left_alone_unless_told_otherwise(name, capsys):
    make, command, expected = COMMANDS[name]
    picture("in/b.png")
    run = partial(command, save(make()), output=Path("new/out"), accelerator="cpu")
    assert run() == 0
    assert files_below("new/out") == expected
    before = {path: path.read_bytes() for path in Path("new").rglob("*") if path.is_file()}
    what = "1 file already" if name == "points" else f"{len(expected)} picture{'s' * (len(expected) > 1)} already"
    with pytest.raises(FileExistsError, match=f"The output new/out holds {what}, .* --overwrite true"):
        run()
    assert {path: path.read_bytes() for path in Path("new").rglob("*") if path.is_file()} == before
    assert run(overwrite=True) == 0
    assert files_below("new/out") == expected


def test_fewer_samples_leave_none_of_the_earlier_ones_and_all_that_are_not_samples():
    checkpoint = save(gan())
    sample(checkpoint, Path("out"), num_samples=20, accelerator="cpu")
    picture("out/mine/000003.png")
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="The output out holds 21 pictures already"):
        sample(checkpoint, Path("out"), num_samples=5, accelerator="cpu")
    sample(checkpoint, Path("out"), num_samples=5, overwrite=True, accelerator="cpu")
    assert files_below("out") == [*(f"00000{i}.png" for i in range(5)), "mine/000003.png", "notes.txt"]


def test_what_cannot_be_drawn_costs_no_earlier_results():
    checkpoint = save(gan())
    sample(checkpoint, Path("out"), num_samples=3, accelerator="cpu")
    with pytest.raises(ValueError, match="has no classes to choose from"):
        sample(checkpoint, Path("out"), labels=1, overwrite=True, accelerator="cpu")
    assert len(files_below("out")) == 3


@pytest.mark.parametrize(
    ("folder", "grid"), [("out", "out_grid.png"), ("out/", "out_grid.png"), (".", "../here_grid.png")]
)
def test_the_overview_stands_beside_the_folder(folder, grid, monkeypatch):
    Path("here").mkdir()
    monkeypatch.chdir("here")
    results = Results(Path(folder), "x")
    results.write("a.png", torch.zeros(1, 2, 2))
    results.overview(Image.new("L", (2, 2)))
    assert Path(grid).is_file()
    assert files_below(folder)[:1] == ["a.png"]
    with pytest.raises(FileExistsError, match="already"):
        Results(Path(folder), "x")
    Path(folder, "a.png").unlink()
    with pytest.raises(FileExistsError, match=r"The overview of an earlier output is there already, .*_grid\.png"):
        Results(Path(folder), "x")


def test_an_overview_that_may_not_be_written_is_said_and_costs_nothing(capsys):
    results = Results(Path("nowhere/out"), "x")
    results.overview(Image.new("L", (2, 2)))
    assert "The overview nowhere/out_grid.png could not be written: No such file" in capsys.readouterr().err


def test_hidden_files_and_other_files_are_no_hindrance():
    picture("out/.000000.png")
    Path("out/notes.txt").write_text("x")
    Results(Path("out"), r"\d+\.png").write("000000.png", torch.zeros(1, 2, 2))
    assert files_below("out") == [".000000.png", "000000.png", "notes.txt"]


def test_skipped_files_are_named_at_first_and_counted(capsys):
    skipped = Skipped()
    for i in range(100):
        skipped.add(f"in/{i}.png", f"in/{i}.png is {i} x 7, not 6 x 9.")
    skipped.add("in/a.png", "out of memory")
    skipped.count()
    assert len(skipped) == 101
    assert capsys.readouterr().err.splitlines() == [
        *(f"skipped in/{i}.png is {i} x 7, not 6 x 9." for i in range(3)),
        "skipped in/a.png: out of memory",
        "skipped 97 more for the same reason as in/0.png: 100 in all",
    ]


def test_translating_broken_files_ends_with_their_number(capsys):
    picture("in/good.png")
    whole = Path("in/good.png").read_bytes()
    for i in range(10):
        Path(f"in/{i}.png").write_bytes(whole[:30])
    assert translate(save(cyclegan()), Path("in"), Path("out"), accelerator="cpu") == 1
    said = capsys.readouterr()
    assert "1 of 11 pictures translated into out" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("skipped")]
    assert [line.split()[1] for line in lines[:3]] == ["in/0.png", "in/1.png", "in/2.png"]
    assert lines[3:] == ["skipped 7 more for the same reason as in/0.png: 10 in all"]


def test_completing_pictures_of_a_wrong_size_ends_with_their_number(capsys):
    for i in range(100):
        picture(f"in/{i:03d}.png", 9, 8 + i % 5)
    picture("in/good.png")
    Path("in/broken.png").write_bytes(b"")
    checkpoint = save(pixelcnn())
    assert complete(checkpoint, Path("in"), Path("out"), samples=1, accelerator="cpu") == 1
    said = capsys.readouterr()
    assert "1 of 102 pictures completed into out" in said.out
    lines = said.err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("skipped in/000.png is 9 x 8 (height x width), but the model's pictures are 8 x 8.")
    assert lines[3].startswith("skipped in/broken.png cannot be read as a picture")
    assert lines[4] == "skipped 97 more for the same reason as in/000.png: 100 in all"
