"""`lightning-gen interpolate` and `lightning-gen arithmetic`: what lies between latents, and what they add up to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gen.capabilities import HasLatents, HasStyles
from lightning_gen.commands.common import classes_in_turn, device_of, labels_of
from lightning_gen.commands.results import Results
from lightning_gen.data.grids import picture_grid, square_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.scenes import SceneAttributeReader, parse_conditions, train_reader
from lightning_gen.generative import load_model
from lightning_gen.latents import numbered_latents
from lightning_gen.randomness import generator_for
from lightning_gen.settings import checked_settings
from lightning_gen.styles import Points, Space


def interpolate(
    checkpoint: Path,
    output: Path,
    pairs: int = 8,
    steps: int = 9,
    space: Space = "z",
    method: Literal["slerp", "lerp"] | None = None,
    seed: int = 0,
    label: int | str | None = None,
    sampling: dict[str, Any] | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Draw the pictures between pairs of latents: each frame as a file, and OUTPUT_grid.png with a row for each pair.

    Pair p leads from picture 2 p of the seed to picture 2 p + 1, as `sample` numbers them. Its frames are
    OUTPUT/pair_000/000.png and so on.

    Args:
        checkpoint: Checkpoint of a model with latents, a file or RUN or RUN/best; it is all that is needed.
        output: Folder for the results; made if needed.
        pairs: How many pairs.
        steps: Pictures of each pair, both ends among them.
        space: z for the latents themselves, w for the styles that they are mapped to, where a model has them.
        method: slerp turns the latent at constant angular speed, while its length changes evenly, which suits Gaussian
            latents and is the default in z; lerp goes straight, which is the default in w.
        seed: Of the latents, 0 or more.
        label: The class of all pictures, by number or name. By default the pairs have all classes in turn.
        sampling: Settings of the model's own `sample`, each an option, such as --psi 0.7.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}.")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, the two ends; got {steps}.")
    model = _load(checkpoint, space)
    settings = checked_settings(model, sampling)
    results = Results(output, r"pair_\d{3,}/\d{3,}\.png", overwrite)
    classes = classes_in_turn(model, label)
    model.to(device_of(accelerator))
    points = Points(model, space, settings)
    straight = (space == "w") if method is None else method == "lerp"
    labels = labels_of([number // 2 for number in range(2 * pairs)], classes)
    ends = points.of(numbered_latents(model, range(2 * pairs), seed), labels)

    shown: list[Tensor] = []
    for pair, (start, end) in enumerate(zip(ends[::2], ends[1::2], strict=True)):
        path = points.between(start, end, steps, straight=straight)
        images = points.draw(path, labels_of([pair] * steps, classes))
        for step, image in enumerate(images):
            results.write(f"pair_{pair:03d}/{step:03d}.png", image)
        shown += to_uint8(images).cpu()
    results.overview(square_grid(shown, steps))
    print(f"{pairs} pairs of {steps} pictures written into {output}, an overview to {results.grid}")
    return 0


def arithmetic(
    checkpoint: Path,
    output: Path,
    a: str,
    b: str,
    c: str,
    seed: int = 0,
    label: int | str | None = None,
    noise: float = 0.25,
    candidates: int = 512,
    space: Space = "z",
    domain: str = "day",
    sampling: dict[str, Any] | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Add and subtract concepts: a - b + c, as in section 6.3 of the DCGAN paper (arXiv 1511.06434).

    A concept is the mean latent of a few pictures that show it. The result is drawn nine times: itself, in the middle,
    and with uniform noise on each coordinate. OUTPUT_grid.png shows the pictures of each concept, that of their mean
    below them, and the result; every picture is a file in OUTPUT too.

    A concept is named in one of two ways. By pictures, as 3,17,22: the numbers in the names of the files that `sample`
    writes for the same seed and label. Or, for models of the built-in Scenes, by what is to be seen, such as
    "house, sun low" or "no house, clouds": a small network, trained on the spot on rendered scenes, looks
    for it among the first pictures of the seed, takes the three that it is surest of, and tells what the result shows.

    Args:
        checkpoint: Checkpoint of a model with latents, a file or RUN or RUN/best; it is all that is needed.
        output: Folder for the results; made if needed.
        a: Concept that is added: pictures by their numbers, as 3,17,22, or words, as "house, sun low".
        b: Concept that is subtracted.
        c: Concept that is added.
        seed: Of the latents, 0 or more.
        label: The class of all pictures, by number or name; needed where the model has classes.
        noise: Each coordinate of the eight pictures around the result differs from it by at most this.
        candidates: Pictures among which a named concept is looked for.
        space: z for the latents themselves, w for the styles that they are mapped to, where a model has them.
        domain: The domain of Scenes that the model has learnt, for named concepts.
        sampling: Settings of the model's own `sample`, each an option, such as --psi 0.7.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    if noise < 0:
        raise ValueError(f"noise must be 0 or more, got {noise}.")
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}.")
    concepts = {"a": a, "b": b, "c": c}
    numbers = {name: _numbers(text) for name, text in concepts.items()}
    conditions = {name: parse_conditions(text) for name, text in concepts.items() if numbers[name] is None}
    model = _load(checkpoint, space)
    settings = checked_settings(model, sampling)
    files = Results(output, r"([abc]_(\d+|mean)|result_\d)\.png", overwrite)
    classes = classes_in_turn(model, label)
    if classes and len(classes) > 1:
        raise ValueError(f"This {type(model).__name__} has {model.num_classes} classes. Choose one with the label.")
    model.to(device_of(accelerator))
    points = Points(model, space, settings)

    def numbered(numbers: Iterable[int]) -> Tensor:
        latents = numbered_latents(model, numbers, seed)
        return points.of(latents, labels_of(range(len(latents)), classes))

    def draw(places: Tensor) -> Tensor:
        return points.draw(places, labels_of(range(len(places)), classes)).cpu()

    reader = None
    if conditions:
        reader = train_reader(model.image_shape, domain)
        chances = reader(draw(numbered(range(candidates))))
        for name, wanted in conditions.items():
            numbers[name] = _surest(reader.chance(chances, wanted), concepts[name], candidates)

    exemplars = {name: numbered(chosen or ()) for name, chosen in numbers.items()}
    means = {name: places.mean(0, keepdim=True) for name, places in exemplars.items()}
    result = means["a"] - means["b"] + means["c"]
    # The same in all layers of a style. A stream of its own: the numbers of pictures end before it.
    shape = model.latent_shape if space == "z" else (*[1] * (result.ndim - 2), result.shape[-1])
    shifts = torch.rand(9, *shape, generator=generator_for(seed, 2**32)) * 2 - 1
    shifts[4] = 0
    images = {name: draw(torch.cat([exemplars[name], means[name]])) for name in concepts}
    results = draw(result + noise * shifts.to(result))
    _write(files, images, results)
    for name, chosen in numbers.items():
        print(f"{name}: pictures {', '.join(map(str, chosen or ()))} of seed {seed}")
    if reader and len(conditions) == len(concepts):
        _say_what_is_seen(reader, reader(results), conditions)
    print(f"Written into {output}, an overview to {files.grid}")
    return 0


def _load(checkpoint: Path, space: Space) -> Any:
    model = load_model(checkpoint, HasLatents, "has no latents to draw from")
    if space == "w" and not isinstance(model, HasStyles):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__}, which has no styles; take --space z.")
    if model.image_shape[1:] == (1, 1):
        what = f"a {type(model).__name__} that draws points, not pictures"
        raise ValueError(f"{checkpoint} holds {what}; `sample` writes them.")
    return model


def _numbers(text: str) -> list[int] | None:
    """The numbers in "3,17,22" or "[3, 17, 22]"; None for words."""
    text = text.strip().removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[-+\d\s,]+", text):
        return None
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"A concept by pictures is their numbers, such as 3,17,22; got {text!r}.") from None
    if min(numbers) < 0:
        raise ValueError(f"The numbers of pictures begin at 0, got {min(numbers)}.")
    return numbers


def _surest(chances: Tensor, concept: str, candidates: int, number: int = 3) -> list[int]:
    """The numbers of the pictures that most likely show a concept."""
    showing = int((chances > 0.5).sum())
    if showing < number:
        raise ValueError(
            f"Only {showing} of {candidates} pictures seem to show {concept!r}, and {number} are needed. Raise "
            "candidates, name something less rare, or name pictures by their numbers."
        )
    return sorted(chances.topk(number).indices.tolist())


def _write(files: Results, images: Mapping[str, Tensor], results: Tensor) -> None:
    columns = [(name, list(to_uint8(column))) for name, column in images.items()]
    columns += [(title, list(to_uint8(results[i::3]))) for i, title in enumerate(("", "a - b + c", ""))]
    for name, column in images.items():
        for i, image in enumerate(column[:-1]):
            files.write(f"{name}_{i}.png", image)
        files.write(f"{name}_mean.png", column[-1])
    for i, image in enumerate(results):
        files.write(f"result_{i}.png", image)
    files.overview(picture_grid(columns))


def _say_what_is_seen(
    reader: SceneAttributeReader, chances: Tensor, conditions: Mapping[str, Mapping[str, bool]]
) -> None:
    """For each attribute that the sum decides, in how many of the nine pictures it is as it should be."""
    a, b, c = conditions["a"], conditions["b"], conditions["c"]
    for attribute in {**a, **b, **c}:
        x, y, z = a.get(attribute), b.get(attribute), c.get(attribute)
        # What b takes away of a, or of c, is what the two have in common; what both have beyond it stays.
        expected = z if x == y else x if y == z or x == z else None
        if expected is None:
            print(f"{attribute}: the concepts do not say what to expect")
            continue
        right = int((reader.chance(chances, {attribute: expected}) > 0.5).sum())
        words = attribute if expected else f"no {attribute}"
        print(
            f"{words}: in {right} of {len(chances)} pictures of the result "
            f"(the network is right about it in {reader.accuracy[attribute]:.0%} of rendered scenes)"
        )
