import pytest
import torch
import torch.nn.functional as F

from lightning_gen.layers.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    shift_right,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def features(height=6, width=8):
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def at(padded, row, column):
    """Pixel of features that are zero outside."""
    inside = 0 <= row < padded.shape[2] and 0 <= column < padded.shape[3]
    return padded[:, :, row, column] if inside else torch.zeros(2, 3, dtype=torch.float64)


KERNELS = [
    (DownShiftedConv2d, (2, 3), 1),
    (DownShiftedConv2d, (1, 3), 1),
    (DownShiftedConv2d, (3, 5), 1),
    (DownShiftedConv2d, (2, 3), 2),
    (DownRightShiftedConv2d, (2, 2), 1),
    (DownRightShiftedConv2d, (2, 1), 1),
    (DownRightShiftedConv2d, (3, 2), 1),
    (DownRightShiftedConv2d, (2, 2), 2),
]


@pytest.mark.parametrize(("kind", "kernel_size", "stride"), KERNELS)
def test_each_product_of_the_sum_one_by_one(kind, kernel_size, stride):
    layer, inputs = kind(3, 4, kernel_size, stride=stride).double(), features(5, 7)
    torch.nn.init.normal_(layer.b)
    result, weight = layer(inputs), layer.weight()
    assert result.shape[2:] == ((5, 7) if stride == 1 else (3, 4))
    height, width = kernel_size
    last = width // 2 if kind is DownShiftedConv2d else 0  # column of the last tap, counted from the pixel's
    for row in range(result.shape[2]):
        for column in range(result.shape[3]):
            expected = layer.b.expand(2, -1)
            for i in range(height):
                for j in range(width):
                    pixel = at(inputs, stride * row - height + 1 + i, stride * column - width + 1 + j + last)
                    expected = expected + pixel @ weight[:, :, i, j].T
            torch.testing.assert_close(result[:, :, row, column], expected)


def test_what_a_pixel_of_the_coarser_scale_leads_to():
    inputs = features(3, 4)
    layer = DownRightShiftedConvTranspose2d(3, 5).double()
    result, weight = layer(inputs), layer.weight()
    assert result.shape == (2, 5, 6, 8)
    for row in range(6):
        for column in range(8):
            expected = at(inputs, row // 2, column // 2) @ weight[:, :, row % 2, column % 2] + layer.b
            torch.testing.assert_close(result[:, :, row, column], expected)

    layer = DownShiftedConvTranspose2d(3, 5).double()
    result, weight = layer(inputs), layer.weight()
    assert result.shape == (2, 5, 6, 8)
    for row in range(6):
        for column in range(8):
            kernel = weight[:, :, row % 2]
            if column % 2 == 0:
                expected = at(inputs, row // 2, column // 2) @ kernel[:, :, 1]
            else:
                expected = at(inputs, row // 2, column // 2) @ kernel[:, :, 2]
                expected = expected + at(inputs, row // 2, column // 2 + 1) @ kernel[:, :, 0]
            torch.testing.assert_close(result[:, :, row, column], expected + layer.b)


@pytest.mark.parametrize(("kind", "kernel_size", "stride"), KERNELS)
def test_nothing_below_or_to_the_right_is_seen(kind, kernel_size, stride):
    layer, inputs = kind(3, 4, kernel_size, stride=stride).double(), features().requires_grad_()
    row, column = 2 // stride, 4 // stride
    (gradient,) = torch.autograd.grad(layer(inputs)[:, :, row, column].sum(), inputs)
    seen = gradient.abs().sum((0, 1)) > 0
    assert seen[2, 4]
    assert not seen[3:].any()
    if kind is DownRightShiftedConv2d:
        assert not seen[:, 5:].any()


def test_shift_right():
    inputs = features()
    assert torch.equal(shift_right(inputs), F.pad(inputs, (1, 0))[:, :, :, :-1])
    assert not shift_right(inputs)[:, :, :, 0].any()
    assert torch.equal(shift_right(inputs)[:, :, :, 1:], inputs[:, :, :, :-1])


def test_an_even_width_has_no_middle():
    with pytest.raises(ValueError, match="only if the kernel's width is odd, got 2"):
        DownShiftedConv2d(3, 4, (2, 2))
