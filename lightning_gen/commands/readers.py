"""Which extractor reads which data, so that the figures of a configuration follow its data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

import lightning_gen.data
from lightning_gen.data.datasets import MNIST, Digits, FashionMNIST
from lightning_gen.data.scenes import Scenes
from lightning_gen.data.toy import PointDataModule
from lightning_gen.extractors.classifier import classifier_file
from lightning_gen.files import cache_folder

INCEPTION = "InceptionFeatures"
READS = {
    "SceneFeatures": "reads built-in scenes",
    "PointFeatures": "reads points",
    "ClassifierFeatures": "knows the classes of other data",
    INCEPTION: "reads pictures in colour",
}


def reads(extractor: Mapping[str, Any]) -> str:
    """What an extractor (its "class_path" and "init_args") is made for, in words; empty where it may read any data."""
    name = str(extractor["class_path"]).rpartition(".")[2]
    own = name not in READS or name == INCEPTION or (extractor.get("init_args") or {}).get("weights")
    return "" if own else f"{name} {READS[name]}"


def follow_data(config: Namespace) -> list[str]:
    """Let the callbacks that measure samples suit the data that was chosen, or leave them out.

    A configuration names an extractor for its own data; where other data takes its place, that extractor would refuse
    the pictures, or look in them for what is not there. So points are read as points, built-in scenes by the reader of
    their size and domain, MNIST and FashionMNIST by their classifiers. For other data there is none at hand, and the
    callback is left out. An extractor of the user's own, one with weights of their own, and Inception by name stay.

    `trainer.callbacks` of a subcommand's configuration is changed in place; the words say how.
    """
    path, _, name = str(config.data.class_path).rpartition(".")
    data, settings = getattr(sys.modules.get(path), name, None), config.data.init_args  # the parser has imported it
    if not isinstance(config.trainer.callbacks, list) or not isinstance(data, type):
        return []
    words: list[str] = []
    kept: list[Namespace] = []
    for callback in config.trainer.callbacks:
        kind = str(callback.class_path).rpartition(".")[2]
        if kind == "PointMetrics" and not issubclass(data, PointDataModule):
            words.append(f"PointMetrics is left out: it measures points, and the data is {name}.")
            continue
        given = callback.init_args.get("extractor") if kind == "GenerativeMetrics" else None
        reader = INCEPTION if given is None else str(given.class_path).rpartition(".")[2]
        if kind == "GenerativeMetrics" and (given is None or reads(given.as_dict())):
            own = _reader_of(data, settings)
            why = f"{reader} {READS[reader]}, and the data is {name}"
            if _suits(reader, given, data, settings):
                if given is not None and own is not None:
                    given.init_args.update(own.init_args)
            elif own is not None:
                words.append(f"GenerativeMetrics takes {own.class_path.rpartition('.')[2]}: {why}.")
                callback.init_args.extractor = own
            else:
                words.append(
                    f"GenerativeMetrics is left out: {why}. An extractor that you name brings it back, as in "
                    f"--trainer.callbacks.extractor {INCEPTION}."
                )
                continue
        kept.append(callback)
    config.trainer.callbacks = kept
    return words


def _suits(reader: str, given: Namespace | None, data: type, settings: Namespace) -> bool:
    """Whether an extractor is for data of this class."""
    if reader == "SceneFeatures":
        return issubclass(data, Scenes)
    if reader == "PointFeatures":
        return issubclass(data, PointDataModule)
    if reader == "ClassifierFeatures":
        return given is not None and str(given.init_args.get("data")).lower() == data.__name__.lower()
    # Data of which this is not known is asked when training starts.
    return not issubclass(data, (PointDataModule, MNIST, FashionMNIST, Digits)) and settings.get("channels") != 1


def _reader_of(data: type, settings: Namespace) -> Namespace | None:
    """The extractor for data of a class of this package; None where there is none."""
    known = issubclass(data, (PointDataModule, Scenes, MNIST, FashionMNIST))
    if not known or not data.__module__.startswith("lightning_gen.data"):
        return None
    arguments: dict[str, Any]
    made = data(**settings.as_dict())
    if isinstance(made, PointDataModule):
        name, arguments = "PointFeatures", {"dimensions": made.image_shape[0]}
    elif isinstance(made, Scenes):
        name, arguments = "SceneFeatures", {"image_size": list(made.size), "domain": made.domain}
    else:
        name, arguments = "ClassifierFeatures", {"data": data.__name__, "image_shape": list(made.image_shape)}
    return Namespace(class_path=f"lightning_gen.metrics.{name}", init_args=Namespace(**arguments))


def train_missing_classifiers(config: Namespace) -> None:
    """Train what `ClassifierFeatures` in a configuration would look for in the cache in vain, in processes of its own.

    So the random state of this one stays as it was. Under a launcher of several processes nothing is trained, and the
    extractor says what is missing.
    """
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1:
        return
    for callback in config.trainer.callbacks or ():
        extractor = (callback.get("init_args") or Namespace()).get("extractor")
        if not isinstance(extractor, Namespace) or not extractor.class_path.endswith(".ClassifierFeatures"):
            continue
        wanted = extractor.init_args
        if wanted.get("weights") or not (wanted.get("data") and wanted.get("image_shape")):
            continue
        # The configuration may be a stranger's, so nothing in it becomes a class, or an option, of the new command.
        if not hasattr(lightning_gen.data, wanted.data) or classifier_file(wanted.data, wanted.image_shape).is_file():
            continue
        print(f"There is no classifier for {wanted.data} yet: training one, which takes about a minute.", flush=True)
        command = [sys.executable, "-m", "lightning_gen", "fit", "--config", "classifier", "--data", wanted.data]
        own = config.data.init_args if config.data.class_path.endswith(f".{wanted.data}") else Namespace()
        for name in ("root", "download", "image_size", "pad", "num_workers"):
            if own.get(name) is not None:
                command.append(f"--data.{name}={own.get(name)}")
        subprocess.run([*command, f"--trainer.default_root_dir={cache_folder() / 'runs'}"], check=True)
