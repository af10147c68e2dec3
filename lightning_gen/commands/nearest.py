"""The known name that a misspelt one is nearest to."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is spelt most like another one, capitals aside; None if none is."""
    lower = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), list(lower), n=1, cutoff=cutoff)
    return lower[found[0]] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Such as " Did you mean CycleGAN?", with a space in front; empty where nothing is near."""
    found = near(name, known)
    return f" Did you mean {found}?" if found else ""
