"""Captions as tokens: how a model reads them, as frozen dataclasses of plain data, so that a checkpoint holds them.

A tokenizer gives every caption the same number of tokens. What a caption leaves of that length is filled with token 0,
which no character is; a model may turn it into another learned vector at each place.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_gen.processes import failing_together, from_rank_zero, rank

PADDING = 0
BYTES = 256

Text = TypeVar("Text")


@dataclass(frozen=True)
class BaseTokenizer(ABC):
    """Base of tokenizers, by which models ask for one: a subclass says what the tokens of one caption are.

    Args:
        length: Tokens of every caption.
        truncate: Whether of longer captions the beginning is taken, instead of an error.

    Raises:
        ValueError: If the length is below 1; when it is called, if a caption is empty or too long.
    """

    length: int = 256
    truncate: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"{type(self).__name__} needs a length of at least 1, got {self.length}.")

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens lie in 0 .. num_tokens - 1."""

    @property
    def padding(self) -> int:
        """The token that fills up: 0."""
        return PADDING

    @abstractmethod
    def encode(self, caption: str, rng: np.random.Generator | None = None) -> list[int]:
        """The tokens of one caption, however many; in training with a source of what is random about them."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that fill up."""

    def __call__(self, captions: Sequence[str], rng: np.random.Generator | None = None) -> Tensor:
        """int64 `[N, length]` on the host, of N captions.

        Args:
            captions: N texts.
            rng: In training, the source of what is random about tokens; without it nothing is.
        """
        rows = torch.full((len(captions), self.length), PADDING)
        for row, caption in zip(rows, captions, strict=True):
            tokens = self.encode(caption, rng)
            if len(tokens) > self.length and rng is not None:  # chance must not make it too long
                tokens = self.encode(caption)
            if not tokens:
                raise ValueError(f"The caption {caption!r} says nothing. Give at least one letter that is known.")
            if len(tokens) > self.length and not self.truncate:
                raise ValueError(
                    f"The caption {_shortened(caption)} has {len(tokens)} tokens, but the tokenizer has length="
                    f"{self.length}. Shorten it, or train with a larger length or with truncate=True."
                )
            tokens = tokens[: self.length]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows


@dataclass(frozen=True)
class ByteTokenizer(BaseTokenizer):
    """The bytes of a caption in UTF-8, each plus one: reads all that can be written, and needs no training."""

    @property
    def num_tokens(self) -> int:
        """257."""
        return BYTES + 1

    def encode(self, caption: str, rng: np.random.Generator | None = None) -> list[int]:
        """The bytes, each plus one."""
        return [byte + 1 for byte in caption.strip().encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that fill up."""
        return bytes(token - 1 for token in tokens if token != PADDING).decode(errors="replace")


@dataclass(frozen=True)
class BPETokenizer(BaseTokenizer):
    """Pairs of neighbours joined as often as they occur together (byte-pair encoding, 1508.07909), in lower case.

    A caption is cut into words, each with the space before it, and words into characters. Then the two neighbours whose
    union comes first in `vocabulary` are joined, and so on until none is in it. The vocabulary is learned from the
    captions at hand, once, by the library `tokenizers` (`pip install 'lightning-gen[text]'`), which reading does not
    need. A model learns it from the captions of its data when training begins, and keeps it in its checkpoint:

        tokenizer = BPETokenizer(length=64).trained_on(captions)

    Characters that were in no caption are left out when reading, with a warning that names them.

    Args:
        length: Tokens of every caption; 256 in 2102.12092.
        truncate: Whether of longer captions the beginning is taken, instead of an error.
        num_tokens: Number of tokens, of which one fills up; 16,384 in 2102.12092. Where captions have too few words for
            as many, some are never used.
        dropout: In training, the chance that a join is passed over each time it could be made, so that a word is read
            in several ways (1910.13267).
        vocabulary: The characters, then what joining gave, in order; as `trained_on` finds it.

    Raises:
        ValueError: If a number is out of range; when it is called, if a caption is empty, too long or has no character
            that is known, or there is no vocabulary yet.
    """

    num_tokens: int = 1024
    dropout: float = 0.0
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_tokens < 2 or not 0 <= self.dropout < 1:
            raise ValueError(
                "BPETokenizer needs num_tokens of at least 2 and a dropout in [0, 1), got "
                f"{self.num_tokens} and {self.dropout}."
            )
        if len(self.vocabulary) >= self.num_tokens:
            raise ValueError(
                f"num_tokens={self.num_tokens} is too small for a vocabulary of {len(self.vocabulary)} and the token "
                "that fills up."
            )

    def trained_on(self, captions: Iterable[str]) -> BPETokenizer:
        """The same tokenizer with a vocabulary learned from captions.

        Raises:
            ImportError: If the library `tokenizers` is missing.
            ValueError: If the captions are empty, or have more characters than there may be tokens.
        """
        try:
            from tokenizers import Tokenizer, models, trainers
        except ImportError as error:
            raise ImportError(
                "BPETokenizer learns its vocabulary with the library tokenizers: pip install 'lightning-gen[text]'. "
                "ByteTokenizer needs neither."
            ) from error
        words = [word for caption in captions for word in _words(caption)]
        characters = set().union(*words)
        if not characters:
            raise ValueError("BPETokenizer was given no captions to learn from, or empty ones.")
        if len(characters) >= self.num_tokens:
            raise ValueError(
                f"The captions have {len(characters)} different characters, but there are only num_tokens="
                f"{self.num_tokens}, of which one fills up. Raise num_tokens, or take ByteTokenizer."
            )
        learner = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.num_tokens - 1, min_frequency=2, special_tokens=[], show_progress=False
        )
        learner.train_from_iterator(words, trainer)
        places = learner.get_vocab()
        return replace(self, vocabulary=tuple(sorted(places, key=places.__getitem__)))

    def encode(self, caption: str, rng: np.random.Generator | None = None) -> list[int]:
        """The tokens, without the characters that are not known."""
        if not self.vocabulary:
            raise ValueError(
                "This BPETokenizer has not learned a vocabulary. Use BPETokenizer(...).trained_on(captions), or train "
                "the model on data with captions, which does it."
            )
        tokens: list[int] = []
        words = _words(caption)
        if unknown := set().union(*words) - self._places.keys() - self._told:
            self._told.update(unknown)
            rank_zero_warn(
                f"{' '.join(sorted(unknown))} is in no caption that the tokenizer has learned from. It is left out "
                "wherever it stands."
            )
        for word in words:
            if self.dropout and rng is not None:
                tokens += self._joined(word, rng)
            else:
                if word not in self._known:
                    self._known[word] = self._joined(word)
                tokens += self._known[word]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that fill up: the caption in lower case, with single spaces."""
        return "".join(self.vocabulary[token - 1] for token in tokens if token != PADDING).strip()

    @cached_property
    def _places(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.vocabulary)}

    @cached_property
    def _known(self) -> dict[str, list[int]]:
        """The tokens of words that were read before."""
        return {}

    @cached_property
    def _told(self) -> set[str]:
        """Unknown characters that were spoken about."""
        return set()

    def _joined(self, word: str, rng: np.random.Generator | None = None) -> list[int]:
        """The tokens of a word; with a source of randomness, some joins are passed over."""
        places = self._places
        parts = [character for character in word if character in places]
        if parts == [" "]:
            return []
        while True:
            joins = ((places.get(left + right), i) for i, (left, right) in enumerate(pairwise(parts)))
            possible = [(place, i) for place, i in joins if place is not None]
            if rng is not None:
                possible = [join for join in possible if rng.random() >= self.dropout]
            if not possible:
                return [places[part] + 1 for part in parts]
            i = min(possible)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _words(caption: str) -> list[str]:
    """A caption's words and punctuation in lower case, each with the space before it, if any; one before the first."""
    return re.findall(r" ?\w+| ?[^\w\s]+", " " + " ".join(caption.lower().split()))


def _shortened(caption: str) -> str:
    return repr(caption if len(caption) <= 60 else f"{caption[:57]}...")


def trained_with(tokenizer: Text, data: Any) -> Text:
    """A tokenizer as it is, or where it has yet to learn its vocabulary, one that has learned the captions of data.

    Rank 0 learns, and all have what it has learned.

    Args:
        tokenizer: Of any kind.
        data: A data module; its `captions()` are those of its training pictures.

    Raises:
        ValueError: If it has yet to learn and the data has no captions, or as `BPETokenizer.trained_on`.
    """
    if not isinstance(tokenizer, BPETokenizer) or tokenizer.vocabulary:
        return tokenizer
    trained: Any = None
    with failing_together():
        captions = getattr(data, "captions", None)
        if not callable(captions):
            raise ValueError(
                f"BPETokenizer has no vocabulary, and {type(data).__name__} has no captions() to learn it from. Give "
                "BPETokenizer(...).trained_on(captions), or a data module with captions."
            )
        if rank() == 0:
            trained = tokenizer.trained_on(captions())
            rank_zero_info(f"BPETokenizer has learned {len(trained.vocabulary)} tokens from the captions of the data.")
    learned: Text = from_rank_zero(trained)
    return learned
