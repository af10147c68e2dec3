"""What models with discrete latents share: encoder, quantizer and decoder, whatever trains them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_gen.generative import GenerativeModule
from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.quantize import Quantizer, ResidualQuantizer, check_codes
from lightning_gen.metrics.codebook import CodebookUsage
from lightning_gen.models.adversarial import shape_of
from lightning_gen.models.training import OptimizerFactory, TrainedModule
from lightning_gen.modes import evaluating
from lightning_gen.outlines import with_values
from lightning_gen.sampling import samples_at_once
from lightning_gen.schedules import Schedule

EncoderFactory: TypeAlias = Callable[[tuple[int, int, int], int], nn.Module]
"""Makes a network of (channels, height, width) and D, the channels of features: pictures to features `[N, D, h, w]`."""
DecoderFactory: TypeAlias = Callable[[tuple[int, int, int], int, int], nn.Module]
"""Makes a network of (channels, height, width), D and P: vectors `[N, D, h, w]` to numbers `[N, P, H, W]`."""
QuantizerFactory: TypeAlias = Callable[[int], Quantizer | ResidualQuantizer]
"""Makes a quantizer of D."""


class Encoded(NamedTuple):
    """What an autoencoder makes of pictures, map by map from coarse to fine."""

    maps: list[Tensor]
    """What the decoder takes, `[N, D, h, w]` each, with a graph."""
    codes: list[Tensor]
    """int64 `[N, h, w]` each."""
    losses: dict[str, Tensor]
    """Of the quantizers, weighted."""


class Autoencoder(GenerativeModule):
    """Pictures to codes and back, for models that have `encoder`, `quantizer` and `decoder`.

    The rule is one quantizer of one map; a `ResidualQuantizer` gives a map of codes for each depth. A model with
    several maps overrides `encode`, `look_up` and `decoded`, and calls `declare_codes` with their shapes.

    Validation and test log `figures`, which are the `terms` of the objective, and how much of the codebook is in use
    over the whole split and all ranks: `val/perplexity`, `val/used` and `val/dead_codes`; of several maps with their
    number, from coarse to fine, as `val/perplexity_0`.
    """

    encoder: nn.Module
    quantizer: Quantizer | ResidualQuantizer
    decoder: nn.Module
    num_codes: int
    code_shape: tuple[int, int] | list[tuple[int, int]]

    # -- what a model says ------------------------------------------------------------------------------------------

    def declare_codes(self, num_codes: int, *shapes: tuple[int, int]) -> None:
        """Say what codes there are: 0 to `num_codes` - 1, in maps of these shapes (h, w) from coarse to fine.

        Where there is no map, as of a Gaussian latent, the model is no `HasCodes`.
        """
        if shapes:
            self.num_codes, self.code_shape = num_codes, shapes[0] if len(shapes) == 1 else list(shapes)
        with with_values():  # where a model is made without its weights, counts begin at zero all the same
            self.usage = nn.ModuleDict(
                {part: nn.ModuleList([CodebookUsage(num_codes) for _ in shapes]) for part in ("val", "test")}
            )

    def build(
        self, encoder: EncoderFactory, quantizer: QuantizerFactory, decoder: DecoderFactory, channels: int, outputs: int
    ) -> None:
        """Make the parts of a model of one quantizer, see whether they fit together, and say what codes there are.

        Args:
            encoder: Makes the encoder.
            quantizer: Makes the quantizer.
            decoder: Makes the decoder.
            channels: D, of the features.
            outputs: P, of what the decoder gives.

        Raises:
            ValueError: If a factory makes something else, or the parts do not fit together.
        """
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}.")
        self.encoder = made_by(encoder, nn.Module, self.image_shape, channels)
        self.quantizer = cast(Quantizer, made_by(quantizer, nn.Module, channels))
        if not hasattr(self.quantizer, "vector_size"):
            raise ValueError(f"{type(self.quantizer).__name__} is no quantizer, as those of lightning_gen.layers are.")
        self.decoder = made_by(decoder, nn.Module, self.image_shape, self.quantizer.vector_size, outputs)
        depth = len(self.quantizer.stages) if isinstance(self.quantizer, ResidualQuantizer) else 1
        number = getattr(self.quantizer, "num_codes", 0)
        self.declare_codes(number, *[map_shape(self.encoder, self.image_shape)] * (depth if number else 0))
        self.check_fit()

    def check_fit(self) -> None:
        """See whether what the decoder makes of the encoder's maps is as large as pictures.

        Raises:
            ValueError: If it is not.
        """
        shape = shape_of(self, torch.zeros(1, *self.image_shape))
        if shape[1:] != self.image_shape:
            raise ValueError(
                f"Of the maps of {type(self.encoder).__name__} {type(self.decoder).__name__} makes pictures of "
                f"{tuple(shape[1:])}, but they are to be {self.image_shape}. Both need the same stride."
            )

    @abstractmethod
    def terms(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        """The terms of the objective by name, weighted: scalars that are means over pictures."""
        raise NotImplementedError

    def figures(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        """What validation and test log of a batch, by name: the terms, and what a subclass has besides."""
        return self.terms(images, encoded)

    def encode(self, images: Tensor, **settings: Any) -> Encoded:
        """The maps, codes and losses of pictures of the weights' type, in the mode that the model is in."""
        quantized, codes, losses = self.quantizer(self.encoder(images), **settings)
        return Encoded([quantized], list(codes.unbind(1)) if codes.ndim == 4 else [codes], losses)

    def look_up(self, codes: list[Tensor]) -> list[Tensor]:
        """The maps of codes."""
        residual = isinstance(self.quantizer, ResidualQuantizer)
        return [self.quantizer.lookup(torch.stack(codes, 1) if residual else codes[0])]

    def decoded(self, maps: list[Tensor]) -> Tensor:
        """What the decoder makes of maps: `[N, P, H, W]`."""
        return self.decoder(self.own(maps[0]))

    def pictures_of(self, output: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` of what the decoder gave."""
        return output.clamp(-1, 1)

    # -- what it can do ---------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` encoded and decoded, as `torch.export` and `to_onnx` take it."""
        return self.pictures_of(self.decoded(self.encode(self.own(images)).maps))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What is left of pictures `[N, C, H, W]` in `[-1, 1]`: float32 of the same shape; see `Reconstructs`.

        Raises:
            ValueError: If they have another shape than the model's.
        """
        return self._in_parts(images, lambda part: [self(part).float()])[0]

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor | list[Tensor]:
        """The codes of pictures `[N, C, H, W]` in `[-1, 1]`: int64 `[N, h, w]`, or a list of such maps; see `HasCodes`.

        Raises:
            ValueError: If they have another shape than the model's, or it has no codes.
        """
        self._code_shapes()
        maps = self._in_parts(images, lambda part: self.encode(self.own(part)).codes)
        return maps if isinstance(self.code_shape, list) else maps[0]

    @torch.no_grad()
    def decode(self, codes: Tensor | list[Tensor]) -> Tensor:
        """The pictures of codes as `codes` gives them: float32 `[N, C, H, W]` in `[-1, 1]`; see `HasCodes`.

        Raises:
            ValueError: If there are more or fewer maps than the model has, or one has another shape, is not int64, or
                holds a number that is no code; or the model has no codes.
        """
        shapes = self._code_shapes()
        maps = codes if isinstance(codes, list) else [codes]
        if [tuple(each.shape[1:]) for each in maps] != shapes or len({len(each) for each in maps}) != 1:
            wanted = " and ".join(f"[N, {height}, {width}]" for height, width in shapes)
            raise ValueError(
                f"Codes of this {type(self).__name__} are {wanted}, got {[list(each.shape) for each in maps]}."
            )
        for each in maps:
            check_codes(each, self.num_codes)
        return self._in_parts(maps, lambda *part: [self.pictures_of(self.decoded(self.look_up([*part]))).float()])[0]

    def _code_shapes(self) -> list[tuple[int, int]]:
        """(h, w) of each map, from coarse to fine."""
        if not hasattr(self, "code_shape"):
            raise ValueError(
                f"This {type(self).__name__} has no codes: in place of a quantizer, such as VectorQuantizer, it has a "
                f"{type(self.quantizer).__name__}, whose latents are numbers. It can reconstruct all the same."
            )
        return self.code_shape if isinstance(self.code_shape, list) else [self.code_shape]

    def _in_parts(self, given: Tensor | list[Tensor], function: Callable[..., list[Tensor]]) -> list[Tensor]:
        """What a function gives of pictures or of maps of codes, in evaluation mode, so many at a time as are drawn."""
        if isinstance(given, Tensor) and (given.ndim != 4 or given.shape[1:] != self.image_shape):
            raise ValueError(
                f"Pictures must be [N, {', '.join(map(str, self.image_shape))}] for this {type(self).__name__}, got "
                f"{list(given.shape)}."
            )
        size, inputs = samples_at_once(self.image_shape), given if isinstance(given, list) else [given]
        with evaluating(self):
            parts = [
                function(*(each[start : start + size].to(self.device) for each in inputs))
                for start in range(0, max(len(inputs[0]), 1), size)
            ]
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the figures, and the use of codes."""
        self._evaluate(batch, "val")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.trainer.global_step), reduce_fx="max", sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`, under `test/`."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The reconstructions of a batch."""
        return self.reconstruct(self.images_and_labels(batch)[0])

    def _evaluate(self, batch: Any, part: str) -> None:
        images = self.images_and_context(batch)[0]
        encoded = self.encode(images)
        figures = {f"{part}/{name}": figure for name, figure in self.figures(images, encoded).items()}
        self.log_dict(figures, on_epoch=True, batch_size=len(images), sync_dist=True)
        for usage, codes in zip(self._usages(part), encoded.codes, strict=True):
            usage.update(codes)

    def on_validation_epoch_end(self) -> None:
        """Log the use of codes over the split."""
        super().on_validation_epoch_end()
        self._log_usage("val")

    def on_test_epoch_end(self) -> None:
        """Log the use of codes over the split."""
        super().on_test_epoch_end()
        self._log_usage("test")

    def _usages(self, part: str) -> list[CodebookUsage]:
        return cast(list[CodebookUsage], list(cast(nn.ModuleList, self.usage[part])))

    def _log_usage(self, part: str) -> None:
        metrics = self._usages(part)
        for number, usage in enumerate(metrics):
            which = "" if len(metrics) == 1 else f"_{number}"
            for name, value in usage.compute().items():
                self.log(f"{part}/{name}{which}", value.float(), sync_dist=True)  # the same on every rank
            usage.reset()


class TrainedAutoencoder(Autoencoder, TrainedModule):
    """An `Autoencoder` that is trained as one network, by the sum of its `terms`.

    Args:
        image_shape: (channels, height, width).
        learning_rate: Of Adam; or a schedule of steps, which holds for an optimizer of your own too.
        optimizer: Replaces the model's own; called with the parameters.
        channels_last: Whether weights lie channels-last in memory, which is faster on tensor cores and AMX.
        compile: Whether encoder and decoder go through `torch.compile` for training.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        learning_rate: float | Schedule = 3e-4,
        optimizer: OptimizerFactory | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape)
        self.declare_training(learning_rate, optimizer, channels_last=channels_last, compile=compile)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Minimise the sum of the terms."""
        images = self.images_and_context(batch)[0]
        terms = self.terms(images, self.encode(images))
        self.images_seen += len(images) * self.trainer.world_size
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()}, prog_bar=True)
        self.watch(terms)
        return torch.stack(list(terms.values())).sum()


def map_shape(encoder: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """(h, w) of the features that an encoder gives of one picture.

    Raises:
        ValueError: If they are not `[N, D, h, w]`.
    """
    shape = shape_of(encoder, torch.zeros(1, *image_shape))
    if len(shape) != 4:
        raise ValueError(f"{type(encoder).__name__} must give features [N, D, h, w], got {list(shape)}.")
    return shape[2], shape[3]
