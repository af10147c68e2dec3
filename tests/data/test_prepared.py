"""A prepared folder gives the batches of the data module that it was made of, and needs none of its files."""

import json
import pickle
import shutil

import pytest
import torch

from lightning_gen.data import Codes, Draw, ImageFolder, PreparedFolder
from lightning_gen.data.cache import KeptPictures
from lightning_gen.data.prepared import CONTENTS, prepare
from lightning_gen.trust import ENVIRONMENT
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
    with pytest.raises(TypeError, match="A TensorDataset cannot be prepared: expected one of Pictures, Unpaired"):
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
