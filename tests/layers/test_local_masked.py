from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.local_masked import LocallyMaskedConv2d, local_taps
from lightning_gen.layers.masked import at_pixel
from lightning_gen.layers.orders import generalized_hilbert_order, local_masks, random_order, raster_order

SIZES = [(3, 1), (3, 2), ((3, 5), (2, 1)), ((1, 3), 3), (1, 1)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def features_and_layer(kernel_size=3, dilation=1, *, batch=2, channels=3, height=5, width=4, bias=True):
    layer = LocallyMaskedConv2d(channels, 6, kernel_size, dilation, bias).double()
    return torch.randn(batch, channels, height, width, dtype=torch.float64), layer


def written_out(layer, features, mask):
    """Each product of the sum, one by one."""
    (kernel_height, kernel_width), (rows, columns) = layer.kernel_size, layer.dilation
    height, width = features.shape[2:]
    result = layer.bias[:, None, None].repeat(len(features), 1, height, width)
    for number, picture in enumerate(features):
        of_picture = mask if mask.ndim == 2 else mask[number]
        for row in range(height):
            for column in range(width):
                for tap in range(kernel_height * kernel_width):
                    i, j = divmod(tap, kernel_width)
                    y = row + (i - kernel_height // 2) * rows
                    x = column + (j - kernel_width // 2) * columns
                    if 0 <= y < height and 0 <= x < width:
                        seen = picture[:, y, x] * of_picture[tap, row * width + column]
                        result[number, :, row, column] += layer.weight[:, :, i, j] @ seen
    return result


def plain(layer, features, mask):
    """The same by autograd alone, which keeps the columns."""
    columns = F.unfold(features, layer.kernel_size, layer.dilation, layer.padding)
    columns = (columns.unflatten(1, (-1, len(mask))) * mask).flatten(1, 2)
    return (layer.weight.flatten(1) @ columns).unflatten(2, features.shape[2:]) + layer.bias[:, None, None]


def peak_memory(function):
    """The most bytes that the tensors made by a function take at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel_size", "dilation"), SIZES)
def test_it_is_a_convolution_where_everything_is_seen(kernel_size, dilation):
    features, layer = features_and_layer(kernel_size, dilation)
    full = torch.ones(layer.weight[0, 0].numel(), 20, dtype=torch.bool)
    usual = nn.Conv2d(3, 6, layer.kernel_size, padding=layer.padding, dilation=layer.dilation).double()
    usual.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(features, full), usual(features))


@pytest.mark.parametrize(("kernel_size", "dilation"), SIZES)
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_in_the_raster_order_it_is_the_convolution_with_masked_weights(kernel_size, dilation, mask_type):
    features, layer = features_and_layer(kernel_size, dilation)
    weight = layer.weight.flatten(2).clone()
    weight[..., weight.shape[2] // 2 + (mask_type == "B") :] = 0
    expected = F.conv2d(features, weight.view_as(layer.weight), layer.bias, 1, layer.padding, layer.dilation)
    mask = local_masks(raster_order(5, 4), 5, 4, kernel_size, dilation, mask_type=mask_type)
    torch.testing.assert_close(layer(features, mask), expected)


@pytest.mark.parametrize(("kernel_size", "dilation"), SIZES)
@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_any_mask_gives_the_sum_written_out(kernel_size, dilation, shape, dtype):
    features, layer = features_and_layer(kernel_size, dilation)
    mask = torch.rand(*shape, layer.weight[0, 0].numel(), 20, dtype=torch.float64)
    mask = mask > 0.5 if dtype == torch.bool else mask
    with torch.no_grad():
        torch.testing.assert_close(layer(features, mask), written_out(layer, features, mask))


def test_what_is_masked_may_be_anything():
    order = generalized_hilbert_order(5, 4)
    mask = local_masks(order, 5, 4, 3, mask_type="A")
    features, layer = features_and_layer()
    late = order[10:]
    poisoned = features.flatten(2).index_fill(2, late, torch.nan).view_as(features).requires_grad_()
    known = torch.ones(20, dtype=torch.bool).index_fill(0, late[1:], False).view(5, 4)
    result = layer(poisoned, mask)
    torch.testing.assert_close(result[..., known], layer(features, mask)[..., known])
    result[..., known].sum().backward()
    assert (poisoned.grad.flatten(2)[..., late] == 0).all()


# -- gradients and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_gradients_and_theirs_are_those_of_finite_differences(shape, dtype):
    features, layer = features_and_layer(3, 2, channels=2, height=3, width=4)
    mask = torch.rand(*shape, 9, 12, dtype=torch.float64)
    mask = mask > 0.5 if dtype == torch.bool else mask
    parameters = dict(layer.named_parameters())

    def function(features, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (features, mask))

    inputs = [tensor.detach().requires_grad_() for tensor in (features, *parameters.values())]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_columns_of_one_layer_only_exist_at_a_time():
    # Of 8 layers with few channels, so that columns are what counts: 9 x 16 of [2, 32 * 32] float64.
    layers = nn.ModuleList(LocallyMaskedConv2d(16, 16, 3).double() for _ in range(8))
    features = torch.randn(2, 16, 32, 32, dtype=torch.float64)
    mask = local_masks(random_order(32, 32), 32, 32, 3, mask_type="B")
    columns = features.nbytes * 9

    def peak_of(apply):
        def forward_and_backward():
            hidden = features
            for layer in layers:
                hidden = apply(layer, hidden, mask)
            hidden.sum().backward()

        return peak_memory(forward_and_backward) / columns

    # The inputs of the layers are 1/9 of a layer's columns each; a gradient or two of that size come on top.
    assert peak_of(lambda layer, features, mask: layer(features, mask)) < 1 + 10 / 9 + 0.1
    assert peak_of(plain) > 8


# -- one pixel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel_size", "dilation"), SIZES)
@pytest.mark.parametrize("mask_type", ["A", "B", "full"])
def test_a_step_is_one_pixel_of_the_whole(kernel_size, dilation, mask_type):
    features, layer = features_and_layer(kernel_size, dilation)
    if mask_type == "full":
        mask = torch.ones(layer.weight[0, 0].numel(), 20, dtype=torch.bool)
    else:
        mask = local_masks(random_order(5, 4), 5, 4, kernel_size, dilation, mask_type=mask_type)
    taps = local_taps(mask, 5, 4, kernel_size, dilation)
    known, matrix = F.pad(features.flatten(2), (0, 1)).mT, layer.matrix()
    expected = layer(features, mask).flatten(2).detach()
    torch.testing.assert_close(torch.stack([at_pixel(known, of_pixel, matrix) for of_pixel in taps], dim=2), expected)
    assert not any(part.requires_grad for part in matrix)
    layer.to(memory_format=torch.channels_last)
    assert torch.equal(layer.matrix()[0], matrix[0])

    used = (taps < 20).any(0).nonzero().flatten()  # those that no pixel uses are as good as not there
    taps, matrix = taps[:, used], layer.matrix(used)
    assert matrix[0].shape == (6, 3 * len(used))
    torch.testing.assert_close(torch.stack([at_pixel(known, of_pixel, matrix) for of_pixel in taps], dim=2), expected)


def test_the_taps_of_a_raster_are_those_above_and_to_the_left():
    mask = local_masks(raster_order(5, 4), 5, 4, 3, mask_type="B")
    taps = local_taps(mask, 5, 4, 3)
    assert taps[6].tolist() == [1, 2, 3, 5, 6, 20, 20, 20, 20]
    assert taps[3].tolist() == [20, 20, 20, 2, 3, 20, 20, 20, 20]
    assert features_and_layer(bias=False)[1].matrix()[1] is None


# -- as a module ------------------------------------------------------------------------------------------------------


def test_it_compiles_in_one_graph():
    features, layer = features_and_layer()
    mask = local_masks(random_order(5, 4), 5, 4, 3, mask_type="B")
    features.requires_grad_()
    expected, inputs = layer(features, mask), (features, *layer.parameters())
    result = torch.compile(layer, fullgraph=True, backend="eager")(features, mask)
    torch.testing.assert_close(result, expected)
    for gradient, other in zip(
        torch.autograd.grad(result.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, other)


def test_autocast_computes_in_halves_forward_and_backward():
    features, layer = features_and_layer()
    features, layer = features.float().requires_grad_(), layer.float()
    mask = local_masks(random_order(5, 4), 5, 4, 3, mask_type="B")
    inputs = (features, *layer.parameters())
    full = torch.autograd.grad(layer(features, mask).square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(features, mask)
    assert result.dtype == torch.bfloat16
    for half, gradient in zip(torch.autograd.grad(result.float().square().sum(), inputs), full, strict=True):
        assert half.dtype == torch.float32
        assert (half - gradient).norm() < 0.02 * gradient.norm()  # bfloat16 has 8 bits


def test_without_bias():
    features, layer = features_and_layer(bias=False)
    mask = local_masks(random_order(5, 4), 5, 4, 3, mask_type="A")
    result = layer(features, mask).flatten(2)
    assert (result[..., random_order(5, 4)[0]] == 0).all()
    assert result.any()


# -- errors -----------------------------------------------------------------------------------------------------------


def test_even_kernels_and_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"centre only if its sides are odd, got \(3, 4\)"):
        LocallyMaskedConv2d(1, 1, (3, 4))
    features, layer = features_and_layer()
    for shape in [(9, 19), (8, 20), (3, 9, 20), (1, 9, 20), (20,), (2, 1, 9, 20)]:
        with pytest.raises(ValueError, match=r"must be \[9, 20\] or \[2, 9, 20\], got"):
            layer(features, torch.ones(shape, dtype=torch.bool))
