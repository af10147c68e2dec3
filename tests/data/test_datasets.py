import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_gen.data import binarization
from lightning_gen.data.base import Draw
from lightning_gen.data.datasets import CIFAR10, MNIST, Digits, FashionMNIST, InMemoryDataModule
from lightning_gen.data.fingerprint import digest, fingerprint
from lightning_gen.data.images import from_uint8
from lightning_gen.losses import images_to_levels

RNG = np.random.default_rng(0)


def idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 in the format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def offline(*_, **__):
        raise OSError("Network is unreachable")

    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", offline)


@pytest.fixture(params=[MNIST, FashionMNIST, CIFAR10])
def small(request, tmp_path, monkeypatch):
    """Each set with 30 training and 10 test pictures: its class, and what its files hold."""
    cls = request.param
    train, test = (RNG.integers(0, 256, (n, *cls.native_shape), dtype=np.uint8) for n in (30, 10))
    labels, test_labels = (RNG.integers(0, 10, n, dtype=np.uint8) for n in (30, 10))
    if cls is CIFAR10:
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        parts = [(f"data_batch_{k + 1}", train[6 * k :][:6], labels[6 * k :][:6]) for k in range(5)]
        for name, images, classes in (*parts, ("test_batch", test, test_labels)):
            content = {"data": images.reshape(len(images), -1), "labels": classes.tolist()}
            (folder / name).write_bytes(pickle.dumps(content))
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
        # The checksums are those of the full files.
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    else:
        for name, images, classes in (("train", train, labels), ("t10k", test, test_labels)):
            idx(tmp_path / cls.__name__ / "raw" / f"{name}-images-idx3-ubyte", images[:, 0])
            idx(tmp_path / cls.__name__ / "raw" / f"{name}-labels-idx1-ubyte", classes)
    return cls, {"train": (train, labels), "test": (test, test_labels)}


def everything(dataset) -> tuple[torch.Tensor, list[int]]:
    items = [dataset[Draw(0, i, i)] for i in range(len(dataset))]
    return torch.stack([item["image"] for item in items]), [int(item["label"]) for item in items]


def test_pictures_and_labels_are_those_of_the_files(small, tmp_path):
    cls, files = small
    module = cls(tmp_path, num_val=5)
    train, val = everything(module.train_set()), everything(module.val_set())
    images, labels = files["train"]
    assert torch.equal(torch.cat([train[0], val[0]]), from_uint8(torch.from_numpy(images)))
    assert train[1] + val[1] == labels.tolist()
    assert len(val[1]) == 5
    images, labels = files["test"]
    assert torch.equal(everything(module.test_set())[0], from_uint8(torch.from_numpy(images)))
    assert everything(module.test_set())[1] == labels.tolist()
    assert module.train_set()[Draw(0, 0, 0)]["label"].dtype == torch.int64


def test_pictures_stay_in_memory_once_as_uint8(small, tmp_path):
    cls, _ = small
    module = cls(tmp_path, num_val=5)
    train, val = module.train_set(), module.val_set()
    assert train.images.dtype == torch.uint8
    assert train.images.untyped_storage().data_ptr() == val.images.untyped_storage().data_ptr()


def test_without_validation_pictures_the_test_set_validates(small, tmp_path):
    cls, files = small
    module = cls(tmp_path, num_val=0)
    assert len(module.train_set()) == 30
    assert everything(module.val_set())[1] == files["test"][1].tolist()
    with pytest.raises(ValueError, match=r"num_val must leave pictures to train on, got 30 of 30"):
        cls(tmp_path, num_val=30).train_set()


def test_a_batch_of_the_loader(small, tmp_path):
    cls, _ = small
    module = cls(tmp_path, num_val=5, batch_size=4, num_workers=0)
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (4, *module.image_shape)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].shape == (4,)


def test_size_and_padding(small, tmp_path):
    cls, files = small
    native = cls.native_shape[1]
    padded = cls(tmp_path, num_val=5, pad=2)
    image = padded.train_set()[Draw(0, 0, 3)]["image"]
    assert padded.image_shape == image.shape == (cls.native_shape[0], native + 4, native + 4)
    assert torch.equal(image[:, 2:-2, 2:-2], from_uint8(torch.from_numpy(files["train"][0][3])))
    assert image[:, :2].unique().tolist() == image[:, :, -2:].unique().tolist() == [-1]

    half = cls(tmp_path, num_val=5, image_size=native // 2, pad=1)
    images = everything(half.train_set())[0]
    assert half.image_shape == images.shape[1:] == (cls.native_shape[0], native // 2 + 2, native // 2 + 2)
    assert images.abs().max() <= 1
    full = everything(cls(tmp_path, num_val=5).train_set())[0]
    # An antialiased half keeps the mean but for borders and rounding.
    assert (images[..., 1:-1, 1:-1].mean() - full.mean()).abs() < 0.01


def test_flips_depend_on_the_draw_and_spare_evaluation(small, tmp_path):
    cls, _ = small
    module = cls(tmp_path, num_val=5, flip=True, seed=3)
    plain = cls(tmp_path, num_val=5)
    image = plain.train_set()[Draw(0, 0, 0)]["image"]
    flipped = []
    for position in range(40):
        got = module.train_set()[Draw(0, position, 0)]["image"]
        flipped.append(torch.equal(got, image.flip(-1)))
        assert flipped[-1] or torch.equal(got, image)
        assert flipped[-1] == (Draw(0, position, 0).rng(3).random() < 0.5)
    assert 10 < sum(flipped) < 30
    assert torch.equal(everything(module.val_set())[0], everything(plain.val_set())[0])


@pytest.mark.parametrize(
    ("cls", "shape"), [(MNIST, (1, 28, 28)), (FashionMNIST, (1, 28, 28)), (CIFAR10, (3, 32, 32)), (Digits, (1, 8, 8))]
)
def test_shape_and_classes_are_known_without_any_file(cls, shape):
    module = cls() if cls is Digits else cls("/nowhere")
    assert module.image_shape == shape
    assert module.num_classes == 10


def test_nothing_is_downloaded_where_the_files_are(small, tmp_path):
    cls, _ = small
    module = cls(tmp_path, num_val=5, download=True)
    module.prepare_data()  # raises if it touches the network, as the next test shows
    assert len(module.train_set()) == 25


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST, CIFAR10])
def test_a_download_that_fails_is_explained(cls, tmp_path):
    expected = rf"(?s){cls.__name__} is missing .* under {tmp_path}, and downloading it failed: .*unreachable.*network"
    with pytest.raises(RuntimeError, match=expected):
        cls(tmp_path).prepare_data()
    with pytest.raises(RuntimeError, match=r"downloading it failed"):
        cls(tmp_path).train_dataloader()
    with pytest.raises(RuntimeError, match=r"Set root to the folder that holds .*, or download to true"):
        cls(tmp_path, download=False).train_dataloader()


def test_under_a_trainer_only_prepare_data_downloads(small, tmp_path, monkeypatch):
    cls, _ = small
    calls = []
    monkeypatch.setattr(cls.source, "download", lambda self: calls.append(1))
    module = cls(tmp_path, num_val=5)
    module.trainer = object()
    module.train_set()
    assert calls == []
    module.prepare_data()
    assert calls == [1]


def test_damaged_files_are_named(tmp_path):
    for name in ("train", "t10k"):
        idx(tmp_path / "MNIST/raw" / f"{name}-images-idx3-ubyte", np.zeros((3, 28, 28), np.uint8))
        idx(tmp_path / "MNIST/raw" / f"{name}-labels-idx1-ubyte", np.zeros(3, np.uint8))
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=rf"MNIST is missing or damaged under {tmp_path}"):
        MNIST(tmp_path, download=False).train_set()


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"num_val must be 0 or more, got -1"):
        MNIST(num_val=-1)
    with pytest.raises(ValueError, match=r"image_size must be at least 1 .* got 0"):
        CIFAR10(image_size=0)
    with pytest.raises(ValueError, match=r"pad must be 0 or more, got -2"):
        Digits(pad=-2)


def test_digits_are_exact_and_split_evenly():
    module = Digits()
    parts = {name: everything(getattr(module, f"{name}_set")()) for name in ("train", "val", "test")}
    assert {name: len(labels) for name, (_, labels) in parts.items()} == {"train": 1470, "val": 163, "test": 164}
    levels = torch.cat([images for images, _ in parts.values()]).unique()
    assert torch.equal(levels, torch.arange(17) / 8 - 1)
    for _, labels in parts.values():  # no class is rare in any part
        counts = np.bincount(labels, minlength=10)
        assert counts.min() > 0.7 * len(labels) / 10


def test_digits_can_be_enlarged_and_padded():
    module = Digits(image_size=12, pad=2)
    image = module.train_set()[Draw(0, 0, 0)]["image"]
    assert image.shape == module.image_shape == (1, 16, 16)
    assert image.abs().max() <= 1


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        Digits()


# -- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_fewer_bits_drop_the_lower_ones(small, tmp_path, bits):
    cls, files = small
    module = cls(tmp_path, num_val=5, bits=bits)
    assert module.num_levels == 2**bits
    for dataset, part in ((module.train_set(), "train"), (module.test_set(), "test")):
        images = everything(dataset)[0]
        levels = images_to_levels(images, module.num_levels)
        pixels = torch.from_numpy(files[part][0][: len(images)])
        assert torch.equal(levels, pixels.long() // 2 ** (8 - bits))
        # Exactly, as float32 rounds it: 2k / (L - 1) - 1.
        assert torch.equal(images, levels.float() / ((2**bits - 1) / 2) - 1)
    assert images.min() == -1
    assert images.max() == 1


@pytest.mark.parametrize("options", [{}, {"pad": 2}, {"image_size": 13, "pad": 1}, {"bits": 3, "image_size": 13}])
def test_resized_and_padded_pictures_have_levels_still(small, tmp_path, options):
    cls, _ = small
    module = cls(tmp_path, num_val=5, flip=True, **options)
    assert module.num_levels == 2 ** options.get("bits", 8)
    images_to_levels(everything(module.train_set())[0], module.num_levels)  # raises off the levels


def test_levels_of_digits():
    for options, levels in (({}, 17), ({"pad": 3}, 17), ({"image_size": 8}, 17), ({"binarization": "static"}, 2)):
        module = Digits(**options)
        assert module.num_levels == levels
        images_to_levels(everything(module.test_set())[0], levels)
    resized = Digits(image_size=12)
    assert resized.num_levels is None
    with pytest.raises(ValueError, match="none of the 17 levels"):
        images_to_levels(everything(resized.test_set())[0], 17)


class Grays(InMemoryDataModule):
    """A set of a user's own, without known levels."""

    native_shape = (1, 4, 4)

    def load(self, split):
        return torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(8, dtype=torch.int64)


def test_a_set_of_ones_own():
    assert Grays().num_levels is None
    assert Grays(binarization="threshold").num_levels == 2
    assert everything(Grays(binarization="static").train_set())[0].unique().tolist() == [-1, 1]
    with pytest.raises(ValueError, match=r"bits are of uint8 pictures, but Grays has torch\.float32"):
        Grays(bits=5).train_set()


# -- black and white --------------------------------------------------------------------------------------------------

BINARIZATIONS = ("static", "dynamic", "threshold")


@pytest.fixture(params=[MNIST, FashionMNIST, Digits])
def gray(request, tmp_path):
    """Makes one of the sets of gray pictures with some settings; 30 pictures for training and 10 for testing."""
    cls = request.param
    if cls is Digits:
        return cls
    for name, number in (("train", 30), ("t10k", 10)):
        idx(
            tmp_path / cls.__name__ / "raw" / f"{name}-images-idx3-ubyte",
            RNG.integers(0, 256, (number, 28, 28), np.uint8),
        )
        idx(tmp_path / cls.__name__ / "raw" / f"{name}-labels-idx1-ubyte", RNG.integers(0, 10, number, np.uint8))
    return lambda **options: cls(tmp_path, **{"num_val": 5, **options})


def parts(module):
    return [everything(dataset)[0] for dataset in (module.train_set(), module.val_set(), module.test_set())]


@pytest.mark.parametrize("way", BINARIZATIONS)
@pytest.mark.parametrize("options", [{}, {"image_size": 10, "pad": 3}])
def test_binarized_pictures_hold_black_and_white_alone(gray, way, options):
    module = gray(binarization=way, **options)
    assert module.binarization == way
    assert module.num_levels == 2
    assert module.num_classes == 10
    for images in parts(module):
        assert images.shape[1:] == module.image_shape
        assert images.dtype == torch.float32
        assert images_to_levels(images, 2).unique().tolist() == [0, 1]
        assert images.unique().tolist() == [-1, 1]
        if pad := options.get("pad"):
            assert images[..., :pad].unique().tolist() == [-1]
    assert gray().binarization is None


def test_threshold_is_at_half_of_the_resized_gray(gray):
    for options in ({}, {"image_size": 12}):
        for cut, plain in zip(parts(gray(binarization="threshold", **options)), parts(gray(**options)), strict=True):
            assert torch.equal(cut, torch.where(plain >= 0, 1.0, -1.0))


def test_static_pictures_are_the_same_in_every_run(gray):
    known = parts(gray(binarization="static"))
    for again in (gray(binarization="static"), gray(binarization="static", seed=7)):
        assert all(torch.equal(a, b) for a, b in zip(parts(again), known, strict=True))
    dataset = gray(binarization="static").train_set()
    assert torch.equal(dataset[Draw(5, 3, 11)]["image"], known[0][11])  # whenever and wherever it is shown
    other = parts(gray(binarization="static", binarization_seed=1))
    assert all((a != b).float().mean() > 0.03 for a, b in zip(other, known, strict=True))
    for images in known:  # no two pictures have the same noise
        assert len(images.flatten(1).unique(dim=0)) == len(images)


@pytest.mark.parametrize("gray", [MNIST, FashionMNIST], indirect=True)  # the split of Digits is fixed
def test_static_pictures_do_not_depend_on_the_split(gray):
    known = torch.cat(parts(gray(binarization="static", num_val=5))[:2])
    for num_val in (1, 20):
        assert torch.equal(torch.cat(parts(gray(binarization="static", num_val=num_val))[:2]), known)
    whole = gray(binarization="static", num_val=0)
    train, val, test = parts(whole)
    assert torch.equal(train, known)
    assert torch.equal(val, test)


def test_large_sets_are_drawn_in_parts(gray, monkeypatch):
    known = parts(gray(binarization="static", pad=1))
    monkeypatch.setattr("lightning_gen.data.datasets._BATCH", 4)
    assert all(torch.equal(a, b) for a, b in zip(parts(gray(binarization="static", pad=1)), known, strict=True))


def test_dynamic_training_pictures_are_drawn_whenever_they_are_shown(gray):
    module, plain = gray(binarization="dynamic", seed=3), gray()
    dataset, images = module.train_set(), plain.train_set()
    drawn = [dataset[Draw(epoch, position, 2)]["image"] for epoch in (0, 1) for position in (0, 1)]
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])
    for epoch, position, index in ((0, 0, 2), (4, 9, 11)):
        gray_levels = (images[Draw(epoch, position, index)]["image"] + 1) / 2
        noise = Draw(epoch, position, index).rng(3).random(gray_levels.shape, np.float32)
        expected = torch.where(torch.from_numpy(noise) < gray_levels, 1.0, -1.0)
        assert torch.equal(dataset[Draw(epoch, position, index)]["image"], expected)
    share = torch.stack([dataset[Draw(0, i, 2)]["image"] for i in range(400)]).add(1).div(2).mean(0)
    chance = (images[Draw(0, 0, 2)]["image"] + 1) / 2
    # Five standard deviations of 400 draws.
    assert ((share - chance).abs() <= 5 * (chance * (1 - chance) / 400).sqrt()).all()


def test_dynamic_evaluation_repeats_and_is_static(gray):
    module, static = gray(binarization="dynamic", seed=3), gray(binarization="static")
    for name in ("val_set", "test_set"):
        dataset = getattr(module, name)()
        images = everything(dataset)[0]
        assert torch.equal(images, everything(getattr(static, name)())[0])
        assert all(torch.equal(dataset[Draw(2, 9, i)]["image"], image) for i, image in enumerate(images))
    assert not torch.equal(everything(module.train_set())[0], everything(static.train_set())[0])


@pytest.mark.parametrize("gray", [MNIST, FashionMNIST], indirect=True)  # Digits are not flipped
def test_a_flip_mirrors_what_was_drawn(gray):
    for way in BINARIZATIONS:
        flipped, plain = gray(binarization=way, flip=True).train_set(), gray(binarization=way).train_set()
        turned = 0
        for position in range(40):
            got, straight = (dataset[Draw(1, position, 4)]["image"] for dataset in (flipped, plain))
            assert torch.equal(got, straight) or torch.equal(got, straight.flip(-1))
            turned += not torch.equal(got, straight)
        assert 10 < turned < 30


def test_fingerprints_tell_binarizations_apart(gray):
    ways = [{}, *({"binarization": way} for way in BINARIZATIONS), {"binarization": "static", "binarization_seed": 1}]
    sets = [gray(**way).train_set() for way in ways]
    prints = [fingerprint(dataset) for dataset in sets]
    assert len(set(prints)) == len(ways)
    assert prints == [fingerprint(gray(**way).train_set()) for way in ways]
    # The seed of the order moves pictures only where they are drawn anew.
    for way in ways:
        recipes = [digest(gray(seed=seed, **way).train_set().recipe()) for seed in (0, 1)]
        assert (recipes[0] == recipes[1]) == (way.get("binarization") != "dynamic")
        assert fingerprint(gray(seed=1, **way).val_set()) == fingerprint(gray(**way).val_set())


def test_fingerprints_tell_bits_apart(small, tmp_path):
    cls, _ = small
    assert len({fingerprint(cls(tmp_path, num_val=5, bits=bits).train_set()) for bits in range(1, 9)}) == 8


@pytest.fixture
def fixed(tmp_path, monkeypatch):
    """Small files of the published binarised MNIST; what they hold."""
    rows = {"train": 6, "valid": 4, "test": 3}
    monkeypatch.setattr(binarization, "ROWS", rows)
    bits = {name: RNG.integers(0, 2, (number, 784)) for name, number in rows.items()}
    for name, values in bits.items():
        text = "".join(" ".join(map(str, row)) + " \n" for row in values)
        (tmp_path / f"binarized_mnist_{name}.amat").write_text(text)
    return bits


def test_fixed_pictures_are_those_of_the_published_files(fixed, tmp_path):
    module = MNIST(tmp_path, binarization="fixed", pad=2, batch_size=2, num_workers=0)
    assert (module.num_levels, module.num_classes, module.image_shape) == (2, None, (1, 32, 32))
    module.prepare_data()  # raises if it touches the network
    for dataset, name in ((module.train_set(), "train"), (module.val_set(), "valid"), (module.test_set(), "test")):
        items = [dataset[Draw(0, i, i)] for i in range(len(dataset))]
        assert all(item.keys() == {"image"} for item in items)
        levels = images_to_levels(torch.stack([item["image"] for item in items]), 2)
        assert torch.equal(levels[:, 0, 2:-2, 2:-2].flatten(1), torch.from_numpy(fixed[name]))
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 1, 32, 32)
    assert fingerprint(module.train_set()) != fingerprint(module.val_set())


def test_fixed_pictures_that_are_missing(tmp_path):
    module = MNIST(tmp_path / "nowhere", binarization="fixed")
    assert module.image_shape == (1, 28, 28)  # known without any file
    for act in (module.prepare_data, module.train_dataloader, module.test_dataloader):
        with pytest.raises(FileNotFoundError, match=r"binarized_mnist_train\.amat is neither in .*not downloaded"):
            act()


def test_binarizations_that_cannot_be():
    for make, message in (
        (
            lambda: FashionMNIST(binarization="fixed"),
            "static or dynamic or threshold or null for FashionMNIST, got 'fi",
        ),
        (lambda: Digits(binarization="fixed"), "static or dynamic or threshold or null for Digits, got 'fixed'"),
        (lambda: MNIST(binarization="random"), "must be fixed or static or dynamic or threshold or null for MNIST"),
        (lambda: CIFAR10(binarization="static"), "binarization must be null for CIFAR10, got 'static'"),
        (lambda: MNIST(binarization="static", binarization_seed=-1), "binarization_seed must be 0 or more, got -1"),
        (lambda: MNIST(binarization="static", bits=5), "black and white have one bit. Leave out bits"),
        (lambda: MNIST(binarization="fixed", image_size=32), "cannot be resized; got image_size 32"),
        (lambda: MNIST(bits=0), "bits must be 1 to 8, got 0"),
        (lambda: CIFAR10(bits=9), "bits must be 1 to 8, got 9"),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert message in str(error.value)
    assert MNIST(binarization="fixed", image_size=28).num_levels == 2
