"""What a command was given, looked at before PyTorch is imported, which takes seconds: what is missing or misspelt.

What cannot be told here, such as of a class of the user's, is left to the parser; what is refused here is refused in
the parser's own words, which `words` makes plain.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from lightning_gen.commands import help, signatures
from lightning_gen.commands.configs import find_config, shipped_configs
from lightning_gen.commands.nearest import near
from lightning_gen.commands.signatures import Definition
from lightning_gen.commands.words import kinds

_NO_CLASSES = ("none", "null", "true", "false")
_PACKAGES = ("models", "data", "networks", "layers", "losses", "callbacks", "extractors", "metrics", "schedules")


def check_what_is_given(arguments: Sequence[str]) -> None:
    """Refuse what can be refused at once.

    Raises:
        FileNotFoundError: If there is no configuration of a name.
        ArgumentError: If it is not said at all what is to be trained, and on what; or if there is no option or no class
            of a name that is given.
    """
    command, *rest = arguments
    if command in help.TRAINER or command in ("advise", "prepare"):
        for name in help.values_of(rest, "--config", "-c"):
            find_config(name)
    if command in help.TRAINER:
        _check_that_something_is_to_be_taken(command, rest)
    if "torch" not in sys.modules:  # else classes of the user's may be there, which the parser knows by short names
        with suppress(OSError, ValueError, SyntaxError):  # of a file that cannot be read
            _check_names(arguments)
        if command in help.FUNCTIONS:
            _check_that_nothing_is_missing(command, rest)


def _check_that_nothing_is_missing(command: str, given: Sequence[str]) -> None:
    named = {each.partition("=")[0].partition(".")[0] for each in given}
    required = [name for name, default in help.defaults(command).items() if default is None]
    missing = [name for name in required if f"--{name}" not in named]
    # A file may have them. Of `report` one has no option.
    if missing and "--config" not in named and command != "report":
        raise ArgumentError(None, f"the following arguments are required: {', '.join(missing)}")


def _check_that_something_is_to_be_taken(command: str, given: Sequence[str]) -> None:
    named = {each.partition("=")[0].partition(".")[0] for each in given}
    if named & {"--config", "-c", "--ckpt_path", "--print_config"}:
        return
    missing = [f"--{subject}" for subject in help.SUBJECTS if f"--{subject}" not in named]
    if command == "data":
        missing = [each for each in missing if each == "--data"]
    if len(missing) == len(help.SUBJECTS) or (command == "data" and missing):
        names = [each for each in shipped_configs() if "/" not in each]
        raise ArgumentError(
            None,
            f"{command} was not told what to take. Name a configuration, as lightning-gen {command} {names[1]}: a "
            f"file, or one of {', '.join(names)}, and those of papers, which lightning-gen --help lists. Or name a "
            "run: --ckpt_path RUN. Or a model and data: --model CLASS --data CLASS, which --model.help and "
            "--data.help list.",
        )
    if missing:
        kind = "models" if missing[0] == "--model" else "data modules"
        raise ArgumentError(
            None, f"{missing[0]} is missing. lightning-gen {command} {missing[0]}.help lists the {kind}."
        )


def _check_names(arguments: Sequence[str]) -> None:
    command, *rest = arguments
    given = {each.partition("=")[0].removeprefix("--") for each in rest}
    for place, argument in enumerate(rest):
        option, equals, value = argument.partition("=")
        if not re.fullmatch(r"--\w[\w.]*\+?", option):
            continue
        following = rest[place + 1 : place + 2] if not equals else []
        value = "".join(each for each in following if not each.startswith("-")) or value
        path = [part for part in option.removeprefix("--").rstrip("+").split(".") if part != "init_args"]
        if not _is_option(path, arguments) and not _may_be_of_the_model(path[0], given, command):
            raise ArgumentError(None, f"unrecognized arguments: {argument} {'' if equals else value}".strip())
        _check_class(path, value, arguments)
        _check_none(path, value, arguments)


def _is_option(path: list[str], arguments: Sequence[str]) -> bool:
    """Whether there is such an option; also where it cannot be told.

    Raises:
        ArgumentError: If a class that is named for an argument has no argument of such a name.
    """
    command, *rest = arguments
    first, *below = path
    if group := help.groups(command).get(first):
        return not below or below[0] in signatures.parameters(help.definition(group))
    if first not in _subjects(command):
        return first in help.BASIC or first in help.options([command])
    for place, name in enumerate(below):
        owner = _class_at(path[: place + 1], rest)
        if owner is None or name in ("help", "class_path", "dict_kwargs"):
            break
        if name not in signatures.parameters(owner):
            where = ".".join(path[: place + 1])
            raise ArgumentError(
                None, f"Parser key \"{where}\": Option '{name}' is not accepted, class_path='{owner.path}'"
            )
    return True


def _may_be_of_the_model(name: str, given: Collection[str], command: str) -> bool:
    """Whether an option that a command does not have may be a setting of sampling, which the model knows."""
    known = [] if command in help.TRAINER else help.options([command])
    return "sampling" in known and near(name, known, cutoff=0.8) in (None, *given)


def _check_class(path: list[str], value: str, arguments: Sequence[str]) -> None:
    """Refuse the short name of a class that there is not.

    Raises:
        ArgumentError: If it is none.
    """
    command, *rest = arguments
    where = ".".join(path)
    if not re.fullmatch(r"[A-Za-z]\w*", value) or value.lower() in _NO_CLASSES or Path(value).exists():
        return
    if where in _subjects(command):
        with suppress(ArgumentError):
            help.subject_class(where, value)
            return
        # What is said to `advise` may be a folder, though there is none of the name.
        unknown = command != "advise" or near(value, help.fitting(where, arguments), cutoff=0.75) is not None
    elif value[0].isupper() and path[0] in (*_subjects(command), "trainer") and len(path) > 1:
        owner = _class_at(path[:-1], rest)
        parameter = signatures.parameters(owner).get(path[-1]) if owner else None
        if parameter is None or re.search(r"\b(str|Literal|Path|Any)\b", parameter.annotation):
            return
        fitting = help.choices(parameter)
        ours = any(signatures.find(f"{signatures.PACKAGE}.{each}.{value}") for each in _PACKAGES)
        unknown = value not in fitting and not ours and near(value, fitting) is not None
    else:
        return
    if unknown:
        raise ArgumentError(None, f'Parser key "{where}": Expected a dot import path string: {value}')


def _check_none(path: list[str], value: str, arguments: Sequence[str]) -> None:
    """Refuse None where an argument of a model or data module takes none, which the parser lets through.

    Raises:
        ArgumentError: If it is given.
    """
    command, *rest = arguments
    owner = _class_at(path[:-1], rest) if len(path) > 1 and path[0] in _subjects(command) else None
    one = signatures.parameters(owner).get(path[-1]) if owner else None
    if (
        one
        and value in ("None", "null")
        and not re.search(r"\b(None|Optional|Any)\b", f"{one.annotation} {one.default}")
    ):
        where = ".".join(path)
        raise ArgumentError(None, f'Parser key "{where}": expected {kinds(one.annotation)}, got {value}.')


def _subjects(command: str) -> Sequence[str]:
    return tuple(help.SUBJECTS) if command in help.TRAINER else ("data",) if command in ("advise", "prepare") else ()


def _class_at(path: list[str], given: Sequence[str]) -> Definition | None:
    """The class of this package that an argument has; None for others."""
    with suppress(ArgumentError):  # one is misspelt
        found = help.class_at(path, given)
        return found if found and found.source.name.startswith(f"{signatures.PACKAGE}.") else None
    return None
