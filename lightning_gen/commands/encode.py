"""`lightning-gen encode`: a checkpoint and data in, the codes of its pictures out, for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np

import lightning_gen.data  # noqa: F401  (so that short class names are known)
from lightning_gen.capabilities import HasCodes
from lightning_gen.checkpoints import digest_weights
from lightning_gen.commands.common import device_of
from lightning_gen.data.base import ImageDataModule, Split
from lightning_gen.data.codes import check_shape, kept_codes, shapes_of
from lightning_gen.files import opened_atomically
from lightning_gen.generative import load_model
from lightning_gen.hyperparameters import import_path
from lightning_gen.runs.folder import find_checkpoint


def encode(
    checkpoint: Path,
    data: pl.LightningDataModule,
    output: Path,
    split: Split = "train",
    crops: Literal[1, 5, 10] = 1,
    flip: bool = False,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Encode the pictures of a data module, and write their codes as arrays of numpy.

    The file holds `codes`, whole numbers [pictures, h, w], or where the model has several maps `codes_0`, `codes_1` ...
    from coarse to fine; where the pictures have labels, `labels` [pictures]; and `meta`, JSON that says of which model,
    weights and pictures they are. With several views of each picture they are [pictures, views, h, w]. Pictures are in
    the order of the data. Codes are kept in the cache too, where training on them finds them.

    Args:
        checkpoint: Checkpoint of a model that has codes, a file or RUN or RUN/best.
        data: The data module that has the pictures, such as Scenes.
        output: File to write, .npz.
        split: Which pictures: train, val or test.
        crops: Views of each picture: 1 is itself, 5 are corners and center of it 1.1 times as large, 10 are those of it
            1.05 and 1.1 times as large.
        flip: Whether each view is there mirrored left to right, too.
        overwrite: Whether to replace the file.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    if output.suffix != ".npz":
        raise ValueError(f"output must end in .npz, got {output}.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} is there already. Name another file, or replace it with --overwrite true.")
    file = find_checkpoint(checkpoint)
    model = load_model(file, HasCodes, "makes no codes of pictures").to(device_of(accelerator))
    pictures: Any = data.pictures if isinstance(data, ImageDataModule) else data
    check_shape(model, pictures)
    pictures.prepare_data()
    pictures.setup("test" if split == "test" else "fit")
    rows = np.load(kept_codes(model, pictures, split, crops, flip, file), mmap_mode="r")
    shapes = shapes_of(model)
    ends = np.cumsum([height * width for height, width in shapes])
    views = () if crops * (1 + flip) == 1 else (crops * (1 + flip),)
    arrays = {
        "codes" if len(shapes) == 1 else f"codes_{number}": rows["codes"][..., end - height * width : end].reshape(
            len(rows), *views, height, width
        )
        for number, (end, (height, width)) in enumerate(zip(ends, shapes, strict=True))
    }
    if "label" in (rows.dtype.names or ()):
        arrays["labels"] = rows["label"]
    meta = {
        "model": import_path(type(model)),
        "weights": digest_weights(model.state_dict()),
        "num_codes": model.num_codes,
        "code_shape": shapes,
        "checkpoint": str(file),
        "data": type(pictures).__name__,
        "split": split,
        "crops": crops,
        "flip": flip,
    }
    with opened_atomically(output) as opened:
        np.savez(opened, meta=np.array(json.dumps(meta)), **arrays)
    shown = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    print(f"The codes of {len(rows)} pictures are in {output}: {shown}.")
    return 0
