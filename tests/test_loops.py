"""Whatever comes after a checkpoint's place in a run comes after going on from it, in the same order."""

from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_gen.data.base import DrawDataset, ImageDataModule
from lightning_gen.generative import GenerativeModule
from lightning_gen.models.adversarial import AdversarialModule
from tests.shared import differences

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*is smaller than the logging interval")

HOOKS = [
    "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_validation_start",
    "on_validation_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_end",
]  # fmt: skip
# When validation is due in epochs of three batches.
DUE = {
    "each epoch": {},
    "never": {"limit_val_batches": 0},
    "inside epochs": {"val_check_interval": 2},
    "every two batches": {"val_check_interval": 2, "check_val_every_n_epoch": None},
    "every two epochs": {"check_val_every_n_epoch": 2},
}


@dataclass(frozen=True, eq=False)
class Numbers(DrawDataset):
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, draw):
        return {"image": torch.full((1, 1, 1), draw.index / 10)}


class Data(ImageDataModule):
    image_shape = (1, 1, 1)

    def __init__(self, count=3):
        super().__init__(num_workers=0)
        self.count = count

    def train_set(self):
        return Numbers(self.count)

    def val_set(self):
        return Numbers(2)

    test_set = val_set


class Number(GenerativeModule):
    """One number, which follows the pictures and noise; what is validated is noisy too."""

    def __init__(self, image_shape=(1, 1, 1), plateau=False):
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.plateau = plateau
        self.number = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (self.number - batch["image"].mean() - torch.randn(())).square()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.number.detach().square() + torch.randn(()))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.1)
        if not self.plateau:
            return optimizer
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss"}}


class Planned(Number):
    """Its rate falls to zero at the end of the run, for which the loader is made before the checkpoint is read."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Game(AdversarialModule):
    """Two numbers, of which one moves with every second batch."""

    def __init__(self, image_shape=(1, 1, 1)):
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.numbers = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(2)])

    def training_step(self, batch, batch_idx):
        for i in (0, 1) if self.batches_before % 2 else (0,):
            far = (self.numbers[i] - batch["image"].mean() - torch.randn(())).square()
            self.update(self.optimizers()[i], lambda far=far: {"far": far}, count=i == 1)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.randn(()))

    def configure_optimizers(self):
        return [torch.optim.SGD([number], 0.1) for number in self.numbers]


class Diary(pl.callbacks.Checkpoint):
    """Notes all that happens, and with which metrics; saves at one place."""

    def __init__(self, path=None, hook=None, at=None):
        self.path, self.hook, self.at = path, hook, at
        self.notes = []
        self.kept = None  # number of notes up to the checkpoint

    def note(self, hook, trainer):
        loop = trainer.fit_loop
        batches = loop.epoch_loop.total_batch_idx + 1
        value = trainer.callback_metrics.get("val/loss") if hook == "on_validation_end" else None
        counts = trainer.current_epoch, loop.epoch_progress.total.ready, loop.epoch_loop._batches_that_stepped
        self.notes.append((hook, batches, trainer.global_step, *counts, value))
        if (hook, batches) == (self.hook, self.at) and self.kept is None:
            self.kept = len(self.notes)
            trainer.save_checkpoint(self.path)

    @property
    def rest(self):
        return self.notes[self.kept :]


for hook in HOOKS:
    setattr(Diary, hook, lambda self, trainer, *_, hook=hook: self.note(hook, trainer))


def fit(folder, diary, model=Number, checkpoint=None, **settings):
    """All that the checkpoint of the end holds."""
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[diary], default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(model(), datamodule=Data(), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    return torch.load(folder / "end.ckpt", weights_only=True)


PLACES = [
    *[("on_train_batch_end", batch) for batch in range(1, 9)],
    *[("on_validation_end", batch) for batch in (2, 3, 4, 6, 8)],
    ("on_train_epoch_end", 3), ("on_train_epoch_end", 6),
]  # fmt: skip


@pytest.mark.parametrize("end", [{"max_steps": 8}, {"max_steps": 6}, {"max_epochs": 2}], ids=str)
@pytest.mark.parametrize("due", DUE)
def test_what_comes_after_a_checkpoint_comes_after_going_on(tmp_path, due, end):
    settings = {**DUE[due], **end}
    tried = 0
    for place in PLACES:
        diary, again = Diary(tmp_path / "middle.ckpt", *place), Diary()
        expected = fit(tmp_path, diary, **settings)
        if diary.kept is not None:
            tried += 1
            found = fit(tmp_path, again, checkpoint=diary.path, **settings)
            assert again.notes == diary.rest, place
            assert not differences(expected, found)
    assert tried >= 7


@pytest.mark.parametrize("batch", [2, 3, 4, 5, 6, 12])
def test_a_model_of_two_players_too(tmp_path, batch):
    settings = {"max_steps": 6, "val_check_interval": 2, "check_val_every_n_epoch": None}
    diary, again = Diary(tmp_path / "middle.ckpt", "on_train_batch_end", batch), Diary()
    expected = fit(tmp_path, diary, Game, **settings)
    found = fit(tmp_path, again, Game, diary.path, **settings)
    assert again.notes == diary.rest
    assert not differences(expected, found)


def test_a_schedule_that_waits_for_the_validation_gets_it(tmp_path):
    diary = Diary(tmp_path / "middle.ckpt", "on_train_batch_end", 6)
    expected = fit(tmp_path, diary, lambda: Number(plateau=True), max_steps=9)
    assert expected["optimizer_states"][0]["param_groups"][0]["lr"] < 0.05
    assert not differences(expected, fit(tmp_path, Diary(), lambda: Number(plateau=True), diary.path, max_steps=9))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_schedule_that_counts_the_batches_leaves_the_place_in_the_epoch(tmp_path, batch):
    diary, again = Diary(tmp_path / "middle.ckpt", "on_train_batch_end", batch), Diary()
    expected = fit(tmp_path, diary, Planned, max_epochs=2)
    found = fit(tmp_path, again, Planned, diary.path, max_epochs=2)
    assert again.notes == diary.rest
    assert not differences(expected, found)


def fit_on_two_ranks(folder, name, checkpoint=None):
    """What the first rank saved when it had ended; a checkpoint in the middle too."""
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    saves = Diary(folder / "middle.ckpt", "on_train_batch_end", 2), Diary(folder / name, "on_train_end", 4)
    trainer = pl.Trainer(
        accelerator="cpu", strategy=strategy, devices=2, max_steps=4, val_check_interval=2, logger=False,
        check_val_every_n_epoch=None, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=list(saves), default_root_dir=folder,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(Number(), datamodule=Data(5), ckpt_path=checkpoint, weights_only=True)
    return torch.load(folder / name, weights_only=True)


def test_two_ranks_go_on_together(tmp_path):
    """With the validation that is due, at the end of an epoch of two batches a rank."""
    expected = fit_on_two_ranks(tmp_path, "expected.ckpt")
    assert expected["global_step"] == 4
    assert expected["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["current"]["completed"] == 1
    assert not differences(expected, fit_on_two_ranks(tmp_path, "found.ckpt", tmp_path / "middle.ckpt"))


@pytest.mark.parametrize("end", [{"max_steps": steps} for steps in range(1, 8)] + [{"max_epochs": 1}], ids=str)
@pytest.mark.parametrize("due", ["each epoch", "every two batches"])
@pytest.mark.parametrize("longer", [{"max_steps": 8}, {"max_epochs": 3}], ids=str)
def test_a_run_that_had_ended_goes_on_where_it_was(tmp_path, due, end, longer):
    through, ended, again = Diary(), Diary(), Diary()
    expected = fit(tmp_path, through, **DUE[due], **longer)
    fit(tmp_path, ended, **DUE[due], **end)
    found = fit(tmp_path, again, checkpoint=tmp_path / "end.ckpt", **DUE[due], **longer)
    # Only that the run ends is not part of the longer one, and an epoch that it cuts.
    number = next(i for i, note in enumerate(ended.notes) if note not in through.notes)
    assert {note[0] for note in ended.notes[number:]} <= {"on_train_epoch_end", "on_train_end"}
    assert again.notes == through.notes[number:]
    assert not differences(expected, found)


def test_a_run_that_is_over_does_nothing(tmp_path):
    fit(tmp_path, Diary(), max_steps=4)
    again = Diary()
    fit(tmp_path, again, checkpoint=tmp_path / "end.ckpt", max_steps=4)
    assert again.notes == []
