"""What training shares in all families."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.models.training import TrainedModule, prepare_networks
from lightning_gen.schedules import Linear, Piecewise

LAST = torch.channels_last


class Masked(nn.Module):
    """Weights of each kind, and a mask."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 1), nn.Linear(2, 2))
        self.register_buffer("mask", torch.randn(3, 2, 3, 3))


@pytest.mark.parametrize("ambiguous", [True, False])
def test_weights_alone_are_laid_out_and_keep_their_values(ambiguous):
    network = Masked()
    weights, values = list(network.parameters()), {n: v.clone() for n, v in network.state_dict().items()}
    prepare_networks([network], channels_last=False, compile=False)
    assert network.layers[0].weight.is_contiguous()
    prepare_networks([network], channels_last=True, compile=False, ambiguous=ambiguous)
    assert all(a is b for a, b in zip(weights, network.parameters(), strict=True))
    assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
    assert network.layers[0].weight.is_contiguous(memory_format=LAST)
    assert network.mask.is_contiguous()
    # A kernel of one pixel lies in both layouts, and says what a convolution is to do with an input of the other.
    given = network.layers[1](torch.randn(2, 3, 5, 5))
    assert given.is_contiguous(memory_format=LAST) == ambiguous


class Line(TrainedModule):
    """One weight, whose gradient is always 1."""

    def __init__(self, **settings):
        super().__init__((1, 1, 1))
        self.save_hyperparameters()
        self.encoder = self.decoder = nn.Linear(1, 1, bias=False)
        self.declare_training(**settings)
        nn.init.zeros_(self.encoder.weight)

    def training_step(self, batch, batch_idx):
        return self.encoder.weight.sum()


@pytest.mark.parametrize("lr", [0.1, 7.0])
def test_a_schedule_of_rates_may_start_from_zero_and_holds_for_any_optimizer(lr):
    warm_up = Piecewise(((0, 0.0), (2, 0.5), (3, 0.25)))
    model = Line(learning_rate=warm_up, optimizer=partial(torch.optim.SGD, lr=lr))
    trainer = pl.Trainer(
        max_steps=5, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(model, DataLoader(torch.zeros(5, 1, 1, 1)))
    assert model.encoder.weight.item() == pytest.approx(-(0 + 0.25 + 0.5 + 0.25 + 0.25))


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match="learning_rate must be above 0"):
        Line(learning_rate=0.0)
    with pytest.raises(ValueError, match="a schedule of steps, got one of images"):
        Line(learning_rate=Linear(1.0, 0.0, 10, by="images"))
