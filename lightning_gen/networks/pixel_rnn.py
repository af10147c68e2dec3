"""PixelRNN (van den Oord et al. 2016, arXiv 1601.06759): Row LSTM and Diagonal BiLSTM.

Both give a distribution for each channel of each pixel given the past: all pixels above and to the left, and the
channels before it of the pixel itself, R, then G given R, then B given both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.lstm import DiagonalBiLSTMLayer, GateMatrices, RowLSTMLayer, lstm_cell
from lightning_gen.layers.masked import MaskedConv2d, Matrix, at_pixel
from lightning_gen.networks.density import DensityNetwork, check_features
from lightning_gen.networks.pixelcnn import Head
from lightning_gen.networks.stepping import Run, call, neighbours, places_of


class PixelRNNNetwork(DensityNetwork, ABC):
    """All but the LSTMs, what a pixel reads of its neighbours' states, and what can be done once a row.

    That is a 7 x 7 convolution under mask A, residual layers of LSTMs, and a head of ReLU, 1 x 1, ReLU, 1 x 1
    (1601.06759, table 1). The initial states of the LSTMs are zeros, as are those outside the picture; nothing about
    them is learned.

    Args:
        image_shape: (channels, height, width).
        outputs: P C, logits of each pixel: P = L for each channel of L levels, or 1 where these are 2.
        filters: h, of each LSTM; features are 2h between. The paper has 128 on CIFAR-10 and 16 on MNIST.
        layers: LSTMs, or pairs of them, after the first layer; 12 and 7.
        head_filters: Features of the head; 1024 and 32.
        embedding: As of `DensityNetwork`.

    Raises:
        ValueError: If a size is out of range, or there are fewer features than channels of the picture.
    """

    small: ClassVar = {"filters": 4, "layers": 1, "head_filters": 8}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        filters: int = 128,
        layers: int = 12,
        head_filters: int = 1024,
        embedding: int | None = None,
    ) -> None:
        super().__init__(image_shape, outputs, embedding=embedding)
        check_features(self, outputs, filters, layers, head_filters)
        channels = image_shape[0]
        self.filters = filters
        self.input = MaskedConv2d(self.in_channels, 2 * filters, 7, "A", channels)
        stack = nn.ModuleList(ResidualLSTM(self._lstm(), filters, channels) for _ in range(layers))
        self.layers = cast(Sequence[ResidualLSTM], stack)
        self.head = Head(2 * filters, head_filters, outputs, channels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` to logits `[N, P, C, H, W]`; there are no labels."""
        self.check_given(images, labels)
        features = self._first(images)
        for layer in self.layers:
            features = layer(features)
        return self.head(features.permute(2, 3, 0, 1))

    @torch.no_grad()
    def init_cache(self, batch: int, device: torch.device, labels: Tensor | None = None) -> PixelRNNCache:
        """The cache for `batch` pictures of which no pixel is known, all zeros; the weights must stay until the end."""
        check_labels(labels, None)
        height, width = self.image_shape[1:]
        dtype = self.input.weight.dtype

        def zeros(slots: int, features: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(slots, len(self.layers), batch, features, dtype=dtype, device=device)

        slots, h = 2 * width + 1, self.filters
        above = [self._slots(down=-1), self._slots(down=-2)]
        reads = [self._slots(), torch.arange(width).expand(height, -1), *self._reads()]
        outputs, biases = zip(*(layer.output.matrix() for layer in self.layers), strict=True)
        return PixelRNNCache(
            inputs=torch.zeros(batch, height * width + 1, self.in_channels, dtype=dtype, device=device),
            features=zeros(slots, 2 * h),
            hidden=zeros(slots, h),
            cells=zeros(slots, h, torch.promote_types(dtype, torch.float32)),
            right=zeros(slots, h),
            gates=zeros(width, 4 * h),
            updates=zeros(width, 2 * h),
            places=places_of(height, width, device),
            taps=self.input.taps(height, width),
            reads=torch.stack(reads, dim=-1).flatten(0, 1).to(device),
            above=torch.cat(above, dim=1).to(device),
            input_matrix=self.input.matrix(),
            lstms=[_stacked(lstms) for lstms in zip(*(layer.lstm.matrices() for layer in self.layers), strict=True)],
            outputs=torch.stack(outputs).mT.contiguous(),
            biases=torch.stack(biases).unsqueeze(1),
            head=self.head.matrices(),
            image_shape=self.image_shape,
        )

    @torch.no_grad()
    def prefill(self, cache: PixelRNNCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one."""
        width = self.image_shape[2]
        row = position // width
        own = cache.reads[:, 0].unflatten(0, (-1, width))
        features = self._first(cache.images)
        for number, layer in enumerate(self.layers):
            hidden, cells = layer.lstm.states(features)
            for above in range(max(row - 1, 0), row + 1):
                cache.features[own[above], number] = features[above]
                cache.hidden[own[above], number] = hidden[0, above]
                cache.cells[own[above], number] = cells[0, above]
            if row > 1:
                cache.right[own[row - 2], number] = hidden[-1, row - 2]
            features = layer.added(features, layer.lstm.merged(hidden))
        self._first_row(cache, cache.places[0])
        if row:
            self._row(cache, cache.places[row * width])
        cache.position = position

    @torch.no_grad()
    def step(self, cache: PixelRNNCache, position: int, run: Run = call) -> Tensor:
        """Logits of one pixel, `[N, P, C]`; one piece as a row begins, and one at each step."""
        row, column = divmod(position, self.image_shape[2])
        place = cache.places[position]
        if column == 0 and position != cache.position:
            run(self._row if row else self._first_row, cache, place)
        cache.position = position
        return run(self._pixel, cache, place)

    def _first(self, images: Tensor) -> Tensor:
        """Features `[H, W, N, 2h]` for the LSTMs."""
        return self.input(images).permute(2, 3, 0, 1).contiguous()

    @abstractmethod
    def _lstm(self) -> RowLSTMLayer | DiagonalBiLSTMLayer:
        """Of one layer."""

    def _slots(self, down: int = 0, right: int = 0) -> Tensor:
        """Where the states of each pixel's neighbour lie, `[H, W]`; outside the picture the slot of zeros."""
        return neighbours(*self.image_shape[1:], down, right, kept=2)

    @abstractmethod
    def _reads(self) -> list[Tensor]:
        """Slots `[H, W]` of each pixel's neighbours: whose cell state it takes, and beside it, tap by tap."""

    @abstractmethod
    def _side(self, cache: PixelRNNCache) -> Tensor:
        """The map whose pixels beside a pixel have a part in its gates."""

    @abstractmethod
    def _row(self, cache: PixelRNNCache, place: Tensor) -> None:
        """What the row of this place gets from the rows above."""

    def _first_row(self, cache: PixelRNNCache, place: Tensor) -> None:
        cache.gates.copy_(cache.lstms[0].bias)
        cache.updates.copy_(cache.biases)

    def _pixel(self, cache: PixelRNNCache, place: Tensor) -> Tensor:
        own, column, cell, side = cache.reads.index_select(0, place)[0].tensor_split((1, 2, 3))
        features = at_pixel(cache.inputs, cache.taps.index_select(0, place)[0], cache.input_matrix)
        # For all layers at once: what the pixel gets from pixels before it.
        beside = self._side(cache).index_select(0, side).permute(1, 2, 0, 3).flatten(2)
        gates = torch.baddbmm(cache.gates.index_select(0, column)[0], beside, cache.lstms[0].side)
        maps = (gates, cache.lstms[0].own, cache.cells.index_select(0, cell)[0])
        updates = (cache.updates.index_select(0, column)[0], cache.outputs)
        known: tuple[list[Tensor], ...] = ([], [], [])
        for gate, matrix, cells, update, output in zip(*(map.unbind() for map in maps + updates), strict=True):
            known[0].append(features)
            hidden, cells = lstm_cell(torch.addmm(gate, features, matrix), cells)
            known[1].append(hidden)
            known[2].append(cells)
            features = torch.addmm(features + update, hidden, output)
        for map, values in zip((cache.features, cache.hidden, cache.cells), known, strict=True):
            map.index_copy_(0, own, torch.stack(values).unsqueeze(0))
        return self.head.step(features, cache.head)


class RowLSTMNetwork(PixelRNNNetwork):
    """A stack of LSTMs that go down the picture row by row (1601.06759, section 3.1).

    A pixel sees a triangle: with kernels of size 3, in the row that is u above, from u + 3 + layers columns to its left
    to u + 2 to its right.

    Args:
        kernel_size: k, odd, of the LSTMs' convolutions.
        **sizes: All others as in `PixelRNNNetwork`.

    Raises:
        ValueError: As there, or if the kernel is even.
    """

    def __init__(self, image_shape: tuple[int, int, int], outputs: int, *, kernel_size: int = 3, **sizes: Any) -> None:
        self.kernel_size = kernel_size  # which the layers are made with
        super().__init__(image_shape, outputs, **sizes)

    def _lstm(self) -> RowLSTMLayer:
        return RowLSTMLayer(2 * self.filters, self.filters, self.kernel_size, self.image_shape[0])

    def _reads(self) -> list[Tensor]:
        return [self._slots(down=-1), *(self._slots(right=right) for right in range(-(self.kernel_size // 2), 0))]

    def _side(self, cache: PixelRNNCache) -> Tensor:
        return cache.features

    def _row(self, cache: PixelRNNCache, place: Tensor) -> None:
        width, margin = self.image_shape[2], self.kernel_size // 2
        above = cache.above.index_select(0, place // width)[0, :width]
        padded = F.pad(cache.hidden.index_select(0, above), (0, 0, 0, 0, 0, 0, margin, margin))
        windows = torch.cat([padded[tap : tap + width] for tap in range(self.kernel_size)], dim=-1)
        cache.gates.copy_(_product(windows, cache.lstms[0].above, cache.lstms[0].bias))


class DiagonalBiLSTMNetwork(PixelRNNNetwork):
    """A stack of pairs of LSTMs that go along the diagonals (1601.06759, section 3.2).

    A pixel sees all pixels above and to the left but one: the last channel of the last pixel in the row above is not
    seen from 4 or more columns to its left, since under mask A no feature of that row holds it. This follows from the
    paper. Arguments are those of `PixelRNNNetwork`.
    """

    def _lstm(self) -> DiagonalBiLSTMLayer:
        return DiagonalBiLSTMLayer(2 * self.filters, self.filters, self.image_shape[1:], self.image_shape[0])

    def _reads(self) -> list[Tensor]:
        return [self._slots(right=-1)] * 2

    def _side(self, cache: PixelRNNCache) -> Tensor:
        return cache.hidden

    def _row(self, cache: PixelRNNCache, place: Tensor) -> None:
        width = self.image_shape[2]
        above, second = cache.above.index_select(0, place // width)[0].chunk(2)
        left, right = cache.lstms
        cache.gates.copy_(_product(cache.hidden.index_select(0, above), left.above, left.bias))
        # The LSTMs from the right at the row above, those of all layers at once, since what goes into them is known.
        known = torch.cat([cache.features.index_select(0, above), cache.right.index_select(0, second)], dim=-1)
        gates = _product(known, torch.cat([right.own, right.above], dim=1), right.bias)
        hidden, cells = torch.zeros_like(cache.right[0]), torch.zeros_like(cache.cells[0])
        states = []
        for of_column in reversed(gates.unbind()):
            hidden, cells = lstm_cell(torch.baddbmm(of_column, hidden, right.side), cells)
            states.append(hidden)
        row = torch.stack(states[::-1])
        cache.right.index_copy_(0, above, row)
        cache.updates.copy_(_product(row, cache.outputs, cache.biases))


class ResidualLSTM(nn.Module):
    """An LSTM, and 1 x 1 under mask B from its h features to 2h, added to what came in (1601.06759, figure 5)."""

    def __init__(self, lstm: RowLSTMLayer | DiagonalBiLSTMLayer, filters: int, image_channels: int) -> None:
        super().__init__()
        self.lstm = lstm
        self.output = MaskedConv2d(filters, 2 * filters, 1, "B", image_channels)

    def forward(self, features: Tensor) -> Tensor:
        """`[H, W, N, 2h]` to `[H, W, N, 2h]`."""
        return self.added(features, self.lstm(features))

    def added(self, features: Tensor, hidden: Tensor) -> Tensor:
        """What the LSTM gives, `[H, W, N, h]`, added to the features `[H, W, N, 2h]`."""
        return features + F.linear(hidden, self.output.masked_weight().flatten(1), self.output.bias)


@dataclass(eq=False)
class PixelRNNCache:
    """What steps need to know, of the last two rows; no more is ever read, except of the pictures.

    Maps are `[2 W + 1, layers, N, F]`: slots for the even rows, for the odd rows, and one of zeros that stands for all
    that lies outside the picture.

    Args:
        inputs: `[N, H * W + 1, C]`: the pixels and a last row of zeros.
        features: What comes into the layers, F = 2h.
        hidden: States of the LSTMs, F = h; of those from the left where there are two.
        cells: Their cell states, at least float32.
        right: Hidden states of the LSTMs from the right, of which a row is computed when the next begins.
        gates: What goes into the gates from the rows above, `[W, layers, N, 4h]`.
        updates: What is added to the features of the row besides the states of `hidden`, `[W, layers, N, 2h]`.
        places: Int64 `[H * W, 1]`.
        taps: Of the first layer.
        reads: Int64 `[H * W, 3 + taps beside]`: own slot, column, slot of the cell state, and slots beside.
        above: Int64 `[H, 2 W]`: slots of the row above and of the one above that.
        input_matrix: Of the first layer.
        lstms: Stacked over the layers; the second are those from the right.
        outputs: `[layers, h, 2h]`.
        biases: `[layers, 1, 2h]`.
        head: Of the head.
        image_shape: (channels, height, width).
        position: Of the last step.
    """

    inputs: Tensor
    features: Tensor
    hidden: Tensor
    cells: Tensor
    right: Tensor
    gates: Tensor
    updates: Tensor
    places: Tensor
    taps: Tensor
    reads: Tensor
    above: Tensor
    input_matrix: Matrix
    lstms: list[GateMatrices]
    outputs: Tensor
    biases: Tensor
    head: tuple[Matrix, Matrix]
    image_shape: tuple[int, int, int]
    position: int = -1

    @property
    def images(self) -> Tensor:
        """`[N, C, H, W]`, a view to write to."""
        return self.inputs[:, :-1].mT.unflatten(2, self.image_shape[1:])


def _stacked(lstms: Sequence[GateMatrices]) -> GateMatrices:
    above, side, own, bias = (torch.stack(matrices) for matrices in zip(*lstms, strict=True))
    return GateMatrices(above, side, own, bias.unsqueeze(1))


def _product(row: Tensor, matrices: Tensor, biases: Tensor) -> Tensor:
    """Of `[W, layers, N, F]` with a matrix `[F, out]` and a bias `[1, out]` of each layer: `[W, layers, N, out]`."""
    by_layer = row.transpose(0, 1)
    result = torch.baddbmm(biases, by_layer.flatten(1, 2), matrices)
    return result.unflatten(1, by_layer.shape[1:3]).transpose(0, 1)
