"""Files are whole or what stood there, and killed processes leave nothing for ever."""

import os
import resource
import signal
import time

import pytest
import torch

from lightning_gen import files
from lightning_gen.checkpoints import AtomicCheckpointIO
from lightning_gen.files import opened_atomically, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "some" / "folder" / "history.jsonl"
    write_atomically(path, "ä")
    with opened_atomically(path) as file:
        file.write(b"new")
        assert path.read_text() == "ä"
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["history.jsonl"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_leaves_what_stood_there_and_nothing_else(tmp_path, error):
    def fail():
        with opened_atomically(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    write_atomically(tmp_path / "a", "before")
    with pytest.raises(type(error)):
        fail()
    assert (tmp_path / "a").read_text() == "before"
    assert names(tmp_path) == ["a"]


def test_a_name_may_be_as_long_as_a_file_system_takes(tmp_path):
    write_atomically(tmp_path / ("ä" * 127), "x")
    assert names(tmp_path) == ["ä" * 127]


def die_while_writing(path):
    with opened_atomically(path) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_goes_when_the_next_one_writes_into_the_folder(tmp_path, fresh_process):
    write_atomically(tmp_path / "last.ckpt", "before")
    fresh_process(die_while_writing, tmp_path / "last.ckpt")
    assert len(names(tmp_path)) == 2
    assert (tmp_path / "last.ckpt").read_text() == "before"
    fresh_process(write_atomically, tmp_path / "another", "x")
    assert names(tmp_path) == ["another", "last.ckpt"]


def test_what_others_are_writing_stays(tmp_path, fresh_process):
    host, dead = files._HOST, fresh_process(os.getpid)
    living = f".a.{host}.{os.getppid()}.tmp"
    elsewhere, forgotten = f".a.elsewhere.{dead}.tmp", f".b.elsewhere.{dead}.tmp"
    others = [living, elsewhere, f"a.{host}.{dead}.tmp", ".a.tmp", f".a.{dead}.png"]
    for name in [*others, forgotten, f".b.{host}.{dead}.tmp", f".b.{host}.{10**30}.tmp"]:
        (tmp_path / name).touch()
    os.utime(tmp_path / forgotten, (0, time.time() - 25 * 3600))
    fresh_process(write_atomically, tmp_path / "a", "x")
    assert names(tmp_path) == sorted(["a", *others])


def test_one_that_goes_on_gets_what_a_killed_one_had_and_nobody_else_does(tmp_path, fresh_process):
    path = tmp_path / "pictures"
    fresh_process(die_while_writing, path)
    with opened_atomically(path, going_on=True) as file:
        assert file.read() == b"half"
        file.write(b" and half")
        assert len(names(tmp_path)) == 1
    assert path.read_bytes() == b"half and half"
    with opened_atomically(path, going_on=True) as file:
        assert file.read() == b""
    assert names(tmp_path) == ["pictures"]
    # What another process is still writing is its own.
    living = tmp_path / f".pictures.{files._HOST}.{os.getppid()}.tmp"
    living.write_bytes(b"more")
    with opened_atomically(path, going_on=True) as file:
        assert file.read() == b""
    assert living.read_bytes() == b"more"


@pytest.mark.parametrize(("error", "left"), [(OSError(28, "full"), []), (KeyboardInterrupt(), [b"half"])])
def test_to_go_on_later_is_for_what_was_interrupted(error, left, tmp_path):
    def fail():
        with opened_atomically(tmp_path / "a", going_on=True) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == left


def test_what_is_being_written_is_known(tmp_path, fresh_process):
    path, dead = tmp_path / "a", fresh_process(os.getpid)
    assert not files.is_being_written(tmp_path / "nowhere" / "a")
    for pid, host, age, expected in (
        (os.getppid(), files._HOST, 0, True),
        (os.getppid(), files._HOST, 61, False),
        (os.getppid(), "elsewhere", 0, False),
        (os.getpid(), files._HOST, 0, False),
        (dead, files._HOST, 0, False),
    ):
        unfinished = tmp_path / f".a.{host}.{pid}.tmp"
        unfinished.touch()
        os.utime(unfinished, (0, time.time() - age))
        assert files.is_being_written(path) == expected
        assert not files.is_being_written(tmp_path / "b")
        unfinished.unlink()


def save_beyond_the_limit(path, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    try:
        tensors = {name: torch.rand(size // 8) for name in "xy"}
        AtomicCheckpointIO().save_checkpoint({"state_dict": tensors}, path)
    except OSError as error:
        return error.errno, error.strerror
    return None


def test_a_checkpoint_that_the_disk_does_not_take_says_so_in_the_system_s_words(tmp_path, fresh_process):
    """Here a limit on the size of files stands for a full disk: the write fails in the middle of a tensor."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "step": 1}, path)
    number, message = fresh_process(save_beyond_the_limit, path, 4_000_000)
    assert number == 27
    assert message == (
        f"The checkpoint {path} could not be written: File too large. The checkpoints saved before it are untouched"
    )
    assert torch.load(path)["step"] == 1
    assert names(tmp_path) == ["last.ckpt"]


def test_a_checkpoint_goes_to_its_file_tensor_by_tensor(tmp_path, monkeypatch):
    """It is never whole in memory a second time."""
    sizes = []

    class Watched:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            sizes.append(len(data))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, Watched(file)))
    tensors = {f"layer{i}": torch.rand(10_000) for i in range(20)}
    AtomicCheckpointIO().save_checkpoint({"state_dict": tensors}, tmp_path / "last.ckpt")
    assert sum(sizes) == (tmp_path / "last.ckpt").stat().st_size > 20 * 40_000
    assert max(sizes) == 40_000


def test_what_cannot_be_pickled_is_the_error_it_is(tmp_path):
    with pytest.raises((AttributeError, TypeError), match=r"lambda|local object|pickle"):
        AtomicCheckpointIO().save_checkpoint({"x": lambda: 0}, tmp_path / "last.ckpt")
    assert names(tmp_path) == []
