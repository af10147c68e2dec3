"""Going on equals never having stopped, however a run stopped: equal to the bit, in all that a checkpoint holds."""

import functools

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Dataset

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.data.base import ImageDataModule
from lightning_gen.losses.categorical import levels_to_images
from lightning_gen.models import GAN, WGANGP, PixelCNN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator

SHAPE = (1, 4, 4)
BATCHES = 8  # in an epoch

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from", "ignore:.*does not have many workers")


class Pictures(Dataset):
    def __len__(self):
        return 4 * BATCHES

    def __getitem__(self, draw):
        chosen = torch.randint(4, SHAPE, generator=torch.Generator().manual_seed(draw.index))
        return {"image": levels_to_images(chosen, 4), "draw": torch.tensor(draw)}


class Data(ImageDataModule):
    image_shape = SHAPE

    def __init__(self, batch_size=4):
        super().__init__(batch_size=batch_size, num_workers=0)

    def train_set(self):
        return Pictures()

    val_set = test_set = train_set


class Seen(pl.Callback):
    """The pictures of each batch, and the steps at which validations and epochs ended."""

    def __init__(self):
        self.pictures, self.validated, self.epochs = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.pictures.append([tuple(draw) for draw in batch["draw"].tolist()])

    def on_validation_end(self, trainer, module):
        self.validated.append(trainer.global_step)

    def on_train_epoch_end(self, trainer, module):
        self.epochs.append(trainer.global_step)


class Stop(pl.Callback):
    """Asks the trainer to stop when a batch, a validation or an epoch ends, as timers and EarlyStopping do."""

    def __init__(self, when, batch):
        self.when, self.batch = when, batch

    def stop(self, trainer, hook):
        if self.when == hook and trainer.fit_loop.epoch_loop.batch_progress.total.ready >= self.batch:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer, *_):
        self.stop(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self.stop(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.stop(trainer, "epoch")


def make(kind):
    torch.manual_seed(0)
    networks = {
        "generator": functools.partial(MLPGenerator, widths=[8], output="tanh"),
        "discriminator": functools.partial(MLPDiscriminator, widths=[8], maxout=1, dropout=0, input_dropout=0),
        "latent_size": 3,
    }
    if kind == "pixelcnn":
        return PixelCNN(SHAPE, num_levels=4, filters=4, layers=2, head_filters=4, lr_decay=0.9)
    return GAN(SHAPE, **networks) if kind == "gan" else WGANGP(SHAPE, **networks, n_critic=3)


def fit(kind, folder, *callbacks, checkpoint=None, batch_size=4, every=500, **settings):
    """The last checkpoint, and what was seen."""
    seen = Seen()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    every = LastCheckpoint(every)
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=[seen, every, *callbacks], **{**quiet, **settings}
    )
    trainer.fit(make(kind), datamodule=Data(batch_size), ckpt_path=checkpoint, weights_only=True)
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True), seen


def differences(a, b, name=""):
    """Where two structures differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys(), key=str)
        return [found for k in keys for found in differences(a.get(k, "absent"), b.get(k, "absent"), f"{name}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{name}.{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [f"{name}: {a} != {b}"]


STEPS = {"gan": 20, "wgan_gp": 6, "pixelcnn": 20}  # of the run that is never stopped; an epoch has 8 batches


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """Runs that were never stopped, by kind and interval of validation."""

    @functools.cache
    def run(kind, every):
        return fit(kind, tmp_path_factory.mktemp(kind), max_steps=STEPS[kind], val_check_interval=every)

    return run


@pytest.mark.parametrize(
    ("kind", "every", "settings", "batches"),
    [
        ("gan", 3, {"max_steps": 3}, 3),
        ("gan", 3, {"max_steps": 8}, 8),
        ("gan", 1.0, {"max_epochs": 1}, 8),
        ("gan", 1.0, {"callbacks": [Stop("batch", 4)]}, 4),
        ("gan", 3, {"callbacks": [Stop("batch", 8)]}, 8),
        ("gan", 3, {"callbacks": [Stop("validation", 5)]}, 6),
        ("gan", 1.0, {"callbacks": [Stop("epoch", 8)]}, 8),
        ("pixelcnn", 3, {"max_steps": 6}, 6),
        ("pixelcnn", 1.0, {"max_epochs": 2}, 16),
        ("wgan_gp", 3, {"max_steps": 1}, 3),
        ("wgan_gp", 1.0, {"max_epochs": 1}, 8),
        ("wgan_gp", 3, {"callbacks": [Stop("batch", 7)]}, 7),
    ],
)
def test_a_run_that_ended_by_itself_is_prolonged_as_if_it_had_not(tmp_path, through, kind, every, settings, batches):
    expected, whole = through(kind, every)
    settings = {"max_epochs": -1, **settings, "val_check_interval": every}
    _, first = fit(kind, tmp_path, *settings.pop("callbacks", []), **settings)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert len(first.pictures) == batches
    found, second = fit(kind, tmp_path, checkpoint=last, max_steps=STEPS[kind], val_check_interval=every)
    assert first.pictures + second.pictures == whole.pictures
    assert not differences(expected, found)
    if "max_steps" in settings or settings["max_epochs"] > 0:  # a stop on request has a validation of its own
        assert first.validated + second.validated == whole.validated


class SaveAt(pl.Callback):
    """Saves a checkpoint at every hook at which `ModelCheckpoint` may."""

    def save(self, trainer, hook):
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{hook}_{batch}.ckpt")

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")


@pytest.mark.parametrize("kind", ["gan", "pixelcnn"])
@pytest.mark.parametrize("every", [4, 1.0])
def test_any_checkpoint_goes_on_as_if_nothing_had_been(tmp_path, kind, every):
    expected, whole = fit(kind, tmp_path, SaveAt(), max_steps=20, val_check_interval=every)
    saved = ["batch_3", "batch_8", "validation_8", "epoch_8", "epoch_16", *(["validation_4"] if every == 4 else [])]
    for name in saved:
        settings = {"max_steps": 20, "val_check_interval": every}
        found, seen = fit(kind, tmp_path / name, checkpoint=tmp_path / f"{name}.ckpt", **settings)
        assert seen.pictures == whole.pictures[int(name.partition("_")[2]) :], name
        assert not differences(expected, found), name


@pytest.mark.parametrize(("sizes", "batches"), [((4, 8), (3, 2, 4)), ((8, 4), (1, 6, 8)), ((4, 7), (8, 0, 4))])
def test_a_run_goes_on_at_the_same_picture_with_another_batch_size(tmp_path, sizes, batches):
    """Batches of the first size, of the second until the epoch ends, and of the next epoch."""
    fit("gan", tmp_path, batch_size=sizes[0], max_steps=batches[0])
    last = tmp_path / "checkpoints" / "last.ckpt"
    _, seen = fit("gan", tmp_path, checkpoint=last, batch_size=sizes[1], max_steps=sum(batches) + 1)
    start = sizes[0] * batches[0]
    expected = [(0, position) for position in range(start, start + batches[1] * sizes[1])]
    for epoch in (1, 2):
        expected += [(epoch, position) for position in range(batches[2] * sizes[1])]
    shown = [draw[:2] for batch in seen.pictures for draw in batch]
    assert shown == expected[: len(shown)]
    assert len(seen.pictures) == batches[1] + batches[2] + 1
