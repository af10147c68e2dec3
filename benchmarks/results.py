"""A row of README's tables: trains a shipped recipe for some minutes, and measures it by the README's protocol.

    python -m benchmarks.results paper/gated_pixelcnn_mnist --minutes 3 --data-root data
    python -m benchmarks.results paper/wgan_gp_mnist paper/sngan_mnist --minutes 3 --data-root data

A short trial finds how many steps the minutes hold, so that schedules which go by the length of the run end with it.
The rate of autoregressive models falls to a hundredth within these steps, and their weights are averaged over the last
twentieth of them; all else is as the configuration has it. Nothing is validated meanwhile. Options of `fit` may follow
after `--`. Nothing passes or fails.

| model | measured by |
| --- | --- |
| draws pictures from noise | `evaluate`: 10,000 samples against training pictures, three seeds; floor: test pictures |
| has a likelihood | `test`: nats and bits per dim of the test pictures |
| translates | `test`: PSNR of the test pairs; floor: the colour mapping |
| toys | `test` |
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml  # type: ignore[import-untyped]

import lightning_gen.models
from benchmarks.shipped import image_shape, settings_of
from benchmarks.train_step import device_name
from lightning_gen.evaluation.sources import EVALUATIONS
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.models.gan import GAN
from lightning_gen.models.weight_normalized import WeightNormalizedModule
from lightning_gen.runs.layout import HISTORY, LAST, RESULTS

SAMPLES = 10_000
SEEDS = [0, 1, 2]
SHOWN = ("fid", "is", "precision", "recall", "coverage")  # of a model that draws pictures from noise
OF_POINTS = ("modes", "high_quality", "wasserstein_1")  # of one that draws points

# Of papers, after days: nats of MNIST in black and white (the published file), bits per dim and scores of CIFAR-10.
PUBLISHED = {
    "paper/pixelcnn_mnist": "81.3 nats",
    "paper/row_lstm_mnist": "80.5 nats",
    "paper/diagonal_bilstm_mnist": "79.2 nats",
    "paper/gated_pixelcnn_mnist": "81.5 nats (by others)",
    "paper/lmconv_mnist": "77.6 nats",
    "paper/pixelcnn_cifar10": "3.14 bits",
    "paper/row_lstm_cifar10": "3.07 bits",
    "paper/diagonal_bilstm_cifar10": "3.00 bits",
    "paper/gated_pixelcnn_cifar10": "3.03 bits",
    "paper/pixelcnn_pp_cifar10": "2.92 bits",
    "paper/pixelsnail_cifar10": "2.85 bits",
    "paper/lmconv_cifar10": "2.89 bits",
    "paper/sngan_cifar10": "fid 21.7, is 8.22",
    "paper/wgan_gp_cifar10": "is 7.86",
}

Command = Callable[[Sequence[str]], None]
"""Runs `lightning-gen` with these arguments; an exception unless it works."""


class Figure(NamedTuple):
    """A number with its name.

    Attributes:
        value: The mean over the seeds.
        std: Over the seeds; None of one.
        floor: What it is to be compared with; None where there is nothing.
    """

    value: float
    std: float | None = None
    floor: float | None = None

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.2g}"
        return f"{self.value:.4g}{spread}" + ("" if self.floor is None else f" (floor {self.floor:.4g})")


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: Of the configuration, and what was changed.
        minutes: Of training.
        steps: That they held.
        images: Real pictures shown.
        figures: By name.
        published: What the paper has; empty where it is not known here.
    """

    name: str
    minutes: float
    steps: int
    images: int
    figures: dict[str, Figure]
    published: str

    def table(self) -> str:
        """In Markdown, with a head."""
        head = ["", "minutes", "steps", "real pictures shown", *(f"`{name}`" for name in self.figures), "published"]
        cells = [f"`{self.name}`", f"{self.minutes:.1f}", f"{self.steps:,}", f"{self.images:,}"]
        cells += [*map(str, self.figures.values()), self.published]
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), cells)).replace(
            "|  |", "| |"
        )


def lightning_gen_command(arguments: Sequence[str]) -> None:
    """In a process of its own."""
    subprocess.run([sys.executable, "-m", "lightning_gen", *arguments], check=True)


# -- training ---------------------------------------------------------------------------------------------------------


def class_of(settings: dict[str, Any]) -> type:
    """The model's."""
    cls: type = getattr(lightning_gen.models, settings["model"]["class_path"])
    return cls


def undisturbed(settings: dict[str, Any], root: Path) -> dict[str, Any]:
    """A configuration that trains and does nothing else."""
    settings = deepcopy(settings)
    settings["trainer"] |= {
        "max_epochs": None,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(root),
    }
    settings["test_after_fit"] = False
    return settings


def for_steps(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """A configuration whose schedules end with so many steps."""
    settings, cls = deepcopy(settings), class_of(settings)
    settings["trainer"]["max_steps"] = steps
    settings["pictures"] = {"every_n_steps": steps}
    settings["checkpoint"] = {"every_n_steps": steps}
    if issubclass(cls, AutoregressiveModule):
        settings["model"].setdefault("init_args", {})["lr_decay"] = 0.01 ** (1 / steps)
        callbacks = settings["trainer"].setdefault("callbacks", [])
        averages = any(callback["class_path"] == "EMA" for callback in callbacks)
        if not averages and not issubclass(cls, WeightNormalizedModule):  # which average by themselves
            decay = max(0.0, 1 - 20 / steps)
            callbacks.append({"class_path": "EMA", "init_args": {"modules": ["network"], "decay": decay}})
    return settings


def fit(settings: dict[str, Any], folder: Path, options: Sequence[str], command: Command) -> Path:
    """Train; the folder of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "recipe.yaml"
    config.write_text(yaml.safe_dump(undisturbed(settings, folder)))
    command(["fit", "--config", str(config), *options])
    return max(folder.rglob(LAST), key=lambda path: path.stat().st_mtime).parents[1]


def history_of(run: Path) -> list[dict[str, float]]:
    """What was recorded of a run in training."""
    lines = map(json.loads, (run / HISTORY).read_text().splitlines())
    return [line for line in lines if any(name.startswith("train/") for name in line)]


def steps_in(seconds: float, history: Sequence[dict[str, float]]) -> int:
    """How many steps the later half of a trial says that these seconds hold."""
    if len(history) < 2:
        raise ValueError("The trial was too short for two steps. Give it more minutes.")
    middle, last = history[(len(history) - 1) // 2], history[-1]
    return max(1, round(seconds * (last["step"] - middle["step"]) / (last["seconds"] - middle["seconds"])))


# -- measuring --------------------------------------------------------------------------------------------------------


def figures_of_samples(run: Path, samples: int, command: Command) -> dict[str, Figure]:
    """The figures of samples, with those of the test pictures as the floor."""
    arguments = ["--num_samples", str(samples), "--seeds", json.dumps(SEEDS), "--floor", "true"]
    command(["evaluate", "--checkpoint", str(run / "checkpoints" / LAST), *arguments])
    entry = json.loads((run / EVALUATIONS).read_text())["evaluations"][-1]
    floor = entry.get("floor", {})
    return {
        name: Figure(_number(figure["value"]), figure.get("std"), floor.get(name, {}).get("value"))
        for name, figure in entry["figures"].items()
        if name.partition("-")[0] in SHOWN
    }


def _number(value: float | None) -> float:
    """JSON has no NaN."""
    return math.nan if value is None else value


def figures_of_test(run: Path, command: Command) -> dict[str, Figure]:
    """The figures of the test pictures or points, with those of the colour mapping as the floor."""
    command(["test", "--ckpt_path", str(run / "checkpoints" / LAST)])
    found = {
        name.removeprefix("test/"): value for name, value in json.loads((run / RESULTS).read_text())["metrics"].items()
    }
    mapped = "color_mapping_"
    shown = set(found) & set(OF_POINTS) or {name for name in found if not name.startswith(mapped)}
    return {
        name: Figure(_number(value), floor=found.get(f"{mapped}{name}"))
        for name, value in found.items()
        if name in shown
    }


def result(
    name: str,
    minutes: float,
    output: Path,
    *,
    data_root: str | None = None,
    options: Sequence[str] = (),
    samples: int = SAMPLES,
    command: Command = lightning_gen_command,
) -> Row:
    """Train and measure one recipe.

    Args:
        name: Of a shipped configuration.
        minutes: Of training, the trial not counted.
        output: Folder for both runs.
        data_root: Where the data lies.
        options: Of `fit`, after those of the configuration.
        samples: Of a model that draws from noise.
        command: Runs `lightning-gen`.
    """
    settings, folder = settings_of(name), output / name
    seconds = 60 * minutes
    trial = deepcopy(settings)
    trial["trainer"] |= {
        "max_steps": 10**6,
        "max_time": {"seconds": round(min(30, max(1, seconds / 4)))},
        "log_every_n_steps": 1,
    }
    given = [*(["--data.root", data_root] if data_root else []), *options]
    steps = steps_in(seconds, history_of(fit(trial, folder / "trial", given, command)))
    run = fit(for_steps(settings, steps), folder, given, command)
    last = history_of(run)[-1]
    draws = issubclass(class_of(settings), GAN) and image_shape(settings["data"])[1:] != (1, 1)
    figures = figures_of_samples(run, samples, command) if draws else figures_of_test(run, command)
    return Row(
        " ".join([name, *options]), last["seconds"] / 60, steps, round(last["images_seen"]), figures,
        PUBLISHED.get(name, ""),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None, command: Command = lightning_gen_command) -> None:
    """Train, measure, print rows and write each beside its runs."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="shipped configurations, such as paper/sngan_mnist")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, for each")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data lies, or is downloaded to")
    parser.add_argument("--output", type=Path, default=Path("runs/results"), metavar="FOLDER", help="for the runs")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of models that draw from noise")
    given = parser.parse_args(arguments[:place])
    if given.minutes <= 0 or given.samples < 1:
        parser.error(f"--minutes must be above 0 and --samples 1 or more, got {given.minutes} and {given.samples}")
    for name in given.names:
        if class_of(settings_of(name)) is lightning_gen.models.KDE:
            parser.error(f"{name} is not trained in steps; python -m benchmarks.digits measures it")
    for name in given.names:
        begin = time.perf_counter()
        row = result(
            name,
            given.minutes,
            given.output,
            data_root=given.data_root,
            options=arguments[place + 1 :],
            samples=given.samples,
            command=command,
        )
        device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        print(f"\n{device}, PyTorch {torch.__version__}, {(time.perf_counter() - begin) / 60:.1f} minutes in all\n")
        print(row.table())
        record = row._asdict() | {"figures": {key: figure._asdict() for key, figure in row.figures.items()}}
        content = {"device": device, "torch": torch.__version__, "row": record}
        (given.output / name / "row.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
