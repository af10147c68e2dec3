import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.convolution import ReflectConv2d, conv2d, same_conv


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_torchs_reflecting_convolution(kernel_size, layout):
    ours = ReflectConv2d(3, 5, kernel_size).to(memory_format=layout)
    theirs = nn.Conv2d(3, 5, kernel_size, padding=kernel_size // 2, padding_mode="reflect")
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, 3, 9, 12)
    for result in (a := ours(features), b := theirs(features)):
        result.square().sum().backward()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ours(features)
        torch.testing.assert_close(half, theirs(features), rtol=0, atol=2**-6 * b.abs().max().item())
    assert half.dtype == torch.bfloat16


def test_both_paddings_keep_the_size():
    for reflect in (True, False):
        conv = same_conv(1, 2, 7, reflect=reflect, bias=False)
        assert conv(torch.zeros(1, 1, 8, 5)).shape == (1, 2, 8, 5)
        assert conv.bias is None
        assert isinstance(conv, ReflectConv2d) == reflect


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (1, 1, 0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_of_both_orders_are_those_of_torchs_convolution(kernel, stride, padding, layout, bias):
    torch.manual_seed(0)
    wrt = [torch.randn(2, 3, 6, 9), torch.randn(5, 3, kernel, kernel), torch.randn(5)][: 2 + bias]
    wrt = [each.double() for each in wrt]
    wrt[0] = wrt[0].contiguous(memory_format=layout)
    wrt = [each.requires_grad_() for each in wrt]
    found = []
    for function in (conv2d, F.conv2d):
        result = function(*wrt, stride=stride, padding=padding)
        (by_input,) = torch.autograd.grad(result.tanh().sum(), wrt[0], create_graph=True)
        penalty = by_input.pow(2).sum() + result.pow(3).sum()
        found.append([result, by_input, *torch.autograd.grad(penalty, wrt)])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)
    assert torch.autograd.gradgradcheck(lambda *given: conv2d(*given, stride=stride, padding=padding), tuple(wrt))


def test_under_autocast_and_without_gradients_it_is_torchs_own():
    torch.manual_seed(0)
    features, weight = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = conv2d(features, weight, padding=1)
        assert torch.equal(result, F.conv2d(features, weight, padding=1))
    assert result.dtype == torch.bfloat16
    with torch.no_grad():
        assert not conv2d(features, weight).requires_grad
        assert conv2d(features.to("meta"), weight.to("meta")).shape == (2, 4, 4, 4)
