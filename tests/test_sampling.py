"""Sampling from latents, and what a model is given besides pictures."""

import math
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.capabilities import HasLatents
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import GAN
from lightning_gen.randomness import fresh_generator
from lightning_gen.sampling import LatentSampling, samples_at_once

SHAPE = (1, 2, 2)


def seeded():
    return torch.Generator().manual_seed(0)


# -- from latents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "number"), [((1, 1, 1), 256), ((3, 64, 64), 256), ((3, 128, 128), 85), ((3, 4096, 4096), 1)]
)
def test_fewer_large_pictures_are_drawn_at_once(shape, number):
    assert samples_at_once(shape) == number
    assert number == 1 or number * math.prod(shape) <= 2**22


class Decoder(LatentSampling):
    """Maps of latents, as an autoencoder has them, classes, and a setting of its own."""

    latent_shape = (4, 1, 1)

    def __init__(self, image_shape=SHAPE, num_classes=None):
        super().__init__(image_shape)
        self.declare_context(num_classes=num_classes)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Dropout())
        self.sizes = []

    def generate_from(self, latents, labels, psi=1.0):
        self.sizes.append(len(latents))
        shift = 0.0 if labels is None else labels.view(-1, 1, 1, 1)
        return self.network(psi * self.own(latents)).view(-1, *self.image_shape) + shift

    def sample(self, num_samples, *, labels=None, generator=None, psi: float = 1.0):
        labels = self.sampling_context(num_samples, labels).get("labels")
        return self.generate(self.draw_latents(num_samples, generator), labels, psi=psi)


def test_latents_may_be_maps_and_a_model_may_have_settings():
    model = Decoder()
    assert isinstance(model, HasLatents)
    latents = model.draw_latents(3, seeded())
    assert latents.shape == (3, 4, 1, 1)
    assert torch.equal(latents, torch.randn(3, 4, 1, 1, generator=seeded()))
    images = model.sample(3, generator=seeded(), psi=0.5)
    assert torch.equal(images, model.generate(0.5 * latents))
    assert not images.requires_grad
    assert model.network[2].training
    with pytest.raises(ValueError, match=r"Latents must be \[N, 4, 1, 1\] for this Decoder, got \[3, 4\]"):
        model.generate(latents.flatten(1))
    with pytest.raises(TypeError, match="phi"):
        model.generate(latents, phi=0.5)
    assert model.sample(0).shape == (0, *SHAPE)


def test_large_pictures_are_drawn_in_smaller_parts():
    model = Decoder((3, 200, 200))
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3 * 200 * 200))
    assert model.sample(70, generator=seeded()).shape == (70, 3, 200, 200)
    assert model.sizes == [34, 34, 2]


def test_classes_come_in_turn_unless_they_are_given():
    model = Decoder(num_classes=3)
    in_turn = model.sample(7, generator=seeded())
    assert torch.equal(in_turn, model.sample(7, labels=torch.arange(7) % 3, generator=seeded()))
    plain = Decoder()
    plain.load_state_dict(model.state_dict())
    difference = in_turn - plain.sample(7, generator=seeded())
    torch.testing.assert_close(difference, (torch.arange(7.0) % 3).view(-1, 1, 1, 1).expand(7, *SHAPE))


def test_without_a_generator_entropy_is_fresh_and_the_global_state_stays():
    model, before = Decoder(), torch.get_rng_state()
    drawn = [torch.rand(4, generator=fresh_generator()) for _ in range(3)]
    drawn += [model.draw_latents(1).flatten() for _ in range(2)]
    assert len({tuple(values.tolist()) for values in drawn}) == 5
    assert torch.equal(torch.get_rng_state(), before)


# -- what is given besides pictures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letters:
    """The places of letters in the alphabet, cut or filled up to a length."""

    length: int = 3
    num_tokens: int = 27
    padding: int = 0

    def __call__(self, captions, rng=None):
        rows = [[ord(letter) - 96 for letter in text[: self.length]] for text in captions]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows])


class Told(GenerativeModule):
    def __init__(self, **context):
        super().__init__(SHAPE)
        self.declare_context(**context)
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, context = self.images_and_context(batch)
        self.seen.append(context)
        return (self.weight - images).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model, examples, batch_size=2):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(examples, batch_size))


def examples(number=4):
    return [
        {
            "image": torch.full(SHAPE, -0.5),
            "label": i % 3,
            "condition": torch.full((2, 2, 2), float(i)),
            "caption": "abcd"[: i + 1],
        }
        for i in range(number)
    ]


def test_a_batch_gives_all_that_a_model_takes():
    model = Told(num_classes=3, condition_channels=2, text=Letters())
    fit(model, examples())
    first, second = model.seen
    assert first.keys() == {"labels", "condition", "captions"}
    assert (first["labels"].tolist(), second["labels"].tolist()) == ([0, 1], [2, 0])
    assert torch.equal(second["condition"][:, 0, 0, 0], torch.tensor([2.0, 3.0]))
    assert first["captions"].tolist() == [[1, 0, 0], [1, 2, 0]]
    assert second["captions"].tolist() == [[1, 2, 3], [1, 2, 3]]


def test_what_a_model_does_not_take_may_be_in_the_data():
    model = Told()
    fit(model, examples())
    assert model.seen == [{}, {}]


@pytest.mark.parametrize(
    ("settings", "missing", "words"),
    [
        ({"num_classes": 3}, "label", "This Told has num_classes=3, but no labels were given"),
        ({"condition_channels": 2}, "condition", r"needs a condition of shape \[2, 2, 2, 2\], got none"),
        ({"condition_channels": 5}, "", r"condition of shape \[2, 5, 2, 2\], got \[2, 2, 2, 2\]"),
        ({"text": Letters()}, "caption", r"needs 2 captions, a list of strings, got none\. .*'caption'"),
        ({"num_classes": 2}, "", r"Labels must lie in 0 \.\. 1 for num_classes=2; got 2 \.\. 2"),
    ],
)
def test_what_is_missing_or_wrong_in_a_batch_is_said(settings, missing, words):
    data = [{name: value for name, value in example.items() if name != missing} for example in examples()]
    data[0] |= {"label": 2} if "label" in data[0] else {}
    data[1] |= {"label": 2} if "label" in data[1] else {}
    with pytest.raises(ValueError, match=words):
        fit(Told(**settings), data)


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({}, {"labels": 0}, r"This Told has no classes \(num_classes\), but labels were given"),
        ({}, {"condition": torch.zeros(2, 1, 2, 2)}, "conditioned on no map"),
        ({}, {"captions": ["a", "b"]}, r"reads no captions \(text\)"),
        ({"num_classes": 3}, {"labels": torch.zeros(2, 3)}, r"Labels must be \[N\] or one for all, got \[2, 3\] for 2"),
        ({"num_classes": 3}, {"labels": torch.tensor([0, 3])}, "got 0 .. 3"),
        ({"text": Letters()}, {"captions": "ab"}, "a list of strings, got 'ab'"),
        ({"text": Letters()}, {"captions": ["a"]}, "needs 2 captions, a list of strings, got 1"),
    ],
)
def test_what_is_given_in_vain_or_does_not_fit(settings, given, words):
    with pytest.raises(ValueError, match=words):
        Told(**settings).context(2, **given)


def test_one_label_is_that_of_all():
    assert Told(num_classes=3).context(4, 2)["labels"].tolist() == [2] * 4


@pytest.mark.parametrize("settings", [{"num_classes": 0}, {"condition_channels": 0}])
def test_numbers_below_one_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be at least 1, or null for .*; got 0"):
        Told(**settings)


def test_texts_are_cut_as_pictures_are():
    model, texts = GAN(SHAPE, micro_batches=3), list("abcdefgh")
    assert model.cut(texts) == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]
    assert [len(piece) for piece in model.cut(torch.zeros(8, 1))] == model.cut(8) == [3, 3, 2]
    pieces = [torch.zeros(1), torch.zeros(2)]
    assert model.cut(pieces) is pieces
    assert GAN(SHAPE).cut(texts) == [texts]
