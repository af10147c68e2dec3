"""What classes and functions take, and what their docstrings say of it, read from their sources.

Nothing is imported for it, so help comes at once: PyTorch alone takes seconds to import.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Parameter:
    """One argument.

    Args:
        name: As it is called.
        annotation: Its type as it is written, with the aliases of types in it written out.
        default: As it is written; None if it must be given.
        words: What the docstring says of it, in one line; that of a base class where the own one says nothing.
        scope: The module in which its names are known.
    """

    name: str
    annotation: str
    default: str | None
    words: str
    scope: str


@dataclass(frozen=True)
class Source:
    """A module: what its names are, by the statement that makes them, or by what they are imported from."""

    name: str
    statements: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    public: tuple[str, ...] = ()


@dataclass(frozen=True)
class Definition:
    """A class or function where it is defined."""

    source: Source
    node: ast.ClassDef | ast.FunctionDef

    @property
    def name(self) -> str:
        """As it is called where it is defined."""
        return self.node.name

    @property
    def path(self) -> str:
        """With the module that defines it."""
        return f"{self.source.name}.{self.name}"

    @property
    def docstring(self) -> str:
        """Without indentation; empty if there is none."""
        return ast.get_docstring(self.node) or ""

    @property
    def summary(self) -> str:
        """Its first sentence, or that of a base class."""
        for one in lineage(self) if isinstance(self.node, ast.ClassDef) else [self]:
            if one.docstring:
                return first_sentence(one.docstring.partition("\n\n")[0])
        return ""

    @property
    def description(self) -> str:
        """The docstring before its first section, such as "Args:"."""
        return re.split(r"^(?:Args|Returns|Raises|Yields|Note|Example)s?:$", self.docstring, flags=re.M)[0].strip()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Definition) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


@contextmanager
def reading() -> Iterator[None]:
    """Within it Python does not look for garbage, of which trees have none; what is read is forgotten afterwards.

    Unless something is wrong: then it is there for the words that say so.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
        for kept in (source, find, lineage, parameters):
            kept.cache_clear()
    finally:
        if collects:
            gc.enable()


# -- finding ----------------------------------------------------------------------------------------------------------


@cache
def source(name: str) -> Source | None:
    """The module of a name; None if it is not written in Python, or there is none."""
    top, *below = name.split(".")
    if name == "" or top in sys.builtin_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)  # which imports nothing
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    roots = [Path(each) for each in spec.submodule_search_locations or ()]
    if below:
        files = [base.joinpath(*below) for base in roots]
        candidates = [path for file in files for path in (file / "__init__.py", file.with_suffix(".py"))]
    else:
        candidates = [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        return None
    found = Source(name, public=())
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    public: list[str] = []
    for statement in _statements(ast.parse(file.read_bytes())):
        if isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - statement.level + 1], base]).strip(".")
            for alias in statement.names:
                found.imports[alias.asname or alias.name] = f"{base}.{alias.name}"
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                found.imports[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
            found.statements[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                if isinstance(target, ast.Name):
                    found.statements[target.id] = statement
                    if target.id == "__all__" and statement.value is not None:
                        public += [
                            node.value
                            for node in ast.walk(statement.value)
                            if isinstance(node, ast.Constant) and isinstance(node.value, str)
                        ]
    return replace(found, public=tuple(public))


def _statements(body: ast.Module) -> Iterator[ast.stmt]:
    """Of a module, also those that stand under a condition."""
    waiting: list[ast.stmt] = list(body.body)
    while waiting:
        statement = waiting.pop(0)
        yield statement
        if isinstance(statement, ast.If):
            waiting[:0] = [*statement.body, *statement.orelse]


@cache
def find(path: str) -> Definition | None:
    """The class or function of an import path, also by a name that another module gives it; None if unknown."""
    module, _, name = path.rpartition(".")
    found = source(module)
    if found is None:
        return None
    statement = found.statements.get(name)
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return Definition(found, statement)
    return find(found.imports[name]) if found.imports.get(name, path) != path else None


def resolve(name: str, scope: Source) -> Definition | None:
    """The class or function that a name, such as `pl.Callback`, means in a module."""
    first, dot, rest = name.partition(".")
    if first in scope.statements:
        statement = scope.statements[first]
        return Definition(scope, statement) if isinstance(statement, ast.ClassDef | ast.FunctionDef) else None
    return find(scope.imports[first] + dot + rest) if first in scope.imports else None


def public_classes(package: str) -> dict[str, Definition]:
    """The classes that a package offers, by name."""
    found = source(package)
    classes = {name: find(f"{package}.{name}") for name in (found.public if found else ())}
    return {name: one for name, one in classes.items() if one and isinstance(one.node, ast.ClassDef)}


@cache
def lineage(one: Definition) -> tuple[Definition, ...]:
    """A class and its bases in the order in which Python asks them, as far as they are written in Python."""
    found = [one]
    for base in one.node.bases if isinstance(one.node, ast.ClassDef) else ():
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if (definition := resolve(name, one.source)) and definition != one:
            found += lineage(definition)
    last = {each: place for place, each in enumerate(found)}
    return tuple(each for place, each in enumerate(found) if last[each] == place)


def is_abstract(one: Definition) -> bool:
    """Whether a class is there to be made others of: it is an ABC, or has methods that its subclasses must have."""
    left: set[str] = set()
    for each in reversed(lineage(one)):
        for statement in each.node.body:
            if isinstance(statement, ast.FunctionDef):
                marks = {ast.unparse(mark).rpartition(".")[2] for mark in statement.decorator_list}
                (left.add if "abstractmethod" in marks else left.discard)(statement.name)
            elif isinstance(statement, ast.AnnAssign | ast.Assign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                left -= {ast.unparse(target) for target in targets}
    bases = [ast.unparse(base) for base in one.node.bases] if isinstance(one.node, ast.ClassDef) else []
    return bool(left) or "ABC" in bases


# -- what they take ---------------------------------------------------------------------------------------------------


@cache
def parameters(one: Definition) -> dict[str, Parameter]:
    """The arguments by name, with those of the base class that a constructor passes on as `**settings`."""
    if isinstance(one.node, ast.FunctionDef):
        return _documented(_own(one, one.node), [one])
    return _documented(_accepted(lineage(one)), lineage(one))


def method(one: Definition, name: str) -> Definition | None:
    """A method of a class, which may be a base's."""
    for each in lineage(one):
        for statement in each.node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == name:
                return Definition(each.source, statement)
    return None


def _documented(found: dict[str, Parameter], owners: list[Definition] | tuple[Definition, ...]) -> dict[str, Parameter]:
    words: dict[str, str] = {}
    for owner in reversed(owners):
        said = documented(owner.docstring)  # "As in `Base`" says less than the base does
        words |= {name: text for name, text in said.items() if name not in words or not text.startswith("As in `")}
        for statement in owner.node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                words |= documented(ast.get_docstring(statement) or "")
    return {name: replace(one, words=words.get(name, "")) for name, one in found.items()}


def _accepted(chain: tuple[Definition, ...]) -> dict[str, Parameter]:
    for place, one in enumerate(chain):
        rest = chain[place + 1 :]
        makes = [each for each in one.node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if makes:
            own = _own(one, makes[0], skip=1)
            return own | _passed_on(makes[0], own, rest)
        if any(ast.unparse(mark).partition("(")[0] == "dataclass" for mark in one.node.decorator_list):
            return _accepted(rest) | _fields(one)
    return {}


def _passed_on(make: ast.FunctionDef, own: dict[str, Parameter], rest: tuple[Definition, ...]) -> dict[str, Parameter]:
    """What the base's constructor takes beside what this one gives it."""
    kwargs = make.args.kwarg
    for call in ast.walk(make):
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "super().__init__" or kwargs is None:
            continue
        if any(word.arg is None and ast.unparse(word.value) == kwargs.arg for word in call.keywords):
            base = _accepted(rest)
            placed = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
            given = {*list(base)[: len(placed)], *own, *(word.arg for word in call.keywords)}
            return {name: one for name, one in base.items() if name not in given}
    return {}


def _fields(one: Definition) -> dict[str, Parameter]:
    """Of a dataclass."""
    found = {}
    for statement in one.node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation, default = ast.unparse(statement.annotation), statement.value
            if annotation.startswith("ClassVar"):
                continue
            if isinstance(default, ast.Call) and ast.unparse(default.func).rpartition(".")[2] == "field":
                settings = {word.arg: word.value for word in default.keywords}
                if "init" in settings and ast.unparse(settings["init"]) == "False":
                    continue
                default = settings.get("default", settings.get("default_factory"))
            found[statement.target.id] = _parameter(statement.target.id, annotation, default, one.source)
    return found


def _own(one: Definition, function: ast.FunctionDef, skip: int = 0) -> dict[str, Parameter]:
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
    pairs = list(zip(arguments, [*defaults, *function.args.defaults], strict=True))[skip:]
    pairs += zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {
        each.arg: _parameter(each.arg, ast.unparse(each.annotation) if each.annotation else "Any", default, one.source)
        for each, default in pairs
    }


def _parameter(name: str, annotation: str, default: ast.expr | None, scope: Source) -> Parameter:
    known = _value(scope, default.id) if isinstance(default, ast.Name) else None
    shown = known or default
    annotation, module = _written_out(annotation.strip("'\""), scope)
    return Parameter(name, annotation, None if shown is None else ast.unparse(shown), "", module)


def _value(scope: Source, name: str) -> ast.expr | None:
    """What a module assigns to a name, be it imported there."""
    statement = scope.statements.get(name)
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return statement.value
    module, _, original = scope.imports.get(name, "").rpartition(".")
    other = source(module) if statement is None and module.startswith(PACKAGE) else None
    return _value(other, original) if other else None


def _written_out(annotation: str, scope: Source) -> tuple[str, str]:
    """An annotation without aliases, and the module in which its names are known."""
    tree = ast.parse(annotation, mode="eval")
    module = scope.name

    class WriteOut(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            nonlocal module
            alias = None if resolve(node.id, scope) else _value(scope, node.id)
            if alias is None or not isinstance(alias, ast.Subscript | ast.BinOp | ast.Name | ast.Attribute):
                return node
            if node.id in scope.imports:
                module = scope.imports[node.id].rpartition(".")[0]
            return alias

    return ast.unparse(WriteOut().visit(tree)), module


def first_sentence(words: str) -> str:
    """Of a text, in one line, without the marks of Sphinx."""
    words = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", words).replace("``", "`")
    return re.split(r"(?<=\.)\s+(?=[A-Z`\"])", " ".join(words.split()))[0]


def documented(docstring: str) -> dict[str, str]:
    """What the "Args:" of a docstring say, by argument, each in one line."""
    lines = inspect.cleandoc(docstring).splitlines()
    starts = [number for number, line in enumerate(lines) if line.strip() == "Args:"]
    if not starts:
        return {}
    outer = len(lines[starts[0]]) - len(lines[starts[0]].lstrip())
    words: dict[str, str] = {}
    inner: int | None = None
    names: list[str] = []
    for line in lines[starts[0] + 1 :]:
        depth = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if depth <= outer:
            break
        inner = depth if inner is None else inner
        entry = re.match(r"\*{0,2}(\w+(?:, \w+)*)(?: \(.*?\))?:\s*(.*)", line.strip()) if depth == inner else None
        if entry:
            names = entry[1].split(", ")
        for name in names:
            words[name] = f"{words.get(name, '')} {entry[2] if entry else line.strip()}".strip()
    return words
