"""Bits per dim of every model with a likelihood on the same 164 test digits, in one table.

    python -m benchmarks.digits --output runs/digits

Trains the shipped configurations, one after the other, without labels: about a quarter of an hour on two CPU cores.
Independent pixels are histograms of the 17 levels, one a pixel, over the training digits, with 1/17 of a digit added to
each level. Nothing passes or fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from lightning_gen.data import Digits
from lightning_gen.data.base import examples_of
from lightning_gen.losses import images_to_levels

LEVELS = 17
CONFIGS = ["kde", "row_lstm", "diagonal_bilstm", "pixelcnn", "gated_pixelcnn", "pixelcnn_pp", "pixelsnail", "lmconv"]
OPTIONS = {"gated_pixelcnn": ["--model.num_classes", "null"]}


def levels(split: str) -> torch.Tensor:
    """Of all pictures of a split, int64 `[N, 64]`."""
    data = Digits(batch_size=1)
    pictures = examples_of({"train": data.train_set, "test": data.test_set}[split]())
    images = torch.stack([pictures[number]["image"] for number in range(len(pictures))])  # type: ignore[arg-type]
    return images_to_levels(images, LEVELS).flatten(1)


def independent_pixels(train: torch.Tensor, test: torch.Tensor) -> float:
    """Bits per dim of the test pictures under a histogram of each pixel."""
    counts = torch.nn.functional.one_hot(train, LEVELS).sum(0).double() + 1 / LEVELS
    log_p = (counts / counts.sum(1, keepdim=True)).log()
    return -log_p[torch.arange(train.shape[1]), test].mean().item() / math.log(2)


def trained(config: str, output: Path) -> dict[str, float]:
    """Train one configuration in a process of its own; its test figures, and the seconds it took."""
    folder = output / config
    begin = time.perf_counter()
    command = [sys.executable, "-m", "lightning_gen", "fit", "--config", config]
    command += ["--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as log:
        subprocess.run([*command, *OPTIONS.get(config, [])], check=True, stdout=log, stderr=log, env=os.environ)
    seconds = time.perf_counter() - begin
    newest = max(folder.rglob("results.json"), key=lambda path: path.stat().st_mtime)
    figures: dict[str, float] = json.loads(newest.read_text())["metrics"]
    return {"bits": figures["test/bpd-17level"], "nats": figures["test/nll"], "seconds": seconds}


def main() -> None:
    """Train, print, and write digits.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/digits"), help="where runs and the table go")
    parser.add_argument("--configs", nargs="+", default=CONFIGS, choices=CONFIGS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    bits = independent_pixels(levels("train"), levels("test"))
    rows = [("independent pixels", bits, bits * 64 * math.log(2), 0.0)]
    print(f"{'':20}{'bits per dim':>14}{'nats':>10}{'seconds':>10}")
    for name in ["", *options.configs]:
        if name:
            figures = trained(name, options.output)
            rows.append((name, figures["bits"], figures["nats"], figures["seconds"]))
        print(f"{rows[-1][0]:20}{rows[-1][1]:14.3f}{rows[-1][2]:10.2f}{rows[-1][3]:10.0f}", flush=True)
    with (options.output / "digits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "bits per dim", "nats", "seconds"])
        writer.writerows((name, f"{b:.4f}", f"{n:.3f}", f"{s:.0f}") for name, b, n, s in rows)


if __name__ == "__main__":
    main()
