"""Networks of a user's own in autoregressive models, and alphabets of another kind than grey values."""

import itertools
import json
import math
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.cli import main
from lightning_gen.losses import Categorical
from lightning_gen.losses.categorical import levels_to_images
from lightning_gen.models import PixelCNN, PixelCNNPP
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.networks import (
    DiagonalBiLSTMNetwork,
    GatedPixelCNNNetwork,
    LMConvNetwork,
    PixelCNNNetwork,
    PixelCNNPPNetwork,
    PixelSNAILNetwork,
    RowLSTMNetwork,
)
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive

OWN = '''
from types import SimpleNamespace

import torch
from torch import nn


class Tiny(nn.Module):
    """Parameters that are a linear function of all earlier pixels."""

    def __init__(self, image_shape: tuple[int, int, int], outputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.image_shape, pixels = image_shape, image_shape[1] * image_shape[2]
        self.weight = nn.Parameter(scale * torch.randn(outputs, pixels, pixels))
        self.bias = nn.Parameter(torch.zeros(outputs, pixels))

    def forward(self, images):
        out = torch.einsum("pij,nj->npi", self.weight.tril(-1), images.flatten(1)) + self.bias
        return out.unflatten(2, self.image_shape[1:])


class Stepping(Tiny):
    def init_cache(self, batch, device):
        return SimpleNamespace(images=self.weight.new_zeros(batch, *self.image_shape))

    def step(self, cache, position):
        before = cache.images.flatten(1)[:, :position]
        return before @ self.weight[:, position, :position].T + self.bias[:, position]
'''


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trainer_of(folder, steps):
    return pl.Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own, in the folder they stand in."""
    (tmp_path / "mynetworks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return __import__("mynetworks")


@pytest.mark.parametrize("name", ["Tiny", "Stepping"])
def test_a_network_of_ones_own_in_python(name, own, tmp_path):
    shape, network = (1, 2, 2), getattr(own, name)
    torch.manual_seed(0)
    model = PixelCNN(shape, 3, partial(network, scale=0.5), learning_rate=0.05)
    assert_autoregressive(model.network, shape)
    if name == "Stepping":
        assert_cached_equals_naive(model.network, shape)
    images = levels_to_images(torch.randint(2, (64, *shape), generator=seeded()) * 2, 3)  # never grey
    trainer = trainer_of(tmp_path, 40)
    trainer.fit(model, DataLoader(images, 64), DataLoader(images, 64))
    assert trainer.callback_metrics["val/bpd-3level"] < 1.1  # of 1.58 for three levels alike
    every = levels_to_images(torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, *shape), 3)
    with torch.no_grad():
        assert model.log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-5)
    drawn = [model.sample(200, generator=seeded(), method=method) for method in ("cached", "naive")]
    assert torch.equal(*drawn)
    assert (drawn[0] == 0).float().mean() < 0.1
    trainer.save_checkpoint("own.ckpt")
    again = PixelCNN.load_from_checkpoint("own.ckpt", trust=("mynetworks",))
    assert type(again.network) is network
    assert torch.equal(again.sample(200, generator=seeded()), drawn[0])


def _exit_code(*arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code or 0


def test_a_network_of_ones_own_on_the_command_line(own, fresh_process):
    network = {"class_path": "mynetworks.Stepping", "init_args": {"scale": 0.1}}
    run = {
        "model": {"class_path": "GatedPixelCNN", "init_args": {"num_levels": 17, "network": network}},
        "data": {"class_path": "Digits", "init_args": {"num_workers": 0}},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "limit_val_batches": 1, "enable_progress_bar": False},
    }
    Path("run.yaml").write_text(json.dumps(run))
    assert fresh_process(_exit_code, "fit", "--config", "run.yaml") == 0
    arguments = ("--checkpoint", "runs/gated_pixelcnn/version_0", "--num_samples", "2", "--output", "out")
    assert fresh_process(_exit_code, "sample", *arguments) == 1  # a stranger's file must not name it
    assert fresh_process(_exit_code, "sample", *arguments, "--trust", "mynetworks") == 0
    assert len(list(Path("out").iterdir())) == 2


# Codes

COLOURS = torch.tensor(list(itertools.product((-1.0, 0.5), repeat=3)))[:7]
"""Of seven codes, `[7, 3]`: in no order that a network could use."""


class Codes(AutoregressiveModule):
    """Maps of codes, `[N, H / 2, W / 2]`, of which a picture shows each as 2 x 2 pixels of its colour."""

    def __init__(self, image_shape, network, learning_rate=1e-2):
        super().__init__(image_shape, Categorical(7), learning_rate=learning_rate)
        self.level_shape, self.num_levels = (1, *(side // 2 for side in image_shape[1:])), None
        self.network = self.network_of(network)

    def to_levels(self, images, *, validate=True):
        distances = (images[:, None, :, ::2, ::2] - COLOURS[:, :, None, None]).square().sum(2)
        return distances.argmin(1, keepdim=True)

    def to_images(self, levels):
        return COLOURS[levels.squeeze(1)].movedim(3, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


STACK = {"filters": 8, "layers": 1, "head_filters": 16}
ALPHABETS = {
    "PixelCNN": partial(PixelCNNNetwork, **STACK),
    "GatedPixelCNN": partial(GatedPixelCNNNetwork, kernel_size=3, **STACK),
    "RowLSTM": partial(RowLSTMNetwork, **STACK),
    "DiagonalBiLSTM": partial(DiagonalBiLSTMNetwork, **STACK),
    "PixelCNNPP": partial(PixelCNNPPNetwork, filters=8, num_blocks=1, num_scales=1, dropout=0.0),
    "PixelSNAIL": partial(PixelSNAILNetwork, filters=8, num_blocks=1, num_resnets=1, dropout=0.0),
    "LMConv": partial(LMConvNetwork, filters=8, num_blocks=1, orders=[range(4)]),
}
EVERY = torch.tensor(list(itertools.product(range(7), repeat=4))).view(-1, 1, 2, 2)
"""All 2401 maps of 2 x 2 codes."""


@pytest.mark.parametrize("embedding", [None, 3])
@pytest.mark.parametrize("name", ALPHABETS)
def test_codes_are_an_alphabet_like_any_other(name, embedding):
    torch.manual_seed(0)
    model = Codes((3, 4, 4), partial(ALPHABETS[name], embedding=embedding))
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        images = model.to_images(EVERY)
        log_prob = model.log_prob(images)
    assert torch.equal(model.to_levels(images), EVERY)
    assert log_prob.std() > 0.05
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    drawn = [model.sample(50, generator=seeded(), method=method) for method in ("cached", "naive")]
    assert torch.equal(*drawn)
    assert drawn[0].shape == (50, 3, 4, 4)
    assert torch.equal(model.to_images(model.to_levels(drawn[0])), drawn[0])
    assert hasattr(model.network, "embed") == (embedding is not None)


def test_a_prior_of_codes_learns_their_distribution(tmp_path):
    """Each code follows the one before, plus 3 modulo 7, with probability 0.7, or is any of the seven."""
    codes = EVERY.flatten(1)
    follows = (codes[:, 1:] - codes[:, :-1]) % 7 == 3
    p = torch.where(follows, 0.7 + 0.3 / 7, 0.3 / 7).double().prod(1) / 7
    assert p.sum().item() == pytest.approx(1)
    drawn = EVERY[torch.multinomial(p, 6000, replacement=True, generator=seeded())]
    torch.manual_seed(0)
    model = Codes((3, 4, 4), partial(GatedPixelCNNNetwork, filters=32, layers=2, head_filters=32, embedding=8))
    images = model.to_images(drawn)
    start = model.network.embed.weight.detach().clone()
    trainer = trainer_of(tmp_path, 150)
    trainer.fit(model, DataLoader(images, 200), DataLoader(images[:200], 200))
    assert not torch.equal(model.network.embed.weight, start)
    assert {name for name in trainer.callback_metrics if name.startswith("val/")} == {"val/nll"}
    with torch.no_grad():
        log_prob = model.log_prob(model.to_images(EVERY)).double()
    entropy = -(p * p.log()).sum().item()
    assert entropy <= -(p * log_prob).sum().item() < entropy + 0.15  # of at most 4 log 7, which is 2.3 above
    assert 4 * math.log(7) - entropy > 2
    of_samples = (model.to_levels(model.sample(1000, generator=seeded())).flatten(1).diff(dim=1) % 7 == 3).float()
    assert of_samples.mean().item() == pytest.approx(0.7 + 0.3 / 7, abs=0.05)


def test_vectors_for_levels_in_order_are_refused():
    with pytest.raises(ValueError, match="An embedding is of levels in no order"):
        PixelCNNPP((3, 4, 4), network=partial(ALPHABETS["PixelCNNPP"], embedding=2))
    assert PixelCNN((1, 2, 2), 2, partial(ALPHABETS["PixelCNN"], embedding=2)).network.embed.num_embeddings == 2


def test_what_makes_no_module_is_refused():
    with pytest.raises(ValueError, match="was given as what makes a Module"):
        PixelCNN((1, 2, 2), network=lambda shape, outputs: shape)
    assert isinstance(PixelCNN((1, 2, 2), network=lambda shape, outputs: nn.Conv2d(1, outputs, 1)).network, nn.Conv2d)
