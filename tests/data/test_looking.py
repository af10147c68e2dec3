"""What is said and shown of data before training is what training gets."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_gen.data import GridOfGaussians, ImageFolder, PairedImageFolder, Scenes, UnpairedImageFolder
from lightning_gen.data import looking as module
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.batches import as_floats
from lightning_gen.data.datasets import Digits
from lightning_gen.data.images import to_uint8
from lightning_gen.data.looking import (
    captions_per_picture,
    cloud,
    counts,
    dataset_of,
    grid,
    looks_at,
    sizes,
    training_looks,
    treatment,
    unit,
)
from lightning_gen.schedules import Growing
from tests.shared import tile


def write(path, height=12, width=12):
    """A picture of noise that depends on its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def flowers(tmp_path):
    """Two classes in train, val and test."""
    for split, daisies, roses in (("train", 5, 3), ("val", 2, 1), ("test", 1, 2)):
        for name, number in (("daisy", daisies), ("rose", roses)):
            for i in range(number):
                write(tmp_path / split / name / f"{split}{i}.png")
    return tmp_path


@pytest.fixture
def domains(tmp_path):
    """More of A than of B."""
    for folder, number in (("trainA", 5), ("trainB", 3), ("testA", 2), ("testB", 2)):
        for i in range(number):
            write(tmp_path / folder / f"{folder}{i}.png")
    return tmp_path


# -- how many -------------------------------------------------------------------------------------------------------


def test_examples_are_counted_by_class(flowers):
    data = ImageFolder(flowers, image_size=8, labels=True)
    found = {split: counts(dataset_of(data, split), data.class_names) for split in ("train", "val", "test")}
    assert found == {
        "train": {"": 8, "daisy": 5, "rose": 3},
        "val": {"": 3, "daisy": 2, "rose": 1},
        "test": {"": 3, "daisy": 1, "rose": 2},
    }
    assert counts(dataset_of(ImageFolder(flowers, image_size=8), "train")) == {"": 8}


def test_examples_are_counted_by_domain(domains):
    assert counts(dataset_of(UnpairedImageFolder(domains, resize=8, crop=8), "train")) == {"": 5, "A": 5, "B": 3}


def test_examples_in_memory_are_counted_by_class():
    dataset = dataset_of(Digits(), "train")
    found = counts(dataset)
    assert found.pop("") == len(dataset)
    assert found == {str(digit): int((dataset.labels == digit).sum()) for digit in range(10)}


def test_units(flowers, domains):
    folders = ImageFolder(flowers), UnpairedImageFolder(domains, resize=8, crop=8), GridOfGaussians(num_train=10)
    assert [unit(data, dataset_of(data, "train")) for data in folders] == ["pictures", "pairs", "points"]


# -- how large ------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_files(tmp_path):
    for i, size in enumerate([(8, 20), (10, 16), (30, 9), (40, 40), (50, 12)]):
        write(tmp_path / "train" / f"{i}.png", *size)
    write(tmp_path / "val" / "0.png", 9, 11)
    data = ImageFolder(tmp_path, image_size=(10, 12))
    (found,) = sizes(dataset_of(data, "train")).values()
    assert (found.files, found.looked_at) == (5, 5)
    assert found.heights == (8, 30, 50)
    assert found.widths == (9, 16, 40)
    assert found.enlarged == 2  # the first, which is too low, and the third, which is too narrow
    assert sizes(dataset_of(data, "val"))[""].enlarged == 1
    assert sizes(dataset_of(Scenes(num_train=4), "train")) == {}


def test_each_domain_has_its_sizes_and_a_pair_those_of_its_file(tmp_path, domains):
    write(domains / "trainA" / "large.png", 64, 64)
    found = sizes(dataset_of(UnpairedImageFolder(domains, resize=16, crop=8), "train"))
    assert {name: (one.files, one.enlarged) for name, one in found.items()} == {"A": (6, 5), "B": (3, 3)}
    kept = sizes(dataset_of(UnpairedImageFolder(domains, resize=None, crop=8), "train"))
    assert kept["A"].enlarged == kept["B"].enlarged == 0

    for split in ("train", "val"):
        write(tmp_path / "pairs" / split / "wide.png", 16, 32)
        write(tmp_path / "pairs" / split / "narrow.png", 16, 30)
    (pair,) = sizes(dataset_of(PairedImageFolder(tmp_path / "pairs", resize=16, crop=8), "train")).values()
    assert (pair.widths, pair.enlarged) == ((30, 32, 32), 1)


def test_of_many_files_a_sample_is_looked_at(tmp_path, monkeypatch):
    for i in range(9):
        write(tmp_path / "train" / f"{i}.png", 10 + i, 10)
    write(tmp_path / "val" / "0.png")
    monkeypatch.setattr(module, "LOOKED_AT", 3)
    (found,) = sizes(dataset_of(ImageFolder(tmp_path), "train")).values()
    assert (found.files, found.looked_at, found.heights) == (9, 3, (10, 13, 16))


def test_a_file_without_a_size_is_named(flowers):
    broken = flowers / "train" / "daisy" / "train0.png"
    broken.write_bytes(broken.read_bytes()[:20])  # it begins like a picture
    (found,) = sizes(dataset_of(ImageFolder(flowers), "train")).values()
    assert list(found.unreadable) == [str(broken)]
    assert found.heights == (12, 12, 12)


def test_captions_are_counted(tmp_path):
    for i, number in enumerate([1, 3, 2]):
        write(tmp_path / "train" / f"{i}.png")
        (tmp_path / "train" / f"{i}.txt").write_text("a flower\n" * number)
    write(tmp_path / "val" / "0.png")
    (tmp_path / "val" / "0.txt").write_text("a flower")
    data = ImageFolder(tmp_path, image_size=8, captions=True)
    assert captions_per_picture(dataset_of(data, "train")) == (1, 2, 3)
    assert captions_per_picture(dataset_of(ImageFolder(tmp_path), "train")) is None


@pytest.mark.parametrize(
    ("options", "train", "val"),
    [
        (
            {"crop": "random", "flip": True},
            "resized to just cover 8 x 8, their aspect ratio kept, cropped at random to 8 x 8, half of them mirrored",
            "resized to just cover 8 x 8, their aspect ratio kept, cropped at the center to 8 x 8",
        ),
        (
            {"cache": True, "flip": True},
            "resized to just cover 8 x 8, their aspect ratio kept, cropped at the center to 8 x 8, kept so in the "
            "cache, half of them mirrored",
            "resized to just cover 8 x 8, their aspect ratio kept, cropped at the center to 8 x 8, kept so in the "
            "cache",
        ),
        (
            {"growing": Growing(resolutions=(4, 8))},
            "resized to just cover 8 x 8, their aspect ratio kept, cropped at the center to 8 x 8, averaged down to "
            "4, 8 rows as training goes on",
            "resized to just cover 8 x 8, their aspect ratio kept, cropped at the center to 8 x 8",
        ),
    ],
)
def test_what_becomes_of_pictures_is_said(flowers, options, train, val):
    data = ImageFolder(flowers, image_size=8, **options)
    assert treatment(data, dataset_of(data, "train"), "train") == train
    assert treatment(data, dataset_of(data, "val"), "val") == val


def test_what_becomes_of_domains_and_of_pictures_in_memory_is_said(domains):
    data = UnpairedImageFolder(domains, resize=(10, 12), crop=8, flip=False)
    said = {split: treatment(data, dataset_of(data, split), split) for split in ("train", "val")}
    assert said == {
        "train": "resized to 10 x 12, whatever their aspect ratio, cropped at random to 8 x 8",
        "val": "resized to 8 x 8, whatever their aspect ratio",
    }
    data = UnpairedImageFolder(domains, resize=None, crop=8)
    assert treatment(data, dataset_of(data, "val"), "val") == "not resized, cropped at the center to 8 x 8"
    digits = Digits(image_size=16, pad=2, flip=True, binarization="static")
    assert treatment(digits, None, "train") == (
        "resized to 16 x 16, black and white (static), half of them mirrored, 2 black pixels around them"
    )


# -- as training has them -------------------------------------------------------------------------------------------


def pictures_of_training(data, epochs):
    """What the training loader gives, as uint8, by epoch, and by which example of the dataset it is."""
    loader, found = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        order = [draw.index for draw in loader.sampler]
        names = ("A", "B") if isinstance(data, UnpairedImageFolder) else ("image",)
        batches = list(loader)
        columns = {name: to_uint8(as_floats(torch.cat([batch[name] for batch in batches]), "")) for name in names}
        found.append({index: {name: columns[name][place] for name in names} for place, index in enumerate(order)})
    return found


def test_pictures_in_a_cache_have_the_sizes_and_looks_of_their_files(flowers):
    plain, cached = (ImageFolder(flowers, image_size=8, flip=True, cache=cache) for cache in (False, True))
    sets = [dataset_of(data, "train") for data in (plain, cached)]
    assert sizes(sets[0]) == sizes(sets[1]) != {}
    rows = [training_looks(data, dataset, 2, 2) for data, dataset in zip((plain, cached), sets, strict=True)]
    for expected, found in zip(*rows, strict=True):
        assert all(torch.equal(a.pictures["image"], b.pictures["image"]) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", ["folder", "domains"])
def test_rows_are_what_the_loader_gives_in_its_first_epochs(flowers, domains, kind):
    reading = {"batch_size": 1, "num_workers": 0, "seed": 3}
    data = (
        ImageFolder(flowers, image_size=8, crop="random", flip=True, **reading)
        if kind == "folder"
        else UnpairedImageFolder(domains, resize=12, crop=8, **reading)
    )
    expected = pictures_of_training(data, 3)
    rows = training_looks(data, dataset_of(data, "train"), rows=4, looks=3)
    for row, index in zip(rows, list(expected[0])[:4], strict=True):  # in the order of the first epoch
        for epoch, look in enumerate(row):
            assert look.epoch == epoch
            assert look.pictures.keys() == expected[epoch][index].keys()
            for name, picture in look.pictures.items():
                assert torch.equal(picture, expected[epoch][index][name])
    epochs = [torch.stack([p for row in rows for p in row[epoch].pictures.values()]) for epoch in range(3)]
    assert not torch.equal(epochs[0], epochs[1])  # there is something random that could be wrong


def test_the_grid_has_these_pixels(domains):
    data = UnpairedImageFolder(domains, resize=12, crop=8, num_workers=0)
    rows = training_looks(data, dataset_of(data, "train"), rows=3, looks=2)
    image = torch.from_numpy(np.array(grid(rows, epochs=True))).permute(2, 0, 1)
    for r, row in enumerate(rows):
        for c, look in enumerate(row):
            assert torch.equal(tile(image, r, 2 * c, rows=3), look.pictures["A"])
            assert torch.equal(tile(image, r, 2 * c + 1, rows=3), look.pictures["B"])


def test_classes_and_captions_are_words(flowers):
    for path in flowers.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"this is {path.stem}")
    data = ImageFolder(flowers, image_size=8, labels=True, captions=True)
    looks = looks_at(data, dataset_of(data, "val"))
    assert [look.words for look in looks] == ["daisy. this is val0", "daisy. this is val1", "rose. this is val0"]
    with_words, without = grid([looks]), grid([[look.__class__(look.pictures) for look in looks]])
    assert with_words.height > without.height
    digits = Digits()
    assert looks_at(digits, dataset_of(digits, "val"), 1)[0].words == f"class {digits.dataset('val').labels[0]}"


def test_examples_are_spread_over_a_split():
    data = Scenes(image_size=16, num_train=4, num_val=12)
    dataset = dataset_of(data, "val")
    looks = looks_at(data, dataset, 4)
    every = looks_at(data, dataset, 100)
    assert len(every) == 12
    for look, place in zip(looks, (0, 3, 6, 9), strict=True):
        assert torch.equal(look.pictures["image"], every[place].pictures["image"])


class Masked(Dataset):
    """Of a user, indexed by place, with something random, a mask, and a map that cannot be shown."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {
            "image": torch.rand(3, 8, 8) * 2 - 1,
            "mask": torch.eye(8, dtype=torch.bool)[None],
            "condition": torch.zeros(12, 8, 8),
            "size": torch.tensor([8, 8]),
            "label": index,
        }


class Own(pl.LightningDataModule):
    """Not of this package."""

    def __init__(self, dataset):
        super().__init__()
        self.examples = dataset

    def train_dataloader(self):
        return DataLoader(self.examples, batch_size=2)


def test_masks_and_data_of_the_users_own():
    data, state = Own(Masked()), torch.get_rng_state()
    dataset = dataset_of(data, "train")
    rows = training_looks(data, dataset, rows=8, looks=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(row) for row in rows] == [2, 2, 2]
    look = rows[1][0]
    assert list(look.pictures) == ["image", "mask"]
    assert look.words == "condition: 12 channels. class 1"
    assert torch.equal(look.pictures["mask"], 255 * torch.eye(8, dtype=torch.uint8)[None])


def test_labels_of_a_pair():
    class Labelled(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.full((1, 8, 8), index, dtype=torch.uint8), index

    data = Own(Labelled())
    looks = looks_at(data, dataset_of(data, "train"))
    assert [look.words for look in looks] == ["class 0", "class 1"]
    assert (looks[1].pictures["image"] == 1).all()


def test_a_stream_shows_what_comes_first():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter({"image": torch.full((1, 8, 8), i, dtype=torch.uint8)} for i in range(100))

    class Streaming(ImageDataModule):
        image_shape = (1, 8, 8)

        def dataset(self, split):
            return Stream()

    data = Streaming()
    dataset = dataset_of(data, "train")
    assert counts(dataset) == {}
    rows = training_looks(data, dataset, rows=2, looks=2)
    assert [[int(look.pictures["image"][0, 0, 0]) for look in row] for row in rows] == [[0, 0], [1, 1]]


def test_a_module_that_streams_shows_what_its_loader_gives_first():
    class Streaming(ImageDataModule):
        image_shape, stream = (1, 8, 8), True

        def train_dataloader(self):
            assert self.num_workers == 0
            pictures = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1, 1).expand(4, 3, 1, 8, 8)
            return [
                {"image": batch, "caption": ["a", "b", "c"], "label": torch.tensor([2, 1, 0])} for batch in pictures
            ]

    data = Streaming(num_workers=2)
    dataset = dataset_of(data, "train")
    looks = looks_at(data, dataset, 5)
    assert [int(look.pictures["image"][0, 0, 0]) for look in looks] == [0, 1, 2, 3, 4]
    assert [look.words for look in looks[:2]] == ["class 2. a", "class 1. b"]
    assert unit(data, dataset) == "pictures"
    assert data.num_workers == 2


def test_points_are_drawn():
    data = GridOfGaussians(num_train=50)
    assert cloud(data, dataset_of(data, "train")).size == (512, 512)
