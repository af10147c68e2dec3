"""What every logger is given beside a model's figures."""

import csv
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from lightning_gen.callbacks import TrainingMonitor
from lightning_gen.callbacks.throughput import learning_rates, memory
from lightning_gen.commands.trainer import Trainer
from lightning_gen.models import WGANGP
from lightning_gen.networks import MLPDiscriminator, MLPGenerator

NAMES = {"lr/generator", "lr/discriminator", "images_seen", "images_per_second", "memory_gib"}


def fit(folder, loggers, **settings):
    model = WGANGP(
        (2, 1, 1), MLPGenerator, lambda shape: MLPDiscriminator(shape, maxout=1), latent_size=2, n_critic=2,
        decay_start=0.5,
    )  # fmt: skip
    trainer = Trainer(
        logger=loggers, max_steps=8, accelerator="cpu", default_root_dir=folder, log_every_n_steps=4,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **settings,
    )  # fmt: skip
    trainer.fit(model, DataLoader(torch.zeros(160, 2, 1, 1), 10))
    return trainer


def test_every_logger_has_the_same_once(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    trainer = fit(tmp_path, loggers)
    with Path(loggers[0].log_dir, "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["images_seen"]]
    assert [(row["step"], row["images_seen"]) for row in rows] == [("2", "40"), ("4", "80"), ("6", "120"), ("8", "160")]
    # Half of the run at the full rate, then down to nothing.
    assert [float(row["lr/generator"]) for row in rows] == pytest.approx([1e-4, 1e-4, 5e-5, 0])
    assert all(float(row["images_per_second"]) > 0 and 0.05 < float(row["memory_gib"]) < 1000 for row in rows)
    board = event_accumulator.EventAccumulator(loggers[1].log_dir)
    board.Reload()
    assert set(board.Tags()["scalars"]) >= NAMES
    assert [(e.step, e.value) for e in board.Scalars("images_seen")] == [(2, 40), (4, 80), (6, 120), (8, 160)]
    assert not NAMES & trainer.logged_metrics.keys(), "they are no figures of the model"


def test_weights_and_biases_has_it_too(tmp_path, fresh_process):
    pytest.importorskip("wandb")
    given = fresh_process(what_wandb_is_given, tmp_path)  # which leaves a service behind
    found = [(step, metrics["images_seen"]) for step, metrics in given if "images_seen" in metrics]
    assert found == [(2, 40), (4, 80), (6, 120), (8, 160)]
    assert given[-1][1].keys() | given[-2][1].keys() >= NAMES


def what_wandb_is_given(folder):
    from lightning.pytorch.loggers import WandbLogger

    os.chdir(folder)
    given = []
    WandbLogger.log_metrics = lambda self, metrics, step=None: given.append((step, metrics))
    fit(folder, [WandbLogger(save_dir=folder, offline=True, name="run")])
    return given


def test_without_loggers_and_twice_is_no_mistake(tmp_path):
    trainer = fit(tmp_path, False, callbacks=[TrainingMonitor()])
    assert sum(isinstance(callback, TrainingMonitor) for callback in trainer.callbacks) == 1


def test_names_of_learning_rates():
    def rates(*optimizers):
        trainer = pl.Trainer(accelerator="cpu", logger=False, barebones=True)
        trainer.strategy.optimizers = list(optimizers)
        return learning_rates(trainer)

    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    one = torch.optim.SGD(weights, lr=0.5)
    assert rates(one) == {"lr": 0.5}
    two = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.25}], lr=0.125)
    assert rates(one, two) == {"lr/0": 0.5, "lr/1/0": 0.125, "lr/1/1": 0.25}


def test_memory_of_a_process_is_its_most():
    before = memory(torch.device("cpu"))
    block = torch.ones(2**24)  # 64 MiB
    after = memory(torch.device("cpu"))
    assert before >= 50 * 2**20
    assert after >= before
    assert block.numel() == 2**24
