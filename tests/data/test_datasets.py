import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_gen.data.base import Draw
from lightning_gen.data.datasets import CIFAR10, MNIST, Digits, FashionMNIST
from lightning_gen.data.images import from_uint8

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
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-gen\[digits\]'"):
        Digits()
