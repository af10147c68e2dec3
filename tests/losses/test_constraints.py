import pytest
import torch
from torch import nn

from lightning_gen.losses.constraints import WeightClipping


def critic():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 1))


def test_weights_are_clipped_and_those_within_stay():
    network = critic()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    WeightClipping(0.1)(network)
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, old.clamp(-0.1, 0.1))
        assert parameter.requires_grad
    assert any((old.abs() < 0.1).any() and (old.abs() > 0.1).any() for old in before)
    assert network[1].weight.tolist() == pytest.approx(
        [0.1] * 4
    )  # from 1: the paper clips what batch norm lets through


def test_scales_of_normalisation_can_be_spared():
    network = critic()
    WeightClipping(0.1, normalization=False)(network)
    assert network[1].weight.tolist() == [1] * 4
    assert network[3].weight.tolist() == [1] * 4
    assert network[0].weight.abs().max() <= 0.1
    assert network[4].weight.abs().max() <= 0.1


def test_statistics_and_gradients_are_left_alone():
    network = critic()
    network(torch.randn(5, 1, 3, 3) * 9).sum().backward()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    WeightClipping(0.01)(network)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())
    assert buffers["1.running_var"].max() > 1
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("bound", [0, -0.01])
def test_bounds_that_leave_nothing_are_refused(bound):
    with pytest.raises(ValueError, match=f"needs a bound above 0, got {bound}"):
        WeightClipping(bound)
