"""Streams of tar shards: what is promised of their order, and of going on."""

import itertools
import sys
import tarfile
from functools import partial

import pytest
import torch

from lightning_gen.data import Draw, ImageFolder, WebDatasetImages
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.images import ImageError
from lightning_gen.data.streams import local_copy
from lightning_gen.schedules import Growing
from tests.data.homes import CLASSES, make_folder, pictures, seen
from tests.data.test_shards import files_of, write
from tests.shared import trainer

pytest.importorskip("webdataset")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

OPTIONS = {"image_size": (10, 12), "crop": "random", "flip": True, "batch_size": 4, "num_workers": 0, "buffer": 5}
KEYS = {"label_key": "json.name", "caption_key": "txt", "classes": list(CLASSES)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "folder")


@pytest.fixture
def shards(root, tmp_path):
    """Four to train on, of 6, 6, 6 and 8 pictures, and one to validate with."""
    for i in range(4):
        write(tmp_path / "shards" / f"train-{i:03}.tar", files_of(root, "train", 6 * i, 6 * i + 6 if i < 3 else None))
    write(tmp_path / "shards" / "val-000.tar", files_of(root, "val"))
    return tmp_path / "shards"


def of(shards, urls="train-*.tar", **settings):
    settings = {"val_urls": shards / "val-000.tar", "stream": True, "num_pictures": 26, **KEYS, **OPTIONS} | settings
    return WebDatasetImages(shards / urls, **settings)


class Processes:
    """As much of a trainer as loaders ask for."""

    overfit_batches = 0

    def __init__(self, world_size, global_rank):
        self.world_size, self.global_rank = world_size, global_rank
        self.lightning_module = None


def loader(shards, world=1, rank=0, **settings):
    data = of(shards, **settings)
    data.trainer = Processes(world, rank)
    return data.train_dataloader()


def batches(loader, epoch=0, number=None):
    loader.set_epoch(epoch)
    return list(itertools.islice(loader, number))


def numbers(batches):
    """Which pictures they are, by their captions."""
    return [int(caption.rpartition(" ")[2]) for batch in batches for caption in batch["caption"]]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x["image"], y["image"]) and torch.equal(x["label"], y["label"]) and x["caption"] == y["caption"]
        for x, y in zip(a, b, strict=True)
    )


def test_a_stream_gives_every_picture_once_an_epoch_where_numbers_match(root, shards):
    stream = loader(shards, batch_size=2)
    assert len(stream) == 13
    epochs = [batches(stream, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(numbers(epoch)) == list(range(26))
        assert all(batch["image"].shape == (2, 3, 10, 12) and batch["image"].dtype == torch.uint8 for batch in epoch)
        assert all(batch["label"].tolist() == [number % 2 for number in numbers([batch])] for batch in epoch)
    assert len({tuple(numbers(epoch)) for epoch in epochs}) == 3
    assert same(batches(stream, 1), epochs[1])
    assert same(batches(loader(shards, batch_size=2), 1), epochs[1])
    assert not same(batches(loader(shards, batch_size=2, seed=1), 1), epochs[1])


def test_pictures_of_a_stream_are_those_of_the_folder(root, shards):
    options = {"image_size": (10, 12), "batch_size": 2, "num_workers": 0}
    folder = ImageFolder(root, labels=True, **options).train_set()
    paths = [path.stem for path in pictures(root, "train")]
    stream = loader(shards, **options | {"crop": "center", "flip": False})
    for batch in batches(stream):
        for image, number in zip(batch["image"], numbers([batch]), strict=True):
            place = paths.index(f"{number:03}")
            assert torch.equal(image, folder[Draw(0, 0, place)]["image"])


def test_the_order_is_random_within_a_buffer_alone(root, shards):
    order = numbers(batches(loader(shards, batch_size=2, buffer=1)))
    names = [int(path.stem) for path in pictures(root, "train")]
    parts = [names[6 * i : 6 * i + 6] if i < 3 else names[18:] for i in range(4)]
    assert any(order == [n for part in mixed for n in part] for mixed in itertools.permutations(parts))
    mixed = numbers(batches(loader(shards, batch_size=2, buffer=100)))
    assert mixed != order
    starts = [sorted(map(mixed.index, part)) for part in parts]
    assert all(places == list(range(places[0], places[0] + len(places))) for places in starts)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_ranks_and_workers_share_the_shards_and_go_on_exactly(shards, world, workers):
    options = {"batch_size": 2, "num_workers": workers, "num_pictures": 24}
    loaders = [loader(shards, world, rank, **options) for rank in range(world)]
    whole = [batches(each, 1) for each in loaders]
    assert [len(each) for each in whole] == [12 // world] * world
    shown = [numbers(each) for each in whole]
    assert all(len(set(each)) == len(each) for each in shown) or world * max(1, workers) > 2
    assert not set(shown[0]).intersection(*shown[1:]) or world == 1
    for stop in (3, 4) if workers else (1, 2, 3, 5):
        for rank in range(world):
            first = loader(shards, world, rank, **options)
            first.set_epoch(1)
            begun = iter(first)
            before = [next(begun) for _ in range(stop)]
            state = first.state_dict()
            state["places"] = state["places"] * world
            second = loader(shards, world, rank, **options)
            second.load_state_dict(state)
            second.set_epoch(1)
            assert same(before + list(second), whole[rank])
            second.set_epoch(2)
            assert same(list(second), batches(loaders[rank], 2))


def test_going_on_reads_none_of_the_shards_before(shards, monkeypatch):
    first = loader(shards, batch_size=2)
    begun = iter(first)
    for _ in range(10):
        next(begun)
    state = first.state_dict()
    assert state["places"][0][0][1] > 0
    opened = []
    second = loader(shards, batch_size=2)
    samples = type(second.stream).samples
    monkeypatch.setattr(
        type(second.stream), "samples", lambda self, shard: opened.append(shard) or samples(self, shard)
    )
    second.load_state_dict(state)
    list(second)
    assert len(opened) == 4 - state["places"][0][0][1]


def test_with_other_workers_the_epoch_begins_with_its_shards_again(shards):
    first = loader(shards, batch_size=2)
    begun = iter(first)
    for _ in range(3):
        next(begun)
    second = loader(shards, batch_size=2, num_workers=2)
    with pytest.warns(UserWarning, match=r"read by 1 x 1 processes x workers, and is now by 1 x 2\. So the rest"):
        second.load_state_dict(first.state_dict())
    assert len(list(second)) == 10


def test_an_epoch_that_ended_is_followed_by_the_next(shards):
    first = loader(shards, batch_size=2)
    list(first)
    second = loader(shards, batch_size=2)
    second.load_state_dict(first.state_dict())
    assert list(second) == []
    second.load_state_dict(first.state_dict())
    assert same(batches(second, 1), batches(first, 1))


def test_more_pictures_than_there_are_begin_another_lap(shards):
    shown = numbers(batches(loader(shards, batch_size=2, num_pictures=60)))
    assert len(shown) == 60
    assert sorted(shown[:26]) == sorted(shown[26:52]) == list(range(26))
    assert shown[:26] != shown[26:52]


@pytest.mark.parametrize(("devices", "workers"), [(1, 2), (2, 0)])
def test_runs_go_on_in_the_middle_of_an_epoch(shards, tmp_path, fresh_process, devices, workers):
    def run(name, **options):
        make = partial(of, shards, num_workers=workers)
        return fresh_process(lambda: seen(make, tmp_path / name, devices=devices, **options))

    whole = run("a")
    assert [len(text.splitlines()) for text in whole] == ([16] if devices == 1 else [8, 8])
    assert run("b", stop=2) == whole


def test_validation_pictures_of_a_stream_are_numbered(shards):
    data, plain = of(shards), of(shards, stream=False)
    assert fingerprint(data.val_set()) == fingerprint(plain.val_set())
    assert data.class_names == list(CLASSES)
    assert data.num_classes == 2
    assert len(data.val_dataloader()) == len(data.test_dataloader()) == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"num_pictures": None},
            r"how many pictures a stream has is not known .*: num_pictures \(at least 1\), got No",
        ),
        ({"val_urls": None}, "a stream cannot be split. Name shards to evaluate with: val_urls or test_urls"),
        ({"classes": None}, "which classes a stream has is not known beforehand. Say it: classes"),
        ({"growing": Growing((5, 10))}, "growing needs numbered pictures, which a stream has not"),
        ({"cache": True}, "cache needs numbered pictures, which a stream has not"),
        ({"buffer": 0}, "buffer must be at least 1, got 0"),
    ],
)
def test_what_a_stream_must_be_told_is_asked_for(shards, settings, told):
    with pytest.raises(ValueError, match=told):
        of(shards, **settings)


def test_what_needs_numbers_is_refused(shards):
    data = of(shards)
    with pytest.raises(
        ValueError, match=r"train-000\.tar and 3 more: the training pictures are a stream and have no num"
    ):
        data.train_set()
    with pytest.raises(ValueError, match=r"captions of a stream are not known .* ByteTokenizer"):
        data.captions()
    with pytest.raises(ValueError, match=r"4 shards are too few .* in 5 processes"):
        loader(shards, world=5)
    with pytest.raises(ValueError, match=r"num_pictures=3 do not fill one batch of 4 in 1 process"):
        loader(shards, num_pictures=3)
    running = trainer(overfit_batches=2)
    data.trainer = running
    with pytest.raises(ValueError, match="overfit_batches was asked for, of a stream"):
        data.train_dataloader()


@pytest.mark.parametrize(("where", "workers"), [("in a file", 0), ("in a header", 2)])
def test_a_stream_that_ends_early_is_told(shards, where, workers):
    path = shards / "train-001.tar"
    content = path.read_bytes()
    path.write_bytes(content[: {"in a file": 1024 * 3 + 100, "in a header": 1024 * 4 + 200}[where]])
    with pytest.raises(ImageError, match=rf"{path} cannot be read to its end: .*cut short, or not there"):
        batches(loader(shards, num_workers=workers, num_pictures=52))
    stream = loader(shards, skip_broken=True, batch_size=2)
    with pytest.warns(UserWarning, match=rf"{path} cannot be read to its end.* The pictures before are used"):
        assert len(batches(stream)) == 13


def test_broken_pictures_of_a_stream_are_told_with_shard_and_name(root, shards):
    files = files_of(root, "train", 0, 6)
    (place,) = (i for i, (name, _) in enumerate(files) if name == "cat/004.jpg")
    path = shards / "train-000.tar"
    write(path, [*files[:place], (files[place][0], b"<html>"), *files[place + 1 :]])
    with pytest.raises(ImageError, match=rf"{path}: cat/004\.jpg cannot be used: no picture by its first bytes"):
        batches(loader(shards, batch_size=2))
    with pytest.warns(
        UserWarning, match=rf"{path}: 1 pictures are left out \(cat/004: no picture by its first bytes\)"
    ):
        shown = numbers(batches(loader(shards, batch_size=2, num_pictures=25, skip_broken=True)))
    assert 4 not in shown
    write(path, [*files[:place], (files[place][0], files[place][1][:300]), *files[place + 1 :]])
    with pytest.raises(ImageError, match=rf"{path}: cat/004\.jpg cannot be read as a picture"):
        batches(loader(shards, batch_size=2))
    write(path, [file for file in files if file[0] != "cat/004.json"])
    with pytest.raises(ImageError, match=rf"{path}: cat/004\.jpg cannot be used: no label"):
        batches(loader(shards, batch_size=2))
    with pytest.raises(ValueError, match=r"holds 'dog', which is none of the 2 classes: 0 to 1 or cat, cow"):
        batches(loader(shards, batch_size=2, classes=["cat", "cow"]))


def test_where_nothing_can_be_used_it_does_not_go_on_for_ever(shards):
    for file in shards.glob("train-*"):
        write(file, [("a.json", b"{}")])
    with pytest.raises(ImageError, match=r"there is no picture that can be used"):
        batches(loader(shards))


def test_compressed_shards_can_be_streamed(root, shards):
    for file in sorted(shards.glob("train-*.tar")):
        with tarfile.open(f"{file}.gz", "w:gz") as packed, tarfile.open(file) as plain:
            for member in plain:
                packed.addfile(member, plain.extractfile(member))
    assert same(batches(loader(shards, urls="train-*.tar.gz")), batches(loader(shards)))


def test_shards_with_an_address_are_streamed_and_those_to_evaluate_with_copied(shards):
    remote = WebDatasetImages(
        f"file:{shards}/train-{{000..003}}.tar",
        val_urls=f"file:{shards}/val-000.tar",
        num_pictures=26,
        **KEYS,
        **OPTIONS,
    )
    assert remote.stream
    assert same(batches(remote.train_dataloader()), batches(loader(shards)))
    plain = of(shards, stream=False).val_set()
    assert all(torch.equal(remote.val_set()[Draw(0, i, i)]["image"], plain[Draw(0, i, i)]["image"]) for i in range(5))
    (shards / "val-000.tar").unlink()
    assert local_copy(f"file:{shards}/val-000.tar").is_file()
    with pytest.raises(OSError, match=r"none\.tar cannot be read"):
        local_copy(f"file:{shards}/none.tar")


def test_shards_run_no_program_unless_that_is_allowed(shards, tmp_path, monkeypatch):
    program = f"pipe:touch {tmp_path}/ran; cat {shards}/train-000.tar"
    train, val = f"{shards}/train-000.tar", f"{shards}/val-000.tar"
    for urls in ({"urls": program, "val_urls": val}, {"urls": train, "val_urls": [program]}):
        with pytest.raises(ValueError, match=r"pipe:touch .* would run a program in a shell. .* LIGHTNING_GEN_PIPES=1"):
            WebDatasetImages(**urls, **KEYS, **OPTIONS)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("LIGHTNING_GEN_PIPES", "1")
    allowed = WebDatasetImages(program, val_urls=val, num_pictures=4, **KEYS, **OPTIONS)
    assert batches(allowed.train_dataloader())
    assert (tmp_path / "ran").exists()


def test_without_the_library_the_extra_is_named(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-gen\[shards\]'"):
        batches(loader(shards))


def test_order_and_crops_within_a_shard_are_others_in_each_epoch_and_lap(shards):
    stream = loader(shards, urls="train-003.tar", batch_size=1, num_pictures=16)
    passes = [part for epoch in range(2) for whole in [batches(stream, epoch)] for part in (whole[:8], whole[8:])]
    orders = [tuple(numbers(part)) for part in passes]
    assert len(set(orders)) == 4
    assert len({frozenset(order) for order in orders}) == 1
    for a, b in itertools.combinations(passes, 2):
        shown = [dict(zip(numbers(part), (batch["image"] for batch in part), strict=True)) for part in (a, b)]
        assert any(not torch.equal(shown[0][number], shown[1][number]) for number in shown[0])
