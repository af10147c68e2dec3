"""Pictures with a part hidden: what is known stays, and what is drawn depends on the seed alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.capabilities import Completes
from lightning_gen.commands.complete import known_pixels
from lightning_gen.data.images import read_image, to_uint8
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import images_to_levels, levels_to_images
from lightning_gen.randomness import generator_for
from tests.shared import Mute, save


class Filler(GenerativeModule):
    """Draws each unknown pixel evenly from the levels; a label, where there are classes, is the level of the first."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_levels: int = 256, num_classes: int | None = None
    ) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.num_levels, self.num_classes = num_levels, num_classes
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(self, num_samples, *, labels=None, generator=None):
        raise NotImplementedError

    def complete(self, images, known, *, labels=None, generator=None, temperature=1.0):
        assert images.shape[1:] == self.image_shape
        images_to_levels(images, self.num_levels)  # raises off the levels
        levels = torch.rand(images.shape, generator=generator).mul(self.num_levels * min(temperature, 1)).long()
        if labels is not None:
            levels[:, :, ~known] = labels[:, None, None]
        return images.where(known, levels_to_images(levels, self.num_levels))


class Bare(GenerativeModule):
    """Completes, and does nothing else."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.num_levels = 2

    def complete(self, images, known, *, labels=None, generator=None, temperature=1.0):
        assert labels is None
        return images.where(known, 1.0)


def noise(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Four pictures of height 6 and width 9, in gray and colour, one of them in a folder below."""
    root = tmp_path / "in"
    (root / "more").mkdir(parents=True)
    Image.fromarray(noise(6, 9, 3)).save(root / "b.png")
    Image.fromarray(noise(6, 9)).save(root / "gray.png")
    Image.fromarray(noise(6, 9, 4)).save(root / "more" / "clear.png")
    Image.fromarray(noise(6, 9, 3, seed=1)).save(root / "photo.bmp")
    return root


@pytest.fixture
def run(tmp_path, command, folder):
    """Run the command on a model and the folder; gives what ended, and the folder with the results."""

    def run(model, name="out", *arguments, input=None, code=0):
        checkpoint = save(model, tmp_path / "a.ckpt")
        given = ["--checkpoint", checkpoint, "--input", input or folder, "--output", tmp_path / name]
        ended = command("complete", *given, *arguments)
        assert ended.code == code, ended.err
        return ended, tmp_path / name

    return run


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NAMES = ["b", "gray", "more/clear", "photo"]
FILES = ["b.png", "gray.png", "more/clear.png", "photo.bmp"]


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_levels", [2, 17, 32, 256])
@pytest.mark.parametrize("mask", ["bottom", "center"])
def test_known_pixels_are_the_quantized_inputs_bit_for_bit(run, folder, channels, num_levels, mask):
    model = Filler((channels, 6, 9), num_levels)
    ended, output = run(model, "out", "--samples", 3, "--mask", mask, "--seed", 4)
    assert f"4 of 4 pictures completed into {output}" in ended.out
    known = known_pixels(mask, (6, 9))
    for number, (file, name) in enumerate(zip(FILES, NAMES, strict=True)):
        given = read_image(folder / file, channels)
        # The nearest of the levels, by search.
        levels = torch.arange(num_levels).double() * 255 / (num_levels - 1)
        nearest = (given.unsqueeze(-1).double() - levels).abs().argmin(-1)
        quantized = to_uint8(levels_to_images(nearest, num_levels))
        expected = model.complete(
            levels_to_images(nearest, num_levels).repeat(3, 1, 1, 1), known, generator=generator_for(4, number)
        )
        for i in range(3):
            written = read_image(output / "completions" / f"{name}_{i}.png", channels)
            assert torch.equal(written[:, known], quantized[:, known])
            assert torch.equal(written, to_uint8(expected[i]))
        drawn = to_uint8(expected)[:, :, ~known]
        assert (drawn[0] != drawn[1]).any()
    assert sorted(contents(output)) == sorted(
        [
            *(f"strips/{n}.png" for n in NAMES),
            *(f"completions/{n}_{i}.png" for n in NAMES for i in range(3)),
        ]
    )


def test_two_levels_are_cut_at_half(run, tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(gray).save(tmp_path / "ramp.png")
    _, output = run(Filler((1, 16, 16), 2), "out", "--mask", "left", input=tmp_path / "ramp.png")
    written = np.array(Image.open(output / "completions" / "ramp_0.png"))
    assert np.array_equal(written[:, 8:], np.where(gray >= 128, 255, 0)[:, 8:])


def test_a_strip_shows_the_occluded_picture_the_completions_and_the_original(run, folder):
    _, output = run(Filler((3, 6, 9), 2), "out", "--samples", 2, "--mask", "top", input=folder / "b.png")
    strip = np.array(Image.open(output / "strips" / "b.png"))
    scale = 11  # the least that makes 9 pixels at least 96
    header = strip.shape[0] - 6 * scale - 2
    assert strip.shape[1] == 2 + 4 * (9 * scale + 2)
    cells = [strip[header::scale, 2 + c * (9 * scale + 2) :][:6, : 9 * scale : scale] for c in range(4)]
    original = np.where(noise(6, 9, 3) >= 128, 255, 0)  # as the model sees it
    assert (cells[0][:3] == 128).all()
    assert np.array_equal(cells[0][3:], original[3:])
    for i in (0, 1):
        assert np.array_equal(cells[1 + i], np.array(Image.open(output / "completions" / f"b_{i}.png")))
    assert np.array_equal(cells[3], original)


def test_the_grid_has_the_strips_under_each_other(run, tmp_path):
    _, output = run(Filler((3, 6, 9)), "out", "--samples", 1)
    grid = np.array(Image.open(tmp_path / "out_grid.png"))
    cell = 6 * 11 + 2
    header = grid.shape[0] - 4 * cell
    for row, name in enumerate(NAMES):
        strip = np.array(Image.open(output / "strips" / f"{name}.png"))
        assert strip.shape == (header + cell, grid.shape[1], 3)
        assert np.array_equal(grid[header + row * cell :][:cell], strip[header:])


def test_large_pictures_are_not_enlarged(run, tmp_path):
    Image.fromarray(noise(20, 100)).save(tmp_path / "wide.png")
    _, output = run(Filler((1, 20, 100)), "out", "--samples", 1, input=tmp_path / "wide.png")
    assert Image.open(output / "strips" / "wide.png").width == 2 + 3 * (100 + 2)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_results_depend_on_the_seed_and_the_place_of_the_picture(run, folder, tmp_path):
    model = Filler((3, 6, 9))
    first, again = (contents(run(model, name, "--seed", 7)[1]) for name in ("one", "two"))
    assert first == again
    other = contents(run(model, "three", "--seed", 8)[1])
    assert all(other[name] != first[name] for name in first)
    few = contents(run(model, "four", "--seed", 7, "--limit", 2)[1])
    assert few.keys() == {name for name in first if "b" in name or "gray" in name}
    assert all(few[name] == first[name] for name in few)
    # A file that is skipped has its number too.
    (folder / "b.png").write_bytes(b"")
    left = contents(run(model, "five", "--seed", 7, code=1)[1])
    assert all(left[name] == first[name] for name in left)


def test_the_temperature_is_handed_on(run, folder):
    _, output = run(Filler((1, 6, 9), 256), "out", "--temperature", 0, "--mask", "right", input=folder / "gray.png")
    written = np.array(Image.open(output / "completions" / "gray_0.png"))
    assert (written[:, 5:] == 0).all()


@pytest.mark.parametrize(("argument", "labels"), [(None, [0, 1, 2, 0, 1]), ("2", [2] * 5), ("[2,0]", [2, 0, 2, 0, 2])])
def test_the_completions_of_a_picture_have_the_classes_in_turn(run, folder, argument, labels):
    chosen = [] if argument is None else ["--labels", argument]
    _, output = run(Filler((1, 6, 9), 256, 3), "out", *chosen, input=folder / "gray.png")
    written = [np.array(Image.open(output / "completions" / f"gray_{i}.png")) for i in range(5)]
    assert [picture[5, 5] for picture in written] == labels


def test_a_model_need_not_sample(run, folder):
    assert isinstance(Bare((1, 6, 9)), Completes)
    assert not isinstance(Mute((1, 6, 9)), Completes)
    _, output = run(Bare((1, 6, 9)), input=folder / "gray.png")
    assert (np.array(Image.open(output / "completions" / "gray_4.png"))[3:] == 255).all()
    ended, _ = run(Bare((1, 6, 9)), "two", "--labels", 1, code=1)
    assert "This Bare has no classes to choose from. Leave the labels out." in ended.err


# -- what is hidden ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "rows"),
    [
        ("top", ["     ", "     ", "#####", "#####", "#####"]),
        ("bottom", ["#####", "#####", "#####", "     ", "     "]),
        ("left", ["  ###"] * 5),
        ("right", ["###  "] * 5),
        ("center", ["#####", "#  ##", "#  ##", "#####", "#####"]),
    ],
)
def test_masks_by_name_hide_what_they_say(mask, rows):
    expected = torch.tensor([[mark == "#" for mark in row] for row in rows])
    assert torch.equal(known_pixels(mask, (5, 5)), expected)


def test_halves_are_halves_and_the_middle_quarter_lies_in_the_middle():
    for mask in ("top", "bottom", "left", "right"):
        assert (~known_pixels(mask, (28, 12))).sum() == 28 * 6
    hidden = ~known_pixels("center", (28, 12))
    assert hidden.sum() == 14 * 6
    assert torch.equal(hidden, hidden.flip(0))
    assert torch.equal(hidden, hidden.flip(1))


def test_a_mask_from_a_file_hides_what_is_darker_than_half(run, folder, tmp_path):
    gray = noise(6, 9, seed=5)
    gray[0, :2] = 127, 128
    Image.fromarray(gray).save(tmp_path / "mask.png")
    known = torch.from_numpy(gray >= 128)
    assert torch.equal(known_pixels(str(tmp_path / "mask.png"), (6, 9)), known)
    _, output = run(Filler((3, 6, 9)), "out", "--mask", tmp_path / "mask.png", input=folder / "b.png")
    written = read_image(output / "completions" / "b_0.png")
    same = (written == read_image(folder / "b.png")).all(0)
    assert same[known].all()
    assert same[~known].float().mean() < 0.1


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named_and_skipped(run, folder):
    (folder / "a.png").write_bytes(b"no picture")
    Image.fromarray(noise(6, 8)).save(folder / "narrow.png")
    ended, output = run(Filler((1, 6, 9)), "out", "--samples", 1, code=1)
    assert "4 of 6 pictures completed" in ended.out
    skipped = [line for line in ended.err.splitlines() if line.startswith("skipped")]
    assert skipped[0].startswith(f"skipped {folder / 'a.png'} cannot be read as a picture")
    assert skipped[1] == (
        f"skipped {folder / 'narrow.png'} is 6 x 8 (height x width), but the model's pictures are 6 x 9. "
        "--resize true makes it of their size."
    )
    assert len(skipped) == 2
    assert "Traceback" not in ended.err
    assert sorted(path.stem for path in output.glob("strips/*")) == ["b", "gray", "more", "photo"]


@pytest.mark.parametrize(("height", "width", "part"), [(12, 40, np.s_[:, 11:29]), (30, 9, np.s_[12:18, :])])
def test_pictures_of_another_size_are_cut_and_resized_if_wanted(run, tmp_path, height, width, part):
    """Even stripes survive a resize by two or by none."""
    gray = np.zeros((height, width), np.uint8)
    gray[part] = 200
    Image.fromarray(gray).save(tmp_path / "large.png")
    _, output = run(Filler((1, 6, 9)), "out", "--resize", "true", "--mask", "top", input=tmp_path / "large.png")
    assert (np.array(Image.open(output / "completions" / "large_0.png"))[3:] == 200).all()


def mask_of(value, *shape):
    def write(folder):
        Image.fromarray(np.full(shape, value, np.uint8)).save(folder.parent / "mask.png")
        return folder.parent / "mask.png"

    return write


def twins(folder):
    Image.fromarray(noise(6, 9)).save(folder / "b.bmp")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": lambda _: 0}, "samples must be at least 1, got 0."),
        ({"limit": lambda _: 0}, "limit must be at least 1, got 0."),
        ({"seed": lambda _: -1}, "The seed must be 0 or more, got -1."),
        ({"temperature": lambda _: -1}, "temperature must be 0 (the likeliest) or more and finite, got -1.0."),
        ({"background": lambda _: "whyte"}, "background must be a colour such as white or '#ffcc00', got 'whyte'"),
        ({"labels": lambda _: 3}, "This Filler has no classes to choose from. Leave the labels out."),
        ({"mask": lambda _: "middle"}, "There is no mask middle. It must be top, bottom, left, right or center"),
        ({"mask": mask_of(255, 6, 9)}, "mask.png hides nothing. Of 6 x 9 pixels some must be hidden and some known."),
        ({"mask": mask_of(0, 6, 9)}, "mask.png hides everything, for which there is `lightning-gen sample`."),
        ({"mask": mask_of(0, 9, 6)}, "mask.png is 9 x 6 (height x width), but the model's pictures are 6 x 9."),
        ({"mask": lambda folder: __file__}, "test_complete.py cannot be read as a picture"),
        ({"output": lambda folder: folder}, "is the input's own"),
        ({"output": lambda folder: folder / "b.png"}, "b.png is a file. Name a folder"),
        ({"input": lambda folder: folder / "none"}, "none does not exist"),
        ({"input": twins}, "are called b, as would be their results. Rename them."),
        ({"checkpoint": lambda folder: save(Mute((3, 6, 9)), folder.parent / "b.ckpt")}, "which does not complete"),
        (
            {"checkpoint": lambda folder: save(Filler((2, 6, 9)), folder.parent / "b.ckpt")},
            "completes pictures of 2 channels, which files do not have.",
        ),
        (
            {
                "checkpoint": lambda folder: save(Filler((3, 1, 1)), folder.parent / "b.ckpt"),
                "mask": lambda _: "left",
            },
            "The mask left hides nothing. Of 1 x 1 pixels some must be hidden and some known.",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(folder, tmp_path, command, changes, message):
    arguments = {"checkpoint": tmp_path / "a.ckpt", "input": folder, "output": tmp_path / "out"}
    save(Filler((3, 6, 9)), arguments["checkpoint"])
    arguments |= {name: make(folder) for name, make in changes.items()}
    before = contents(folder)
    ended = command("complete", *[part for name, value in arguments.items() for part in (f"--{name}", value)])
    assert ended.code == 1
    assert ended.err.count(message) == 1
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()
    assert contents(folder) == before


def test_the_command_has_its_help(command, run):
    ended = command("complete", "--help")
    assert ended.code == 0
    for name in ("mask", "samples", "temperature", "resize", "limit"):
        assert f"--{name}" in ended.out
    assert "complete" in command("--help").out.split()
    ended, _ = run(Filler((1, 6, 9), 256), "out", "--masks", "top", code=2)
    assert (
        "Unknown option --masks: neither one of the command, nor a setting that Filler's `complete` takes" in ended.err
    )
