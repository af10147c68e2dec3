"""`lightning-gen import`: state dicts of the reference implementation become a checkpoint."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointError
from lightning_gen.commands.reference_weights import (
    load_reference_weights,
    reference_discriminator,
    reference_generator,
)
from lightning_gen.commands.what_next import say_next
from lightning_gen.limits import LimitError, load_tensors
from lightning_gen.models import CycleGAN, Pix2Pix
from lightning_gen.models.translation import TranslationModule
from lightning_gen.networks import PatchDiscriminator, UNetGenerator


def import_weights(
    generator_AtoB: Path,
    output: Path,
    generator_BtoA: Path | None = None,
    discriminator_A: Path | None = None,
    discriminator_B: Path | None = None,
    image_size: int = 256,
    dropout: bool | None = None,
    eval: bool = False,
) -> int:
    """Turn state dicts of the CycleGAN / pix2pix reference implementation into a checkpoint for `translate`.

    With both generators (latest_net_G_A.pth and latest_net_G_B.pth) the checkpoint is a CycleGAN; with one alone
    (latest_net_G.pth) it is a Pix2Pix, the model with one direction. Architecture, width, depth and norm are read from
    the files. Discriminators that are not given start anew.

    The checkpoint translates as the reference's own test does: dropout is drawn, where there is any, and batch norm
    takes the statistics of each picture. What the files do not tell and was assumed is printed.

    Args:
        generator_AtoB: The reference's G_A (or G of pix2pix).
        output: The checkpoint to write.
        generator_BtoA: The reference's G_B.
        discriminator_A: Judges domain A; the reference calls it D_B.
        discriminator_B: Judges domain B; the reference calls it D_A (or D of pix2pix).
        image_size: Height and width the weights were trained on; any size can be translated.
        dropout: Whether a U-Net was trained with dropout; false where the reference was given --no_dropout. If it is
            not said, one that stands alone is taken for pix2pix's, with dropout, and one with instance norm, or with
            a partner, for CycleGAN's, without.
        eval: Whether to translate as the reference's test does with --eval: nothing is dropped, and batch norm takes
            its running statistics.
    """
    if generator_BtoA is None and discriminator_A is not None:
        raise ValueError(
            "discriminator_A belongs to a CycleGAN, which needs generator_BtoA too. "
            "The discriminator of pix2pix is given as discriminator_B."
        )
    files = {
        "generator_AtoB": generator_AtoB,
        "generator_BtoA": generator_BtoA,
        "discriminator_A": discriminator_A,
        "discriminator_B" if generator_BtoA else "discriminator": discriminator_B,
    }
    given = {name: (path, _read(path)) for name, path in files.items() if path is not None}
    forward = given["generator_AtoB"][1]
    with _naming(generator_AtoB):
        generator = reference_generator(forward)
    generator, assumed = _with_dropout(generator, dropout, generator_AtoB, alone=generator_BtoA is None)
    judge: Any = None
    for name, (path, weights) in given.items():
        if "discriminator" in name:
            with _naming(path):
                judge = reference_discriminator(weights)
    channels = next(tensor for tensor in forward.values() if tensor.ndim == 4).shape[1]
    shape = (int(channels), image_size, image_size)
    drops, batch_norm = generator.keywords["dropout"] > 0, generator.keywords["norm"] == "batch"
    at_test: dict[str, Any] = {"noise_at_test": drops and not eval, "batch_statistics_at_test": batch_norm and not eval}
    model: TranslationModule
    if generator_BtoA:
        model = CycleGAN(shape, generator=generator, discriminator=judge or PatchDiscriminator, **at_test)
    else:
        model = Pix2Pix(shape, generator=generator, discriminator=judge, **at_test)
    for name, (path, weights) in given.items():
        with _naming(path):
            load_reference_weights(getattr(model, name), weights)
    checkpoint: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
    }
    model.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, output)
    described: Any = model.hparams["generator"]
    settings = ", ".join(f"{key}={value}" for key, value in described.get("init_args", {}).items())
    kind = described["class_path"].rpartition(".")[2]
    print(f"{type(model).__name__} with {kind}({settings}) written to {output}")
    if assumed:
        print(assumed)
    ways = ["dropout is drawn"] * drops + ["batch norm takes each picture's own statistics"] * batch_norm
    if ways and not eval:
        print(f"When it translates, {' and '.join(ways)}, as in the reference's test; --eval true is its --eval.")
    say_next(output, "translate --checkpoint {} --input PICTURES --output FOLDER")
    return 0


def _with_dropout(
    generator: partial[Any], dropout: bool | None, path: Path, alone: bool
) -> tuple[partial[Any], str | None]:
    """The generator with dropout or without, and a sentence about it if that was assumed."""
    if generator.func is not UNetGenerator:
        found = generator.keywords["dropout"] > 0
        if dropout not in (None, found):
            raise ValueError(
                f"--dropout {str(dropout).lower()} does not go with {path}, whose layers say that it was trained "
                f"{'with' if found else 'without'} dropout. The option is for U-Nets, whose files do not tell."
            )
        return generator, None
    sentence = None
    if dropout is None:
        dropout = alone and generator.keywords["norm"] != "instance"
        sentence = (
            f"Assumed that the U-Net was trained {'with' if dropout else 'without'} dropout, which its file does not "
            f"tell; --dropout {str(not dropout).lower()} if not."
        )
    return partial(generator, dropout=0.5 if dropout else 0.0), sentence


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about the weights within it tell which file they come from."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        weights = load_tensors(path)
    except LimitError as error:
        raise CheckpointError(str(error)) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is cut short, or no state dict of plain tensors.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} is no state dict: it must map names to tensors.")
    # Old files carry an attribute on the dictionary; a plain one is all that is needed.
    return dict(weights)
