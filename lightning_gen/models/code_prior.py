"""The second stage of VQ-VAE and its kin: which codes belong together, learnt by an autoregressive model of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gen.capabilities import HasCodes
from lightning_gen.data.batches import parts_of
from lightning_gen.generative import GenerativeModule, frozen
from lightning_gen.layers.orders import raster_order
from lightning_gen.losses import Categorical
from lightning_gen.models.autoregressive import AutoregressiveModule, Context, DensityFactory, Order
from lightning_gen.networks.density import LevelEmbedding
from lightning_gen.networks.gpt import GPTNetwork


class CodePrior(AutoregressiveModule):
    """An autoregressive model of the codes of an autoencoder, and with its decoder a model of pictures.

    Paper (2406.06525, LlamaGen-B): `GPTNetwork` over 16 x 16 codes of 16,384; softmax; AdamW (.9, .95), rate 1e-4,
    weight decay .05 of matrices; batch 256; 300 epochs; FID 5.46 on ImageNet at 256 x 256 with guidance 2. Gradients
    are clipped to norm 1 and computed in bfloat16, by the trainer's `gradient_clip_val` and `precision`. VQ-VAE's own
    prior (1711.00937) is a PixelCNN: `GatedPixelCNNNetwork` with an `embedding`.

    Pictures are encoded as they come, without a graph; `Codes` in place of the data module has done that before, and
    leaves the first stage to the pictures that are drawn. It stays as it is, and the checkpoint holds it.

    Maps of several sizes, as of VQ-VAE-2 (1906.00446), have a network each, from coarse to fine, given the coarser
    codes: p(top) p(bottom | top). Each has a loss of its own, and nothing of one reaches another. Maps of one size that
    follow each other, as depths of a residual quantizer, are channels of one network.

    `log_prob` is the probability of a picture's codes, in nats, and logged as `val/nll-codes`: it compares priors of
    one first stage, and says nothing of pixels.

    `complete` encodes pictures whose hole has the mean colour of the rest, and draws those codes anew whose pixels are
    in part unknown, given the codes before them in the raster.

    Deviations: of VQ-VAE-2, the finer network gets vectors of the coarser codes as they are, enlarged, not through a
    network of residual blocks.

    Args:
        image_shape: (channels, height, width), that of the first stage.
        first_stage: Makes codes of pictures and pictures of codes.
        network: Makes the network of the coarsest map, or of the only one; it must have vectors for codes.
        finer_network: Makes those of finer maps, which must take `condition_channels`; None: as `network`.
        coarse_embedding: Size of the vectors of coarser codes that a finer network is given.
        num_classes: As in `AutoregressiveModule`.
        learning_rate: Of AdamW.
        **settings: All others as in `AutoregressiveModule`, but for `condition_channels`.

    Raises:
        ValueError: If the first stage is for other pictures, or a network looks at codes as numbers.
    """

    likelihood_of = "codes"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        first_stage: HasCodes,
        network: DensityFactory = GPTNetwork,
        finer_network: DensityFactory | None = None,
        coarse_embedding: int = 64,
        num_classes: int | None = None,
        learning_rate: float = 1e-4,
        **settings: Any,
    ) -> None:
        likelihood = Categorical(first_stage.num_codes)
        super().__init__(image_shape, likelihood, num_classes=num_classes, learning_rate=learning_rate, **settings)
        stage = cast(GenerativeModule, first_stage)
        if stage.image_shape != self.image_shape or self.condition_channels is not None:
            raise ValueError(
                f"CodePrior is for pictures of the shape that its first stage takes, {stage.image_shape}, and takes no "
                f"condition_channels; got {self.image_shape} and {self.condition_channels}."
            )
        self.first_stage: Any = frozen(stage)
        self.num_levels = 256  # of pictures, which may hold any number; what is completed is rounded to it
        shapes = first_stage.code_shape if isinstance(first_stage.code_shape, list) else [first_stage.code_shape]
        self.level_shapes = [(len(list(same)), *size) for size, same in groupby((h, w) for h, w in shapes)]
        self.level_shape = self.level_shapes[0]
        self.network = CodeNetworks()
        for number, shape in enumerate(self.level_shapes):
            factory = (finer_network or network) if number else network
            vectors = [LevelEmbedding(likelihood.num_levels, coarse_embedding) for _ in range(number)]
            given = sum(coarse_embedding * coarser[0] for coarser in self.level_shapes[:number])
            self.network.add(self.network_of(factory, shape, given or None), vectors)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Minimise -log p(codes), in nats a code, of each map given those that are coarser."""
        images, context = self.images_and_context(batch)
        maps = images if isinstance(images, list) else self.to_levels(images)
        log_probs = self.log_probs(self.network(maps, **self.training_context(context)), maps)
        losses = [-log_prob.mean() / codes[0].numel() for log_prob, codes in zip(log_probs, maps, strict=True)]
        loss = torch.stack(losses).sum()
        self.images_seen += len(maps[0]) * self.trainer.world_size
        nats = -torch.stack(log_probs).detach().mean(1)
        self.log("train/nll-codes", nats.sum(), prog_bar=True)
        if len(maps) > 1:
            self.log_dict({f"train/nll-codes_{number}": nats[number] for number in range(len(maps))})
        self.watch({"nll-codes": loss})
        return loss

    def log_prob(  # type: ignore[override]
        self, images: Tensor | list[Tensor], labels: Tensor | int | None = None, condition: None = None
    ) -> Tensor:
        """The exact log-probability of each picture's codes, in nats, in evaluation mode.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, or their codes as `to_levels` gives them.
            labels: Classes `[N]`, int64, or one for all. None in a model with classes averages the probability over all
                of them, as likely as each other.
            condition: None.

        Returns:
            float32 `[N]`, with a graph if gradients are enabled.

        Raises:
            ValueError: If pictures have another shape, or labels do not fit.
        """
        if not isinstance(images, list):
            return super().log_prob(images, labels, condition)
        maps: Any = [codes.to(self.device) for codes in images]
        return self._log_prob_given(maps, maps, len(maps[0]), labels, condition)

    def log_probs(self, parameters: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        """Nats `[N]` of each map of codes."""
        nats = [self.likelihood.log_prob(*each) for each in zip(parameters, maps, strict=True)]
        return [each.flatten(1).sum(1) for each in nats]

    def log_prob_of_levels(self, parameters: list[Tensor], levels: list[Tensor]) -> Tensor:  # type: ignore[override]
        """Nats of all codes of each picture, `[N]`."""
        return torch.stack(self.log_probs(parameters, levels)).sum(0)

    # -- codes ------------------------------------------------------------------------------------------------------

    def to_levels(self, images: Tensor, *, validate: bool = True) -> list[Tensor]:  # type: ignore[override]
        """The codes of pictures `[N, C, H, W]`: int64 `[N, channels, h, w]` for each network, from coarse to fine."""
        with torch.autocast(self.device.type, enabled=False):  # the same codes in training of any precision
            codes = self.first_stage.codes(images)
        return self._in_levels(codes if isinstance(codes, list) else [codes])

    def _in_levels(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps `[N, h, w]`, of which those of one size that follow each other become channels."""
        rest = iter(maps)
        return [torch.stack([next(rest) for _ in range(channels)], dim=1) for channels, *_ in self.level_shapes]

    def images_and_context(self, batch: Any) -> tuple[Any, dict[str, Tensor]]:
        """Pictures of a batch, or in place of them its "codes", as `to_levels` gives them; and the classes.

        Raises:
            ValueError: As the base, or if the codes are other maps than the first stage has.
        """
        if not (isinstance(batch, Mapping) and "codes" in batch):
            return super().images_and_context(batch)
        maps, stage = list(batch["codes"]), self.first_stage
        shapes = stage.code_shape if isinstance(stage.code_shape, list) else [stage.code_shape]
        if [tuple(each.shape[1:]) for each in maps] != shapes or {each.dtype for each in maps} != {torch.int64}:
            wanted = " and ".join(f"[N, {height}, {width}]" for height, width in shapes)
            found = [f"{each.dtype} {list(each.shape)}" for each in maps]
            raise ValueError(f"Codes of a {type(stage).__name__} are int64 {wanted}, but the data gives {found}.")
        labels = None if self.num_classes is None else parts_of(batch)[1]
        captions = None if self.text is None else batch.get("caption")
        return self._in_levels(maps), self.context(len(maps[0]), labels, captions=captions)

    def to_images(self, levels: list[Tensor]) -> Tensor:  # type: ignore[override]
        """What the first stage makes of codes: float32 `[N, C, H, W]` in `[-1, 1]`."""
        maps = [codes for level in levels for codes in level.unbind(1)]
        with torch.autocast(self.device.type, enabled=False):
            return self.first_stage.decode(maps if isinstance(self.first_stage.code_shape, list) else maps[0])

    def seen(self, images: Tensor, levels: list[Tensor] | None = None) -> list[Tensor]:  # type: ignore[override]
        """What the networks look at: all codes."""
        return self.to_levels(images) if levels is None else levels

    def draw_levels(  # type: ignore[override]
        self, num_samples: int, context: Context, generator: torch.Generator, **settings: Any
    ) -> list[Tensor]:
        """Codes, from coarse to fine."""
        maps = [torch.zeros(num_samples, *shape, dtype=torch.int64) for shape in self.level_shapes]
        holes = [torch.ones(num_samples, *shape[1:], dtype=torch.bool) for shape in self.level_shapes]
        return self.fill_all(maps, holes, context, generator, **settings)

    def fill_hole(
        self, images: Tensor, hole: Tensor, context: Context, generator: torch.Generator, **settings: Any
    ) -> Tensor:
        """Pictures decoded from codes that are new where they stand for pixels of the hole."""
        known = ~hole.unsqueeze(1)
        mean = images.where(known, 0.0).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
        maps = self.to_levels(self.own(images.where(known, mean).to(self.device)))
        # A code stands for its share of the picture, and more pixels around it have but a say.
        touched = [F.adaptive_max_pool2d(hole.unsqueeze(1).float(), shape[1:]) > 0 for shape in self.level_shapes]
        holes = [each.squeeze(1) for each in touched]
        return self.to_images(self.fill_all(maps, holes, context, generator, **settings))

    def fill_all(
        self, maps: list[Tensor], holes: list[Tensor], context: Context, generator: torch.Generator, **settings: Any
    ) -> list[Tensor]:
        """Codes as `to_levels` gives them, of which those in holes are drawn, each map given the coarser ones.

        Args:
            maps: Int64 `[N, channels, h, w]` each, on the CPU.
            holes: Bool `[N, h, w]` each.
            context: What networks are given besides, as `sampling_context` makes it.
            generator: Of the noise, on the CPU.
            **settings: As of `sample`.
        """
        filled: list[Tensor] = []
        networks = cast(CodeNetworks, self.network)
        for number, (codes, hole, shape) in enumerate(zip(maps, holes, self.level_shapes, strict=True)):
            given = {**context, **networks.given(number, filled)}
            order, network = Order(raster_order(*shape[1:])), networks.levels[number]
            filled.append(self.fill(codes, hole, order, given, generator, network, **settings))
        return filled

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """AdamW, whose decay is of matrices and not of the vectors that scale features."""
        parameters = list(parameters)
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        given = [group for group in groups if group["params"]]
        return torch.optim.AdamW(given, lr=self.learning_rate, betas=(0.9, 0.95), fused=True)


class CodeNetworks(nn.Module):
    """Networks of maps of codes, from coarse to fine, each with vectors of its own for the codes of coarser maps."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.coarser = nn.ModuleList(), nn.ModuleList()

    def add(self, network: nn.Module, coarser: list[LevelEmbedding]) -> None:
        """Another network, of a finer map, and vectors for the codes of each coarser one.

        Raises:
            ValueError: If the network looks at codes as numbers.
        """
        if not hasattr(network, "embed"):
            raise ValueError(
                f"Codes are in no order, so a network must have vectors for them, and {type(network).__name__} takes "
                "them as numbers. Give it an embedding, of 64 say, or take GPTNetwork, which has one."
            )
        self.levels.append(network)
        self.coarser.append(nn.ModuleList(coarser))

    def forward(self, maps: list[Tensor], **context: Any) -> list[Tensor]:
        """Maps of codes, int64 `[N, C, h, w]`, to the parameters of each, given the coarser ones."""
        return [
            level(cast(Any, level).embed(codes), **context, **self.given(number, maps))
            for number, (level, codes) in enumerate(zip(self.levels, maps, strict=True))
        ]

    def given(self, number: int, maps: list[Tensor]) -> dict[str, Tensor]:
        """What the network of a map is given of the coarser ones: vectors of their codes, enlarged to its size."""
        if not number:
            return {}
        size = cast(Any, self.levels[number]).image_shape[1:]
        vectors = [
            vectors(codes) for vectors, codes in zip(cast(nn.ModuleList, self.coarser[number]), maps, strict=False)
        ]
        return {"condition": torch.cat([F.interpolate(each, size, mode="nearest-exact") for each in vectors], dim=1)}
