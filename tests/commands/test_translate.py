import io
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data.images import open_image, read_image, to_float, to_uint8, write_image
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import CycleGAN, Pix2Pix
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator, UNetGenerator
from tests.shared import save

DISCRIMINATOR = partial(PatchDiscriminator, filters=2, layers=1)


def spread(model):
    """The model with weights so large that its pictures use the whole range."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def small(channels=3):
    return spread(CycleGAN((channels, 16, 16), partial(ResNetGenerator, filters=2, blocks=1), DISCRIMINATOR))


def noise(*shape, dtype=np.uint8):
    random = np.random.default_rng(sum(shape))
    return (
        random.random(shape, np.float32)
        if dtype == np.float32
        else random.integers(0, np.iinfo(dtype).max, shape, dtype)
    )


@pytest.fixture
def folder(tmp_path):
    """A tree with every kind of picture, height 21 and width 37, and files that are none."""
    root = tmp_path / "in"
    (root / "a" / "b").mkdir(parents=True)
    Image.fromarray(noise(21, 37, 3)).save(root / "rgb.png")
    Image.fromarray(noise(21, 37)).save(root / "a" / "gray.png")
    Image.fromarray(noise(21, 37, 4)).save(root / "a" / "b" / "rgba.png")
    Image.fromarray(noise(21, 37, dtype=np.uint16)).save(root / "a" / "deep.png")
    Image.fromarray(noise(21, 37, dtype=np.uint16)).save(root / "a" / "deep.TIFF")
    Image.fromarray(noise(21, 37, dtype=np.float32)).save(root / "float.tif")
    Image.fromarray(noise(21, 37, 3)).save(root / "photo.jpg")
    (root / "notes.txt").write_text("not a picture")
    (root / ".hidden.png").write_bytes(b"not looked at")
    return root


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("channels", "direction", "workers"), [(3, "AtoB", 0), (3, "BtoA", 2), (1, "AtoB", 0)])
def test_a_tree_keeps_names_formats_sizes_depths_and_alpha(folder, tmp_path, command, channels, direction, workers):
    model, output = small(channels), tmp_path / "out"
    checkpoint = save(model, tmp_path / "a.ckpt")
    arguments = ["--checkpoint", checkpoint, "--input", folder, "--output", output, "--direction", direction]
    ended = command("translate", *arguments, "--num_workers", workers)
    assert ended.code == 0, ended.err
    assert "7 of 7 pictures translated" in ended.out
    assert files_in(output) == [name for name in files_in(folder) if name not in ("notes.txt", ".hidden.png")]
    for name in files_in(output):
        before, after = open_image(folder / name), open_image(output / name)
        expected = model.translate(to_float(read_image(folder / name, channels))[None], direction)[0]
        with Image.open(folder / name) as one, Image.open(output / name) as other:
            assert one.format == other.format
        assert after.pixels.shape == (channels, 21, 37)
        assert (before.alpha is None and after.alpha is None) or torch.equal(before.alpha, after.alpha), name
        # PNG holds 16 bits of gray and colour, TIFF holds 16 bits and floats of gray.
        kept = channels == 1 or name == "a/deep.png"
        assert after.pixels.dtype == (before.pixels.dtype if kept else torch.uint8), name
        if name == "photo.jpg":
            stream = io.BytesIO()
            Image.fromarray(to_uint8(expected).permute(1, 2, 0).squeeze(-1).numpy()).save(stream, "JPEG", quality=95)
            assert np.array_equal(Image.open(stream), Image.open(output / name))
        elif after.pixels.dtype == torch.uint8:
            assert torch.equal(after.pixels, to_uint8(expected)), name
        else:
            levels = 65535 if after.pixels.dtype == torch.uint16 else 1
            # Half a level of 16 bits, or the rounding of float32.
            tolerance = 1.01 / 65535 if levels > 1 else 1e-6
            torch.testing.assert_close(after.pixels.float() / levels * 2 - 1, expected, rtol=0, atol=tolerance)


def test_one_file_under_another_name_of_its_ending(tmp_path, command):
    path = tmp_path / "in" / "One.JPeG"
    path.parent.mkdir()
    Image.fromarray(noise(5, 9, 3)).save(path, "JPEG")
    (path.parent / "other.png").write_bytes(b"")
    checkpoint, output = save(small(), tmp_path / "a.ckpt"), tmp_path / "new" / "out"
    assert command("translate", "--checkpoint", checkpoint, "--input", path, "--output", output).code == 0
    assert files_in(output) == ["One.JPeG"]
    with Image.open(output / "One.JPeG") as image:
        assert (image.format, image.size) == ("JPEG", (9, 5))


def test_a_file_becomes_a_file_of_the_name_that_is_given(tmp_path, command):
    path, output = tmp_path / "one.jpg", tmp_path / "new" / "other.png"
    Image.fromarray(noise(5, 9, 3)).save(path)
    model = small()
    arguments = ["translate", "--checkpoint", save(model, tmp_path / "a.ckpt"), "--input", path, "--output"]
    ended = command(*arguments, output)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-3:] == [
        f"1 of 1 pictures translated into {output}",
        "Next:",
        f"  lightning-gen translate --checkpoint {tmp_path / 'a.ckpt'} --input PICTURES --output FOLDER "
        "--direction BtoA",
    ]
    expected = to_uint8(model.translate(to_float(read_image(path))[None])[0])
    assert torch.equal(open_image(output).pixels, expected)
    assert files_in(tmp_path / "new") == ["other.png"]
    ended = command(*arguments, output)
    assert ended.code == 1
    assert f"{output} is there already. Name another, or replace it with --overwrite true" in ended.err
    assert command(*arguments, output, "--overwrite", "true").code == 0
    ended = command(*arguments, path, "--overwrite", "true")
    assert ended.code == 1
    assert "is the input's own" in ended.err


def test_results_inside_the_input_are_no_input(folder, tmp_path, command):
    checkpoint = save(small(), tmp_path / "a.ckpt")
    arguments = ["translate", "--checkpoint", checkpoint, "--input", folder, "--output", folder / "a" / "out"]
    for more in ([], ["--overwrite", "true"]):
        ended = command(*arguments, *more)
        assert ended.code == 0, ended.err
        assert "7 of 7 pictures translated" in ended.out
    assert len(files_in(folder / "a" / "out")) == 7
    # Nor what is beside them.
    Image.fromarray(noise(5, 9, 3)).save(folder / "a" / "out_grid.png")
    assert "7 of 7 pictures translated" in command(*arguments, "--overwrite", "true").out


def test_tiles(tmp_path, command):
    """A network without norms of the whole picture gives the same; 19 pixels are what this one sees to each side."""
    generator = partial(ResNetGenerator, filters=2, blocks=1, norm="batch")
    model = spread(CycleGAN((3, 16, 16), generator, DISCRIMINATOR))
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.fill_(1.0 if name.endswith("var") else 0.0) if value.is_floating_point() else None
    Image.fromarray(noise(70, 150, 3)).save(tmp_path / "wide.png")
    arguments = ["translate", "--checkpoint", save(model, tmp_path / "a.ckpt"), "--input", tmp_path / "wide.png"]
    images = to_float(read_image(tmp_path / "wide.png"))[None]
    whole = model.translate(images)
    torch.testing.assert_close(model.translate(images, tile=208), whole, rtol=0, atol=0)
    large = torch.rand(1, 3, 70, 500) * 2 - 1
    torch.testing.assert_close(model.translate(large, tile=208), model.translate(large), rtol=0, atol=1e-4)
    ended = command(*arguments, "--output", tmp_path / "tiles.png", "--tile", "64")
    assert ended.code == 0, ended.err
    assert torch.equal(open_image(tmp_path / "tiles.png").pixels, to_uint8(model.translate(images, tile=64)[0]))
    ended = command(*arguments, "--output", tmp_path / "none.png", "--tile", "7")
    assert ended.code == 1
    assert "A tile must have at least 8 pixels a side here" in ended.err


def test_files_that_cannot_be_read_are_named_and_skipped(folder, tmp_path, command):
    photo = (folder / "photo.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(photo[: len(photo) // 2])
    values = noise(21, 37, dtype=np.float32)
    values[3, 4] = np.nan
    Image.fromarray(values).save(folder / "nan.tif")
    output = tmp_path / "out"
    ended = command(
        "translate", "--checkpoint", save(small(), tmp_path / "a.ckpt"), "--input", folder, "--output", output
    )
    assert ended.code == 1
    assert "7 of 9 pictures translated" in ended.out
    skipped = [line for line in ended.err.splitlines() if line.startswith("skipped")]
    assert skipped[0].startswith(f"skipped {folder / 'broken.jpg'} cannot be read as a picture")
    assert skipped[1].startswith(f"skipped {folder / 'nan.tif'} holds 1 pixels that are not finite")
    assert len(skipped) == 2
    assert "Traceback" not in ended.err
    assert files_in(output) == sorted(set(files_in(folder)) - {"broken.jpg", "nan.tif", "notes.txt", ".hidden.png"})


def test_what_cannot_be_written_is_named_and_skipped(folder, tmp_path, command):
    output = tmp_path / "out"
    output.mkdir()
    (output / "a").write_text("stands where a folder is needed")
    ended = command(
        "translate", "--checkpoint", save(small(), tmp_path / "a.ckpt"), "--input", folder, "--output", output
    )
    assert ended.code == 1
    assert "3 of 7 pictures translated" in ended.out
    assert ended.err.count(f"skipped {folder / 'a'}") == 4


@pytest.mark.parametrize(
    ("make", "multiple"),
    [
        (lambda: CycleGAN((3, 32, 32), partial(UNetGenerator, filters=2, depth=5, norm="instance"), DISCRIMINATOR), 32),
        (lambda: Pix2Pix((3, 32, 32), partial(UNetGenerator, filters=2, depth=5), DISCRIMINATOR), 32),
    ],
    ids=["CycleGAN", "Pix2Pix"],
)
def test_a_unet_translates_odd_sizes(tmp_path, command, make, multiple):
    model = spread(make())
    assert model.generator_AtoB.size_multiple == multiple
    root, output = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for height, width in ((37, 21), (3, 70), (64, 32)):  # reflected, repeated, as it is
        Image.fromarray(noise(height, width, 3)).save(root / f"{height}.png")
    assert (
        command("translate", "--checkpoint", save(model, tmp_path / "a.ckpt"), "--input", root, "--output", output).code
        == 0
    )
    for name in files_in(root):
        expected = model.translate(to_float(read_image(root / name))[None])[0]
        assert torch.equal(open_image(output / name).pixels, to_uint8(expected)), name


def test_the_averaged_weights_are_used(folder, tmp_path, command):
    model = small()
    raw = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if name.startswith("gen")}
    checkpoint, output = save(model, tmp_path / "a.ckpt", raw_state_dict=raw), tmp_path / "out"
    command("translate", "--checkpoint", checkpoint, "--input", folder / "rgb.png", "--output", output)
    expected = to_uint8(model.translate(to_float(read_image(folder / "rgb.png"))[None])[0])
    assert torch.equal(open_image(output / "rgb.png").pixels, expected)


class NoTranslation(GenerativeModule):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()


def link(folder):
    (folder.parent / "link").symlink_to(folder)
    return folder.parent / "link"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": lambda folder: folder / "a" / ".."}, r"is the input's own; its files would be overwritten"),
        ({"output": link}, "is the input's own"),
        ({"input": lambda folder: folder / "rgb.png", "output": lambda folder: folder}, "is the input's own"),
        ({"output": lambda folder: folder / "rgb.png"}, "rgb.png is a file. Name a folder"),
        ({"input": lambda folder: folder / "none"}, "none does not exist"),
        ({"input": lambda folder: folder / "a" / "empty"}, "empty holds no pictures (jpg, png"),
        ({"input": lambda folder: folder / "notes.txt"}, "notes.txt cannot be read as a picture"),
        ({"checkpoint": lambda folder: save(NoTranslation((3, 8, 8)), folder.parent / "b.ckpt")}, "does not translate"),
        ({"checkpoint": lambda folder: folder / "notes.txt"}, "not a checkpoint"),
        ({"checkpoint": lambda folder: folder / "none.ckpt"}, "There is no checkpoint at"),
        (
            {
                "checkpoint": lambda folder: save(
                    Pix2Pix((3, 32, 32), partial(ResNetGenerator, filters=2, blocks=1), DISCRIMINATOR),
                    folder.parent / "c.ckpt",
                ),
                "direction": lambda folder: "BtoA",
            },
            "translates AtoB, not BtoA",
        ),
        ({"background": lambda folder: "whyte"}, "background must be a colour such as white or '#ffcc00', got 'whyte'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(folder, tmp_path, command, changes, message):
    (folder / "a" / "empty").mkdir()
    arguments = {"checkpoint": tmp_path / "a.ckpt", "input": folder, "output": tmp_path / "out"}
    save(small(), arguments["checkpoint"])
    arguments |= {name: make(folder) for name, make in changes.items()}
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = command("translate", *[part for name, value in arguments.items() for part in (f"--{name}", value)])
    assert ended.code == 1
    assert message in ended.err
    assert ended.err.count(message) == 1
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WITNESS = '''
import os
from pathlib import Path

from lightning_gen.models import CycleGAN


class Witness(CycleGAN):
    """Notes which process translates."""

    def translate(self, images, direction="AtoB"):
        with Path("ranks.txt").open("a") as file:
            file.write(os.environ.get("LOCAL_RANK", "0") + "\\n")
        return super().translate(images, direction)
'''


def test_two_devices_share_the_files(tmp_path, command, monkeypatch):
    """Real processes; and the model is a class from a file in the folder where the user stands."""
    monkeypatch.chdir(tmp_path)
    Path("witness.py").write_text(WITNESS)
    monkeypatch.syspath_prepend(tmp_path)
    from witness import Witness

    save(spread(Witness((3, 16, 16), partial(ResNetGenerator, filters=2, blocks=1), DISCRIMINATOR)), Path("a.ckpt"))
    for i in range(9):
        write_image(f"in/{i}.png", torch.from_numpy(noise(3, 10 + i, 12)) / 127.5 - 1)
    for i in (2, 5):  # one for each rank
        Path(f"in/{i}.png").write_bytes(Path(f"in/{i}.png").read_bytes()[:60])
    arguments = ["translate", "--checkpoint", "a.ckpt", "--input", "in", "--accelerator", "cpu", "--trust=witness"]
    assert command(*arguments, "--output", "one").code == 1
    assert Counter(Path("ranks.txt").read_text().split()) == {"0": 7}
    Path("ranks.txt").unlink()

    repository = str(Path(__file__).parents[2])
    python_path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "lightning_gen", *arguments, "--output", "two", "--devices", "2"],
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert Counter(Path("ranks.txt").read_text().split()) == {"0": 4, "1": 3}
    skipped = sorted(line for line in ended.stderr.splitlines() if line.startswith("skipped"))
    assert [line.split()[1] for line in skipped] == ["in/2.png", "in/5.png"]
    assert ended.stdout.count("7 of 9 pictures translated into two") == 1
    assert files_in(Path("two")) == files_in(Path("one")) == [f"{i}.png" for i in (0, 1, 3, 4, 6, 7, 8)]
    for name in files_in(Path("one")):
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()
