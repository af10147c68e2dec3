import dataclasses
import os
import random
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

import lightning_gen.data.datasets
from lightning_gen.data import (
    Digits,
    Draw,
    GridOfGaussians,
    ImageDataModule,
    ImageFolder,
    PairedImageFolder,
    PairedScenes,
    RingOfGaussians,
    Scenes,
    SwissRoll,
    UnpairedImageFolder,
    UnpairedScenes,
)
from lightning_gen.data.base import examples_of, in_order
from lightning_gen.data.datasets import InMemoryDataModule
from lightning_gen.data.fingerprint import PROBES, digest, fingerprint
from lightning_gen.data.listing import Files

NUM = 150  # more than PROBES
IMAGES = torch.rand(NUM, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(NUM) % 10


def write_pictures(folder, number, seed=0):
    """Files without compression, all of one size and one time."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for i in range(number):
        path = folder / f"{i:03}.bmp"
        Image.fromarray(generator.integers(0, 256, (10, 20, 3), np.uint8)).save(path)
        os.utime(path, ns=(10**18, 10**18))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder in which all three modules for folders find what they need."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(
        ("train/cats", "train/dogs", "val/cats", "val/dogs", "trainA", "trainB", "valA", "valB")
    ):
        write_pictures(root / name, 4, seed)
    return root


class Noise(InMemoryDataModule):
    native_shape = (1, 4, 4)

    def load(self, split):
        return (IMAGES + 1) / 2, LABELS


class OwnDraws(Dataset):
    """A dataset of draws that a user wrote."""

    def __len__(self):
        return 13

    def __getitem__(self, draw):
        return {"image": IMAGES[draw.index], "random": torch.tensor(draw.rng(3).random())}


class Own(ImageDataModule):
    image_shape = (1, 4, 4)

    def train_set(self):
        return OwnDraws()

    val_set = test_set = train_set


PLAIN = {"num_workers": 0, "batch_size": 3}
SCENES = {"image_size": 16, "num_train": 11, "num_val": 5, "num_test": 5, **PLAIN}
POINTS = {"num_train": 70, "num_val": 9, "num_test": 9, **PLAIN}
MODULES = {
    "digits": lambda root: Digits(**PLAIN),
    "flipped": lambda root: Noise(flip=True, image_size=6, pad=1, **PLAIN),
    "scenes": lambda root: Scenes(**SCENES),
    "unpaired scenes": lambda root: UnpairedScenes(**SCENES),
    "paired scenes": lambda root: PairedScenes(**SCENES),
    "points": lambda root: SwissRoll(**POINTS),
    "labelled points": lambda root: RingOfGaussians(labelled=True, **POINTS),
    "folder": lambda root: ImageFolder(root, image_size=8, crop="random", flip=True, labels=True, **PLAIN),
    "flipped folder": lambda root: ImageFolder(root, image_size=8, flip=True, **PLAIN),
    "cropped folder": lambda root: ImageFolder(root, image_size=8, crop="random", **PLAIN),
    "pairs": lambda root: PairedImageFolder(root, resize=9, crop=8, **PLAIN),
    "unpaired": lambda root: UnpairedImageFolder(root, resize=9, crop=8, **PLAIN),
    "own": lambda root: Own(**PLAIN),
}


@pytest.fixture(params=MODULES)
def module(request, pictures):
    return MODULES[request.param](pictures)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- in order ---------------------------------------------------------------------------------------------------------


def check_global_batches(data, examples, batch_size, world, collate=default_collate):
    """The batches of all ranks together are the examples cut in order, each from the rank whose turn it is."""
    expected = [collate(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]
    numbers = []
    for rank in range(world):
        given = list(in_order(data, batch_size, num_replicas=world, rank=rank))
        assert [number for number, _ in given] == list(range(rank, len(expected), world))
        assert all(same(batch, expected[number]) for number, batch in given)
        numbers += [number for number, _ in given]
    assert sorted(numbers) == list(range(len(expected)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_example_of_a_module_comes_once_in_the_global_batch_where_it_belongs(module, world):
    for loader, dataset in (
        (module.train_dataloader(), module.train_set()),
        (module.val_dataloader(), module.val_set()),
    ):
        examples = [dataset[Draw(0, i, i)] for i in range(len(dataset))]
        check_global_batches(loader, examples, 4, world)


def test_a_bare_dataset_of_this_library_is_taken_as_its_loader(pictures):
    module = MODULES["folder"](pictures)
    dataset = module.train_set()
    check_global_batches(dataset, [dataset[Draw(0, i, i)] for i in range(len(dataset))], 3, 2)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("total", [1, 4, 7, 24])
def test_a_loader_that_shuffles_and_drops_gives_every_example_once(total, world):
    dataset = TensorDataset(IMAGES[:total], LABELS[:total])
    examples = list(zip(IMAGES[:total], LABELS[:total], strict=True))
    loader = DataLoader(dataset, batch_size=3, shuffle=True, drop_last=True)
    check_global_batches(loader, examples, 4, world)
    sharded = DataLoader(dataset, batch_size=3, sampler=DistributedSampler(dataset, 2, 1), drop_last=True)
    check_global_batches(sharded, examples, 4, world)
    check_global_batches(dataset, examples, 4, world)


def test_a_sampler_of_a_part_is_respected_also_as_lightning_wraps_it():
    dataset = TensorDataset(IMAGES, LABELS)
    part = [5, 140, 3, 77]
    examples = [dataset[i] for i in sorted(part)]
    sampler = SubsetRandomSampler(part)
    for loader in (
        DataLoader(dataset, batch_size=2, sampler=sampler),
        DataLoader(dataset, batch_sampler=BatchSampler(sampler, 3, drop_last=True)),
        DataLoader(dataset, batch_size=2, sampler=DistributedSamplerWrapper(sampler, num_replicas=2, rank=1)),
    ):
        check_global_batches(loader, examples, 3, 2)
        assert len(examples_of(loader)) == 4
        assert fingerprint(loader) == fingerprint(TensorDataset(IMAGES[sorted(part)], LABELS[sorted(part)]))


def double(items):
    return {"image": 2 * torch.stack([image for image, _ in items])}


@pytest.mark.parametrize("workers", [0, 2])
def test_collation_and_workers_are_those_of_the_loader(workers):
    loader = DataLoader(
        TensorDataset(IMAGES, LABELS), batch_size=7, shuffle=True, collate_fn=double, num_workers=workers
    )
    examples = list(zip(IMAGES, LABELS, strict=True))
    check_global_batches(loader, examples, 16, 2, collate=double)


class Pids(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor(os.getpid())


def test_there_are_as_many_workers_as_the_loader_has():
    def processes(workers):
        return {int(batch) for _, batch in in_order(DataLoader(Pids(), num_workers=workers), 1)}

    assert processes(0) == {os.getpid()}
    assert len(processes(2) - {os.getpid()}) == 2


class Counts(Dataset):
    read = 0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.read += 1
        return torch.tensor(index)


def test_nothing_is_read_before_the_first_batch_is_asked_for():
    dataset = Counts()
    batches = in_order(dataset, 2)
    assert dataset.read == 0
    next(batches)
    assert dataset.read == 2


def test_reading_in_order_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(in_order(DataLoader(TensorDataset(IMAGES), shuffle=True), 10))
    assert torch.equal(torch.rand(3), expected)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(IMAGES)


class LongStream(Stream):
    def __len__(self):
        return NUM


class Endless(Dataset):
    def __getitem__(self, index):
        return IMAGES[index % NUM]


@pytest.mark.parametrize("data", [DataLoader(Stream()), LongStream(), Endless(), list(IMAGES)])
def test_pictures_without_number_or_length_are_refused(data):
    for take in (partial(in_order, batch_size=2), fingerprint, examples_of):
        with pytest.raises(TypeError, match=r"numbered examples.*; got (Stream|LongStream|Endless|list)\."):
            take(data)


def test_pictures_that_are_a_tensor_are_to_be_made_a_dataset():
    with pytest.raises(TypeError, match=r"over a tensor. Make a dataset of it: DataLoader\(TensorDataset\(images\)"):
        examples_of(DataLoader(IMAGES))


def test_what_cannot_be_cut_into_batches_is_refused():
    dataset = TensorDataset(IMAGES)
    with pytest.raises(ValueError, match="batch_size=None, which does not make batches"):
        in_order(DataLoader(dataset, batch_size=None), 2)
    with pytest.raises(ValueError, match=r"\(TensorDataset\) is empty"):
        in_order(TensorDataset(IMAGES[:0]), 2)
    for wrong in ({"batch_size": 0}, {"batch_size": 1, "rank": 1}, {"batch_size": 1, "rank": -1, "num_replicas": 2}):
        with pytest.raises(ValueError, match="batch_size of at least 1 and a rank below num_replicas"):
            in_order(dataset, **wrong)


# -- fingerprints -----------------------------------------------------------------------------------------------------


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, torch.Tensor):
        other = value.clone()
        other.view(torch.uint8).flatten()[-1] ^= 1
        return other
    if isinstance(value, np.ndarray):
        other = value.copy()
        other.reshape(-1).view(np.uint8)[-1] ^= 1
        return other
    if isinstance(value, Files):
        value = list(value)
    if isinstance(value, list | tuple):
        return type(value)([*value[:-1], changed(value[-1])])
    if isinstance(value, partial):
        return partial(value.func, **{**value.keywords, "channels": 7})
    if dataclasses.is_dataclass(value):
        name = dataclasses.fields(value)[-1].name
        return dataclasses.replace(value, **{name: changed(getattr(value, name))})
    if value is None:
        return 3
    return value.with_name(next(path.name for path in value.parent.iterdir() if path != value))  # of a path


DATACLASSES = [name for name in MODULES if "points" not in name and name != "own"]


@pytest.mark.parametrize("name", DATACLASSES)
def test_every_field_of_a_dataset_counts(name, pictures):
    dataset = MODULES[name](pictures).train_set()
    known = digest(dataset.recipe())
    assert digest(dataclasses.replace(dataset).recipe()) == known
    for field in dataclasses.fields(dataset):
        other = dataclasses.replace(dataset, **{field.name: changed(getattr(dataset, field.name))})
        ignored = (name == "digits" and field.name == "seed") or field.name == "captions"
        assert (digest(other.recipe()) == known) == ignored, field.name
        if field.name == "scenes":
            for column in dataclasses.fields(dataset.scenes):
                value = changed(getattr(dataset.scenes, column.name))
                other = dataclasses.replace(dataset, scenes=dataclasses.replace(dataset.scenes, **{column.name: value}))
                assert digest(other.recipe()) != known, column.name


def test_modules_that_show_other_pictures_have_other_fingerprints(pictures):
    make = [
        *MODULES.values(),
        lambda root: Digits(image_size=9, **PLAIN),
        lambda root: Digits(pad=1, **PLAIN),
        lambda root: Noise(**PLAIN),
        lambda root: Noise(flip=True, **PLAIN),
        lambda root: Scenes(**{**SCENES, "image_size": 17}),
        lambda root: Scenes(domain="night", **SCENES),
        lambda root: UnpairedScenes(domains=("day", "winter"), **SCENES),
        lambda root: SwissRoll(noise=0.3, **POINTS),
        lambda root: SwissRoll(**POINTS, seed=1),
        lambda root: GridOfGaussians(**POINTS),
        lambda root: ImageFolder(root, image_size=8, channels=1, **PLAIN),
        lambda root: ImageFolder(root, image_size=8, flip=True, **PLAIN, seed=1),
        lambda root: ImageFolder(root, image_size=8, **PLAIN),
        lambda root: PairedImageFolder(root, resize=9, crop=8, swap=True, **PLAIN),
    ]
    prints = [fingerprint(one(pictures).train_dataloader()) for one in make]
    assert len(set(prints)) == len(make)
    again = [fingerprint(one(pictures).train_dataloader()) for one in make]
    assert again == prints
    assert all(len(bytes.fromhex(one)) == 32 for one in prints)


def test_splits_have_other_fingerprints(pictures):
    for name in ("digits", "scenes", "points", "folder"):
        module = MODULES[name](pictures)
        prints = {fingerprint(data) for data in (module.train_set(), module.val_dataloader())}
        assert len(prints) == 2


def test_a_seed_counts_only_where_it_moves_pictures(pictures):
    def prints(make, **options):
        modules = [make(seed=seed, **options, **PLAIN) for seed in (0, 1)]
        return [
            tuple(fingerprint(m.train_dataloader()) for m in modules),
            tuple(fingerprint(m.val_set()) for m in modules),
        ]

    folder = partial(ImageFolder, pictures, image_size=8)
    for make, options, moves in (
        (Noise, {}, False),
        (Noise, {"flip": True}, True),
        (folder, {}, False),
        (folder, {"flip": True}, True),
        (folder, {"crop": "random"}, True),
        (partial(Scenes, 16, num_train=5), {}, False),
    ):
        train, val = prints(make, **options)
        assert (train[0] != train[1]) == moves
        assert val[0] == val[1]


def test_loader_dataset_and_prediction_agree(pictures):
    module = MODULES["folder"](pictures)
    module.setup("test")
    assert fingerprint(module.test_dataloader()) == fingerprint(module.test_set())
    assert fingerprint(module.predict_dataloader()) == fingerprint(module.test_set())


SCRIPT = """
from lightning_gen.data import Digits, ImageFolder, Scenes
from lightning_gen.data.fingerprint import fingerprint
sets = Digits().train_set(), Scenes(16, num_train=5).train_set(), ImageFolder({root!r}, image_size=8).train_set()
print(*[fingerprint(data) for data in sets])
"""


def test_another_process_finds_the_same(pictures):
    sets = Digits().train_set(), Scenes(16, num_train=5).train_set(), ImageFolder(pictures, image_size=8).train_set()
    expected = [fingerprint(data) for data in sets]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    script = SCRIPT.format(root=str(pictures))
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def of_folder(root):
    return fingerprint(ImageFolder(root, image_size=8, **PLAIN).train_set())


def test_a_folder_may_move_and_be_copied(tmp_path):
    for split in ("train/a", "train/b", "val/a"):
        write_pictures(tmp_path / "here" / split, 3)
    known = of_folder(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "copy")  # along with its times
    assert of_folder(tmp_path / "copy") == known
    (tmp_path / "far").mkdir()
    (tmp_path / "here").rename(tmp_path / "far" / "away")
    assert of_folder(tmp_path / "far" / "away") == known


def touch(folder):
    os.utime(folder / "003.bmp")


def append(folder):
    path = folder / "003.bmp"
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, ns=(10**18, 10**18))


def rename(folder):
    (folder / "003.bmp").rename(folder / "003b.bmp")


def remove(folder):
    (folder / "003.bmp").unlink()


def swap(folder):
    (folder / "003.bmp").rename(folder / "x.bmp")
    (folder / "004.bmp").rename(folder / "003.bmp")
    (folder / "x.bmp").rename(folder / "004.bmp")


def replace_all(folder):
    """Other pictures under the same names, of the same size and time."""
    shutil.rmtree(folder)
    write_pictures(folder, 100, seed=1)


@pytest.mark.parametrize("change", [touch, append, rename, remove, swap, replace_all])
def test_a_changed_folder_is_noticed(tmp_path, change):
    write_pictures(tmp_path / "train", 100)
    write_pictures(tmp_path / "val", 1)
    known = of_folder(tmp_path)
    if change is swap:  # of one time, such a swap would be seen only among the probes
        os.utime(tmp_path / "train" / "004.bmp")
        known = of_folder(tmp_path)
    assert of_folder(tmp_path) == known
    change(tmp_path / "train")
    assert of_folder(tmp_path) != known


def test_another_way_of_reading_or_drawing_is_noticed(monkeypatch, pictures):
    """The probes tell what no recipe says: the version of the code."""
    digits, scenes, points = (
        Digits(image_size=12).train_set,
        Scenes(16, num_train=5).train_set,
        SwissRoll(num_train=20).train_set,
    )
    known = [fingerprint(make()) for make in (digits, scenes, points)]
    monkeypatch.setattr(
        lightning_gen.data.datasets,
        "resize_image",
        lambda pixels, size: torch.nn.functional.interpolate(pixels[None], size, mode="nearest")[0],
    )
    render = lightning_gen.data.scenes.render
    monkeypatch.setattr(lightning_gen.data.scenes, "render", lambda *args: render(*args).clamp(max=250))
    monkeypatch.setattr(lightning_gen.data.toy.Spiral, "end", 12.0)
    new = [fingerprint(make()) for make in (digits, scenes, points)]
    assert all(a != b for a, b in zip(known, new, strict=True))


def test_one_pixel_far_from_the_probes_is_noticed():
    probed = {i * NUM // PROBES for i in range(PROBES)}
    place = next(i for i in range(NUM) if i not in probed)
    dataset = Noise().train_set()
    known = fingerprint(dataset)
    images = dataset.images.clone()
    images[place, 0, 2, 1] += 1e-7
    assert fingerprint(dataclasses.replace(dataset, images=images)) != known


def test_any_other_dataset_is_known_by_its_content():
    def dataset(images=IMAGES, labels=LABELS):
        return TensorDataset(images, labels)

    known = fingerprint(dataset())
    assert fingerprint(dataset(IMAGES.clone())) == known
    loaders = (
        DataLoader(dataset(), batch_size=7, shuffle=True, drop_last=True),
        DataLoader(dataset(), batch_size=100, num_workers=2),
    )
    assert [fingerprint(loader) for loader in loaders] == [known, known]

    for place in (0, 1, 63, 64, 65, NUM - 1):
        images = IMAGES.clone()
        images[place, 0, 3, 3] += 1e-6
        assert fingerprint(dataset(images)) != known
    others = (
        dataset(IMAGES.flip(0)),
        dataset(IMAGES[:-1], LABELS[:-1]),
        dataset(IMAGES.double()),
        dataset(IMAGES, 1 - LABELS),
    )
    assert len({known, *map(fingerprint, others)}) == 5

    def first(batch):
        return batch[0]

    assert fingerprint(dataset(), first) == fingerprint(dataset(labels=1 - LABELS), first)
    assert fingerprint(dataset(), first) != fingerprint(dataset(IMAGES.flip(0)), first)


def negative(items):
    batch = default_collate(items)
    return {**batch, "image": -batch["image"]}


def test_collation_of_ones_own_counts():
    dataset = Own().train_dataloader().dataset
    assert isinstance(dataset, OwnDraws)
    module = Noise(**PLAIN)
    plain, own = module.train_dataloader(), module.train_dataloader()
    own.collate_fn = negative
    assert fingerprint(own) != fingerprint(plain)


class Careless(Dataset):
    """Draws from every global random state."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])  # noqa: NPY002


def test_the_global_random_states_stay_as_they_were():
    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002

    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    expected = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    fingerprint(Careless())
    fingerprint(DataLoader(Careless(), shuffle=True))
    assert draw() == expected


class Million(Dataset):
    """Says what it is; reading all of it would take long."""

    def __init__(self, recipe):
        self.own, self.read = recipe, 0

    def recipe(self):
        return self.own

    def __len__(self):
        return 1_000_000

    def __getitem__(self, index):
        self.read += 1
        return IMAGES[index % NUM]


def test_a_dataset_of_ones_own_may_say_what_it_is():
    dataset = Million({"source": "elsewhere", "version": 1})
    known = fingerprint(DataLoader(dataset))
    assert dataset.read == PROBES
    assert fingerprint(Million({"version": 1, "source": "elsewhere"})) == known
    assert fingerprint(Million({"source": "elsewhere", "version": 2})) != known
    with pytest.raises(TypeError, match="not of <object object"):
        fingerprint(Million({"source": object()}))


def test_digests_tell_values_of_all_kinds_apart():
    @dataclasses.dataclass
    class A:
        x: int

    B = dataclasses.make_dataclass("B", ["x"])
    values = [
        *(None, True, False, 0, 1, 1.0, "1", "", [], [[]], [1], [1, 2], [[1], 2], {}, {"a": 1}, {"b": 1}, {"a": [1]}),
        *(A(1), A(2), B(1), os.path.join, partial(os.path.join, "a"), partial(os.path.join, b="a")),
        *(torch.tensor(values) for values in (1, 1.0, True, [1], [[1]], [1, 1], [[1, 1]], [[1], [1]], [])),
        *(torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.int32, torch.bfloat16, torch.float16)),
        *(np.array(values) for values in (1, 1.0, True, [1], [[1]], ["a", "b"], ["ab"], "2020")),
        *(np.array(1, dtype=dtype) for dtype in (">i8", "i4", "M8[s]")),
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest(np.float32(0.5)) == digest(0.5)
    assert digest(np.arange(6).reshape(2, 3).T) == digest(np.arange(6).reshape(2, 3).T.copy())
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.arange(6).view(2, 3).T.contiguous())
    for value in (object(), {1: 2}, {1, 2}, lambda: 0, np.array([object()])):
        with pytest.raises(TypeError, match="A fingerprint can be of numbers"):
            digest([value])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        digest([tmp_path / "gone.png"])
