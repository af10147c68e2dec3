"""Checks of autoregressive networks, for those of one's own too: causality, blind spots, cached sampling.

All take an `nn.Module` that maps pictures `[N, C, H, W]` to the parameters of the distribution of each pixel, either
`[N, P, H, W]`, P numbers for the pixel as a whole, or `[N, P, C, H, W]`, P numbers for each of its channels. A network
that wants more, labels say, is put into a module that adds it:

    class OfClass7(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images, labels=torch.full((len(images),), 7))

They work on a copy of the network in float64, in eval mode, on the CPU, and leave the network itself and the global
random state as they are. By default all weights of the copy are moved at random by as much as they are large, since
weights that start at zero, as those of many last layers do, and ReLUs that happen to be off hide whatever lies behind
them. A network that keeps its mask only as zeros in its weights, and does not apply it in `forward`, needs
`perturb=False`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_gen.layers.orders import as_order, raster_order
from lightning_gen.networks.building import check_image_shape
from lightning_gen.networks.stepping import CachedNetwork

BATCH_SIZE = 64  # pictures that go through a network at once
POISON = 1e3  # stands in the pixels that are not yet known when a cached network is checked


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Which pixels have a say in the parameters of one of them; `str` draws it.

    Args:
        position: (row, column) of the pixel.
        influence: Bool `[H, W]`, the pixels that its parameters depend on.
        before: Bool `[H, W]`, the pixels generated before it.
    """

    position: tuple[int, int]
    influence: Tensor
    before: Tensor

    @property
    def blind_spot(self) -> Tensor:
        """Bool `[H, W]`: pixels generated before that have no say."""
        return self.before & ~self.influence

    @property
    def leaks(self) -> Tensor:
        """Bool `[H, W]`: pixels that have a say though they are not generated before; none in a correct network."""
        return self.influence & ~self.before

    @property
    def seen_per_row(self) -> list[int]:
        """Earlier pixels that have a say, in each row of the picture."""
        return (self.before & self.influence).sum(1).tolist()

    @property
    def blind_per_row(self) -> list[int]:
        """Pixels of the blind spot in each row of the picture."""
        return self.blind_spot.sum(1).tolist()

    def __str__(self) -> str:
        row, column = self.position
        signs = torch.full(self.before.shape, ord("."))
        for pixels, sign in ((self.before, "#"), (self.blind_spot, "o")):
            signs[pixels] = ord(sign)
        signs[row, column] = ord("@")
        signs[self.leaks] = ord("!")
        seen, blind, leaks = sum(self.seen_per_row), sum(self.blind_per_row), int(self.leaks.sum())
        lines = [
            f"Pixel (row {row}, column {column}) sees {seen} of {seen + blind} earlier pixels"
            + (f" and {leaks} that are not earlier" if leaks else "")
            + "  [@ the pixel, # seen, o blind spot, . later, ! leak]"
        ]
        counts = zip(signs.tolist(), self.seen_per_row, self.blind_per_row, strict=True)
        for number, (line, row_seen, row_blind) in enumerate(counts):
            lines.append(f"{number:4}  {''.join(map(chr, line))}  {row_seen:4} seen {row_blind:4} blind")
        return "\n".join(lines)


def assert_autoregressive(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    order: Tensor | Sequence[int] | None = None,
    *,
    channels: Literal["joint", "ordered"] = "joint",
    num_draws: int = 3,
    perturb: bool = True,
    seed: int = 0,
) -> None:
    """Assert that no parameter depends on its own pixel or on one that is generated later.

    The derivative of the parameters of each pixel by each pixel is computed in float64, of sums over the P numbers with
    random factors. It must be exactly zero for the present and the future: rounding cannot make a zero of a mask
    anything else. Each is taken `num_draws` times, with other weights, at other pictures, uniform in `[-1, 1]`, so that
    a leak does not hide behind a ReLU. A dependence with no derivative, through rounding or an embedding of integers,
    is invisible here; check the part behind it.

    The cost is `num_draws * H * W` pictures forward and backward, times C where the output is `[N, P, C, H, W]`; a
    picture of 8 x 8 is large enough for most networks.

    Args:
        network: See the head of this module.
        image_shape: (channels, height, width); take height and width that differ.
        order: Flat indices of the pixels in the order of their generation, `[H * W]`; None is the raster.
        channels: "joint": the parameters of a pixel depend on earlier pixels only, as where a mixture is of all
            channels together. "ordered": those of channel c of `[N, P, C, H, W]` also depend on the channels before c
            of the same pixel, R, then G given R, then B given R and G.
        num_draws: Of weights, and of a picture for each pixel.
        perturb: Whether to move the weights of the copies at random.
        seed: Of weights and pictures.

    Raises:
        AssertionError: If there is a leak; the message names the first in the order, and of several there the
            largest. Also if there is no dependence on any pixel at all, so that the check would say nothing.
        ValueError: If order, image_shape, channels, or the shape of the output are not as above.
    """
    order = _order(order, image_shape)
    time, (num_channels, height, width) = order.argsort(), image_shape
    if channels not in ("joint", "ordered"):
        raise ValueError(f'channels must be "joint" or "ordered", got {channels!r}.')
    outputs = _output_channels(network, image_shape)
    if channels == "ordered" and outputs != num_channels:
        raise ValueError(
            f'channels="ordered" needs parameters of each channel, [N, P, {num_channels}, H, W], but the network gives '
            "[N, P, H, W]."
        )

    allowed = (time[None, :] < time[:, None])[None, :, None].expand(outputs, -1, num_channels, -1)
    if channels == "ordered":
        earlier = torch.ones(outputs, num_channels, dtype=torch.bool).tril(-1)
        allowed = allowed | (earlier[:, None, :, None] & torch.eye(height * width, dtype=torch.bool)[None, :, None])

    # [output channel, output pixel, input channel, input pixel]; NaN counts as a dependence.
    largest = torch.zeros(outputs, height * width, num_channels, height * width, dtype=torch.float64)
    rows = torch.cartesian_prod(torch.arange(outputs), torch.arange(height * width))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_draws):
        copied = _copy(network, generator if perturb else None)
        derivatives = _derivatives(copied, image_shape, rows, generator).view_as(largest)
        larger = (derivatives.abs() > largest.abs()) | derivatives.isnan()
        largest = torch.where(larger, derivatives, largest)
    depends = largest != 0
    leaks = depends & ~allowed
    if leaks.any():
        # The first place in the generation that leaks: those after it may only pass on what it has seen.
        first = int(leaks.flatten(2).any(-1)[:, order].T.flatten().nonzero()[0])
        to_pixel, to_channel = int(order[first // outputs]), first % outputs
        sizes = largest[to_channel, to_pixel].abs().nan_to_num(torch.inf).where(leaks[to_channel, to_pixel], -1)
        from_channel, from_pixel = divmod(int(sizes.argmax()), height * width)
        value = float(largest[to_channel, to_pixel, from_channel, from_pixel])
        distance = int(time[from_pixel] - time[to_pixel])
        if distance:
            why = f"which is generated {distance} {'step' if distance == 1 else 'steps'} later"
        elif channels == "ordered":
            why = "which is no earlier channel of the same pixel"
        else:
            why = "which is the same pixel"
        output = f"channel {to_channel} of " if outputs > 1 else ""
        others = int(leaks.sum()) - 1
        raise AssertionError(
            f"Not autoregressive: the parameters of {output}pixel {_name(to_pixel, width)} depend on channel "
            f"{from_channel} of pixel {_name(from_pixel, width)}, {why}; the derivative is {value:.3g}"
            + (f", the first of {others + 1} that should be 0." if others else ".")
        )
    if allowed.any() and not depends.any():
        raise AssertionError(
            "No parameter depends on any pixel, so this says nothing about the order. Does the network round or detach "
            "its input? Then check the part behind that."
        )


def receptive_field_report(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    position: tuple[int, int] | None = None,
    order: Tensor | Sequence[int] | None = None,
    *,
    num_draws: int = 16,
    perturb: bool = True,
    seed: int = 0,
) -> ReceptiveField:
    """Which pixels the parameters of one pixel depend on, through any channel, and which it is blind to.

    Stacks of masked convolutions have a blind spot to the right above the pixel (van den Oord et al. 2016,
    arXiv 1606.05328). A pixel counts as seen if one of the draws gives a derivative that is not zero, so in a deep and
    narrow network of ReLUs a far one may need more of them. The cost of each is 16 pictures forward and backward.

    Args:
        network: See the head of this module.
        image_shape: (channels, height, width).
        position: (row, column) of the pixel; None is the middle of the last row.
        order: Flat indices of the pixels in the order of their generation, `[H * W]`; None is the raster.
        num_draws: Of weights, and of 16 pictures, uniform in `[-1, 1]`.
        perturb: Whether to move the weights of the copies at random.
        seed: Of weights and pictures.

    Raises:
        ValueError: If order, image_shape, position, or the shape of the output are not as above.
    """
    time, (_, height, width) = _order(order, image_shape).argsort(), image_shape
    row, column = (height - 1, width // 2) if position is None else position
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"The position must lie in the {height} x {width} picture, got {(row, column)}.")
    pixel = row * width + column
    rows = torch.cartesian_prod(torch.arange(_output_channels(network, image_shape)), torch.tensor([pixel]))
    generator = torch.Generator().manual_seed(seed)
    influence = torch.zeros(height * width, dtype=torch.bool)
    for _ in range(num_draws):
        copied = _copy(network, generator if perturb else None)
        derivatives = _derivatives(copied, image_shape, rows.repeat(16, 1), generator)
        influence |= (derivatives != 0).flatten(0, 1).any(0)
    return ReceptiveField((row, column), influence.view(height, width), (time < time[pixel]).view(height, width))


def assert_cached_equals_naive(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    order: Tensor | Sequence[int] | None = None,
    *,
    batch: int = 2,
    tolerance: float = 1e-9,
    perturb: bool = True,
    seed: int = 0,
) -> None:
    """Assert that stepping through pictures gives the parameters that one forward pass gives, at every pixel.

    In float64, on random pictures, uniform in `[-1, 1]`. The pixels not yet generated hold large numbers, and a second
    batch of another size is stepped in turns with the first, so a step that looks ahead, or state outside the cache,
    shows. Where each channel has parameters of its own, each pixel takes one step a channel, and the channels not yet
    drawn hold large numbers too. Together with `assert_autoregressive` it says that cached sampling draws what naive
    sampling draws.

    A network that can `prefill` is also stepped from a few pixels on, with all before them prefilled.

    Args:
        network: A `CachedNetwork`.
        image_shape: (channels, height, width); take height and width that differ.
        order: Flat indices of the pixels in the order of their generation, `[H * W]`; None is the raster.
        batch: Pictures in the first batch; the second has one more.
        tolerance: Largest difference, relative to the largest parameter where that is above 1.
        perturb: Whether to move the weights of the copies at random.
        seed: Of weights and pictures.

    Raises:
        AssertionError: If they differ; the message names the first pixel of the order, and its channel, where they do.
        TypeError: If the network lacks `init_cache` or `step`.
        ValueError: If order, image_shape, or the shape or type of a tensor are not as in `CachedNetwork`.
    """
    for method in ("init_cache", "step"):
        if not callable(getattr(network, method, None)):
            raise TypeError(f"{type(network).__name__} has no method {method}; see CachedNetwork.")
    places, width = _order(order, image_shape).tolist(), image_shape[2]
    _output_channels(network, image_shape)
    generator = torch.Generator().manual_seed(seed)
    cached = cast(CachedNetwork, _copy(network, generator if perturb else None))
    batches = [_pictures(size, image_shape, generator) for size in (batch, batch + 1)]
    starts: list[int | None] = [None]
    if callable(getattr(network, "prefill", None)):
        # Nothing known, one pixel, whole rows of a raster and parts of rows, all but one pixel.
        numbers = {0, 1, width - 1, width, width + (width + 1) // 2, len(places) // 2, len(places) - 1}
        starts += sorted(number for number in numbers if number < len(places))
    with torch.no_grad():
        whole = [cached(images) for images in batches]
        for prefilled in starts:
            runs = [
                (images, _cache(cached, images, places, prefilled), parameters)
                for images, parameters in zip(batches, whole, strict=True)
            ]
            how = "" if prefilled is None else f" (prefilled up to number {prefilled})"
            for number, position in list(enumerate(places))[prefilled or 0 :]:
                for channel in range(whole[0].shape[2]) if whole[0].ndim == 5 else [None]:
                    for run in runs:
                        _check_step(cached, *run, position, channel, tolerance, f"number {number} of the order{how}")


def _cache(network: CachedNetwork, images: Tensor, order: list[int], prefilled: int | None) -> Any:
    """A cache of the network's, after so many pixels of the order were prefilled, and with poison in all others."""
    cache = network.init_cache(len(images), torch.device("cpu"))
    if cache.images.shape != images.shape or cache.images.dtype != images.dtype:
        raise ValueError(
            f"cache.images must be {list(images.shape)} and of the type of the weights, {images.dtype}, got "
            f"{list(cache.images.shape)}, {cache.images.dtype}."
        )
    known = torch.zeros(images.shape[2:], dtype=torch.bool)
    known.view(-1)[order[: prefilled or 0]] = True
    cache.images.copy_(images.where(known, POISON))
    if prefilled is not None:
        cast(Any, network).prefill(cache, order[prefilled])
    return cache


def _check_step(
    network: CachedNetwork,
    images: Tensor,
    cache: Any,
    parameters: Tensor,
    position: int,
    channel: int | None,
    tolerance: float,
    number: str,
) -> None:
    """One step, compared with the parameters of the whole pass; then the pixel, or one channel of it, counts as drawn.

    The cache has all pixels before, and all channels before of this one; `channel` is None where the parameters are of
    the pixel as a whole, and `number` says where in the order it is.
    """
    width = images.shape[3]
    row, column = divmod(position, width)
    expected, result = parameters[..., row, column], network.step(cache, position)
    if result.shape != expected.shape:
        raise ValueError(
            f"step gives {list(result.shape)}, but the parameters of one pixel of these pictures are "
            f"{list(expected.shape)}."
        )
    if channel is not None:
        expected, result = expected[:, :, channel], result[:, :, channel]
    difference = (result - expected).abs()
    if not difference.max() <= tolerance * max(1.0, float(parameters.abs().max())):
        worst = difference.nan_to_num(torch.inf).argmax()
        where = [int(i) for i in torch.unravel_index(worst, difference.shape)]
        of_channel = f"channel {channel} of " if channel is not None and images.shape[1] > 1 else ""
        raise AssertionError(
            f"Cached and naive sampling differ first at {of_channel}pixel {_name(position, width)}, {number}: entry "
            f"{where} of its parameters is {float(result[tuple(where)]):.6g} from step, but "
            f"{float(expected[tuple(where)]):.6g} from the whole forward pass."
        )
    written = slice(None) if channel is None else channel
    cache.images[:, written, row, column] = images[:, written, row, column]


def _order(order: Tensor | Sequence[int] | None, image_shape: tuple[int, int, int]) -> Tensor:
    check_image_shape(image_shape)
    return raster_order(*image_shape[1:]) if order is None else as_order(order, *image_shape[1:]).cpu()


def _copy(network: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """In float64 and eval mode, without gradients of its weights, which a generator moves by as much as they are large.

    Their root mean square stays, so that what follows them is fed as before; that of weights of zero becomes 0.1.
    """
    network = copy.deepcopy(network).to("cpu", torch.float64).eval().requires_grad_(False)
    if generator is not None:
        for weights in network.parameters():
            size = float(weights.square().mean().sqrt()) or 0.1 * 2**0.5
            weights.add_(torch.randn(weights.shape, generator=generator, dtype=torch.float64), alpha=size).div_(2**0.5)
    return network


def _pictures(count: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(count, *image_shape, generator=generator, dtype=torch.float64) * 2 - 1


def _output_channels(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """C where the network's output is `[N, P, C, H, W]`, 1 where it is `[N, P, H, W]`."""
    with torch.no_grad():
        shape = list(_copy(network)(torch.zeros(1, *image_shape, dtype=torch.float64)).shape)
    channels, height, width = image_shape
    if shape[:1] + shape[2:] == [1, height, width]:
        return 1
    if shape[:1] + shape[2:] == [1, channels, height, width]:
        return channels
    raise ValueError(
        f"Of a picture [1, {channels}, {height}, {width}] the network must give parameters [1, P, {height}, {width}] "
        f"or [1, P, {channels}, {height}, {width}], got {shape}."
    )


def _derivatives(
    network: nn.Module, image_shape: tuple[int, int, int], rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Of a random combination of the parameters at each place by all pixels, `[R, C, H * W]`, at a random picture each.

    The rows `[R, 2]` are the places: channel of the output (0 where it has none), flat index of the pixel.
    """
    derivatives = []
    for channel, pixel in (part.T for part in rows.split(BATCH_SIZE)):
        images = _pictures(len(pixel), image_shape, generator).requires_grad_()
        with torch.enable_grad():
            parameters = network(images)
            parameters = parameters if parameters.ndim == 5 else parameters.unsqueeze(2)
            at_place = parameters.flatten(3)[torch.arange(len(pixel)), :, channel, pixel]
            weights = torch.randn(at_place.shape, generator=generator, dtype=torch.float64)
            combination = (at_place * weights).sum()
        if not combination.requires_grad:  # the network detaches its input
            derivatives.append(torch.zeros_like(images))
            continue
        (derivative,) = torch.autograd.grad(combination, images)
        derivatives.append(derivative)
    return torch.cat(derivatives).flatten(2)


def _name(pixel: int, width: int) -> str:
    return f"(row {pixel // width}, column {pixel % width})"
