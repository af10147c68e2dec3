import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.weight_norm import (
    WeightNormalized,
    WeightNormConv2d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
    data_dependent_init,
)

LAYERS = {
    "conv": lambda: WeightNormConv2d(3, 4, (2, 3), padding=(1, 0), init_scale=0.1),
    "strided": lambda: WeightNormConv2d(3, 4, (2, 2), stride=2),
    "transposed": lambda: WeightNormConvTranspose2d(3, 4, (2, 3), stride=2, padding=(0, 1), output_padding=(0, 1)),
    "linear": lambda: WeightNormLinear(3, 4, axis=1, init_scale=2),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def features(count=5):
    return torch.randn(count, 3, 6, 4, dtype=torch.float64) * torch.tensor([1.0, 3, 0.1])[:, None, None] + 2


def outputs_of_each_layer(network, *inputs):
    """What each layer with weight norm gives, while the network runs."""
    outputs = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: outputs.setdefault(layer, output))
        for layer in network.modules()
        if isinstance(layer, WeightNormalized)
    ]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return outputs


# What the layers do


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_as_torchs_own_parametrization(name):
    layer, inputs = LAYERS[name]().double(), features()
    plain = {
        "conv": nn.Conv2d(3, 4, (2, 3), padding=(1, 0)),
        "strided": nn.Conv2d(3, 4, 2, stride=2),
        "transposed": nn.ConvTranspose2d(3, 4, (2, 3), stride=2, padding=(0, 1), output_padding=(0, 1)),
        "linear": nn.Linear(3, 4),
    }[name].double()
    axis = 1 if name == "transposed" else 0
    nn.utils.parametrizations.weight_norm(plain, dim=axis)
    with torch.no_grad():
        for weights in layer.parameters():
            weights.copy_(torch.randn(weights.shape))
        plain.parametrizations.weight.original0.copy_(layer.g.view_as(plain.parametrizations.weight.original0))
        plain.parametrizations.weight.original1.copy_(layer.v)
        plain.bias.copy_(layer.b)
    expected = plain(inputs) if name != "linear" else plain(inputs.movedim(1, -1)).movedim(-1, 1)
    result = layer(inputs)
    torch.testing.assert_close(result, expected)
    direction = torch.randn_like(result)
    for mine, other in zip(
        torch.autograd.grad((result * direction).sum(), (layer.v, layer.g, layer.b)),
        torch.autograd.grad(
            (expected * direction).sum(),
            (plain.parametrizations.weight.original1, plain.parametrizations.weight.original0, plain.bias),
        ),
        strict=True,
    ):
        torch.testing.assert_close(mine, other.view_as(mine))


@pytest.mark.parametrize("name", LAYERS)
def test_the_weights_of_each_output_have_length_g(name):
    layer = LAYERS[name]()
    torch.testing.assert_close(layer.g, torch.full((4,), float(layer.init_scale)))  # before there are data
    nn.init.uniform_(layer.g, 0.5, 2)
    weight = layer.weight().transpose(0, 1) if name == "transposed" else layer.weight()
    torch.testing.assert_close(weight.flatten(1).norm(dim=1), layer.g)
    assert not layer.b.any()


def test_v_starts_with_a_standard_deviation_of_a_twentieth():
    assert WeightNormConv2d(100, 100, (3, 3)).v.std().item() == pytest.approx(0.05, rel=0.02)


def test_a_linear_layer_takes_any_axis():
    last, second = WeightNormLinear(3, 4), WeightNormLinear(3, 4, axis=1)
    second.load_state_dict(last.state_dict())
    inputs = features().float()
    torch.testing.assert_close(second(inputs), last(inputs.movedim(1, -1)).movedim(-1, 1))
    expected = F.conv2d(inputs, second.weight()[:, :, None, None], second.b)
    torch.testing.assert_close(second(inputs), expected)


# Initialisation from data


@pytest.mark.parametrize("name", LAYERS)
def test_initialised_pre_activations_have_mean_0_and_the_wanted_deviation(name):
    layer, inputs = LAYERS[name]().double(), features()
    nn.init.constant_(layer.g, 7)
    nn.init.constant_(layer.b, -3)
    v = layer.v.clone()
    with data_dependent_init(layer):
        result = layer(inputs)
    assert torch.equal(layer.v, v)
    assert torch.equal(layer(inputs), result)  # it went on with what it had set
    assert not result.requires_grad
    by_channel = result.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)
    expected = torch.full((4,), float(layer.init_scale), dtype=torch.float64)
    torch.testing.assert_close(by_channel.std(1, correction=0), expected, rtol=1e-6, atol=0)


def network():
    return nn.Sequential(LAYERS["conv"](), nn.ELU(), WeightNormConv2d(4, 3), nn.Tanh(), LAYERS["transposed"]()).double()


def test_each_layer_is_fed_by_those_that_are_initialised_already():
    layers, inputs = network(), features()
    with data_dependent_init(layers):
        layers(inputs)
    for layer, output in outputs_of_each_layer(layers, inputs).items():
        by_channel = output.transpose(0, 1).flatten(1)
        assert by_channel.mean(1).abs().max() < 1e-9
        assert (by_channel.std(1, correction=0) - layer.init_scale).abs().max() < 1e-6

    before = copy.deepcopy(layers.state_dict())
    with data_dependent_init(layers):
        layers(inputs)
    for name, weights in layers.state_dict().items():
        torch.testing.assert_close(weights, before[name], rtol=1e-9, atol=1e-9)


def test_it_ends_with_the_context_also_after_an_error():
    layers, inputs = network(), features()
    with pytest.raises(RuntimeError), data_dependent_init(layers):
        layers(inputs[:, :2])
    before = copy.deepcopy(layers.state_dict())
    layers(inputs)
    assert all(torch.equal(weights, before[name]) for name, weights in layers.state_dict().items())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("called_before", [True, False])
def test_a_compiled_network_is_initialised_too_and_its_graph_does_not_go_on_with_that(called_before):
    layers, plain, inputs = network(), network(), features()
    plain.load_state_dict(layers.state_dict())
    layers.compile(fullgraph=True, backend="eager")
    if called_before:
        layers(inputs)
    with data_dependent_init(layers):
        layers(inputs)
    with data_dependent_init(plain):
        plain(inputs)
    before = copy.deepcopy(layers.state_dict())
    for grad in (True, False):  # without, as when it was initialised
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layers(inputs + 1), plain(inputs + 1))
    assert all(torch.equal(weights, before[name]) for name, weights in layers.state_dict().items())


def test_an_output_that_never_changes_gives_finite_weights():
    layer = WeightNormLinear(3, 4)
    with data_dependent_init(layer):
        result = layer(torch.ones(8, 3))
    assert result.isfinite().all()
    assert all(weights.isfinite().all() for weights in layer.parameters())


def test_halves_under_autocast():
    layer, inputs = WeightNormConv2d(3, 4, (2, 2)), features().float()
    with torch.autocast("cpu", torch.bfloat16), data_dependent_init(layer):
        assert layer(inputs).dtype == torch.bfloat16
    assert layer.g.dtype == torch.float32
    assert layer(inputs).std().item() == pytest.approx(1, rel=0.02)


# The usual


def test_parameters_have_plain_names_and_layers_can_be_copied_and_printed():
    layers = network()
    assert list(layers.state_dict())[:3] == ["0.v", "0.g", "0.b"]
    copied, inputs = copy.deepcopy(layers), features()
    assert torch.equal(copied(inputs), layers(inputs))
    assert copied[0].v is not layers[0].v
    assert "init_scale=0.1" in repr(layers)


@pytest.mark.parametrize("build", [lambda: WeightNormConv2d(0, 4), lambda: WeightNormLinear(3, 4, init_scale=0)])
def test_sizes_out_of_range_are_refused(build):
    with pytest.raises(ValueError, match="must be at least 1, and init_scale above 0"):
        build()
