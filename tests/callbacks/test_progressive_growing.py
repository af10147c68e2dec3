"""A run that grows, accompanied: nothing of it changes, it is said where it is, and what it needs is tried before."""

import logging
from dataclasses import dataclass

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from benchmarks.shipped import small_model
from lightning_gen.callbacks import ProgressiveGrowing
from lightning_gen.callbacks.progressive_growing import costs_of
from lightning_gen.data.base import DrawDataset, ImageDataModule
from lightning_gen.models import DCGAN, ProGAN, StyleGAN
from lightning_gen.schedules import Growing
from tests.shared import differences

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:.*barebones")

SHAPE = (3, 16, 16)
# By fours to 12, where 8 x 8 begins to fade in by twos, until 20; to 32, and 16 x 16 by twos until 40.
GROWING = Growing((4, 8, 16), (4, 2, 2), learning_rates=(1e-3, 2e-3, 3e-3), stable_images=12, fade_images=8)


@dataclass(frozen=True, eq=False)
class Noise(DrawDataset):
    def __len__(self):
        return 23

    def __getitem__(self, draw):
        return {"image": torch.from_numpy(draw.rng(1).uniform(-1, 1, SHAPE)).float()}


class Data(ImageDataModule):
    image_shape = SHAPE

    def __init__(self, growing=GROWING):
        super().__init__(growing=growing, seed=2, num_workers=0, batch_size=2)

    def dataset(self, split):
        return Noise()


class Diary(pl.Callback):
    def __init__(self):
        self.logged = []

    def on_train_batch_end(self, trainer, module, *_):
        names = ("resolution", "fade", "batch_size")
        self.logged.append(tuple(float(trainer.logged_metrics.get(f"growing/{name}", -1)) for name in names))


def make(base, **settings):
    torch.manual_seed(0)
    return small_model(base, SHAPE, latent_size=4, **{"growing": GROWING, **settings})()


def fit(folder, *callbacks, model=None, data=None, **settings):
    model = model or make(StyleGAN)
    torch.manual_seed(0)
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
        enable_checkpointing=False, log_every_n_steps=1, default_root_dir=folder, callbacks=list(callbacks),
        limit_val_batches=0, **{"max_steps": 14, **settings},
    )  # fmt: skip
    trainer.fit(model, datamodule=data or Data())
    return model, trainer


@pytest.mark.parametrize("base", [ProGAN, StyleGAN])
def test_what_is_tried_beforehand_leaves_no_trace(base, tmp_path):
    plain, trainer = fit(tmp_path, model=make(base))
    followed, other = fit(tmp_path, ProgressiveGrowing(), model=make(base))
    assert not differences(plain.state_dict(), followed.state_dict())
    assert plain.images_seen == followed.images_seen == 36
    for one, two in zip(trainer.optimizers, other.optimizers, strict=True):
        assert not differences(one.state_dict(), two.state_dict())


def test_each_step_is_logged_and_each_phase_announced_once(tmp_path, caplog):
    diary, seen, images = Diary(), [], 0
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path, ProgressiveGrowing(), diary)
    for _ in range(14):
        stage = GROWING(images)
        seen.append((stage.resolution, pytest.approx(stage.fade), stage.batch_size))
        images += stage.batch_size
    assert diary.logged == seen
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Growing: ")]
    assert "all stages have been tried" in said[0]
    assert said[1:] == [
        "Growing: after 0 thousand pictures resolution 4 is there in full, in batches of 4, at a learning rate of "
        "0.001.",
        "Growing: after 0.016 thousand pictures resolution 8 fades in, in batches of 2, at a learning rate of 0.002.",
        "Growing: after 0.02 thousand pictures resolution 8 is there in full, in batches of 2, at a learning rate of "
        "0.002.",
        "Growing: after 0.034 thousand pictures resolution 16 fades in, in batches of 2, at a learning rate of 0.003.",
    ]


@pytest.mark.parametrize(("steps", "warns"), [(15, True), (16, True), (17, False), (-1, False)])
def test_a_run_that_ends_before_the_last_resolution_is_told(steps, warns, tmp_path, recwarn):
    """Four batches of four, two and seven of two, and three more until 16 x 16 is there in full."""
    assert [phase.batches for phase in GROWING.phases()] == [4, 2, 7, 3, None]
    callback, model = ProgressiveGrowing(probe=False), make(ProGAN)
    fit(tmp_path, callback, model=model, max_steps=1)
    recwarn.clear()
    model.trainer.fit_loop.epoch_loop.max_steps = steps
    callback.on_train_start(model.trainer, model)
    found = [str(each.message) for each in recwarn]
    assert bool(found) == warns
    assert all("is there in full after 0.04 thousand. Raise trainer.max_steps" in words for words in found)


def test_each_stage_is_tried_in_its_middle_with_its_batch():
    tried = []

    class Watched(StyleGAN):
        def training_step(self, batch, batch_idx):
            tried.append((self.images_seen, tuple(batch["image"].shape)))
            super().training_step(batch, batch_idx)

    model = make(Watched)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    costs = costs_of(model, Data(), {"accelerator": "cpu", "devices": 1}, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not differences(before, model.state_dict())
    assert model.images_seen == 0
    assert list(costs) == GROWING.phases()
    places = [(8, (4, 3, 4, 4)), (18, (2, 3, 8, 8)), (36, (2, 3, 16, 16))]
    assert tried == [place for place in places for _ in range(3)]
    assert all(cost.seconds > 0 and cost.memory > 1e8 for cost in costs.values())


def test_memory_that_does_not_suffice_later_is_known_at_once(tmp_path):
    class Hungry(StyleGAN):
        def training_step(self, batch, batch_idx):
            if self.training_shape[1] == 16:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
            return super().training_step(batch, batch_idx)

    model = make(Hungry)
    with pytest.raises(MemoryError, match=r"of cpu does not suffice at resolution 16 with batches of 2 \(CUDA out of"):
        fit(tmp_path, ProgressiveGrowing(), model=model)
    assert model.images_seen == 0


class Hungry(StyleGAN):
    """A second process has less memory."""

    def training_step(self, batch, batch_idx):
        if self.training_shape[1] == 16 and rank_zero_only.rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return super().training_step(batch, batch_idx)


class Told(ProgressiveGrowing):
    """Writes down what is wrong, and lets the run begin nevertheless."""

    def __init__(self, folder, probe=True):
        super().__init__(probe)
        self.folder = folder

    def setup(self, trainer, pl_module, stage):
        words = "nothing"
        try:
            super().setup(trainer, pl_module, stage)
        except (MemoryError, RuntimeError) as error:
            words = f"{type(error).__name__}: {error}"
        (self.folder / f"{trainer.global_rank}.txt").write_text(words)

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")


def fit_on_two_ranks(base, folder, callback):
    launching._check_bad_cuda_fork = lambda: None  # nothing here uses CUDA
    fit(folder, callback, model=make(base), strategy="ddp_fork", devices=2, max_steps=3)


def test_every_process_tries_the_stages_and_what_one_lacks_all_are_told(tmp_path, fresh_process):
    weights = {}
    for name, base, probe in (("untried", StyleGAN, False), ("enough", StyleGAN, True), ("little", Hungry, True)):
        (tmp_path / name).mkdir()
        fresh_process(fit_on_two_ranks, base, tmp_path / name, Told(tmp_path / name, probe))
        weights[name] = [torch.load(tmp_path / name / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert (tmp_path / "enough" / "0.txt").read_text() == (tmp_path / "enough" / "1.txt").read_text() == "nothing"
    assert not differences(*weights["enough"])
    assert not differences(weights["enough"][0], weights["untried"][0]), "trying leaves no trace"
    why = "The memory of cpu does not suffice at resolution 16 with batches of 2 (CUDA out of memory."
    assert (tmp_path / "little" / "1.txt").read_text().startswith(f"MemoryError: {why}")
    assert (tmp_path / "little" / "0.txt").read_text().startswith("RuntimeError: Rank 1 failed, so all do. MemoryErr")


def test_models_that_do_not_grow(tmp_path):
    with pytest.raises(ValueError, match=r"DCGAN does not grow\. Leave the callback out"):
        fit(tmp_path, ProgressiveGrowing(), model=small_model(DCGAN, SHAPE)(), data=Data(None))
    diary = Diary()
    fit(tmp_path, ProgressiveGrowing(), diary, model=make(ProGAN, growing=None), data=Data(None), max_steps=2)
    assert diary.logged == [(-1, -1, -1)] * 2, "what has full size from the start has nothing to tell"
