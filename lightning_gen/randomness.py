"""Generators of random numbers, made of plain numbers."""

from __future__ import annotations

import numpy as np
import torch


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


def fresh_generator() -> torch.Generator:
    """A random generator on the CPU from fresh entropy, which leaves the global random state alone."""
    generator = torch.Generator()
    generator.seed()
    return generator
