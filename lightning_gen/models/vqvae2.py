"""VQ-VAE-2 (Razavi et al. 2019, 1906.00446)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.quantize import Quantizer, VectorQuantizer
from lightning_gen.losses.precision import full
from lightning_gen.models.autoencoder import DecoderFactory, Encoded, EncoderFactory, TrainedAutoencoder
from lightning_gen.networks.vqvae import VQVAE2Decoder, VQVAE2Encoder

LevelQuantizerFactory: TypeAlias = Callable[[int], Quantizer]
"""Makes the quantizer of a level of D."""


class VQVAE2(TrainedAutoencoder):
    """A VQ-VAE of two or more levels: coarse codes say what there is, finer ones what is missing of it.

    From the coarsest level on, each is quantized given the decoded codes of all before it, so that it need not say
    again what they say. The loss is |x - x'|^2, a mean over numbers, plus those of the quantizers.

    Paper (1906.00446, as in github.com/rosinality/vq-vae-2-pytorch, FFHQ of 256 x 256): stride 4 to 64 x 64 codes, and
    2 more to 32 x 32, with 2 residual blocks of 32 at each level, 128 wide; 512 codes of 64 a level by running means of
    0.99 and epsilon 1e-5, commitment 0.25 for each; Adam (3e-4); batch 128; 560 epochs. The paper has no figure of this
    stage alone.

    Deviations: codes that are hardly used begin anew, as in `VQVAE`. With more than two levels a level is told of all
    coarser ones, each enlarged and joined with the next; the paper has three for 1024 x 1024 and does not say how.

    Args:
        image_shape: (channels, height, width), of multiples of the product of strides.
        encoder: Makes the network from pictures to features of all levels, such as `VQVAE2Encoder`, whose strides say
            how many there are.
        decoder: Makes the network from vectors of all levels to pictures, and to what the next level is told of them,
            such as `VQVAE2Decoder`.
        quantizer: Makes the quantizer of each level.
        channels: D, of what is quantized.
        **settings: All others as in `TrainedAutoencoder`.

    Raises:
        ValueError: If a number is out of range, or the parts do not fit together.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        encoder: EncoderFactory = VQVAE2Encoder,
        decoder: DecoderFactory = VQVAE2Decoder,
        quantizer: LevelQuantizerFactory = VectorQuantizer,
        *,
        channels: int = 64,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, **settings)
        self.save_hyperparameters()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}.")
        self.encoder = made_by(encoder, nn.Module, self.image_shape, channels)
        self.decoder = made_by(decoder, nn.Module, self.image_shape, channels, self.image_shape[0])
        with torch.no_grad():
            features = self.encoder(torch.zeros(1, *self.image_shape))
        of_one_map: Any = Quantizer
        self.quantizers = nn.ModuleList(made_by(quantizer, of_one_map, channels) for _ in features)
        self.declare_codes(self._quantizers()[0].num_codes, *[(each.shape[2], each.shape[3]) for each in features])
        self.check_fit()

    def encode(self, images: Tensor, **settings: Any) -> Encoded:
        """Quantize level after level, from coarse to fine, each given what the decoder makes of those before it."""
        encoder, decoder = cast(VQVAE2Encoder, self.encoder), cast(VQVAE2Decoder, self.decoder)
        encoded = Encoded([], [], {})
        for level, features in enumerate(self.encoder(images)):
            found = encoder.to_quantize(level, features, decoder.context(encoded.maps))
            quantized, codes, losses = self.quantizers[level](found, **settings)
            encoded.maps.append(quantized)
            encoded.codes.append(codes)
            encoded.losses.update({name: loss + encoded.losses.get(name, 0) for name, loss in losses.items()})
        return encoded

    def terms(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        """The reconstruction, and what the quantizers of all levels add."""
        return {"reconstruction": F.mse_loss(full(self.decoded(encoded.maps)), full(images)), **encoded.losses}

    def look_up(self, codes: list[Tensor]) -> list[Tensor]:
        """The maps of codes, level by level."""
        return [quantizer.lookup(each) for quantizer, each in zip(self._quantizers(), codes, strict=True)]

    def decoded(self, maps: list[Tensor]) -> Tensor:
        """What the decoder makes of the maps of all levels: `[N, C, H, W]`."""
        return self.decoder([self.own(each) for each in maps])

    def _quantizers(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.quantizers))
