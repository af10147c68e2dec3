"""What captions say of the built-in landscapes: attributes as classes, and sentences that name them all.

A sentence is chosen among some hundred of the same meaning, so a model has to learn what words mean, not which sentence
it is. Of the combinations of walls, roof and number of trees a quarter is never shown in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_gen.data.scene_attributes import MAX_CLOUDS, MAX_TREES, ROOFS, WALLS, Array, SceneAttributes

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "side": ("left", "middle", "right"),
    "height": ("high", "low"),
    "clouds": tuple(map(str, range(MAX_CLOUDS + 1))),
    "walls": ("none", *WALLS),
    "roof": ("none", *ROOFS),
    "trees": tuple(map(str, range(MAX_TREES + 1))),
    "kind": ("none", "round", "conifer", "mixed"),
}
"""All that a caption says, by name, and what can be said of each: the place of the sun or moon, the number of clouds,
the colours of the house, if there is one, and the number and kind of trees."""

_NUMBERS = ("no", "one", "two", "three")


def classes_of(scenes: SceneAttributes) -> Array:
    """What captions say of N scenes: int64 `[N, 7]`, for each of `ATTRIBUTES` which of its values.

    The sun or moon is low from 0.22 picture heights below the top on; left and right are the outer two fifths.
    """
    trees = scenes.tree_present.sum(1)
    conifers = (scenes.tree_present & scenes.tree_conifer).sum(1)
    kind = np.where(conifers == trees, 2, np.where(conifers == 0, 1, 3)) * (trees > 0)
    columns = [
        (scenes.body_x >= 0.4) * 1 + (scenes.body_x > 0.6),
        scenes.body_y > 0.22,
        scenes.cloud_present.sum(1),
        (scenes.house_wall + 1) * scenes.house_present,
        (scenes.house_roof + 1) * scenes.house_present,
        trees,
        kind,
    ]
    return np.stack(columns, axis=1).astype(np.int64)


def split_of(classes: Array) -> Array:
    """Where scenes belong, by walls, roof and number of trees: `[N]` of "train", "val" and "test".

    Of the 64 combinations with a house one in four is held out, so that training shows any two of the three together,
    but never all three; half of these are for validation, half for the test. Scenes without a house are for training.
    """
    walls, roof, trees = (classes[:, list(ATTRIBUTES).index(name)] for name in ("walls", "roof", "trees"))
    held_out = (walls > 0) & ((walls + roof + trees) % 4 == 0)
    return np.where(held_out, np.where(((walls - 1) // 2 + roof) % 2, "test", "val"), "train")


def draw_scenes(num: int, seed: Sequence[int], split: str) -> SceneAttributes:
    """The first so many scenes of a seed that belong to a split."""
    drawn = 2 * num
    while True:
        scenes = SceneAttributes.draw(drawn, seed)
        chosen = np.flatnonzero(split_of(classes_of(scenes)) == split)[:num]
        if len(chosen) == num:
            return scenes[chosen]
        drawn *= 2


def sentence(classes: Sequence[int], body: str, choice: int = 0) -> str:
    """A caption that says all of `ATTRIBUTES`.

    Such as "a white house with a red roof, two conifers, a low sun on the left and one cloud".

    Args:
        classes: Which value each has.
        body: "sun" or "moon".
        choice: Any number of 0 or more, which decides on the words; 0 for the plainest.
    """

    def choose(*options: str) -> str:
        nonlocal choice
        choice, chosen = divmod(choice, len(options))
        return options[chosen]

    side, height, clouds, walls, roof, trees, kind = classes
    if walls:
        wall, tiles = list(WALLS)[walls - 1], list(ROOFS)[roof - 1]
        house = choose(
            f"a {wall} house with a {tiles} roof",
            f"a {tiles}-roofed {wall} house",
            f"a house with {wall} walls under a {tiles} roof",
        )
    else:
        house = choose("no house", "open hills", "hills without a house")
    some = _NUMBERS[trees]
    plural = "" if trees == 1 else "s"
    wood = (
        ("no trees", "not a single tree", "no tree"),
        (f"{some} round tree{plural}", f"{some} tree{plural} with a round crown", f"{some} leafy tree{plural}"),
        (f"{some} conifer{plural}", f"{some} fir{plural}", f"{some} pointed tree{plural}"),
        (f"{some} different trees", f"{some} trees of both kinds", f"{some} trees, round and pointed"),
    )[kind]
    up = ATTRIBUTES["height"][height]
    places = (("on the left", "to the left"), ("in the middle", "in the centre"), ("on the right", "to the right"))
    place = choose(*places[side])
    light = choose(f"a {up} {body} {place}", f"the {body} {up} {place}", f"a {body} that stands {up} {place}")
    grey = choose(
        f"{_NUMBERS[clouds]} cloud{'' if clouds == 1 else 's'}",
        "a cloudless sky" if not clouds else "a single cloud" if clouds == 1 else "a pair of clouds",
    )
    plants = choose(*wood)
    return choose(
        f"{house}, {plants}, {light} and {grey}",
        f"{light}, {grey}, {house} and {plants}",
        f"{house} and {plants} under {light} with {grey}",
        f"a landscape with {plants}, {house}, {grey} and {light}",
    )
