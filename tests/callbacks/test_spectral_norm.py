"""The iteration runs once a batch, goes on exactly, and cannot be forgotten."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.callbacks import spectral_norm as module
from lightning_gen.callbacks.spectral_norm import SpectralNormPowerIteration, power_iteration_callbacks
from lightning_gen.layers.spectral_norm import add_spectral_norm, spectral_norms

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from", "ignore:.*log_every_n_steps")


class Critic(pl.LightningModule):
    """Takes several optimizer steps a batch, on weights that move fast."""

    def __init__(self, steps=1):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.discriminator = add_spectral_norm(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)), (4, 1, 1))
        self.steps = steps

    def configure_callbacks(self):
        return power_iteration_callbacks(self)

    def training_step(self, batch, batch_idx):
        for _ in range(self.steps):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            scores = self.discriminator(batch)
            self.manual_backward(F.relu(1 - scores[:4]).mean() + F.relu(1 + scores[4:]).mean())
            optimizer.step()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Plain(Critic):
    def __init__(self):
        super().__init__()
        self.discriminator = nn.Linear(4, 1)


def batches(number=7):
    draw = torch.Generator().manual_seed(1)
    return DataLoader([torch.randn(8, 4, generator=draw) for _ in range(number)], None)


def fit(model, callbacks=(), data=None, ckpt_path=None, **settings):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    trainer = pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, **settings})
    trainer.fit(model, data or batches(), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def calls(monkeypatch):
    """The number of iterations of each call."""
    made = []
    real = module.power_iteration

    def counted(weights, n_iterations):
        weights = list(weights)
        assert len(weights) == 2
        made.append(n_iterations)
        real(weights, n_iterations)

    monkeypatch.setattr(module, "power_iteration", counted)
    return made


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_it_runs_once_a_batch_whatever_the_optimizers_do(calls, steps):
    fit(Critic(steps))
    assert calls == [1] * 7


@pytest.mark.parametrize(("every", "times"), [(2, 7), (3, 5), (20, 1)])
def test_the_interval_counts_batches_over_epochs(calls, every, times):
    fit(Critic(), [SpectralNormPowerIteration(every_n_steps=every)], max_epochs=2)
    assert len(calls) == times  # of 14 batches, the first included


def test_the_vectors_move_before_the_batch_and_nowhere_else():
    model = Critic()
    norm, weight = spectral_norms(model)["discriminator.0"]
    v = F.normalize(weight.detach().T @ norm.u, dim=0)
    u = F.normalize(weight.detach() @ v, dim=0)
    fit(model, data=batches(1))
    torch.testing.assert_close(norm.u, u)
    torch.testing.assert_close(norm.v, v)
    assert not norm.u.requires_grad


class SaveAt(pl.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("stop", [3, 9])
def test_going_on_after_an_odd_batch_equals_never_having_stopped(tmp_path, calls, every, stop):
    def run(*callbacks, **settings):
        model, callback = Critic(), SpectralNormPowerIteration(every_n_steps=every)
        # All batches are equal, for where the data goes on is not the question here.
        data = DataLoader([next(iter(batches()))] * 7, None)
        return model, fit(model, [callback, *callbacks], data, max_epochs=2, **settings)

    whole, _ = run()
    expected = calls.copy()
    calls.clear()
    path = tmp_path / "stopped.ckpt"
    run(SaveAt(stop, path), max_steps=stop)
    resumed, trainer = run(ckpt_path=path)
    assert trainer.global_step == 14
    assert calls == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_users_own_callback_wins(calls):
    trainer = fit(Critic(), [SpectralNormPowerIteration(n_iterations=2)])
    assert calls == [2] * 7
    assert sum(isinstance(callback, SpectralNormPowerIteration) for callback in trainer.callbacks) == 1


def test_without_one_the_model_brings_it_once_also_in_a_second_fit(calls):
    model = Critic()
    trainer = fit(model)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, batches())
    assert sum(isinstance(callback, SpectralNormPowerIteration) for callback in trainer.callbacks) == 1
    assert calls == [1] * 14


def test_a_model_without_such_layers_brings_none_and_refuses_one(calls):
    assert power_iteration_callbacks(Plain()) == []
    assert len(power_iteration_callbacks(Critic())) == 1  # no trainer yet
    fit(Plain())
    assert calls == []
    with pytest.raises(ValueError, match=r"Plain has no spectrally normalised layer.*add_spectral_norm"):
        fit(Plain(), [SpectralNormPowerIteration()])


@pytest.mark.parametrize("numbers", [{"n_iterations": 0}, {"every_n_steps": 0}])
def test_numbers_below_1_are_refused(numbers):
    with pytest.raises(ValueError, match="n_iterations >= 1 and every_n_steps >= 1"):
        SpectralNormPowerIteration(**numbers)


class Sigmas(pl.Callback):
    """The sigma that each batch was used with."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append({name: weight.sigma().item() for name, weight in spectral_norms(pl_module).items()})


@pytest.mark.parametrize("every", [2, 3])
def test_sigma_is_logged_at_logging_steps_under_the_layers_name(tmp_path, every):
    sigmas, logger = Sigmas(), CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(Critic(), [SpectralNormPowerIteration(), sigmas], logger=logger, log_every_n_steps=every)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = sigmas.seen[every - 1 :: every]
    assert len(rows) == len(expected) == 7 // every
    for row, sigma in zip(rows, expected, strict=True):
        assert {name for name in row if name.startswith("sigma/")} == {"sigma/discriminator.0", "sigma/discriminator.2"}
        for name, value in sigma.items():
            assert float(row[f"sigma/{name}"]) == pytest.approx(value, rel=1e-5)
