"""One command, one file of figures: those of the callback, and each says what it is of."""

import gc
import hashlib
import json
import math
import shutil
import weakref
from functools import cache, partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from benchmarks.shipped import small_model
from lightning_gen.callbacks.generative_metrics import GenerativeMetrics
from lightning_gen.commands.evaluate import evaluate, with_run
from lightning_gen.data import Digits
from lightning_gen.data.base import examples_of
from lightning_gen.data.images import from_uint8, read_image, to_float, to_uint8, write_image
from lightning_gen.evaluation import sources
from lightning_gen.evaluation.bench import Bench
from lightning_gen.evaluation.engine import Evaluation
from lightning_gen.evaluation.sources import evenly_spaced, shape_of
from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.generative import GenerativeModule
from lightning_gen.metrics import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance, PrecisionRecall
from lightning_gen.models import GAN, VQVAE, CycleGAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator, PatchDiscriminator, ResNetGenerator
from lightning_gen.randomness import generator_for
from lightning_gen.runs.figures import Figure
from tests.shared import save

SHAPE = (1, 8, 8)
SETTINGS = {"num_samples": 90, "batch_size": 32, "splits": 3, "block_size": 40, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


class Quarters(FeatureExtractor):
    """The mean of each quarter of a picture, in levels, and as logits how dark each is."""

    def __init__(self, channels: int = 1, classes: bool = True) -> None:
        super().__init__(
            nn.Identity(),
            name="quarters4",
            preprocessing="none",
            num_features=4,
            num_classes=4 if classes else None,
            image_shape=(channels, None, None),
        )

    def extract(self, images):
        features = nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1)
        return Features(features, -features / 20 if self.num_classes else None)


def quarters(images):
    """The features of float pictures `[N, C, 8, 8]`, without any of what is tested: float64 `[N, 4]`."""
    levels = np.rint((images.numpy().astype(np.float64) + 1) * 127.5).clip(0, 255)
    return np.stack([levels[:, :, y : y + 4, x : x + 4].mean((1, 2, 3)) for y in (0, 4) for x in (0, 4)], axis=1)


def frechet(x, y):
    """By the formula."""
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root


@cache
def digits(split):
    return torch.stack([to_float(image) for image in Digits().load(split)[0]])


class Digit(GenerativeModule):
    """Draws nothing new: training or test digits, with some levels of noise."""

    def __init__(
        self, image_shape: tuple[int, int, int], split: str = "test", noise: float = 0.0, num_classes: int | None = None
    ) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.split, self.noise, self.num_classes = split, noise, num_classes
        self.weight = nn.Parameter(torch.zeros(1))

    def sample(self, num_samples, *, labels=None, generator=None):
        pictures = digits(self.split)
        images = pictures[torch.randint(len(pictures), (num_samples,), generator=generator)]
        if labels is not None:
            images[:, :, 0, 0] = labels[:, None] / 5 - 1
        return (images + self.noise * torch.randn(images.shape, generator=generator)).clamp(-1, 1)

    def test_step(self, batch, batch_idx):
        pass


def small(num_classes=None, seed=0):
    generator, discriminator = partial(MLPGenerator, widths=(16,)), partial(MLPDiscriminator, widths=(4,))
    model = GAN(SHAPE, generator, discriminator, latent_size=5, num_classes=num_classes)
    weights = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.normal_(generator=weights)
    return model


def strict(constant):
    raise AssertionError(f"{constant} is no JSON")


def entries(path):
    """The evaluations in a file, without when they were made."""
    found = json.loads(Path(path).read_text(), parse_constant=strict)["evaluations"]
    return [{key: value for key, value in entry.items() if key != "finished"} for entry in found]


def values(entry, key="figures"):
    return {name: figure["value"] for name, figure in entry[key].items()}


def measured(model="a.ckpt", **settings):
    """The last evaluation of a model or a checkpoint."""
    checkpoint = save(model, Path("a.ckpt")) if isinstance(model, nn.Module) else Path(model)
    settings = {"data": Digits(num_workers=0), "extractor": Quarters(), **SETTINGS, **settings}
    assert evaluate(str(checkpoint), **settings) == 0
    return entries(settings.get("output") or checkpoint.parent / "evaluations.json")[-1]


def drawn(model, number, seed=0, batch_size=32):
    """The samples, batch by batch: `[number, C, H, W]`."""
    batches = []
    for first in range(0, number, batch_size):
        places = torch.arange(first, min(first + batch_size, number))
        labels = None if model.num_classes is None else places % model.num_classes
        batches.append(model.sample(len(places), labels=labels, generator=generator_for(seed, first // batch_size)))
    return torch.cat(batches)


# -- the figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_classes", "precision"), [(None, "32-true"), (10, "32-true"), (None, "bf16-mixed")])
def test_figures_are_those_of_the_callback(num_classes, precision):
    model = small(num_classes)
    entry = measured(model, seeds=4, precision=precision)
    settings = {"batch_size": 32, "splits": 3, "block_size": 40, "num_samples": 90, "test_num_samples": 90, "seed": 4}
    callback = GenerativeMetrics(Quarters(), **settings)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", precision=precision, callbacks=[callback], **quiet)
    (results,) = trainer.test(model, datamodule=Digits(num_workers=0), verbose=False)
    logged = {name.removeprefix("test/"): value for name, value in results.items() if name.endswith("-quarters4")}
    figures = ["fid", "is", "is_std", "kid", "kid_stderr", "precision", "recall", "density", "coverage", "authpct"]
    assert logged.keys() == values(entry).keys() == {f"{name}-quarters4" for name in figures}
    for name, value in values(entry).items():
        assert np.float32(value) == np.float32(logged[name]), name


@pytest.mark.parametrize("make", [small, partial(small, 3), partial(Digit, SHAPE, noise=0.3, num_classes=10)])
def test_the_distance_is_that_of_the_formula(make):
    model = make()
    entry = measured(model, figures="fid", seeds=2)
    expected = frechet(quarters(digits("train")), quarters(drawn(model, 90, seed=2)))
    assert entry["figures"] == {
        "fid-quarters4": {"value": pytest.approx(expected, rel=1e-9), "samples": 90, "reference": 1470}
    }


def test_figures_are_those_of_the_metrics_whatever_the_order_of_the_files():
    """Splits and blocks are dealt by one rule; files named the other way round are the same pictures."""
    images, real = drawn(small(), 90), digits("test")
    for i, image in enumerate(images):
        write_image(Path(f"out/{i:06d}.png"), image)
        write_image(Path(f"back/{len(images) - i:06d}.png"), image)
    for i, image in enumerate(real):
        write_image(Path(f"real/{i:06d}.png"), image)
    figures = ["fid", "is", "kid", "prdc"]
    settings = {"reference": "real", "extractor": Quarters(), "figures": figures, "accelerator": "cpu"}
    settings |= {"splits": 3, "block_size": 40, "output": Path("images.json")}
    evaluate(images=Path("out"), **settings)
    evaluate(images=Path("back"), **settings)
    there, back = entries("images.json")
    assert {name: value for name, value in values(back).items() if not name.startswith("fid")} == {
        name: value for name, value in values(there).items() if not name.startswith("fid")
    }
    assert values(back)["fid-quarters4"] == pytest.approx(values(there)["fid-quarters4"], rel=1e-11)
    extractor = Quarters()
    score, distance = InceptionScore(extractor, splits=3), KernelInceptionDistance(extractor, subset_size=40)
    others = FrechetInceptionDistance(extractor), distance, PrecisionRecall(extractor)
    for batch in to_uint8(images).split(64):
        score.update(batch)
        for metric in others:
            metric.update(batch, real=False)
    for batch in to_uint8(real).split(100):
        for metric in others:
            metric.update(batch, real=True)
    fid, _, prdc = (metric.compute() for metric in others)
    expected = dict(zip(("is", "is_std", "kid", "kid_stderr"), (*score.compute(), *distance.compute()), strict=True))
    expected |= {"fid": fid, **prdc}
    assert values(there) == {f"{name}-quarters4": value.item() for name, value in expected.items()}


def test_several_seeds_have_a_mean_and_a_standard_deviation():
    model = small()
    by_seed = [values(measured(model, seeds=seed)) for seed in (0, 1, 5)]
    entry = measured(model, seeds=[0, 1, 5])
    assert entry["seeds"] == [0, 1, 5]
    for name, figure in entry["figures"].items():
        single = [figures[name] for figures in by_seed]
        assert figure["by_seed"] == single
        assert figure["value"] == pytest.approx(np.mean(single), rel=1e-12)
        assert figure["std"] == pytest.approx(np.std(single, ddof=1), rel=1e-9, abs=1e-12)
    assert entry["figures"]["fid-quarters4"]["std"] > 0


def test_the_floor_is_that_of_the_test_pictures():
    entry = measured(small(), floor=True, max_features=50)
    test, train = quarters(digits("test")), quarters(digits("train"))
    expected = frechet(train, test[[i * 164 // 90 for i in range(90)]])
    assert entry["floor"]["fid-quarters4"] == {
        "value": pytest.approx(expected, rel=1e-9),
        "samples": 90,
        "reference": 1470,
    }
    assert entry["floor"]["precision-quarters4"]["samples"] == entry["floor"]["precision-quarters4"]["reference"] == 50
    entry = measured(num_samples=1000, floor=True)
    assert entry["floor"]["fid-quarters4"]["value"] == pytest.approx(frechet(train, test), rel=1e-9)
    assert entry["floor"]["fid-quarters4"]["samples"] == 164
    assert entry["figures"]["fid-quarters4"]["samples"] == 1000


def test_pictures_of_a_folder_are_measured_as_samples_are():
    model = small()
    expected = measured(model, floor=True)
    for i, image in enumerate(drawn(model, 90)):
        write_image(Path(f"out/part {i // 50}/{i:06d}.png"), image)
    settings = {**SETTINGS, "num_samples": None, "floor": True}
    settings |= {"data": Digits(num_workers=0), "extractor": Quarters(), "output": Path("images.json")}
    evaluate(images=Path("out"), **settings)
    (entry,) = entries("images.json")
    assert entry["figures"] == expected["figures"]
    assert entry["floor"] == expected["floor"]
    assert entry["protocol"]["num_samples"] == entry["samples"]["count"] == 90
    assert entry["samples"]["images"] == "out"
    assert entry["seeds"] is None
    # A few of them are spread over the folder, and so are the first ones, which figures of neighbours take.
    evaluate(images=Path("out"), **settings | {"num_samples": 30, "figures": ["fid", "prdc"], "max_features": 10})
    entry = entries("images.json")[-1]
    chosen = quarters(torch.stack([to_float(read_image(p, 1)) for p in sorted(Path("out").rglob("*.png"))])[::3])
    assert entry["figures"]["fid-quarters4"]["value"] == pytest.approx(frechet(quarters(digits("train")), chosen))
    assert entry["figures"]["recall-quarters4"]["samples"] == entry["figures"]["recall-quarters4"]["reference"] == 10


def test_a_folder_serves_as_reference():
    for i, image in enumerate(digits("test")):
        write_image(Path(f"real/{i:06d}.png"), image)
    model = small()
    entry = measured(model, data=None, reference="real", figures=["fid", "kid"])
    expected = frechet(quarters(digits("test")), quarters(drawn(model, 90)))
    assert values(entry)["fid-quarters4"] == pytest.approx(expected, rel=1e-9)
    of_split = measured(reference="test", figures=["fid", "kid"])
    assert of_split["figures"] == entry["figures"]
    assert entry["figures"]["fid-quarters4"]["reference"] == 164


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_in_the_channels_of_the_model_and_else_of_the_extractor(channels):
    for i, image in enumerate(digits("test")[:40]):
        write_image(Path(f"real/{i:06d}.png"), image)
    extractor = Quarters(channels, classes=False)
    settings = {**SETTINGS, "num_samples": 40, "figures": "fid", "reference": "real", "data": None}
    evaluate(images=Path("real"), **settings, extractor=extractor, output=Path("a.json"))
    assert values(entries("a.json")[0])["fid-quarters4"] == pytest.approx(0, abs=1e-6)
    extractor.image_shape = (None, None, None)
    measured(Digit((1, 8, 8)), **settings, extractor=extractor)


def test_statistics_serve_in_place_of_the_data():
    whole = measured(small(), save_statistics=Path("s/train.npz"))
    measured(save_statistics=Path("s/train.pt"))
    train = quarters(digits("train"))
    with np.load("s/train.npz") as file:
        assert file["mu"] == pytest.approx(train.mean(0), rel=1e-6)
        assert file["sigma"] == pytest.approx(np.cov(train, rowvar=False), rel=1e-5)
    entry = measured(data=None, reference="s/train.pt")
    assert entry["figures"] == whole["figures"]
    entry = measured(data=None, reference="s/train.npz")
    assert set(values(entry)) == {"fid-quarters4", "is-quarters4", "is_std-quarters4"}
    assert values(entry)["fid-quarters4"] == pytest.approx(values(whole)["fid-quarters4"], rel=1e-12)
    assert entry["figures"]["fid-quarters4"]["reference"] is None  # such a file does not say
    # The floor needs the data all the same.
    entry = measured(reference="s/train.npz", floor=True)
    assert values(entry, "floor")["fid-quarters4"] == pytest.approx(
        frechet(train, quarters(digits("test"))[[i * 164 // 90 for i in range(90)]])
    )


# -- neighbours -----------------------------------------------------------------------------------------------------


class TwoCopies(Digit):
    """Test digits; the sample 5 of each batch is a training digit, and sample 6 almost another one."""

    def sample(self, num_samples, *, labels=None, generator=None):
        images = super().sample(num_samples, generator=generator).flip(0)  # no picture is that of a smaller batch
        images[5:7] = digits("train")[[334, 10]]
        images[6, 0, 0, 0] += 0.5
        return images


class Pixels(FeatureExtractor):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), name="pixels64", preprocessing="none", num_features=64, image_shape=SHAPE)

    def extract(self, images):
        return Features(self.network(images.float()))


def cells(path):
    """The pictures of the grid, `[8, 8 columns, 8, 8]` levels."""
    grid = np.asarray(Image.open(path))[..., 0]
    header = grid.shape[0] - 8 * 98
    rows = [[grid[header + r * 98 :, 2 + c * 98 :][:96:12, :96:12] for c in range(8)] for r in range(8)]
    return torch.tensor(np.array(rows))


def test_copies_are_found_and_stand_first():
    settings = {"extractor": Pixels(), "num_samples": 90, "max_features": 735}  # every other training digit
    entry = measured(TwoCopies(SHAPE), **settings, neighbours=Path("new/n.png"))
    train, drawings = to_uint8(digits("train"))[::2, 0], to_uint8(drawn(TwoCopies(SHAPE), 90))[:, 0]
    shown = cells("new/n.png")
    for row in range(3):
        assert torch.equal(shown[row, 0], train[167])
        assert torch.equal(shown[row, 1], train[167])
        assert torch.equal(shown[3 + row, 0], drawings[6])
        assert torch.equal(shown[3 + row, 1], train[5])
    # Every pair: the right one is the nearest training digit of the left one, and the pairs on the left come in order.
    distances = []
    for column in (0, 2, 4, 6):
        for row in range(8):
            gaps = (train.double() - shown[row, column].double()).flatten(1).norm(dim=1)
            distances.append(gaps.min())
            assert torch.equal(train[gaps.argmin()], shown[row, column + 1])
    assert distances[:16] == sorted(distances[:16])
    gaps = torch.cdist(drawings.double().flatten(1), train.double().flatten(1)).amin(1)
    assert torch.stack(distances[:16]) == pytest.approx(gaps.sort().values[:16].numpy())
    others = [i * 90 // 16 for i in range(16)]
    assert all(torch.equal(shown[i % 8, 4 + 2 * (i // 8)], drawings[place]) for i, place in enumerate(others))
    assert entry["memorisation_ratio"]["samples"] == 90
    assert entry["memorisation_ratio"]["training"] == 735
    assert entry["memorisation_ratio"]["validation"] == 163


def test_the_ratio_tells_copies_from_new_pictures():
    settings = {"neighbours": Path("n.png"), "extractor": Pixels(), "num_samples": 400, "figures": "fid"}
    train, val, test = (digits(split).flatten(1).double() for split in ("train", "val", "test"))
    expected = torch.cdist(test, train).amin(1).median() / torch.cdist(val, train).amin(1).median()
    assert measured(Digit(SHAPE), **settings)["memorisation_ratio"]["value"] == pytest.approx(expected.item(), rel=0.1)
    assert measured(Digit(SHAPE, "train"), **settings)["memorisation_ratio"]["value"] == 0
    noisy = measured(Digit(SHAPE, "train", 0.05), **settings)["memorisation_ratio"]["value"]
    assert 0.05 < noisy < 0.5


# -- the file -------------------------------------------------------------------------------------------------------


def test_an_evaluation_says_what_it_is_of():
    entry = measured(save(small(), Path("a.ckpt"), global_step=700))
    assert entry["samples"] == {
        "checkpoint": "a.ckpt",
        "sha256": hashlib.sha256(Path("a.ckpt").read_bytes()).hexdigest(),
        "class": "lightning_gen.models.GAN",
        "global_step": 700,
    }
    assert entry["protocol"] == {
        "figures": ["fid", "is", "kid", "prdc", "authpct"],
        "num_samples": 90,
        "splits": 3,
        "k": 5,
        "block_size": 40,
        "max_features": 10_000,
        "batch_size": 32,
        "precision": "32-true",
    }
    assert entry["extractor"] == Quarters().record
    assert entry["reference"]["data"] == "Digits"
    assert entry["reference"]["split"] == "train"
    assert entry["versions"]["torch"] == torch.__version__.partition("+")[0]
    numbers = {name.removesuffix("-quarters4"): (f["samples"], f["reference"]) for name, f in entry["figures"].items()}
    assert numbers == {
        **dict.fromkeys(("is", "is_std"), (90, None)),
        **dict.fromkeys(("kid", "kid_stderr"), (90, 90)),
        **dict.fromkeys(("fid", "precision", "recall", "density", "coverage", "authpct"), (90, 1470)),
    }


def test_what_is_not_a_number_is_null(monkeypatch):
    monkeypatch.setattr(Evaluation, "figures", lambda self, reference: {"fid": math.nan, "is": math.inf, "kid": -0.5})
    assert list(values(measured(small(), seeds=[0, 1])).values()) == [None, None, -0.5]


def test_what_is_known_is_not_measured_again(capsys, monkeypatch):
    measured(small())
    before = Path("evaluations.json").stat(), Path("evaluations.json").read_bytes()
    capsys.readouterr()
    Path("b.ckpt").write_bytes(Path("a.ckpt").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(GAN, "sample", lambda *_, **__: pytest.fail("drawn again"))
        measured()
        measured("b.ckpt")
    assert capsys.readouterr().out.count("measured before, see evaluations.json") == 2
    assert (Path("evaluations.json").stat(), Path("evaluations.json").read_bytes()) == before
    assert len(list(Path().glob("*.json"))) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"num_samples": 91},
        {"seeds": 1},
        {"k": 4},
        {"reference": "val"},
        {"extractor": Quarters(classes=False)},
        {"precision": "bf16-mixed"},
        {"max_features": 100},
    ],
)
def test_other_conditions_are_another_evaluation(other):
    first = measured(small())
    assert measured(**other) != first
    assert len(entries("evaluations.json")) == 2
    assert entries("evaluations.json")[0] == first


def test_a_checkpoint_that_changed_is_measured_again():
    first, second = measured(small()), measured(small(seed=1))
    assert entries("evaluations.json") == [first, second]
    assert values(first) != values(second)
    assert first["samples"]["checkpoint"] == second["samples"]["checkpoint"]


def test_what_is_missing_is_added():
    first = measured(small())
    other = measured(k=3)
    with_floor = measured(floor=True)
    assert entries("evaluations.json") == [other, with_floor]
    assert {key: value for key, value in with_floor.items() if key != "floor"} == first
    both = measured(neighbours=Path("n.png"))
    assert entries("evaluations.json") == [other, both]
    assert {key: value for key, value in both.items() if key != "memorisation_ratio"} == with_floor


def test_nobody_loses_what_another_wrote_in_the_meantime(monkeypatch):
    measure = Bench.measure

    def slow(*arguments, **settings):
        Path("evaluations.json").write_text('{"evaluations": [{"samples": {"sha256": "of another"}}]}')
        return measure(*arguments, **settings)

    monkeypatch.setattr(Bench, "measure", slow)
    entry = measured(small())
    assert entries("evaluations.json") == [{"samples": {"sha256": "of another"}}, entry]


def test_several_checkpoints_are_measured_one_by_one():
    for name, step in (("step=900", 900), ("step=1000", 1000)):
        save(small(seed=step), Path(f"run/checkpoints/{name}.ckpt"), global_step=step)
    shutil.copy("run/checkpoints/step=1000.ckpt", "run/checkpoints/last.ckpt")
    Path("run/config.yaml").write_text("{trainer: {}, data: null}")
    evaluate("run", data=Digits(num_workers=0), extractor=Quarters(), **SETTINGS)
    found = entries("run/evaluations.json")
    assert [Path(entry["samples"]["checkpoint"]).name for entry in found] == ["last.ckpt", "step=900.ckpt"]
    # What was measured stays, whatever comes after it.
    Path("run/checkpoints/z.ckpt").write_bytes(save(small(seed=2), Path("run/checkpoints/b.ckpt")).read_bytes()[:999])
    with pytest.raises(ValueError, match=r"z\.ckpt is cut short or not a checkpoint"):
        evaluate("run", data=Digits(num_workers=0), extractor=Quarters(), **SETTINGS)
    assert [entry["samples"]["global_step"] for entry in entries("run/evaluations.json")] == [1000, 900, None]


def test_a_model_goes_when_it_is_measured(monkeypatch):
    """Several large ones need no more memory than one."""
    for name in "abc":
        save(small(), Path(f"run/{name}.ckpt"))
    loaded, alive = sources.load_model, []

    def load(*arguments):
        gc.collect()
        assert not any(model() for model in alive)
        model = loaded(*arguments)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(sources, "load_model", load)
    evaluate("run", data=Digits(num_workers=0), extractor=Quarters(), **SETTINGS, figures="fid")
    assert len(alive) == 3


def test_the_table_is_for_people(capsys):
    measured(small(), seeds=[0, 1], floor=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.ckpt: GAN, step None"
    assert lines[1].split() == ["value", "std", "samples", "reference", "floor"]
    figure, floor = (entries("evaluations.json")[0][key]["fid-quarters4"] for key in ("figures", "floor"))
    numbers = [figure["value"], figure["std"], 90, 1470, floor["value"]]
    assert lines[2].split() == ["fid-quarters4", *(f"{number:.6g}" for number in numbers)]
    assert "The floor is that of 90 test pictures." in lines
    assert lines[-2] == "Written to evaluations.json"


# -- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def run():
    """A function that makes the folder of a run with one checkpoint."""

    def make(name="run", model=None, extractor=Quarters, **data):
        checkpoint = save(model or small(), Path(name) / "checkpoints/last.ckpt", global_step=3)
        config = {
            "data": {"class_path": "lightning_gen.data.Digits", "init_args": {"num_workers": 0, **data}},
            "trainer": {"callbacks": None},
        }
        if extractor:
            arguments = {"num_samples": 10, "extractor": {"class_path": f"{extractor.__module__}.{extractor.__name__}"}}
            callbacks = [
                {"class_path": "lightning_gen.callbacks.EMA", "init_args": {}},
                {"class_path": "lightning_gen.callbacks.GenerativeMetrics", "init_args": arguments},
            ]
            config["trainer"]["callbacks"] = callbacks
        (Path(name) / "config.yaml").write_text(yaml.safe_dump(config))
        return checkpoint

    return make


ARGUMENTS = [part for name, value in SETTINGS.items() for part in (f"--{name}", value)]


def test_a_checkpoint_is_enough(run, command):
    run()
    ended = command("evaluate", "--checkpoint", "run", "--floor", *ARGUMENTS, "--seeds", "[0,1]")
    assert ended.code == 0, ended.err
    (entry,) = entries("run/evaluations.json")
    expected = measured("run/checkpoints/last.ckpt", seeds=[0, 1], floor=True, output=Path("b.json"))
    assert entry == expected


def test_the_data_of_the_run_can_be_altered(run, command):
    checkpoint = run(model=Digit((1, 12, 12)), extractor=None)
    arguments = ["--checkpoint", checkpoint, *ARGUMENTS, "--extractor", f"{__name__}.Quarters"]
    ended = command("evaluate", *arguments)
    assert "have the shape (1, 12, 12), but those of the reference train have (1, 8, 8)" in ended.err
    ended = command("evaluate", *arguments, "--data.pad", 2)
    assert "have the shape" not in ended.err
    ended = command("evaluate", *arguments, "--data.padd", 2)
    assert ended.code == 2
    assert "'padd' is not accepted" in ended.err


def test_arguments_are_completed_by_the_run(run):
    one, two = run("one"), run("two", batch_size=7)
    options = with_run(["--k", "3", "--checkpoint", str(one), str(two), "--floor", "--data.pad", "2"])
    assert options[:2] == [f'--checkpoint=["{one}", "{two}"]', "--floor=true"]
    assert json.loads(options[2].removeprefix("--data="))["class_path"] == "lightning_gen.data.Digits"
    assert options[3:] == [f'--extractor={{"class_path": "{__name__}.Quarters"}}', "--k", "3", "--data.pad", "2"]
    # What is named stays as it is.
    for arguments in (["--data", "MNIST", "--extractor", "X"], ["--data=MNIST", "--extractor=X"]):
        assert with_run(["--checkpoint", str(one), *arguments])[1:] == ["--data=MNIST", "--extractor=X"]
    # Statistics serve also where the data is not.
    assert not any("--data" in option for option in with_run(["--checkpoint", str(one), "--reference", "a.npz"]))
    assert any("--data" in o for o in with_run(["--checkpoint", str(one), "--reference", "a.npz", "--floor"]))
    for other in (run("three", pad=1), run("four", extractor=Pixels), run("five", extractor=None)):
        with pytest.raises(ValueError, match=r"runs that differ in their (data|extractor): name one, with --\1"):
            with_run(["--checkpoint", str(other), str(one)])
    assert with_run(["--images", "x", "--floor=false"]) == ["--floor=false", "--images", "x"]


@pytest.mark.parametrize("data", ["ImageFolder", "lightning_gen.data.ImageFolder", '{"class_path": "ImageFolder"}'])
def test_a_reader_of_the_runs_data_does_not_read_other_data(run, data, capsys):
    checkpoint = str(run(extractor=SceneFeatures))
    assert not any("extractor" in option for option in with_run(["--checkpoint", checkpoint, "--data", data]))
    assert capsys.readouterr().err == (
        "The run's extractor is not taken: SceneFeatures reads built-in scenes, and the data is ImageFolder.\n"
    )
    for arguments in (["--data", "Digits"], ["--data.pad", "1"], ["--reference", "photos"]):
        assert any("SceneFeatures" in option for option in with_run(["--checkpoint", checkpoint, *arguments]))
    assert any("Quarters" in option for option in with_run(["--checkpoint", str(run("two")), "--data", data]))
    assert capsys.readouterr().err == ""


def test_help_is_left_alone():
    assert with_run(["--help"]) == ["--help"]


def test_the_training_command_and_this_one_agree(tiny, command):
    tiny["model"] = {
        "class_path": "GAN",
        "init_args": {
            "generator": {"class_path": "MLPGenerator", "init_args": {"widths": [8]}},
            "discriminator": {"class_path": "MLPDiscriminator", "init_args": {"widths": [8]}},
        },
    }
    tiny["data"] = {"class_path": "Digits", "init_args": {"num_workers": 0}}
    settings = {"extractor": f"{__name__}.Quarters", "num_samples": 20, "test_num_samples": 90}
    metrics = {"class_path": "GenerativeMetrics", "init_args": settings | {"batch_size": 32, "block_size": 40}}
    tiny["trainer"] |= {"callbacks": [metrics, {"class_path": "EMA", "init_args": {"modules": ["generator"]}}]}
    ended = command("fit", "--config", tiny.write(), "--test_after_fit", "true")
    assert ended.code == 0, ended.err
    results = json.loads(Path("runs/gan/version_0/results.json").read_text())["metrics"]
    shown = f"Test fid-quarters4: {results['test/fid-quarters4']:.4g} (90 samples, 1470 real pictures)"
    assert shown in ended.out.splitlines()
    ended = command("evaluate", "--checkpoint", "runs/gan/version_0", *ARGUMENTS, "--splits", 10)
    assert ended.code == 0, ended.err
    for name, value in values(entries("runs/gan/version_0/evaluations.json")[0]).items():
        assert np.float32(value) == np.float32(results[f"test/{name}"]), name
    assert "Written to runs/gan/version_0/evaluations.json, shown in runs/gan/version_0/index.html\n" in ended.out
    following = (
        "lightning-gen evaluate --checkpoint runs/gan/version_0 --num_samples 90 --floor --neighbours nearest.png"
        " --trust tests"
    )
    assert ended.out.endswith(f"\nNext:\n  {following}\n")
    page = Path("runs/gan/version_0/index.html").read_text()
    figure = Figure.of("fid-quarters4").value(results["test/fid-quarters4"])
    assert f"<td>{figure}</td>" in page.partition("<h2>Evaluations</h2>")[2]
    assert "<th>measured</th>" in page, "when"
    assert command("report", "runs/gan/version_0").code == 0
    assert Path("runs/gan/version_0/index.html").read_text() == page


@pytest.mark.parametrize(("number", "first"), [(164, 164), (164, 10), (100, 200), (30, 7), (1, 1)])
def test_some_pictures_are_evenly_spaced(number, first):
    loader = Digits(num_workers=0).test_dataloader()
    chosen = examples_of(evenly_spaced(loader, number, first))
    places = chosen.indices
    assert sorted(places) == [i * 164 // number for i in range(number)]
    head = min(first, number)
    assert places[:head] == [sorted(places)[i * number // head] for i in range(head)]
    assert torch.equal(chosen[number // 2]["image"], digits("test")[places[number // 2]])
    assert shape_of(loader) == SHAPE


# -- what cannot be done --------------------------------------------------------------------------------------------


def folder(name="folder", sizes=((8, 8),) * 20, channels=1):
    for i, size in enumerate(sizes):
        write_image(Path(name) / f"{i}.png", from_uint8(torch.full((channels, *size), 10 * i, dtype=torch.uint8)))
    return Path(name)


def cyclegan():
    generator = partial(ResNetGenerator, filters=2, blocks=1)
    discriminator = partial(PatchDiscriminator, filters=2, layers=1)
    return CycleGAN((3, 8, 8), generator=generator, discriminator=discriminator)


MIXED = "mixed/1.png is 8 x 9 (height x width), but those of the reference train are 8 x 8. --resize bicubic brings"
LARGE = "large/0.png is 9 x 9 (height x width), but those of the reference train are 8 x 8. --resize bicubic brings"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": None}, "Give either --checkpoint or --images"),
        ({"images": Path("x")}, "Give either --checkpoint or --images"),
        ({"resize": "bicubic"}, "resize is for pictures of folders, as --images or as --reference; there are none."),
        ({"reference": "large"}, "large/0.png is 9 x 9 (height x width), but the model's pictures are 8 x 8."),
        ({"reference": "text"}, "text: 1 of 1 picture files cannot be read. no picture by its first bytes: 1 (0.png)."),
        ({"checkpoint": "none.ckpt"}, "There is no checkpoint at none.ckpt."),
        ({"checkpoint": "short.ckpt"}, "short.ckpt is cut short or not a checkpoint"),
        (
            {"checkpoint": "cyclegan.ckpt"},
            "holds a CycleGAN, which draws no pictures from noise. Let `lightning-gen tr",
        ),
        ({"checkpoint": "cyclegan.ckpt", "data": None}, "give the folder with the results as --images"),
        ({"data": None}, "There is no data with real pictures: name it"),
        ({"data": None, "reference": "folder", "floor": True}, "There is no data with real pictures: name it"),
        ({"data": None, "reference": "folder", "neighbours": Path("x.png")}, "There is no data with real pictures"),
        ({"reference": "nothing"}, "The reference nothing is none of train, val, test, nor a folder, nor a file."),
        ({"reference": "text.npz"}, "text.npz is cut short, damaged, or no .npz file"),
        ({"reference": "empty"}, "empty holds no pictures"),
        ({"reference": "test", "floor": True}, "The floor is that of the test pictures"),
        ({"data": Digits(pad=1)}, "have the shape (1, 8, 8), but those of the reference train have (1, 10, 10)"),
        ({"extractor": Quarters(3)}, "quarters4 takes pictures [3, height, width]; these are [1, 8, 8]."),
        ({"figures": "is", "extractor": Pixels()}, "is can't be computed: the extractor pixels64 has no classes"),
        ({"num_samples": 5}, "prdc needs at least 6 samples, got num_samples 5."),
        ({"num_samples": 0}, "fid needs at least 2 samples"),
        ({"num_samples": 27, "figures": "fid_infinity"}, "4 features need 28 samples, of 27"),
        ({"seeds": []}, "seeds must be different numbers, 0 or more, got []."),
        ({"seeds": [1, 1]}, "seeds must be different numbers"),
        ({"seeds": -1}, "seeds must be different numbers"),
        ({"save_statistics": Path("x.txt")}, "save_statistics must end in .pt or .npz, got x.txt."),
        ({"output": Path("text.npz")}, "text.npz is no file of evaluations"),
        ({"checkpoint": ["a.ckpt", "a.ckpt"], "neighbours": Path("x.png")}, "neighbours is one picture"),
        ({"checkpoint": None, "images": Path("empty")}, "empty holds no pictures"),
        ({"checkpoint": None, "images": Path("nowhere")}, "nowhere does not exist."),
        ({"checkpoint": None, "images": Path("mixed"), "num_samples": None}, MIXED),
        ({"checkpoint": None, "images": Path("folder")}, "folder has 20 pictures, fewer than the 90 of num_samples."),
        ({"checkpoint": None, "images": Path("large"), "num_samples": None}, LARGE),
    ],
)
def test_what_cannot_be_done_is_said(settings, message):
    save(small(), Path("a.ckpt"))
    if "cyclegan" in str(settings):
        save(cyclegan(), Path("cyclegan.ckpt"))
    Path("short.ckpt").write_bytes(Path("a.ckpt").read_bytes()[:999])
    Path("text.npz").write_text("text")
    Path("empty").mkdir()
    folder()
    folder("mixed", [(8, 8), (8, 9), *[(8, 8)] * 10])
    folder("large", [(9, 9)] * 20)
    Path("text").mkdir()
    Path("text/0.png").write_text("text")
    settings = {"checkpoint": "a.ckpt", "data": Digits(num_workers=0), "extractor": Quarters(), **SETTINGS, **settings}
    with pytest.raises((ValueError, OSError)) as error:
        evaluate(**settings)
    assert message in str(error.value)
    assert not Path("evaluations.json").exists()
    assert Path("text.npz").read_text() == "text"


def test_figures_of_samples_are_refused_before_weights_are_looked_for(monkeypatch):
    """Of a model that only reconstructs; by default the published Inception would read its pictures."""
    save(small_model(VQVAE, (1, 8, 8))(), Path("a.ckpt"))
    monkeypatch.setattr("lightning_gen.evaluation.protocol.InceptionFeatures", lambda: pytest.fail("looked for"))
    with pytest.raises(ValueError, match="fid can't be computed: this VQVAE draws no pictures; it has no sample"):
        evaluate(checkpoint="a.ckpt", data=Digits(num_workers=0), figures="fid", **SETTINGS)
    metrics = GenerativeMetrics(figures=["psnr", "kid"])
    with pytest.raises(ValueError, match="kid can't be computed: this VQVAE draws no pictures"):
        metrics.setup(
            pl.Trainer(logger=False, accelerator="cpu"), GenerativeModule.load_from_checkpoint("a.ckpt"), "fit"
        )


def test_points_have_no_neighbours_to_look_at():
    from lightning_gen.data import RingOfGaussians
    from lightning_gen.extractors.module import PointFeatures

    generator, discriminator = partial(MLPGenerator, widths=(8,)), partial(MLPDiscriminator, widths=(4,))
    save(GAN((2, 1, 1), generator, discriminator, latent_size=2), Path("a.ckpt"))
    settings = {"data": RingOfGaussians(num_train=500), "extractor": PointFeatures(), **SETTINGS}
    with pytest.raises(ValueError, match="neighbours draws pictures of 1 or 3 channels; these have 2"):
        measured(**settings, neighbours=Path("n.png"))
    assert set(values(measured(**settings))) >= {"fid-points2", "precision-points2"}
