"""The network of LMConv, autoregressive in any order of the pixels (Jain et al. 2020, arXiv 2006.12486)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.local_masked import LocallyMaskedConv2d, local_taps
from lightning_gen.layers.orders import as_order, local_masks, s_curve_order, symmetries
from lightning_gen.networks.building import check_image_shape


class LocalMasks(NamedTuple):
    """The masks of one order, bool `[kh * kw, H * W]`, or of one for each picture, `[N, kh * kw, H * W]`.

    Or, of one order, the taps that they leave, int64 `[H * W, kh * kw]`, or of one pixel, `[kh * kw]`.
    """

    first: Tensor
    """Of type A."""

    plain: Tensor
    """Of type B."""

    dilated: Tensor
    """Of type B, of the dilated convolutions."""


Convolve = Callable[[LocallyMaskedConv2d, Tensor, Tensor], Tensor]
"""How a layer is applied to features with a mask: to whole pictures or, with taps, to one pixel."""


@dataclass(eq=False)
class LMConvCache:
    """What is known of pictures that are generated pixel by pixel; see `lightning_gen.testing.Cache`.

    Args:
        inputs: `[N, H * W + 1, C + 1]`: the pixels, each with a one, and a last row of zeros.
        known: Features that go into each further convolution, `[N, H * W + 1, F]` with a last row of zeros, in the
            order in which the convolutions come.
        masks: Of the order.
        taps: Of the order.
        image_shape: (channels, height, width).
    """

    inputs: Tensor
    known: list[Tensor]
    masks: LocalMasks
    taps: LocalMasks
    image_shape: tuple[int, int, int]

    @property
    def images(self) -> Tensor:
        """`[N, C, H, W]`, a view to write to."""
        channels, height, width = self.image_shape
        return self.inputs[:, :-1, :channels].mT.unflatten(2, (height, width))


class LMConvNetwork(nn.Module):
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
        dropout: Share of the features that go to a block's second convolution which are dropped in training.

    Raises:
        ValueError: If a size is out of range, or an order is no permutation of the pixels, or there is none.
    """

    orders: Tensor
    first_masks: Tensor
    plain_masks: Tensor
    dilated_masks: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        outputs: int,
        orders: Sequence[Tensor | Sequence[int]] | None = None,
        filters: int = 160,
        num_blocks: int = 5,
        kernel_size: int = 3,
        dilation: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape)
        if outputs < 1 or filters < 2 or num_blocks < 0:
            raise ValueError(
                "outputs must be at least 1, filters at least 2 (they are normalised) and num_blocks at least 0, got "
                f"{outputs}, {filters} and {num_blocks}."
            )
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.kernel_size, self.dilation = kernel_size, dilation
        self.set_orders(symmetries(s_curve_order, height, width) if orders is None else orders)

        def stages(*counts: int, shortcut: bool) -> nn.ModuleList:
            layers: list[nn.Module] = []
            for stage, count in enumerate(counts):
                if stage:
                    layers.append(LocallyMaskedConv2d(filters, filters, kernel_size, dilation))
                layers += [GatedBlock(filters, kernel_size, shortcut=shortcut, dropout=dropout) for _ in range(count)]
            return nn.ModuleList(layers)

        self.first = LocallyMaskedConv2d(channels + 1, filters, kernel_size)
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
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.image_shape))}], got {list(images.shape)}.")
        return self._whole(images, self._masks(order), lambda layer, features, mask: layer(features, mask))

    def init_cache(self, batch: int, device: torch.device, order: int | LocalMasks = 0) -> LMConvCache:
        """For pictures of which no pixel is known.

        Args:
            batch: Number of pictures.
            device: That of the weights.
            order: The one in which `step` will come; index into the network's orders, or masks, see `masks_of`.

        Raises:
            ValueError: If there is no such order.
        """
        channels, height, width = self.image_shape
        masks = self._masks(order)
        if masks.first.ndim != 2:
            raise ValueError("A cache is of one order for all pictures, but these masks are of one for each.")

        def zeros(features: int) -> Tensor:
            return torch.zeros(batch, height * width + 1, features, dtype=self.first.weight.dtype, device=device)

        inputs = zeros(channels + 1)
        inputs[:, :-1, -1] = 1
        # The layers in the order in which they come.
        _, *layers = (layer for layer in self.modules() if isinstance(layer, LocallyMaskedConv2d))
        taps = LocalMasks(
            *(
                local_taps(mask, height, width, self.kernel_size, dilation)
                for mask, dilation in zip(masks, (1, 1, self.dilation), strict=True)
            )
        )
        return LMConvCache(inputs, [zeros(layer.in_channels) for layer in layers], masks, taps, self.image_shape)

    @torch.no_grad()
    def prefill(self, cache: LMConvCache) -> None:
        """Take note of known pixels in one forward pass, so that only the others remain to be stepped through.

        The known ones must come first in the cache's order, see `hole_last`.

        Args:
            cache: From `init_cache`, with the known pixels in `cache.images` and anything finite elsewhere.
        """
        known = iter(cache.known)

        def convolve(layer: LocallyMaskedConv2d, features: Tensor, mask: Tensor) -> Tensor:
            next(known)[:, :-1] = features.flatten(2).mT
            return layer(features, mask)

        self._whole(cache.images, cache.masks, convolve)

    @torch.no_grad()
    def step(self, cache: LMConvCache, position: int | Tensor) -> Tensor:
        """The parameters of one pixel, `[N, outputs]`; see `lightning_gen.testing.CachedNetwork`.

        Args:
            cache: From `init_cache`.
            position: Flat index of the next pixel in the cache's order. As an int64 tensor `[]` it lets one compiled
                step serve all positions.
        """
        taps = LocalMasks(*(of_pixels[position] for of_pixels in cache.taps))
        known = iter(cache.known)

        def convolve(layer: LocallyMaskedConv2d, features: Tensor, taps: Tensor) -> Tensor:
            inputs = next(known)
            inputs[:, position] = features
            return layer.step(inputs, taps)

        return self._after_first(self.first.step(cache.inputs, taps.first), taps, convolve)

    def _masks(self, order: int | Tensor | LocalMasks) -> LocalMasks:
        if isinstance(order, LocalMasks):
            return order
        count = len(self.first_masks)
        if isinstance(order, int) and not 0 <= order < count:
            raise ValueError(f"The order must be an index from 0 to {count - 1}, got {order}.")
        return LocalMasks(self.first_masks[order], self.plain_masks[order], self.dilated_masks[order])

    def _whole(self, images: Tensor, masks: LocalMasks, convolve: Convolve) -> Tensor:
        # The ones tell a black pixel from one outside the picture or not yet generated.
        inputs = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        return self._after_first(self.first(inputs, masks.first), masks, convolve)

    def _after_first(self, features: Tensor, masks: LocalMasks, convolve: Convolve) -> Tensor:
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

    def forward(self, features: Tensor, mask: Tensor, convolve: Convolve, earlier: Tensor | None = None) -> Tensor:
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


def concat_elu(features: Tensor) -> Tensor:
    """ELU of the features and of their negatives, `[N, 2 C, ...]` (PixelCNN++, arXiv 1701.05517)."""
    return F.elu(torch.cat([features, -features], dim=1))


def positional_norm(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels of each pixel (Li et al. 2019, arXiv 1907.04312), without parameters."""
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
