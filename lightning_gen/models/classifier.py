"""A small classifier of pictures, by whose features and judgement generated ones are measured."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from lightning_gen import __version__
from lightning_gen.callbacks.ema import averaged_weights
from lightning_gen.checkpoints import AtomicCheckpointIO
from lightning_gen.extractors.classifier import classifier_file
from lightning_gen.generative import GenerativeModule
from lightning_gen.networks.lenet import LeNet
from lightning_gen.processes import make_alike
from lightning_gen.runs.folder import keeps_files

WARM_UP = 0.3  # share of the run in which the learning rate rises


class Classifier(GenerativeModule):
    """LeNet, trained by cross-entropy on labelled pictures with a little noise.

    It generates nothing. It derives from `GenerativeModule` for the habits of one: a checkpoint is enough, going on
    equals never having stopped, noise differs between ranks, and the command line takes it.

    Evaluation needs the network alone. When training ends, weights and hyper-parameters are kept in the cache folder as
    `classifiers/DATA-CxHxW.ckpt`, such as `mnist-1x28x28.ckpt`, after the data module's class. This file and ordinary
    checkpoints say under the key "classifier" what they hold: data, validation accuracy (None where these very weights
    were not validated), steps, images seen, seed, precision and versions. Only training pictures are trained on.

    Args:
        image_shape: (channels, height, width), at least 8 x 8.
        num_classes: Number of classes, that of the data.
        num_features: Width of the layer that serves as features.
        learning_rate: Of AdamW, at its peak: it rises linearly over the first 0.3 of the run and falls linearly to zero
            at its end, as in one cycle of 1708.07120.
        noise_std: Standard deviation of the noise added to training pictures, in `[-1, 1]` units. Generated pictures
            are not as clean as real ones, and ought to be judged by what they show.
        keep: Whether to keep the result in the cache folder, in place of an earlier one. Runs without a data module
            have no name for it and keep nothing but their checkpoints.

    Raises:
        ValueError: If a number is out of range; when training starts, if the data has other classes or none, or the
            run has no end; or, in a batch, if labels are missing or out of range.
    """

    prediction_name = "class"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 10,
        num_features: int = 64,
        learning_rate: float = 3e-3,
        noise_std: float = 0.1,
        keep: bool = True,
    ) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        if learning_rate <= 0 or noise_std < 0:
            raise ValueError(
                f"Classifier needs a learning_rate above 0 and a noise_std of 0 or more, got {learning_rate} and "
                f"{noise_std}."
            )
        self.network = LeNet(self.image_shape, num_classes=num_classes, num_features=num_features)
        self.declare_context(num_classes=num_classes)
        self.learning_rate, self.noise_std, self.keep = learning_rate, noise_std, keep
        # Lightning adds the counts up over ranks and batches, so that every picture counts once however they are dealt.
        with torch.device("cpu"):  # where a model is made without its weights, counts begin at zero all the same
            self.val_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
            self.test_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.run: dict[str, Any] = {}
        self.validated: tuple[int, float] | None = None  # the step of the last validation, and its accuracy

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures `[N, C, H, W]` in `[-1, 1]` to features `[N, num_features]` and logits `[N, num_classes]`."""
        return self.network(self.own(images))

    def headlines(self) -> dict[str, str]:
        """The accuracy."""
        return {"test/accuracy": "Test accuracy: {:.2%}"}

    # -- training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of the labels, given noisy pictures."""
        images, context = self.images_and_context(batch)
        if len(images) == 1:
            raise ValueError("A batch of one picture gives batch norm nothing to average over. Raise data.batch_size.")
        _, logits = self.network(images + self.noise_std * torch.randn_like(images))
        loss = F.cross_entropy(logits.float(), context["labels"])
        self.log("train/loss", loss, prog_bar=True)
        self.images_seen += len(images) * self.trainer.world_size
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the loggers' x-axis; now, so that the names of checkpoints that this step brings have it too."""
        step = torch.full((), float(self.trainer.global_step + 1), device=self.device)
        self.log("step", step)

    def configure_optimizers(self) -> Any:
        """AdamW, and its schedule over the whole run."""
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "The learning rate falls to zero at the end of the run, but the run has no end. Set trainer.max_steps "
                "or trainer.max_epochs."
            )
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, fused=True)
        # A function, not an object: its numbers must not come back from a checkpoint.
        schedule = LambdaLR(optimizer, lambda step: one_cycle(step, max(1, int(total))))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count the pictures that are told right."""
        self._evaluate(batch, self.val_accuracy, "val/accuracy")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("step", float(self.trainer.global_step), reduce_fx="max", sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`, under `test/`."""
        self._evaluate(batch, self.test_accuracy, "test/accuracy")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The likeliest classes `[N]`."""
        return self.network(self.images_and_labels(batch)[0])[1].argmax(1)

    def _evaluate(self, batch: Any, accuracy: MulticlassAccuracy, name: str) -> None:
        images, context = self.images_and_context(batch)
        accuracy.update(self.network(images)[1], context["labels"])
        self.log(name, accuracy, on_epoch=True, prog_bar=True)

    def on_validation_start(self) -> None:
        """Let all ranks judge alike: each has moved its own running statistics."""
        super().on_validation_start()
        make_alike(self.network.buffers())

    def on_test_start(self) -> None:
        """As before a validation."""
        self.on_validation_start()

    def on_validation_epoch_end(self) -> None:
        """Note the accuracy and the step."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.validated = self.trainer.global_step, self.val_accuracy.compute().item()

    # -- what is kept -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Note what checkpoints will say of this run."""
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        self.run = {
            "data": type(data).__name__ if data else None,
            "seed": self.noise_seed,
            "precision": str(self.trainer.precision),
            "lightning_gen": __version__,
            "torch": str(torch.__version__),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the classifier is of, and how good it is."""
        super().on_save_checkpoint(checkpoint)
        step = checkpoint["global_step"]
        validated_step, accuracy = self.validated or (None, None)
        checkpoint["classifier"] = {
            **self.run,
            "val_accuracy": accuracy if validated_step == step else None,
            "steps": step,
            "images_seen": self.images_seen,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the accuracy back."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("classifier", {})
        if saved.get("val_accuracy") is not None:
            self.validated = saved["steps"], saved["val_accuracy"]

    def on_fit_end(self) -> None:
        """Keep the result, unless told not to."""
        if self.keep and self.run["data"] and keeps_files(self.trainer):
            path = classifier_file(self.run["data"], self.image_shape)
            checkpoint: dict[str, Any] = {"global_step": self.trainer.global_step}
            with averaged_weights(self.trainer, self):
                checkpoint["state_dict"] = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
                self.on_save_checkpoint(checkpoint)
                try:
                    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
                except OSError as error:
                    rank_zero_warn(
                        f"The classifier could not be kept: {error}. A checkpoint of the run serves as well."
                    )
                    return
            accuracy = checkpoint["classifier"]["val_accuracy"]
            told = "" if accuracy is None else f" (validation accuracy {accuracy:.2%})"
            print(f"Classifier: {path}{told}")


def one_cycle(step: int, total_steps: int) -> float:
    """The learning rate at a step as a share of its peak: linearly up over `WARM_UP` of the run, linearly down to 0."""
    rise, fall = WARM_UP * total_steps, (1 - WARM_UP) * total_steps
    return max(0.0, min(1.0, (step + 1) / rise, (total_steps - step) / fall))
