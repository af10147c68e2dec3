"""A prepared folder gives the batches of the data module that it was made of, and needs none of its files."""

import json
import pickle
import shutil

import pytest
import torch

from lightning_gen.data import Codes, Draw, HuggingFaceImages, ImageFolder, PreparedFolder, WebDatasetImages
from lightning_gen.data.cache import KeptPictures
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.prepared import CONTENTS, prepare
from lightning_gen.trust import ENVIRONMENT
from tests.data.homes import make_folder
from tests.data.test_cache import folders, names, paint
from tests.data.test_codes import Blocks
from tests.shared import differences, save


@pytest.mark.parametrize("number", range(5))
def test_it_gives_the_same_batches_wherever_it_is(number, tmp_path):
    kind, root, settings = folders(tmp_path / "data")[number]
    data = kind(root, **settings)
    before = {split: getattr(data, f"{split}_dataloader")() for split in ("train", "val", "test")}
    expected = {split: [*loader] for split, loader in before.items()}
    counts = prepare(data, tmp_path / "prepared")
    shutil.move(tmp_path / "prepared", tmp_path / "elsewhere")
    captions = [*data.captions()] if getattr(data, "captioned", False) else None
    shutil.rmtree(root)
    found = PreparedFolder(tmp_path / "elsewhere", batch_size=data.batch_size, num_workers=0, seed=3)
    for split, batches in expected.items():
        assert not differences([*getattr(found, f"{split}_dataloader")()], batches)
        assert counts[split] == len(found.dataset(split)) == len(before[split].dataset)
    assert found.image_shape == data.image_shape
    assert (found.num_classes, found.class_names) == (data.num_classes, data.class_names)
    assert data.cache is False
    if captions:
        assert [*found.captions()] == captions
    else:
        with pytest.raises(ValueError, match="have no captions"):
            found.captions()
    draw = Draw(1, 2, 2)
    again = pickle.loads(pickle.dumps(found.dataset("train")))
    assert not differences(again[draw], found.dataset("train")[draw])


def test_flip_and_the_place_of_the_crop_may_be_chosen_anew(tmp_path):
    paint(tmp_path / "data", 40)
    some = {"image_size": 8, "num_workers": 0, "val_fraction": 0.1}
    prepare(ImageFolder(tmp_path / "data", crop="random", **some), tmp_path / "prepared")
    for crop in ("center", "random"):
        for flip in (False, True):
            files = ImageFolder(tmp_path / "data", crop=crop, flip=flip, **some)
            found = PreparedFolder(tmp_path / "prepared", crop=crop, flip=flip)
            for split in ("train", "val"):
                one, other = files.dataset(split), found.dataset(split)
                draws = [Draw(epoch, i, i) for epoch in range(2) for i in range(len(one))]
                assert not differences([one[draw] for draw in draws], [other[draw] for draw in draws])
    with pytest.raises(ValueError, match="crop must be 'center' or 'random'"):
        PreparedFolder(tmp_path / "prepared", crop="left")


def test_it_holds_nothing_twice_and_is_gone_on_with(tmp_path, monkeypatch):
    kind, root, settings = folders(tmp_path / "data")[1]
    data, folder = kind(root, **settings), tmp_path / "prepared"
    prepare(data, folder)
    there = names(folder)
    assert len(there) == 1 + 4  # two of training, two of val and test
    (folder / CONTENTS).unlink()
    monkeypatch.setattr("lightning_gen.data.cache._blocks", lambda *_: pytest.fail("pictures were read again"))
    prepare(data, folder)
    assert names(folder) == there


def test_what_is_not_whole_is_refused(tmp_path):
    kind, root, settings = folders(tmp_path / "data")[4]
    folder = tmp_path / "prepared"
    prepare(kind(root, **settings), folder)
    with pytest.raises(FileNotFoundError, match=r"is no folder of prepared pictures, as it has no contents.json. Make"):
        PreparedFolder(root)
    with pytest.raises(ValueError, match="root is empty"):
        PreparedFolder("")
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        other = next(p for p in sorted(folder.glob("*.pictures")) if p != path).read_bytes()
        for damage in (content[:-5], b"", other, content[:9] + b"?" + content[10:], b"[" * 100_000):
            path.write_bytes(damage)
            with pytest.raises(ValueError, match=f"{path}.*Copy the folder again"):
                PreparedFolder(folder)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=path.name):
            PreparedFolder(folder)
        path.write_bytes(content)
    assert len(PreparedFolder(folder).dataset("val")) == 3
    written = json.loads((folder / CONTENTS).read_text())
    written["contents"]["image_shape"] = [1, 6, 6]
    (folder / CONTENTS).write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"contents.json is damaged or of another version"):
        PreparedFolder(folder)


def test_only_pictures_can_be_prepared(tmp_path):
    class Odd(ImageFolder):
        def dataset(self, split):
            return torch.utils.data.TensorDataset(torch.zeros(3))

    paint(tmp_path / "data")
    with pytest.raises(TypeError, match="A TensorDataset cannot be prepared: expected one of SinglePictures, Unpaired"):
        prepare(Odd(tmp_path / "data"), tmp_path / "prepared")


def test_codes_are_made_of_it(tmp_path, monkeypatch):
    paint(tmp_path / "data", 30)
    data = ImageFolder(tmp_path / "data", image_size=8, channels=1, num_workers=0)
    prepare(data, tmp_path / "prepared")
    monkeypatch.setenv(ENVIRONMENT, "tests")
    path = save(Blocks(), tmp_path / "first.ckpt")
    rows = [Codes(each, path).dataset("val").rows for each in (data, PreparedFolder(tmp_path / "prepared"))]
    assert (rows[0]["codes"] == rows[1]["codes"]).all()


def test_pictures_in_its_files_are_those_of_the_source(tmp_path):
    paint(tmp_path / "data")
    prepare(ImageFolder(tmp_path / "data", image_size=8), tmp_path / "prepared")
    found = PreparedFolder(tmp_path / "prepared").dataset("train").source
    assert type(found) is KeptPictures
    assert found.name(0) == f"picture 0 of {found.path}"


# Other homes of pictures


def homes(tmp_path):
    """The same pictures in a folder, in tar shards and in a Hugging Face dataset, with what they are read by."""
    from tests.data.test_shards import KEYS, files_of, write

    root = make_folder(tmp_path / "folder")
    shards = {split: str(write(tmp_path / f"{split}.tar", files_of(root, split))) for split in ("train", "val")}
    datasets = pytest.importorskip("datasets")
    from tests.data.test_huggingface import COLUMNS, rows

    datasets.disable_progress_bars()
    both = datasets.DatasetDict({"train": rows(root, "train"), "validation": rows(root, "val")})
    both.save_to_disk(tmp_path / "saved")
    return [
        (ImageFolder, {"root": root, "labels": True, "captions": True}),
        (WebDatasetImages, {"urls": shards["train"], "val_urls": shards["val"], **KEYS}),
        (HuggingFaceImages, {"path": tmp_path / "saved", **COLUMNS}),
    ]


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_all_homes_are_the_same_from_cache_and_prepared_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    some = {"image_size": (10, 12), "crop": "random", "flip": True, "batch_size": 4, "num_workers": 0}
    expected, number = None, 0
    for kind, place in homes(tmp_path):
        modules = [kind(**place, **some), kind(**place, **some, cache=True)]
        prepare(modules[0], tmp_path / kind.__name__)
        modules.append(PreparedFolder(tmp_path / kind.__name__, batch_size=4, num_workers=0))
        for data in modules:
            batches = [[*data.train_dataloader()], [*data.val_dataloader()]]
            expected = expected or batches
            assert not differences(batches, expected)
            assert data.num_classes == modules[0].num_classes
            number += 1
        prints = [fingerprint(data.dataset("train")) for data in modules]
        assert prints[0] == prints[1] != prints[2]
    assert number == 9


def test_a_stream_cannot_be_prepared(tmp_path):
    from tests.data.test_shards import files_of, write

    pytest.importorskip("webdataset")
    root = make_folder(tmp_path / "folder")
    train, val = (str(write(tmp_path / f"{split}.tar", files_of(root, split))) for split in ("train", "val"))
    data = WebDatasetImages(train, val_urls=val, stream=True, num_pictures=4, image_size=8)
    with pytest.raises(ValueError, match="the training pictures are a stream and have no numbers"):
        prepare(data, tmp_path / "prepared")
