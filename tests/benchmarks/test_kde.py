"""How densities are compared that may be minus infinity."""

import math

import torch

from benchmarks.kde import largest_difference


def test_equal_infinities_are_no_difference_and_others_are_all():
    one = torch.tensor([1.0, -math.inf, 2.0])
    assert largest_difference(one, one + torch.tensor([0.25, 0, 0])) == 0.25
    assert largest_difference(one, torch.tensor([1.0, 3.0, 2.0])) == math.inf
