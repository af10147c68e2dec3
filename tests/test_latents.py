"""Latents by number, and the great circle between them."""

import math

import pytest
import torch

from lightning_gen.latents import numbered_latents, slerp
from lightning_gen.randomness import generator_for

WEIGHTS = [i / 8 for i in range(9)]


def vectors(number=64, size=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, number, size, generator=draw, dtype=torch.float64)


def angle(a, b):
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def test_unit_vectors_stay_on_the_sphere_and_turn_evenly():
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in vectors())
    path = torch.stack([slerp(a, b, weight) for weight in WEIGHTS])
    torch.testing.assert_close(path.norm(dim=-1), torch.ones(9, 64, dtype=path.dtype))
    whole = angle(a, b)
    for i, weight in enumerate(WEIGHTS):
        torch.testing.assert_close(angle(a, path[i]), weight * whole)
        torch.testing.assert_close(angle(path[i], b), (1 - weight) * whole)
        # Shoemake's formula.
        shares = [(share * whole).sin() / whole.sin() for share in (1 - weight, weight)]
        torch.testing.assert_close(path[i], shares[0][:, None] * a + shares[1][:, None] * b)


def test_lengths_go_linearly_whatever_the_directions():
    a, b = vectors()
    b = 5 * b
    whole = angle(a, b)
    for weight in WEIGHTS:
        between = slerp(a, b, weight)
        torch.testing.assert_close(between.norm(dim=-1), a.norm(dim=-1).lerp(b.norm(dim=-1), weight))
        torch.testing.assert_close(angle(a, between), weight * whole, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_both_ends_are_exact_and_the_way_back_is_the_same(dtype):
    a, b = vectors().to(dtype)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    for weight in WEIGHTS:
        assert slerp(a, b, weight).dtype == dtype
        torch.testing.assert_close(slerp(a, b, weight), slerp(b, a, 1 - weight))


def test_parallel_vectors_keep_their_direction():
    a, _ = vectors()
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    torch.testing.assert_close(slerp(a, a * (1 + 1e-15), 0.5), a)


@pytest.mark.parametrize("disturbance", [0, 1e-16, 1e-12])
def test_opposite_vectors_have_a_way_of_full_length(disturbance):
    a, noise = vectors()
    b = -(a + disturbance * noise)
    for weight in WEIGHTS:
        between = slerp(a, b, weight)
        torch.testing.assert_close(between.norm(dim=-1), a.norm(dim=-1))
        torch.testing.assert_close(
            angle(a, between), torch.full((64,), weight * math.pi, dtype=torch.float64), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(between, slerp(b, a, 1 - weight), rtol=0, atol=1e-5)


def test_zero_vectors_are_passed_in_a_line():
    a, _ = vectors()
    zero = torch.zeros_like(a)
    torch.testing.assert_close(slerp(a, zero, 0.25), 0.75 * a)
    torch.testing.assert_close(slerp(zero, a, 0.25), 0.25 * a)
    assert torch.equal(slerp(zero, zero, 0.25), zero)


def test_shapes_broadcast():
    a, b = vectors(4)
    for weight in (0.0, 0.4, 1.0):
        assert torch.equal(slerp(a[0], b, weight)[2], slerp(a[0], b[2], weight))


def test_each_vector_can_have_its_own_weight():
    a, b = vectors(len(WEIGHTS))
    together = slerp(a, b, torch.tensor(WEIGHTS))
    for i, weight in enumerate(WEIGHTS):
        assert torch.equal(together[i], slerp(a[i], b[i], weight))
    # One path for each of several starts, all at once.
    paths = slerp(a, b[0], torch.tensor(WEIGHTS)[:, None])
    assert paths.shape == (9, 9, 16)
    assert torch.equal(paths[3], slerp(a, b[0], WEIGHTS[3]))
    assert torch.equal(paths[-1], b[0].expand(9, 16))


class Prior:
    def draw_latents(self, num_samples, generator=None):
        return torch.randn(num_samples, 5, generator=generator)


def test_a_latent_depends_on_its_number_and_the_seed_alone():
    many = numbered_latents(Prior(), range(40), seed=3)
    assert torch.equal(numbered_latents(Prior(), [7, 39, 7], seed=3), many[[7, 39, 7]])
    assert len(many.unique(dim=0)) == 40
    assert not torch.isclose(many, numbered_latents(Prior(), range(40), seed=4)).any()
    # Neighbouring seeds and numbers do not share streams, as sums of the two would.
    assert not torch.isclose(many[1:], numbered_latents(Prior(), range(39), seed=4)).any()
    assert many.mean().abs() < 4 / math.sqrt(200)


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    numbered_latents(Prior(), range(3), seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("seed", "number", "message"), [(-1, 0, "seed must be 0 or more"), (0, -2, "got -2")])
def test_negative_numbers_are_refused(seed, number, message):
    with pytest.raises(ValueError, match=message):
        generator_for(seed, number)
