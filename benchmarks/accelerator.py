"""A standing check for the day a GPU is at hand: what must hold on one, and how fast it is.

    python -m benchmarks.accelerator --minutes 8
    python -m benchmarks.accelerator --kinds train compiled --models CycleGAN SNGAN

In order of worth: the tests marked `gpu`; training steps in which no operation may wait for the device; pictures per
second and peak memory of every model in float32 and bfloat16; sampling by recorded CUDA graphs beside eager steps; the
rate of the Inception network; and the compiled steps, last because compiling takes longer than all else. Each item says
beforehand how long it takes. One for which too little is left is listed as not run, and a shorter one after it may be.

One table, accelerator.md, and one JSON are written anew after every item, so that nothing is lost if the machine is. On
a CPU the same runs with the small configurations, as far as a minute goes. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import itertools
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch

import lightning_gen
from benchmarks.contestants import ALONE
from benchmarks.inception_weights import random_inception_weights
from benchmarks.sampling import MODELS as SAMPLED
from benchmarks.sampling import generator
from benchmarks.shipped import batch_of, endless, model_of, settings_of
from benchmarks.train_step import device_name, forbid_sync, peak_memory
from benchmarks.turns import Clock, ratio, take_turns
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.networks import pixel_sampler as sampler
from lightning_gen.networks.stepping import call

ROOT = Path(__file__).parents[1]
SYNC_STEPS = 3

# The small configuration, which a CPU takes, and the paper's; models in order of worth. KDE has no training steps.
MODELS = {
    "CycleGAN": ("cyclegan", "paper/cyclegan_horse2zebra"),
    "SNGAN": ("sngan", "paper/sngan_cifar10"),
    "ProGAN": ("progan", "paper/progan_celebahq"),
    "StyleGAN": ("stylegan", "paper/stylegan_ffhq256"),
    "R3GAN": ("r3gan", "paper/r3gan_ffhq64"),
    "WGANGP": ("wgan_gp", "paper/wgan_gp_cifar10"),
    "DCGAN": ("dcgan", "paper/dcgan_celeba"),
    "PixelCNNPP": ("pixelcnn_pp", "paper/pixelcnn_pp_cifar10"),
    "GatedPixelCNN": ("gated_pixelcnn", "paper/gated_pixelcnn_mnist"),
    "Pix2Pix": ("pix2pix", "paper/pix2pix_facades"),
    "LMConv": ("lmconv", "paper/lmconv_mnist"),
    "PixelSNAIL": ("pixelsnail", "paper/pixelsnail_cifar10"),
    "DiagonalBiLSTM": ("diagonal_bilstm", "paper/diagonal_bilstm_mnist"),
    "PixelCNN": ("pixelcnn", "paper/pixelcnn_mnist"),
    "RowLSTM": ("row_lstm", "paper/row_lstm_mnist"),
    "LSGAN": ("lsgan", "paper/lsgan_celeba"),
    "WGAN": ("wgan", "paper/wgan_lsun"),
    "GAN": ("gan", "paper/gan_mnist"),
    "FGAN": ("fgan", "paper/fgan_mnist"),
    "VQGAN": ("vqgan", "paper/vqgan_imagefolder"),
    "VQVAE": ("vqvae", "paper/vqvae_cifar10"),
    "VAE": ("vae", "paper/vae_mnist"),
    "GumbelVAE": ("gumbel_vae", "paper/gumbel_vae_dalle"),
    "CodePrior": ("vqvae_prior", "paper/gpt_b_imagenet256"),
    "TextToImage": ("text_to_image", "text_to_image"),
    "VQVAE2": ("vqvae2", "paper/vqvae2_ffhq"),
    "Scorer": ("scorer", "scorer"),
    "Classifier": ("classifier", "classifier"),
}
KINDS = ("tests", "sync", "train", "sampling", "extractor", "compiled")

Figures = dict[str, float]
Measured = tuple[str, Figures]
"""What came out, in a few words, and the same as numbers by name; "peak_memory_mib" has a column of its own."""


class NotApplicable(Exception):
    """What an item checks does not exist on this machine; the message says what."""


@dataclass(frozen=True)
class Item:
    """Something to check or to measure.

    Args:
        kind: One of `KINDS`.
        what: What is looked at.
        setting: How it is run.
        estimate: Seconds that it takes, from start to end.
        measure: Does it; called with the seconds that are left.
    """

    kind: str
    what: str
    setting: str
    estimate: float
    measure: Callable[[float], Measured]


@dataclass
class Row:
    """A line of the table: what became of an item.

    Attributes:
        item: Which.
        status: "not run", "done", "failed" or "not applicable".
        result: What came out, or why nothing did.
        figures: The same as numbers.
        seconds: That it took.
        error: The traceback of what failed.
    """

    item: Item
    status: str = "not run"
    result: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """For the JSON."""
        item = {name: getattr(self.item, name) for name in ("kind", "what", "setting", "estimate")}
        own = {name: getattr(self, name) for name in ("status", "result", "figures", "seconds", "error")}
        return item | own


@dataclass(frozen=True)
class Place:
    """Where things run, and how long.

    Args:
        device: On which.
        small: Whether models are those of the small configurations.
        seconds: That training is timed for.
    """

    device: torch.device
    small: bool
    seconds: float

    @property
    def has_gpu(self) -> bool:
        """Whether it is one."""
        return self.device.type == "cuda"


def on_gpu(measure: Callable[[float], Measured], place: Place, left: float) -> Measured:
    """Measure what there is on a GPU alone."""
    if not place.has_gpu:
        raise NotApplicable("needs CUDA")
    return measure(left)


# -- what is measured -------------------------------------------------------------------------------------------------


def gpu_tests(folder: Path, left: float) -> Measured:
    """Run the tests marked `gpu`, in a process of its own that ends when nothing is left."""
    files = sorted(path for path in folder.rglob("test_*.py") if "pytest.mark.gpu" in path.read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"The tests did not end within {left:.0f} s.") from error
    summary = (ended.stdout.strip().splitlines() or [""])[-1].strip("= ")
    if ended.returncode:
        raise RuntimeError(f"{summary or f'pytest ended with {ended.returncode}'}\n{ended.stdout}{ended.stderr}")
    return summary, {"files": len(files)}


class Stopwatch(pl.Callback):
    """Ends training some seconds after its first generator updates, and counts real pictures and memory until then.

    The first updates, in which gradients and the states of optimizers are made, libraries choose their kernels and
    networks compile, do not count.

    Args:
        seconds: To measure.
        first: Generator updates that do not count.
    """

    def __init__(self, seconds: float, first: int = ALONE) -> None:
        self.seconds, self.first = seconds, first
        self.start: float | None = None
        self.images, self.steps, self.took, self.memory = 0, 0, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start after the first updates, end after the last."""
        device = pl_module.device
        if self.start is None:
            if trainer.global_step >= self.first:
                finish(device)
                self.images, self.steps = pl_module.images_seen, trainer.global_step  # type: ignore[arg-type]
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                self.start = time.perf_counter()
        elif time.perf_counter() - self.start >= self.seconds and trainer.global_step > self.steps:
            finish(device)
            self.took = time.perf_counter() - self.start
            self.images = pl_module.images_seen - self.images  # type: ignore[arg-type]
            self.steps = trainer.global_step - self.steps
            self.memory = peak_memory(device)
            trainer.should_stop = True


def finish(device: torch.device) -> None:
    """Wait for all work that the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fit(model: pl.LightningModule, batch_size: int, precision: str, callback: pl.Callback, place: Place) -> None:
    """Train on one batch again and again, until the callback ends it."""
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_steps=10**6,  # schedules want to know
        precision=precision,  # type: ignore[arg-type]
        accelerator=place.device.type,
        devices=1,
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, endless(batch_of(model, batch_size), place.device))


def training(name: str, precision: str, compiled: bool, place: Place, left: float) -> Measured:
    """Real pictures per second, and the most memory that was allocated meanwhile."""
    settings = settings_of(name)
    model = model_of(settings, **({"compile": True} if compiled else {}))
    batch_size = settings["data"]["init_args"].get("batch_size", 1)
    stopwatch = Stopwatch(min(place.seconds, left))
    fit(model, batch_size, precision, stopwatch, place)
    rate, step = stopwatch.images / stopwatch.took, 1e3 * stopwatch.took / stopwatch.steps
    figures = {"images_per_second": rate, "ms_per_step": step, "batch_size": float(batch_size)}
    if place.has_gpu:  # of the process on a CPU, and then of all items before
        figures["peak_memory_mib"] = stopwatch.memory
    return f"{rate:.4g} images/s, {step:.3g} ms a step", figures


class After(pl.Callback):
    """Ends training after so many generator updates."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """If it was the last."""
        trainer.should_stop = trainer.global_step >= self.steps


def synchronisation(name: str, precision: str, place: Place, left: float) -> Measured:
    """Steps under `torch.cuda.set_sync_debug_mode("error")`, once all that is made at first use is there."""
    settings = settings_of(name)
    model = model_of(settings)
    forbid_sync(model)
    fit(model, settings["data"]["init_args"].get("batch_size", 1), precision, After(ALONE + SYNC_STEPS), place)
    return f"no wait in {SYNC_STEPS} steps", {"steps": SYNC_STEPS}


@contextmanager
def eager_steps() -> Iterator[None]:
    """Pieces of cached steps are called and not recorded."""
    runner = sampler._runner
    sampler._runner = lambda device, compile: call
    try:
        yield
    finally:
        sampler._runner = runner


def drawing(name: str, side: int | None, batch: int | None, place: Place, left: float) -> Measured:
    """Cached sampling as it is by default, by graphs on CUDA, beside eager steps; both must draw the same pictures."""
    entry = SAMPLED[name]
    side, batch = side or entry.sides[-1], batch or entry.batches[-1]
    model = entry.make(side, place.device)

    def eager() -> torch.Tensor:
        with eager_steps():
            return model.sample(batch, generator=generator())

    def by_default() -> torch.Tensor:
        return model.sample(batch, generator=generator())

    differ = int((by_default() != eager()).any(1).sum())
    if differ:
        raise RuntimeError(f"{differ} of {batch * side**2} pixels differ between graphs and eager steps.")
    seconds = take_turns({"graphs": by_default, "eager": eager}, 1, Clock(place.device, torch.get_num_threads()))
    graphs, slow = (1e3 * median(seconds[way]) / side**2 for way in ("graphs", "eager"))
    factor = ratio(seconds, "eager", "graphs")
    figures = {"graphs_ms_per_pixel": graphs, "eager_ms_per_pixel": slow, "eager_over_graphs": factor}
    return f"{graphs:.3g} ms a pixel, eager {slow:.3g}: {factor:.2f} times", figures


def extracting(precision: Any, batch: int, place: Place, left: float) -> Measured:
    """Pictures of 32 x 32 to Inception's features, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        random_inception_weights(weights)
        network = InceptionFeatures(weights=weights, precision=precision).to(place.device)
    pictures = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, device=place.device)
    contestant = {"network": partial(network, pictures)}
    clock = Clock(place.device, torch.get_num_threads())
    take_turns(contestant, 1, clock)
    rate = batch / median(take_turns(contestant, 5 if place.has_gpu else 1, clock)["network"])
    return f"{rate:.4g} pictures/s", {"pictures_per_second": rate}


# -- the list of items ------------------------------------------------------------------------------------------------


def items(kinds: Sequence[str], models: Sequence[str], place: Place) -> Iterator[Item]:
    """All that is asked for, in order of worth."""

    def seconds(gpu: float, cpu: float) -> float:
        return gpu if place.has_gpu else cpu

    names = {model: MODELS[model][0 if place.small else 1] for model in models}
    if "tests" in kinds:
        yield Item(
            "tests", "pytest -m gpu", "", seconds(60, 0), partial(on_gpu, partial(gpu_tests, ROOT / "tests"), place)
        )
    if "sync" in kinds:
        for name in names.values():
            measure = partial(synchronisation, name, "bf16-mixed", place)
            yield Item("sync", name, "bf16-mixed", seconds(5, 0), partial(on_gpu, measure, place))
    if "train" in kinds:
        for name, precision in itertools.product(names.values(), ("bf16-mixed", "32-true")):
            measure = partial(training, name, precision, False, place)
            yield Item("train", name, precision, place.seconds + seconds(3, 1), measure)
    if "sampling" in kinds:
        for model in SAMPLED:
            if model.partition("-")[0] in models:
                sizes = (8, 2) if place.small else (None, None)
                measure = partial(drawing, model, *sizes, place)
                size = "8 x 8" if place.small else f"{SAMPLED[model].sides[-1]} x {SAMPLED[model].sides[-1]}"
                yield Item("sampling", model, size, seconds(20, 2), measure)
    if "extractor" in kinds:
        for precision in ("float32", "bfloat16"):
            batch = 256 if place.has_gpu else 4
            measure = partial(extracting, precision, batch, place)
            yield Item("extractor", "Inception, random weights", precision, seconds(10, 8), measure)
    if "compiled" in kinds:
        for name in filter(compiles, names.values()):
            measure = partial(training, name, "bf16-mixed", True, place)
            yield Item("compiled", name, "bf16-mixed, compiled", place.seconds + 60, measure)


def compiles(name: str) -> bool:
    """Whether the model of a configuration can be compiled."""
    cls = getattr(lightning_gen.models, settings_of(name)["model"]["class_path"])
    return any("compile" in inspect.signature(each.__init__).parameters for each in cls.__mro__ if each is not object)


# -- running them -----------------------------------------------------------------------------------------------------


def run(
    todo: Sequence[Item],
    seconds: float,
    report: Callable[[Sequence[Row]], None],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Do what the time allows, one after the other.

    Args:
        todo: The items.
        seconds: For all of them.
        report: Called with all rows at the beginning, and after each item that was tried.
        clock: Tells the time, in seconds.

    Returns:
        A row for each item.
    """
    begin = clock()
    rows = [Row(item, result=f"needs {item.estimate:.0f} s") for item in todo]
    report(rows)
    for row in rows:
        left = seconds - (clock() - begin)
        if row.item.estimate > left:
            continue
        start = clock()
        try:
            row.result, row.figures = row.item.measure(left)
            row.status = "done"
        except NotApplicable as reason:
            row.status, row.result = "not applicable", str(reason)
        except Exception as error:  # whatever it is, the others still have their turn
            row.status, row.error = "failed", traceback.format_exc()
            row.result = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{_where(error)}"
        row.seconds = clock() - start
        free_memory()
        report(rows)
    return rows


def _where(error: BaseException) -> str:
    """The last line of this project's own code that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "lightning_gen" in frame.filename]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def free_memory() -> None:
    """What the last item has left, so that the next one's peak is its own."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# -- what is written --------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """What all figures depend on."""
    found: dict[str, Any] = {
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": pl.__version__,
        "lightning_gen": lightning_gen.__version__,
        "float32_products": torch.get_float32_matmul_precision(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    return found


def table(rows: Sequence[Row], on: dict[str, Any]) -> str:
    """The rows in Markdown, under a line about the machine."""
    lines = [
        f"{on['device']}, " + ", ".join(f"{name} {value}" for name, value in on.items() if name != "device"),
        "",
        "| | what | how | | result | peak MiB | took, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        memory = row.figures.get("peak_memory_mib")
        cells = [
            row.item.kind, row.item.what, row.item.setting, "" if row.status == "done" else row.status,
            row.result.replace("|", "\\|"), "" if memory is None else f"{memory:.0f}",
            f"{row.seconds:.1f}" if row.status in ("done", "failed") else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@dataclass
class Report:
    """Writes the table and the JSON, and prints each row once it is there.

    Args:
        folder: Where to.
        on: The machine.
    """

    folder: Path
    on: dict[str, Any]
    printed: int = 0

    def __call__(self, rows: Sequence[Row]) -> None:
        """Write all anew."""
        tried = [row for row in rows if row.status != "not run"]
        for row in tried[self.printed :]:
            done = "" if row.status == "done" else f"{row.status}: "
            print(f"{row.item.kind:10}{row.item.what:30}{row.item.setting:22}{done}{row.result}", flush=True)
        self.printed = len(tried)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "accelerator.md").write_text(table(rows, self.on))
        content = {"machine": self.on, "rows": [row.record for row in rows]}
        (self.folder / "accelerator.json").write_text(json.dumps(content, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="for all of it (default: 8 on a GPU, 1 on a CPU)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/accelerator"), metavar="FOLDER", help="for both files"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of items")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="to look at")
    parser.add_argument("--small", action="store_true", help="the small configurations, as on a CPU")
    given = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    minutes = given.minutes if given.minutes is not None else (8.0 if has_gpu else 1.0)
    if minutes <= 0:
        parser.error(f"--minutes must be above 0, got {minutes}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="jsonargparse")
    # What earlier runs have compiled would make compiling look short.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        device = torch.device("cuda" if has_gpu else "cpu")
        place = Place(device, small=given.small or not has_gpu, seconds=2.0 if has_gpu else 0.2)
        on = machine(device)
        print(", ".join(f"{name} {value}" for name, value in on.items()), flush=True)
        rows = run(list(items(given.kinds, given.models, place)), 60 * minutes, Report(given.output, on))
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "failed", "not run")}
    print(f"{', '.join(f'{number} {status}' for status, number in counts.items())}: {given.output / 'accelerator.md'}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
