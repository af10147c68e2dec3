"""A configuration that names the configuration of its first stage, which is trained before it and kept."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

import lightning_gen.models  # noqa: F401  (where a parser would have imported it)
from lightning_gen.commands import beforehand
from lightning_gen.commands.beforehand import with_pictures_of
from lightning_gen.commands.inner_models import find_checkpoint_of
from lightning_gen.files import cache_folder

NETWORKS = {
    name: {"class_path": f"VQVAE{name.title()}", "init_args": {"filters": 4, "residual_filters": 2, "blocks": 1}}
    for name in ("encoder", "decoder")
}
QUANTIZER = {"class_path": "VectorQuantizer", "init_args": {"num_codes": 8}}
GPT = {"class_path": "GPTNetwork", "init_args": {"width": 8, "layers": 1, "heads": 2}}


@pytest.fixture
def stages(tiny):
    """The configurations of both stages, written to first.yaml and tiny.yaml."""

    def write(first=(), second=()):
        trainer = {**tiny["trainer"], "max_steps": 2}
        model = {"class_path": "VQVAE", "init_args": {**NETWORKS, "quantizer": QUANTIZER, "channels": 4}}
        data = {"class_path": "Digits", "init_args": {"batch_size": 6, "num_workers": 0, "flip": True}}
        Path("first.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer, **dict(first)}))
        tiny["model"] = {"class_path": "CodePrior", "init_args": {"first_stage": "first.yaml", "network": GPT}}
        pictures = {"class_path": "Digits", "init_args": {"num_workers": 0, "binarization": "threshold"}}
        tiny["data"] = {"class_path": "Codes", "init_args": {"data": pictures, "batch_size": 4, "num_workers": 0}}
        tiny["trainer"] = trainer | dict(second)
        return tiny.write()

    shutil.rmtree(cache_folder() / "first_stages", ignore_errors=True)
    return write


def kept():
    return sorted((cache_folder() / "first_stages").glob("*.ckpt"))


def load(path):
    return torch.load(path, weights_only=True)


def test_it_is_trained_first_and_then_no_longer_needed(stages, command):
    ended = command("fit", "--config", stages())
    assert ended.code == 0, ended.err
    assert "The first_stage, first.yaml, is trained first, as lightning-gen fit --config " in ended.out
    (first,) = kept()
    run = Path("runs/codeprior/version_0")
    state = load(run / "checkpoints/last.ckpt")["state_dict"]
    expected = {f"first_stage.{name}": weight for name, weight in load(first)["state_dict"].items()}
    torch.testing.assert_close({name: state[name] for name in expected}, expected, rtol=0, atol=0)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["first_stage"] == "first.yaml"
    # It has seen the pictures of the second stage in its own batches.
    data = yaml.safe_load((first.with_suffix("") / "first.yaml").read_text())["data"]["init_args"]
    assert (data["binarization"], data["batch_size"], data["flip"]) == ("threshold", 6, True)
    shutil.rmtree(cache_folder() / "first_stages")
    on = command("fit", "--ckpt_path", run, "--trainer.max_steps", 3)
    assert on.code == 0, on.err
    assert "first.yaml" not in on.out
    # Figures that compare pictures take them from the data whose codes were read.
    measured = command("evaluate", "--checkpoint", run, "--figures", "likelihood", "--num_samples", 20)
    assert measured.code == 0, measured.err
    assert "nll-codes" in measured.out


@pytest.fixture
def trained(stages, monkeypatch):
    """Trains the first stage of a configuration: what `fit` was called with, in whose place a file is written."""
    stages()
    calls, pictures = [], Namespace(class_path="lightning_gen.data.Digits", init_args=Namespace(num_val=3, seed=7))

    def train(named="first.yaml", stops=False, **settings):
        def fit(*options):
            calls.append(options)
            (root,) = (option.partition("=")[2] for option in options if "default_root_dir" in option)
            last = Path(root) / "vqvae/version_0/checkpoints/last.ckpt"
            last.parent.mkdir(parents=True, exist_ok=True)
            last.write_bytes(b"stopped" if stops else b"done")
            if stops:
                raise KeyboardInterrupt

        monkeypatch.setattr(beforehand, "_fit", fit)
        model = Namespace(class_path="lightning_gen.models.CodePrior", init_args=Namespace(first_stage=named))
        data = Namespace(class_path="lightning_gen.data.Codes", init_args=Namespace(data=pictures.clone()))
        data.init_args.data.init_args.update(Namespace(**settings))
        beforehand.train_first_stages(Namespace(model=model, data=data, trainer=Namespace(accelerator="cpu")))
        return Path(model.init_args.first_stage)

    train.calls = calls
    return train


def test_it_is_trained_once_for_each_way_of_training_it(trained):
    first = trained()
    assert first.read_bytes() == b"done"
    assert trained() == first
    assert trained(seed=8, num_workers=4, batch_size=9) == first  # of the second stage alone
    assert len(trained.calls) == 1
    assert trained(num_val=4) != first
    Path("first.yaml").write_text(Path("first.yaml").read_text().replace("num_codes: 8", "num_codes: 9"))
    assert trained() != first
    assert len(trained.calls) == 3
    assert trained("some.ckpt") == Path("some.ckpt")


def test_one_that_was_stopped_is_not_taken_but_goes_on(trained):
    with pytest.raises(KeyboardInterrupt):
        trained(stops=True)
    assert kept() == []
    first = trained()
    assert first.read_bytes() == b"done"
    start, then = trained.calls
    assert start[0] == "--config"
    assert then[:2] == ("--ckpt_path", str(first.with_suffix("") / "vqvae/version_0/checkpoints/last.ckpt"))


def test_what_cannot_be_trained_first_is_said(trained, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"There is no configuration 'nowhere\.yaml'"):
        trained("nowhere.yaml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        RuntimeError, match=r"first_stage is the configuration first\.yaml, which must be trained first"
    ):
        trained()
    assert trained.calls == []


def test_pictures_are_those_of_the_second_stage_and_batches_those_of_the_first():
    def pictures(name, **arguments):
        return Namespace(class_path=f"lightning_gen.data.{name}", init_args=Namespace(**arguments))

    first = {"class_path": "Scenes", "init_args": {"image_size": 64, "num_train": 9, "batch_size": 3, "num_workers": 1}}
    assert with_pictures_of(first, pictures("Scenes", image_size=32, domain="night", batch_size=8, seed=4)) == {
        "class_path": "lightning_gen.data.Scenes",
        "init_args": {"image_size": 32, "domain": "night", "batch_size": 3, "num_workers": 1},
    }
    first["init_args"]["flip"] = True
    assert with_pictures_of(first, pictures("MNIST", root="there", pad=2, num_workers=4)) == {
        "class_path": "lightning_gen.data.MNIST", "init_args": {"root": "there", "pad": 2, "batch_size": 3},
    }  # fmt: skip


def test_data_of_codes_takes_a_run_for_its_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    pictures = Namespace(class_path="lightning_gen.data.Digits", init_args=Namespace())
    data = Namespace(init_args=Namespace(data=pictures, checkpoint=str(tmp_path)))
    find_checkpoint_of(data)
    assert data.init_args.checkpoint == str(tmp_path / "checkpoints" / "last.ckpt")
    find_checkpoint_of(pictures)
    assert pictures == Namespace(class_path="lightning_gen.data.Digits", init_args=Namespace())
