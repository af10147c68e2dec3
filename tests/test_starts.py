"""Starts: which weights of another run a model takes, what it says of the others, and how it goes on from there."""

import re
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.shipped import small_model
from lightning_gen.callbacks import EMA
from lightning_gen.checkpoints import CheckpointError, read_checkpoint
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers import VectorQuantizer
from lightning_gen.layers.spectral_norm import spectral_norms
from lightning_gen.models import DCGAN, SNGAN, VAE, VQVAE, CycleGAN, Pix2Pix, PixelCNNPP, ProGAN, StyleGAN, TextToImage
from lightning_gen.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    PatchDiscriminator,
    ResidualDiscriminator,
    ResNetGenerator,
)
from lightning_gen.schedules import Growing
from lightning_gen.starts import WIDTH, Start
from lightning_gen.text import BPETokenizer
from tests.models.test_code_prior import Mosaic
from tests.shared import Before, differences, save, trainer

SHAPE = (3, 16, 16)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")


def dcgan(shape=SHAPE, num_classes=None, filters=4, **settings):
    networks = {"generator": DCGANGenerator, "discriminator": DCGANDiscriminator}
    networks = {name: partial(network, filters=filters) for name, network in networks.items()}
    return DCGAN(shape, **networks, latent_size=5, num_classes=num_classes, **settings)


PATCHES = partial(PatchDiscriminator, filters=2, layers=1)
cyclegan = partial(CycleGAN, SHAPE, partial(ResNetGenerator, **ResNetGenerator.small), PATCHES, decay_start=1.0)


def data(shape=SHAPE, number=3, key="image"):
    draw = torch.Generator().manual_seed(1)
    return DataLoader([{key: torch.rand(2, *shape, generator=draw) * 2 - 1} for _ in range(number)], None)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fit(model, steps, path, callbacks=(), checkpoint=None, loader=None):
    """The checkpoint of the end."""
    torch.manual_seed(3)
    t = trainer(max_steps=steps, callbacks=list(callbacks), limit_val_batches=0)
    t.fit(model, loader or data(), ckpt_path=checkpoint, weights_only=True)
    t.save_checkpoint(path)
    return read_checkpoint(path)


# -- what is taken, and what is said ----------------------------------------------------------------------------------


def test_other_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, model = dcgan(num_classes=10), dcgan(num_classes=7)
    given.images_seen = 12_000
    save(given, global_step=3000)
    before, taken = weights(model), weights(given)
    start = model.init_from("a.ckpt")
    for name, tensor in model.state_dict().items():
        fits = before[name].shape == taken[name].shape and not name.endswith("num_batches_tracked")
        assert torch.equal(tensor, (taken if fits else before)[name])
        assert (name in start.taken) == fits
    assert start.left == ("generator.layers.0.weight", "discriminator.layers.0.weight")
    assert (start.checkpoint, start.model, start.steps, start.images_seen) == ("a.ckpt", "DCGAN", 3000, 12_000)
    assert str(start) == "\n".join(
        [
            "Started from a.ckpt,",
            "weights of DCGAN after 3,000 steps and 12,000 pictures.",
            "Optimizers, schedules and counts begin anew; --ckpt_path would go on with it.",
            "  generator: 10 of 11 tensors taken",
            "  discriminator: 6 of 7 tensors taken",
            "Not taken, for they are of another shape (given / needed):",
            "  generator.layers.0: weight 128 x 15 / 128 x 12",
            "  discriminator.layers.0: weight 4 x 13 x 4 x 4 / 4 x 10 x 4 x 4",
        ]
    )
    assert model.images_seen == 0


def test_classes_of_other_names_are_spoken_of(tmp_path, caplog):
    given, model = dcgan(num_classes=3), dcgan(num_classes=3)
    given.class_names = ["bee", "cat", "dog"]
    model.init_from(save(given, tmp_path / "a.ckpt"))
    loader = DataLoader([(torch.zeros(2, *SHAPE), torch.tensor([0, 2]))], None)
    module = pl.LightningDataModule.from_datasets()
    module.train_dataloader, module.num_classes = lambda: loader, 3
    for names, words in (
        (["bee", "cat", "dog"], None),
        (["ant", "cat", "eel"], "0 was 'bee' and is 'ant', and 1 others"),
    ):
        caplog.clear()
        module.class_names = names
        with caplog.at_level("INFO"):
            trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=module)
        assert ("taken by number" in caplog.text) == (words is not None)
        assert (words or "") in caplog.text


@pytest.mark.parametrize("base", [ProGAN, StyleGAN])
@pytest.mark.parametrize(("given", "needed"), [(16, 32), (32, 16), (8, 32)])
def test_common_levels_of_networks_that_grow(base, given, needed, tmp_path):
    given, needed = (small_model(base, (3, side, side), latent_size=4)() for side in (given, needed))
    if base is StyleGAN:
        given.generator.mean_style.normal_()
    start = needed.init_from(save(given, tmp_path / "a.ckpt"))
    own, other = needed.state_dict(), given.state_dict()
    common = own.keys() & other.keys()
    assert common
    assert {*start.taken} == common  # levels are counted from the lowest on
    assert all(torch.equal(own[name], other[name]) for name in common)
    assert {*start.left} == own.keys() - common
    larger = len(own) > len(other)
    assert ("Not in the checkpoint (needed):" in str(start)) == larger
    assert ("Only in the checkpoint (given):" in str(start)) == (not larger)
    assert max(map(len, str(start).splitlines()[2:])) <= WIDTH


def test_a_model_that_grows_says_where_its_schedule_begins(tmp_path, caplog):
    model = small_model(StyleGAN, SHAPE, latent_size=4, growing=Growing((8, 16), (2,)))()
    with caplog.at_level("INFO"):
        model.init_from(save(small_model(StyleGAN, SHAPE, latent_size=4)(), tmp_path / "a.ckpt"))
    assert "with pictures 8 pixels high. Leave growing out of model and data" in caplog.text


def test_a_network_that_one_side_lacks_is_one_line(tmp_path):
    one = Pix2Pix(SHAPE, partial(ResNetGenerator, **ResNetGenerator.small), PATCHES)
    two = cyclegan()
    start = str(two.init_from(save(one, tmp_path / "a.ckpt")))
    assert re.search(r"Not in the checkpoint \(needed\):\n  generator_BtoA: all \d+ tensors\n", start)
    assert "  discriminator_A: all 6 tensors\n  discriminator_B: all 6 tensors\n" in start
    assert start.endswith("Only in the checkpoint (given):\n  discriminator: all 6 tensors")
    assert differences(one.generator_AtoB.state_dict(), two.generator_AtoB.state_dict()) == []


def test_vectors_of_spectral_norm_go_with_their_weight(tmp_path):
    def make(num_classes, filters=4):
        discriminator = partial(ResidualDiscriminator, filters=filters, spectral_norm="reshape")
        return small_model(SNGAN, SHAPE, discriminator=discriminator, latent_size=4, num_classes=num_classes)()

    given, model = make(5), make(3)
    before = spectral_norms(model.discriminator)["embedding"]
    u, v = before.norm.u.clone(), before.norm.v.clone()
    start = model.init_from(save(given, tmp_path / "a.ckpt"))
    for name, own in spectral_norms(model.discriminator).items():
        other = spectral_norms(given.discriminator)[name]
        assert torch.equal(own.norm.u, u if name == "embedding" else other.norm.u)
        assert torch.equal(own.norm.v, v if name == "embedding" else other.norm.v)  # of one size in both
    assert other.norm.v.shape == v.shape
    assert "  discriminator.embedding: weight 5 x 4 / 3 x 4" in str(start)
    assert ".u" not in str(start).replace(" ", "")


def test_what_a_module_calls_fresh_and_counts_begin_anew(tmp_path):
    class Counting(nn.Module):
        fresh_at_start = ("count",)

        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
            self.register_buffer("count", torch.zeros(()))

    class Model(GenerativeModule):
        def __init__(self):
            super().__init__(SHAPE)
            self.network = Counting()
            self.register_buffer("matrix", torch.zeros(2, 2))

    given, model = Model(), Model()
    for buffer in given.buffers():
        buffer.fill_(4)
    start = model.init_from(save(given, tmp_path / "a.ckpt"))
    assert [name for name, buffer in model.named_buffers() if (buffer == 4).all()] == [
        "network.norm.running_mean",
        "network.norm.running_var",
    ]
    assert start.left == ()
    assert str(start).endswith("  network: all 6 tensors taken")


def test_codes_are_not_placed_anew(tmp_path):
    quantizer = partial(VectorQuantizer, num_codes=4, kmeans_iterations=2)
    given, model = (small_model(VQVAE, (1, 8, 8), quantizer=quantizer, data_variance=1.0)() for _ in range(2))
    loader = data((1, 8, 8))
    fit(given, 1, tmp_path / "a.ckpt", loader=loader)
    model.init_from(tmp_path / "a.ckpt")
    codes = model.quantizer.codebook.clone()
    assert torch.equal(codes, given.quantizer.codebook)
    model.train()
    model.quantizer(torch.randn(2, model.quantizer.channels, 2, 2))
    # One step of an average, not other centres.
    assert (model.quantizer.codebook - codes).abs().max() < 0.5


def test_weight_norm_is_not_initialised_from_pictures(tmp_path):
    make = small_model(PixelCNNPP, (1, 8, 8), num_components=2)
    loader = DataLoader([torch.rand(2, 1, 8, 8).round() * 2 - 1], None)
    given, model, before = make(), make(), Before()
    fit(given, 1, tmp_path / "a.ckpt", loader=loader)
    start = model.init_from(tmp_path / "a.ckpt")
    raw = read_checkpoint(tmp_path / "a.ckpt")["raw_state_dict"]
    fit(model, 1, tmp_path / "b.ckpt", [before], loader=loader)
    assert start.left == ()
    assert all(torch.equal(before.weights[name], tensor) for name, tensor in raw.items())


def test_a_tokenizer_takes_the_vocabulary_that_it_would_have_learned(tmp_path):
    def make(vocabulary):
        tokenizer = BPETokenizer(length=4, num_tokens=8, vocabulary=vocabulary)
        return small_model(TextToImage, (3, 4, 4), first_stage=Mosaic(), tokenizer=tokenizer)()

    known = ("a", "b", "ab")
    path = save(make(known), tmp_path / "a.ckpt")
    for own, expected in (((), known), (("a", "c"), ("a", "c"))):
        model = make(own)
        model.init_from(path)
        assert tuple(model.text.vocabulary) == expected


# -- averages -------------------------------------------------------------------------------------------------------


def test_raw_weights_go_to_raw_ones_and_the_average_to_the_average(tmp_path):
    given = fit(dcgan(), 3, tmp_path / "a.ckpt", [EMA(["generator"], decay=0.9)])
    raw, average = given["raw_state_dict"], given["state_dict"]
    assert not torch.equal(raw["generator.layers.0.weight"], average["generator.layers.0.weight"])
    model, ema, before = dcgan(), EMA(["generator"], decay=0.9), Before()
    model.init_from(tmp_path / "a.ckpt")
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, raw.get(name, average[name]))
    end = fit(model, 1, tmp_path / "b.ckpt", [before, ema])
    assert all(torch.equal(tensor, raw.get(name, average[name])) for name, tensor in before.weights.items())
    for name, tensor in end["raw_state_dict"].items():
        # At its full decay from the first step: there is nothing random to forget.
        assert torch.equal(end["state_dict"][name], average[name].lerp(tensor, 1 - 0.9))
    assert model.average_at_start == {}
    # What was averaged before and is not now begins raw, and the other way round.
    model, ema = dcgan(), First(["discriminator"])
    model.init_from(tmp_path / "a.ckpt")
    fit(model, 1, tmp_path / "b.ckpt", [ema])
    assert ema.first
    assert all(torch.equal(tensor, average[name]) for name, tensor in ema.first.items())


class First(EMA):
    """Keeps the first average."""

    first = None

    def on_train_batch_start(self, *arguments):
        super().on_train_batch_start(*arguments)
        self.first = self.first or {name: tensor.clone() for name, tensor in self.average.items()}


def test_an_average_of_random_weights_ramps_up_as_ever(tmp_path):
    """Where nothing of the averaged network was taken."""
    path = save(dcgan(filters=8), tmp_path / "a.ckpt")
    model = DCGAN(
        SHAPE,
        partial(DCGANGenerator, filters=4),
        partial(DCGANDiscriminator, filters=8),
        latent_size=5,
    )
    model.init_from(path)
    ema, before = EMA(["generator"], decay=0.9), Before()
    end = fit(model, 1, tmp_path / "b.ckpt", [before, ema])
    for name, tensor in end["raw_state_dict"].items():
        assert torch.equal(end["state_dict"][name], before.weights[name].lerp(tensor, 1 - 0.1))


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [dcgan, cyclegan])
def test_a_started_run_goes_on_without_the_file(base, tmp_path):
    is_gan = base is dcgan

    def loader():
        batches = data(number=2)
        return batches if is_gan else DataLoader([dict.fromkeys("AB", batch["image"]) for batch in batches], None)

    def averages():
        return [EMA(["generator" if is_gan else "generator_AtoB"], decay=0.9)]

    given = fit(base(), 2, tmp_path / "a.ckpt", averages(), loader=loader())
    whole, half = base(), base()
    half.load_state_dict(whole.state_dict())
    for model in (whole, half):
        start = model.init_from(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").unlink()
    through = fit(whole, 4, tmp_path / "whole.ckpt", averages(), loader=loader())
    fit(half, 2, tmp_path / "half.ckpt", averages(), loader=loader())
    again = fit(base(), 4, tmp_path / "again.ckpt", averages(), tmp_path / "half.ckpt", loader=loader())
    assert differences(through["state_dict"], again["state_dict"]) == []
    assert differences(through["raw_state_dict"], again["raw_state_dict"]) == []
    assert differences(through["optimizer_states"], again["optimizer_states"]) == []
    assert differences(given["state_dict"], again["state_dict"])
    assert through["images_seen"] == again["images_seen"] == 8
    loaded = GenerativeModule.load_from_checkpoint(tmp_path / "again.ckpt")
    assert loaded.started_from == start
    assert Start.of_plain(again["started_from"]) == start


def test_what_a_checkpoint_says_of_a_start_is_looked_at(tmp_path):
    good = Start("a.ckpt", "DCGAN", 1, 2, ("a.b",), (), (), "words").plain()
    for damage in (
        3,
        [],
        {},
        good | {"steps": "1"},
        good | {"taken": [1]},
        good | {"more": 1},
        good | {"report": None},
    ):
        path = save(dcgan(), tmp_path / "a.ckpt", started_from=damage)
        with pytest.raises(CheckpointError, match="started_from"):
            DCGAN.load_from_checkpoint(path)
    assert DCGAN.load_from_checkpoint(save(dcgan(), tmp_path / "a.ckpt", started_from=good)).started_from.steps == 1


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_weights_of_another_family(tmp_path):
    path = save(dcgan(), tmp_path / "a.ckpt")
    vae = small_model(VAE, SHAPE, latent_size=2)()
    before = weights(vae)
    words = (
        f"Nothing of {path} fits: it has weights of DCGAN (generator, discriminator), and this is VAE (encoder, "
        "decoder). Their layers have other names: take a checkpoint of the same family of models, with the same "
        "classes of networks."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        vae.init_from(path)
    assert differences(before, vae.state_dict()) == []
    assert vae.started_from is None


def test_networks_of_other_sizes(tmp_path):
    path = save(dcgan(filters=8), tmp_path / "a.ckpt")
    words = (
        "this is DCGAN (generator, discriminator). Their networks are of different sizes, the first in "
        "generator.layers.0.weight: 256 x 5 given, 128 x 5 needed. Build the networks as that run has them; its "
        "config.yaml says how."
    )
    with pytest.raises(CheckpointError, match=re.escape(words)):
        dcgan().init_from(path)


def test_no_file_and_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint at"):
        dcgan().init_from(tmp_path / "a.ckpt")
    torch.save({"layers.0.weight": torch.zeros(2)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="holds no 'state_dict'"):
        dcgan().init_from(tmp_path / "a.ckpt")


def test_other_peoples_weights_need_no_class(tmp_path):
    torch.save({"state_dict": dcgan().state_dict()}, tmp_path / "a.ckpt")
    start = dcgan().init_from(tmp_path / "a.ckpt")
    assert "\nweights of a model after 0 steps and 0 pictures.\n" in str(start)
    torch.save(
        {"state_dict": dcgan().state_dict() | {"generator.\x1b[2J\n.weight": torch.ones(2)}}, tmp_path / "a.ckpt"
    )
    assert str(dcgan().init_from(tmp_path / "a.ckpt")).endswith("\n  generator.?[2J : weight 2")
    assert start.model == ""


@pytest.mark.parametrize("wanted", [dcgan(num_classes=3), dcgan(filters=8), small_model(VAE, SHAPE, latent_size=2)()])
def test_a_run_that_cannot_go_on_says_how_to_start(wanted, tmp_path):
    fit(dcgan(), 1, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"For a new run that begins with its weights, .* give --init_from"):
        fit(wanted, 2, tmp_path / "b.ckpt", checkpoint=tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError) as caught:  # where nothing goes on
        type(wanted).load_from_checkpoint(tmp_path / "a.ckpt", num_classes=3)
    assert "--init_from" not in str(caught.value)
