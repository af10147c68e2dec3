"""Scaled weights against the plain layers with the product, and what the scale is for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers import EqualizedConv2d, EqualizedLinear
from lightning_gen.layers.resampling import DownsamplingConv2d, UpsamplingConv2d


def plain(layer, features):
    """The two steps, with weights that are scaled beforehand."""
    scale = math.sqrt(2 / (layer.weight.shape[1] * layer.weight.shape[-1] ** 2))
    if layer.resample == "up":
        features = F.interpolate(features, scale_factor=2)
    result = F.conv2d(features, scale * layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
    return F.avg_pool2d(result, 2) if layer.resample == "down" else result


@pytest.mark.parametrize(("resample", "kernel"), [("none", 1), ("none", 3), ("up", 3), ("down", 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_fused_step_equals_the_plain_ones_in_values_and_gradients(resample, kernel, bias, layout):
    torch.manual_seed(0)
    layer = EqualizedConv2d(3, 5, kernel, resample=resample, bias=bias).double()
    if bias:
        nn.init.normal_(layer.bias)
    features = torch.randn(2, 3, 4, 6).double().contiguous(memory_format=layout).requires_grad_()
    result, expected = layer(features), plain(layer, features)
    torch.testing.assert_close(result, expected)
    wrt, upstream = (features, *layer.parameters()), torch.randn_like(expected)
    own, other = (torch.autograd.grad(each, wrt, upstream) for each in (result, expected))
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("layer_class", "resample"), [(UpsamplingConv2d, "up"), (DownsamplingConv2d, "down")])
def test_it_is_the_layer_without_a_scale_with_other_weights(layer_class, resample):
    torch.manual_seed(0)
    scaled, other = EqualizedConv2d(3, 4, 3, resample=resample, gain=1.0), layer_class(3, 4)
    other.load_state_dict({"weight": scaled.weight / math.sqrt(27), "bias": scaled.bias})
    features = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(scaled(features), other(features))


@pytest.mark.parametrize("multiplier", [1.0, 0.01])
@pytest.mark.parametrize("width", [64, 1024])
def test_the_scale_of_the_result_depends_neither_on_the_width_nor_on_how_fast_a_layer_learns(width, multiplier):
    torch.manual_seed(0)
    layer = EqualizedLinear(width, 512, gain=1.5, lr_multiplier=multiplier)
    assert layer.weight.std().item() == pytest.approx(1 / multiplier, rel=0.02)
    # Of 131,072 results, in rows of 512 that share an input: the error is below 2 %.
    assert layer(torch.randn(256, width)).std().item() == pytest.approx(1.5, rel=0.06)


def test_a_step_of_adam_moves_what_is_used_by_the_multiplier():
    moved = []
    for multiplier in (1.0, 0.01):
        torch.manual_seed(0)
        layer = EqualizedLinear(8, 4, lr_multiplier=multiplier)
        features = torch.randn(16, 8)
        before = layer(features).detach()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, eps=1e-16)
        layer(features).square().mean().backward()
        optimizer.step()
        moved.append(layer(features).detach() - before)
    torch.testing.assert_close(moved[1], 0.01 * moved[0], rtol=1e-2, atol=1e-6)
