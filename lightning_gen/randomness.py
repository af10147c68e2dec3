"""Generators of random numbers, made of plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

_TOGETHER = 1024  # generators whose states are worked out at once


def seed_from(*numbers: int) -> int:
    """A seed that depends on these numbers, each 0 or more, and on their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(seed: int, number: int) -> torch.Generator:
    """A random generator on the CPU whose state depends on these two numbers alone.

    Raises:
        ValueError: If one of them is negative.
    """
    for name, value in (("seed", seed), ("number of a picture", number)):
        if value < 0:
            raise ValueError(f"The {name} must be 0 or more, got {value}.")
    return torch.Generator().manual_seed(seed_from(seed, number))


def chosen_generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator:
    """The generator that was given, or that of a seed, or one from fresh entropy.

    Raises:
        ValueError: If both are given, or the seed is negative.
    """
    if generator is not None and seed is not None:
        raise ValueError(f"A generator and seed={seed} were both given, and each says what is drawn. Leave one out.")
    if seed is not None:
        return generator_for(seed, 0)
    return generator or fresh_generator()


def generator_at(*numbers: int) -> np.random.Generator:
    """`np.random.default_rng(numbers)` to the bit, in a quarter of its time where the last numbers follow each other.

    Raises:
        ValueError: If a number is negative.
    """
    block, place = divmod(numbers[-1], _TOGETHER)
    seed: Any = _Seed(numbers, _states(numbers[:-1], block)[place])
    return np.random.Generator(np.random.PCG64(seed))


class _Seed(ISpawnableSeedSequence):
    """A `SeedSequence` of numbers that knows already what a PCG64 asks of it."""

    def __init__(self, numbers: tuple[int, ...], state: NDArray[np.uint64]) -> None:
        self.numbers, self.state = numbers, state

    def generate_state(self, n_words: int, dtype: type = np.uint32) -> NDArray[np.uint32 | np.uint64]:  # type: ignore[override]
        if (n_words, dtype) == (4, np.uint64):
            return self.state
        return np.random.SeedSequence(self.numbers).generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[np.random.SeedSequence]:
        return np.random.SeedSequence(self.numbers).spawn(n_children)


@lru_cache(maxsize=8)
def _states(first: tuple[int, ...], block: int) -> NDArray[np.uint64]:
    """What `SeedSequence((*first, number))` gives a PCG64 for each number of a block: uint64 `[_TOGETHER, 4]`.

    This is numpy's algorithm, which it promises to keep, on arrays in place of words of 32 bits.
    """
    start = block * _TOGETHER
    words = [np.full(_TOGETHER, word, np.uint32) for number in (*first, start) for word in _words_of(number)]
    words[-len(_words_of(start))] += np.arange(_TOGETHER, dtype=np.uint32)  # a block does not reach from word to word
    constants = _constants(0x43B0D7E5, 0x931E8875)
    pool = [_hashed(word, constants) for word in [*words, *[np.zeros_like(words[0])] * 4][:4]]
    for source, target in permutations(range(4), 2):
        pool[target] = _mixed(pool[target], _hashed(pool[source], constants))
    for word, target in product(words[4:], range(4)):
        pool[target] = _mixed(pool[target], _hashed(word, constants))
    constants = _constants(0x8B51F9DD, 0x58F38DED)
    halves = np.stack([_hashed(word, constants) for word in pool * 2], axis=1)
    return halves.astype("<u4").view("<u8").astype(np.uint64)


def _words_of(number: int) -> list[int]:
    """The words of 32 bits of a number, from the lowest, at least one."""
    if number < 0:
        raise ValueError(f"Random generators are made of numbers of 0 or more, got {number}.")
    return [number >> shift & 0xFFFFFFFF for shift in range(0, max(int(number).bit_length(), 1), 32)]


def _constants(constant: int, factor: int) -> Iterator[tuple[np.uint32, np.uint32]]:
    """Powers of a factor times a constant, each with the next one."""
    while True:
        following = constant * factor % 2**32
        yield np.uint32(constant), np.uint32(following)
        constant = following


def _hashed(words: NDArray[np.uint32], constants: Iterator[tuple[np.uint32, np.uint32]]) -> NDArray[np.uint32]:
    before, after = next(constants)
    words = (words ^ before) * after
    return words ^ (words >> np.uint32(16))


def _mixed(words: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.uint32]:
    words = words * np.uint32(0xCA01F9DD) - others * np.uint32(0x4973F715)
    return words ^ (words >> np.uint32(16))


def fresh_generator() -> torch.Generator:
    """A random generator on the CPU from fresh entropy, which leaves the global random state alone."""
    generator = torch.Generator()
    generator.seed()
    return generator
