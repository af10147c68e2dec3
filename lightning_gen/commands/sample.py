"""`lightning-gen sample`: a checkpoint in, pictures out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from lightning_gen.callbacks.pictures import square_grid
from lightning_gen.callbacks.run_folder import find_checkpoint
from lightning_gen.commands.results import Results
from lightning_gen.commands.sampling import checked_settings
from lightning_gen.data.images import to_uint8
from lightning_gen.files import write_atomically
from lightning_gen.generative import GenerativeModule, HasLatents, Samples
from lightning_gen.latents import generator_for, numbered_latents

Labels = int | list[int | str] | str
"""A class or several, by number or by name."""

MAX_GRID = 400  # pictures in the overview


def sample(
    checkpoint: Path,
    output: Path,
    num_samples: int = 64,
    labels: Labels | None = None,
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

    Points of toy data are written as a table, points.csv, instead.

    Args:
        checkpoint: Checkpoint of a model that draws pictures from noise, a file or RUN or RUN/best; it is all that is
            needed.
        output: Folder for the results; made if needed.
        num_samples: How many pictures.
        labels: A class by its number or name, or several as [0,1,2] or [cat,dog], which take turns. By default all
            classes take turns.
        seed: Of the noise, 0 or more.
        batch_size: Pictures drawn at once.
        sampling: Settings of the model's own `sample`. Each is an option, such as --temperature 0.5; one that the model
            does not take is answered with those that it does.
        overwrite: Whether to write into a folder that holds pictures already. What this command wrote there before is
            removed first; other files stay.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    for name, number in (("num_samples", num_samples), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    model = load_model(checkpoint, Samples, "draws no pictures from noise")
    results = Results(output, r"\d{6,}\.png|points\.csv", overwrite)
    classes = classes_in_turn(model, labels)
    settings = checked_settings(model, sampling)
    model.to(device_of(accelerator))

    batches = _batches(model, num_samples, classes, seed, batch_size, settings)
    if model.image_shape[1:] == (1, 1):
        write_points(results.file("points.csv"), torch.cat([images.flatten(1).cpu() for images in batches]))
        print(f"{num_samples} points written to {output / 'points.csv'}")
        return 0
    shown: list[Tensor] = []
    number = 0
    for images in batches:
        for image in images:
            results.write(f"{number:06d}.png", image)
            number += 1
        shown += to_uint8(images[: MAX_GRID - len(shown)]).cpu()
    # With a column for each class, if there are not too many.
    columns = len(classes) if classes and 1 < len(classes) <= 20 and len(shown) > len(classes) else None
    results.overview(square_grid(shown, columns))
    print(f"{num_samples} pictures written into {output}, an overview to {results.grid}")
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


def load_model(checkpoint: Path, protocol: type, cannot: str) -> Any:
    """The model of a checkpoint.

    Args:
        checkpoint: The file, or what `find_checkpoint` takes for one.
        protocol: What it must be able to do, one of the protocols of `lightning_gen.generative`.
        cannot: Words for a model that is not able to, such as "draws no pictures from noise".

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it cannot be loaded.
        ValueError: If it does not follow the protocol.
    """
    model = GenerativeModule.load_from_checkpoint(find_checkpoint(checkpoint))
    if not isinstance(model, protocol):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__}, which {cannot}.")
    return model


def device_of(accelerator: str) -> torch.device:
    """The first device of an accelerator, by Lightning's name for it."""
    return Fabric(accelerator=accelerator, devices=1).device


def classes_in_turn(model: Samples, labels: Labels | None) -> list[int] | None:
    """The classes that pictures have in turn: those given, or all of the model's; None for a model without classes.

    Args:
        model: Where it knows `class_names`, as of the checkpoints of runs on data that has them, they can be given.
        labels: Numbers or names. Where all names are themselves numbers, a number is a name: classes called 1 to 10 are
            asked for as 1 to 10.

    Raises:
        ValueError: If the model has no classes and labels are given, or one is unknown or out of range.
    """
    given = [labels] if isinstance(labels, int | str) else labels
    if model.num_classes is None:
        if given is not None:
            raise ValueError(f"This {type(model).__name__} has no classes to choose from. Leave the labels out.")
        return None
    if given is None:
        return list(range(model.num_classes))
    names: list[str] = getattr(model, "class_names", None) or []
    known: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    # A command line has numbers where names look like some.
    known |= {int(name): number for number, name in enumerate(names) if name.isdecimal()}
    if not names or not all(name.isdecimal() for name in names):
        known |= {number: number for number in range(model.num_classes)}
    wrong = [str(label) for label in given if label not in known]
    if wrong or not given:
        allowed = f"lie in 0 .. {model.num_classes - 1}"
        if names:
            allowed += f", or be one of {', '.join(names[:20])}{', ...' if names[20:] else ''},"
        raise ValueError(
            f"Labels must {allowed} for this {type(model).__name__}, got {', '.join(wrong) or 'none at all'}."
        )
    return [known[label] for label in given]


def labels_of(numbers: Sequence[int], classes: Sequence[int] | None) -> Tensor | None:
    """The labels `[N]` of numbered pictures whose classes take turns."""
    return None if classes is None else torch.tensor([classes[number % len(classes)] for number in numbers])


def write_points(path: Path, points: Tensor) -> None:
    """A table with a point `[d]` of `[N, d]` in each row, in the fewest digits that give the same float32 again."""
    names = "xyz" if points.shape[1] <= 3 else [f"x{i}" for i in range(points.shape[1])]
    rows = [",".join(names[: points.shape[1]]), *(",".join(map(str, point)) for point in points.numpy())]
    write_atomically(path, "\n".join(rows) + "\n")
