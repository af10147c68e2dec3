"""Drawing pictures: how many at once, and from latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gen.generative import GenerativeModule
from lightning_gen.latents import numbered_latents
from lightning_gen.modes import evaluating
from lightning_gen.randomness import chosen_generator, fresh_generator

Latents = Literal["normal", "uniform"]


def samples_at_once(image_shape: tuple[int, int, int]) -> int:
    """How many pictures are drawn in one call of a network: 256, and fewer of those above 64 x 64 in colour."""
    return min(256, max(1, 2**22 // math.prod(image_shape)))


def draw_best(
    model: Any,
    captions: Sequence[str],
    candidates: int,
    score: Callable[[Tensor, Sequence[str]], Tensor],
    generator: torch.Generator,
    **settings: Any,
) -> Tensor:
    """A picture for each caption, the best of several.

    Args:
        model: Draws pictures of captions.
        captions: N texts.
        candidates: Pictures drawn for each.
        score: Of pictures `[M, C, H, W]` and M texts, `[M]`: more is better.
        generator: Of the noise.
        **settings: Of the model's own `sample`.

    Returns:
        float32 `[N, C, H, W]`.
    """
    repeated = [caption for caption in captions for _ in range(candidates)]
    images: Tensor = model.sample(len(repeated), captions=repeated, generator=generator, **settings)
    best = score(images, repeated).view(-1, candidates).argmax(1)
    return images.unflatten(0, (-1, candidates))[torch.arange(len(best), device=best.device), best]


class LatentSampling(GenerativeModule):
    """Pictures from latents, for models that have a prior of them; mixed into a `GenerativeModule`.

    A subclass sets `latent_shape` and has `generate_from`. One whose `sample` has settings of its own overrides it:

        def sample(self, num_samples, *, labels=None, generator=None, seed=None, psi: float = 1.0):
            labels = self.sampling_context(num_samples, labels).get("labels")
            return self.generate(self.chosen_latents(num_samples, generator, seed), labels, psi=psi)
    """

    latent_shape: tuple[int, ...]
    """Of one latent, `(D,)` for a vector, `(C, H, W)` for maps."""
    latent_distribution: Latents = "normal"
    """Their prior: "normal" for N(0, 1), "uniform" for U(-1, 1)."""

    generate_from: Callable[..., Tensor]
    """From latents `[N, *latent_shape]` and labels `[N]` or None, and settings of the model's own by name, to pictures
    `[N, C, H, W]`: with a graph, in the mode that the network is in."""

    def latents(self, num: int) -> Tensor:
        """Latents `[num, *latent_shape]` for training, from the random state of this rank and batch."""
        return self._draw_latents(num, self.device, None)

    def draw_latents(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[N, *latent_shape]` from the prior, on the model's device; the global random state stays as found.

        Args:
            num_samples: N.
            generator: Makes them a function of its state, and of its device; None draws from fresh entropy.
        """
        generator = generator or fresh_generator()
        return self._draw_latents(num_samples, generator.device, generator).to(self.device)

    def chosen_latents(self, num_samples: int, generator: torch.Generator | None, seed: int | None) -> Tensor:
        """Latents `[N, *latent_shape]` as `sample` is asked for them: of a generator, or those of a seed by number."""
        generator = chosen_generator(generator, seed)
        if seed is None or not num_samples:
            return self.draw_latents(num_samples, generator)
        return numbered_latents(self, range(num_samples), seed)

    def _draw_latents(self, num: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        # Never in halves, which have few numbers; so a seed means the same pictures whatever the weights are.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        size, settings = (num, *self.latent_shape), {"device": device, "dtype": dtype, "generator": generator}
        if self.latent_distribution == "uniform":
            return torch.rand(size, **settings) * 2 - 1  # type: ignore[call-overload]
        return torch.randn(size, **settings)  # type: ignore[call-overload]

    @torch.no_grad()
    def generate(self, latents: Tensor, labels: Tensor | int | None = None, **settings: Any) -> Tensor:
        """The pictures of latents.

        Args:
            latents: `[N, *latent_shape]`.
            labels: Classes `[N]`, int64, or one for all; needed where the model has classes.
            **settings: What `generate_from` takes besides, if anything.

        Returns:
            float32 `[N, C, H, W]` in `[-1, 1]`.

        Raises:
            ValueError: If the latents have another shape, or labels are missing, surplus or out of range.
        """
        if latents.shape[1:] != self.latent_shape:
            raise ValueError(
                f"Latents must be [N, {', '.join(map(str, self.latent_shape))}] for this {type(self).__name__}, got "
                f"{list(latents.shape)}."
            )
        # On the host, where a look at labels costs no wait.
        labels = None if labels is None else torch.as_tensor(labels).cpu()
        labels = self.context(len(latents), labels).get("labels")
        size = samples_at_once(self.image_shape)
        images = [torch.empty(0, *self.image_shape, dtype=torch.float32, device=self.device)]
        with evaluating(self):
            for start in range(0, len(latents), size):
                part = slice(start, start + size)
                given = None if labels is None else labels[part]
                images.append(self.generate_from(latents[part].to(self.device), given, **settings).float())
        return torch.cat(images)

    def sample(
        self,
        num_samples: int,
        *,
        labels: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Pictures from noise: float32 `[N, C, H, W]` in `[-1, 1]`; see `lightning_gen.capabilities.Samples`.

        Args:
            num_samples: N.
            labels: See `Samples`.
            generator: See `Samples`.
            seed: In place of a generator, 0 or more: the pictures of `lightning-gen sample --seed`, each a function of
                the seed and its number alone.

        Raises:
            ValueError: If `num_samples` is negative, or labels are surplus, out of range or not `num_samples` many; or
                if generator and seed are both given.
        """
        labels = self.sampling_context(num_samples, labels).get("labels")
        return self.generate(self.chosen_latents(num_samples, generator, seed), labels)
