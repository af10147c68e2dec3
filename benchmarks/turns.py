"""Contestants that take turns on a machine which may be shared, and what they have in common on the command line."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.train_step import device_name


@dataclass(frozen=True)
class Clock:
    """CPU time of one CPU thread; wall time of an accelerator, after all work that it was given, or of more threads.

    Args:
        device: Where contestants run.
        threads: Of the CPU.
    """

    device: torch.device
    threads: int

    @property
    def name(self) -> str:
        """Which of both it is."""
        return "CPU" if self.device.type == "cpu" and self.threads == 1 else "wall"

    def seconds(self, contestant: Callable[[], Any]) -> float:
        """What one call takes."""
        start = self._now()
        contestant()
        return self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.name == "CPU" else time.perf_counter()


Seconds = dict[str, list[float]]
"""Of each contestant, in each turn."""


def take_turns(contestants: Mapping[str, Callable[[], Any]], turns: int, clock: Clock) -> Seconds:
    """Let every contestant do its work once a turn, so that a busy machine slows all alike."""
    seconds: Seconds = {name: [] for name in contestants}
    for _ in range(turns):
        for name, contestant in contestants.items():
            seconds[name].append(clock.seconds(contestant))
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """How many times as long one takes as another: the median of the ratios within a turn."""
    return median(x / y for x, y in zip(seconds[slow], seconds[fast], strict=True))


def add_arguments(parser: argparse.ArgumentParser, turns: int) -> None:
    """What all of these benchmarks take."""
    parser.add_argument("--turns", type=int, default=turns, help="how often each contestant is timed")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")


def begin(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Clock:
    """Look at the arguments, set the threads and the seed, and say what all is measured on."""
    if given.turns < 1 or given.threads < 1:
        parser.error(f"--turns and --threads must be 1 or more, got {given.turns} and {given.threads}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch can use")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    clock = Clock(torch.device(given.device), given.threads)
    print(
        f"{device_name(clock.device)}, CPU threads: {given.threads}, PyTorch {torch.__version__}; "
        f"{clock.name} time, medians of {given.turns} turns",
        flush=True,
    )
    return clock


def write(file: Path | None, clock: Clock, figures: Any) -> None:
    """All figures as JSON, if there is a file."""
    if file is not None:
        machine = {
            "device": device_name(clock.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": clock.threads,
            "clock": clock.name,
        }
        file.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")
