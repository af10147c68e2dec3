"""The Inception extractor against torch-fidelity's own on random weights, and every way to get its weights wrong."""

import copy
import os
import pickle
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from benchmarks.inception_weights import random_inception_weights
from lightning_gen import files
from lightning_gen.extractors import inception
from lightning_gen.extractors.inception import InceptionFeatures


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    before = torch.get_rng_state()
    random_inception_weights(path)
    assert torch.equal(before, torch.get_rng_state())
    yield path
    path.unlink()  # pytest would keep its 95 MB


def beginning(weights):
    """What the smallest of the extractors needs of them."""
    return {name: tensor for name, tensor in torch.load(weights).items() if name.startswith(("Conv2d_1", "Conv2d_2"))}


@pytest.fixture(scope="module")
def stem(weights):
    """The smallest of the extractors."""
    return InceptionFeatures(64, weights=weights)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (3, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def fidelity(weights, pictures):
    """What torch-fidelity says of the pictures, by layer."""
    layers = ("64", "192", "768", "2048", "logits_unbiased")
    network = FeatureExtractorInceptionV3("inception", list(layers), feature_extractor_weights_path=str(weights))
    return dict(zip(layers, network(pictures), strict=True))


def relative_difference(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", [64, 192, 768, 2048])
def test_every_layer_is_torch_fidelitys(weights, pictures, fidelity, feature):
    extractor = InceptionFeatures(feature, weights=weights)
    features, logits = extractor(pictures)
    assert features.shape == (3, extractor.num_features) == (3, feature)
    # Float32 through up to 94 folded layers; a wrong layer, offset or resize is off by 1e-2 and more.
    assert relative_difference(features, fidelity[str(feature)]) < 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in extractor.modules())
    if feature == 2048:
        assert logits.shape == (3, extractor.num_classes) == (3, 1008)
        assert relative_difference(logits, fidelity["logits_unbiased"]) < 1e-5
    else:
        assert logits is None
        assert extractor.num_classes is None


def test_the_layers_that_a_loss_sees_are_those_of_the_figures(weights, pictures, fidelity):
    images = (pictures / 127.5 - 1).requires_grad_()
    layers = InceptionFeatures(weights=weights).layers_of(images)
    for layer, name in zip(layers, ("64", "192", "768", "2048"), strict=True):
        assert relative_difference(layer.mean((2, 3)), fidelity[name]) < 1e-5
    layers[-1].sum().backward()
    assert images.grad.ne(0).float().mean() > 0.9
    with pytest.raises(ValueError, match="resizes by Pillow"):
        InceptionFeatures(64, weights=weights, resize="pil").layers_of(images)


def test_random_weights_tell_pictures_apart(fidelity):
    features = fidelity["2048"]
    assert features.isfinite().all()
    assert 0.01 < features.std(0).mean() / features.mean() < 1
    assert (features == 0).float().mean() < 0.5


def test_a_picture_has_the_same_features_in_any_company(stem):
    images = torch.randint(0, 256, (18, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    together = stem(images).features
    alone = torch.cat([stem(images[i : i + 1]).features for i in (0, 3, 4, 15, 16, 17)])
    assert relative_difference(together[[0, 3, 4, 15, 16, 17]], alone) < 1e-6


def test_bfloat16_moves_features_a_little_and_says_so(weights, pictures, fidelity):
    extractor = InceptionFeatures(192, weights=weights, precision="bfloat16")
    features = extractor(pictures).features
    assert features.dtype == torch.float32
    assert 5e-4 < relative_difference(features, fidelity["192"]) < 2e-2
    assert extractor.record["precision"] == "bfloat16"
    assert extractor.name.startswith("inception192-bf16-")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_the_training_does_to_precision_moves_no_bit(weights, pictures, precision):
    extractor = InceptionFeatures(64, weights=weights, precision=precision)
    expected = extractor(pictures).features
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(extractor(pictures).features, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(InceptionFeatures(64, weights=weights, precision=precision)(pictures).features, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_making_one_draws_no_random_numbers(weights):
    before = torch.get_rng_state()
    InceptionFeatures(weights=weights)
    assert torch.equal(before, torch.get_rng_state())


# -- the resize -------------------------------------------------------------------------------------------------------


def given_to_the_network(extractor, images):
    """The pixels, in 0..255, that the first convolution gets."""
    given = []
    handle = next(m for m in extractor.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(
        lambda module, arguments: given.append(arguments[0] * 128 + 128)
    )
    extractor(images)
    handle.remove()
    return torch.cat(given)


def by_tensorflow(images):
    return interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)


def by_pillow(images):
    """As clean-fid: each channel by itself, in floats, clipped and not rounded."""
    planes = [
        [np.asarray(Image.fromarray(channel.numpy().astype(np.float32)).resize((299, 299), 3)) for channel in image]
        for image in images
    ]
    return torch.from_numpy(np.clip(np.array(planes), 0, 255))


def by_torch(images):
    return F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False, antialias=True)


@pytest.mark.parametrize("size", [(1, 7), (28, 28), (299, 299), (300, 64), (340, 700)])
@pytest.mark.parametrize(("resize", "reference"), [("tf1", by_tensorflow), ("pil", by_pillow), ("antialias", by_torch)])
def test_each_resize_is_the_one_it_names(weights, size, resize, reference):
    images = torch.randint(0, 2, (2, 3, *size), generator=torch.Generator().manual_seed(0)).mul(255).to(torch.uint8)
    given = given_to_the_network(InceptionFeatures(64, weights=weights, resize=resize), images)
    assert given.shape == (2, 3, 299, 299)
    # 128 is a power of two, so that the way to [-1, 1] and back rounds in the last place alone.
    assert torch.allclose(given, reference(images), rtol=0, atol=1e-4)


def test_resizes_differ(weights):
    images = torch.randint(0, 256, (1, 3, 340, 340), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = [reference(images) for reference in (by_tensorflow, by_pillow, by_torch)]
    for i in range(3):
        assert (resized[i] - resized[i - 1]).abs().max() > 1


# -- what it says of itself -------------------------------------------------------------------------------------------


def test_the_fingerprint_tells_all_settings_apart(weights, tmp_path):
    state = beginning(weights)
    state["Conv2d_1a_3x3.conv.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    settings = [
        {},
        {"feature": 192},
        {"resize": "pil"},
        {"resize": "antialias"},
        {"precision": "bfloat16"},
        {"gray": "repeat"},
        {"weights": tmp_path / "other.pth"},
    ]
    extractors = [InceptionFeatures(**{"feature": 64, "weights": weights, **setting}) for setting in settings]
    assert len({extractor.fingerprint for extractor in extractors}) == len(settings)
    names = {extractor.name for extractor in extractors if extractor.gray == "error"}
    assert len(names) == len(settings) - 1
    assert InceptionFeatures(64, weights=weights).fingerprint == extractors[0].fingerprint


def test_copies_are_the_same_extractor(stem, pictures):
    expected = stem(pictures)
    for twin in (copy.deepcopy(stem), pickle.loads(pickle.dumps(stem)), copy.deepcopy(stem).to("cpu")):
        assert twin.fingerprint == stem.fingerprint
        assert torch.equal(twin(pictures).features, expected.features)
        assert twin.network is not stem.network


def test_training_cannot_thaw_it(stem, pictures):
    parent = nn.ModuleList([copy.deepcopy(stem)])
    parent.train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(parameter.requires_grad for parameter in parent.parameters())
    assert not parent[0](pictures).features.requires_grad


def test_gray_pictures_are_an_error_or_repeated(stem, weights):
    gray = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match="gray='repeat'"):
        stem(gray)
    with pytest.raises(ValueError, match="ClassifierFeatures"):
        stem.check_shape((1, 28, 28))
    repeats = InceptionFeatures(64, weights=weights, gray="repeat")
    assert torch.equal(repeats(gray).features, stem(gray.repeat(1, 3, 1, 1)).features)
    assert "gray" in repeats.record["preprocessing"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"feature": 512}, "feature must be one of 64, 192, 768, 2048; got 512"),
        ({"resize": "bilinear"}, "resize must be one of tf1, pil, antialias"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16"),
        ({"gray": "luma"}, "gray must be one of error, repeat"),
    ],
)
def test_settings_it_does_not_have(setting, message):
    with pytest.raises(ValueError, match=message):
        InceptionFeatures(**setting)


# -- where its weights come from --------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub without a network; the folder of its checkpoints."""

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published(weights, monkeypatch):
    """For this test the random weights are those that were published."""
    monkeypatch.setattr(inception, "SHA256", files.digest(weights))
    return weights


@pytest.mark.parametrize("name", ["weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"])
def test_weights_of_either_project_are_found(hub, published, name):
    hub.mkdir(parents=True)
    (hub / name).symlink_to(published)
    assert InceptionFeatures(64, resize="pil").name == "inception64-pil"


def test_only_the_published_figures_go_without_a_suffix(published):
    extractor = InceptionFeatures(weights=published)
    assert extractor.standard
    assert extractor.name == "inception2048"
    for setting in ({"resize": "antialias"}, {"precision": "bfloat16"}, {"feature": 768}):
        assert not InceptionFeatures(**{"feature": 2048, "weights": published, **setting}).standard


def test_other_weights_are_named_by_their_hash(weights):
    digest = files.digest(weights)
    extractor = InceptionFeatures(weights=weights, sha256=digest[:12].upper())
    assert not extractor.standard
    assert extractor.name == f"inception2048-{digest[:8]}"
    assert extractor.record["weights"] == digest
    with pytest.raises(ValueError, match=f"is {digest}; it should begin with 6726825d"):
        InceptionFeatures(64, weights=weights, sha256="6726825d")


def test_a_wrong_hash_is_never_trusted(hub, weights):
    hub.mkdir(parents=True)
    (hub / "weights-inception-2015-12-05-6726825d.pth").symlink_to(weights)
    with pytest.raises(ValueError, match=f"{files.digest(weights)}, not 6726825d[0-9a-f]*. Delete it"):
        InceptionFeatures()


def test_without_weights_and_network_both_remedies_are_named(hub):
    with pytest.raises(FileNotFoundError, match="Name or service not known") as caught:
        InceptionFeatures()
    message = str(caught.value)
    assert inception.URL in message
    assert str(hub / "weights-inception-2015-12-05-6726825d.pth") in message
    assert "as weights" in message


def test_weights_are_downloaded_to_their_usual_place(hub, published, monkeypatch):
    def download(url, path, hash_prefix):
        assert (url, hash_prefix) == (inception.URL, inception.SHA256)
        Path(path).symlink_to(published)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert InceptionFeatures(64).record["weights"] == inception.SHA256
    assert [path.name for path in hub.iterdir()] == ["weights-inception-2015-12-05-6726825d.pth"]


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


@pytest.mark.parametrize("content", [{"fc.weight": torch.zeros(3)}, [1, 2], "text", Malice()])
def test_files_that_hold_something_else(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold the weights"):
        InceptionFeatures(64, weights="other.pth")
    assert not (tmp_path / "malice").exists()


def test_files_that_are_damaged_missing_or_of_another_network(tmp_path, weights):
    (tmp_path / "short.pth").write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(ValueError, match="does not hold the weights"):
        InceptionFeatures(weights=tmp_path / "short.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.pth"):
        InceptionFeatures(weights=tmp_path / "none.pth")
    wider = {name: tensor.repeat_interleave(2, 0) for name, tensor in beginning(weights).items() if tensor.ndim}
    torch.save(wider, tmp_path / "wider.pth")
    with pytest.raises(ValueError, match="does not hold the weights"):
        InceptionFeatures(64, weights=tmp_path / "wider.pth")


def test_weights_without_counters_of_batches(tmp_path, weights, stem, pictures):
    state = {name: tensor for name, tensor in beginning(weights).items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    assert torch.equal(InceptionFeatures(64, weights=tmp_path / "old.pth")(pictures).features, stem(pictures).features)


def test_without_torch_fidelity(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'torch-fidelity"):
        InceptionFeatures(weights=weights)
