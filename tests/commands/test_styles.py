"""The commands about styles, with a network small enough to work out by hand what they should write."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.commands.project import project
from lightning_gen.data.images import from_uint8, read_image, to_uint8, write_image
from lightning_gen.latents import numbered_latents
from lightning_gen.losses.perceptual import LPIPSDistance
from lightning_gen.models import StyleGAN
from lightning_gen.networks import StyleGANDiscriminator, StyleGANGenerator
from lightning_gen.styles import factorized_directions
from tests.commands.test_latents import small as without_styles
from tests.shared import save

SHAPE, LAYERS = (3, 16, 16), 6


def small(shape=SHAPE, **settings):
    torch.manual_seed(0)
    networks = (partial(network, **network.small) for network in (StyleGANGenerator, StyleGANDiscriminator))
    model = StyleGAN(shape, *networks, latent_size=4, **settings)
    with torch.no_grad():
        model.generator.mean_style.normal_()
        for layer in model.generator.layers:
            layer.noise.strength.normal_()
        for layer in model.generator.to_image:
            layer.weight *= 0.1  # pictures are not cut
    return model


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save(model, tmp_path_factory.mktemp("styles") / "a.ckpt")


def styles_of(model, numbers, seed=0, label=None):
    return model.map_latents(numbered_latents(model, numbers, seed), label)


def assert_written(file, image):
    """Within one level: other sizes of a batch round otherwise."""
    assert (read_image(file).int() - to_uint8(image).int()).abs().max() <= 1


# -- mixing ---------------------------------------------------------------------------------------------------------


def test_pictures_have_styles_of_others_from_a_layer_to_a_layer(tmp_path, command, checkpoint, model):
    output = tmp_path / "out"
    ended = command("styles", "--checkpoint", checkpoint, "--output", output, "--sources", 2, "--rows", 1, "--seed", 3)
    assert ended.code == 0, ended.err
    assert "coarse: layers 0, 1 of 6" in ended.out
    styles = styles_of(model, range(5), seed=3)
    for row, (name, first, last) in enumerate((("coarse", 0, 2), ("middle", 2, 4), ("fine", 4, 6)), 2):
        for source in range(2):
            by_hand = torch.cat([styles[row, :first], styles[source, first:last], styles[row, last:]])
            assert_written(output / name / f"{row:03d}_{source:03d}.png", model.synthesize(by_hand[None])[0])
    assert len(list(output.rglob("*.png"))) == 6
    grid = Image.open(tmp_path / "out_grid.png")
    assert grid.width == 2 + 3 * (144 + 2)


def test_bands_and_settings_of_sampling_may_be_chosen(tmp_path, command, checkpoint, model):
    output = tmp_path / "out"
    arguments = ["--sources", 1, "--rows", 1, "--layers", "[0-1,5]", "--psi", 0.5, "--truncated_layers", 3]
    ended = command("styles", "--checkpoint", checkpoint, "--output", output, *arguments, "--noise", "none")
    assert ended.code == 0, ended.err
    lent, *takers = model.truncate(styles_of(model, range(3)), 0.5, 3)
    takers[0][:2], takers[1][5] = lent[:2], lent[5]
    images = model.synthesize(torch.stack(takers), noise="none")
    assert_written(output / "layers_0-1" / "001_000.png", images[0])
    assert_written(output / "layers_5" / "002_000.png", images[1])


# -- truncation -----------------------------------------------------------------------------------------------------


def test_at_psi_0_all_pictures_are_one_and_at_1_those_of_sample(tmp_path, command, checkpoint, model):
    output = tmp_path / "out"
    ended = command("truncation", "--checkpoint", checkpoint, "--output", output, "--rows", 3)
    assert ended.code == 0, ended.err
    assert "psi 0: pictures deviate by 0.0000" in ended.out
    plain = model.generate(numbered_latents(model, range(3), 0))
    mean = model.synthesize(model.generator.mean_style.expand(1, LAYERS, -1))[0]
    opposite = model.synthesize(2 * model.generator.mean_style - styles_of(model, range(3)))
    for number in range(3):
        assert_written(output / "psi_1" / f"{number:03d}.png", plain[number])
        assert_written(output / "psi_0" / f"{number:03d}.png", mean)
        assert_written(output / "psi_-1" / f"{number:03d}.png", opposite[number])
    again = command("truncation", "--checkpoint", checkpoint, "--output", output, "--psis", "[1.5]", "--overwrite=true")
    assert again.code == 0, again.err
    assert [path.name for path in output.iterdir() if list(path.iterdir())] == ["psi_1.5"]


# -- points of w ----------------------------------------------------------------------------------------------------


def test_interpolation_in_w_goes_straight(tmp_path, command, checkpoint, model):
    output = tmp_path / "out"
    arguments = ["--space", "w", "--pairs", 2, "--steps", 3, "--psi", 0.7]
    ended = command("interpolate", "--checkpoint", checkpoint, "--output", output, *arguments)
    assert ended.code == 0, ended.err
    styles = model.truncate(styles_of(model, range(4)), 0.7)
    for pair in range(2):
        start, end = styles[2 * pair], styles[2 * pair + 1]
        images = model.synthesize(torch.stack([start, (start + end) / 2, end]))
        for step in range(3):
            assert_written(output / f"pair_{pair:03d}" / f"{step:03d}.png", images[step])


def test_arithmetic_in_w_adds_styles(tmp_path, command):
    model = small(num_classes=2)
    checkpoint, output = save(model, tmp_path / "a.ckpt"), tmp_path / "out"
    concepts = ["--a", "1,2", "--b", "3", "--c", "4", "--label", 1, "--noise", 0.5]
    ended = command("arithmetic", "--checkpoint", checkpoint, "--output", output, "--space", "w", *concepts)
    assert ended.code == 0, ended.err
    w = styles_of(model, range(5), label=1)
    result = (w[1] + w[2]) / 2 - w[3] + w[4]
    assert_written(output / "result_4.png", model.synthesize(result[None])[0])
    assert_written(output / "a_mean.png", model.synthesize((w[1:3]).mean(0, keepdim=True))[0])
    assert (output / "result_0.png").read_bytes() != (output / "result_4.png").read_bytes()


# -- directions -----------------------------------------------------------------------------------------------------


def test_a_picture_is_moved_along_the_strongest_directions(tmp_path, command, checkpoint, model):
    output = tmp_path / "out"
    arguments = ["--number", 2, "--steps", 3, "--strength", 2, "--picture", 7, "--layers", "2-3"]
    ended = command("directions", "--checkpoint", checkpoint, "--output", output, *arguments)
    assert ended.code == 0, ended.err
    ways, _ = factorized_directions(model.style_weights()[2:4], 2)
    drawn = model.map_latents(model.draw_latents(10_000, torch.Generator().manual_seed(1)))[:, 0]
    start = styles_of(model, [7])
    for place in range(2):
        assert_written(output / f"direction_{place}" / "001.png", model.synthesize(start)[0])
        moved = start.clone()
        moved[:, 2:4] += 2 * (drawn @ ways[place]).std() * ways[place]
        # The deviation is one of other draws, within a few hundredths.
        found = from_uint8(read_image(output / f"direction_{place}" / "002.png"))
        assert (found - model.synthesize(moved)[0]).abs().mean() < 0.02
        assert (found - model.synthesize(start)[0]).abs().mean() > 0.02


# -- projection -----------------------------------------------------------------------------------------------------


def test_a_picture_of_the_generator_comes_back(tmp_path, command, checkpoint, model):
    write_image(tmp_path / "in" / "deep" / "own.png", model.generate(numbered_latents(model, [0], 0))[0])
    output = tmp_path / "out"
    arguments = ["--input", tmp_path / "in", "--distance", "pixels", "--steps", 200]
    ended = command("project", "--checkpoint", checkpoint, "--output", output, *arguments)
    assert ended.code == 0, ended.err
    rows = [line.split(",") for line in (output / "distances.csv").read_text().splitlines()]
    assert rows[0] == ["picture", "step", "distance"]
    assert [row[:2] for row in rows[1:]] == [["deep/own", str(step)] for step in (0, 40, 80, 120, 160, 200)]
    assert float(rows[-1][2]) < 0.02 * float(rows[1][2])
    w = torch.from_numpy(np.load(output / "styles" / "deep" / "own.npz")["w"])
    assert (w == w[0]).all()
    assert_written(output / "pictures" / "deep" / "own.png", model.synthesize(w[None])[0])
    assert "deep/own: distance" in ended.out


def test_without_lpips_pixels_are_compared_unless_it_is_asked_for(tmp_path, checkpoint, monkeypatch, capsys):
    def missing(self):
        raise FileNotFoundError("No weights.")

    monkeypatch.setattr(LPIPSDistance, "load", missing)
    write_image(tmp_path / "in.png", torch.zeros(SHAPE))
    project(checkpoint, tmp_path / "in.png", tmp_path / "out", steps=1, accelerator="cpu")
    assert "By squared differences of pixels, for LPIPS cannot be had" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"No weights\."):
        project(checkpoint, tmp_path / "in.png", tmp_path / "other", distance="lpips", accelerator="cpu")
    assert not (tmp_path / "other").exists()


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("styles", {"sources": 0}, "sources must be at least 1, got 0."),
        ("styles", {"layers": "[0-6]"}, "The layers of this model are 0 to 5; got '0-6'."),
        ("styles", {"layers": "[a]"}, "such as 0-3,8; got 'a'."),
        ("styles", {"psi": 3}, "psi must lie in [-2, 2], got 3.0"),
        ("styles", {"truncated_layers": 7}, "truncated_layers must be from 0 to 6, which this generator has; got 7."),
        ("styles", {"label": 1}, "This StyleGAN has no classes to choose from."),
        ("truncation", {"psis": "[1,-2.5]"}, "psi must lie in [-2, 2], got -2.5"),
        ("truncation", {"psis": "[1,1]"}, "each once; got [1.0, 1.0]."),
        ("truncation", {"psi": 0.5}, "Give them with --psis, such as --psis [1,0.5,0]."),
        ("truncation", {"rows": 0}, "rows must be at least 1, got 0."),
        ("directions", {"layers": "9"}, "The layers of this model are 0 to 5; got '9'."),
        ("directions", {"number": 9}, "Styles 8 wide have 1 to 8 directions; got 9."),
        ("directions", {"steps": 1}, "steps must be at least 2, got 1."),
        ("directions", {"strength": 0}, "strength must be above 0, got 0.0."),
        ("project", {"steps": 0}, "steps must be above 0, got 0."),
        ("project", {"noise": -1}, "noise must be 0 or more, got -1.0."),
        ("project", {}, "is 8 x 12 (height x width), but the model's pictures are 16 x 16. --resize bicubic"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_drawn(tmp_path, command, checkpoint, name, arguments, message):
    given = {"checkpoint": checkpoint, "output": tmp_path / "out", **arguments}
    if name == "project":
        write_image(tmp_path / "in.png", torch.zeros(3, 8, 12))
        given["input"] = tmp_path / "in.png"
    ended = command(name, *[f"--{key}={value}" for key, value in given.items()])
    assert ended.code == 1, ended.out
    assert message in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("styles", {}, "holds a GAN, which has no styles that layers have each for itself."),
        ("truncation", {}, "holds a GAN, which has no styles that layers have each for itself."),
        ("directions", {}, "holds a GAN, which has no styles that layers have each for itself."),
        ("project", {"input": "in.png"}, "holds a GAN, which has no styles that layers have each for itself."),
        ("interpolate", {"space": "w"}, "holds a GAN, which has no styles; take --space z."),
        ("arithmetic", {"space": "w", "a": 1, "b": 2, "c": 3}, "holds a GAN, which has no styles; take --space z."),
    ],
)
def test_models_without_styles_are_refused(tmp_path, command, name, arguments, message):
    given = {"checkpoint": save(without_styles(), tmp_path / "a.ckpt"), "output": tmp_path / "out", **arguments}
    ended = command(name, *[f"--{key}={value}" for key, value in given.items()])
    assert ended.code == 1
    assert message in ended.err


def test_a_class_must_be_chosen(tmp_path, command):
    checkpoint = save(small(num_classes=2), tmp_path / "a.ckpt")
    for name in ("styles", "truncation"):
        ended = command(name, "--checkpoint", checkpoint, "--output", tmp_path / name)
        assert "This StyleGAN has 2 classes. Choose one with the label." in ended.err
