"""Constructor arguments as plain data, and back: what a checkpoint knows of the model that it is of.

`hyperparameters_of` names classes and functions by import path. `Recipe` reads such data from a file that may be a
stranger's. It refuses names that `lightning_gen.trust` does not let through, classes that are not of the type annotated
in the signature they stand under, and values of another type, before anything is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from typing_extensions import is_protocol

from lightning_gen.checkpoints import CheckpointError, first_line
from lightning_gen.outlines import outline
from lightning_gen.trust import UntrustedNameError, resolve

CLASS_KEY = "_class_path"
UNSAVED_KEY = "_not_saved"
WEIGHTS_KEY = "_weights"  # of a model inside another: their sha256
Made = TypeVar("Made")
MAX_PICTURE = 2**26
"""Numbers in a picture of a model that a file describes; `image_shape` given beside the file may be larger."""


# -- to plain data --------------------------------------------------------------------------------------------------


def hyperparameters_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments as plain data: classes, partials, losses and models become `{class_path, init_args}`.

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
        return {"class_path": import_path(value.func), "init_args": _as_plain(value.keywords)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return {"class_path": import_path(type(value)), "init_args": _as_plain(fields)}
    if inspect.isclass(value) or inspect.isfunction(value):
        return {"class_path": import_path(value)}
    if isinstance(value, pl.LightningModule):  # a model inside this one, whose weights are among this one's
        inner = hyperparameters_of(value.hparams)
        if UNSAVED_KEY not in inner:
            return {"class_path": import_path(type(value)), "init_args": inner}
    raise TypeError(f"{value!r} has no name to save.")


def import_path(thing: Any) -> str:
    """The name of a class or function, checked to lead back to it.

    Of this package and torch it is the public one, `lightning_gen.models.GAN`, which outlasts a move of the file that
    it is defined in. Others keep the name of their module, since that is what a user may have trusted.

    Raises:
        TypeError: If it does not, as for lambdas and local classes.
    """
    module, name = getattr(thing, "__module__", None) or "", getattr(thing, "__qualname__", "")
    parts = module.split(".")
    packages = [".".join(parts[:end]) for end in range(2, len(parts))] if parts[0] in ("lightning_gen", "torch") else []
    for path in (*packages, module):
        if getattr(sys.modules.get(path), name, None) is thing:
            return f"{path}.{name}"
    raise TypeError(f"{module}.{name} does not lead back to {thing!r}.")


# -- and back -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Call:
    """A class or function to call with keyword arguments; or, as a factory, to be called later."""

    target: Callable[..., Any]
    arguments: dict[str, Any]
    factory: bool
    capability: type | None = None  # a protocol that what is made must follow

    def make(self) -> Any:
        arguments = {name: _make(value) for name, value in self.arguments.items()}
        if not self.factory:
            made = self.target(**arguments)
            if self.capability and not isinstance(made, self.capability):
                name = self.capability.__name__
                raise CheckpointError(f"The checkpoint gives a {type(made).__name__}, which is no {name}.")
            return made
        return functools.partial(self.target, **arguments) if arguments else self.target


def _make(value: Any) -> Any:
    if isinstance(value, _Call):
        return value.make()
    if isinstance(value, list | tuple):
        return type(value)(_make(item) for item in value)
    if isinstance(value, dict):
        return {key: _make(item) for key, item in value.items()}
    return value


class Recipe:
    """How an object is constructed, read from plain data and checked against the signatures.

    Args:
        hyperparameters: Arguments as `hyperparameters_of` gives them, and the import path of the class.
        base: What the class must derive from.
        overrides: Arguments that replace saved ones, as Python objects; not checked.
        trust: Packages that may be named, beside those that always may. Where `base` is of another package than this
            one, so may be what has been imported of that.

    Raises:
        CheckpointError: If a name may not be named, a class is not what its place allows, a value is of another type,
            an argument is unknown or could not be saved, or a picture would be enormous.
    """

    def __init__(
        self,
        hyperparameters: Mapping[str, Any],
        base: type,
        overrides: Mapping[str, Any] | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        self.overrides = dict(overrides or {})
        class_path = hyperparameters[CLASS_KEY]
        unsaved = hyperparameters.get(UNSAVED_KEY, ())
        missing = [str(name) for name in unsaved if name not in self.overrides] if isinstance(unsaved, list) else []
        if missing:
            example = ", ".join(f"{name}=..." for name in missing)
            raise CheckpointError(
                f"The checkpoint could not name {', '.join(missing)} of {class_path} (it was a lambda or a local "
                f"class). Give it again: load_from_checkpoint(path, {example})."
            )
        self._trust = trust
        package = base.__module__.partition(".")[0]
        self._loaded = None if package == "lightning_gen" else package
        saved = {k: v for k, v in hyperparameters.items() if not str(k).startswith("_") and k not in self.overrides}
        call = {"class_path": class_path, "init_args": saved}
        self.targets: list[Callable[..., Any]] = []
        """What is called, all of it."""
        try:
            self._call = self._checked_call(call, base, factory=False, where="the model")
        except RecursionError as error:
            raise CheckpointError("The hyper-parameters of the checkpoint are nested too deeply.") from error
        for name in self.overrides:
            if not accepts(self._call.target, name):
                raise CheckpointError(f"{class_path} takes no argument {name!r}.")

    @property
    def is_of_this_package(self) -> bool:
        """Whether all that is called is defined here or in torch."""
        return not self.overrides and all(
            target.__module__.partition(".")[0] in ("lightning_gen", "torch") for target in self.targets
        )

    def build(self) -> Any:
        """Construct the object.

        Raises:
            CheckpointError: If its constructor refuses what the checkpoint gives it.
        """
        name = self._call.target.__name__
        try:
            return self._call.target(**_make(self._call.arguments), **self.overrides)
        except CheckpointError:
            raise
        except Exception as error:  # arguments of the right types can still raise anything at all
            raise CheckpointError(f"{name} cannot be built from its hyper-parameters: {first_line(error)}") from error

    def build_outline(self, num_weights: int) -> Any:
        """Construct the object without any weights: on the meta device, which costs no memory and draws no numbers.

        Args:
            num_weights: Of the checkpoint. What has far more parts than that is given up on the way.

        Raises:
            CheckpointError: As `build`, or if it is given up.
        """
        with outline(), _no_more_parts_than(1000 + 50 * num_weights):
            return self.build()

    # -- checks -----------------------------------------------------------------------------------------------------

    def _checked_call(self, value: Mapping[str, Any], base: type, *, factory: bool, where: str) -> _Call:
        class_path = value.get("class_path")
        try:
            target = resolve(class_path, self._trust, self._loaded, base)
        except UntrustedNameError as error:
            raise CheckpointError(f"{where}: {error}") from error
        function = not inspect.isclass(target)
        result = hints_of(target).get("return") if function else target
        capability = base if is_protocol(base) else None
        base = pl.LightningModule if capability else base
        if not (inspect.isclass(result) and issubclass(result, base)):
            raise CheckpointError(
                f"The checkpoint asks for {class_path!r} as {where}, which must be a {base.__name__}. "
                "It was refused, and nothing of it was called."
                + (" A function of your own needs a return annotation for this." if function else "")
            )
        given = value.get("init_args") or {}
        if not isinstance(given, Mapping):
            raise CheckpointError(f"The init_args of {where} must be a mapping, got {_shown(given)}.")
        given = getattr(target, "upgraded", dict)(given)  # where an earlier version of a model saved it
        self.targets.append(target)
        self._check_picture(given.get("image_shape"), where)
        hints = hints_of(target)
        arguments = {}
        for name, argument in given.items():
            if not accepts(target, name):
                raise CheckpointError(f"{class_path} takes no argument {name!r}, which the checkpoint gives it.")
            arguments[name] = self._checked(argument, hints.get(name, Any), f"{name} of {where}")
        return _Call(target, arguments, factory, capability)

    def _checked(self, value: Any, annotation: Any, where: str) -> Any:
        """`value` with every `class_path` in it resolved, checked against the annotation."""
        if isinstance(value, Mapping) and "class_path" in value:
            base, factory = _expected(annotation)
            if base is None:
                raise CheckpointError(
                    f"The checkpoint gives a class, {value['class_path']!r}, as {where}; none belongs there."
                )
            return self._checked_call(value, base, factory=factory, where=where)
        if isinstance(value, str):
            base, factory = _expected(annotation)
            # A factory named without arguments; where a plain string is allowed too, it stays one.
            plain = (option for option in _options(annotation) if option is str or typing.get_origin(option) is Literal)
            if factory and base is not None and not any(_fits(value, option) for option in plain):
                return self._checked_call({"class_path": value}, base, factory=True, where=where)
        if isinstance(value, Mapping):
            if kinds := [kind for kind in _options(annotation) if dataclasses.is_dataclass(kind)]:
                # Where nothing but a dataclass belongs, a configuration gives its fields alone.
                call = {"class_path": import_path(kinds[0]), "init_args": value}
                return self._checked_call(call, kinds[0], factory=False, where=where)  # type: ignore[arg-type]
            result: Any = {key: self._checked(item, Any, f"{key} of {where}") for key, item in value.items()}
        elif isinstance(value, list):
            options = [option for option in _options(annotation) if typing.get_origin(option) in _SEQUENCES]
            inner = next((typing.get_args(option) for option in options if typing.get_args(option)), (Any, ...))
            # An annotation for each entry, as in tuple[float, Schedule], or one for all, as in list[Penalty].
            annotations = inner if len(inner) == len(value) and ... not in inner else (inner[0],) * len(value)
            items = [
                self._checked(item, kind, f"an entry of {where}") for item, kind in zip(value, annotations, strict=True)
            ]
            result = tuple(items) if any(typing.get_origin(option) is tuple for option in options) else items
        else:
            result = value
        if not _fits(result, annotation):
            wanted = inspect.formatannotation(annotation).replace("NoneType", "None")
            raise CheckpointError(f"{where} must be {wanted}, but the checkpoint gives {_shown(value)}.")
        return result

    def _check_picture(self, shape: Any, where: str) -> None:
        if isinstance(shape, list) and all(isinstance(side, int) for side in shape) and math.prod(shape) > MAX_PICTURE:
            raise CheckpointError(
                f"image_shape of {where} is {shape}, which is more than {MAX_PICTURE} numbers in a picture. If that "
                "is meant, give it yourself: load_from_checkpoint(path, image_shape=...)."
            )


_SEQUENCES = (list, tuple, Sequence)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether plain data, or what was made of it, may stand under an annotation; of unusual ones this says yes."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(value, _Call) or annotation in (Any, object, inspect.Parameter.empty):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if annotation in (None, type(None)):
        return value is None
    if origin is Literal:
        return value in inner
    if annotation is float:
        return isinstance(value, int | float)
    if origin is tuple and isinstance(value, tuple) and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in _SEQUENCES:
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is Callable or annotation is Callable:
        return False
    kind = origin or annotation
    if not inspect.isclass(kind):
        return True
    return isinstance(value, str) if issubclass(kind, os.PathLike) else isinstance(value, kind)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _expected(annotation: Any) -> tuple[type | None, bool]:
    """The class that an annotation asks for, and whether it asks for a factory of it."""
    for option in _options(annotation):
        if option is Callable or option is typing.Callable or typing.get_origin(option) is Callable:
            result = typing.get_args(option)[-1] if typing.get_args(option) else None
            # Where the annotation does not say what it makes, nothing but a network is let through.
            return (result if inspect.isclass(result) else nn.Module, True)
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


def with_defaults(target: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as plain data, and the defaults of those that were not given; for words, not for a call."""
    functions = reversed(_signatures(target))
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    defaults = hyperparameters_of({p.name: p.default for p in parameters if p.default is not p.empty})
    return {name: _with_its_defaults(value) for name, value in {**dict.fromkeys(given), **defaults, **given}.items()}


def _with_its_defaults(value: Any) -> Any:
    """Plain data that may stand for a call of a class; one that has not been imported says nothing of its defaults."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    module, _, name = str(value["class_path"]).rpartition(".")
    target = getattr(sys.modules.get(module), name, None)
    given = value.get("init_args") or {}
    return {**value, "init_args": with_defaults(target, given) if inspect.isclass(target) else given}


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of what a class or function takes, and of what a function returns."""
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


def made_by(factory: Callable[..., Any], kind: type[Made], *args: Any, **kwargs: Any) -> Made:
    """What a factory makes.

    Raises:
        ValueError: If it is not of the kind that it should be, or was made already.
    """
    if isinstance(factory, kind):
        name = type(factory).__name__
        raise ValueError(
            f"A {name} was given that is made already, but each model makes its own. Give what makes it: the class "
            f"{name}, or functools.partial({name}, ...) where it has settings."
        )
    thing = factory(*args, **kwargs)
    if not isinstance(thing, kind):
        function = factory.func if isinstance(factory, functools.partial) else factory
        name = getattr(function, "__qualname__", type(function).__name__)
        raise ValueError(f"{name} was given as what makes a {kind.__name__}, but it made {_shown(thing)}.")
    return thing


@contextlib.contextmanager
def _no_more_parts_than(most: int) -> Iterator[None]:
    """Gives up constructing modules when they have so many parts and parameters."""
    count = 0

    def another(module: nn.Module, name: str, part: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise CheckpointError("The hyper-parameters describe a model of far more parts than the file has weights.")

    handles = [register(another) for register in (
        register_module_module_registration_hook, register_module_parameter_registration_hook
    )]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
