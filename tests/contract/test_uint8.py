"""Pictures of 8 bits give every model what the same pictures as floats give it, bit for bit, whatever loads them."""

import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.shipped import small_model
from lightning_gen import callbacks
from lightning_gen.capabilities import HasCodes, HasLogProb, Reconstructs, ScoresCaptions, Translates
from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule, collate_sizes
from lightning_gen.data.codes import kept_codes
from lightning_gen.data.images import from_uint8
from lightning_gen.evaluation.likelihood import likelihood
from lightning_gen.evaluation.pictures import as_read, pictures_in
from lightning_gen.evaluation.reference import reference_of_loader
from lightning_gen.extractors import FeatureExtractor, SceneFeatures
from lightning_gen.extractors.base import Features
from lightning_gen.metrics import CaptionScore, psnr, ssim
from lightning_gen.models import KDE, VQVAE, GatedPixelCNN
from lightning_gen.randomness import generator_for
from tests.contract.test_flags import CLASSES, COLOUR, FAMILIES, GREY, LEVELS
from tests.shared import Recorder, differences, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging")

MODELS = FAMILIES | {
    "conditional": small_model(GatedPixelCNN, GREY, num_levels=LEVELS, condition_channels=2),
}


@dataclass(frozen=True, eq=False)
class Pictures(DrawDataset):
    """Pictures of few levels with all that models may be given, as uint8 or as floats; by number or by draw."""

    shape: tuple[int, int, int]
    floats: bool
    number: int = 8

    def recipe(self):
        return [self.shape, self.number]

    def __len__(self):
        return self.number

    def __getitem__(self, draw):
        index = draw.index if isinstance(draw, Draw) else draw
        random = torch.Generator().manual_seed(index)
        a, b = (torch.randint(LEVELS, self.shape, generator=random, dtype=torch.uint8) * 85 for _ in "AB")
        pictures = {"image": a, "A": a, "B": b}
        pictures = {name: from_uint8(each) if self.floats else each for name, each in pictures.items()}
        others = {
            "label": torch.tensor(index % CLASSES),
            "caption": "two" if index % 2 else "one",
            "paired": torch.ones(()),
            "condition": torch.randint(2, (2, *self.shape[1:]), generator=random, dtype=torch.uint8),
        }
        return pictures | others


def loader(shape, floats, **options):
    return DataLoader(Pictures(shape, floats), **{"batch_size": 2} | options)


def digits(model, data, **settings):
    """All that comes of two steps, a validation, a test and predictions."""
    recorder, pictures = Recorder(), callbacks.Pictures(every_n_steps=1, num_images=2)
    watching = [recorder, pictures, callbacks.ColorMappingBaseline(4)]
    t = trainer(max_steps=2, callbacks=watching, num_sanity_val_steps=0, **settings)
    given = {"datamodule": data} if isinstance(data, pl.LightningDataModule) else {"train_dataloaders": data}
    t.fit(model, **given, **({} if "datamodule" in given else {"val_dataloaders": data}))
    logged = {name: value.clone() for name, value in t.callback_metrics.items()}
    tested = t.test(model, data, verbose=False)
    drawn = {path.name: path.read_bytes() for path in sorted(Path().rglob("*.png"))}
    for path in Path().rglob("*.png"):
        path.unlink()
    return recorder.terms, logged, tested, dict(model.state_dict()), t.predict(model, data), drawn


@pytest.mark.parametrize("family", MODELS)
def test_every_model_learns_and_tells_the_same_from_bare_loaders(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for floats in (True, False):
        torch.manual_seed(0)
        model = MODELS[family]()
        found.append(digits(model, loader(model.image_shape, floats)))
    assert not differences(*found)


@pytest.mark.parametrize("family", MODELS)
def test_what_a_model_can_do_it_does_with_8_bits(family):
    torch.manual_seed(0)
    model = MODELS[family]()
    images = torch.stack([Pictures(model.image_shape, False)[i]["image"] for i in range(2)])
    if isinstance(model, KDE):
        model.add(images)
    can = []
    if isinstance(model, Translates):
        can += [lambda x, way=way: model.translate(x, way) for way in model.directions]
    if isinstance(model, Reconstructs):
        can.append(model.reconstruct)
    if isinstance(model, HasCodes):
        can.append(model.codes)
    if isinstance(model, ScoresCaptions):
        can.append(lambda x: model.score(x, ["one", "two"]))
        metric = CaptionScore(model)
        can.append(lambda x: (metric.reset(), metric.update(x, ["one", "two"]), metric.compute())[-1])
    if isinstance(model, HasLogProb) and family != "conditional":
        noisy = "generator" in inspect.signature(model.log_prob).parameters
        can.append(lambda x: model.log_prob(x, **{"generator": generator_for(0, 0)} if noisy else {}))
    for function in can:
        random = torch.get_rng_state()
        expected = function(from_uint8(images))
        torch.set_rng_state(random)
        assert not differences(function(images), expected)


class Data(ImageDataModule):
    image_shape = GREY

    def __init__(self, floats, **options):
        super().__init__(batch_size=2, num_workers=0, **options)
        self.floats = floats

    def dataset(self, split):
        return Pictures(self.image_shape, self.floats)


class Plain(pl.LightningModule):
    """Somebody's module that knows nothing of 8 bits."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return (self.shift - batch["image"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.seen.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


PRECISIONS = ["32-true", "bf16-true", "16-true", "64-true", "bf16-mixed"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_our_data_gives_any_module_floats_as_the_precision_would_have_them(precision):
    seen = []
    for floats in (True, False):
        module, data = Plain(), Data(floats)
        t = trainer(max_epochs=1, precision=precision)
        t.fit(module, datamodule=data)
        t.test(module, datamodule=data)
        t.predict(module, datamodule=data)
        seen.append(module.seen)
    assert len(seen[0]) == 2 + 3 * 4 + 4
    assert not differences(*seen)
    assert all(batch["image"].is_floating_point() and batch["condition"].dtype == torch.uint8 for batch in seen[1])


class Brighter(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch | {"image": batch["image"].add(1), "given": batch["image"].clone()}


@pytest.mark.filterwarnings("error:You have overridden")
def test_a_module_that_does_something_of_its_own_on_the_device_goes_on_with_floats():
    module = Brighter()
    trainer(max_steps=1).fit(module, datamodule=Data(False))
    for batch in module.seen:
        assert torch.equal(batch["image"], batch["given"].add(1))
        assert batch["given"].min() == -1


def test_pictures_of_our_data_are_still_looked_at():
    """The hook that makes floats brings nothing into the range that was outside."""

    class Bright(Pictures):
        def __getitem__(self, draw):
            return {"image": torch.full(GREY, 7.0)}

    class BrightData(Data):
        def dataset(self, split):
            return Bright(GREY, True)

    with pytest.raises(ValueError, match=r"takes pictures in \[-1, 1\], but image in a batch has values from 7 to 7"):
        trainer(max_steps=1).fit(MODELS["VQVAE"](data_variance=1.0), datamodule=BrightData(True))


@pytest.mark.parametrize("family", ["CycleGAN", "VQVAE", "PixelCNNPP"])
@pytest.mark.parametrize("precision", PRECISIONS[1::2])
def test_our_models_learn_the_same_from_our_data(family, precision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for floats in (True, False):
        torch.manual_seed(0)
        model = MODELS[family]()
        data = Data(floats)
        data.image_shape = model.image_shape
        found.append(digits(model, data, precision=precision))
    assert "test/color_mapping_psnr_AtoB" in found[0][2][0] or family != "CycleGAN"
    assert not differences(*found)


# -- figures --------------------------------------------------------------------------------------------------------


class Means(FeatureExtractor):
    """Takes floats as they are."""

    def __init__(self):
        features = {"num_features": 3, "image_shape": COLOUR, "quantized": False}
        super().__init__(nn.Identity(), name="means", preprocessing="none", **features)

    def extract(self, images):
        return Features(images.mean((2, 3)))


EXTRACTORS = {"8 bits": partial(SceneFeatures, num_scenes=64, epochs=1), "floats": Means}


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"collate_fn": collate_sizes}])
def test_extractors_read_the_same(extractor, options):
    extractor = EXTRACTORS[extractor]()
    batches = [next(iter(loader(COLOUR, floats, **options))) for floats in (True, False)]
    found, expected = (as_read(pictures_in(batch), extractor) for batch in batches)
    assert not differences(found, expected)
    if "collate_fn" in options:
        return
    references = [
        reference_of_loader(extractor, loader(COLOUR, floats), name="data", split="val", max_features=4)
        for floats in (True, False)
    ]
    one, other = references
    assert torch.equal(one.statistics.features, other.statistics.features)
    assert one.record["pictures"] == other.record["pictures"]


@pytest.mark.parametrize(
    ("family", "figures"), [(FAMILIES["GAN"], ("fid", "kid")), (small_model(VQVAE, COLOUR), ("rfid", "psnr", "ssim"))]
)
def test_figures_of_a_run_are_the_same(family, figures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extractor, found = EXTRACTORS["8 bits"](), []
    for floats in (True, False):
        torch.manual_seed(0)
        metrics = callbacks.GenerativeMetrics(extractor, figures, num_samples=8, test_num_samples=8, block_size=4)
        t = trainer(max_steps=1, callbacks=[metrics], val_check_interval=1)
        t.fit(family(), loader(COLOUR, floats), loader(COLOUR, floats))
        found.append({name: value for name, value in t.callback_metrics.items() if name.startswith("val/")})
    assert len(found[0]) >= len(figures)
    assert not differences(*found)


@pytest.mark.parametrize("family", ["VAE", "PixelCNN", "KDE", "CodePrior"])
def test_likelihoods_are_the_same(family):
    torch.manual_seed(0)
    model = MODELS[family]()
    if isinstance(model, KDE):
        model.add(torch.stack([Pictures(GREY, True)[i]["image"] for i in range(4)]))
    a, b = (likelihood(model, Data(floats), 8, 3, seed=0) for floats in (True, False))
    assert a == b
    assert a


def test_a_stored_picture_is_as_like_as_its_floats():
    a, b = (torch.randint(256, (2, *GREY), dtype=torch.uint8) for _ in "ab")
    for function in (psnr, ssim):
        assert torch.equal(function(a, b), function(from_uint8(a), from_uint8(b)))


@pytest.mark.parametrize("crops", [1, 5])
def test_codes_are_the_same(crops):
    torch.manual_seed(0)
    model, content = MODELS["VQVAE"](data_variance=1.0).eval(), []
    for floats in (True, False):
        path = kept_codes(model, Data(floats), "train", crops, False)
        content.append(path.read_bytes())
        assert kept_codes(model, Data(floats), "train", crops, False) == path, "the fingerprint is stable"
    assert content[0] == content[1]
