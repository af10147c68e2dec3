"""Help: of a command, of a model or data module (`--model.help CycleGAN`), and of any argument (`--model.loss.help`).

It is read from the sources by `signatures`, so PyTorch is not imported for it.
"""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lightning_gen.commands import signatures
from lightning_gen.commands.configs import find_config
from lightning_gen.commands.nearest import nearest
from lightning_gen.commands.signatures import Definition, Parameter
from lightning_gen.runs.layout import CONFIG, run_folder_of_checkpoint

FUNCTIONS = {
    "sample": "sample.sample",
    "interpolate": "latents.interpolate",
    "arithmetic": "latents.arithmetic",
    "styles": "styles.styles",
    "truncation": "truncation.truncation",
    "directions": "directions.directions",
    "project": "project.project",
    "complete": "complete.complete",
    "translate": "translate.translate",
    "reconstruct": "reconstruct.reconstruct",
    "encode": "encode.encode",
    "evaluate": "evaluate.evaluate",
    "prepare": "prepare.prepare",
    "report": "report.report",
    "import": "import_weights.import_weights",
}
"""Commands that are functions, by module and name in `lightning_gen.commands`."""

TRAINER = {
    "fit": "training.CommandLine.fit",
    "validate": "training.CommandLine.validate",
    "test": "training.CommandLine.test",
    "predict": "training.CommandLine.predict",
    "data": "data.LookingTrainer.look",
    "schedule": "schedule.SchedulingTrainer.schedule",
}
"""Commands of Lightning's kind, which have a configuration, a model, data and a trainer."""

SUBJECTS = {
    "model": ("lightning_gen.models", "lightning_gen.generative.GenerativeModule"),
    "data": ("lightning_gen.data", "lightning.pytorch.LightningDataModule"),
}
_SAYS = {
    "fit": "Train a model, or go on with a run.",
    "validate": "Measure a checkpoint on the validation data.",
    "test": "Measure a checkpoint on the test data.",
    "predict": "Write what a model makes of the test data: translations, samples, log-probabilities. It draws with the "
    "model's own settings of sampling; others are options of `sample`, `translate` and their like.",
}
_EVERY_RUN = {
    "checkpoint": "lightning_gen.callbacks.LastCheckpoint",
    "pictures": "lightning_gen.callbacks.Pictures",
    "report": "lightning_gen.callbacks.Report",
}
TRAINER_CLASS = "lightning_gen.commands.trainer.Trainer"
_NETWORK = ("nn.Module", "Module")
_COLUMN = 24
_SCHEDULE = "SCHEDULE"


def help_for(arguments: Sequence[str]) -> str | None:
    """The help that the arguments of a command ask for; None if they ask for none, or for what is not read here.

    Raises:
        ArgumentError: If there is no such class or argument.
        FileNotFoundError: If there is no such configuration.
    """
    command, *rest = arguments
    if command not in COMMANDS:
        return None
    for place, argument in enumerate(rest):
        option, equals, value = argument.partition("=")
        if option in ("-h", "--help"):
            return command_help(command)
        if asked := re.fullmatch(r"--((?:model|data|trainer)(?:\.\w+)*)\.help", option):
            following = rest[place + 1] if place + 1 < len(rest) and not rest[place + 1].startswith("-") else ""
            others = [*rest[:place], *rest[place + 1 + bool(following and not equals) :]]
            return _subject_help(command, asked[1].split("."), value if equals else following, others)
    return None


# -- a command --------------------------------------------------------------------------------------------------------


def command_help(command: str) -> str:
    """All of a command's options, and what it does."""
    if command in TRAINER:
        return _trainer_help(command)
    function = _function_of(command)
    found = signatures.parameters(function)
    positional = [one for one in found.values() if command == "report" and one.default is None]
    usage = "".join(f" {_metavar(one)}" for one in positional) or "".join(
        f" --{name} {_metavar(one)}" for name, one in found.items() if one.default is None
    )
    options = [one for one in found.values() if one not in positional]
    end = " [options]" if options else ""
    usage = textwrap.fill(
        f"{usage}{end}", _width(), initial_indent=f"usage: lightning-gen {command}", subsequent_indent=" " * 7
    )
    parts = [usage]
    if command == "advise":
        parts[0] = "usage: lightning-gen advise --data FOLDER [options]"
    parts += ["", _filled(function.description)]
    rows = [_row(_metavar(one), one.words) for one in positional]
    if command == "advise":
        rows.append(_row("--data FOLDER", "Pictures of yours; or a data module, whose options --data.help NAME lists."))
    rows += [_option(f"--{one.name}", one, whole=True) for one in options]
    if command == "prepare":
        rows.append(_row("--config NAME", "In place of --data: a file or shipped configuration, whose data is taken."))
    elif "config" not in found:
        rows.append(_row("--config FILE", "YAML that has these options."))
    return "\n".join([*parts, "", *rows]) + "\n"


def _trainer_help(command: str) -> str:
    method = _function_of(command)
    configs = "a file, or the name of a shipped configuration; more of them are laid over it."
    usage = [f"usage: lightning-gen {command} NAME [options]"]
    if command == "fit":
        usage += ["       lightning-gen fit --model CLASS --data CLASS [options]"]
        usage += ["       lightning-gen fit --ckpt_path RUN [options]    to go on"]
    elif command in _SAYS:
        usage = [f"usage: lightning-gen {command} --ckpt_path RUN [options]"]
    same = f"`lightning-gen {command} NAME` is the same."
    rows = [_row("--config NAME", f"What to {'train' if command == 'fit' else 'take'}: {configs} {same}")]
    weights = {
        "fit": "Go on with a run: its folder, RUN/best, or a file. Without --config, its own configuration holds.",
        "data": "RUN or a checkpoint in it: without --config, the configuration is that of the run.",
    }.get(command, "The weights: a run's folder, RUN/best, or a file. Without --config, its own configuration holds.")
    rows.append(_row("--ckpt_path PATH", weights))
    if command in _SAYS:
        rows += [_option(f"--{one.name}", one, whole=True) for one in _own_options()]
    else:
        own = signatures.parameters(method).values()
        rows += [_option(f"--{one.name}", one, whole=True) for one in own if one.name not in _NOT_OPTIONS]
    rows.append(_row("--seed_everything INT", "Of all that is random; true draws one. (default: 0)"))
    rows.append(_row("--print_config", "Print all settings as they would be, and stop."))
    parts = ["\n".join(usage), _filled(_SAYS.get(command) or method.description), "\n".join(rows)]
    subjects = []
    for name, example in (("model", "CycleGAN"), ("data", "Scenes")):
        what = "What is trained" if name == "model" else "What it is trained on"
        words = f"{what}, such as {example}, or the import path of a class of yours; --{name}.help lists all."
        subjects.append(_row(f"--{name} CLASS", words))
        subjects.append(_row(f"--{name}.help CLASS", f"List its options, which are --{name}.NAME, and stop."))
    parts.append("Model and data:\n" + "\n".join(subjects))
    for group, path in groups(command).items():
        owner, is_trainer = definition(path), group == "trainer"
        says = "Lightning's Trainer; --trainer.NAME.help says all of one option" if is_trainer else owner.summary
        found = signatures.parameters(owner).values()
        listed = [_option(f"--{group}.{one.name}", one, whole=not is_trainer) for one in found]
        parts.append("\n".join([_filled(says.rstrip(".") + ":"), *listed]))
    return "\n\n".join(parts) + "\n"


def groups(command: str) -> dict[str, str]:
    """What else has options in a command of Lightning's kind: the name before them, and their class."""
    writer = {"predictions": "lightning_gen.commands.predict.PredictionWriter"} if command == "predict" else {}
    return {**_EVERY_RUN, **writer, "trainer": TRAINER_CLASS}


_NOT_OPTIONS = ("self", "model", "datamodule", "ckpt_path", "weights_only", "dataloaders")
BASIC = ("config", "ckpt_path", "seed_everything", "print_config", "weights_only", "help")


def _own_options() -> list[Parameter]:
    """Options that the command line itself adds to those of Lightning, as they are written in `training`."""
    found = []
    line = signatures.method(definition("lightning_gen.commands.training.CommandLine"), "add_arguments_to_parser")
    assert line is not None
    for call in ast.walk(line.node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "parser.add_argument":
            told = {str(word.arg): word.value for word in call.keywords}
            name = ast.literal_eval(call.args[0]).lstrip("-")
            default, words = ast.unparse(told["default"]), ast.literal_eval(told["help"])
            found.append(Parameter(name, ast.unparse(told["type"]), default, words, line.source.name))
    return found


def _function_of(command: str) -> Definition:
    """The function or method that a command runs, or the class whose docstring says what it does."""
    path = COMMANDS[command]
    module, _, name = path.rpartition(".")
    if command not in TRAINER:
        return definition(f"lightning_gen.commands.{path}")
    owner = definition(f"lightning_gen.commands.{module}")
    return signatures.method(owner, name) or owner


def definition(path: str) -> Definition:
    """The class or function of an import path that there is."""
    found = signatures.find(path)
    assert found is not None, path
    return found


# -- a model, a data module, an argument of it ------------------------------------------------------------------------


def _subject_help(command: str, path: list[str], named: str, others: Sequence[str]) -> str | None:
    """Of `--model.help`, or of an argument below it."""
    option = "--" + ".".join(path)
    parameter, owner = _walk(path, named, others)
    if owner is not None:
        instead = [name for name in choices(parameter) if name != owner.name] if parameter else []
        return _class_help(option, owner, instead)
    if parameter is not None:
        return _parameter_help(option, parameter)
    return _list_of(command, path[0], _subjects(path[0])) if len(path) == 1 and path[0] in SUBJECTS else None


def _walk(
    path: list[str], named: str, arguments: Sequence[str], by_default: bool = False
) -> tuple[Parameter | None, Definition | None]:
    """The argument at the end of a path such as "model.generator", and the class that is named or given for it.

    By default it is that of the argument's default, if that is asked for.

    Raises:
        ArgumentError: If there is no such argument or class.
    """
    subject, *below = path
    owner: Definition | None = None
    if subject == "trainer":
        owner = definition(TRAINER_CLASS)
    elif name := (named if not below else "") or _given(subject, arguments):
        owner = subject_class(subject, name)
    parameter: Parameter | None = None
    for place, name in enumerate(below):
        if owner is None:
            return None, None
        known = signatures.parameters(owner)
        if name not in known:
            raise ArgumentError(None, f"{owner.name} has no argument {name!r}.{nearest(name, known)}")
        parameter, last = known[name], place == len(below) - 1
        given = _given(".".join(path[: place + 2]), arguments)
        if chosen := (named if last else "") or given:
            owner = _chosen(parameter, chosen)
        else:
            made = re.match(r"\w+", parameter.default or "") if by_default or not last else None
            owner = choices(parameter).get(made[0]) if made else None
    return parameter, owner


def class_at(path: list[str], arguments: Sequence[str]) -> Definition | None:
    """The class that an argument has, by its path such as "model.generator"; None if that is not known.

    Raises:
        ArgumentError: If there is no such argument or class.
    """
    return _walk(path, "", arguments, by_default=True)[1]


def fitting(path: str, arguments: Sequence[str]) -> dict[str, Definition]:
    """The classes that can stand at a path such as "model" or "model.generator", by name; none where it is unknown."""
    if path in SUBJECTS:
        return _subjects(path)
    command, *rest = arguments
    found: Parameter | None = None
    with suppress(ArgumentError, OSError):
        if command in TRAINER and path.partition(".")[0] in (*SUBJECTS, "trainer"):
            *above, name = path.split(".")
            owner = _walk(above, "", rest)[1]
            found = signatures.parameters(owner).get(name) if owner else None
        elif command in FUNCTIONS:
            found = signatures.parameters(_function_of(command)).get(path)
    return choices(found) if found else {}


def options(arguments: Sequence[str]) -> list[str]:
    """The options that a command has, those of its trainer, model and data included, without dashes."""
    command, *rest = arguments
    if command not in TRAINER:
        return [*signatures.parameters(_function_of(command)), "config", "help"]
    found = [*BASIC, *(one.name for one in _own_options())]
    method = signatures.method(definition(TRAINER_CLASS), command) or _function_of(command)
    found += [name for name in signatures.parameters(method) if name not in _NOT_OPTIONS]
    for group, path in groups(command).items():
        found += [f"{group}.{name}" for name in signatures.parameters(definition(path))]
    for subject in SUBJECTS:
        found.append(subject)
        with suppress(ArgumentError, OSError):
            if (name := _given(subject, rest)) and (owner := subject_class(subject, name)):
                found += [f"{subject}.{each}" for each in signatures.parameters(owner)]
    return found


def defaults(command: str) -> dict[str, str | None]:
    """The options of a command that is a function, and their defaults; None where there is none."""
    return {name: one.default for name, one in signatures.parameters(_function_of(command)).items()}


def _given(option: str, arguments: Sequence[str]) -> str | None:
    """The class that the command line, or a configuration that it names, has for an option such as "model"."""
    found: str | None = None
    below = option.split(".")
    for file in _configurations(arguments):
        settings = _settings_of(file)
        for place, key in enumerate(below):
            settings = settings.get("init_args", settings) if place else settings
            settings = settings.get(key) if isinstance(settings, Mapping) else None
            settings = {"class_path": settings} if isinstance(settings, str) else settings
        if isinstance(settings, Mapping) and isinstance(settings.get("class_path"), str):
            found = settings["class_path"]
    for name in values_of(arguments, f"--{option}"):
        found = name
    return found


def _configurations(arguments: Sequence[str]) -> list[Path]:
    """The files of the configurations that hold: those named, or else that of the run that is gone on with."""
    if named := values_of(arguments, "--config", "-c"):
        return [Path(find_config(name)) for name in named]
    runs = [run_folder_of_checkpoint(name) for name in values_of(arguments, "--ckpt_path")]
    return [run / CONFIG for run in runs if run and (run / CONFIG).is_file()]


@cache
def _settings_of(file: Path) -> Any:
    from yaml import YAMLError  # type: ignore[import-untyped]

    from lightning_gen.limits import load_yaml

    try:
        return load_yaml(file.read_text(encoding="utf-8")) or {}
    except YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error


def values_of(arguments: Sequence[str], *flags: str) -> list[str]:
    """What stands after these flags."""
    found = []
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in flags and (equals or place + 1 < len(arguments)):
            found.append(value if equals else arguments[place + 1])
    return found


def subject_class(subject: str, name: str) -> Definition | None:
    """The class that a name or import path means for `--model` or `--data`; None for one that is read nowhere.

    Raises:
        ArgumentError: If it is a name, and there is no such class.
    """
    package, base = SUBJECTS[subject]
    one = signatures.find(name if "." in name else f"{package}.{name}")
    if "." in name or (one and _is_kind_of(one, definition(base))):
        return one
    classes = _subjects(subject)
    if name not in classes:
        kind = "model" if subject == "model" else "data module"
        near = nearest(name, classes) or f" There are {', '.join(classes)}."
        raise ArgumentError(None, f"There is no {kind} {name!r}.{near}")
    return classes[name]


def _subjects(subject: str) -> dict[str, Definition]:
    package, base = SUBJECTS[subject]
    return _subclasses(definition(base), [package])


def _subclasses(base: Definition, packages: Iterable[str]) -> dict[str, Definition]:
    """Public classes of packages that are of a kind, by name, without those that are there to be made others of."""
    found: dict[str, Definition] = {}
    for package in packages:
        offered = signatures.public_classes(package)
        if not offered and (module := signatures.source(package)):
            offered = {
                name: Definition(module, node)
                for name, node in module.statements.items()
                if isinstance(node, ast.ClassDef) and not name.startswith("_")
            }
        for name, one in offered.items():
            if _is_kind_of(one, base):
                found.setdefault(name, one)
    if len(found) > 1:
        found = {name: one for name, one in found.items() if one != base and not name.startswith("Base")}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _is_kind_of(one: Definition, base: Definition) -> bool:
    return base in signatures.lineage(one) and not signatures.is_abstract(one)


def choices(parameter: Parameter) -> dict[str, Definition]:
    """The classes that fit an argument, by name: of networks those of its role that are called as it calls them."""
    scope = signatures.source(parameter.scope)
    tree = ast.parse(parameter.annotation, mode="eval").body
    found: dict[str, Definition] = {}
    if scope is None:
        return found
    for call in ast.walk(tree):
        if isinstance(call, ast.Subscript) and ast.unparse(call.value) == "Callable":
            given, made = call.slice.elts  # type: ignore[attr-defined]
            if ast.unparse(made) in _NETWORK:
                found |= _networks(parameter, len(given.elts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (base := signatures.resolve(ast.unparse(node), scope)):
            first, second, *_ = [*base.source.name.split("."), ""]
            if first == signatures.PACKAGE and second not in ("capabilities", "generative", "models"):
                found |= _subclasses(base, [f"{first}.{second}"])
            elif base.name == "LightningDataModule":
                found |= _subjects("data")
            elif base.source.name.startswith("lightning.pytorch."):
                kind = base.source.name.split(".")[2]
                found |= _subclasses(base, [f"{signatures.PACKAGE}.{kind}", f"lightning.pytorch.{kind}"])
    default = parameter.default or ""
    if default not in found and re.fullmatch(r"[A-Z]\w+", default) and (one := signatures.resolve(default, scope)):
        found = {default: one, **found}
    return found


def _networks(parameter: Parameter, positions: int) -> dict[str, Definition]:
    role = parameter.name.rpartition("_")[2]
    found = {}
    for name, one in signatures.public_classes("lightning_gen.networks").items():
        required = [each for each in signatures.parameters(one).values() if each.default is None]
        if re.findall("[A-Z][a-z]+", name)[-1:] == [role.capitalize()] and len(required) == positions:
            found[name] = one
    return found


def _chosen(parameter: Parameter, name: str) -> Definition | None:
    if "." in name:
        return signatures.find(name)
    fitting = choices(parameter)
    if name in fitting:
        return fitting[name]
    if not fitting:
        return None
    raise ArgumentError(
        None, f"{parameter.name} takes no {name!r}.{nearest(name, fitting)} There are {', '.join(fitting)}."
    )


def _list_of(command: str, subject: str, classes: Mapping[str, Definition]) -> str:
    kind = "models" if subject == "model" else "data modules"
    rows = [_row(name, one.summary) for name, one in classes.items()]
    end = f"`lightning-gen {command} --{subject}.help NAME` lists the options of one."
    return "\n".join([f"The {kind}, for --{subject} NAME:", "", *rows, "", _filled(end)]) + "\n"


def _class_help(option: str, one: Definition, instead: Sequence[str]) -> str:
    found = dict(signatures.parameters(one))
    implied = found.pop("image_shape", None) if option.startswith("--model") else None
    parts = [_filled(f"{one.name} ({option} {one.name}). {one.summary}")]
    rows, told = [], set()
    for name, each in found.items():
        kinds = _kinds(f"{option}.{name}", each)
        told_already = _SCHEDULE in _metavar(each) and kinds in told
        rows.append(_option(f"{option}.{name}", each, kinds="" if told_already else kinds))
        told.add(kinds)
    if rows:
        parts.append("\n".join(rows))
    end = f"{option}.NAME.help says all of one option, and of what it can be." if found else "It has no options."
    if implied and option == "--model":
        end += " The image shape is that of the data."
    if 0 < len(instead) < 12:
        end += f" In its place there can be {', '.join(instead)}."
    elif instead:
        end += f" {option}.help lists what there can be in its place."
    return "\n\n".join([*parts, _filled(end)]) + "\n"


def _parameter_help(option: str, parameter: Parameter) -> str:
    rows = [_option(option, parameter, whole=True)]
    if fitting := choices(parameter):
        rows += ["", "It can be:", *(_row(name, one.summary) for name, one in fitting.items()), ""]
        rows.append(
            _filled(f"`{option}.help NAME` lists the options of one. One of yours is given by its import path.")
        )
    return "\n".join(rows) + "\n"


# -- words ------------------------------------------------------------------------------------------------------------


def _option(option: str, parameter: Parameter, whole: bool = False, kinds: str = "") -> str:
    """An option and what is said of it: all, or the first sentence; then of what kinds its value can be."""
    words = parameter.words.replace("``", "`")
    words = (words if whole else signatures.first_sentence(words)) + kinds
    default = "required" if parameter.default is None else f"default: {_plain_default(parameter.default)}"
    if parameter.default is None or not re.search(r"\bdefault:", words, flags=re.I):
        words = f"{words} ({default})".strip()
    return _row(f"{option} {_metavar(parameter)}", words, hanging="." in option)


def _kinds(option: str, parameter: Parameter) -> str:
    """The classes that fit an option, as a sentence with a space in front; empty if there are none."""
    if fitting := choices(parameter):
        return f" One of {', '.join(fitting)}." if len(fitting) <= 12 else f" {option}.help lists them."
    return " One of torch.optim, such as torch.optim.RMSprop." if "Optimizer]" in parameter.annotation else ""


def _plain_default(default: str) -> str:
    if default == "Path()":
        return "."
    text = re.sub(r"\bFalse\b", "false", re.sub(r"\bTrue\b", "true", default))
    return text.strip("'") if re.fullmatch(r"'[^']*'", text) else text


def _metavar(parameter: Parameter) -> str:
    """What stands for a value of such a type: INT, TEXT, {a,b}, [NUMBER,NUMBER]."""
    text = _shape(ast.parse(parameter.annotation, mode="eval").body, parameter)
    return parameter.name.upper() if len(text) > 48 else text


_NAMES = {
    "int": "INT", "float": "NUMBER", "str": "TEXT", "bool": "{true,false}", "Path": "PATH", "Any": "VALUE",
    "timedelta": "TIME",
}  # fmt: skip


def _shape(node: ast.expr, parameter: Parameter) -> str:
    if isinstance(node, ast.BinOp):
        return "|".join(dict.fromkeys(filter(None, (_shape(node.left, parameter), _shape(node.right, parameter)))))
    if isinstance(node, ast.Constant):
        return "" if node.value is None else str(node.value)
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        kind = ast.unparse(node.value).rpartition(".")[2]
        shapes = [_shape(each, parameter) for each in inner if not isinstance(each, ast.List)]
        if kind == "Literal":
            return "{" + ",".join(shapes) + "}"
        if kind in ("Optional", "Union"):
            return "|".join(dict.fromkeys(filter(None, shapes)))
        if kind in ("list", "Sequence", "Iterable"):
            return f"[{shapes[0]},...]"
        if kind == "tuple":
            return "[" + ",".join("..." if shape == "Ellipsis" else shape for shape in shapes) + "]"
        return "{NAME: VALUE}" if kind in ("dict", "Mapping") else "CLASS"
    name = ast.unparse(node).rpartition(".")[2]
    if name in _NAMES:
        return _NAMES[name]
    scope = signatures.source(parameter.scope)
    one = signatures.resolve(ast.unparse(node), scope) if scope else None
    if one is None:
        return parameter.name.upper()
    models = tuple(f"{signatures.PACKAGE}.{name}" for name in ("capabilities", "generative", "models"))
    return "CHECKPOINT" if one.source.name.startswith(models) else _SCHEDULE if one.name == "Schedule" else "CLASS"


def _width() -> int:
    return max(shutil.get_terminal_size().columns - 2, 40)


def _filled(text: str) -> str:
    """Paragraphs, and lists in them, as wide as the terminal."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        items = re.split(r"\n(?=\* )", paragraph)
        paragraphs.append("\n".join(_wrapped(item, "  " if item.startswith("* ") else "") for item in items))
    return "\n\n".join(paragraphs)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(" ".join(text.split()), _width(), subsequent_indent=indent, break_on_hyphens=False)


def _row(head: str, words: str, hanging: bool = False) -> str:
    """An option, and beside it what is said of it, in a column; or hanging, where names are long."""
    first, indent = f"  {head}  ", " " * (8 if hanging else _COLUMN)
    begin = first if hanging else first.ljust(_COLUMN)
    beside = len(begin) <= (_width() - _COLUMN if hanging else _COLUMN)
    lines = textwrap.wrap(
        words,
        _width(),
        initial_indent=begin if beside else indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return "\n".join(lines if beside and lines else [first.rstrip(), *lines])


COMMANDS = {**TRAINER, **FUNCTIONS, "advise": "advise.advise"}
"""All commands, by what in `lightning_gen.commands` they run."""
