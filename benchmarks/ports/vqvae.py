"""VQ-VAE as a plain loop and as a naive one.

The plain loop is our algorithm on our networks and quantizer without Lightning. The naive loop is the same mathematics
as well-known implementations write it down, on networks of its own: everything float32 and contiguous; distances with
all their terms; codes as one-hot rows of `[tokens, codes]`, whose products are the vectors, the counts and the sums;
the perplexity of the batch; and three numbers fetched for the log in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from benchmarks.contestants import Settings
from lightning_gen.models import VQVAE

CHANNELS, NUM_CODES, VARIANCE = 64, 512, 0.25


class PlainVQVAE:
    """The step of `lightning_gen.models.VQVAE` as a script would have it.

    Args:
        model: Gives the rate.
        networks: Makes (encoder, quantizer, decoder).
        settings: Gives device, precision and memory format.
    """

    def __init__(self, model: VQVAE, networks: Callable[[], Sequence[nn.Module]], settings: Settings) -> None:
        self.settings = settings
        parts = [network.to(settings.device) for network in networks()]
        self.encoder, self.quantizer, self.decoder = parts
        for network in (self.encoder, self.decoder):
            network.to(memory_format=settings.memory_format)
            if settings.compile:
                network.compile()
        weights = [parameter for part in parts for parameter in part.parameters()]
        self.optimizer = Adam(weights, lr=model.base_rate, fused=True)

    def step(self, images: Tensor) -> None:
        """One update."""
        self.optimizer.zero_grad()
        with self.settings.autocast():
            quantized, _, losses = self.quantizer(self.encoder(images))
            error = F.mse_loss(self.decoder(quantized).float(), images) / VARIANCE
            loss = error + sum(losses.values())
        loss.backward()
        self.optimizer.step()


# -- the naive loop ---------------------------------------------------------------------------------------------------


class NaiveBlock(nn.Module):
    """ReLU, 3 x 3, ReLU, 1 x 1, and what came."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, width, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """As large as it was."""
        return features + self.layers(features)


def naive_networks(width: int) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder of stride 4 with two residual blocks."""
    blocks = [NaiveBlock(width, width // 4) for _ in range(4)]
    encoder = nn.Sequential(
        nn.Conv2d(3, width // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), *blocks[:2], nn.ReLU(), nn.Conv2d(width, CHANNELS, 1),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Conv2d(CHANNELS, width, 3, padding=1), *blocks[2:], nn.ReLU(),
        nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width // 2, 3, 4, 2, 1),
    )  # fmt: skip
    return encoder, decoder


class NaiveQuantizer(nn.Module):
    """Running means by one-hot rows."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        codes = torch.randn(NUM_CODES, CHANNELS)
        for name, value in (("codebook", codes), ("counts", torch.ones(NUM_CODES)), ("sums", codes.clone())):
            self.register_buffer(name, value)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors with the gradient of the features, the commitment, and the perplexity."""
        last = features.permute(0, 2, 3, 1).contiguous()
        tokens = last.view(-1, CHANNELS)
        distances = (
            (tokens**2).sum(1, keepdim=True) + (self.codebook**2).sum(1) - 2 * torch.matmul(tokens, self.codebook.t())
        )
        codes = distances.argmin(1).unsqueeze(1)
        rows = tokens.new_zeros(len(tokens), NUM_CODES).scatter_(1, codes, 1)
        quantized = torch.matmul(rows, self.codebook).view(last.shape)
        self.counts = self.counts * 0.99 + 0.01 * rows.sum(0)
        total = self.counts.sum()
        self.counts = (self.counts + 1e-5) / (total + NUM_CODES * 1e-5) * total
        self.sums = self.sums * 0.99 + 0.01 * torch.matmul(rows.t(), tokens.detach())
        self.codebook = self.sums / self.counts.unsqueeze(1)
        commitment = 0.25 * F.mse_loss(quantized.detach(), last)
        quantized = last + (quantized - last).detach()
        shares = rows.mean(0)
        perplexity = torch.exp(-(shares * torch.log(shares + 1e-10)).sum())
        return quantized.permute(0, 3, 1, 2).contiguous(), commitment, perplexity


class NaiveVQVAE:
    """The same step; see the head of this file.

    Args:
        model: Gives the rate.
        settings: Gives device and sizes.
    """

    def __init__(self, model: VQVAE, settings: Settings) -> None:
        encoder, decoder = naive_networks(settings.filters)
        parts = nn.ModuleList([encoder, NaiveQuantizer(), decoder]).to(settings.device)
        self.encoder, self.quantizer, self.decoder = parts
        self.optimizer = Adam(parts.parameters(), lr=model.base_rate)
        self.log: dict[str, float] = {}

    def step(self, images: Tensor) -> None:
        """One update."""
        self.optimizer.zero_grad()
        quantized, commitment, perplexity = self.quantizer(self.encoder(images))
        error = F.mse_loss(self.decoder(quantized), images) / VARIANCE
        loss = error + commitment
        loss.backward()
        self.optimizer.step()
        self.log = {"loss": loss.item(), "error": error.item(), "perplexity": perplexity.item()}
