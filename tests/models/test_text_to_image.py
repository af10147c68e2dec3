"""Text to picture, on an autoencoder, texts and codes so small that all of them can be written down."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.shipped import small
from lightning_gen.capabilities import HasLogProb, Samples
from lightning_gen.data import CaptionedScenes, Codes
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import Categorical
from lightning_gen.models import TextToImage
from lightning_gen.models.text_to_image import text_nats
from lightning_gen.networks import GPTNetwork, TextGPTNetwork
from lightning_gen.networks.pixel_sampler import draw_pixels
from lightning_gen.text import BaseTokenizer, BPETokenizer, ByteTokenizer
from tests.models.test_code_prior import Depths, Mosaic, TwoMaps, every, seeded
from tests.shared import differences, save, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass(frozen=True)
class Letters(BaseTokenizer):
    """Texts of a and b, at most two letters."""

    length: int = 2

    @property
    def num_tokens(self) -> int:
        return 3

    def encode(self, caption: str, rng: np.random.Generator | None = None) -> list[int]:
        return ["ab".index(letter) + 1 for letter in caption]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join("ab"[token - 1] for token in tokens if token)


NETWORK = partial(TextGPTNetwork, width=16, layers=2, heads=2, dropout=0.0)


def away(module):
    """Weights away from where training starts them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def model_of(kind=Mosaic, network=NETWORK, **settings):
    torch.manual_seed(0)
    first = kind()
    model = TextToImage(first.image_shape, first, network, settings.pop("tokenizer", Letters()), **settings).eval()
    away(model.network)
    return model


def every_text():
    return torch.tensor(list(itertools.product(range(3), repeat=2)))


# Probabilities


@pytest.mark.parametrize("kind", [Mosaic, Depths])
def test_the_probabilities_of_all_texts_and_pictures_sum_to_one(kind):
    model, texts = model_of(kind), every_text()
    maps = every(model.level_shape)
    with torch.no_grad():
        of_text = -text_nats(model.text_network.text_logits(texts), texts)
        of_codes = torch.stack([model.log_prob([maps], captions=text.expand(len(maps), -1)) for text in texts])
    assert of_text.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert of_codes.double().exp().sum(1).tolist() == pytest.approx([1] * 9, abs=1e-5)
    assert of_codes.std(0).mean() > 0.1  # what is said matters


def test_text_is_told_from_text_before_and_codes_from_the_whole_text():
    network = away(NETWORK((1, 2, 3), 5, Letters())).eval()
    images = network.embed(torch.randint(5, (1, 1, 2, 3), generator=seeded()))
    tokens = torch.tensor([[1, 2]])
    text, codes = network(images, tokens, with_text=True)
    assert text.shape == (1, 2, 3)
    assert codes.shape == (1, 5, 1, 2, 3)
    for place, changed in ((0, [False, True]), (1, [False, False])):
        other = tokens.clone()
        other[0, place] = 0
        text_now, codes_now = network(images, other, with_text=True)
        assert (text_now != text).any(2).squeeze(0).tolist() == changed
        assert (codes_now != codes).any(1).all()  # the first of them, too
    torch.testing.assert_close(network(images + 1, tokens, with_text=True)[0], text)
    torch.testing.assert_close(network.text_logits(tokens), text)
    assert network.head.out_features + network.text_head.out_features == 5 + 3  # nothing is there to be masked


def test_every_place_has_a_padding_of_its_own():
    network = away(NETWORK((1, 2, 3), 5, Letters()))
    read = network._read(torch.tensor([[0, 0], [1, 0]]), 2)
    assert torch.equal(read[:, 2], network.no_words.weight[1].expand(2, -1))
    assert not torch.equal(read[0, 1], read[0, 2])
    read.square().sum().backward()
    assert not network.words.weight.grad[0].any()  # a vector of token 0 would be one for all places
    assert network.no_words.weight.grad.any(1).all()


# Drawing


@pytest.mark.parametrize("kind", [Mosaic, Depths])
@pytest.mark.parametrize("settings", [{}, {"guidance": 3.0, "top_k": 2}, {"top_p": 0.8, "temperature": 1.5}])
def test_the_text_goes_into_the_cache_in_one_pass_and_nothing_changes(kind, settings):
    model = model_of(kind)
    captions = ["a", "b", "ab", "ba", "bb"] * 8
    cached, naive = (
        model.sample(40, captions=captions, generator=seeded(), method=method, **settings)
        for method in ("cached", "naive")
    )
    assert torch.equal(cached, naive)
    assert cached.shape == (40, *model.image_shape)
    known = torch.zeros(model.image_shape[1:], dtype=torch.bool)
    known[:, :2] = True
    filled = [
        model.complete(cached, known, captions=captions, generator=seeded(), method=method, **settings)
        for method in ("cached", "naive")
    ]
    assert torch.equal(*filled)


def test_guidance_is_away_from_no_caption():
    model = model_of()
    network, maps = model.text_network, torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    tokens = torch.tensor([[2, 1]])
    with torch.no_grad():
        said, none = (network(network.embed(maps), each)[0, :, 0, 0, 0] for each in (tokens, tokens * 0))
    number = 20_000
    drawn = draw_pixels(
        network, Categorical(3), maps.expand(number, -1, -1, -1), torch.ones(number, 2, 2, dtype=torch.bool),
        torch.arange(4), seeded(), settings={"captions": tokens.expand(number, -1)}, guidance=2.5,
    )  # fmt: skip
    p = (none + 2.5 * (said - none)).softmax(0)
    shares = torch.bincount(drawn[:, 0, 0, 0], minlength=3) / number
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt()).all()
    plain = model.sample(9, captions=["ab"] * 9, generator=seeded())
    assert torch.equal(model.sample(9, captions=["ab"] * 9, generator=seeded(), guidance=1.0, top_k=3), plain)
    # Without a caption there is nothing to go away from.
    assert torch.equal(
        model.sample(9, generator=seeded()), model.sample(9, captions=torch.zeros(9, 2).long(), generator=seeded())
    )


# Training


def colours():
    """Pictures of one colour and their captions, which name it in one of two ways."""
    model = Mosaic()
    codes = torch.arange(3).repeat(40)[:, None, None].expand(-1, 2, 2)
    captions = [("a", "b", "ab")[code] for code in codes[:, 0, 0].tolist()]
    return [{"image": image, "caption": said} for image, said in zip(model.decode(codes), captions, strict=True)]


def test_it_learns_what_words_mean():
    torch.manual_seed(0)
    model = TextToImage((3, 4, 4), Mosaic(), NETWORK, Letters(), learning_rate=3e-3)
    assert isinstance(model, Samples)
    assert isinstance(model, HasLogProb)
    loop = trainer(max_steps=100)
    loop.fit(model, DataLoader(colours(), 30, shuffle=True), DataLoader(colours(), 30))
    figures = loop.callback_metrics
    assert {name for name in figures if name.startswith("val/")} == {"val/nll-codes", "val/nll-text"}
    # Given the text a picture is known, and texts are three of which each is as likely.
    assert figures["val/nll-codes"] < 0.1
    assert math.log(3) <= figures["val/nll-text"] < math.log(3) + 0.1
    drawn = model.first_stage.codes(model.sample(30, captions=["a", "b", "ab"] * 10, generator=seeded()))
    asked = torch.arange(3).repeat(10)[:, None, None]
    assert (drawn == asked).float().mean() > 0.95
    # Without a caption all colours come.
    assert model.first_stage.codes(model.sample(60, generator=seeded())).unique().tolist() == [0, 1, 2]


class OfScenes(Mosaic):
    """Encodes landscapes, unless it must not."""

    may = True

    def codes(self, images):
        assert self.may
        return super().codes(images)


def test_on_codes_it_learns_bit_for_bit_what_it_learns_on_pictures(monkeypatch, tmp_path):
    """Captions are drawn and dropped, joins passed over, and the vocabulary is learnt from the data."""
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path))

    def fitted(codes):
        data = CaptionedScenes(16, num_train=24, num_val=8, num_test=6, batch_size=6, num_workers=0)
        data = Codes(data, batch_size=6, eval_batch_size=64, num_workers=0) if codes else data
        torch.manual_seed(3)
        tokenizer = BPETokenizer(length=90, num_tokens=80, dropout=0.2)
        model = TextToImage((3, 16, 16), OfScenes((3, 16, 16)), partial(NETWORK, label_dropout=0.3), tokenizer)
        loop = trainer(max_steps=6, max_epochs=-1, check_val_every_n_epoch=None, val_check_interval=3)
        loop.fit(model, datamodule=data)
        figures = dict(loop.callback_metrics)
        (tested,) = loop.test(model, datamodule=data, verbose=False)
        return model.state_dict(), figures, tested, loop.predict(model, datamodule=data), model.text

    pictures = fitted(codes=False)
    fitted(codes=True)
    monkeypatch.setattr(OfScenes, "may", False)
    again = fitted(codes=True)
    for one, other in zip(pictures, again, strict=True):
        assert not differences(one, other)
    assert pictures[1].keys() >= {"train/nll-text", "val/nll-codes", "val/nll-text"}


class Still:
    """What a step asks of its trainer."""

    world_size, training, global_step = 1, True, 0


def test_the_loss_is_one_eighth_text_and_seven_eighths_codes(monkeypatch):
    captions, maps = torch.tensor([[1, 2], [2, 0], [1, 1]]), every((1, 2, 2))[[5, 50, 80]]
    for dropout, dropped in ((0.0, [False] * 3), (0.5, [True, False, True])):
        model = model_of(network=partial(NETWORK, label_dropout=dropout)).train()
        for name in ("log", "log_dict", "watch"):
            monkeypatch.setattr(model, name, lambda *_, **__: None)
        model._trainer = Still()
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.where(torch.tensor(dropped), 0.1, 0.9))  # noqa: B023
        loss = model.training_step({"codes": [maps[:, 0]], "caption": captions}, 0)
        keep = ~torch.tensor(dropped)
        ((text, codes),) = model.network([maps], captions=captions * keep[:, None], with_text=True)
        of_text = F.cross_entropy(text[keep].flatten(0, 1), captions[keep].flatten())
        expected = of_text / 8 + 7 * F.cross_entropy(codes, maps) / 8
        torch.testing.assert_close(loss, expected)
        monkeypatch.undo()


def _drawn_elsewhere(path, folder):
    os.chdir(folder)
    again = GenerativeModule.load_from_checkpoint(path, trust=("tests",))
    return again.sample(6, captions=["red", "green"] * 3, generator=seeded()).tolist(), list(again.text.vocabulary)


def test_its_checkpoint_is_enough_and_going_on_equals_never_having_stopped(fresh_process, tmp_path):
    """With dropout of captions, features and joins of byte pairs; the vocabulary was learnt from the data.

    It is in another process and folder, and of a first stage that came from a file which is no more.
    """
    data = [{**item, "caption": {"a": "red", "b": "green", "ab": "red green"}[item["caption"]]} for item in colours()]
    inner, elsewhere = save(Mosaic(), tmp_path / "first.ckpt"), tmp_path / "elsewhere"
    elsewhere.mkdir()

    class Data(pl.LightningDataModule):
        def captions(self):
            return [item["caption"] for item in data]

        def train_dataloader(self):
            return DataLoader(data, 12)

    def train(steps, path=None):
        torch.manual_seed(3)
        tokenizer = BPETokenizer(length=12, num_tokens=20, dropout=0.3)
        first = GenerativeModule.load_from_checkpoint(inner, trust=("tests",))
        model = TextToImage((3, 4, 4), first, partial(NETWORK, dropout=0.1, label_dropout=0.3), tokenizer)
        loop = trainer(max_steps=steps, gradient_clip_val=1.0)
        loop.fit(model, datamodule=Data(), ckpt_path=path, weights_only=True)
        loop.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return model, torch.load(tmp_path / f"{steps}.ckpt", weights_only=True)

    model, whole = train(4)
    train(2)
    again = train(4, tmp_path / "2.ckpt")[1]
    assert not differences(whole["state_dict"], again["state_dict"])
    assert not differences(whole["optimizer_states"], again["optimizer_states"])
    inner.unlink()
    drawn, vocabulary = fresh_process(_drawn_elsewhere, tmp_path / "4.ckpt", elsewhere)
    assert vocabulary == list(model.text.vocabulary)
    captions = ["red", "green"] * 3
    assert torch.equal(torch.tensor(drawn), model.sample(6, captions=captions, generator=seeded()))


# Wrong input


def test_what_does_not_fit_is_said():
    first = Mosaic()
    for make, words in (
        (lambda: TextToImage((3, 4, 4), first, partial(GPTNetwork, width=16, heads=2)), "GPTNetwork takes no text"),
        (lambda: TextToImage((3, 4, 4), first, NETWORK, text_weight=1.0), "text_weight must be at least 0"),
        (lambda: TextToImage((3, 4, 4), first, NETWORK, num_classes=2), "TextGPTNetwork takes no num_classes"),
        (lambda: model_of(TwoMaps), "TextGPTNetwork takes no condition_channels|one map of codes"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    model = model_of(tokenizer=ByteTokenizer(length=5))
    for settings, words in (
        ({"captions": ["", "a"]}, "says nothing"),
        ({"captions": ["  ", "a"]}, "says nothing"),
        ({"captions": ["a", "a small house"]}, "has 13 tokens, but the tokenizer has length=5"),
        ({"captions": ["a"]}, "needs 2 captions, a list of strings, got 1"),
        ({"captions": "ab"}, "needs 2 captions, a list of strings, got 'ab'"),
        ({"captions": ["a", "b"], "top_k": 4}, "1 to 3, or None"),
        ({"captions": ["a", "b"], "top_p": 1.01}, "above 0 and at most 1"),
        ({"captions": ["a", "b"], "guidance": math.inf}, "guidance must be"),
        ({"labels": 1}, "no classes"),
    ):
        with pytest.raises(ValueError, match=words):
            model.sample(2, **settings)
    undropped = model_of(network=partial(NETWORK, label_dropout=0.0))
    with pytest.raises(ValueError, match=r"guidance=2 needs .* trained without dropping captions"):
        undropped.sample(2, captions=["a", "b"], guidance=2.0)
    for ask in (lambda: undropped.sample(2), lambda: undropped.log_prob(torch.zeros(2, 3, 4, 4))):
        with pytest.raises(ValueError, match="needs 2 captions"):
            ask()
    with pytest.raises(ValueError, match="needs 3 captions"):
        model.images_and_context({"image": torch.zeros(3, 3, 4, 4)})


def test_characters_that_were_never_seen_are_left_out_with_a_word():
    model = model_of(tokenizer=BPETokenizer(length=8, num_tokens=20).trained_on(["red", "blue"]))
    with pytest.warns(UserWarning, match="ü is in no caption"):
        strange = model.sample(2, captions=["rüed", "red"], generator=seeded())
    assert torch.equal(strange, model.sample(2, captions=["red", "red"], generator=seeded()))
    with pytest.raises(ValueError, match="says nothing"), pytest.warns(UserWarning, match="in no caption"):
        model.sample(1, captions=["xyz!"])


def test_the_smallest_of_its_kind(tmp_path):
    first = Mosaic()
    model = TextToImage((3, 4, 4), first, small(TextGPTNetwork), Letters())
    again = GenerativeModule.load_from_checkpoint(save(model, tmp_path / "a.ckpt"), trust=("tests",))
    assert torch.equal(
        again.sample(2, captions=["a", "b"], generator=seeded()),
        model.sample(2, captions=["a", "b"], generator=seeded()),
    )
