"""The network of Gated PixelCNN (van den Oord et al. 2016, 1606.05328)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.masked import (
    MaskedConv2d,
    MaskType,
    Matrix,
    VerticalConv2d,
    at_pixel,
    at_row,
    gated,
    shift_down,
)
from lightning_gen.networks.density import DensityNetwork, check_features
from lightning_gen.networks.pixelcnn import Head
from lightning_gen.networks.stepping import Run, call, places_of


class GatedPixelCNNNetwork(DensityNetwork):
    """Two stacks of gated convolutions, which together see all of the past (1606.05328, figure 2).

    The vertical stack sees all rows above, the horizontal one the pixels to the left in the row. Before the gate, each
    layer of the horizontal stack also gets the vertical features of the row above, through a 1 x 1 convolution. The
    horizontal stack has residual connections, except around its first layer, and every layer's gate goes to the head,
    which is ReLU, 1 x 1, ReLU, 1 x 1.

    A class adds a bias before both gates of every layer, and a map of conditions a 1 x 1 convolution of itself, so that
    each pixel gets its own (section 2.3). Of both, the weights start at zero.

    With a kernel of size k and a first one of 7, the vertical stack sees 3 + layers (k // 2) columns to the right.

    Args:
        image_shape: (channels, height, width).
        outputs: P C, logits of each pixel: P = L for each channel of L levels, or 1 where these are 2.
        filters: Features of each stack; the paper's largest network has 384.
        layers: Gated layers after the first.
        kernel_size: k of these, odd; 5 in the paper's largest network.
        head_filters: Features of the head.
        num_classes, condition_channels, embedding: As of `DensityNetwork`.

    Raises:
        ValueError: If a size is out of range, the kernel even, or there are fewer features than channels of the
            picture.
    """

    small: ClassVar = {"filters": 4, "layers": 2, "head_filters": 8}

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        filters: int = 384,
        layers: int = 20,
        kernel_size: int = 5,
        head_filters: int = 1024,
        num_classes: int | None = None,
        condition_channels: int | None = None,
        embedding: int | None = None,
    ) -> None:
        super().__init__(
            image_shape, outputs, embedding=embedding, num_classes=num_classes, condition_channels=condition_channels
        )
        check_features(self, outputs, filters, layers, head_filters)
        channels = image_shape[0]
        given = (num_classes, condition_channels)
        first = GatedLayer(self.in_channels, filters, 7, "A", channels, *given)
        others = (GatedLayer(filters, filters, kernel_size, "B", channels, *given) for _ in range(layers))
        self.layers = cast(Sequence[GatedLayer], nn.ModuleList([first, *others]))
        self.head = Head(filters, head_filters, outputs, channels)

    def forward(self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` to logits `[N, P, C, H, W]`.

        Args:
            images: The pictures.
            labels: Int64 `[N]`.
            condition: `[N, condition_channels, H, W]`.

        Raises:
            ValueError: If labels or condition are missing, or given to a network that has no use for them, or the
                condition has another shape.
        """
        self.check_given(images, labels)
        self.check_condition(condition, len(images))
        vertical, _, horizontal, skip = self.layers[0](images, images, labels, condition)
        for layer in self.layers[1:]:
            vertical, _, update, more = layer(vertical, horizontal, labels, condition)
            horizontal, skip = horizontal + update, skip + more
        return self.head(skip)

    def init_cache(
        self, batch: int, device: torch.device, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> GatedPixelCNNCache:
        """The cache for `batch` pictures of which no pixel is known, all zeros; the weights must stay until the end."""
        check_labels(labels, self.num_classes)
        self.check_condition(condition, batch)
        height, width = self.image_shape[1:]
        first, second = self.layers[:2]
        filters = second.vertical.in_channels
        like = first.vertical.weight.detach().to(device)
        pictures = like.new_zeros(batch, height + 1, width, self.in_channels)
        updates, skips = zip(*(layer.outer_matrices() for layer in self.layers), strict=True)
        return GatedPixelCNNCache(
            images=pictures[:, :height].permute(0, 3, 1, 2),
            inputs=pictures.flatten(1, 2),
            vertical=[pictures, *(like.new_zeros(batch, height + 1, width, filters) for _ in self.layers[1:])],
            horizontal=[like.new_zeros(batch, width + 1, filters) for _ in self.layers[1:]],
            above=like.new_zeros(len(self.layers), batch, width, 2 * filters),
            labels=labels,
            condition=None if condition is None else condition.to(like).permute(0, 2, 3, 1).contiguous(),
            places=places_of(height, width, device),
            rows=(first.vertical.rows(height), second.vertical.rows(height)),
            taps=(first.horizontal.taps(height, width), second.horizontal.taps(1, width)),
            matrices=[layer.matrices(labels) for layer in self.layers],
            updates=list(updates[:-1]),
            skip=(torch.cat([weight for weight, _ in skips], dim=1), torch.stack([bias for _, bias in skips]).sum(0)),
            head=self.head.matrices(),
        )

    @torch.no_grad()
    def prefill(self, cache: GatedPixelCNNCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one."""
        rows = position // self.image_shape[2] + 1
        condition = None if cache.condition is None else cache.condition[:, :rows].permute(0, 3, 1, 2)
        vertical = horizontal = cache.images[:, :, :rows]
        for number, layer in enumerate(self.layers):
            if number:
                cache.vertical[number][:, :rows] = vertical.permute(0, 2, 3, 1)
                cache.horizontal[number - 1][:, :-1] = horizontal[:, :, -1].mT
            vertical, above, update, _ = layer(vertical, horizontal, cache.labels, condition)
            cache.above[number] = above[:, :, -1].mT
            horizontal = horizontal + update if number else update

    @torch.no_grad()
    def step(self, cache: GatedPixelCNNCache, position: int, run: Run = call) -> Tensor:
        """Logits of one pixel, `[N, P, C]`; one piece as a row begins, and one at each step."""
        place = cache.places[position]
        if position % self.image_shape[2] == 0 and position != cache.position:
            run(self._row, cache, place)
        cache.position = position
        return run(self._pixel, cache, place)

    def _row(self, cache: GatedPixelCNNCache, place: Tensor) -> None:
        """The vertical stack at the row above, which is complete, and what the horizontal one gets of it at this."""
        row = place // self.image_shape[2]
        # Above the first row is none: what is computed there is thrown away, and the row written again when it is due.
        last, outside = (row - 1).clamp_min_(0), row == 0
        rows, others = (table.index_select(0, last).view(-1) for table in cache.rows)
        for number, (known, matrices) in enumerate(zip(cache.vertical, cache.matrices, strict=True)):
            seen = at_row(known, rows, matrices.vertical)
            above = F.linear(seen, matrices.link).masked_fill_(outside, 0).add_(matrices.beside)
            seen = seen + matrices.below
            if cache.condition is not None and matrices.condition is not None:
                below, beside = matrices.condition
                seen = seen + F.linear(cache.condition.index_select(1, last).squeeze(1), below)
                above = above + F.linear(cache.condition.index_select(1, row).squeeze(1), beside)
            cache.above[number].copy_(above)
            if number + 1 < len(self.layers):
                cache.vertical[number + 1].index_copy_(1, last, gated(seen, dim=2).unsqueeze(1))
            rows = others

    def _pixel(self, cache: GatedPixelCNNCache, place: Tensor) -> Tensor:
        column = place % self.image_shape[2]
        first, near = cache.taps[0].index_select(0, place).view(-1), cache.taps[1].index_select(0, column).view(-1)
        above = cache.above.index_select(2, column).squeeze(2).unbind()
        gates = [gated(at_pixel(cache.inputs, first, cache.matrices[0].horizontal) + above[0])]
        features = None
        for number, (known, matrix) in enumerate(zip(cache.horizontal, cache.updates, strict=True), start=1):
            update = F.linear(gates[-1], *matrix)
            features = update if features is None else features + update
            known.index_copy_(1, column, features.unsqueeze(1))
            gates.append(gated(at_pixel(known, near, cache.matrices[number].horizontal) + above[number]))
        # The sum of what all layers give to the head, as one product.
        return self.head.step(F.linear(torch.cat(gates, dim=1), *cache.skip), cache.head)


class GatedMatrices(NamedTuple):
    """Of one layer, for the steps; those of its last convolution are apart."""

    vertical: Matrix
    link: Tensor
    horizontal: Matrix
    below: Tensor
    """Of the class, before the vertical gate, `[N, 1, 2F]`, or zeros `[1]`."""
    beside: Tensor
    """Before the horizontal gate."""
    condition: tuple[Tensor, Tensor] | None
    """Before both gates, `[2F, condition_channels]` each."""


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        in_channels: Of both stacks.
        filters: F, of both.
        kernel_size: k, odd.
        mask_type: Of the horizontal stack; "A" for the layer that sees the picture.
        image_channels: Of the picture.
        num_classes: None for a layer without labels.
        condition_channels: None for a layer without a map of conditions.
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        kernel_size: int,
        mask_type: MaskType,
        image_channels: int,
        num_classes: int | None,
        condition_channels: int | None,
    ) -> None:
        super().__init__()
        self.vertical = VerticalConv2d(in_channels, 2 * filters, kernel_size)
        self.link = nn.Conv2d(2 * filters, 2 * filters, 1, bias=False)  # the horizontal convolution has one
        self.horizontal = MaskedConv2d(
            in_channels, 2 * filters, (1, kernel_size), mask_type, image_channels, out_parts=2
        )
        self.outer = MaskedConv2d(filters, 2 * filters, 1, "B", image_channels, out_parts=2)
        self.classes = self.conditions = None
        if num_classes is not None:
            self.classes = nn.Embedding(num_classes, 4 * filters)
            nn.init.zeros_(self.classes.weight)
        if condition_channels is not None:
            self.conditions = nn.Conv2d(condition_channels, 4 * filters, 1, bias=False)
            nn.init.zeros_(self.conditions.weight)

    def forward(
        self, vertical: Tensor, horizontal: Tensor, labels: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both stacks `[N, in, H, W]` to what they give.

        Returns:
            The vertical stack `[N, F, H, W]`; all that is added to the horizontal convolution, `[N, 2F, H, W]`; the
            horizontal stack's residual and what goes to the head, `[N, F, H, W]` each.
        """
        seen = self.vertical(vertical)
        above = self.link(shift_down(seen))
        if self.classes is not None:
            below, beside = self.classes(labels)[:, :, None, None].to(seen.dtype).chunk(2, dim=1)
            seen, above = seen + below, above + beside
        if self.conditions is not None:
            below, beside = self.conditions(condition).chunk(2, dim=1)
            seen, above = seen + below, above + beside
        update, skip = self.outer(gated(self.horizontal(horizontal) + above)).chunk(2, dim=1)
        return gated(seen), above, update, skip

    def matrices(self, labels: Tensor | None) -> GatedMatrices:
        """For the steps of pictures of these classes."""
        below = beside = self.link.weight.new_zeros(1)
        condition = None
        if self.classes is not None:
            below, beside = self.classes(labels).detach().unsqueeze(1).chunk(2, dim=2)
        if self.conditions is not None:
            to_below, to_beside = self.conditions.weight.detach().flatten(1).chunk(2)
            condition = (to_below, to_beside)
        link = self.link.weight.detach().flatten(1)
        return GatedMatrices(self.vertical.kernel(), link, self.horizontal.matrix(), below, beside, condition)

    def outer_matrices(self) -> tuple[Matrix, Matrix]:
        """Of the last convolution: its half for the residual, and that for the head."""
        weight, bias = self.outer.matrix()
        assert bias is not None  # for the type checker
        (update, skip), (update_bias, skip_bias) = weight.chunk(2), bias.chunk(2)
        return (update, update_bias), (skip, skip_bias)


@dataclass(eq=False)
class GatedPixelCNNCache:
    """Of `GatedPixelCNNNetwork`; lists have one entry a layer.

    Args:
        images: `[N, C, H, W]`, a view of the inputs.
        inputs: `[N, (H + 1) * W, C]`: the pixels, and a row of zeros for all that lies outside.
        vertical: Inputs of the vertical stack, the first a view of the same, the others `[N, H + 1, W, F]`.
        horizontal: Inputs of the horizontal stack but its first layer, at the present row, `[N, W + 1, F]` with zeros
            at the end.
        above: What the horizontal stack gets at the present row from the rows above, the class and the map of
            conditions, `[layers, N, W, 2F]`.
        labels: Int64 `[N]`, or None.
        condition: `[N, H, W, condition_channels]`, or None.
        places: Of all positions, int64 `[H * W, 1]`.
        rows: That the vertical stack sees in its first layer, and in its others.
        taps: Of the horizontal stack's first layer, and of its others in their row.
        matrices: Of both stacks.
        updates: Of the horizontal stack's residuals, of all layers but the last.
        skip: Of all layers together, what goes to the head.
        head: Of the head.
        position: Of the last step: further steps there, for further channels, need not begin the row again.
    """

    images: Tensor
    inputs: Tensor
    vertical: list[Tensor]
    horizontal: list[Tensor]
    above: Tensor
    labels: Tensor | None
    condition: Tensor | None
    places: Tensor
    rows: tuple[Tensor, Tensor]
    taps: tuple[Tensor, Tensor]
    matrices: list[GatedMatrices]
    updates: list[Matrix]
    skip: Matrix
    head: tuple[Matrix, Matrix]
    position: int = -1
