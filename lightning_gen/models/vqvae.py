"""VQ-VAE (van den Oord et al. 2017, 1711.00937)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_gen.data.base import examples_of, makes_batches
from lightning_gen.data.batches import batch_size, images_and_labels
from lightning_gen.layers.quantize import VectorQuantizer
from lightning_gen.losses.precision import full
from lightning_gen.models.autoencoder import (
    DecoderFactory,
    Encoded,
    EncoderFactory,
    QuantizerFactory,
    TrainedAutoencoder,
)
from lightning_gen.networks.vqvae import VQVAEDecoder, VQVAEEncoder
from lightning_gen.processes import failing_together, from_rank_zero, rank

VARIANCE_IMAGES = 10_000  # from which the variance of the data is computed, at most


class VQVAE(TrainedAutoencoder):
    """An autoencoder whose latents are vectors of a codebook, next to what the encoder gives.

    The loss is |x - x'|^2 / variance of the data, a mean over numbers, plus those of the quantizer: the commitment,
    which pulls the encoder to its codes. The decoder's gradient passes the quantizer to the encoder as it is.

    Paper (1711.00937 and github.com/google-deepmind/sonnet, `examples/vqvae_example.ipynb`, CIFAR-10): 2 convolutions
    of stride 2 and 2 residual blocks, 128 wide, to 8 x 8; 512 codes of 64 by running means of 0.99 and epsilon 1e-5,
    commitment 0.25; Adam (3e-4); batch 32; 100,000 updates (the paper's text: 2e-4, 128, 250,000); 4.67 bits per dim
    of the whole model, where a VAE has 4.51; here reconstructions are measured.

    Deviations: codes that are hardly used begin anew (`VectorQuantizer(restart_below=0)` is the paper's, and many of
    its codes may die), and their running means begin as the layer says. The example's own switch is at a codebook
    learned by gradient, `VectorQuantizer(codebook="gradient")`. Pictures lie in [-1, 1], not in [-0.5, 0.5], which
    divided by their variance is the same loss.

    Args:
        image_shape: (channels, height, width), of multiples of the networks' stride.
        encoder: Makes the network from pictures to features.
        decoder: Makes the network from vectors to pictures.
        quantizer: Makes the quantizer, any of `lightning_gen.layers.quantize`.
        channels: D, of features and vectors.
        data_variance: Of all numbers in pictures in [-1, 1], above 0. None computes it from 10,000 training pictures,
            spread evenly, when a run first starts, and keeps it in the checkpoint.
        **settings: All others as in `TrainedAutoencoder`.

    Raises:
        ValueError: If a number is out of range, or the parts do not fit together; when a run starts, if the variance is
            to be computed and the data is a stream, or all alike.
    """

    data_variance: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        encoder: EncoderFactory = VQVAEEncoder,
        decoder: DecoderFactory = VQVAEDecoder,
        quantizer: QuantizerFactory = VectorQuantizer,
        *,
        channels: int = 64,
        data_variance: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, **settings)
        self.save_hyperparameters()
        if data_variance is not None and not 0 < data_variance < math.inf:
            raise ValueError(f"data_variance must be above 0, or null to be computed; got {data_variance}.")
        self.given_variance = data_variance
        self.register_buffer("data_variance", torch.tensor(math.nan if data_variance is None else data_variance))
        self.build(encoder, quantizer, decoder, channels, self.image_shape[0])

    def terms(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        """The reconstruction, in units of the data's variance, and what the quantizer adds."""
        error = F.mse_loss(full(self.decoded(encoded.maps)), full(images))
        return {"reconstruction": error / self.data_variance, **encoded.losses}

    def on_train_start(self) -> None:
        """Compute the variance of the data, unless it was given or a checkpoint brought it."""
        super().on_train_start()
        variance = self.given_variance
        if variance is None and self.data_variance.isnan():
            with failing_together():
                variance = data_variance(self.trainer.train_dataloader, type(self).__name__) if rank() == 0 else None
            variance = from_rank_zero(variance)
        if variance is not None:
            self.data_variance.fill_(variance)


def data_variance(loader: Any, name: str) -> float:
    """The variance of all numbers in pictures of a loader in [-1, 1], of 10,000 that are spread evenly over its data.

    Args:
        loader: Over a dataset that has a length.
        name: Of the one who needs it.

    Raises:
        ValueError: If there is none, as of a stream, or pictures are all alike.
    """
    examples: Any = getattr(loader, "dataset", None)
    if isinstance(examples, IterableDataset) or not (hasattr(examples, "__len__") and isinstance(loader, DataLoader)):
        raise ValueError(
            f"{name} divides by the variance of the training pictures. They come from a "
            f"{type(loader if examples is None else examples).__name__}, which does not let it look at them before "
            "training. Give it data_variance, their variance in [-1, 1]."
        )
    examples = examples_of(loader) if isinstance(examples, Dataset) else examples
    together = makes_batches(loader)
    size = 1 if together else max(1, batch_size(examples[0]))  # of what stands at one place
    number = min(len(examples), max(1, VARIANCE_IMAGES // size))
    spread = Subset(examples, [i * len(examples) // number for i in range(number)])
    settings = {each: getattr(loader, each) for each in ("num_workers", "collate_fn", "worker_init_fn")}
    own = torch.Generator().manual_seed(0)  # which leaves the global one alone
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in DataLoader(spread, batch_size=64 if together else None, generator=own, **settings):
        numbers = images_and_labels(batch, name)[0].double()
        count, total, squares = count + numbers.numel(), total + numbers.sum(), squares + numbers.square().sum()
    variance = float(squares / count - (total / count) ** 2)
    if not variance > 1e-9:
        raise ValueError(f"{name} divides by the variance of the training pictures, which are all alike: {variance}.")
    return variance
