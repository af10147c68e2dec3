"""LSTMs over the pixels of a picture: by rows, and by diagonals from both sides (1601.06759, sections 3.1 and 3.2).

The states of a row, or of a diagonal, depend on those of the one before only, and are computed at once. Features come
as `[H, W, N, F]`, so that a row is one matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_gen.layers.masked import MaskedConv2d
from lightning_gen.outlines import with_values


class Sweep(NamedTuple):
    """The way of an LSTM over a picture: in blocks of pixels, of which each depends on the one before only.

    The states of all blocks lie in one line of places, with zeros before the first block and between blocks. What a
    pixel reads are neighbouring places of the block before, or such zeros where its neighbours are outside the picture:
    pixel i of a block reads the places `reads + i`, ..., `reads + i + taps - 1`.
    """

    lengths: tuple[int, ...]  # pixels of each block
    starts: tuple[int, ...]  # place of each block's first pixel
    reads: tuple[int, ...]  # first place that this pixel reads
    taps: int  # pixels whose hidden states each pixel reads
    cell: int  # which of these has the cell state that it goes on with


def row_sweep(height: int, width: int, kernel_size: int) -> Sweep:
    """Row after row: a pixel reads the `kernel_size` pixels around the one above it, whose cell state it takes."""
    margin, first = kernel_size // 2, width + kernel_size - 1
    starts = tuple(first + row * (width + margin) for row in range(height))
    reads = (0, *(start - margin for start in starts[:-1]))
    return Sweep((width,) * height, starts, reads, kernel_size, margin)


def diagonal_sweep(height: int, width: int) -> Sweep:
    """Diagonal after diagonal: a pixel reads the one above and the one to its left, whose cell state it takes.

    The pixels come in the order of `diagonal_order`.
    """
    lengths: list[int] = []
    starts: list[int] = []
    reads: list[int] = []
    start = 2
    for diagonal in range(height + width - 1):
        top, bottom = max(0, diagonal - width + 1), min(height - 1, diagonal)
        # Above the topmost pixel lies, while that is in the first row, the zero before the block, then its first pixel.
        reads.append(starts[-1] - (top == 0) if starts else 0)
        starts.append(start)
        lengths.append(bottom - top + 1)
        start += lengths[-1] + 1
    return Sweep(tuple(lengths), tuple(starts), tuple(reads), 2, 1)


@with_values()
def diagonal_order(height: int, width: int) -> Tensor:
    """Flat indices of the pixels, diagonal by diagonal from the top left, each from its top: int64 `[H * W]`.

    What the paper does by skewing a map, so that its diagonals become columns, but without the empty places.
    """
    rows, columns = torch.arange(height).unsqueeze(1), torch.arange(width)
    return (rows + columns).flatten().argsort(stable=True)


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (1601.06759, eq. 3): c' = f c + i g and h' = o tanh(c').

    Args:
        gates: What goes into the gates o, f, i, to which sigmoid is applied, and g, to which tanh is: `[..., 4h]`.
        cell: c, `[..., h]`.

    Returns:
        h', of the type of the gates, and c', of that of c; each `[..., h]`.
    """
    features = cell.shape[-1]
    output, forget, input = gates[..., : 3 * features].sigmoid().chunk(3, dim=-1)
    cell = torch.addcmul(forget * cell, input, gates[..., 3 * features :].tanh())
    return (output * cell.tanh()).to(gates.dtype), cell


def sweep_over(gates: Tensor, weight: Tensor, sweep: Sweep) -> Tensor:
    """The hidden states of LSTMs that go over a picture side by side, each with weights of its own.

    Initial states, and those outside the picture, are zero. Cell states are float32 or better. There are no gradients
    of gradients.

    Args:
        gates: What goes into the gates o, f, i and g from elsewhere, `[D, P, N, 4h]`, for D LSTMs, and P pixels in the
            order of the sweep.
        weight: Of the hidden states that a pixel reads, `[D, taps * h, 4h]`, tap by tap.
        sweep: Their common way.

    Returns:
        `[D, P, N, h]`, of the type of the gates.
    """
    return _Sweep.apply(gates, weight.to(gates.dtype), sweep)


class GateMatrices(NamedTuple):
    """What goes into the gates of an LSTM, detached, for `addmm` and the like."""

    above: Tensor  # of hidden states of the row above, tap by tap: [taps * h, 4h]
    side: Tensor  # of the pixels beside, tap by tap: [taps * F, 4h], of features in a RowLSTMLayer, else of one state
    own: Tensor  # of the pixel's own features, [in, 4h]
    bias: Tensor  # [4h]


class RowLSTMLayer(nn.Module):
    """An LSTM that goes down the picture row by row (1601.06759, section 3.1).

    Into a pixel's gates go a masked convolution of its own row, and a convolution, without a mask, of the hidden states
    of the row above. So a pixel sees a triangle, which is wider by one column on either side for each row up.

    Args:
        in_channels: Features that come in.
        out_channels: h, of the states.
        kernel_size: k, odd, of both convolutions; 3 in the paper.
        image_channels: Of the picture; each feature belongs to one, see `MaskedConv2d`.

    Raises:
        ValueError: If the kernel is even or a size below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, image_channels: int = 1) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.input_to_state = MaskedConv2d(
            in_channels, 4 * out_channels, (1, kernel_size), "B", image_channels, out_parts=4
        )
        self.state_to_state = _state_weight(1, kernel_size, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """`[H, W, N, in]` to `[H, W, N, h]`."""
        gates, sweep = self._gates(features)
        return sweep_over(gates, self.state_to_state, sweep)[0].unflatten(0, features.shape[:2])

    @torch.no_grad()
    def states(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell states, `[1, H, W, N, h]`."""
        hidden, cells = _states_of(*self._gates(features), self.state_to_state)
        return hidden.unflatten(1, features.shape[:2]), cells.unflatten(1, features.shape[:2])

    def merged(self, hidden: Tensor) -> Tensor:
        """Of hidden states `[1, H, W, N, h]` what `forward` gives."""
        return hidden[0]

    def matrices(self) -> tuple[GateMatrices]:
        """Of the LSTM."""
        weight, bias = self.input_to_state.matrix()
        assert bias is not None
        side, own = weight.T.split([weight.shape[1] - self.input_to_state.in_channels, self.input_to_state.in_channels])
        return (GateMatrices(self.state_to_state[0].detach(), side, own, bias),)

    def _gates(self, features: Tensor) -> tuple[Tensor, Sweep]:
        """What the row gives, `[1, P, N, 4h]`, and the sweep."""
        height, width = features.shape[:2]
        weight, bias = self.input_to_state.masked_weight(), self.input_to_state.bias
        left = weight.shape[3] - 1
        padded = F.pad(features, (0, 0, 0, 0, left, 0))  # [H, left + W, N, in]
        windows = torch.cat([padded[:, tap : tap + width] for tap in range(left + 1)], dim=-1)  # [H, W, N, taps * in]
        gates = F.linear(windows, weight.squeeze(2).mT.flatten(1), bias)  # [H, W, N, 4h]
        return gates.flatten(0, 1).unsqueeze(0), row_sweep(height, width, self.kernel_size)


class DiagonalBiLSTMLayer(nn.Module):
    """Two LSTMs that go along the diagonals, from the top left and from the top right (1601.06759, section 3.2).

    Into a pixel's gates go its own features, and the hidden states of the pixel above and of the one beside it from
    where the LSTM comes. The one from the right has seen the rest of the row, so its states are moved one row down
    before the two are added. Together they see all pixels above and to the left.

    Both are computed at once, one diagonal after the other.

    Args:
        in_channels: Features that come in.
        out_channels: h, of the states.
        size: (height, width) of the picture.
        image_channels: Of the picture; each feature belongs to one, see `MaskedConv2d`.

    Raises:
        ValueError: If a size is below 1.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int], image_channels: int = 1) -> None:
        super().__init__()
        height, width = size
        if min(height, width) < 1:
            raise ValueError(f"size must be (height, width), each at least 1; got {size}.")
        self.size = (height, width)
        # The gates of the LSTM from the left come first.
        self.input_to_state = MaskedConv2d(in_channels, 8 * out_channels, 1, "B", image_channels, out_parts=8)
        self.state_to_state = _state_weight(2, 2, out_channels)
        self.sweep = diagonal_sweep(height, width)
        order = diagonal_order(height, width)
        mirrored = order + width - 1 - 2 * (order % width)
        self.register_buffer("order", torch.cat([order, mirrored]), persistent=False)
        inverse = torch.cat([order.argsort(), mirrored.argsort() + height * width])
        self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """`[H, W, N, in]` to `[H, W, N, h]`.

        Raises:
            ValueError: If the features are of another height or width.
        """
        return self.merged(self._unskewed(sweep_over(self._gates(features), self.state_to_state, self.sweep)))

    @torch.no_grad()
    def states(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell states of both LSTMs, `[2, H, W, N, h]`, where they belong: nothing is moved down."""
        hidden, cells = _states_of(self._gates(features), self.sweep, self.state_to_state)
        return self._unskewed(hidden), self._unskewed(cells)

    def merged(self, hidden: Tensor) -> Tensor:
        """Of hidden states `[2, H, W, N, h]` what `forward` gives."""
        left, right = hidden
        return left + shift_down(right)

    def matrices(self) -> tuple[GateMatrices, GateMatrices]:
        """Of the LSTM from the left and of the one from the right."""
        weight, bias = self.input_to_state.matrix()
        assert bias is not None
        (above, left), (above_too, right) = (states.chunk(2) for states in self.state_to_state.detach())
        own, own_too = weight.T.chunk(2, dim=1)
        bias, bias_too = bias.chunk(2)
        return GateMatrices(above, left, own, bias), GateMatrices(above_too, right, own_too, bias_too)

    def _gates(self, features: Tensor) -> Tensor:
        """What the pixels give, `[2, P, N, 4h]`, in the order of the sweep."""
        if features.shape[:2] != self.size:
            raise ValueError(f"features must be [{self.size[0]}, {self.size[1]}, N, F], got {list(features.shape)}.")
        skewed: Tensor = _Rearranged.apply(features.flatten(0, 1), self.order, self.inverse).unflatten(0, (2, -1))
        weight, bias = self.input_to_state.masked_weight(), self.input_to_state.bias
        assert bias is not None
        weight, bias = weight.view(2, -1, weight.shape[1]).mT, bias.view(2, 1, -1)  # [2, in, 4h] and [2, 1, 4h]
        return torch.baddbmm(bias, skewed.flatten(1, 2), weight).unflatten(1, skewed.shape[1:3])

    def _unskewed(self, states: Tensor) -> Tensor:
        """`[2, P, N, h]` in the order of the sweep to `[2, H, W, N, h]`."""
        return states.flatten(0, 1).index_select(0, self.inverse).unflatten(0, (2, *self.size))


def shift_down(features: Tensor) -> Tensor:
    """Each row of `[H, W, N, F]` moved to the one below, zeros in the first."""
    return F.pad(features[:-1], (0, 0, 0, 0, 0, 0, 1, 0))


def _state_weight(directions: int, taps: int, features: int) -> nn.Parameter:
    """As PyTorch's convolutions have it. There is no bias, since the input has one for each gate."""
    weight = torch.empty(directions, taps * features, 4 * features)
    return nn.Parameter(nn.init.uniform_(weight, -((taps * features) ** -0.5), (taps * features) ** -0.5))


class _Rearranged(torch.autograd.Function):
    """Pixels `[P, ...]` in some orders one after another, `[D * P]`, with gradients that are gathered, not scattered.

    The inverse, `[D * P]`, says of each order and each pixel where that came to lie.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.pixels = len(features)
        return features.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse).unflatten(0, (-1, ctx.pixels)).sum(0), None, None


def _run(gates: Tensor, weight: Tensor, sweep: Sweep) -> tuple[Tensor, Tensor, Tensor]:
    """The opened gates `[D, P, N, 4h]`, and hidden and cell states at the places of the sweep."""
    gates = gates.clone()
    directions, _, batch, features = gates.shape
    features //= 4
    shape = (directions, sweep.starts[-1] + sweep.lengths[-1], batch, features)
    hidden = gates.new_zeros(shape)
    cells = torch.zeros(shape, dtype=torch.promote_types(gates.dtype, torch.float32), device=gates.device)
    first = 0
    for length, start, read in zip(sweep.lengths, sweep.starts, sweep.reads, strict=True):
        block = gates[:, first : first + length]  # [D, length, N, 4h]
        window = torch.cat([hidden[:, read + tap :][:, :length] for tap in range(sweep.taps)], dim=-1)  # [..., taps h]
        block.view(directions, length * batch, 4 * features).baddbmm_(window.flatten(1, 2), weight)
        block[..., : 3 * features].sigmoid_()
        block[..., 3 * features :].tanh_()
        output, forget, input, values = block.chunk(4, dim=-1)
        # Both maps are zero until here.
        cell = cells[:, start : start + length]  # [D, length, N, h]
        cell.addcmul_(forget, cells[:, read + sweep.cell :][:, :length]).addcmul_(input, values)
        hidden[:, start : start + length].addcmul_(output, cell.tanh())
        first += length
    return gates, hidden, cells


def _states_of(gates: Tensor, sweep: Sweep, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell states `[D, P, N, h]` in the order of the sweep."""
    _, hidden, cells = _run(gates, weight.to(gates.dtype), sweep)
    return _gathered(hidden, sweep.starts, sweep), _gathered(cells, sweep.starts, sweep)


def _gathered(states: Tensor, first: tuple[int, ...], sweep: Sweep, tap: int = 0) -> Tensor:
    """Of each block as many places as it has pixels, from a place that is the block's and a tap on: `[D, P, N, h]`."""
    blocks = zip(first, sweep.lengths, strict=True)
    return torch.cat([states[:, place + tap : place + tap + length] for place, length in blocks], dim=1)


class _Sweep(torch.autograd.Function):
    """`sweep_over`. Of the backward pass too, only what must wait for the block before is done block by block."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, sweep: Sweep) -> Tensor:
        gates, hidden, cells = _run(gates, weight, sweep)
        ctx.save_for_backward(gates, weight, hidden, cells)
        ctx.sweep = sweep
        return _gathered(hidden, sweep.starts, sweep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gates, weight, hidden, cells = ctx.saved_tensors
        sweep: Sweep = ctx.sweep
        directions, _, batch, features = gates.shape
        features //= 4
        output, forget, input, values = gates.chunk(4, dim=-1)
        before = _gathered(cells, sweep.reads, sweep, sweep.cell)  # [D, P, N, h], as is all until the loop
        squashed = _gathered(cells, sweep.starts, sweep).tanh()
        # Derivatives of h by what goes into o, of c by what goes into f, i and g, and of h by c.
        by_sigmoid, by_tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        slopes = [by_sigmoid(squashed, output), by_sigmoid(before, forget), by_sigmoid(values, input)]
        by_gates = torch.cat([*slopes, by_tanh(input, values)], dim=-1).to(gates.dtype)
        by_cell = by_tanh(output, squashed)

        by_states, by_cells = torch.zeros_like(hidden), torch.zeros_like(cells)
        transposed = weight.mT.contiguous()
        first = gates.shape[1]
        for length, start, read in zip(*map(reversed, sweep[:3]), strict=True):
            first -= length
            here = slice(first, first + length)
            state = by_states[:, start : start + length].add_(gradient[:, here])
            cell = by_cells[:, start : start + length].addcmul_(state, by_cell[:, here])
            block = by_gates[:, here]
            block[..., :features].mul_(state)
            block[..., features:].unflatten(-1, (3, features)).mul_(cell.unsqueeze(-2))
            by_window = torch.bmm(block.view(directions, length * batch, 4 * features), transposed)
            for tap, of_tap in enumerate(by_window.unflatten(1, (length, batch)).chunk(sweep.taps, dim=-1)):
                by_states[:, read + tap :][:, :length].add_(of_tap)
            by_cells[:, read + sweep.cell :][:, :length].addcmul_(cell, forget[:, here])
        windows = torch.cat([_gathered(hidden, sweep.reads, sweep, tap) for tap in range(sweep.taps)], dim=-1)
        return by_gates, torch.bmm(windows.flatten(1, 2).mT, by_gates.flatten(1, 2)), None
