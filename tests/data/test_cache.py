"""A cache gives what its source gives, bit for bit, or is made anew; whatever happened while it was made."""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen import files
from lightning_gen.data import cache as module
from lightning_gen.data.base import Draw
from lightning_gen.data.cache import CachedSource, KeptPictures, cached, in_bytes
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.folders import ImageFolder, PairedImageFolder, UnpairedImageFolder
from lightning_gen.data.images import ImageError
from lightning_gen.data.preparation import Cover, Keep, Preparation, Stretch
from lightning_gen.data.sources import FileSource
from lightning_gen.schedules import Growing
from tests.data.homes import make_folder, seen
from tests.shared import differences

EVEN = Preparation(Stretch((9, 11)))
MIXED = Preparation(Keep())


def paint(folder: Path, count: int = 12, side: int = 12, suffix: str = "png") -> list[Path]:
    """Pictures of noise, of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{i:04d}.{suffix}" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(random.integers(0, 256, (side + i % 3, side + 2 * (i % 4), 3), np.uint8)).save(path)
    return paths


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = paint(tmp_path / "pictures")
    deep = np.random.default_rng(1).integers(0, 65536, (14, 12)).astype(np.uint16)
    Image.fromarray(deep).save(paths[5])
    return paths


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def same(found, source) -> bool:
    """Whether two sources have the same pictures, of the same types."""
    pairs = [(found[i], source[i]) for i in range(len(source))]
    return len(found) == len(source) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(*_):
    raise AssertionError("a cache was made")


# What it gives


@pytest.mark.parametrize(
    "prepare",
    [
        EVEN,
        MIXED,
        Preparation(Cover((8, 8))),
        Preparation(Cover((8, 8)), center=(8, 8)),
        Preparation(Stretch((7, 5)), halves=True),
        Preparation(Keep(), channels=1, halves=True),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_it_gives_what_its_source_gives(prepare, deep, pictures, folder):
    source = FileSource(pictures if deep else pictures[:5], prepare)
    found = cached(source, folder)
    assert same(found, source)
    assert {found[i].dtype for i in range(len(source))} == ({torch.uint8, torch.float32} if deep else {torch.uint8})
    assert (found.name(3), found.recipe()) == (source.name(3), source.recipe())
    assert names(folder) == [found.path.name]
    assert same(KeptPictures(found.path), source)
    assert same(pickle.loads(pickle.dumps(found)), source)
    assert len(pickle.dumps(found)) < len(pickle.dumps(source)) + 500


def test_what_is_given_may_be_changed_and_the_file_stays(pictures, folder):
    source = FileSource(pictures, MIXED)
    found = cached(source, folder)
    for i in range(len(source)):
        found[i].zero_()
    assert same(found, source)


def folders(root: Path):
    """A module of each kind and what its cache must not change."""
    for name in ("trainA", "testA", "train", "test", "trainB", "testB"):
        paint(root / name, count=7 if name.endswith("A") else 10)
    for text in [*paint(root / "captioned" / "train" / "x"), *paint(root / "captioned" / "val" / "x", 3)]:
        text.with_suffix(".txt").write_text("one\ntwo")
    some = {"num_workers": 0, "seed": 3}
    return [
        (UnpairedImageFolder, root, {"resize": 12, "crop": 9, **some}),
        (UnpairedImageFolder, root, {"resize": None, "crop": 9, **some}),
        (PairedImageFolder, root, {"resize": (9, 8), "crop": (8, 6), "swap": True, **some}),
        (ImageFolder, root, {"image_size": 8, "crop": "random", "flip": True, "batch_size": 3, **some}),
        (
            ImageFolder,
            root / "captioned",
            {"image_size": (6, 8), "labels": True, "captions": True, "channels": 1, "batch_size": 3, **some},
        ),
    ]


@pytest.mark.parametrize("number", range(5))
def test_data_modules_give_the_same_examples_from_the_cache(number, tmp_path, folder):
    kind, root, settings = folders(tmp_path / "data")[number]
    plain, kept = kind(root, **settings), kind(root, **settings, cache=folder)
    for split in ("train", "val", "test"):
        one, other = plain.dataset(split), kept.dataset(split)
        draws = [Draw(epoch, i, i) for epoch in (0, 3) for i in range(len(one))]
        assert len(one) == len(other)
        assert all(not differences(one[draw], other[draw]) for draw in draws)
        assert fingerprint(one) == fingerprint(other)
    assert any(name.endswith(".pictures") for name in names(folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_an_epoch_as_it_does_without_a_cache(workers, tmp_path, folder):
    kind, root, settings = folders(tmp_path / "data")[3]
    batches = []
    for options in ({}, {"cache": folder}):
        loader = kind(root, **{**settings, **options, "num_workers": workers}).train_dataloader()
        iterator = iter(loader)
        next(iterator)
        state = loader.state_dict()
        again = kind(root, **{**settings, **options, "num_workers": workers}).train_dataloader()
        again.load_state_dict(state)
        batches.append([*again])
    assert len(batches[0]) == 2
    assert not differences(*batches)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_stops_and_goes_on_sees_what_one_without_a_cache_sees(devices, tmp_path, folder):
    root = make_folder(tmp_path / "data")
    some = {"image_size": 8, "crop": "random", "flip": True, "labels": True, "captions": True, "batch_size": 4}

    def make(**more):
        return ImageFolder(root, num_workers=0, **some, **more)

    expected = seen(make, tmp_path / "files", devices=devices)
    assert len({*expected}) == devices
    assert seen(lambda: make(cache=folder), tmp_path / "kept", devices=devices, stop=2) == expected
    assert len(names(folder)) == 2


def test_all_resolutions_of_a_growing_run_come_from_one_cache(tmp_path, folder):
    root = paint(tmp_path / "data", 40)[0].parent
    growing = Growing((4, 8), batch_sizes=(8, 4), stable_images=16, fade_images=0)
    some = {"image_size": 8, "crop": "random", "flip": True, "num_workers": 0, "growing": growing}
    found = [[*ImageFolder(root, **some, **more).train_dataloader()] for more in ({}, {"cache": folder})]
    assert not differences(*found)
    assert {batch["image"].shape for batch in found[1]} == {(8, 3, 4, 4), (4, 3, 8, 8)}
    assert len(names(folder)) == 1


def test_true_is_the_cache_folder_and_false_is_none(pictures, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "own"))
    root = pictures[0].parent
    assert isinstance(ImageFolder(root, image_size=8).dataset("val").source, FileSource)
    found = ImageFolder(root, image_size=8, cache=True).dataset("val").source
    assert isinstance(found, CachedSource)
    assert found.path.parent == tmp_path / "own" / "pictures"
    with pytest.raises(ValueError, match="cache is empty"):
        ImageFolder(root, image_size=8, cache=" ")


# Which cache belongs to which pictures


def test_it_is_made_once(pictures, folder, monkeypatch):
    source = FileSource(pictures, EVEN)
    path = cached(source, folder).path
    monkeypatch.setattr(module, "_blocks", refuse)
    assert cached(source, folder).path == path
    # Wherever the files lie.
    moved = shutil.copytree(pictures[0].parent, folder.parent / "moved")
    assert cached(FileSource(sorted(moved.iterdir()), EVEN), folder).path == path


def test_it_follows_the_files_and_what_is_done_to_them(pictures, folder, monkeypatch):
    found = [cached(FileSource(pictures, prepare), folder).path for prepare in (
        EVEN, MIXED, Preparation(Stretch((9, 12))), Preparation(Stretch((9, 11)), channels=1),
        Preparation(Stretch((9, 11)), background="black"), Preparation(Stretch((9, 11)), halves=True),
    )]  # fmt: skip
    found.append(cached(FileSource(pictures[:-1], EVEN), folder).path)
    found.append(cached(FileSource(pictures[::-1], EVEN), folder).path)
    status = pictures[2].stat()
    os.utime(pictures[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    found.append(cached(FileSource(pictures, EVEN), folder).path)
    shutil.copy(pictures[3], pictures[2])
    os.utime(pictures[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    found.append(cached(FileSource(pictures, EVEN), folder).path)
    assert len({*found}) == len(found)
    # Another decoder or resize, which no file tells of.
    read = FileSource.__getitem__
    monkeypatch.setattr(FileSource, "__getitem__", lambda self, index: read(self, index).flip(-1))
    assert cached(FileSource(pictures, EVEN), folder).path not in found


def test_val_and_test_share_a_file_where_they_are_the_same_pictures(tmp_path, folder):
    kind, root, settings = folders(tmp_path / "data")[1]
    data = kind(root, **settings, cache=folder)
    first, second = data.dataset("val"), data.dataset("test")
    assert first.source_A.path == second.source_A.path != first.source_B.path


# Nothing wrong is trusted


def test_damage_is_said_and_mended(pictures, folder):
    source = FileSource(pictures, MIXED)
    path = cached(source, folder).path
    whole = path.read_bytes()
    other = cached(FileSource(pictures, EVEN), folder).path.read_bytes()
    index = whole.index(b'{"key"') - 30
    for damage, words in (
        (b"", "cut short"),
        (whole[:50], "cut short"),
        (whole[: len(whole) // 2], "cut short"),
        (whole[:-1], "cut short"),
        (whole[:-1] + b"x", "cut short"),
        (whole[:70] + whole[134:], "damaged"),
        (whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :], "damaged"),
        (whole.replace(b'"count": 12', b'"count": 11'), "damaged"),
        (whole.replace(b'"count": 12', b'"count": {}'), "damaged"),
        (whole[:-16] + (1 << 62).to_bytes(8, "little") + whole[-8:], "damaged"),
        (b"GIF89a" + whole[6:], "something else"),
        (whole.replace(b"pictures 1\n", b"pictures 2\n"), "another version"),
        (other, "other pictures than its name says"),
    ):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match=f"{words}. It is made anew"):
            assert same(cached(source, folder), source)
        assert path.read_bytes() == whole
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="directory"), pytest.warns(UserWarning, match="Is a directory"):
        cached(source, folder)


def test_a_picture_that_cannot_be_read_is_named(pictures, folder, monkeypatch):
    monkeypatch.setattr(module, "PROBES", 2)  # which would read it before
    content = pictures[7].read_bytes()
    pictures[7].write_bytes(content[:-30])
    monkeypatch.setattr(module, "_BLOCK", 1)
    for cores in (1, 2):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        with pytest.raises(ImageError, match=f"^{pictures[7]} cannot be read as a picture"):
            cached(FileSource(pictures, EVEN), folder)
        assert names(folder) == []
    for number in (1, 2, 3, 9):
        pictures[number].write_bytes(content[:-30])
    with pytest.raises(ImageError, match=f"^5 of 12 pictures cannot be read. {pictures[1]} .*{pictures[3]} .* ...$"):
        cached(FileSource(pictures, EVEN), folder)
    assert names(folder) == []


def test_pictures_that_change_while_they_are_read_make_no_cache(pictures, folder, monkeypatch):
    class Changing(FileSource):
        def __getitem__(self, index):
            if index == 9:
                os.utime(self.files[4], (0, 0))
            return super().__getitem__(index)

    monkeypatch.setattr(module, "PROBES", 2)
    with pytest.raises(RuntimeError, match=r"The pictures have changed while their cache .* was made. Start again"):
        cached(Changing(pictures, EVEN), folder)
    assert names(folder) == []
    # Nor if they change before they are read, but after their key is known.
    waits = iter([True])

    def change(_):
        os.utime(pictures[4], (1, 1))
        return next(waits, False)

    monkeypatch.setattr(module, "is_being_written", change)
    with pytest.raises(RuntimeError, match="The pictures have changed"):
        cached(FileSource(pictures, EVEN), folder)
    assert names(folder) == []


# Where it cannot be written


def test_room_is_looked_for_before_and_missed_room_is_said(pictures, folder, monkeypatch):
    source = FileSource(pictures[:5], EVEN)
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 1500))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_blocks", refuse)
        with pytest.raises(
            OSError, match=r"^The cache of 5 pictures takes 1.92 kB, .* into .*cache: it has 1.5 kB free. Name another"
        ):
            cached(source, folder)
    assert names(folder) == []


def beyond_the_limit(source, folder):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    cached(source, folder)


def test_a_disk_that_is_full_on_the_way_is_said_and_left_as_it_was(pictures, folder, fresh_process):
    """A limit on the size of files stands for it."""
    source = FileSource(pictures * 9, EVEN)
    with pytest.raises(RuntimeError, match=r"cannot be written into .*: File too large. Name another folder \(cache:"):
        fresh_process(beyond_the_limit, source, folder)
    assert names(folder) == []


def test_a_folder_that_cannot_be_made_is_said(pictures, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"takes 5.\d+ kB, but it cannot be written into .*file/x: Not a directory"):
        cached(FileSource(pictures, EVEN), tmp_path / "file" / "x")


def test_bytes_in_words():
    assert [in_bytes(n) for n in (0, 999, 1000, 12345, 1.5e9, 3.21e15)] == [
        "0 bytes", "999 bytes", "1 kB", "12.3 kB", "1.5 GB", "3.21e+03 TB"
    ]  # fmt: skip


# Kills


def make(source, folder):
    module._BLOCK = 3
    return cached(source, folder).path.name


def test_kill_9_anywhere_leaves_nothing_that_is_trusted_and_wrong(tmp_path, folder, monkeypatch):
    """Twenty times, at random places; each start goes on with what the one before had made."""
    source = FileSource(paint(tmp_path / "pictures", 240, 40), MIXED)
    random, context = np.random.default_rng(0), multiprocessing.get_context("fork")
    whole = cached(source, tmp_path / "whole").path
    content, sizes = whole.read_bytes(), [0]
    for number in range(20):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=1 + (number % 5 == 0): range(cores))
        process = context.Process(target=make, args=(source, folder))
        process.start()
        enough = sizes[-1] + random.integers(len(content) // 8)
        while process.is_alive() and unfinished(folder) < enough:
            time.sleep(0.001)
        process.kill()
        process.join()
        sizes.append(unfinished(folder))
        assert len(names(folder)) == 1
        if names(folder) == [whole.name]:
            assert (folder / whole.name).read_bytes() == content
            shutil.rmtree(folder)
    assert sum(later > earlier > 0 for earlier, later in itertools.pairwise(sizes)) > 5
    assert cached(source, folder).path.read_bytes() == content
    assert names(folder) == [whole.name]


def unfinished(folder: Path) -> int:
    """How many bytes there are of a file that is being made, or was until a kill."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_size
    return 0


def dying(source, folder, when, part):
    """Die in a write, of which some bytes have got to the disk."""
    opened = module.opened_atomically
    calls = iter(range(10**6))

    class Dying:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if next(calls) == when:
                self.file.write(data[: int(part * len(data))])
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return self.file.write(data)

    class Opened:
        def __init__(self, *given, **options):
            self.manager = opened(*given, **options)

        def __enter__(self):
            return Dying(self.manager.__enter__())

        def __exit__(self, *error):
            return self.manager.__exit__(*error)

    module.opened_atomically = Opened
    make(source, folder)


@pytest.mark.parametrize("part", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("when", "sound"), [(0, 0), (1, 0), (3, 6), (5, 12)])
def test_a_kill_in_a_write_costs_that_write(when, sound, part, pictures, folder, fresh_process, caplog):
    """Writes are the beginning, four blocks of three pictures, and the end."""
    source = FileSource(pictures, MIXED)
    whole = cached(source, folder.parent / "whole").path
    fresh_process(dying, source, folder, when, part)
    (left,) = names(folder)
    assert left.endswith(".tmp")
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    caplog.clear()
    assert cached(source, folder).path.read_bytes() == whole.read_bytes()
    assert names(folder) == [whole.name]
    if 0 < when < 5:
        sound += {0.0: 0, 0.4: 1, 1.0: 3}[part]
    assert (f"of which {sound} are there" in caplog.text) == (sound > 0)


def test_what_a_killed_process_left_is_looked_at_picture_by_picture(pictures, folder, fresh_process):
    """A power cut may leave zeros, and a file of the name may be of anything."""
    source = FileSource(pictures, EVEN)
    whole = cached(source, folder).path
    content, dead = whole.read_bytes(), fresh_process(os.getpid)
    for left in (
        b"",
        b"x" * 4000,
        content[:1000],
        content[:1000] + bytes(2000),
        content[:700] + b"\xff" * 64 + content[764:],
        content,
        content + b"more",
        content[:40] + b"another key" + content[51:],
    ):
        whole.unlink()
        (folder / f".{whole.name}.{files._HOST}.{dead}.tmp").write_bytes(left)
        cached(source, folder)
        assert names(folder) == [whole.name]
        assert whole.read_bytes() == content


def test_what_ctrl_c_stops_is_gone_on_with(pictures, folder, monkeypatch, caplog):
    source = FileSource(pictures, EVEN)
    monkeypatch.setattr(module, "_BLOCK", 3)
    write, calls = module._Blocks.__getitem__, []

    def stop(self, number):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(self, number)

    monkeypatch.setattr(module._Blocks, "__getitem__", stop)
    with pytest.raises(KeyboardInterrupt):
        cached(source, folder)
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    assert same(cached(source, folder), source)
    assert "of which 6 are there" in caplog.text
    assert len(names(folder)) == 1


# Several at once


def slowly(source, folder, reports):
    read = FileSource.__getitem__

    def slow(self, index):
        time.sleep(0.01)
        return read(self, index)

    FileSource.__getitem__ = slow
    blocks = module._blocks

    def counted(*given):
        reports.put(os.getpid())
        return blocks(*given)

    module._blocks = counted
    make(source, folder)


def test_of_two_runs_one_makes_it_and_the_other_waits(pictures, folder):
    context = multiprocessing.get_context("fork")
    reports, source = context.SimpleQueue(), FileSource(pictures * 5, EVEN)
    processes = [context.Process(target=slowly, args=(source, folder, reports)) for _ in range(2)]
    processes[0].start()
    maker = reports.get()
    processes[1].start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert maker == processes[0].pid
    assert reports.empty()
    assert same(KeptPictures(folder / names(folder)[0]), source)


def test_two_runs_that_begin_together_are_safe(pictures, folder):
    context = multiprocessing.get_context("fork")
    source = FileSource(pictures * 5, EVEN)
    for _ in range(3):
        processes = [context.Process(target=make, args=(source, folder)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        (name,) = names(folder)
        assert same(KeptPictures(folder / name), source)
        shutil.rmtree(folder)


def test_one_that_hangs_is_not_waited_for(pictures, folder):
    source = FileSource(pictures, EVEN)
    name = cached(source, folder).path.name
    (folder / name).unlink()
    left = folder / f".{name}.{files._HOST}.{os.getppid()}.tmp"
    left.touch()
    os.utime(left, (0, time.time() - 61))
    thread = threading.Thread(target=cached, args=(source, folder))
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert names(folder) == [left.name, name]


def on_rank(rank, source, folder):
    module._PULSE = 0.0  # ranks hear of each other all the time
    return make(source, folder)


def test_two_ranks_make_what_one_makes(on_ranks, pictures, folder, tmp_path):
    source = FileSource(pictures, MIXED)
    whole = cached(source, tmp_path / "one").path
    assert on_ranks(on_rank, source, folder) == [whole.name] * 2
    assert (folder / whole.name).read_bytes() == whole.read_bytes()


def on_machine(rank, source, folder):
    return on_rank(rank, source, folder / str(rank))


def test_a_machine_that_does_not_see_the_file_of_another_makes_its_own(on_ranks, pictures, folder, tmp_path):
    source = FileSource(pictures, MIXED)
    whole = cached(source, tmp_path / "one").path
    assert on_ranks(on_machine, source, folder) == [whole.name] * 2
    assert all((folder / str(rank) / whole.name).read_bytes() == whole.read_bytes() for rank in range(2))


def test_what_fails_on_the_rank_that_makes_it_fails_on_all(on_ranks, pictures, folder):
    pictures[3].write_bytes(pictures[3].read_bytes()[:-40])
    module_errors = on_ranks(on_rank, FileSource(pictures, MIXED), folder)
    assert all(isinstance(error, RuntimeError) for error in module_errors)
    assert "Rank 0 failed, so all do. ImageError" in str(module_errors[1])
