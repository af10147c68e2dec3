"""`lightning-gen advise`: what to train with on one's own pictures, computed from them and from the machine at hand."""

from __future__ import annotations

import copy
import importlib
import os
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace

from lightning_gen import advice, data, models
from lightning_gen.advice import Advice, Case, Settings
from lightning_gen.callbacks.progressive_growing import MANY
from lightning_gen.commands.configs import find_config, shipped_configs
from lightning_gen.commands.data import LookingCommandLine, table
from lightning_gen.commands.trainer import Trainer
from lightning_gen.commands.training import run_trainer
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.cache import in_bytes
from lightning_gen.data.collection import Collection
from lightning_gen.data.folders import FolderDataModule, PairedImageFolder, UnpairedImageFolder
from lightning_gen.data.prepared import CONTENTS
from lightning_gen.data.rates import Cost, cost_at
from lightning_gen.data.survey import RESOLUTIONS, Survey, survey
from lightning_gen.extractors.inception import has_published_weights
from lightning_gen.files import write_atomically
from lightning_gen.hyperparameters import accepts
from lightning_gen.limits import load_yaml
from lightning_gen.losses import R1
from lightning_gen.models.adversarial import AdversarialModule
from lightning_gen.models.translation import TranslationModule
from lightning_gen.silence import silence

T = TypeVar("T")

MOST = {"cpu": 64}
"""Rows of pictures that a device trains within days; 256 on all others."""
NAMED = 5  # files of each kind that are named
LONG = 90  # characters of a line that is made several
REPLACED = ("GenerativeMetrics", "EarlyWarning", "ColorMappingBaseline", "PointMetrics", "ProgressiveGrowing")
"""Callbacks of the shipped configurations that suit their data."""
STEPS = 2  # that are timed, or as many as make a step of the generator


def advise(
    config: str | None = None,
    write: Path | None = None,
    overwrite: bool = False,
    hours: float = 24.0,
    probe: bool = True,
) -> None:
    """Say what to train with on pictures of your own, and write the configuration.

    It looks at the pictures (how many, how large, copies by content, files that cannot be read, gray ones) and at the
    machine, tries a few steps, and says which size and crop lose least, R1's gamma, which batch fits into memory, how
    long to train, whether to augment, and which figures are honest with so many real pictures. --data is a folder, or
    a data module with its options, as --data ImageFolder --data.root FOLDER. What is given of it is kept.

    Args:
        config: Whose model is meant, a file or a shipped name; None chooses one for pictures and machine.
        write: File for the configuration, whose lines have their reasons beside them.
        overwrite: Whether to replace that file.
        hours: That the run may take.
        probe: Whether steps are tried, for time and memory.
    """


@silence()  # which would speak of a training, which this is not
def run_advise(arguments: list[str]) -> int:
    """Run `advise`."""
    options, module, given = _options(arguments)
    write: Path | None = options.write
    if write and write.exists() and not options.overwrite:
        raise FileExistsError(f"{write} is there already. Name another file, or replace it with --overwrite true.")
    if not options.hours > 0:
        raise ValueError(f"hours must be above 0, got {options.hours}.")
    found = survey(module)
    _say(module, found)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = options.config or _chosen(found, device)
    base = load_yaml(Path(find_config(name)).read_text(encoding="utf-8"))
    case = _case(base, module, given, found, device, own=options.config is not None)
    for words in advice.warnings_of(case):
        print(f"! {words}", flush=True)
    settings = advice.data_settings(case)
    size, batch = advice.size_in(case, settings), int(settings["data", "init_args", "batch_size"].value)
    planned = settings | advice.run_settings(case, batch, None, options.hours)
    case = _visited(_put(_with_data(base, given), planned), lambda trainer, model, data: _with_model(case, model))
    piece: Advice | None = None
    rate: float | None = None
    if options.probe:
        planned |= advice.model_settings(case, size, batch, None)
        piece, costs = _visited(
            _put(_with_data(base, given), planned), lambda trainer, model, data: _fitting(trainer, model, data, batch)
        )
        cost = costs[piece.value]
        rate = piece.value / cost.seconds
        tried = "1 picture" if piece.value == 1 else f"{piece.value} pictures"
        print(f"Tried on {device}: {tried} in {cost.seconds:.3g} s, {in_bytes(cost.memory)} of memory.")
    settings |= advice.model_settings(case, size, batch, piece)
    settings |= advice.run_settings(case, batch, rate, options.hours)
    mine = _put(_with_data(base, given), settings)
    reasons = _reasons(given) | {place: each.reason for place, each in settings.items()}
    for made, reason in advice.callbacks(case):
        reasons["trainer", "callbacks", str(len(mine["trainer"]["callbacks"]))] = reason
        mine["trainer"]["callbacks"].append(made)

    print(f"\nAdvice: {_model_name(base)} as in {name}, but for")
    print(
        table(
            [["setting", "value"], *([".".join(_short(place)), _plain(each.value)] for place, each in settings.items())]
        )
    )
    print("\nWhy:")
    notes = [(".".join(_short(place)), each.reason) for place, each in settings.items()]
    notes += [(made["class_path"], reason) for made, reason in advice.callbacks(case)]
    if case.family == "other" and advice.augments(case.training).value:
        notes.append(("overfitting", f"{case.training} pictures are few; watch the loss on those held out"))
    if (base["data"].get("init_args") or {}).get("growing"):
        notes.append(("data.growing", "left out, for the model is trained in full size from the start (as 2006.06676)"))
    if not case.measures and case.family == "gan":
        notes.append(
            ("GenerativeMetrics", "left out: what reads such pictures, as Inception's weights, is not on this machine")
        )
    for setting, reason in notes:
        print(textwrap.fill(f"{setting}: {reason}.", 110, initial_indent="  ", subsequent_indent="    "))
    if write:
        write.parent.mkdir(parents=True, exist_ok=True)
        head = f"# {_model_name(base)} for {found.training} pictures, as `lightning-gen advise` has it."
        text = (
            "\n".join([head, f"#   lightning-gen fit --config {write}", *commented(mine, reasons, f"as in {name}")])
            + "\n"
        )
        write_atomically(write, text)
        print(f"\nWritten: {write}. Train with: lightning-gen fit --config {write}")
    return 0


# -- what is given ----------------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str]) -> tuple[Namespace, pl.LightningDataModule, dict[str, Any]]:
    """The options, the data module, and what was given of it: its class_path and init_args."""
    parser = ArgumentParser(prog="lightning-gen advise", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(advise)
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=True)
    arguments = _with_folder(arguments)
    options = parser.parse_args(arguments)
    if accepts(_class_of(options.data.class_path), "skip_broken"):  # what is broken is named, and left out
        if not any(argument.startswith("--data.skip_broken") for argument in arguments):
            arguments = [*arguments, "--data.skip_broken=true"]
        options = parser.parse_args(arguments)
    settings = load_yaml(parser.dump(options))["data"]
    told = {
        re.sub(r"^--data\.(init_args\.)?([^.=]*).*", r"\2", each) for each in arguments if each.startswith("--data.")
    }
    public = str(settings["class_path"]).rpartition(".")[2]
    given = {
        "class_path": public if hasattr(data, public) else settings["class_path"],
        "init_args": {name: value for name, value in (settings.get("init_args") or {}).items() if name in told},
    }
    module: pl.LightningDataModule = parser.instantiate_classes(options).data
    return options, module, given


def _with_folder(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a folder after --data is a data module by its layout."""
    found: list[str] = []
    waiting = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if waiting or (name == "--data" and equals):
            found += ["--data", *_module_of(argument if waiting else value)]
            waiting = False
        elif argument == "--data":
            waiting = True
        else:
            found.append(argument)
    return [*found, "--data"] if waiting else found


def _module_of(name: str) -> list[str]:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / CONTENTS).is_file():
            kind = "PreparedFolder"
        else:
            kind = "UnpairedImageFolder" if (folder / "trainA").is_dir() else "ImageFolder"
        return [kind, f"--data.root={name}"]
    if folder.is_file():
        raise ValueError(f"{name} is a file. Unpack it, and give the folder with the pictures.")
    if os.sep in name:
        raise FileNotFoundError(f"{name} does not exist.")
    return [name]


def _class_of(path: str) -> Any:
    package, _, name = str(path).rpartition(".")
    places = [importlib.import_module(package)] if package else [models, data]
    return next((getattr(place, name) for place in places if hasattr(place, name)), None)


def _chosen(found: Survey, device: str) -> str:
    """The shipped configuration for such pictures and such a device."""
    few = advice.augments(found.training).value
    if found.unit == "pairs":
        unpaired = {"A", "B"} <= found.counts.keys()
        on_cpu, published = (
            ("cyclegan", "paper/cyclegan_horse2zebra") if unpaired else ("pix2pix", "paper/pix2pix_facades")
        )
        return on_cpu if device == "cpu" else published
    if found.unit == "points":
        return "wgan_gp"
    wanted = (
        ["few_pictures", "dcgan"]
        if device == "cpu"
        else ["paper/stylegan_imagefolder_ada", "paper/stylegan_imagefolder"]
    )
    return next(name for name in wanted[not few :] if name in shipped_configs())


def _case(
    base: Mapping[str, Any],
    module: pl.LightningDataModule,
    given: Mapping[str, Any],
    found: Survey,
    device: str,
    own: bool,
) -> Case:
    model = _class_of(base["model"]["class_path"])
    init, told = base["model"].get("init_args") or {}, given["init_args"]
    settings, trainer = base["data"].get("init_args") or {}, base.get("trainer") or {}
    kind: Any = type(module)
    sized = "image_size" if issubclass(kind, Collection) else None
    sized = "crop" if issubclass(kind, UnpairedImageFolder | PairedImageFolder) else sized
    shape: tuple[int, int, int] = getattr(module, "image_shape")  # noqa: B009
    adversarial = isinstance(model, type) and issubclass(model, AdversarialModule)
    translation = isinstance(model, type) and issubclass(model, TranslationModule)
    batch = told.get("batch_size") or settings.get("batch_size")
    if batch is None:
        batch = ((settings.get("growing") or {}).get("batch_sizes") or [1 if translation else 64])[-1]
    epoch = max([found.training, *(found.counts.get(domain, 0) for domain in ("A", "B"))])
    n_critic = int(init.get("n_critic") or 1)
    kimg = None
    if own and (trainer.get("max_steps") or -1) > 0:
        kimg = trainer["max_steps"] * batch * n_critic / 1000
    elif own and (trainer.get("max_epochs") or -1) > 0:
        kimg = trainer["max_epochs"] * epoch / 1000
    root = getattr(module, "root", None)
    out = dict.fromkeys(found.broken, "files that cannot be read") | dict.fromkeys(found.copies, "copies of others")
    return Case(
        family="translation" if translation else "gan" if adversarial else "other",
        training=found.training,
        epoch=epoch,
        sizes=found.sizes,
        size=(shape[1], shape[2]),
        batch=int(batch),
        detail=found.detail,
        gray=found.gray,
        most=MOST.get(device, 256),
        sized=cast(Any, sized if sized not in told else None),
        colours=accepts(kind, "channels") and "channels" not in told,
        excluded={_below(name, root): why for name, why in out.items()} if isinstance(module, FolderDataModule) else {},
        num_classes=getattr(module, "num_classes", None)
        if accepts(model, "num_classes") and told.get("labels")
        else None,
        kimg=kimg,
        n_critic=n_critic,
        can_accumulate=adversarial,
        measures=found.unit == "pictures" and shape[0] == 3 and found.gray < 0.99 and has_published_weights(),
        warns=adversarial and hasattr(model, "judge"),
        choices=[r for r in RESOLUTIONS if r >= (16 if max(map(min, found.sizes)) >= 16 else 8)],
    )


def _with_model(case: Case, model: Any) -> Case:
    """What there is, and what is known of the model once it is made."""
    penalties = list(getattr(model, "penalties", ()))
    r1 = [{} if each.interval == 1 else {"interval": each.interval} for each in penalties if type(each) is R1]
    augment: dict[str, Any] | None = None
    if case.family == "gan" and model.augment is None:  # the papers on translation do without
        # The scores of some losses only compare pictures, so that there is nothing for p to follow.
        adapts = getattr(getattr(model, "loss", None), "boundary", None) is not None
        augment = {"class_path": "ADA"} if adapts else {"class_path": "DiffAugment"}
    return replace(case, r1=r1[0] if len(r1) == len(penalties) == 1 else None, augment=augment)


def _below(name: str, root: Path | None) -> str:
    path = Path(name)
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else name


# -- what is tried ----------------------------------------------------------------------------------------------------


def _visited(settings: Mapping[str, Any], visit: Callable[[pl.Trainer, pl.LightningModule, ImageDataModule], T]) -> T:
    """What a visitor finds out of trainer, model and data of a configuration, which `fit` would make of it."""
    answers: list[T] = []

    class Visiting(Trainer):
        """A trainer that trains nothing."""

        def advise(
            self,
            model: pl.LightningModule | None = None,
            datamodule: pl.LightningDataModule | None = None,
            ckpt_path: str | None = None,
            weights_only: bool | None = None,
        ) -> None:
            """Let the visitor look.

            Args:
                model: The model.
                datamodule: Its data.
                ckpt_path: Not used.
                weights_only: Not used.
            """
            if model is None or not isinstance(datamodule, ImageDataModule):
                what = "a model that is made of another, which fit would train first" if model is None else "this data"
                raise ValueError(
                    f"advise cannot try {what}. Choose a model of its own with --config, and data of this library."
                )
            answers.append(visit(self, model, datamodule))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visited.yaml"
        path.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
        run_trainer(["advise", "--config", str(path)], _CommandLine, Visiting)
    return answers[0]


def _fitting(
    trainer: pl.Trainer, model: pl.LightningModule, module: ImageDataModule, batch: int
) -> tuple[Advice, dict[int, Cost]]:
    """The piece of a batch that fits into memory, and what each piece that was tried costs."""
    module.prepare_data()
    module.setup("fit")
    device = trainer.strategy.root_device
    settings: dict[str, Any] = {"accelerator": device.type, "devices": 1, "precision": trainer.precision}
    costs: dict[int, Cost] = {}

    def cost(size: int) -> int | None:
        alone = pl.Trainer(barebones=True, max_steps=MANY, **settings)
        part = copy.copy(module)
        part.batch_size = size
        try:
            steps = max(STEPS, getattr(model, "n_critic", 1))
            costs[size] = cost_at(alone, copy.deepcopy(model), part, 0, steps)
        except torch.OutOfMemoryError:
            return None
        return costs[size].memory

    least = 2 if batch % 2 == 0 else 1
    return advice.fitting_batch(cost, batch, _memory_of(device), least=least), costs


def _memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _CommandLine(LookingCommandLine):
    """The options and configurations of `fit`, where no run begins."""

    method = "advise"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one there is, and its arguments that are no options."""
        return {"advise": {"model", "datamodule"}}

    def needs_model(self, config: Namespace) -> bool:
        """It is the model that is tried."""
        return True


# -- what is said and written -----------------------------------------------------------------------------------------


def _say(module: pl.LightningDataModule, found: Survey) -> None:
    heights, widths = (sorted(size[axis] for size in found.sizes) for axis in (0, 1))
    rows = [
        ["", "least", "median", "most"],
        ["height", *(str(heights[place]) for place in (0, len(heights) // 2, -1))],
        ["width", *(str(widths[place]) for place in (0, len(widths) // 2, -1))],
    ]
    print(f"{type(module).__name__}: {found.training} {found.unit} to train on, {found.held_out} held out")
    print(table(rows))
    for words in found.left_out:
        print(words)
    if found.sampled:
        print("Sizes, colours and broken files are those of a sample, which is spread evenly.")
    if found.counts:
        fewest, most = min(found.counts.values()), max(found.counts.values())
        print(f"{len(found.counts)} classes or domains, of {fewest} to {most} training pictures")
    print(f"gray: {found.gray:.0%}")
    if found.detail:
        print("kept at: " + ", ".join(f"{r} px {value:.0f} dB" for r, value in found.detail.items()))
    for title, pairs in (("copies of others", found.copies), ("cannot be read", found.broken)):
        if pairs:
            named = [f"{Path(name).name}" for name in list(pairs)[:NAMED]]
            print(f"{title}: {len(pairs)} ({', '.join(named)}{', ...' if len(pairs) > NAMED else ''})")
    print(flush=True)


def _with_data(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with other data, without what watches the run, and trained in full size from the start."""
    mine: dict[str, Any] = copy.deepcopy(dict(base))
    kept = {key: value for key, value in (base["data"].get("init_args") or {}).items() if key == "eval_batch_size"}
    mine["data"] = {"class_path": given["class_path"], "init_args": {**kept, **given["init_args"]}}
    (mine["model"].get("init_args") or {}).pop("growing", None)
    trainer = mine.setdefault("trainer", {})
    trainer.pop("max_epochs", None)
    trainer["callbacks"] = [
        each for each in trainer.get("callbacks") or () if str(each["class_path"]).rpartition(".")[2] not in REPLACED
    ]
    return mine


def _reasons(given: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """Of the data that was given."""
    reasons: dict[tuple[str, ...], str] = {("data", "class_path"): "as given"}
    reasons |= {("data", "init_args", key): "as given" for key in given["init_args"]}
    if "skip_broken" in given["init_args"]:
        reasons["data", "init_args", "skip_broken"] = "files that do not begin like pictures are left out with a word"
    return reasons


def _put(settings: dict[str, Any], advised: Settings) -> dict[str, Any]:
    """The same with what is advised, changed in place."""
    for place, each in advised.items():
        inner = settings
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        inner[place[-1]] = each.value
    return settings


def commented(
    value: Any, reasons: Mapping[tuple[str, ...], str], others: str, place: tuple[str, ...] = ()
) -> Iterator[str]:
    """The lines of a configuration in YAML, with why each is as it is: above it, or behind it what is said of others.

    Args:
        value: Of mappings, lists and plain data.
        reasons: By place, keys and numbers in lists.
        others: The reason of lines that have none of their own.
        place: Of the value.
    """
    indent = "  " * len(place)
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        here = (*place, str(key))
        reason = reasons.get(here)
        if reason:
            words = f"{reason[0].upper()}{reason[1:]}."
            yield from textwrap.wrap(words, 116, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        title = f"{indent}-" if isinstance(key, int) else f"{indent}{key}:"
        below = any(len(known) > len(here) and known[: len(here)] == here for known in reasons)
        long = isinstance(inner, Mapping | list) and len(indent) + len(_plain(inner)) > LONG
        if inner and (below or long or (isinstance(inner, Mapping) and not place)):
            inside = commented(inner, reasons, others, here)
            yield f"{title} {next(inside).strip()}" if isinstance(key, int) else title
            yield from inside
        else:
            yield f"{title} {_plain(inner)}" + ("" if reason else f"  # {others}")


def _plain(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return str(text).removesuffix("...\n").strip()


def _short(place: tuple[str, ...]) -> tuple[str, ...]:
    """Names as options have them."""
    return tuple(key for key in place if key != "init_args")


def _model_name(settings: Mapping[str, Any]) -> str:
    return str(settings["model"]["class_path"]).rpartition(".")[2]
