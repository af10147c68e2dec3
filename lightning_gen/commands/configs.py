"""Shipped configurations, found by name."""

from __future__ import annotations

import ast
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_gen.commands.nearest import nearest

NUMBERING_LOGGERS = ("CSVLogger", "TensorBoardLogger")  # which have folders NAME/version_N


def config_folder() -> Path:
    """Where configurations lie: inside an installed package, or beside it in a source tree."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of all shipped configurations, such as "cyclegan" and "paper/cyclegan_horse2zebra"."""
    folder = config_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def find_config(name: str) -> str:
    """A path as it is if it exists; otherwise the shipped configuration of that name.

    Args:
        name: "cyclegan", "cyclegan.yaml", "configs/cyclegan.yaml" or "paper/NAME".

    Raises:
        FileNotFoundError: If there is neither.
    """
    if Path(name).is_file():
        return name
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    if wanted in shipped_configs():
        return str(config_folder() / f"{wanted}.yaml")
    near = nearest(wanted, shipped_configs()) or f" Shipped are: {', '.join(shipped_configs())}."
    raise FileNotFoundError(
        f"There is no configuration {name!r}: neither a file of that name nor one that is shipped.{near}"
    )


def with_folder(logger: Any) -> Any:
    """The configuration of a logger that must be told a folder, with an empty one where none is named.

    `loggers.place_loggers` puts the folder of all runs there.
    """
    named = {"class_path": logger} if isinstance(logger, str) else logger
    if not isinstance(named, dict) or str(named.get("class_path")).rpartition(".")[2] not in NUMBERING_LOGGERS:
        return logger
    return {**named, "init_args": {"save_dir": "", **(named.get("init_args") or {})}}


def _as_in_python(text: str) -> Any:
    """A text, or what it is in Python where that is None or a tuple, as programs write values that they hand over."""
    if text == "None":
        return None
    if text.startswith("(") and text.endswith(")"):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
            return list(value) if isinstance(value, tuple) else text
    return text


def set_yaml_loader() -> None:
    """Let the command line, in this process from now on, refuse YAML as `lightning_gen.limits.check_aliases` does.

    What earlier versions wrote, such as a run's configuration, is understood: classes of this package are found by the
    names that they had, and arguments of models by the places. So are None and tuples as Python writes them. Loggers
    need not be told a folder.
    """
    import yaml  # type: ignore[import-untyped]
    from jsonargparse import get_loader, set_loader

    from lightning_gen.limits import check_aliases
    from lightning_gen.trust import public_name

    load = get_loader("yaml")
    if getattr(load, "checked", False):
        return

    def load_checked(text: str) -> Any:
        check_aliases(text)
        value = renamed(load(text))
        return with_folder(value) if isinstance(value, str) else value

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            named = {key: renamed(item) for key, item in value.items()}
            if "logger" in named:
                several = isinstance(named["logger"], list)
                named["logger"] = [*map(with_folder, named["logger"])] if several else with_folder(named["logger"])
            return {**named, "init_args": upgraded(named)} if isinstance(named.get("init_args"), dict) else named
        if isinstance(value, list):
            return [renamed(item) for item in value]
        value = _as_in_python(value) if isinstance(value, str) else value
        return public_name(value) if isinstance(value, str) else value

    def upgraded(named: dict[str, Any]) -> dict[str, Any]:
        package, _, name = str(named.get("class_path")).rpartition(".")
        model = package in ("", "lightning_gen.models") and getattr(sys.modules.get("lightning_gen.models"), name, None)
        arguments: dict[str, Any] = getattr(model, "upgraded", dict)(named["init_args"])
        return arguments

    load_checked.checked = True  # type: ignore[attr-defined]
    set_loader("yaml", load_checked, (yaml.YAMLError,))
