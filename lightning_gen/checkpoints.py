"""Files of checkpoints, which a stranger may have sent: plain data of the right types, or one sentence.

They are read with `weights_only=True` and written to a temporary name first. What the hyper-parameters in them may do
is the matter of `lightning_gen.hyperparameters`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from lightning_gen.files import opened_atomically
from lightning_gen.limits import LimitError, load_tensors

# What a checkpoint may hold, of which types; other names belong to other people's hooks.
_FIELDS: dict[str, tuple[type, ...]] = {
    "state_dict": (Mapping,),
    "raw_state_dict": (Mapping,),
    "precise_average": (Mapping,),
    "hyper_parameters": (Mapping,),
    "epoch": (int,),
    "global_step": (int,),
    "pytorch-lightning_version": (str,),
    "loops": (Mapping,),
    "callbacks": (Mapping,),
    "optimizer_states": (list,),
    "lr_schedulers": (list,),
    "noise_seed": (int, type(None)),
    "critic_updates": (int,),
    "images_seen": (int,),
    "wandb_id": (str, type(None)),
    "started_from": (Mapping,),
}
# What training needs to go on.
_RUN = ("epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks", "optimizer_states", "lr_schedulers")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why and what would help."""


def first_line(error: BaseException) -> str:
    """What an error says, for a sentence that quotes it; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint file, tensors and plain data only.

    Raises:
        CheckpointError: If the file is missing, cut short, not a checkpoint, larger in memory than on the disk, or
            holds pickled objects; or if a field is of another type than it should be.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        checkpoint = load_tensors(path, map_location)
    except LimitError as error:
        raise CheckpointError(str(error)) from error
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise CheckpointError(f"{path} is cut short or not a checkpoint ({first_line(error)}).") from error
        # What torch will not load, without its advice to load it all the same.
        found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        held = f"an object of {found[1]}" if found else "pickled objects"
        raise CheckpointError(
            f"{path} is not a checkpoint of plain data and was refused: loading it could run code of its own. It holds "
            f"{held}. There is no option to load it; save it again as tensors and plain data."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, struct.error, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is cut short or not a checkpoint ({first_line(error)}).") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} holds no 'state_dict': it is not a checkpoint of a Lightning run.")
    for name, kinds in _FIELDS.items():
        if name in checkpoint and (fault := _fault(name, checkpoint[name], kinds)):
            raise CheckpointError(f"{path} is damaged, or not of a Lightning run: {fault}.")
    return checkpoint


def check_going_on(checkpoint: Mapping[str, Any], path: str | os.PathLike[str] = "The checkpoint") -> None:
    """Refuse to train on from a checkpoint that does not hold all of a run.

    Raises:
        CheckpointError: If something is missing.
    """
    missing = [name for name in _RUN if name not in checkpoint]
    if missing:
        raise CheckpointError(
            f"{path} has no {', '.join(map(repr, missing))}: it holds weights to use, as by sample, translate or "
            "evaluate, and not the state of a run to go on with. Take one that was saved without save_weights_only."
        )


def _fault(name: str, value: Any, kinds: tuple[type, ...]) -> str | None:
    """What is wrong with a field, in words."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__.lower() for kind in kinds)
        return f"its {name!r} must be of type {wanted}, and is {type(value).__name__}"
    if isinstance(value, Mapping) and name.endswith("state_dict"):
        for key, tensor in value.items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                return f"its {name!r} must map names to tensors, and {key!r} is {type(tensor).__name__}"
            # A few numbers can be said to lie at many places.
            if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
                return f"the weight {key!r} in its {name!r} is larger than what is stored of it"
    return None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads by `read_checkpoint`. Writes beside what stands there and renames, so no kill or full disk costs a file."""

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The contents of a local file, plain data whatever is asked for.

        Raises:
            CheckpointError: As `read_checkpoint`.
        """
        if Path(path).name == ".temp.ckpt":  # weights alone, which Lightning's forked processes leave for the first one
            weights: dict[str, Any] = load_tensors(Path(path), map_location or "cpu")
            return weights
        return read_checkpoint(path, map_location or "cpu")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, or leave what stood there.

        Raises:
            OSError: If it cannot be written; the message says that the last checkpoint stays.
        """
        target = Path(path)
        try:
            with opened_atomically(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # PyTorch says "unexpected pos" where a write has failed; behind it stands what the system said.
            failure = error if isinstance(error, OSError) else error.__context__
            if not isinstance(failure, OSError):
                raise
            raise OSError(
                failure.errno,
                f"The checkpoint {target} could not be written: {failure.strerror or failure}. "
                "The checkpoints saved before it are untouched",
            ) from error


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of a state dict, on whatever device it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
