"""The built-in landscapes, painted from their attributes: a domain is a `_Look`, a palette and a few switches.

Lengths are in units of the picture's height and y points down; `_placed` brings the horizontal positions of attributes,
which are fractions of the picture's width, to the same units. Only operations that IEEE 754 rounds exactly (+, -, *, /,
sqrt, min, max) touch pixels, so a picture is the same bit for bit in whatever batch it is painted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from lightning_gen.data.scene_attributes import (
    MAX_CLOUDS,
    MAX_TREES,
    MAX_WINDOWS,
    MIN_SIZE,
    ROOFS,
    WALLS,
    Array,
    SceneAttributes,
    rgb,
)

_TREES_BEHIND = 1  # so many of a scene's trees stand behind the house, the others before it
_PIXELS_AT_ONCE = 2**17  # scenes x height x width of one vectorised pass: what a core's cache holds


def _ramp(low: str, high: str) -> Array:
    """Two colours that an attribute in [0, 1] blends between: float32 [2, 3]."""
    return np.stack([rgb(low), rgb(high)])


@dataclass(frozen=True, eq=False)
class _Look:
    """A domain's palette. Pairs of colours blend by an attribute: a hue, or how low the sun or moon stands."""

    zenith: Array  # the sky's colour at the top
    horizon: Array  # and where the hills begin, under a high and under a low sun
    body: Array  # colour of the sun's or moon's disc
    halo: Array  # colour of the light around the disc
    halo_strength: float  # and how much it covers, in [0, 1]
    hills: tuple[Array, Array, Array]  # far, middle and front, of the lowest and the highest ground hue
    path: Array  # colour of the path to the door
    crown: Array  # colours of a round tree of the lowest and the highest hue
    needles: Array  # the same for a conifer
    cloud: Array  # colour of a cloud's lit upper side
    cloud_base: Array  # and of its lower side
    relief: float  # contrast between sides turned to the light and away from it, in [0, 1]
    shadow: float  # how much of the ground's light a cast shadow takes, in [0, 1]
    body_name: str = "sun"  # "sun" or "moon"
    craters: float = 0.0  # how dark the marks on the disc are, in [0, 1]
    gain: Array = field(default_factory=lambda: np.ones(3, np.float32))  # [3], see `lit`
    lift: Array = field(default_factory=lambda: np.zeros(3, np.float32))  # [3], likewise
    pane: Array = field(default_factory=lambda: rgb("3b4d66"))  # colour of the window panes
    lamp: float = 0.0  # strength of the light that falls out of the windows, in [0, 1]
    snow: Array | None = None  # colour of the snow on roofs and trees, or None

    def lit(self, colour: Array) -> Array:
        """A painted surface's colour under this domain's light: [..., 3] to [..., 3]."""
        return colour * self.gain + self.lift


_LOOKS = {
    "day": _Look(
        zenith=rgb("5a9fe0"),
        horizon=_ramp("d3eafa", "fbe6c8"),
        body=rgb("ffe88a"),
        halo=rgb("fff0b8"),
        halo_strength=0.75,
        hills=(_ramp("a9c0b4", "8fb4c8"), _ramp("a5b878", "6fa58a"), _ramp("b3b860", "6aa860")),
        path=rgb("dcc598"),
        crown=_ramp("3f7d46", "a8b04a"),
        needles=_ramp("2c5f4c", "5f8a48"),
        cloud=rgb("ffffff"),
        cloud_base=rgb("d5e2ee"),
        relief=0.12,
        shadow=0.34,
    ),
    "night": _Look(
        zenith=rgb("070b26"),
        horizon=_ramp("24346e", "3a3470"),
        body=rgb("f3f1e0"),
        halo=rgb("7f93d8"),
        halo_strength=0.65,
        hills=(_ramp("38467a", "24487c"), _ramp("4c6a78", "30648a"), _ramp("86988a", "4e8fa2")),
        path=rgb("a3a4b4"),
        crown=_ramp("0f3038", "405844"),
        needles=_ramp("0a2030", "24404a"),
        cloud=rgb("4a5a92"),
        cloud_base=rgb("2c3870"),
        relief=0.08,
        shadow=0.3,
        body_name="moon",
        craters=0.25,
        gain=np.array([0.46, 0.5, 0.6], np.float32),
        lift=np.array([0, 4, 18], np.float32),
        pane=rgb("ffd879"),
        lamp=0.8,
    ),
    "summer": _Look(
        zenith=rgb("3f8fdc"),
        horizon=_ramp("c9eef2", "ffe2b0"),
        body=rgb("ffdf6a"),
        halo=rgb("fff0a8"),
        halo_strength=0.8,
        hills=(_ramp("9dbf9a", "7fb8b4"), _ramp("a3bf5c", "55a070"), _ramp("b0bf48", "4ea64a")),
        path=rgb("e6cc94"),
        crown=_ramp("2f7a38", "9fb03a"),
        needles=_ramp("1f5c40", "50883c"),
        cloud=rgb("fffdf6"),
        cloud_base=rgb("dde6ea"),
        relief=0.12,
        shadow=0.36,
    ),
    "winter": _Look(
        zenith=rgb("a9bfd6"),
        horizon=_ramp("e4ecf3", "f6dfd8"),
        body=rgb("fff2c4"),
        halo=rgb("fff6e0"),
        halo_strength=0.7,
        hills=(_ramp("cfd0d6", "bccbe0"), _ramp("e6dfd8", "cddcec"), _ramp("fbf3e6", "dfedfb")),
        path=rgb("c3b5a6"),
        crown=_ramp("66635f", "ac8e5e"),
        needles=_ramp("3c5a58", "5f7a58"),
        cloud=rgb("f6f9fd"),
        cloud_base=rgb("ccd6e4"),
        relief=0.1,
        shadow=0.2,
        snow=rgb("ffffff"),
    ),
}
DOMAINS: tuple[str, ...] = tuple(_LOOKS)


def look_of(domain: str) -> _Look:
    """How a domain looks; a `ValueError` if it is none of `DOMAINS`."""
    if domain not in _LOOKS:
        raise ValueError(f"Unknown domain {domain!r}: choose one of {', '.join(DOMAINS)}.")
    return _LOOKS[domain]


def _each(values: Array) -> Array:
    """One number or colour per scene, [N] or [N, 3], to float32 that broadcasts against [N, 3, H, W]."""
    values = np.asarray(values, dtype=np.float32)
    return values.reshape(values.shape + (1,) * (4 - values.ndim))


def _blend(ramp: Array, at: Array) -> Array:
    """The colours [N, 3] that lie at `at` [N] in [0, 1] on a ramp [2, 3]."""
    return ramp[0] + at[:, None] * (ramp[1] - ramp[0])


class _Region:
    """A rectangle of every scene's picture: its pixels and where they are.

    Attributes:
        pixels: float32 [N, 3, h, w] in [0, 255].
        x: float32 [N or 1, 1, 1, w], pixel centres, in picture heights.
        y: float32 [N or 1, 1, h, 1].
        pixel: Size of a pixel, in picture heights.
    """

    def __init__(self, pixels: Array, left: Array, top: Array, pixel: float) -> None:
        height, width = pixels.shape[-2:]
        self.pixels = pixels
        self.x = ((left.reshape(-1, 1, 1, 1) + np.arange(width) + 0.5) * pixel).astype(np.float32)
        self.y = ((top.reshape(-1, 1, 1, 1) + np.arange(height)[:, None] + 0.5) * pixel).astype(np.float32)
        self.pixel = pixel

    def cover(self, distance: Array, blur: float = 0.0) -> Array:
        """The share of each pixel that lies inside, from the signed distance to the edge, positive inside."""
        share = distance * np.float32(1 / max(self.pixel, blur))
        share += np.float32(0.5)
        return np.clip(share, 0, 1, out=share)

    def disc(self, x: Array, y: Array, radius: Array, blur: float = 0.0) -> Array:
        """Coverage of a disc."""
        return self.cover(_each(radius) - self.distance(x, y), blur)

    def distance(self, x: Array, y: Array) -> Array:
        """From each pixel to a point per scene."""
        return np.sqrt(np.square(self.x - _each(x)) + np.square(self.y - _each(y)))

    def box(self, left: Array, right: Array, top: Array, bottom: Array) -> Array:
        """Coverage of an upright rectangle, exact however thin it is."""
        return self.span(self.x, left, right) * self.span(self.y, top, bottom)

    def span(self, centres: Array, low: Array, high: Array) -> Array:
        """The share of each pixel's extent, along x or y, that lies between two values per scene."""
        half = np.float32(self.pixel / 2)
        overlap = np.minimum(centres + half, _each(high)) - np.maximum(centres - half, _each(low))
        return np.maximum(overlap, 0) * np.float32(1 / self.pixel)

    def glow(self, x: Array, y: Array, reach: Array) -> Array:
        """A soft light: 1 at a point per scene, 0 from `reach` on."""
        square = np.square(self.x - _each(x)) + np.square(self.y - _each(y))
        near = np.maximum(1 - square / _each(np.square(reach)), 0)
        return near * near * near

    def paint(self, coverage: Array, colour: Array) -> None:
        """Lay a colour, [3] or one that broadcasts against the pixels, over what is there."""
        change = (colour.reshape(3, 1, 1) if colour.ndim == 1 else colour) - self.pixels
        change *= coverage
        self.pixels += change


class _Canvas:
    """The pictures of N scenes while they are painted.

    Attributes:
        pixels: float32 [N, 3, H, W] in [0, 255].
        pixel: Size of a pixel, in picture heights.
    """

    def __init__(self, num: int, height: int, width: int) -> None:
        self.pixels = np.zeros((num, 3, height, width), dtype=np.float32)
        self.pixel = 1 / height

    def below(self, top: float) -> _Region:
        """Everything from `top` down."""
        row = int(np.clip(top / self.pixel - 1, 0, self.pixels.shape[2] - 1))
        return _Region(self.pixels[:, :, row:], np.array(0), np.array(row), self.pixel)

    @contextmanager
    def patch(self, scenes: Array, left: Array, top: Array, width: float, height: float) -> Iterator[_Region]:
        """A rectangle of the same size, at its own place in each of `scenes`, written back in the end.

        An object costs what it covers, not what the picture has. A rectangle that reaches out of the picture is pushed
        inside, where it still holds all that is visible.
        """
        _, _, rows, columns = self.pixels.shape
        size = min(rows, int(height / self.pixel) + 3), min(columns, int(width / self.pixel) + 3)
        i = np.clip(np.floor(top / self.pixel).astype(int) - 1, 0, rows - size[0])
        j = np.clip(np.floor(left / self.pixel).astype(int) - 1, 0, columns - size[1])
        windows = sliding_window_view(self.pixels, size, axis=(2, 3), writeable=True)
        region = _Region(windows[scenes, :, i, j], j, i, self.pixel)
        yield region
        windows[scenes, :, i, j] = region.pixels


def _crest(scenes: SceneAttributes, layer: int, x: Array) -> tuple[Array, Array]:
    """Height and slope of a hill's crest above x [N or 1, K] in picture heights: two float64 arrays [N, K]."""
    frequency, phase = 2 * np.pi * scenes.hill_frequency[:, layer, None], scenes.hill_phase[:, layer, None]
    amplitude, angle = scenes.hill_amplitude[:, layer, None], frequency * x + phase
    height = scenes.hill_height[:, layer, None] + amplitude * (0.75 * np.sin(angle) + 0.3 * np.sin(2 * angle + 1))
    return height, amplitude * frequency * (0.75 * np.cos(angle) + 0.6 * np.cos(2 * angle + 1))


def _highest(scenes: SceneAttributes, layer: int) -> float:
    """Where the highest crest of all scenes may reach."""
    return float((scenes.hill_height[:, layer] - 1.05 * scenes.hill_amplitude[:, layer]).min())


def _placed(scenes: SceneAttributes, aspect: float) -> SceneAttributes:
    """The same scenes with all lengths and places in picture heights, for pictures of this width over height."""
    scale = min(1.0, aspect)
    return replace(
        scenes,
        body_x=scenes.body_x * aspect,
        body_radius=scenes.body_radius * scale,
        # Hills keep their shape around the middle of the picture.
        hill_phase=scenes.hill_phase - np.pi * aspect * scenes.hill_frequency,
        cloud_x=scenes.cloud_x * aspect,
        cloud_size=scenes.cloud_size * scale,
        tree_x=scenes.tree_x * aspect,
        tree_size=scenes.tree_size * scale,
        house_x=scenes.house_x * aspect,
        house_size=scenes.house_size * scale,
    )


def _lowness(scenes: SceneAttributes) -> Array:
    """How low the sun or moon stands: [N] in [0, 1]."""
    return np.clip((scenes.body_y - 0.11) / 0.22, 0, 1)


def _towards_light(scenes: SceneAttributes, x: Array) -> Array:
    """Where the light comes from at x [N]: from -1 (left) over 0 (behind) to 1 (right)."""
    return np.clip((scenes.body_x - x) / 0.4, -1, 1)


def _paint_sky(canvas: _Canvas, scenes: SceneAttributes, look: _Look) -> None:
    region = canvas.below(0)
    horizon = _each(_blend(look.horizon, _lowness(scenes)))
    up = np.clip(1 - region.y / np.float32(0.62), 0, 1)
    region.pixels[:] = horizon + (look.zenith.reshape(3, 1, 1) - horizon) * up

    x, y, r = scenes.body_x, scenes.body_y, scenes.body_radius
    everyone, reach = np.arange(len(scenes)), 5.5
    span = 2 * reach * float(r.max())
    with canvas.patch(everyone, x - span / 2, y - span / 2, span, span) as region:
        region.paint(region.glow(x, y, reach * r) * np.float32(look.halo_strength), look.halo)
        disc = region.disc(x, y, r)
        region.paint(disc, look.body)
        if look.craters:
            for dx, dy, size in ((-0.34, -0.22, 0.3), (0.32, 0.14, 0.24), (-0.12, 0.48, 0.2)):
                crater = region.disc(x + dx * r, y + dy * r, size * r) * np.float32(look.craters)
                region.paint(crater * disc, look.zenith)

    for k in range(MAX_CLOUDS):
        which = np.flatnonzero(scenes.cloud_present[:, k])
        x, y, size = (values[which, k] for values in (scenes.cloud_x, scenes.cloud_y, scenes.cloud_size))
        span = 2.1 * float(size.max(initial=0))
        with canvas.patch(which, x - span / 2, y - span / 2, span, span * 0.75) as region:
            puffs = ((-0.62, 0.06, 0.26), (-0.22, -0.14, 0.38), (0.24, -0.04, 0.34), (0.64, 0.08, 0.24))
            cover = np.maximum.reduce([region.disc(x + dx * size, y + dy * size, r * size) for dx, dy, r in puffs])
            cover *= region.cover(_each(y + 0.2 * size) - region.y)
            shade = np.clip((region.y - _each(y - 0.4 * size)) / _each(0.6 * size), 0, 1)
            colour = look.cloud.reshape(3, 1, 1) + (look.cloud_base - look.cloud).reshape(3, 1, 1) * shade
            region.paint(cover * np.float32(0.85), colour)


def _paint_hills(canvas: _Canvas, scenes: SceneAttributes, look: _Look) -> None:
    for layer, (ramp, fade) in enumerate(zip(look.hills, (-0.5, 0.2, 0.45), strict=True)):
        region = canvas.below(_highest(scenes, layer))
        height, slope = _crest(scenes, layer, region.x.reshape(1, -1).astype(np.float64))
        steep = (1 / np.sqrt(1 + slope**2)).astype(np.float32)[:, None, None, :]
        cover = region.cover((region.y - height.astype(np.float32)[:, None, None, :]) * steep)
        # Distant ground pales into the mist at its foot, near ground darkens towards the viewer.
        light = 1 - np.float32(fade) * (region.y - _each(scenes.hill_height[:, layer] + 0.08))
        region.paint(cover, _each(_blend(ramp, scenes.ground_hue)) * light)


def _paint_ground(canvas: _Canvas, scenes: SceneAttributes, look: _Look, house_y: Array, tree_y: Array) -> None:
    """The path, and the shadows that house and trees cast on the front hill, away from the sun or moon."""
    region = canvas.below(_highest(scenes, layer=2))
    down = np.maximum(region.y - _each(house_y), 0)
    door = scenes.house_x + _place(scenes, scenes.house_door)
    bend = _each(0.15 * scenes.path_bend / (1 - house_y) ** 2)
    half = _each(0.07 * scenes.house_size) + np.float32(0.12) * down
    inside = half - np.abs(region.x - _each(door) - bend * np.square(down))
    path = region.cover(inside / np.sqrt(1 + np.square(2 * bend * down)))
    path *= region.cover(region.y - _each(house_y))
    region.paint(path * _each(scenes.house_present), look.path)

    length = 0.16 + 0.3 * _lowness(scenes)  # of a shadow, per size of what casts it
    shade = np.zeros_like(path)

    def on_the_ground(x: Array, y: Array) -> tuple[Array, Array]:
        """How far a pixel is from (x, y) across and along the direction in which shadows fall."""
        along = region.y - _each(y)
        return region.x - _each(x) + _each(1.4 * _towards_light(scenes, x)) * along, along

    for k in range(MAX_TREES):
        size = scenes.tree_size[:, k]
        across, along = on_the_ground(scenes.tree_x[:, k], tree_y[:, k])
        # An ellipse that starts a little behind the foot.
        radius = np.sqrt(np.square(across / _each(0.26 * size)) + np.square(along / _each(0.55 * length * size) - 0.8))
        inside = (1 - radius) * _each(0.5 * length * size)
        np.maximum(shade, region.cover(inside, blur=0.02) * _each(scenes.tree_present[:, k]), out=shade)
    across, along = on_the_ground(scenes.house_x, house_y)
    end = _each(length * scenes.house_size) - along
    inside = np.minimum(_each(0.5 * scenes.house_size) - np.abs(across), np.minimum(along, end))
    np.maximum(shade, region.cover(inside, blur=0.02) * _each(scenes.house_present), out=shade)
    region.pixels *= 1 - np.float32(look.shadow) * shade


def _paint_house(canvas: _Canvas, scenes: SceneAttributes, look: _Look, y: Array) -> None:
    """The house of every scene that has one; its lengths below are parts of its width."""
    which = np.flatnonzero(scenes.house_present)
    scenes, y = scenes[which], y[which]
    x, size = scenes.house_x, float(scenes.house_size.max(initial=0))
    above = 1.3 * size + 0.02  # the smoke, and its blur
    with canvas.patch(which, x - 0.8 * size, y - above, 1.6 * size, above + 0.44 * size) as region:
        if look.lamp:
            for at, present in _windows(scenes):
                pool = region.glow(at, y, 0.42 * scenes.house_size) * _each(present)
                region.paint(pool * np.float32(0.7 * look.lamp), look.pane)
        _paint_chimney(region, scenes, look, y)
        _paint_walls(region, scenes, look, y)
        _paint_roof(region, scenes, look, y)
        _paint_door_and_windows(region, scenes, look, y)


def _place(scenes: SceneAttributes, index: Array) -> Array:
    """Where, right of the house's centre, the index-th place [N] in the row of door and windows has its middle."""
    return ((index + 0.5) / (scenes.house_windows + 1) - 0.5) * 0.94 * scenes.house_size


def _windows(scenes: SceneAttributes) -> Iterator[tuple[Array, Array]]:
    """For each window that a house may have: its middle [N], and whether the house has it [N]."""
    for k in range(MAX_WINDOWS):
        yield scenes.house_x + _place(scenes, k + (k >= scenes.house_door)), k < scenes.house_windows


def _house_relief(region: _Region, scenes: SceneAttributes, look: _Look) -> Array:
    """How bright the front is from left to right: a little brighter towards the light."""
    right = (region.x - _each(scenes.house_x)) / _each(0.5 * scenes.house_size)
    return 1 + np.float32(look.relief) * _each(_towards_light(scenes, scenes.house_x)) * right


def _paint_chimney(region: _Region, scenes: SceneAttributes, look: _Look, y: Array) -> None:
    w, side = scenes.house_size, np.where(scenes.chimney_right, 1, -1)
    x = scenes.house_x + side * 0.22 * w
    for up, drift, radius in ((0.98, 0.02, 0.05), (1.07, 0.05, 0.065), (1.18, 0.1, 0.085)):
        smoke = region.disc(x + side * drift * w, y - up * w, radius * w, blur=0.03)
        region.paint(smoke * np.float32(0.55), look.cloud)
    brick = look.lit(rgb("9a5b4a"))
    region.paint(region.box(x - 0.055 * w, x + 0.055 * w, y - 0.92 * w, y - 0.42 * w), brick)
    if look.snow is not None:
        region.paint(region.box(x - 0.065 * w, x + 0.065 * w, y - 0.94 * w, y - 0.89 * w), look.snow)


def _paint_walls(region: _Region, scenes: SceneAttributes, look: _Look, y: Array) -> None:
    x, w = scenes.house_x, scenes.house_size
    colour = look.lit(np.stack(list(WALLS.values()))[scenes.house_wall])
    below_eaves = (region.y - _each(y - 0.42 * w)) / _each(0.12 * w)
    light = 1 - np.float32(1.5 * look.relief) * np.clip(1 - below_eaves, 0, 1)
    walls = region.box(x - 0.5 * w, x + 0.5 * w, y - 0.44 * w, y)
    region.paint(walls, _each(colour) * light * _house_relief(region, scenes, look))


def _paint_roof(region: _Region, scenes: SceneAttributes, look: _Look, y: Array) -> None:
    x, w = scenes.house_x, scenes.house_size
    ridge, eaves = y - 0.8 * w, y - 0.39 * w
    lean = 0.58 * (1 - scenes.house_ridge) / 0.41  # how far a flank moves inward per way up
    half = _each(0.58 * w) - _each(lean) * (_each(eaves) - region.y)
    flanks = region.cover((half - np.abs(region.x - _each(x))) * _each(1 / np.sqrt(1 + lean**2)))
    colour = _each(look.lit(np.stack(list(ROOFS.values()))[scenes.house_roof]))
    down = (region.y - _each(ridge)) / _each(0.41 * w)
    light = (1.1 - np.float32(0.2) * down) * _house_relief(region, scenes, look)
    region.paint(flanks * region.span(region.y, ridge, eaves), colour * light)
    region.paint(flanks * region.span(region.y, eaves - 0.045 * w, eaves), colour * np.float32(0.62))
    if look.snow is not None:
        region.paint(flanks * region.span(region.y, ridge - 0.02 * w, eaves - 0.16 * w), look.snow)


def _paint_door_and_windows(region: _Region, scenes: SceneAttributes, look: _Look, y: Array) -> None:
    w = scenes.house_size
    at = scenes.house_x + _place(scenes, scenes.house_door)
    region.paint(region.box(at - 0.065 * w, at + 0.065 * w, y - 0.27 * w, y), look.lit(rgb("6b4630")))

    wood = look.lit(rgb("fbf7ee"))
    top, middle, bottom = y - 0.34 * w, y - 0.22 * w, y - 0.1 * w
    half, border, bar = np.minimum(0.13, 0.33 / (scenes.house_windows + 1)) * w, 0.018 * w, 0.012 * w
    for at, present in _windows(scenes):
        if look.lamp:
            light = region.glow(at, middle, 0.36 * w) * _each(present)
            region.paint(light * np.float32(0.6 * look.lamp), look.pane)
        frame = region.box(at - half - border, at + half + border, top - border, bottom + border)
        region.paint(frame * _each(present), wood)
        upright = region.span(region.x, at - half, at - bar) + region.span(region.x, at + bar, at + half)
        level = region.span(region.y, top, middle - bar) + region.span(region.y, middle + bar, bottom)
        region.paint(upright * level * _each(present), look.pane)


def _paint_trees(canvas: _Canvas, scenes: SceneAttributes, look: _Look, k: int, foot: Array) -> None:
    """The k-th tree of every scene that has one."""
    for conifer in (False, True):
        which = np.flatnonzero(scenes.tree_present[:, k] & (scenes.tree_conifer[:, k] == conifer))
        x, y, size = scenes.tree_x[which, k], foot[which, k], scenes.tree_size[which, k]
        colour = _each(_blend(look.needles if conifer else look.crown, scenes.tree_hue[which, k]))
        light = _towards_light(scenes[which], x)
        largest = float(size.max(initial=0))
        with canvas.patch(which, x - 0.4 * largest, y - 1.05 * largest, 0.8 * largest, 1.1 * largest) as region:
            trunk = region.box(x - 0.035 * size, x + 0.035 * size, y - 0.4 * size, y)
            region.paint(trunk, look.lit(rgb("6f4e37")))
            (_paint_needles if conifer else _paint_crown)(region, look, colour, x, y, size, light)


def _paint_crown(region: _Region, look: _Look, colour: Array, x: Array, y: Array, size: Array, light: Array) -> None:
    """Three round puffs; the same shape, moved up, bounds what the light and the snow reach."""

    def crown(right: Array | float = 0.0, up: float = 0.0, scale: float = 1.0) -> Array:
        puffs = ((0.0, 0.66, 0.3), (-0.17, 0.5, 0.21), (0.17, 0.5, 0.21))
        discs = (region.disc(x + (right + dx) * size, y - (up + dy) * size, scale * r * size) for dx, dy, r in puffs)
        covered: Array = np.maximum.reduce(list(discs))
        return covered

    whole = crown()
    region.paint(whole, colour * np.float32(1 - 1.6 * look.relief))
    region.paint(whole * crown(0.07 * light, 0.07), colour)
    if look.snow is None:
        region.paint(whole * crown(0.12 * light, 0.13, 0.7), colour * np.float32(1 + 1.2 * look.relief))
    else:
        region.paint(whole * crown(up=0.28), look.snow)


def _paint_needles(region: _Region, look: _Look, colour: Array, x: Array, y: Array, size: Array, light: Array) -> None:
    """Three triangles, the lowest first."""
    right = region.x - _each(x)
    dark = region.cover(right * _each(-light), blur=0.03) * np.float32(2 * look.relief)
    for bottom, top, half in ((0.14, 0.58, 0.27), (0.36, 0.78, 0.22), (0.57, 1.0, 0.17)):
        slope = half / (top - bottom)
        flank = (region.y - _each(y - top * size)) * np.float32(slope) - np.abs(right)
        flank *= np.float32(1 / np.sqrt(1 + slope**2))
        tier = region.cover(np.minimum(flank, _each(y - bottom * size) - region.y))
        region.paint(tier, colour)
        region.paint(tier * dark, np.zeros(3, np.float32))
        if look.snow is not None:
            above = _each(y - (0.68 * bottom + 0.32 * top) * size) - region.y
            region.paint(region.cover(np.minimum(flank, above)), look.snow)


def render(attributes: SceneAttributes, domain: str, height: int, width: int) -> Tensor:
    """Draw scenes in a domain.

    Args:
        attributes: N scenes.
        domain: One of `DOMAINS`.
        height: Of the pictures, at least 16.
        width: The same. Wide pictures show more to the left and right, tall ones more sky and ground.

    Returns:
        uint8 tensor [N, 3, H, W]. A scene's picture is the same bit for bit whatever else is in `attributes`.

    Raises:
        ValueError: If the domain is unknown or the pictures are too small.
    """
    look = look_of(domain)
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"Scenes need at least {MIN_SIZE} x {MIN_SIZE} pixels, got {height} x {width}.")
    pictures = np.empty((len(attributes), 3, height, width), dtype=np.uint8)
    step = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, len(attributes), step):
        scenes = _placed(attributes[start : start + step], width / height)
        house_y = _crest(scenes, 2, scenes.house_x[:, None])[0][:, 0] + scenes.house_depth
        tree_y = _crest(scenes, 2, scenes.tree_x)[0] + scenes.tree_depth
        canvas = _Canvas(len(scenes), height, width)
        _paint_sky(canvas, scenes, look)
        _paint_hills(canvas, scenes, look)
        _paint_ground(canvas, scenes, look, house_y, tree_y)
        for k in range(_TREES_BEHIND):
            _paint_trees(canvas, scenes, look, k, tree_y)
        _paint_house(canvas, scenes, look, house_y)
        for k in range(_TREES_BEHIND, MAX_TREES):
            _paint_trees(canvas, scenes, look, k, tree_y)
        pictures[start : start + step] = np.clip(canvas.pixels + np.float32(0.5), 0, 255).astype(np.uint8)
    return torch.from_numpy(pictures)
