"""The known name that a misspelt one is nearest to."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.02  # of likeness, within which none of two names is the nearer one


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is spelt most like another one, capitals aside; None if none is."""
    return next(iter(_most_alike(name, known, cutoff)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Such as " Did you mean CycleGAN?", with a space in front; empty where nothing is near."""
    found = _most_alike(name, known, cutoff=0.6)
    return f" Did you mean {' or '.join(found[:3])}?" if found else ""


def _most_alike(name: str, known: Iterable[str], cutoff: float) -> list[str]:
    """The known names that are most like another one, in their order, which are several only where they are as like."""
    likeness = {each: SequenceMatcher(None, each.lower(), name.lower()).ratio() for each in known}
    least = max(max(likeness.values(), default=0.0) - _ALIKE, cutoff)
    return [each for each, ratio in likeness.items() if ratio >= least]
