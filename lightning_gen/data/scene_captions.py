"""What a built-in landscape shows, in a sentence."""

from __future__ import annotations

import numpy as np

from lightning_gen.data.scene_attributes import (
    MAX_TREES,
    ROOFS,
    WALLS,
    Array,
    SceneAttributes,
)
from lightning_gen.data.scene_painting import look_of

_NUMBERS = ("no", "one", "two", "three")


def captions(attributes: SceneAttributes, domain: str) -> list[str]:
    """One sentence per scene that says what its picture shows.

    Such as "a red-roofed white house with two windows left of three trees under a low sun on the right, winter". The
    sun or moon is low from 0.22 picture heights below the top on; left and right are the outer two fifths.

    Raises:
        ValueError: If the domain is unknown.
    """
    body_name = look_of(domain).body_name
    sentences = []
    for n in range(len(attributes)):
        scene = attributes[n]
        things = _house_and_trees(scene)
        if not things:
            things = "open hills"
        height = "low" if scene.body_y > 0.22 else "high"
        side = "on the left" if scene.body_x < 0.4 else "on the right" if scene.body_x > 0.6 else "in the middle"
        clouds = int(scene.cloud_present.sum())
        sky = f"a {height} {body_name} {side}" + (f" and {_counted(clouds, 'cloud')}" if clouds else "")
        sentences.append(f"{things} under {sky}, {domain}")
    return sentences


def _counted(number: int, noun: str) -> str:
    return f"{_NUMBERS[number]} {noun}{'' if number == 1 else 's'}"


def _house_and_trees(scene: SceneAttributes) -> str:
    """What stands in a single scene, whose attributes have no leading dimension; empty if nothing does."""

    def trees(which: Array) -> str:
        which = which & scene.tree_present
        conifer = scene.tree_conifer[which]
        if not len(conifer):
            return ""
        return _counted(len(conifer), "conifer" if conifer.all() else "tree" if conifer.any() else "round tree")

    if not scene.house_present:
        return trees(np.ones(MAX_TREES, dtype=bool))
    wall, roof = list(WALLS)[scene.house_wall], list(ROOFS)[scene.house_roof]
    house = f"a {roof}-roofed {wall} house with {_counted(int(scene.house_windows), 'window')}"
    left, right = trees(scene.tree_x < scene.house_x), trees(scene.tree_x > scene.house_x)
    if left and right:
        return f"{house} between {left} on its left and {right} on its right"
    return house + (f" right of {left}" if left else f" left of {right}" if right else "")
