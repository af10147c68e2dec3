"""The classifier: it learns, counts rightly, keeps what evaluation needs, and refuses what it cannot learn from."""

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from lightning_gen import __version__
from lightning_gen.callbacks import EMA
from lightning_gen.data.base import ImageDataModule
from lightning_gen.extractors.classifier import ClassifierFeatures
from lightning_gen.generative import GenerativeModule
from lightning_gen.hyperparameters import CLASS_KEY
from lightning_gen.models.classifier import Classifier, one_cycle
from lightning_gen.networks.lenet import LeNet

SHAPE = (1, 8, 8)
CLASSES = 4
STEPS = 40

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from", "ignore:You defined a `validation_step`")


class Quadrants(ImageDataModule):
    """Noise with one bright quarter, which is the class. `wrong` validation pictures have the next class's label."""

    image_shape, num_classes = SHAPE, CLASSES

    def __init__(self, wrong=0, num_val=7, **settings):
        super().__init__(**{"batch_size": 16, "eval_batch_size": 3, "num_workers": 0} | settings)
        self.wrong, self.num_val = wrong, num_val

    def train_set(self):
        return quadrants(160, seed=0)

    def val_set(self):
        return quadrants(self.num_val, seed=1, wrong=self.wrong)

    test_set = val_set


class Labelled(Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, draw):
        return {"image": self.images[draw.index], "label": self.labels[draw.index]}


def quadrants(number, seed, wrong=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=draw)
    images = 0.2 * torch.randn(number, *SHAPE, generator=draw) - 0.7
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[:, top : top + 4, left : left + 4] += 1.4
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    return Labelled(images.clamp(-1, 1), labels)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small(**settings):
    pl.seed_everything(0, verbose=False)
    return Classifier(SHAPE, **{"num_classes": CLASSES, "num_features": 6, "learning_rate": 0.02} | settings)


def trainer(**settings):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    every = {"max_steps": STEPS, "val_check_interval": STEPS // 2, "check_val_every_n_epoch": None}
    return pl.Trainer(accelerator="cpu", **{**quiet, **every, **settings})


def fit(model, data=None, ckpt_path=None, **settings):
    t = trainer(**settings)
    t.fit(model, datamodule=data or Quadrants(), ckpt_path=ckpt_path)
    return t


def accuracy(model, dataset):
    """Share of the pictures told right, directly."""
    model.eval()
    with torch.no_grad():
        return (model(dataset.images)[1].argmax(1) == dataset.labels).double().mean().item()


# -- learning -------------------------------------------------------------------------------------------------------


def test_it_tells_apart_what_can_be_told_apart():
    model = small()
    fit(model)
    assert accuracy(model, quadrants(500, seed=2)) == 1
    assert model.images_seen == 16 * STEPS


def test_the_loss_is_the_cross_entropy_of_noisy_pictures():
    model = small(noise_std=0.3)
    seen = []
    model.network.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs[1].detach())))
    t = fit(model, max_steps=1, limit_val_batches=0)
    ((noisy, logits),) = seen
    loader = Quadrants().train_dataloader()
    loader.sampler.set_epoch(0)
    batch = next(iter(loader))
    images, labels = batch["image"], batch["label"]
    noise = noisy - images
    assert noise.std().item() == pytest.approx(0.3, rel=0.1)  # 1024 numbers: 5 deviations of their deviation
    expected = -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
    assert t.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)

    seen.clear()
    trainer().validate(model, datamodule=Quadrants(), verbose=False)
    assert torch.equal(torch.cat([images for images, _ in seen]), quadrants(7, seed=1).images)  # nothing added


def test_the_result_is_a_function_of_the_seed():
    def weights(seed, **settings):
        pl.seed_everything(seed, verbose=False)
        model = Classifier(SHAPE, CLASSES, 6, **settings)
        torch.rand(3)  # what anyone draws in between is nobody's business
        fit(model, max_steps=3, limit_val_batches=0)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(0), weights(0, noise_std=0.0))


@pytest.mark.parametrize("total", [1, 7, 100])
def test_the_rate_rises_to_its_peak_and_falls_to_zero_in_straight_lines(total):
    rates = [one_cycle(step, total) for step in range(total + 1)]
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert rates[-1] == 0
    if total == 100:
        assert rates[:30] == pytest.approx([(step + 1) / 30 for step in range(30)])
        assert rates[30:] == pytest.approx([(100 - step) / 70 for step in range(30, 101)])


class Rates(pl.Callback):
    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.used.append(optimizer.param_groups[0]["lr"])


def test_the_rate_goes_by_the_whole_run_also_where_it_is_made_longer_later(tmp_path):
    rates = Rates()
    t = fit(small(), max_steps=6, callbacks=[rates])
    assert rates.used == pytest.approx([0.02 * one_cycle(step, 6) for step in range(6)])
    t.save_checkpoint(tmp_path / "six.ckpt")
    rates = Rates()
    fit(small(), ckpt_path=tmp_path / "six.ckpt", max_steps=9, callbacks=[rates])
    assert rates.used == pytest.approx([0.02 * one_cycle(step, 9) for step in range(6, 9)])
    # Epochs set the end as well: 10 batches each.
    rates = Rates()
    fit(small(), max_steps=-1, max_epochs=1, val_check_interval=None, check_val_every_n_epoch=1, callbacks=[rates])
    assert rates.used == pytest.approx([0.02 * one_cycle(step, 10) for step in range(10)])


# -- counting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_val", [3, 7, 13])
def test_accuracy_counts_every_picture_once(num_val):
    """Batches of 3 with a ragged last one; a mean over batches or over classes would be another number."""
    model, data = small(), Quadrants(wrong=2, num_val=num_val)
    t = fit(model, data)
    exact = accuracy(model, data.val_set())
    assert exact == (num_val - 2) / num_val
    assert t.callback_metrics["val/accuracy"].item() == pytest.approx(exact)
    (results,) = t.test(model, datamodule=data, verbose=False)
    assert results == {"test/accuracy": pytest.approx(exact)}


class Alike(pl.Callback):
    """Asserts that all ranks judge with the same network, whose running statistics differ in training."""

    def __init__(self):
        self.differed = False

    def equal(self, module):
        mine = torch.cat([buffer.flatten().double() for buffer in module.network.buffers()])
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine)
        return torch.equal(*both)

    def on_train_batch_end(self, trainer, module, *_):
        self.differed |= not self.equal(module)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:  # which both ranks have
            assert self.equal(module)

    on_test_batch_start = on_validation_batch_start


def fit_on_two_ranks(path, num_val):
    launching._check_bad_cuda_fork = lambda: None  # Lightning refuses to fork where CUDA was touched; nothing uses it
    model, data, alike = small(), Quadrants(wrong=2, num_val=num_val, eval_batch_size=1), Alike()

    class Tested(pl.Callback):
        def on_train_end(self, trainer, module):
            assert alike.differed
            value = trainer.callback_metrics["val/accuracy"].item()
            path.with_suffix(f".{trainer.global_rank}").write_text(repr(value))

    fit(model, data, devices=2, strategy="ddp_fork", callbacks=[alike, Tested()], use_distributed_sampler=False)


@pytest.mark.parametrize("num_val", [6, 7])
def test_accuracy_over_uneven_ranks_is_that_of_the_kept_weights(fresh_process, tmp_path, cache, num_val):
    fresh_process(fit_on_two_ranks, tmp_path / "accuracy", num_val)
    kept = cache / "classifiers" / "quadrants-1x8x8.ckpt"
    exact = accuracy(Classifier.load_from_checkpoint(kept), quadrants(num_val, seed=1, wrong=2))
    for rank in range(2):
        assert float((tmp_path / f"accuracy.{rank}").read_text()) == pytest.approx(exact)
    described = torch.load(kept, weights_only=True)["classifier"]
    assert described["val_accuracy"] == pytest.approx(exact)
    assert described["images_seen"] == 2 * 16 * STEPS


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_what_is_kept_is_the_network_with_all_that_made_it(cache, capsys):
    model = small()
    t = fit(model, Quadrants(wrong=2))
    path = cache / "classifiers" / "quadrants-1x8x8.ckpt"
    assert [p for p in cache.rglob("*") if p.is_file()] == [path]
    assert f"Classifier: {path} (validation accuracy 71.43%)" in capsys.readouterr().out
    kept = torch.load(path, weights_only=True)
    assert kept["classifier"] == {
        "data": "Quadrants",
        "val_accuracy": pytest.approx(5 / 7),
        "steps": STEPS,
        "images_seen": 16 * STEPS,
        "seed": 0,
        "precision": "32-true",
        "lightning_gen": __version__,
        "torch": str(torch.__version__),
    }
    parameters = kept["hyper_parameters"]
    assert parameters[CLASS_KEY] == "lightning_gen.models.Classifier"
    assert (parameters["image_shape"], parameters["num_classes"], parameters["num_features"]) == ([1, 8, 8], 4, 6)
    # The network alone can be built from it, and the model too.
    network = LeNet(tuple(parameters["image_shape"]), num_classes=4, num_features=6)
    weights = {k.removeprefix("network."): v for k, v in kept["state_dict"].items() if k.startswith("network.")}
    network.load_state_dict(weights)
    images = quadrants(5, seed=3).images
    loaded = GenerativeModule.load_from_checkpoint(path)
    for other in (network, loaded):
        assert torch.equal(other.eval()(images)[0], model.eval()(images)[0])
    # An ordinary checkpoint says the same.
    t.save_checkpoint(path.with_name("ordinary.ckpt"))
    ordinary = torch.load(path.with_name("ordinary.ckpt"), weights_only=True)
    assert ordinary["classifier"] == kept["classifier"]
    assert ordinary["state_dict"].keys() == kept["state_dict"].keys()


def test_evaluation_finds_it(cache):
    model = small()
    fit(model)
    extractor = ClassifierFeatures(data="Quadrants", image_shape=SHAPE)
    assert (extractor.num_features, extractor.num_classes) == (6, CLASSES)
    pixels = torch.randint(256, (5, *SHAPE), dtype=torch.uint8)
    features, logits = extractor(pixels)
    expected = model.eval()(pixels / 127.5 - 1)
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-5)


def test_an_accuracy_belongs_to_the_weights_it_was_measured_on(tmp_path, cache):
    t = fit(small(), max_steps=15, val_check_interval=10)
    t.save_checkpoint(tmp_path / "15.ckpt")
    assert torch.load(tmp_path / "15.ckpt", weights_only=True)["classifier"]["val_accuracy"] is None
    t = fit(small(), max_steps=20, val_check_interval=10, ckpt_path=tmp_path / "15.ckpt")
    t.save_checkpoint(tmp_path / "20.ckpt")
    assert torch.load(tmp_path / "20.ckpt", weights_only=True)["classifier"]["val_accuracy"] == 1
    # Lightning's look at two batches before the first step is no validation.
    fit(small(), max_steps=0)
    (path,) = cache.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["classifier"]["val_accuracy"] is None
    # A run that is over already keeps what is known.
    fit(small(), max_steps=20, val_check_interval=10, ckpt_path=tmp_path / "20.ckpt")
    assert torch.load(path, weights_only=True)["classifier"]["val_accuracy"] == 1


def test_nothing_is_kept_where_nothing_should_be(cache):
    fit(small(keep=False), max_steps=2)
    fit(small(), fast_dev_run=True)
    model = small()
    trainer(max_steps=2).fit(model, Quadrants().train_dataloader(), Quadrants().val_dataloader())
    assert not cache.exists()


def test_averaged_weights_are_kept_where_the_run_keeps_them(cache):
    model, average = small(), EMA(["network"], decay=0.9)
    fit(model, max_steps=5, callbacks=[average])
    (path,) = cache.rglob("*.ckpt")
    kept = torch.load(path, weights_only=True)["state_dict"]
    for name, parameter in model.named_parameters():
        assert torch.equal(kept[name], average.average[name])
        assert not torch.equal(kept[name], parameter)


def test_a_full_disk_costs_a_warning_and_not_the_run(cache):
    cache.write_text("no folder")
    with pytest.warns(UserWarning, match="The classifier could not be kept: .*classifiers"):
        fit(small(), max_steps=2)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"noise_std": -0.1}, {"num_classes": 1}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        small(**settings)


@pytest.mark.parametrize(
    ("known", "message"),
    [(10, "num_classes=4, but Quadrants has 10 classes"), (None, "num_classes=4, but Quadrants has no labels")],
)
def test_data_of_other_classes_is_refused_before_training(monkeypatch, known, message):
    monkeypatch.setattr(Quadrants, "num_classes", known)
    with pytest.raises(ValueError, match=message):
        fit(small())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": torch.zeros(2, *SHAPE), "label": torch.tensor([0, 4])}, "Labels must lie in 0 .. 3 .* got 0 .. 4"),
        ({"image": torch.zeros(2, *SHAPE), "label": torch.tensor([-1, 3])}, "Labels must lie in 0 .. 3 .* got -1 .. 3"),
        ({"image": torch.zeros(2, *SHAPE)}, "needs a 'label'"),
        ({"image": torch.zeros(1, *SHAPE), "label": torch.tensor([0])}, "A batch of one picture"),
        ({"image": torch.zeros(2, 1, 9, 8), "label": torch.tensor([0, 1])}, r"shape \(1, 9, 8\)"),
    ],
)
def test_batches_it_cannot_learn_from_are_refused(batch, message):
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    with pytest.raises(ValueError, match=message):
        trainer(max_steps=2, val_check_interval=None).fit(small(), loader)


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match="the run has no end"):
        fit(small(), max_steps=-1, max_epochs=-1)


# -- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_learns_in_bfloat16_and_counts_exactly(precision, cache):
    data = Quadrants(wrong=2)
    t = fit(small(), data, precision=precision)
    assert t.callback_metrics["val/accuracy"].item() == pytest.approx(5 / 7)
    described = torch.load(next(cache.rglob("*.ckpt")), weights_only=True)["classifier"]
    assert described["precision"] == precision


def test_predictions_are_the_likeliest_classes():
    model, data = small(), Quadrants(num_val=8)
    t = fit(model, data)
    predicted = torch.cat(t.predict(model, datamodule=data))
    assert torch.equal(predicted, data.test_set().labels)


def test_the_network_is_all_that_a_checkpoint_carries():
    assert {name.partition(".")[0] for name in small().state_dict()} == {"network"}
