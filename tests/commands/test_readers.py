"""The figures of a configuration follow the data that is chosen, or leave themselves out with a word."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import Namespace
from PIL import Image

from lightning_gen.commands.readers import follow_data
from lightning_gen.data import Scenes

SCENES = {"class_path": "lightning_gen.metrics.SceneFeatures", "image_size": 32, "domain": "day", "weights": None}
POINTS = {"class_path": "lightning_gen.metrics.PointFeatures", "dimensions": 2}
CLASSIFIER = {
    "class_path": "lightning_gen.metrics.ClassifierFeatures",
    "data": "MNIST",
    "image_shape": [1, 28, 28],
    "weights": None,
}
OWN = {"class_path": "mypackage.Reader"}


def namespace(class_path, **arguments):
    return Namespace(class_path=class_path, init_args=Namespace(**arguments))


def followed(data, extractor, *others, **settings):
    """What becomes of the extractor, of the other callbacks, and what is said; "none" for a callback that is gone."""
    metrics = namespace("lightning_gen.callbacks.GenerativeMetrics", extractor=extractor and namespace(**extractor))
    callbacks = [namespace("lightning_gen.callbacks.EMA"), *(namespace(other) for other in others), metrics]
    path = "lightning_gen.data" if "." not in data else data.rpartition(".")[0]
    config = Namespace(
        model=namespace("lightning_gen.models.DCGAN"),
        data=namespace(f"{path}.{data.rpartition('.')[2]}", **settings),
        trainer=Namespace(callbacks=callbacks),
    )
    words = follow_data(config)
    left = config.trainer.callbacks
    found = "none"
    if metrics in left:
        found = metrics.init_args.extractor
        found = found and {"class_path": found.class_path, **found.init_args.as_dict()}
    return found, [callback for callback in left if callback is not metrics][1:], words


@pytest.mark.parametrize("extractor", [SCENES, POINTS, CLASSIFIER | {"data": "Letters"}])
@pytest.mark.parametrize(("pad", "side"), [(0, 28), (2, 32)])
@pytest.mark.parametrize("data", ["MNIST", "FashionMNIST"])
def test_digits_and_clothes_have_their_classifier(data, extractor, pad, side):
    found, _, words = followed(data, extractor, pad=pad, root="nowhere")
    shape = {"data": data, "image_shape": [1, side, side]}
    assert found == {"class_path": "lightning_gen.metrics.ClassifierFeatures", **shape}
    (word,) = words
    assert word.startswith("GenerativeMetrics takes ClassifierFeatures: ")
    assert word.endswith(f", and the data is {data}.")


def test_a_classifier_follows_the_size_of_its_data():
    assert followed("MNIST", CLASSIFIER, pad=2) == (CLASSIFIER | {"image_shape": [1, 32, 32]}, [], [])
    assert followed("MNIST", CLASSIFIER | {"weights": "mine.ckpt"}, pad=2)[0] == CLASSIFIER | {"weights": "mine.ckpt"}


def test_scenes_and_points_are_read_as_what_they_are():
    size, domain = {"image_size": [16, 24]}, {"domain": "winter"}
    assert followed("Scenes", SCENES, **size, **domain) == (SCENES | size | domain, [], [])
    assert followed("SwissRoll", POINTS) == (POINTS, [], [])
    found, _, words = followed("GridOfGaussians", None)
    assert found == POINTS
    assert words == [
        "GenerativeMetrics takes PointFeatures: InceptionFeatures reads pictures in colour, and the data is "
        "GridOfGaussians."
    ]
    assert followed("Scenes", POINTS, **size)[0] == {
        "class_path": "lightning_gen.metrics.SceneFeatures",
        **size,
        "domain": "day",
    }


@pytest.mark.parametrize("extractor", [SCENES, POINTS, CLASSIFIER])
@pytest.mark.parametrize("data", ["ImageFolder", "CIFAR10", "Digits", f"{__name__}.Mine"])
def test_where_no_reader_is_at_hand_none_is_taken(data, extractor):
    found, others, words = followed(data, extractor, "lightning_gen.callbacks.PointMetrics", root="nowhere")
    assert found == "none"
    assert others == []
    name = data.rpartition(".")[2]
    assert words[0] == f"PointMetrics is left out: it measures points, and the data is {name}."
    assert words[1].startswith(f"GenerativeMetrics is left out: {extractor['class_path'].rpartition('.')[2]} ")
    assert words[1].endswith(
        f"and the data is {name}. An extractor that you name brings it back, as in --trainer.callbacks.extractor "
        "InceptionFeatures."
    )


@pytest.mark.parametrize(
    ("data", "figures", "left"),
    [
        ("ImageFolder", None, ["psnr", "ssim"]),
        ("ImageFolder", ["fid", "rfid", "ssim"], ["ssim"]),
        ("ImageFolder", ["rfid"], None),
        ("Digits", None, ["psnr"]),
    ],
)
def test_of_reconstructions_figures_that_need_no_reader_are_kept(data, figures, left):
    config = Namespace(
        model=namespace("lightning_gen.models.VQVAE"),
        data=namespace(f"lightning_gen.data.{data}"),
        trainer=Namespace(
            callbacks=[
                namespace(
                    "lightning_gen.callbacks.GenerativeMetrics",
                    extractor=namespace(**SCENES),
                    figures=figures,
                    num_samples=7,
                )
            ]
        ),
    )
    (word,) = follow_data(config)
    kept = [callback.init_args for callback in config.trainer.callbacks]
    assert kept == ([Namespace(extractor=None, figures=left, num_samples=7)] if left else [])
    said = f"GenerativeMetrics {f'keeps {chr(32).join(left)} alone' if left else 'is left out'}: SceneFeatures reads"
    assert word.replace(" and ", " ", 1).startswith(said)
    assert follow_data(config) == []  # as when the run goes on


class Mine:
    """Data of the user's own."""


class MyScenes(Scenes):
    """Of the user's own too, and not made to be looked at."""

    def __init__(self):
        raise AssertionError


def test_what_the_user_has_chosen_stays():
    for data, settings in (("MNIST", {}), ("ImageFolder", {"root": "nowhere"}), ("GridOfGaussians", {})):
        for extractor in (
            OWN,
            SCENES | {"weights": "mine.pt"},
            {"class_path": "lightning_gen.metrics.InceptionFeatures"},
        ):
            assert followed(data, extractor, **settings) == (extractor, [], [])
    assert followed("CIFAR10", None) == (None, [], [])
    assert followed("ImageFolder", None, channels=3) == (None, [], [])
    assert followed("ImageFolder", None, channels=1)[0] == followed("Digits", None)[0] == "none"
    assert followed(f"{__name__}.Mine", None) == (None, [], [])
    assert followed(f"{__name__}.MyScenes", SCENES) == (SCENES, [], [])
    assert followed("nowhere.Mine", SCENES) == (SCENES, [], [])


def test_photographs_are_trained_on_without_a_reader_of_landscapes(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(f"photos/{i}.png")
    arguments = ["--data", "ImageFolder", "--data.root", "photos", "--data.batch_size", 2, "--data.num_workers", 0]
    arguments += ["--model.generator.filters", 2, "--model.discriminator.filters", 2, "--trainer.precision", "32-true"]
    arguments += ["--data.val_fraction", 0.34, "--data.test_fraction", 0.34, "--trainer.val_check_interval", 1]
    ended = command("fit", "--config", "dcgan", *arguments, "--trainer.max_steps", 1, "--trainer.accelerator", "cpu")
    assert ended.code == 0, ended.err
    said = "GenerativeMetrics is left out: SceneFeatures reads built-in scenes, and the data is ImageFolder."
    assert said in ended.out
    config = yaml.safe_load(Path("runs/dcgan/version_0/config.yaml").read_text())
    assert [callback["class_path"] for callback in config["trainer"]["callbacks"]] == ["lightning_gen.callbacks.EMA"]
