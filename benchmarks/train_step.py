"""How fast one training step is, beside a plain PyTorch loop and beside what the machine can do.

    python -m benchmarks.train_step --model CycleGAN --image-size 128 --precision bf16-mixed

The machine may be shared, so all contestants take turns: after every batch of the Lightning run each of the others
makes one step. Times are medians, ratios are medians of the ratios within a turn. Nothing here passes or fails.
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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from lightning_gen.models import CycleGAN
from lightning_gen.models.image_pool import ImagePool
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator

ALONE = 2  # batches before the others are made: in the second, gradients and optimizer states are all in memory


@dataclass(frozen=True)
class Settings:
    """What is measured, as the command line was given it."""

    model: str
    image_size: int
    batch_size: int
    precision: str
    filters: int
    blocks: int
    channels_last: bool
    compile: bool
    steps: int
    warmup: int
    threads: int

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """In which convolutions are computed."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures."""
        return 3, self.image_size, self.image_size

    @property
    def total(self) -> int:
        """Batches of the Lightning run."""
        return ALONE + self.warmup + self.steps


Step = Callable[[Any], None]


@dataclass(frozen=True)
class Contestants:
    """One algorithm, three times.

    Args:
        ours: The model, to be trained by Lightning.
        plain: Makes the step of a plain loop with the same networks, precision and memory format.
        naive: Makes the step of the plain loop in float32 and contiguous memory, every network call by itself.
        batch: What all of them train on.
    """

    ours: pl.LightningModule
    plain: Callable[[], Step]
    naive: Callable[[], Step]
    batch: Any


# -- CycleGAN -------------------------------------------------------------------------------------------------------


class PlainCycleGAN:
    """CycleGAN as a script would have it: four networks, two Adams, and a step.

    Args:
        generator: Makes a generator.
        discriminator: Makes a discriminator.
        settings: Gives device, precision and memory format.
        naive: Whether all is float32, contiguous and eager, with a network call for every picture, as the well-known
            implementation has it.
    """

    def __init__(
        self,
        generator: Callable[[], nn.Module],
        discriminator: Callable[[], nn.Module],
        settings: Settings,
        naive: bool,
    ) -> None:
        self.naive = naive
        self.autocast = partial(
            torch.autocast, settings.device.type, torch.bfloat16, settings.dtype == torch.bfloat16 and not naive
        )
        channels_last = settings.channels_last and not naive
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        networks = [make().to(settings.device) for make in (generator, generator, discriminator, discriminator)]
        for network in networks:
            network.to(memory_format=memory_format)
            if settings.compile and not naive:
                network.compile()
        self.G, self.F, self.D_A, self.D_B = networks
        self.discriminators = [*self.D_A.parameters(), *self.D_B.parameters()]
        generators = [*self.G.parameters(), *self.F.parameters()]
        self.optimizers = [torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999)) for p in (generators, self.discriminators)]
        self.schedules = [LambdaLR(o, lambda step: min(1.0, 2 - 2 * step / settings.total)) for o in self.optimizers]
        self.pool_A, self.pool_B = ImagePool(50), ImagePool(50)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Both generators, then both discriminators."""
        a, b = batch["A"], batch["B"]
        generators, discriminators = self.optimizers

        for parameter in self.discriminators:
            parameter.requires_grad_(False)
        generators.zero_grad()
        with self.autocast():
            fake_b, same_b = self.pair(self.G, a, b)
            fake_a, same_a = self.pair(self.F, b, a)
            loss = target(self.D_B(fake_b), 1.0) + target(self.D_A(fake_a), 1.0)
            loss = loss + 10 * (F.l1_loss(self.F(fake_b).float(), a) + F.l1_loss(self.G(fake_a).float(), b))
            loss = loss + 5 * (F.l1_loss(same_b.float(), b) + F.l1_loss(same_a.float(), a))
        loss.backward()
        generators.step()

        for parameter in self.discriminators:
            parameter.requires_grad_(True)
        discriminators.zero_grad()
        for network, real, fake in ((self.D_A, a, self.pool_A(fake_a)), (self.D_B, b, self.pool_B(fake_b))):
            with self.autocast():
                real_scores, fake_scores = self.pair(network, real, fake.float())
                loss = 0.5 * (target(real_scores, 1.0) + target(fake_scores, 0.0))
            loss.backward()
        discriminators.step()
        for schedule in self.schedules:
            schedule.step()

    def pair(self, network: nn.Module, first: Tensor, second: Tensor) -> Sequence[Tensor]:
        """`network(first), network(second)`, in one call unless naive."""
        return [network(first), network(second)] if self.naive else network(torch.cat([first, second])).chunk(2)


def target(scores: Tensor, value: float) -> Tensor:
    """Mean squared distance of the scores to a value."""
    return F.mse_loss(scores.float(), torch.full_like(scores, value, dtype=torch.float32))


def cyclegan(settings: Settings) -> Contestants:
    """CycleGAN with ResNet generators and 70 x 70 PatchGANs."""
    shape = settings.image_shape
    generator = partial(ResNetGenerator, filters=settings.filters, blocks=settings.blocks)
    discriminator = partial(PatchDiscriminator, filters=settings.filters)
    make = partial(PlainCycleGAN, partial(generator, shape), partial(discriminator, shape), settings)
    images = torch.rand(2, settings.batch_size, *shape, device=settings.device) * 2 - 1
    return Contestants(
        ours=CycleGAN(
            shape,
            generator=generator,
            discriminator=discriminator,
            channels_last=settings.channels_last,
            compile=settings.compile,
        ),
        plain=lambda: make(naive=False).step,
        naive=lambda: make(naive=True).step,
        batch={"A": images[0], "B": images[1]},
    )


MODELS: dict[str, Callable[[Settings], Contestants]] = {"CycleGAN": cyclegan}


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
    """What most of the step consists of: a 3 x 3 convolution, 256 to 256 at a quarter of the size, there and back."""

    def __init__(self, settings: Settings) -> None:
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        side, width = settings.image_size // 4, 4 * settings.filters
        self.conv = nn.Conv2d(width, width, 3, padding=1, device=settings.device, dtype=settings.dtype)
        self.conv.to(memory_format=memory_format)
        shape = 2 * settings.batch_size, width, side, side
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
    """After each of our batches, lets the others make a step, and times everybody.

    Our turn lasts from the end of the others' to the end of our next batch, so it has in it all that Lightning does
    between batches.
    """

    settings: Settings
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
        device = self.settings.device
        ours = Moment.now(device).since(self.start)
        if batch_idx < ALONE:
            self.memory = peak_memory(device)
        else:
            self.steps = self.steps or self.others()
            turn = {"ours": ours}
            for name, step in self.steps.items():
                start = Moment.now(device)
                step(batch)
                turn[name] = Moment.now(device).since(start)
            if batch_idx >= ALONE + self.settings.warmup:
                for name, seconds in turn.items():
                    self.times.setdefault(name, []).append(seconds)
        self.start = Moment.now(device)


def peak_memory(device: torch.device) -> float:
    """MiB: of the accelerator's memory, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(settings: Settings) -> dict[str, Any]:
    """Run everything; see README.md for what the figures mean."""
    contestants = MODELS[settings.model](settings)
    counter = FlopCounterMode(display=False)
    ceilings: dict[str, Matmul | Convolution] = {}

    def others() -> dict[str, Step]:
        naive = contestants.naive()
        with counter:
            naive(contestants.batch)
        ceilings.update(matmul=Matmul(settings), convolution=Convolution(settings))
        return {"plain": contestants.plain(), "naive": naive, **ceilings}

    turns = TakingTurns(settings, others)
    batches: DataLoader[Any] = DataLoader([contestants.batch] * settings.total, batch_size=None)  # type: ignore[arg-type]
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

    flops = counter.get_total_flops()
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
    lines = [
        f"{settings['model']}, {size}, {settings['filters']} filters, {settings['blocks']} blocks, "
        f"{settings['precision']}, {layout}{', compiled' if settings['compile'] else ''}",
        f"{result['machine']['device']}, CPU threads: {settings['threads']}, medians of {settings['steps']} steps",
        "",
        f"{'ms per step':26}{'CPU':>10}{'wall':>10}{'images/s':>10}",
    ]
    for name, title in titles.items():
        cpu, wall = result["ms"][name]["cpu"], result["ms"][name]["wall"]
        lines.append(f"{title:26}{cpu:10.1f}{wall:10.1f}{1e3 * settings['batch_size'] / wall:10.2f}")
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
    parser.add_argument("--image-size", type=int, default=128, help="height and width")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures of each domain")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--filters", type=int, default=64, help="of the first convolution of each network")
    parser.add_argument("--blocks", type=int, default=9, help="residual blocks of a generator")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format")
    parser.add_argument("--compile", action="store_true", help="torch.compile for ours and the plain loop")
    parser.add_argument("--steps", type=int, default=10, help="steps that count")
    parser.add_argument("--warmup", type=int, default=3, help="steps before, which do not")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    values = vars(parser.parse_args(arguments))
    file = values.pop("json")
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
