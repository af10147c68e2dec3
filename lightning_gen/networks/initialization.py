"""Weight initialisation that the translation papers share."""

from __future__ import annotations

from torch import nn


def initialize_normal(network: nn.Module, std: float = 0.02) -> None:
    """Draw every convolution and linear weight from N(0, std^2), in place.

    Biases become 0; affine normalisation weights are drawn from N(1, std^2), as in DCGAN (1511.06434), pix2pix
    (1611.07004) and CycleGAN (1703.10593).

    Args:
        network: Its whole tree is initialised.
        std: Standard deviation; 0.02 in the papers.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, std)
            nn.init.zeros_(module.bias)
