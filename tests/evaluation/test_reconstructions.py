"""Figures of reconstructions: those of the formulas, the same from the callback and from the command."""

import json
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from lightning_gen.callbacks import EMA, GenerativeMetrics
from lightning_gen.commands.evaluate import evaluate
from lightning_gen.data import Digits
from lightning_gen.data.images import to_float, to_uint8
from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.evaluation.reconstructions import Originals
from lightning_gen.evaluation.sources import loader_of
from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers.quantize import VectorQuantizer
from lightning_gen.losses import Categorical, Pixelwise
from lightning_gen.metrics.frechet import frechet_distance_between
from lightning_gen.models import VAE, VQVAE
from lightning_gen.networks import MLPDecoder, MLPEncoder, VQVAEDecoder, VQVAEEncoder
from lightning_gen.randomness import seed_from
from tests.shared import save

SHAPE = (1, 8, 8)
NAMES = {"rfid-quarters4", "psnr", "ssim"}
SETTINGS = {"num_samples": 90, "batch_size": 32}
OF_SAMPLES = {"fid", "kid", "precision", "recall", "density", "coverage", "authpct"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIGHTNING_GEN_TRUST", "tests")
    monkeypatch.chdir(tmp_path)


class Quarters(FeatureExtractor):
    """The mean of each quarter of a picture, in levels; counts the pictures that it is given."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), name="quarters4", preprocessing="none", num_features=4)
        self.seen = 0

    def extract(self, images):
        self.seen += len(images)
        return Features(nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1))


class Worn(GenerativeModule):
    """Gives pictures back paler and with grain; a step of training wears them by 0.1 more."""

    def __init__(self, image_shape: tuple[int, int, int], kept: float = 0.8, grain: float = 0.0) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.grain = grain
        self.layer = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.layer.weight, kept)

    def reconstruct(self, images):
        assert not torch.is_grad_enabled()
        return (self.layer(self.own(images)) + self.grain * torch.randn(images.shape)).float().clamp(-1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Drawing(Worn):
    """Draws too."""

    def sample(self, num_samples, *, labels=None, generator=None):
        return torch.rand(num_samples, *self.image_shape, generator=generator) * 2 - 1


def vqvae():
    torch.manual_seed(0)
    networks = (partial(network, **network.small) for network in (VQVAEEncoder, VQVAEDecoder))
    return VQVAE(SHAPE, *networks, partial(VectorQuantizer, num_codes=16), channels=8, data_variance=0.5)


def vae():
    torch.manual_seed(0)
    likelihood = Pixelwise(Categorical(num_levels=17))
    return VAE(SHAPE, partial(MLPEncoder, widths=(8,)), partial(MLPDecoder, widths=(8,)), likelihood, latent_size=4)


def digits(split):
    return torch.stack([to_float(image) for image in Digits().load(split)[0]])


def trainer_of(callback, *others, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_steps": 2}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 1, "val_check_interval": 2, "accelerator": "cpu"}
    return pl.Trainer(callbacks=[*others, callback], **quiet | settings)


def metrics_of(extractor=None, figures=None, **settings):
    return GenerativeMetrics(extractor or Quarters(), figures, **{**SETTINGS, "test_num_samples": 90, **settings})


def results_of(model, callback=None, **settings):
    """What a test logs."""
    trainer = trainer_of(callback or metrics_of(), **settings)
    (results,) = trainer.test(model, datamodule=Digits(num_workers=0), verbose=False)
    return {name.removeprefix("test/"): value for name, value in results.items()}


def strict(constant):
    raise AssertionError(f"{constant} is no JSON")


def measured(model, **settings):
    """The evaluation of a checkpoint."""
    settings = {"data": Digits(num_workers=0), "extractor": Quarters(), "accelerator": "cpu", **SETTINGS, **settings}
    evaluate(str(save(model, Path("a.ckpt"))), **settings)
    return json.loads(Path("evaluations.json").read_text(), parse_constant=strict)["evaluations"][-1]


def values(entry):
    return {name: figure["value"] for name, figure in entry["figures"].items()}


def by_hand(reconstructions, originals):
    """All three, by torchmetrics and by the features themselves."""
    reconstructions, originals = to_uint8(reconstructions), to_uint8(originals)
    similarity, noise = StructuralSimilarityIndexMeasure(data_range=255.0), []
    similarity.update(reconstructions.float(), originals.float())
    for one, other in zip(reconstructions.float(), originals.float(), strict=True):
        noise.append(PeakSignalNoiseRatio(255.0)(one, other).item())
    distance = frechet_distance_between(*(Quarters()(each).features for each in (reconstructions, originals)))
    return {"rfid-quarters4": distance, "psnr": np.mean(noise), "ssim": similarity.compute().item()}


# -- the figures ----------------------------------------------------------------------------------------------------


def test_they_are_those_of_the_formulas_on_evenly_spaced_test_pictures():
    originals = digits("test")[[i * 164 // 90 for i in range(90)]]
    expected = by_hand(originals * 0.8, originals)
    entry = measured(Worn(SHAPE))
    assert values(entry) == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    for figure in entry["figures"].values():
        assert figure == {"value": figure["value"], "samples": 90, "reference": 90, "split": "test"}
    assert entry["protocol"]["figures"] == ["rfid", "psnr", "ssim"]
    assert entry["reconstructed"].items() >= {("data", "Digits"), ("split", "test"), ("count", 90)}
    assert entry["reference"] == {}
    all_of_them = values(measured(Worn(SHAPE), num_samples=1000))
    assert all_of_them == {
        name: pytest.approx(value, rel=1e-5) for name, value in by_hand(digits("test") * 0.8, digits("test")).items()
    }
    assert all_of_them["psnr"] != pytest.approx(expected["psnr"], rel=1e-5)


@pytest.mark.parametrize(("make", "precision"), [(Worn, "32-true"), (Worn, "bf16-mixed"), (Drawing, "32-true")])
@pytest.mark.parametrize("number", [90, 1000])
def test_callback_and_command_give_the_same_digits(make, precision, number):
    model = make(SHAPE, grain=0.3)
    entry = measured(model, seeds=4, precision=precision, num_samples=number)
    logged = results_of(model, metrics_of(test_num_samples=number, seed=4), precision=precision)
    assert logged.keys() == values(entry).keys() >= NAMES
    for name, value in values(entry).items():
        assert np.float32(value) == np.float32(logged[name]), name


@pytest.mark.parametrize("make", [vqvae, vae])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_models_have_the_same_digits_from_both(make, precision):
    model = make()
    entry = measured(model, precision=precision)
    logged = results_of(model, metrics_of(), precision=precision)
    assert values(entry).keys() >= NAMES
    assert ("fid-quarters4" in entry["figures"]) == (make is vae)
    for name, value in values(entry).items():  # likelihoods draw noise of their own
        assert (name not in NAMES and "quarters4" not in name) or np.float32(value) == np.float32(logged[name]), name


@pytest.mark.parametrize("make", [vqvae, vae])
def test_weights_of_16_bits_are_measured_on_the_very_pictures(make):
    model, originals = make(), digits("test")[[i * 164 // 90 for i in range(90)]]
    logged = results_of(model, metrics_of(figures=["rfid", "psnr", "ssim"]), precision="bf16-true")
    expected = by_hand(model.bfloat16().reconstruct(originals), originals)
    assert {name: logged[name] for name in NAMES} == {n: pytest.approx(v, rel=0.02) for n, v in expected.items()}


def test_noise_is_that_of_seed_and_batch():
    originals, drawn = digits("test"), []
    for number, batch in enumerate(originals.split(32)):
        torch.manual_seed(seed_from(4, number))
        drawn.append((batch * 0.8 + 0.3 * torch.randn(batch.shape)).clamp(-1, 1))
    expected = by_hand(torch.cat(drawn), originals)
    model = Worn(SHAPE, grain=0.3)
    found = values(measured(model, num_samples=1000, seeds=4))
    assert found == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    assert found != values(measured(model, num_samples=1000, seeds=5))


def test_nobody_notices():
    protocol = EvaluationProtocol(("rfid", "psnr"), 90, batch_size=32)
    given = {"name": "Digits", "split": "test"}
    model, before = Worn(SHAPE, grain=0.3), torch.get_rng_state()
    originals = Originals.of(loader_of(Digits(num_workers=0), "test"), Quarters(), protocol, **given)
    assert [batch.number for batch in originals.batches(model, nullcontext)] == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), before)
    assert Originals.of(loader_of(Digits(num_workers=0), "test"), Quarters(), EvaluationProtocol(), **given) is None


def test_what_comes_back_as_it_was_is_at_no_distance():
    entry = measured(Worn(SHAPE, kept=1.0))
    assert values(entry) == {"rfid-quarters4": pytest.approx(0, abs=1e-6), "psnr": None, "ssim": pytest.approx(1)}
    logged = results_of(Worn(SHAPE, kept=1.0))
    assert logged == {"rfid-quarters4": pytest.approx(0, abs=1e-6), "psnr": math.inf, "ssim": pytest.approx(1)}


@pytest.mark.parametrize("figures", [None, ["fid", "psnr"]])
def test_a_model_that_draws_too_has_both(figures):
    wanted = {"fid-quarters4", "psnr"} if figures else {*NAMES, *(f"{name}-quarters4" for name in OF_SAMPLES)}
    entry = measured(Drawing(SHAPE), figures=figures)
    assert values(entry).keys() == results_of(Drawing(SHAPE), metrics_of(figures=figures)).keys() == wanted
    value = values(entry)["fid-quarters4"]
    assert entry["figures"]["fid-quarters4"] == {"value": value, "samples": 90, "reference": 1470}
    assert values(entry)["psnr"] == values(measured(Worn(SHAPE)))["psnr"]


def test_similarity_alone_reads_nothing(monkeypatch):
    monkeypatch.setattr(InceptionFeatures, "__init__", lambda self: pytest.fail("weights for nothing"))
    extractor = Quarters()
    assert results_of(Worn(SHAPE), metrics_of(extractor, ["psnr", "ssim"])).keys() == {"psnr", "ssim"}
    assert extractor.seen == 0
    logged = results_of(Worn(SHAPE), GenerativeMetrics(None, ["psnr"], **SETTINGS))
    entry = measured(Worn(SHAPE), extractor=None, figures="psnr", num_samples=1000)
    assert np.float32(values(entry)["psnr"]) == np.float32(logged["psnr"])
    assert entry["extractor"] is None


# -- in a run -------------------------------------------------------------------------------------------------------


def fitted(model, callback, *others, **settings):
    trainer = trainer_of(callback, *others, **settings)
    trainer.fit(model, datamodule=Digits(num_workers=0))
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def test_a_validation_is_of_the_validation_pictures_and_real_ones_are_read_once():
    extractor = Quarters()
    callback = metrics_of(extractor)
    logged = fitted(Worn(SHAPE), callback, max_steps=4)
    originals = digits("val")[[i * 163 // 90 for i in range(90)]]
    expected = by_hand(originals * 0.4, originals)
    assert logged == {f"val/{name}": pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    assert extractor.seen == 90 + 2 * 90  # two validations
    assert callback.headlines() == {}  # nothing was tested


def test_averaged_weights_are_measured():
    logged = fitted(Worn(SHAPE), metrics_of(), EMA(["layer"], 0.5, ramp_up=False))
    originals = digits("val")[[i * 163 // 90 for i in range(90)]]
    raw = {f"val/{name}": value for name, value in by_hand(originals * 0.6, originals).items()}
    average = {f"val/{name}": value for name, value in by_hand(originals * 0.675, originals).items()}
    assert logged == {name: pytest.approx(value, rel=1e-4) for name, value in average.items()}
    assert logged["val/psnr"] > raw["val/psnr"] + 1


def test_the_record_says_what_was_reconstructed_and_a_test_ends_with_the_figures():
    callback = metrics_of()
    trainer = trainer_of(callback, logger=pl.loggers.CSVLogger(".", "run", "one"))
    trainer.fit(Drawing(SHAPE), datamodule=Digits(num_workers=0))
    record = json.loads(Path("run/one/evaluation.json").read_text(), parse_constant=strict)
    assert record["reconstructed"]["val"].items() >= {("split", "val"), ("count", 90), ("data", "Digits")}
    assert record["reference"].items() >= {("split", "train"), ("count", 1470)}
    results_of(Drawing(SHAPE), callback)
    lines = callback.headlines()
    assert lines["test/rfid-quarters4"].format(1.5) == "Test rfid-quarters4: 1.5 (90 reconstructions)"
    assert lines["test/psnr"].format(20.123) == "Test PSNR: 20.12 dB (90 reconstructions)"
    assert lines["test/fid-quarters4"].format(1.5) == "Test fid-quarters4: 1.5 (90 samples, 1470 real pictures)"


def test_loaders_without_a_data_module_serve():
    data = Digits(num_workers=0)
    data.setup("fit")
    trainer = trainer_of(metrics_of())
    trainer.fit(Worn(SHAPE), data.train_dataloader(), data.val_dataloader())
    logged = fitted(Worn(SHAPE), metrics_of())
    assert {name: trainer.callback_metrics[name].item() for name in logged} == logged


def test_neighbours_are_those_of_samples_whatever_is_measured():
    entry = measured(Drawing(SHAPE), figures=["rfid", "psnr"], neighbours=Path("n.png"))
    assert values(entry) == {name: values(measured(Worn(SHAPE)))[name] for name in ("rfid-quarters4", "psnr")}
    expected = measured(Drawing(SHAPE), figures="fid", neighbours=Path("n.png"))
    assert entry["memorisation_ratio"] == expected["memorisation_ratio"]


class Keep(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            figures = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            torch.save(figures, f"{self.path}_{trainer.global_rank}.pt")


def fit_on(devices, path):
    launching._check_bad_cuda_fork = lambda: None  # Lightning refuses to fork where CUDA was touched; nothing uses it
    strategy = "ddp_fork" if devices > 1 else "auto"
    fitted(Worn(SHAPE, grain=0.3), metrics_of(), Keep(path), devices=devices, strategy=strategy)


def test_two_processes_give_the_figures_of_one(tmp_path, fresh_process, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache of one"))
    fresh_process(fit_on, 1, tmp_path / "one")
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache of two"))
    fresh_process(fit_on, 2, tmp_path / "two")
    one, two, other = (torch.load(tmp_path / f"{name}.pt") for name in ("one_0", "two_0", "two_1"))
    assert two == other
    assert one.keys() == {f"val/{name}" for name in NAMES}
    assert two == {**one, "val/rfid-quarters4": pytest.approx(one["val/rfid-quarters4"], rel=1e-6)}


# -- what cannot be done --------------------------------------------------------------------------------------------


class Silent(Worn):
    reconstruct = None


def test_figures_that_a_model_cannot_have():
    draws = r"fid can't be computed: this Worn draws no pictures; it has no sample\. Leave it out of figures"
    with pytest.raises(ValueError, match=draws):
        results_of(Worn(SHAPE), metrics_of(figures=["fid", "psnr"]))
    with pytest.raises(ValueError, match=draws):
        measured(Worn(SHAPE), figures=["fid"])
    Silent.sample = Drawing.sample
    with pytest.raises(ValueError, match="rfid can't be computed: this Silent has no reconstruct"):
        results_of(Silent(SHAPE), metrics_of(figures=["rfid"]))
    with pytest.raises(ValueError, match="psnr can't be computed: this Silent has no reconstruct"):
        measured(Silent(SHAPE), figures=["psnr"])
    del Silent.sample
    with pytest.raises(TypeError, match=r"GenerativeMetrics needs .* Silent has no `sample`"):
        results_of(Silent(SHAPE))
    with pytest.raises(ValueError, match="ssim can't be computed: its window takes pictures of at least 6 x 6, and"):
        results_of(Worn((1, 5, 8)), metrics_of(figures=["ssim"]))
    assert not Path("evaluations.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floor": True}, "The floor is of the figures of samples, and there are none among rfid, psnr, ssim."),
        ({"neighbours": Path("n.png")}, "neighbours draws samples, but this Worn draws no pictures; it has no sample."),
        ({"data": None}, "There is no data with real pictures"),
        ({"data": None, "figures": "psnr"}, "There is no data with real pictures"),
        ({"num_samples": 1}, "rfid needs at least 2 samples, got num_samples 1."),
    ],
)
def test_what_cannot_be_done_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        measured(Worn(SHAPE), **settings)
    assert not Path("evaluations.json").exists()


def test_pictures_that_are_no_numbers_are_named():
    for figures in (["psnr"], ["rfid"]):
        with pytest.raises(ValueError, match="32 of 32 pictures in a batch have values that are not finite"):
            results_of(Worn(SHAPE, kept=math.nan), metrics_of(figures=figures))


def test_settings_of_sampling_are_refused_where_nothing_is_drawn():
    with pytest.raises(Exception, match=r"Unknown option --temperature: neither .* that Worn's `sample` takes"):
        measured(Worn(SHAPE), sampling={"temperature": "0.5"})


def test_what_is_known_is_not_measured_again_and_other_data_is_another_evaluation(capsys):
    measured(Worn(SHAPE))
    measured(Worn(SHAPE))
    assert "measured before" in capsys.readouterr().out
    measured(Worn(SHAPE), num_samples=91)
    assert len(json.loads(Path("evaluations.json").read_text())["evaluations"]) == 2
