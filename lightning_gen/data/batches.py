"""What a batch holds, whatever form it has: pictures, labels, and how many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_gen.data.images import from_uint8

PICTURES = ("image", "images", "pixel_values", "img")
DOMAINS = ("A", "B")
LABELS = ("label", "labels")
ROUNDING = 1e-4  # by which a value may lie outside [-1, 1]


def images_and_labels(batch: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Pictures and, where there are any, labels of a batch.

    Args:
        batch: A dictionary with "image" ("images", "pixel_values", "img") and perhaps "label" ("labels"), a pair
            (pictures, labels), or pictures alone.
        name: Of the one who needs them.

    Returns:
        The pictures as `as_floats` gives them, and the labels as they are.

    Raises:
        ValueError: If the batch is none of these, or `as_floats` refuses the pictures.
    """
    images, labels = parts_of(batch)
    if images is not None:
        return as_floats(images, name), labels
    found = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise ValueError(
        f"{name} needs batches that are a dictionary with 'image' (and 'label'), a pair (pictures, labels) or pictures "
        f"alone; got {found}."
    )


def parts_of(batch: Any) -> tuple[Any, Any]:
    """What stands in the places of pictures and labels, if anything."""
    if isinstance(batch, Mapping):
        images, labels = (next((batch[key] for key in keys if key in batch), None) for keys in (PICTURES, LABELS))
        return images, labels
    if isinstance(batch, list | tuple) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    return (batch if isinstance(batch, Tensor) else None), None


def as_floats(images: Any, name: str) -> Tensor:
    """Pictures of a batch as models see them: uint8 becomes float32 in `[-1, 1]`, floats stay as they are.

    Args:
        images: Of any shape.
        name: Of the one who needs them.

    Raises:
        ValueError: If they are neither.
    """
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        return from_uint8(images)
    if isinstance(images, Tensor) and images.is_floating_point():
        return images
    found = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
    raise ValueError(f"{name} takes pictures as a tensor of floats in [-1, 1] or of uint8, got {found}.")


def check_range(images: Tensor, name: str, what: str) -> float:
    """The lowest value of pictures, floats that must lie in `[-1, 1]`.

    Args:
        images: Of any shape, not empty; on the host, or a device is waited for.
        name: Of the one who needs them.
        what: They are.

    Raises:
        ValueError: If a value is outside, or not finite.
    """
    low, high = (value.item() for value in images.aminmax())
    if -1 - ROUNDING <= low <= high <= 1 + ROUNDING:
        return low
    found = f"has values from {low:.4g} to {high:.4g}"
    if low != low or high != high:
        found, hint = "holds values that are not finite", "Look at how the pictures are made."
    elif low >= 0 and 1.5 < high <= 255:
        hint = "If they are those of 8 bits, give them as uint8, which is converted, or as x / 127.5 - 1."
    else:
        hint = "Give 2 x - 1 of pictures in [0, 1], and clip what a resize leaves outside."
    raise ValueError(f"{name} takes pictures in [-1, 1], but {what} {found}. {hint}")


def batch_pictures(batch: Any) -> dict[str, Tensor]:
    """The pictures `[N, C, H, W]` of a batch by name, as they are, whatever form it has: none, one or two domains."""
    if isinstance(batch, Mapping):
        found = {key: batch[key] for key in (*DOMAINS, *PICTURES) if key in batch}
    else:
        found = {"pictures": batch[0] if isinstance(batch, list | tuple) and batch else batch}
    return {key: value for key, value in found.items() if isinstance(value, Tensor) and value.ndim == 4}


def pictures_as_floats(batch: Any, convert: Callable[[Tensor], Tensor] | None = None) -> Any:
    """A batch whose `batch_pictures` of uint8 have become float32 in `[-1, 1]`; all else in it stays as it is.

    Args:
        batch: Of whatever form.
        convert: What else is done to these floats, such as a trainer's precision asks for; None does nothing.
    """
    made = {name: from_uint8(images) for name, images in batch_pictures(batch).items() if images.dtype == torch.uint8}
    if not made:
        return batch
    made = made if convert is None else {name: convert(images) for name, images in made.items()}
    if isinstance(batch, Mapping):
        return {**batch, **made}
    if isinstance(batch, list | tuple):
        parts = (made["pictures"], *batch[1:])
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return made["pictures"]


def collate(examples: Sequence[Any]) -> Any:
    """As torch's `default_collate`, but where pictures of uint8 stand beside some of floats, all become floats.

    A stack of both would take levels of uint8 for floats.
    """
    if isinstance(examples[0], Mapping):
        for name in (*DOMAINS, *PICTURES):
            if name in examples[0] and len({example[name].dtype for example in examples}) > 1:
                examples = [{**example, name: as_floats(example[name], "A batch")} for example in examples]
    return default_collate(list(examples))


def batch_size(batch: Any) -> int:
    """Length of the first tensor in a batch of nested mappings and sequences; 0 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        return next((size for part in batch if (size := batch_size(part))), 0)
    return 0
