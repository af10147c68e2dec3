"""Tokenizers: what they give back, what they refuse, and that a checkpoint holds what a run has learned to read."""

from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import lightning_gen.text
from lightning_gen.checkpoints import CheckpointError
from lightning_gen.data.scene_attributes import SceneAttributes
from lightning_gen.data.scenes import captions
from lightning_gen.generative import GenerativeModule
from lightning_gen.text import BaseTokenizer, BPETokenizer, ByteTokenizer

SENTENCES = captions(SceneAttributes.draw(300, 0), "night")
LEARNED = BPETokenizer(length=48, num_tokens=120).trained_on(SENTENCES)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), LEARNED])
def test_a_caption_comes_back_and_padding_fills_up(tokenizer):
    tokens = tokenizer(SENTENCES)
    assert tokens.shape == (300, tokenizer.length)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < tokenizer.num_tokens
    assert [tokenizer.decode(row.tolist()) for row in tokens] == SENTENCES
    for row in tokens:  # padding at the end, and nowhere else
        filled = int((row != tokenizer.padding).sum())
        assert (row[:filled] != tokenizer.padding).all()


def test_bytes_read_everything():
    text = "Ein Häuschen, 家 🏠"
    assert ByteTokenizer(length=30).decode(ByteTokenizer(length=30)([text])[0].tolist()) == text


def test_words_are_read_in_lower_case_and_with_single_spaces():
    tokens = LEARNED(["Two  Trees\tunder a HIGH moon", " two trees under a high moon "])
    assert torch.equal(tokens[0], tokens[1])
    assert LEARNED.decode(tokens[0].tolist()) == "two trees under a high moon"


def test_pairs_are_joined_by_how_often_they_occur():
    # "ab" stands five times, "bc" three times; joined, "ab" and then "abc".
    words = ["ab"] * 2 + ["abc"] * 3
    learned = BPETokenizer(num_tokens=7).trained_on(words)
    assert learned.vocabulary[:4] == (" ", "a", "b", "c")
    assert len(learned.vocabulary) == 6
    assert learned.vocabulary[4] in (" a", "ab")
    assert learned.encode("abc") == [6, 4]


def test_it_reads_as_the_library_that_it_has_learned_with():
    tokenizers = pytest.importorskip("tokenizers")
    tokens = LEARNED.vocabulary
    merges = []
    for token in (token for token in tokens if len(token) > 1):
        before = set(tokens[: tokens.index(token)])
        parts = [token[:i] for i in range(1, len(token)) if {token[:i], token[i:]} <= before]
        merges += [(part, token[len(part) :]) for part in parts]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    for sentence in SENTENCES:
        words = lightning_gen.text._words(sentence)
        assert LEARNED.encode(sentence) == [i + 1 for word in words for i in theirs.encode(word).ids]


def test_what_is_often_takes_few_tokens():
    assert len(LEARNED.encode("two windows under a high moon")) == 6
    assert len(LEARNED.encode("windy hoods")) > 6


def test_dropout_reads_words_in_several_ways_and_only_where_asked_to():
    noisy = replace(LEARNED, dropout=0.3, length=110)
    plain = replace(LEARNED, length=110)(SENTENCES)
    assert torch.equal(noisy(SENTENCES), plain), "in evaluation"
    first, again, other = (noisy(SENTENCES, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first > 0).sum() > 1.2 * (plain > 0).sum()
    assert [noisy.decode(row.tolist()) for row in first] == SENTENCES
    assert torch.equal(replace(LEARNED, length=110)(SENTENCES, np.random.default_rng(0)), plain)
    # No caption becomes too long by chance.
    assert replace(LEARNED, dropout=0.9)(SENTENCES, np.random.default_rng(0)).shape == (300, 48)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(length=8), replace(LEARNED, length=8)])
def test_captions_that_cannot_be_read_are_refused(tokenizer):
    for nothing in ("", " \n"):
        with pytest.raises(ValueError, match="says nothing"):
            tokenizer([SENTENCES[0][:3], nothing])
    long = "seven trees " * 9
    with pytest.raises(ValueError, match=r"has \d+ tokens, but the tokenizer has length=8"):
        tokenizer([long])
    cut = replace(tokenizer, truncate=True)([long])
    assert cut.shape == (1, 8)
    assert (cut > 0).all()


def test_unknown_characters_are_left_out_with_a_word():
    tokenizer = replace(LEARNED)
    with pytest.warns(UserWarning, match="[é 家 is]+ in no caption"):
        tokens = tokenizer(["a pink housé 家"])
    assert tokenizer.decode(tokens[0].tolist()) == "a pink hous"
    with pytest.raises(ValueError, match="says nothing"):
        tokenizer(["家"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ByteTokenizer(length=0), "length of at least 1, got 0"),
        (lambda: BPETokenizer(num_tokens=1), "num_tokens of at least 2"),
        (lambda: BPETokenizer(dropout=1.0), "dropout in"),
        (lambda: BPETokenizer(num_tokens=3, vocabulary=("a", "b", "c")), "num_tokens=3 is too small"),
        (lambda: BPETokenizer().trained_on(["", " "]), "no captions to learn from"),
        (lambda: BPETokenizer(num_tokens=5).trained_on(["abcde"]), "6 different characters, but .* num_tokens=5"),
        (lambda: BPETokenizer()(["a"]), "has not learned a vocabulary"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- in a model -----------------------------------------------------------------------------------------------------


class Reader(GenerativeModule):
    def __init__(self, image_shape=(3, 2, 2), tokenizer: BaseTokenizer = BPETokenizer()) -> None:  # noqa: B008
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.declare_context(text=tokenizer)
        self.embedding = nn.Embedding(tokenizer.num_tokens, 2)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.images_and_context(batch)[1]["captions"])
        return self.embedding(self.seen[-1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Captioned(pl.LightningDataModule):
    def __init__(self, sentences=SENTENCES):
        super().__init__()
        self.sentences = sentences

    def captions(self):
        return self.sentences

    def train_dataloader(self):
        # The same caption all along: a plain loader does not know where to go on.
        return DataLoader([{"image": torch.full((3, 2, 2), -0.5), "caption": self.sentences[-1]}] * 12, 2)


def fit(model, data, steps, tmp_path, **resume):
    pl.seed_everything(3)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, **resume)
    return trainer


def test_a_model_learns_to_read_from_its_data_and_its_checkpoint_is_enough(tmp_path):
    model = Reader(tokenizer=BPETokenizer(length=48, num_tokens=120))
    trainer = fit(model, Captioned(), 2, tmp_path)
    assert model.text == LEARNED
    trainer.save_checkpoint(tmp_path / "reader.ckpt")
    again = Reader.load_from_checkpoint(tmp_path / "reader.ckpt")
    assert again.text == LEARNED
    saved = torch.load(tmp_path / "reader.ckpt", weights_only=True)["hyper_parameters"]["tokenizer"]
    assert saved["class_path"] == "lightning_gen.text.BPETokenizer"
    # Captions that came later change nothing for a run that goes on.
    other = Reader(tokenizer=BPETokenizer(length=48, num_tokens=120))
    fit(other, Captioned(["zzz yyy", *SENTENCES]), 4, tmp_path, ckpt_path=tmp_path / "reader.ckpt")
    assert other.text == LEARNED


def test_a_run_that_goes_on_draws_the_tokens_that_it_would_have_drawn(tmp_path):
    noisy = replace(LEARNED, dropout=0.3, length=110)
    through = Reader(tokenizer=noisy)
    fit(through, Captioned(), 5, tmp_path)
    stopped = Reader(tokenizer=noisy)
    fit(stopped, Captioned(), 2, tmp_path).save_checkpoint(tmp_path / "stopped.ckpt")
    going_on = Reader(tokenizer=noisy)
    fit(going_on, Captioned(), 5, tmp_path, ckpt_path=tmp_path / "stopped.ckpt")
    assert [torch.equal(a, b) for a, b in zip(through.seen[2:], going_on.seen, strict=True)] == [True] * 3
    assert not torch.equal(through.seen[0], noisy(SENTENCES[-1:] * 2))
    assert not torch.equal(through.seen[2], through.seen[3])


def test_data_without_captions_says_so(tmp_path):
    data = Captioned()
    data.captions = None
    with pytest.raises(ValueError, match=r"Captioned has no captions\(\) to learn it from"):
        fit(Reader(), data, 1, tmp_path)


def test_a_checkpoint_cannot_name_another_class_as_its_tokenizer(tmp_path):
    model = Reader(tokenizer=LEARNED)
    fit(model, Captioned(), 1, tmp_path).save_checkpoint(tmp_path / "reader.ckpt")
    checkpoint = torch.load(tmp_path / "reader.ckpt", weights_only=True)
    for class_path, words in (("os.system", "refused"), ("torch.nn.Linear", "must be a BaseTokenizer")):
        checkpoint["hyper_parameters"]["tokenizer"] = {"class_path": class_path, "init_args": {}}
        torch.save(checkpoint, tmp_path / "hostile.ckpt")
        with pytest.raises(CheckpointError, match=words):
            Reader.load_from_checkpoint(tmp_path / "hostile.ckpt")
