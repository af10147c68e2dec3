"""What pages share: their templates, in which all that a run's files say is escaped, and how numbers are written."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from lightning_gen import __version__
from lightning_gen.runs.history import strict_json

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def template(name: str) -> Template:
    """A template of this package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # which commands without a page need not wait for

    # What a run's files say may be anybody's words: all of it is escaped.
    loader = PackageLoader("lightning_gen.runs", "")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"thousands": thousands, "duration": duration}
    pages.globals["version"] = __version__
    pages.policies |= {"json.dumps_function": strict_json, "json.dumps_kwargs": {}}
    return pages.get_template(name)


def thousands(value: float) -> str:
    """With thin spaces: 12 345."""
    return f"{value:,.0f}".replace(",", "\u2009") if math.isfinite(value) else str(value)


def duration(seconds: float) -> str:
    """In the unit that suits."""
    minutes, hours, days = round(seconds / 60), round(seconds / 3600), seconds / 86400
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{days:.1f} days"


def size(number: float) -> str:
    """Of a file: 3.4 MB."""
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"
