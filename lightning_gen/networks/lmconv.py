"""The network of LMConv, autoregressive in any order of the pixels (Jain et al. 2020, arXiv 2006.12486)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_gen.layers.activation import concat_elu
from lightning_gen.layers.local_masked import KindsOfMasks, LocallyMaskedConv2d, kinds_of_masks, local_taps
from lightning_gen.layers.masked import Matrix, at_pixel
from lightning_gen.layers.orders import as_order, local_masks, s_curve_order, symmetries
from lightning_gen.networks.density import DensityNetwork
from lightning_gen.networks.stepping import places_of
from lightning_gen.outlines import with_values


class LocalMasks(NamedTuple):
    """The masks of one order, bool `[kh * kw, H * W]`, or of one for each picture, `[N, kh * kw, H * W]`.

    Or, of one order, the taps that they leave, int64 `[H * W, k]`, or of one pixel, `[k]`.
    """

    first: Tensor
    """Of type A."""

    plain: Tensor
    """Of type B."""

    dilated: Tensor
    """Of type B, of the dilated convolutions."""


class LocalKinds(NamedTuple):
    """`LocalMasks` of one order whose pixels have few kinds of them."""

    first: KindsOfMasks
    plain: KindsOfMasks
    dilated: KindsOfMasks


MOST_KINDS = 4  # of masks, up to which convolutions with masked weights are faster than masked columns

Convolve = Callable[[LocallyMaskedConv2d, Tensor, Any], Tensor]
"""How a layer is applied to features with a mask: to whole pictures or, with taps, to one pixel."""


@dataclass(frozen=True, eq=False)
class LMConvCache:
    """What is known of pictures that are generated pixel by pixel, and all that a step needs of the order.

    Args:
        images: `[N, C, H, W]`, a view of the inputs.
        inputs: `[N, H * W + 1, C + 1]`: the pixels, each with a one, and a last row of zeros.
        known: Features that go into each further convolution, `[N, H * W + 1, F]` with a last row of zeros, in the
            order in which the convolutions come.
        masks: Of the order.
        places: Of all positions, int64 `[H * W, 1]`.
        taps: Of the order, of which those are left out that it uses at no pixel.
        first: Weight and bias of the first convolution, with these taps.
        matrices: Of the further ones.
    """

    images: Tensor
    inputs: Tensor
    known: list[Tensor]
    masks: LocalMasks
    places: Tensor
    taps: LocalMasks
    first: Matrix
    matrices: list[Matrix]


class LMConvNetwork(DensityNetwork):
    """The layout of PixelCNN++ in a single stream: gated residual blocks with shortcuts from the first to the last.

    Three stages of `num_blocks` blocks are followed by three of `num_blocks`, + 1 and + 1, each block of which also
    gets the output of its mirror image. All convolutions are locally masked; one of type A comes first, all others are
    of type B. Between the stages are dilated convolutions, where PixelCNN++ has strides, and features are normalised
    over the channels of each pixel alone (positional normalisation), which respects every order. One network serves
    several orders: it draws nothing itself, so training takes another one for each batch or picture.

    Deviations from the authors' code, at its settings for MNIST and CIFAR-10: the 1 x 1 convolutions have no weight
    norm; normalisation divides by the variance's mean over F, not F - 1; dropout, which they leave off, is of single
    features, as in PixelCNN++, not of whole maps.

    Args:
        image_shape: (channels, height, width).
        outputs: Parameters of each pixel.
        orders: Orders of generation, each `[H * W]`; None is the S-curve and its flips and transposes, 8 in all.
        filters: Channels of the features, at least 2.
        num_blocks: Gated blocks in each of the first three stages.
        kernel_size: Odd side of the kernels.
        dilation: Of the convolutions between the stages.
        dropout, embedding: As of `DensityNetwork`.

    Raises:
        ValueError: If a size is out of range, or an order is no permutation of the pixels, or there is none.
    """

    small: ClassVar = {"filters": 4, "num_blocks": 1}
    orders: Tensor
    first_masks: Tensor
    plain_masks: Tensor
    dilated_masks: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        orders: Sequence[Tensor | Sequence[int]] | None = None,
        filters: int = 160,
        num_blocks: int = 5,
        kernel_size: int = 3,
        dilation: int = 2,
        dropout: float = 0.0,
        embedding: int | None = None,
    ) -> None:
        super().__init__(image_shape, outputs, embedding=embedding, dropout=dropout)
        if filters < 2 or num_blocks < 0:
            raise ValueError(
                f"LMConv needs filters at least 2 (they are normalised) and num_blocks at least 0, got {filters} and "
                f"{num_blocks}."
            )
        height, width = image_shape[1:]
        self.kernel_size, self.dilation = kernel_size, dilation
        with with_values():
            self.set_orders(symmetries(s_curve_order, height, width) if orders is None else orders)

        def stages(*counts: int, shortcut: bool) -> nn.ModuleList:
            layers: list[nn.Module] = []
            for stage, count in enumerate(counts):
                if stage:
                    layers.append(LocallyMaskedConv2d(filters, filters, kernel_size, dilation))
                layers += [GatedBlock(filters, kernel_size, shortcut=shortcut, dropout=dropout) for _ in range(count)]
            return nn.ModuleList(layers)

        self.first = LocallyMaskedConv2d(self.in_channels + 1, filters, kernel_size)
        self.up = stages(num_blocks, num_blocks, num_blocks, shortcut=False)
        self.down = stages(num_blocks, num_blocks + 1, num_blocks + 1, shortcut=True)
        self.last = Pointwise(filters, outputs)

    def set_orders(self, orders: Sequence[Tensor | Sequence[int]]) -> None:
        """Take other orders in the place of those that there are. They are no part of the state dict.

        Args:
            orders: At least one, each `[H * W]`.

        Raises:
            ValueError: If there is none, or one is no permutation of the pixels.
        """
        if not len(orders):
            raise ValueError("LMConv needs at least one order of generation, got none.")
        masks = [self.masks_of(order) for order in orders]
        checked = [as_order(order, *self.image_shape[1:]).to(masks[0].first.device) for order in orders]
        # No part of the state dict, since a network may serve other orders than it was trained on.
        self.register_buffer("orders", torch.stack(checked), persistent=False)
        for name, of_orders in zip(LocalMasks._fields, zip(*masks, strict=True), strict=True):
            self.register_buffer(f"{name}_masks", torch.stack(of_orders), persistent=False)
            dilation = self.dilation if name == "dilated" else 1
            found = [kinds_of_masks(m, *self.image_shape[1:], self.kernel_size, dilation, most=MOST_KINDS)
                     for m in of_orders]  # fmt: skip
            few = [kinds for kinds in found if kinds is not None]
            stacked = [pad_sequence(list(parts), batch_first=True) for parts in zip(*few, strict=True)]
            for part, tensor in zip(
                KindsOfMasks._fields, stacked if len(few) == len(masks) else (None, None), strict=True
            ):
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    def masks_of(self, order: Tensor | Sequence[int]) -> LocalMasks:
        """The masks of an order of one's own, `[H * W]`, on the network's device: what `forward` takes for an order.

        Raises:
            ValueError: If it is no permutation of the pixels.
        """
        _, height, width = self.image_shape
        weight = next(self.parameters(), None)
        order = as_order(order, height, width)
        order = order if weight is None else order.to(weight.device)
        sizes = (order, height, width, self.kernel_size)
        return LocalMasks(
            local_masks(*sizes, mask_type="A"),
            local_masks(*sizes, mask_type="B"),
            local_masks(*sizes, self.dilation, mask_type="B"),
        )

    def forward(self, images: Tensor, order: int | Tensor | LocalMasks = 0) -> Tensor:
        """Parameters of all pixels, `[N, outputs, H, W]`, each of which depends on earlier pixels only.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            order: Index into the network's orders; or one for each picture, int64 `[N]`; or masks, see `masks_of`.

        Raises:
            ValueError: If images are of another shape than the network's, or there is no such order.
        """
        self.check_given(images)
        masks = self._kinds(order) or self._masks(order)
        return self._whole(images, masks, lambda layer, features, mask: layer(features, mask))

    def init_cache(self, batch: int, device: torch.device, order: int | LocalMasks = 0) -> LMConvCache:
        """For pictures of which no pixel is known.

        Args:
            batch: Number of pictures.
            device: That of the weights.
            order: The one in which `step` will come; index into the network's orders, or masks, see `masks_of`.

        Raises:
            ValueError: If there is no such order.
        """
        height, width = self.image_shape[1:]
        masks = self._masks(order)
        if masks.first.ndim != 2:
            raise ValueError("A cache is of one order for all pictures, but these masks are of one for each.")

        def zeros(features: int) -> Tensor:
            return torch.zeros(batch, height * width + 1, features, dtype=self.first.weight.dtype, device=device)

        inputs = zeros(self.in_channels + 1)
        inputs[:, :-1, -1] = 1
        taps, kept = [], []
        for mask, dilation in zip(masks, (1, 1, self.dilation), strict=True):
            table = local_taps(mask, height, width, self.kernel_size, dilation)
            # A raster never looks down, an S-curve neither: less to gather and to multiply.
            kept.append((table < height * width).any(0).nonzero().flatten())
            taps.append(table[:, kept[-1]])
        of_first, of_plain, of_dilated = kept
        # In the order in which they come.
        layers = [layer for layer in self.modules() if isinstance(layer, LocallyMaskedConv2d)][1:]
        between = {layer for layer in (*self.up, *self.down) if isinstance(layer, LocallyMaskedConv2d)}
        return LMConvCache(
            images=inputs[:, :-1, :-1].mT.unflatten(2, (height, width)),
            inputs=inputs,
            known=[zeros(layer.in_channels) for layer in layers],
            masks=masks,
            places=places_of(height, width, device),
            taps=LocalMasks(*taps),
            first=self.first.matrix(of_first),
            matrices=[layer.matrix(of_dilated if layer in between else of_plain) for layer in layers],
        )

    @torch.no_grad()
    def prefill(self, cache: LMConvCache, position: int) -> None:
        """One forward pass in place of the steps at all pixels before this one.

        So where the known pixels come first in the cache's order, see `hole_last`, only the others are stepped through.
        The position makes no difference: all pixels are computed, and written again when they are stepped.
        """
        known = iter(cache.known)

        def convolve(layer: LocallyMaskedConv2d, features: Tensor, mask: Tensor) -> Tensor:
            next(known)[:, :-1] = features.flatten(2).mT
            return layer(features, mask)

        self._whole(cache.images, cache.masks, convolve)

    def _pixel(self, cache: LMConvCache, place: Tensor) -> Tensor:
        taps = LocalMasks(*(table.index_select(0, place).view(-1) for table in cache.taps))
        layers = zip(cache.known, cache.matrices, strict=True)

        def convolve(layer: LocallyMaskedConv2d, features: Tensor, taps: Tensor) -> Tensor:
            known, matrix = next(layers)
            known.index_copy_(1, place, features.unsqueeze(1))
            return at_pixel(known, taps, matrix)

        return self._after_first(at_pixel(cache.inputs, taps.first, cache.first), taps, convolve)

    def _masks(self, order: int | Tensor | LocalMasks) -> LocalMasks:
        if isinstance(order, LocalMasks):
            return order
        count = len(self.first_masks)
        if isinstance(order, int) and not 0 <= order < count:
            raise ValueError(f"The order must be an index from 0 to {count - 1}, got {order}.")
        return LocalMasks(self.first_masks[order], self.plain_masks[order], self.dilated_masks[order])

    def _kinds(self, order: int | Tensor | LocalMasks) -> LocalKinds | None:
        """The same as `_masks`, if there are few kinds of them and all pictures have one order."""
        names = LocalKinds._fields
        if not isinstance(order, int) or any(getattr(self, f"{name}_kinds") is None for name in names):
            return None
        self._masks(order)  # that there is such an order
        parts = ((getattr(self, f"{name}_{part}")[order] for part in KindsOfMasks._fields) for name in names)
        return LocalKinds(*(KindsOfMasks(*part) for part in parts))

    def _whole(self, images: Tensor, masks: LocalMasks | LocalKinds, convolve: Convolve) -> Tensor:
        # The ones tell a black pixel from one outside the picture or not yet generated.
        inputs = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        return self._after_first(self.first(inputs, masks.first), masks, convolve)

    def _after_first(self, features: Tensor, masks: LocalMasks | LocalKinds, convolve: Convolve) -> Tensor:
        """All after the first convolution, for whole pictures `[N, filters, H, W]` or single pixels `[N, filters]`."""
        features = positional_norm(features)
        shortcuts = [features]
        for layer in self.up:
            if isinstance(layer, LocallyMaskedConv2d):
                features = positional_norm(convolve(layer, features, masks.dilated))
            else:
                features = layer(features, masks.plain, convolve)
            shortcuts.append(features)
        features = shortcuts.pop()
        for layer in self.down:
            if isinstance(layer, LocallyMaskedConv2d):
                features = positional_norm(convolve(layer, features, masks.dilated))
            else:
                features = layer(features, masks.plain, convolve, shortcuts.pop())
        return self.last(F.elu(features))


class GatedBlock(nn.Module):
    """x + norm(a) * sigmoid(b), where a and b come from x through two convolutions, and a shortcut between them.

    Args:
        filters: Channels in and out.
        kernel_size: Of both convolutions.
        shortcut: Whether there is one.
        dropout: Before the second convolution.
    """

    def __init__(self, filters: int, kernel_size: int, *, shortcut: bool, dropout: float) -> None:
        super().__init__()
        self.conv1 = LocallyMaskedConv2d(2 * filters, filters, kernel_size)
        self.shortcut = Pointwise(2 * filters, filters) if shortcut else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = LocallyMaskedConv2d(2 * filters, 2 * filters, kernel_size)

    def forward(self, features: Tensor, mask: Any, convolve: Convolve, earlier: Tensor | None = None) -> Tensor:
        """`[N, filters, ...]` to the same shape; `earlier`, of that shape too, comes through the shortcut."""
        hidden = positional_norm(convolve(self.conv1, concat_elu(features), mask))
        if self.shortcut is not None and earlier is not None:
            hidden = hidden + self.shortcut(concat_elu(earlier))
        hidden, gate = convolve(self.conv2, self.dropout(concat_elu(hidden)), mask).chunk(2, dim=1)
        return features + positional_norm(hidden) * gate.sigmoid()


class Pointwise(nn.Linear):
    """A 1 x 1 convolution of `[N, C, H, W]`, and the same for the `[N, C]` of one pixel."""

    def forward(self, features: Tensor) -> Tensor:
        """To `[N, out_features, ...]`."""
        if features.ndim == 2:
            return super().forward(features)
        return F.conv2d(features, self.weight[:, :, None, None], self.bias)


def positional_norm(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels of each pixel (Li et al. 2019, arXiv 1907.04312), without parameters."""
    if features.ndim == 2:  # one pixel, whose steps are quick enough for two calls less to count
        return F.layer_norm(features, features.shape[1:])
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
