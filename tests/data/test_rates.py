"""Rates of loading and of training. Nothing here is faster than it can be, however busy the machine is."""

import os
import time

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_gen.data import rates
from lightning_gen.data.base import ImageDataModule, examples_of
from lightning_gen.data.rates import feeding, loading_rate, numbers_of_workers, rates_together, training_rate
from tests.shared import trainer


class Slow(Dataset):
    """Each picture takes a while, and is counted."""

    def __init__(self, seconds):
        self.seconds, self.loaded = seconds, 0

    def __len__(self):
        return 8

    def __getitem__(self, draw):
        time.sleep(self.seconds)
        self.loaded += 1
        return {"image": torch.zeros(1, 2, 2)}


class Data(ImageDataModule):
    image_shape = (1, 2, 2)

    def __init__(self, seconds, **loader):
        super().__init__(**loader)
        self.slow = Slow(seconds)

    def dataset(self, split):
        return self.slow


class Model(pl.LightningModule):
    """Each step takes a while."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.steps, self.layer = seconds, 0, torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        torch.rand(3)
        self.steps += 1
        return self.layer(batch["image"].flatten()[:, None]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [0, 1]), (2, [0, 2]), (3, [0, 2, 3]), (4, [0, 2, 4]), (6, [0, 2, 4, 6]), (16, [0, 2, 4, 8, 16])],
)
def test_numbers_of_workers_go_up_to_the_cores(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert numbers_of_workers() == expected


def test_the_rate_of_a_loader():
    data, state = Data(0.05, num_workers=7), torch.get_rng_state()
    alone = loading_rate(data, 0, seconds=0.2)
    assert 2 < alone <= 20
    assert data.num_workers == 7
    assert torch.equal(torch.get_rng_state(), state)
    # Workers sleep side by side; at most four batches may have waited when the measuring began.
    assert 1.1 * alone < loading_rate(data, 2, seconds=0.4) <= 2 * 20 + 4 / 0.4


def test_more_is_loaded_than_an_epoch_has():
    data = Data(0.0, batch_size=4)
    assert loading_rate(data, 0, seconds=0.05) > 0
    assert data.slow.loaded > 8


def test_the_rate_of_a_model_costs_no_loading():
    data, model, state = Data(0.0, batch_size=2), Model(0.01), torch.get_rng_state()
    rate = training_rate(trainer(barebones=True, max_epochs=1000), model, data, seconds=0.2)
    assert 20 < rate <= 200
    assert data.slow.loaded == 8  # four batches of two
    assert model.steps >= 3 + 5
    assert data.trainer is None
    assert torch.equal(torch.get_rng_state(), state)


def test_slow_loading_does_not_slow_the_model_down():
    rate = training_rate(trainer(barebones=True, max_epochs=1000), Model(0.0), Data(0.1, batch_size=2), seconds=0.1)
    assert rate > 20  # which is twice what loading would allow


def test_a_model_may_look_at_the_data_behind_its_loader():
    class Looking(Model):
        def on_train_start(self):
            self.found = examples_of(self.trainer.train_dataloader)[7]

    model = Looking(0.0)
    assert training_rate(trainer(barebones=True, max_epochs=100), model, Data(0.0, batch_size=4), seconds=0.02) > 0
    assert model.found["image"].shape == (1, 2, 2)


def test_a_stream_and_a_loader_of_the_users_own_feed_a_model():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([{"image": torch.zeros(1, 2, 2)}] * 6)

    class Loader:
        def __len__(self):
            return 2

        def __iter__(self):
            return iter([{"image": torch.zeros(2, 1, 2, 2)}] * 2)

    class Own(pl.LightningDataModule):
        def __init__(self, loader):
            super().__init__()
            self.train_dataloader = lambda: loader

    for loader in (DataLoader(Stream(), batch_size=2), Loader()):
        assert training_rate(trainer(barebones=True, max_epochs=100_000), Model(0.0), Own(loader), seconds=0.02) > 0


def test_a_training_that_ends_by_itself_is_measured_as_far_as_it_went():
    model = Model(0.01)
    assert 10 < training_rate(trainer(barebones=True, max_steps=12), model, Data(0.0, batch_size=2), seconds=9) <= 200
    assert model.steps == 12


def test_too_few_steps_are_said():
    with pytest.raises(RuntimeError, match="ended after 4 steps, which are too few"):
        training_rate(trainer(barebones=True, max_steps=4), Model(0.0), Data(0.0), seconds=5)


def test_an_empty_loader_is_said():
    class Empty(pl.LightningDataModule):
        def train_dataloader(self):
            return []

    with pytest.raises(ValueError, match="gives no batches"):
        loading_rate(Empty(), None, seconds=0.1)


def test_which_number_of_workers_feeds_a_model():
    loading = {0: 300.0, 2: 500.0, 4: 900.0}
    assert rates_together(loading, 600) == {0: pytest.approx(200), 2: 500, 4: 600}  # 1 / 300 + 1 / 600 is 1 / 200
    in_turns = rates_together(loading, 600, in_turns=True)
    assert in_turns == pytest.approx({0: 200, 2: 600 / 2.2, 4: 360})

    def number(training):
        return feeding(rates_together(loading, training), training)

    assert number(10) == 0  # at 9.68, which is 97 % of it
    assert number(100) == 2
    assert number(510) == 2  # 98 %
    assert number(600) == 4
    assert number(1000) is None
    assert feeding(in_turns, 600) is None
    assert rates.FED == 0.95
