"""Weights of the CycleGAN and pix2pix reference implementation, read into the networks here.

Its state dicts list the same tensors in the same order as ours under other names, so they are matched in order, and
every shape is checked. Files of before 2018 also hold running statistics of instance norm, which nothing uses; they are
left out. Without a norm the reference has no biases either where ours have some, which are 0 then.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.layers.normalization import Norm
from lightning_gen.networks.cyclegan import ResNetGenerator, UNetGenerator
from lightning_gen.networks.patchgan import PatchDiscriminator, PixelDiscriminator

StateDict = Mapping[str, Tensor]


def reference_generator(weights: StateDict) -> functools.partial[Any]:
    """The factory of the generator that a reference state dict (`*_net_G*.pth`) belongs to, from names and shapes.

    Whether a U-Net has dropout is not among them; this one has.

    Raises:
        ValueError: If it is neither a ResNet nor a U-Net generator of the reference implementation.
    """
    weights = without_module_prefix(weights)
    kernels = [tensor for tensor in weights.values() if tensor.ndim == 4]
    norm = _norm(weights)
    if any("conv_block" in key for key in weights):
        blocks = {key.split(".")[1] for key in weights if "conv_block" in key}
        # With dropout, the second convolution of a block stands one place later.
        dropout = any(".conv_block.6." in key and tensor.ndim == 4 for key, tensor in weights.items())
        return functools.partial(
            ResNetGenerator,
            filters=kernels[0].shape[0],
            blocks=len(blocks),
            downsamplings=(len(kernels) - 2 * len(blocks) - 2) // 2,
            norm=norm,
            dropout=0.5 if dropout else 0.0,
            out_channels=kernels[-1].shape[0],
        )
    if any(key.startswith("model.model.") for key in weights):
        # Of a U-Net's kernels the first half leads down; the last leads up to the picture, [in, out, 4, 4].
        return functools.partial(
            UNetGenerator,
            filters=kernels[0].shape[0],
            depth=len(kernels) // 2,
            norm=norm,
            dropout=0.5,
            out_channels=kernels[-1].shape[1],
        )
    raise ValueError(
        f"These {len(weights)} tensors are not of a ResNet or U-Net generator of the reference implementation "
        f"(first name: {next(iter(weights), 'none')})."
    )


def reference_discriminator(weights: StateDict) -> functools.partial[Any]:
    """The factory of the discriminator that a reference state dict (`*_net_D*.pth`) belongs to.

    Raises:
        ValueError: If its first kernel is neither 4 x 4 (PatchGAN) nor 1 x 1 (pixel).
    """
    weights = without_module_prefix(weights)
    kernels = [tensor for tensor in weights.values() if tensor.ndim == 4]
    if kernels and kernels[0].shape[-1] == 4:
        return functools.partial(
            PatchDiscriminator, filters=kernels[0].shape[0], layers=len(kernels) - 2, norm=_norm(weights)
        )
    if kernels and kernels[0].shape[-1] == 1:
        return functools.partial(PixelDiscriminator, filters=kernels[0].shape[0], norm=_norm(weights))
    raise ValueError("These tensors are not of a discriminator of the reference implementation.")


def load_reference_weights(network: nn.Module, weights: StateDict) -> None:
    """Fill a network with a reference state dict, with or without the `module.` of several GPUs or old statistics.

    Raises:
        ValueError: If the number of tensors or a shape differs; names the first one.
    """
    own = network.state_dict()
    given = without_module_prefix(weights)
    if not any(key.endswith("running_mean") for key in own):
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        given = {key: tensor for key, tensor in given.items() if not key.endswith(statistics)}
    elif not any(key.endswith("num_batches_tracked") for key in given):
        own = {key: tensor for key, tensor in own.items() if not key.endswith("num_batches_tracked")}
    matched: dict[str, Any] = {}
    if _norm(given) == "none":
        matched = {name: torch.zeros_like(own.pop(name)) for name in _without_counterpart(own, given)}
    if len(own) != len(given):
        raise ValueError(f"{type(network).__name__} has {len(own)} tensors, the file {len(given)}.")
    for (name, tensor), (key, value) in zip(own.items(), given.items(), strict=True):
        if tensor.shape != value.shape:
            raise ValueError(
                f"{key} of the file has shape {tuple(value.shape)}; {name} of {type(network).__name__} in its place "
                f"has {tuple(tensor.shape)}."
            )
        matched[name] = value
    network.load_state_dict(matched, strict=False)


def without_module_prefix(weights: StateDict) -> dict[str, Tensor]:
    """The state dict as one GPU would have written it."""
    return {key.removeprefix("module."): tensor for key, tensor in weights.items()}


def _norm(weights: StateDict) -> Norm:
    """Batch norm has one-dimensional weights; of the others only instance norm leaves all convolutions their bias."""
    if any(tensor.ndim == 1 and key.endswith("weight") for key, tensor in weights.items()):
        return "batch"
    kernels = [key for key, tensor in weights.items() if tensor.ndim == 4]
    return "instance" if all(key.replace("weight", "bias") in weights for key in kernels) else "none"


def _without_counterpart(own: StateDict, given: StateDict) -> list[str]:
    """The biases of our network that follow a kernel which has none in the file."""
    unlike = []
    kernels = (key for key, tensor in given.items() if tensor.ndim == 4)
    for name, tensor in own.items():
        if tensor.ndim == 4:
            kernel = next(kernels, "")
        elif kernel.replace("weight", "bias") not in given:
            unlike.append(name)
    return unlike
