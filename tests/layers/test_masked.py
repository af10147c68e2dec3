import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_gen.layers.masked import MaskedConv2d, VerticalConv2d, at_pixel, at_row, gated, shift_down


def conv(*arguments, seed: int = 0, **options) -> MaskedConv2d:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MaskedConv2d(*arguments, **options).double()


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sees(layer: MaskedConv2d, height: int = 5, width: int = 7) -> torch.Tensor:
    """Whether output (o, y, x) depends on input (i, v, u): bool `[out, H, W, in, H, W]`, by derivatives."""
    jacobian = torch.autograd.functional.jacobian(
        lambda x: layer(x[None])[0], pictures(layer.in_channels, height, width)
    )
    return jacobian != 0


@pytest.mark.parametrize("kernel", [1, 3, 5, (1, 5), (3, 5)])
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize(("channels", "inputs", "outputs", "parts"), [(1, 2, 2, 1), (3, 5, 8, 2), (4, 4, 6, 1)])
def test_an_output_depends_on_the_past_in_reach_and_on_nothing_else(
    kernel, mask_type, channels, inputs, outputs, parts
):
    layer = conv(inputs, outputs, kernel, mask_type, channels, out_parts=parts)
    up, aside = (kernel // 2,) * 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    dependence = sees(layer)
    for (o, y, x), (i, v, u) in product(product(range(outputs), range(5), range(7)), product(range(inputs), [2], [3])):
        to, source = (o % (outputs // parts)) % channels, i % channels
        in_reach = 0 <= y - v <= up and abs(u - x) <= aside
        earlier = v < y or (v == y and u < x)
        own = (v, u) == (y, x) and (source < to or (mask_type == "B" and source == to))
        assert dependence[o, y, x, i, v, u] == (in_reach and (earlier or own)), (o, y, x, i, v, u)


def test_it_is_the_convolution_with_the_whole_kernel_masked():
    layer = conv(3, 6, 5, "A", 3)
    whole = torch.zeros(6, 3, 5, 5, dtype=torch.float64)
    whole[:, :, :3] = layer.weight.detach()
    for o, i, y, x in product(range(6), range(3), range(5), range(5)):
        if (y, x) > (2, 2) or ((y, x) == (2, 2) and not i % 3 < o % 3):
            whole[o, i, y, x] = 0
    images = pictures(2, 3, 6, 7)
    torch.testing.assert_close(layer(images), F.conv2d(images, whole, layer.bias, padding=2))


@pytest.mark.parametrize(("features", "channels"), [(128, 3), (7, 3), (3, 3), (10, 4)])
def test_features_are_split_as_evenly_as_can_be(features, channels):
    # Mask B of 1 x 1: a feature of channel c sees all features of channels up to c, so the rows tell the groups' sizes.
    for parts in (1, 2):
        mask = conv(features, parts * features, 1, "B", channels, out_parts=parts).mask[..., 0, 0]
        for half in mask.chunk(parts):
            seen, sizes = half.sum(1).unique(return_counts=True)
            assert len(seen) == channels
            assert sizes.max() - sizes.min() <= 1
            assert torch.equal(seen, sizes.cumsum(0))


def test_the_weight_is_never_written_and_what_the_mask_hides_has_no_part():
    layer, images = conv(3, 6, 3, "B", 3), pictures(2, 3, 5, 4)
    before, version = layer.weight.detach().clone(), layer.weight._version
    result = layer(images)
    result.square().sum().backward()
    assert torch.equal(layer.weight, before)
    assert layer.weight._version == version
    assert not layer.mask.all()
    assert (layer.weight.grad[~layer.mask] == 0).all()
    assert (layer.weight.grad[layer.mask] != 0).all()
    with torch.no_grad():
        layer.weight[~layer.mask] = 1e6
    assert torch.equal(layer(images), result)


def test_no_mask_where_it_would_hide_nothing():
    assert conv(4, 4, 1, "B").mask is None
    assert conv(4, 4, (1, 5), "B").mask is None
    for layer in (conv(4, 4, 1, "A"), conv(4, 4, 3, "B"), conv(4, 4, 1, "B", 2)):
        assert not layer.mask.all()


def test_state_copies_averages_types_and_export():
    layer, other, images = conv(3, 6, 3, "A", 3), conv(3, 6, 3, "A", 3, seed=1), pictures(2, 3, 5, 4)
    assert list(layer.state_dict()) == ["weight", "bias"]
    expected = layer(images)
    assert torch.equal(copy.deepcopy(layer)(images), expected)
    mean = AveragedModel(layer, avg_fn=lambda average, new, count: (average + new) / 2)
    mean.update_parameters(layer)
    mean.update_parameters(other)
    torch.testing.assert_close(mean(images), (expected + other(images)) / 2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(images), expected)
    assert layer.to(torch.bfloat16).mask.dtype == torch.bool
    assert layer(images.bfloat16()).dtype == torch.bfloat16
    program = torch.export.export(other.float(), (images.float(),)).module()
    torch.testing.assert_close(program(images.float()), other(images.float()))
    with torch.device("meta"):
        assert MaskedConv2d(3, 6, 3, "A", 3).mask.is_meta


@pytest.mark.parametrize("layer", [conv(3, 6, 3, "A", 3), VerticalConv2d(3, 6, 3).double()])
def test_compiles_as_one_graph(layer):
    images = pictures(2, 3, 5, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), layer(images))


@pytest.mark.parametrize("kernel", [1, 3, (3, 5), (1, 7)])
@pytest.mark.parametrize(("height", "width"), [(3, 4), (1, 5), (4, 1)])
def test_taps_are_the_past_in_reach(kernel, height, width):
    layer = conv(2, 2, kernel, "B")
    up, aside = (kernel // 2,) * 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    taps, outside = layer.taps(height, width), height * width
    assert taps.shape == (height * width, layer.num_past)
    for row, column in product(range(height), range(width)):
        past = [
            y * width + x if y >= 0 and 0 <= x < width else outside
            for y, x in product(range(row - up, row + 1), range(column - aside, column + aside + 1))
            if (y, x) <= (row, column)
        ]
        assert taps[row * width + column].tolist() == past


@pytest.mark.parametrize("kernel", [1, 5, (1, 7)])
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_output_from_its_past_whatever_the_future_holds(kernel, mask_type, channels):
    layer, images = conv(4, 6, kernel, mask_type, channels), pictures(2, 4, 5, 6)
    expected = layer(images).flatten(2)
    taps, matrix = layer.taps(5, 6), layer.matrix()
    known = torch.full((2, 31, 4), torch.nan, dtype=torch.float64)
    known[:, -1] = 0
    for position in range(30):
        # Under mask A the pixel itself is multiplied by zero, so it may hold any number, but not NaN.
        known[:, position] = 1e3 if mask_type == "A" and channels == 1 else images.flatten(2)[:, :, position]
        result = at_pixel(known, taps[position], matrix)
        torch.testing.assert_close(result, expected[:, :, position], rtol=1e-12, atol=1e-12)
        known[:, position] = images.flatten(2)[:, :, position]
    assert not any(part.requires_grad for part in matrix)
    assert conv(4, 6, kernel, mask_type, channels, bias=False).matrix()[1] is None


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_vertical_convolution_is_the_upper_half_of_one(kernel):
    layer, images, half = VerticalConv2d(2, 3, kernel).double(), pictures(2, 2, 4, 6), kernel // 2
    whole = F.pad(layer.weight, (0, 0, 0, half))
    expected = F.conv2d(images, whole, layer.bias, padding=half)
    torch.testing.assert_close(layer(images), expected)
    rows, weights = layer.rows(4), layer.kernel()
    assert rows[2].tolist() == [2 - up if up <= 2 else 4 for up in range(half, -1, -1)]
    known = torch.full((2, 5, 6, 2), torch.nan, dtype=torch.float64)
    known[:, -1] = 0
    for row in range(4):  # with no need of the rows below
        known[:, row] = images[:, :, row].mT
        torch.testing.assert_close(at_row(known, rows[row], weights), expected[:, :, row].mT)
    assert not any(part.requires_grad for part in weights)


def test_shift_down_and_the_gate():
    images = pictures(2, 4, 3, 5)
    shifted = shift_down(images)
    assert shifted.shape == images.shape
    assert torch.equal(shifted[:, :, 1:], images[:, :, :-1])
    assert (shifted[:, :, 0] == 0).all()
    assert (shift_down(images[:, :, :1]) == 0).all()
    expected = torch.tanh(images[:, :2]) / (1 + torch.exp(-images[:, 2:]))
    torch.testing.assert_close(gated(images), expected)
    torch.testing.assert_close(gated(images[..., 0, 0]), expected[..., 0, 0])
    torch.testing.assert_close(gated(images.movedim(1, -1), dim=-1), expected.movedim(1, -1))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, 6, 4, "A"), {}, "4 x 4"),
        ((3, 6, (1, 2), "A"), {}, "1 x 2"),
        ((3, 6, 3, "C"), {}, "'C'"),
        ((3, 6, 3, "A", 0), {}, "image_channels=0"),
        ((3, 5, 3, "A", 3), {"out_parts": 2}, "out_parts=2"),
    ],
)
def test_arguments_that_make_no_sense(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        MaskedConv2d(*arguments, **options)


def test_a_vertical_kernel_must_be_odd():
    with pytest.raises(ValueError, match="4 x 4"):
        VerticalConv2d(1, 1, 4)


def test_a_masked_convolution_is_a_convolution():
    # So that initialisations and other visitors of a network find it.
    assert isinstance(conv(3, 6, 3, "A", 3), nn.Conv2d)
