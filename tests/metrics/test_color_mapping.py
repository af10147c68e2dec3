"""Histogram matching is the optimal monotone transport of levels."""

import pytest
import torch

from lightning_gen.metrics.color_mapping import HistogramMatching


def draw(*shape, seed=0, levels=256):
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def fitted(a, b):
    matching = HistogramMatching(a.shape[1])
    matching.update("A", a)
    matching.update("B", b)
    return matching


CURVES = {
    "steep and flat": torch.tensor([min(255, v // 2 if v < 100 else 3 * (v - 100) + 50) for v in range(256)]),
    "gamma": (255 * (torch.arange(256) / 255) ** 2.2).round(),
    "constant": torch.full((256,), 77),
    "shifted": (torch.arange(256) + 40).clamp(max=255),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_monotone_curve_is_recovered_exactly(name):
    """Also where it is flat, and though A and B show the same pixels in another order."""
    curves = torch.stack([CURVES[name], torch.arange(256), CURVES["gamma"]]).to(torch.uint8)
    a = draw(4, 3, 40, 50)
    b = torch.stack([curve[channel.long()] for curve, channel in zip(curves, a.transpose(0, 1), strict=True)], dim=1)
    shuffled = b.flatten(2)[:, :, torch.randperm(2000, generator=torch.Generator().manual_seed(1))].view(b.shape)
    matching = fitted(a, shuffled.flip(0))
    assert torch.equal(matching(a, "AtoB"), b)
    assert torch.equal(matching.tables("AtoB"), curves)


def test_a_distribution_is_mapped_to_itself_by_the_identity():
    a, b = draw(2, 3, 64, 64), draw(2, 3, 64, 64).flip(-1)
    matching = fitted(a, b)
    assert torch.equal(matching(a, "AtoB"), a)
    assert torch.equal(matching(b, "BtoA"), b)


def test_uniform_levels_take_on_any_distribution():
    a = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16)
    weights = torch.rand(256, generator=torch.Generator().manual_seed(0)) ** 4
    b = torch.multinomial(weights, 256, replacement=True, generator=torch.Generator().manual_seed(1))
    b = b.to(torch.uint8).view(1, 1, 16, 16)
    mapped = fitted(a, b)(a, "AtoB")
    assert torch.equal(mapped.flatten().sort().values, b.flatten().sort().values)


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_the_optimal_assignment_found_by_sorting(seed):
    """For distinct levels, the cheapest pairing of two samples joins equal ranks."""
    random = torch.Generator().manual_seed(seed)
    a = torch.randperm(256, generator=random)[:30]
    b = torch.randint(256, (30,), generator=random)
    assigned = torch.empty_like(b)
    assigned[a.argsort()] = b.sort().values
    a, b = (x.to(torch.uint8).view(1, 1, 5, 6) for x in (a, b))
    assert torch.equal(fitted(a, b)(a, "AtoB").flatten().long(), assigned)


def test_domains_of_different_size_and_updates_in_parts():
    a, b = draw(6, 2, 8, 8), draw(2, 2, 8, 8, seed=3, levels=90)
    whole, parts = fitted(a, b), HistogramMatching(2)
    for image in a:
        parts.update("A", image[None])
    parts.update("B", b)
    for direction in ("AtoB", "BtoA"):
        tables = whole.tables(direction)
        assert torch.equal(parts.tables(direction), tables)
        assert (tables[:, 1:].int() >= tables[:, :-1].int()).all()  # a curve, never falling
    # Only levels that domain B has are ever given.
    assert set(whole(a, "AtoB")[:, 0].unique().tolist()) <= set(b[:, 0].unique().tolist())


def test_channels_are_mapped_apart_and_the_shape_is_kept():
    a = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 10.0)])[None].to(torch.uint8)
    b = torch.stack([torch.full((2, 2), 200.0), torch.full((2, 2), 7.0)])[None].to(torch.uint8)
    mapped = fitted(a, b)(a, "AtoB")
    assert mapped.shape == a.shape
    assert mapped.dtype == torch.uint8
    assert torch.equal(mapped, b)


def test_without_pictures_of_both_domains_there_is_no_mapping():
    matching = HistogramMatching()
    matching.update("A", draw(1, 3, 4, 4))
    with pytest.raises(ValueError, match="pictures of both domains"):
        matching(draw(1, 3, 4, 4), "AtoB")
