"""Generators that are made many at once are numpy's, bit for bit."""

import pickle

import numpy as np
import pytest

from lightning_gen.randomness import generator_at


def same(a, b):
    return a.bit_generator.state == b.bit_generator.state


@pytest.mark.parametrize(
    "first", [(), (0,), (0, 0), (7, 3), (3, 7), (2**32, 1), (2**40 + 5, 2**33), (1, 2, 3, 4, 5), (0, 2**100)]
)
def test_each_is_the_one_that_numpy_makes(first):
    """Of all numbers of a block and of some others, of one word of 32 bits, several, or more than go into the pool."""
    for last in [*range(1100), 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**64 + 9]:
        assert same(generator_at(*first, last), np.random.default_rng((*first, last))), last


def test_two_of_a_place_draw_apart_and_alike():
    one, other = generator_at(1, 2), generator_at(1, 2)
    drawn = one.random(3)
    assert (drawn == np.random.default_rng((1, 2)).random(3)).all()
    assert (drawn == other.random(3)).all()


def test_it_does_what_numpy_s_does():
    ours, theirs = generator_at(5, 6), np.random.default_rng((5, 6))
    assert all(same(a, b) for a, b in zip(ours.spawn(3), theirs.spawn(3), strict=True))
    assert same(pickle.loads(pickle.dumps(ours)), theirs)
    seeds = (each.bit_generator.seed_seq for each in (ours, theirs))
    a, b = (np.random.Generator(np.random.MT19937(seed)).random(4) for seed in seeds)
    assert (a == b).all()
    assert same(generator_at(np.int64(5), np.int32(6)), theirs)


@pytest.mark.parametrize("numbers", [(-1, 2), (1, -2), (-1,)])
def test_numbers_below_0_are_refused(numbers):
    with pytest.raises(ValueError, match=r"numbers of 0 or more, got -\d+\."):
        generator_at(*numbers)
