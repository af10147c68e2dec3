"""Going on equals never having stopped, however a run stopped: equal to the bit, in all that a checkpoint holds."""

import copy
import functools

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import Dataset

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.checkpoints import CheckpointError
from lightning_gen.data.base import ImageDataModule
from lightning_gen.losses.categorical import levels_to_images
from lightning_gen.models import GAN, WGANGP, PixelCNN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator, PixelCNNNetwork
from lightning_gen.resuming import keep_changes, training_settings

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


def make(kind, **settings):
    torch.manual_seed(0)
    networks = {
        "generator": functools.partial(MLPGenerator, widths=[8], output="tanh"),
        "discriminator": functools.partial(MLPDiscriminator, widths=[8], maxout=1, dropout=0, input_dropout=0),
        "latent_size": 3,
    }
    if kind == "pixelcnn":
        network = functools.partial(PixelCNNNetwork, filters=4, layers=2, head_filters=4)
        return PixelCNN(SHAPE, num_levels=4, network=network, **{"lr_decay": 0.9, **settings})
    networks |= settings
    return GAN(SHAPE, **networks) if kind == "gan" else WGANGP(SHAPE, **networks, n_critic=3)


def fit(kind, folder, *callbacks, checkpoint=None, model=None, batch_size=4, **settings):
    """The last checkpoint, and what was seen."""
    seen = Seen()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[seen, LastCheckpoint(), *callbacks],
        **{**quiet, **settings},
    )
    trainer.fit(make(kind, **(model or {})), datamodule=Data(batch_size), ckpt_path=checkpoint, weights_only=True)
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


@pytest.mark.parametrize(("kind", "every"), [("gan", 4), ("pixelcnn", 1.0)])
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


# -- settings that are changed ----------------------------------------------------------------------------------------

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.5)


class ByHand(pl.Callback):
    """Sets what the optimizers' groups have from a batch on, and the rates that their schedules go by."""

    def __init__(self, batch, settings):
        self.batch, self.settings = batch, settings

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
            for optimizer, schedule, settings in zip(trainer.optimizers, schedules, self.settings, strict=True):
                optimizer.param_groups[0].update(settings)
                schedule.base_lrs = [settings.get("lr", schedule.base_lrs[0])]


def groups(checkpoint):
    return [state["param_groups"][0] for state in checkpoint["optimizer_states"]]


@pytest.mark.parametrize(
    ("kind", "before", "now", "by_hand", "words"),
    [
        ("gan", {}, {"learning_rate": 0.01}, [{"lr": 0.01}] * 2, "learning_rate 0.0002 -> 0.01"),
        (
            "wgan_gp", {}, {"betas": (0.1, 0.8), "discriminator_learning_rate": 0.02},
            [{"betas": (0.1, 0.8)}, {"betas": (0.1, 0.8), "lr": 0.02}],
            "betas [0.0, 0.9] -> [0.1, 0.8], discriminator_learning_rate None -> 0.02",
        ),
        (
            "gan", {"generator_optimizer": SGD},
            {"generator_optimizer": functools.partial(SGD, lr=0.2, weight_decay=0.3)},
            [{"lr": 0.2, "weight_decay": 0.3}, {}],
            "generator_optimizer.init_args.lr 0.1 -> 0.2, generator_optimizer.init_args.weight_decay 0 -> 0.3",
        ),
        ("pixelcnn", {"lr_decay": 1.0}, {"learning_rate": 0.1}, [{"lr": 0.1}], "learning_rate 0.001 -> 0.1"),
    ],
)  # fmt: skip
def test_what_is_changed_holds_as_if_set_by_hand(tmp_path, caplog, kind, before, now, by_hand, words):
    steps = {"max_steps": 3 if kind != "wgan_gp" else 1, "max_epochs": -1}
    more = {"max_steps": 6 if kind != "wgan_gp" else 2}
    expected, _ = fit(kind, tmp_path / "by_hand", ByHand(3, by_hand), model=before, **more)
    checkpoint, _ = fit(kind, tmp_path, model=before, **steps)
    last = tmp_path / "checkpoints" / "last.ckpt"
    if kind == "wgan_gp":  # as if by an earlier version, which did not keep them
        del checkpoint["training_settings"]
        torch.save(checkpoint, last)
    caplog.clear()
    found, _ = fit(kind, tmp_path, checkpoint=last, model={**before, **now}, **more)
    assert [m for m in caplog.messages if "Changed" in m] == [f"Changed since the checkpoint: {words}"]
    assert not differences(expected["state_dict"], found["state_dict"])
    for group, other, settings in zip(groups(found), groups(expected), by_hand, strict=True):
        assert {**group, "initial_lr": None} == {**other, "initial_lr": None}
        assert group["initial_lr"] == settings.get("lr", other["initial_lr"])
    # And what is recorded is what was used, also for the next time.
    assert found["hyper_parameters"].items() >= make(kind, **{**before, **now}).hparams.items()
    caplog.clear()
    fit(kind, tmp_path, checkpoint=last, model={**before, **now}, max_steps=more["max_steps"] + 1)
    assert not [m for m in caplog.messages if "Changed" in m]


@pytest.mark.parametrize(
    ("kind", "before", "now", "rate"),
    [
        ("pixelcnn", {"lr_decay": 0.9}, {"lr_decay": 0.5}, 1e-3 * 0.5**6),
        ("pixelcnn", {"lr_decay": 0.9}, {"lr_decay": 1.0}, 1e-3),
        ("pixelcnn", {"lr_decay": 1.0}, {"lr_decay": 0.5, "learning_rate": 0.1}, 0.1 * 0.5**6),
        ("gan", {"decay_start": 1.0}, {"decay_start": 0.0}, 2e-4 * 0.4),
        ("gan", {"decay_start": 0.0}, {"decay_start": 1.0, "learning_rate": 0.1}, 0.1),
    ],
)
def test_a_changed_schedule_holds_from_the_first_step(tmp_path, kind, before, now, rate):
    fit(kind, tmp_path, model=before, max_steps=3)
    rates = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    last = tmp_path / "checkpoints" / "last.ckpt"
    found, _ = fit(kind, tmp_path, Rates(), Stop("batch", 6), checkpoint=last, model=now, max_steps=10)
    assert [group["lr"] for group in groups(found)] == [pytest.approx(rate, rel=1e-12)] * len(groups(found))
    base = now.get("learning_rate", {"gan": 2e-4, "pixelcnn": 1e-3}[kind])
    shares = {0.0: 1 - 3 / 10, 1.0: 1.0, None: now.get("lr_decay", 1) ** 3}
    assert rates[0] == pytest.approx(base * shares[now.get("decay_start")], rel=1e-12)


def test_another_optimizer_begins_without_a_state(tmp_path, caplog):
    fit("gan", tmp_path, max_steps=3)
    found, _ = fit(
        "gan",
        tmp_path,
        checkpoint=tmp_path / "checkpoints" / "last.ckpt",
        model={"generator_optimizer": SGD},
        max_steps=5,
    )
    assert any("generator_optimizer None -> {" in message for message in caplog.messages)
    caplog.clear()
    fit(
        "gan",
        tmp_path,
        checkpoint=tmp_path / "checkpoints" / "last.ckpt",
        model={"generator_optimizer": torch.optim.RMSprop},
        max_steps=6,
    )
    words = "generator_optimizer torch.optim.SGD -> torch.optim.RMSprop"
    assert f"Changed since the checkpoint: {words}" in caplog.messages
    generator, discriminator = found["optimizer_states"]
    assert generator["param_groups"][0]["momentum"] == 0.5
    assert {name for state in generator["state"].values() for name in state} == {"momentum_buffer"}
    assert [float(state["step"]) for state in discriminator["state"].values()] == [5.0] * 4


def trained(make_schedule, optimizer=torch.optim.Adam, steps=3, **settings):
    made = optimizer([torch.nn.Parameter(torch.ones(2))], **{"lr": 1.0, **settings})
    schedule = make_schedule(made)
    record = training_settings([made], [schedule])
    for _ in range(steps):
        made.param_groups[0]["params"][0].grad = torch.ones(2)
        made.step()
        schedule.step()
    states = {"optimizer_states": [made.state_dict()], "lr_schedulers": [schedule.state_dict()]}
    return made, schedule, {**copy.deepcopy(states), "training_settings": record, "global_step": steps}


SCHEDULES = {
    "step": lambda optimizer, gamma=0.5: StepLR(optimizer, 2, gamma),
    "cosine": lambda optimizer, length=10: CosineAnnealingLR(optimizer, length),
    "one cycle": lambda optimizer, length=10: OneCycleLR(optimizer, 2.0, length),
    "plateau": lambda optimizer, patience=10: ReduceLROnPlateau(optimizer, patience=patience),
    "two": lambda optimizer, gamma=0.5: SequentialLR(
        optimizer, [StepLR(optimizer, 1, gamma), ExponentialLR(optimizer, 0.9)], [2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_goes_on_with_what_was_changed(name, monkeypatch):
    plateau = ReduceLROnPlateau.step
    monkeypatch.setattr(ReduceLROnPlateau, "step", lambda self, metric=1.0: plateau(self, metric))
    make_schedule = SCHEDULES[name]
    _, _, checkpoint = trained(make_schedule)
    new = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    untouched, schedule = copy.deepcopy(checkpoint), make_schedule(new)
    assert keep_changes(checkpoint, [new], [schedule]) == []
    assert not differences(untouched, checkpoint)
    # Another rate: all later rates by the same factor. (That of OneCycleLR is its own.)
    new = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=0.5, weight_decay=0.1)
    schedule = make_schedule(new)
    changes = keep_changes(checkpoint, [new], [schedule])
    rate = [] if name == "one cycle" else ["optimizer 0.lr 1.0 -> 0.5"]
    assert [str(change) for change in changes] == [*rate, "optimizer 0.weight_decay 0 -> 0.1"]
    new.load_state_dict(checkpoint["optimizer_states"][0])
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    factor = 1 if name == "one cycle" else 0.5
    reference, other, _ = trained(make_schedule)
    for _ in range(4):
        assert new.param_groups[0]["lr"] == pytest.approx(factor * reference.param_groups[0]["lr"], rel=1e-12)
        schedule.step()
        other.step()


def test_a_schedule_s_own_settings_hold():
    _, _, checkpoint = trained(SCHEDULES["step"])
    new = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    schedule = StepLR(new, 2, 0.1)
    assert list(map(str, keep_changes(checkpoint, [new], [schedule]))) == ["schedule 0.gamma 0.5 -> 0.1"]
    new.load_state_dict(checkpoint["optimizer_states"][0])
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    schedule.step()
    assert new.param_groups[0]["lr"] == pytest.approx(0.5 * 0.1)
    # Inside of others, too; and one of another kind takes the place over.
    _, _, checkpoint = trained(SCHEDULES["two"])
    new = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    assert "_schedulers.0.gamma 0.5 -> 0.2" in str(keep_changes(checkpoint, [new], [SCHEDULES["two"](new, 0.2)])[0])
    (change,) = keep_changes(checkpoint, [new], [CosineAnnealingLR(new, 10)])
    assert str(change).endswith("SequentialLR -> torch.optim.lr_scheduler.CosineAnnealingLR")
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 3


def test_adamw_takes_over_from_adam():
    _, _, checkpoint = trained(SCHEDULES["step"])
    new = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1.0, weight_decay=0.1)
    changes = keep_changes(checkpoint, [new], [StepLR(new, 2, 0.5)])
    assert {change.name for change in changes} == {"optimizer 0.weight_decay", "optimizer 0.decoupled_weight_decay"}
    new.load_state_dict(checkpoint["optimizer_states"][0])
    assert [float(state["step"]) for state in new.state.values()] == [3.0]


def test_more_patience_holds(tmp_path):
    def patient(patience):
        return EarlyStopping("val/nll", patience=patience, min_delta=100.0)

    settings = {"val_check_interval": 2, "max_steps": 20}
    _, first = fit("pixelcnn", tmp_path, patient(2), **settings)
    assert len(first.pictures) == 6
    last = tmp_path / "checkpoints" / "last.ckpt"
    _, second = fit("pixelcnn", tmp_path, patient(4), checkpoint=last, **settings)
    assert len(second.pictures) == 4


def test_weights_alone_are_no_state_to_go_on_from(tmp_path):
    checkpoint, _ = fit("gan", tmp_path, max_steps=1)
    del checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    with pytest.raises(CheckpointError, match="has no 'optimizer_states', 'lr_schedulers': it holds weights to use"):
        fit("gan", tmp_path, checkpoint=tmp_path / "weights.ckpt", max_steps=2)
