import copy
import json
import logging
import math
import re

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gen.callbacks import EMA, GenerativeMetrics, LastCheckpoint
from lightning_gen.data.images import to_uint8
from lightning_gen.evaluation import engine as evaluation
from lightning_gen.evaluation.pictures import as_read
from lightning_gen.evaluation.reference import reference_of_loader
from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.extractors.module import PointFeatures
from lightning_gen.generative import GenerativeModule
from lightning_gen.metrics import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance, PrecisionRecall
from lightning_gen.metrics.frechet import frechet_distance_between
from lightning_gen.randomness import generator_for
from lightning_gen.runs.folder import find_checkpoint
from tests.shared import tile

SHAPE = (1, 2, 2)
SETTINGS = {"num_samples": 70, "test_num_samples": 90, "batch_size": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Painter(GenerativeModule):
    """Pictures of a level, which training raises by 0.1 a step, with noise from dropout wherever it is not off."""

    num_classes = None

    def __init__(self, image_shape=SHAPE, num_classes=None):
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.painter = nn.Linear(4, 4)
        nn.init.zeros_(self.painter.bias)
        self.dropout = nn.Dropout(0.9)
        self.asked = []

    def sample(self, num_samples, *, labels=None, generator=None):
        self.asked.append((num_samples, None if labels is None else labels.tolist()))
        noise = torch.randn(num_samples, 4, generator=generator, dtype=torch.float32).to(self.painter.weight.dtype)
        assert not torch.is_grad_enabled()
        torch.rand(1)  # a model that breaks its promise must not move the training
        return self.dropout(self.painter(noise)).float().clamp(-1, 1).view(-1, *self.image_shape)

    def training_step(self, batch, batch_idx):
        images, _ = self.images_and_labels(batch)
        unmoved = 0 * (self.painter.weight.sum() + self.dropout(images.sum()) + torch.rand(()))
        loss = unmoved - self.painter.bias.sum()
        self.log("train/chance", torch.rand(()))
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Pixels(FeatureExtractor):
    """Two sums of pixels; remembers what it was given."""

    def __init__(self, num_classes=None):
        network = nn.Linear(4, 2, bias=False)
        network.weight.data = torch.tensor([[1.0, 0.5, 0.25, 0.125], [1.0, -1.0, 1.0, -1.0]]) / 255
        super().__init__(
            network, name="pixels2", preprocessing="none", num_features=2, num_classes=num_classes, image_shape=SHAPE
        )
        self.seen = []

    def extract(self, images):
        self.seen.append(images.clone())
        features = self.network(images.flatten(1).float())
        return Features(features, features.repeat(1, 2)[:, : self.num_classes] if self.num_classes else None)


class Data(pl.LightningDataModule):
    def __init__(self, num=64, batch_size=8):
        super().__init__()
        levels = torch.Generator().manual_seed(5)
        self.pictures = torch.randint(0, 256, (num, *SHAPE), generator=levels).float() / 127.5 - 1
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.pictures), self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.pictures[:8]), 4)

    test_dataloader = val_dataloader


class Copies(Painter):
    """Draws training pictures, slightly darker, in an order of its own."""

    def sample(self, num_samples, *, labels=None, generator=None):
        picture = torch.arange(num_samples) * 5 % 64
        return (Data().pictures[picture] - 1 / 127.5).clamp(min=-1)


def test_samples_are_shown_beside_the_training_pictures_that_the_extractor_finds_nearest(tmp_path):
    callback = GenerativeMetrics(Pixels(), ["fid"], **SETTINGS)
    run = trainer_of(tmp_path, callback, logger=CSVLogger(tmp_path, "run"))
    run.fit(Copies(), datamodule=Data())
    run.test(Copies(), datamodule=Data())
    images = tmp_path / "run" / "version_0" / "images"
    found = {path.relative_to(images).as_posix() for path in images.rglob("*.png")}
    assert found == {f"nearest/step_0000000{step}.png" for step in (2, 4)} | {"test_nearest/step_00000004.png"}
    grid = torch.from_numpy(np.array(Image.open(images / "nearest" / "step_00000004.png"))).permute(2, 0, 1)
    real = to_uint8(Data().pictures)
    for i in range(8):
        row, column = i % 4, 2 * (i // 4)
        shown = [tile(grid, row, column + beside, rows=4)[:1, ::4, ::4] for beside in (0, 1)]
        assert torch.equal(shown[0], (real[5 * i].int() - 1).clamp(min=0).to(torch.uint8))
        assert torch.equal(shown[1], real[5 * i])


def test_nothing_is_shown_where_no_training_pictures_are_compared_with_or_there_is_no_folder(tmp_path):
    for callback, logger in (
        (GenerativeMetrics(Pixels(), ["fid"], reference="val", **SETTINGS), CSVLogger(tmp_path, "run")),
        (GenerativeMetrics(Pixels(), ["fid"], **SETTINGS), False),
    ):
        trainer_of(tmp_path, callback, logger=logger).fit(Painter(), datamodule=Data())
    assert not list(tmp_path.rglob("*.png"))


def trainer_of(folder, *callbacks, **settings):
    settings = {
        "max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 1,
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "default_root_dir": folder,
    } | settings  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **settings)


def fitted(folder, *callbacks, model=None, **settings):
    torch.manual_seed(3)
    model = model or Painter()
    trainer = trainer_of(folder, *callbacks, **settings)
    trainer.fit(model, datamodule=Data())
    return model, trainer


@pytest.mark.parametrize("factor", [255.0, float("nan")])
def test_real_pictures_of_another_range_are_refused_not_clipped(factor):
    data = TensorDataset(Data().pictures * factor)
    with pytest.raises(ValueError, match=r"An evaluation takes pictures in \[-1, 1\], but the data h"):
        reference_of_loader(Pixels(), DataLoader(data, 8), name="Data", split="train", max_features=8, moments=True)


def levels_seen(extractor):
    """Mean of the pictures of each pass of 70 samples that it was given, after the 64 real ones."""
    images = torch.cat(extractor.seen)[64:].float()
    return images.split(70)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_exactly_num_samples_are_drawn_at_each_validation_in_evaluation_mode_and_none_in_the_sanity_check(tmp_path):
    extractor = Pixels()
    model, _trainer = fitted(tmp_path, GenerativeMetrics(extractor, **SETTINGS))
    assert [size for size, _ in model.asked] == 2 * [16, 16, 16, 16, 6]
    first, second = levels_seen(extractor)
    assert len(first) == len(second) == 70
    noise = torch.cat([torch.randn(n, 4, generator=generator_for(0, b)) for b, n in enumerate([16] * 4 + [6])])
    images = model.painter(noise).detach().clamp(-1, 1)  # the last validation comes after the last step
    assert torch.equal(second.flatten(1), (images + 1).mul(127.5).round())


def test_a_test_draws_its_own_number_and_logs_under_test(tmp_path):
    callback = GenerativeMetrics(Pixels(), **SETTINGS)
    model, trainer = fitted(tmp_path, callback)
    model.asked.clear()
    (results,) = trainer.test(model, datamodule=Data(), verbose=False)
    assert sum(size for size, _ in model.asked) == 90
    assert set(results) >= {f"test/{name}-pixels2" for name in ("fid", "kid", "precision", "coverage", "authpct")}
    assert "test/is-pixels2" not in results  # the extractor has no classes


def test_the_figure_is_the_frechet_distance_to_the_training_pictures(tmp_path):
    extractor = Pixels()
    _, trainer = fitted(tmp_path, GenerativeMetrics(extractor, **SETTINGS))
    real = Data().pictures.add(1).mul(127.5).round().flatten(1).double() @ extractor.network.weight.T.double()
    fake = levels_seen(extractor)[1].flatten(1).double() @ extractor.network.weight.T.double()
    expected = frechet_distance_between(real, fake)
    assert trainer.callback_metrics["val/fid-pixels2"].item() == pytest.approx(expected, rel=1e-5)


def test_classes_take_turns_over_all_batches(tmp_path):
    model, _ = fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS), model=Painter(num_classes=3), max_steps=2)
    labels = [label for _, batch in model.asked for label in batch]
    assert labels == [i % 3 for i in range(70)]


@pytest.mark.parametrize(
    "average", [lambda: EMA(["painter"], 0.9, ramp_up=False), lambda: EMAWeightAveraging(decay=0.9)]
)
@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_measured_whatever_the_order_of_callbacks(tmp_path, average, first):
    extractor = Pixels()
    callbacks = [average(), GenerativeMetrics(extractor, **SETTINGS)]
    model, _ = fitted(tmp_path, *(callbacks if first else callbacks[::-1]))
    raw = model.painter.bias.detach()
    torch.testing.assert_close(raw, torch.full((4,), 0.4)) if not isinstance(callbacks[0], EMAWeightAveraging) else None
    late = levels_seen(extractor)[1].flatten(1) / 127.5 - 1
    noise = torch.cat([torch.randn(n, 4, generator=generator_for(0, b)) for b, n in enumerate([16] * 4 + [6])])
    torch.manual_seed(3)
    weight = Painter().painter.weight
    averages = {b: noise @ weight.T.detach() + b for b in (0.1, 0.2, 0.3, 0.4)}
    distance = {b: (late - images.clamp(-1, 1)).abs().max().item() for b, images in averages.items()}
    assert min(distance.values()) > 0.01  # none of the raw weights
    assert late.mean() < averages[0.4].clamp(-1, 1).mean()


def test_training_does_not_notice(tmp_path):
    class Watch(pl.Callback):
        def __init__(self):
            self.states = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.states.append((torch.get_rng_state(), np.random.get_state()[1].copy(), module.dropout.training))  # noqa: NPY002

    plain, watched = Watch(), Watch()
    alone, _ = fitted(tmp_path, plain)
    beside, _ = fitted(tmp_path, watched, GenerativeMetrics(Pixels(), **SETTINGS))
    for (torch_a, numpy_a, mode_a), (torch_b, numpy_b, mode_b) in zip(plain.states, watched.states, strict=True):
        assert torch.equal(torch_a, torch_b)
        assert np.array_equal(numpy_a, numpy_b)
        assert mode_a == mode_b
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), beside.parameters(), strict=True))


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_does_not_grow_by_a_byte(tmp_path):
    sizes = []
    for name, more in (("alone", []), ("beside", [GenerativeMetrics(Pixels(), **SETTINGS)])):
        model, trainer = fitted(tmp_path / name, *more)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        for loop in saved["loops"].values():
            loop.clear() if isinstance(loop, dict) else None
        saved.pop("callbacks", None)
        sizes.append({key: repr(value) for key, value in saved.items()})
        assert len(list(model.parameters())) == 2
    assert sizes[0] == sizes[1]


def test_a_run_that_goes_on_gives_the_figures_of_one_that_was_never_stopped(tmp_path):
    _whole_model, whole = fitted(tmp_path / "whole", GenerativeMetrics(Pixels(), **SETTINGS), max_steps=4)
    settings = {"max_steps": 2, "enable_checkpointing": True}
    fitted(tmp_path / "half", GenerativeMetrics(Pixels(), **SETTINGS), LastCheckpoint(every_n_steps=2), **settings)
    (last,) = (tmp_path / "half").rglob("last.ckpt")
    trainer = trainer_of(tmp_path / "half", GenerativeMetrics(Pixels(), **SETTINGS))
    trainer.fit(Painter(), datamodule=Data(), ckpt_path=last, weights_only=True)
    names = [name for name in whole.callback_metrics if name.startswith("val/")]
    assert len(names) >= 7
    for name in names:
        assert whole.callback_metrics[name].equal(trainer.callback_metrics[name]), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precision_of_the_trainer_does_not_reach_extractor_or_figures(tmp_path, precision):
    extractor = Pixels()
    _, trainer = fitted(tmp_path, GenerativeMetrics(extractor, **SETTINGS), precision=precision)
    assert extractor.network.weight.dtype == torch.float32
    assert all(images.dtype == torch.uint8 for images in extractor.seen)
    real = Data().pictures.add(1).mul(127.5).round().flatten(1).double() @ extractor.network.weight.T.double()
    fake = levels_seen(extractor)[1].flatten(1).double() @ extractor.network.weight.T.double()
    expected = frechet_distance_between(real, fake)
    assert trainer.callback_metrics["val/fid-pixels2"].item() == pytest.approx(expected, rel=1e-5)


def test_real_pictures_are_read_once_and_again_when_they_or_the_extractor_change(tmp_path, cache):
    def real_pictures_read(extractor):
        fitted(tmp_path, GenerativeMetrics(extractor, **SETTINGS), max_steps=2)
        return len(torch.cat(extractor.seen)) - 70

    assert real_pictures_read(Pixels()) == 64
    assert real_pictures_read(Pixels()) == 0
    assert real_pictures_read(Pixels(num_classes=2)) == 0  # the same weights
    other = Pixels()
    other.record["weights"] = "others"
    assert real_pictures_read(other) == 64
    for file in cache.rglob("*.pt"):
        file.write_bytes(file.read_bytes()[:-10])
    assert real_pictures_read(Pixels()) == 64
    assert real_pictures_read(Pixels()) == 0


def test_what_was_measured_stands_in_the_run_folder(tmp_path):
    fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS))
    assert not list(tmp_path.rglob("evaluation.json"))  # without a logger there is no run folder
    fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS), logger=pl.loggers.CSVLogger(tmp_path, "run", "one"))
    record = json.loads((tmp_path / "run" / "one" / "evaluation.json").read_text())
    assert record["samples"] == {"val": 70, "test": 90}
    assert record["reference"]["count"] == 64
    assert record["reference"]["split"] == "train"
    assert record["extractor"]["name"] == "pixels2"
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or record["versions"]["torch"]


def test_only_the_published_inception_has_plain_names(tmp_path):
    extractor = Pixels()
    extractor.standard = True
    _, trainer = fitted(tmp_path, GenerativeMetrics(extractor, **SETTINGS))
    assert {"val/fid", "val/kid", "val/precision"} <= trainer.callback_metrics.keys()
    _, trainer = fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS))
    assert not {"val/fid", "val/kid", "val/precision"} & trainer.callback_metrics.keys()


def test_an_evaluation_that_failed_leaves_nothing_to_the_next(tmp_path):
    extractor, model = Pixels(), Painter()
    callback = GenerativeMetrics(extractor, **SETTINGS)
    model.painter.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        fitted(tmp_path, callback, model=model)
    _, trainer = fitted(tmp_path, callback, num_sanity_val_steps=0)
    _, fresh = fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS))
    assert trainer.callback_metrics["val/fid-pixels2"] == fresh.callback_metrics["val/fid-pixels2"]


def test_the_time_is_told_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS))
    told = [r.getMessage() for r in caplog.records if "70 samples against 64 pictures" in r.getMessage()]
    assert len(told) == 1
    (took,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("GenerativeMetrics took")]
    spent, whole = map(float, re.findall(r"[\d.]+(?= of| s)", took))
    assert 0 <= spent <= whole


def test_a_checkpoint_can_be_chosen_by_a_figure(tmp_path):
    best = pl.callbacks.ModelCheckpoint(tmp_path, "best", monitor="val/fid-pixels2", mode="min")
    fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS), best, enable_checkpointing=True)
    assert best.best_model_score is not None
    assert (tmp_path / "best.ckpt").is_file()


def test_the_best_checkpoint_holds_the_averaged_weights_that_were_measured(tmp_path):
    """Levels go from below the data's to above them, so the best is neither the first nor the last."""

    class Values(pl.Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                values.append((trainer.global_step, trainer.callback_metrics["val/fid-pixels2"].item()))

    values, model = [], Painter()
    torch.nn.init.constant_(model.painter.bias, -0.45)
    callbacks = EMA(["painter"], 0.5), LastCheckpoint(best="val/fid-pixels2"), Values()
    fitted(
        tmp_path, GenerativeMetrics(Pixels(), **SETTINGS), *callbacks, model=model, enable_checkpointing=True,
        max_steps=16,
    )  # fmt: skip
    step, least = min(values, key=lambda value: value[1])
    assert 2 < step < 16
    found = find_checkpoint(tmp_path / "best")
    assert found.name == f"best-step={step}.ckpt"
    assert sorted(path.name for path in found.parent.iterdir()) == [found.name, "last.ckpt"]
    metrics = GenerativeMetrics(Pixels(), **SETTINGS)
    best = trainer_of(tmp_path, metrics).validate(Painter.load_from_checkpoint(found), datamodule=Data(), verbose=False)
    assert best[0]["val/fid-pixels2"] == least
    # The raw weights would be measured differently.
    raw = Painter()
    raw.load_state_dict(torch.load(found, weights_only=True)["raw_state_dict"])
    assert trainer_of(tmp_path, metrics).validate(raw, datamodule=Data(), verbose=False)[0]["val/fid-pixels2"] != least


def test_a_best_by_what_is_not_logged_is_refused_at_the_first_validation(tmp_path):
    callbacks = GenerativeMetrics(Pixels(), figures=["fid", "kid"], **SETTINGS), LastCheckpoint(best="val/fid")
    with pytest.raises(ValueError, match=r"'val/fid' \(checkpoint.best\), which .* It logs val/fid-pixels2, val/k"):
        fitted(tmp_path, *callbacks, enable_checkpointing=True)
    fitted(tmp_path / "quick", LastCheckpoint(best="val/fid"), enable_checkpointing=True, fast_dev_run=True)


# -- two processes ----------------------------------------------------------------------------------------------------


class Keep(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            figures = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            torch.save(figures, f"{self.path}_{trainer.global_rank}.pt")


def by_classes(real, fake, max_features):
    """The figures of the torchmetrics classes, of the pictures of all ranks."""
    extractor, settings = Pixels(num_classes=3), {"max_features": max_features}
    fid, score = FrechetInceptionDistance(extractor), InceptionScore(extractor, splits=5)
    kid, prdc = (
        KernelInceptionDistance(extractor, subset_size=30, **settings),
        PrecisionRecall(extractor, 3, **settings),
    )
    for metric in (fid, kid, prdc):
        for images in real:
            metric.update(images, real=True)
        for images in fake:
            metric.update(images, real=False)
    for images in fake:
        score.update(images)
    computed = (fid.compute(), *score.compute(), *kid.compute(), *prdc.compute().values())
    names = ("fid", "is", "is_std", "kid", "kid_stderr", "precision", "recall", "density", "coverage")
    return {name: value.item() for name, value in zip(names, computed, strict=True)}


def fit_on(devices, path, max_features=10_000):
    launching._check_bad_cuda_fork = lambda: None  # Lightning refuses to fork where CUDA was touched; nothing uses it
    exact = {}
    original = evaluation.from_rank_zero

    def noted(value):
        value = original(value)
        if isinstance(value, dict) and "fid" in value:
            exact.update(value)
        return value

    evaluation.from_rank_zero = noted
    extractor = Pixels(num_classes=3)
    metrics = GenerativeMetrics(extractor, splits=5, k=3, block_size=30, max_features=max_features, **SETTINGS)

    class Exact(pl.Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                torch.save(dict(exact), f"{path}_exact_{trainer.global_rank}.pt")
                # The pictures that this rank has read; the real ones were one batch, of rank 0.
                pictures, number = list(extractor.seen), 1 - trainer.global_rank
                figures = by_classes(pictures[:number], pictures[number:], max_features)
                torch.save(figures, f"{path}_classes_{trainer.global_rank}.pt")

    strategy = "ddp_fork" if devices > 1 else "auto"
    fitted(path.parent, metrics, Keep(path), Exact(), devices=devices, strategy=strategy, max_steps=2)


@pytest.mark.parametrize("max_features", [10_000, 32])  # of 64 real pictures and 70 samples
def test_two_processes_give_the_figures_of_one_and_the_classes_give_them_to_the_bit(
    tmp_path, fresh_process, cache, max_features
):
    fresh_process(fit_on, 1, tmp_path / "one", max_features)
    for file in cache.rglob("*.pt"):
        file.unlink()  # two processes shall read the real pictures together, too
    fresh_process(fit_on, 2, tmp_path / "two", max_features)
    logged = torch.load(tmp_path / "two_0.pt")
    assert logged == torch.load(tmp_path / "two_1.pt")
    one, two = torch.load(tmp_path / "one_exact_0.pt"), torch.load(tmp_path / "two_exact_0.pt")
    assert set(one) == set(two) >= {"fid", "is", "kid", "precision", "density", "authpct"}
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, rel=1e-9, abs=1e-12) if name == "fid" else value), name
    for figures, path in ((one, "one_classes_0.pt"), (two, "two_classes_0.pt"), (two, "two_classes_1.pt")):
        classes = torch.load(tmp_path / path)
        if math.isnan(classes["kid_stderr"]):  # of a single block
            del classes["kid_stderr"]
        assert classes.items() == figures.items() - {("authpct", figures["authpct"])}


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_model_that_draws_nothing(tmp_path):
    class Silent(Painter):
        sample = None

    with pytest.raises(TypeError, match=r"GenerativeMetrics needs .* Silent has no `sample`"):
        fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS), model=Silent())


def test_pictures_that_are_no_numbers_are_named(tmp_path):
    model = Painter()
    model.painter.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"16 of 16 pictures in a batch have values that are not finite"):
        fitted(tmp_path, GenerativeMetrics(Pixels(), **SETTINGS), model=model)


def test_figures_that_cannot_be_had(tmp_path):
    with pytest.raises(ValueError, match="is can't be computed: the extractor pixels2 has no classes"):
        fitted(tmp_path, GenerativeMetrics(Pixels(), ["is"], **SETTINGS))
    with pytest.raises(ValueError, match="authpct can't be computed: it asks for copies of training pictures"):
        fitted(tmp_path, GenerativeMetrics(Pixels(), ["authpct"], reference="val", **SETTINGS))
    with pytest.raises(ValueError, match="prdc needs at least 6 samples, got num_samples 5"):
        GenerativeMetrics(Pixels(), ["prdc"], num_samples=5)
    with pytest.raises(ValueError, match=r"figures must be some of fid, .*; got fit"):
        GenerativeMetrics(Pixels(), ["fit"])


def test_fewer_real_pictures_than_a_figure_needs(tmp_path):
    trainer = trainer_of(tmp_path, GenerativeMetrics(Pixels(), k=8, reference="val", **SETTINGS))
    with pytest.raises(ValueError, match="prdc needs at least 9 real pictures, but val has 8"):
        trainer.fit(Painter(), datamodule=Data())


def test_no_pictures_to_compare_with(tmp_path):
    torch.manual_seed(0)
    model = Painter()
    trainer = trainer_of(tmp_path, GenerativeMetrics(Pixels(), reference="test", **SETTINGS))
    loaders = Data()
    with pytest.raises(ValueError, match="looks at the test pictures, but the trainer has no loader"):
        trainer.fit(model, loaders.train_dataloader(), loaders.val_dataloader())


def test_points_are_read_as_they_are():
    points = torch.rand(7, 2, 1, 1) * 2 - 1
    assert torch.equal(as_read(points, PointFeatures(dimensions=2)), points)


def test_copies_of_the_callback_share_nothing(tmp_path):
    callback = GenerativeMetrics(Pixels(), **SETTINGS)
    copied = copy.deepcopy(callback)
    fitted(tmp_path, callback)
    assert copied.compared_with is None
    assert copied.extractor.seen == []


def test_without_an_extractor_it_is_the_published_inception(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(InceptionFeatures, "__init__", lambda self: made.append(self))
    callback = GenerativeMetrics(**SETTINGS)
    assert made == []  # not before a trainer starts: the weights are large
    with pytest.raises(AttributeError):
        fitted(tmp_path, callback)
    assert len(made) == 1


def test_a_network_that_is_no_extractor_is_to_be_made_one():
    with pytest.raises(TypeError, match=r"got a Flatten. A network of yours becomes one as ModuleFeatures\(network\)"):
        GenerativeMetrics(nn.Flatten())


def test_a_score_alone_reads_no_real_pictures_and_a_kernel_distance_computes_no_moments(tmp_path, monkeypatch):
    extractor = Pixels(num_classes=3)
    _, trainer = fitted(tmp_path, GenerativeMetrics(extractor, ["is"], **SETTINGS))
    assert sum(map(len, extractor.seen)) == 2 * 70  # two validations
    assert trainer.callback_metrics["val/is-pixels2"] >= 1
    monkeypatch.setattr(evaluation.Moments, "update", lambda *_: pytest.fail("moments for a kernel distance"))
    _, trainer = fitted(tmp_path, GenerativeMetrics(Pixels(), ["kid"], **SETTINGS))
    assert "val/kid-pixels2" in trainer.callback_metrics
