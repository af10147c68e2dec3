"""One piece in a Lightning project of the user's own: their network, their data, a plain Trainer, no command line."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_gen.cli import main
from lightning_gen.losses import GradientPenalty
from lightning_gen.models import GAN, WGANGP, CycleGAN
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
        loaded = CycleGAN.load_from_checkpoint(path, trust=(__name__,))
        assert isinstance(loaded.generator_AtoB, MyGenerator)
    again = CycleGAN.load_from_checkpoint(best.last_model_path, trust=(__name__,), generator=MyGenerator)
    images = torch.rand(1, 1, 21, 13)
    for other in (CycleGAN.load_from_checkpoint(best.last_model_path, trust=(__name__,)), again):
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
    assert equal(
        CycleGAN.load_from_checkpoint(best.last_model_path, trust=(__name__,), generator=Local).state_dict(),
        model.state_dict(),
    )


def test_it_is_a_module_like_any_other(tmp_path):
    """Half of it can be taken out, saved and used with PyTorch alone."""
    model = make()
    fit(tmp_path, model, steps=1)
    torch.save(model.generator_AtoB.state_dict(), tmp_path / "generator.pt")
    network = MyGenerator(SHAPE)
    network.load_state_dict(torch.load(tmp_path / "generator.pt", weights_only=True))
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(network(images).detach(), model.translate(images))


# -- a generator and a discriminator in the two-player game ---------------------------------------------------------


class Painter(nn.Module):
    """Any module that is made from the image shape and the width of the latents."""

    def __init__(self, image_shape, latent_size, colours=4):
        super().__init__()
        self.image_shape = image_shape
        self.net = nn.Sequential(nn.Linear(latent_size, colours), nn.GELU(), nn.Linear(colours, image_shape.numel()))

    def forward(self, latents):
        return self.net(latents).tanh().view(-1, *self.image_shape)


class Critic(nn.Module):
    """Any module that is made from the image shape, with scores of any shape [N, ...]."""

    def __init__(self, image_shape, width=4):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(image_shape[0], width, 3), nn.SiLU(), nn.Conv2d(width, 1, 3))

    def forward(self, images):
        return self.net(images)  # a score for each patch


def painter(image_shape, latent_size) -> nn.Module:
    return Painter(torch.Size(image_shape), latent_size)


def test_networks_of_ones_own_play_the_game_from_plain_python(tmp_path):
    pl.seed_everything(0, verbose=False)
    model = WGANGP(SHAPE, generator=painter, discriminator=Critic, latent_size=6, n_critic=2)
    trainer = pl.Trainer(accelerator="cpu", max_steps=3, logger=False, default_root_dir=tmp_path,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    pictures = [(torch.rand(4, *SHAPE) * 2 - 1, torch.zeros(4)) for _ in range(6)]  # pairs, as torchvision's sets give
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.fit(model, DataLoader(pictures, batch_size=None), DataLoader(pictures[:1], batch_size=None))
    assert trainer.global_step == 3
    assert model.images_seen == 3 * 2 * 4
    assert all(not torch.equal(parameter, start[name]) for name, parameter in model.named_parameters())
    assert {"train/GradientPenalty", "train/discriminator", "val/discriminator"} <= {*trainer.callback_metrics}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = GAN.load_from_checkpoint(tmp_path / "a.ckpt", trust=(__name__,))
    assert type(loaded) is WGANGP
    assert loaded.penalties == [GradientPenalty(10.0)]
    images = [m.sample(5, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)]
    torch.testing.assert_close(*images)


OWN = """
import torch
from torch import nn


class Painter(nn.Module):
    def __init__(self, image_shape: tuple[int, int, int], latent_size: int, *, num_classes: int = 1, colours: int = 4):
        super().__init__()
        self.shape, self.labels = image_shape, nn.Embedding(num_classes, latent_size)
        self.net = nn.Linear(latent_size, image_shape[0] * image_shape[1] * image_shape[2])
        self.colours = colours

    def forward(self, latents, labels):
        return self.net(latents * self.labels(labels)).tanh().view(-1, *self.shape)


class Critic(nn.Module):
    def __init__(self, image_shape: tuple[int, int, int], *, num_classes: int = 1, width: int = 4):
        super().__init__()
        self.labels = nn.Embedding(num_classes, width)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], width))

    def forward(self, images, labels):
        return (self.net(images) * self.labels(labels)).sum(1)


class Wide(Painter):
    def forward(self, latents, labels):
        return super().forward(latents, labels).repeat(1, 1, 1, 2)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The settings of a small run in a folder with own.py, to change and write."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    return {
        "model": {
            "class_path": "GAN",
            "init_args": {
                "generator": {"class_path": "own.Painter", "init_args": {"colours": 9}},
                "discriminator": {"class_path": "own.Critic", "init_args": {"width": 5}},
                "num_classes": 10,
                "latent_size": 3,
                "n_critic": 2,
            },
        },
        "data": {"class_path": "Digits", "init_args": {"batch_size": 50, "num_workers": 0}},
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }


def ended(settings, *arguments):
    """Runs in a process of its own: the exit code of `fit`."""
    Path("own.yaml").write_text(yaml.safe_dump(settings))
    try:
        main(["fit", "--config", "own.yaml", *arguments])
    except SystemExit as stop:
        return stop.code or 0


def test_networks_of_ones_own_by_import_path_in_yaml(own, fresh_process):
    assert fresh_process(ended, own) == 0
    (path,) = Path("runs").rglob("last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["images_seen"] == 2 * 2 * 50
    generator = checkpoint["hyper_parameters"]["generator"]
    assert (generator["class_path"], generator["init_args"]["colours"]) == ("own.Painter", 9)
    assert checkpoint["state_dict"]["discriminator.labels.weight"].shape == (10, 5)
    history = [json.loads(line) for line in (path.parent.parent / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if "train/generator" in row] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model.n_critic", "0"], 1, ["n_critic must be at least 1, got 0"]),
        (["--model.generator", "own.Wide"], 1, ["generator Wide makes pictures of shape (1, 8, 16)", "(1, 8, 8)"]),
        (["--model.num_classes", "7"], 1, ["The model has num_classes=7, but Digits has 10 classes"]),
        (["--model.n_critics", "3"], 2, ["n_critics"]),
    ],
    ids=["n_critic", "shape", "classes", "typo"],
)
def test_mistakes_are_said_in_plain_words(own, fresh_process, capfd, arguments, code, words):
    assert fresh_process(ended, own, *arguments) == code
    message = capfd.readouterr().err
    assert all(word in message for word in words)
    assert "Traceback" not in message


def test_the_help_of_a_thin_model_lists_what_it_inherits(fresh_process, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def show():
        try:
            main(["fit", "--model.help", "WGANGP"])
        except SystemExit as stop:
            return stop.code or 0

    assert fresh_process(show) == 0
    text = capfd.readouterr().out
    inherited = ("n_critic", "latent_size", "compile", "instance_noise", "generator_batch_factor", "num_classes")
    assert all(f"--model.init_args.{name}" in text or f"--model.{name}" in text for name in inherited)
