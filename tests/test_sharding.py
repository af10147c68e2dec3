"""Gradients and optimizer states shared out among processes: the results, and the files, of DDP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.shipped import small_model
from lightning_gen.cli import main
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
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
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


def commanded(rank, folder, *commands):
    """Commands of a process that something else has launched."""
    os.environ.update(LOCAL_RANK=str(rank), LIGHTNING_GEN_CACHE=str(folder / "cache"))
    os.chdir(folder)
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code


def test_text_to_picture_learns_and_is_judged_by_shares_as_by_one_process(tmp_path, on_ranks, fresh_process):
    """On codes that both make, with clipping of a fused optimizer; trained, validated, tested and predicted."""
    torch.manual_seed(0)
    first = save(small_model(VQVAE, (3, 16, 16), data_variance=1.0)(), tmp_path / "first.ckpt")
    text = {"class_path": "TextGPTNetwork", "init_args": {**GPT["init_args"], "dropout": 0.0, "label_dropout": 0.0}}
    tokenizer = {"class_path": "BPETokenizer", "init_args": {"length": 60, "num_tokens": 128}}
    # With so large an eps steps are in proportion to gradients, and not their signs, which rounding turns near 0.
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0, "eps": 1.0, "fused": True}}
    model = {"first_stage": str(first), "network": text, "tokenizer": tokenizer, "optimizer": adam}
    scenes = {"image_size": 16, "num_train": 32, "num_val": 7, "num_test": 9}
    pictures = {"class_path": "CaptionedScenes", "init_args": {**scenes, "num_workers": 0}}
    config = {
        "model": {"class_path": "TextToImage", "init_args": model},
        "data": {"class_path": "Codes", "init_args": {"data": pictures, "num_workers": 0}},
        "trainer": {"max_steps": 3, "accumulate_grad_batches": 2, "gradient_clip_val": 0.2, "accelerator": "cpu"},
        "test_after_fit": True,
    }
    for name, devices in (("one", 1), ("shares", 2)):
        (folder := tmp_path / name).mkdir()
        (folder / "a.yaml").write_text(yaml.safe_dump(config))
        strategy = ["--trainer.devices", str(devices), "--trainer.strategy", "fsdp" if devices > 1 else "auto"]
        run = ["--ckpt_path", "runs/text_to_image/version_0", *strategy]
        commands = [
            ["fit", "--config", "a.yaml", "--data.batch_size", str(8 // devices), *strategy],
            ["predict", *run],
        ]
        if devices > 1:
            failed = [each for each in on_ranks(commanded, folder, *commands) if each is not None]
            assert not failed, failed[0]
        else:
            fresh_process(commanded, 0, folder, *commands)
    one, shares = (tmp_path / name / "runs/text_to_image/version_0" for name in ("one", "shares"))
    contents = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, shares)]
    torch.testing.assert_close(contents[1]["state_dict"], contents[0]["state_dict"], rtol=1e-4, atol=1e-6)
    assert contents[1]["hyper_parameters"] == contents[0]["hyper_parameters"]
    figures = [json.loads((run / "results.json").read_text())["metrics"] for run in (one, shares)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    judged = [np.loadtxt(run / "predictions/predictions.csv", delimiter=",", skiprows=1) for run in (one, shares)]
    assert judged[0].shape == (9, 2)
    np.testing.assert_allclose(*judged, rtol=1e-4)


def test_a_model_without_a_network_of_its_own_says_what_to_take(tmp_path, monkeypatch, fresh_process):
    monkeypatch.chdir(tmp_path)
    fresh_process(refused)


def refused():
    trainer = Trainer(strategy="fsdp", accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"and VQVAE has none\. Take --trainer\.strategy ddp"):
        trainer.fit(small_model(VQVAE, (1, 8, 8))(), datamodule=Digits(num_workers=0))
