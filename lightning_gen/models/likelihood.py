"""What models with a density share: nats and bits per dim of validation and test pictures, named after their data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_gen.data.batches import as_floats
from lightning_gen.generative import GenerativeModule
from lightning_gen.metrics.likelihood import likelihood_metrics, update_likelihoods


class LikelihoodModule(GenerativeModule):
    """A model whose figure is the likelihood of pictures it has not seen.

    `val/nll` and `test/nll` are nats a picture, with the name of the data's binarization where there is one, such as
    `val/nll-static`: figures of different binarizations do not compare. With levels there are bits per dim too, such as
    `val/bpd`, whose name tells the levels where they are not 256.

    Where `log_prob` is a lower bound, the class says so by `bound`, and its figures never pass for likelihoods: with
    "elbo" they are `val/elbo`, the mean of the bound itself in nats, of which more is better, and `val/bpd-elbo`.

    Args:
        image_shape: (channels, height, width).
        num_levels: Of each channel, evenly spaced from -1 to 1; None for a density.

    Raises:
        ValueError: When a run starts, if the data is known to have other levels.
    """

    prediction_name = "log_prob"
    bound: ClassVar[str | None] = None
    """What `log_prob` is where it is a lower bound, such as "elbo"; None where it is exact."""
    bounds: Mapping[str | None, Mapping[str, Any]] | None = None
    """Where it gives several, their names and the settings of `log_prob` for each; see `metrics.likelihood.bounds_of`.
    """
    likelihood_of: ClassVar[str | None] = None
    """What `log_prob` is of, where that is not the pictures, such as "codes": its figure is `val/nll-codes`."""

    def __init__(self, image_shape: tuple[int, int, int], num_levels: int | None) -> None:
        super().__init__(image_shape)
        self.num_levels = num_levels
        self.metrics = nn.ModuleDict()

    @abstractmethod
    def log_prob(self, images: Tensor) -> Tensor:
        """Nats of each picture `[N]`, exact or as `bound` says."""
        raise NotImplementedError

    def checked_images(self, images: Tensor) -> Tensor:
        """Pictures of the model's shape, as `lightning_gen.data.batches.as_floats` gives them.

        Raises:
            ValueError: If they are of another, or it refuses them.
        """
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"Pictures must be [N, {', '.join(map(str, self.image_shape))}] for this {type(self).__name__}, got "
                f"{list(images.shape)}."
            )
        return as_floats(images, f"This {type(self).__name__}")

    def batch_log_prob(self, batch: Any, **settings: Any) -> Tensor:
        """Nats of each picture of a batch, `[N]`, given what else in it the model takes."""
        images, context = self.images_and_context(batch)
        return self.log_prob(images, **context, **settings)

    def setup(self, stage: str) -> None:
        """Compare levels with the data's, and name the figures."""
        super().setup(stage)
        for part in ("val", "test"):
            data = getattr(self.trainer, "datamodule", None)
            self.metrics[part] = nn.ModuleList(likelihood_metrics(self, data))

    def headlines(self) -> dict[str, str]:
        """Nats and bits per dim."""
        return {f"test/{m.name}": f"Test {m.name}: {{:.4g}}" for m in self.metrics["test"]}  # type: ignore[attr-defined]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log nats and bits per dim."""
        self._evaluate(batch, batch_idx, "val")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.trainer.global_step), reduce_fx="max", sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`, under `test/`."""
        self._evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Nats of each picture."""
        return self.batch_log_prob(batch)

    def noise_of(self, batch_idx: int) -> torch.Generator:
        """The noise of a batch that is judged: the same each time, so that the curve shows the model alone."""
        return torch.Generator().manual_seed(batch_idx * self.trainer.world_size + self.global_rank)

    def _evaluate(self, batch: Any, batch_idx: int, part: str) -> None:
        images, context = self.images_and_context(batch)
        metrics: Any = self.metrics[part]
        update_likelihoods(metrics, self, images, context, self.noise_of(batch_idx))
        for metric in metrics:
            self.log(f"{part}/{metric.name}", metric, on_epoch=True, prog_bar=True)
