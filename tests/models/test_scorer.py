"""A judge of captions: it learns to tell them, its temperature has an end, and its score is a metric."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from benchmarks.shipped import small_model
from lightning_gen.capabilities import ScoresCaptions
from lightning_gen.commands.trainer import Trainer
from lightning_gen.data import CaptionedScenes
from lightning_gen.metrics import CaptionScore
from lightning_gen.models import Scorer
from lightning_gen.models.scorer import _share_right
from lightning_gen.networks import CaptionEncoder, PictureEncoder
from lightning_gen.text import BPETokenizer, ByteTokenizer

SHAPE = (3, 16, 16)
CAPTIONS = ["a white house", "two conifers", "no clouds", "a low sun on the left", "open hills"]


def scorer(**arguments):
    torch.manual_seed(0)
    return small_model(Scorer, SHAPE, **{"tokenizer": ByteTokenizer(length=160), **arguments})()


def pictures(number=5):
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def fit(model, data, steps, tmp_path):
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


def test_the_score_is_the_cosine_of_features():
    model = scorer()
    images, texts = model(pictures(), model.text(CAPTIONS))
    assert isinstance(model, ScoresCaptions)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(model.score(pictures(), CAPTIONS), F.cosine_similarity(images, texts).detach())
    assert model.score(pictures(0), []).shape == (0,)


def test_it_learns_to_tell_captions_and_keeps_what_it_reads(tmp_path):
    data = CaptionedScenes(16, num_train=512, num_val=64, batch_size=64, num_workers=0)
    torch.manual_seed(0)
    model = Scorer(
        SHAPE,
        tokenizer=BPETokenizer(length=48, num_tokens=200),
        picture_encoder=partial(PictureEncoder, filters=16),
        caption_encoder=partial(CaptionEncoder, width=32),
        num_features=32,
        learning_rate=2e-3,
    )
    trainer = fit(model, data, 100, tmp_path)
    accuracy, loss = (float(trainer.callback_metrics[f"train/{name}"]) for name in ("accuracy", "loss"))
    assert loss < 0.85 * math.log(64)
    assert accuracy > 5 / 64
    batch = next(iter(data.val_dataloader()))
    metric = CaptionScore(model)
    metric.update(batch["image"], batch["caption"])
    figures = metric.compute()
    assert figures["score"] > figures["shuffled"] + 0.05
    assert model.images_seen == 100 * 64


def test_the_temperature_has_an_end_and_can_come_back(tmp_path):
    data = CaptionedScenes(16, num_train=8, num_val=2, num_test=2, batch_size=4, num_workers=0)
    model = scorer(learning_rate=1e-6)
    model.log_scale.data.fill_(9.0)
    fit(model, data, 1, tmp_path)
    assert model.scale.item() == pytest.approx(100, rel=1e-3)
    # Scaled by 100, features that say nothing are the worse for it.
    model.log_scale.data.fill_(9.0)
    model.default_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    fit(model, data, 1, tmp_path)
    assert model.scale.item() < 99
    assert 1 / scorer(temperature=0.2).scale.item() == pytest.approx(0.2)


def test_the_same_words_are_right_wherever_they_stand():
    features = torch.eye(4)
    said = torch.tensor([[1], [2], [2], [3]])
    # The second picture is nearest to the third caption, which says the same; the fourth to the first.
    pictures = torch.stack([features[0], features[2], features[2], features[0]])
    assert _share_right(pictures, features, said) == 0.75


class Fixed:
    """Scores a picture by its first pixel, and takes away half for captions that are not its number."""

    def score(self, images, captions):
        return images[:, 0, 0, 0] - 0.5 * torch.tensor([float(text) != i for i, text in enumerate(captions)])


def test_the_metric_is_the_mean_over_all_pictures():
    images = pictures(4)
    metric = CaptionScore(Fixed())
    metric.update(images[:3], ["0", "1", "2"])
    metric.update(images[3:], ["0"])
    means = images[:, 0, 0, 0].double()
    figures = metric.compute()
    torch.testing.assert_close(figures["score"], means.mean())
    torch.testing.assert_close(figures["shuffled"], means[:3].mean() - 0.5)
    alone = CaptionScore(Fixed())
    alone.update(images[:1], ["0"])
    assert list(alone.compute()) == ["score"]
    with pytest.raises(ValueError, match="has seen no pictures"):
        CaptionScore(Fixed()).compute()
    with pytest.raises(TypeError, match="scores captions, got a Linear"):
        CaptionScore(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: scorer(temperature=0.001), "temperature from 0.01 to 1, got 128 and 0.001"),
        (lambda: scorer(num_features=0), "num_features of at least 1"),
        (lambda: scorer(learning_rate=0.0), "learning_rate must be above 0"),
        (lambda: scorer().score(pictures()[..., 1:], CAPTIONS), r"Pictures must be \[N, 3, 16, 16\]"),
        (lambda: scorer().score(pictures(), CAPTIONS[1:]), "needs 5 captions"),
        (lambda: scorer().score(pictures(1), [" "]), "says nothing"),
        (lambda: scorer(tokenizer=BPETokenizer()).score(pictures(1), ["a"]), "has not learned a vocabulary"),
    ],
)
def test_what_means_nothing_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
