import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.resampling import DownsamplingConv2d, UpsamplingConv2d

SIZES = [(2, 3), (5, 8), (7, 7)]


def two_steps(layer: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, UpsamplingConv2d):
        return F.conv2d(F.interpolate(features, scale_factor=2), layer.weight, layer.bias, padding=1)
    return F.avg_pool2d(F.conv2d(features, layer.weight, layer.bias, padding=1), 2)


@pytest.mark.parametrize("layer_class", [UpsamplingConv2d, DownsamplingConv2d])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_step_equals_two_in_values_and_gradients(layer_class, size, layout):
    torch.manual_seed(0)
    layer = layer_class(3, 5).double()
    features = torch.randn(2, 3, *size).double().contiguous(memory_format=layout).requires_grad_()
    result, expected = layer(features), two_steps(layer, features)
    torch.testing.assert_close(result, expected)
    wrt, upstream = (features, layer.weight, layer.bias), torch.randn_like(expected)
    for own, other in zip(
        torch.autograd.grad(result, wrt, upstream), torch.autograd.grad(expected, wrt, upstream), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_the_mean_of_a_constant_picture_is_the_constant_away_from_the_border():
    layer = DownsamplingConv2d(1, 1)
    nn.init.constant_(layer.weight, 1 / 9)
    nn.init.zeros_(layer.bias)
    torch.testing.assert_close(layer(torch.ones(1, 1, 8, 8))[..., 1:-1, 1:-1], torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("layer_class", [UpsamplingConv2d, DownsamplingConv2d])
def test_parameters_and_second_derivatives_are_those_of_the_convolution(layer_class):
    torch.manual_seed(0)
    layer = layer_class(2, 2).double()
    assert {name: p.shape for name, p in layer.named_parameters()} == {"weight": (2, 2, 3, 3), "bias": (2,)}
    features = torch.randn(1, 2, 2, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), features)


def test_other_devices_take_the_two_steps_to_the_same_shape():
    layer = UpsamplingConv2d(2, 5)
    features = torch.zeros(3, 2, 4, 6)
    assert layer.to("meta")(features.to("meta")).shape == (3, 5, 8, 12)
