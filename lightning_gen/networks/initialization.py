"""Weight initialisations that several papers share."""

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


def initialize_xavier(network: nn.Module, gain: float = 1.0) -> None:
    """Draw every convolution, linear and embedding weight from Xavier's (Glorot's) uniform distribution, in place.

    That is U(-a, a) with a = gain sqrt(6 / (fan in + fan out)): standard deviation gain sqrt(2 / (fan in + fan out)).
    Biases become 0; normalisation layers are left alone. The code of SNGAN (1802.05957) starts so.

    Args:
        network: Its whole tree is initialised.
        gain: Factor of the weights; sqrt(2) makes up for a ReLU.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.xavier_uniform_(module.weight, gain)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
