"""Shipped configurations without their data: the model as it would be trained, and a batch of the right kind.

A network says in `small` which sizes make the smallest of its kind. Whole models are made of such ones here.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import lightning_gen.data
import lightning_gen.losses
import lightning_gen.models
import lightning_gen.networks
from lightning_gen.commands.configs import find_config
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import levels_to_images
from lightning_gen.models.translation import TranslationModule

SHAPES = {"MNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}  # of data that is not built in
NUM_CLASSES = 10
Batch = dict[str, Tensor]


def settings_of(name: str) -> dict[str, Any]:
    """The content of a shipped configuration."""
    with open(find_config(name)) as file:  # noqa: PTH123
        settings: dict[str, Any] = yaml.safe_load(file)
    return settings


def model_of(settings: dict[str, Any], **changes: Any) -> GenerativeModule:
    """The model of a configuration, for pictures of the shape that its data has.

    Args:
        settings: As `settings_of` gives them; left as they are.
        changes: Arguments of the model that are to be others.
    """
    model = deepcopy(settings["model"])
    arguments = model.setdefault("init_args", {})
    # Critic updates before the first steps would be all that is seen of a short run.
    arguments |= {"warmup_critic_updates": None} if "warmup_critic_updates" in arguments else {}
    arguments |= {"image_shape": image_shape(settings["data"]), **changes}
    if str(first := arguments.get("first_stage", "")).endswith(".yaml"):  # which `fit` would train
        stage = settings_of(first.removesuffix(".yaml"))
        arguments["first_stage"] = model_of(stage, image_shape=arguments["image_shape"])
    made: GenerativeModule = _instance_of(GenerativeModule, model)
    return made


def small(network: Any, **arguments: Any) -> partial[Any]:
    """Makes the smallest network of its kind."""
    return partial(network, **network.small | arguments)


def small_model(model: Any, image_shape: tuple[int, int, int], **arguments: Any) -> partial[Any]:
    """Makes a model of small networks, where its own defaults are networks and `arguments` do not name others."""
    return partial(model, image_shape, **{name: small(each) for name, each in _networks(model)} | arguments)


def shrunk(settings: Any) -> Any:
    """A configuration, or a part of one, with every network at its smallest, those by default too."""
    if isinstance(settings, list):
        return [shrunk(item) for item in settings]
    if not isinstance(settings, dict):
        return settings
    settings = dict(settings)
    cls = settings.get("class_path", "")
    if model := getattr(lightning_gen.models, cls, None):
        defaults = {name: {"class_path": each.__name__} for name, each in _networks(model)}
        settings["init_args"] = defaults | settings.get("init_args", {})
    if sizes := getattr(getattr(lightning_gen.networks, cls, None), "small", {}):
        settings["init_args"] = settings.get("init_args", {}) | sizes
    return {name: shrunk(value) for name, value in settings.items()}


def _networks(model: type) -> list[tuple[str, Any]]:
    """The arguments of a model by default networks, and which."""
    parameters = inspect.signature(model).parameters.values()
    return [(each.name, each.default) for each in parameters if hasattr(each.default, "small")]


def image_shape(data: dict[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) of the pictures of the data in a configuration; folders' are in colour."""
    arguments = data.get("init_args", {})
    if data["class_path"] == "Codes":
        return image_shape(arguments["data"])
    if data["class_path"] in SHAPES:
        return SHAPES[data["class_path"]]
    if "root" in arguments:
        size = arguments["image_size"] if "image_size" in arguments else arguments["crop"]
        return 3, size, size
    shape: tuple[int, int, int] = _instance_of(pl.LightningDataModule, data).image_shape
    return shape


def _instance_of(base: type, settings: dict[str, Any]) -> Any:
    """What `{class_path, init_args}` describe, short names included."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "it")
    return parser.instantiate(parser.parse_object({"it": settings})).it


def batch_of(model: GenerativeModule, size: int) -> Batch:
    """Random pictures on the model's levels, with labels, or of two domains, from the global random state."""
    levels = getattr(model, "num_levels", None) or 256

    def images() -> Tensor:
        if model.image_shape[1:] == (1, 1):  # points
            return torch.randn(size, *model.image_shape)
        return levels_to_images(torch.randint(levels, (size, *model.image_shape)), levels)

    if isinstance(model, TranslationModule):
        return {"A": images(), "B": images()}
    return {"image": images(), "label": torch.randint(model.num_classes or NUM_CLASSES, (size,))}


class _Again(IterableDataset[Batch]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Any:
        while True:
            yield self.batch


def endless(batch: Batch, device: torch.device) -> DataLoader[Batch]:
    """A loader that gives the same batch again and again, from memory that a copy to the device need not wait for."""
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return DataLoader(_Again(batch), batch_size=None)
