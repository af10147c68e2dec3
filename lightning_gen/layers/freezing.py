"""The first layers of a network, which may keep their weights while the others learn (Freeze-D, 2002.10964)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

Layers = list[list[nn.Module]]
"""From the input on: each layer as the modules that belong to it."""


def layers_in_order(network: nn.Module) -> Layers:
    """The layers of a network, from its input on.

    It says them itself by a method `layers_in_order`, or all of it that learns is in one `nn.Sequential`: see
    `layers_of`.

    Raises:
        ValueError: If neither is so.
    """
    own: Callable[[], Layers] | None = getattr(network, "layers_in_order", None)
    if own is not None:
        return own()
    number = len(list(network.parameters()))
    for stack in (network, *network.children()):
        if isinstance(stack, nn.Sequential) and len(list(stack.parameters())) == number:
            return layers_of(stack)
    parts = ", ".join(name for name, _ in network.named_children()) or "no parts"
    raise ValueError(
        f"In which order the layers of {type(network).__name__} come is unknown, for they are not all in one "
        f"nn.Sequential; it has {parts}. Give it a method layers_in_order() whose result is a list of layers, from the "
        "picture on, each a list of the modules that belong to it."
    )


def layers_of(stack: nn.Sequential) -> Layers:
    """The layers of a sequence: each module with a kernel or a matrix, and what comes after it and has none."""
    layers: Layers = []
    for module in stack:
        if not layers or any(parameter.ndim > 1 for parameter in module.parameters()):
            layers.append([])
        layers[-1].append(module)
    if len(layers) > 1 and not any(True for module in layers[0] for _ in module.parameters()):
        layers[:2] = [layers[0] + layers[1]]  # dropout or reshaping before the first
    return layers


def freeze_first(network: nn.Module, number: int) -> None:
    """Let the first so many layers of a network learn nothing: their parameters need no gradient from here on.

    Raises:
        ValueError: If it has no more layers than that, or their order is unknown.
    """
    if not number:
        return
    layers = layers_in_order(network)
    if number >= len(layers):
        names = {module: name for name, module in network.named_modules()}
        listed = ", ".join(_named(layer, names) for layer in layers)
        raise ValueError(
            f"{type(network).__name__} has {len(layers)} layers, from the picture on: {listed}. At least the last must "
            f"learn, so at most {len(layers) - 1} can be frozen; got {number}."
        )
    for parameter in parameters_of(layers[:number]):
        parameter.requires_grad_(False)


def parameters_of(layers: Sequence[Sequence[nn.Module]]) -> Iterator[nn.Parameter]:
    """The parameters of layers."""
    return (parameter for layer in layers for module in layer for parameter in module.parameters())


def _named(layer: Sequence[nn.Module], names: dict[nn.Module, str]) -> str:
    return " + ".join(names.get(module, "?") for module in layer if any(True for _ in module.parameters()))
