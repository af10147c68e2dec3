"""The commands about styles, with a network small enough to work out by hand what they should write."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision.models
from PIL import Image

from lightning_gen.commands.project import project
from lightning_gen.data.images import from_uint8, read_image, to_uint8, write_image
from lightning_gen.extractors import ClassifierFeatures, FeatureDistance, SceneFeatures
from lightning_gen.latents import numbered_latents
from lightning_gen.losses.perceptual import LPIPSDistance
from lightning_gen.models import Classifier, StyleGAN
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
    head, *table = (output / "deviations.csv").read_text().splitlines()
    assert head == "psi,deviation"
    assert [float(row.split(",")[0]) for row in table] == [1, 0.7, 0.5, 0, -0.5, -1]
    plain = model.generate(numbered_latents(model, range(3), 0))
    spread = (plain - plain.mean(0)).square().mean().sqrt()
    assert float(table[0].split(",")[1]) == pytest.approx(spread.item(), rel=1e-4)
    mean = model.synthesize(model.generator.mean_style.expand(1, LAYERS, -1))[0]
    opposite = model.synthesize(2 * model.generator.mean_style - styles_of(model, range(3)))
    for number in range(3):
        assert_written(output / "psi_1" / f"{number:03d}.png", plain[number])
        assert_written(output / "psi_0" / f"{number:03d}.png", mean)
        assert_written(output / "psi_-1" / f"{number:03d}.png", opposite[number])
    again = command("truncation", "--checkpoint", checkpoint, "--output", output, "--psis", "[1.5]", "--overwrite=true")
    assert again.code == 0, again.err
    assert {path.name for path in output.iterdir() if path.is_file() or [*path.iterdir()]} == {
        "deviations.csv",
        "psi_1.5",
    }
    assert len((output / "deviations.csv").read_text().splitlines()) == 2


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
    ways, shares = factorized_directions(model.style_weights()[2:4], 2)
    drawn = model.map_latents(model.draw_latents(10_000, torch.Generator().manual_seed(1)))[:, 0]
    start = styles_of(model, [7])
    head, *table = (output / "directions.csv").read_text().splitlines()
    assert head == "direction,share,deviation,difference"
    for place in range(2):
        number, share, deviation, difference = map(float, table[place].split(","))
        assert (number, share) == (place, pytest.approx(shares[place].item(), rel=1e-4))
        assert deviation == pytest.approx((drawn @ ways[place]).std().item(), rel=0.05)
        ends = (from_uint8(read_image(output / f"direction_{place}" / f"{step:03d}.png")) for step in (0, 2))
        assert difference == pytest.approx(torch.dist(*ends).item() / 768**0.5, rel=0.02)
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


def test_optimised_noise_comes_nearer_and_is_written_with_the_styles(tmp_path, checkpoint, model):
    target = model.synthesize(styles_of(model, [3]), noise="random", generator=torch.Generator().manual_seed(5))[0]
    write_image(tmp_path / "in.png", target)
    last = {}
    for noise in ("fixed", "optimised"):
        output = tmp_path / noise
        settings = {"distance": "pixels", "steps": 100, "noise": noise, "space": "w+"}
        project(checkpoint, tmp_path / "in.png", output, accelerator="cpu", **settings)
        last[noise] = float((output / "distances.csv").read_text().splitlines()[-1].split(",")[2])
    assert last["optimised"] < 0.9 * last["fixed"]
    assert list(np.load(tmp_path / "fixed" / "styles" / "in.npz")) == ["w"]
    found = {name: torch.from_numpy(each) for name, each in np.load(output / "styles" / "in.npz").items()}
    w, maps = found.pop("w"), [*found.values()]
    assert [*found] == [f"noise_{layer}" for layer in range(LAYERS)]
    for each in maps:
        assert each.mean().item() == pytest.approx(0, abs=1e-5)
        assert each.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        assert_written(output / "pictures" / "in.png", model.synthesize_from(w[None], noise=maps)[0].clamp(-1, 1))


SIZE = 32


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    """Networks with drawn weights: a classifier, and what LPIPS reads, in the layout of its file."""
    folder = tmp_path_factory.mktemp("eyes")
    torch.manual_seed(0)
    classifier = save(Classifier((3, SIZE, SIZE), num_classes=3), folder / "classifier.ckpt", global_step=0)
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.split("/")[-1]
    (folder / "checkpoints").mkdir()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / "checkpoints" / weights)
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(folder))
    yield {
        "lpips": (LPIPSDistance("squeeze"), {"distance": "lpips"}),
        "classifier": (
            FeatureDistance(partial(ClassifierFeatures, classifier)),
            {"extractor": ClassifierFeatures(classifier)},
        ),
        "scenes": (
            FeatureDistance(partial(SceneFeatures, num_scenes=64, epochs=1)),
            {"extractor": SceneFeatures(SIZE, num_scenes=64, epochs=1)},
        ),
    }
    torch.hub.set_dir(before)


@pytest.mark.parametrize("eye", ["lpips", "classifier", "scenes"])
def test_any_network_judges(eye, eyes, tmp_path, monkeypatch):
    loss, chosen = eyes[eye]
    load = LPIPSDistance.load
    monkeypatch.setattr(LPIPSDistance, "load", lambda self: load(loss))  # of the small network, not of VGG-16
    model = small((3, SIZE, SIZE))
    target = to_uint8(model.generate(numbered_latents(model, [5], 0)))[0]
    write_image(tmp_path / "in.png", from_uint8(target))
    checkpoint, output = save(model, tmp_path / "a.ckpt"), tmp_path / "out"
    project(checkpoint, tmp_path / "in.png", output, steps=20, accelerator="cpu", **chosen)
    rows = [line.split(",") for line in (output / "distances.csv").read_text().splitlines()[1:]]
    first, last = float(rows[0][2]), float(rows[-1][2])
    assert last < 0.8 * first
    w = torch.from_numpy(np.load(output / "styles" / "in.npz")["w"])
    with torch.no_grad():
        expected = loss(model.synthesize_from(w[None], noise=model.noise_maps()), from_uint8(target)[None])
    assert last == pytest.approx(expected.item(), rel=1e-3)


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
        ("project", {"style_noise": -1}, "style_noise must be 0 or more, got -1.0."),
        (
            "project",
            {"distance": "pixels", "extractor": "PointFeatures"},
            "by a distance or by an extractor; got pixels and points2.",
        ),
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
