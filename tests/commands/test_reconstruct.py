"""Pictures through a model and back: names are kept, and neither the batch nor a broken file matters to the others."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.shipped import small_model
from lightning_gen.data.grids import GAP, MIN_CELL
from lightning_gen.data.images import from_uint8, open_image, read_image, to_float, to_uint8, write_image
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import VAE, VQVAE, VQVAE2
from tests.shared import Mute, save

SIZE = (6, 10)  # height and width


class Halving(GenerativeModule):
    """Keeps the mean of every two by two pixels, makes NaN of white pictures, and refuses a batch above `most`."""

    def __init__(self, image_shape: tuple[int, int, int], most: int = 1000) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.most = most
        self.weight = torch.nn.Parameter(torch.ones(1))

    @torch.no_grad()
    def reconstruct(self, images):
        assert images.shape[1:] == self.image_shape
        with Path("batches.txt").open("a") as file:
            file.write(f"{len(images)}\n")
        if len(images) > self.most:
            raise RuntimeError("out of memory")
        halved = F.interpolate(F.avg_pool2d(images * self.weight, 2), scale_factor=2)
        return torch.where(images.amin((1, 2, 3), keepdim=True) == 1, torch.nan, halved)


def noise(*shape, dtype=np.uint8, seed=0):
    random = np.random.default_rng((seed, *shape))
    return random.integers(0, np.iinfo(dtype).max, shape, dtype)


@pytest.fixture
def folder(tmp_path):
    """A tree of pictures of one size, and files that are none."""
    root = tmp_path / "in"
    (root / "a" / "b").mkdir(parents=True)
    Image.fromarray(noise(*SIZE, 3)).save(root / "rgb.png")
    Image.fromarray(noise(*SIZE)).save(root / "a" / "gray.bmp")
    Image.fromarray(noise(*SIZE, 4)).save(root / "a" / "b" / "rgba.png")
    Image.fromarray(noise(*SIZE, dtype=np.uint16)).save(root / "a" / "deep.png")
    Image.fromarray(noise(*SIZE, 3, seed=1)).save(root / "photo.jpg")
    (root / "notes.txt").write_text("not a picture")
    return root


@pytest.fixture
def run(tmp_path, command, folder, monkeypatch):
    """Run the command on a model and the folder; gives what ended, and the folder with the results."""
    monkeypatch.chdir(tmp_path)

    def run(model, name="out", *arguments, input=None, code=0):
        checkpoint = save(model, tmp_path / "a.ckpt")
        given = ["--checkpoint", checkpoint, "--input", input or folder, "--output", tmp_path / name]
        ended = command("reconstruct", *given, *arguments)
        assert ended.code == code, ended.err
        assert "Traceback" not in ended.err
        return ended, tmp_path / name

    return run


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def expected(path, channels=3):
    image = to_float(read_image(path, channels))
    return image, Halving((channels, *SIZE)).reconstruct(image[None])[0]


@pytest.mark.parametrize(("channels", "workers"), [(3, 0), (1, 2)])
def test_a_tree_keeps_names_formats_depths_and_alpha(run, folder, channels, workers):
    ended, output = run(Halving((channels, *SIZE)), "out", "--num_workers", workers)
    assert "5 of 5 pictures reconstructed" in ended.out
    assert files_in(output) == [name for name in files_in(folder) if name != "notes.txt"]
    for name in files_in(output):
        before, after = open_image(folder / name), open_image(output / name)
        _, result = expected(folder / name, channels)
        with Image.open(folder / name) as one, Image.open(output / name) as other:
            assert (one.format, one.size) == (other.format, other.size)
        assert (before.alpha is None and after.alpha is None) or torch.equal(before.alpha, after.alpha), name
        if after.pixels.dtype == torch.uint16:
            torch.testing.assert_close(after.pixels / 32767.5 - 1, result, rtol=0, atol=1.01 / 65535)
        elif name != "photo.jpg":
            assert torch.equal(after.pixels, to_uint8(result)), name
    assert open_image(output / "a" / "deep.png").pixels.dtype == torch.uint16


def test_the_original_stands_at_the_left(run, folder):
    _, output = run(Halving((3, *SIZE)), "out", "--side_by_side", "true")
    for name in ("rgb.png", "a/b/rgba.png"):
        picture = open_image(output / name)
        assert torch.equal(picture.pixels, to_uint8(torch.cat(expected(folder / name), -1))), name
    alpha = open_image(folder / "a" / "b" / "rgba.png").alpha
    assert torch.equal(open_image(output / "a" / "b" / "rgba.png").alpha, torch.cat([alpha, alpha], -1))


def test_the_overview_has_each_pair_in_neighbouring_columns(run, tmp_path):
    """Of 20 pictures, two pairs of columns and ten rows, in the order of reading."""
    for i in range(20):
        (tmp_path / "many").mkdir(exist_ok=True)
        Image.fromarray(noise(*SIZE, 3, seed=i)).save(tmp_path / "many" / f"{i:02d}.png")
    _, output = run(Halving((3, *SIZE)), input=tmp_path / "many")
    grid = read_image(tmp_path / "out_grid.png")
    scale = -(-MIN_CELL // SIZE[1])
    height, width = SIZE[0] * scale, SIZE[1] * scale
    assert grid.shape[2] == GAP + 4 * (width + GAP)
    header = grid.shape[1] - 10 * (height + GAP)
    for i in range(20):
        for column, shown in enumerate((tmp_path / "many", output)):
            top, left = header + (i // 2) * (height + GAP), GAP + (2 * (i % 2) + column) * (width + GAP)
            cell = grid[:, top : top + height : scale, left : left + width : scale]
            assert torch.equal(cell, read_image(shown / f"{i:02d}.png")), i


@pytest.mark.parametrize("size", [1, 2, 64])
def test_results_do_not_depend_on_the_batch(run, folder, tmp_path, size):
    run(Halving((3, *SIZE)), "out", "--batch_size", size)
    assert Path("batches.txt").read_text().split() == {1: ["1"] * 5, 2: ["2", "2", "1"], 64: ["5"]}[size]
    for name in ("rgb.png", "a/gray.bmp", "a/b/rgba.png"):
        assert torch.equal(read_image(tmp_path / "out" / name), read_image_of(folder / name)), name


def read_image_of(path):
    """What the result is read as, on white where it is transparent."""
    _, result = expected(path)
    alpha = open_image(path).alpha
    if alpha is None:
        return to_uint8(result)
    mixed = torch.lerp(torch.ones(3, *SIZE), from_uint8(to_uint8(result)).add(1).div(2), alpha / 255)
    return mixed.mul(255).round().to(torch.uint8)


@pytest.mark.parametrize("model", [VQVAE, VQVAE2, VAE, partial(VAE, num_classes=2)])
def test_models_of_the_package_give_what_they_give_by_themselves(run, tmp_path, model):
    """A code is another one only where two are as near to the digit, so that a level of 255 more or less is allowed."""
    torch.manual_seed(0)
    model = small_model(model, (3, 16, 16))()
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(255).round() / 127.5 - 1
    for i, image in enumerate(images):
        write_image(tmp_path / "noise" / f"{i}.png", image)
    for size in (1, 4):
        _, output = run(model, f"by_{size}", "--batch_size", size, input=tmp_path / "noise")
        found = torch.stack([read_image(output / f"{i}.png") for i in range(5)])
        assert (found.int() - to_uint8(model.reconstruct(images)).int()).abs().max() <= 1


def test_what_fails_together_is_done_one_by_one(run, folder):
    ended, output = run(Halving((3, *SIZE), most=1))
    assert "5 of 5 pictures" in ended.out
    assert Path("batches.txt").read_text().split() == ["5", *"11111"]
    assert torch.equal(open_image(output / "rgb.png").pixels, to_uint8(expected(folder / "rgb.png")[1]))


def test_files_that_cannot_be_used_are_named_and_the_others_done(run, folder):
    white = np.full((*SIZE, 3), 255, np.uint8)
    Image.fromarray(white).save(folder / "white.png")
    Image.fromarray(noise(*SIZE[::-1], 3)).save(folder / "tall.png")
    (folder / "broken.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:200])
    ended, output = run(Halving((3, *SIZE)), code=1)
    assert "5 of 8 pictures reconstructed" in ended.out
    skipped = {Path(line.split()[1].strip(":")).name: line for line in ended.err.splitlines() if "skipped" in line}
    assert skipped["broken.jpg"].startswith(f"skipped {folder / 'broken.jpg'} cannot be read as a picture")
    assert skipped["tall.png"] == (
        f"skipped {folder / 'tall.png'} is 10 x 6 (height x width), but the model's pictures are 6 x 10. "
        "--resize bicubic makes it of their size."
    )
    assert "180 of its values are not finite" in skipped["white.png"]
    assert set(files_in(output)) == set(files_in(folder)) - {"white.png", "tall.png", "broken.jpg", "notes.txt"}


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_pictures_of_another_size_are_cut_and_resized_if_wanted(run, tmp_path, kernel):
    """Of 12 x 40 pixels the middle 20 columns are taken; what is transparent goes with them."""
    pixels = np.zeros((12, 40, 4), np.uint8)
    pixels[:, 10:30, :3], pixels[:, 10:30, 3] = 200, 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    _, output = run(Halving((3, *SIZE)), "out", "--resize", kernel, input=tmp_path / "wide.png")
    after = open_image(output / "wide.png")
    assert after.pixels.shape == (3, *SIZE)
    assert (after.pixels == 200).all()
    assert (after.alpha == 255).all()


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (partial(Mute, (3, *SIZE)), [], "holds a Mute, which reconstructs no pictures."),
        (partial(Halving, (2, *SIZE)), [], "reconstructs pictures of 2 channels, which files do not have."),
        (partial(Halving, (3, *SIZE)), ["--batch_size", "0"], "batch_size must be at least 1, got 0."),
        (partial(Halving, (3, *SIZE)), ["--background", "whyte"], "background must be a colour such as white"),
        (partial(Halving, (3, *SIZE)), ["--output", "in"], "is the input's own; its files would be overwritten"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(run, tmp_path, model, arguments, message):
    ended, output = run(model(), "out", *arguments, code=1)
    assert ended.err.count(message) == 1
    assert not output.exists()
    assert not (tmp_path / "out_grid.png").exists()


def test_earlier_results_are_not_mixed_with(run, folder):
    run(Halving((3, *SIZE)))
    ended, _ = run(Halving((3, *SIZE)), code=1)
    assert "holds 5 pictures already, with which new ones would mix." in ended.err
    run(Halving((3, *SIZE)), "out", "--overwrite", "true", "--side_by_side", "true")
    (folder.parent / "out").rename(folder.parent / "else")
    ended, _ = run(Halving((3, *SIZE)), code=1)
    assert "The overview of an earlier output is there already" in ended.err


def test_the_command_has_its_help(command):
    text = command("reconstruct", "--help").out
    for name in ("side_by_side", "resize", "batch_size"):
        assert f"--{name}" in text
    assert "reconstruct" in command("--help").out.split()
