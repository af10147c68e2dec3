"""Settings of a model's own `sample`, such as a temperature, as options of the commands that draw pictures."""

from __future__ import annotations

import inspect
import json
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from torch import Tensor


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


def checked_settings(model: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings given, as the annotations of the model's `sample` have them, without those that change nothing.

    Settings are the keyword-only arguments but labels, the generator, and tensors, which nobody can type in.

    Args:
        model: Has `sample`; None where nothing is sampled.
        given: Values by name; strings are understood as on a command line.

    Raises:
        ArgumentError: If a name is unknown or a value of the wrong type.
    """
    if not given:
        return {}
    parser, defaults = ArgumentParser(exit_on_error=False), {}
    if model is not None:
        hints = get_type_hints(model.sample)
        arguments = inspect.signature(model.sample).parameters.values()
        defaults = {
            argument.name: argument.default
            for argument in arguments
            if argument.kind is argument.KEYWORD_ONLY
            and argument.name not in ("labels", "generator")
            and Tensor not in (hint := hints.get(argument.name), *get_args(hint))
        }
        others = {argument.name for argument in arguments} - defaults.keys()
        parser.add_method_arguments(type(model), "sample", skip=others, fail_untyped=False)
    for name in given:
        if name not in defaults:
            whose = f"{type(model).__name__}'s `sample` takes" if model else "a folder of pictures takes"
            raise ArgumentError(
                None, f"Unknown option --{name}: neither one of the command, nor a setting that {whose}"
                f"{', which are ' + ', '.join(defaults) if defaults else ''}."
            )  # fmt: skip
    settings = parser.parse_object(dict(given)).as_dict()
    return {name: settings[name] for name in given if settings[name] != defaults[name]}
