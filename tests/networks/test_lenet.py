"""LeNet: its size, what its features are, and that it sees the whole picture."""

import pytest
import torch
from torch import nn

from lightning_gen.networks.lenet import LeNet

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 11, 17), (2, 9, 30)]


def random_lenet(shape, **settings):
    """In evaluation mode, with running statistics unlike those it starts with."""
    torch.manual_seed(0)
    network = LeNet(shape, **settings)
    for _ in range(3):
        network(torch.randn(8, *shape))
    return network.eval()


def test_the_number_of_parameters_for_mnist_is_that_of_the_docstring():
    assert sum(p.numel() for p in LeNet((1, 28, 28)).parameters()) == 114_426


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("num_classes", "num_features"), [(10, 64), (3, 7)])
def test_the_number_of_parameters_in_closed_form(shape, num_classes, num_features):
    channels, height, width = shape
    with torch.device("meta"):
        network = LeNet(shape, num_classes=num_classes, num_features=num_features)
    convolutions = 25 * (channels * 16 + 16 * 32)
    hidden = 32 * (height // 4) * (width // 4) * num_features
    norms = 2 * (16 + 32 + num_features)
    assert sum(p.numel() for p in network.parameters()) == (
        convolutions + hidden + norms + num_features * num_classes + num_classes
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_not_negative_and_logits_are_linear_in_them(shape):
    network = random_lenet(shape, num_classes=3, num_features=7)
    features, logits = network(torch.randn(40, *shape))
    assert features.shape == (40, 7)
    assert logits.shape == (40, 3)
    assert features.min() == 0  # some are off,
    assert (features > 0).any(0).all()  # and none for good
    torch.testing.assert_close(logits, features @ network.head.weight.T + network.head.bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_counts(shape):
    network = random_lenet(shape)
    images = torch.randn(16, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images)[0].sum(), images)
    assert (gradient.abs().amax(0) > 0).all()


def test_features_of_a_picture_do_not_depend_on_the_others_in_evaluation():
    network = random_lenet((1, 28, 28))
    images = torch.randn(5, 1, 28, 28)
    alone = torch.cat([network(image)[0] for image in images.split(1)])
    torch.testing.assert_close(network(images)[0], alone, rtol=1e-4, atol=1e-5)  # sums in another order


def test_dropout_is_before_the_head_and_in_training_only():
    network = random_lenet((1, 8, 8))
    images = torch.randn(16, 1, 8, 8)
    assert torch.equal(network(images)[1], network(images)[1])
    for module in network.modules():
        module.train(isinstance(module, nn.Dropout))
    (first, one), (second, other) = network(images), network(images)
    assert torch.equal(first, second)
    assert not torch.equal(one, other)


def test_layout_in_memory_is_kept_when_weights_are_loaded():
    """It is what makes the network fast, and changes no number."""
    saved = {name: tensor.contiguous() for name, tensor in random_lenet((3, 8, 8)).state_dict().items()}
    network = LeNet((3, 8, 8)).eval()
    network.load_state_dict(saved)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(network(images), random_lenet((3, 8, 8))(images))


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 7, 28), {}, "at least 8 x 8 pixels, got 7 x 28"),
        ((1, 28, 7), {}, "at least 8 x 8 pixels, got 28 x 7"),
        ((28, 28), {}, "channels, height, width"),
        ((1, 8, 8), {"num_classes": 1}, "num_classes >= 2"),
        ((1, 8, 8), {"num_features": 0}, "num_features >= 1"),
    ],
)
def test_what_cannot_be_built_is_refused(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        LeNet(shape, **settings)
