from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_gen.layers.lstm import (
    DiagonalBiLSTMLayer,
    RowLSTMLayer,
    diagonal_order,
    diagonal_sweep,
    lstm_cell,
    row_sweep,
    shift_down,
    sweep_over,
)

SIZES = [(3, 4), (4, 2), (1, 5), (5, 1), (1, 1), (3, 3)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(kind, size, in_channels=4, features=3, image_channels=1, kernel_size=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind is RowLSTMLayer:
            layer = RowLSTMLayer(in_channels, features, kernel_size, image_channels)
        else:
            layer = DiagonalBiLSTMLayer(in_channels, features, size, image_channels)
        for weight in layer.parameters():  # larger than by default, so that what is not linear shows
            torch.nn.init.normal_(weight, std=0.7)
    return layer.double()


KINDS = [RowLSTMLayer, DiagonalBiLSTMLayer]


# Ways over a picture


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_diagonals_are_the_columns_of_the_skewed_map(height, width):
    skewed = [[-1] * (height + width - 1) for _ in range(height)]
    for row, column in product(range(height), range(width)):
        skewed[row][row + column] = row * width + column  # each row moved by one against the one above
    columns = [[row[place] for row in skewed if row[place] >= 0] for place in range(height + width - 1)]
    assert diagonal_order(height, width).tolist() == [pixel for column in columns for pixel in column]
    assert diagonal_sweep(height, width).lengths == tuple(map(len, columns))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_skewed_and_back(height, width):
    layer = build(DiagonalBiLSTMLayer, (height, width), in_channels=1)
    pixels = torch.arange(height * width)
    skewed = pixels[layer.order]
    assert torch.equal(skewed[: height * width], diagonal_order(height, width))
    mirrored = pixels.view(height, width).flip(1).flatten()
    assert torch.equal(skewed[height * width :], mirrored[diagonal_order(height, width)])
    assert torch.equal(skewed[layer.inverse], pixels.repeat(2))


def places_of(sweep, order) -> dict[int, int]:
    """Place -> pixel."""
    places = [start + i for start, length in zip(sweep.starts, sweep.lengths, strict=True) for i in range(length)]
    assert len(set(places)) == len(places) == len(order)
    return dict(zip(places, order, strict=True))


def read_by(sweep, order) -> dict[int, list[int | None]]:
    """Pixel -> pixels that it reads, None for zeros."""
    at, result, pixels = places_of(sweep, order), {}, iter(order)
    for number, (length, read) in enumerate(zip(sweep.lengths, sweep.reads, strict=True)):
        for i in range(length):
            places = range(read + i, read + i + sweep.taps)
            assert min(places) >= 0
            # Only what is computed by then.
            assert all(place < sweep.starts[number] for place in places)
            result[next(pixels)] = [at.get(place) for place in places]
    return result


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_on_diagonals_a_pixel_reads_the_one_above_and_the_one_to_its_left(height, width):
    sweep = diagonal_sweep(height, width)
    for pixel, read in read_by(sweep, diagonal_order(height, width).tolist()).items():
        row, column = divmod(pixel, width)
        assert read == [pixel - width if row else None, pixel - 1 if column else None]
        assert read[sweep.cell] == (pixel - 1 if column else None)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_in_rows_a_pixel_reads_those_around_the_one_above(height, width, kernel_size):
    sweep, half = row_sweep(height, width, kernel_size), kernel_size // 2
    for pixel, read in read_by(sweep, list(range(height * width))).items():
        row, column = divmod(pixel, width)
        seen = range(column - half, column + half + 1)
        assert read == [(row - 1) * width + other if row and 0 <= other < width else None for other in seen]
        assert read[sweep.cell] == (pixel - width if row else None)


# What is computed


def cell(gates: list[float], state: float, squash=torch.tanh) -> tuple[Tensor, Tensor]:
    """Equation 3 for one feature, gates o, f, i, g."""
    output, forget, input = (torch.sigmoid(gate) for gate in gates[:3])
    state = forget * state + input * squash(gates[3])
    return output * torch.tanh(state), state


def plain(layer, features: Tensor, squash=torch.tanh, down=True) -> tuple[Tensor, Tensor]:
    """One pixel after another: what the layer gives, and its cell states by LSTM."""
    height, width, batch, _ = features.shape
    weight, bias = layer.input_to_state.masked_weight().detach(), layer.input_to_state.bias.detach()
    of_states = layer.state_to_state.detach()
    h = of_states.shape[2] // 4
    all_hidden, all_cells = [], []
    for direction in range(len(of_states)):
        columns = range(width) if direction == 0 else reversed(range(width))
        hidden = torch.zeros(height, width, batch, h, dtype=torch.float64)
        cells = torch.zeros_like(hidden)
        for row, column in product(range(height), list(columns)):

            def at(map, row, column):
                return map[row, column] if 0 <= row < height and 0 <= column < width else torch.zeros_like(map[0, 0])

            if isinstance(layer, RowLSTMLayer):
                half = layer.kernel_size // 2
                reads = [(row - 1, column + shift) for shift in range(-half, half + 1)]
                before = (row - 1, column)
                into = sum(at(features, row, column - half + tap) @ weight[:, :, 0, tap].T for tap in range(half + 1))
            else:
                side = column - 1 if direction == 0 else column + 1
                reads, before = [(row - 1, column), (row, side)], (row, side)
                into = features[row, column] @ weight[direction * 4 * h : (direction + 1) * 4 * h, :, 0, 0].T
            into = into + bias[direction * 4 * h : (direction + 1) * 4 * h]
            for tap, place in enumerate(reads):
                into = into + at(hidden, *place) @ of_states[direction, tap * h : (tap + 1) * h]
            gates = [into[:, gate * h : (gate + 1) * h] for gate in range(4)]
            hidden[row, column], cells[row, column] = cell(gates, at(cells, *before), squash)
        all_hidden.append(hidden)
        all_cells.append(cells)
    result = all_hidden[0].clone()
    if len(all_hidden) == 2:
        result[int(down) :] += all_hidden[1][: height - int(down)]
    return result, torch.stack(all_cells)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_channels", [1, 3])
def test_as_written_in_the_paper(kind, size, image_channels):
    layer, features = build(kind, size, image_channels=image_channels), randn(*size, 2, 4)
    expected, cells = plain(layer, features)
    torch.testing.assert_close(layer(features), expected)
    hidden, states = layer.states(features)
    torch.testing.assert_close(layer.merged(hidden), expected)
    torch.testing.assert_close(states, cells)
    # Neither a sigmoid in the place of tanh, nor a map that is not moved down, would pass.
    assert not torch.allclose(layer(features), plain(layer, features, squash=torch.sigmoid)[0], atol=1e-2)
    if kind is DiagonalBiLSTMLayer:
        assert not torch.allclose(layer(features), plain(layer, features, down=False)[0], atol=1e-2)


@pytest.mark.parametrize("kernel_size", [1, 5])
def test_other_kernels_of_rows(kernel_size):
    layer, features = build(RowLSTMLayer, (3, 4), kernel_size=kernel_size), randn(3, 4, 2, 4)
    torch.testing.assert_close(layer(features), plain(layer, features)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_what_goes_into_the_gates(kind):
    size = (3, 4)
    layer, features = build(kind, size, image_channels=3), randn(*size, 2, 4)
    hidden, cells = layer.states(features)
    row, column = 1, 2
    for direction, (matrices, side) in enumerate(zip(layer.matrices(), (-1, 1), strict=False)):
        assert not any(matrix.requires_grad for matrix in matrices)
        beside, before = features[row, column - 1], cells[direction, row - 1, column]
        above = hidden[direction, row - 1, column - 1 : column + 2].movedim(1, 0).flatten(1)
        if kind is DiagonalBiLSTMLayer:
            beside, before = hidden[direction, row, column + side], cells[direction, row, column + side]
            above = hidden[direction, row - 1, column]
        gates = above @ matrices.above + beside @ matrices.side + features[row, column] @ matrices.own + matrices.bias
        state, after = lstm_cell(gates, before)
        torch.testing.assert_close(state, hidden[direction, row, column])
        torch.testing.assert_close(after, cells[direction, row, column])


def test_one_step():
    gates, before = randn(2, 12), randn(2, 3, seed=1)
    state, after = lstm_cell(gates, before)
    expected, cells = cell(list(gates.chunk(4, dim=1)), before)
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(after, cells)


# Gradients


@pytest.mark.parametrize(
    "sweep",
    [diagonal_sweep(3, 4), diagonal_sweep(4, 2), diagonal_sweep(3, 1), row_sweep(3, 4, 3), row_sweep(2, 2, 5)],
)
@pytest.mark.parametrize("directions", [1, 2])
def test_gradients_of_a_sweep(sweep, directions):
    gates = randn(directions, sum(sweep.lengths), 2, 8).requires_grad_()
    weight = randn(directions, sweep.taps * 2, 8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda gates, weight: sweep_over(gates, weight, sweep), (gates, weight))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_layer(kind):
    layer, features = build(kind, (3, 4), image_channels=2), randn(3, 4, 2, 4).requires_grad_()
    parameters = dict(layer.named_parameters())

    def of(features, *weights):
        return torch.func.functional_call(layer, dict(zip(parameters, weights, strict=True)), features)

    assert torch.autograd.gradcheck(of, (features, *parameters.values()))


def test_gradients_of_gradients_are_refused_rather_than_wrong():
    layer, features = build(DiagonalBiLSTMLayer, (3, 4)), randn(3, 4, 2, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(features).square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_given_is_written(kind):
    layer, features = build(kind, (3, 4)), randn(3, 4, 2, 4).requires_grad_()
    before = [tensor.detach().clone() for tensor in (features, *layer.parameters())]
    layer(features).sum().backward()
    for tensor, old in zip((features, *layer.parameters()), before, strict=True):
        assert torch.equal(tensor, old)
    gradient, sweep = randn(1, 12, 2, 4), row_sweep(3, 4, 3)
    gates, weight = randn(1, 12, 2, 16).requires_grad_(), randn(1, 12, 16).requires_grad_()
    sweep_over(gates, weight, sweep).backward(gradient)
    assert torch.equal(gates, randn(1, 12, 2, 16))
    assert torch.equal(gradient, randn(1, 12, 2, 4))


# Number types


@pytest.mark.parametrize("kind", KINDS)
def test_cell_states_are_float32_where_the_rest_is_bfloat16(kind):
    layer, features = build(kind, (3, 4)).bfloat16(), randn(3, 4, 2, 4).bfloat16()
    hidden, cells = layer.states(features)
    assert (hidden.dtype, cells.dtype, layer(features).dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert not torch.equal(cells, cells.bfloat16().float())


def test_a_cell_state_adds_up_what_bfloat16_would_lose():
    # Gates wide open, and an input of 1/256 at each row: 1 + 1/256 is 1 in bfloat16.
    sweep = row_sweep(300, 1, 1)
    gates = torch.tensor([20.0, 20.0, 20.0, 1 / 256]).bfloat16().expand(1, 300, 1, 4)
    hidden = sweep_over(gates, torch.zeros(1, 1, 4), sweep)
    assert hidden[0, -1].item() == pytest.approx(torch.tensor(300 / 256).tanh().item(), rel=0.01)


def test_autocast_and_its_gradients():
    layer, features = build(DiagonalBiLSTMLayer, (3, 4)).float(), randn(3, 4, 2, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(features)
    assert result.dtype == torch.bfloat16
    result.float().square().sum().backward()
    gradients = [weight.grad.clone() for weight in layer.parameters()]
    layer.zero_grad()
    layer(features).square().sum().backward()
    for weight, gradient in zip(layer.parameters(), gradients, strict=True):
        assert (gradient - weight.grad).norm() < 0.03 * weight.grad.norm()


# The rest


def test_rows_move_down():
    features = randn(3, 2, 2, 2)
    moved = shift_down(features)
    assert torch.equal(moved[1:], features[:-1])
    assert not moved[0].any()


def test_any_height_and_width_for_rows_and_one_for_diagonals():
    rows, diagonals = build(RowLSTMLayer, None), build(DiagonalBiLSTMLayer, (3, 4))
    assert rows(randn(2, 5, 1, 4)).shape == (2, 5, 1, 3)
    with pytest.raises(ValueError, match=r"\[3, 4, N, F\], got \[4, 3, 1, 4\]"):
        diagonals(randn(4, 3, 1, 4))
    with pytest.raises(ValueError, match="size"):
        DiagonalBiLSTMLayer(4, 3, (0, 4))
    with pytest.raises(ValueError, match="odd"):
        RowLSTMLayer(4, 3, 2)


def test_both_directions_take_one_product_a_diagonal(monkeypatch):
    # As many steps as diagonals, of both LSTMs at once, and no work for pixels that are not there.
    products, baddbmm_ = [], Tensor.baddbmm_

    def counted(self, window, weight):
        products.append(tuple(window.shape))
        return baddbmm_(self, window, weight)

    monkeypatch.setattr(Tensor, "baddbmm_", counted)
    build(DiagonalBiLSTMLayer, (3, 5))(randn(3, 5, 2, 4))
    assert products == [(2, 2 * pixels, 6) for pixels in (1, 2, 3, 3, 3, 2, 1)]


def test_sizes_of_the_weights():
    with torch.device("meta"):
        row, diagonal = RowLSTMLayer(256, 128, 3, 3), DiagonalBiLSTMLayer(256, 128, (32, 32), 3)
    # Of three taps of the masked convolution two are stored.
    assert sum(weight.numel() for weight in row.parameters()) == 4 * 128 * (2 * 256 + 1 + 3 * 128)
    assert sum(weight.numel() for weight in diagonal.parameters()) == 2 * 4 * 128 * (256 + 1 + 2 * 128)
    assert set(diagonal.state_dict()) == {"input_to_state.weight", "input_to_state.bias", "state_to_state"}
    assert row.state_to_state.shape == (1, 3 * 128, 4 * 128)


def test_weights_of_states_start_as_those_of_a_convolution():
    torch.manual_seed(0)
    largest = DiagonalBiLSTMLayer(4, 32, (3, 4)).state_to_state.abs().max()
    assert 0.99 * (2 * 32) ** -0.5 < largest <= (2 * 32) ** -0.5
