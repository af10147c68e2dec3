"""A model inside a model: an autoencoder of the test's own, and a prior that draws what it decodes."""

import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor, nn

from lightning_gen.callbacks import EMA, LastCheckpoint
from lightning_gen.capabilities import Reconstructs
from lightning_gen.checkpoints import CheckpointError, digest_weights
from lightning_gen.commands.inner_models import models_asked_for_by
from lightning_gen.data import Digits
from lightning_gen.generative import GenerativeModule, frozen
from lightning_gen.models import GAN
from lightning_gen.networks import MLPGenerator

SHAPE = (1, 8, 8)
HERE = __name__

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Autoencoder(GenerativeModule):
    """With classes, and with layers that behave otherwise in training."""

    def __init__(self, image_shape: tuple[int, int, int], width: int = 4, num_classes: int | None = None) -> None:
        super().__init__(image_shape)
        self.declare_context(num_classes=num_classes)
        self.save_hyperparameters()
        layers = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.5), nn.Conv2d(width, 1, 1)
        self.network = nn.Sequential(*layers)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.network(images).clamp(-1, 1)

    def training_step(self, batch, batch_idx):
        images, _ = self.images_and_labels(batch)
        self.images_seen += len(images) * self.trainer.world_size
        return (self.network(images) - images).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Prior(GenerativeModule):
    """Learns one picture that the first stage reconstructs."""

    def __init__(
        self, image_shape: tuple[int, int, int], first_stage: Reconstructs, second: GenerativeModule | None = None
    ) -> None:
        super().__init__(image_shape)
        self.declare_context()
        self.save_hyperparameters()
        self.first_stage = frozen(first_stage)
        self.second = second
        self.network = nn.Linear(4, 64)

    def sample(
        self, num_samples: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        with torch.no_grad():
            noise = torch.randn(num_samples, 4, generator=generator).to(self.device)
            return self.first_stage.reconstruct(self.network(noise).tanh().unflatten(1, SHAPE))

    def training_step(self, batch, batch_idx):
        images, _ = self.images_and_labels(batch)
        self.images_seen += len(images) * self.trainer.world_size
        images = self.first_stage.reconstruct(images)
        loss = (self.network(torch.randn(len(images), 4)).unflatten(1, SHAPE) - images).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01, weight_decay=0.5)


def fit(model, folder, steps, ckpt_path=None, callbacks=(), **settings):
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=folder, max_steps=steps, callbacks=[LastCheckpoint(), *callbacks],
        logger=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(model, datamodule=Digits(batch_size=4, num_workers=0), ckpt_path=ckpt_path, weights_only=True)
    return folder / "checkpoints" / "last.ckpt"


def contents(path):
    return torch.load(path, weights_only=True)


def load(path, cls=GenerativeModule, **overrides):
    return cls.load_from_checkpoint(path, trust=("tests",), **overrides)


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture
def inner(tmp_path):
    """The checkpoint of a first stage of two steps."""
    pl.seed_everything(1, verbose=False)
    return fit(Autoencoder(SHAPE, 3, num_classes=10), tmp_path / "inner", 2)


def prior(inner):
    pl.seed_everything(2, verbose=False)
    return Prior(SHAPE, load(inner))


def test_it_is_plain_data_with_the_digest_of_its_weights(inner, tmp_path):
    model = prior(inner)
    path = fit(model, tmp_path / "outer", 2)
    assert contents(path)["hyper_parameters"] == {
        "image_shape": [1, 8, 8],
        "first_stage": {
            "class_path": f"{HERE}.Autoencoder",
            "init_args": {"image_shape": [1, 8, 8], "width": 3, "num_classes": 10},
            "_weights": digest_weights(load(inner).state_dict()),
        },
        "second": None,
        "_class_path": f"{HERE}.Prior",
    }


def test_the_outer_checkpoint_is_enough_and_training_leaves_the_first_stage_as_it_is(inner, tmp_path):
    first, model = load(inner), prior(inner)
    path = fit(model, tmp_path / "outer", 3)
    inner.unlink()
    again = load(path)
    equal(again.first_stage.state_dict(), first.state_dict())
    equal(again.state_dict(), model.state_dict())
    again.train()
    assert [module.training for module in (again, again.network, *again.first_stage.modules())] == [
        True, True, *[False for _ in first.modules()]
    ]  # fmt: skip
    assert {name.partition(".")[0] for name, p in again.named_parameters() if p.requires_grad} == {"network"}
    generator = torch.Generator().manual_seed(0)
    images = again.sample(3, generator=generator)
    equal(images, model.sample(3, generator=generator.manual_seed(0)))
    # Nor does anything of it show outside: its pictures, its classes.
    assert again.images_seen == 12
    assert again.num_classes is None
    # A second writing says the same.
    hyper_parameters = contents(path)["hyper_parameters"]
    again.on_save_checkpoint(written := {"state_dict": {}, "global_step": 0})
    assert written["hyper_parameters"] == hyper_parameters


def test_without_freezing_it_learns_with_the_rest(inner, tmp_path):
    pl.seed_everything(2, verbose=False)
    model = Prior(SHAPE, load(inner), second=Autoencoder(SHAPE, 2))
    path = fit(model, tmp_path / "outer", 1)
    again = load(path)
    equal(again.state_dict(), model.state_dict())
    assert again.second.training
    assert again.second.hparams["width"] == 2
    assert contents(path)["hyper_parameters"]["second"]["_weights"] == digest_weights(model.second.state_dict())


def test_going_on_equals_never_having_stopped(inner, tmp_path):
    whole = fit(prior(inner), tmp_path / "whole", 4)
    half = fit(prior(inner), tmp_path / "half", 2)
    inner.unlink()
    went_on = fit(load(half), tmp_path / "half", 4, ckpt_path=half)
    equal(contents(went_on)["state_dict"], contents(whole)["state_dict"])
    equal(contents(went_on)["optimizer_states"], contents(whole)["optimizer_states"])


def test_an_average_is_of_the_outer_model_s_own_part(inner, tmp_path):
    path = fit(prior(inner), tmp_path / "outer", 3, callbacks=[EMA(["network"], decay=0.5)])
    saved = contents(path)
    changed = {name for name, raw in saved["raw_state_dict"].items() if not torch.equal(raw, saved["state_dict"][name])}
    assert changed == {"network.weight", "network.bias"}
    equal(load(path).first_stage.state_dict(), load(inner).state_dict())


def test_two_processes_send_no_gradients_of_it(inner, tmp_path):
    model = prior(inner)
    path = fit(model, tmp_path / "two", 2, strategy="ddp_fork", devices=2, use_distributed_sampler=False)
    saved = load(path)
    equal(saved.first_stage.state_dict(), load(inner).state_dict())
    assert not torch.equal(saved.network.weight, prior(inner).network.weight)
    assert saved.images_seen == 16


def test_what_it_could_not_name_is_asked_for_again(inner, tmp_path):
    gan = GAN(SHAPE, generator=lambda *shape: MLPGenerator(*shape, widths=[4]))
    model = Prior(SHAPE, load(inner), second=gan)
    path = tmp_path / "outer.ckpt"
    model.on_save_checkpoint(checkpoint := {"state_dict": model.state_dict(), "global_step": 0})
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"could not name second of .*load_from_checkpoint\(path, second="):
        load(path)
    assert load(path, second=gan).second is gan


HOSTILE = {
    "the path of another file": (lambda _: "inner/checkpoints/last.ckpt", "first_stage of the model must be"),
    "a class that may not be named": (lambda p: p | {"class_path": "canary.Net"}, "names canary.Net and was refused"),
    "a class that is no model": (lambda _: {"class_path": "torch.nn.Flatten"}, "must be a LightningModule"),
    "a model that cannot": (
        lambda _: {"class_path": "lightning_gen.models.KDE", "init_args": {"image_shape": [1, 8, 8]}},
        "a KDE, which is no Reconstructs",
    ),
    "a picture that is enormous": (
        lambda p: p | {"init_args": {"image_shape": [1, 10**9, 10**9]}},
        "image_shape of first_stage of the model is .* more than 67108864 numbers",
    ),
    "another argument": (lambda p: p | {"init_args": {"x": 1}}, "takes no argument 'x'"),
}


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_file_says_of_it_is_looked_at_as_all_it_says(change, words, inner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = prior(inner)
    model.on_save_checkpoint(checkpoint := {"state_dict": model.state_dict(), "global_step": 0})
    part = checkpoint["hyper_parameters"]["first_stage"]
    checkpoint["hyper_parameters"]["first_stage"] = change(copy.deepcopy(part))
    torch.save(checkpoint, "outer.ckpt")
    with pytest.raises(CheckpointError, match=words):
        load("outer.ckpt")


# -- on the command line ----------------------------------------------------------------------------------------------


def test_which_arguments_are_models():
    assert models_asked_for_by(Prior) == {"first_stage": (Reconstructs,), "second": (GenerativeModule,)}
    assert models_asked_for_by(Autoencoder) == models_asked_for_by(nn.Linear) == {}


@pytest.fixture
def outer_run(inner, tiny, command):
    """The folder of a run whose first stage's file is no more, and what its weights were."""
    tiny["model"] = {"class_path": f"{HERE}.Prior"}
    tiny["data"] = {"class_path": "Digits", "init_args": {"batch_size": 4, "num_workers": 0}}
    tiny["trainer"]["max_steps"] = 2
    ended = command("fit", "--config", tiny.write(), "--model.first_stage", inner.parent.parent)
    assert ended.code == 0, ended.err
    weights = load(inner).state_dict()
    inner.unlink()
    return Path("runs/prior/version_0"), weights


def test_a_path_becomes_the_model(outer_run, inner, command):
    run, weights = outer_run
    last = run / "checkpoints" / "last.ckpt"
    equal(load(last).first_stage.state_dict(), weights)
    assert contents(last)["hyper_parameters"]["first_stage"]["_weights"] == digest_weights(weights)
    written = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert written == {"first_stage": str(inner.parent.parent), "second": None}

    assert command("sample", "--checkpoint", run, "--num_samples", 2, "--output", "drawn").code == 0
    assert len(list(Path("drawn").glob("*.png"))) == 2

    ended = command("fit", "--ckpt_path", last, "--trainer.max_steps", 4)
    assert ended.code == 0, ended.err
    assert "Changed since" not in ended.err
    after = contents(last)
    assert after["global_step"] == 4
    equal({k: v for k, v in after["state_dict"].items() if k.startswith("first_stage.")},
          {f"first_stage.{name}": weight for name, weight in weights.items()})  # fmt: skip


def test_a_run_that_was_stopped_goes_on_to_the_bit(inner, tiny, command):
    tiny["model"] = {"class_path": f"{HERE}.Prior", "init_args": {"first_stage": str(inner)}}
    tiny["data"] = {"class_path": "Digits", "init_args": {"batch_size": 4, "num_workers": 0}}
    assert command("fit", "--config", tiny.write()).code == 0
    assert command("fit", "--config", tiny.write(), "--trainer.max_steps", 2).code == 0
    whole, half = (Path(f"runs/prior/version_{i}/checkpoints/last.ckpt") for i in (0, 1))
    inner.unlink()
    assert command("fit", "--ckpt_path", half, "--trainer.max_steps", 4).code == 0
    equal(contents(half)["state_dict"], contents(whole)["state_dict"])


def test_what_is_wrong_with_a_path_is_said(inner, tiny, command, tmp_path):
    tiny["model"] = {"class_path": f"{HERE}.Prior"}
    tiny["data"] = {"class_path": "Digits", "init_args": {"batch_size": 4, "num_workers": 0}}
    fit_ = "fit", "--config", tiny.write()
    assert "first_stage" in command(*fit_).err  # it is required
    assert "There is no checkpoint" in (ended := command(*fit_, "--model.first_stage", "nowhere")).err, ended.err
    Path("cut.ckpt").write_bytes(inner.read_bytes()[:500])
    assert (
        "cut.ckpt is cut short or not a checkpoint" in (ended := command(*fit_, "--model.first_stage", "cut.ckpt")).err
    ), ended
    own = fit(prior(inner), tmp_path / "outer", 1)
    ended = command(*fit_, "--model.first_stage", own)
    assert f"{own} holds a Prior, which cannot be first_stage, a Reconstructs." in ended.err
