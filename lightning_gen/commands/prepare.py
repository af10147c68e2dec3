"""`lightning-gen prepare`: pictures wherever they lie in, a folder out that has them decoded and resized."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl

import lightning_gen.data  # noqa: F401  (so that short class names are known)
from lightning_gen.commands.configs import find_config
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.collection import PictureDataModule
from lightning_gen.data.prepared import CONTENTS
from lightning_gen.data.prepared import prepare as prepare_folder
from lightning_gen.limits import load_yaml


def prepare(data: pl.LightningDataModule, output: Path, overwrite: bool = False) -> int:
    """Make a folder of prepared pictures, to train on another machine, which needs nothing else.

    Pictures are read and resized as the data module does it, once, with what its random crops need around them, and
    written with their labels, captions and domains. `--data PreparedFolder --data.root OUTPUT` gives the same batches.
    Flips can be chosen there, but not another size. To keep pictures on this machine, `--data.cache true` is enough.

    Stopped on its way, the command goes on when it is started again.

    Args:
        data: The data module that has the pictures, such as ImageFolder; or --config NAME has it, as for fit.
        output: The folder.
        overwrite: Whether to prepare other pictures into a folder that has some.
    """
    pictures = data.pictures if isinstance(data, ImageDataModule) else data
    if not isinstance(pictures, PictureDataModule):
        raise ValueError(
            f"prepare is for pictures that are read from files, as those of ImageFolder; {type(pictures).__name__} has "
            "none of these."
        )
    if (output / CONTENTS).exists() and not overwrite:
        raise FileExistsError(
            f"{output} holds prepared pictures already. Name another folder, or replace them with --overwrite true."
        )
    pictures.prepare_data()
    pictures.setup("fit")
    counts = ", ".join(f"{number} {split}" for split, number in prepare_folder(pictures, output).items())
    print(f"{output} holds the examples: {counts}. Train on them with --data PreparedFolder --data.root {output}")
    return 0


def with_configured_data(arguments: Sequence[str]) -> list[str]:
    """Arguments in which the data of a configuration stands in place of its name."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    given, others = parser.parse_known_args(arguments)
    if given.config is None:
        return others
    path = find_config(given.config)
    settings = load_yaml(Path(path).read_text(encoding="utf-8"))
    if not isinstance(settings, Mapping) or not settings.get("data"):
        raise ValueError(f"{path} configures no data. Name it with --data.")
    return [f"--data={json.dumps(settings['data'])}", *others]
