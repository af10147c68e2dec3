from typing import NamedTuple

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import Dataset, SequentialSampler

import lightning_gen.data
from lightning_gen.data import Codes, HuggingFaceImages, Scenes, WebDatasetImages
from lightning_gen.data.base import Draw, DrawSampler, ImageDataModule, ResumableLoader
from lightning_gen.data.toy import PointDataModule


class Numbers(Dataset):
    """Items are their draws, and a number that the draw's generator gives."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor]:
        return {"draw": torch.tensor(draw), "random": torch.tensor(draw.rng(5).random())}


class Module(ImageDataModule):
    image_shape = (1, 2, 2)

    def __init__(self, length: int = 10, **options) -> None:
        super().__init__(**options)
        self.length = length
        self.built: list[str] = []

    def train_set(self):
        self.built.append("train")
        return Numbers(self.length)

    def val_set(self):
        self.built.append("val")
        return Numbers(self.length)

    def test_set(self):
        self.built.append("test")
        return Numbers(self.length)


class FakeTrainer(NamedTuple):
    world_size: int
    global_rank: int
    overfit_batches: float = 0.0


def draws(batches) -> list[Draw]:
    return [Draw(*row) for batch in batches for row in batch["draw"].tolist()]


def samplers(total: int, world: int, **options) -> list[DrawSampler]:
    options = {"shuffle": True, "seed": 3, **options}
    return [DrawSampler(Numbers(total), num_replicas=world, rank=rank, **options) for rank in range(world)]


def test_the_generator_of_a_draw_depends_on_seed_epoch_and_position_alone():
    def number(draw: Draw, seed: int = 0) -> float:
        return draw.rng(seed).random()

    assert number(Draw(1, 2, 3)) == number(Draw(1, 2, 4))
    others = {number(Draw(1, 2, 3)), number(Draw(2, 1, 3)), number(Draw(1, 3, 3)), number(Draw(1, 2, 3), seed=1)}
    assert len(others) == 4


@pytest.mark.parametrize("total", [1, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_cover_every_position_exactly_once(total, world, shuffle):
    parts = samplers(total, world, shuffle=shuffle, even=False)
    given = [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(part) for part in given]
    everything = sorted((draw for part in given for draw in part), key=lambda draw: draw.position)
    assert [draw.position for draw in everything] == list(range(total))
    assert sorted(draw.index for draw in everything) == list(range(total))
    if not shuffle:
        assert all(draw.index == draw.position for draw in everything)


@pytest.mark.parametrize("total", [5, 7, 12])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_even_ranks_have_one_length_and_leave_less_than_one_round(total, world):
    given = [list(part) for part in samplers(total, world, even=True)]
    assert {len(part) for part in given} == {total // world}
    assert all(len(part) == len(sampler) for part, sampler in zip(given, samplers(total, world), strict=True))
    positions = {draw.position for part in given for draw in part}
    assert positions == set(range(total - total % world))


def test_two_ranks_with_batch_b_see_what_one_rank_sees_with_batch_2b():
    (alone,) = samplers(22, 1)
    pair = samplers(22, 2)
    for epoch in (0, 1):
        for sampler in (alone, *pair):
            sampler.set_epoch(epoch)
        one = list(ResumableLoader(Numbers(22), batch_size=6, sampler=alone, drop_last=True))
        two = [ResumableLoader(Numbers(22), batch_size=3, sampler=sampler, drop_last=True) for sampler in pair]
        steps = list(zip(*two, strict=True))
        assert len(one) == len(steps) == 3
        for big, halves in zip(one, steps, strict=True):
            assert sorted(draws([big])) == sorted(draws(halves))


def test_the_order_depends_on_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        (sampler,) = samplers(50, 1, seed=seed)
        sampler.set_epoch(epoch)
        return [draw.index for draw in sampler]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0)


def test_evaluation_draws_the_same_in_every_epoch():
    (sampler,) = samplers(5, 1, shuffle=False, even=False)
    first = list(sampler)
    sampler.set_epoch(4)
    assert list(sampler) == first
    assert {draw.epoch for draw in first} == {0}


def train_loader(workers: int) -> ResumableLoader:
    return Module(length=11, batch_size=2, num_workers=workers, seed=1).train_dataloader()


def epochs(loader: ResumableLoader, *numbers: int) -> list:
    batches = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        batches += list(loader)
    return batches


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_mid_epoch_equals_never_having_stopped(workers):
    uninterrupted = epochs(train_loader(0), 0, 1, 2)
    assert len(uninterrupted) == 15

    stopped = train_loader(workers)
    stopped.sampler.set_epoch(0)
    seen = list(stopped)
    stopped.sampler.set_epoch(1)
    batches = iter(stopped)
    seen += [next(batches) for _ in range(3)]
    state = stopped.state_dict()
    assert state == {"epoch": 1, "examples": 6, "images": 10}

    resumed = train_loader(workers)
    resumed.load_state_dict(state)
    seen += list(resumed)  # the rest of epoch 1
    seen += epochs(resumed, 2)  # and a whole one
    assert same(seen, uninterrupted)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_at_the_end_of_an_epoch_starts_the_next(workers):
    stopped = train_loader(workers)
    first = list(stopped)
    resumed = train_loader(workers)
    resumed.load_state_dict(stopped.state_dict())
    # Lightning knows that the epoch was over, and sets the next.
    assert same(first + epochs(resumed, 1, 2), epochs(train_loader(0), 0, 1, 2))


def test_a_resumed_epoch_can_be_stopped_again():
    whole = epochs(train_loader(0), 0)
    state = {"epoch": 0, "examples": 0}
    seen = []
    for _ in range(5):
        loader = train_loader(0)
        loader.load_state_dict(state)
        seen.append(next(iter(loader)))
        state = loader.state_dict()
    assert same(seen, whole)


@pytest.mark.parametrize("before", [(1, 3), (2, 2), (3, 1)])
@pytest.mark.parametrize("after", [(1, 2), (2, 3), (3, 1), (5, 1)])
def test_the_place_in_an_epoch_is_kept_as_examples_over_all_ranks(before, after):
    """Whatever the number of processes and the batch size are before and after: no example twice, none left out."""

    def loaders(world, batch_size):
        return [ResumableLoader(Numbers(23), batch_size, sampler=s, drop_last=True) for s in samplers(23, world)]

    seen, states = [], []
    for loader in loaders(*before):
        batches = iter(loader)
        seen += draws([next(batches), next(batches)])
        states.append(loader.state_dict())
    used = 2 * before[0] * before[1]
    assert states == [{"epoch": 0, "examples": used, "images": 0}] * before[0]
    rest = []
    for loader in loaders(*after):
        loader.load_state_dict(states[0])
        rest.append(list(loader))
    assert len({len(part) for part in rest}) == 1, "ranks have equally many batches"
    seen += [draw for part in rest for draw in draws(part)]
    (whole,) = samplers(23, 1)
    step = after[0] * after[1]
    assert sorted(seen, key=lambda draw: draw.position) == list(whole)[: used + (23 - used) // step * step]


def test_a_checkpoint_of_an_earlier_version_counts_batches():
    loader = train_loader(0)
    loader.load_state_dict({"epoch": 0, "batches": 3})
    assert [draw.position for draw in draws(loader)] == [6, 7, 8, 9]


def test_overfitting_sees_the_same_examples_in_every_epoch():
    module = Module(length=11, batch_size=2, num_workers=0, seed=1)
    module.trainer = FakeTrainer(2, 1, overfit_batches=2)
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, SequentialSampler), "or Lightning puts one of its own in place"
    first = epochs(loader, 0)
    assert draws(first) == [Draw(0, i, i) for i in (1, 3, 5, 7)]
    assert same(epochs(loader, 3), first)
    loader.load_state_dict({"epoch": 4, "examples": 4})
    assert same(list(loader), first[1:])


def test_batches_that_were_used_are_not_loaded_again(monkeypatch):
    loader = train_loader(0)
    loader.load_state_dict({"epoch": 0, "examples": 8})
    loaded = []
    get = Numbers.__getitem__
    monkeypatch.setattr(Numbers, "__getitem__", lambda self, draw: (loaded.append(draw.position), get(self, draw))[1])
    list(loader)
    assert loaded == [8, 9]


def test_an_iterator_does_not_move_the_random_state():
    loader = train_loader(0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_a_module_splits_by_rank_and_evaluates_each_example_once():
    seen: list[Draw] = []
    for rank in range(3):
        module = Module(batch_size=2, num_workers=0)
        module.trainer = FakeTrainer(world_size=3, global_rank=rank)
        assert len(draws(module.train_dataloader())) == 2  # 3 per rank, in whole batches
        seen += draws(module.val_dataloader())
    assert sorted(draw.index for draw in seen) == list(range(10))


def test_a_module_builds_each_set_once_and_only_when_asked():
    module = Module(batch_size=2, eval_batch_size=5, num_workers=0)
    assert module.built == []
    module.train_dataloader()
    module.train_dataloader()
    assert [len(batch["draw"]) for batch in module.predict_dataloader()] == [5, 5]
    assert module.built == ["train", "test"]


def test_options_that_cannot_work_are_refused():
    for name in ("batch_size", "eval_batch_size"):
        with pytest.raises(ValueError, match=rf"^{name} must be at least 1, got 0"):
            Module(**{name: 0})
    with pytest.raises(ValueError, match=r"num_workers must be 0 or more .* got -1"):
        Module(num_workers=-1)
    with pytest.raises(ValueError, match=r"10 training examples per process do not fill one batch of 11"):
        Module(batch_size=11, num_workers=0).train_dataloader()


MODULES = [
    thing
    for thing in vars(lightning_gen.data).values()
    if isinstance(thing, type) and issubclass(thing, ImageDataModule) and thing is not ImageDataModule
]


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_the_command_line_knows_what_is_handed_on_to_the_loaders(cls, capsys):
    """Constructors hand it on as `**loader`, whose names, types, defaults and help stand in the base."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "data", skip={"root", "data", "path", "urls"})
    settings = parser.parse_args(["--data.num_workers=2", "--data.eval_batch_size=null"]).data
    assert (settings.num_workers, settings.eval_batch_size, settings.seed) == (2, None, 0)
    unpaired = cls.__name__.startswith(("Unpaired", "Paired"))  # whose papers take one example at a time
    assert settings.batch_size == (1 if unpaired else 256 if issubclass(cls, PointDataModule) else 64)
    assert "Loader processes" in parser.format_help()
    for wrong in ("--data.batch_sise=2", "--data.batch_size=two"):
        with pytest.raises(SystemExit):
            parser.parse_args([wrong])
        assert "batch_si" in capsys.readouterr().err
    takes_a_place = "Folder" in cls.__name__ or cls in (HuggingFaceImages, WebDatasetImages)
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch_sise'"):
        cls(*(["."] if takes_a_place else [Scenes()] if cls is Codes else []), batch_sise=2)
