"""Whose code a file may name: that of this package and of PyTorch's layers, and of packages that the user trusts.

A checkpoint, and a configuration that nobody named on the command line, may be a stranger's. To import what such a file
names runs code already, so a name is looked at before anything is imported, and what it leads to is looked at again,
for where it is defined counts and not where it can also be found.

* A checkpoint may name classes defined in torch.nn, torch.optim and the models, networks, layers, losses, schedules and
  tokenizers here, and functions defined in the latter; and the extractors here that a perceptual loss can be of.
* A configuration may name what is defined in torch.nn, torch.optim, this package (but its commands), and the callbacks,
  loggers, strategies and the like of Lightning; a function only where what it returns is annotated.
* Both may name what is defined in packages that the user trusts.

A package is trusted by `--trust NAME` on the command line, by `trust=("NAME",)` of `load_from_checkpoint`, or by the
environment variable LIGHTNING_GEN_TRUST=NAME,NAME. A name may also be that of a module or of one class.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

ENVIRONMENT = "LIGHTNING_GEN_TRUST"

_OWN_PARTS = tuple(f"lightning_gen.{part}" for part in ("models", "networks", "layers", "losses", "schedules", "text"))
# Of perceptual losses. ModuleFeatures is not among them, for it takes a file that is a program.
_READERS = ("FeatureDistance", "SceneFeatures", "ClassifierFeatures", "InceptionFeatures")
_ASK_FOR_READERS = ("lightning_gen.losses.perceptual", "lightning_gen.extractors")
_TORCH = ("torch.nn", "torch.optim")
_PARTS = ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
_LIGHTNING = ("lightning.fabric.plugins", *(f"lightning.pytorch.{part}" for part in _PARTS))
_ROOMS = (
    "models", "networks", "layers", "losses", "data", "callbacks", "extractors", "metrics", "evaluation", "runs"
)  # fmt: skip
_NEVER = ("lightning_gen.__main__", "lightning_gen.cli", "lightning_gen.commands")  # they do things
_named: list[str] | None = None  # arguments of the command line, where a configuration may be a stranger's


class UntrustedNameError(ValueError):
    """A file names what it may not; the message says how it may."""


def trusted() -> tuple[str, ...]:
    """What the user trusts in this process.

    Raises:
        ValueError: If the environment variable names what cannot be imported.
    """
    names = tuple(name.strip() for name in os.environ.get(ENVIRONMENT, "").split(",") if name.strip())
    return _checked(names)


def trust(names: Iterable[str]) -> None:
    """Trust packages in this process and in those that it starts.

    Raises:
        ValueError: If a name is none of a package.
    """
    os.environ[ENVIRONMENT] = ",".join(dict.fromkeys((*trusted(), *_checked(tuple(names)))))


def public_name(path: str) -> str:
    """Where to find what a file of this or an earlier version names in this package: `lightning_gen.models.GAN`.

    Files move, and a class keeps its name. It is looked for in the package that the path begins with, then in the
    others. What is public in none, and what is of another package, keeps its path.
    """
    parts = path.split(".")
    if len(parts) > 2 and parts[0] == "lightning_gen" and parts[1] in _ROOMS:
        for room in dict.fromkeys((parts[1], *_ROOMS)):
            if parts[-1] in getattr(importlib.import_module(f"lightning_gen.{room}"), "__all__", ()):
                return f"lightning_gen.{room}.{parts[-1]}"
    return path


def resolve(path: Any, trust: Sequence[str] = (), loaded: str | None = None, base: type | None = None) -> Any:
    """The class or function that a checkpoint names.

    Args:
        path: Its import path.
        trust: Packages that are trusted beside those of the process.
        loaded: A package of which those modules are trusted that have been imported already.
        base: What is asked for there. Extractors, which may train or read files when they are made, are let through
            where a perceptual loss or its extractor is.

    Raises:
        UntrustedNameError: If it is not what a checkpoint may name, or names nothing.
    """
    if not isinstance(path, str) or not _is_path(path):
        raise UntrustedNameError(f"{path!r} names nothing that can be imported here.")
    packages = (*trusted(), *_checked(tuple(trust)))
    path = public_name(path)
    module, _, name = path.rpartition(".")
    here = (loaded,) if loaded and _is_under(path, (loaded,)) and module in sys.modules else ()
    asked_for = base is not None and _is_under(f"{base.__module__}.{base.__qualname__}", _ASK_FOR_READERS)
    readers = tuple(f"lightning_gen.extractors.{name}" for name in _READERS) if asked_for else ()
    allowed = (*_OWN_PARTS, *readers, *_TORCH, *packages, *here)
    _refuse_unless(_is_under(path, allowed) and not _is_excluded(path, packages), path)
    try:
        thing = getattr(sys.modules[module] if here else importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UntrustedNameError(f"{path!r} names nothing that can be imported here.") from error
    defined = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    if inspect.isclass(thing):
        defined = defined if here else public_name(defined)
        _refuse_unless(_is_under(defined, allowed) and not _is_excluded(defined, packages), path, defined)
    else:
        allowed = tuple(name for name in allowed if name not in _TORCH or name in packages)
        _refuse_unless(inspect.isroutine(thing) and _is_under(defined, allowed), path, defined)
    return thing


def restrict_configurations(named: Sequence[str]) -> None:
    """From here on, let configurations and options name nothing but what a stranger's configuration may.

    Args:
        named: Arguments of the command line; a class that they name is let through.
    """
    global _named
    _named = list(named)
    own = {path for argument in named for path in _paths_in(argument)}
    allowed = {"lightning_gen", *_TORCH, *_LIGHTNING, *trusted(), *own} - {"jsonargparse"}
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*", *_NEVER],
        import_path_allowlist=sorted(path for path in allowed if not path.startswith("jsonargparse.")),
    )


def check_program(path: str | os.PathLike[str]) -> None:
    """Refuse a file of TorchScript, whose operators can write files, that a stranger's configuration may name.

    Raises:
        UntrustedNameError: If configurations are restricted, and no argument of the command line names the file.
    """
    if _named is not None and not any(os.fspath(path) in argument for argument in _named):
        raise UntrustedNameError(
            f"The configuration of the run names {path}, and was refused: TorchScript is a program. If you know where "
            "the run is from, name its configuration, --config RUN/config.yaml, or the file itself."
        )


def options_for(configuration: Path) -> str:
    """The options, if any, without which a command refuses to go by a run's configuration: " --trust mypackage"."""
    text = configuration.read_text(encoding="utf-8", errors="replace") if configuration.is_file() else ""
    roots = [path.partition(".")[0] for path in re.findall(r"class_path: ([A-Za-z_]\w*(?:\.\w+)+)", text)]
    foreign = dict.fromkeys(root for root in roots if root not in ("lightning_gen", "lightning", "torch"))
    return "".join(f" --trust {root}" for root in foreign)


def words_of_refusal(path: str, defined: str | None = None, file: str = "The file") -> str:
    """What a user is told of a name that was not let through."""
    also = f", which is {defined}," if defined and defined != path else ""
    package = (defined or path).partition(".")[0]
    if package in ("lightning_gen", "torch", "lightning"):
        package = defined or path
    refusal = (
        f"{file} names {path}{also} and was refused: nothing of it was imported or called, for it could run code of "
        "its own."
    )
    if package in sys.stdlib_module_names:
        return refusal
    return (
        f"{refusal} If you know where it is from, let it in: --trust {package} on the command line, "
        f'trust=("{package}",) in Python, or {ENVIRONMENT}={package}.'
    )


def _refuse_unless(allowed: bool, path: str, defined: str | None = None) -> None:
    if not allowed:
        raise UntrustedNameError(words_of_refusal(path, defined))


def _is_under(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _is_excluded(path: str, packages: Sequence[str]) -> bool:
    """Whether it is of what is never let through, unless it was trusted as such."""
    return _is_under(path, (name for name in _NEVER if not _is_under(name, packages)))


def _is_path(path: str) -> bool:
    parts = path.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts) and "__main__" not in parts[1:]


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"Trust is given to packages by name, such as mypackage; got {name!r}.")
    return names


def _paths_in(argument: str) -> list[str]:
    """The import paths that an argument of the command line names."""
    value = argument.partition("=")[2] if argument.startswith("--") else argument
    if value.lstrip().startswith(("{", "[")):
        return re.findall(r"""class_path["']?\s*:\s*["']?([A-Za-z_]\w*(?:\.\w+)+)""", value)
    return [value] if _is_path(value) else []
