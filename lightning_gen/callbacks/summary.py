"""What a model is made of, in a few lines when training starts."""

from __future__ import annotations

from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelSummary
from torch import nn
from torchmetrics import Metric

from lightning_gen.callbacks.ema import EMA


class NetworkSummary(ModelSummary):
    """Prints the number of parameters of each network, and of those that the run keeps an average of.

    It takes the place of Lightning's summary, which lists losses and metrics as well, and counts operations that only
    models with an example input have.
    """

    def __init__(self) -> None:
        super().__init__(max_depth=1)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print it, on rank zero."""
        if not trainer.is_global_zero:
            return
        rows = {
            name: _count(child.parameters())
            for name, child in pl_module.named_children()
            if not isinstance(child, Metric)
        }
        rows["of its own"] = _count(pl_module.parameters(recurse=False))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                networks = [pl_module.get_submodule(name) for name in callback.modules]
                rows[f"average of {', '.join(callback.modules)}"] = sum(_count(n.parameters()) for n in networks)
        lines = {name: f"{number:,}" for name, number in rows.items() if number}
        left, right = (max(map(len, words), default=0) for words in (lines.keys(), lines.values()))
        print(f"{type(pl_module).__name__}, parameters:")
        for name, number in lines.items():
            print(f"  {name:<{left}}  {number:>{right}}", flush=True)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers in parameters; those without a shape yet have none."""
    return sum(parameter.numel() for parameter in parameters if not isinstance(parameter, nn.UninitializedParameter))
