"""Codes as data: what an autoencoder makes of a data module's pictures, made once and kept.

A model of codes that reads these decodes no picture and runs no encoder in a step.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lightning_gen.capabilities import HasCodes
from lightning_gen.checkpoints import CheckpointError, digest_weights, read_checkpoint
from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule, InOrder, Split, examples_of, in_order
from lightning_gen.data.batches import images_and_labels
from lightning_gen.data.collection import Collection
from lightning_gen.data.fingerprint import digest, fingerprint
from lightning_gen.data.images import resize_image
from lightning_gen.files import cache_folder, opened_atomically, write_atomically
from lightning_gen.hyperparameters import CLASS_KEY, import_path
from lightning_gen.processes import failing_together, from_rank_zero, rank, world_size
from lightning_gen.trust import resolve

SCHEMA = 1  # of the files; another number is another meaning of their content
SCALES: dict[int, tuple[float, ...]] = {1: (1.0,), 5: (1.1,), 10: (1.05, 1.1)}
"""By how much pictures are larger than their crops, for each number of crops."""
_BATCH = 64  # pictures that are encoded at once; whoever encodes them, it is the same ones together
_SILENCE = 2.0  # seconds before progress is shown


class Codes(ImageDataModule):
    """The codes of pictures in place of pictures, for a model of codes such as `CodePrior`.

    They are made before training begins, by all processes together, and kept in the cache folder
    (`$LIGHTNING_GEN_CACHE`, `~/.cache/lightning-gen`), which processes must share, under all that may move them: the
    autoencoder's class and weights, the pictures and how they are read, and the views. They are read from the disk as
    they are needed, however many there are.

    Items are `{"codes"}`, a list of int64 `[h, w]`, a map each from coarse to fine, and where the pictures have them
    `"label"`, int64, and `"caption"`, which is asked of their data each time and not kept: in training one of several
    is drawn anew. Datasets of this library say it without making the picture.

    Codes that are made once would freeze what is random about pictures. So a training picture has several views, and
    each time it is shown one of them is drawn, by seed, epoch and position. LlamaGen (2406.06525) has ten: the corners
    and the center of pictures that are 1.1 times as large as what is cut out, and each mirrored; or 1.05 times as
    large. Collections such as `ImageFolder` give larger pictures; those of other data are enlarged, bicubic. Validation
    and test pictures have one view, which is themselves.

    Args:
        data: The data module that has the pictures.
        checkpoint: Of a model that has codes: a file, and on the command line also RUN or RUN/best. None is for a model
            with a `first_stage`, as `CodePrior`: its codes, whatever file it came from.
        crops: Of each training picture: 1 is the picture itself, 5 are corners and center at 1.1, 10 are those at 1.05
            and at 1.1.
        flip: Whether each crop is there mirrored left to right, too; captions and labels stay, so leave it out where
            they tell left from right.
        batch_size: Examples per process and training step.
        **loader: The others of `ImageDataModule`, but for `growing`.

    Raises:
        ValueError: If an argument is out of range, or the data draws crops or flips by itself. When training starts: if
            the codes of no model are asked for, or those of another than the model in training has; or if the pictures
            have another shape than the autoencoder takes.
        CheckpointError: When training starts, if the checkpoint is missing or damaged, or of a model without codes.
    """

    def __init__(
        self,
        data: pl.LightningDataModule,
        checkpoint: str | Path | None = None,
        *,
        crops: Literal[1, 5, 10] = 1,
        flip: bool = False,
        batch_size: int = 64,
        **loader: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **loader)
        if crops not in SCALES:
            raise ValueError(f"crops must be {', '.join(map(str, SCALES))}, got {crops}.")
        if self.growing is not None:
            raise ValueError("Codes of pictures do not grow. Leave out growing.")
        drawn = [name for name in ("flip", "random_crop") if getattr(data, name, False)]
        drawn += ["binarization"] if getattr(data, "binarization", None) == "dynamic" else []
        if drawn:
            raise ValueError(
                f"{type(data).__name__} draws anew by {' and '.join(drawn)} whenever a picture is shown, but codes are "
                "made once, which would freeze it. Leave it out there, and give Codes its own crops and flip."
            )
        self.data = data
        self.checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        self.crops, self.flip = crops, flip
        self._loaded: Any = None

    @property
    def pictures(self) -> pl.LightningDataModule:
        """The data module that has the pictures."""
        return self.data

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures."""
        shape: tuple[int, int, int] = self.data.image_shape  # type: ignore[attr-defined]
        return shape

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the pictures, or None where they have no labels."""
        return getattr(self.data, "num_classes", None)

    @property
    def class_names(self) -> Sequence[str] | None:  # type: ignore[override]
        """The names of the pictures' classes, by number, where they have names."""
        return getattr(self.data, "class_names", None)

    def captions(self) -> Iterable[str]:
        """Captions of training pictures, from which a tokenizer may learn.

        Raises:
            ValueError: If the pictures have none.
        """
        captions = getattr(self.data, "captions", None)
        if not callable(captions):
            raise ValueError(f"{type(self.data).__name__}, whose codes these are, has no captions() to learn from.")
        found: Iterable[str] = captions()
        return found

    def prepare_data(self) -> None:
        """As the data of the pictures does."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """As the data of the pictures does. Codes are made when a loader is asked for, as the model is whole then."""
        self.data.setup(stage)

    def dataset(self, split: Split) -> CodeSet:
        """The codes of a split, made unless they are in the cache; all processes must ask for them."""
        with failing_together():
            model = self.autoencoder()
            check_shape(model, self.data)
        if model is self._loaded and self.trainer is not None:
            model.to(self.trainer.strategy.root_device)
        crops, flip = (self.crops, self.flip) if split == "train" else (1, False)
        path = kept_codes(model, self.data, split, crops, flip, self.checkpoint)
        if model is self._loaded:
            model.cpu()
        return CodeSet(path, shapes_of(model), self.seed, _captioned(_pictures_of(self.data, split, 1)))

    def autoencoder(self) -> Any:
        """The model whose codes these are.

        Raises:
            ValueError: If there is none, or another is in training.
            CheckpointError: If the checkpoint is no such model's.
        """
        trained: Any = None if self.trainer is None else self.trainer.lightning_module
        own = getattr(trained, "first_stage", None)
        if self.checkpoint is None:
            if not isinstance(own, HasCodes):
                raise ValueError(
                    "Codes without a checkpoint are those of the first_stage of the model in training, and there is "
                    "none. Name the checkpoint of a model that has codes: --data.checkpoint RUN/best."
                )
            return own
        self._loaded = self._loaded or load_autoencoder(self.checkpoint)
        if isinstance(own, HasCodes):
            here, there = (digest_weights(model.state_dict())[:12] for model in (trained.first_stage, self._loaded))
            if here != there:
                raise ValueError(
                    f"The first stage of the model in training, a {type(own).__name__}, has the weights {here}, but "
                    f"{self.checkpoint} has {there}, whose codes mean other things. Leave data.checkpoint out, or "
                    "begin anew with that first stage."
                )
        return self._loaded


@dataclass(frozen=True, eq=False)
class CodeSet(DrawDataset):
    """Codes in a file, of which those that are asked for are read.

    Args:
        path: Of the file, rows of "codes" `[views, all maps end to end]` and perhaps "label".
        shapes: (h, w) of each map.
        seed: Of the view that is shown.
        pictures: What has their captions, if anything.
    """

    path: Path
    shapes: list[tuple[int, int]]
    seed: int
    pictures: Dataset[Any] | None = None

    @cached_property
    def rows(self) -> NDArray[np.void]:
        """All of them, on the disk."""
        rows: NDArray[np.void] = np.load(self.path, mmap_mode="r")
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # a worker opens the file for itself

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        row = self.rows[draw.index]
        views = row["codes"]
        view = int(draw.rng(self.seed).integers(len(views))) if len(views) > 1 else 0
        item: dict[str, Any] = {"codes": as_maps(torch.from_numpy(views[view].astype(np.int64)), self.shapes)}
        if "label" in row.dtype.names:
            item["label"] = torch.tensor(int(row["label"]))
        if self.pictures is not None:
            item["caption"] = self.caption(draw)
        return item

    def caption(self, draw: Draw) -> str:
        """The caption of a picture, by which it is the same in all views."""
        if isinstance(self.pictures, DrawDataset):
            return self.pictures.caption(draw)
        caption: Any = cast(Any, self.pictures)[draw.index]["caption"]
        return str(caption)


# -- making them ----------------------------------------------------------------------------------------------------


def load_autoencoder(checkpoint: Path) -> Any:
    """The model of a checkpoint, which must have codes.

    Raises:
        CheckpointError: If it is missing, damaged or refused, or its model has no codes.
    """
    name = read_checkpoint(checkpoint).get("hyper_parameters", {}).get(CLASS_KEY)
    cls = resolve(name) if isinstance(name, str) else None
    if not (inspect.isclass(cls) and issubclass(cls, pl.LightningModule)):
        raise CheckpointError(f"{checkpoint} does not say which model it holds; lightning-gen did not write it.")
    model = cls.load_from_checkpoint(checkpoint)
    if not isinstance(model, HasCodes):
        raise CheckpointError(f"{checkpoint} holds a {cls.__name__}, which makes no codes of pictures.")
    return model


def check_shape(model: Any, data: Any) -> None:
    """Raise a `ValueError` if pictures of a data module are of another shape than a model takes."""
    if tuple(data.image_shape) != tuple(model.image_shape):
        raise ValueError(
            f"{type(data).__name__} gives pictures of {tuple(data.image_shape)}, but the {type(model).__name__} whose "
            f"codes are asked for takes {tuple(model.image_shape)}."
        )


def shapes_of(model: HasCodes) -> list[tuple[int, int]]:
    """(h, w) of each map of a model's codes."""
    return model.code_shape if isinstance(model.code_shape, list) else [model.code_shape]


def as_maps(codes: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Maps `[..., h, w]` of what has them end to end `[..., codes]`."""
    parts = codes.split([height * width for height, width in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def kept_codes(model: Any, data: Any, split: Split, crops: int, flip: bool, checkpoint: Path | None = None) -> Path:
    """The file of codes of a split, from the cache or made and put there by all ranks together, which must all call it.

    A file has its name when it is whole, so what a dead process leaves is not trusted, and removed by the next one.

    Args:
        model: Has the codes, on the device where they are made.
        data: Has the pictures.
        split: Which of them.
        crops: As in `Codes`.
        flip: As in `Codes`.
        checkpoint: That the model came from, if it is known. Where codes of other weights in it are there, it is said.

    Raises:
        OSError: If there is no room for them.
        RuntimeError: If processes do not share the cache.
    """
    with failing_together():
        loader = _pictures_of(data, split, crops)
        record, row = _described(model, data, loader, split, crops, flip)
    record = from_rank_zero(record)
    path = cache_folder() / "codes" / f"{record['data']}-{split}-{digest(record)[:16]}.npy"
    if from_rank_zero(rank() != 0 or _is_whole(path, row, record["count"])):
        return path
    weights, views = record["weights"][:12], record["crops"] * (1 + flip)
    if rank() == 0 and checkpoint is not None and (before := _earlier(path.parent, record, checkpoint)):
        rank_zero_info(f"{checkpoint} had the weights {before[:12]} when codes were made of it, and has {weights} now.")
    each = f", {views} views each" if views > 1 else ""
    rank_zero_info(
        f"Encoding {record['count']} pictures ({record['data']}, {split}{each}) by {type(model).__name__} {weights}, "
        f"to be kept as {path}."
    )
    with ExitStack() as stack:
        place = ""
        with failing_together():
            if rank() == 0:
                file = stack.enter_context(opened_atomically(path))
                header = {
                    "descr": np.lib.format.dtype_to_descr(row),
                    "fortran_order": False,
                    "shape": (record["count"],),
                }
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + record["count"] * row.itemsize)
                file.flush()
                place = str(file.name)
        place = from_rank_zero(place)
        with failing_together():
            if not Path(place).is_file():
                raise RuntimeError(
                    f"{place} of rank 0 is not there for rank {rank()}: set $LIGHTNING_GEN_CACHE to a folder that all "
                    "processes share."
                )
            _write_rows(np.load(place, mmap_mode="r+"), model, loader, crops, flip)
    with failing_together():
        if rank() == 0:
            described = {**record, "checkpoint": None if checkpoint is None else str(checkpoint.absolute())}
            write_atomically(path.with_suffix(".json"), json.dumps(described, indent=1))
    return path


def _write_rows(rows: Any, model: Any, loader: Any, crops: int, flip: bool) -> None:
    """Fill in those of this rank."""
    numbers = in_order(loader, _BATCH, num_replicas=world_size(), rank=rank())
    quiet: dict[str, Any] = {"delay": _SILENCE, "leave": False, "disable": None if rank() == 0 else True}
    with isolate_rng():  # a dataset of the user's own may draw from the global random state
        total = len(range(rank(), -(-len(rows) // _BATCH), world_size()))
        for number, batch in tqdm(numbers, desc="encoding", total=total, **quiet):
            images, labels = images_and_labels(batch, "Codes")
            here = rows[number * _BATCH : number * _BATCH + len(images)]
            for view, part in enumerate(views_of(images, model.image_shape[1:], crops, flip)):
                here["codes"][:, view] = codes_of(model, part).numpy()
            if labels is not None:
                here["label"] = labels.numpy()
    rows.flush()


def codes_of(model: Any, images: Tensor) -> Tensor:
    """All codes of pictures, maps end to end: int64 `[N, codes]` on the CPU, computed in the weights' own precision."""
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        codes = model.codes(images.to(model.device))
    maps = codes if isinstance(codes, list) else [codes]
    return torch.cat([each.flatten(1) for each in maps], dim=1).cpu()


def views_of(images: Tensor, size: tuple[int, int], crops: int, flip: bool) -> Iterator[Tensor]:
    """Views `[N, C, *size]` of pictures `[N, C, H, W]` in `[-1, 1]`, in an order that is always the same."""
    height, width = size
    for scale in SCALES[crops]:
        large = _sized(images, (round(scale * height), round(scale * width)))
        bottom, right = large.shape[-2] - height, large.shape[-1] - width
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
        for top, left in corners if crops > 1 else [(0, 0)]:
            part = large[..., top : top + height, left : left + width]
            yield part
            if flip:
                yield part.flip(-1)


def _sized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures of a size, untouched where they have it."""
    if tuple(images.shape[-2:]) == size:
        return images
    return resize_image(images.add(1).div(2), size).mul(2).sub(1)


def _pictures_of(data: Any, split: Split, crops: int) -> Any:
    """The loader of a split; of pictures that are larger than their crops where files give such."""
    if isinstance(data, ImageDataModule):
        data = copy.copy(data)
        data.batch_size, data.growing, data._sets = 1, None, {}  # which are those of training on pictures
        if crops > 1 and isinstance(data, Collection):
            height, width = (round(max(SCALES[crops]) * side) for side in data.image_size)
            data.image_size = height, width
    return getattr(data, f"{split}_dataloader")()


def _captioned(loader: Any) -> Dataset[Any] | None:
    """The dataset of pictures, if its examples have captions."""
    examples = examples_of(loader)
    with isolate_rng():
        first = examples[0]
    if not (isinstance(first, Mapping) and isinstance(first.get("caption"), str)):
        return None
    own = examples.dataset if isinstance(examples, InOrder) else examples
    return own if isinstance(own, DrawDataset) else examples


def _described(
    model: Any, data: Any, loader: Any, split: str, crops: int, flip: bool
) -> tuple[dict[str, Any], np.dtype[np.void]]:
    """All that may move the codes of a split, and the type of a row of them."""
    examples = examples_of(loader)
    shapes, total = shapes_of(model), sum(height * width for height, width in shapes_of(model))
    number = "<u2" if model.num_codes <= 1 << 16 else "<i4"
    row: list[Any] = [("codes", number, (crops * (1 + flip), total))]
    collate = getattr(loader, "collate_fn", torch.utils.data.default_collate)
    with isolate_rng():
        if images_and_labels(collate([examples[0]]), "Codes")[1] is not None:
            row.append(("label", "<i8"))
    record = {
        "schema": SCHEMA,
        "data": re.sub(r"\W+", "_", type(data).__name__),
        "split": split,
        "pictures": fingerprint(loader, _what_is_kept) if rank() == 0 else "",
        "count": len(examples),  # type: ignore[arg-type]
        "crops": crops,
        "flip": flip,
        "model": _name_of(type(model)),
        "weights": digest_weights(model.state_dict()),
        "shapes": [list(shape) for shape in shapes],
        "numbers": number,
    }
    return record, np.dtype(row)


def _what_is_kept(batch: Any) -> Any:
    """A batch without captions, which are not."""
    return {name: value for name, value in batch.items() if name != "caption"} if isinstance(batch, Mapping) else batch


def _name_of(cls: type) -> str:
    try:
        return import_path(cls)
    except TypeError:  # made inside a function
        return f"{cls.__module__}.{cls.__qualname__}"


def _is_whole(path: Path, row: np.dtype[np.void], count: int) -> bool:
    """Whether a file holds so many rows of a type."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, EOFError) as error:
        rank_zero_warn(f"{path} is damaged ({error}). The codes are made anew.")
        return False
    return bool(rows.dtype == row and rows.shape == (count,))


def _earlier(folder: Path, record: Mapping[str, Any], checkpoint: Path) -> str | None:
    """The weights that a checkpoint had when the codes of the same pictures were made of it, if they were others."""
    wanted = {**record, "checkpoint": str(checkpoint.absolute())}
    newest = sorted(folder.glob(f"{record['data']}-{record['split']}-*.json"), key=lambda file: file.stat().st_mtime)
    for file in reversed(newest):
        try:
            found = json.loads(file.read_text())
            if found["weights"] != record["weights"] and {**found, "weights": record["weights"]} == wanted:
                return str(found["weights"])
        except (OSError, ValueError, LookupError, TypeError):  # it is but a word to say
            continue
    return None
