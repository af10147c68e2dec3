"""VQ-VAE: ours beside a plain loop and a naive one."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.contestants import Contestants, Settings
from benchmarks.ports.vqvae import CHANNELS, NUM_CODES, VARIANCE, NaiveVQVAE, PlainVQVAE
from lightning_gen.layers import VectorQuantizer
from lightning_gen.models import VQVAE
from lightning_gen.networks import VQVAEDecoder, VQVAEEncoder


def vqvae(settings: Settings) -> Contestants:
    """VQ-VAE of stride 4, `filters` wide."""
    shape, sizes = settings.image_shape, {"filters": settings.filters, "residual_filters": settings.filters // 4}
    encoder, decoder = partial(VQVAEEncoder, **sizes), partial(VQVAEDecoder, **sizes)
    quantizer = partial(VectorQuantizer, num_codes=NUM_CODES)
    ours = VQVAE(
        shape,
        encoder,
        decoder,
        quantizer,
        channels=CHANNELS,
        data_variance=VARIANCE,
        channels_last=settings.channels_last,
        compile=settings.compile,
    )

    def networks() -> list[nn.Module]:
        return [encoder(shape, CHANNELS), quantizer(CHANNELS), decoder(shape, CHANNELS, 3)]

    side = settings.image_size // 4
    return Contestants(
        ours=ours,
        plain=lambda: PlainVQVAE(ours, networks, settings).step,
        naive=lambda: NaiveVQVAE(ours, settings).step,
        batch=torch.rand(settings.batch_size, *shape, device=settings.device) * 2 - 1,
        convolution=(settings.batch_size, settings.filters, side, side),
    )
