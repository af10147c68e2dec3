"""`lightning-gen data`: what a model will see, and how fast, before anything is trained."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_gen.commands.beforehand import take_kept_first_stages
from lightning_gen.commands.inner_models import find_checkpoint_of, load_inner_models
from lightning_gen.commands.readers import share_schedule
from lightning_gen.commands.trainer import REFUSED_BY_BAREBONES, Trainer
from lightning_gen.commands.training import CommandLine, run_trainer, use_all_cores
from lightning_gen.commands.what_next import say_fit
from lightning_gen.data import looking, rates
from lightning_gen.data.base import ImageDataModule, Split
from lightning_gen.data.collection import PictureDataModule
from lightning_gen.data.looking import Sizes
from lightning_gen.data.toy import PointDataModule
from lightning_gen.files import write_atomically
from lightning_gen.silence import silence

MANY = 100_000  # steps and epochs that a trainer has at least, so that what is measured does not end on the way
TALL = 2048  # pixels that the rows of a grid have together, or little more
CLASSES = 30  # in the table, beyond which they are summed up


class LookingTrainer(Trainer):
    """A trainer that looks at data before anything is trained."""

    def look(
        self,
        model: pl.LightningModule | None = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        output: Path = Path(),
        looks: int = 4,
        seconds: float = 2.0,
        json: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """Show what a model will see before it is trained, and how many loader processes feed it.

        Says how many pictures there are in each split and class, how large their files are, what becomes of them, and
        what was left out. OUTPUT/data_train.png shows training pictures, a row each, as the first epochs have them,
        with captions, masks and both domains; OUTPUT/data_val.png shows validation pictures.

        Then it measures how many examples a second are loaded by 0, 2, 4, 8 ... workers, up to the cores at hand, and
        if a model is configured, how many it takes: a few steps of training on the device at hand, with nothing else
        in them. Nothing of them is kept, and no run begins.

        Args:
            model: The model, which may be left out.
            datamodule: The data module.
            ckpt_path: RUN or a checkpoint in it: without --config, the configuration is that of the run.
            weights_only: Means nothing here; configurations of runs have it.
            output: Folder of the pictures, by default the one you stand in.
            looks: Epochs that the training pictures are shown of.
            seconds: That each rate is measured for; 0 measures none, and makes no model.
            json: File to write the same facts to, for programs.
            overwrite: Whether to replace pictures and file.
        """
        assert datamodule is not None
        if looks < 1 or seconds < 0:
            raise ValueError(f"looks must be at least 1 and seconds 0 or more, got {looks} and {seconds}.")
        files: dict[Split, Path] = {"train": output / "data_train.png", "val": output / "data_val.png"}
        for file in (*files.values(), *([json] if json else [])):
            if file.exists() and not overwrite:
                raise FileExistsError(
                    f"{file} is there already. Name another place, or replace it with --overwrite true."
                )
        pictures = datamodule.pictures if isinstance(datamodule, ImageDataModule) else datamodule
        pictures.prepare_data()
        pictures.setup("fit")
        datasets = {split: looking.dataset_of(pictures, split) for split in _splits(pictures)}
        unit = looking.unit(pictures, datasets["train"])
        facts = _contents(pictures, datasets, unit)
        output.mkdir(parents=True, exist_ok=True)
        _draw(pictures, datasets, files, looks)
        if pictures is not datamodule:
            print(
                f"\n{type(datamodule).__name__} are made of these pictures once, when training begins, and kept. So it "
                "does not matter how fast pictures are loaded, and no rate is measured."
            )
        elif seconds:
            facts |= _rates(self, model, datamodule, seconds, unit)
        if json:
            write_atomically(json, json_format.dumps(facts, indent=2) + "\n")

    data = look  # as Lightning's command line calls what a subcommand runs


@silence()  # which would speak of a training, which this is not
def run_look(arguments: list[str]) -> int:
    """Run `data`."""
    code = run_trainer(arguments, LookingCommandLine, LookingTrainer)
    say_fit(arguments)
    return code


class LookingCommandLine(CommandLine):
    """The options and configurations of `fit`, where the model may be left out, and no run begins."""

    method = "look"  # of the trainer, whose arguments are options

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one there is, and its arguments that are no options."""
        return {"data": {"model", "datamodule"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, model and data, of which the model may be missing."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning's, which would give the options of the command the name that those of the data module have."""
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        skip: set[str | int] = {*self.subcommands()[subcommand]}
        self._subcommand_method_arguments[subcommand] = parser.add_method_arguments(klass, self.method, skip=skip)
        return parser

    def needs_model(self, config: Namespace) -> bool:
        """Whether there is anything to do with a model."""
        return bool(config.seconds)

    def before_instantiate_classes(self) -> None:
        """Let the trainer measure, on one device, and do nothing else, and find the models within the model."""
        config: Namespace = self.config[self.subcommand or "data"]
        share_schedule(config)
        trainer = config.trainer
        for name in (*REFUSED_BY_BAREBONES, "callbacks", "profiler", "max_time", "min_steps", "min_epochs"):
            trainer[name] = None
        trainer.update(
            Namespace(
                barebones=True, fast_dev_run=False, detect_anomaly=False, devices=1, num_nodes=1, strategy="auto",
                limit_val_batches=0, limit_train_batches=None, overfit_batches=0.0,
            )
        )  # fmt: skip
        for name in ("max_steps", "max_epochs"):
            trainer[name] = max(trainer[name], MANY) if (trainer[name] or -1) >= 0 else trainer[name]
        self._dump_config()  # as it was given, with the paths of models
        if not self.needs_model(config):
            config.model = None
        if config.model and (missing := take_kept_first_stages(config)):
            print(
                f"How fast the model is cannot be measured: it is made of another, {' and '.join(missing)}, which fit "
                "would train first.",
                flush=True,
            )
            config.model = None
        if config.model:
            load_inner_models(config.model, None)
        find_checkpoint_of(config.data)
        use_all_cores()


# -- what there is --------------------------------------------------------------------------------------------------


def _splits(data: pl.LightningDataModule) -> list[Split]:
    """Those that a data module has."""
    splits: list[Split] = ["train", "val", "test"]
    return [s for s in splits if isinstance(data, ImageDataModule) or is_overridden(f"{s}_dataloader", data)]


def _contents(data: pl.LightningDataModule, datasets: Mapping[Split, Any], unit: str) -> dict[str, Any]:
    """Say what the data is, and return it as plain data."""
    splits = list(datasets)
    shape: Sequence[int] | None = getattr(data, "image_shape", None)
    given = f"{' x '.join(map(str, shape))} (channels x height x width)" if shape else "of a shape of its own"
    print(f"{type(data).__name__}, whose pictures are given as {given}\n", flush=True)

    names = getattr(data, "class_names", None)
    counts = {split: looking.counts(dataset, names) for split, dataset in datasets.items()}
    sizes = {split: looking.sizes(dataset) for split, dataset in datasets.items()}
    captions = {split: looking.captions_per_picture(dataset) for split, dataset in datasets.items()}
    treatment = {split: looking.treatment(data, dataset, split) for split, dataset in datasets.items()}
    left_out: Sequence[str] = getattr(data, "left_out", ())

    kinds = list(dict.fromkeys(name for found in counts.values() for name in found))
    shown = kinds if len(kinds) <= CLASSES + 3 else [kind for kind in kinds if kind in ("", "A", "B")]
    known = {split: {"": "stream"} | {kind: str(n) for kind, n in found.items()} for split, found in counts.items()}
    rows = [[f"  {kind}" if kind else unit, *(known[split].get(kind, "") for split in splits)] for kind in shown]
    print(table([["", *splits], *rows]))
    if hidden := len(kinds) - len(shown):
        per_class = [counts["train"].get(kind, 0) for kind in kinds if kind not in shown]
        print(f"  {hidden} classes, of {min(per_class)} to {max(per_class)} training pictures each")
    files = getattr(data, "files", {})
    if files and files.get("val") == files.get("test"):
        print("val and test are the same pictures: there is one folder for both")
        sizes["test"] = {}
    for words in left_out:
        print(words)
    _say_sizes(sizes)
    _say_of_splits("captions of a picture (fewest, median, most)", {s: _three(captions[s]) for s in splits})
    _say_of_splits("what becomes of pictures", treatment)
    print(flush=True)
    return {
        "data": type(data).__name__,
        "unit": unit,
        "image_shape": list(shape) if shape else None,
        "left_out": list(left_out),
        "splits": {
            split: {
                "examples": counts[split].pop("", None),
                "counts": counts[split],
                "files": {domain or "image": asdict(found) for domain, found in sizes[split].items()},
                "captions": captions[split],
                "treatment": treatment[split],
            }
            for split in splits
        },
    }


def _say_sizes(sizes: Mapping[Split, Mapping[str, Sizes]]) -> None:
    found = {f"{split} {domain}".strip(): one for split, domains in sizes.items() for domain, one in domains.items()}
    if not found:
        return
    rows = [["files (least, median, most)", "height", "width", "enlarged"]]
    for name, one in found.items():
        rows.append([f"  {name}", _three(one.heights), _three(one.widths), f"{one.enlarged / one.looked_at:.0%}"])
    print(f"\n{table(rows)}")
    if any(one.enlarged for one in found.values()):
        print("Enlarged are files that are smaller than what is asked for.")
    for name, one in found.items():
        if one.looked_at < one.files:
            print(f"{name}: this is of a sample of {one.looked_at} of its {one.files} files")
        for words in one.unreadable.values():
            print(f"{name}: {words}")


def _three(numbers: tuple[int, int, int] | None) -> str:
    return ", ".join(map(str, numbers)) if numbers else ""


def _say_of_splits(title: str, words: Mapping[Split, str]) -> None:
    """What is said of each split, once for those of which the same is said."""
    alike: dict[str, list[str]] = {}
    for split, text in words.items():
        alike.setdefault(text, []).append(split)
    if said := [f"  {', '.join(names)}: {text}" for text, names in alike.items() if text]:
        print(f"\n{title}:", *said, sep="\n")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


# -- how it looks ---------------------------------------------------------------------------------------------------


def _draw(data: pl.LightningDataModule, datasets: Mapping[Split, Any], files: Mapping[Split, Path], looks: int) -> None:
    """Write the pictures, or say why there are none."""
    if isinstance(data, PointDataModule):
        if data.distribution.dimensions > 2:
            print(f"Points of {data.distribution.dimensions} coordinates are not drawn.")
            return
        pictures = {split: looking.cloud(data, datasets[split]) for split in files if split in datasets}
    else:
        height = getattr(data, "image_shape", (3, 256, 256))[1]
        training = looking.training_looks(data, datasets["train"], min(8, max(2, TALL // height)), looks)
        if not training[0][0].pictures:
            print("No picture is drawn: the data gives none of 1 or 3 channels.")
            return
        domains = getattr(data, "domains", None) or ()
        pictures = {"train": looking.grid(training, domains, epochs=True)}
        if "val" in datasets:
            others = looking.looks_at(data, datasets["val"], 4 * len(training))
            rows = [others[start : start + 4] for start in range(0, len(others), 4)]
            pictures["val"] = looking.grid(rows, domains)
    for split, picture in pictures.items():
        picture.save(files[split])
        print(f"{'Training' if split == 'train' else 'Validation'} pictures: {files[split]}", flush=True)


# -- how fast -------------------------------------------------------------------------------------------------------


def _rates(
    trainer: pl.Trainer, model: pl.LightningModule | None, data: pl.LightningDataModule, seconds: float, unit: str
) -> dict[str, Any]:
    """Say how fast pictures are loaded and taken, and which number of workers feeds the model, as plain data too."""
    can_choose = hasattr(data, "num_workers")
    loading: dict[int, float] = {}
    size = getattr(data, "batch_size", None)
    print(f"\nloading{f', batches of {size}' if size else ''}")
    for workers in rates.numbers_of_workers() if can_choose else [0]:
        loading[workers] = rates.loading_rate(data, workers if can_choose else None, seconds)
        how = _with(workers) if can_choose else "with its own loader"
        print(f"  {how:<19} {_number(loading[workers]):>9} {unit} a second", flush=True)
    facts: dict[str, Any] = {"loading": loading}
    if model is None:
        return facts
    training = rates.training_rate(trainer, model, data, seconds)
    device, name = trainer.strategy.root_device, type(model).__name__
    print(f"{name} takes {_number(training)} {unit} a second on {device} with precision {trainer.precision}.")
    facts |= {"training": training, "device": str(device), "precision": trainer.precision}
    together = rates.rates_together(loading, training, in_turns=device.type == "cpu")
    if device.type == "cpu":
        print("On a CPU loading and training take turns, which counts in what follows.")
    if not can_choose:
        print(f"Together: {_number(min(loading[0], training))} at most.")
        return facts
    facts |= {"together": together, "workers": (number := rates.feeding(together, training))}
    if number is not None:
        print(f"It is fed {_with(number)}: --data.num_workers {number}")
    else:
        best = max(together, key=lambda n: together[n])
        waits = f"{1 - together[best] / training:.0%}"
        print(f"None feeds it. {_with(best).capitalize()} it waits least: {waits} of the time.")
        print(_advice(data))
    return facts


def _advice(data: Any) -> str:
    """What to do where no number of workers feeds a model."""
    ways = []
    if getattr(data, "cache", True) in (None, False):
        ways.append("decode the pictures once, by --data.cache true")
    if getattr(data, "exact_decode", False):
        ways.append("decode only what the size asks for, by --data.exact_decode false")
    if isinstance(data, PictureDataModule):
        ways.append("keep the files smaller")
    ways.append("train where there are more cores")
    return f"{'; or '.join(ways).capitalize()}."


def _with(workers: int) -> str:
    return f"with {workers} worker{'s' if workers > 1 else ''}" if workers else "without workers"


def _number(rate: float) -> str:
    """Three digits are known of a rate."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
