"""Log-likelihood under a Parzen window of samples (Goodfellow et al. 2014, 1406.2661)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_gen.metrics.base import FullPrecision

Part = Literal["samples", "validation", "test"]
SIGMAS = tuple(10 ** (i / 9 - 1) for i in range(10))
"""Widths of Parzen windows that the first GAN's were chosen from: 10 from 0.1 to 1, evenly in the logarithm."""
_DISTANCES_AT_A_TIME = 2**22  # 32 MiB


def parzen_log_likelihood(images: Tensor, samples: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The log of the mean over samples of N(image; sample, sigma^2 I), in nats, for each sigma and image.

    Memory beyond the arguments in float64 is bounded: images are taken in parts.

    Args:
        images: `[N, D]`.
        samples: `[M, D]`, where the windows stand.
        sigmas: S standard deviations, above 0.

    Returns:
        float64 `[S, N]`.
    """
    samples = samples.double()
    lengths = samples.square().sum(1)
    rows = max(1, _DISTANCES_AT_A_TIME // len(samples))
    parts = []
    for part in images.split(rows):
        part = part.double()
        cross = torch.addmm(lengths, part, samples.T, alpha=-2)
        squared = (cross + part.square().sum(1, keepdim=True)).clamp(min=0)
        parts.append(torch.stack([torch.logsumexp(squared / (-2 * sigma**2), dim=1) for sigma in sigmas]))
    norms = [math.log(len(samples)) + samples.shape[1] * math.log(sigma * math.sqrt(2 * math.pi)) for sigma in sigmas]
    return torch.cat(parts, dim=1) - torch.tensor(norms, dtype=torch.float64, device=samples.device)[:, None]


class ParzenWindow(FullPrecision):
    """The Parzen window estimate of a log-likelihood, for models that draw but have no density.

    As for the first GAN (Goodfellow et al. 2014, arXiv 1406.2661; Breuleux et al. 2011): Gaussian windows around
    generated pictures, whose width is the candidate under which pictures of a validation set are likeliest, give the
    mean log-density of test pictures, in nats, with its standard error over them. Pixels are scaled to `[0, 1]`. The
    protocol there for MNIST is 10,000 samples, 1000 validation and all 10,000 test pictures.

    It is here to compare with papers that report it, and says little otherwise (Theis et al. 2016, arXiv 1511.01844):
    it is far from the true log-likelihood even of simple models in the dimensions of small pictures; it rises with the
    number of samples, so figures of different numbers do not compare; it prefers blurred and average pictures (the
    centres of k-means on the training set score higher than real pictures do); and copies of the training set pass.

    `update(images, part)` takes each of the three parts; `compute` gives the figures. Ranks may have different numbers
    of pictures, or none. One call (`metric(images, part)`) has no figure of its own and fails.

    Args:
        image_shape: (channels, height, width).
        sigmas: Candidates for the width, above 0.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If there is no candidate, or one is not above 0.
    """

    higher_is_better = True
    samples: list[Tensor]
    validation: list[Tensor]
    test: list[Tensor]

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        sigmas: Sequence[float] = SIGMAS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not sigmas or not all(0 < sigma < math.inf for sigma in sigmas):
            raise ValueError(f"sigmas must be one or more numbers above 0, got {list(sigmas)}.")
        self.image_shape = tuple(image_shape)
        self.sigmas = sorted(sigmas)
        for part in ("samples", "validation", "test"):
            # Flat, because a rank without pictures sends an empty tensor of one dimension.
            self.add_state(part, [], dist_reduce_fx="cat")

    @property
    def dtype(self) -> torch.dtype:
        """Of the states, also of that empty tensor."""
        return torch.float32

    def update(self, images: Tensor, part: Part) -> None:
        """Add pictures.

        Args:
            images: `[N, C, H, W]`, float in `[-1, 1]` or uint8.
            part: "samples" of the model, "validation" pictures to choose sigma by, or "test" pictures.

        Raises:
            ValueError: If the shape or the part is another, or values lie outside.
        """
        if part not in ("samples", "validation", "test"):
            raise ValueError(f"part must be samples, validation or test, got {part!r}.")
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"Pictures must be [N, {', '.join(map(str, self.image_shape))}], got {list(images.shape)}."
            )
        if images.dtype == torch.uint8:
            unit = images.float().div(255)
        elif images.is_floating_point() and bool((images.abs() <= 1 + 1e-6).all()):
            unit = images.detach().float().add(1).div(2)
        else:
            raise ValueError(
                f"Pictures must be uint8, or floats in [-1, 1]; got {images.dtype} from {images.min().item():g} to "
                f"{images.max().item():g}."
            )
        getattr(self, part).append(unit.flatten())

    def compute(self) -> dict[str, Tensor]:
        """`log_likelihood` and `standard_error` of the test pictures in nats, and `sigma`: float64 scalars.

        Raises:
            ValueError: If there are no samples, no test pictures, or no validation pictures to choose sigma by.
        """
        samples, validation, test = (self._pictures(part) for part in ("samples", "validation", "test"))
        if not (len(samples) and len(test) and (len(validation) or len(self.sigmas) == 1)):
            raise ValueError(
                f"ParzenWindow has {len(samples)} samples, {len(validation)} validation and {len(test)} test pictures, "
                "but needs some of each; it can do without validation pictures if sigmas holds one number."
            )
        best = 0
        if len(self.sigmas) > 1:
            best = int(parzen_log_likelihood(validation, samples, self.sigmas).mean(1).argmax())
            if best in (0, len(self.sigmas) - 1):
                rank_zero_warn(
                    f"ParzenWindow: sigma = {self.sigmas[best]:g} is best and at the end of the candidates, so a "
                    "better one may lie beyond. Widen sigmas."
                )
        sigma = self.sigmas[best]
        nats = parzen_log_likelihood(test, samples, [sigma])[0]
        return {
            "log_likelihood": nats.mean(),
            "standard_error": nats.std() / math.sqrt(len(nats)),
            "sigma": nats.new_tensor(sigma),
        }

    def _pictures(self, part: str) -> Tensor:
        """float32 `[N, D]` in `[0, 1]`."""
        state = getattr(self, part)  # one tensor after a reduction over ranks
        flat = state if isinstance(state, Tensor) else torch.cat([torch.empty(0, device=self.device), *state])
        return flat.view(-1, math.prod(self.image_shape))
