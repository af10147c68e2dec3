"""`lightning-gen sample`: a checkpoint in, pictures out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from lightning_gen.capabilities import HasLatents, Samples, ScoresCaptions
from lightning_gen.commands.common import Labels, classes_in_turn, device_of, labels_of
from lightning_gen.commands.results import Results
from lightning_gen.commands.what_next import say_next
from lightning_gen.data.grids import captioned_grid, square_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.files import write_atomically
from lightning_gen.generative import load_model
from lightning_gen.hyperparameters import accepts
from lightning_gen.latents import numbered_latents
from lightning_gen.randomness import generator_for
from lightning_gen.sampling import draw_best
from lightning_gen.settings import checked_settings

Score: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor]
MAX_GRID = 400  # pictures in the overview


def sample(
    checkpoint: Path,
    output: Path,
    num_samples: int = 64,
    labels: Labels | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
    rerank: str | None = None,
    candidates: int = 8,
    seed: int = 0,
    batch_size: int = 64,
    sampling: dict[str, Any] | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Draw pictures into a folder: OUTPUT/000000.png, OUTPUT/000001.png and so on.

    The first 400 of them stand together in OUTPUT_grid.png beside the folder, so that all pictures of the folder are
    samples, for `evaluate --images OUTPUT` and other programs.

    Where a model has latents, each picture depends on the checkpoint, the seed and its own number alone, so a larger
    `num_samples` adds pictures and changes none. (Another batch size or device rounds sums of floats in another order.)
    Models without latents draw as many at once as `batch_size` says, and other pictures if it changes.

    A model that reads captions draws pictures of prompts, which take turns. The beginning of its prompt is part of a
    file's name, as 000000_a-red-house.png, and in the overview prompts stand below the pictures.

    Points of toy data are written as a table, points.csv, instead.

    Args:
        checkpoint: Checkpoint of a model that draws pictures from noise, a file or RUN or RUN/best; no more is needed.
        output: Folder for the results; made if needed.
        num_samples: How many pictures.
        labels: A class by its number or name, or several as [0,1,2] or [cat,dog], which take turns. By default all
            classes take turns.
        prompt: A caption of the pictures. By default they have none, if the model knows such pictures.
        prompts: File with a prompt in each line.
        rerank: Draw several candidates for each picture, and keep the best: "own" is the one that the model itself
            finds likeliest given the prompt, as it encodes it; the checkpoint of a Scorer chooses by its score.
        candidates: How many, under `rerank`.
        seed: Of the noise, 0 or more.
        batch_size: Pictures drawn at once.
        sampling: Settings of the model's own `sample`. Each is an option, such as --temperature 0.5; one that the model
            does not take is answered with those that it does.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    for name, number in (("num_samples", num_samples), ("batch_size", batch_size), ("candidates", candidates)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    model = load_model(checkpoint, Samples, "draws no pictures from noise")
    results = Results(output, r"\d{6,}(_[\w-]+)?\.png|points\.csv", overwrite)
    classes = classes_in_turn(model, labels)
    settings = checked_settings(model, sampling)
    said = prompts_of(model, prompt, prompts)
    score = None if rerank is None else _score_of(model, said, rerank, device_of(accelerator))
    model.to(device_of(accelerator))
    following = [f"sample --checkpoint {{}} --output FOLDER --seed {seed + 1}", "evaluate --checkpoint {}"]

    if said:
        batches = _batches_of_prompts(model, num_samples, said, score, candidates, seed, batch_size, settings)
    else:
        batches = _batches(model, num_samples, classes, seed, batch_size, settings)
    if model.image_shape[1:] == (1, 1):
        write_points(results.file("points.csv"), torch.cat([images.flatten(1).cpu() for images in batches]))
        print(f"{num_samples} points written to {output / 'points.csv'}")
        say_next(checkpoint, *following)
        return 0
    shown: list[Tensor] = []
    for number, image in enumerate(chain.from_iterable(batches)):
        results.write(f"{number:06d}{_slug(said[number % len(said)]) if said else ''}.png", image)
        if number < MAX_GRID:
            shown.append(to_uint8(image).cpu())
    # With a column for each class, if there are not too many.
    columns = len(classes) if classes and 1 < len(classes) <= 20 and len(shown) > len(classes) else None
    below = [said[number % len(said)] for number in range(len(shown))] if said else []
    columns = len(said) if 1 < len(said) <= 20 and len(shown) > len(said) else columns
    results.overview(captioned_grid(shown, below, columns) if said else square_grid(shown, columns))
    print(f"{num_samples} pictures written into {output}, an overview to {results.grid}")
    say_next(checkpoint, *following)
    return 0


def _batches(
    model: Any, num_samples: int, classes: Sequence[int] | None, seed: int, batch_size: int, settings: dict[str, Any]
) -> Iterator[Tensor]:
    for start in range(0, num_samples, batch_size):
        # The last batch is drawn in full, so that it does not matter which one is the last.
        numbers = range(start, start + batch_size)
        labels = labels_of(numbers, classes)
        if isinstance(model, HasLatents):
            images = model.generate(numbered_latents(model, numbers, seed), labels, **settings)
        else:
            images = model.sample(batch_size, labels=labels, generator=generator_for(seed, start), **settings)
        yield images[: num_samples - start]


def _batches_of_prompts(
    model: Any,
    num_samples: int,
    prompts: Sequence[str],
    score: Score | None,
    candidates: int,
    seed: int,
    batch_size: int,
    settings: dict[str, Any],
) -> Iterator[Tensor]:
    for start in range(0, num_samples, batch_size):
        captions = [prompts[number % len(prompts)] for number in range(start, start + batch_size)]
        noise = generator_for(seed, start)
        if score is None:
            images = model.sample(batch_size, captions=captions, generator=noise, **settings)
        else:
            images = draw_best(model, captions, candidates, score, noise, **settings)
        yield images[: num_samples - start]


def prompts_of(model: Any, prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or those in the lines of a file; none where neither is given.

    Raises:
        ValueError: If both are given, the model reads no captions, or one cannot be read by it.
        FileNotFoundError: If there is no such file.
    """
    if prompt is None and file is None:
        return []
    if prompt is not None and file is not None:
        raise ValueError("Both prompt and prompts were given. Give one prompt, or the file with several.")
    if getattr(model, "text", None) is None or not accepts(model.sample, "captions"):
        raise ValueError(f"This {type(model).__name__} reads no captions. Leave the prompt out.")
    found = [prompt] if prompt is not None else []
    if file is not None:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not found:
            raise ValueError(f"{file} has no prompts, which stand in its lines.")
    model.text(found)
    return found


def _score_of(model: Any, prompts: Sequence[str], rerank: str, device: torch.device) -> Score:
    """How good a picture of a prompt is."""
    if not prompts:
        raise ValueError("rerank chooses among pictures of a prompt, and none was given. Give it with --prompt.")
    if rerank == "own":
        return lambda images, captions: model.log_prob(images, captions=captions)
    scorer = load_model(rerank, ScoresCaptions, "says nothing about how well captions fit pictures")
    if scorer.image_shape != model.image_shape:
        raise ValueError(f"{rerank} scores pictures of {scorer.image_shape}, but these are {model.image_shape}.")
    scorer.to(device).text(prompts)
    return cast(Score, scorer.score)


def _slug(prompt: str) -> str:
    """The beginning of a prompt, as a part of a file's name."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))
    return f"_{words[:40].strip('-')}" if words else ""


def write_points(path: Path, points: Tensor) -> None:
    """A table with a point `[d]` of `[N, d]` in each row, in the fewest digits that give the same float32 again."""
    names = "xyz" if points.shape[1] <= 3 else [f"x{i}" for i in range(points.shape[1])]
    rows = [",".join(names[: points.shape[1]]), *(",".join(map(str, point)) for point in points.numpy())]
    write_atomically(path, "\n".join(rows) + "\n")
