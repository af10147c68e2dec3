"""Progress: a rate in images, and log files without carriage returns."""

import re
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_gen.callbacks import progress
from lightning_gen.callbacks.progress import ProgressBar
from lightning_gen.data.batches import batch_size

SECONDS = 0.5  # that each training batch takes


class Clock:
    """Stands still until it is told."""

    now = 1000.0

    def monotonic(self):
        return self.now


class Toy(pl.LightningModule):
    def __init__(self, clock):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.now += SECONDS
        self.log("train/loss", 0.123456, prog_bar=True)
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.clock.now += 100

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        return {"A": torch.zeros(3, 2, 2), "B": torch.zeros(3, 2, 2)}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def fit(folder, clock, bar, **kwargs):
    settings = {"max_steps": 12, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    settings |= {"enable_checkpointing": False, "enable_model_summary": False, "logger": CSVLogger(folder, "run")}
    trainer = pl.Trainer(callbacks=[bar], **{**settings, **kwargs})
    trainer.fit(Toy(clock), DataLoader(Pairs(), 4), DataLoader(Pairs(), 4))
    return trainer


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(5, 3), 5),
        ({"A": torch.zeros(4, 3), "B": torch.zeros(7, 3)}, 4),
        ({"path": ["a", "b"], "pictures": (torch.zeros(2, 3), torch.zeros(9))}, 2),
        ([torch.tensor(1.0), torch.zeros(6)], 6),
        ("no pictures", 0),
    ],
)
def test_batch_size_is_the_length_of_the_first_tensor(batch, size):
    assert batch_size(batch) == size


def test_rate_counts_images_once_over_all_ranks_and_without_validation(tmp_path, clock, monkeypatch):
    bar = ProgressBar()
    shown = []
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda self: 3))
    monkeypatch.setattr(bar, "on_train_epoch_end", lambda trainer, model: shown.append(bar.get_metrics(trainer, model)))
    fit(tmp_path, clock, bar, val_check_interval=5, limit_val_batches=2)
    assert shown == [{"train/loss": pytest.approx(0.123456), "img/s": 4 * 3 / SECONDS}]


def test_rate_is_that_of_the_last_seconds(clock):
    bar = ProgressBar()
    for seconds in (1.0, 0.01):
        for _ in range(2000):
            bar.count(8)
            clock.now += seconds
    assert bar.images_per_second == pytest.approx(8 / 0.01, rel=1e-3)


def test_plain_lines_where_nobody_watches(tmp_path, clock, capsys):
    fit(tmp_path, clock, ProgressBar(every_n_seconds=2.5), max_steps=13, limit_val_batches=0)
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    assert "it/s" not in out + err
    lines = [line for line in out.splitlines() if line.startswith("epoch")]
    # Batches end every half second: lines after 5 and 10 of them, and at the end.
    assert [int(re.search(r"step (\d+)", line)[1]) for line in lines] == [5, 10, 13]
    assert lines[0] == "epoch 0, step 5: train/loss 0.1235, img/s 8, left 0:00:04"
    assert lines[-1].endswith("img/s 8"), "at the end nothing is left"


def test_time_left_follows_whichever_end_comes_first(tmp_path, clock, capsys):
    fit(tmp_path, clock, ProgressBar(every_n_seconds=2.0), max_steps=1000, max_epochs=2, limit_val_batches=0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert lines[0].endswith("left 0:00:10"), "24 batches, of which 4 took 2 seconds"


@pytest.mark.parametrize("bar", [ProgressBar(refresh_rate=0), ProgressBar(every_n_seconds=1e9)])
def test_no_lines_when_turned_off_or_not_due(tmp_path, clock, capsys, bar):
    fit(tmp_path, clock, bar)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == (0 if bar.refresh_rate == 0 else 1)


def test_bars_on_a_terminal(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bar = ProgressBar()
    assert bar.is_enabled
    fit(tmp_path, clock, bar)
    out = capsys.readouterr().out
    assert "\r" in out
    assert "img/s=8" in out
    assert "v_num" not in out
    assert not any(line.startswith("epoch 0, step") for line in out.splitlines())


def test_time_between_lines_is_checked():
    with pytest.raises(ValueError, match="above 0, got 0"):
        ProgressBar(every_n_seconds=0)
