"""What of a configuration follows its data: which extractor reads it, so that figures suit it, and how models grow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from lightning_gen.data.datasets import MNIST, Digits, FashionMNIST
from lightning_gen.data.scenes import Scenes
from lightning_gen.data.toy import PointDataModule

INCEPTION = "InceptionFeatures"
OF_PIXELS = ("psnr", "ssim")
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


def class_of(setting: Namespace) -> Any:
    """The class that a setting names, which the parser has imported; None where there is none."""
    path, _, name = str(setting.class_path).rpartition(".")
    return getattr(sys.modules.get(path), name, None)


def pictures_of(data: Namespace) -> Namespace:
    """The setting of the data module that has the pictures, where another gives their codes."""
    inner = data.init_args.get("data") if data.get("init_args") else None
    return inner if isinstance(inner, Namespace) and "class_path" in inner else data


def share_schedule(config: Namespace) -> None:
    """Let a model that grows, and is given no schedule, follow that of its data; `model` is changed in place."""
    if not config.get("model"):
        return
    growing = (config.data.get("init_args") or Namespace()).get("growing")
    model = config.model.get("init_args") or Namespace()
    if growing is not None and "growing" in model and model.growing is None:
        model.growing = growing.clone() if isinstance(growing, Namespace) else growing


def follow_data(config: Namespace) -> list[str]:
    """Let the callbacks that measure samples suit the data that was chosen, or leave them out.

    A configuration names an extractor for its own data; where other data takes its place, that extractor would refuse
    the pictures, or look in them for what is not there. So points are read as points, built-in scenes by the reader of
    their size and domain, MNIST and FashionMNIST by their classifiers. For other data there is none at hand, and the
    callback keeps what compares the pixels of reconstructions, where the model makes some, or is left out. An extractor
    of the user's own, one with weights of their own, and Inception by name stay.

    `trainer.callbacks` of a subcommand's configuration is changed in place; the words say how.
    """
    pictures = pictures_of(config.data)
    data, settings, name = class_of(pictures), pictures.init_args, str(pictures.class_path).rpartition(".")[2]
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
        alone = kind == "GenerativeMetrics" and set(callback.init_args.get("figures") or [INCEPTION]) <= set(OF_PIXELS)
        if kind == "GenerativeMetrics" and not alone and (given is None or reads(given.as_dict())):
            own = _reader_of(data, settings)
            why = f"{reader} {READS[reader]}, and the data is {name}"
            if _suits(reader, given, data, settings):
                if given is not None and own is not None:
                    given.init_args.update(own.init_args)
            elif own is not None:
                words.append(f"GenerativeMetrics takes {own.class_path.rpartition('.')[2]}: {why}.")
                callback.init_args.extractor = own
            else:
                figures = _without_extractor(config, callback, data)
                left = f"keeps {' and '.join(figures)} alone" if figures else "is left out"
                words.append(
                    f"GenerativeMetrics {left}: {why}. An extractor that you name brings {'all' if figures else 'it'} "
                    f"back, as in --trainer.callbacks.extractor {INCEPTION}."
                )
                if not figures:
                    continue
                callback.init_args.update(Namespace(extractor=None, figures=figures))
        kept.append(callback)
    config.trainer.callbacks = kept
    return words


def _without_extractor(config: Namespace, callback: Namespace, data: type) -> list[str]:
    """Those of a callback's figures of the model's reconstructions that compare pixels."""
    if not hasattr(class_of(config.model), "reconstruct"):
        return []
    possible = ["psnr"] if issubclass(data, Digits) else list(OF_PIXELS)  # digits are smaller than SSIM's window
    chosen = callback.init_args.get("figures")
    return [figure for figure in possible if chosen is None or figure in chosen]


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
