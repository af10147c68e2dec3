"""The plan of the house: a file imports from a lower floor, or from its own folder."""

import ast
from pathlib import Path

import pytest

import lightning_gen

PACKAGE = Path(lightning_gen.__file__).parent

# Each line rests on those below it. What is not named here lies on the ground.
FLOORS = """
__main__
cli
commands
models
callbacks
evaluation
metrics testing
extractors
sampling
generative
networks
layers losses data runs
"""
LINES = FLOORS.split("\n")[-2:0:-1]
FLOOR_OF = {name: floor for floor, line in enumerate(LINES, 1) for name in line.split()}


def imports_of(source, module, *, run=False):
    """The modules of this package that a file imports, wherever in it, by their names.

    With `run`, without those that only type checkers see.
    """
    tree = ast.parse(source)
    unseen = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for block in unseen if run else ():
        block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found = [name for name in names if is_module(name)]
            yield from found[-1:] if len(found) > 1 else found
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_module(alias.name))


def is_module(name):
    path = PACKAGE.parent.joinpath(*(name or "").split("."))
    return name.startswith("lightning_gen.") and (path.with_suffix(".py").is_file() or path.is_dir())


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def upward(module, imported):
    """Whether a file must not import another."""
    own, other = room_of(module), room_of(imported)
    if own == other:
        return False
    return FLOOR_OF.get(other, 0) > FLOOR_OF.get(own, 0) or 0 < FLOOR_OF.get(other, 0) == FLOOR_OF.get(own, 0)


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text()


SOURCES = dict(modules())


def test_every_room_has_its_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "configs")}
    assert rooms <= FLOOR_OF.keys()
    assert all(is_module(f"lightning_gen.{name}") for name in FLOOR_OF)


def test_no_import_goes_up():
    found = [
        f"{module} imports {other}"
        for module, source in SOURCES.items()
        for other in imports_of(source, module)
        if upward(module, other)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lightning_gen.layers.masked", "from lightning_gen.models.gan import GAN"),
        ("lightning_gen.latents", "from lightning_gen.generative import GenerativeModule"),
        ("lightning_gen.callbacks.ema", "def f():\n    from lightning_gen.models import GAN"),
        ("lightning_gen.losses.pixels", "from lightning_gen.layers.masked import MaskedConv2d"),
        ("lightning_gen.metrics.frechet", "import lightning_gen.evaluation.engine as engine"),
        ("lightning_gen.data.base", "from lightning_gen import generative"),
    ],
)
def test_an_import_that_goes_up_is_seen(module, source):
    assert any(upward(module, other) for other in imports_of(source, module))


def test_no_imports_go_round_in_a_circle():
    imports = {module: set(imports_of(source, module, run=True)) for module, source in SOURCES.items()}
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module in done:
            return
        open_.append(module)
        for other in sorted(imports.get(module, ())):
            visit(other)
        open_.pop()
        done.add(module)

    for module in imports:
        visit(module)
