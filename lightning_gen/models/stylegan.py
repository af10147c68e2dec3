"""StyleGAN (Karras et al. 2018, 1812.04948)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.layers.style import Noise
from lightning_gen.losses.adversarial import AdversarialLoss
from lightning_gen.losses.penalties import R1, Penalty
from lightning_gen.models.gan import GeneratorFactory
from lightning_gen.models.growing import GrowingGAN
from lightning_gen.models.training import NetworkFactory
from lightning_gen.modes import evaluating
from lightning_gen.networks.stylegan import StyleGANDiscriminator, StyleGANGenerator, StyleLayer
from lightning_gen.processes import total, world_size
from lightning_gen.randomness import fresh_generator, seed_from
from lightning_gen.sampling import Latents, samples_at_once
from lightning_gen.schedules import Growing

MEMORY = 0.995  # of the running mean of styles: what a batch leaves of it


class StyleGAN(GrowingGAN):
    """A mapping of latents to styles, which say in each layer what its features' means and deviations are.

    Paper (1812.04948, authors' code): networks as `StyleGANGenerator` and `StyleGANDiscriminator` say; non-saturating
    cross-entropy; Adam at 1e-3, more from 128 pixels on, with (0, 0.99); n_critic 1; batches and growth as for
    `ProGAN`, from 8 x 8 on; 25 million pictures; R1 at 10 on every batch; styles mixed with probability 0.9; EMA with a
    half-life of 10,000 pictures.

    Gradients are those by pixels of the last size, see `GrowingGAN`. With an interval of R1 above 1 the penalty comes
    with the loss, so many times as strong; StyleGAN2's code makes a step of its own of it, with other rates.

    Deviations: the stage is looked at before every batch, in the authors' code before every fourth. The running mean of
    styles moves once a batch, in theirs twice, and is that of all processes. Samples have fixed noise unless told
    otherwise, so that they are functions of their latents; the authors measure with random noise.

    Args:
        image_shape: (channels, height, width) of the last pictures.
        growing: The schedule, for model and data. None trains in full size from the start.
        mixing_probability: How often a batch of fakes has other styles from a random layer on.
        **settings: All others are `GAN`'s, with the paper's defaults.

    Raises:
        ValueError: As `GrowingGAN`, or if the probability is out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = StyleGANGenerator,
        discriminator: NetworkFactory = StyleGANDiscriminator,
        loss: AdversarialLoss | None = None,
        penalties: list[Penalty] | None = None,
        growing: Growing | None = None,
        mixing_probability: float = 0.9,
        latent_size: int = 512,
        latent_distribution: Latents = "normal",
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.0, 0.99),
        **settings: Any,
    ) -> None:
        if not 0 <= mixing_probability <= 1:
            raise ValueError(f"mixing_probability must lie in [0, 1], got {mixing_probability}.")
        super().__init__(
            image_shape,
            generator,
            discriminator,
            loss,
            penalties=[R1()] if penalties is None else penalties,
            growing=growing,
            latent_size=latent_size,
            latent_distribution=latent_distribution,
            learning_rate=learning_rate,
            betas=betas,
            **settings,
        )
        self.mixing_probability = mixing_probability

    # -- training ---------------------------------------------------------------------------------------------------

    def fakes(self, num: int, labels: Tensor | None) -> Tensor:
        """Fakes for training, mostly with the styles of other latents from a layer on, the same for all of them."""
        latents, others = self.latents(num), self.own(self.latents(num))
        layers, device = 2 * (1 + self.synthesis.level(self.stage.resolution)), self.device
        mixed = torch.rand((), device=device) < self.mixing_probability
        cutoff = torch.where(mixed, torch.randint(1, layers, (), device=device), layers)
        return self.generate_from(latents, labels, others=others, cutoff=cutoff)

    def finish_step(self, images: int, *, schedules: bool = True) -> None:
        """As in `GrowingGAN`, and the mean of styles has moved towards that of new ones, as many as real pictures."""
        with torch.no_grad():
            labels = self.random_labels(images)
            styles = self.synthesis.map_latents(self.own(self.latents(images)), labels)[:, 0]
            mean = total(styles.mean(0)) / world_size()
            self.synthesis.mean_style.lerp_(mean.to(self.synthesis.mean_style.dtype), 1 - MEMORY)
        super().finish_step(images, schedules=schedules)

    # -- styles -----------------------------------------------------------------------------------------------------

    @property
    def synthesis(self) -> StyleGANGenerator:
        """The generator, by the type that it has."""
        return cast(StyleGANGenerator, self.generator)

    @torch.no_grad()
    def map_latents(self, latents: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """The styles `[N, layers, style_size]` of latents `[N, latent_size]`, under the same promises as `sample`.

        Raises:
            ValueError: If labels are missing, surplus or out of range.
        """
        given = self.context(len(latents), labels).get("labels")
        with evaluating(self):
            return self.synthesis.map_latents(self.own(latents.to(self.device)), given)

    @torch.no_grad()
    def truncate(self, styles: Tensor, psi: float, truncated_layers: int | None = None) -> Tensor:
        """Styles `[N, layers, style_size]`, drawn towards their mean; arguments are those of `sample`."""
        return self.synthesis.truncate(styles, *self._checked(psi, truncated_layers))

    @torch.no_grad()
    def synthesize(self, styles: Tensor, *, noise: Noise = "fixed", generator: torch.Generator | None = None) -> Tensor:
        """The pictures of styles `[N, layers, style_size]`: float32 `[N, C, H, W]`, under the promises of `sample`.

        Args:
            styles: As `map_latents` gives them, or others in each layer.
            noise: As for `sample`.
            generator: Of random noise; None draws from fresh entropy.

        Raises:
            ValueError: If the styles have another shape.
        """
        shape = (self.synthesis.num_layers, len(self.synthesis.mean_style))
        if styles.shape[1:] != shape:
            raise ValueError(f"Styles must be [N, {shape[0]}, {shape[1]}], got {list(styles.shape)}.")
        seeds = torch.randint(2**62, (len(styles),), generator=generator or fresh_generator()).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        size = samples_at_once(self.image_shape)
        images = [torch.empty(0, *self.image_shape, dtype=torch.float32, device=self.device)]
        for start in range(0, len(styles), size):
            part = slice(start, start + size)
            made = self.synthesize_from(styles[part].to(self.device), noise=noise, generators=generators[part])
            images.append(made.clamp(-1, 1).float())
        return torch.cat(images)

    def synthesize_from(
        self,
        styles: Tensor,
        *,
        noise: Noise | Sequence[Tensor] = "fixed",
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """As `synthesize`, but with a graph, and neither cut to [-1, 1] nor in parts.

        Noise may be maps of each layer, too, as `noise_maps` gives them; random noise has generators.
        """
        if isinstance(noise, str):
            noise = self._checked_noise(noise)
        stage = self.stage
        with evaluating(self):
            made = self.synthesis.synthesize(
                self.own(styles), height=stage.resolution, fade=self.fade, noise=noise, generators=generators
            )
        return F.interpolate(made, scale_factor=float(stage.enlargement))

    def noise_maps(self) -> list[Tensor]:
        """The fixed noise of each layer, `[1, 1, H, W]`."""
        return [cast(StyleLayer, layer).noise.fixed for layer in self.synthesis.layers]

    def style_weights(self) -> list[Tensor]:
        """By which each layer multiplies its style: `[2 * channels, style_size]`, scales first and then shifts."""
        affine = [cast(StyleLayer, layer).style.affine for layer in self.synthesis.layers]
        return [linear.weight.detach() * linear.scale for linear in affine]

    def generate_from(
        self,
        latents: Tensor,
        labels: Tensor | None,
        *,
        psi: float = 1.0,
        truncated_layers: int | None = None,
        noise: Noise | None = None,
        **mixing: Any,
    ) -> Tensor:
        """As in `GrowingGAN`; noise is random in training mode, else fixed, unless it is said here."""
        psi, layers = self._checked(psi, truncated_layers)
        settings: dict[str, Any] = {} if noise is None else {"noise": self._checked_noise(noise)}
        if noise == "random" and not self.training:
            numbers = latents.float().cpu().numpy().view(np.uint32).tolist()
            settings["generators"] = [torch.Generator().manual_seed(seed_from(*each)) for each in numbers]
        return super().generate_from(latents, labels, psi=psi, truncated_layers=layers, **settings, **mixing)

    def sample(
        self,
        num_samples: int,
        *,
        labels: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        psi: float = 1.0,
        truncated_layers: int | None = None,
        noise: Noise = "fixed",
    ) -> Tensor:
        """Pictures from noise: float32 `[N, C, H, W]` in `[-1, 1]`; see `lightning_gen.capabilities.Samples`.

        Args:
            num_samples: N.
            labels: See `Samples`.
            generator: See `Samples`.
            seed: In place of a generator: the pictures of `lightning-gen sample --seed`; see `LatentSampling`.
            psi: How far from their mean styles are, as a share of the way: 1 leaves them alone, less trades variety for
                quality, 0 gives the picture of the mean, and below 0 lies its opposite. 0.7 in the paper's figures.
            truncated_layers: The first so many layers have such styles; None means 8, as in the authors' code, or all.
            noise: "fixed" has the same noise in all pictures, "random" in each its own, which its latents decide, and
                "none" has none.

        Raises:
            ValueError: As `GAN`, or if psi is not in [-2, 2] or there are fewer layers.
        """
        labels = self.sampling_context(num_samples, labels).get("labels")
        latents = self.chosen_latents(num_samples, generator, seed)
        return self.generate(latents, labels, psi=psi, truncated_layers=truncated_layers, noise=noise)

    def _checked(self, psi: float, layers: int | None) -> tuple[float, int]:
        number = self.synthesis.num_layers
        if not -2 <= psi <= 2:
            raise ValueError(f"psi must lie in [-2, 2], got {psi}: 1 leaves styles alone, 0 gives their mean.")
        if layers is not None and not 0 <= layers <= number:
            raise ValueError(f"truncated_layers must be from 0 to {number}, which this generator has; got {layers}.")
        return psi, min(8, number) if layers is None else layers

    def _checked_noise(self, noise: Noise) -> Noise:
        if noise not in get_args(Noise):
            raise ValueError(f"noise must be 'random', 'fixed' or 'none', got {noise!r}.")
        return noise
