"""Models without weights: what a checkpoint is compared with before its weights are taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_drawing = ContextVar("_drawing", default=False)


@contextmanager
def outline() -> Iterator[None]:
    """Within it a model is built on the meta device: it costs no memory and draws no numbers."""
    token = _drawing.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _drawing.reset(token)


def is_outline() -> bool:
    """Whether what is built now is an outline."""
    return _drawing.get()


@contextmanager
def with_values() -> Iterator[None]:
    """Within it tensors have values in an outline too.

    For what a layer computes once from its arguments, such as masks, and no checkpoint holds: where the model has taken
    the checkpoint's tensors, it must be there.
    """
    if not is_outline():
        yield
        return
    with torch.device("cpu"):
        yield
