"""How likely a model holds pictures that it has not seen."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_gen.capabilities import HasLogProb
from lightning_gen.data.base import in_order
from lightning_gen.evaluation.sources import count_of, evenly_spaced, loader_of
from lightning_gen.metrics.likelihood import likelihood_metrics, update_likelihoods
from lightning_gen.modes import evaluating


def no_likelihood(model: Any, data: pl.LightningDataModule | None) -> str:
    """Why there is none of the data's test pictures, in words; empty where there is one, as a few of them show."""
    if not isinstance(model, HasLogProb):
        return f"{'a folder of pictures' if model is None else f'this {type(model).__name__}'} has no log_prob"
    if data is None:
        return "there is no data whose test pictures it could be of; name it with --data"
    try:
        likelihood(model, data, 64, 64, 0)
    except Exception as error:  # of data and models of anybody's; nobody may have asked for a likelihood
        return str(error).removesuffix(".") or type(error).__name__
    return ""


def likelihood(
    model: Any, data: pl.LightningDataModule, num_pictures: int, batch_size: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Nats and bits per dim of the data's test pictures, each with its standard error, as figures are written.

    Pictures are evenly spaced and have the labels, conditions and captions of the data, where the model takes them. The
    seed is that of the noise of a bound that draws some.
    """
    metrics = likelihood_metrics(model, data)
    loader = loader_of(data, "test")
    number, noise = min(num_pictures, count_of(loader)), torch.Generator().manual_seed(seed)
    with torch.no_grad(), evaluating(model), isolate_rng():
        torch.manual_seed(seed)
        for _, batch in in_order(evenly_spaced(loader, number, number), batch_size):
            images, context = model.images_and_context(batch)
            update_likelihoods(metrics, model, images, context, noise)
    figures: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        name, dash, kind = metric.name.partition("-")
        for figure, value in ((name, metric.compute()), (f"{name}_stderr", metric.standard_error())):
            finite = value.item() if value.isfinite() else None
            figures[figure + dash + kind] = {"value": finite, "samples": None, "reference": number, "split": "test"}
    return figures
