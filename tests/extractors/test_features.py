"""Extractors say what they are, take what they say, and cannot be moved by what is around them."""

import copy
import pickle
import re
from argparse import ArgumentError

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_gen.checkpoints import CheckpointError, digest_weights
from lightning_gen.data.images import from_uint8
from lightning_gen.extractors import scenes as module
from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.classifier import ClassifierFeatures
from lightning_gen.extractors.module import ModuleFeatures, PointFeatures
from lightning_gen.extractors.scenes import SceneFeatures, train_reader
from lightning_gen.networks.lenet import LeNet


def pictures(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Features of a picture, with batch norm to show whether it is in eval mode."""

    def __init__(self, num_features=5):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.linear = nn.Linear(2 * 4 * 4, num_features)
        self.norm = nn.BatchNorm1d(num_features)

    def forward(self, images):
        return self.norm(self.linear(images.flatten(1)))


class Classifying(Net):
    def forward(self, images):
        features = super().forward(images)
        return features, features[:, :3]


class Bare(FeatureExtractor):
    """The base class with next to nothing added to it."""

    def __init__(self, **settings):
        arguments = {"name": "bare5", "preprocessing": "x / 127.5 - 1", "num_features": 5, "image_shape": (2, 4, 4)}
        super().__init__(Net(), **{**arguments, **settings})

    def extract(self, images):
        return Features(self.network(from_uint8(images) if self.quantized else images.float()))


# -- what all extractors do -------------------------------------------------------------------------------------------


def test_it_stays_frozen():
    parent = nn.ModuleList([Bare()])
    parent.train()
    before = parent[0](pictures(3, 2, 4, 4))
    parent[0](pictures(8, 2, 4, 4, seed=1))
    assert torch.equal(parent[0](pictures(3, 2, 4, 4)).features, before.features), "batch norm learnt"
    assert not parent[0].network.norm.training
    assert not any(parameter.requires_grad for parameter in parent.parameters())
    assert not before.features.requires_grad


def test_its_arithmetic_is_its_own():
    extractor = Bare()
    expected = extractor(pictures(3, 2, 4, 4)).features
    torch.set_float32_matmul_precision("medium")
    seen = []
    extractor.network.linear.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(extractor(pictures(3, 2, 4, 4)).features, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest"]


def test_features_are_float32_without_a_graph_whatever_the_network_gives():
    class Half(Bare):
        def extract(self, images):
            return Features(self.network(from_uint8(images)).double(), torch.ones(len(images), 2).bfloat16())

    features, logits = Half()(pictures(3, 2, 4, 4))
    assert features.dtype == logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 2, 4, 4), r"takes uint8 pictures; got torch\.float32\. to_uint8 makes them"),
        (torch.zeros(3, 2, 4, 4, dtype=torch.int64), "takes uint8 pictures"),
        (pictures(2, 4, 4), r"takes batches \[N, C, H, W\], N at least 1; got \[2, 4, 4\]"),
        (pictures(0, 2, 4, 4), "N at least 1"),
        (pictures(3, 1, 4, 4), r"takes pictures \[2, 4, 4\]; these are \[1, 4, 4\]"),
        (pictures(3, 2, 4, 5), r"these are \[2, 4, 5\]"),
    ],
)
def test_bad_pictures(images, message):
    with pytest.raises(ValueError, match=message):
        Bare()(images)


def test_bad_floats():
    extractor = Bare(quantized=False)
    images = torch.zeros(3, 2, 4, 4)
    assert extractor(images).features.shape == (3, 5)
    assert extractor(images.bfloat16()).features.dtype == torch.float32
    with pytest.raises(ValueError, match=r"takes floats; got torch\.uint8"):
        extractor(pictures(3, 2, 4, 4))
    images[1, 0, 2, 2] = float("nan")
    images[2] = float("inf")
    with pytest.raises(ValueError, match="2 of 3 pictures for bare5 are not finite"):
        extractor(images)


def test_shapes_are_checked_before_there_are_pictures():
    any_size = Bare(image_shape=(3, None, None))
    any_size.check_shape((3, 7, 9))
    for shape in ([1, 7, 9], [3, 7], [3, 0, 7]):
        with pytest.raises(ValueError, match=re.escape(f"[3, height, width]; these are {shape}")):
            any_size.check_shape(shape)


def test_features_that_are_not_finite():
    extractor = Bare()
    extractor.network.linear.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="bare5 gives values that are not finite for 3 of 3 pictures"):
        extractor(pictures(3, 2, 4, 4))


def test_the_fingerprint_is_of_all_that_may_move_a_figure():
    class Other(Bare):
        pass

    other_weights = nn.Linear(2, 2)
    extractors = [
        Bare(),
        Other(),
        Bare(name="bare"),
        Bare(preprocessing="x / 255"),
        Bare(precision="bfloat16"),
        Bare(weights=digest_weights(other_weights.state_dict())),
        Bare(details={"layer": 3}),
    ]
    assert len({extractor.fingerprint for extractor in extractors}) == len(extractors)
    first = extractors[0]
    for twin in (Bare(), copy.deepcopy(first), pickle.loads(pickle.dumps(first)), copy.deepcopy(first).to("cpu")):
        assert twin.fingerprint == first.fingerprint
        assert torch.equal(twin(pictures(3, 2, 4, 4)).features, first(pictures(3, 2, 4, 4)).features)


def test_the_digest_of_weights_sees_names_shapes_types_and_bytes():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(6.0).view(3, 2).T.reshape(2, 3).clone()}
    same["a"] = torch.arange(6.0).view(2, 3).T.contiguous().T  # other strides
    assert digest_weights(same) == digest_weights(state)
    changed = [
        {**state, "a": state["a"].view(3, 2)},
        {**state, "a": state["a"].view(torch.int32)},
        {**state, "a": state["a"].nextafter(torch.tensor(9.0))},
        {"aa": state["a"], "b": state["b"]},
        {"a": state["a"]},
    ]
    assert len({digest_weights(each) for each in [state, *changed]}) == 6


def test_points_are_their_own_features():
    points = torch.randn(7, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    extractor = PointFeatures()
    assert extractor.name == "points2"
    assert not extractor.quantized
    assert extractor.device == torch.device("cpu")
    features, logits = extractor(points)
    assert torch.equal(features, points.flatten(1))
    assert logits is None
    with pytest.raises(ValueError, match=r"points3 takes pictures \[3, 1, 1\]"):
        PointFeatures(dimensions=3)(points)


# -- any network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "expected"), [("uint8", [0, 51, 255]), ("unit", [0, 0.2, 1]), ("symmetric", [-1, -0.6, 1])]
)
def test_a_module_is_given_the_pixels_it_asks_for(pixels, expected):
    extractor = ModuleFeatures(nn.Flatten(), pixels=pixels)
    features = extractor(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)).features
    assert torch.allclose(features, torch.tensor([expected]).float())


def test_a_module_is_measured_where_it_does_not_say_its_width():
    lazy = ModuleFeatures(Net())
    assert (lazy.name, lazy.num_features, lazy.num_classes) == ("net", 0, None)
    fingerprint = lazy.fingerprint
    lazy(pictures(3, 2, 4, 4))
    assert (lazy.name, lazy.num_features, lazy.num_classes) == ("net", 5, None)
    assert lazy.fingerprint == fingerprint

    asked = ModuleFeatures(Classifying())
    asked.check_shape((2, 4, 4))
    assert (asked.num_features, asked.num_classes) == (5, 3)

    known = ModuleFeatures(Classifying(), image_shape=(2, 4, 4))
    assert (known.name, known.num_features, known.num_classes) == ("classifying5", 5, 3)
    assert known.record["name"] == "classifying5"
    with pytest.raises(ValueError, match=r"takes pictures \[2, 4, 4\]"):
        known(pictures(3, 2, 4, 5))

    says = Net()
    says.num_features = 5
    assert ModuleFeatures(says).name == "net5"
    assert ModuleFeatures(Net(), num_features=5, name="mine").name == "mine"


def test_a_module_that_gives_features_and_logits():
    features, logits = ModuleFeatures(Classifying())(pictures(3, 2, 4, 4))
    expected = Net().eval()(from_uint8(pictures(3, 2, 4, 4)))
    assert torch.equal(features, expected)
    assert torch.equal(logits, expected[:, :3])


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(images)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x, r"map \[2, 3, 4, 4\] to features \[2, D\].*its features are \[2, 3, 4, 4\]"),
        (lambda x: x.mean((1, 2, 3)), r"its features are \[2\]"),
        (lambda x: x.flatten(1)[:1], r"its features are \[1, 48\]"),
        (lambda x: [x.flatten(1)], "its features are list"),
        (lambda x: (x.flatten(1), x.flatten(1), x), "its features are tuple"),
        (lambda x: (x.flatten(1), x), r"its logits are \[2, 3, 4, 4\]"),
    ],
)
def test_modules_that_give_something_else(output, message):
    extractor = ModuleFeatures(Gives(output), name="gives")
    with pytest.raises(ValueError, match=message):
        extractor(pictures(5, 3, 4, 4))


def test_a_module_of_another_width_than_was_said():
    with pytest.raises(ValueError, match="net was to give 7 features, but gives 5"):
        ModuleFeatures(Net(), num_features=7, name="net").check_shape((2, 4, 4))


def test_a_module_that_cannot_read_the_pictures():
    with pytest.raises(ValueError, match=r"net cannot read pictures \[1, 8, 8\]: .*mat1 and mat2 shapes"):
        ModuleFeatures(Net()).check_shape((1, 8, 8))
    with pytest.raises(ValueError, match="pixels must be one of uint8, unit, symmetric; got 'float'"):
        ModuleFeatures(Net(), pixels="float")


def test_a_module_is_copied():
    network = Net().train()
    extractor = ModuleFeatures(network)
    expected = extractor(pictures(3, 2, 4, 4)).features
    with torch.no_grad():
        network.linear.weight.add_(1)
    assert torch.equal(extractor(pictures(3, 2, 4, 4)).features, expected)
    assert network.training
    assert network.linear.weight.requires_grad


def test_fingerprints_of_modules():
    other = Net()
    other.linear.weight.data[0, 0] += 1
    extractors = [
        ModuleFeatures(Net()),
        ModuleFeatures(other),
        ModuleFeatures(Net(), pixels="unit"),
        ModuleFeatures(Net(), name="mine"),
        ModuleFeatures(Classifying(), name="net"),
        # No weights, and no difference but in how they are printed.
        ModuleFeatures(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
        ModuleFeatures(nn.Sequential(nn.AvgPool2d(4), nn.Flatten())),
    ]
    assert len({extractor.fingerprint for extractor in extractors}) == len(extractors)
    assert ModuleFeatures(Net()).fingerprint == extractors[0].fingerprint
    printed = [ModuleFeatures(Printed()), ModuleFeatures(Printed())]
    assert printed[0].fingerprint == printed[1].fingerprint


class Printed(nn.Flatten):
    """Prints the address of a function, as some do."""

    def __init__(self):
        super().__init__()
        self.activation = lambda x: x

    def extra_repr(self):
        return f"activation={self.activation}"


@pytest.mark.filterwarnings("ignore:.torch.jit.(trace|save|script).*:FutureWarning")
def test_torchscript_files(tmp_path, recwarn):
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.trace(Classifying().eval(), torch.zeros(2, 2, 4, 4)), path)
    recwarn.clear()
    extractor = ModuleFeatures(str(path), image_shape=(2, 4, 4))
    assert (extractor.name, extractor.num_features, extractor.num_classes) == ("classifying5", 5, 3)
    expected = ModuleFeatures(Classifying())(pictures(3, 2, 4, 4))
    for twin in (extractor, ModuleFeatures(path), copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        features, logits = twin(pictures(3, 2, 4, 4))
        assert torch.allclose(features, expected.features, atol=1e-6)
        assert torch.allclose(logits, expected.logits, atol=1e-6)
    assert pickle.loads(pickle.dumps(extractor)).fingerprint == extractor.fingerprint
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:.torch.jit.*:FutureWarning")
def test_fingerprints_of_torchscript(tmp_path):
    """Frozen, it has no weights left to tell it by."""
    fingerprints = set()
    for i in range(2):
        network = Net().eval()
        network.linear.weight.data[0, 0] += i
        script = torch.jit.freeze(torch.jit.script(network))
        torch.jit.save(script, tmp_path / "net.pt")
        fingerprints |= {
            ModuleFeatures(tmp_path / "net.pt").fingerprint,
            ModuleFeatures(script, name="other").fingerprint,
        }
    assert len(fingerprints) == 4
    assert ModuleFeatures(tmp_path / "net.pt").fingerprint in fingerprints


def test_files_that_are_not_torchscript(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no TorchScript file at"):
        ModuleFeatures(tmp_path / "none.pt")
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"is not TorchScript.*A file of weights alone needs its network"):
        ModuleFeatures(tmp_path / "weights.pt")


def test_extractors_in_a_configuration(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--extractor", type=FeatureExtractor)
    settings = {
        "class_path": "lightning_gen.extractors.module.ModuleFeatures",
        "init_args": {
            "module": {"class_path": "torch.nn.Flatten", "init_args": {"start_dim": 1}},
            "image_shape": [1, 2, 2],
            "pixels": "unit",
        },
    }
    extractor = parser.instantiate(parser.parse_object({"extractor": settings})).extractor
    assert isinstance(extractor, ModuleFeatures)
    assert extractor.name == "flatten4"
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        parser.instantiate(parser.parse_args(["--extractor=ModuleFeatures", f"--extractor.module={tmp_path}/none.pt"]))
    for name in ("ClassifierFeatures", "SceneFeatures", "PointFeatures"):
        parser.parse_args([f"--extractor={name}"])
    with pytest.raises(ArgumentError, match="pixels"):
        parser.parse_args(["--extractor=ModuleFeatures", "--extractor.pixels=float"])


# -- the small classifier ---------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lenet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return LeNet((1, 8, 12), num_classes=7, num_features=16).eval()


def keep(path, network, **classifier):
    """A checkpoint of models.Classifier."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "state_dict": {f"network.{name}": tensor for name, tensor in network.state_dict().items()},
        "hyper_parameters": {"image_shape": [1, 8, 12], "num_classes": 7, "num_features": 16, "learning_rate": 0.1},
        "classifier": {"data": "Digits", "val_accuracy": 0.98765, **classifier},
    }
    torch.save(checkpoint, path)
    return checkpoint


def test_the_classifier_is_found_by_its_data_and_shape(cache):
    network = lenet()
    keep(cache / "classifiers" / "digits-1x8x12.ckpt", network)
    before = torch.get_rng_state()
    extractor = ClassifierFeatures(data="Digits", image_shape=(1, 8, 12))
    assert torch.equal(before, torch.get_rng_state())
    features, logits = extractor(pictures(4, 1, 8, 12))
    expected = network(from_uint8(pictures(4, 1, 8, 12)))
    assert torch.allclose(features, expected[0], atol=1e-6)
    assert torch.allclose(logits, expected[1], atol=1e-6)
    assert (extractor.name, extractor.num_features, extractor.num_classes) == ("lenet16", 16, 7)
    assert extractor.record["data"] == "Digits"
    assert extractor.record["validation accuracy"] == "0.9877"
    assert pickle.loads(pickle.dumps(extractor)).fingerprint == extractor.fingerprint
    with pytest.raises(ValueError, match=r"lenet16 takes pictures \[1, 8, 12\]; these are \[1, 8, 8\]"):
        extractor(pictures(4, 1, 8, 8))


def test_the_classifier_by_its_file(tmp_path):
    path = tmp_path / "some.ckpt"
    keep(path, lenet(), data=None, val_accuracy=None)
    extractor = ClassifierFeatures(path, name="mine")
    assert extractor.name == "mine"
    assert (extractor.record["data"], extractor.record["validation accuracy"]) == ("unknown", "unknown")
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert ClassifierFeatures(path, name="mine").fingerprint == extractor.fingerprint
    finally:
        torch.set_default_dtype(torch.float32)
    keep(path, lenet().bfloat16())
    assert ClassifierFeatures(path)(pictures(4, 1, 8, 12)).logits.shape == (4, 7), "weights as bf16-true leaves them"
    other = lenet()
    other.head.bias.data[0] += 1
    keep(path, other, data=None, val_accuracy=None)
    assert ClassifierFeatures(path, name="mine").fingerprint != extractor.fingerprint


def test_a_missing_classifier_is_a_command_away(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="lightning-gen fit --config classifier --data FashionMNIST"):
        ClassifierFeatures(data="FashionMNIST", image_shape=(1, 28, 28))
    with pytest.raises(FileNotFoundError, match="fit --config classifier --data MNIST"):
        ClassifierFeatures(tmp_path / "none.ckpt")
    for known in ({}, {"data": "MNIST"}, {"image_shape": (1, 28, 28)}):
        with pytest.raises(ValueError, match="needs weights, or data and image_shape"):
            ClassifierFeatures(**known)


def test_a_classifier_of_something_else(tmp_path):
    path = tmp_path / "some.ckpt"
    checkpoint = keep(path, lenet())
    with pytest.raises(ValueError, match="knows the classes of Digits, not those of MNIST"):
        ClassifierFeatures(path, data="MNIST")
    with pytest.raises(ValueError, match=r"these are \[1, 28, 28\]"):
        ClassifierFeatures(path, image_shape=(1, 28, 28))
    for wrong in (
        {"hyper_parameters": {"image_shape": [1, 8, 12]}},
        {"hyper_parameters": {**checkpoint["hyper_parameters"], "num_classes": 5}},
        {"state_dict": {"generator.weight": torch.zeros(3)}},
    ):
        torch.save({**checkpoint, **wrong}, path)
        with pytest.raises(CheckpointError, match=r"some\.ckpt is not a checkpoint of models\.Classifier"):
            ClassifierFeatures(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cut short"):
        ClassifierFeatures(path)


# -- the scenes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    return train_reader((3, 16, 24), num_scenes=128, epochs=1)


@pytest.fixture
def trainings(monkeypatch, reader):
    """What was asked of train_reader, which does not train here."""
    asked = []

    def train(*arguments):
        asked.append(arguments)
        return copy.deepcopy(reader)

    monkeypatch.setattr(module, "train_reader", train)
    return asked


def test_scene_features_are_what_the_reader_judges_by(cache, trainings, reader):
    extractor = SceneFeatures((16, 24), num_scenes=128, epochs=1)
    assert trainings == [((3, 16, 24), "day", 128, 1, 0)]
    features, logits = extractor(pictures(5, 3, 16, 24))
    assert extractor.name == "scenes128"
    assert features.shape == (5, extractor.num_features) == (5, 128)
    assert logits is None
    assert extractor.num_classes is None
    assert features.min() >= 0
    expected = reader.logits(from_uint8(pictures(5, 3, 16, 24)))
    assert torch.allclose(reader.network[-1](features * reader.unit), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"takes pictures \[3, 16, 24\]"):
        extractor(pictures(5, 1, 16, 24))


def test_scene_features_take_the_size_of_the_first_pictures(cache, trainings):
    expected = SceneFeatures((16, 24), num_scenes=128, epochs=1)
    for tell in (
        lambda extractor: extractor.check_shape((3, 16, 24)),
        lambda extractor: extractor(pictures(2, 3, 16, 24)),
    ):
        extractor = SceneFeatures(num_scenes=128, epochs=1)
        with pytest.raises(ValueError, match=r"scenes128 takes pictures \[3, height, width\]; these are \[1, 16, 24\]"):
            extractor.check_shape((1, 16, 24))
        tell(extractor)
        assert extractor.record == expected.record
        assert torch.equal(extractor(pictures(2, 3, 16, 24)).features, expected(pictures(2, 3, 16, 24)).features)
        with pytest.raises(ValueError, match=r"takes pictures \[3, 16, 24\]; these are \[3, 32, 32\]"):
            extractor.check_shape((3, 32, 32))
    assert len(trainings) == 1


def test_a_reader_is_trained_once(cache, trainings):
    first = SceneFeatures((16, 24), num_scenes=128, epochs=1)
    again = SceneFeatures((16, 24), num_scenes=128, epochs=1)
    assert len(trainings) == 1
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again(pictures(5, 3, 16, 24)).features, first(pictures(5, 3, 16, 24)).features)
    SceneFeatures((16, 24), num_scenes=128, epochs=1, seed=1)
    assert len(trainings) == 2
    (path,) = (cache / "extractors").glob("*-0-v1.pt")
    by_file = SceneFeatures((16, 24), weights=path)
    assert by_file.fingerprint == first.fingerprint
    assert len(trainings) == 2
    with pytest.raises(CheckpointError, match=r"holds no reader of scenes of 32 x 32 pixels: .*\[16, 24\]"):
        SceneFeatures(32, weights=path)


def test_a_damaged_reader_is_trained_again(cache, trainings):
    first = SceneFeatures((16, 24))
    (path,) = (cache / "extractors").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"something else"):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="A new one takes its place"):
            again = SceneFeatures((16, 24))
        assert again.fingerprint == first.fingerprint
        SceneFeatures((16, 24))
    assert len(trainings) == 4
    assert list((cache / "extractors").iterdir()) == [path]


def test_a_cache_that_cannot_be_written(cache, trainings):
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert SceneFeatures((16, 24))(pictures(2, 3, 16, 24)).features.shape == (2, 128)


def test_training_a_reader_leaves_the_random_state(cache):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    SceneFeatures(16, num_scenes=64, epochs=1)
    SceneFeatures(16, num_scenes=64, epochs=1)
    assert torch.equal(before, torch.get_rng_state())
