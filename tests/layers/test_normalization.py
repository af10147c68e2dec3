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
