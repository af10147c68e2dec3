"""How fast one training step is, beside a plain PyTorch loop and beside what the machine can do.

    python -m benchmarks.train_step --model CycleGAN --image-size 128 --precision bf16-mixed

The machine may be shared, so all contestants take turns: after every step of the Lightning run each of the others
makes one. Times are medians, ratios are medians of the ratios within a turn. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry

from benchmarks.adversarial import cyclegan, dcgan, sngan, wgan_gp
from benchmarks.autoencoders import vqvae
from benchmarks.contestants import ALONE, Contestants, Settings, Step


@dataclass(frozen=True)
class Entry:
    """A model, and the sizes that it is measured at where the command line gives none.

    Args:
        contestants: Makes them.
        sizes: Settings; what is not named here is none of the model's.
    """

    contestants: Callable[[Settings], Contestants]
    sizes: dict[str, int]


RESNETS = {"image_size": 32, "batch_size": 64, "filters": 256, "generator_batch_factor": 1}
MODELS = {
    "CycleGAN": Entry(cyclegan, {"image_size": 128, "batch_size": 1, "filters": 64, "blocks": 9}),
    "DCGAN": Entry(dcgan, RESNETS),
    "SNGAN": Entry(sngan, RESNETS),
    "VQVAE": Entry(vqvae, {"image_size": 32, "batch_size": 128, "filters": 128}),
    "WGANGP": Entry(wgan_gp, RESNETS),
}


# -- the machine's ceiling --------------------------------------------------------------------------------------------


class Matmul:
    """A large square matrix product, in the type that convolutions are computed in."""

    def __init__(self, settings: Settings) -> None:
        size = 8192 if settings.device.type == "cuda" else 1536
        self.left, self.right = torch.randn(2, size, size, device=settings.device).to(settings.dtype)
        self.flops = 2 * size**3

    def __call__(self, _: Any) -> None:
        """Once."""
        torch.matmul(self.left, self.right)


class Convolution:
    """What most of the step consists of: a 3 x 3 convolution that keeps the width, there and back."""

    def __init__(self, settings: Settings, shape: tuple[int, int, int, int]) -> None:
        memory_format, width = settings.memory_format, shape[1]
        self.conv = nn.Conv2d(width, width, 3, padding=1, device=settings.device, dtype=settings.dtype)
        self.conv.to(memory_format=memory_format)
        features = torch.randn(shape, device=settings.device, dtype=settings.dtype).to(memory_format=memory_format)
        self.features, self.gradient = features.requires_grad_(), torch.randn_like(features)
        self.flops = 3 * 2 * features.numel() * 9 * width

    def __call__(self, _: Any) -> None:
        """Once."""
        torch.autograd.grad(self.conv(self.features), [self.features, self.conv.weight], self.gradient)


# -- measuring --------------------------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """Seconds on two clocks."""

    cpu: float
    wall: float

    @classmethod
    def now(cls, device: torch.device) -> Moment:
        """After all work that was given to the device."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return cls(time.process_time(), time.perf_counter())

    def since(self, earlier: Moment) -> Moment:
        """The time between."""
        return Moment(self.cpu - earlier.cpu, self.wall - earlier.wall)


@dataclass
class TakingTurns(pl.Callback):
    """After each of our steps, lets the others make one, and times everybody.

    Our turn lasts from the end of the others' to the end of our next step, so it has in it all that Lightning does
    between batches.

    Args:
        settings: How many turns count.
        batches: Of ours in one step.
        others: Makes them, warm.
    """

    settings: Settings
    batches: int
    others: Callable[[], dict[str, Step]]
    times: dict[str, list[Moment]] = field(default_factory=dict)
    memory: float = 0.0
    steps: dict[str, Step] = field(default_factory=dict)

    def on_train_start(self, *_: Any) -> None:
        """Start our first turn."""
        if self.settings.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.start = Moment.now(self.settings.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End our turn, give the others theirs, start our next one."""
        step, batches_left = divmod(batch_idx + 1, self.batches)
        if batches_left:
            return
        device = self.settings.device
        ours = Moment.now(device).since(self.start)
        if step <= ALONE:
            self.memory = peak_memory(device)
        else:
            self.steps = self.steps or self.others()
            turn = {"ours": ours}
            for name, make_step in self.steps.items():
                start = Moment.now(device)
                make_step(batch)
                turn[name] = Moment.now(device).since(start)
            if step > ALONE + self.settings.warmup:
                for name, seconds in turn.items():
                    self.times.setdefault(name, []).append(seconds)
        self.start = Moment.now(device)


def forbid_sync(model: pl.LightningModule) -> None:
    """Make every wait for the GPU inside `training_step` an error, once all that is made at first use is there."""
    training_step = model.training_step

    @wraps(training_step)
    def watched(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if model.trainer.global_step >= ALONE else "default")
        try:
            return training_step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    model.training_step = watched  # type: ignore[method-assign]


class FlopCounter(TorchDispatchMode):
    """Counts the operations called within it, as PyTorch's own does, which fails on a gradient of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator and add what it takes."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def peak_memory(device: torch.device) -> float:
    """MiB: of the accelerator's memory, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(settings: Settings) -> dict[str, Any]:
    """Run everything; see README.md for what the figures mean."""
    contestants = MODELS[settings.model].contestants(settings)
    if settings.forbid_sync:
        forbid_sync(contestants.ours)
    counter = FlopCounter()
    ceilings: dict[str, Matmul | Convolution] = {}

    def others() -> dict[str, Step]:
        plain, naive = contestants.plain(), contestants.naive()
        plain(contestants.batch)
        with counter:
            naive(contestants.batch)
        ceilings.update(matmul=Matmul(settings), convolution=Convolution(settings, contestants.convolution))
        for ceiling in ceilings.values():
            ceiling(None)
        return {"plain": plain, "naive": naive, **ceilings}

    turns = TakingTurns(settings, contestants.batches, others)
    data = [contestants.batch] * (settings.total * contestants.batches)
    batches: DataLoader[Any] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=settings.total,
            precision=settings.precision,  # type: ignore[arg-type]
            accelerator=settings.device.type,
            devices=1,
            logger=CSVLogger(folder),
            callbacks=[turns],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(contestants.ours, train_dataloaders=batches)

    # Wall time says little on a shared CPU; CPU time nothing of an accelerator or of threads that wait for each other.
    clock = "cpu" if settings.device.type == "cpu" and settings.threads == 1 else "wall"
    seconds = {name: [getattr(moment, clock) for moment in times] for name, times in turns.times.items()}

    def ratio(of: str, to: str) -> float:
        return median(x / y for x, y in zip(seconds[of], seconds[to], strict=True))

    flops = counter.flops
    return {
        "settings": asdict(settings),
        "machine": {
            "device": device_name(settings.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "ms": {
            name: {key: 1e3 * median(getattr(moment, key) for moment in times) for key in Moment._fields}
            for name, times in turns.times.items()
        },
        "clock": clock,
        "peak_memory_mib": turns.memory,
        "lightning_share": ratio("ours", "plain") - 1,
        "naive_over_ours": ratio("naive", "ours"),
        "images_per_step": settings.batch_size * contestants.batches,
        "flops_per_step": flops,
        "flops_per_second": {
            "ours": flops / median(seconds["ours"]),
            **{name: ceiling.flops / median(seconds[name]) for name, ceiling in ceilings.items()},
        },
        "share_of_ceiling": {name: ratio(name, "ours") * flops / ceiling.flops for name, ceiling in ceilings.items()},
        "all_seconds": {name: [moment._asdict() for moment in times] for name, times in turns.times.items()},
    }


def device_name(device: torch.device) -> str:
    """Of the accelerator, or of the processor, with the instructions that matter here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    name = re.search(r"model name\s*: (.+)", text)
    instructions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in text]
    return f"{name[1] if name else platform.processor()} ({', '.join(instructions) or platform.machine()})"


# -- the command line -------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    settings, rates = result["settings"], result["flops_per_second"]
    layout = "channels last" if settings["channels_last"] else "contiguous"
    titles = {"ours": "ours, in Lightning", "plain": "plain loop", "naive": "naive float32 loop"}
    size = f"{settings['image_size']} px, batch {settings['batch_size']}"
    blocks = f"{settings['blocks']} blocks, " if settings["blocks"] else ""
    lines = [
        f"{settings['model']}, {size}, {settings['filters']} filters, {blocks}"
        f"{settings['precision']}, {layout}{', compiled' if settings['compile'] else ''}",
        f"{result['machine']['device']}, CPU threads: {settings['threads']}, medians of {settings['steps']} steps",
        "",
        f"{'ms per step':26}{'CPU':>10}{'wall':>10}{'images/s':>10}",
    ]
    for name, title in titles.items():
        cpu, wall = result["ms"][name]["cpu"], result["ms"][name]["wall"]
        lines.append(f"{title:26}{cpu:10.1f}{wall:10.1f}{1e3 * result['images_per_step'] / wall:10.2f}")
    lines += [
        "",
        f"{'Lightning share':26}{100 * result['lightning_share']:10.1f} %     ours / plain - 1",
        f"{'naive float32 / ours':26}{result['naive_over_ours']:10.2f}",
        f"{'peak memory':26}{result['peak_memory_mib']:10.0f} MiB",
        f"{'work':26}{result['flops_per_step'] / 1e9:10.1f} GFLOP per step",
        f"{'achieved':26}{rates['ours'] / 1e9:10.1f} GFLOP/s",
    ]
    for name, share in result["share_of_ceiling"].items():
        lines.append(
            f"{f'ceiling: {name}':26}{rates[name] / 1e9:10.1f} GFLOP/s, of which ours reaches {100 * share:.0f} %"
        )
    return "\n".join([*lines, "", f"Ratios and FLOP/s are of {result['clock']} time."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print a table, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="CycleGAN")
    sizes = {
        "--image-size": "height and width",
        "--batch-size": "pictures, of each domain where there are two",
        "--filters": "channels: of a CycleGAN network's first convolution, of a ResNet generator's or a VQ-VAE's all",
        "--blocks": "residual blocks of a CycleGAN generator",
        "--generator-batch-factor": "fakes in a generator update, as a multiple of the batch; 2 in SNGAN's paper",
    }
    for name, meaning in sizes.items():
        parser.add_argument(name, type=int, default=argparse.SUPPRESS, help=f"{meaning} (default: the model's)")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format")
    parser.add_argument("--compile", action="store_true", help="torch.compile for ours and the plain loop")
    parser.add_argument("--forbid-sync", action="store_true", help="fail if training_step waits for the GPU")
    parser.add_argument("--steps", type=int, default=10, help="steps that count")
    parser.add_argument("--warmup", type=int, default=3, help="steps before, which do not")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    given = vars(parser.parse_args(arguments))
    file = given.pop("json")
    known = MODELS[given["model"]].sizes
    surplus = {name.strip("-").replace("-", "_") for name in sizes} & given.keys() - known.keys()
    if surplus:
        parser.error(f"{given['model']} has no {', '.join(sorted(surplus))}")
    values = {"blocks": 0, "generator_batch_factor": 0, **known, **given}
    if values["forbid_sync"] and not torch.cuda.is_available():
        parser.error("--forbid-sync needs a CUDA device")
    if values["steps"] < 1 or values["warmup"] < 0:
        parser.error(f"--steps must be 1 or more and --warmup 0 or more, got {values['steps']} and {values['warmup']}")

    torch.set_num_threads(values["threads"])
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    result = measure(Settings(**values))
    print(table(result))
    if file:
        file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
