"""Hugging Face datasets against folders of the same pictures."""

import itertools
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from lightning_gen.data import Draw, HuggingFaceImages, ImageFolder
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.huggingface import ArrowTable
from lightning_gen.data.images import ImageError
from lightning_gen.data.preparation import Preparation
from tests.data.homes import CLASSES, make_folder, pictures, seen

datasets = pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

OPTIONS = {"image_size": (10, 12), "crop": "random", "flip": True, "batch_size": 4, "num_workers": 0}
STRINGS = datasets.Sequence(datasets.Value("string"))
COLUMNS = {"label_column": "label", "caption_column": "said"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Of `datasets` and of what is kept, and no network."""
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def rows(root, split, **columns):
    """A dataset of the pictures of a split; further columns are (feature, function of number and path)."""
    columns = {
        "image": (datasets.Image(), lambda i, path: {"bytes": path.read_bytes(), "path": path.name}),
        "label": (datasets.ClassLabel(names=CLASSES), lambda i, path: CLASSES.index(path.parent.name)),
        "said": (STRINGS, lambda i, path: path.with_suffix(".txt").read_text().splitlines()),
    } | columns
    paths = pictures(root, split)
    data = {name: [make(i, path) for i, path in enumerate(paths)] for name, (_, make) in columns.items()}
    features = {name: feature for name, (feature, _) in columns.items()}
    return datasets.Dataset.from_dict(data, datasets.Features(features))


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "folder")


@pytest.fixture
def saved(root, tmp_path):
    """The same as `save_to_disk` writes it."""
    both = datasets.DatasetDict({"train": rows(root, "train"), "validation": rows(root, "val")})
    both.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "validation": 1})
    return tmp_path / "saved"


def folder(root, **settings):
    return ImageFolder(root, labels=True, captions=True, **OPTIONS | settings)


def same_items(a, b):
    for split in ("train_set", "val_set", "test_set"):
        one, other = getattr(a, split)(), getattr(b, split)()
        assert len(one) == len(other)
        for epoch, i in itertools.product(range(2), range(len(one))):
            draws = Draw(epoch, 2 * i, i)
            x, y = one[draws], other[draws]
            assert x.keys() == y.keys()
            assert torch.equal(x["image"], y["image"])
            assert x.get("label") == y.get("label")
            assert x.get("caption") == y.get("caption")


def test_what_save_to_disk_writes_is_as_in_a_folder(root, saved):
    module = HuggingFaceImages(saved, **COLUMNS, **OPTIONS)
    same_items(folder(root), module)
    assert module.class_names == list(CLASSES)
    assert module.num_classes == 2
    assert module.image_shape == (3, 10, 12)
    assert list(module.captions()) == list(folder(root).captions())


def test_parquet_files_are_as_in_a_folder(root, tmp_path):
    (tmp_path / "parquet").mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        rows(root, split).to_parquet(tmp_path / "parquet" / f"{name}-00000-of-00001.parquet")
    same_items(folder(root), HuggingFaceImages(tmp_path / "parquet", **COLUMNS, **OPTIONS))
    file = tmp_path / "parquet" / "train-00000-of-00001.parquet"
    for path in (file, f"{tmp_path}/parquet/train-*.parquet"):
        module = HuggingFaceImages(path, **OPTIONS)
        assert [len(module.rows[split]) for split in ("train", "val", "test")] == [24, 1, 1]


def test_folders_of_pictures_and_arrow_files_can_be_read(root, saved, tmp_path):
    plain = tmp_path / "plain"
    for split, name in (("train", "train"), ("val", "validation")):
        for path in pictures(root, split):
            (plain / name / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, plain / name / path.parent.name)
    same_items(ImageFolder(root, labels=True, **OPTIONS), HuggingFaceImages(plain, label_column="label", **OPTIONS))
    (file,) = (saved / "validation").glob("*.arrow")
    assert len(HuggingFaceImages(file, **OPTIONS).rows["train"]) == 3


@pytest.mark.parametrize(("devices", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_runs_see_the_same_batches_and_go_on(root, saved, tmp_path, fresh_process, devices, workers):
    def make_folder():
        return folder(root)

    def make():
        return HuggingFaceImages(saved, **COLUMNS, **OPTIONS | {"num_workers": workers})

    def run(make, name, **options):
        return fresh_process(lambda: seen(make, tmp_path / name, devices=devices, **options))

    expected = run(make_folder, "a")
    assert [len(text.splitlines()) for text in expected] == ([16, 16] if devices == 1 else [8, 8])[:devices]
    assert run(make, "b", stop=2) == expected


def written(tmp_path, data, name="one"):
    data.save_to_disk(tmp_path / name)
    return tmp_path / name


def test_columns_that_are_not_there_are_told_at_once_with_those_that_are(root, saved, tmp_path):
    there = r"It has: image, label, said\."
    for option in ("image_column", "label_column", "caption_column"):
        with pytest.raises(ValueError, match=rf"{saved} has no column 'colour' \({option}\)\. {there}"):
            HuggingFaceImages(saved, **{option: "colour"})
    with pytest.raises(
        ValueError, match=r"'label' \(image_column\) holds ClassLabel\. .* has 1 columns of pictures: image"
    ):
        HuggingFaceImages(saved, image_column="label")
    with pytest.raises(ValueError, match=r"'said' \(label_column\) holds \w+\. Classes are whole numbers or strings"):
        HuggingFaceImages(saved, label_column="said")
    with pytest.raises(ValueError, match=r"'label' \(caption_column\) holds ClassLabel\. Captions are a string a row"):
        HuggingFaceImages(saved, caption_column="label")
    with pytest.raises(ValueError, match=r"not told where captions are\. Name the column: caption_column"):
        HuggingFaceImages(saved).captions()


def test_the_column_of_pictures_is_guessed_only_where_there_is_one(root, tmp_path):
    second = (datasets.Image(), lambda i, path: {"bytes": path.read_bytes(), "path": None})
    two = written(tmp_path, rows(root, "train", mask=second))
    with pytest.raises(
        ValueError, match=r"2 columns of pictures: image, mask\. Name the one .* Other columns: label \("
    ):
        HuggingFaceImages(two)
    assert len(HuggingFaceImages(two, image_column="mask").rows["train"]) == 24
    encoded = (datasets.Value("binary"), lambda i, path: path.read_bytes())
    binary = written(tmp_path, rows(root, "train", image=encoded), "binary")
    with pytest.raises(ValueError, match=r"no columns of pictures\. .* image \(binary\), label \(ClassLabel\)"):
        HuggingFaceImages(binary)
    a, b = (
        HuggingFaceImages(two, image_column="mask", **OPTIONS),
        HuggingFaceImages(binary, image_column="image", **OPTIONS),
    )
    same_items(a, b)


def test_datasets_that_are_not_there_are_told_without_waiting(tmp_path):
    for path in (tmp_path / "none", "a.parquet", "./none", f"{tmp_path}/*.parquet"):
        with pytest.raises(FileNotFoundError, match="cannot be opened as a Hugging Face dataset"):
            HuggingFaceImages(path)
    for name in ("none", "no/such-set"):
        with pytest.raises(ConnectionError, match=rf"{name} is no file or folder here.*run once with a network"):
            HuggingFaceImages(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match="cannot be opened as a Hugging Face dataset"):
        HuggingFaceImages(tmp_path / "empty")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be opened as a Hugging Face dataset"):
        HuggingFaceImages(tmp_path / "bad.parquet")


def test_without_the_library_the_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-gen\[huggingface\]'"):
        HuggingFaceImages(saved)


def test_splits_go_by_name_and_can_be_chosen(root, tmp_path):
    data = rows(root, "train")
    several = datasets.DatasetDict({"big": data, "train": data.select(range(20)), "test": data.select(range(3))})
    path = written(tmp_path, several)

    def sizes(**chosen):
        return [len(HuggingFaceImages(path, **chosen).rows[split]) for split in ("train", "val", "test")]

    assert sizes() == [20, 3, 3]
    assert sizes(train_split="big") == [26, 3, 3]
    assert sizes(train_split="big", val_split="train") == [26, 20, 3]
    with pytest.raises(ValueError, match=r"has no split 'none'\. It has: big, train, test\."):
        sizes(val_split="none")
    with pytest.raises(ValueError, match="'train' cannot be both train_split and val_split"):
        sizes(val_split="train")
    odd = written(tmp_path, datasets.DatasetDict({"a": data, "b": data}), "odd")
    with pytest.raises(ValueError, match=r"no split 'train'\. Choose one with train_split\. It has: a, b\."):
        HuggingFaceImages(odd)
    assert len(HuggingFaceImages(odd, train_split="b").rows["train"]) == 24


def test_splits_must_have_the_same_columns(root, tmp_path):
    other = rows(root, "val", label=(datasets.ClassLabel(names=CLASSES[::-1]), lambda i, path: i % 2))
    path = written(tmp_path, datasets.DatasetDict({"train": rows(root, "train"), "test": other}))
    with pytest.raises(ValueError, match="the column 'label' is not the same in the split 'test' as in 'train'"):
        HuggingFaceImages(path, label_column="label")
    HuggingFaceImages(path)
    without = written(tmp_path, datasets.DatasetDict({"train": other, "test": other.remove_columns("said")}), "b")
    with pytest.raises(ValueError, match="the column 'said' is not the same"):
        HuggingFaceImages(without, caption_column="said")


def test_the_split_by_hash_keeps_rows_where_they_are_and_covers_all(root, tmp_path):
    module = HuggingFaceImages(written(tmp_path, rows(root, "train")), val_fraction=0.2, test_fraction=0.3)
    parts = [module.rows[split] for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [13, 5, 8]
    assert sorted(np.concatenate(parts)) == list(range(26))
    assert parts[1].tolist() != list(range(5))
    with pytest.raises(ValueError, match="val_fraction and test_fraction must be above 0"):
        HuggingFaceImages(tmp_path / "one", val_fraction=0)
    with pytest.raises(ValueError, match=r"holds 2 picture\(s\): too few to split"):
        HuggingFaceImages(written(tmp_path, rows(root, "train").select([0, 1]), "two"))


def test_labels_are_names_or_numbers_and_nothing_else(root, tmp_path):
    def module(name, feature, label, **options):
        data = rows(root, "train", label=(feature, label))
        return HuggingFaceImages(written(tmp_path, data, name), label_column="label", **options)

    words = module("words", datasets.Value("string"), lambda i, path: f"class {i % 12}")
    assert words.class_names == [f"class {i}" for i in range(12)]
    numbers = module("numbers", datasets.Value("int16"), lambda i, path: i % 3)
    assert (numbers.class_names, numbers.num_classes) == (None, 3)
    for split in ("train", "val", "test"):
        assert numbers.labels_of(split).tolist() == (numbers.rows[split] % 3).tolist()
    gaps = module("gaps", datasets.Value("int64"), lambda i, path: 10 * (i % 3) + 2)
    assert gaps.class_names == ["2", "12", "22"]
    assert gaps.labels_of("train").tolist() == (gaps.rows["train"] % 3).tolist()
    with pytest.raises(
        ValueError, match=r"column 'label' holds floats, such as 0\.5\. Classes are whole numbers or names"
    ):
        module("floats", datasets.Value("float32"), lambda i, path: i + 0.5)

    def missing(i, path):
        return None if i in (3, 5) else i % 2

    told = r"2 of 26 pictures cannot be used\. no label: 2 \(.*train, row 3, .*train, row 5\)\. Mend or remove"
    with pytest.raises(ImageError, match=told):
        module("missing", datasets.Value("int64"), missing)
    with pytest.raises(ImageError, match="no label: 2"):
        module("unlabelled", datasets.ClassLabel(names=CLASSES), lambda i, path: -1 if i in (3, 5) else i % 2)
    with pytest.warns(UserWarning, match=r"no label: 2 .* They are left out\."):
        few = module("missing", datasets.Value("int64"), missing, skip_broken=True)
    assert sum(len(few.rows[split]) for split in few.rows) == 24
    with pytest.warns(UserWarning, match=r"1 of 3 classes have no pictures: fox\."):
        module("fox", datasets.ClassLabel(names=["cat", "dog", "fox"]), lambda i, path: i % 2)


def test_broken_rows_are_told_and_left_out_if_wished(root, tmp_path):
    def picture(i, path):
        return {2: None, 4: {"bytes": b"", "path": None}, 6: {"bytes": b"no picture at all", "path": "x.png"}}.get(
            i, {"bytes": path.read_bytes(), "path": None}
        )

    said = (datasets.Value("string"), lambda i, path: [None, "  ", "a caption"][min(i, 2)])
    path = written(tmp_path, rows(root, "train", image=(datasets.Image(), picture), said=said))
    with pytest.raises(ImageError) as refused:
        HuggingFaceImages(path, caption_column="said")
    assert str(refused.value) == (
        f"{path}: 5 of 26 pictures cannot be used. no caption: 2 ({path}, train, row 0, {path}, train, row 1); "
        f"no picture: 1 ({path}, train, row 2); empty: 1 ({path}, train, row 4); "
        f"no picture by its first bytes: 1 ({path}, train, row 6). "
        "Mend or remove them, or leave them out with skip_broken: true."
    )
    with pytest.warns(UserWarning, match="They are left out"):
        module = HuggingFaceImages(path, caption_column="said", skip_broken=True, num_workers=0)
    assert sum(len(module.rows[split]) for split in module.rows) == 21
    assert all(item["caption"] == "a caption" for item in items(module.train_set()))


def items(dataset):
    return [dataset[Draw(0, i, i)] for i in range(len(dataset))]


def test_a_look_at_pictures_is_kept_for_as_long_as_the_files_stay(root, tmp_path, monkeypatch):
    path = written(
        tmp_path, rows(root, "train", image=(datasets.Image(), lambda i, path: {"bytes": b"", "path": None}))
    )
    (file,) = path.glob("*.arrow")
    calls = []
    find = ArrowTable._find_faults
    monkeypatch.setattr(ArrowTable, "_find_faults", lambda table: calls.append(1) or find(table))

    def looked():
        calls.clear()
        with pytest.raises(ImageError, match=r"26 of 26 pictures cannot be used\. empty: 26"):
            HuggingFaceImages(path)
        return len(calls)

    assert looked() == looked() == 1  # so young a file may be changed once more
    os.utime(file, (1e9, 1e9))
    assert (looked(), looked()) == (1, 0)
    os.utime(file, (1e9, 1e9 + 1))
    assert (looked(), looked()) == (1, 0)
    for kept in (tmp_path / "cache" / "tables").iterdir():
        kept.write_text(kept.read_text()[:20])
    with pytest.warns(UserWarning, match="is damaged"):
        assert looked() == 1
    assert looked() == 0


def test_a_picture_that_cannot_be_read_is_named_by_its_row(root, tmp_path):
    def picture(i, path):
        content = path.read_bytes()
        return {"bytes": content[: len(content) // 2] if i == 7 else content, "path": None}

    path = written(tmp_path, rows(root, "train", image=(datasets.Image(), picture)))
    dataset = HuggingFaceImages(path, val_fraction=0.05, image_size=8).source("train", Preparation(lambda *size: size))
    with pytest.raises(ImageError, match=rf"{path}, train, row 7 cannot be read as a picture"):
        [dataset[i] for i in range(len(dataset))]


def test_the_fingerprint_knows_files_rows_and_sizes(root, saved, tmp_path):
    def of(path, **options):
        return fingerprint(HuggingFaceImages(path, **OPTIONS | options).val_set())

    first = of(saved)
    assert first == of(saved) == of(saved, crop="center", flip=False)
    assert first != of(saved, image_size=9)
    shutil.copytree(saved, tmp_path / "moved")
    assert of(tmp_path / "moved") == first
    os.utime(next((tmp_path / "moved" / "validation").glob("*.arrow")), (1, 1))
    assert of(tmp_path / "moved") != first
    module, other = (HuggingFaceImages(path, **OPTIONS) for path in (saved, tmp_path / "moved"))
    assert module.tables["train"].signature() == other.tables["train"].signature()
    assert module.tables["train"].signature() != module.tables["val"].signature()
