import importlib
import inspect

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters

from lightning_gen.commands import signatures
from lightning_gen.commands.trainer import Trainer

PACKAGES = ("models", "networks", "losses", "data", "callbacks", "layers")
OPTIONS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def options_of(one):
    """What the command line's own parser finds by looking at the class itself."""
    return {each.name: each.default for each in get_signature_parameters(one) if each.kind in OPTIONS}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_read_of_classes_is_what_the_parser_takes(package):
    module = importlib.import_module(f"lightning_gen.{package}")
    found = signatures.public_classes(f"lightning_gen.{package}")
    assert {*found} == {name for name in module.__all__ if inspect.isclass(getattr(module, name))}
    for name, one in found.items():
        if issubclass(getattr(module, name), tuple):  # no class of options
            continue
        read, taken = signatures.parameters(one), options_of(getattr(module, name))
        assert {*read} == {*taken}, name
        required = {key for key, default in taken.items() if default is inspect.Parameter.empty}
        assert {key for key, each in read.items() if each.default is None} == required, name


@pytest.mark.parametrize("package", ["models", "networks", "losses", "data", "callbacks"])
def test_every_argument_has_words_also_those_of_base_classes(package):
    silent = [
        f"{name}.{each.name}"
        for name, one in signatures.public_classes(f"lightning_gen.{package}").items()
        for each in signatures.parameters(one).values()
        if not each.words
    ]
    assert set(silent) <= {"Bernoulli.num_levels", "Draw.index"}


def test_what_is_read_of_the_trainer_is_what_the_parser_takes():
    one = signatures.find("lightning_gen.commands.trainer.Trainer")
    assert {*signatures.parameters(one)} == {*options_of(Trainer)}


def test_a_class_of_a_users_file(tmp_path, monkeypatch):
    (tmp_path / "painters.py").write_text(
        "import torch_that_is_not_there\n"
        "from dataclasses import dataclass\n"
        "WIDE = 8\n"
        "Size = int | None\n"
        "class Base:\n"
        "    '''A base.\n\n    Args:\n        size: Of it,\n            in pixels.\n"
        "        colour: Its colour.\n    '''\n"
        "    def __init__(self, size: Size, colour: str = 'red'): ...\n"
        "class Painter(Base):\n"
        "    def __init__(self, brush: int = WIDE, **kwargs):\n"
        "        super().__init__(3, **kwargs)\n"
        "class Silent(Base):\n"
        "    def __init__(self, **kwargs): ...\n"
        "@dataclass\n"
        "class Plain:\n"
        "    a: int\n"
        "    b: float = 2.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    painter, base, silent, plain = (
        signatures.find(f"painters.{name}") for name in ("Painter", "Base", "Silent", "Plain")
    )
    read = signatures.parameters(painter)
    assert [(each.name, each.annotation, each.default, each.words) for each in read.values()] == [
        ("brush", "int", "8", ""),
        ("colour", "str", "'red'", "Its colour."),
    ]
    size = signatures.parameters(base)["size"]
    assert (size.annotation, size.default, size.words) == ("int | None", None, "Of it, in pixels.")
    assert signatures.parameters(silent) == {}
    assert [each.default for each in signatures.parameters(plain).values()] == [None, "2.0"]
    assert painter.summary == "A base."


@pytest.mark.parametrize("path", ["nothing.Class", "lightning_gen.models.Nothing", "sys.path", "Class", ""])
def test_what_cannot_be_read_is_none(path):
    assert signatures.find(path) is None
