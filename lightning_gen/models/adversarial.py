"""What all adversarial models share: one method that updates one player, and the settings of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate, chain
from typing import Any, ClassVar, TypeAlias

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.hyperparameters import made_by
from lightning_gen.layers.ada import ADA, AdaptiveProbability
from lightning_gen.layers.augment import Augmentation, check_probability
from lightning_gen.layers.freezing import freeze_first
from lightning_gen.layers.ties import has_batch_norm, moving_once
from lightning_gen.losses.adversarial import AdversarialLoss
from lightning_gen.losses.penalties import Penalty
from lightning_gen.losses.precision import full
from lightning_gen.models.training import OptimizerFactory, WatchedModule, linear_decay, prepare_networks
from lightning_gen.modes import evaluating
from lightning_gen.outlines import with_values
from lightning_gen.processes import average_gradients
from lightning_gen.schedules import Schedule, ends

Losses: TypeAlias = Mapping[str, Tensor]


class AdversarialModule(WatchedModule):
    """A model whose players, generators and discriminators, are updated in turn, by hand.

    One step means one generator update: `trainer.global_step`, `max_steps`, checkpoint names and schedules count the
    updates made with `count=True`, although Lightning by itself counts every optimizer's.

    The networks of a player are the attributes whose names begin with `generator`, or with `discriminator`; see
    `players`.

    Args:
        image_shape: (channels, height, width).
        penalties: Added to each discriminator's loss.
        augment: Augments all that the discriminators are shown in training, real pictures and fakes alike but with
            draws of their own, such as `ADA()` or `DiffAugment()`. What a discriminator is shown of one example, such
            as both pictures of a pair, is augmented alike. Penalties differentiate by pictures as they were, through
            draws of their own.
        learning_rate: Of Adam, for both players; or a schedule, which holds for optimizers of your own too.
        discriminator_learning_rate: For the discriminators, where it differs.
        betas: Of Adam. The second may be a schedule, which holds for any optimizer that has betas.
        generator_optimizer: Replaces Adam for the generators; called with their parameters.
        discriminator_optimizer: Replaces Adam for the discriminators.
        decay_start: Share of the run after which the learning rates fall linearly to zero; 1 keeps them constant, or
            as their schedules say.
        gradient_clip_norm: Norm to which the gradient of each player is clipped before each of its updates; None clips
            none.
        micro_batches: Pieces that each batch is cut into, whose gradients are added up: an update sees the whole batch
            with the memory of a piece. Steps, pictures, schedules and intervals of penalties count batches, as without,
            and running statistics move once a batch. What looks at several pictures at once (batch norm, the deviation
            in `DRAGAN`) looks at those of a piece, as it would at those of a process.
        freeze_discriminator: How many layers of each discriminator keep their weights, from the picture on (Freeze-D,
            2002.10964), for a run that begins with another's weights (`init_from`) on few pictures. A layer is a
            convolution or linear layer with the norm that follows it, a residual block, or a resolution of a network
            that grows, the highest first. No gradient is computed for such weights, spectral norm does not iterate on
            them, and weight clipping leaves them alone; running means of batch norm move on.
        channels_last: Whether weights lie channels-last in memory, which is faster on tensor cores and AMX.
        compile: Whether the networks go through `torch.compile`. Discriminators under a penalty that differentiates a
            gradient stay as they are, for PyTorch cannot compile those.

    Raises:
        ValueError: If a number is out of range, both a schedule and `decay_start` let a rate fall, all layers of a
            discriminator would be frozen, or pictures or loss do not allow the augmentation; when a run starts, if the
            trainer was told to clip or to accumulate, which Lightning cannot for such a model; in a batch, if it has
            fewer pictures than pieces.
    """

    updates = "generator updates"
    progress_figures: ClassVar[Sequence[str]] = ("generator", "discriminator")
    instead_of: ClassVar[Mapping[str, str]] = {
        "gradient_clip_val": "Players are updated one by one: set model.gradient_clip_norm instead, which clips the "
        "gradient of each.",
        "accumulate_grad_batches": "Players are updated one by one: set model.micro_batches to {value} instead, which "
        "cuts each batch into so many pieces, and data.batch_size to {value} times what it is.",
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        penalties: list[Penalty] | None = None,
        augment: Augmentation | None = None,
        learning_rate: float | Schedule = 2e-4,
        discriminator_learning_rate: float | Schedule | None = None,
        betas: tuple[float, float | Schedule] = (0.5, 0.999),
        generator_optimizer: OptimizerFactory | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        decay_start: float = 1.0,
        gradient_clip_norm: float | None = None,
        micro_batches: int = 1,
        freeze_discriminator: int = 0,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape)
        if not min(ends(learning_rate)) > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}.")
        if discriminator_learning_rate is not None and not min(ends(discriminator_learning_rate)) > 0:
            raise ValueError(
                "discriminator_learning_rate must be above 0, or null for learning_rate; got "
                f"{discriminator_learning_rate}."
            )
        if not 0 <= decay_start <= 1:
            raise ValueError(f"decay_start is a share of the run, in [0, 1]; got {decay_start}.")
        rates = learning_rate, discriminator_learning_rate
        if decay_start < 1 and any(isinstance(rate, Schedule) for rate in rates):
            raise ValueError(
                f"A schedule says what the learning rate is, and decay_start={decay_start} lets it fall. Leave one out."
            )
        if not all(0 <= beta < 1 for each in betas for beta in ends(each)):
            raise ValueError(f"betas must lie in [0, 1), got {betas}.")
        if gradient_clip_norm is not None and not gradient_clip_norm > 0:
            raise ValueError(f"gradient_clip_norm must be above 0, or null for none; got {gradient_clip_norm}.")
        if micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, got {micro_batches}.")
        if freeze_discriminator < 0:
            raise ValueError(f"freeze_discriminator must be 0 or more, got {freeze_discriminator}.")
        self.automatic_optimization = False
        self.penalties = list(penalties or [])
        self.augment = augment
        self.adaptation: AdaptiveProbability | None = None
        if augment is not None:
            augment.check(type(self).__name__, self.image_shape)
            if isinstance(augment, ADA) and augment.target is not None:
                with with_values():
                    self.adaptation = AdaptiveProbability(augment)
        self.learning_rates = (learning_rate, discriminator_learning_rate or learning_rate)
        self.betas, self.decay_start = betas, decay_start
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.gradient_clip_norm, self.micro_batches = gradient_clip_norm, micro_batches
        self.freeze_discriminator = freeze_discriminator
        self.channels_last, self.compile_networks = channels_last, compile

    # -- one update -------------------------------------------------------------------------------------------------

    def update(self, optimizer: LightningOptimizer, *losses: Callable[[], Losses], count: bool = True) -> None:
        """One optimizer step of one player.

        The parameters of all other optimizers need no gradients meanwhile. Under DDP only the gradients of this
        optimizer travel, in one all-reduce, so plain `strategy: ddp` works and costs no more than the player's size.

        Args:
            optimizer: One of `self.optimizers()`.
            *losses: Each gives named, weighted terms when it is called, or none, with the other players frozen. What is
                minimised is the sum of all. They are called in turn, and the graph of each is gone before the next one
                makes its own: pieces of a batch, as `in_pieces` cuts it, or a regulariser beside the loss. Terms are
                logged as `train/NAME`, those of one name added up.
            count: Whether this is the generator update that counts as the step.

        Raises:
            NonFiniteLossError: If a term is not finite; see `WatchedModule`.
        """
        strategy = self.trainer.strategy
        # Of one process too: DDP would look for gradients of all players, and there are those of one.
        ddp = isinstance(strategy, DDPStrategy)
        local: AbstractContextManager[Any] = strategy.block_backward_sync() if ddp else nullcontext()  # type: ignore[attr-defined]
        terms: dict[str, Tensor] = {}
        with self.toggled_optimizer(optimizer):
            optimizer.zero_grad()
            with local:
                for loss in losses:
                    found = {name: full(term) for name, term in loss().items()}
                    for name, term in found.items():
                        terms[name] = terms[name] + term.detach() if name in terms else term.detach()
                    # Lightning runs the whole step under autocast, which would reach the second derivatives of
                    # penalties.
                    with torch.autocast(self.device.type, enabled=False):
                        if found:
                            self.manual_backward(torch.stack(list(found.values())).sum())
            for name, term in terms.items():
                self.log(f"train/{name}", term, prog_bar=True)
            self.watch(terms)
            if ddp:
                average_gradients(optimizer)
            if self.gradient_clip_norm is not None:
                self.clip_to_norm(optimizer.optimizer, self.gradient_clip_norm, scaled=True)
            if count:
                optimizer.step()
            else:  # what LightningOptimizer.step does, less the counting
                strategy.optimizer_step(optimizer.optimizer, closure=lambda: None)

    def in_pieces(self, losses: Callable[..., Losses], *batch: Any) -> list[Callable[[], Losses]]:
        """A function that gives losses, for `update`, with its arguments cut into `micro_batches` pieces.

        Args:
            losses: Its terms are means over pictures.
            *batch: Its arguments, each as `cut` takes it; the first says how many pictures a piece has.
        """
        parts = [self.cut(argument) for argument in batch]
        sizes = [size if isinstance(size, int) else len(size) for size in parts[0]]

        def of_piece(piece: int, *arguments: Any) -> Losses:
            share = sizes[piece] / sum(sizes)
            with moving_once(self, piece, len(sizes)):
                return {name: share * full(term) for name, term in losses(*arguments).items()}

        pieces = enumerate(zip(*parts, strict=True))
        if len(sizes) == 1:
            return [partial(losses, *arguments) for _, arguments in pieces]
        return [partial(of_piece, piece, *arguments) for piece, arguments in pieces]

    def cut(self, argument: Any) -> list[Any]:
        """The pieces of a tensor by its first axis, of a list of texts, or of a number of pictures.

        Another list has been cut already, and what is none of these stays whole for each piece.

        Raises:
            ValueError: If there are fewer pictures than pieces.
        """
        texts = isinstance(argument, list) and all(isinstance(text, str) for text in argument)
        number = len(argument) if texts or isinstance(argument, Tensor) else argument
        if not isinstance(number, int):
            return argument if isinstance(argument, list) else [argument] * self.micro_batches
        if number < self.micro_batches:
            raise ValueError(
                f"A batch of {number} cannot be cut into micro_batches={self.micro_batches} pieces. Raise "
                "data.batch_size, or lower micro_batches."
            )
        if self.micro_batches == 1:
            return [argument]
        sizes = [number // self.micro_batches + (i < number % self.micro_batches) for i in range(self.micro_batches)]
        if isinstance(argument, int):
            return sizes
        return [argument[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]

    def finish_step(self, images: int, *, schedules: bool = True) -> None:
        """What ends a training step: schedules advance, images are counted, the loggers' x-axis is set.

        Args:
            images: Real images this rank has used in the step.
            schedules: Whether the generator was updated, by which schedules count.
        """
        if schedules:
            schedulers: Any = self.lr_schedulers() or []
            for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
                scheduler.step()
        images *= self.trainer.world_size
        self.images_seen += images
        self._advance_augmentation(images)
        self._follow_schedules()
        # "step" is a name that Lightning takes as the x-axis of every logger. Filled on the device, for a number copied
        # there would make an accelerator wait.
        self.log("step", torch.full((), float(self.trainer.global_step), device=self.device))

    # -- augmentation -----------------------------------------------------------------------------------------------

    @property
    def augment_p(self) -> Tensor:
        """The probability of each transform of `augment` now: float32 `[]`.

        Raises:
            ValueError: If a schedule of it is not in [0, 1] here.
        """
        if self.adaptation is not None:
            return self.adaptation.p
        p = self.scheduled(self.augment.p) if self.augment is not None else 0.0
        check_probability(f"The schedule of augment p, after {self.images_seen} pictures,", p)
        return torch.full((), p, device=self.device)

    def augmented(self, images: Tensor) -> Tensor:
        """Pictures with transforms of `augment`, drawn anew.

        Args:
            images: `[N, C, H, W]`, or so many times the channels of `image_shape` as a discriminator sees together.
        """
        if self.augment is None:
            return images
        return self.augment(images, self.augment_p, images.shape[1] // self.image_shape[0])

    def as_shown(self, images: Tensor) -> Tensor:
        """Pictures as a discriminator is shown them: `augmented` in training mode, and else as they are."""
        return self.augmented(images) if self.training else images

    def judged(self, discriminator: Callable[..., Tensor], images: Tensor) -> Tensor:
        """What a discriminator says of pictures as it is shown them."""
        return discriminator(self.as_shown(images))

    def note_scores(self, loss: AdversarialLoss, real_scores: Tensor) -> None:
        """Let the probability of augmenting follow the scores of real pictures, where it follows any."""
        if self.adaptation is not None:
            self.adaptation.note(loss.margins(real_scores))

    def _advance_augmentation(self, images: int) -> None:
        adaptation = self.adaptation
        if adaptation is not None:
            adaptation.advance(images)
            self.log("train/augment_r", adaptation.r)
            if (self.batches_before + 1) % adaptation.augmentation.interval == 0:
                adaptation.move()
        if self.augment is not None and (adaptation is not None or isinstance(self.augment.p, Schedule)):
            self.log("train/augment_p", self.augment_p)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look whether p has run away, where the device waits anyway."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        cadence = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.adaptation is not None and cadence and (self.batches_before + 1) % cadence == 0:
            self.adaptation.watch(self.images_seen)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the probability of augmenting, where it follows scores."""
        super().on_save_checkpoint(checkpoint)
        if self.adaptation is not None:
            checkpoint["augmentation"] = self.adaptation.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back, or begin where the checkpoint has none.

        Raises:
            CheckpointError: If what stands there is no such state.
        """
        super().on_load_checkpoint(checkpoint)
        if self.adaptation is not None and "augmentation" in checkpoint:
            try:
                self.adaptation.load(checkpoint["augmentation"])
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError("The checkpoint holds no state of an augmentation where it should.") from error

    def penalty_losses(
        self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        """The terms of `self.penalties` by name, for `discriminator_losses`.

        One with an interval k comes in every k-th batch only, k times as strong (lazy regularisation, 1912.04958).
        """
        losses: dict[str, Tensor] = {}
        for i, penalty in enumerate(self.penalties):
            name = type(penalty).__name__
            if any(type(earlier) is type(penalty) for earlier in self.penalties[:i]):
                name = f"{name}_{i}"  # by its place, for those before it may be left out of this batch
            if self.batches_before % penalty.interval == 0:
                if isinstance(penalty.weight, Schedule):
                    penalty = penalty.with_weight(self.scheduled(penalty.weight))
                losses[name] = penalty.interval * penalty(discriminator, real, fake)
        return losses

    def steps_in(self, batches: int) -> int:
        """How many generator updates a number of training batches gives."""
        return batches

    def planned_steps(self) -> int:
        """Generator updates of the whole run.

        Raises:
            ValueError: If the run has no end.
        """
        trainer = self.trainer
        if trainer.max_epochs in (None, -1):
            total = float("inf") if trainer.max_steps == -1 else trainer.max_steps
        else:
            trainer.fit_loop.setup_data()  # as `estimated_stepping_batches` does, which knows of one step a batch only
            batches = trainer.num_training_batches * trainer.max_epochs
            total = batches if batches == float("inf") else self.steps_in(int(batches))
            total = total if trainer.max_steps == -1 else min(total, trainer.max_steps)
        if total == float("inf"):
            raise ValueError(
                "The learning rate falls to zero at the end of the run, but the run has no end. Set trainer.max_steps "
                "or trainer.max_epochs, or keep the rate constant with decay_start: 1."
            )
        return int(total)

    # -- the players ------------------------------------------------------------------------------------------------

    def players(self) -> dict[str, list[nn.Module]]:
        """The networks of each player, in the order of `self.optimizers()`."""
        kinds = ("generator", "discriminator")
        return {kind: [part for name, part in self.named_children() if name.startswith(kind)] for kind in kinds}

    def freeze_layers(self) -> None:
        """Freeze what `freeze_discriminator` says, once the networks are there.

        Optimizers have frozen weights all the same, so that a run can go on with another number of them.

        Raises:
            ValueError: If a discriminator has no more layers, or they have no known order.
        """
        for network in self.players()["discriminator"]:
            try:
                freeze_first(network, self.freeze_discriminator)
            except ValueError as error:
                raise ValueError(f"freeze_discriminator: {error}") from error

    def on_fit_start(self) -> None:
        """Say so where weights are frozen that nobody has trained."""
        super().on_fit_start()
        if not self.freeze_discriminator:
            return
        taken = set(() if self.started_from is None else self.started_from.taken)
        parameters = self.named_parameters()
        frozen = [name for name, p in parameters if name.startswith("discriminator") and not p.requires_grad]
        random = [name for name in frozen if name not in taken]
        if random:
            rank_zero_warn(
                f"freeze_discriminator={self.freeze_discriminator} keeps the first layers of the discriminator as they "
                f"are, but {len(random)} of their {len(frozen)} weights, such as {random[0]}, are from no other run, "
                "so that they stay random unless you have set them. Give --init_from (`init_from` in Python) weights "
                "that fit, or leave freeze_discriminator out."
            )

    def configure_optimizers(self) -> Any:
        """One optimizer for each player, with its schedule."""
        optimizers, schedules = [], []
        total = self.planned_steps() if self.decay_start < 1 else 0
        factories = (self.generator_optimizer, self.discriminator_optimizer)
        for (player, networks), factory, rate in zip(
            self.players().items(), factories, self.learning_rates, strict=True
        ):
            parameters = chain.from_iterable(network.parameters() for network in networks)
            optimizer = made_by(factory or self.default_optimizer(ends(rate)[0]), Optimizer, parameters)
            optimizers.append(optimizer)
            # The name is what LearningRateMonitor shows.
            schedules.append({"scheduler": linear_decay(optimizer, total, self.decay_start), "name": f"lr/{player}"})
        return optimizers, schedules

    def default_optimizer(self, learning_rate: float) -> OptimizerFactory:
        """Makes the optimizer of a player for which none was given."""
        betas = self.betas[0], ends(self.betas[1])[0]
        return partial(torch.optim.Adam, lr=learning_rate, betas=betas, fused=True)

    def on_train_start(self) -> None:
        """Let the schedules of the optimizers hold from the first batch."""
        super().on_train_start()
        self._follow_schedules()

    def _follow_schedules(self) -> None:
        """Set what schedules say of the next batch; a checkpoint then has it with the optimizers' states."""
        beta1, beta2 = self.betas
        for optimizer, rate in zip(self.trainer.optimizers, self.learning_rates, strict=False):
            for group in optimizer.param_groups:
                if isinstance(rate, Schedule):
                    group["lr"] = self.scheduled(rate)
                if isinstance(beta2, Schedule) and "betas" in group:
                    group["betas"] = (beta1, self.scheduled(beta2))

    def setup(self, stage: str) -> None:
        """Lay out the networks and, for training, compile them."""
        super().setup(stage)
        self.freeze_layers()  # also of a subclass that does not do so itself
        generators, discriminators = self.players().values()
        compile = self.compile_networks and stage == "fit"
        double = any(penalty.double_backward for penalty in self.penalties)
        prepare_networks(generators, channels_last=self.channels_last, compile=compile)
        prepare_networks(discriminators, channels_last=self.channels_last, compile=compile and not double)


def check_augmentation(owner: str, augment: Augmentation | None, loss: AdversarialLoss) -> None:
    """Raise a `ValueError`, in the name of `owner`, where p is to follow scores that say nothing by themselves."""
    if augment is not None and augment.target is not None and loss.boundary is None:
        raise ValueError(
            f"{owner}: the p of {type(augment).__name__} follows the signs of scores, but those of "
            f"{type(loss).__name__} only compare pictures (it has no `boundary`). Hold p with target: null and p: 0.3, "
            "say, or a schedule; or take DiffAugment."
        )


def generator_loss(loss: AdversarialLoss, fake_scores: Tensor, real_scores: Callable[[], Tensor]) -> Tensor:
    """What a generator minimises. The real pictures are judged, by what is called for it, if the loss is of pairs."""
    if not loss.paired:
        return loss.generator(fake_scores)
    with torch.no_grad():
        scores = real_scores()
    return loss.generator(fake_scores, scores)


def halved(losses: Losses) -> Losses:
    """Each term divided by two."""
    return {name: 0.5 * term for name, term in losses.items()}


def check_penalties(owner: str, discriminator: nn.Module, penalties: list[Penalty]) -> None:
    """Raise a `ValueError`, in the name of `owner`, where the discriminator's norm does not allow a penalty."""
    # Statistics of a minibatch are no reason: 1710.10196 has them under a gradient penalty.
    if has_batch_norm(discriminator) and any(penalty.double_backward for penalty in penalties):
        raise ValueError(
            f"{owner}: a penalty on the gradient of each sample's score needs a discriminator without batch norm, "
            "which makes a score depend on the other samples (1704.00028, section 4). Choose another norm."
        )


def check_players(
    owner: str,
    generator: nn.Module,
    discriminator: nn.Module,
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, ...],
    num_classes: int | None,
) -> None:
    """Look whether a generator makes pictures of that shape from latents, and a discriminator gives each a score.

    Raises:
        ValueError: If not; in the name of `owner`, the model that they are of.
    """
    labels = () if num_classes is None else (torch.zeros(1, dtype=torch.int64),)
    made, width = f"{owner}: the generator {type(generator).__name__}", " x ".join(map(str, latent_shape))
    try:
        shape = shape_of(generator, torch.zeros(1, *latent_shape), *labels)
    except RuntimeError as error:
        raise ValueError(
            f"{made} does not take latents of width {width}, its second argument latent_size: {error}"
        ) from error
    if shape != (1, *image_shape):
        raise ValueError(
            f"{made} makes pictures of shape {tuple(shape[1:])} from latents of width {width}; the data has "
            f"image_shape {image_shape}."
        )
    scores = shape_of(discriminator, torch.zeros(shape), *labels)
    if scores[:1] != (1,):
        raise ValueError(
            f"{owner}: the discriminator {type(discriminator).__name__} must give scores [N, ...], but a batch of one "
            f"picture gave the shape {tuple(scores)}."
        )


@torch.no_grad()
def shape_of(network: nn.Module, *inputs: Tensor) -> torch.Size:
    """The shape of what a network gives in evaluation mode, without computing it where the network lets us."""
    with evaluating(network):
        try:
            tensors = chain(network.named_parameters(), network.named_buffers())
            outline = {name: tensor.to("meta") for name, tensor in tensors}
            return functional_call(network, outline, tuple(given.to("meta") for given in inputs)).shape
        except Exception:  # it needs values, such as numbers drawn on the CPU; or it does not take the inputs
            return network(*inputs).shape
