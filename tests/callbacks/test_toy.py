"""The callbacks measure and draw what the model samples, at the right time, and training does not notice."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn

from lightning_gen.callbacks import EMA, PointCloud, PointMetrics
from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.toy import GridOfGaussians, Mixture, ParallelLines, SwissRoll, TwoGaussians
from lightning_gen.metrics.toy import wasserstein_1


class Sampler(pl.LightningModule):
    """Samples a distribution, moved by a weight that training moves by -1 a step from 0."""

    num_classes = None

    def __init__(self, distribution, moves=False):
        super().__init__()
        self.distribution = distribution
        self.moves = moves
        self.shift = nn.Parameter(torch.zeros(()))
        self.noise = []
        self.calls = []

    def sample(self, num_samples, *, labels=None, generator=None):
        self.calls.append((num_samples, torch.is_grad_enabled(), self.training))
        torch.rand(())  # as a model with noise of its own would
        points = self.distribution.sample(num_samples, generator)[:, :, None, None]
        return points + self.shift if self.moves else points

    def training_step(self, batch, batch_idx):
        self.noise.append(torch.rand(()).item())
        return self.shift

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_a_test_leads_with_modes_and_quality(tmp_path):
    truth = GridOfGaussians()
    callback = PointMetrics(num_samples=300, wasserstein_points=0)
    (results,) = trainer(tmp_path, [callback]).test(Sampler(truth.distribution), datamodule=truth)
    lines = [line.format(results[name]) for name, line in callback.headlines().items()]
    share = f"{results['test/high_quality']:.1%}"
    assert lines == ["Test modes covered: 25 of 25", f"Test samples of high quality: {share} (300 samples)"]
    assert callback.measured_on["test/modes"] == {"samples": 300, "most": 25}
    assert callback.measured_on["test/mode_kl"] == {"samples": 300}


def trainer(folder, callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {
        "max_epochs": 2,
        "log_every_n_steps": 1,
        "logger": CSVLogger(folder, "run"),
        "accelerator": "cpu",
        "devices": 1,
    }
    return pl.Trainer(callbacks=callbacks, **quiet, **settings, **options)


def grid():
    return GridOfGaussians(num_train=12, num_val=4, num_test=4, batch_size=4)


def fit(folder, model, callbacks, data=None, **options):
    torch.manual_seed(0)
    run = trainer(folder, callbacks, **options)
    run.fit(model, datamodule=data or grid())
    return run


def rows(run):
    """The logged rows, in order."""
    with (Path(run.logger.log_dir) / "metrics.csv").open(newline="") as table:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(table)]


# -- figures ----------------------------------------------------------------------------------------------------------


def test_a_model_that_samples_the_truth_has_all_modes(tmp_path):
    truth = grid().distribution
    run = fit(tmp_path, Sampler(truth), [PointMetrics()])
    figures = {name: value.item() for name, value in run.callback_metrics.items() if name.startswith("val/")}
    assert set(figures) == {"val/modes", "val/high_quality", "val/mode_kl", "val/wasserstein_1"}
    assert figures["val/modes"] == 25
    assert figures["val/high_quality"] >= 0.999  # the formula says 0.9997
    assert 0 < figures["val/wasserstein_1"] < 0.15  # 0 would mean that the noise of the truth was that of the samples


def test_a_collapsed_model_has_one_mode(tmp_path):
    truth = grid().distribution
    run = fit(tmp_path, Sampler(Mixture(truth.means[12:13], truth.std[12:13])), [PointMetrics()])
    assert run.callback_metrics["val/modes"] == 1
    assert run.callback_metrics["val/high_quality"] >= 0.999
    assert run.callback_metrics["val/mode_kl"].item() == pytest.approx(np.log(25), rel=1e-5)
    # All but 1 in 25 has to move; the mean distance of the grid to its middle.
    expected = truth.means.norm(dim=1).mean().item()
    assert run.callback_metrics["val/wasserstein_1"].item() == pytest.approx(expected, rel=0.05)


def test_figures_are_logged_at_every_validation_with_its_step_and_not_at_the_sanity_check(tmp_path):
    data = TwoGaussians(num_train=12, num_val=4, batch_size=4)
    callback = PointMetrics(num_samples=300, seed=5)
    model = Sampler(data.distribution, moves=True)
    run = fit(tmp_path, model, [callback], data)
    logged = [row for row in rows(run) if "val/wasserstein_1" in row]
    assert [row["step"] for row in logged] == [2, 5]  # Lightning counts from 0: after 3 and 6 steps
    drawn = data.distribution.sample(300, torch.Generator().manual_seed(5))
    true = data.distribution.sample(300, torch.Generator().manual_seed(6))
    for row, steps in zip(logged, (3, 6), strict=True):
        assert row["val/wasserstein_1"] == pytest.approx(wasserstein_1(drawn - steps, true), rel=1e-5)
        assert row["val/modes"] == 0
    assert model.calls == [(300, False, False)] * 2


def test_a_test_has_the_same_figures_under_its_own_name(tmp_path):
    data = grid()
    (results,) = trainer(tmp_path, [PointMetrics()]).test(Sampler(data.distribution), datamodule=data, verbose=False)
    assert set(results) == {"test/modes", "test/high_quality", "test/mode_kl", "test/wasserstein_1"}
    assert results["test/modes"] == 25


def test_a_truth_without_modes_has_its_distance(tmp_path):
    data = ParallelLines(0.5, num_test=4, batch_size=4)
    (results,) = trainer(tmp_path, [PointMetrics()]).test(Sampler(data.other), datamodule=data, verbose=False)
    assert set(results) == {"test/wasserstein_1"}
    assert results["test/wasserstein_1"] == pytest.approx(0.5, abs=0.01)


def test_averaged_weights_are_measured(tmp_path):
    class Averaged(Sampler):
        def __init__(self, distribution):
            super().__init__(distribution, moves=True)
            self.generator = nn.Module()
            self.generator.shift, self.shift = self.shift, None

        def sample(self, *args, **kwargs):
            return self.distribution.sample(args[0], kwargs["generator"])[:, :, None, None] + self.generator.shift

        def training_step(self, batch, batch_idx):
            return self.generator.shift

    data = TwoGaussians(num_train=12, num_val=4, batch_size=4)
    model = Averaged(data.distribution)
    run = fit(tmp_path, model, [EMA(modules=["generator"], decay=0.5), PointMetrics(num_samples=300)], data)
    # The weight is -6; its average with decay 1/2 lags behind.
    assert 4 < run.callback_metrics["val/wasserstein_1"] < 5.9


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [grid(), SwissRoll(num_train=12, batch_size=4), TwoGaussians(num_train=12, batch_size=4)]
)
def test_pictures_are_written_before_during_and_after(tmp_path, data):
    model = Sampler(data.distribution, moves=True)
    model.discriminator = lambda points: points.flatten(1).sum(1)
    run = fit(tmp_path, model, [PointCloud(every_n_steps=4, num_samples=50)], data, limit_val_batches=0)
    pictures = sorted((tmp_path / "run" / "version_0" / "images" / "samples").iterdir())
    assert [path.name for path in pictures] == [f"step_{step:08d}.png" for step in (0, 4, 6)]
    assert all(Image.open(path).size == (512, 512) for path in pictures)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    assert run.global_step == 6


def test_the_landscape_is_of_the_discriminator_and_can_be_left_out(tmp_path):
    asked = []

    def panel(**options):
        model = Sampler(grid().distribution)
        model.discriminator = lambda points: (asked.append(points.shape), points.flatten(1).sum(1))[1]
        model.num_classes = options.pop("num_classes", None)
        callback = PointCloud(**options)
        run = trainer(tmp_path, [callback])
        run.datamodule = grid()
        callback.setup(run, model, "fit")
        return np.asarray(callback.pictures(run, model, callback.panels, callback.inputs)["samples"])

    shown, left_out, conditional = panel(), panel(landscape=False), panel(num_classes=25)
    assert asked == [(64 * 64, 2, 1, 1)]
    assert (left_out == conditional).all()
    assert (shown != left_out).any()


def test_training_does_not_notice(tmp_path):
    alone, watched = Sampler(grid().distribution), Sampler(grid().distribution)
    fit(tmp_path / "a", alone, [])
    fit(tmp_path / "b", watched, [PointMetrics(100), PointCloud(1, 50)])
    assert alone.noise == watched.noise
    assert len(alone.noise) == 6


# -- what cannot work -------------------------------------------------------------------------------------------------


class Pixels(ImageDataModule):
    image_shape = (3, 8, 8)


@pytest.mark.parametrize("callback", [PointMetrics(), PointCloud()])
def test_models_without_samples_and_data_without_a_truth_are_refused(tmp_path, callback):
    run = trainer(tmp_path, [callback])
    name = type(callback).__name__
    with pytest.raises(
        TypeError, match=f"{name} needs a data module that knows its `distribution`.* got no data module"
    ):
        callback.setup(run, Sampler(None), "fit")
    run.datamodule = Pixels()
    with pytest.raises(TypeError, match="got Pixels"):
        callback.setup(run, Sampler(None), "fit")
    run.datamodule = grid()
    with pytest.raises(TypeError, match=f"{name} needs a model .*LightningModule has no `sample`"):
        callback.setup(run, pl.LightningModule(), "fit")


def test_points_in_space_cannot_be_drawn(tmp_path):
    callback = PointCloud()
    run = trainer(tmp_path, [callback])
    run.datamodule = pl.LightningDataModule()
    run.datamodule.distribution = Mixture([[0.0, 0.0, 0.0]], 1.0)
    with pytest.raises(ValueError, match="one or two coordinates, these have 3"):
        callback.setup(run, Sampler(None), "fit")


def test_options_that_cannot_work_are_refused():
    for options in ({"num_samples": 0}, {"wasserstein_points": -1}):
        with pytest.raises(ValueError, match="PointMetrics needs num_samples >= 1"):
            PointMetrics(**options)
    for options in ({"num_samples": 0}, {"size": 0}):
        with pytest.raises(ValueError, match="PointCloud needs num_samples >= 1"):
            PointCloud(**options)
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        PointCloud(0)
