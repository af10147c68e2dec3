"""What a run needs that is trained before it, in processes of its own: the random state of this one stays as it was.

Under a launcher of several processes nothing is trained, and a word says what is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace

import lightning_gen.data
from lightning_gen.commands.configs import find_config
from lightning_gen.commands.inner_models import models_asked_for_by
from lightning_gen.commands.readers import class_of, pictures_of
from lightning_gen.data.fingerprint import digest
from lightning_gen.extractors.classifier import classifier_file
from lightning_gen.files import cache_folder, write_atomically
from lightning_gen.limits import load_yaml
from lightning_gen.runs.layout import LAST

OF_TRAINING = ("batch_size", "eval_batch_size", "num_workers", "growing", "seed", "crop", "flip")
"""Settings of data that are a run's own; with all others two stages see the same pictures."""


def train_missing_classifiers(config: Namespace) -> None:
    """Train what `ClassifierFeatures` in a configuration would look for in the cache in vain."""
    for callback in config.trainer.callbacks or ():
        extractor = (callback.get("init_args") or Namespace()).get("extractor")
        if not isinstance(extractor, Namespace) or not extractor.class_path.endswith(".ClassifierFeatures"):
            continue
        wanted = extractor.init_args
        if wanted.get("weights") or not (wanted.get("data") and wanted.get("image_shape")) or _is_launched():
            continue
        # The configuration may be a stranger's, so nothing in it becomes a class, or an option, of the new command.
        if not hasattr(lightning_gen.data, wanted.data) or classifier_file(wanted.data, wanted.image_shape).is_file():
            continue
        print(f"There is no classifier for {wanted.data} yet: training one, which takes about a minute.", flush=True)
        options = ["--config", "classifier", "--data", wanted.data]
        pictures = pictures_of(config.data)
        own = pictures.init_args if pictures.class_path.endswith(f".{wanted.data}") else Namespace()
        for name in ("root", "download", "image_size", "pad", "num_workers"):
            if own.get(name) is not None:
                options.append(f"--data.{name}={own.get(name)}")
        _fit(*options, f"--trainer.default_root_dir={cache_folder() / 'runs'}")


def train_first_stages(config: Namespace) -> None:
    """Where a model of a configuration is to have another, and names the configuration of that, train it first.

    It sees the pictures that the outer one is for, and is kept in the cache folder under all that it is trained by: its
    configuration and these pictures. One that was stopped goes on. `model` of a subcommand's configuration is changed
    in place: the path of a checkpoint stands where that of a configuration did.

    Raises:
        FileNotFoundError: If there is no such configuration.
        RuntimeError: Under a launcher, if it has yet to be trained.
    """
    for argument, named, settings, folder in _first_stages(config):
        kept = _kept(folder)
        if not kept.is_file():
            _train_first_stage(argument, named, settings, folder, str(config.trainer.accelerator))
            last = _last_in(folder)
            assert last is not None
            write_atomically(kept, last.read_bytes())
        config.model.init_args[argument] = str(kept)


def take_kept_first_stages(config: Namespace) -> list[str]:
    """As `train_first_stages`, but nothing is trained: the names of the configurations that have yet to be."""
    missing = []
    for argument, named, _, folder in _first_stages(config):
        if _kept(folder).is_file():
            config.model.init_args[argument] = str(_kept(folder))
        else:
            missing.append(named)
    return missing


def _first_stages(config: Namespace) -> Iterator[tuple[str, str, dict[str, Any], Path]]:
    """The arguments that name a configuration, its name, what is trained by it, and in which folder."""
    arguments = config.model.get("init_args") or Namespace()
    for argument in models_asked_for_by(class_of(config.model)):
        named = arguments.get(argument)
        if not (isinstance(named, str) and named.endswith(".yaml")):
            continue
        settings = load_yaml(Path(find_config(named)).read_text(encoding="utf-8"))
        settings["data"] = with_pictures_of(settings["data"], pictures_of(config.data))
        yield argument, named, settings, cache_folder() / "first_stages" / f"{Path(named).stem}-{_digest(settings)}"


def _kept(folder: Path) -> Path:
    """The checkpoint of what has been trained in a folder."""
    return folder.with_name(f"{folder.name}.ckpt")


def with_pictures_of(data: Mapping[str, Any], pictures: Namespace) -> dict[str, Any]:
    """The data of a first stage with the pictures of the second: batches and augmentation remain the first one's."""
    own = dict(data.get("init_args") or {})
    same = str(data["class_path"]).rpartition(".")[2] == str(pictures.class_path).rpartition(".")[2]
    kept = {name: value for name, value in own.items() if name in OF_TRAINING and (same or "batch_size" in name)}
    given = pictures.init_args.as_dict() if pictures.get("init_args") else {}
    others = {name: value for name, value in given.items() if name not in OF_TRAINING}
    return {"class_path": str(pictures.class_path), "init_args": others | kept}


def _train_first_stage(argument: str, named: str, settings: dict[str, Any], folder: Path, accelerator: str) -> None:
    config = folder / f"{Path(named).stem}.yaml"
    write_atomically(config, yaml.safe_dump(settings, sort_keys=False))
    on_its_own = f"lightning-gen fit --config {config}"
    if _is_launched():
        raise RuntimeError(
            f"{argument} is the configuration {named}, which must be trained first; several processes cannot do that "
            f"here. Run it on its own, {on_its_own}, and give its checkpoint: --model.{argument} RUN."
        )
    last = _last_in(folder)
    print(f"The {argument}, {named}, is {'trained on' if last else 'trained'} first, as {on_its_own}.", flush=True)
    start = ["--config", str(config)] if last is None else ["--ckpt_path", str(last)]
    _fit(*start, f"--trainer.default_root_dir={folder}", f"--trainer.accelerator={accelerator}")
    print(f"The {argument} is there, kept as {folder}.ckpt.", flush=True)


def _last_in(folder: Path) -> Path | None:
    return max(folder.rglob(LAST), key=lambda path: path.stat().st_mtime, default=None)


def _digest(settings: Mapping[str, Any]) -> str:
    """Of what decides the weights that a configuration ends with."""
    data = {key: value for key, value in settings["data"]["init_args"].items() if key not in ("num_workers", "cache")}
    trainer = {name: value for name, value in settings.get("trainer", {}).items() if name != "default_root_dir"}
    others = {"data": [settings["data"]["class_path"], data], "trainer": trainer}
    # Plain data and paths, which are those of the user's folders, as text.
    return digest(yaml.safe_dump({**settings, **others}, sort_keys=True))[:16]


def _is_launched() -> bool:
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1


def _fit(*options: str) -> None:
    subprocess.run([sys.executable, "-m", "lightning_gen", "fit", *options], check=True)
