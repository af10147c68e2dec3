import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_gen.data import ImageFolder, listing
from lightning_gen.data.fingerprint import digest
from lightning_gen.data.images import ImageError, image_endings, open_image
from lightning_gen.data.listing import (
    count_endings,
    fault_of,
    faults_of,
    find_images,
    list_images,
    search_images,
)


def test_find_images_is_recursive_sorted_and_blind_to_case(tmp_path):
    for name in ("b.PNG", "a/z.jpeg", "a/b/c.TiF", "a.webp", "notes.txt", ".hidden.png", ".thumbs/x.png", "a/._b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.webp", "a/b/c.TiF", "a/z.jpeg", "b.PNG"]


def test_find_images_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "real/inner/x.png").touch()
    (tmp_path / "real/inner/back").symlink_to(tmp_path / "real")
    (tmp_path / "given").symlink_to(tmp_path / "real")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer/link").symlink_to(tmp_path / "real/inner")
    assert find_images(tmp_path / "given") == [tmp_path / "given/inner/x.png"]
    assert find_images(tmp_path / "outer") == [tmp_path / "outer/link/x.png"]


def test_folders_that_link_to_each_other_are_searched_once(tmp_path):
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
    for here, there in itertools.permutations("abcd", 2):
        for i in range(2):
            (tmp_path / here / f"to_{there}{i}").symlink_to(tmp_path / there)
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep/x.png").touch()
    for name in ("one", "two"):
        (tmp_path / "b" / name).symlink_to(outside)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path / "b")]
    # Of b alone: the others by the first links that lead to them, each once.
    assert found == ["b/b.png", "b/one/deep/x.png", "b/to_a0/a.png", "b/to_c0/c.png", "b/to_d0/d.png"]
    # Where a folder has a place of its own, that counts.
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/a.png", "b/b.png", "c/c.png", "d/d.png", "outside/deep/x.png"]


def test_a_search_tells_pictures_from_other_files(tmp_path):
    for name in ("a/x.JFIF", "a/y.avif", "b/z.heic", "b/notes.txt", "c/d/README", "w.eps"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = search_images(tmp_path)
    assert [path.name for path in found.images] == ["x.JFIF", "y.avif"]
    assert sorted(path.name for path in found.others) == ["README", "notes.txt", "w.eps", "z.heic"]
    assert [path.name for path in found.folders] == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError, match=r"b holds no pictures \(jpg, .*\), only 1 .heic, 1 .txt\."):
        find_images(tmp_path / "b")


def test_what_is_wrong_with_files_is_known_from_status_and_first_bytes(tmp_path):
    picture = Image.new("RGB", (5, 6), "orange")
    for ending in ("png", "jpg", "tga", "pcx", "qoi"):
        picture.save(tmp_path / f"good.{ending}")
    picture.save(tmp_path / "jpeg", format="JPEG")
    (tmp_path / "jpeg").rename(tmp_path / "other_name.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    (tmp_path / "p.ppm").write_text("P")
    found = {path.name: fault for path, fault in faults_of(find_images(tmp_path)).items()}
    assert found == {
        "empty.png": "empty",
        "gone.png": "a link to nothing",
        "p.ppm": "no picture by its first bytes",
        "page.jpg": "no picture by its first bytes",
        "pipe.png": "not a file",
    }
    for name in found:  # and reading waits for none of them
        with pytest.raises(ImageError, match=name):
            open_image(tmp_path / name)


def test_find_images_names_the_folder_at_fault(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"empty holds no pictures \(jpg, png, .*\)\.$"):
        find_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"file is not a folder\.$"):
        find_images(tmp_path / "file")
    (tmp_path / "empty" / "a.ZIP").touch()
    for packed in ("empty", "empty/a.ZIP"):
        with pytest.raises(FileNotFoundError, match=r"\. Unpack a\.ZIP first, and give its folder\.$"):
            find_images(tmp_path / packed)


# A sequence of paths


def plain_search(folder):
    """Pictures and other files by plain means: every path under every place of a folder, once a folder."""
    found, searched, waiting, linked = [], set(), [folder], []
    while waiting or linked:
        here = waiting.pop() if waiting else linked.pop(0)
        if here.stat().st_ino in searched:
            continue
        searched.add(here.stat().st_ino)
        for path in sorted(here.iterdir(), key=lambda path: path.name):
            if path.name.startswith("."):
                continue
            if not path.is_dir():
                found.append(path)
            elif not path.is_symlink():
                waiting.append(path)
            elif not here.resolve().is_relative_to(path.resolve()):
                linked.append(path)
    pictures = [path for path in found if path.name.lower().endswith(tuple(image_endings()))]
    return sorted(pictures, key=Path.as_posix), sorted(set(found) - set(pictures), key=Path.as_posix)


NAMES = [
    *("a/x.png", "a/b/z.png", "a/b.png", "a/b-c/y.png", "a/b/c/d.jpg", "a.png", "a-b/x.png", "a b/x.png", "a0/x.PNG"),
    *("b/10.png", "b/9.png", "ü/é.png", "中/文.png", "notes.txt", "a/readme", "x.tar.gz", "a/b/dot.", ".git/x.png"),
]


@pytest.fixture
def tree(tmp_path):
    """Files whose orders by place and by parts differ, with links and with a name that is not UTF-8."""
    root = tmp_path / "tree"
    for name in [*NAMES, os.fsdecode(b"odd/\xff\xc3.png")]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"P6 1 1 255 abc")
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/e.png").touch()
    (root / "a/link").symlink_to(tmp_path / "elsewhere")
    (root / "a/up").symlink_to(root)
    (root / "a/b/again").symlink_to(root / "b")
    (root / "gone.png").symlink_to(root / "nowhere")
    (root / "empty").mkdir()
    return root


def test_files_are_those_of_a_plain_search_in_both_orders(tree):
    found = search_images(tree)
    pictures, others = plain_search(tree)
    assert list(found.images) == pictures
    assert list(found.others) == others
    assert list(found.images.sorted()) == sorted(pictures) != pictures
    assert [path.name for path in found.folders] == ["a", "a b", "a-b", "a0", "b", "empty", "odd", "ü", "中"]
    assert count_endings(found.others) == "2 without an ending, 1 .gz, 1 .txt"


def test_files_are_a_sequence_of_paths(tree):
    files = find_images(tree)
    paths = list(files)
    assert [files[i] for i in range(-len(files), len(files))] == paths * 2
    assert files == paths
    assert paths == files
    assert files != paths[1:]
    assert files != [*paths[1:], paths[0]]
    assert files[2:9:3] == paths[2:9:3]
    assert files[::-1] == paths[::-1]
    assert files[np.array([4, 1, 1])] == [paths[4], paths[1], paths[1]]
    assert files[np.arange(len(files)) % 2 == 1] == paths[1::2]
    assert files[3:].without(paths[:5]) == paths[5:]
    assert list(files[1:3].places()) == [path.relative_to(tree).as_posix() for path in paths[1:3]]
    assert paths[3] in files
    assert files.index(paths[3]) == 3
    assert pickle.loads(pickle.dumps(files[2:])) == paths[2:]
    assert not files[:0]
    with pytest.raises(IndexError):
        files[len(files)]


def test_files_know_which_lie_beside_each_other(tree):
    files = find_images(tree)[::-1]
    first, which = files.by_folder()
    assert len({path.parent for path in first}) == len(first)
    assert [first[k].parent for k in which] == [path.parent for path in files]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """20,000 pictures in 100 folders, made a while ago."""
    root = tmp_path_factory.mktemp("many")
    Image.new("RGB", (2, 2)).save(root / "picture.png")
    for i in range(100):
        (root / f"{i:03}").mkdir()
        for j in range(200):
            (root / f"{i:03}/img{200 * i + j:08}.png").hardlink_to(root / "picture.png")
    (root / "picture.png").unlink()
    return make_old(root)


def make_old(root):
    """All folders as if they had not changed for long."""
    for folder, *_ in os.walk(root):
        os.utime(folder, ns=(10**18, 10**18))
    return root


def held(make):
    """What something made takes, in bytes, and it."""
    tracemalloc.start()
    made = make()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size, made


def test_files_take_no_more_than_200_bytes_each(many):
    find_images(many)  # what is imported and kept at the first time is no matter
    size, found = held(lambda: search_images(many))
    assert len(found.images) == 20_000
    assert size < 60 * 20_000
    size, module = held(lambda: ImageFolder(many, labels=True))
    assert size < 100 * 20_000
    assert len(pickle.dumps(module.files["train"])) < 60 * 20_000


def test_splits_and_labels_are_those_of_plain_paths(many):
    module = ImageFolder(many, labels=True, val_fraction=0.1, test_fraction=0.2)
    paths = list(find_images(many))
    by_hash = sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(many).as_posix().encode()).digest())
    assert module.files["val"] == sorted(by_hash[:2000])
    assert module.files["test"] == sorted(by_hash[2000:6000])
    assert module.files["train"] == sorted(by_hash[6000:])
    assert module.labels_of("val").tolist() == [int(path.parent.name) for path in module.files["val"]]


def test_the_digest_of_files_is_that_of_their_paths(tree):
    files = find_images(tree).without([tree / "gone.png"])
    for part in (files, files[:4], files[1:2], files.where(lambda place: place.startswith("a/b/"))):
        folder = os.path.commonpath([path.parent for path in part])
        rows = [(p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in part]
        text = json.dumps({"files": rows, "more": [rows, 1]}, separators=(",", ":"))
        assert digest({"files": part, "more": [part, 1]}) == hashlib.sha256(text.encode()).hexdigest()
        assert digest(part) == digest(list(part))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        digest(find_images(tree))


# Lists that are kept


@pytest.fixture
def searches(monkeypatch, tmp_path):
    """The folders that were searched. Lists are kept of however few and young files, in a folder of the test."""
    found = []
    search = listing._Findings.of
    monkeypatch.setattr(listing._Findings, "of", lambda root: [found.append(root), search(root)][1])
    monkeypatch.setattr(listing, "_KEPT", 1)
    monkeypatch.setattr(listing, "_RACY", -(10**9))
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "kept"))
    return found


def same(one, other):
    parts = ("folder", "images", "others", "folders", "faults")
    return all(getattr(one, part) == getattr(other, part) for part in parts)


def fresh(folder, monkeypatch):
    """What is listed where nothing is kept."""
    with monkeypatch.context() as patch:
        patch.setenv("LIGHTNING_GEN_CACHE", str(folder / "nowhere"))
        patch.setattr(listing, "_KEPT", 10**9)
        return list_images(folder)


def test_a_list_is_kept_whole(tree, searches, monkeypatch):
    make_old(tree.parent)
    first = list_images(tree)
    assert first.faults == [{tree / "gone.png": "a link to nothing", tree / "a/link/deep/e.png": "empty"}]
    assert len(searches) == 1
    second = list_images(tree)
    assert len(searches) == 1
    assert same(first, second)
    assert second.images.sorted() == first.images.sorted()
    monkeypatch.chdir(tree)
    assert list_images("a").images == [path.relative_to(tree) for path in list_images(tree / "a").images]


def replace_by_link(path, target):
    shutil.rmtree(path)
    path.symlink_to(target)


def overwrite(path, content, put_back=False):
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before, before + (not put_back)))


def swap(root):
    """One folder takes the place of another, with its times."""
    (root / "b").rename(root / "was")
    (root / "was").rename(root / "a0/b")
    (root / "a-b").rename(root / "b")
    for folder in (root, root / "a0", root / "b"):
        os.utime(folder, ns=(10**18, 10**18))


CHANGES = {
    "a file added": lambda root: (root / "a/b/new.png").touch(),
    "another file added": lambda root: (root / "a/new.txt").touch(),
    "a file removed": lambda root: (root / "a/b/z.png").unlink(),
    "a file renamed": lambda root: (root / "a/b/z.png").rename(root / "a/b/y.png"),
    "a file moved": lambda root: (root / "a/b/z.png").rename(root / "b/z.png"),
    "a folder added": lambda root: (root / "new").mkdir(),
    "a folder removed": lambda root: (root / "empty").rmdir(),
    "a folder renamed": lambda root: (root / "a").rename(root / "c"),
    "a folder replaced by a link": lambda root: replace_by_link(root / "b", root.parent / "elsewhere"),
    "a folder replaced by another": swap,
    "a file added behind a link": lambda root: (root.parent / "elsewhere/deep/f.png").touch(),
    "a link to nothing leads to a folder": lambda root: (root / "b").rename(root / "nowhere"),
    "what a link leads to is replaced": lambda root: (root.parent / "elsewhere").rename(root.parent / "was"),
    "a file overwritten": lambda root: overwrite(root / "a.png", b"no picture", put_back=True),
    "a file overwritten by as many bytes": lambda root: overwrite(root / "a.png", b"Q6 1 1 255 abc"),
    "a file mended": lambda root: overwrite(root / "a/link/deep/e.png", b"P6 1 1 255 abc"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, tree, searches, monkeypatch):
    make_old(tree.parent)
    before = list_images(tree)
    CHANGES[change](tree)
    after = list_images(tree)
    assert len(searches) == 2
    assert same(after, fresh(tree, monkeypatch))
    assert not same(after, before)
    assert same(list_images(tree), after)
    assert len(searches) == 2 + 1  # and that of `fresh`


def test_a_change_is_seen_although_times_are_put_back(tree, searches):
    make_old(tree.parent)
    list_images(tree)
    time.sleep(0.05)  # the clock of the file system ticks meanwhile
    (tree / "a/b/new.png").touch()
    make_old(tree.parent)
    assert tree / "a/b/new.png" in list_images(tree).images


def test_of_many_files_a_sample_is_compared(many, searches, monkeypatch):
    monkeypatch.setattr(listing, "_COMPARED", 500)
    asked = []
    status = listing._status
    monkeypatch.setattr(listing, "_status", lambda path: [asked.append(path), status(path)][1])
    first = list_images(many)
    assert len(asked) == 20_000
    asked.clear()
    assert same(list_images(many), first)
    assert len(set(asked)) == len(asked) == 500
    assert {Path(path).parent.name for path in asked} == {f"{i:03}" for i in range(100)}
    assert len(searches) == 1


def test_a_list_of_a_folder_that_just_changed_is_not_kept(tree, searches, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_RACY", 3600 * 10**9)
    for _ in range(2):
        list_images(tree)
    assert len(searches) == 2
    assert not (tmp_path / "kept").exists()


def test_a_list_of_few_files_is_not_kept(many, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_RACY", -(10**9))
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "kept"))
    list_images(many / "000")
    assert not (tmp_path / "kept").exists()
    list_images(many)
    assert len(list((tmp_path / "kept/listings").iterdir())) == 1


def no_fault(path):
    return ""


def name_fault(path):
    return "" if "x" in path.name else "no x in its name"


def test_each_look_is_kept_for_itself(tree, searches):
    make_old(tree.parent)
    for _ in range(2):
        (found,) = list_images(tree).faults
        assert list_images(tree, no_fault).faults == [found, {}]
        by_name = {path: "no x in its name" for path in find_images(tree) if "x" not in path.name}
        assert list_images(tree, name_fault).faults == [found, by_name]
    assert fault_of(next(iter(found))) == found[next(iter(found))]
    assert len(searches) == 3 + 2  # and those of find_images


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "one bit": damaged,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut to its first bytes": lambda path: os.truncate(path, 40),
    "empty": lambda path: os.truncate(path, 0),
    "something else": lambda path: path.write_text("x" * 1000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_is_not_trusted(damage, tree, searches, tmp_path):
    make_old(tree.parent)
    first = list_images(tree)
    (kept,) = (tmp_path / "kept/listings").iterdir()
    DAMAGES[damage](kept)
    with pytest.warns(UserWarning, match=r"is damaged. The files in .*tree are listed anew."):
        assert same(list_images(tree), first)
    assert same(list_images(tree), first)
    assert len(searches) == 2


def test_the_list_of_another_folder_or_version_is_not_trusted(tree, searches, tmp_path, monkeypatch):
    make_old(tree.parent)
    list_images(tree / "a")
    (kept,) = (tmp_path / "kept/listings").iterdir()
    first = list_images(tree)
    for path in (tmp_path / "kept/listings").iterdir():
        if path != kept:
            shutil.copy(kept, path)
    assert same(list_images(tree), first)
    assert len(searches) == 3
    monkeypatch.setattr(listing, "SCHEMA", listing.SCHEMA + 1)
    assert same(list_images(tree), first)
    assert len(searches) == 4


def test_a_list_that_cannot_be_kept_is_no_error(tree, searches, tmp_path):
    make_old(tree.parent)
    (tmp_path / "kept").write_text("a file in place of the folder")
    with pytest.warns(UserWarning, match=r"The list of the files in .*tree is not kept for the next time: "):
        found = list_images(tree)
    assert list(found.images) == plain_search(tree)[0]


def _list(folders, barrier):
    warnings.simplefilter("error")
    for folder in folders:
        barrier.wait(60)
        assert len(list_images(folder).images) == 200


def test_two_processes_list_at_once(many, searches, tmp_path):
    folders = [many / f"{i:03}" for i in range(5)]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_list, args=(folders, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list((tmp_path / "kept/listings").iterdir())) == 5
    assert [len(list_images(folder).images) for folder in folders] == [200] * 5
    assert not searches
