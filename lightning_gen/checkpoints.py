"""Checkpoints that are enough, and that a stranger may send: plain data in, typed classes out.

A checkpoint names its model and every factory among the hyper-parameters by import path. `hyperparameters_of` writes
such names, `build` reads them, and refuses each class that is not of the type annotated in the signature it stands
under, before anything is called. Files are read with `weights_only=True` and written to a temporary name first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import pickle
import types
import typing
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_gen.files import opened_atomically
from lightning_gen.limits import LimitError, load_tensors

CLASS_KEY = "_class_path"
UNSAVED_KEY = "_not_saved"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why and what would help."""


# -- reading and writing files ------------------------------------------------------------------------------------


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint file, tensors and plain data only.

    Raises:
        CheckpointError: If the file is missing, cut short, not a checkpoint, larger in memory than on the disk, or
            holds pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        checkpoint = load_tensors(path, map_location)
    except LimitError as error:
        raise CheckpointError(str(error)) from error
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise CheckpointError(f"{path} is cut short or not a checkpoint ({_first_line(error)}).") from error
        raise CheckpointError(
            f"{path} is not a checkpoint of plain data and was refused: loading it could run code of its own. "
            f"({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is cut short or not a checkpoint ({_first_line(error)}).") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} holds no 'state_dict': it is not a checkpoint of a Lightning run.")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside what stands there and renames, so that a kill or a full disk costs no earlier checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, or leave what stood there.

        Raises:
            OSError: If it cannot be written; the message says that the last checkpoint stays.
        """
        target = Path(path)
        try:
            with opened_atomically(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # PyTorch says "unexpected pos" where a write has failed; behind it stands what the system said.
            failure = error if isinstance(error, OSError) else error.__context__
            if not isinstance(failure, OSError):
                raise
            raise OSError(
                failure.errno,
                f"The checkpoint {target} could not be written: {failure.strerror or failure}. "
                "The checkpoints saved before it are untouched",
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


# -- hyper-parameters as plain data ---------------------------------------------------------------------------------


def hyperparameters_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments as plain data: classes, partials and losses become `{class_path, init_args}`.

    What has no import path (a lambda, a class made inside a function) is left out and listed under `_not_saved`.
    """
    plain: dict[str, Any] = {}
    unsaved = list(arguments.get(UNSAVED_KEY, ()))
    for name, value in arguments.items():
        if name.startswith("_"):
            continue
        try:
            plain[name] = _as_plain(value)
        except TypeError:
            unsaved.append(name)
    if unsaved:
        plain[UNSAVED_KEY] = list(dict.fromkeys(unsaved))
    return plain


def _as_plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_as_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _as_plain(item) for key, item in value.items()}
    if isinstance(value, functools.partial) and not value.args:
        return {
            "class_path": import_path(value.func),
            "init_args": {k: _as_plain(v) for k, v in value.keywords.items()},
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _as_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init
        }
        return {"class_path": import_path(type(value)), "init_args": fields}
    if inspect.isclass(value) or inspect.isfunction(value):
        return {"class_path": import_path(value)}
    raise TypeError(f"{value!r} has no name to save.")


def import_path(thing: Any) -> str:
    """`module.name` of a class or function, checked to lead back to it.

    Raises:
        TypeError: If it does not, as for lambdas and local classes.
    """
    path = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    try:
        found = resolve(path)
    except CheckpointError as error:
        raise TypeError(str(error)) from error
    if found is not thing:
        raise TypeError(f"{path} does not lead back to {thing!r}.")
    return path


def resolve(path: Any) -> Any:
    """The object that an import path names.

    Raises:
        CheckpointError: If it names nothing.
    """
    if isinstance(path, str) and all(part.isidentifier() for part in path.split(".")) and "." in path:
        module, _, name = path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            pass
    raise CheckpointError(f"{path!r} names nothing that can be imported here.")


# -- and back -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Call:
    """A class or function to call with keyword arguments; or, as a factory, to be called later."""

    target: Callable[..., Any]
    arguments: dict[str, Any]
    factory: bool

    def make(self) -> Any:
        arguments = {name: _make(value) for name, value in self.arguments.items()}
        if not self.factory:
            return self.target(**arguments)
        return functools.partial(self.target, **arguments) if arguments else self.target


def build(class_path: Any, arguments: Mapping[str, Any], base: type, overrides: Mapping[str, Any] | None = None) -> Any:
    """Construct an object from plain data, checking every class in it against the signatures first.

    Args:
        class_path: Import path of the class.
        arguments: Its constructor arguments, as `hyperparameters_of` gives them.
        base: What the class must derive from.
        overrides: Arguments that replace saved ones, as Python objects; not checked.

    Raises:
        CheckpointError: If a class is not what its place allows, an argument is unknown, or one is missing.
    """
    overrides = dict(overrides or {})
    saved = {k: v for k, v in arguments.items() if not k.startswith("_") and k not in overrides}
    missing = [name for name in arguments.get(UNSAVED_KEY, ()) if name not in overrides]
    if missing:
        example = ", ".join(f"{name}=..." for name in missing)
        raise CheckpointError(
            f"The checkpoint could not name {', '.join(missing)} of {class_path} (it was a lambda or a local class). "
            f"Give it again: load_from_checkpoint(path, {example})."
        )
    call = _checked_call({"class_path": class_path, "init_args": saved}, base, factory=False, where="the model")
    for name in overrides:
        if not accepts(call.target, name):
            raise CheckpointError(f"{class_path} takes no argument {name!r}.")
    return call.target(**_make(call.arguments), **overrides)


def _make(value: Any) -> Any:
    if isinstance(value, _Call):
        return value.make()
    if isinstance(value, list):
        return [_make(item) for item in value]
    if isinstance(value, dict):
        return {key: _make(item) for key, item in value.items()}
    return value


def _checked_call(value: Mapping[str, Any], base: type, *, factory: bool, where: str) -> _Call:
    target = resolve(value.get("class_path"))
    result = target if inspect.isclass(target) else _hints(target).get("return") if inspect.isfunction(target) else None
    if not (inspect.isclass(result) and issubclass(result, base)):
        raise CheckpointError(
            f"The checkpoint asks for {value.get('class_path')!r} as {where}, which must be a {base.__name__}. "
            "It was refused, and nothing of it was called."
            + (" A function of your own needs a return annotation for this." if inspect.isfunction(target) else "")
        )
    hints = _hints(target)
    arguments = {}
    for name, argument in value.get("init_args", {}).items():
        if not accepts(target, name):
            raise CheckpointError(
                f"{value.get('class_path')} takes no argument {name!r}, which the checkpoint gives it."
            )
        arguments[name] = _checked(argument, hints.get(name, Any), f"{name} of {where}")
    return _Call(target, arguments, factory)


def _checked(value: Any, annotation: Any, where: str) -> Any:
    """`value` with every `class_path` in it resolved and checked against the annotation."""
    if isinstance(value, Mapping) and "class_path" in value:
        base, factory = _expected(annotation)
        if base is None:
            raise CheckpointError(
                f"The checkpoint gives a class, {value['class_path']!r}, as {where}; none belongs there."
            )
        return _checked_call(value, base, factory=factory, where=where)
    if isinstance(value, str):
        base, factory = _expected(annotation)
        # A factory named without arguments; where a plain string is allowed too, it stays one.
        if factory and base is not None and str not in _options(annotation):
            return _checked_call({"class_path": value}, base, factory=True, where=where)
        return value
    if isinstance(value, Mapping):
        return {key: _checked(item, Any, f"{key} of {where}") for key, item in value.items()}
    if isinstance(value, list):
        options = [option for option in _options(annotation) if typing.get_origin(option) in (list, tuple)]
        inner = next((typing.get_args(option)[0] for option in options if typing.get_args(option)), Any)
        items = [_checked(item, inner, f"an entry of {where}") for item in value]
        return tuple(items) if any(typing.get_origin(option) is tuple for option in options) else items
    return value


def _expected(annotation: Any) -> tuple[type | None, bool]:
    """The class that an annotation asks for, and whether it asks for a factory of it."""
    for option in _options(annotation):
        if option is Callable or option is typing.Callable or typing.get_origin(option) is Callable:
            result = typing.get_args(option)[-1] if typing.get_args(option) else None
            # Where the annotation does not say what it makes, nothing but a network is let through.
            return (result if inspect.isclass(result) else torch.nn.Module, True)
    for option in _options(annotation):
        if inspect.isclass(option) and option not in (str, int, float, bool, dict, list, tuple, type(None), object):
            return option, False
    return None, False


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def accepts(target: Callable[..., Any], name: str) -> bool:
    """Whether a class or function takes an argument of this name; what it takes as `**kwargs`, its bases may name."""
    for function in _signatures(target):
        parameters = inspect.signature(function).parameters
        if name in parameters:
            return True
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return bool(_signatures(target))


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for function in reversed(_signatures(target)):
        with contextlib.suppress(NameError, TypeError):
            hints |= typing.get_type_hints(function)
    return hints


def _signatures(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    """What an argument may belong to: a function, or the constructors of a class and of its bases but `object`."""
    if inspect.isclass(target):
        return [vars(cls)["__init__"] for cls in target.__mro__[:-1] if "__init__" in vars(cls)]
    return [target]
