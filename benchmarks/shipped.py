"""Shipped configurations without their data: the model as it would be trained, and a batch of the right kind."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import lightning_gen.data
import lightning_gen.losses
import lightning_gen.models  # noqa: F401  (so that short class names are known)
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
    made: GenerativeModule = _instance_of(GenerativeModule, model)
    return made


def image_shape(data: dict[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) of the pictures of the data in a configuration; folders' are in colour."""
    arguments = data.get("init_args", {})
    if data["class_path"] in SHAPES:
        return SHAPES[data["class_path"]]
    if "root" in arguments:
        size = arguments.get("crop") or arguments["image_size"]
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
