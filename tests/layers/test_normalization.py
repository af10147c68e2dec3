import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.normalization import InstanceNorm2d, norm_layer

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upstream", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 4, 16])
def test_values_and_gradients_equal_the_formula_in_every_layout(batch, layout, upstream, channels):
    torch.manual_seed(0)
    features, gradient = torch.randn(2, batch, channels, 6, 8).double().unbind()
    exact = features.clone().requires_grad_()
    variance, mean = torch.var_mean(exact, dim=(2, 3), keepdim=True, correction=0)
    expected = (exact - mean) / (variance + 1e-5).sqrt()
    expected.backward(gradient)

    own = features.float().contiguous(memory_format=layout).requires_grad_()
    result = InstanceNorm2d()(own)
    result.backward(gradient.float().contiguous(memory_format=upstream))
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mean", "deviation", "exact_to"), [(0, 1, 2e-7), (10, 0.1, 1e-5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_pictures_keep_the_digits(layout, mean, deviation, exact_to):
    """Around 10, a deviation of 0.1 leaves 1e-2 of what float32 has; adding number by number loses far more."""
    torch.manual_seed(0)
    features, gradient = torch.randn(2, 1, 4, 256, 256).unbind()
    features = features.mul_(deviation).add_(mean)
    exact = features.double().requires_grad_()
    expected = (exact - exact.mean((2, 3), keepdim=True)) / (
        exact.var((2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    expected.backward(gradient.double())

    own = features.contiguous(memory_format=layout).requires_grad_()
    result = InstanceNorm2d()(own)
    result.backward(gradient.contiguous(memory_format=layout))
    for found, true in ((result, expected), (own.grad, exact.grad)):
        assert (found.double() - true).norm() / true.norm() < exact_to


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_a_gpu_it_is_the_same(layout):
    torch.manual_seed(0)
    features, gradient = torch.randn(2, 3, 8, 64, 64).unbind()
    expected = features.double().requires_grad_()
    F.instance_norm(expected).backward(gradient.double())
    own = features.cuda().contiguous(memory_format=layout).requires_grad_()
    result = InstanceNorm2d()(own)
    result.backward(gradient.cuda().contiguous(memory_format=layout))
    assert result.is_contiguous(memory_format=layout)
    torch.testing.assert_close(result.cpu().double(), F.instance_norm(features.double()), rtol=0, atol=1e-5)
    torch.testing.assert_close(own.grad.cpu().double(), expected.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_gradient(layout):
    """Of a gradient penalty on a critic with instance norm."""
    torch.manual_seed(0)
    drawn = torch.randn(3, 2, 4, 6, 8).double().unbind()

    def twice(norm, dtype):
        features, upstream, direction = (each.to(dtype).contiguous(memory_format=layout) for each in drawn)
        leaves = features.requires_grad_(), upstream.requires_grad_()
        (gradient,) = torch.autograd.grad(norm(leaves[0]), leaves[0], leaves[1], create_graph=True)
        return torch.autograd.grad((gradient * direction).sum() + gradient.square().sum(), leaves)

    for found, true in zip(twice(InstanceNorm2d(), torch.float32), twice(F.instance_norm, torch.float64), strict=True):
        torch.testing.assert_close(found.double(), true, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_can_be_exported_after_weights_that_want_gradients(layout):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), InstanceNorm2d()).to(memory_format=layout)
    images = torch.randn(1, 2, 6, 7).contiguous(memory_format=layout)
    torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), network(images))


def test_it_is_what_torch_calls_instance_norm():
    features = torch.randn(3, 5, 7, 9)
    torch.testing.assert_close(InstanceNorm2d()(features), F.instance_norm(features), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = InstanceNorm2d()(features.bfloat16())
    # bfloat16 has 8 bits of precision; values lie within +-4.
    torch.testing.assert_close(half.float(), F.instance_norm(features), rtol=0, atol=4 * 2**-7)


def test_layers_by_name():
    assert norm_layer("none", 3) == []
    assert not list(norm_layer("instance", 3)[0].parameters())
    (batch,) = norm_layer("batch", 3)
    assert isinstance(batch, nn.BatchNorm2d)
    assert batch.affine
    assert batch.track_running_stats
    with pytest.raises(ValueError, match="got 'layer'"):
        norm_layer("layer", 3)
