import functools
import os
import pickle
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointError, read_checkpoint
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import GradientPenalty, Wasserstein
from lightning_gen.models import CycleGAN, Pix2Pix
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator
from tests.shared import save

SHAPE = (3, 16, 16)
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)


def change(path, edit):
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def saved(tmp_path):
    model = CycleGAN(
        SHAPE,
        GENERATOR,
        DISCRIMINATOR,
        loss=Wasserstein(),
        penalties=[GradientPenalty(5.0)],
        generator_optimizer=functools.partial(torch.optim.RMSprop, lr=1e-3),
        betas=(0.1, 0.9),
    )
    return model, save(model, tmp_path / "a.ckpt")


@pytest.mark.parametrize("cls", [GenerativeModule, CycleGAN, pl.LightningModule])
def test_a_checkpoint_alone_gives_the_model_back(saved, cls):
    model, path = saved
    if cls is pl.LightningModule:
        cls = GenerativeModule
    loaded = cls.load_from_checkpoint(path)
    assert type(loaded) is CycleGAN
    assert loaded.image_shape == SHAPE
    assert loaded.loss == Wasserstein()
    assert loaded.penalties == [GradientPenalty(5.0)]
    assert loaded.betas == (0.1, 0.9)
    assert isinstance(loaded.generator_optimizer([nn.Parameter(torch.zeros(1))]), torch.optim.RMSprop)
    assert loaded.hparams == model.hparams
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    image = torch.randn(1, *SHAPE)
    assert torch.equal(loaded.translate(image), model.translate(image))


def test_what_has_no_name_must_be_given_again(tmp_path):
    model = CycleGAN(SHAPE, lambda shape: ResNetGenerator(shape, filters=2, blocks=0), DISCRIMINATOR)
    path = save(model, tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"could not name generator .*load_from_checkpoint\(path, generator=\.\.\.\)"
    ):
        CycleGAN.load_from_checkpoint(path)
    again = CycleGAN.load_from_checkpoint(path, generator=lambda shape: ResNetGenerator(shape, filters=2, blocks=0))
    assert torch.equal(again.state_dict()["discriminator_A.layers.0.weight"], model.discriminator_A.layers[0].weight)


def test_another_class_is_refused_by_name(saved):
    with pytest.raises(CheckpointError, match=r"CycleGAN.*must be a Pix2Pix"):
        Pix2Pix.load_from_checkpoint(saved[1])
    with pytest.raises(CheckpointError, match=r"written by lightning_gen\.models\.CycleGAN"):
        Pix2Pix(SHAPE, GENERATOR, DISCRIMINATOR).on_load_checkpoint(torch.load(saved[1], weights_only=True))


def test_weights_of_another_size_are_refused_in_one_sentence(saved):
    other = CycleGAN(SHAPE, functools.partial(ResNetGenerator, filters=4, blocks=1), DISCRIMINATOR)
    with pytest.raises(
        CheckpointError, match=r"weights differ in shape, the first being generator_AtoB.*\(2, 3, 7, 7\)"
    ):
        other.on_load_checkpoint(torch.load(saved[1], weights_only=True))


called = []


def harmful(*args, **kwargs):
    called.append(args)


class Harmful(nn.Module):
    def __init__(self, *args, **kwargs):
        harmful()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("generator", {"class_path": "os.system"}),
        ("generator", "os.system"),
        ("generator", {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}),
        ("generator", {"class_path": f"{__name__}.harmful"}),
        ("generator", {"class_path": "torch.optim.Adam"}),
        (
            "generator",
            {
                "class_path": "lightning_gen.networks.ResNetGenerator",
                "init_args": {"norm": {"class_path": "os.system"}},
            },
        ),
        ("loss", {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}),
        ("loss", {"class_path": "lightning_gen.losses.GradientPenalty"}),
        ("penalties", [{"class_path": "lightning_gen.losses.Wasserstein"}]),
        ("penalties", [{"class_path": "subprocess.Popen", "init_args": {"args": "true"}}]),
        ("generator_optimizer", {"class_path": "torch.nn.Linear"}),
        ("learning_rate", {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}),
        ("_class_path", "subprocess.Popen"),
        ("_class_path", "torch.nn.Linear"),
        ("_class_path", "no.such.module"),
    ],
)
def test_a_class_that_does_not_belong_is_refused_before_anything_is_called(saved, monkeypatch, argument, value):
    path = change(saved[1], lambda c: c["hyper_parameters"].__setitem__(argument, value))
    monkeypatch.setattr(os, "system", harmful)
    monkeypatch.setattr("subprocess.Popen.__init__", harmful)
    monkeypatch.setattr(ResNetGenerator, "forward", harmful)
    called.clear()
    with pytest.raises(CheckpointError, match=r"must be a|none belongs there|was refused"):
        GenerativeModule.load_from_checkpoint(path)
    assert not called


class Open(nn.Module):
    """A network whose signature says little."""

    def __init__(self, image_shape, activation: str | Callable = "relu", make: Callable = nn.ReLU):
        super().__init__()
        self.activation, self.made = activation, make()


def test_a_vague_annotation_lets_networks_and_names_through_and_nothing_else(tmp_path):
    generator = functools.partial(Open, activation="gelu", make=nn.Tanh)
    path = save(CycleGAN(SHAPE, generator, DISCRIMINATOR), tmp_path / "a.ckpt")
    loaded = CycleGAN.load_from_checkpoint(path, trust=(__name__,)).generator_AtoB
    assert loaded.activation == "gelu"
    assert isinstance(loaded.made, nn.Tanh)
    for name, value in (("make", "subprocess.Popen"), ("make", {"class_path": f"{__name__}.harmful"})):
        change(path, lambda c, n=name, v=value: c["hyper_parameters"]["generator"]["init_args"].__setitem__(n, v))
        with pytest.raises(CheckpointError, match=r"must be a Module|names subprocess\.Popen and was refused"):
            CycleGAN.load_from_checkpoint(path, trust=(__name__,))


def test_an_unknown_argument_is_named(saved):
    path = change(saved[1], lambda c: c["hyper_parameters"]["generator"]["init_args"].__setitem__("filtres", 3))
    with pytest.raises(CheckpointError, match="takes no argument 'filtres'"):
        GenerativeModule.load_from_checkpoint(path)


def test_pickled_objects_are_refused_without_running_them(tmp_path):
    class Evil:
        def __reduce__(self):
            return harmful, ()

    called.clear()
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "x": functools.partial(harmful)}, path)
    with pytest.raises(CheckpointError, match="was refused: loading it could run code"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(functools.partial(harmful)))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not called


@pytest.mark.parametrize("text", [b"hello\n", b"j", b"M", b"notes of mine", b"{}", b"model: VQVAE"])
def test_a_text_is_no_checkpoint(tmp_path, text):
    """Whatever the words mean where they are taken for a pickle."""
    path = tmp_path / "notes.ckpt"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=r"notes\.ckpt is .*not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_checkpoint_cut_short_is_said_to_be_so(saved, share):
    data = saved[1].read_bytes()
    saved[1].write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="is cut short or not a checkpoint"):
        GenerativeModule.load_from_checkpoint(saved[1])


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="no 'state_dict'"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "step": 1}, path)
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device\. The checkpoints saved before it are untouched"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "step": 2}, path)
    assert torch.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
