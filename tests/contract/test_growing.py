"""A model and its data follow one schedule: they agree at every step, and going on equals never having stopped."""

from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn import functional as F

from lightning_gen.data.base import DrawDataset, ImageDataModule
from lightning_gen.generative import GenerativeModule
from lightning_gen.schedules import Growing
from tests.shared import differences

pytestmark = pytest.mark.filterwarnings(
    "ignore:The `srun`", "ignore:.*is smaller than the logging interval", "ignore:You passed in a `val_dataloader`"
)

# Of 21 examples: by twos to 12, by fours to 20, where the epoch ends, and to 32; then larger ones by threes.
GROWING = Growing((2, 2, 4), (2, 4, 3), learning_rates=(0.1, 0.2, 0.3), stable_images=10, fade_images=8)


@dataclass(frozen=True, eq=False)
class Noise(DrawDataset):
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, draw):
        return {
            "image": torch.from_numpy(draw.rng(1).uniform(-1, 1, (1, 4, 4))).float(),
            "place": torch.tensor(draw[:3]),
        }


class Data(ImageDataModule):
    image_shape = (1, 4, 4)

    def __init__(self, growing=GROWING, **loader):
        super().__init__(growing=growing, seed=2, **loader)

    def dataset(self, split):
        return Noise(21 if split == "train" else 3)


class Grows(GenerativeModule):
    """A picture that follows noisy ones, at the resolution of the moment."""

    def __init__(self, image_shape: tuple[int, int, int] = (1, 4, 4), growing: Growing = GROWING):
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.growing = growing
        self.picture = nn.Parameter(torch.zeros(image_shape))
        self.stages, self.seen = [], []

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        self.stage = self.growing(self.images_seen)
        self.training_shape = (1, self.stage.resolution, self.stage.resolution)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.stage.learning_rate

    def training_step(self, batch, batch_idx):
        images, _ = self.images_and_labels(batch)
        assert len(images) == self.stage.batch_size
        self.stages.append(self.stage)
        self.seen += batch["place"].tolist()
        self.images_seen += len(images) * self.trainer.world_size
        own = F.avg_pool2d(self.picture, 4 // self.stage.resolution)
        return (own - images - torch.randn_like(images)).square().mean()

    def validation_step(self, batch, batch_idx):
        images, _ = self.images_and_labels(batch)  # in full size at every stage
        self.log("val/loss", (self.picture - images).square().mean(), batch_size=len(images))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Diary(pl.callbacks.Checkpoint):
    """Counts what a run does; saves after each of some batches."""

    def __init__(self, folder=None, at=()):
        self.folder, self.at = folder, at
        self.announced, self.given, self.validated = [], [], []

    def on_train_epoch_start(self, trainer, model):
        self.announced.append(trainer.num_training_batches)
        self.given.append(0)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.given[-1:] = [batch_idx + 1]
        if trainer.global_step in self.at:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer, model):
        self.validated.append(trainer.global_step)


def fit(folder, model=None, data=None, diary=None, checkpoint=None, **settings):
    """All that the checkpoint of the end holds."""
    torch.manual_seed(0)
    settings = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, **settings}
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[diary or Diary()], default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(model or Grows(), datamodule=data or Data(num_workers=0), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    return torch.load(folder / "end.ckpt", weights_only=True)


def test_model_and_data_agree_and_each_epoch_has_its_own_number_of_batches(tmp_path):
    model, diary = Grows(), Diary()
    end = fit(tmp_path, model, diary=diary)
    found = [(stage.resolution, stage.batch_size) for stage in model.stages]
    assert found == [(2, 2)] * 6 + [(2, 4)] * 2 + [(2, 4)] * 3 + [(4, 3)] * 3 + [(4, 3)] * 7
    assert diary.announced == diary.given == [8, 6, 7]
    assert diary.validated == [8, 14, 21]
    assert end["images_seen"] == 20 + 21 + 21
    assert len({tuple(place) for place in model.seen}) == len(model.seen) == 62
    assert Grows.load_from_checkpoint(tmp_path / "end.ckpt").growing == GROWING
    assert end["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"epoch": 2, "examples": 21, "images": 41}]


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_equals_never_having_stopped(tmp_path, workers):
    """Before, at and after a change of batch size and of resolution, at the end of an epoch, and in the next."""
    stops = range(1, 21) if workers == 0 else (4, 6, 9, 15)
    expected = fit(tmp_path, diary=Diary(tmp_path, stops), data=Data(num_workers=workers))
    for stop in stops:
        model = Grows()
        found = fit(tmp_path, model, Data(num_workers=workers), checkpoint=tmp_path / f"{stop}.ckpt")
        assert len(model.stages) == 21 - stop
        assert not differences(expected, found)


class Planned(Grows):
    """It asks how long the run will be, for which the loader is made before the checkpoint is read."""

    def configure_optimizers(self):
        self.planned = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


def test_a_plan_leaves_the_place_and_takes_epochs_to_be_like_the_first(tmp_path):
    expected = fit(tmp_path, model := Planned(), diary=Diary(tmp_path, (4, 8, 10)))
    assert model.planned == 3 * 8
    for stop in (4, 8, 10):
        found = fit(tmp_path, model := Planned(), checkpoint=tmp_path / f"{stop}.ckpt")
        assert len(model.stages) == 21 - stop
        assert not differences(expected, found)


HALVED = Growing((2, 2, 4), (1, 2, 3), learning_rates=(0.1, 0.2, 0.3), stable_images=10, fade_images=8)


class Places(pl.Callback):
    """Writes down what each process has seen."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, model):
        torch.save(([tuple(stage) for stage in model.stages], model.seen), self.folder / f"{trainer.global_rank}.pt")


def fit_on_two_ranks(folder, checkpoint=None, at=()):
    """All that the checkpoint of the end holds, and what each process has seen."""
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu", strategy=strategy, devices=2, max_epochs=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=[Diary(folder, (*at, 15)), Places(folder)],
    )  # fmt: skip
    trainer.fit(Grows(growing=HALVED), datamodule=Data(HALVED, num_workers=0), ckpt_path=checkpoint, weights_only=True)
    end = torch.load(folder / "15.ckpt", weights_only=True)
    return end, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_grow_together_and_go_on(tmp_path):
    """At the places of one process with batches twice as large: in mid-epoch, at a change and in the next epoch."""
    expected, (one, other) = fit_on_two_ranks(tmp_path, at=(3, 6, 10))
    assert one[0] == other[0]
    assert len({tuple(place) for place in one[1] + other[1]}) == len(one[1] + other[1]) == expected["images_seen"]
    for stop in (3, 6, 10):
        found, (first, second) = fit_on_two_ranks(tmp_path, tmp_path / f"{stop}.ckpt")
        assert not differences(expected, found)
        assert (first[0], first[1], second[1]) == (one[0][stop:], one[1][-len(first[1]) :], other[1][-len(second[1]) :])


@pytest.mark.parametrize(
    ("settings", "given", "validated"),
    [
        ({"limit_train_batches": 7}, [7, 5, 7], [7, 12, 19]),
        ({"limit_train_batches": 0.5}, [4, 3, 2], [4, 7, 9]),
        ({"val_check_interval": 3}, [8, 6, 7], [3, 6, 11, 14, 17, 20]),
        ({"val_check_interval": 0.5}, [8, 6, 7], [4, 8, 11, 14, 17, 20]),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, [8, 6, 7], [5, 10, 15, 20]),
        ({"max_epochs": -1, "max_steps": 12}, [8, 4], [8]),
        ({"reload_dataloaders_every_n_epochs": 0, "max_epochs": 2}, [8, 6], [8, 14]),
    ],
    ids=str,
)
def test_settings_of_the_trainer(tmp_path, settings, given, validated):
    model, diary = Grows(), Diary()
    fit(tmp_path, model, diary=diary, **settings)
    assert diary.given == given
    assert diary.validated == validated
    assert len({tuple(place) for place in model.seen}) == len(model.seen) == model.images_seen


@pytest.mark.parametrize(
    "settings", [{"limit_train_batches": 7}, {"limit_train_batches": 0.5}, {"val_check_interval": 0.5}], ids=str
)
def test_going_on_keeps_settings_of_the_trainer(tmp_path, settings):
    expected = fit(tmp_path, diary=Diary(tmp_path, (3, 5, 8)), **settings)
    for stop in (3, 5, 8):
        assert not differences(expected, fit(tmp_path, checkpoint=tmp_path / f"{stop}.ckpt", **settings))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"growing": None, "batch_size": 3}),
        ({"growing": None, "batch_size": 3}, {}),
        ({}, {"growing": Growing((1, 4), (5, 4), stable_images=15, fade_images=0)}),
    ],
)
@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_run_may_go_on_with_another_schedule_or_none(tmp_path, before, after, stop):
    """The rest of the epoch comes in batches of the new size, and again nothing twice."""
    whole, rest = Plain(), Plain()
    fit(tmp_path, whole, Data(num_workers=0, **before), Diary(tmp_path, (stop,)), max_epochs=2)
    fit(tmp_path, rest, Data(num_workers=0, **after), checkpoint=tmp_path / f"{stop}.ckpt", max_epochs=2)
    used = sum(shape[0] for shape in whole.shapes[:stop])
    seen = whole.seen[:used] + rest.seen
    assert len({tuple(place) for place in seen}) == len(seen)
    for epoch in (0, 1):
        positions = sorted(position for number, position, _ in seen if number == epoch)
        assert positions == list(range(len(positions)))
        assert 21 - len(positions) < 5


class Plain(pl.LightningModule):
    """A user's own module, which knows nothing of this package."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.shapes, self.seen = [], []

    def training_step(self, batch, batch_idx):
        self.shapes.append(tuple(batch["image"].shape))
        self.seen += batch["place"].tolist()
        return (self.shift - batch["image"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_any_module_may_be_trained_on_what_grows(tmp_path):
    whole, diary = Plain(), Diary(tmp_path, (5, 8, 10))
    expected = fit(tmp_path, whole, diary=diary)
    assert diary.announced == diary.given == [8, 6, 7]
    for stop in (5, 8, 10):
        rest = Plain()
        found = fit(tmp_path, rest, checkpoint=tmp_path / f"{stop}.ckpt")
        assert rest.shapes == whole.shapes[stop:]
        assert torch.equal(found["state_dict"]["shift"], expected["state_dict"]["shift"])
