"""What translation models share: translating pictures of any size, and measuring against true counterparts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_gen.capabilities import Direction
from lightning_gen.data.batches import as_floats
from lightning_gen.metrics.translation import TranslationMetrics
from lightning_gen.models.adversarial import AdversarialModule
from lightning_gen.modes import evaluating
from lightning_gen.networks.cyclegan import pad_to_multiple
from lightning_gen.outlines import with_values
from lightning_gen.tiling import tiled

Batch = dict[str, Tensor]


class TranslationModule(AdversarialModule):
    """Base of the models that map domain A to domain B.

    Batches are dictionaries with pictures "A" and "B", and the key "paired" where A and B show the same scene. Where
    they do, validation and test log `psnr_AtoB`, `ssim_AtoB` and so on.

    Args:
        image_shape: (channels, height, width) of both domains in training.
        directions: The directions that the model has a generator for.
        noise_at_test: Whether dropout stays on when translating; it is drawn from a fixed seed.
        batch_statistics_at_test: Whether batch norm takes the statistics of the picture itself when translating, or
            the running ones; None means as `noise_at_test`.
        decay_start: Share of the run after which the learning rates fall linearly to zero; 1 keeps them constant.
        **settings: All others as in `AdversarialModule`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        directions: tuple[Direction, ...],
        noise_at_test: bool = False,
        batch_statistics_at_test: bool | None = None,
        *,
        decay_start: float = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, decay_start=decay_start, **settings)
        self.directions = directions
        self.noise_at_test = noise_at_test
        self.batch_statistics_at_test = batch_statistics_at_test
        with with_values():
            self.val_metrics = TranslationMetrics(directions, "val/")
            self.test_metrics = TranslationMetrics(directions, "test/")

    def headlines(self) -> dict[str, str]:
        """The peak signal-to-noise ratio, where there are true counterparts."""
        return {f"test/psnr_{way}": f"Test PSNR {way}: {{:.1f}} dB" for way in self.directions}

    def generator_for(self, direction: Direction) -> nn.Module:
        """The generator of a direction.

        Raises:
            ValueError: If the model has none.
        """
        if direction not in self.directions:
            raise ValueError(f"{type(self).__name__} translates {' and '.join(self.directions)}, not {direction!r}.")
        return getattr(self, f"generator_{direction}")

    def forward(self, images: Tensor, direction: Direction = "AtoB") -> Tensor:
        """Pictures `[N, C, H, W]` in the other domain, with a graph, in the mode that the generator is in.

        It is what `torch.export` and `to_onnx` take. Unlike `translate`, it takes sizes that the generator can halve
        and double alone.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`.
            direction: One of `self.directions`.
        """
        translated: Tensor = self.generator_for(direction)(self.own(images))
        return translated

    @torch.no_grad()
    def translate(self, images: Tensor, direction: Direction = "AtoB", *, tile: int | None = None) -> Tensor:
        """Translate pictures; deterministic, leaves modes and random states as found.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, any height and width: they are reflected to the generator's multiple
                and the result is cropped back.
            direction: One of `self.directions`.
            tile: Height and width of the tiles in which larger pictures are translated, for memory that does not
                suffice for the whole; see `lightning_gen.tiling.tiled`. A norm over the whole picture, as instance norm
                is, then goes by each tile, and the result is not quite the same. None takes pictures whole.

        Returns:
            float32 `[N, C, H, W]` in `[-1, 1]`.

        Raises:
            ValueError: If the model has no such direction, or tiles are less than twice the generator's multiple.
        """
        generator = self.generator_for(direction)
        height, width = images.shape[-2:]
        multiple = getattr(generator, "size_multiple", 4)
        if tile is not None:
            return tiled(partial(self.translate, direction=direction), images, tile, multiple=multiple)
        padded = pad_to_multiple(self.own(images), multiple)
        # One by one where a picture's result would depend on its company.
        one_by_one = self.noise_at_test or self._takes_batch_statistics
        translated = []
        for batch in padded.split(1 if one_by_one else max(len(padded), 1)):
            with self.translating(generator):
                translated.append(generator(batch))
        return torch.cat(translated)[..., :height, :width].float()

    @property
    def _takes_batch_statistics(self) -> bool:
        return self.noise_at_test if self.batch_statistics_at_test is None else self.batch_statistics_at_test

    @contextmanager
    def translating(self, generator: nn.Module) -> Iterator[None]:
        """The state in which a generator translates: evaluation mode, but for what the settings keep of training."""
        with evaluating(generator), ExitStack() as put_back:
            if self.noise_at_test:
                for module in generator.modules():
                    if isinstance(module, nn.Dropout | nn.Dropout2d):
                        module.train()
                devices = [self.device] if self.device.type == "cuda" else []
                put_back.enter_context(torch.random.fork_rng(devices=devices))
                torch.manual_seed(0)
            if self._takes_batch_statistics:
                for module in generator.modules():
                    if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                        # Its running statistics stay as they are.
                        module.track_running_stats = False
                        put_back.callback(setattr, module, "track_running_stats", True)
                        module.train()
            yield

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure against the true counterparts, where the batch has them."""
        self.evaluate(batch, self.val_metrics, "val/")
        # No mean: that of equal float32 numbers need not be exact, and loggers cut it to a whole number.
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.trainer.global_step), reduce_fx="max", sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`, under `test/`."""
        self.evaluate(batch, self.test_metrics, "test/")

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """The translations of a batch, by direction."""
        pictures = dict(zip("AB", self.domains(batch), strict=True))
        return {direction: self.translate(pictures[direction[0]], direction) for direction in self.directions}

    def evaluate(self, batch: Batch, metrics: TranslationMetrics, prefix: str) -> Batch:
        """Log what one batch says about the translations, and give them, by direction."""
        translated: Batch = {}
        pictures = dict(zip("AB", self.domains(batch), strict=True))
        for direction in self.directions:
            source = pictures[direction[0]]
            translated[direction] = self.translate(source, direction)
            if "paired" in batch:
                collection = metrics.update(direction, translated[direction], pictures[direction[-1]])
                self.log_dict(collection, on_step=False, on_epoch=True, batch_size=len(source))
        return translated

    def domains(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Pictures A and B of a batch, as `lightning_gen.data.batches.as_floats` gives them.

        Raises:
            ValueError: If the batch is not a dictionary with "A" and "B", or they are no pictures.
        """
        if isinstance(batch, Mapping) and "A" in batch and "B" in batch:
            real_A, real_B = (self.own(as_floats(batch[domain], "A translation model")) for domain in "AB")
            return real_A, real_B
        found = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f"A translation model needs batches that are dictionaries with pictures 'A' and 'B', got {found}. "
            "Use UnpairedImageFolder, PairedImageFolder or UnpairedScenes, or give such dictionaries."
        )
