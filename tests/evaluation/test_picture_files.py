"""Folders of pictures of any sizes: what fits is measured, what does not is said before anything is read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_gen.commands.evaluate import evaluate
from lightning_gen.data.images import ImageError, image_size, read_image, resize_image
from lightning_gen.data.listing import find_images
from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.metrics import InceptionScore, KernelInceptionDistance
from lightning_gen.metrics.frechet import Moments


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


class Corners(FeatureExtractor):
    """The means of four quarters of a picture of any size, or of one; `seen` is how many pictures it has read."""

    def __init__(self, resizes=False, size=(None, None)):
        shape = (3, *size)
        super().__init__(nn.Identity(), name="corners4", preprocessing="none", num_features=4, image_shape=shape)
        self.resizes, self.seen = resizes, 0

    def extract(self, images):
        self.seen += len(images)
        return Features(nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1))


def folder(name, sizes, seed=0):
    random = np.random.default_rng(seed)
    Path(name).mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(f"{name}/{i:02d}.png")


def measured(extractor, **settings):
    settings = {"figures": ["fid", "kid"], "output": Path("figures.json"), "accelerator": "cpu", **settings}
    assert evaluate(images=Path("ours"), reference="theirs", extractor=extractor, **settings) == 0
    return json.loads(Path("figures.json").read_text())["evaluations"][-1]


def features(extractor, name, *resize):
    pictures = [read_image(file) for file in find_images(name)]
    pictures = [resize_image(picture, *resize) for picture in pictures] if resize else pictures
    return torch.cat([extractor(picture[None]).features for picture in pictures])


def kid(ours, theirs):
    metric = KernelInceptionDistance(nn.Identity())
    metric.update(theirs, real=True)
    metric.update(ours, real=False)
    return metric.compute()[0].item()


def frechet(x, y):
    """By the formula."""
    x, y = x.double().numpy(), y.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root


MIXED = [(8, 8), (12, 8), (8, 8), (9, 21), (30, 30), (12, 8), (8, 8)]


def test_sizes_that_do_not_fit_are_said_before_anything_is_read():
    folder("theirs", [(8, 8)] * 5)
    folder("ours", [(8, 8)] * 4 + [(8, 10)])
    extractor = Corners()
    with pytest.raises(
        ImageError, match=r"ours/04\.png is 8 x 10 \(height x width\), but theirs/00\.png is 8 x 8\. --r"
    ):
        measured(extractor)
    with pytest.raises(ImageError, match=r"theirs/00\.png is 8 x 8 .*, but corners4 takes 16 x 16\. --resize bicubic"):
        measured(Corners(size=(16, 16)))
    assert extractor.seen == 0


def test_files_that_cannot_be_read_are_told_all_at_once():
    folder("ours", [(8, 8)] * 3)
    folder("theirs", [(8, 8)] * 3, seed=1)
    for name in ("x", "y"):
        Path(f"theirs/{name}.png").touch()
    with pytest.raises(ImageError, match=r"theirs: 2 of 5 picture files cannot be read. empty: 2 \(x.png, y.png\)"):
        measured(Corners())


def test_no_picture_is_decoded_for_its_size(monkeypatch):
    folder("in", [(7, 9)])
    Image.new("RGB", (9, 7)).save("in/photo.jpg", exif=_orientation(6))
    Image.new("RGB", (9, 7)).save("in/photo.tif", exif=_orientation(8))
    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
        assert [image_size(file) for file in find_images("in")] == [(7, 9), (9, 7), (9, 7)]
    assert [tuple(read_image(file).shape[1:]) for file in find_images("in")] == [(7, 9), (9, 7), (9, 7)]


def _orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def test_an_extractor_that_resizes_by_itself_takes_all_sizes():
    folder("theirs", MIXED * 2)
    folder("ours", [(16, 8), *MIXED], seed=1)
    extractor = Corners(resizes=True)
    entry = measured(extractor)
    ours, theirs = features(extractor, "ours"), features(extractor, "theirs")
    figures = {name: figure["value"] for name, figure in entry["figures"].items()}
    assert figures["fid-corners4"] == pytest.approx(frechet(ours, theirs), rel=1e-9)
    assert figures["kid-corners4"] == pytest.approx(kid(ours, theirs), rel=1e-9)
    assert "resize" not in entry["protocol"]
    # Read once, found again.
    extractor.seen = 0
    measured(extractor, k=3)
    assert extractor.seen == len(ours)


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("taken", "size"), [((None, None), (8, 8)), ((4, 6), (4, 6))])
def test_a_resize_is_named_in_the_figures(kernel, taken, size):
    folder("theirs", MIXED)
    folder("ours", [(16, 8), *MIXED], seed=1)
    extractor = Corners(size=taken)
    entry = measured(extractor, resize=kernel)
    ours, theirs = (features(extractor, name, size, kernel) for name in ("ours", "theirs"))
    words = f"{kernel}{size[0]}x{size[1]}"
    assert entry["figures"][f"fid-corners4-{words}"]["value"] == pytest.approx(frechet(ours, theirs), rel=1e-9)
    assert entry["protocol"]["resize"] == words
    assert measured(extractor, resize="bilinear" if kernel == "bicubic" else "bicubic") != entry


def test_a_figure_that_needs_no_moments_has_none(monkeypatch):
    folder("theirs", [(8, 8)] * 6)
    folder("ours", [(8, 8)] * 5, seed=1)
    extractor = Corners()
    with monkeypatch.context() as patch:
        patch.setattr(Moments, "update", lambda *_: pytest.fail("moments for a kernel distance"))
        alone = measured(extractor, figures=["kid"])
        extractor.seen = 0
        measured(extractor, figures=["kid"], block_size=3)
        assert extractor.seen == 5  # statistics without moments are kept too
    both = measured(extractor)
    assert both["figures"]["kid-corners4"] == alone["figures"]["kid-corners4"]
    # Statistics with moments serve where none are needed, and nothing else is said of them.
    for file in Path("cache/statistics").iterdir():
        if file.stat().st_size < max(other.stat().st_size for other in Path("cache/statistics").iterdir()):
            file.unlink()
    extractor.seen = 0
    again = measured(extractor, figures=["kid"], block_size=4)
    assert extractor.seen == 5
    assert again["reference"] == alone["reference"] == both["reference"]


def test_a_score_alone_needs_no_reference():
    folder("ours", [(8, 8)] * 12)

    class Classes(Corners):
        def extract(self, images):
            features = super().extract(images).features
            return Features(features, features / 20)

    extractor = Classes()
    extractor.num_classes = 4
    settings = {"output": Path("figures.json"), "accelerator": "cpu", "splits": 2}
    assert evaluate(images=Path("ours"), extractor=extractor, figures="is", **settings) == 0
    assert extractor.seen == 12
    (entry,) = json.loads(Path("figures.json").read_text())["evaluations"]
    metric = InceptionScore(extractor, splits=2)
    metric.update(torch.stack([read_image(file) for file in find_images("ours")]))
    assert entry["figures"]["is-corners4"] == {"value": metric.compute()[0].item(), "samples": 12, "reference": None}
    assert entry["reference"] == {}
    with pytest.raises(ValueError, match="There is no data with real pictures"):
        evaluate(images=Path("ours"), extractor=extractor, figures=["is", "kid"], **settings)
    # A reference that is named all the same is looked for, and not read.
    folder("theirs", [(8, 8)] * 4)
    evaluate(images=Path("ours"), reference="theirs", extractor=extractor, figures="is", **settings)
    assert extractor.seen == 24


def test_saved_statistics_have_moments_whatever_the_figures():
    folder("theirs", [(8, 8)] * 6)
    folder("ours", [(8, 8)] * 5, seed=1)
    measured(Corners(), figures=["kid"], save_statistics=Path("theirs.pt"))
    evaluate(images=Path("ours"), reference="theirs.pt", extractor=Corners(), figures=["fid"], output=Path("b.json"))
    (entry,) = json.loads(Path("b.json").read_text())["evaluations"]
    assert entry["figures"]["fid-corners4"]["value"] == measured(Corners())["figures"]["fid-corners4"]["value"]
