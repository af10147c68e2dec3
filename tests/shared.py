"""What several tests have in common."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_gen.checkpoints import AtomicCheckpointIO
from lightning_gen.data.grids import GAP, MIN_CELL
from lightning_gen.generative import GenerativeModule


class Mute(GenerativeModule):
    """A model that can do nothing."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()


class OfClasses(nn.Module):
    """A network of classes with the labels filled in."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def labels(self, batch):
        return torch.arange(batch) % self.network.num_classes

    def forward(self, images):
        return self.network(images, self.labels(len(images)))

    def init_cache(self, batch, device):
        return self.network.init_cache(batch, device, self.labels(batch))

    def prefill(self, cache, position):
        self.network.prefill(cache, position)

    def step(self, cache, position):
        return self.network.step(cache, position)


class Recorder(pl.Callback):
    """Of every step: the logged terms, and the gradients that each optimizer is given."""

    def __init__(self):
        self.terms, self.gradients = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.gradients.append([])

    def on_before_optimizer_step(self, trainer, module, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Layers of resolutions that are not there have none.
        self.gradients[-1] += [p.grad.clone() for p in parameters if p.grad is not None]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        logged = trainer.callback_metrics.items()
        self.terms.append({name.removeprefix("train/"): float(v) for name, v in logged if name.startswith("train/")})


class Before(pl.Callback):
    """Keeps the weights before the first step."""

    weights = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.weights is None:
            self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}


def trainer(**settings):
    """A trainer that writes and shows nothing."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", **quiet | settings)


def save(model, path=Path("a.ckpt"), **extra):
    """A checkpoint of a model that was not trained."""
    checkpoint = {"state_dict": model.state_dict(), "pytorch-lightning_version": pl.__version__, **extra}
    model.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return path


def differences(a, b, where=""):
    """Places at which the contents of two checkpoints differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [f"{where}/{key}" for key in a.keys() ^ b.keys()]
        return keys + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [where]
    return [] if a == b else [f"{where}: {a!r:.200} {b!r:.200}"]


def repeatable(lines):
    """What two runs that are the same have in common of their histories: all but time and memory."""
    lines = [json.loads(line) if isinstance(line, str) else line for line in lines]
    return [{name: value for name, value in line.items() if name not in ("seconds", "memory_gib")} for line in lines]


def tensors_of(value):
    """All tensors in an object, its lists and theirs."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in tensors_of(one)]
    return [tensor for one in vars(value).values() for tensor in tensors_of(one)] if hasattr(value, "__dict__") else []


def tile(grid, row, column, rows, size=8, scale=MIN_CELL // 8):
    """The picture in a cell, brought back to its size; every block of it must be of one colour."""
    cell = size * scale
    top = grid.shape[1] - (rows - row) * (cell + GAP)
    left = GAP + column * (cell + GAP)
    enlarged = grid[:, top : top + cell, left : left + cell]
    picture = enlarged[:, ::scale, ::scale]
    assert torch.equal(enlarged, picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2))
    return picture


def parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in network.parameters())


def deviations(network, kinds, *inputs):
    """The root mean square of what each layer of some kinds gives."""
    found = []
    handles = [
        module.register_forward_hook(lambda *call: found.append(call[-1].square().mean().sqrt().item()))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    return found


def mean_squares(make, kinds, draw, seeds=16):
    """Of what each layer of some kinds gives at the start, float64 `[seeds, layers]`: networks and inputs by seed."""
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        found.append(deviations(make(), kinds, draw()))
    return torch.tensor(found, dtype=torch.float64).square()


def assert_mean(values, expected, errors=4.0):
    """That the mean over rows is the expected one, but for so many standard errors, which the rows themselves tell."""
    difference = values.mean(0) - torch.as_tensor(expected, dtype=values.dtype)
    allowed = errors * values.std(0) / len(values) ** 0.5
    assert (difference.abs() <= allowed).all(), (values.mean(0), expected, allowed)
