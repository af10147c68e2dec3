"""A run's folder and what is kept in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gen.runs.logger import RunLogger

__all__ = ["RunLogger"]


def __getattr__(name: str) -> Any:
    """The logger, by the name that configurations have of it; pages need not wait for Lightning, which it needs."""
    if name != "RunLogger":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_gen.runs.logger import RunLogger

    return RunLogger
