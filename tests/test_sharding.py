"""Gradients and optimizer states shared out among processes: the results, and the files, of DDP."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.shipped import small_model
from lightning_gen.commands.trainer import Trainer
from lightning_gen.data import Digits
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import VQVAE
from tests.shared import save

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
GPT = {"class_path": "GPTNetwork", "init_args": {"width": 8, "layers": 1, "heads": 2}}


def fit(*options):
    two = ("--trainer.accelerator", "cpu", "--trainer.devices", "2")
    command = [sys.executable, "-m", "lightning_gen", "fit", *two, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_shares_learn_what_copies_do_and_go_on_from_one_file(tmp_path, monkeypatch):
    """Two processes, three steps with clipping and an average; one of both runs is stopped after two."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(small_model(VQVAE, (1, 8, 8), data_variance=1.0)(), Path("first.ckpt"))
    model = {"first_stage": "first.ckpt", "network": GPT, "num_classes": 10, "optimizer": SGD}
    average = {"class_path": "EMA", "init_args": {"modules": ["network"], "decay": 0.5}}
    trainer = {"max_steps": 3, "gradient_clip_val": 0.5, "callbacks": [average]}
    config = {
        "model": {"class_path": "CodePrior", "init_args": model},
        "data": {"class_path": "Digits", "init_args": {"batch_size": 4, "num_workers": 0}},
        "trainer": {**trainer, "limit_val_batches": 1},
    }
    Path("a.yaml").write_text(yaml.safe_dump(config))
    fit("--config", "a.yaml", "--trainer.strategy", "ddp", "--trainer.default_root_dir", "ddp")
    fit(
        "--config",
        "a.yaml",
        "--trainer.strategy",
        "fsdp",
        "--trainer.default_root_dir",
        "fsdp",
        "--trainer.max_steps=2",
    )
    fit("--ckpt_path", "fsdp/codeprior/version_0", "--trainer.max_steps", "3")
    copies, shares = (
        torch.load(f"{name}/codeprior/version_0/checkpoints/last.ckpt", weights_only=True) for name in ("ddp", "fsdp")
    )
    assert shares["global_step"] == 3
    for part in ("state_dict", "raw_state_dict"):
        torch.testing.assert_close(shares[part], copies[part], rtol=1e-5, atol=1e-7)
    optimizers = [each["optimizer_states"][0] for each in (shares, copies)]
    torch.testing.assert_close(optimizers[0]["state"], optimizers[1]["state"], rtol=1e-4, atol=1e-7)
    loaded = GenerativeModule.load_from_checkpoint("fsdp/codeprior/version_0/checkpoints/last.ckpt")
    assert loaded.sample(2, generator=torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8)


def test_a_model_without_a_network_of_its_own_says_what_to_take(tmp_path, monkeypatch, fresh_process):
    monkeypatch.chdir(tmp_path)
    fresh_process(refused)


def refused():
    trainer = Trainer(strategy="fsdp", accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"and VQVAE has none\. Take --trainer\.strategy ddp"):
        trainer.fit(small_model(VQVAE, (1, 8, 8))(), datamodule=Digits(num_workers=0))
