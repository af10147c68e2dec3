import importlib
import inspect
import os
import sys

import jsonargparse._common
import pytest
from torch import nn

from lightning_gen import trust
from lightning_gen.models import GatedPixelCNN
from lightning_gen.networks import ResNetGenerator
from lightning_gen.trust import (
    UntrustedNameError,
    check_program,
    options_for,
    public_name,
    resolve,
    restrict_configurations,
)


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """Nothing is trusted at first, and what a test restricts is free again after it."""
    monkeypatch.setenv("LIGHTNING_GEN_TRUST", "")
    monkeypatch.setattr(trust, "_named", None)
    settings = jsonargparse._common.parsing_settings
    for name in ("import_path_verdicts", "import_paths_enforced"):
        monkeypatch.setitem(settings, name, settings[name])


def test_classes_are_found_where_they_are_defined_and_where_else_they_are_named():
    for path in ("lightning_gen.networks.ResNetGenerator", "lightning_gen.networks.cyclegan.ResNetGenerator"):
        assert resolve(path) is ResNetGenerator
    assert resolve("torch.nn.ReLU") is nn.ReLU
    assert resolve("torch.optim.lr_scheduler.LambdaLR").__name__ == "LambdaLR"


@pytest.mark.parametrize(
    "room", ["models", "networks", "layers", "losses", "data", "callbacks", "extractors", "metrics"]
)
def test_files_may_move_within_the_package_and_their_classes_are_found(room):
    package = importlib.import_module(f"lightning_gen.{room}")
    for name in package.__all__:
        public, thing = f"lightning_gen.{room}.{name}", getattr(package, name)
        assert public_name(public) == public
        assert public_name(f"lightning_gen.{room}.an.earlier.file.{name}") == public
        # Of another room, it may be public in both.
        moved = public_name(f"lightning_gen.evaluation.{name}").split(".")
        assert getattr(importlib.import_module(".".join(moved[:2])), moved[2]) is thing
        # No other class has the name, or the file that it was in would not matter.
        homonyms = {getattr(module, name) for key, module in sys.modules.items()
                    if key.startswith("lightning_gen.") and inspect.isclass(getattr(module, name, None))}  # fmt: skip
        assert homonyms <= {thing}


def test_a_moved_name_opens_no_door():
    assert resolve("lightning_gen.models.pixelcnn.GatedPixelCNN") is GatedPixelCNN
    assert resolve("lightning_gen.metrics.earlier.ResNetGenerator") is ResNetGenerator
    for path in ("lightning_gen.networks.earlier.MNIST", "lightning_gen.models.earlier.GenerativeMetrics"):
        with pytest.raises(UntrustedNameError):
            resolve(path)
    for path in ("os.system", "mine.models.GAN", "lightning_gen.commands.GAN", "lightning_gen", "GAN", ""):
        assert public_name(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "lightning_gen.networks.cyclegan.nn.Conv2d",  # a module is no package to look into
        "lightning_gen.data.MNIST",  # no part of a model
        "lightning_gen.networksx.Net",
        "torch.nn.functional.relu",
        "torch.nn.modules.module.OrderedDict",  # found in torch.nn, defined elsewhere
        "torch.optim.Adam.step",
        "torch.Tensor",
        "ResNetGenerator",
        "",
        None,
    ],
)
def test_nothing_else_is(path):
    with pytest.raises(UntrustedNameError):
        resolve(path)


def test_trust_is_given_to_packages_modules_and_classes(monkeypatch):
    path = "collections.OrderedDict"
    for packages in ((), ("collection",), ("collections.abc",), ("OrderedDict",)):
        with pytest.raises(UntrustedNameError, match="nothing of it was imported or called"):
            resolve(path, packages)
    assert resolve(path, ("collections",)) is resolve(path, (path,))
    trust.trust(["a.b", "collections"])
    trust.trust(["a.b", "c"])
    assert os.environ["LIGHTNING_GEN_TRUST"] == "a.b,collections,c"
    assert resolve(path) is resolve(path, ("collections",))
    monkeypatch.setenv("LIGHTNING_GEN_TRUST", "a-b")
    with pytest.raises(ValueError, match=r"such as mypackage; got 'a-b'"):
        trust.trusted()


def test_of_the_package_one_loads_with_what_is_imported_already_needs_no_mention(tmp_path, monkeypatch):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "__init__.py").write_text("class Door: pass\n")
    (tmp_path / "house" / "cellar.py").write_text("class Rat: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UntrustedNameError):
        resolve("house.Door", loaded="house")
    assert resolve("house.Door", ("house",)).__name__ == "Door"
    assert resolve("house.Door", loaded="house").__name__ == "Door"
    with pytest.raises(UntrustedNameError, match=r'trust=\("house",\) in Python'):
        resolve("house.cellar.Rat", loaded="house")
    assert "house.cellar" not in sys.modules


def test_of_the_standard_library_no_word_says_how_to_let_it_in():
    with pytest.raises(UntrustedNameError) as caught:
        resolve("os.system")
    assert "--trust" not in str(caught.value)


def test_programs_are_refused_only_where_a_strangers_configuration_may_have_named_them():
    check_program("a.pt")
    restrict_configurations(["evaluate", "--extractor.module=mine.pt"])
    check_program("mine.pt")
    with pytest.raises(UntrustedNameError, match=r"names a\.pt, and was refused: TorchScript is a program"):
        check_program("a.pt")


def test_the_options_that_a_run_of_ones_own_classes_needs(tmp_path):
    config = tmp_path / "config.yaml"
    assert options_for(config) == ""
    config.write_text(
        "model:\n  class_path: mine.models.Net\n  init_args:\n    loss:\n      class_path: lightning_gen.losses.Hinge\n"
        "data:\n  class_path: yours.Data\ntrainer:\n  callbacks:\n  - class_path: mine.Watcher\n"
        "  - class_path: lightning.pytorch.callbacks.Timer\n"
    )
    assert options_for(config) == " --trust mine --trust yours"
