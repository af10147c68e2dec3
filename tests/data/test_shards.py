"""Tar shards against folders of the same pictures."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
import torch

import lightning_gen.data.tars as module
from lightning_gen.data import Draw, ImageFolder, WebDatasetImages
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.images import ImageError
from lightning_gen.data.preparation import Preparation
from tests.data.homes import CLASSES, make_folder, pictures, seen

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

OPTIONS = {"image_size": (10, 12), "crop": "random", "flip": True, "batch_size": 4, "num_workers": 0}
KEYS = {"label_key": "cls", "caption_key": "txt"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def write(path, files):
    """A tar of (name, content), old enough for its index to be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    os.utime(path, (1e9, 1e9))
    return path


def sample(root, split, path):
    """The files of a picture."""
    key = path.relative_to(root / split).with_suffix("").as_posix()
    number, lines = CLASSES.index(path.parent.name), path.with_suffix(".txt").read_text()
    yield f"{key}{path.suffix}", path.read_bytes()
    yield f"{key}.cls", f"{number}\n".encode()
    yield f"{key}.txt", lines.encode()
    yield f"{key}.json", json.dumps({"name": path.parent.name, "said": lines.splitlines(), "first": lines}).encode()


def files_of(root, split, start=0, stop=None):
    return [file for path in pictures(root, split)[start:stop] for file in sample(root, split, path)]


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "folder")


@pytest.fixture
def shards(root, tmp_path):
    """Three to train on, of 10, 10 and 6 pictures, and one to validate with."""
    for i in range(3):
        write(tmp_path / "shards" / f"train-{i:03}.tar", files_of(root, "train", 10 * i, 10 * i + 10))
    write(tmp_path / "shards" / "val-000.tar", files_of(root, "val"))
    return tmp_path / "shards"


def of(shards, **settings):
    options = {"val_urls": shards / "val-*.tar", **KEYS, **OPTIONS}
    return WebDatasetImages(f"{shards}/train-{{000..002}}.tar", **options | settings)


def folder(root, **settings):
    return ImageFolder(root, **{"labels": True, "captions": True, **OPTIONS} | settings)


def items(dataset, epoch=0):
    return [dataset[Draw(epoch, 2 * i, i)] for i in range(len(dataset))]


def same_items(a, b):
    for split in ("train_set", "val_set", "test_set"):
        one, other = getattr(a, split)(), getattr(b, split)()
        assert len(one) == len(other)
        for epoch in range(2):
            for x, y in zip(items(one, epoch), items(other, epoch), strict=True):
                assert x.keys() == y.keys()
                assert torch.equal(x.pop("image"), y.pop("image"))
                assert x == y


def test_shards_are_as_the_folder_that_they_were_packed_from(root, shards):
    data = of(shards)
    same_items(folder(root), data)
    assert (data.class_names, data.num_classes, data.image_shape) == (None, 2, (3, 10, 12))
    assert list(data.captions()) == list(folder(root).captions())
    named = of(shards, label_key="json.name", caption_key="json.said")
    same_items(folder(root), named)
    assert named.class_names == list(CLASSES)
    assert of(shards, caption_key="json.first").captions_of("val")[0] == ["one val 0\nanother val 0"]


def test_patterns_lists_and_paths_name_the_same_shards(shards):
    files = [shards / f"train-{i:03}.tar" for i in range(3)]
    for urls in (files, f"{shards}/train-*.tar", [f"{shards}/train-{{000,001}}.tar", files[2]], shards / "train-*.tar"):
        assert module.expand(urls) == [str(file) for file in files]
    assert module.expand("http://a.b/{1..2}.tar") == ["http://a.b/1.tar", "http://a.b/2.tar"]
    for missing in (shards / "train-003.tar", f"{shards}/none-*.tar"):
        with pytest.raises(FileNotFoundError, match=r"is no shard: there is no such file"):
            module.expand(missing)
    with pytest.raises(FileNotFoundError, match=rf"it is a folder\. Name the shards in it: {shards}/\*\.tar"):
        module.expand(shards)
    with pytest.raises(ValueError, match="urls is empty"):
        module.expand([])
    with pytest.raises(ValueError, match=r"train-001\.tar is named twice"):
        module.expand([f"{shards}/train-*.tar", files[1]])


@pytest.mark.parametrize(("devices", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_runs_see_the_same_batches_and_go_on(root, shards, tmp_path, fresh_process, devices, workers):
    def run(make, name, **options):
        return fresh_process(lambda: seen(make, tmp_path / name, devices=devices, **options))

    expected = run(lambda: folder(root), "a")
    assert [len(text.splitlines()) for text in expected] == ([16] if devices == 1 else [8, 8])
    assert run(lambda: of(shards, num_workers=workers), "b", stop=2) == expected


def test_the_split_by_hash_is_that_of_the_folder(root, tmp_path):
    plain = tmp_path / "plain"
    for path in pictures(root, "train"):
        (plain / path.parent.name).mkdir(parents=True, exist_ok=True)
        (plain / path.parent.name / path.name).write_bytes(path.read_bytes())
    write(tmp_path / "a.tar", files_of(root, "train"))
    fractions = {"val_fraction": 0.2, "test_fraction": 0.3}
    same_items(
        ImageFolder(plain, labels=True, **fractions, **OPTIONS),
        WebDatasetImages(tmp_path / "a.tar", label_key="cls", **fractions, **OPTIONS),
    )


def test_what_is_in_shards_is_found_out_once(shards, own_cache, monkeypatch):
    before = items(of(shards).val_set())
    assert len(list(own_cache.iterdir())) == 4
    calls = []
    find = module.find_members
    monkeypatch.setattr(module, "find_members", lambda shard: calls.append(shard.name) or find(shard))
    after = items(of(shards).val_set())
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(before, after, strict=True))
    assert not calls
    os.utime(shards / "train-001.tar", (1e9 + 1, 1e9))
    of(shards)
    assert calls == ["train-001.tar"] or not calls  # of access alone
    calls.clear()
    os.utime(shards / "train-001.tar", (1e9, 1e9 + 1))
    of(shards)
    assert calls == ["train-001.tar"]


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "other schema"])
def test_a_damaged_index_is_not_trusted(shards, own_cache, damage, monkeypatch):
    expected = [of(shards).tables["train"].name(row) for row in range(26)]
    for file in own_cache.iterdir():
        content = file.read_bytes()
        if damage == "other schema":
            with np.load(file) as found:
                parts = dict(found)
            parts["mark"][0] += 1
            parts["names"] = parts["names"][:-5]
            np.savez(file, **parts)
        else:
            file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "foreign": b"something else"}[damage])
    assert [of(shards).tables["train"].name(row) for row in range(26)] == expected


def test_a_shard_that_was_just_written_is_looked_through_again(shards, own_cache):
    for file in shards.iterdir():
        os.utime(file)
    of(shards)
    assert not own_cache.exists()


def test_an_index_that_cannot_be_kept_is_no_failure(shards, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept .*found out anew at every start"):
        assert len(of(shards).tables["train"]) == 26


def cut(path, to):
    content = path.read_bytes()
    path.write_bytes(content[:to])
    os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("where", ["in a file", "between files", "in a header", "damaged"])
def test_a_shard_that_ends_early_is_told_and_what_is_whole_can_be_used(shards, where):
    path = shards / "train-001.tar"
    index = module.find_members(path)
    place = int(index.offsets[20])  # the sixth picture's
    if where == "damaged":
        content = bytearray(path.read_bytes())
        content[place - 512 : place] = b"x" * 512
        path.write_bytes(content)
    else:
        cut(path, place + {"in a file": 100, "between files": -512, "in a header": -100}[where])
    told = rf"1 of 3 shards are broken: {path} ends early or is damaged \(after 20 files\)\. Write them anew, or use"
    with pytest.raises(ImageError, match=told):
        of(shards)
    with pytest.warns(UserWarning, match=r"\(after 20 files\)\. What is whole of them"):
        data = of(shards, skip_broken=True)
    assert len(data.rows["train"]) == 10 + 5 + 6
    items(data.train_set())


def test_what_is_no_tar_or_compressed_is_told(shards, tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(shards / "val-000.tar")
    for name in ("no.tar", "empty.tar", "a.tar.gz"):
        with pytest.raises(ImageError, match=rf"{name} is no shard that can be read by places: .* stream: true"):
            WebDatasetImages(tmp_path / name)


def test_names_that_occur_twice_are_told_and_the_first_can_be_used(root, tmp_path):
    files = files_of(root, "train")
    path = write(tmp_path / "a.tar", [*files, (files[0][0], files[4][1])])
    with pytest.raises(ImageError, match=rf"{path} holds 1 names more than once \({files[0][0]}\)"):
        WebDatasetImages(path)
    with pytest.warns(UserWarning, match="comes first is used"):
        table = WebDatasetImages(path, skip_broken=True).tables["train"]
    assert len(table) == 26
    assert table.picture(0) == files[0][1]
    two = [write(tmp_path / f"{i}.tar", files) for i in range(2)]  # in other shards they are other pictures
    assert len(WebDatasetImages(two).tables["train"]) == 52


def test_files_of_a_key_need_not_stand_together_and_others_are_passed_over(root, tmp_path):
    files = files_of(root, "train")
    lonely = [("README", b"read"), ("stats.json", b"{}"), ("a/.hidden.png", b""), ("__key__", b"")]
    sorted_by_ending = sorted(files, key=lambda file: file[0].rpartition(".")[2] not in ("jpg", "png"))
    a = WebDatasetImages(write(tmp_path / "a.tar", [*lonely, *sorted_by_ending]), **KEYS, **OPTIONS)
    b = WebDatasetImages(write(tmp_path / "b.tar", files), **KEYS, **OPTIONS)
    same_items(a, b)


def test_the_picture_of_a_key_must_be_one(root, tmp_path):
    files = files_of(root, "train")
    masks = [(name.replace(".cls", ".seg.png"), files[0][1]) for name, _ in files if name.endswith(".cls")]
    path = write(tmp_path / "a.tar", files + masks)
    with pytest.raises(ValueError, match=r"cat/000 has 2 pictures: \.png, \.seg\.png\. Name the one .*: image_key=png"):
        WebDatasetImages(path)
    assert len(WebDatasetImages(path, image_key="jpg;png").tables["train"]) == 26
    assert len(WebDatasetImages(path, image_key="seg.png").tables["train"]) == 26
    with pytest.raises(ValueError, match=r"no key has a picture \.gif\. There are: 26 \.cls, 26 \.txt, 26 \.json"):
        WebDatasetImages(path, image_key="gif")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("0.5", r"holds floats, such as 0\.5\. Classes are whole numbers or names"),
        (None, r"1 of 26 pictures cannot be used\. no label: 1 \(.*a\.tar: dog/025\.jpg\)"),
        ("", "no label: 1"),
        ("-1", "no label: 1"),
        (b"\xff\xfe\xfa", "no label: 1"),
    ],
)
def test_labels_that_are_no_classes_are_told(root, tmp_path, content, told):
    files = files_of(root, "train")
    (place,) = (i for i, (name, _) in enumerate(files) if name == "dog/025.cls")
    content = content.encode() if isinstance(content, str) else content
    files[place : place + 1] = [] if content is None else [(files[place][0], content)]
    path = write(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=told):
        WebDatasetImages(path, label_key="cls")
    if "no label" in told:
        with pytest.warns(UserWarning, match="They are left out"):
            data = WebDatasetImages(path, label_key="cls", skip_broken=True)
        assert sum(len(data.rows[split]) for split in data.rows) == 25


def test_names_in_cls_and_numbers_in_json_are_classes(root, tmp_path):
    files = [(n, b" dog \n" if n.endswith(".cls") and c == b"1\n" else c) for n, c in files_of(root, "train")]
    files = [(n, b"cat" if n.endswith(".cls") and c == b"0\n" else c) for n, c in files]
    path = write(tmp_path / "a.tar", files)
    assert WebDatasetImages(path, label_key="cls").class_names == list(CLASSES)
    with pytest.raises(ImageError, match="no label: 26"):
        WebDatasetImages(path, label_key="json.none")
    files = [(n, b'{"of": {"a": 1}}' if n.endswith(".json") else c) for n, c in files]
    with pytest.raises(ValueError, match=r"the labels in json\.of holds dict, such as"):
        WebDatasetImages(write(tmp_path / "b.tar", files), label_key="json.of")


def test_evaluation_must_not_have_classes_of_its_own(root, tmp_path):
    a = write(tmp_path / "a.tar", files_of(root, "train"))
    other = [(name, b"7" if name.endswith(".cls") else content) for name, content in files_of(root, "val")]
    b = write(tmp_path / "b.tar", other)
    with pytest.raises(
        ValueError, match=r"no training pictures are of class 7, which pictures to evaluate with are of"
    ):
        WebDatasetImages(a, val_urls=b, label_key="cls")


def test_broken_pictures_are_told_with_shard_and_name(root, tmp_path):
    files = files_of(root, "train")
    jpg, png, third = (next(i for i, (n, _) in enumerate(files) if n.endswith(x)) for x in ("1.jpg", "6.png", "8.jpg"))
    files[jpg] = (files[jpg][0], b"")
    files[png] = (files[png][0], b"<html>not found</html>")
    files[third] = (files[third][0], files[third][1][:300])
    path = write(tmp_path / "a.tar", files)
    told = rf"2 of 26 pictures cannot be used\. .*empty: 1 \({path}: {files[jpg][0]}\)"
    with pytest.raises(ImageError, match=told):
        WebDatasetImages(path)
    with pytest.warns(UserWarning, match="They are left out"):
        data = WebDatasetImages(path, skip_broken=True)
    (split,) = (
        s for s, rows in data.rows.items() for row in rows if data.tables[s].name(int(row)).endswith(files[third][0])
    )
    source = data.source(split, Preparation(lambda *size: size))
    with pytest.raises(ImageError, match=rf"{path}: {files[third][0]} cannot be read as a picture"):
        [source[i] for i in range(len(source))]


def test_captions_that_say_nothing_are_told(root, tmp_path):
    files = [(n, b" \n " if n.endswith("4.txt") else c) for n, c in files_of(root, "train") if not n.endswith("3.txt")]
    path = write(tmp_path / "a.tar", files)
    with pytest.raises(ImageError, match=r"3 of 26 pictures cannot be used\. no caption: 3"):
        WebDatasetImages(path, caption_key="txt")
    with pytest.warns(UserWarning, match="They are left out"):
        data = WebDatasetImages(path, caption_key="txt", skip_broken=True)
    with pytest.raises(ImageError, match=r"014\.jpg has no caption in \.txt"):
        list(data.captions())


def test_a_shard_that_has_become_shorter_is_told(shards):
    data = of(shards)
    cut(shards / "val-000.tar", 1024)
    with pytest.raises(ImageError, match=r"val-000\.tar: .* cannot be read: .* has become shorter since the start"):
        items(data.val_set())
    (shards / "val-000.tar").unlink()
    with pytest.raises(ImageError, match=r"val-000\.tar: .* cannot be read: No such file"):
        items(data.val_set())


def test_the_fingerprint_knows_shards_and_places(shards, tmp_path):
    first = fingerprint(of(shards).val_set())
    assert first == fingerprint(of(shards).val_set())
    assert first != fingerprint(of(shards, image_size=9).val_set())
    (tmp_path / "moved").mkdir()
    for file in shards.iterdir():
        file.rename(tmp_path / "moved" / file.name)
    moved = of(tmp_path / "moved")
    assert fingerprint(moved.val_set()) == first
    signature = moved.tables["val"].signature()
    os.utime(tmp_path / "moved" / "val-000.tar", (1e9, 1e9 + 7))
    again = of(tmp_path / "moved")
    assert fingerprint(again.val_set()) != first
    assert again.tables["val"].signature() == signature


@pytest.mark.parametrize("name", ["a/b.c/key.seg.png", "key.JPG", "k.x", "none", "a.b/none", ".png", "a/b."])
def test_names_are_cut_as_webdataset_cuts_them(name):
    library = pytest.importorskip("webdataset.tariterators")
    key, ending = library.base_plus_ext(name)
    assert module.split_name(name) == ((name, "") if key is None else (key, ending.lower()))


def test_names_that_are_not_utf8_are_kept(root, tmp_path):
    content = files_of(root, "train", 0, 1)[0][1]
    names = [
        f"a{i}\udcff".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") + ".png" for i in range(3)
    ]
    path = write(tmp_path / "a.tar", [(name, content) for name in names])
    for _ in range(2):
        assert module.index_of(path).names == names
    assert len(WebDatasetImages(path).rows["train"]) == 1


def test_without_the_library_braces_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-gen\[shards\]'"):
        module.expand("{0..3}.tar")
