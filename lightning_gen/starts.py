"""Starts: networks that begin with the weights of another run, for new data, other classes or another resolution.

What fits by name and shape is taken. The rest keeps its first values, and is listed.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.hyperparameters import CLASS_KEY

WIDTH = 80  # of the report


@dataclass(frozen=True)
class Start:
    """What a model that began with the weights of another run has of them; it stands in its own checkpoints.

    Attributes:
        checkpoint: The file, as it was found.
        model: The name of the class that wrote it; empty where it does not say.
        steps: Of the other run.
        images_seen: By the other run.
        taken: Names of the tensors that are from it.
        left: Names of those that kept their first values.
        class_names: Of the other run's classes, by number, where it had names for them.
        report: All of this to be read, in lines of at most 80 characters where names are not longer.
    """

    checkpoint: str
    model: str
    steps: int
    images_seen: int
    taken: tuple[str, ...]
    left: tuple[str, ...]
    class_names: tuple[str, ...]
    report: str

    def __str__(self) -> str:
        return self.report

    def has(self, modules: Iterable[str]) -> bool:
        """Whether anything of these parts of the model is from it."""
        prefixes = tuple(f"{module}." for module in modules)
        return any(name.startswith(prefixes) for name in self.taken)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def of_plain(cls, saved: Any) -> Start | None:
        """Of what `plain` gave; None of None.

        Raises:
            CheckpointError: If it is something else.
        """
        if saved is None:
            return None
        kinds = {field.name: {"int": int, "str": str}.get(str(field.type), list) for field in dataclasses.fields(cls)}
        if not isinstance(saved, Mapping) or saved.keys() != kinds.keys():
            raise CheckpointError("started_from in the checkpoint is damaged.")
        for name, kind in kinds.items():
            if not isinstance(saved[name], kind) or (kind is list and not all(isinstance(v, str) for v in saved[name])):
                raise CheckpointError(f"{name} of started_from in the checkpoint is damaged.")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
        return cls(**values)


def networks_of(model: nn.Module) -> list[str]:
    """The parts of a model that it trains, by name: not those that are frozen, as another model within it."""

    def is_trained(part: nn.Module) -> bool:
        parameters = list(part.parameters())
        return any(parameter.requires_grad for parameter in parameters) if parameters else bool(part.state_dict())

    return [name for name, part in model.named_children() if is_trained(part)]


def fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the weights of another model those that fit, by name and shape.

    * They are of the networks that the model trains: parameters, and buffers that go with them, as running means.
      Numbers that the model itself holds are none.
    * Counts begin anew: batch norm's `num_batches_tracked`, and what a module names in `fresh_at_start`.
    * What spectral norm knows of a weight is taken with the weight only.
    * Of a network in which no matrix and no kernel fits nothing is taken: biases of one length say nothing.
    """
    taken = {
        name: weights[name]
        for name, tensor in _needed(model).items()
        if name in weights
        and weights[name].shape == tensor.shape
        and weights[name].is_floating_point() == tensor.is_floating_point()
    }
    for name in list(taken):
        layer, parametrized, _ = name.rpartition(_PARAMETRIZED)
        if parametrized and f"{layer}{parametrized}original" not in taken:
            del taken[name]
    found = {_network(name) for name, tensor in taken.items() if tensor.ndim > 1}
    return {name: tensor for name, tensor in taken.items() if _network(name) in found}


def start_of(model: nn.Module, taken: Collection[str], checkpoint: Mapping[str, Any], path: str) -> Start:
    """The record of a start.

    Args:
        model: That begins so.
        taken: Names of the tensors that it takes, those of `fitting`.
        checkpoint: What was read.
        path: Where.

    Raises:
        CheckpointError: If nothing is taken.
    """
    needed = {name: tensor for name, tensor in _needed(model).items() if not name.endswith(_VECTORS)}
    unknown = {name for name, _ in model.named_children()} - set(networks_of(model))
    fresh = _fresh(model)
    given = {
        name: tensor
        for name, tensor in checkpoint["state_dict"].items()
        if "." in name and _network(name) not in unknown and not name.endswith((*_VECTORS, *fresh))
    }
    class_path = checkpoint.get("hyper_parameters", {}).get(CLASS_KEY)
    name = class_path.rpartition(".")[2] if isinstance(class_path, str) else None
    if not taken:
        raise CheckpointError(_nothing(model, name, path, needed, given))
    steps, images = int(checkpoint.get("global_step", 0)), int(checkpoint.get("images_seen", 0))
    lines = [
        f"Started from {path},",
        f"weights of {name or 'a model'} after {steps:,} steps and {images:,} pictures.",
        "Optimizers, schedules and counts begin anew; --ckpt_path would go on with it.",
    ]
    for network in networks_of(model):
        tensors = [each for each in needed if _network(each) == network]
        number = sum(each in taken for each in tensors)
        share = "all" if number == len(tensors) else f"{number or 'none'} of"
        lines.append(f"  {network}: {share} {len(tensors)} tensors taken")
    left = [each for each in needed if each not in taken]
    sizes = {each: (_size(given[each]), _size(needed[each])) for each in left if each in given}
    for title, listed, known in (
        (
            "Not taken, for they are of another shape (given / needed):",
            {each: " / ".join(both) for each, both in sizes.items() if both[0] != both[1]},
            needed,
        ),
        ("Not in the checkpoint (needed):", {each: _size(needed[each]) for each in left if each not in given}, given),
        (
            "Only in the checkpoint (given):",
            {each: _size(t) for each, t in given.items() if each not in needed},
            needed,
        ),
    ):
        if listed:
            lines += [title, *_grouped(listed, {_network(each) for each in known})]
    names = checkpoint.get("class_names")
    classes = tuple(map(str, names)) if isinstance(names, list) else ()
    # Names are what a stranger wrote into the file.
    report = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    return Start(path, name or "", steps, images, tuple(taken), tuple(left), classes, report)


_PARAMETRIZED = ".parametrizations.weight."
_VECTORS = (f"{_PARAMETRIZED}0.u", f"{_PARAMETRIZED}0.v")  # of spectral norm, which nobody needs to read of


def _network(name: str) -> str:
    return name.partition(".")[0]


def _fresh(model: nn.Module) -> set[str]:
    """Ends of the names of what begins anew."""
    parts = model.named_modules()
    return {".num_batches_tracked"} | {
        f"{at}.{name}" for at, part in parts for name in getattr(part, "fresh_at_start", ())
    }


def _needed(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's networks, but for those that begin anew."""
    networks, fresh = set(networks_of(model)), tuple(_fresh(model))
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "." in name and _network(name) in networks and not name.endswith(fresh)
    }


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _grouped(listed: Mapping[str, str], known: set[str]) -> list[str]:
    """Lines of tensors: those of a layer together, and a network that the other side does not have at all as one."""
    whole: Counter[str] = Counter()
    groups: dict[str, list[str]] = {}
    for name, size in listed.items():
        if _network(name) not in known:
            whole[_network(name)] += 1
            continue
        # Up to the first number, which is that of a layer or a block: generator.layers.6.
        layer = re.match(r".*?\.\d+(?=\.)", name)
        name = name.replace(f"{_PARAMETRIZED}original", ".weight")
        group = layer[0] if layer else name.rpartition(".")[0]
        member = name[len(group) + 1 :]
        groups.setdefault(group, []).append(f"{member} {size}")
    lines = [f"  {network}: all {number} tensors" for network, number in whole.items()]
    for group, members in groups.items():
        # No-break spaces hold a name and its size together.
        words = f"{group}: {', '.join(member.replace(' ', chr(0xA0)) for member in members)}"
        wrapped = textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
        lines += [line.replace(chr(0xA0), " ") for line in wrapped]
    return lines


def _nothing(
    model: nn.Module, name: str | None, path: str, needed: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> str:
    """Words for two models that have nothing in common."""

    def parts(tensors: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(map(_network, tensors))) or "no network"

    words = (
        f"Nothing of {path} fits: it has weights of {name or 'a model that it does not name'} ({parts(given)}), and "
        f"this is {type(model).__name__} ({parts(needed)})."
    )
    first = next(
        (each for each, t in needed.items() if t.ndim > 1 and each in given and given[each].ndim == t.ndim), None
    )
    if first is None:
        return (
            f"{words} Their layers have other names: take a checkpoint of the same family of models, with the same "
            "classes of networks."
        )
    return (
        f"{words} Their networks are of different sizes, the first in {first}: {_size(given[first])} given, "
        f"{_size(needed[first])} needed. Build the networks as that run has them; its config.yaml says how."
    )
