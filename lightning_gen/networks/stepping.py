"""How a network gives one pixel at a time, in pieces that each become one graph.

A `step` may have to look at where it is: a new row, a level of another resolution. It does so on the host, and hands
everything else to pieces that get tensors only, the position among them. So a piece does the same operations on the
same memory whenever it comes, and can be compiled once for all positions, or recorded as a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Run = Callable[..., Any]
"""Calls a piece: `run(piece, cache, place, *flags)`, where `piece` is a method of the network, `cache` its cache,
`place` a position as int64 `[1]` on the device, and flags are what there are few of, such as bools. Running a piece
again at a place changes nothing. What it gives holds until it is run again."""


def call(piece: Callable[..., Any], *arguments: Any) -> Any:
    """The `Run` that does nothing but call."""
    return piece(*arguments)


def places_of(height: int, width: int, device: torch.device) -> Tensor:
    """All flat positions of a picture, int64 `[H * W, 1]`: row p is the `place` of position p."""
    return torch.arange(height * width, device=device).unsqueeze(1)


def neighbours(height: int, width: int, down: int = 0, right: int = 0, *, kept: int | None = None) -> Tensor:
    """Where of each pixel the one so many rows down (0 or less) and columns to the right lies, int64 `[H, W]`.

    Flat indices, and H * W for one outside the picture. Where only so many rows are `kept`, which take turns: slots
    `row % kept * W + column`, and kept * W for one outside.
    """
    kept = kept or height
    rows, columns = torch.arange(height)[:, None] + down, torch.arange(width) + right
    inside = (rows >= 0) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows % kept * width + columns, kept * width)


class Cache(Protocol):
    """What a network remembers between the steps of a sampling: all of it, so the network itself has no state.

    Its tensors stay where they are for the whole sampling, and are written in place.
    """

    images: Tensor
    """`[N, C, H, W]`: the pixels so far, in the places where they belong. The sampler writes each as it is drawn.

    Of a network with `embed`, what that makes of their levels."""


class CachedNetwork(Protocol):
    """A network that gives the parameters of one pixel at a time, at the cost of one pixel.

    Where the parameters are of a pixel as a whole, `[N, P, H, W]`, the sampler does, for a whole batch at once:

        cache = network.init_cache(batch, device)
        for position in order.tolist():
            parameters = network.step(cache, position)
            cache.images.flatten(2)[:, :, position] = draw(parameters)

    Where each channel has its own, `[N, P, C, H, W]`, they may depend on the channels before it of the same pixel, so
    there is one step for each channel:

        for position in order.tolist():
            for channel in range(channels):
                parameters = network.step(cache, position)[:, :, channel]
                cache.images.flatten(2)[:, channel, position] = draw(parameters)

    Three things are optional. A method `prefill(cache, position)` takes note of known pixels, in one forward pass in
    place of the steps at all pixels before `position` in the order of generation: these stand in `cache.images`, and
    any finite numbers in the others. And `step` may take a third argument, `run`, with a default: it calls the parts of
    a step that are the same at every position, so a sampler can have them compiled or recorded; see
    `lightning_gen.networks.stepping`. And a network with `embed` gets what that makes of levels, int64
    `[N, C, *space]` to `[N, F, *space]`, wherever others get pictures of C channels.
    """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Parameters of all pixels, `[N, P, H, W]` or `[N, P, C, H, W]`, of which each depends on earlier ones only."""
        ...

    def init_cache(self, batch: int, device: torch.device) -> Any:
        """A `Cache` for `batch` pictures of which no pixel is known, of the type of the weights."""
        ...

    def step(self, cache: Any, position: int) -> Tensor:
        """The parameters of one pixel, equal to what the whole forward pass gives there.

        Called in the order of generation, after the pixels before it were written to `cache.images`: once for each
        pixel, or once for each of its channels. Then the parameters of a channel must be right once the channels
        before it were written too, and those of later ones may be anything. All else that `cache.images` holds, finite
        but otherwise anything, must have no influence.

        Args:
            cache: From `init_cache`. Several may be in use in turns.
            position: Flat index of the pixel, row * width + column.

        Returns:
            `[N, P]` or `[N, P, C]`.
        """
        ...
