"""Numbers that a layer computes once from its arguments, such as masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def with_values() -> Iterator[None]:
    """Within it new tensors have values, also where a model is built on the meta device.

    What a checkpoint does not hold needs them there too, for such a model takes the checkpoint's tensors and is ready.
    """
    with torch.device("cpu" if torch.get_default_device().type == "meta" else torch.get_default_device()):
        yield
