"""What a model can do, asked for with protocols and not with names."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

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
        `sample` and `evaluate`.

        Args:
            num_samples: N, any number.
            labels: Classes `[N]`, int64, or one for all; None draws them evenly. Only for models with classes.
            generator: On the CPU, whatever the model's device. Makes the result a function of its state; None draws
                from fresh entropy.
        """
        ...


@runtime_checkable
class HasLatents(Samples, Protocol):
    """A model whose pictures are a function of a latent vector."""

    latent_size: int

    def draw_latents(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[N, latent_size]` from the prior, on the model's device."""
        ...

    def generate(self, latents: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """The pictures of latents `[N, latent_size]`: float32 `[N, C, H, W]`, under the same promises as `sample`.

        Settings that the model's own `sample` takes beside labels and generator, it takes too.
        """
        ...


@runtime_checkable
class HasLogProb(Protocol):
    """A model with a density."""

    def log_prob(self, images: Tensor) -> Tensor:
        """Nats per image `[N]` of pictures `[N, C, H, W]` in `[-1, 1]`; a bound says so in its docstring."""
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
            known: Bool `[H, W]`, or `[N, H, W]` for a mask of its own for each picture; False where pixels are drawn.
            labels: As for `Samples.sample`.
            generator: As for `Samples.sample`.
            temperature: 1 draws from the model, 0 takes the likeliest.

        Returns:
            float32 `[N, C, H, W]`: known pixels bit for bit as they were.
        """
        ...


@runtime_checkable
class HasIntermediateLatents(HasLatents, Protocol):
    """A model that maps its latents to others, w, before it draws."""

    def map_latents(self, latents: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """The w `[N, ...]` of latents `[N, latent_size]`."""
        ...

    def synthesize(self, intermediate: Tensor) -> Tensor:
        """The pictures of w `[N, ...]`: float32 `[N, C, H, W]`, under the same promises as `generate`."""
        ...
