"""What becomes of rows, wherever they are: classes, splits, and what a cache or an autoencoder makes of them."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_gen.data
import lightning_gen.data.tables as tables
from lightning_gen.data import Draw, HuggingFaceImages, ImageFolder, WebDatasetImages
from lightning_gen.data.codes import kept_codes
from lightning_gen.data.collection import split_by_hash
from lightning_gen.data.looking import sizes
from lightning_gen.data.tables import class_number, is_missing, number_classes
from tests.data.homes import make_folder
from tests.data.test_codes import Blocks
from tests.data.test_huggingface import rows
from tests.data.test_shards import files_of, write

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def numbers(labels, classes=None, **others):
    names, found = number_classes({"train": labels, **others}, "here", classes)
    return names, *(each.tolist() for each in found.values())


def test_whole_numbers_that_all_occur_are_classes_as_they_are():
    assert numbers([2, 0, 1, 0]) == (None, [2, 0, 1, 0])
    assert numbers([True, False]) == (None, [1, 0])
    assert numbers([2, 0, 1], val=[1, 1]) == (None, [2, 0, 1], [1, 1])


def test_other_numbers_and_names_are_classes_in_their_order():
    assert numbers([20, 3, 3]) == (["3", "20"], [1, 0, 0])
    assert numbers(["b12", "b3", "a"], test=["a"]) == (["a", "b3", "b12"], [2, 1, 0], [0])
    assert numbers([1, "cat"]) == (["1", "cat"], [0, 1])


def test_known_classes_go_by_number_or_name():
    assert numbers([1, 0, "b"], ["a", "b"]) == (["a", "b"], [1, 0, 1])
    assert numbers([1, 1], 3) == (None, [1, 1])
    with pytest.raises(ValueError, match=r"here holds 3, which is none of the 3 classes: 0 to 2\."):
        numbers([0, 3], 3)
    with pytest.raises(ValueError, match=r"here holds 'c', which is none of the 2 classes: 0 to 1 or a, b\."):
        class_number("c", ["a", "b"], "here")


@pytest.mark.parametrize(
    ("label", "kind"), [(0.5, "floats, such as 0.5"), (1.0, "floats, such as 1.0"), ([1], "list"), (b"a", "bytes")]
)
def test_what_is_no_class_is_told(label, kind):
    with pytest.raises(ValueError, match=f"here holds {kind}"):
        numbers([0, 1, label])


def test_classes_without_training_pictures_are_told():
    with pytest.raises(ValueError, match=r"no training pictures are of class 12, b, which pictures to evaluate with"):
        numbers(["a"], val=["b", "a"], test=["12"])
    with pytest.raises(ValueError, match=r"no training pictures are of class b,"):
        numbers([0], ["a", "b"], val=[1])
    with pytest.warns(UserWarning, match=r"here: 11 of 12 classes have no pictures: 1, 2, 3, .*, \.\.\."):
        numbers([0], [str(i) for i in range(12)])


def test_missing_labels_are_known():
    assert all(map(is_missing, (None, float("nan"), "", "  ", -1)))
    assert not any(map(is_missing, (0, 0.0, "0", False, "nan")))


def test_the_split_by_hash_is_one_of_places_alone():
    places = [f"{i}.png".encode() for i in range(100)]
    parts = split_by_hash(places, 0.1, 0.2, "here")
    assert [int(part.sum()) for part in parts.values()] == [70, 10, 20]
    assert (sum(part.astype(int) for part in parts.values()) == 1).all()
    back = split_by_hash(places[::-1], 0.1, 0.2, "here")
    assert all(np.array_equal(parts[split], back[split][::-1]) for split in parts)


@pytest.fixture
def homes(tmp_path, monkeypatch):
    """The same pictures in a folder, a dataset and shards; for each its module, which takes settings."""
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "folder")
    datasets.disable_progress_bars()
    both = datasets.DatasetDict({"train": rows(root, "train"), "validation": rows(root, "val")})
    both.save_to_disk(tmp_path / "saved")
    train, val = (write(tmp_path / f"{split}.tar", files_of(root, split)) for split in ("train", "val"))
    return [
        lambda **settings: ImageFolder(root, labels=True, **settings),
        lambda **settings: HuggingFaceImages(tmp_path / "saved", label_column="label", **settings),
        lambda **settings: WebDatasetImages(train, val_urls=val, label_key="cls", **settings),
    ]


def test_a_cache_holds_the_same_pictures_of_all(homes, tmp_path):
    options = {"image_size": 8, "crop": "random", "flip": True, "num_workers": 0}
    expected = homes[0](**options).train_set()
    for home in homes[1:]:
        for _ in range(2):
            dataset = home(cache=tmp_path / "kept", **options).train_set()
            for i in range(len(expected)):
                draw = Draw(1, 30 - i, i)
                assert torch.equal(dataset[draw]["image"], expected[draw]["image"])
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_codes_are_the_same_of_all(homes):
    for crops in (1, 5):
        files = [
            kept_codes(Blocks((3, 8, 8)), home(image_size=8, num_workers=0), "train", crops, flip=True)
            for home in homes
        ]
        first, *others = [np.load(file) for file in files]
        assert len(set(files)) == 3
        assert all(np.array_equal(first, other) for other in others)


def test_no_module_needs_the_libraries_to_be_imported():
    wanted = {"datasets", "pyarrow", "webdataset", "braceexpand"}
    for path in Path(lightning_gen.data.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", ())] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not wanted & {name.partition(".")[0] for name in names}, path


def test_a_look_at_data_knows_the_sizes_of_all_and_what_was_left_out(homes, tmp_path):
    first, *others = [sizes(home(image_size=8, num_workers=0).train_set()) for home in homes]
    assert first == others[0] == others[1]
    assert (first[""].files, first[""].heights[0], first[""].widths) == (26, 14, (17, 17, 17))
    content = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(content[: len(content) * 9 // 10])
    data = homes[2](skip_broken=True)
    assert [said for said in data.left_out if "ends early" in said and "train.tar" in said]


@pytest.mark.parametrize("home", [1, 2])
def test_processes_that_found_other_pictures_are_told(homes, home, monkeypatch):
    data = homes[home]()
    data.setup("fit")
    monkeypatch.setattr(tables, "world_size", lambda: 2)
    monkeypatch.setattr(tables, "everywhere", lambda found: [found, found])
    data.setup("fit")
    monkeypatch.setattr(tables, "everywhere", lambda found: [found, {**found, "train": ("other", 26)}])
    with pytest.raises(RuntimeError, match=f"{type(data).__name__}: the processes have found different pictures in"):
        data.setup("fit")
