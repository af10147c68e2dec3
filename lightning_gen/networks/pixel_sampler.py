"""One sampler for all autoregressive networks: pixel after pixel, from cached steps or, as a reference, whole passes.

Both methods use the same noise in the same order, so what they draw differs only where rounding decides a tie.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_gen.losses.categorical import check_likeliest, check_temperature, levels_to_images
from lightning_gen.losses.pixels import PixelLikelihood
from lightning_gen.losses.precision import full
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
    top_k: int | None = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
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
        top_k: Draw among so many of the likeliest levels, for likelihoods that are a softmax; None is all.
        top_p: Draw among the fewest of the likeliest levels that have this probability together, likewise; 1 is all.
        guidance: s: parameters become null + s (parameters of the label - null), where null are those of no label, for
            a network with a `null_label` (2207.12598); of captions, where there are some, those of a caption of nothing
            else. 1 leaves them as they are, at half the cost.
        method: "cached" or "naive".
        compile: Whether pieces of cached steps go through `torch.compile`.

    Returns:
        Int64 `[N, C, H, W]` on the network's device; known pixels as they were.

    Raises:
        ValueError: If the method is neither, or a number out of range; or there is guidance but no null label.
        TypeError: If the network cannot step.
    """
    if method not in ("cached", "naive"):
        raise ValueError(f'method must be "cached" or "naive", got {method!r}.')
    if method == "cached" and not hasattr(network, "step"):
        raise TypeError(f'{type(network).__name__} has no cached steps (init_cache, step). method="naive" needs none.')
    check_temperature(temperature)
    check_likeliest(top_k, top_p, likelihood.num_levels)
    settings, copies = dict(settings or {}), 1
    if guidance != 1:
        settings, copies = _without_labels_too(network, settings, len(levels), guidance), 2
    wanted = hole.flatten(1).any(0).cpu()[order.cpu()].nonzero().flatten().tolist()  # places in the order
    weight = next(network.parameters())
    levels = levels.to(weight.device)
    if not wanted or not len(levels):
        return levels
    first = wanted[0]
    look = look_of(network, likelihood.num_levels)
    hole = hole.to(weight.device)
    drawing = _Drawing(
        look, likelihood, levels, hole, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance
    )
    places = places_of(levels.shape[2], levels.shape[3], weight.device)
    noise = drawing.noise_ahead(len(wanted), generator)
    is_wanted = set(wanted)
    with ExitStack() as contexts:
        # Caches have the type of the weights.
        contexts.enter_context(torch.autocast(weight.device.type, enabled=False))
        if compile:
            contexts.enter_context(torch._dynamo.config.patch(recompile_limit=_KINDS_OF_STEPS))
        if method == "naive":
            known, run = look(levels).to(weight).repeat(copies, 1, 1, 1), call
            step: Callable[[int], Tensor] = _whole_passes(network, known, settings)
        else:
            cache = network.init_cache(copies * len(levels), weight.device, **settings)  # type: ignore[operator]
            known, run = cache.images, _runner(weight.device, compile)
            known.copy_(look(levels).repeat(copies, 1, 1, 1))
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
        *,
        temperature: float,
        top_k: int | None,
        top_p: float,
        guidance: float,
    ) -> None:
        self.look, self.likelihood, self.temperature = look, likelihood, temperature
        self.top_k, self.top_p, self.guidance = top_k, top_p, guidance
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
        parameters = self.parameters
        if self.guidance != 1:
            of_label, null = full(parameters).chunk(2)
            parameters = null + self.guidance * (of_label - null)
        if self.top_k is not None or self.top_p < 1:
            chosen = (self.channels, self.top_k, self.top_p, self.temperature)
            parameters = self.likelihood.of_likeliest(parameters, *chosen)
        drawn = self.likelihood.sample(parameters, self.uniform, self.channels, self.temperature).unsqueeze(2)
        levels = torch.where(self.hole.index_select(2, place), drawn, self.levels.index_select(2, place))
        self.levels.index_copy_(2, place, levels)
        seen = self.look(levels).to(known.dtype)
        known.flatten(2).index_copy_(2, place, seen if len(seen) == len(known) else seen.repeat(2, 1, 1))


def look_of(network: nn.Module, num_levels: int) -> Callable[[Tensor], Tensor]:
    """Makes of levels `[N, C, *space]` what a network looks at in their place.

    That is what its `embed` makes of them, if it has one, and numbers evenly spaced from -1 to 1 if not.
    """
    embed: Any = getattr(network, "embed", None)
    return partial(levels_to_images, num_levels=num_levels) if embed is None else embed


def _without_labels_too(
    network: nn.Module, settings: Mapping[str, Any], number: int, guidance: float
) -> dict[str, Any]:
    """Settings of twice as many pictures, of which the second half have no labels."""
    null: int | None = getattr(network, "null_label", None)
    name = "captions" if "captions" in settings else "labels"
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance must be 1 (none), or another number of 0 or more and finite; got {guidance}.")
    if null is None or not isinstance(settings.get(name), Tensor):
        train = "a GPTNetwork with num_classes" if name == "labels" else "with captions"
        raise ValueError(
            f"guidance={guidance:g} needs a network that has learnt what pictures without {name} are, but this "
            f"{type(network).__name__} was trained without dropping {name}. Train {train} and a label_dropout above 0, "
            "or leave guidance at 1."
        )
    of_pictures = {name: value for name, value in settings.items() if isinstance(value, Tensor) and value.ndim}
    doubled = {name: torch.cat([value, value]) for name, value in of_pictures.items() if len(value) == number}
    given = settings[name]
    return {**settings, **doubled, name: torch.cat([given, torch.full_like(given, null)])}


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
