"""StyleGAN on a GPU: pictures per second and peak memory by size, and how long the paper's 25 million would take.

    python -m benchmarks.growing_accelerator              # eight minutes; a minute, in small, on a CPU
    python -m benchmarks.growing_accelerator --sides 256 --minutes 3

For each size, in full size from the start, with the paper's networks, batches and R1 in every update: training steps in
which no operation may wait for the device, then a run in bf16-mixed, in 32-true, and compiled, beside what others have
published. Items, table and JSON are those of `benchmarks.accelerator`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.accelerator import (
    SYNC_STEPS,
    After,
    Item,
    Measured,
    Place,
    Report,
    Stopwatch,
    fit,
    machine,
    on_gpu,
    run,
)
from benchmarks.contestants import ALONE
from benchmarks.shipped import model_of, settings_of
from benchmarks.train_step import forbid_sync
from lightning_gen.generative import GenerativeModule

BATCHES = {64: 32, 128: 16, 256: 8}  # of the authors' code on one GPU
SMALL_BATCH = 4
KIMG = 25_000
# Seconds a thousand pictures on one V100. StyleGAN's own is of the whole run, growing included.
PUBLISHED = {
    128: "StyleGAN2-ADA in float16 12.8 to 13.7",
    256: "StyleGAN with growing 51.6, StyleGAN2-ADA in float16 21.6 to 24.2",
}


def model_at(side: int, compiled: bool, place: Place) -> GenerativeModule:
    """The paper's StyleGAN, or the small one, in full size from the start."""
    settings = settings_of("stylegan" if place.small else "paper/stylegan_ffhq256")
    return model_of(settings, image_shape=(3, side, side), growing=None, compile=compiled)


def batch_at(side: int, place: Place) -> int:
    """The paper's, of a size that it has."""
    return SMALL_BATCH if place.small else BATCHES.get(side, min(BATCHES.values()))


def training(side: int, precision: str, compiled: bool, place: Place, left: float) -> Measured:
    """Real pictures per second, the most memory that was allocated meanwhile, and the hours that follow."""
    stopwatch = Stopwatch(min(place.seconds, left))
    fit(model_at(side, compiled, place), batch_at(side, place), precision, stopwatch, place)
    rate = stopwatch.images / stopwatch.took
    figures = {"images_per_second": rate, "seconds_per_kimg": 1000 / rate, "hours": KIMG * 1000 / rate / 3600}
    if place.has_gpu:  # of the process on a CPU, and then of all items before
        figures["peak_memory_mib"] = stopwatch.memory
    text = f"{rate:.4g} images/s, {1000 / rate:.3g} s/kimg, {figures['hours']:.4g} h to {KIMG:,} kimg"
    return text + (f"; published: {PUBLISHED[side]}" if side in PUBLISHED else ""), figures


def synchronisation(side: int, place: Place, left: float) -> Measured:
    """Steps under `torch.cuda.set_sync_debug_mode("error")`, once all that is made at first use is there."""
    model = model_at(side, False, place)
    forbid_sync(model)
    fit(model, batch_at(side, place), "bf16-mixed", After(ALONE + SYNC_STEPS), place)
    return f"no wait in {SYNC_STEPS} steps", {"steps": SYNC_STEPS}


def items(sides: Sequence[int], place: Place) -> Iterator[Item]:
    """In order of worth, compiling last."""
    extra = 15.0 if place.has_gpu else 1.0
    for side in sides:
        wait = partial(on_gpu, partial(synchronisation, side, place), place)
        yield Item("sync", f"{side} px", "bf16-mixed", extra if place.has_gpu else 0.0, wait)
    for side in sides:
        for precision in ("bf16-mixed", "32-true"):
            measure = partial(training, side, precision, False, place)
            yield Item("train", f"{side} px", precision, place.seconds + extra, measure)
    for side in sides:
        measure = partial(training, side, "bf16-mixed", True, place)
        yield Item("compiled", f"{side} px", "bf16-mixed, compiled", place.seconds + 60, measure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growing_accelerator", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="for all of it (default: 8 on a GPU, 1 on a CPU)")
    parser.add_argument("--output", type=Path, default=Path("runs/growing_accelerator"), help="folder for both files")
    parser.add_argument("--sides", nargs="+", type=int, default=list(BATCHES), help="of the pictures")
    given = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    minutes = given.minutes if given.minutes is not None else (8.0 if has_gpu else 1.0)
    if minutes <= 0 or min(given.sides) < 8:
        parser.error(f"--minutes must be above 0 and --sides 8 or more, got {minutes} and {given.sides}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for module in ("lightning", "jsonargparse"):
        warnings.filterwarnings("ignore", module=module)
    device = torch.device("cuda" if has_gpu else "cpu")
    place = Place(device, small=not has_gpu, seconds=5.0 if has_gpu else 0.2)
    rows = run(list(items(given.sides, place)), 60 * minutes, Report(given.output, machine(device)))
    return int(any(row.status == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
