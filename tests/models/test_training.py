"""What training shares in all families."""

import pytest
import torch
from torch import nn

from lightning_gen.models.training import prepare_networks

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
