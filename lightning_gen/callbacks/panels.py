"""What pictures show of a model: one panel for each thing that it can do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor

from lightning_gen.capabilities import (
    Augments,
    Direction,
    HasLatents,
    HasLayerStyles,
    Reconstructs,
    Samples,
    Translates,
)
from lightning_gen.data.batches import as_floats, batch_pictures
from lightning_gen.data.grids import captioned_grid, mixing_grid, picture_grid, square_grid
from lightning_gen.data.images import from_uint8, to_uint8
from lightning_gen.data.point_clouds import draw_points, landscape
from lightning_gen.data.toy import PointDistribution
from lightning_gen.generative import GenerativeModule
from lightning_gen.settings import checked_settings
from lightning_gen.styles import bands_of, mixed

Images = Mapping[str, Image.Image]
MIN_REAL, MAX_REAL_BYTES = 4, 4_000_000  # of real pictures beside samples


@dataclass
class FirstPictures:
    """The first pictures that come along in batches."""

    limit: int = 0  # of each domain
    pictures: dict[str, list[Tensor]] = field(default_factory=dict)  # by domain, uint8 [C, H, W]; sizes may differ
    source: str = ""  # where the first ones came from; no others are taken
    paired: bool = False  # whether A and B show the same scenes
    passed: int = 0  # how many have come along in this pass over the source
    captions: list[str | list[int]] = field(default_factory=list)  # of these pictures, or what a model made of them
    shown: int = 0  # how many a `RealPanel` has shown

    def take(self, batch: Any, source: str) -> None:
        """Take pictures from a batch until there are enough.

        A pass that begins anew (set `passed` to 0) shows those again that an earlier one has shown; they are left out.
        """
        if self.source not in ("", source):
            return
        passed = self.passed
        for domain, images in batch_pictures(batch).items():
            taken = self.pictures.setdefault(domain, [])
            if len(new := images[self._new(taken)]):
                taken.extend(to_uint8(as_floats(new.detach(), type(self).__name__)).cpu())
                self.source, self.paired = source, "paired" in batch
            passed = self.passed + len(images)
        said = batch.get("caption") if isinstance(batch, Mapping) else None
        if said is not None:  # also of codes, where there are no pictures
            said = said.tolist() if isinstance(said, Tensor) else said
            self.captions.extend(said[self._new(self.captions)])
            passed = self.passed + len(said)
            self.source = source
        self.passed = passed

    def _new(self, taken: Sequence[Any]) -> slice:
        """Which of a batch are wanted and not known yet."""
        known = max(0, len(taken) - self.passed)
        return slice(known, known + max(0, self.limit - len(taken)))


class Panel(ABC):
    """Something to look at in a model, as one picture or several.

    Args:
        number: How many of each kind it shows, at most; None means `number` of the class.
        sampling: Settings of the model's own `sample`, where the panel samples.
    """

    needs: ClassVar[type]  # the protocol that models must follow
    number: int
    shows_data: ClassVar[bool] = False  # whether it shows what becomes of pictures of the data

    def __init__(self, number: int | None = None, sampling: dict[str, Any] | None = None) -> None:
        self.number = number or self.number
        self.sampling = sampling
        self.settings: dict[str, Any] = {}

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a model, in the name of a callback.

        Raises:
            TypeError: If it has not what is needed.
            ValueError: If what it gives cannot be drawn.
            ArgumentError: If a setting is not one of the model's.
        """
        require(self.needs, owner, pl_module)
        if self.needs is Samples:
            self.settings = checked_settings(pl_module, self.sampling, owner)

    @abstractmethod
    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """Pictures by name, drawn from the present weights; called within `looking`, on rank zero."""


class TranslationPanel(Panel):
    """What a model makes of pictures of each domain, as "AtoB" and "BtoA".

    "AtoB" has a row for each picture of A and the columns "A", "A to B", and where the model translates back,
    "A to B to A" and "identity of A": what the translator into A makes of A itself, which should be A. Where the data
    is paired, "B (target)" shows the true counterpart. "BtoA" is its mirror image. Where the data has names of its own,
    as in `domains` ("day", "night"), these are the titles.
    """

    needs = Translates
    number = 4
    shows_data = True

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """One grid for each direction, by its name."""
        model = cast(Translates, pl_module)

        def translate(images: list[Tensor], direction: Direction) -> list[Tensor]:
            """One by one, for pictures may differ in size."""
            convert = trainer.precision_plugin.convert_input
            return [model.translate(convert(image[None]), direction)[0] for image in images]

        grids: dict[str, Image.Image] = {}
        names = {"A": "A", "B": "B", **dict(zip("AB", domains_of(trainer), strict=False))}
        for direction in model.directions:
            source, target = direction[0], direction[-1]
            here, there = names[source], names[target]
            back = cast(Direction, f"{target}to{source}")
            given = inputs.pictures.get(source, [])[: self.number]
            if not given:
                continue
            real = [from_uint8(picture).to(pl_module.device) for picture in given]
            fake = translate(real, direction)
            columns = {here: real, f"{here} to {there}": fake}
            if back in model.directions:
                columns[f"{here} to {there} to {here}"] = translate(fake, back)
                columns[f"identity of {here}"] = translate(real, back)
            pictures = {title: [to_uint8(image).cpu() for image in images] for title, images in columns.items()}
            if inputs.paired:
                pictures[f"{there} (target)"] = inputs.pictures[target][: self.number]
            grids[direction] = picture_grid(pictures)
        return grids


class ReconstructionPanel(Panel):
    """Pictures and what is left of them when they are encoded and decoded, as "reconstructions"."""

    needs = Reconstructs
    number = 8
    shows_data = True

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """One grid with a row for each picture."""
        given = next(iter(inputs.pictures.values()), [])[: self.number]
        if not given:
            return {}
        images = trainer.precision_plugin.convert_input(from_uint8(torch.stack(given)).to(pl_module.device))
        left = to_uint8(cast(Reconstructs, pl_module).reconstruct(images)).cpu()
        return {"reconstructions": picture_grid({"picture": given, "reconstruction": left})}


class AugmentationPanel(Panel):
    """Pictures of the data as discriminators are shown them, with four draws each, as "augmented"; in training only."""

    needs = Augments
    number = 4
    shows_data = True

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whether pictures are augmented."""
        super().check(owner, trainer, pl_module)
        if cast(Augments, pl_module).augment is None:
            raise ValueError(
                f"{owner} shows augmented pictures; this {type(pl_module).__name__} augments none. Take {owner} out of "
                "trainer.callbacks."
            )

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """One grid, of all domains."""
        given = [picture for pictures in inputs.pictures.values() for picture in pictures[: self.number]]
        if not given or trainer.state.fn != TrainerFn.FITTING or given[0].shape[0] not in (1, 3):
            return {}
        columns = [("picture", given)]
        for _ in range(4):  # one by one, for pictures may differ in size
            images = (from_uint8(picture).to(pl_module.device)[None] for picture in given)
            shown = [cast(Augments, pl_module).augmented(image)[0] for image in images]
            columns.append(("augmented", [to_uint8(image).cpu() for image in shown]))
        return {"augmented": picture_grid(columns)}


class SamplePanel(Panel):
    """Pictures drawn from the same noise each time, as "samples".

    Models with classes have a row for each, in order, no longer than a square grid's, or a square of one picture of
    each class where there are too many for that.
    """

    needs = Samples
    number = 64

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whether it samples pictures, not points, with nothing else given."""
        super().check(owner, trainer, pl_module)
        if isinstance(pl_module, GenerativeModule):
            shape, condition = pl_module.image_shape, pl_module.condition_channels
            if shape[0] not in (1, 3) or shape[1:] == (1, 1) or condition is not None or pl_module.text is not None:
                given = f"condition_channels {condition}" if pl_module.text is None else "captions"
                raise ValueError(
                    f"{owner} draws pictures of 1 or 3 channels from noise and classes; {type(pl_module).__name__} has "
                    f"image_shape {shape} and {given}. Take {owner} out of trainer.callbacks."
                )

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """One grid."""
        model = cast(Samples, pl_module)
        labels, columns = self.labels(model.num_classes)
        number = self.number if labels is None else len(labels)
        noise = torch.Generator().manual_seed(0)
        images = model.sample(number, labels=labels, generator=noise, **self.settings)
        return {"samples": square_grid(list(to_uint8(images).cpu()), columns)}

    def labels(self, num_classes: int | None) -> tuple[Tensor | None, int]:
        """Classes of the pictures, row by row, and how many stand in a row."""
        square = math.ceil(math.sqrt(self.number))
        if num_classes is None:
            return None, square
        in_a_row = min(square, self.number // num_classes)
        if in_a_row < 2:
            labels = torch.arange(min(num_classes, self.number))
            return labels, math.ceil(math.sqrt(len(labels)))
        return torch.arange(num_classes).repeat_interleave(in_a_row), in_a_row


class RealPanel(SamplePanel):
    """Pictures of the data, as many as there are samples beside them, as "real"; in training, when there are new ones.

    Of large pictures there are fewer, for a checkpoint keeps them.
    """

    shows_data = True

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As samples are checked."""
        super().check(owner, trainer, pl_module)
        bytes_each = math.prod(getattr(pl_module, "image_shape", (1,)))
        self.number = min(self.number, max(MIN_REAL, MAX_REAL_BYTES // bytes_each))

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """One grid, unless it is known."""
        given = next(iter(inputs.pictures.values()), [])[: self.number]
        if len(given) <= inputs.shown or trainer.state.fn != TrainerFn.FITTING:
            return {}
        inputs.shown = len(given)
        return {"real": square_grid(given)}


class CaptionPanel(Panel):
    """Pictures drawn of captions of the data, from the same noise each time, as "captions"."""

    needs = Samples
    number = 16
    shows_data = True

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whether it draws pictures of captions."""
        super().check(owner, trainer, pl_module)
        model = cast(GenerativeModule, pl_module)
        if getattr(model, "text", None) is None or model.image_shape[0] not in (1, 3):
            raise ValueError(
                f"{owner} draws pictures of 1 or 3 channels of captions; {type(model).__name__} does not. Take {owner} "
                "out of trainer.callbacks."
            )

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """One grid."""
        model: Any = pl_module
        given = [said if isinstance(said, str) else model.text.decode(said) for said in inputs.captions[: self.number]]
        if not given:
            return {}
        noise = torch.Generator().manual_seed(0)
        images = model.sample(len(given), captions=given, generator=noise, **self.settings)
        return {"captions": captioned_grid(list(to_uint8(images).cpu()), given)}


class StylePanel(SamplePanel):
    """What styles do, as "styles" and "truncation"; only for models without classes.

    "styles" has pictures with the coarse, the middle and the fine styles of those above them, as `lightning-gen styles`
    does; "truncation" draws styles to their mean and beyond in all layers, a column for each psi.
    """

    needs = HasLayerStyles
    number = 6

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whether layers have styles, and pictures nothing else that they depend on."""
        super().check(owner, trainer, pl_module)
        if (classes := cast(HasLayerStyles, pl_module).num_classes) is not None:
            raise ValueError(
                f"{owner} draws styles of a model without classes; {type(pl_module).__name__} has num_classes "
                f"{classes}. Take {owner} out of trainer.callbacks."
            )

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """Both grids."""
        model = cast(HasLayerStyles, pl_module)

        def drawn(styles: Tensor) -> list[Tensor]:
            return list(to_uint8(model.synthesize(styles)).cpu())

        number = min(self.number, type(self).number)
        styles = model.map_latents(model.draw_latents(number + 3, torch.Generator().manual_seed(0)))
        lent, own, layers = styles[:number], styles[number:], styles.shape[1]
        bands = bands_of(layers)
        mixtures = [drawn(mixed(w, lent, band)) for w, band in zip(own, bands.values(), strict=False)]
        left = drawn(own[: len(bands)])
        columns = {f"{psi:g}": drawn(model.truncate(lent, psi, layers)) for psi in (1, 0.7, 0.5, 0, -0.5, -1)}
        return {
            "styles": mixing_grid(columns["1"], left, mixtures, list(bands)),
            "truncation": picture_grid(columns),
        }


class LatentMapPanel(SamplePanel):
    """The pictures of all latents where these have two dimensions, as "latent_map" (1312.6114, figure 4).

    The plane is seen through the prior: the pictures stand at equal steps of probability, in the middle of as many
    equal shares, so that each is as likely as any other. The first number of the latents grows from left to right, the
    second from bottom to top. Only for models without classes.
    """

    needs = HasLatents
    number = 400

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whether latents have two dimensions, and pictures nothing else that they depend on."""
        super().check(owner, trainer, pl_module)
        model = cast(HasLatents, pl_module)
        if model.latent_shape != (2,) or model.num_classes is not None:
            raise ValueError(
                f"{owner} draws a map of two latents in a model without classes; {type(pl_module).__name__} has "
                f"latent_shape {model.latent_shape} and num_classes {model.num_classes}. Take {owner} out of "
                "trainer.callbacks."
            )

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """One grid."""
        side = math.isqrt(self.number)
        shares = (torch.arange(side, dtype=torch.float32) + 0.5) / side
        uniform = getattr(pl_module, "latent_distribution", "normal") == "uniform"
        places = shares * 2 - 1 if uniform else torch.special.ndtri(shares)
        up, right = torch.meshgrid(places.flip(0), places, indexing="ij")
        images = cast(HasLatents, pl_module).generate(torch.stack([right, up], -1).flatten(0, 1))
        return {"latent_map": square_grid(list(to_uint8(images).cpu()), side)}


class PointPanel(Panel):
    """Points before those of a truth that is known, as "samples".

    In two dimensions points of the truth are faint and the model's samples bright. On the line it is a histogram of the
    samples, with the true density as a line (for truths other than a mixture, a histogram of points from it). The
    picture shows [-1.2, 1.2] on each axis. The noise of the samples and the points of the truth stay the same.

    The ground shows the discriminator's scores in bands between the lowest (dark) and the highest in view, if the model
    has a `discriminator` and no classes.
    """

    needs = Samples
    number = 1000

    def __init__(
        self,
        number: int | None = None,
        sampling: dict[str, Any] | None = None,
        size: int = 512,
        landscape: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(number, sampling)
        self.size, self.landscape, self.seed = size, landscape, seed

    def check(self, owner: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whether there are samples, and a truth that can be drawn."""
        super().check(owner, trainer, pl_module)
        self.truth = truth_of(owner, trainer)
        if self.truth.dimensions > 2:
            raise ValueError(f"{owner} draws points with one or two coordinates, these have {self.truth.dimensions}.")

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: FirstPictures) -> Images:
        """The one picture."""
        samples = sample_points(pl_module, self.number, self.seed, **self.settings)
        discriminator = getattr(pl_module, "discriminator", None)
        scores = None
        if self.landscape and discriminator is not None and cast(Samples, pl_module).num_classes is None:
            scores = landscape(discriminator, self.truth.dimensions, pl_module.device)
        return {"samples": draw_points(self.truth, samples, scores, size=self.size, seed=self.seed + 1)}


def require(protocol: type, owner: str, pl_module: pl.LightningModule) -> None:
    """Refuse a model that does not follow a protocol of `capabilities`, in the name of a callback.

    Raises:
        TypeError: If it does not; the message says what it lacks.
    """
    if not isinstance(pl_module, protocol):
        lacking = [name for name in vars(protocol) if name[0] != "_" and getattr(pl_module, name, None) is None]
        lacking += [name for name in protocol.__annotations__ if not hasattr(pl_module, name)]
        raise TypeError(
            f"{owner} needs a model that follows capabilities.{protocol.__name__}; {type(pl_module).__name__} has no "
            f"`{'` and no `'.join(lacking)}`. Take {owner} out of trainer.callbacks."
        )


def domains_of(trainer: pl.Trainer) -> tuple[str, ...]:
    """The data's own names of A and B, such as day and night; none where it has none."""
    data = getattr(trainer, "datamodule", None)
    return tuple(map(str, getattr(data, "domains", None) or ()))


def truth_of(owner: str, trainer: pl.Trainer) -> PointDistribution:
    """The distribution that a model is to learn, where the data knows it.

    Raises:
        TypeError: If it does not; in the name of the owner, a callback.
    """
    data = getattr(trainer, "datamodule", None)
    truth = getattr(data, "distribution", None)
    if not isinstance(truth, PointDistribution):
        given = "no data module" if data is None else type(data).__name__
        raise TypeError(
            f"{owner} needs a data module that knows its `distribution`, such as GridOfGaussians; got {given}. "
            f"Use one of lightning_gen.data.toy, or take {owner} out of trainer.callbacks."
        )
    return truth


def sample_points(pl_module: pl.LightningModule, number: int, seed: int, **settings: Any) -> Tensor:
    """Points `[N, d]` on the CPU, float32."""
    generator = torch.Generator().manual_seed(seed)
    return cast(Samples, pl_module).sample(number, generator=generator, **settings).flatten(1).float().cpu()
