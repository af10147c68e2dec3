"""Weights for the FID's Inception network where the published ones are not at hand: random, but of sane scale."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lightning_gen.extractors.inception import build_network


def random_inception_weights(path: str | Path, seed: int = 0) -> None:
    """Write a file in the layout of torch-fidelity's, 95 MB, that any of its users can read.

    Convolutions are He-normal. Batch norm has random scales and offsets and the statistics of a few noisy pictures, so
    that no layer dies out or blows up and features differ between pictures. A function of the seed; the global random
    state stays as found.
    """
    generator = torch.Generator().manual_seed(seed)
    network = build_network(2048).to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
            module.reset_running_stats()
            module.momentum = 1.0  # take over what the next batch has
    with torch.no_grad():
        noise = [torch.randn(4, 3, side, side, generator=generator) for side in (4, 16, 75, 299)]
        pictures = sum(F.interpolate(each, size=(299, 299), mode="bilinear") for each in noise)
        network.train()(pictures.clamp(-2, 2) / 2)
    classes = {
        "fc.weight": torch.randn(1008, 2048, generator=generator) * 0.05,
        "fc.bias": torch.randn(1008, generator=generator),
    }
    torch.save({**network.state_dict(), **classes}, path)
