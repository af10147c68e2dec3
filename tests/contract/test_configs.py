"""Every shipped configuration keeps the contract. A new file in configs/ is tested by existing."""

import inspect
import itertools
import json
import math
import os
import pickle
import re
import struct
from pathlib import Path

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from torch import nn

import lightning_gen.data
import lightning_gen.models
from benchmarks.shipped import shrunk
from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.capabilities import (
    Completes,
    HasCodes,
    HasLatents,
    HasLogProb,
    Reconstructs,
    Samples,
    ScoresCaptions,
    Translates,
)
from lightning_gen.cli import main
from lightning_gen.commands.common import classes_in_turn
from lightning_gen.commands.inner_models import Parser
from lightning_gen.commands.sample import _batches
from lightning_gen.commands.trainer import Trainer
from lightning_gen.commands.training import CommandLine
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers import quantize
from lightning_gen.losses import levels_to_images, penalties
from lightning_gen.models import GAN, KDE, Classifier, CodePrior, GumbelVAE
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.models.likelihood import LikelihoodModule
from lightning_gen.models.training import TrainedModule
from lightning_gen.modes import evaluating
from tests.shared import differences

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))
SETTINGS = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in NAMES}
IS_PAPER = {name: name.startswith("paper/") for name in NAMES}

# What makes a run small besides its networks, by the name of the setting, wherever it stands.
SMALL = {
    "latent_size": 4,
    "num_codes": 16,
    "features": 8,
    "discriminator_start": 2,
    "discriminator_warmup": 1,
    "warmup_critic_updates": 2,
    "resize": 36,
    "crop": 32,
    "pool_size": 2,
    "num_components": 2,
    "top_k": 8,
    "num_orders": 1,  # of those that a batch draws from, which two processes do apart
}
POINT_METRICS = {"num_samples": 20, "wasserstein_points": 10}
READER = {"class_path": "lightning_gen.extractors.scene_reader.SceneReader", "init_args": {"height": 16, "width": 16}}
CAPTION_METRICS = {"num_samples": 2, "test_num_samples": 2, "reader": READER}
SCENES = {"class_path": "SceneFeatures", "init_args": {"num_scenes": 64, "epochs": 1}}
NUM_CLASSES = 10  # of MNIST and CIFAR-10


def shrunk_settings(config, root):
    """The configuration with small settings, and with `root` in place of a folder that a user would have."""
    if isinstance(config, dict):
        if config.get("class_path") == "PointMetrics":
            return {"class_path": "PointMetrics", "init_args": POINT_METRICS}
        if config.get("class_path") == "GenerativeMetrics":
            return {"class_path": "GenerativeMetrics", "init_args": shrunk_metrics(config.get("init_args", {}))}
        if config.get("class_path") == "CaptionMetrics":
            return {"class_path": "CaptionMetrics", "init_args": CAPTION_METRICS}
        if config.get("class_path") in ("FeatureDistance", "LPIPSDistance"):
            return {"class_path": "FeatureDistance", "init_args": {"extractor": SCENES}}
        sizes = {key: SMALL[key] for key, value in config.items() if key in SMALL and not isinstance(value, str)}
        others = {key: shrunk_settings(value, root) for key, value in config.items()}
        folder = root / "classes" if config.get("labels") else root
        return others | sizes | ({"root": str(folder)} if "root" in config else {})
    return [shrunk_settings(item, root) for item in config] if isinstance(config, list) else config


def shrunk_metrics(settings):
    """A few samples, and in place of weights that a user would have, the pixels themselves."""
    extractor = settings.get("extractor")
    if extractor == "SceneFeatures":
        extractor = SCENES
    elif extractor != "PointFeatures":
        extractor = {"class_path": "ModuleFeatures", "init_args": {"module": {"class_path": "torch.nn.Flatten"}}}
    return {"extractor": extractor, "num_samples": 12, "test_num_samples": 14, "batch_size": 8, "k": 1}


def parameter(cls, name):
    """An argument that a class takes, be it to hand it on to the class that it builds on; None if it does not."""
    found = (inspect.signature(each.__init__).parameters.get(name) for each in cls.__mro__)
    return next((each for each in found if each is not None), None)


def shrink_model(settings):
    """At most two critic updates a step; returns how many."""
    cls = getattr(lightning_gen.models, settings["class_path"])
    if issubclass(cls, AutoregressiveModule):
        # Classes begin alike, and are to differ after 4 steps; of a GPT the last layer begins at 0.
        settings["init_args"]["learning_rate"] = 0.3 if issubclass(cls, CodePrior) else 0.05
    if not issubclass(cls, GAN):
        return 1
    arguments = settings["init_args"]
    arguments["n_critic"] = min(arguments.get("n_critic", parameter(cls, "n_critic").default), 2)
    return arguments["n_critic"]


def model_class(settings):
    return getattr(lightning_gen.models, settings["model"]["class_path"])


def shrink_data(settings, batches):
    """Pictures and batches as small as the model can take, and if possible so many batches an epoch."""
    cls = model_class(settings)
    by_pixel = issubclass(cls, AutoregressiveModule) and not issubclass(cls, CodePrior)
    settings = settings["data"]
    if settings["class_path"] == "Codes":  # of a code for each 4 x 4 pixels or more
        settings["init_args"] |= {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0}
        settings = settings["init_args"]["data"]
    cls = getattr(lightning_gen.data, settings["class_path"])
    arguments = settings["init_args"]
    pairs = "Paired" in cls.__name__ or "Unpaired" in cls.__name__
    batch_size = 1 if pairs else 2  # a generator with batch norm needs two
    if batch_size > 1:
        arguments |= {"batch_size": batch_size, "eval_batch_size": 2}
    if "growing" in arguments:  # a batch fades in between those before and after
        arguments["growing"] = {"resolutions": [8, 16], "batch_sizes": [2], "stable_images": 3, "fade_images": 3}
    if parameter(cls, "num_train"):
        arguments |= {"num_train": batches * batch_size, "num_val": 2, "num_test": 2}
    elif parameter(cls, "num_val"):
        arguments["num_val"] = 4  # of 10 pictures
    if "image_size" in arguments or cls is lightning_gen.data.CIFAR10:
        arguments["image_size"] = 32 if pairs else 16
    if by_pixel and cls is not lightning_gen.data.Digits:
        arguments["image_size"] = 8  # each pixel is a step
    arguments["num_workers"] = 0


def write_mnist(folder, random):
    folder.mkdir(parents=True)
    for name, number in (("train", 10), ("t10k", 4)):
        for kind, shape in (("images-idx3", (number, 28, 28)), ("labels-idx1", (number,))):
            values = random.integers(0, 256 if "images" in kind else NUM_CLASSES, shape, np.uint8)
            head = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + values.tobytes())


def write_cifar10(folder, random):
    folder.mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        content = {"data": random.integers(0, 256, (2, 3072), np.uint8), "labels": [0, NUM_CLASSES - 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(NUM_CLASSES)]}))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder in which every layout finds a few pictures: folders of files, MNIST and CIFAR-10."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 2), ("test", 2)):
        for i in range(number):
            for domain in "AB":
                (root / f"{split}{domain}").mkdir(exist_ok=True)
                Image.fromarray(random.integers(0, 256, (40, 44, 3), np.uint8)).save(root / f"{split}{domain}/{i}.png")
            (root / split).mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 88, 3), np.uint8)).save(root / f"{split}/{i}.png")
            (root / f"{split}/{i}.txt").write_text(f"noise, the {'first' if i % 2 else 'second'} kind\n")
            of_class = root / "classes" / split / "ab"[i % 2]
            of_class.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(of_class / f"{i}.png")
    write_mnist(root / "MNIST" / "raw", random)
    write_cifar10(root / "cifar-10-batches-py", random)
    with pytest.MonkeyPatch.context() as patch:
        # The checksums are those of the full files.
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
        yield root


@pytest.fixture(scope="module")
def trained_first(tmp_path_factory):
    """Checkpoints of first stages, by the names of their configurations."""
    return tmp_path_factory.mktemp("first_stages"), {}


@pytest.fixture
def first_stages(trained_first, pictures, fresh_process):
    """Train the small copy of a configuration that another one names, once, and give its checkpoint."""
    folder, known = trained_first

    def train(name):
        if name not in known:
            place = folder / name.replace("/", "-").removesuffix(".yaml")
            settings = small_settings(name.removesuffix(".yaml"), place, pictures)
            settings["trainer"] |= {"max_steps": 2, "callbacks": None}
            # Few steps are to tell pictures apart.
            arguments = settings["model"]["init_args"]
            spread = {"num_codes": SMALL["num_codes"], "kmeans_iterations": 5}
            if parameter(model_class(settings), "quantizer"):
                arguments["quantizer"] = {"class_path": "VectorQuantizer", "init_args": spread}
            place.mkdir()
            (place / "small.yaml").write_text(yaml.safe_dump(settings))
            fresh_process(run, "fit", "--config", place / "small.yaml")
            known[name] = last_checkpoint(place)
        return known[name]

    return train


@pytest.fixture(params=NAMES)
def config(request, tmp_path, pictures, first_stages):
    """A small copy of one shipped configuration."""
    settings = small_settings(request.param, tmp_path, pictures)
    if "first_stage" in settings["model"]["init_args"]:
        settings["model"]["init_args"]["first_stage"] = str(first_stages(settings["model"]["init_args"]["first_stage"]))
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def small_settings(name, tmp_path, pictures):
    """A shipped configuration made small."""
    settings = shrunk(shrunk_settings(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), pictures))
    shrink_data(settings, batches=3)
    if "'labels': True" in str(settings["data"]):  # of `pictures`
        settings["model"]["init_args"]["num_classes"] = 2
    settings["trainer"] |= {
        "max_steps": 4,
        "max_epochs": None,
        "accelerator": "cpu",
        "precision": "32-true",
        "default_root_dir": str(tmp_path / "runs"),
        "val_check_interval": 2 * shrink_model(settings["model"]),
        "check_val_every_n_epoch": None,
        "limit_val_batches": 4,
        "limit_test_batches": 4,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings |= {
        "pictures": {"every_n_steps": 2, "num_images": 2},
        "checkpoint": {"every_n_steps": 4},
        "test_after_fit": False,
    }
    return settings


def run(*arguments):
    """A command as a user gives it; raises SystemExit unless it works."""
    try:
        main([*map(str, arguments), "--debug"])
    except SystemExit as stop:
        if stop.code:
            raise


def run_until_saved(*arguments):
    """The same, but the process dies, as by kill -9, when the first checkpoint has been written."""
    save = LastCheckpoint.save

    def save_and_die(self, trainer):
        save(self, trainer)
        os._exit(9)

    LastCheckpoint.save = save_and_die
    run(*arguments)


def last_checkpoint(root):
    (path,) = Path(root).rglob("last.ckpt")
    return path


def load(path):
    return torch.load(path, weights_only=True, map_location="cpu")


def firsts(traits):
    """The configurations with a trait that none before has; the papers' come last."""
    seen, found = set(), []
    for name in sorted(NAMES, key=IS_PAPER.get):
        found += [name] if traits(SETTINGS[name]) - seen else []
        seen |= traits(SETTINGS[name])
    return found


@pytest.mark.parametrize("config", firsts(lambda settings: {settings["model"]["class_path"]}), indirect=True)
def test_an_unknown_key_is_refused_by_name(config, capfd):
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"]["lamda"] = 1
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config)])
    assert stop.value.code == 2
    assert "lamda" in capfd.readouterr().err


def test_it_trains_counts_generator_updates_and_its_checkpoint_is_enough(config, tmp_path, fresh_process):
    fresh_process(run, "fit", "--config", config, "--trainer.precision", "bf16-mixed")
    path = last_checkpoint(tmp_path)
    checkpoint = load(path)
    assert checkpoint["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point())
    history = [json.loads(line) for line in (path.parent.parent / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if any(key.startswith("train/") for key in row)][-1] == 4
    assert all(isinstance(value, int | float) for row in history for value in row.values())
    assert (path.parent.parent / "index.html").is_file()
    # Whatever file a class is in tomorrow, the checkpoint finds it.
    names = re.findall(r"class_path': '(lightning_gen[\w.]+)'", str(checkpoint["hyper_parameters"]))
    assert names
    assert [name for name in names if name.count(".") > 2] == []

    model = GenerativeModule.load_from_checkpoint(path)
    assert not differences(checkpoint["state_dict"], model.state_dict())
    batches = sum(getattr(model, "critic_updates_before", lambda step: 1)(step) for step in range(4))
    assert model.images_seen == batches * settings_of(config)["data"]["init_args"].get("batch_size", 1)
    keeps_the_contract(model)
    # The command line needs no more than the file, either.
    fresh_process(run, "test", "--ckpt_path", path)
    assert json.loads((path.parent.parent / "results.json").read_text())


def settings_of(config):
    return yaml.safe_load(config.read_text())


def keeps_the_contract(model):
    capabilities = {
        Translates: translates, Samples: samples, HasLatents: generates, Classifier: classifies, HasLogProb: judges,
        Completes: completes, Reconstructs: reconstructs, HasCodes: has_codes, ScoresCaptions: scores,
    }  # fmt: skip
    checks = [check for capability, check in capabilities.items() if isinstance(model, capability)]
    assert checks
    for check in checks:
        check(model)


def untouched(model, function):
    """The result, floats, of a function that keeps what every capability promises."""
    result = untouched_by(model, function)
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert not result.requires_grad
    return result


def untouched_by(model, function):
    """The result of a function that leaves modes, buffers and the random state as they are."""
    model.train()
    next(model.children()).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    result = function()
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert not differences(buffers, dict(model.named_buffers()))
    return result


def translates(model):
    channels, height, width = model.image_shape
    for direction in model.directions:
        for size in ((height, width), (height + 3, width + 5)):
            images = torch.rand(2, channels, *size) * 2 - 1
            result = untouched(model, lambda x=images, d=direction: model.translate(x, d))
            assert result.shape == images.shape
            assert result.abs().max() <= 1
            assert torch.equal(result, model.translate(images, direction))
    with pytest.raises(ValueError, match="not 'AtoC'"):
        model.translate(images, "AtoC")


def are_pictures(model):
    """Points may lie anywhere."""
    return model.image_shape[1:] != (1, 1)


def samples(model):
    for number in (0, 1, 7):
        images = untouched(model, lambda n=number: model.sample(n))
        assert images.shape == (number, *model.image_shape)
        assert not are_pictures(model) or not number or images.abs().max() <= 1

    def draw(seed, **labels):
        return untouched(model, lambda: model.sample(7, generator=torch.Generator().manual_seed(seed), **labels))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(model.sample(7), model.sample(7))  # fresh entropy, whatever the global state
    torch.manual_seed(5)
    first = model.sample(2)
    torch.manual_seed(5)
    assert not torch.equal(first, model.sample(2))
    of_command = torch.cat([*_batches(model, 7, classes_in_turn(model, None), 1, 7, {})])
    assert torch.equal(untouched(model, lambda: model.sample(7, seed=1)), of_command)
    assert not torch.equal(model.sample(7, seed=2), of_command)
    assert model.sample(0, seed=1).shape == (0, *model.image_shape)
    with pytest.raises(ValueError, match="both given"):
        model.sample(7, seed=1, generator=torch.Generator())
    if model.num_classes is None:
        with pytest.raises(ValueError, match="labels"):
            model.sample(2, labels=0)
        return
    labels = torch.arange(7) % model.num_classes
    assert draw(0, labels=labels).shape == draw(0, labels=0).shape
    assert not torch.equal(draw(0, labels=labels), draw(0, labels=0))
    for wrong in (model.num_classes, -1, torch.zeros(3).long()):
        with pytest.raises(ValueError, match=r"[Ll]abels"):
            model.sample(2, labels=wrong)


def generates(model):
    def draw(number):
        return untouched(model, lambda: model.draw_latents(number, torch.Generator().manual_seed(0)))

    latents = draw(7)
    *maps, last = model.latent_shape
    assert latents.shape == (7, *maps, last)
    labels = None if model.num_classes is None else torch.arange(7) % model.num_classes
    images = untouched(model, lambda: model.generate(latents, labels))
    assert torch.equal(images, model.sample(7, labels=labels, generator=torch.Generator().manual_seed(0)))
    # A picture does not depend on the others of its batch.
    for part in (slice(0, 3), slice(3, 4), slice(5, 7)):
        alone = model.generate(latents[part], None if labels is None else labels[part])
        torch.testing.assert_close(alone, images[part], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"[Ll]atents"):
        model.generate(torch.zeros(2, *maps, last + 1), None if labels is None else labels[:2])


def of_levels(model, number):
    """Pictures of the model's levels."""
    levels = 256 if model.num_levels is None else model.num_levels
    chosen = torch.randint(levels, (number, *model.image_shape), generator=torch.Generator().manual_seed(0))
    return levels_to_images(chosen, levels)


def judges(model):
    images = of_levels(model, 5)
    noisy = "generator" in inspect.signature(model.log_prob).parameters  # a bound, a function of its generator

    def judge(pictures, seed=0):
        noise = {"generator": torch.Generator().manual_seed(seed)} if noisy else {}
        return model.log_prob(pictures, **noise).float()

    with torch.no_grad():
        log_prob = untouched(model, lambda: judge(images))
        assert log_prob.shape == (5,)
        assert (log_prob < 0).all()
        assert torch.equal(judge(images), log_prob)
        assert torch.equal(judge(images, seed=1), log_prob) != noisy
        # A picture does not depend on the others of its batch, nor its noise, but for its place.
        torch.testing.assert_close(judge(images.flip(0))[2], log_prob[2], rtol=1e-4, atol=1e-4)
        if not noisy:
            torch.testing.assert_close(judge(images[2:3]), log_prob[2:3], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Pictures must be"):
        model.log_prob(images[..., :-1])


def completes(model):
    images = of_levels(model, 3)
    known = torch.ones(model.image_shape[1:], dtype=torch.bool)
    known[2:-2, 2:-2] = False

    def complete(seed):
        return untouched(model, lambda: model.complete(images, known, generator=torch.Generator().manual_seed(seed)))

    assert torch.equal(complete(0), complete(0))
    assert not torch.equal(complete(0), complete(1))
    assert torch.equal(complete(0)[..., known], images[..., known])
    with pytest.raises(ValueError, match="mask"):
        model.complete(images, known[1:])


def random_pictures(model, number):
    return torch.rand(number, *model.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def reconstructs(model):
    images = random_pictures(model, 5)
    result = untouched(model, lambda: model.reconstruct(images))
    assert result.shape == images.shape
    assert not are_pictures(model) or result.abs().max() <= 1
    assert torch.equal(model.reconstruct(images), result)
    # A picture does not depend on the others of its batch.
    torch.testing.assert_close(model.reconstruct(images[2:3]), result[2:3], rtol=1e-4, atol=1e-4)
    assert model.reconstruct(images[:0]).shape == (0, *model.image_shape)
    for wrong in (images[..., :-1], images[:, :0], images[0]):
        with pytest.raises(ValueError, match="Pictures must be"):
            model.reconstruct(wrong)


def has_codes(model):
    images = random_pictures(model, 5)
    codes = untouched_by(model, lambda: model.codes(images))
    several = isinstance(model.code_shape, list)
    assert isinstance(codes, list if several else torch.Tensor)

    def listed(codes):
        return codes if several else [codes]

    def as_given(maps):
        return maps if several else maps[0]

    maps, shapes = listed(codes), listed(model.code_shape)
    assert [each.shape for each in maps] == [(5, *shape) for shape in shapes]
    for each in maps:
        assert each.dtype == torch.int64
        assert each.min() >= 0
        assert each.max() < model.num_codes
    for same, part in ((model.codes(images), slice(0, 5)), (model.codes(images[1:3]), slice(1, 3))):
        assert all(torch.equal(one, other[part]) for one, other in zip(listed(same), maps, strict=True))
    assert [each.shape for each in listed(model.codes(images[:0]))] == [(0, *shape) for shape in shapes]
    with pytest.raises(ValueError, match="Pictures must be"):
        model.codes(images[..., :-1])

    pictures = untouched(model, lambda: model.decode(codes))
    assert torch.equal(pictures, model.reconstruct(images)), "codes are not all that is left of pictures"
    assert model.decode(as_given([each[:0] for each in maps])).shape == (0, *model.image_shape)
    alone = model.decode(as_given([each[3:4] for each in maps]))
    torch.testing.assert_close(alone, pictures[3:4], rtol=1e-4, atol=1e-4)
    for wrong in (model.num_codes, -1):
        with pytest.raises(ValueError, match=f"got {wrong}"):
            model.decode(as_given([*maps[:-1], torch.full_like(maps[-1], wrong)]))
    for wrong, message in (
        ([*maps[:-1], maps[-1].float()], "int64"),
        ([*maps[:-1], maps[-1][:, 1:]], "Codes of this"),
        ([*maps[:-1], maps[-1][0]], "Codes of this"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode(as_given(wrong))
    with pytest.raises(ValueError, match="Codes of this"):
        model.decode([*maps, maps[0]])


def scores(model):
    images = torch.rand(5, *model.image_shape) * 2 - 1
    captions = ["a white house", "a house", "no house", "two trees", "one cloud"]
    found = untouched(model, lambda: model.score(images, captions))
    assert found.shape == (5,)
    torch.testing.assert_close(model.score(images[1:3], captions[1:3]), found[1:3], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs 5 captions"):
        model.score(images, captions[1:])


def classifies(model):
    with torch.no_grad(), evaluating(model):
        features, logits = model(torch.rand(5, *model.image_shape) * 2 - 1)
    assert features.shape[0] == 5
    assert features.min() >= 0
    assert logits.shape == (5, model.num_classes)


def ways_of_training(settings):
    """The classes that a configuration names, each also with those settings that make its steps another kind."""
    if isinstance(settings, list):
        return set().union(*map(ways_of_training, settings))
    if not isinstance(settings, dict):
        return set()
    ways = set().union(*map(ways_of_training, settings.values()))
    if "class_path" in settings:
        kinds = settings.get("init_args", {}).keys() & {
            "num_classes",
            "warmup_critic_updates",
            "generator_batch_factor",
        }
        ways |= {settings["class_path"], *(f"{settings['class_path']}.{kind}" for kind in kinds)}
    return ways


# A paper's recipe is its small sibling at another size, unless it trains in a way that none before it does.
TRAINED_APART = [*(name for name in NAMES if not IS_PAPER[name]), *filter(IS_PAPER.get, firsts(ways_of_training))]


def stops():
    """Config, loader processes and batches an epoch; the last two are the data module's matter, so once for each."""
    first_with_data = firsts(lambda settings: {settings["data"]["class_path"]})
    for name in TRAINED_APART:
        new_data = name in first_with_data
        if new_data:
            yield pytest.param(name, 2, 3, id=f"{name}-inside-workers")
        if not (IS_PAPER[name] and new_data):
            yield pytest.param(name, 0, 3, id=f"{name}-inside")
        if new_data and not IS_PAPER[name]:
            yield pytest.param(name, 0, 2, id=f"{name}-at-epoch-end")


@pytest.mark.parametrize(("config", "workers", "batches"), list(stops()), indirect=["config"])
def test_going_on_equals_never_having_stopped(config, tmp_path, fresh_process, workers, batches):
    """4 steps, against 2, a dead process and 2 more; the stop is inside an epoch of 3, or at the end of one of 2."""
    settings = settings_of(config)
    if settings["model"]["class_path"] == "KDE":
        batches = 5  # it trains for one pass
    shrink_data(settings, batches)
    settings["data"]["init_args"]["num_workers"] = workers
    settings["trainer"]["limit_train_batches"] = batches
    config.write_text(yaml.safe_dump(settings))
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    fresh_process(run, "fit", "--config", config, "--trainer.default_root_dir", through)
    arguments = ["fit", "--config", config, "--trainer.default_root_dir", stopped, "--checkpoint.every_n_steps", 2]
    fresh_process(run_until_saved, *arguments)
    middle = last_checkpoint(stopped)
    assert load(middle)["global_step"] == 2
    fresh_process(run, *arguments, "--ckpt_path", middle)

    expected, found = load(last_checkpoint(through)), load(last_checkpoint(stopped))
    assert found["global_step"] == 4
    # All but the accounts of Lightning's loops and of the callbacks, which tell of the stop itself.
    left_out = {"loops", "callbacks"}
    assert not differences(*({k: v for k, v in c.items() if k not in left_out} for c in (expected, found)))
    averages = [{k: v for k, v in c["callbacks"].items() if k.startswith("EMA")} for c in (expected, found)]
    assert not differences(*averages)
    # The run went on in its own folder, and its record has no gap and no double.
    steps = [json.loads(line)["step"] for line in (middle.parent.parent / "history.jsonl").read_text().splitlines()]
    assert sorted(set(steps) - {0}) == [1, 2, 3, 4]


class Witness(pl.Callback):
    """Asserts what must be equal on all ranks and what must not; keeps the gradients of each player's first update."""

    def __init__(self, path):
        self.path, self.gradients = path, {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        gradients = [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradients.setdefault(trainer.optimizers.index(optimizer), gradients)

    def on_train_end(self, trainer, module):
        assert trainer.global_step == 2
        if trainer.is_global_zero:
            # What has no gradients has the pictures themselves.
            torch.save({0: [module.centres]} if isinstance(module, KDE) else self.gradients, self.path)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.world_size > 1:
            state = module.state_dict()
            weights = torch.cat([state[name].flatten() for name, _ in module.named_parameters()])
            parts = [x for _, value in sorted(batch.items()) for x in (value if isinstance(value, list) else [value])]
            seen = torch.cat([x.flatten().float() for x in parts if isinstance(x, torch.Tensor)])
            for mine, equal in ((weights, True), (seen, False), (torch.rand(3), False)):
                others = [torch.empty_like(mine) for _ in range(trainer.world_size)]
                dist.all_gather(others, mine)
                assert torch.equal(others[0], others[1]) == equal


def share_draws(model):
    """Let rank r of W draw the rows r, r + W, ... of what one process would draw, as it is with the data."""
    seeds = itertools.count()

    def rows(draw, number):
        world, rank = model.trainer.world_size, model.trainer.global_rank
        return draw(number * world, torch.Generator().manual_seed(next(seeds)))[rank::world]

    if isinstance(model, HasLatents):
        model.latents = lambda num: rows(lambda n, g: model._draw_latents(n, model.device, g), num)
    if model.num_classes is not None:
        model.random_labels = lambda num: rows(lambda n, g: torch.randint(model.num_classes, (n,), generator=g), num)
    if isinstance(model, GumbelVAE):
        tokens = (math.prod(model.code_shape), model.num_codes)  # of one picture

        def noise(logits):
            pictures = rows(lambda n, g: torch.randn(n, *tokens, generator=g), len(logits) // tokens[0])
            return pictures.flatten(0, 1)

        quantize._gumbel = noise
    penalties._one_a_sample = lambda images: rows(lambda n, g: torch.rand(n, 1, 1, 1, generator=g), len(images))


# Adam would make whole steps of gradients that are rounding.
DESCENT = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}


def fit_with_witness(config, devices, path):
    settings = settings_of(config)
    settings.pop("test_after_fit", None)
    settings["trainer"] |= {"devices": devices, "max_steps": 2, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    settings["trainer"]["strategy"] = "ddp_fork" if devices > 1 else "auto"
    shrink_data(settings, batches=6)
    data = settings["data"]["init_args"]
    data["batch_size"] = data.get("batch_size", 1) * (1 if devices > 1 else 2)
    if "growing" in data:
        data["growing"]["batch_sizes"] = [data["batch_size"]]
    if settings["model"]["init_args"].get("n_critic"):
        settings["model"]["init_args"] |= {"generator_optimizer": DESCENT, "discriminator_optimizer": DESCENT}
    config.write_text(yaml.safe_dump(settings))
    cli = CommandLine(
        GenerativeModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        parser_class=Parser,
        save_config_callback=None,
        seed_everything_default=0,
        args=["--config", str(config)],
        run=False,
    )
    cli.trainer.callbacks.append(Witness(path))
    # Lightning refuses to fork where CUDA was touched; nothing here uses it.
    launching._check_bad_cuda_fork = lambda: None
    if devices > 1:  # plain ddp: no flag for unused parameters
        assert not cli.trainer.strategy._ddp_kwargs.get("find_unused_parameters", False)
    if isinstance(cli.model, HasLatents | GumbelVAE):
        share_draws(cli.model)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    tied = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return any(isinstance(each, tied) or getattr(each, "ties_samples", False) for each in cli.model.modules())


@pytest.mark.parametrize("config", TRAINED_APART, indirect=True)
def test_two_processes_hold_equal_weights_and_equal_one_process_with_the_joined_batch(config, tmp_path, fresh_process):
    original = config.read_text()
    tied = fresh_process(fit_with_witness, config, 2, tmp_path / "two.pt")
    if tied:
        return  # batch norm, its like and dropout: the mathematics itself depends on how the batch is cut
    config.write_text(original)
    fresh_process(fit_with_witness, config, 1, tmp_path / "one.pt")
    two, one = load(tmp_path / "two.pt"), load(tmp_path / "one.pt")
    assert two.keys() == one.keys()
    one_player = issubclass(model_class(settings_of(config)), LikelihoodModule | Classifier | TrainedModule)
    assert one.keys() == ({0} if one_player else {0, 1})
    for player, expected in one.items():
        # float32 sums in another order. A bias before instance norm has gradient zero but for rounding, so the absolute
        # tolerance goes by the player's largest gradient.
        largest = max(gradient.abs().max().item() for gradient in expected)
        assert largest > 1e-3
        for mine, theirs in zip(two[player], expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * largest)
