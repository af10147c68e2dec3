"""`lightning-gen import`: state dicts of the reference implementation become a checkpoint."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointError
from lightning_gen.limits import LimitError, load_tensors
from lightning_gen.models import CycleGAN, Pix2Pix
from lightning_gen.models.translation import TranslationModule
from lightning_gen.networks import PatchDiscriminator
from lightning_gen.networks.reference_weights import (
    load_reference_weights,
    reference_discriminator,
    reference_generator,
)


def import_weights(
    generator_AtoB: Path,
    output: Path,
    generator_BtoA: Path | None = None,
    discriminator_A: Path | None = None,
    discriminator_B: Path | None = None,
    image_size: int = 256,
) -> int:
    """Turn state dicts of the CycleGAN / pix2pix reference implementation into a checkpoint for `translate`.

    With both generators (latest_net_G_A.pth and latest_net_G_B.pth) the checkpoint is a CycleGAN; with one alone
    (latest_net_G.pth) it is a Pix2Pix, the model with one direction. Architecture, width, depth and norm are read from
    the files. Discriminators that are not given start anew.

    Args:
        generator_AtoB: The reference's G_A (or G of pix2pix).
        output: The checkpoint to write.
        generator_BtoA: The reference's G_B.
        discriminator_A: Judges domain A; the reference calls it D_B.
        discriminator_B: Judges domain B; the reference calls it D_A (or D of pix2pix).
        image_size: Height and width the weights were trained on; any size can be translated.
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
    judge: Any = None
    for name, (path, weights) in given.items():
        if "discriminator" in name:
            with _naming(path):
                judge = reference_discriminator(weights)
    channels = next(tensor for tensor in forward.values() if tensor.ndim == 4).shape[1]
    shape = (int(channels), image_size, image_size)
    model: TranslationModule
    if generator_BtoA:
        model = CycleGAN(shape, generator=generator, discriminator=judge or PatchDiscriminator)
    else:
        # A U-Net with batch norm is pix2pix's, which translates with dropout; all else translates without.
        noisy = generator.keywords["norm"] == "batch" and "depth" in generator.keywords
        model = Pix2Pix(shape, generator=generator, discriminator=judge, noise_at_test=noisy)
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
    print(f"{type(model).__name__} with {_describe(model)} written to {output}")
    return 0


def _describe(model: TranslationModule) -> str:
    factory: Any = model.hparams["generator"]
    settings = ", ".join(f"{key}={value}" for key, value in factory.get("init_args", {}).items())
    return f"{factory['class_path'].rpartition('.')[2]}({settings})"


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
