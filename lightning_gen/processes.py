"""What several processes of one run say to each other; with one process all of it does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

T = TypeVar("T")


_apart = False


def _running() -> bool:
    return not _apart and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def apart() -> Iterator[None]:
    """Let this process be alone within it: nothing is sent, and nobody is waited for."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def rank() -> int:
    """Of this process."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _running() else 1


def _device() -> torch.device:
    """Where tensors must lie to be sent."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"Another process of this run has ended or does not answer, so rank {rank()} cannot go on. The message of "
            f"that process says why. ({str(error).strip().splitlines()[0]})"
        ) from error


def everywhere(value: T) -> list[T]:
    """The value of each rank, in order, on all of them."""
    if not _running():
        return [value]
    values: list[Any] = [None] * world_size()
    with _lost():
        dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: T) -> T:
    """Rank 0's value, on all ranks."""
    if not _running():
        return value
    values = [value]
    with _lost():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def make_alike(tensors: Iterable[Tensor]) -> None:
    """Let tensors hold rank 0's values, on all ranks."""
    for tensor in tensors if _running() else ():
        dist.broadcast(tensor.detach(), 0)


def total(values: Tensor) -> Tensor:
    """The sum over all ranks, on all of them; the same shape and type everywhere."""
    if not _running():
        return values
    summed = values.to(_device(), copy=True)
    with _lost():
        dist.all_reduce(summed)
    return summed.to(values.device)


class _Gathered(torch.autograd.Function):
    """The rows of all ranks; gradients come back from all of them."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.number = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * context.number :][: context.number]


def gathered_with_gradient(rows: Tensor) -> Tensor:
    """The rows of all ranks, `[N, ...]` to `[W N, ...]`, in the order of ranks, on all of them; with a graph.

    The gradient of a row is the sum of what all ranks make of it. So where each rank has a loss of its own rows beside
    all others, the mean of their gradients, which DDP takes, is the gradient of the mean of the losses.

    Args:
        rows: As many on every rank, on the device that ranks talk through.
    """
    gathered_rows: Tensor = _Gathered.apply(rows) if _running() else rows
    return gathered_rows


def gathered(rows: Sequence[Tensor], places: Sequence[Tensor], width: int) -> Tensor:
    """The rows of all ranks in the order of their places, on rank 0; elsewhere only its own.

    Ranks may have different numbers of rows, or none.

    Args:
        rows: Parts `[n, width]` of this rank, float32, on the CPU.
        places: For each part its places `[n]` among all rows, int64.
        width: For ranks without any.
    """
    mine = torch.cat([torch.empty(0, width), *rows])
    order = torch.cat([torch.empty(0, dtype=torch.int64), *places])
    if _running():
        device, most = _device(), max(everywhere(len(mine)))
        padded = torch.zeros(most, width, device=device)
        padded[: len(mine)] = mine
        positions = torch.full((most,), -1, device=device)
        positions[: len(mine)] = order
        parts = [torch.empty_like(padded) for _ in range(world_size())] if rank() == 0 else None
        numbers = [torch.empty_like(positions) for _ in range(world_size())] if rank() == 0 else None
        with _lost():
            dist.gather(padded, parts)
            dist.gather(positions, numbers)
        if parts and numbers:
            mine, order = torch.cat(parts).cpu(), torch.cat(numbers).cpu()
            mine, order = mine[order >= 0], order[order >= 0]
    return mine[order.argsort()]


@contextmanager
def failing_together() -> Iterator[None]:
    """What fails within it on one rank fails on all: there with its own error, elsewhere with a word about it.

    Nothing may be sent within it.

    Raises:
        RuntimeError: If it failed on another rank.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    messages = everywhere(f"{type(error).__name__}: {error}" if error else None)
    if error:
        raise error
    failed = [(i, message) for i, message in enumerate(messages) if message]
    if failed:
        raise RuntimeError(f"Rank {failed[0][0]} failed, so all do. {failed[0][1]}")


def average_gradients(optimizer: LightningOptimizer) -> None:
    """Replace the gradients of an optimizer's parameters by their mean over all ranks, in one all-reduce."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients or not _running():
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
