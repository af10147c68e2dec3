"""The two-player game, once: GAN (Goodfellow et al. 2014, 1406.2661), and what its family plugs into it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_gen.callbacks.spectral_norm import power_iteration_callbacks
from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.spectral_norm import spectral_norms
from lightning_gen.layers.ties import has_batch_norm, on_both
from lightning_gen.losses.adversarial import AdversarialLoss, NonSaturating
from lightning_gen.losses.constraints import Constraint, WeightClipping
from lightning_gen.losses.tricks import InstanceNoise
from lightning_gen.models.adversarial import (
    AdversarialModule,
    Losses,
    check_augmentation,
    check_penalties,
    check_players,
    generator_loss,
)
from lightning_gen.models.training import NetworkFactory
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator
from lightning_gen.outlines import is_outline
from lightning_gen.sampling import Latents, LatentSampling

GeneratorFactory: TypeAlias = Callable[[tuple[int, int, int], int], nn.Module]


class GAN(LatentSampling, AdversarialModule):
    """A generator that turns noise into pictures, against a discriminator that tells them from real ones.

    One batch of real pictures makes one discriminator update; every `n_critic`-th makes a generator update too, which
    is the step that `trainer.global_step` and `max_steps` count. So `n_critic` updates see `n_critic` different
    batches, and `val_check_interval`, which Lightning counts in batches, is `n_critic` times the generator updates. In
    a `fast_dev_run` every batch makes both.

    Paper (1406.2661), as its authors' code for MNIST has it: perceptrons, maxout in the discriminator; non-saturating
    cross-entropy (section 3; give `Minimax()` for equation 1); SGD at 0.1 with momentum 0.5; n_critic 1; batch 100; 250
    epochs; dropout in the discriminator.

    Deviations: Adam at 2e-4 with (0.5, 0.999), as in DCGAN; the paper's recipe is configs/paper/gan_mnist.yaml.

    Args:
        image_shape: (channels, height, width).
        generator: Called with (image_shape, latent_size), and `num_classes=` where there are classes. Any class of
            yours fits whose result maps latents `[N, latent_size]` (and labels `[N]`) to pictures; a conditional one
            takes `num_classes` with a default, such as None.
        discriminator: Called with image_shape, and `num_classes=` where there are classes. Its result maps pictures
            (and labels) to scores `[N, ...]`, without a sigmoid. A layer of yours whose result for one sample depends
            on the others in the call, as statistics of a minibatch do, says `ties_samples = True`: real pictures and
            fakes then go in calls of their own, as they do with batch norm.
        loss: None means `NonSaturating()`. `LabelSmoothing` and `LabelFlipping` wrap any other that is separable. A
            loss of pairs, such as `RelativisticPairing()`, compares the generator's fakes with the real pictures of the
            discriminator's last update, and a fake of a class with a picture of the same.
        constraint: Applied to the discriminator after each of its steps, such as `WeightClipping()`.
        instance_noise: Added to all that the discriminator sees.
        latent_size: Width of the noise vector.
        latent_distribution: "normal" for N(0, 1), "uniform" for U(-1, 1).
        num_classes: Number of classes of a conditional model; None leaves labels out, whether the data has them or not.
        n_critic: Discriminator updates for each generator update.
        generator_batch_factor: Fakes in a generator update, as a multiple of the real batch.
        **settings: All others as in `AdversarialModule`.

    Raises:
        ValueError: If a number is out of range, the networks do not fit the shapes, or the parts do not fit together.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: GeneratorFactory = MLPGenerator,
        discriminator: NetworkFactory = MLPDiscriminator,
        loss: AdversarialLoss | None = None,
        *,
        constraint: Constraint | None = None,
        instance_noise: InstanceNoise | None = None,
        latent_size: int = 100,
        latent_distribution: Latents = "uniform",
        num_classes: int | None = None,
        n_critic: int = 1,
        generator_batch_factor: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(image_shape, **settings)
        self.save_hyperparameters()
        numbers = {"latent_size": latent_size, "n_critic": n_critic, "generator_batch_factor": generator_batch_factor}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.declare_context(num_classes=num_classes)
        if latent_distribution not in ("normal", "uniform"):
            raise ValueError(f"latent_distribution must be 'normal' or 'uniform', got {latent_distribution!r}.")
        classes = {} if num_classes is None else {"num_classes": num_classes}
        self.generator = made_by(generator, nn.Module, self.image_shape, latent_size, **classes)
        self.discriminator = made_by(discriminator, nn.Module, self.image_shape, **classes)
        self.loss = loss or NonSaturating()
        self.constraint, self.instance_noise = constraint, instance_noise
        self.latent_size, self.latent_shape, self.latent_distribution = latent_size, (latent_size,), latent_distribution
        self.n_critic, self.generator_batch_factor = n_critic, generator_batch_factor
        self.critic_updates = 0  # since the last generator update
        self._check_parts()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """The discriminator on one batch, and the generator when it is due."""
        generator, discriminator = cast(list[LightningOptimizer], self.optimizers())
        real, labels = self.real_images(batch)
        self.update(discriminator, *self.in_pieces(self.discriminator_losses, real, labels), count=False)
        if self.constraint:
            self.constraint(self.discriminator)
        due = self.generator_is_due()
        if due:
            pictures = (self.generator_batch_factor * len(real), *((real, labels) if self.loss.paired else ()))
            self.update(generator, *self.in_pieces(self.generator_losses, *pictures))
        self.finish_step(images=len(real), schedules=due)

    def discriminator_losses(self, real: Tensor, labels: Tensor | None) -> Losses:
        """Real pictures against as many fakes, and the penalties."""
        fake_labels = self.labels_beside(real, labels)
        with torch.no_grad():
            fake = self.fakes(len(real), fake_labels).to(real.dtype)
        real, fake = self.noisy(real), self.noisy(fake)
        real_scores, fake_scores = self.judge_both(real, fake, labels, fake_labels)
        self.note_scores(self.loss, real_scores)
        return {
            "discriminator": self.loss.discriminator(real_scores, fake_scores),
            **self.penalty_losses(partial(self.judge, labels=labels), real, fake),
        }

    def generator_losses(self, num_fakes: int, real: Tensor | None = None, labels: Tensor | None = None) -> Losses:
        """What the discriminator thinks of new fakes; beside real pictures, where the loss is of pairs."""
        fake_labels = self.random_labels(num_fakes) if real is None else self.labels_beside(real, labels)
        fake = self.fakes(num_fakes, fake_labels)
        scores = self.judge(self.noisy(fake), fake_labels)
        return {
            "generator": generator_loss(self.loss, scores, lambda: self.judge(self.noisy(cast(Tensor, real)), labels))
        }

    def generator_is_due(self) -> bool:
        """Whether this discriminator update is the last before a generator update; asked once for each."""
        self.critic_updates += 1
        due = self.critic_updates >= self._critic_updates_due(self.trainer.global_step)
        self.critic_updates = 0 if due else self.critic_updates
        return due

    def critic_updates_before(self, step: int) -> int:
        """How many discriminator updates come before the generator update that follows `step` others."""
        return self.n_critic

    def _critic_updates_due(self, step: int) -> int:
        """The same, but one in a `fast_dev_run`, whose one batch is to run all there is."""
        rushed = self._trainer is not None and bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        return 1 if rushed else self.critic_updates_before(step)

    # -- its pieces -------------------------------------------------------------------------------------------------

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(z) or G(z, y), as `torch.export` and `to_onnx` take it; `generate` does so in evaluation mode, in parts.

        From latents `[N, latent_size]` and labels int64 `[N]` to pictures `[N, C, H, W]`.
        """
        return self.generate_from(latents, labels)

    def random_labels(self, num: int) -> Tensor | None:
        """Labels `[num]` of fakes for training, all classes alike; None where there are no classes."""
        return None if self.num_classes is None else torch.randint(self.num_classes, (num,), device=self.device)

    def labels_beside(self, real: Tensor, labels: Tensor | None) -> Tensor | None:
        """Labels of the fakes that are shown beside real pictures: the same, where the loss is of pairs."""
        return labels if self.loss.paired else self.random_labels(len(real))

    def fakes(self, num: int, labels: Tensor | None) -> Tensor:
        """Fakes for training, from the random state of this rank and batch."""
        return self.generate_from(self.latents(num), labels)

    def generate_from(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """G(z) or G(z, y), with a graph and in the mode that the generator is in."""
        latents = self.own(latents)
        return self.generator(latents) if labels is None else self.generator(latents, labels)

    def judge(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x) or D(x, y), of pictures as the discriminator is shown them; see `as_shown`."""
        images = self.as_shown(images)
        return self.discriminator(images) if labels is None else self.discriminator(images, labels)

    def judge_both(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, fake_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """D(x) and D(G(z)), in one call where the discriminator ties no pictures together."""
        both = None if labels is None or fake_labels is None else (labels, fake_labels)
        return on_both(self.discriminator, real, fake, both, call=self.judge)

    def noisy(self, images: Tensor) -> Tensor:
        """Pictures as the discriminator sees them."""
        return self.instance_noise(images, self.trainer.global_step) if self.instance_noise else images

    def real_images(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Pictures of a batch, and their labels where the model has classes.

        Raises:
            ValueError: If labels are missing or out of range, or one picture is too few.
        """
        images, context = self.images_and_context(batch)
        if len(images) < 2 * self.micro_batches and (
            has_batch_norm(self.generator) or has_batch_norm(self.discriminator)
        ):
            piece = "batch" if self.micro_batches == 1 else f"piece (micro_batches={self.micro_batches})"
            raise ValueError(
                f"A {piece} of one picture gives batch norm nothing to average over. Raise data.batch_size, or choose "
                "networks without batch norm."
            )
        return images, context.get("labels")

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The discriminator's loss on pictures it was not trained on, which rises when it learns them by heart."""
        self._evaluate(batch, batch_idx, "val/discriminator")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.trainer.global_step), reduce_fx="max", sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`, under `test/`."""
        self._evaluate(batch, batch_idx, "test/discriminator")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As many samples as the batch has pictures."""
        return self.sample(len(self.images_and_labels(batch)[0]), generator=torch.Generator().manual_seed(batch_idx))

    def _evaluate(self, batch: Any, batch_idx: int, name: str) -> None:
        real, context = self.images_and_context(batch)
        labels = context.get("labels")
        # The same noise each time, so that the curve shows the players alone.
        noise = torch.Generator().manual_seed(batch_idx * self.trainer.world_size + self.global_rank)
        fake = self.generate(self.draw_latents(len(real), noise), labels).to(real.dtype)
        scores = self.judge_both(real, fake, labels, labels)
        self.log(name, self.loss.discriminator(*scores), on_epoch=True, batch_size=len(real), sync_dist=True)

    # -- around it --------------------------------------------------------------------------------------------------

    def steps_in(self, batches: int) -> int:
        """How many generator updates a number of training batches gives."""
        steps = 0
        while batches >= (needed := self._critic_updates_due(steps)):
            batches, steps = batches - needed, steps + 1
        return steps

    def on_train_start(self) -> None:
        """Refuse a run that ends before the generator's first update."""
        super().on_train_start()
        epochs, batches = self.trainer.max_epochs, self.trainer.num_training_batches
        if epochs not in (None, -1) and batches < float("inf") and not self.steps_in(int(batches) * epochs):
            raise ValueError(
                f"The generator would never learn: the run has {int(batches) * epochs} training batches, and the first "
                f"update of the generator comes with batch {self.critic_updates_before(0)} (n_critic). Train on more "
                "batches (max_epochs, limit_train_batches, a smaller data.batch_size), or lower n_critic."
            )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Spectral norm's power iteration, where there is spectral norm."""
        return [*super().configure_callbacks(), *power_iteration_callbacks(self)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the run stands between two generator updates."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["critic_updates"] = self.critic_updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        self.critic_updates = checkpoint.get("critic_updates", 0)

    def _check_parts(self) -> None:
        name = type(self).__name__
        if isinstance(self.constraint, WeightClipping) and spectral_norms(self.discriminator):
            raise ValueError(
                f"{name}: WeightClipping and spectral norm were both given. What is clipped is normalised afterwards, "
                "so that clipping bounds nothing. Choose one of them."
            )
        if self.loss.paired and self.generator_batch_factor > 1:
            raise ValueError(
                f"{name}: {type(self.loss).__name__} compares each fake with a real picture, but "
                f"generator_batch_factor={self.generator_batch_factor} makes so many fakes for each. Set it to 1, or "
                "choose another loss."
            )
        check_penalties(name, self.discriminator, self.penalties)
        self.freeze_layers()
        check_augmentation(name, self.augment, self.loss)
        if not is_outline():  # of a checkpoint, whose weights have been trained
            players = (self.generator, self.discriminator)
            check_players(name, *players, self.image_shape, self.latent_shape, self.num_classes)
