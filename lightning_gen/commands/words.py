"""What is wrong with the arguments of a command: the option, its value, what it takes, and what was probably meant.

The parser's own messages list, level by level, all that a value might have been.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import suppress

from lightning_gen.commands import help, signatures
from lightning_gen.commands.nearest import near, nearest

_UNION = "Does not validate against any of the Union subtypes"
_KEY = re.compile(r'Parser key "(.+?)":?\s*')
_WRAPPER = re.compile(rf"{_UNION}|Parser key |Problem with given class_path|Type .* expects a function or")
_ELSEWHERE = {
    "lr": "learning_rate", "epochs": "max_epochs", "steps": "max_steps", "gpus": "devices", "workers": "num_workers",
    "resume": "ckpt_path", "seed": "seed_everything", "out": "output", "n": "num_samples",
}  # fmt: skip
"""What options are called in other programs, and here."""
_TYPES = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "None",
    "tuple": "values as [a,b]", "list": "values as [a,b]", "dict": "names and values as {a: 1}",
}  # fmt: skip


def is_of_parser(error: BaseException) -> bool:
    """Whether an error is the parser's."""
    return isinstance(error, ArgumentError) or _UNION in str(error)


def words_of(error: BaseException, arguments: Sequence[str]) -> str:
    """The parser's error in plain words.

    Args:
        error: What the parser has raised.
        arguments: The command and all that was given to it.
    """
    chain = list(_causes(error))
    keys: list[str] = []
    for one in chain:
        if (key := _KEY.match(str(one))) and key[1] not in keys[-1:]:
            keys.append(key[1])
    path = ".".join(keys)
    unions = [one for one in chain if str(one).startswith(_UNION)]
    leaf = str(chain[-1]).strip()
    name = f"--{path}" if any(each.partition("=")[0] == f"--{path}" for each in arguments) else path
    wrong = re.search(r"Expected a dot import path string: (.*)", leaf)
    takes_numbers = bool(unions) and re.search(r"<class '(int|float|bool)'>", str(unions[-1])) is not None
    if wrong and (wrong[1][:1].isupper() or not takes_numbers):
        return f"{name}: there is no class {wrong[1]!r}.{_near_class(path, wrong[1], arguments)}"
    if wrong := re.search(r"Option '([\w.]+)' is not accepted", leaf):
        return f"{path}: Option '{wrong[1]}' is not accepted.{_near_option(path, wrong[1], chain, arguments)}"
    if wrong := re.search(r"does not accept option '([\w.]+)'", leaf):
        return leaf.rstrip(".") + "." + near_options(f"--{wrong[1]}", arguments)
    if wrong := re.match(r"unrecognized arguments: (.*)", leaf):
        options = [each for each in wrong[1].split() if each.startswith("-")]
        meant = "".join(near_options(each, arguments) for each in options[:3])
        if arguments[0] == "predict" and not meant:
            meant = " Settings of sampling are options of `sample`, `translate` and their like; predict has none."
        return leaf + "." + meant
    if wrong := re.match(r"Unknown option --([\w.]+):", leaf):
        return leaf + near_options(f"--{wrong[1]}", arguments)
    # Beside a type that does not fit stand the others that would; another error is what a constructor has raised.
    alone = not leaf.startswith("Expected a ") or not unions or chain.index(unions[-1]) < len(chain) - 2
    expected = leaf if alone else str(unions[-1])
    if union := re.search(r"Subtypes: \[(.*)\]\n[\s\S]*Given value: (.*)", expected):
        if re.fullmatch(r"[A-Z]\w+", union[2]) and help.fitting(path, arguments):
            return f"{name}: there is no class {union[2]!r}.{_near_class(path, union[2], arguments)}"
        return f"{name}: expected {kinds(union[1])}, got {union[2]}."
    if simple := re.match(r"Expected a (<class '[\w.]+'>)\. Got value: (.*)", expected):
        return f"{name}: expected {kinds(simple[1])}, got {simple[2]}."
    text = _KEY.sub("", expected.partition("\nGiven value")[0], count=1).strip()
    return f"{name}: {text}" if path else text


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error of the parser and what it is wrapped around, down to the one that says what is wrong."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ if _WRAPPER.match(str(one)) else None


def kinds(types: str) -> str:
    """Types as Python prints them, in words: "a whole number, a number or None"."""
    text = re.sub(r"<class '([\w.]+)'>", r"\1", types)
    parts = re.findall(r"[\w.]+(?:\[(?:[^\[\]]|\[[^\[\]]*\])*\])?", text)
    words: list[str] = []
    for part in parts:
        kind, _, inner = part.partition("[")
        name = kind.rpartition(".")[2]
        if name == "Literal":
            words += [each.strip().strip("'\"") for each in inner.rstrip("]").split(",")]
        elif name == "tuple" and inner:
            words.append(f"{inner.count(',') + 1} values as [{inner.replace(' ', '')}")
        else:
            words.append(_TYPES.get(name, re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", part)))
    words = list(dict.fromkeys(words))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def near_options(option: str, arguments: Sequence[str]) -> str:
    """What an unknown option probably means: one whose last part is the same, or one that is spelt nearly so."""
    known = help.options(arguments)
    given = option.partition("=")[0].removeprefix("--")
    name = _ELSEWHERE.get(given, given)
    last = name.rpartition(".")[2]
    same = [each for each in known if each.rpartition(".")[2] == last and each != given]
    if same:
        return f" Did you mean {' or '.join(f'--{each}' for each in same[:3])}?"
    lasts = {each.rpartition(".")[2]: each for each in reversed(known)}
    found = near(name, known, cutoff=0.75) or lasts.get(near(name, lasts, cutoff=0.75) or "")
    return f" Did you mean --{found}?" if found else ""


def _near_class(path: str, name: str, arguments: Sequence[str]) -> str:
    fitting = help.fitting(path, arguments)
    listed = f" There are {', '.join(fitting)}." if fitting else ""
    own = " A class of yours is given by its import path, as package.module.Class."
    return nearest(name, fitting) or listed + own


def _near_option(path: str, name: str, chain: Sequence[BaseException], arguments: Sequence[str]) -> str:
    """What an unknown argument of a class probably means: one of a class within it, or one that is spelt nearly so."""
    classes = re.findall(r"class_path[ =]'([\w.]+)'", " ".join(str(each) for each in chain))
    one = signatures.find(classes[-1]) if classes else None
    if one is None:
        return ""
    known = signatures.parameters(one)
    within = []
    for key in known if path and near(name, known, cutoff=0.8) is None else ():
        with suppress(ArgumentError):
            owner = help.class_at([*path.split("."), key], arguments[1:])
            within += [key] if owner and name in signatures.parameters(owner) else []
    if within:
        places = " or ".join(f"--{path}.{key}.{name}" for key in within)
        return f" It is a setting of its {' and its '.join(within)}: {places}"
    return nearest(name, known) or f" {one.name} takes {', '.join(known)}."
