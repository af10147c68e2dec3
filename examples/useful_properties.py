"""Useful properties of styles (StyleGAN, 1812.04948, section 4; DCGAN, 1511.06434, section 6.3): ways and directions.

The small StyleGAN of `truncation_trick.py` is trained, and a reader of attributes says what its pictures show. The way
from one picture to another is walked in 16 steps, through styles w on a line. What is true of the pictures with an
attribute and not of those without is a direction in w: the difference of their means, which is added to the styles of
new pictures without it. The claims: no step of a way is a jump; a direction brings its attribute more often than a
random one as long, mostly several times as often, and changes other attributes less often than its own.

    python examples/useful_properties.py
"""

from statistics import median
from typing import NamedTuple

import torch
from plot import output_folder, write_table
from torch import Tensor
from truncation_trick import COUNT, SHAPE, train

from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.scenes import STATEMENTS, SceneAttributeReader, train_reader
from lightning_gen.models import StyleGAN

STEPS, WAYS, STRENGTH = 16, 50, 1.5


def styles_of(model: StyleGAN, count: int, seed: int) -> Tensor:
    """Styles `[count, layers, width]`."""
    return model.map_latents(model.draw_latents(count, torch.Generator().manual_seed(seed)))


def jumps(model: StyleGAN, reader: SceneAttributeReader, ways: int) -> Tensor:
    """The longest step of each way, as a share of the whole way, in the reader's features: `[ways]`."""
    start, end = styles_of(model, ways, 1), styles_of(model, ways, 2)
    places = torch.linspace(0, 1, STEPS + 1)
    features = torch.stack([reader.features(model.synthesize(torch.lerp(start, end, place))) for place in places])
    lengths = features.diff(dim=0).norm(dim=2)
    return lengths.amax(0) / lengths.sum(0)


class Arithmetic(NamedTuple):
    """What adding a direction does to pictures without the attribute.

    Attributes:
        own: Share of pictures that have it afterwards.
        others: Share of all other statements that are another.
        random: `own`, of a random direction as long.
        pictures: Some of them before and after, `[2, N, C, H, W]`.
    """

    own: float
    others: float
    random: float
    pictures: Tensor


def arithmetic(model: StyleGAN, reader: SceneAttributeReader, statement: str) -> Arithmetic:
    """Find the direction of a statement, and add it to the styles of other pictures."""
    number = list(STATEMENTS).index(statement)
    styles, fresh = styles_of(model, 2 * COUNT, 0), styles_of(model, COUNT, 3)
    true = reader(model.synthesize(styles))[:, number] > 0.5
    direction = STRENGTH * (styles[true].mean(0) - styles[~true].mean(0))
    images = model.synthesize(fresh)
    without = reader(images)[:, number] < 0.5
    fresh, images = fresh[without], images[without]
    noise = torch.randn(direction.shape[-1], generator=torch.Generator().manual_seed(0)).expand_as(direction)
    before, found = reader(images) > 0.5, {}
    for name, way in (("own", direction), ("random", noise * direction.norm() / noise.norm())):
        moved = model.synthesize(fresh + way)
        found[name] = moved, (reader(moved) > 0.5) != before
    others = torch.arange(len(STATEMENTS)) != number
    moved, changed = found["own"]
    return Arithmetic(
        changed[:, number].float().mean().item(),
        changed[:, others].float().mean().item(),
        found["random"][1][:, number].float().mean().item(),
        torch.stack([images[:5], moved[:5]]),
    )


@torch.no_grad()
def main() -> None:
    """Train, walk, add, show, and check the claims."""
    folder = output_folder("useful_properties", __doc__)
    with torch.enable_grad():
        model, reader = train(), train_reader(SHAPE)
    longest = jumps(model, reader, WAYS)
    rows = [("longest step, median", longest.median().item()), ("at most", longest.max().item())]
    shares = (reader(model.synthesize(styles_of(model, COUNT, 0))) > 0.5).float().mean(0)
    balanced = [name for name, share in zip(STATEMENTS, shares.tolist(), strict=True) if 0.2 < share < 0.8]
    columns: dict[str, list] = {}
    found = {statement: arithmetic(model, reader, statement) for statement in balanced}
    for statement, result in found.items():
        rows += [(f"{statement}, brought", result.own), (f"{statement}, by a random direction", result.random)]
        rows += [(f"{statement}, others changed", result.others)]
        columns[f"no {statement}"], columns[f"+ {statement}"] = (list(to_uint8(each)) for each in result.pictures)
    for name, value in rows:
        print(f"{name:40} {value:.3f}")
    write_table(folder / "useful_properties.csv", ["what", "value"], rows)
    picture_grid(columns).save(folder / "useful_properties.png")
    start, end = styles_of(model, 8, 1), styles_of(model, 8, 2)
    ways = {f"{place:g}": torch.lerp(start, end, place) for place in (0, 0.25, 0.5, 0.75, 1)}
    picture_grid({name: list(to_uint8(model.synthesize(styles))) for name, styles in ways.items()}).save(
        folder / "ways.png"
    )
    assert longest.median() < 3 / STEPS, "ways should be smooth"
    assert len(balanced) >= 2, "some attributes should be there and not everywhere"
    for result in found.values():
        assert result.own > result.random, "a direction should bring its attribute"
        assert result.own > result.others, "and change others less"
    factors = [result.own / max(result.random, 0.01) for result in found.values()]
    assert median(factors) > 3, "mostly several times as often"


if __name__ == "__main__":
    main()
