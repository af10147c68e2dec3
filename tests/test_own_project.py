"""One piece in a Lightning project of the user's own: their network, their data, a plain Trainer, no command line."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_gen.models import CycleGAN
from lightning_gen.networks import PatchDiscriminator

SHAPE = (1, 16, 16)

pytestmark = pytest.mark.filterwarnings("ignore:`ModelCheckpoint", "ignore:The dirpath has changed")


class MyGenerator(nn.Module):
    """Any module that is made from the image shape and keeps it."""

    def __init__(self, image_shape, width=4):
        super().__init__()
        channels = image_shape[0]
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()
        )

    def forward(self, images):
        return self.net(images)


class Scans(Dataset):
    """A and B are the same noise, B inverted; validation says so with the key "paired"."""

    def __init__(self, number, seed, paired=False):
        self.images = torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        self.extra = {"paired": True} if paired else {}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        other = index if self.extra else (index * 3 + 1) % len(self)
        return {"A": self.images[index], "B": -self.images[other], "name": f"scan {index}", **self.extra}


def small_discriminator(image_shape) -> nn.Module:  # so that a checkpoint may name it
    return PatchDiscriminator(image_shape, filters=4, layers=1)


def loaders():
    return DataLoader(Scans(6, seed=0), batch_size=2, drop_last=True), DataLoader(Scans(4, 1, paired=True), 2)


def make(generator=MyGenerator, seed=3):
    pl.seed_everything(seed, verbose=False)
    return CycleGAN(SHAPE, generator=generator, discriminator=small_discriminator, pool_size=2, learning_rate=1e-3)


def fit(folder, model, steps, ckpt_path=None, more=()):
    best = ModelCheckpoint(folder / "checkpoints", "best", monitor="val/psnr_AtoB", mode="max", save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[best, LearningRateMonitor(), *more],
        logger=CSVLogger(folder, "logs"),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, *loaders(), ckpt_path=ckpt_path)
    return trainer, best


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_trains_validates_and_saves_the_best(tmp_path):
    model = make()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer, best = fit(tmp_path, model, steps=6)
    assert trainer.global_step == 6
    assert model.images_seen == 12
    assert all(not torch.equal(parameter, start[name]) for name, parameter in model.named_parameters())
    logged = trainer.callback_metrics
    assert {"val/psnr_AtoB", "val/ssim_BtoA", "val/cycle_A", "train/generator_AtoB", "train/discriminator_B"} <= {
        *logged
    }
    assert best.best_model_score >= logged["val/psnr_AtoB"]
    (result,) = trainer.validate(model, loaders()[1], ckpt_path=best.best_model_path, verbose=False)
    assert result["val/psnr_AtoB"] == pytest.approx(best.best_model_score.item())


def test_it_goes_on_as_if_it_had_never_stopped(tmp_path):
    through, _ = fit(tmp_path / "through", make(), steps=6)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    stopped, last = fit(tmp_path / "stopped", make(), 6, more=[Stop()])
    assert stopped.global_step == 3
    other_start = make(seed=4)
    again, _ = fit(tmp_path / "again", other_start, 6, ckpt_path=last.last_model_path)
    assert again.global_step == 6
    assert equal(again.lightning_module.state_dict(), through.lightning_module.state_dict())
    states = [t.optimizers[i].state_dict()["state"] for t in (again, through) for i in (0, 1)]
    for mine, theirs in ((states[0], states[2]), (states[1], states[3])):
        assert all(equal(mine[key], theirs[key]) for key in theirs)


def test_a_class_with_a_name_is_loaded_from_the_file_alone(tmp_path):
    model = make()
    _, best = fit(tmp_path, model, steps=3)
    for path in (best.last_model_path, best.best_model_path):
        loaded = CycleGAN.load_from_checkpoint(path)
        assert isinstance(loaded.generator_AtoB, MyGenerator)
    again = CycleGAN.load_from_checkpoint(best.last_model_path, generator=MyGenerator)
    images = torch.rand(1, 1, 21, 13)
    for other in (CycleGAN.load_from_checkpoint(best.last_model_path), again):
        assert equal(other.state_dict(), model.state_dict())
        # The rounding of a convolution goes by the layout in memory, which training has changed.
        torch.testing.assert_close(other.translate(images, "BtoA"), model.translate(images, "BtoA"))


def test_a_class_without_a_name_is_given_again(tmp_path):
    class Local(MyGenerator):
        pass

    model = make(Local)
    _, best = fit(tmp_path, model, steps=3)
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, generator=\.\.\.\)"):
        CycleGAN.load_from_checkpoint(best.last_model_path)
    assert equal(CycleGAN.load_from_checkpoint(best.last_model_path, generator=Local).state_dict(), model.state_dict())


def test_it_is_a_module_like_any_other(tmp_path):
    """Half of it can be taken out, saved and used with PyTorch alone."""
    model = make()
    fit(tmp_path, model, steps=1)
    torch.save(model.generator_AtoB.state_dict(), tmp_path / "generator.pt")
    network = MyGenerator(SHAPE)
    network.load_state_dict(torch.load(tmp_path / "generator.pt", weights_only=True))
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(network(images).detach(), model.translate(images))
