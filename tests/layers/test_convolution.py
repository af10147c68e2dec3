import pytest
import torch
from torch import nn

from lightning_gen.layers.convolution import ReflectConv2d, same_conv


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
