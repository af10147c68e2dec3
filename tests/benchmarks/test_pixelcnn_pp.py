"""The port that PixelCNN++ is timed against computes the same."""

import pytest
import torch

from benchmarks.pixelcnn_pp import copy_weights, largest_difference, our_step, ours_and_port, port_step
from lightning_gen.losses.categorical import levels_to_images


@pytest.fixture
def images():
    torch.manual_seed(0)  # of the weights too
    levels = torch.randint(256, (3, 3, 12, 8))
    return levels_to_images(levels, 256, torch.float64)


def test_with_our_weights_the_port_gives_our_likelihood(images):
    model, port = ours_and_port(6, 2, images)
    with torch.no_grad():
        model.network.last.g.mul_(0.1)  # wide components: no mass is below 1e-5, where the port has an approximation
    assert largest_difference(model, port, images) > 1e-3
    copy_weights(model.network, port)
    assert largest_difference(model, port, images) < 1e-13  # some rounding of 5 nats


def test_both_have_as_many_parameters(images):
    model, port = ours_and_port(6, 2, images)
    ours, theirs = (sum(p.numel() for p in network.parameters()) for network in (model.network, port))
    assert ours == theirs


def test_both_steps_learn(images):
    images = images.float()
    model, port = ours_and_port(6, 1, images)
    before = {name: parameter.clone() for name, parameter in port.named_parameters()}
    port_step(port, model, images)()
    moved = [name for name, parameter in port.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == list(before)
    weights = [parameter.clone() for parameter in model.network.parameters()]
    our_step(model, images, "bf16-mixed")()
    # The step has a network of its own, so that all contestants start from the same weights.
    assert all(map(torch.equal, weights, model.network.parameters()))
