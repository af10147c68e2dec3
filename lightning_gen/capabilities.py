"""What a model can do, asked for with protocols and not with names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lightning_gen.schedules import Growing, Stage

Direction = Literal["AtoB", "BtoA"]


@runtime_checkable
class Translates(Protocol):
    """A model that maps one domain of pictures to another."""

    directions: tuple[Direction, ...]

    def translate(self, images: Tensor, direction: Direction = "AtoB") -> Tensor:
        """`[N, C, H, W]` in `[-1, 1]`, any H and W, to the same shape in the other domain."""
        ...


@runtime_checkable
class Samples(Protocol):
    """A model that draws pictures."""

    num_classes: int | None
    """Number of classes that it draws on demand, or None where pictures have no labels."""

    def sample(
        self, num_samples: int, *, labels: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """float32 `[N, C, H, W]` in `[-1, 1]`, without a graph; modes and the global random state stay as found.

        Other keyword-only arguments of a model's own are its settings, such as a temperature: options of the commands
        that draw, and `sampling` of the callbacks that do.

        Args:
            num_samples: N, any number.
            labels: Classes `[N]`, int64, or one for all; None draws them evenly. Only for models with classes.
            generator: On the CPU, whatever the model's device. Makes the result a function of its state; None draws
                from fresh entropy.
        """
        ...


@runtime_checkable
class HasLatents(Samples, Protocol):
    """A model whose pictures are a function of latents; `lightning_gen.sampling.LatentSampling` has the methods."""

    latent_shape: tuple[int, ...]
    """Of one latent: `(D,)` for a vector, `(C, H, W)` for maps."""

    def draw_latents(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[N, *latent_shape]` from the prior, on the model's device."""
        ...

    def generate(self, latents: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """The pictures of latents `[N, *latent_shape]`: float32 `[N, C, H, W]`, under the same promises as `sample`.

        Settings that the model's own `sample` takes beside labels and generator, it takes too.
        """
        ...


@runtime_checkable
class Judges(HasLatents, Protocol):
    """A model with a discriminator, or critic, of single pictures."""

    def judge(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores `[N, ...]` of pictures `[N, C, H, W]` and, in models with classes, their labels; more is more real."""
        ...


@runtime_checkable
class HasLogProb(Protocol):
    """A model with a density; the attribute `bound` is the name of what it gives where that is a bound, as "elbo"."""

    def log_prob(self, images: Tensor) -> Tensor:
        """Nats per image `[N]` of pictures `[N, C, H, W]` in `[-1, 1]`; what else it takes, as labels, goes by name."""
        ...


@runtime_checkable
class Completes(Protocol):
    """A model that fills in what is missing of a picture."""

    num_levels: int
    """Levels of each channel of a pixel, evenly spaced from -1 to 1, which known pixels must have."""

    def complete(
        self,
        images: Tensor,
        known: Tensor,
        *,
        labels: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Pictures whose unknown pixels are drawn given the others, under the same promises as `Samples.sample`.

        Args:
            images: `[N, C, H, W]` in `[-1, 1]`, of levels where known, of anything elsewhere.
            known: Bool `[H, W]`, or `[N, H, W]` or `[N, 1, H, W]` for a mask of its own for each picture; False where
                pixels are drawn.
            labels: As for `Samples.sample`.
            generator: As for `Samples.sample`.
            temperature: 1 draws from the model, 0 takes the likeliest.

        Returns:
            float32 `[N, C, H, W]`: known pixels bit for bit as they were.
        """
        ...


@runtime_checkable
class HasStyles(HasLatents, Protocol):
    """A model that maps its latents to styles, w, before it draws."""

    def map_latents(self, latents: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """The styles `[N, ...]` of latents `[N, *latent_shape]`, such as `[N, layers, width]`."""
        ...

    def synthesize(self, styles: Tensor) -> Tensor:
        """The pictures of styles: float32 `[N, C, H, W]`, a function of them alone, as `generate` promises."""
        ...


@runtime_checkable
class HasLayerStyles(HasStyles, Protocol):
    """A model whose layers each have a style, `[N, layers, width]`, which may be another in each of them."""

    image_shape: tuple[int, int, int]

    def truncate(self, styles: Tensor, psi: float, truncated_layers: int | None = None) -> Tensor:
        """Styles of which the first so many layers' are at psi of their way from the mean; None leaves it to the model.

        A number out of range is a `ValueError`.
        """
        ...

    def synthesize_from(self, styles: Tensor, *, noise: Sequence[Tensor]) -> Tensor:
        """The pictures of styles, with a graph and not cut to [-1, 1], in evaluation mode; modes stay as found.

        Noise is maps for each layer, as `noise_maps` gives them.
        """
        ...

    def noise_maps(self) -> list[Tensor]:
        """Those of N(0, 1) that all pictures have of each layer, `[1, 1, H, W]`; a list of none without noise."""
        ...

    def style_weights(self) -> list[Tensor]:
        """By which each layer multiplies its style: `[outputs, width]`."""
        ...


@runtime_checkable
class Grows(Protocol):
    """A model whose pictures grow while it learns."""

    images_seen: int
    """Real pictures so far, over all processes."""

    @property
    def growing(self) -> Growing | None:
        """Its schedule; None where it has full size from the start."""
        ...

    @property
    def stage(self) -> Stage:
        """What holds for the next picture."""
        ...


@runtime_checkable
class Augments(Protocol):
    """A model whose discriminators can be shown augmented pictures."""

    augment: object | None
    """How; None where they see pictures as they are."""

    def augmented(self, images: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` as they are augmented now, each with draws of its own."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A model that encodes pictures and decodes them again."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """What is left of pictures `[N, C, H, W]`: float32 of the same shape, as `Samples.sample` promises."""
        ...


@runtime_checkable
class HasCodes(Reconstructs, Protocol):
    """A model that encodes pictures as whole numbers, in one map or in several from coarse to fine."""

    num_codes: int
    """Codes lie in 0 .. num_codes - 1."""
    code_shape: tuple[int, int] | list[tuple[int, int]]
    """(h, w) of the map; one for each where there are several."""

    def codes(self, images: Tensor) -> Tensor | list[Tensor]:
        """int64 `[N, h, w]` of pictures `[N, C, H, W]` in `[-1, 1]`, or a list of such maps."""
        ...

    def decode(self, codes: Tensor | list[Tensor]) -> Tensor:
        """The pictures of codes as `codes` gives them: float32 `[N, C, H, W]`, without a graph."""
        ...


@runtime_checkable
class ScoresCaptions(Protocol):
    """A model that says how well captions fit pictures."""

    def score(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Float32 `[N]`, without a graph, of pictures `[N, C, H, W]` in `[-1, 1]` and N texts: more is better.

        Modes and the global random state stay as found.
        """
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """What a model reads captions with; a frozen dataclass of plain data, so that a checkpoint holds it."""

    @property
    def num_tokens(self) -> int:
        """Tokens lie in 0 .. num_tokens - 1."""
        ...

    @property
    def length(self) -> int:
        """Tokens of every caption."""
        ...

    @property
    def padding(self) -> int:
        """The token that stands in the places that a caption leaves of its length."""
        ...

    def __call__(self, captions: Sequence[str], rng: np.random.Generator | None = None) -> Tensor:
        """int64 `[N, length]` on the host, of N captions.

        Args:
            captions: N texts.
            rng: In training, the source of what is random about tokens; without it nothing is.
        """
        ...
