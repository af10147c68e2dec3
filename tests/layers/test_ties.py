"""Samples that depend on each other: who says so, and what callers do about it."""

import functools
from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_gen.layers.ties import moving_once, on_both, ties_samples
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator

SHAPE = (3, 16, 16)
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)


class Deviation(nn.Module):
    """The deviation over the samples of a call as one more feature, as in 1710.10196."""

    def forward(self, images):
        deviation = images.std(dim=0, correction=0).mean()
        return torch.cat([images.flatten(1), deviation.expand(len(images), 1)], dim=1)


class Tied(Deviation):
    ties_samples = True


def tied_by_itself():
    layer = Deviation()
    layer.ties_samples = True
    return layer


class Known(nn.BatchNorm2d):
    """Batch norm by running statistics alone, for which it answers."""

    ties_samples = False


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Tied(), True),
        (tied_by_itself(), True),
        (nn.BatchNorm1d(2), True),
        (nn.SyncBatchNorm(2), True),
        (Known(2), False),
        (Deviation(), False),
        (nn.InstanceNorm2d(2, affine=True), False),
        (nn.GroupNorm(1, 2), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_who_ties_samples(layer, expected):
    assert ties_samples(nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer))) is expected


def test_statistics_of_a_minibatch_are_those_of_one_kind_of_pictures():
    """Of collapsed fakes it is zero; with real ones in the same call the layer could not see that."""
    draw = torch.Generator().manual_seed(0)
    real, fake = torch.randn(8, 1, 4, 4, generator=draw), torch.randn(1, 1, 4, 4, generator=draw).expand(8, -1, -1, -1)
    scores = {}
    for layer in (Tied(), Deviation()):
        torch.manual_seed(0)
        critic = nn.Sequential(layer, nn.Linear(17, 1))
        scores[type(layer)] = on_both(critic, real, fake)
        apart = critic(real), critic(fake)
        assert all(torch.equal(a, b) for a, b in zip(scores[type(layer)], apart, strict=True)) == (
            layer.__class__ is Tied
        )
    assert Tied()(fake)[:, -1].abs().max() < 1e-6
    # What goes wrong in silence where a layer does not say it.
    assert not torch.allclose(scores[Tied][0], scores[Deviation][0], atol=1e-3)


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_running_statistics_move_once_a_batch(pieces):
    norm = nn.BatchNorm2d(2, momentum=0.3)
    norm.running_mean.fill_(7.0)
    batch = torch.rand(10, 2, 3, 3)
    for piece, images in enumerate(batch.tensor_split(pieces)):
        with moving_once(nn.Sequential(norm), piece, pieces):
            norm(images)
    torch.testing.assert_close(norm.running_mean, 0.7 * torch.full((2,), 7.0) + 0.3 * batch.mean((0, 2, 3)))
    assert norm.momentum == 0.3


class Calls(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.sizes = network, []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.network(images)


@pytest.mark.parametrize("network", [GENERATOR, DISCRIMINATOR], ids=["generator", "discriminator"])
def test_with_instance_norm_one_call_equals_two(network):
    network = Calls(network(SHAPE))
    first, second = torch.randn(2, *SHAPE), torch.randn(3, *SHAPE)
    joined = on_both(network, first, second)
    assert network.sizes == [5]
    for mine, images in zip(joined, (first, second), strict=True):
        torch.testing.assert_close(mine, network(images), rtol=1e-5, atol=1e-6)


def test_batch_norm_and_other_sizes_are_two_calls():
    batch = Calls(DISCRIMINATOR(SHAPE, norm="batch"))
    first, second = torch.randn(2, *SHAPE), torch.randn(3, *SHAPE)
    expected = deepcopy(batch.network)(first), deepcopy(batch.network)(second)
    assert all(torch.equal(a, b) for a, b in zip(on_both(batch, first, second), expected, strict=True))
    assert batch.sizes == [2, 3]

    sizes = Calls(DISCRIMINATOR(SHAPE))
    wide = torch.randn(2, 3, 16, 24)
    scores = on_both(sizes, first, wide)
    assert sizes.sizes == [2, 2]
    assert torch.equal(scores[1], sizes.network(wide))


class Matches(nn.Module):
    """Scores that tell which label stood beside which picture."""

    def __init__(self, norm=()):
        super().__init__()
        self.norm, self.calls = nn.Sequential(*norm), 0

    def forward(self, images, labels):
        self.calls += 1
        return images.flatten(1).sum(1) + 100 * labels


@pytest.mark.parametrize(("norm", "calls"), [((), 1), ((nn.BatchNorm2d(1),), 2)], ids=["one call", "two calls"])
def test_labels_stay_beside_their_pictures(norm, calls):
    network = Matches(norm)
    first, second = torch.rand(2, 1, 2, 2), torch.rand(3, 1, 2, 2)
    labels = torch.tensor([1, 2]), torch.tensor([3, 4, 5])
    scores = on_both(network, first, second, labels)
    assert network.calls == calls
    for mine, images, own in zip(scores, (first, second), labels, strict=True):
        assert torch.equal(mine, images.flatten(1).sum(1) + 100 * own)
