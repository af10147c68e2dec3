"""Interpolation and arithmetic: the pictures of exactly those latents, from a checkpoint alone."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.commands import latents as commands
from lightning_gen.data.images import from_uint8, read_image, to_uint8
from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scene_painting import render
from lightning_gen.extractors.scenes import train_reader
from lightning_gen.generative import GenerativeModule
from lightning_gen.latents import numbered_latents, slerp
from lightning_gen.models import GAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator
from lightning_gen.randomness import generator_for
from lightning_gen.sampling import LatentSampling
from tests.shared import Mute, save


def small(shape=(1, 8, 6), **settings):
    generator, discriminator = partial(MLPGenerator, widths=(16,)), partial(MLPDiscriminator, widths=(4,))
    model = GAN(shape, generator, discriminator, latent_size=5, latent_distribution="normal", **settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.normal_()
    return model


class Painter(GenerativeModule):
    """Its latents say what a scene shows: the first whether there is a house, the second how high the sun stands."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int | None = None) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.num_classes, self.latent_shape = num_classes, (4,)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def draw_latents(self, num_samples, generator=None):
        return torch.randn(num_samples, 4, generator=generator)

    def generate(self, latents, labels=None):
        scenes = SceneAttributes.draw(len(latents), 0)
        scenes.house_present[:] = latents[:, 0] > 0
        scenes.body_y[:] = 0.22 + 0.11 * latents[:, 1].tanh()
        return from_uint8(render(scenes, "day", *self.image_shape[1:]))

    def sample(self, num_samples, *, labels=None, generator=None):
        return self.generate(self.draw_latents(num_samples, generator))


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


# -- interpolate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "between"), [("slerp", slerp), ("lerp", torch.lerp)])
def test_each_pair_is_a_row_of_frames_between_two_samples(tmp_path, command, method, between):
    model = small()
    checkpoint, output = save(model, tmp_path / "a.ckpt"), tmp_path / "out"
    arguments = ["interpolate", "--checkpoint", checkpoint, "--pairs", 3, "--steps", 5, "--method", method, "--seed", 2]
    ended = command(*arguments, "--output", output)
    assert ended.code == 0, ended.err
    assert len(files_in(output)) == 3 * 5
    ends = numbered_latents(model, range(6), seed=2)
    grid = np.array(Image.open(tmp_path / "out_grid.png"))
    cell = (grid.shape[1] - 2) // 5
    for pair in range(3):
        path = torch.stack([between(ends[2 * pair], ends[2 * pair + 1], step / 4) for step in range(5)])
        expected = to_uint8(model.generate(path))
        for step in range(5):
            frame = read_image(output / f"pair_{pair:03d}" / f"{step:03d}.png", 1)
            assert torch.equal(frame, expected[step])
            top, left = 2 + pair * (8 * (cell - 2) // 6 + 2), 2 + step * cell
            shown = grid[top : top + 8 * (cell - 2) // 6, left : left + cell - 2, 0]
            assert np.array_equal(shown[:: (cell - 2) // 6, :: (cell - 2) // 6], frame[0])
    command(*arguments, "--output", tmp_path / "again")
    assert files_in(tmp_path / "again") == files_in(output)
    # The ends are what `sample` draws.
    command("sample", "--checkpoint", checkpoint, "--output", tmp_path / "samples", "--num_samples", 6, "--seed", 2)
    for number in range(6):
        frame = output / f"pair_{number // 2:03d}" / ("000.png", "004.png")[number % 2]
        assert frame.read_bytes() == (tmp_path / "samples" / f"{number:06d}.png").read_bytes()


def test_pairs_have_the_classes_in_turn_or_the_one_that_is_asked_for(tmp_path, command):
    model = small(num_classes=2)
    checkpoint = save(model, tmp_path / "a.ckpt")
    ends = numbered_latents(model, range(6), seed=0)
    for name, argument, labels in (("turn", [], (0, 1, 0)), ("one", ["--label", 1], (1, 1, 1))):
        arguments = ["--checkpoint", checkpoint, "--output", tmp_path / name, "--pairs", 3, "--steps", 2]
        assert command("interpolate", *arguments, *argument).code == 0
        for pair, label in enumerate(labels):
            expected = to_uint8(model.generate(ends[2 * pair : 2 * pair + 2], label))
            for step in (0, 1):
                frame = read_image(tmp_path / name / f"pair_{pair:03d}" / f"{step:03d}.png", 1)
                assert torch.equal(frame, expected[step])


class OfMaps(LatentSampling):
    """Its latents are maps, of which pictures are enlargements."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.latent_shape = (image_shape[0], image_shape[1] // 2, image_shape[2] // 2)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def generate_from(self, latents, labels):
        return torch.nn.functional.interpolate(latents * self.weight, scale_factor=2).tanh()


def test_latents_may_be_maps(tmp_path, command):
    checkpoint = save(OfMaps((3, 4, 6)), tmp_path / "a.ckpt")
    ends = numbered_latents(OfMaps((3, 4, 6)), range(4), seed=0)
    assert ends.shape == (4, 3, 2, 3)
    made = {"sample": ["--num_samples", 4], "interpolate": ["--pairs", 2, "--steps", 3], "arithmetic": ["--noise", 0]}
    for name, arguments in made.items():
        concepts = ["--a", "0", "--b", "1", "--c", "2"] if name == "arithmetic" else []
        given = ["--checkpoint", checkpoint, "--output", tmp_path / name, *arguments, *concepts]
        ended = command(name, *given)
        assert ended.code == 0, ended.err
    middle = slerp(ends[2].flatten(), ends[3].flatten(), 0.5).view(3, 2, 3)
    for file, latent in {
        "sample/000003.png": ends[3],
        "interpolate/pair_001/000.png": ends[2],
        "interpolate/pair_001/001.png": middle,
        "arithmetic/result_0.png": ends[0] - ends[1] + ends[2],
    }.items():
        expected = to_uint8(latent.tanh().repeat_interleave(2, 1).repeat_interleave(2, 2))
        assert torch.equal(read_image(tmp_path / file), expected), file


# -- arithmetic -----------------------------------------------------------------------------------------------------


def test_the_result_is_the_sum_of_the_means(tmp_path, command):
    model = small()
    checkpoint, output = save(model, tmp_path / "a.ckpt"), tmp_path / "out"
    concepts = ["--a", "3,17,22", "--b", "5", "--c", "[900, 0]"]
    ended = command("arithmetic", "--checkpoint", checkpoint, "--output", output, *concepts, "--seed", 4)
    assert ended.code == 0, ended.err
    assert "a: pictures 3, 17, 22 of seed 4" in ended.out
    means = {}
    for name, numbers in (("a", [3, 17, 22]), ("b", [5]), ("c", [900, 0])):
        latents = numbered_latents(model, numbers, seed=4)
        means[name] = latents.mean(0, keepdim=True)
        expected = to_uint8(model.generate(torch.cat([latents, means[name]])))
        for i, image in enumerate(expected[:-1]):
            assert torch.equal(read_image(output / f"{name}_{i}.png", 1), image)
        assert torch.equal(read_image(output / f"{name}_mean.png", 1), expected[-1])
    result = means["a"] - means["b"] + means["c"]
    shifts = 0.5 * torch.rand(9, 5, generator=generator_for(4, 2**32)) - 0.25
    shifts[4] = 0
    expected = to_uint8(model.generate(result + shifts)).int()
    for i in range(9):
        assert (read_image(output / f"result_{i}.png", 1).int() - expected[i]).abs().max() <= 1
    assert torch.equal(read_image(output / "result_4.png", 1), to_uint8(model.generate(result))[0])
    # Six columns of four rows: the concepts with their means below, and three by three results.
    grid = np.array(Image.open(tmp_path / "out_grid.png"))
    header = grid.shape[0] - 4 * (128 + 2)
    assert grid.shape[1] == 2 + 6 * (96 + 2)
    for name, row, column in (
        ("a_2", 2, 0),
        ("a_mean", 3, 0),
        ("b_mean", 1, 1),
        ("result_4", 1, 4),
        ("result_5", 1, 5),
    ):
        cell = grid[header + row * 130 : header + row * 130 + 128, 2 + column * 98 : 98 + column * 98, 0]
        assert np.array_equal(cell[::16, ::16], read_image(output / f"{name}.png", 1)[0]), name


def test_one_concept_three_times_gives_its_mean_again(tmp_path, command):
    """a - a + a = a: also with a class, and without noise all nine are the same."""
    checkpoint, output = save(small(num_classes=2), tmp_path / "a.ckpt"), tmp_path / "out"
    concepts = [part for name in "abc" for part in (f"--{name}", "8,1")]
    ended = command("arithmetic", "--checkpoint", checkpoint, "--output", output, *concepts, "--label", 1, "--noise", 0)
    assert ended.code == 0, ended.err
    mean = read_image(output / "a_mean.png", 1).int()
    for i in range(9):
        assert (read_image(output / f"result_{i}.png", 1).int() - mean).abs().max() <= 1


@pytest.fixture
def quick_reader(monkeypatch):
    monkeypatch.setattr(commands, "train_reader", partial(train_reader, num_scenes=2000, epochs=6))


def test_concepts_in_words_are_found_and_add_up(tmp_path, quick_reader, capsys):
    """A painter whose latents are the attributes: house and low sun - low sun + high sun is a house and a high sun."""
    model = Painter((3, 16, 16))
    checkpoint = save(model, tmp_path / "a.ckpt")
    words = ("house, sun low", "no house, sun low", "no house, sun high")
    commands.arithmetic(checkpoint, tmp_path / "out", *words, candidates=200, accelerator="cpu")
    lines = capsys.readouterr().out.splitlines()
    for (name, house, low), line in zip((("a", 1, 1), ("b", 0, 1), ("c", 0, 0)), lines, strict=False):
        numbers = [int(n) for n in line.removeprefix(f"{name}: pictures ").removesuffix(" of seed 0").split(", ")]
        assert len(set(numbers)) == 3
        assert max(numbers) < 200
        latents = numbered_latents(model, numbers, seed=0)
        assert ((latents[:, 0] > 0) == bool(house)).all()
        assert ((latents[:, 1] > 0) == bool(low)).all()
    shares = {line.partition(":")[0]: int(line.partition("in ")[2].split()[0]) for line in lines if " of 9 " in line}
    assert shares.keys() == {"house", "no sun low"}
    assert min(shares.values()) >= 7


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        # 1 - 0 + 0, 0 - 1 + 1, and what b does not share with one of the others cannot be told.
        (({"house": True}, {"house": False}, {"house": False}), ["house: in 9 of 9"]),
        (({"house": True}, {}, {"house": False}), ["house: the concepts do not say"]),
        (({"house": True}, {"house": True}, {}), ["house: the concepts do not say"]),
        (({"house": True}, {}, {}), ["house: in 9 of 9"]),
        (({}, {}, {"house": False}), ["no house: in 0 of 9"]),
        (({"house": False}, {"house": True}, {"house": False}), ["no house: in 0 of 9"]),
        (({"house": True}, {"trees": True}, {"trees": True}), ["house: in 9 of 9", "trees: the concepts do not say"]),
    ],
)
def test_what_the_sum_should_show(capsys, conditions, said):
    from lightning_gen.extractors.scenes import STATEMENTS, SceneAttributeReader

    reader = SceneAttributeReader(16, 16)
    reader.accuracy = dict.fromkeys(STATEMENTS, 1.0)
    certain = torch.zeros(9, len(STATEMENTS))
    certain[:, list(STATEMENTS).index("house")] = 0.9
    commands._say_what_is_seen(reader, certain, dict(zip("abc", conditions, strict=True)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(said)
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True))


def test_a_concept_that_is_not_found(tmp_path, quick_reader):
    checkpoint = save(Painter((3, 16, 16)), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"Only \d of 4 pictures seem to show 'no house, red roof', and 3 are needed"):
        commands.arithmetic(checkpoint, tmp_path / "out", "no house, red roof", "1", "2", candidates=4)
    assert not (tmp_path / "out").exists()


# -- mistakes -------------------------------------------------------------------------------------------------------

NUMBERS = {"a": "1", "b": "2", "c": "3"}


@pytest.mark.parametrize(
    ("make", "name", "arguments", "message"),
    [
        (partial(Mute, (3, 8, 8)), "interpolate", {}, "holds a Mute, which has no latents to draw from."),
        (partial(Mute, (3, 8, 8)), "arithmetic", NUMBERS, "holds a Mute, which has no latents to draw from."),
        (partial(small, (2, 1, 1)), "interpolate", {}, "holds a GAN that draws points, not pictures"),
        (small, "interpolate", {"pairs": 0}, "pairs must be at least 1, got 0."),
        (small, "interpolate", {"steps": 1}, "steps must be at least 2, the two ends; got 1."),
        (small, "interpolate", {"label": 0}, "This GAN has no classes to choose from."),
        (small, "interpolate", {"seed": -2}, "seed must be 0 or more, got -2."),
        (partial(small, num_classes=2), "interpolate", {"label": 2}, "Labels must lie in 0 .. 1 for this GAN, got 2."),
        (small, "arithmetic", NUMBERS | {"a": "3,-1"}, "The numbers of pictures begin at 0, got -1."),
        (small, "arithmetic", NUMBERS | {"a": "3 4"}, "is their numbers, such as 3,17,22; got '3 4'."),
        (small, "arithmetic", NUMBERS | {"b": "castle"}, "Scenes have no attribute 'castle'."),
        (small, "arithmetic", NUMBERS | {"b": "house"}, "Scenes are pictures of 3 channels, but the model draws 1."),
        (small, "arithmetic", NUMBERS | {"noise": -1}, "noise must be 0 or more, got -1"),
        (small, "arithmetic", NUMBERS | {"candidates": 0}, "candidates must be at least 1, got 0."),
        (partial(small, num_classes=2), "arithmetic", NUMBERS, "This GAN has 2 classes. Choose one with the label."),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(tmp_path, command, make, name, arguments, message):
    given = {"checkpoint": save(make(), tmp_path / "a.ckpt"), "output": tmp_path / "out", **arguments}
    ended = command(name, *[f"--{key}={value}" for key, value in given.items()])
    assert ended.code == 1
    assert ended.err.count(message) == 1
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tmp_path, command):
    checkpoint, file = save(small(), tmp_path / "a.ckpt"), tmp_path / "file"
    file.write_text("in the way")
    for arguments in (["interpolate"], ["arithmetic", *[f"--{key}={value}" for key, value in NUMBERS.items()]]):
        ended = command(*arguments, "--checkpoint", checkpoint, "--output", file)
        assert ended.code == 1
        assert "file is a file. Name a folder." in ended.err
