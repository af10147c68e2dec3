"""Layers in order, and the first of them frozen."""

import re
from functools import partial

import pytest
from torch import nn

from lightning_gen.layers.freezing import freeze_first, layers_in_order
from lightning_gen.networks import (
    DCGANDiscriminator,
    MLPDiscriminator,
    PatchDiscriminator,
    PixelDiscriminator,
    ProGANDiscriminator,
    R3GANDiscriminator,
    ResidualDiscriminator,
    StyleGANDiscriminator,
)

SHAPE = (3, 32, 32)


def names_of(network):
    """The modules with weights of each layer, by name."""
    names = {module: name for name, module in network.named_modules()}
    return [
        [names[module] for module in layer if any(True for _ in module.parameters())]
        for layer in layers_in_order(network)
    ]


# Of each network its layers, from the picture on.
DISCRIMINATORS = {
    "dcgan": (DCGANDiscriminator, [["layers.0"], ["layers.2", "layers.3"], ["layers.5", "layers.6"], ["layers.9"]]),
    "spectral": (
        partial(DCGANDiscriminator, norm="none", spectral_norm="reshape"),
        [["layers.0"], ["layers.2"], ["layers.4"], ["layers.7"]],
    ),
    "patch": (partial(PatchDiscriminator, layers=1, norm="none"), [["layers.0"], ["layers.2"], ["layers.4"]]),
    "pixel": (partial(PixelDiscriminator, norm="batch"), [["layers.0"], ["layers.2", "layers.3"], ["layers.5"]]),
    "mlp": (MLPDiscriminator, [["layers.1"], ["layers.4"], ["layers.7"]]),
    "residual": (
        partial(ResidualDiscriminator, norm="batch", num_classes=2),
        [["features.0"], ["features.1"], ["features.2"], ["features.3", "features.4"], ["score", "embedding"]],
    ),
    # By resolution, the highest first.
    "progan": (
        ProGANDiscriminator,
        [
            ["from_image.3", "blocks.2"],
            ["from_image.2", "blocks.1"],
            ["from_image.1", "blocks.0"],
            ["from_image.0", "head"],
        ],
    ),
    "stylegan": (
        partial(StyleGANDiscriminator, base=(16, 16)),
        [["from_image.1", "blocks.0"], ["from_image.0", "head"]],
    ),
    "r3gan": (
        partial(R3GANDiscriminator, num_classes=2),
        [["body.0"], ["body.1"], ["body.3"], ["body.5"], ["body.7"], ["body.8"], ["score", "embedding"]],
    ),
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_layers_come_from_the_picture_on_and_are_all_there_is(name):
    make, expected = DISCRIMINATORS[name]
    network = (make.func if isinstance(make, partial) else make).small
    network = make(SHAPE, **{key: value for key, value in network.items() if key not in getattr(make, "keywords", {})})
    assert names_of(network) == expected
    parameters = [p for layer in layers_in_order(network) for module in layer for p in module.parameters()]
    assert {*map(id, parameters)} == {*map(id, network.parameters())}
    for number in range(len(expected)):
        freeze_first(network, number)
        still = [p for layer in layers_in_order(network)[:number] for module in layer for p in module.parameters()]
        assert {*map(id, still)} == {id(p) for p in network.parameters() if not p.requires_grad}


def test_a_sequence_is_its_own_order():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
    assert names_of(network) == [["1"], ["3"]]


def test_too_many_layers_are_refused_by_a_list():
    network = PatchDiscriminator(SHAPE, filters=2, layers=1, norm="batch")
    words = (
        "PatchDiscriminator has 3 layers, from the picture on: layers.0, layers.2 + layers.3, layers.5. At least the "
        "last must learn, so at most 2 can be frozen; got 3."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        freeze_first(network, 3)
    assert all(parameter.requires_grad for parameter in network.parameters())


class Crossed(nn.Module):
    """Two layers, of which nobody can say which comes first."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(2, 1), nn.Linear(2, 2)

    def forward(self, images):
        return self.second(self.first(images))


def test_an_unknown_order_is_refused_unless_the_network_tells_it():
    network = Crossed()
    freeze_first(network, 0)
    with pytest.raises(ValueError, match=r"Crossed come is unknown, .* it has second, first\. Give it a method"):
        freeze_first(network, 1)
    network.layers_in_order = lambda: [[network.first], [network.second]]
    freeze_first(network, 1)
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False]
