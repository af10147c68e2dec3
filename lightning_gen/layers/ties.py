"""Networks in which the samples of a call influence each other, and what that asks of those who call them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase


def ties_samples(network: nn.Module) -> bool:
    """Whether what a network gives for one sample depends on the others in the call.

    Batch norm is known to make it so. Any other layer says it by an attribute, `ties_samples = True`, of its class or
    its own, as one with statistics of a minibatch must.
    """
    return any(
        vars(module).get("ties_samples", getattr(type(module), "ties_samples", isinstance(module, _BatchNorm)))
        for module in network.modules()
    )


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there is batch norm in it, of any number of dimensions."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def on_both(
    network: nn.Module,
    first: Tensor,
    second: Tensor,
    labels: tuple[Tensor, Tensor] | None = None,
    *,
    call: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`network(first), network(second)`, in one call where neither sees the other in it.

    It is two calls where the network ties samples together, or the pictures are of different sizes, which do not stack.
    With `labels`, the network is also given those of the first and of the second. `call`, if it is given, is what calls
    the network with the same.
    """
    call = call or network
    given = [(first,), (second,)] if labels is None else [(first, labels[0]), (second, labels[1])]
    if first.shape[1:] != second.shape[1:] or ties_samples(network):
        return call(*given[0]), call(*given[1])
    scores, others = call(*map(torch.cat, zip(*given, strict=True))).split([len(first), len(second)])
    return scores, others


def moving_once(network: nn.Module, piece: int, pieces: int) -> AbstractContextManager[None]:
    """Let running statistics, which move in each of several pieces, have moved by the last as in one batch.

    Codebooks wait for the last piece. Of a norm's statistics a batch leaves (1 - m), with momentum m. So do k pieces,
    each of which comes to m / k of the result, if the momentum of piece i is m / (k - (k - i) m).
    """
    if pieces == 1:
        return nullcontext()
    return _in_piece(network, piece, pieces)


@contextmanager
def _in_piece(network: nn.Module, piece: int, pieces: int) -> Iterator[None]:
    codebooks = [module for module in network.modules() if hasattr(module, "last_piece")]
    for codebook in codebooks:
        codebook.last_piece = piece == pieces - 1  # type: ignore[assignment]
    try:
        with with_momenta(network, lambda momentum: momentum / (pieces - (pieces - 1 - piece) * momentum)):
            yield
    finally:
        for codebook in codebooks:
            codebook.last_piece = True  # type: ignore[assignment]


@contextmanager
def with_momenta(network: nn.Module, change: Callable[[float], float]) -> Iterator[None]:
    """Other momenta of a network's running statistics, put back afterwards."""
    normed = [m for m in network.modules() if isinstance(m, _NormBase) and m.momentum is not None]
    momenta: list[Any] = [module.momentum for module in normed]
    for module, momentum in zip(normed, momenta, strict=True):
        module.momentum = change(momentum)
    try:
        yield
    finally:
        for module, momentum in zip(normed, momenta, strict=True):
            module.momentum = momentum
