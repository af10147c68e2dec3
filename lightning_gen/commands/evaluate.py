"""`lightning-gen evaluate`: the figures of checkpoints or of a folder of pictures, and what they are figures of."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric import Fabric

import lightning_gen.data  # noqa: F401  (so that short class names are known)
from lightning_gen.capabilities import Samples
from lightning_gen.commands.readers import reads
from lightning_gen.commands.what_next import say_next
from lightning_gen.data.images import Kernel
from lightning_gen.evaluation.bench import NO_DATA, Bench
from lightning_gen.evaluation.entries import known_entry, table, write_entry
from lightning_gen.evaluation.protocol import Figure
from lightning_gen.evaluation.sources import SPLITS, Drawn, Read
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.limits import load_yaml
from lightning_gen.runs.folder import find_checkpoints
from lightning_gen.runs.layout import CONFIG, EVALUATIONS, is_run, run_folder_of_checkpoint
from lightning_gen.runs.page import write_report
from lightning_gen.settings import checked_settings
from lightning_gen.trust import restrict_configurations


def evaluate(
    checkpoint: str | list[str] | None = None,
    images: Path | None = None,
    data: pl.LightningDataModule | None = None,
    reference: str = "train",
    extractor: FeatureExtractor | None = None,
    resize: Kernel | None = None,
    figures: Figure | list[Figure] | None = None,
    num_samples: int | None = None,
    seeds: int | list[int] = 0,
    floor: bool = False,
    neighbours: Path | None = None,
    save_statistics: Path | None = None,
    output: Path | None = None,
    batch_size: int = 64,
    sampling: dict[str, Any] | None = None,
    splits: int = 10,
    k: int = 5,
    block_size: int = 1000,
    max_features: int = 10_000,
    accelerator: str = "auto",
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
) -> int:
    """Measure how far the samples of checkpoints, their reconstructions, or pictures of a folder are from real ones.

    FID, Inception Score, KID, precision and recall, density and coverage, AuthPct, and of models that reconstruct FID
    of reconstructions, PSNR and SSIM: the same figures as those of the callback GenerativeMetrics (in a test, where it
    is of reconstructions), for the same seed, number, batch size and precision. They are printed, and written as
    JSON with all that they depend on: the number of pictures on both sides, extractor, reference, protocol, seeds,
    versions, and the file that they are of; the page of a run shows them too. A checkpoint is enough: data and
    extractor are those of the run it lies in, unless others are named, and `--data.root DIR` says where that data lies
    here.

    What the output has already, of the same content under the same conditions, is not measured again.

    Args:
        checkpoint: One, a file or RUN/last or RUN/best; or several, one after the other; or the folder of a run, for
            all of its checkpoints; or a 'PATTERN' of files or runs.
        images: In place of checkpoints, a folder of pictures, whoever made them. They are read in gray or colour as the
            data has them; where there is no data, in colour unless the extractor takes gray.
        data: The data module that has the real pictures, such as MNIST.
        reference: The pictures to compare with. Of the data: train (as published figures do), val or test. Or a folder
            of pictures. Or saved statistics, .pt or .npz.
        extractor: Reads the pictures. By default that of the run, else the published Inception.
        resize: Brings the pictures of folders to one size by this kernel, with antialiasing: bicubic or bilinear. That
            is the size of the model's pictures or of the data's, or else the one that the extractor takes, or that of
            the first picture of the reference; sides are stretched where the aspect ratio is another. The names of the
            figures say so, as fid-scenes128-bicubic32x32. By default all pictures must have one size, unless the
            extractor resizes by itself, as Inception does.
        figures: Some of fid, is, kid, prdc, authpct, fid_infinity, rfid, psnr, ssim, likelihood, ppl, as [fid,kid]. By
            default all but fid_infinity and ppl that model, data, extractor and reference allow. Four are of the data's
            test pictures, num_samples of them or as many as there are. Of their reconstructions: rfid, the Fréchet
            distance to these very pictures, psnr in dB (mean over pictures; none where one has no error at all), ssim.
            Of the likelihood: nll in nats a picture, or a bound by its own name, such as elbo, and bpd, bits per dim,
            where pictures have levels, each with its standard error. ppl is the perceptual path length of num_samples
            pairs of latents, in z as ppl_z, and as ppl_w in w where a model has styles: by LPIPS with the published
            Inception, as in papers, else by the layers of the extractor.
        num_samples: Pictures to measure. By default 50000 of a checkpoint, and all of a folder.
        seeds: Of the noise. Several, as [0,1,2], give the mean of each figure and its standard deviation.
        floor: Also measure the data's test pictures in the same way, num_samples of them or as many as there are: the
            figures that a perfect model would have at that number.
        neighbours: PNG to draw samples into, each beside the training picture that is nearest to it in the extractor's
            eyes: the 16 closest pairs, and 16 others. Also measures memorisation_ratio: the median distance of samples
            to their nearest training pictures, over that of validation pictures. Well below 1, samples are nearer to
            training pictures than new pictures are, as copies would be; look at the pairs. Both search max_features
            training pictures.
        save_statistics: File to write the reference to: .pt for this command, .npz (mu and sigma) for others.
        output: JSON file to add the results to. By default evaluations.json in the folder of the run, or beside a
            checkpoint that is of none. For images there is no default.
        batch_size: Pictures drawn or reconstructed at once; the noise depends on it.
        sampling: Settings of the model's own `sample`. Each is an option, such as --temperature 0.5; one that the model
            does not take is answered with those that it does.
        splits: Of the Inception Score.
        k: Neighbours of precision, recall, density and coverage.
        block_size: Pictures in one block of the kernel distance.
        max_features: Pictures on either side of kid, prdc and authpct, at most.
        accelerator: As in Lightning: auto, cpu, gpu, ...
        precision: Of drawing, as in Lightning.
    """
    if (checkpoint is None) == (images is None):
        raise ValueError("Give either --checkpoint or --images: what shall be measured?")
    if save_statistics and save_statistics.suffix not in (".pt", ".npz"):
        raise ValueError(f"save_statistics must end in .pt or .npz, got {save_statistics}.")
    seeds = [seeds] if isinstance(seeds, int) else seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be different numbers, 0 or more, got {seeds}.")
    if floor and reference == "test":
        raise ValueError("The floor is that of the test pictures, so they cannot be the reference too.")
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    samples: list[Drawn | Read] = [Drawn(path, fabric) for path in find_checkpoints(checkpoint or [])]
    first = next((one for one in samples if isinstance(one, Drawn)), None)
    settings = checked_settings(first.model if first else None, sampling)
    if neighbours and len(samples) > 1:
        raise ValueError(f"neighbours is one picture, of one checkpoint; there are {len(samples)} of them.")
    if data is None and (floor or neighbours):
        raise ValueError(NO_DATA)
    figures = [figures] if isinstance(figures, str) else figures
    bench, read = Bench.of(
        first, images, data, reference, extractor, fabric.device, resize, figures, num_samples, seeds, precision,
        with_moments=save_statistics is not None, splits=splits, k=k, block_size=block_size, max_features=max_features,
        batch_size=batch_size, sampling=settings,
    )  # fmt: skip
    others = [] if floor or neighbours or data is None else ["--floor --neighbours nearest.png"]
    others[:0] = [f"--num_samples {num_samples}"] if others and num_samples else []
    judged = first and len(samples) == 1 and isinstance(first.model, Samples) and first.image_shape[0] in (1, 3)
    del first
    samples = [read] if read else samples
    if neighbours and samples[0].image_shape[0] not in (1, 3):
        raise ValueError(f"neighbours draws pictures of 1 or 3 channels; these have {samples[0].image_shape[0]}.")
    if save_statistics:
        write = bench.statistics.to_npz if save_statistics.suffix == ".npz" else bench.statistics.save
        write(save_statistics)
    while samples:
        one = samples.pop(0)  # a model goes when it is measured
        file = output or one.output
        known = known_entry(file, one.content, bench.conditions)
        if known and (not floor or "floor" in known) and (not neighbours or "memorisation_ratio" in known):
            print(f"{one.path}: measured before, see {file}")
            continue
        entry = bench.entry(one, known, floor, neighbours)
        print(table(one.title, entry))
        if file:
            write_entry(file, entry, one.content, bench.conditions)
            print(f"Written to {file}{_shown(file)}\n")
    if judged and others and isinstance(checkpoint, str | list):
        name = checkpoint if isinstance(checkpoint, str) else checkpoint[0]
        say_next(name, " ".join(["evaluate --checkpoint {}", *others]))
    return 0


def _shown(file: Path) -> str:
    """Show evaluations on the page of the run in whose folder they are; where, in words, or nothing."""
    with suppress(OSError):  # the folder of a run can be a stranger's
        if file.name == EVALUATIONS and is_run(file.parent):
            return f", shown in {write_report(file.parent)}"
    return ""


# -- what is asked for ----------------------------------------------------------------------------------------------


def with_run(arguments: Sequence[str]) -> list[str]:
    """Arguments with the data and the extractor of the run that the checkpoints are of, where they name none.

    An extractor that is made for the run's data is not taken for other data. Several checkpoints in a row become a
    list, and a bare `--floor` is true. Checkpoints of runs that differ in this are a `ValueError`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--checkpoint", nargs="+")
    parser.add_argument("--floor", nargs="?", const="true")
    for name in ("data", "extractor", "reference", "neighbours"):
        parser.add_argument(f"--{name}")
    given, others = parser.parse_known_args(arguments)
    options = {name: value for name, value in vars(given).items() if value is not None}
    if given.checkpoint:
        names = [name for text in given.checkpoint for name in (json.loads(text) if text.startswith('["') else [text])]
        options["checkpoint"] = json.dumps(names)
        folders = dict.fromkeys(run_folder_of_checkpoint(path) for path in find_checkpoints(names))
        configs = [_configuration(f / CONFIG) for f in folders if f and (f / CONFIG).is_file()]
        # Saved statistics serve also where the data is not.
        needs_data = (given.reference or "train") in SPLITS or given.floor or given.neighbours
        for name, found in {
            "data": [_pictures_of(config.get("data")) for config in configs] if needs_data else [],
            "extractor": [_extractor_of(config) for config in configs],
        }.items():
            if name in options or not found:
                continue
            if any(_what_counts(other) != _what_counts(found[0]) for other in found):
                raise ValueError(f"These checkpoints are of runs that differ in their {name}: name one, with --{name}.")
            if name == "extractor" and (why := _reads_other_data(found[0], options.get("data", ""), configs[0])):
                print(why, file=sys.stderr)
            elif found[0]:
                restrict_configurations(arguments)
                options[name] = json.dumps(found[0])
    return [*(f"--{name}={value}" for name, value in options.items()), *others]


def _configuration(path: Path) -> Mapping[str, Any]:
    config = load_yaml(path.read_text(encoding="utf-8", errors="replace"))
    sections = ("model", "data", "trainer")
    if not isinstance(config, Mapping) or not all(isinstance(config.get(name, {}), Mapping) for name in sections):
        raise ValueError(f"{path} is no configuration of a run: it must have model, data and trainer as mappings.")
    return config


def _pictures_of(data: Any) -> Any:
    """The setting of the data module that has the pictures, where another gives their codes."""
    inner = (data.get("init_args") or {}).get("data") if isinstance(data, Mapping) else None
    return inner if isinstance(inner, Mapping) and "class_path" in inner else data


def _reads_other_data(extractor: Any, data: str, config: Mapping[str, Any]) -> str:
    """Why the extractor of a run is not taken for the data that is named; empty where it can be."""
    named = str(json.loads(data)["class_path"] if data.startswith("{") else data).rpartition(".")[2]
    runs = str((_pictures_of(config.get("data")) or {}).get("class_path", "")).rpartition(".")[2]
    if not extractor or not data or named == runs or not (words := reads(extractor)):
        return ""
    return f"The run's extractor is not taken: {words}, and the data is {named}."


def _extractor_of(config: Mapping[str, Any]) -> Any:
    """The extractor of GenerativeMetrics in the configuration of a run, or None."""
    callbacks = config.get("trainer", {}).get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, Mapping) and str(callback.get("class_path")).rpartition(".")[2] == "GenerativeMetrics":
            return (callback.get("init_args") or {}).get("extractor")
    return None


def _what_counts(setting: Mapping[str, Any] | None) -> Any:
    """A class and its arguments, without those that make no difference to pictures."""
    if not setting:
        return None
    arguments = dict(setting.get("init_args", {}))
    for name in ("batch_size", "eval_batch_size", "num_workers", "growing", "cache"):
        arguments.pop(name, None)
    return setting.get("class_path"), arguments
