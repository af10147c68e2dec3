"""A model as an argument of another one: the command line takes the path of its checkpoint."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import is_protocol

from lightning_gen import capabilities
from lightning_gen.generative import GenerativeModule, load_model
from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hints_of
from lightning_gen.runs.folder import find_checkpoint


class Parser(LightningArgumentParser):
    """Lightning's, which takes a path where a model's constructor asks for another model."""

    def add_class_arguments(self, theclass: type, *args: Any, skip: Any = None, **kwargs: Any) -> list[str]:
        """Arguments of a class."""
        paths = models_asked_for_by(theclass)
        added = super().add_class_arguments(theclass, *args, skip={*(skip or ()), *paths}, **kwargs)
        for name in paths:
            default = inspect.signature(theclass).parameters[name].default
            words = "Checkpoint of a model: a file, or RUN/best; or a configuration, NAME.yaml, to be trained first."
            given: dict[str, Any] = {"required": True} if default is inspect.Parameter.empty else {"default": default}
            # A function for a type, as what stands here later is no string; and the parser shall not read the file.
            self.add_argument(f"--{name}", type=_path, sub_configs=False, help=words, **given)
        return added


def models_asked_for_by(target: Any) -> dict[str, tuple[type, ...]]:
    """The arguments of a model that are models, and what each must be: of a class, or able to do something."""
    if not (inspect.isclass(target) and issubclass(target, GenerativeModule)):
        return {}
    kinds = {
        name: tuple(kind for kind in (typing.get_args(annotation) or (annotation,)) if _is_of_models(kind))
        for name, annotation in hints_of(target).items()
        if name in inspect.signature(target).parameters
    }
    return {name: found for name, found in kinds.items() if found}


def _path(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"Expected the path of a checkpoint, got {value!r}.")
    return value


def _is_of_models(kind: Any) -> bool:
    if not inspect.isclass(kind):
        return False
    can = any(is_protocol(base) and base.__module__ == capabilities.__name__ for base in kind.__mro__)
    return issubclass(kind, GenerativeModule) or (is_protocol(kind) and can)


def load_inner_models(model: Namespace, checkpoint: Mapping[str, Any] | None) -> None:
    """Let models stand where their paths do in the outer one's arguments, which are changed in place.

    A checkpoint that the outer one takes its weights from has those of the inner ones too: their files are not needed.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        CheckpointError: If one cannot be used.
        ValueError: If a model cannot do what it is there for.
    """
    path, _, name = str(model.class_path).rpartition(".")
    arguments, saved = model.get("init_args"), (checkpoint or {}).get("hyper_parameters", {})
    for argument, kinds in models_asked_for_by(getattr(sys.modules.get(path), name, None)).items():
        inner = saved.get(argument)
        if isinstance(inner, Mapping) and "class_path" in inner:
            described = {CLASS_KEY: inner["class_path"], **inner.get("init_args", {})}
            arguments[argument] = Recipe(described, GenerativeModule).build()
        elif arguments[argument] is not None:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            arguments[argument] = load_model(arguments[argument], kinds, f"cannot be {argument}, a {wanted}")


def find_checkpoint_of(data: Namespace) -> None:
    """Let a file stand where data of a model's codes names its checkpoint, as RUN or RUN/best; changed in place.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
    """
    arguments = data.get("init_args") or Namespace()
    if isinstance(arguments.get("data"), Namespace) and arguments.get("checkpoint"):
        arguments.checkpoint = str(find_checkpoint(arguments.checkpoint))
