"""One sampler for all autoregressive networks: pixel after pixel, from cached steps or, as a reference, whole passes.

Both methods use the same noise in the same order, so what they draw differs only where rounding decides a tie.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_gen.losses.categorical import check_temperature, levels_to_images
from lightning_gen.losses.pixels import PixelLikelihood
from lightning_gen.networks.stepping import Run, call, places_of

Method = Literal["cached", "naive"]

_NOISE_AT_ONCE = 2**22  # uniform numbers that are drawn ahead, 16 MiB
_SILENCE = 5.0  # seconds after which a long sampling shows how far it is
_KINDS_OF_STEPS = 64  # that a piece may be compiled for


@torch.no_grad()
def draw_pixels(
    network: nn.Module,
    likelihood: PixelLikelihood,
    levels: Tensor,
    hole: Tensor,
    order: Tensor,
    generator: torch.Generator,
    *,
    settings: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    method: Method = "cached",
    compile: bool = False,
) -> Tensor:
    """Fill the holes of pictures by drawing their pixels in an order, each given those before.

    Steps begin at the first pixel of the order that is in a hole; those before cost one pass where the network has
    `prefill`. Known pixels after it are stepped through, and stay. On CUDA, the pieces that `step` hands to its `run`
    are recorded as graphs, and replayed.

    Args:
        network: Maps pictures to parameters, and for "cached" has `init_cache` and `step`; see
            `lightning_gen.networks.stepping.CachedNetwork`. It is used in the mode that it is in. What it looks at in
            place of levels is `look_of` them.
        likelihood: Of a pixel, given its parameters.
        levels: Int64 `[N, C, H, W]` of 0 to L - 1, of which those in the hole are not looked at.
        hole: Bool `[N, H, W]`, True where a pixel is to be drawn.
        order: Int64 `[H * W]`, that of the network.
        generator: On the CPU; of the noise.
        settings: What the network is given besides, in `forward` and `init_cache`: labels `[N]` and the like.
        temperature: 1 draws from the model, 0 takes the likeliest level.
        method: "cached" or "naive".
        compile: Whether pieces of cached steps go through `torch.compile`.

    Returns:
        Int64 `[N, C, H, W]` on the network's device; known pixels as they were.

    Raises:
        ValueError: If the method is neither, or the temperature out of range.
        TypeError: If the network cannot step.
    """
    if method not in ("cached", "naive"):
        raise ValueError(f'method must be "cached" or "naive", got {method!r}.')
    if method == "cached" and not hasattr(network, "step"):
        raise TypeError(f'{type(network).__name__} has no cached steps (init_cache, step). method="naive" needs none.')
    check_temperature(temperature)
    wanted = hole.flatten(1).any(0).cpu()[order.cpu()].nonzero().flatten().tolist()  # places in the order
    weight = next(network.parameters())
    levels = levels.to(weight.device)
    if not wanted or not len(levels):
        return levels
    first, settings = wanted[0], dict(settings or {})
    look = look_of(network, likelihood.num_levels)
    drawing = _Drawing(look, likelihood, levels, hole.to(weight.device), temperature)
    places = places_of(levels.shape[2], levels.shape[3], weight.device)
    noise = drawing.noise_ahead(len(wanted), generator)
    is_wanted = set(wanted)
    with ExitStack() as contexts:
        # Caches have the type of the weights.
        contexts.enter_context(torch.autocast(weight.device.type, enabled=False))
        if compile:
            contexts.enter_context(torch._dynamo.config.patch(recompile_limit=_KINDS_OF_STEPS))
        if method == "naive":
            known, run = look(levels).to(weight), call
            step: Callable[[int], Tensor] = _whole_passes(network, known, settings)
        else:
            cache = network.init_cache(len(levels), weight.device, **settings)  # type: ignore[operator]
            known, run = cache.images, _runner(weight.device, compile)
            known.copy_(look(levels))
            step_of: Any = network.step
            takes_run = "run" in inspect.signature(step_of).parameters
            step = partial(step_of, cache, run=run) if takes_run else partial(step_of, cache)
            if first and hasattr(network, "prefill"):
                network.prefill(cache, int(order[first]))  # type: ignore[operator]
            else:
                first = 0
        for number in tqdm(range(first, wanted[-1] + 1), desc="pixels", delay=_SILENCE, disable=None, leave=False):
            position = int(order[number])
            if number not in is_wanted:
                step(position)
                continue
            uniform = next(noise)
            # Where channels have parameters of their own, those of one are right once the channels before are drawn.
            # All are drawn each time, from the same noise, so those before stay as they are.
            for _ in range(levels.shape[1]):
                parameters = step(position)
                drawing.take(parameters, uniform)
                run(drawing.write, known, places[position])
                if parameters.ndim == 2:
                    break
    return drawing.levels.unflatten(2, levels.shape[2:])


class _Drawing:
    """The levels so far, and the last step: from a pixel's parameters to its levels, and to what the network sees."""

    def __init__(
        self,
        look: Callable[[Tensor], Tensor],
        likelihood: PixelLikelihood,
        levels: Tensor,
        hole: Tensor,
        temperature: float,
    ) -> None:
        self.look, self.likelihood, self.temperature = look, likelihood, temperature
        self.levels = levels.clone().flatten(2)
        self.hole = hole.flatten(1).unsqueeze(1)
        self.channels = levels.shape[1]
        size = (len(levels), likelihood.num_uniforms(self.channels))
        self.uniform = torch.empty(size, dtype=torch.float32, device=levels.device)
        self.parameters: Tensor | None = None

    def noise_ahead(self, pixels: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Uniform numbers for one pixel after the other, drawn many at a time."""
        size = self.uniform.numel()
        for start in range(0, pixels, at_once := max(1, _NOISE_AT_ONCE // size)):
            count = min(at_once, pixels - start)
            drawn = torch.rand(count, *self.uniform.shape, generator=generator, device=generator.device)
            yield from drawn.to(self.uniform.device)

    def take(self, parameters: Tensor, uniform: Tensor) -> None:
        """Copy what the next `write` needs to where it always lies."""
        if self.parameters is None:
            self.parameters = torch.empty_like(parameters)
        self.parameters.copy_(parameters)
        self.uniform.copy_(uniform)

    def write(self, known: Tensor, place: Tensor) -> None:
        """Draw the pixel at a place, where it is in the hole, into the levels and into what the network knows."""
        assert self.parameters is not None
        drawn = self.likelihood.sample(self.parameters, self.uniform, self.channels, self.temperature).unsqueeze(2)
        levels = torch.where(self.hole.index_select(2, place), drawn, self.levels.index_select(2, place))
        self.levels.index_copy_(2, place, levels)
        known.flatten(2).index_copy_(2, place, self.look(levels).to(known.dtype))


def look_of(network: nn.Module, num_levels: int) -> Callable[[Tensor], Tensor]:
    """Makes of levels `[N, C, *space]` what a network looks at in their place.

    That is what its `embed` makes of them, if it has one, and numbers evenly spaced from -1 to 1 if not.
    """
    embed: Any = getattr(network, "embed", None)
    return partial(levels_to_images, num_levels=num_levels) if embed is None else embed


def _whole_passes(network: nn.Module, known: Tensor, settings: Mapping[str, Any]) -> Callable[[int], Tensor]:
    width = known.shape[3]
    return lambda position: network(known, **settings)[..., position // width, position % width]


def _runner(device: torch.device, compile: bool) -> Run:
    if compile:
        return _Compiled()
    return _Replayed() if device.type == "cuda" else call


class _Compiled:
    """Compiles each piece. What PyTorch has compiled it keeps, also for the next sampling."""

    def __init__(self) -> None:
        self.pieces: dict[Any, Callable[..., Any]] = {}

    def __call__(self, piece: Callable[..., Any], *arguments: Any) -> Any:
        if piece not in self.pieces:
            # Reusing buffers in place, inductor computes wrong parameters of a large LMConv, for one picture, on a CPU
            # (PyTorch 2.14; benchmarks.sampling --compile shows by how much compiling changes them).
            options: dict[str, Any] = {"inplace_buffers": False}
            self.pieces[piece] = torch.compile(piece, fullgraph=True, dynamic=False, options=options)
        return self.pieces[piece](*arguments)


class _Replayed:
    """Records each piece as a CUDA graph, which costs one launch where the piece takes hundreds."""

    def __init__(self) -> None:
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self.place: Tensor | None = None

    def __call__(self, piece: Callable[..., Any], cache: Any, place: Tensor, *flags: Any) -> Any:
        if self.place is None:
            self.place = place.clone()
        self.place.copy_(place)
        key = (piece, flags)
        if key not in self.graphs:
            # Once before, for libraries that set themselves up; running a piece again at a place changes nothing.
            stream = torch.cuda.Stream(place.device)
            stream.wait_stream(torch.cuda.current_stream(place.device))
            with torch.cuda.stream(stream):
                piece(cache, self.place, *flags)
            torch.cuda.current_stream(place.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Loaders pin memory in threads of their own, which must not break the recording.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = piece(cache, self.place, *flags)
            self.graphs[key] = graph, result
        graph, result = self.graphs[key]
        graph.replay()
        return result
