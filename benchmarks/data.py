"""How fast pictures come from folders, beside torchvision's ImageFolder and a loop of Pillow's.

    python -m benchmarks.data
    python -m benchmarks.data --parts jpeg cache --json figures.json
    python -m benchmarks.data --parts --files 1000000

All contestants load the same files, in the process that times them, resize them to the same size, mirror half of them,
and give batches as a training step of a model gets them: floats in [-1, 1], wherever they are made.

How long a JPEG takes is mostly a matter of how many bits it has. The pictures are made by the benchmark, and removed
again: built-in scenes of 1024 x 1024 pixels under a noise with the spectrum of photographs, and, as a light case, the
scenes by themselves ("drawings"); JPEG and WebP with quality 90. Nothing here passes or fails.

| | |
| --- | --- |
| ours | the data module, by default |
| ours, exact_decode | all pixels of a JPEG decoded, whatever the size wanted |
| earlier | this library at first: decoded in full by Pillow, made floats before collation |
| torchvision | its ImageFolder and transforms.v2, as in its tutorials: by Pillow, resized bilinearly, to floats |
| torchvision.io | the same with torchvision's own decoders and uint8 tensors, to floats after collation |
| Pillow | a loop: opened, a JPEG as a draft of twice the size wanted or more, resized, to floats after collation |
| decoding alone | Pillow's, to such a draft; nothing else. No way that uses libjpeg is much faster |
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, StackDataset, default_collate
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.ports.image_folder import EarlierFolder
from benchmarks.turns import Clock, add_arguments, begin, ratio, take_turns, write
from lightning_gen.data import ImageFolder, Scenes, UnpairedImageFolder
from lightning_gen.data.base import DrawSampler, ImageDataModule, InOrder, Split
from lightning_gen.data.batches import batch_pictures
from lightning_gen.data.datasets import InMemoryDataModule
from lightning_gen.data.images import from_uint8, to_uint8

PARTS = ("jpeg", "drawings", "png", "webp", "unpaired", "cache", "memory")
GRAIN = 0.1  # deviation of the noise, of pictures in [-1, 1]: a JPEG has 2.2 bits a pixel, about what a photograph has
BESIDE_EACH_OTHER = 1000  # files in a folder of many

Batches = Callable[[], Iterator[Mapping[str, Sized]]]
"""One epoch: pictures of each domain."""


# -- pictures ---------------------------------------------------------------------------------------------------------


def photographs(number: int, size: int, grain: float = GRAIN) -> Iterator[Tensor]:
    """Scenes under noise whose amplitude falls with the frequency, as that of photographs does: uint8 `[3, H, W]`."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.fft.rfft2(torch.randn(size, size, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).clamp(min=1 / size)
    noise = torch.fft.irfft2(waves / frequency, s=(size, size))
    noise *= grain / noise.std()
    scenes = InOrder(Scenes(image_size=size, num_val=number).val_set())
    for i in range(number):
        shifts = [int(shift) for shift in torch.randint(size, (2,), generator=generator)]
        yield to_uint8(scenes[i]["image"] + noise.roll(shifts, (0, 1)))


def write_pictures(folder: Path, pictures: Iterable[Tensor], ending: str) -> None:
    """Files of these pictures, below a folder that torchvision takes for a class."""
    (folder / "all").mkdir(parents=True)
    for i, pixels in enumerate(pictures):
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        picture.save(folder / "all" / f"{i:05}.{ending}", quality=90)  # which a PNG has not


def tiles(pictures: Sequence[Tensor], size: int) -> list[Tensor]:
    """Squares that lie side by side in pictures."""
    corners = range(0, pictures[0].shape[-1] - size + 1, size)
    return [x[:, top : top + size, left : left + size] for x in pictures for top, left in product(corners, corners)]


def bits_a_pixel(root: Path, sizes: Sizes) -> float:
    """Of the files to train on."""
    files = [path.stat().st_size for path in (root / "train" / "all").iterdir()]
    return 8 * sum(files) / len(files) / sizes.file**2


# -- contestants ------------------------------------------------------------------------------------------------------


def ours(data: ImageDataModule) -> Batches:
    """The training batches of a data module, as a trainer hands them to a model."""
    data.prepare_data()
    data.setup("fit")
    batches = _drawn(data.train_dataloader())
    return lambda: (batch_pictures(data.on_after_batch_transfer(batch, 0)) for batch in batches())


def earlier(domains: Mapping[str, Path], resize: int, crop: int, batch_size: int) -> Batches:
    """The same batches, as they were made before."""
    dataset = EarlierFolder(_files(domains), resize, crop, seed=0)
    sampler = DrawSampler(dataset, shuffle=True, seed=0)
    return _drawn(DataLoader(dataset, batch_size, sampler=sampler, drop_last=True))


def _drawn(loader: DataLoader[Any]) -> Batches:
    epochs = count()

    def batches() -> Iterator[Any]:
        loader.sampler.set_epoch(next(epochs))  # type: ignore[attr-defined]
        return iter(loader)

    return batches


def torchvisions(domains: Mapping[str, Path], resize: int, crop: int, batch_size: int, own_decoders: bool) -> Batches:
    """Folders and transforms of torchvision; of several domains, the pictures of the same index."""
    cut = v2.RandomCrop(crop) if resize > crop else v2.CenterCrop(crop)
    geometry = [v2.Resize(resize), cut, v2.RandomHorizontalFlip()]
    floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    options: dict[str, Any] = {"transform": v2.Compose([*geometry, *floats])}
    after = v2.Identity()
    if own_decoders:
        options = {"transform": v2.Compose(geometry), "loader": lambda path: decode_image(path, ImageReadMode.RGB)}
        after = v2.Compose(floats[1:])
    folders: dict[str, Dataset[Any]] = {name: TorchvisionFolder(root, **options) for name, root in domains.items()}
    loader = DataLoader(StackDataset(**folders), batch_size, shuffle=True, drop_last=True)

    def batches() -> Iterator[dict[str, Tensor]]:
        for batch in loader:
            yield {name: after(pictures) for name, (pictures, _) in batch.items()}

    return batches


def pillow(domains: Mapping[str, Path], resize: int, crop: int, batch_size: int) -> Batches:
    """What Pillow takes by itself, in as few lines as will do."""
    rng = np.random.default_rng(0)

    def picture(path: Path) -> Tensor:
        top, left = rng.integers(resize - crop + 1, size=2)
        small = decoded(path, resize).resize((resize, resize))
        pixels = np.asarray(small)[top : top + crop, left : left + crop][:, :: rng.choice((-1, 1))]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    return _in_order(domains, batch_size, lambda paths: from_uint8(default_collate([picture(path) for path in paths])))


def decoding(domains: Mapping[str, Path], resize: int, batch_size: int) -> Batches:
    """What comes before any resize."""
    return _in_order(domains, batch_size, lambda paths: [decoded(path, resize) for path in paths])


def decoded(path: Path, resize: int) -> Image.Image:
    """Pillow's picture, if it is a JPEG of the smallest scale with twice the pixels wanted either way."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * resize, 2 * resize))
        return image.convert("RGB")


def _in_order(domains: Mapping[str, Path], batch_size: int, read: Callable[[list[Path]], Sized]) -> Batches:
    files = _files(domains)
    starts = range(0, min(map(len, files.values())) - batch_size + 1, batch_size)
    return lambda: ({name: read(files[name][start : start + batch_size]) for name in files} for start in starts)


def _files(domains: Mapping[str, Path]) -> dict[str, list[Path]]:
    return {name: sorted(path for path in folder.rglob("*") if path.is_file()) for name, folder in domains.items()}


class Random(InMemoryDataModule):
    """Random pictures with the shape and the number of MNIST's, in memory."""

    native_shape = (1, 28, 28)
    native_levels = 256

    def __init__(self, number: int, **options: Any) -> None:
        super().__init__(**options)
        self.number = number

    def load(self, split: Split) -> tuple[Tensor, Tensor | None]:
        """As `InMemoryDataModule`."""
        return torch.randint(256, (self.number, 1, 28, 28), dtype=torch.uint8), torch.zeros(self.number).long()


def contestants(root: Path, ending: str, resize: int, crop: int, batch_size: int) -> dict[str, Batches]:
    """All who read files: of one domain in `root / "train"`, or of two."""
    options: dict[str, Any] = {"flip": True, "batch_size": batch_size, "num_workers": 0}
    if unpaired := (root / "trainA").is_dir():
        options |= {"resize": resize, "crop": crop}
    else:
        options |= {"image_size": crop}
    make = UnpairedImageFolder if unpaired else ImageFolder
    domains = {"A": root / "trainA", "B": root / "trainB"} if unpaired else {"image": root / "train"}
    found = {"ours": ours(make(root, **options))}
    if ending == "jpg":
        found["ours, exact_decode"] = ours(make(root, exact_decode=True, **options))
    sizes = (resize, crop, batch_size)
    return found | {
        "earlier": earlier(domains, *sizes),
        "torchvision": torchvisions(domains, *sizes, own_decoders=False),
        "torchvision.io": torchvisions(domains, *sizes, own_decoders=True),
        "Pillow": pillow(domains, *sizes),
        "decoding alone": decoding(domains, resize, batch_size),
    }


def with_cache(root: Path, size: int, batch_size: int) -> dict[str, Batches]:
    """Ours from a cache and from the files, as torchvision's."""
    options: dict[str, Any] = {"image_size": size, "flip": True, "batch_size": batch_size, "num_workers": 0}
    start = time.perf_counter()
    cached = ours(ImageFolder(root, cache=root.with_name(f"cache{size}"), **options))
    print(f"\nto make a cache of the pictures took {time.perf_counter() - start:.1f} s of wall time")
    return {
        "ours, from a cache": cached,
        "ours": ours(ImageFolder(root, **options)),
        "torchvision": torchvisions({"image": root / "train"}, size, size, batch_size, own_decoders=False),
    }


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(title: str, epochs: Mapping[str, Batches], turns: int, clock: Clock) -> dict[str, Any]:
    """Examples a second of every contestant, in turns, beside the first one."""
    examples = 0

    def whole(batches: Batches) -> Callable[[], None]:
        def epoch() -> None:
            nonlocal examples
            examples = sum(len(next(iter(batch.values()))) for batch in batches())

        return epoch

    runs = {name: whole(batches) for name, batches in epochs.items()}
    take_turns(runs, 1, clock)  # first calls
    seconds = take_turns(runs, turns, clock)
    first = next(iter(seconds))
    rates = {name: examples / median(times) for name, times in seconds.items()}
    over = {name: ratio(seconds, name, first) for name in seconds}
    print(f"\n{title:45}{'a second':>10}{'ours / it':>11}")
    for name, rate in rates.items():
        print(f"{name:45}{rate:10.0f}{'' if name == first else f'{over[name]:11.2f}'}", flush=True)
    return {"title": title, "examples": examples, "a_second": rates, "ours_over_it": over, "seconds": seconds}


def make_files(folder: Path, number: int) -> None:
    """So many pictures to train on, a thousand in a folder, of which all but the first are links to that one."""
    for start in range(0, number, BESIDE_EACH_OTHER):
        below = folder / "train" / f"{start // BESIDE_EACH_OTHER:04}"
        below.mkdir(parents=True)
        first = below / f"img{start:08}.png"
        Image.new("RGB", (64, 64), "teal").save(first)
        for i in range(start + 1, min(number, start + BESIDE_EACH_OTHER)):
            os.link(first, below / f"img{i:08}.png")
    write_pictures(folder / "val", [torch.zeros(3, 64, 64, dtype=torch.uint8)], "png")


def start_run(root: Path) -> dict[str, float]:
    """Seconds from a folder's name to the first training batch."""
    wall, cpu = time.perf_counter(), time.process_time()
    loader = _listed(root).train_dataloader()
    listed = time.perf_counter() - wall
    next(iter(loader))
    return {"list": listed, "first batch": time.perf_counter() - wall, "CPU": time.process_time() - cpu}


def memory_of(root: Path) -> float:
    """Bytes a file of a data module that is ready to give its first training batch."""
    tracemalloc.start()
    data = _listed(root)
    loader = data.train_dataloader()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] / len(loader.dataset)  # type: ignore[arg-type]
    tracemalloc.stop()
    return size


def _listed(root: Path) -> ImageFolder:
    data = ImageFolder(root, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    return data


def measure_files(folder: Path, number: int) -> dict[str, Any]:
    """The starts of runs over so many files, first and again, and their memory, each in a process of its own."""
    make_files(folder, number)

    def alone(measured: Callable[[Path], Any]) -> Any:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(measured, folder).result()

    title = f"{number:,} files of 64 x 64"
    starts = {name: alone(start_run) for name in ("first start", "second start")}
    memory = alone(memory_of)
    print(f"\n{title:35}{'s to list':>10}{'to first batch':>16}{'CPU s':>8}")
    for name, found in starts.items():
        print(f"{name:35}{found['list']:10.2f}{found['first batch']:16.2f}{found['CPU']:8.2f}")
    print(f"{'memory, bytes a file':35}{memory:10.0f}", flush=True)
    return {"title": title, "bytes_a_file": memory, "seconds": starts}


@contextmanager
def own_caches(folder: Path) -> Iterator[None]:
    """Lists and the like are kept in a folder, and not with the user's."""
    before = os.environ.get("LIGHTNING_GEN_CACHE")
    os.environ["LIGHTNING_GEN_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["LIGHTNING_GEN_CACHE"]
        if before is not None:
            os.environ["LIGHTNING_GEN_CACHE"] = before


@dataclass(frozen=True)
class Sizes:
    """Heights and widths of pictures, and numbers of them.

    Args:
        file: Of the pictures in their files.
        image: Of those wanted.
        resize: Of those wanted before the crop, where there is one.
        crop: And after it.
        tile: Of those from which a cache is made; wanted are these and half of them.
        batch: Pictures in a batch, and in a folder.
        memory: Pictures in memory.
    """

    file: int = 1024
    image: int = 128
    resize: int = 286
    crop: int = 256
    tile: int = 128
    batch: int = 64
    memory: int = 60_000


SMALL = Sizes(file=64, image=16, resize=36, crop=32, tile=32, batch=4, memory=100)


def measure_parts(folder: Path, parts: Sequence[str], sizes: Sizes, turns: int, clock: Clock) -> dict[str, Any]:
    """Make the pictures of each part and measure it."""
    figures: dict[str, Any] = {}
    batch, pictures = sizes.batch, list(photographs(sizes.batch, sizes.file))
    drawings = photographs(batch, sizes.file, grain=0)
    kinds = {
        "jpeg": (pictures, "jpg"),
        "drawings": (drawings, "jpg"),
        "png": (pictures, "png"),
        "webp": (pictures, "webp"),
    }
    for part, (content, ending) in kinds.items():
        if part in parts:
            root = folder / part
            write_pictures(root / "train", content, ending)
            write_pictures(root / "val", pictures[:1], ending)
            title = f"{part}, {bits_a_pixel(root, sizes):.1f} bits a pixel, {sizes.file} -> {sizes.image}"
            found = contestants(root, ending, sizes.image, sizes.image, batch)
            figures[part] = measure(title, found, turns, clock)
    if "unpaired" in parts:
        root = folder / "unpaired"
        for side, start in (("A", 0), ("B", 1)):
            write_pictures(root / f"train{side}", pictures[start::2], "jpg")
            write_pictures(root / f"test{side}", pictures[:1], "jpg")
        title = f"pairs of jpeg, {sizes.file} -> {sizes.resize} -> {sizes.crop}, one by one"
        figures["unpaired"] = measure(title, contestants(root, "jpg", sizes.resize, sizes.crop, 1), turns, clock)
    if "cache" in parts:
        root = folder / "tiles"
        write_pictures(root / "train", tiles(pictures, sizes.tile), "jpg")
        write_pictures(root / "val", pictures[:1], "jpg")
        for size in (sizes.tile // 2, sizes.tile):
            title = f"jpeg, {sizes.tile} -> {size}"
            figures[f"cache, {size}"] = measure(title, with_cache(root, size, batch), turns, clock)
    if "memory" in parts:
        data = Random(sizes.memory, batch_size=batch, num_workers=0)
        title = f"{sizes.memory:,} pictures of 1 x 28 x 28 in memory"
        figures["memory"] = measure(title, {"ours": ours(data)}, turns, clock)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print tables, and write the figures if a file is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--files", type=int, default=0, help="that are listed, of which all but a thousandth are links")
    parser.add_argument("--small", action="store_true", help="a quick look at a few small pictures")
    add_arguments(parser, turns=5)
    given = parser.parse_args(arguments)
    if given.files < 0:
        parser.error(f"--files must be 0 or more, got {given.files}")
    if given.device != "cpu" or given.threads != 1:
        parser.error("pictures are loaded by one CPU thread here: leave out --device and --threads")
    clock = begin(parser, given)
    warnings.filterwarnings("ignore", module="torchvision.io")  # whose decoders are to move to another package
    with TemporaryDirectory() as folder, own_caches(Path(folder) / "caches"):
        figures = measure_parts(Path(folder), given.parts, SMALL if given.small else Sizes(), given.turns, clock)
        if given.files:
            figures["files"] = measure_files(Path(folder) / "files", given.files)
    write(given.json, clock, figures)


if __name__ == "__main__":
    main()
