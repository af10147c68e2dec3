"""Where things are kept that were computed once: reference statistics, the weights of small extractors."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$LIGHTNING_GEN_CACHE`, or `lightning-gen` in the user's cache folder. It need not exist, and may be deleted."""
    chosen = os.environ.get("LIGHTNING_GEN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-gen"
