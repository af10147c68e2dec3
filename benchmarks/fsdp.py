"""Training by shares (`--trainer.strategy fsdp`) beside training by copies (`ddp`): results, memory and time.

    python -m benchmarks.fsdp --devices 2                       # of GPUs: LlamaGen-B, then a small one
    python -m benchmarks.fsdp --devices 8 --sizes B --precision bf16-mixed --pictures 32
    python -m benchmarks.fsdp --devices 2 --accelerator cpu --sizes tiny --side 4

Both train the same `CodePrior` on the same random codes, with the same noise, each in processes of its own. Then its
checkpoint is loaded as any other, in one process. In float32 the weights of both must be the same but for rounding: it
ends with an error if they are further apart than a hundredth of what training has moved. All else is shown, by rank:

* held: gradients and optimizer states, of AdamW 12 bytes a parameter; of shares on W devices 12 / W.
* peak: of GPU memory that was allocated, weights and activations included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from benchmarks.gpt import SIZES, prior_of
from benchmarks.train_step import device_name
from lightning_gen.commands.trainer import Trainer
from lightning_gen.generative import GenerativeModule

STRATEGIES = ("ddp", "fsdp")
MIB = 2**20
APART = 0.01  # how far results in float32 may be, of what training has moved


class RandomCodes(pl.LightningDataModule):
    """As many batches as there are steps, other ones for each rank.

    Args:
        steps: Batches.
        pictures: Of a batch.
        side: Codes are side x side.
        number: Codes are below it.
    """

    def __init__(self, steps: int, pictures: int, side: int, number: int) -> None:
        super().__init__()
        self.steps, self.shape, self.number = steps, (pictures, side, side), number

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches `{"codes": [int64 [N, side, side]], "label": int64 [N]}`."""
        assert self.trainer is not None
        noise = torch.Generator().manual_seed(self.trainer.global_rank)

        def batch() -> dict[str, Any]:
            codes = torch.randint(self.number, self.shape, generator=noise)
            return {"codes": [codes], "label": torch.arange(len(codes)) % 1000}

        return DataLoader([batch() for _ in range(self.steps)], batch_size=None)  # type: ignore[arg-type]


@dataclass
class Found(pl.Callback):
    """What a rank holds, and how long its steps take.

    Args:
        held: Bytes of gradients and optimizer states.
        peak: Bytes of GPU memory, or None.
        seconds: Of each step but the first two.
    """

    held: int = 0
    peak: int | None = None
    seconds: list[float] = field(default_factory=list)

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin to count."""
        self._began = time.perf_counter()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """See what is there when all of it is."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states = [value for state in optimizer.state.values() for value in state.values()]
        self.held = _bytes([parameter.grad for parameter in parameters]) + _bytes(states)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Count."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        if trainer.global_step > 2:
            self.seconds.append(time.perf_counter() - self._began)


def _bytes(values: Iterable[Any]) -> int:
    here = (value.to_local() if isinstance(value, DTensor) else value for value in values)
    return sum(value.nbytes for value in here if isinstance(value, Tensor))


def train(given: argparse.Namespace) -> None:
    """What each process of a strategy does: training, a checkpoint, and a file of what was found."""
    (size,) = given.sizes
    warnings.filterwarnings("ignore", module="lightning")
    found = Found()
    trainer = Trainer(
        strategy=given.strategy, devices=given.devices, accelerator=given.accelerator, precision=given.precision,
        max_steps=given.steps, gradient_clip_val=1.0, callbacks=[found], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
    )  # fmt: skip
    pl.seed_everything(0, verbose=False)
    codes = RandomCodes(given.steps, given.pictures, given.side, SIZES[size][1])
    trainer.fit(prior_of(size, given.side, dropout=0.0), datamodule=codes)
    trainer.save_checkpoint(given.folder / f"{given.strategy}.ckpt")
    (given.folder / f"{given.strategy}.{trainer.global_rank}.json").write_text(json.dumps(asdict(found)))


def compare(size: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train by both; what was found by rank, and how far apart the weights are."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, weights = Path(name), {}
        for strategy in STRATEGIES:
            options = ["--strategy", strategy, "--folder", name, "--sizes", size]
            for option in ("devices", "accelerator", "precision", "pictures", "side", "steps"):
                options += [f"--{option}", str(getattr(given, option))]
            subprocess.run([sys.executable, "-m", "benchmarks.fsdp", *options], check=True)
            found = [json.loads((folder / f"{strategy}.{rank}.json").read_text()) for rank in range(given.devices)]
            figures[strategy] = {what: [each[what] for each in found] for what in ("held", "peak", "seconds")}
            file = folder / f"{strategy}.ckpt"
            weights[strategy] = _weights(GenerativeModule.load_from_checkpoint(file, trust=("benchmarks",)))
            figures[strategy]["file"] = file.stat().st_size
    start = _weights(prior_of(size, given.side, dropout=0.0))
    moved = torch.linalg.vector_norm(weights["ddp"] - start)
    figures["apart"] = float(torch.linalg.vector_norm(weights["fsdp"] - weights["ddp"]) / moved)
    return figures


def _weights(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.network.parameters()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare at the sizes that the command line asks for, and print tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fsdp", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=2, help="processes, of a GPU each")
    parser.add_argument("--accelerator", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["B", "small"], help="of networks")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--pictures", type=int, default=8, help="of a batch, for each process")
    parser.add_argument("--side", type=int, default=16, help="codes are side x side")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    for inner in ("--strategy", "--folder"):
        parser.add_argument(inner, type=Path if inner == "--folder" else str, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.strategy is not None:
        train(given)
        return
    if given.devices < 2 or given.steps < 3 or min(given.pictures, given.side - 1) < 1:
        parser.error("--devices must be 2 or more, --steps 3 or more, --pictures 1 or more and --side 2 or more")
    if given.accelerator == "gpu" and torch.cuda.device_count() < given.devices:
        parser.error(f"--devices {given.devices} needs as many GPUs, and there are {torch.cuda.device_count()}")
    device = device_name(torch.device("cuda" if given.accelerator == "gpu" else "cpu"))
    print(f"{given.devices} x {device}, PyTorch {torch.__version__}, {given.precision}", flush=True)
    print(f"\n{'by rank':14}{'ms a step':>10}  {'held, MiB':24}{'peak, MiB':24}{'file, MiB':>10}")
    figures = {}
    for size in given.sizes:
        found = figures[size] = compare(size, given)
        for strategy in STRATEGIES:
            one = found[strategy]
            ms = 1e3 * max(median(seconds) for seconds in one["seconds"])
            held, peak = (
                " ".join("-" if each is None else f"{each / MIB:.1f}" for each in one[by]) for by in ("held", "peak")
            )
            print(f"{size:8}{strategy:6}{ms:10.1f}  {held:24}{peak:24}{one['file'] / MIB:10.1f}")
        print(f"{size:8}apart by {found['apart']:.1e} of what training has moved", flush=True)
    if given.json is not None:
        machine = {"device": device, "torch": torch.__version__, "precision": given.precision}
        given.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")
    if given.precision == "32-true" and (wrong := [size for size in given.sizes if figures[size]["apart"] > APART]):
        raise SystemExit(f"Shares have not learnt what copies have: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
