"""Every shipped configuration keeps the contract. A new file in configs/ is tested by existing."""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from torch import nn

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.cli import main
from lightning_gen.commands.training import CommandLine, Trainer
from lightning_gen.generative import GenerativeModule, Translates

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))

# What makes a run small, by the name of the setting, wherever it stands.
SMALL = {
    "filters": 4,
    "blocks": 1,
    "depth": 6,
    "layers": 2,
    "image_size": 64,
    "resize": 72,
    "crop": 64,
    "num_train": 3,
    "num_val": 2,
    "num_test": 2,
    "pool_size": 2,
}


def shrunk(config, root):
    """The configuration with small sizes, and with `root` in place of a folder that a user would have."""
    if isinstance(config, dict):
        return {
            key: str(root) if key == "root" else SMALL.get(key, shrunk(value, root)) for key, value in config.items()
        }
    return [shrunk(item, root) for item in config] if isinstance(config, list) else config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder in which every folder layout finds three training pictures and two others."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, number in (("train", 3), ("val", 2), ("test", 2)):
        for i in range(number):
            for domain in "AB":
                (root / f"{split}{domain}").mkdir(exist_ok=True)
                Image.fromarray(random.integers(0, 256, (40, 44, 3), np.uint8)).save(root / f"{split}{domain}/{i}.png")
            (root / split).mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 88, 3), np.uint8)).save(root / f"{split}/{i}.png")
    return root


@pytest.fixture(params=NAMES)
def config(request, tmp_path, pictures):
    """A small copy of one shipped configuration."""
    settings = shrunk(yaml.safe_load((CONFIGS / f"{request.param}.yaml").read_text()), pictures)
    settings["trainer"] |= {
        "max_steps": 4,
        "max_epochs": None,
        "accelerator": "cpu",
        "precision": "32-true",
        "default_root_dir": str(tmp_path / "runs"),
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings |= {
        "pictures": {"every_n_steps": 2, "num_images": 2},
        "checkpoint": {"every_n_steps": 4},
        "test_after_fit": False,
    }
    settings["data"]["init_args"] |= {"num_workers": 0}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(*arguments):
    """A command as a user gives it; raises SystemExit unless it works."""
    try:
        main([*map(str, arguments), "--debug"])
    except SystemExit as stop:
        if stop.code:
            raise


def run_until_saved(*arguments):
    """The same, but the process dies, as by kill -9, when the first checkpoint has been written."""
    save = LastCheckpoint._save

    def save_and_die(self, trainer):
        save(self, trainer)
        os._exit(9)

    LastCheckpoint._save = save_and_die
    run(*arguments)


def last_checkpoint(root):
    (path,) = Path(root).rglob("last.ckpt")
    return path


def load(path):
    return torch.load(path, weights_only=True, map_location="cpu")


def differences(a, b, where=""):
    """Places at which two checkpoints differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [f"{where}/{key}" for key in a.keys() ^ b.keys()]
        return keys + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [where]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [where]
    return [] if a == b else [where]


def test_an_unknown_key_is_refused_by_name(config, capfd):
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"]["lamda"] = 1
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config)])
    assert stop.value.code == 2
    assert "lamda" in capfd.readouterr().err


def test_it_trains_counts_generator_updates_and_its_checkpoint_is_enough(config, tmp_path, fresh_process):
    fresh_process(run, "fit", "--config", config, "--trainer.precision", "bf16-mixed")
    path = last_checkpoint(tmp_path)
    checkpoint = load(path)
    assert checkpoint["global_step"] == 4
    assert checkpoint["state_dict"]["images_seen"] == 4 * settings_of(config)["data"]["init_args"].get("batch_size", 1)
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point())
    history = [json.loads(line) for line in (path.parent.parent / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if any(key.startswith("train/") for key in row)][-1] == 4
    assert all(isinstance(value, int | float) for row in history for value in row.values())
    assert (path.parent.parent / "index.html").is_file()

    model = GenerativeModule.load_from_checkpoint(path)
    assert not differences(checkpoint["state_dict"], model.state_dict())
    keeps_the_contract(model)
    # The command line needs no more than the file, either.
    fresh_process(run, "test", "--ckpt_path", path)
    assert json.loads((path.parent.parent / "results.json").read_text())


def settings_of(config):
    return yaml.safe_load(config.read_text())


def keeps_the_contract(model):
    assert isinstance(model, Translates)
    channels, height, width = model.image_shape
    for direction in model.directions:
        for size in ((height, width), (height + 3, width + 5)):
            images = torch.rand(2, channels, *size) * 2 - 1
            model.train()
            next(model.children()).eval()
            modes = {name: module.training for name, module in model.named_modules()}
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            state = torch.get_rng_state()
            result = model.translate(images, direction)
            assert torch.equal(torch.get_rng_state(), state)
            assert modes == {name: module.training for name, module in model.named_modules()}
            assert not differences(buffers, dict(model.named_buffers()))
            assert result.shape == images.shape
            assert result.dtype == torch.float32
            assert result.abs().max() <= 1
            assert not result.requires_grad
            assert torch.equal(result, model.translate(images, direction))
    with pytest.raises(ValueError, match="not 'AtoC'"):
        model.translate(images, "AtoC")


@pytest.mark.parametrize(
    ("workers", "examples"), [(0, 3), (2, 3), (0, 2)], ids=["inside", "inside-workers", "at-epoch-end"]
)
def test_going_on_equals_never_having_stopped(config, tmp_path, fresh_process, pictures, workers, examples):
    """4 steps, against 2, a dead process and 2 more; the stop is inside an epoch of 3, or at the end of one of 2."""
    settings = settings_of(config)
    settings["data"]["init_args"]["num_workers"] = workers
    if "num_train" in settings["data"]["init_args"]:
        settings["data"]["init_args"]["num_train"] = examples
    elif examples == 2:
        settings["trainer"]["limit_train_batches"] = 2
    config.write_text(yaml.safe_dump(settings))
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    fresh_process(run, "fit", "--config", config, "--trainer.default_root_dir", through)
    arguments = ["fit", "--config", config, "--trainer.default_root_dir", stopped, "--checkpoint.every_n_steps", 2]
    fresh_process(run_until_saved, *arguments)
    middle = last_checkpoint(stopped)
    assert load(middle)["global_step"] == 2
    fresh_process(run, *arguments, "--ckpt_path", middle)

    expected, found = load(last_checkpoint(through)), load(last_checkpoint(stopped))
    assert found["global_step"] == 4
    # All but the accounts of Lightning's loops and of the callbacks, which tell of the stop itself.
    left_out = {"loops", "callbacks"}
    assert not differences(*({k: v for k, v in c.items() if k not in left_out} for c in (expected, found)))
    averages = [{k: v for k, v in c["callbacks"].items() if k.startswith("EMA")} for c in (expected, found)]
    assert not differences(*averages)
    # The run went on in its own folder, and its record has no gap and no double.
    steps = [json.loads(line)["step"] for line in (middle.parent.parent / "history.jsonl").read_text().splitlines()]
    assert sorted(set(steps) - {0}) == [1, 2, 3, 4]


class Witness(pl.Callback):
    """Asserts what must be equal on all ranks and what must not, and keeps the first step's gradients."""

    def __init__(self, path):
        self.path, self.gradients, self.done = path, [], False

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 0 and not self.done:
            self.gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    def on_train_end(self, trainer, module):
        assert trainer.global_step == 2

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.done = True
        if trainer.is_global_zero and not self.path.exists():
            torch.save(self.gradients, self.path)
        if trainer.world_size > 1:
            weights = torch.cat([p.detach().flatten() for p in module.parameters()])
            seen = torch.cat([batch["A"].flatten(), batch["B"].flatten(), torch.rand(3)])
            for mine, equal in ((weights, True), (seen[:-3], False), (seen[-3:], False)):
                others = [torch.empty_like(mine) for _ in range(trainer.world_size)]
                dist.all_gather(others, mine)
                assert torch.equal(others[0], others[1]) == equal


def fit_with_witness(config, devices, batch_size, path):
    settings = settings_of(config)
    settings.pop("test_after_fit", None)
    settings["trainer"] |= {"devices": devices, "max_steps": 2, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    settings["trainer"]["strategy"] = "ddp_fork" if devices > 1 else "auto"
    settings["data"]["init_args"] |= {"batch_size": batch_size}
    if "num_train" in settings["data"]["init_args"]:
        settings["data"]["init_args"]["num_train"] = 6
    config.write_text(yaml.safe_dump(settings))
    cli = CommandLine(
        GenerativeModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        save_config_callback=None,
        seed_everything_default=0,
        args=["--config", str(config)],
        run=False,
    )
    cli.trainer.callbacks.append(Witness(path))
    # Lightning refuses to fork where CUDA was touched; nothing here uses it.
    launching._check_bad_cuda_fork = lambda: None
    if devices > 1:  # plain ddp: no flag for unused parameters
        assert not cli.trainer.strategy._ddp_kwargs.get("find_unused_parameters", False)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    tied = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return any(isinstance(module, tied) for module in cli.model.modules())


def test_two_processes_hold_equal_weights_and_equal_one_process_with_the_joined_batch(config, tmp_path, fresh_process):
    torch.manual_seed(0)
    tied = fresh_process(fit_with_witness, config, 2, 1, tmp_path / "two.pt")
    if tied:
        return  # batch norm and dropout: the mathematics itself depends on how the batch is cut
    fresh_process(fit_with_witness, config, 1, 2, tmp_path / "one.pt")
    two, one = load(tmp_path / "two.pt"), load(tmp_path / "one.pt")
    assert len(two) == len(one) > 0
    for player, expected in zip(two, one, strict=True):
        # float32 sums in another order. A bias before instance norm has gradient zero but for rounding, so the absolute
        # tolerance goes by the player's largest gradient.
        largest = max(gradient.abs().max().item() for gradient in expected)
        assert largest > 1e-3
        for mine, theirs in zip(player, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * largest)
