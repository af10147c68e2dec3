import itertools
import logging
import os
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from lightning_gen.callbacks.panels import domains_of
from lightning_gen.data.base import Draw
from lightning_gen.data.batches import as_floats
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.folders import ImageFolder, PairedImageFolder, UnpairedImageFolder
from lightning_gen.data.images import ImageError, average_down, read_image, resize_image, to_float, to_uint8
from lightning_gen.schedules import Growing

OPTIONS = {"resize": (14, 20), "crop": (8, 12), "num_workers": 0}


def map_picture(height: int, width: int, mark: int) -> np.ndarray:
    """Every pixel tells its row (red), its column (green) and its picture (blue)."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, mark)], -1).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def place(image: torch.Tensor) -> tuple[int, int, bool, int]:
    """(top, left, flipped, mark) of a crop from a map picture; asserts that it is such a crop."""
    rows, columns, mark = to_uint8(image).int()
    flipped = bool(columns[0, 0] > columns[0, -1])
    top, left = int(rows.min()), int(columns.min())
    height, width = rows.shape
    expected = torch.arange(left, left + width)
    assert torch.equal(rows, torch.arange(top, top + height).view(-1, 1).expand_as(rows))
    assert torch.equal(columns, (expected.flip(0) if flipped else expected).expand_as(columns))
    assert mark.unique().numel() == 1
    return top, left, flipped, int(mark[0, 0])


def items(dataset, epoch: int = 0) -> list:
    return [dataset[Draw(epoch, i, i)] for i in range(len(dataset))]


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


@pytest.fixture
def unpaired(tmp_path) -> Path:
    """5 A and 3 B for training, 4 A and 2 B for testing; B is marked from 100 on."""
    for folder, count, first in (("trainA", 5, 0), ("trainB", 3, 100), ("testA", 4, 10), ("testB", 2, 110)):
        for i in range(count):
            save(tmp_path / folder / f"sub{i % 2}" / f"{i}.png", map_picture(20, 30, first + i))
    return tmp_path


@pytest.fixture
def paired(tmp_path) -> Path:
    """4 training and 2 validation pairs; B is marked from 100 on."""
    for folder, count in (("train", 4), ("val", 2)):
        for i in range(count):
            save(tmp_path / folder / f"{i}.png", np.hstack([map_picture(20, 30, i), map_picture(20, 30, 100 + i)]))
    return tmp_path


# The augmentation of CycleGAN and pix2pix


def test_training_resizes_then_crops_then_flips(unpaired):
    module = UnpairedImageFolder(unpaired, **OPTIONS, seed=7)
    dataset = module.train_set()
    flips = []
    for index in range(5):
        draw = Draw(2, 30 + index, index)
        item = dataset[draw]
        rng = draw.rng(7)
        partner = int(rng.integers(3))
        for side, path in (("A", module.files["train"][0][index]), ("B", module.files["train"][1][partner])):
            expected = resize_image(read_image(path), (14, 20))
            top, left = int(rng.integers(14 - 8 + 1)), int(rng.integers(20 - 12 + 1))
            expected = expected[:, top : top + 8, left : left + 12]
            flips.append(bool(rng.random() < 0.5))
            assert torch.equal(item[side], expected.flip(-1) if flips[-1] else expected)
    assert len(set(flips)) == 2


def test_crops_reach_every_place_and_flips_are_fair(unpaired):
    dataset = UnpairedImageFolder(unpaired, resize=None, crop=(18, 27)).train_set()
    places = [place(dataset[Draw(0, position, 0)]["A"]) for position in range(1000)]
    assert {(top, left) for top, left, _, _ in places} == set(itertools.product(range(3), range(4)))
    assert 437 < sum(flipped for _, _, flipped, _ in places) < 563  # four standard deviations
    assert {mark for *_, mark in places} == {0}


def test_a_and_b_are_cropped_independently(unpaired):
    dataset = UnpairedImageFolder(unpaired, resize=None, crop=(8, 12)).train_set()
    pairs = [dataset[Draw(0, position, 0)] for position in range(50)]
    same_place = [place(item["A"])[:3] == place(item["B"])[:3] for item in pairs]
    assert sum(same_place) < 5


def test_flip_can_be_turned_off(unpaired):
    dataset = UnpairedImageFolder(unpaired, resize=None, crop=(8, 12), flip=False).train_set()
    assert not any(place(dataset[Draw(0, position, 0)]["A"])[2] for position in range(50))


@pytest.mark.parametrize(("resize", "crop", "shape"), [((12, 20), (8, 12), (3, 8, 12)), (12, 8, (3, 8, 8))])
def test_shapes_of_squares_and_rectangles(unpaired, resize, crop, shape):
    module = UnpairedImageFolder(unpaired, resize=resize, crop=crop)
    assert module.image_shape == shape
    for dataset in (module.train_set(), module.val_set(), module.test_set()):
        for image in (dataset[Draw(0, 0, 0)][side] for side in "AB"):
            assert image.shape == shape
            assert image.dtype == torch.uint8
            assert image.is_contiguous()


def test_gray_and_background(tmp_path):
    for folder in ("trainA", "trainB", "testA", "testB"):
        save(tmp_path / folder / "x.png", np.full((4, 4, 4), (200, 100, 0, 0), np.uint8))
    module = UnpairedImageFolder(tmp_path, resize=4, crop=4, channels=1, background="red")
    assert module.image_shape == (1, 4, 4)
    assert to_uint8(module.train_set()[Draw(0, 0, 0)]["A"]).unique().tolist() == [76]


# Unpaired


def test_an_epoch_is_as_long_as_the_larger_domain(unpaired):
    dataset = UnpairedImageFolder(unpaired, resize=None, crop=(20, 30)).train_set()
    assert len(dataset) == 5
    assert {place(item["A"])[3] for item in items(dataset)} == set(range(5))
    for side in ("A", "B"):  # now B is the larger one
        (unpaired / f"train{side}").rename(unpaired / f"new{side}")
    (unpaired / "newA").rename(unpaired / "trainB")
    (unpaired / "newB").rename(unpaired / "trainA")
    dataset = UnpairedImageFolder(unpaired, resize=None, crop=(20, 30)).train_set()
    assert len(dataset) == 5
    assert [place(item["A"])[3] for item in items(dataset)] == [100, 102, 101, 100, 102]  # sub0/0, sub0/2, sub1/1


def test_partners_are_random_reproducible_and_new_in_every_epoch(unpaired):
    def partners(epoch: int, seed: int = 0) -> list[int]:
        dataset = UnpairedImageFolder(unpaired, resize=None, crop=(20, 30), seed=seed).train_set()
        return [place(dataset[Draw(epoch, position, 0)]["B"])[3] for position in range(60)]

    first = partners(0)
    assert set(first) == {100, 101, 102}
    assert first == partners(0)
    assert first != partners(1)
    assert first != partners(0, seed=1)


def test_evaluation_is_in_order_without_augmentation(unpaired):
    module = UnpairedImageFolder(unpaired, **OPTIONS)
    got = items(module.test_set())
    assert [sorted(item) for item in got] == [["A", "B"]] * 4
    files_a, files_b = module.files["test"]
    for index, item in enumerate(got):
        for side, path in (("A", files_a[index]), ("B", files_b[index % 2])):
            assert torch.equal(item[side], resize_image(read_image(path), (8, 12)))
    assert same(got, items(module.test_set(), epoch=3))
    assert same(got, items(module.val_set()))  # there is no valA


def test_evaluation_without_resize_keeps_the_centre(unpaired):
    item = UnpairedImageFolder(unpaired, resize=None, crop=(8, 12)).test_set()[Draw(0, 0, 0)]
    assert place(item["A"]) == (6, 9, False, 10)


def test_validation_folders_are_used_where_they_are(unpaired):
    for side, mark in (("A", 50), ("B", 150)):
        save(unpaired / f"val{side}" / "x.png", map_picture(8, 12, mark))
    module = UnpairedImageFolder(unpaired, resize=None, crop=(8, 12))
    assert [place(item[side])[3] for item in items(module.val_set()) for side in "AB"] == [50, 150]
    assert len(module.test_set()) == 4
    for side in "AB":
        (unpaired / f"test{side}").rename(unpaired / f"unused{side}")
    assert len(UnpairedImageFolder(unpaired, resize=None, crop=(8, 12)).test_set()) == 1


def test_paired_evaluation_matches_names(unpaired):
    for name, mark in (("sub0/2", 112), ("sub1/3", 113)):
        save(unpaired / f"testB/{name}.png", map_picture(20, 30, mark))
    (unpaired / "testB/sub0/0.png").rename(unpaired / "testB/sub0/0.bmp")  # the ending does not matter
    module = UnpairedImageFolder(unpaired, resize=None, crop=(8, 12), paired_evaluation=True)
    for item in items(module.test_set()):
        assert place(item["B"])[3] == place(item["A"])[3] + 100
        assert item["paired"].item() is True
    assert "paired" not in module.train_set()[Draw(0, 0, 0)]


def test_paired_evaluation_refuses_names_that_differ(unpaired):
    with pytest.raises(ValueError, match=r"without a partner in B are 2: .*testA/sub0/2.png, .*testA/sub1/3.png"):
        UnpairedImageFolder(unpaired, **OPTIONS, paired_evaluation=True)
    for name in ("sub0/2", "sub1/3", "extra"):
        save(unpaired / f"testB/{name}.png", map_picture(20, 30, 0))
    with pytest.raises(ValueError, match=r"without a partner in A are 1: .*testB/extra.png"):
        UnpairedImageFolder(unpaired, **OPTIONS, paired_evaluation=True)
    save(unpaired / "testA/extra.bmp", map_picture(20, 30, 0))
    save(unpaired / "testA/extra.png", map_picture(20, 30, 0))
    with pytest.raises(ValueError, match=r"testA/extra.bmp and .*testA/extra.png have the same name"):
        UnpairedImageFolder(unpaired, **OPTIONS, paired_evaluation=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(unpaired, workers):
    def two_epochs(num_workers: int) -> list:
        loader = UnpairedImageFolder(
            unpaired, **OPTIONS | {"num_workers": num_workers}, batch_size=2
        ).train_dataloader()
        batches = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            batches += list(loader)
        return batches

    alone = two_epochs(0)
    assert len(alone) == 4
    assert not same(alone[:2], alone[2:])
    assert same(alone, two_epochs(workers))


def test_an_epoch_can_be_had_again(unpaired):
    loader = UnpairedImageFolder(unpaired, **OPTIONS).train_dataloader()
    first = list(loader)
    loader.sampler.set_epoch(1)
    second = list(loader)
    loader.sampler.set_epoch(0)
    assert same(list(loader), first)
    assert not same(second, first)


def test_domains_have_names(unpaired):
    data = UnpairedImageFolder(unpaired, resize=None, crop=8, names=("horse", "zebra"))
    assert domains_of(Namespace(datamodule=data)) == ("horse", "zebra")
    assert domains_of(Namespace(datamodule=UnpairedImageFolder(unpaired, resize=None, crop=8))) == ()
    for wrong in [("horse",), ("horse", ""), ("horse", "horse"), ("a", "b", "c")]:
        with pytest.raises(ValueError, match="names must be two different ones, of A and of B"):
            UnpairedImageFolder(unpaired, names=wrong)


def test_missing_folders_are_explained(unpaired, monkeypatch):
    layout = "UnpairedImageFolder expects trainA, trainB, testA and testB"
    with pytest.raises(FileNotFoundError, match=rf"root={unpaired}/typo is not a folder. {layout}"):
        UnpairedImageFolder(unpaired / "typo")
    monkeypatch.chdir(unpaired)
    here = rf"root=typo is not a folder, which from here is {unpaired}/typo: give --data.root FOLDER. {layout}"
    with pytest.raises(FileNotFoundError, match=here):
        UnpairedImageFolder("typo")
    with pytest.raises(FileNotFoundError, match=here.replace(layout, "ImageFolder expects train beside val or test")):
        ImageFolder("typo", image_size=8)
    (unpaired / "trainB").rename(unpaired / "TrainB")
    with pytest.raises(
        FileNotFoundError, match=rf"trainB does not exist. {layout}.* holds: TrainB, testA, testB, trainA."
    ):
        UnpairedImageFolder(unpaired)
    (unpaired / "trainB").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"trainB holds no pictures .*{layout}"):
        UnpairedImageFolder(unpaired)
    (unpaired / "trainB").rmdir()
    (unpaired / "TrainB").rename(unpaired / "trainB")
    (unpaired / "valA").symlink_to(unpaired / "testA")
    with pytest.raises(FileNotFoundError, match=r"valB does not exist"):
        UnpairedImageFolder(unpaired)
    (unpaired / "valA").unlink()
    for side in "AB":
        (unpaired / f"test{side}").rename(unpaired / f"tset{side}")
    with pytest.raises(FileNotFoundError, match=r"testA does not exist"):
        UnpairedImageFolder(unpaired)


def test_a_picture_smaller_than_the_crop_is_named(unpaired):
    save(unpaired / "trainA/sub0/0.png", map_picture(7, 30, 0))
    dataset = UnpairedImageFolder(unpaired, resize=None, crop=(8, 12)).train_set()
    with pytest.raises(ImageError, match=r"trainA/sub0/0.png is 7 x 30 \(height x width\), smaller .* crop of 8 x 12"):
        dataset[Draw(0, 0, 0)]


def test_an_unreadable_file_is_named(unpaired):
    path = unpaired / "testA/sub1/1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"testA/sub1/1.png cannot be read as a picture"):
        list(UnpairedImageFolder(unpaired, **OPTIONS).test_dataloader())


def test_options_are_checked(unpaired):
    with pytest.raises(
        ValueError, match=r"resize must be as large as crop or larger, both ways, got 128 and \(64, 256\)"
    ):
        UnpairedImageFolder(unpaired, resize=128, crop=(64, 256))
    with pytest.raises(ValueError, match=r"crop must be one number or \(height, width\), each at least 1, got 0"):
        UnpairedImageFolder(unpaired, crop=0)
    with pytest.raises(ValueError, match=r"channels must be 1 \(gray\) or 3 \(RGB\), got 2"):
        PairedImageFolder(unpaired, channels=2)
    with pytest.raises(ValueError, match=r"background must be a colour"):
        ImageFolder(unpaired, background="whitish")
    with pytest.raises(ValueError, match=r"crop must be 'center' or 'random', got 'left'"):
        ImageFolder(unpaired, crop="left")
    with pytest.raises(ValueError, match=r"together below 1, got 0.5 and 0.5"):
        ImageFolder(unpaired, val_fraction=0.5, test_fraction=0.5)


# Paired


def test_halves_share_crop_and_flip(paired):
    module = PairedImageFolder(paired, resize=None, crop=(8, 12))
    dataset = module.train_set()
    assert module.image_shape == (3, 8, 12)
    places = set()
    for position in range(60):
        item = dataset[Draw(1, position, position % 4)]
        assert item["paired"].item() is True
        *where_a, mark_a = place(item["A"])
        *where_b, mark_b = place(item["B"])
        assert where_a == where_b
        assert (mark_a, mark_b) == (position % 4, position % 4 + 100)
        places.add(tuple(where_a))
    assert len(places) > 40


def test_halves_are_resized_each_by_itself(paired):
    item = PairedImageFolder(paired, resize=(8, 12), crop=(8, 12), flip=False).train_set()[Draw(0, 0, 0)]
    # No pixel of A leaks into B across the seam.
    assert to_uint8(item["A"])[2].unique().tolist() == [0]
    assert to_uint8(item["B"])[2].unique().tolist() == [100]


def test_paired_evaluation_is_plain_and_val_and_test_stand_in_for_one_another(paired):
    module = PairedImageFolder(paired, **OPTIONS)
    got = items(module.val_set())
    assert len(got) == 2
    for index, item in enumerate(got):
        halves = read_image(paired / f"val/{index}.png").chunk(2, dim=-1)
        for side, half in zip("AB", halves, strict=True):
            assert torch.equal(item[side], resize_image(half, (8, 12)))
    assert same(got, items(module.test_set()))
    (paired / "val").rename(paired / "test")
    assert same(got, items(PairedImageFolder(paired, **OPTIONS).val_set()))
    batch = next(iter(module.train_dataloader()))
    assert batch["paired"].dtype == torch.bool


def test_files_that_are_no_pairs_are_named(paired):
    save(paired / "train/0.png", map_picture(20, 61, 0))
    save(paired / "train/1.png", map_picture(20, 10, 0))
    dataset = PairedImageFolder(paired, resize=None, crop=(8, 12)).train_set()
    with pytest.raises(ImageError, match=r"train/0.png is 61 pixels wide; a pair A\|B must have an even width"):
        dataset[Draw(0, 0, 0)]
    with pytest.raises(ImageError, match=r"Each half of .*train/1.png is 20 x 5 .* crop of 8 x 12"):
        dataset[Draw(0, 0, 1)]
    (paired / "train").rename(paired / "training")
    with pytest.raises(
        FileNotFoundError, match=r"train does not exist. PairedImageFolder expects .* holds: training, val"
    ):
        PairedImageFolder(paired)


# Plain collections


@pytest.fixture
def collection(tmp_path) -> Path:
    """40 pictures in two class folders."""
    for i in range(40):
        save(tmp_path / ("dog" if i % 4 else "cat") / f"deep/{i:02}.png", map_picture(20, 30, i))
    return tmp_path


def marks(dataset) -> list[int]:
    return [int(to_uint8(item["image"])[2, 0, 0]) for item in items(dataset)]


def test_pictures_are_split_by_a_hash(collection, tmp_path_factory):
    def split(root: Path, **options) -> list[list[int]]:
        module = ImageFolder(root, image_size=4, val_fraction=0.1, test_fraction=0.2, **options)
        return [marks(dataset) for dataset in (module.train_set(), module.val_set(), module.test_set())]

    parts = split(collection)
    assert [len(part) for part in parts] == [28, 4, 8]
    assert sorted(itertools.chain(*parts)) == list(range(40))
    assert parts[1] != list(range(4))
    assert split(collection, seed=5) == parts
    # Elsewhere, and under train/, the split is the same.
    elsewhere = tmp_path_factory.mktemp("other")
    collection.rename(elsewhere / "train")
    assert split(elsewhere) == parts


def test_a_split_has_at_least_one_picture_each(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", map_picture(4, 4, i))
    module = ImageFolder(tmp_path, image_size=4)
    assert [len(paths) for paths in module.files.values()] == [1, 1, 1]
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path} holds 2 picture\(s\): too few to split"):
        ImageFolder(tmp_path)


def test_folders_settle_the_split_where_they_are(tmp_path):
    for i in range(6):
        save(tmp_path / ("train" if i < 4 else "val") / f"{i}.png", map_picture(4, 4, i))
    module = ImageFolder(tmp_path, image_size=4)
    parts = [marks(dataset) for dataset in (module.train_set(), module.val_set(), module.test_set())]
    assert parts == [[0, 1, 2, 3], [4, 5], [4, 5]]
    (tmp_path / "train").rename(tmp_path / "training")
    with pytest.raises(FileNotFoundError, match=r"train does not exist. ImageFolder expects .* holds: training, val"):
        ImageFolder(tmp_path)


def test_labels_are_the_numbers_of_the_class_folders(collection):
    module = ImageFolder(collection, image_size=4, labels=True)
    assert module.class_names == ["cat", "dog"]
    assert module.num_classes == 2
    for dataset in (module.train_set(), module.val_set(), module.test_set()):
        for item in items(dataset):
            assert item["label"].dtype == torch.int64
            assert item["label"] == int(int(to_uint8(item["image"])[2, 0, 0]) % 4 != 0)
    plain = ImageFolder(collection, image_size=4)
    assert plain.num_classes is None
    assert list(plain.train_set()[Draw(0, 0, 0)]) == ["image"]


def test_labels_under_split_folders(tmp_path):
    for name in ("train/b/0", "train/a/1", "test/b/2"):
        save(tmp_path / f"{name}.png", map_picture(4, 4, 0))
    module = ImageFolder(tmp_path, image_size=4, labels=True)
    assert module.class_names == ["a", "b"]
    assert [int(item["label"]) for item in items(module.val_set())] == [1]
    save(tmp_path / "test/bb/3.png", map_picture(4, 4, 0))
    with pytest.raises(ValueError, match=r"no training pictures are of class bb. Train has the classes a, b"):
        ImageFolder(tmp_path, labels=True)
    save(tmp_path / "train/loose.png", map_picture(4, 4, 0))
    with pytest.raises(ValueError, match=r"train/loose.png is in no class folder"):
        ImageFolder(tmp_path, labels=True)


def test_every_class_folder_is_a_class_whatever_the_endings(tmp_path):
    """And none is dropped because its pictures cannot be read: another would get its number."""
    for name, ending, format_name in (("cat", "jpg", "JPEG"), ("dog", "jfif", "JPEG"), ("owl", "png", "PNG")):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(map_picture(4, 4, i)).save(tmp_path / name / f"{i}.{ending}", format_name)
    module = ImageFolder(tmp_path, image_size=4, labels=True)
    assert module.class_names == ["cat", "dog", "owl"]
    assert sum(map(len, module.files.values())) == 9
    for path in (tmp_path / "dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    (tmp_path / "eel").mkdir()
    with pytest.raises(
        ValueError, match=r"is of class dog \(it holds 3 .heic\), eel \(it holds nothing of its own\)\. Convert"
    ):
        ImageFolder(tmp_path, image_size=4, labels=True)
    assert len(ImageFolder(tmp_path, image_size=4).files["train"]) == 4


def test_classes_are_numbered_in_the_order_of_numbers(tmp_path):
    for name in ("3", "12", "1", "a10", "a9", "02"):
        for i in range(2):
            save(tmp_path / name / f"{i}.png", map_picture(4, 4, i))
    module = ImageFolder(tmp_path, image_size=4, labels=True)
    assert module.class_names == ["1", "02", "3", "12", "a9", "a10"]
    for dataset in (module.train_set(), module.test_set()):
        for path, item in zip(dataset.source.files, items(dataset), strict=True):
            assert module.class_names[item["label"]] == path.parent.name


# What folders hold besides readable pictures


@pytest.fixture
def untidy(collection) -> Path:
    """The collection with two empty files, a link to nothing, a page of the web, a named pipe, and other files."""
    for name in ("cat/empty0.png", "cat/empty1.png"):
        (collection / name).touch()
    (collection / "dog/gone.png").symlink_to(collection / "nowhere")
    (collection / "dog/page.jpg").write_text("<!DOCTYPE html>")
    os.mkfifo(collection / "dog/pipe.png")
    for name in ("a.txt", "cat/b.txt", "dog/c.heic"):
        (collection / name).touch()
    return collection


def test_broken_files_are_told_all_at_once_before_anything_is_trained(untidy):
    with pytest.raises(ImageError) as refused:
        ImageFolder(untidy, image_size=4)
    assert str(refused.value) == (
        f"{untidy}: 5 of 45 picture files cannot be read. empty: 2 (cat/empty0.png, cat/empty1.png); "
        "a link to nothing: 1 (dog/gone.png); no picture by its first bytes: 1 (dog/page.jpg); "
        "not a file: 1 (dog/pipe.png). Mend or remove them, or leave them out with skip_broken: true."
    )


def test_broken_files_are_left_out_on_demand_and_other_endings_counted(untidy, caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    with pytest.warns(UserWarning, match=r"5 of 45 picture files cannot be read.* They are left out\."):
        module = ImageFolder(untidy, image_size=4, labels=True, skip_broken=True)
    assert "45 picture files; left out by their endings: 2 .txt, 1 .heic." in caplog.text
    for name in ("a.txt", "cat/b.txt", "cat/empty0.png", "cat/empty1.png", "dog/gone.png", "dog/page.jpg"):
        (untidy / name).unlink()
    (untidy / "dog/pipe.png").unlink()
    assert module.files == ImageFolder(untidy, image_size=4).files
    for data in (module.train_set(), module.val_set(), module.test_set()):
        assert len(items(data)) == len(data)


def test_files_are_excluded_by_their_places_or_by_patterns(untidy):
    """Also broken ones, which are then no reason to refuse the folder."""
    broken = ["cat/empty*.png", "dog/gone.png", "dog/page.jpg", "dog/pipe.png"]
    module = ImageFolder(untidy, image_size=4, labels=True, exclude=broken)
    assert f"{untidy}: 5 of 45 picture files are excluded." in module.left_out
    for name in ("cat/empty0.png", "cat/empty1.png", "dog/gone.png", "dog/page.jpg", "dog/pipe.png"):
        (untidy / name).unlink()
    whole = ImageFolder(untidy, image_size=4, labels=True)
    assert module.files == whole.files
    (untidy / "dog/[1].png").write_bytes(whole.files["train"][0].read_bytes())
    assert ImageFolder(untidy, image_size=4, labels=True, exclude=["dog/[1].png"]).files == whole.files, "a name, too"
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        ImageFolder(untidy, image_size=4, exclude=["*"])


@pytest.mark.parametrize("kind", [UnpairedImageFolder, PairedImageFolder])
def test_files_of_all_folders_of_a_data_set_are_excluded(kind, request):
    def paths(module):
        groups = [group for each in module.files.values() for group in (each if isinstance(each, list) else [each])]
        return {path for group in groups for path in group}

    root = request.getfixturevalue("unpaired" if kind is UnpairedImageFolder else "paired")
    whole = paths(kind(root, **OPTIONS))
    gone = min(whole)
    assert paths(kind(root, **OPTIONS, exclude=[gone.relative_to(root).as_posix()])) == whole - {gone}


@pytest.mark.parametrize("kind", [UnpairedImageFolder, PairedImageFolder])
def test_all_folders_of_a_data_set_are_looked_at(kind, request):
    root = request.getfixturevalue("unpaired" if kind is UnpairedImageFolder else "paired")
    parts = sorted(path.name for path in root.iterdir())
    for part in parts:
        (root / part / "z.png").touch()
    with pytest.raises(ImageError, match=rf"{len(parts)} of \d+ picture files .* empty: {len(parts)} \(train"):
        kind(root, **OPTIONS)
    with pytest.warns(UserWarning, match="They are left out"):
        module = kind(root, **OPTIONS, skip_broken=True)
    assert "z.png" not in str(module.files)
    (root / parts[-1]).rename(root / "old")
    (root / parts[-1]).mkdir()
    (root / parts[-1] / "z.png").touch()
    with (
        pytest.warns(UserWarning, match="They are left out"),
        pytest.raises(FileNotFoundError, match=f"{parts[-1]} holds no pictures"),
    ):
        kind(root, **OPTIONS, skip_broken=True)


def test_names_that_are_not_utf_8(collection):
    name = os.fsdecode(b"caf\xe9")
    for kind in ("cat", "dog"):
        save(collection / name / f"{name}{kind}.png", map_picture(4, 4, 0))
    module = ImageFolder(collection, image_size=4, labels=True)
    assert module.class_names == [name, "cat", "dog"]
    assert sum(map(len, module.files.values())) == 42
    assert len(fingerprint(module.train_set())) == 64


@pytest.mark.parametrize("kind", [ImageFolder, UnpairedImageFolder, PairedImageFolder])
def test_an_empty_root_is_not_the_current_folder(kind):
    for root in ("", " "):
        with pytest.raises(ValueError, match=r"root is empty. Name the folder of the data set"):
            kind(root)


def _set_up(rank, root, missing):
    module = ImageFolder(root, image_size=4)
    module.files["val"] = module.files["val"][rank * missing :]
    module.setup("fit")


def test_processes_must_have_found_the_same(collection, on_ranks):
    assert on_ranks(_set_up, collection, 0) == [None, None]
    for error in on_ranks(_set_up, collection, 1):
        assert "ImageFolder: the processes have found different pictures in" in str(error)


@pytest.mark.parametrize(
    ("image_size", "top", "left"),
    [((20, 10), 0, 10), ((10, 30), 5, 0), ((20, 30), 0, 0)],
)
def test_the_centre_is_kept_at_the_scale_that_covers(tmp_path, image_size, top, left):
    for i in range(3):
        save(tmp_path / f"{i}.png", map_picture(20, 30, i))
    module = ImageFolder(tmp_path, image_size=image_size)  # one side fits, so nothing is resized
    assert module.image_shape == (3, *image_size)
    for dataset in (module.train_set(), module.val_set()):
        assert place(dataset[Draw(0, 0, 0)]["image"])[:3] == (top, left, False)


def test_the_aspect_ratio_is_kept(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", map_picture(10, 33, i))
    image = ImageFolder(tmp_path, image_size=(20, 10)).train_set()[Draw(0, 0, 0)]["image"]
    # Twice the height, so 66 wide; columns 28 to 37 of it are columns 14 to 18 of the file.
    columns = to_uint8(image)[1].float()
    assert image.shape == (3, 20, 10)
    assert (columns[10] - (torch.arange(28, 38) + 0.5) / 2 + 0.5).abs().max() <= 0.75


@pytest.mark.parametrize("exact", [False, True])
def test_exact_decode_takes_all_pixels_of_a_jpeg(tmp_path, exact):
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.jpg")
    module = ImageFolder(tmp_path, image_size=16, exact_decode=exact)
    expected = to_float(resize_image(read_image(module.files["val"][0]), (16, 16)))
    assert torch.equal(as_floats(module.val_set()[Draw(0, 0, 0)]["image"], "test"), expected) == exact


def test_random_crops_and_flips_are_for_training_only(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", map_picture(8, 20, i))
    module = ImageFolder(tmp_path, image_size=8, crop="random", flip=True)
    dataset = module.train_set()
    places = {place(dataset[Draw(0, position, 0)]["image"])[:3] for position in range(400)}
    assert places == set(itertools.product([0], range(13), [False, True]))
    assert {place(module.val_set()[Draw(0, position, 0)]["image"])[:3] for position in range(20)} == {(0, 6, False)}


def test_16_bit_and_8_bit_pictures_go_through_the_same_geometry(tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint16)
    for i in range(3):
        save(tmp_path / "deep" / f"{i}.png", gray * 257)
        save(tmp_path / "flat" / f"{i}.png", gray.astype(np.uint8))
    deep, flat = (
        ImageFolder(tmp_path / kind, image_size=(10, 12), channels=1, crop="random", flip=True).train_set()
        for kind in ("deep", "flat")
    )
    for position in range(10):
        of_16_bits, of_8_bits = (each[Draw(0, position, 0)]["image"] for each in (deep, flat))
        assert (of_16_bits.dtype, of_8_bits.dtype) == (torch.float32, torch.uint8)
        assert (of_16_bits - to_float(of_8_bits)).abs().max() < 2.5 / 255  # two roundings of 8 bits


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("growing", [None, Growing((4, 8), batch_sizes=(4, 4), stable_images=4, fade_images=0)])
def test_16_bit_and_8_bit_pictures_may_stand_in_one_batch(tmp_path, workers, growing):
    """A plain stack would take 0 to 255 for floats."""
    gray = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    for split in ("train", "val"):
        for i in range(8):
            save(tmp_path / split / f"{i}.png", gray if i % 3 else gray.astype(np.uint16) * 257)
    options = {"batch_size": 4, "num_workers": workers, "growing": growing}
    data = ImageFolder(tmp_path, image_size=8, channels=1, **options)
    expected = to_float(torch.from_numpy(gray))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        images = [image[0] for batch in loader for image in batch["image"]]
        assert len(images) == 8
        for image in images:
            assert torch.allclose(image, average_down(expected[None], len(image))[0], atol=1e-6)


# The command line


@pytest.mark.parametrize(("size", "expected"), [("128", (128, 128)), ("[96, 128]", (96, 128))])
def test_arguments_parse_from_yaml(unpaired, size, expected):
    parser = ArgumentParser()
    parser.add_subclass_arguments(UnpairedImageFolder, "data")
    settings = [f"--data.crop={size}", "--data.resize=null", f"--data.root={unpaired}"]
    config = parser.parse_args([f"--data={UnpairedImageFolder.__module__}.UnpairedImageFolder", *settings])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jsonargparse 5 will rename it
        module = parser.instantiate_classes(config).data
    assert module.image_shape == (3, *expected)
    assert module.resize is None


# Captions beside pictures


@pytest.fixture
def told(tmp_path) -> Path:
    """12 pictures in folders of two depths, each with three captions."""
    for i in range(12):
        path = save(tmp_path / "told" / ("deep/er" if i % 2 else ".") / f"{i}.png", map_picture(4, 4, i))
        path.with_suffix(".txt").write_text(f"first of {i}\n\n second of {i} \nthird of {i}\n", encoding="utf-8")
    return tmp_path / "told"


def test_captions_are_drawn_to_train_on_and_the_first_else(told, caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    module = ImageFolder(told, image_size=4, captions=True, num_workers=0, batch_size=2)
    assert "left out" not in caplog.text
    for dataset in (module.val_set(), module.test_set()):
        for item in items(dataset):
            assert item["caption"] == f"first of {place(item['image'])[-1]}"
    train = module.train_set()
    epochs = [[item["caption"] for item in items(train, epoch)] for epoch in range(8)]
    assert epochs[3] == [item["caption"] for item in items(train, 3)]
    for shown, path in zip(zip(*epochs, strict=True), train.source.files, strict=True):
        assert {caption.partition(" of ")[2] for caption in shown} == {path.stem}
    assert {caption.partition(" of ")[0] for shown in epochs for caption in shown} == {"first", "second", "third"}
    other = ImageFolder(told, image_size=4, captions=True, seed=1).train_set()
    assert [item["caption"] for item in items(other)] != epochs[0]
    batch = next(iter(module.train_dataloader()))
    assert [f"{caption}" for caption in batch["caption"]] == batch["caption"]
    assert sorted(module.captions()) == sorted(
        f"{which} of {path.stem}" for path in train.source.files for which in ("first", "second", "third")
    )


def test_captions_leave_pictures_as_they_are(told):
    def image(batch):
        return batch["image"]

    plain, captioned = (ImageFolder(told, image_size=4, captions=captions) for captions in (False, True))
    assert plain.files == captioned.files
    assert fingerprint(plain.train_set(), image) == fingerprint(captioned.train_set(), image)
    flipped = [ImageFolder(told, image_size=3, crop="random", flip=True, captions=c).train_set() for c in (False, True)]
    for a, b in zip(*map(items, flipped), strict=True):
        assert torch.equal(a["image"], b["image"])
    with pytest.raises(ValueError, match=r"has no captions\. Give it captions=True"):
        plain.captions()


def test_captions_that_are_missing_or_in_vain_are_told_all_at_once(told):
    (told / "0.txt").unlink()
    (told / "deep/er/1.txt").write_text(" \n\n")
    (told / "2.txt").write_bytes(b"\xff\xfe\xff")
    (told / "deep/alone.txt").write_text("a caption")
    (told / "4.png").write_bytes(b"")
    with pytest.raises(ImageError) as refused:
        ImageFolder(told, image_size=4, captions=True)
    assert str(refused.value) == (
        f"{told}: 1 of 12 picture files cannot be read. empty: 1 (4.png). "
        f"{told}: 4 of 12 pictures lack a caption, or it a picture. no caption: 1 (0.png); "
        "a caption that is not UTF-8: 1 (2.png); an empty caption: 1 (deep/er/1.png); "
        "a caption without a picture: 1 (deep/alone.txt). "
        "Mend or remove them, or leave them out with skip_broken: true."
    )
    with pytest.warns(UserWarning, match="They are left out"):
        module = ImageFolder(told, image_size=4, captions=True, skip_broken=True)
    assert sum(len(files) for files in module.files.values()) == 8
    module = ImageFolder(told, image_size=4, skip_broken=True)  # without captions nobody asks for them
    assert sum(len(files) for files in module.files.values()) == 11


def test_captions_in_folders_of_splits(told):
    for split in ("train", "val"):
        (told / split).mkdir()
        for name in ("0", "2", "4"):
            for ending in (".png", ".txt"):
                (told / split / f"{name}{ending}").write_bytes((told / f"{name}{ending}").read_bytes())
    module = ImageFolder(told, image_size=4, captions=True)
    assert {path.parent.name for path in module.files["train"]} == {"train"}
    (told / "val/2.txt").unlink()
    with pytest.raises(ImageError, match=r"no caption: 1 \(val/2.png\)"):
        ImageFolder(told, image_size=4, captions=True)


def test_a_caption_that_goes_away_while_training_is_named(told):
    train = ImageFolder(told, image_size=4, captions=True).train_set()
    train.source.files[0].with_suffix(".txt").unlink()
    with pytest.raises(ImageError, match=rf"{train.source.files[0].stem}.png has no caption: .*one caption a line"):
        train[Draw(0, 0, 0)]


@pytest.mark.parametrize("cache", [False, True])
def test_pictures_that_are_not_to_be_enlarged_are_named_before_training(cache, tmp_path):
    for name, size in {"a": (20, 16), "b": (15, 40), "c": (16, 16), "d": (30, 15), "e": (16, 15), "f": (1, 1)}.items():
        (tmp_path / "all" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / "val").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "all" / "train" / f"{name}.png")
        Image.new("RGB", (16, 16)).save(tmp_path / "all" / "val" / f"{name}.png")
    settings = {"image_size": 16, "batch_size": 1, "num_workers": 0, "cache": tmp_path / "cache" if cache else False}
    data = ImageFolder(tmp_path / "all", enlarge=False, **settings)
    with pytest.raises(ImageError, match=r"^4 of 6 pictures are smaller than the 16 x 16") as error:
        data.train_dataloader()
    for words in (
        "b.png (40 x 15), ",
        "d.png (15 x 30), ",
        "e.png (15 x 16), ...",
        "Lower image_size, remove them, or",
    ):
        assert words in str(error.value)
    assert len(data.val_dataloader()) == 6
    assert len(ImageFolder(tmp_path / "all", **settings).train_dataloader()) == 6
    for name in "bdef":
        (tmp_path / "all" / "train" / f"{name}.png").unlink()
    assert len(ImageFolder(tmp_path / "all", enlarge=False, **settings).train_dataloader()) == 2
