"""Settings of a model's own `sample`, such as a temperature, as options of the commands that draw pictures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any


def with_sampling(function: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """Arguments of a command in which all options that it does not have itself are one, `--sampling`.

    What of it the model takes is known when the model is: see `checked_settings`.
    """
    known = {*inspect.signature(function).parameters, "help", "config", "print_config"}
    kept: list[str] = []
    settings: dict[str, Any] = {}
    following = ""  # an option of the model's that has no value yet
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name.partition(".")[0].rstrip("+") not in known:
            settings[name] = value if equals else "true"
            following = "" if equals else name
        elif following and not argument.startswith("--"):
            settings[following], following = argument, ""
        else:
            kept.append(argument)
            following = ""
    return [*kept, f"--sampling={json.dumps(settings)}"] if settings else kept
