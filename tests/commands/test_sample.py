"""Pictures from a checkpoint alone: the same bytes for the same seed, however many there are."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.commands.common import classes_in_turn, labels_of
from lightning_gen.data.images import read_image, to_uint8
from lightning_gen.generative import GenerativeModule
from lightning_gen.latents import numbered_latents
from lightning_gen.models import GAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator
from lightning_gen.randomness import generator_for
from lightning_gen.text import ByteTokenizer
from tests.shared import Mute, save


def small(shape=(3, 8, 6), **settings):
    """A GAN with weights so large that its pictures use the whole range."""
    generator, discriminator = partial(MLPGenerator, widths=(16,)), partial(MLPDiscriminator, widths=(4,))
    model = GAN(shape, generator, discriminator, latent_size=5, **settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.normal_()
    return model


class Dots(GenerativeModule):
    """Draws without latents: one grey value a picture, and the label in the corner."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int | None = None) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(self, num_samples, *, labels=None, generator=None):
        images = torch.rand(num_samples, 1, 1, 1, generator=generator).expand(-1, *self.image_shape).clone()
        if labels is not None:
            images[:, :, 0, 0] = labels[:, None] / 10
        return images * 2 - 1


@pytest.fixture
def draw(tmp_path, command):
    """Run the command on a model; gives the folder with what was drawn."""

    def run(model, name, *arguments):
        checkpoint = save(model, tmp_path / "a.ckpt")
        ended = command("sample", "--checkpoint", checkpoint, "--output", tmp_path / name, *arguments)
        assert ended.code == 0, ended.err
        return tmp_path / name

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def overview(folder):
    return folder.with_name(f"{folder.name}_grid.png")


def test_files_hold_the_pictures_of_the_numbered_latents(draw):
    model = small()
    folder = draw(model, "out", "--num_samples", 5, "--seed", 3)
    assert sorted(contents(folder)) == [f"00000{i}.png" for i in range(5)]
    expected = to_uint8(model.generate(numbered_latents(model, range(5), seed=3)))
    for i in range(5):
        assert torch.equal(read_image(folder / f"{i:06d}.png"), expected[i])
    assert len(expected.unique()) > 50


def test_the_grid_shows_the_pictures_in_rows(draw):
    folder = draw(small((1, 16, 16)), "out", "--num_samples", 5)
    grid = np.array(Image.open(overview(folder)))
    scale = -(-512 // (3 * 16))
    for i in range(5):
        row, column = divmod(i, 3)
        top, left = 2 + row * (16 * scale + 2), 2 + column * (16 * scale + 2)
        shown = grid[top : top + 16 * scale : scale, left : left + 16 * scale : scale]
        assert np.array_equal(shown, np.array(Image.open(folder / f"{i:06d}.png").convert("RGB")))
    assert grid.shape == (2 + 2 * (16 * scale + 2), 2 + 3 * (16 * scale + 2), 3)


@pytest.mark.parametrize("make", [small, partial(small, num_classes=3), partial(Dots, (1, 4, 4), 3)])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(draw, make):
    model = make()
    one, two = (draw(model, name, "--num_samples", 6, "--seed", 7) for name in ("one", "two"))
    assert (first := contents(one)) == contents(two)
    assert overview(one).read_bytes() == overview(two).read_bytes()
    other = contents(draw(model, "three", "--num_samples", 6, "--seed", 8))
    assert all(other[name] != first[name] for name in other)


@pytest.mark.parametrize("make", [small, partial(small, num_classes=3), partial(Dots, (1, 4, 4), 3)])
def test_more_pictures_change_none(draw, make):
    model = make()
    few, many = (contents(draw(model, name, "--num_samples", name, "--batch_size", 4)) for name in ("3", "11"))
    assert len(few) == 3
    assert len(many) == 11
    assert few == {name: many[name] for name in few}


def test_latents_do_not_depend_on_the_size_of_a_batch(draw):
    folders = [draw(small(), f"{size}", "--num_samples", 9, "--batch_size", size) for size in (1, 4, 64)]
    for name in contents(folders[0]):
        pictures = [read_image(folder / name).int() for folder in folders]
        for picture in pictures[1:]:
            # Sums of another order may round to the next of 256 levels, rarely.
            assert (picture - pictures[0]).abs().max() <= 1
            assert (picture != pictures[0]).float().mean() < 0.02


def test_labels_take_turns(draw):
    model = small(num_classes=4)
    latents = numbered_latents(model, range(8), seed=0)
    for argument, labels in (("[2,0,3]", [2, 0, 3, 2, 0, 3, 2, 0]), ("1", [1] * 8), (None, [0, 1, 2, 3] * 2)):
        chosen = [] if argument is None else ["--labels", argument]
        folder = draw(model, str(argument), "--num_samples", 8, *chosen)
        expected = to_uint8(model.generate(latents, torch.tensor(labels)))
        for i in range(8):
            assert torch.equal(read_image(folder / f"{i:06d}.png"), expected[i])
        width, height = Image.open(overview(folder)).size
        columns = (width - 2) / (height - 2)
        assert columns == pytest.approx({"[2,0,3]": 3 / 3, "1": 3 / 3, None: 4 / 2}[argument] * 6 / 8, rel=0.05)


def test_a_model_without_latents_draws_batches_that_depend_on_their_place(draw):
    folder = draw(Dots((1, 4, 4), 3), "out", "--num_samples", 5, "--batch_size", 2, "--seed", 1)
    for start in (0, 2, 4):
        grey = torch.rand(2, 1, 1, 1, generator=generator_for(1, start)) * 2 - 1
        for i in range(start, min(start + 2, 5)):
            picture = read_image(folder / f"{i:06d}.png", 1)
            assert torch.equal(picture[0, 1, 1], to_uint8(grey[i - start])[0, 0, 0])
            assert picture[0, 0, 0] == to_uint8(torch.tensor((i % 3) / 10 * 2 - 1))


@pytest.mark.parametrize(("dimensions", "header"), [(1, "x"), (2, "x,y"), (5, "x0,x1,x2,x3,x4")])
def test_points_become_a_table(draw, dimensions, header):
    model = small((dimensions, 1, 1))
    folder = draw(model, "out", "--num_samples", 70)
    assert list(contents(folder)) == ["points.csv"]
    lines = (folder / "points.csv").read_text().splitlines()
    assert lines[0] == header
    points = torch.tensor([[float(x) for x in line.split(",")] for line in lines[1:]])
    assert torch.equal(points[:64], model.generate(numbered_latents(model, range(64), 0)).flatten(1))
    assert points.shape == (70, dimensions)


def test_the_averaged_weights_are_used(draw, tmp_path, command):
    model = small()
    raw = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if name.startswith("gen")}
    checkpoint = save(model, tmp_path / "b.ckpt", raw_state_dict=raw)
    assert command("sample", "--checkpoint", checkpoint, "--output", tmp_path / "b", "--num_samples", 4).code == 0
    assert contents(tmp_path / "b") == contents(draw(model, "a", "--num_samples", 4))


def test_classes_by_name(draw):
    model = small(num_classes=3)
    model.class_names = ["cat", "dog", "12"]
    latents = numbered_latents(model, range(4), seed=0)
    for argument, labels in (("dog", [1] * 4), ("[12,cat]", [2, 0, 2, 0]), ("[dog,0]", [1, 0, 1, 0])):
        folder = draw(model, argument, "--num_samples", 4, "--labels", argument)
        expected = to_uint8(model.generate(latents, torch.tensor(labels)))
        assert all(torch.equal(read_image(folder / f"{i:06d}.png"), expected[i]) for i in range(4))


def test_classes_and_labels():
    model = small(num_classes=3)
    assert classes_in_turn(model, 2) == [2]
    with pytest.raises(ValueError, match=r"Labels must lie in 0 \.\. 2 for this GAN, got cat"):
        classes_in_turn(model, "cat")
    model.class_names = ["cat", "dog", "7"]
    assert classes_in_turn(model, ["7", 2, "cat"]) == [2, 2, 0]
    with pytest.raises(ValueError, match=r"lie in 0 \.\. 2, or be one of cat, dog, 7, for this GAN, got 3, owl"):
        classes_in_turn(model, [7, 3, "owl"])
    model.class_names = ["1", "02", "10"]  # numbers of the user's own
    assert classes_in_turn(model, [1, 2, 10]) == [0, 1, 2]
    assert classes_in_turn(model, "02") == [1]
    with pytest.raises(ValueError, match="got 0"):
        classes_in_turn(model, 0)
    assert classes_in_turn(model, None) == [0, 1, 2]
    assert classes_in_turn(small(), None) is None
    assert labels_of(range(3), None) is None
    assert torch.equal(labels_of(range(5, 9), [4, 6, 8]), torch.tensor([8, 4, 6, 8]))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (partial(Mute, (3, 8, 8)), [], "holds a Mute, which draws no pictures from noise."),
        (small, ["--num_samples", 0], "num_samples must be at least 1, got 0."),
        (small, ["--batch_size", -1], "batch_size must be at least 1, got -1."),
        (small, ["--seed", -1], "seed must be 0 or more, got -1."),
        (small, ["--labels", 3], "This GAN has no classes to choose from. Leave the labels out."),
        (partial(small, num_classes=3), ["--labels", 3], "Labels must lie in 0 .. 2 for this GAN, got 3."),
        (partial(small, num_classes=3), ["--labels", "[0,-1,7]"], "Labels must lie in 0 .. 2 for this GAN, got -1, 7."),
        (partial(small, num_classes=3), ["--labels", "[]"], "got none at all."),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(tmp_path, command, make, arguments, message):
    checkpoint = save(make(), tmp_path / "a.ckpt")
    ended = command("sample", "--checkpoint", checkpoint, "--output", tmp_path / "out", *arguments)
    assert ended.code == 1
    assert ended.err.count(message) == 1
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_outputs_and_checkpoints_that_are_none(tmp_path, command):
    checkpoint, file = save(small(), tmp_path / "a.ckpt"), tmp_path / "file"
    file.write_text("in the way")
    ended = command("sample", "--checkpoint", checkpoint, "--output", file)
    assert ended.code == 1
    assert "file is a file. Name a folder." in ended.err
    assert file.read_text() == "in the way"
    ended = command("sample", "--checkpoint", tmp_path / "none.ckpt", "--output", tmp_path / "out")
    assert ended.code == 1
    assert "There is no checkpoint at" in ended.err


class Said(GenerativeModule):
    """Pictures are as grey as the number of letters that were asked for, but for a little noise."""

    num_classes = None

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.declare_context(text=ByteTokenizer(length=12))
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(self, num_samples, *, captions=None, labels=None, generator=None):
        letters = torch.zeros(num_samples) if captions is None else (self.text(captions) > 0).sum(1) / 10
        noise = 0.08 * torch.rand(num_samples, generator=generator)
        return (letters + noise)[:, None, None, None].expand(-1, *self.image_shape) - 1

    def log_prob(self, images, captions=None):
        return -images.flatten(1).mean(1)


class Judge(Said):
    """Likes the brightest."""

    def score(self, images, captions):
        return images.flatten(1).mean(1)


def greys(folder):
    return {path.name: read_image(path)[0, 0, 0].item() / 127.5 for path in sorted(folder.glob("*.png"))}


def test_prompts_take_turns_and_stand_in_the_names(draw, tmp_path):
    found = greys(draw(Said((3, 8, 8)), "one", "--prompt", "A red, big", "--num_samples", 3))
    assert list(found) == [f"{number:06d}_a-red-big.png" for number in range(3)]
    assert all(0.98 < grey < 1.1 for grey in found.values())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("house\n\n  ?!\n", encoding="utf-8")
    folder = draw(Said((3, 8, 8)), "several", "--prompts", prompts, "--num_samples", 4, "--batch_size", 3)
    found = greys(folder)
    assert list(found) == ["000000_house.png", "000001.png", "000002_house.png", "000003.png"]
    assert [round(grey, 1) for grey in found.values()] == pytest.approx([0.5, 0.2, 0.5, 0.2], abs=0.11)
    assert folder.with_name("several_grid.png").is_file()
    # What the command wrote, it replaces.
    draw(Said((3, 8, 8)), "several", "--prompt", "house", "--num_samples", 1, "--overwrite", "true")
    assert list(greys(folder)) == ["000000_house.png"]
    assert list(greys(draw(Said((3, 8, 8)), "none", "--num_samples", 1))) == ["000000.png"]


def test_the_best_of_several_is_kept(draw, tmp_path):
    save(Judge((3, 8, 8)), tmp_path / "judge.ckpt")
    plain, own, judged = (
        np.mean(list(greys(draw(Said((3, 8, 8)), name, "--prompt", "house", "--num_samples", 12, *more)).values()))
        for name, more in (
            ("plain", ()),
            ("own", ("--rerank", "own")),
            ("judged", ("--rerank", tmp_path / "judge.ckpt", "--candidates", 16)),
        )
    )
    # Of 8, and of 16 uniform numbers, the lowest and the highest.
    assert own == pytest.approx(0.5 + 0.08 / 9, abs=0.015)
    assert plain == pytest.approx(0.5 + 0.04, abs=0.03)
    assert judged == pytest.approx(0.5 + 0.08 * 16 / 17, abs=0.015)


def test_prompts_that_do_not_fit_are_said(command, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    save(Said((3, 8, 8)), tmp_path / "a.ckpt")
    save(Dots((3, 8, 8)), tmp_path / "b.ckpt")
    save(Judge((3, 4, 4)), tmp_path / "judge.ckpt")
    for name, arguments, words in (
        ("a", ("--prompt", ""), "says nothing"),
        ("a", ("--prompt", "a house of stone"), "has 16 tokens, but the tokenizer has length=12"),
        ("a", ("--prompts", tmp_path / "empty.txt"), "has no prompts"),
        ("a", ("--prompts", tmp_path / "absent.txt"), "absent.txt"),
        ("a", ("--prompts", tmp_path / "empty.txt", "--prompt", "a"), "Both prompt and prompts"),
        ("a", ("--rerank", "own"), "none was given"),
        ("a", ("--prompt", "a", "--rerank", tmp_path / "b.ckpt"), "says nothing about how well captions fit"),
        ("a", ("--prompt", "a", "--rerank", tmp_path / "judge.ckpt"), "scores pictures of (3, 4, 4)"),
        ("a", ("--prompt", "a", "--candidates", 0), "candidates must be at least 1"),
        ("b", ("--prompt", "a"), "This Dots reads no captions"),
    ):
        output = tmp_path / "out"
        ended = command("sample", "--checkpoint", tmp_path / f"{name}.ckpt", "--output", output, *arguments)
        assert ended.code != 0
        assert words in ended.err, ended.err
        assert not output.exists()
