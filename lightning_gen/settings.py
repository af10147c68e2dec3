"""Settings of a model's own `sample`, such as a temperature, as plain data that was given by name."""

from __future__ import annotations

import inspect
from argparse import ArgumentError
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from torch import Tensor


def checked_settings(
    model: Any, given: Mapping[str, Any] | None, owner: str | None = None, method: str = "sample"
) -> dict[str, Any]:
    """The settings given, as the annotations of the model's method have them, without those that change nothing.

    Settings are the keyword-only arguments but labels, the generator, and tensors, which nobody can type in.

    Args:
        model: Has the method; None where nothing is sampled.
        given: Values by name; strings are understood as on a command line.
        owner: Who has them as its `sampling`, such as "GenerativeMetrics"; None for a command, whose options they are.
        method: Of the model, "sample" or another that takes settings.

    Raises:
        ArgumentError: If a name is unknown or a value of the wrong type.
    """
    if not given:
        return {}
    parser, defaults = ArgumentParser(exit_on_error=False), {}
    if (function := getattr(model, method, None)) is not None:
        hints, arguments = get_type_hints(function), inspect.signature(function).parameters.values()
        defaults = {
            argument.name: argument.default
            for argument in arguments
            if argument.kind is argument.KEYWORD_ONLY
            and argument.name not in ("labels", "generator", "seed")
            and Tensor not in (hint := hints.get(argument.name), *get_args(hint))
        }
        others = {argument.name for argument in arguments} - defaults.keys()
        parser.add_method_arguments(type(model), method, skip=others, fail_untyped=False)
    for name in given:
        if name not in defaults:
            what = f"{owner} has sampling {name}" if owner else f"Unknown option --{name}"
            command = "" if owner else "neither one of the command, nor "
            whose = f"{type(model).__name__}'s `{method}` takes" if model else "a folder of pictures takes"
            known = f", which are {', '.join(defaults)}" if defaults else ""
            raise ArgumentError(None, f"{what}: {command or 'not '}a setting that {whose}{known}.")
    settings = parser.parse_object(dict(given)).as_dict()
    return {name: settings[name] for name in given if settings[name] != defaults[name]}
