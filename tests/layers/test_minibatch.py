"""The deviation over groups against a loop, and that it sees a collapse only where fakes are alone."""

import pytest
import torch
from torch import nn

from lightning_gen.layers import MinibatchStd
from lightning_gen.layers.ties import on_both, ties_samples


def by_hand(features, group_size):
    """Picture by picture, feature by feature."""
    number = len(features)
    group = max(size for size in range(1, group_size + 1) if number % size == 0)
    groups = number // group
    maps = []
    for i in range(number):
        members = [features[j] for j in range(number) if j % groups == i % groups]
        assert len(members) == group
        mean = sum(members) / group
        variance = sum((member - mean) ** 2 for member in members) / group
        maps.append((variance + 1e-8).sqrt().mean().expand(1, *features.shape[2:]))
    return torch.cat([features, torch.stack(maps)], dim=1)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 8, 14])
@pytest.mark.parametrize("group_size", [4, 2, 1, 16])
def test_it_equals_the_loop_for_every_number_of_pictures(number, group_size):
    features = torch.randn(number, 3, 2, 5, generator=torch.Generator().manual_seed(number)).double()
    torch.testing.assert_close(MinibatchStd(group_size)(features), by_hand(features, group_size))


def test_one_picture_has_no_deviation_but_for_epsilon():
    assert MinibatchStd()(torch.randn(1, 2, 2, 2))[0, 2].unique().item() == pytest.approx(1e-4)


def test_equal_pictures_have_finite_second_derivatives():
    features = torch.ones(4, 2, 2, 2).double().requires_grad_()
    (gradient,) = torch.autograd.grad(MinibatchStd()(features).square().sum(), features, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), features)
    assert gradient.isfinite().all()
    assert second.isfinite().all()


def test_in_halves_it_is_reckoned_in_float32():
    features = 100 + torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = MinibatchStd()(features)
    assert result.dtype == torch.bfloat16
    expected = MinibatchStd()(features.float())[:, 2]
    torch.testing.assert_close(result[:, 2].float(), expected, rtol=2**-8, atol=0)


def test_a_collapse_is_seen_because_reals_and_fakes_go_apart():
    """Eight collapsed fakes differ by a hundredth; in one call with reals they would seem to differ as those do."""
    draw = torch.Generator().manual_seed(0)
    reals = torch.randn(8, 1, 8, 8, generator=draw)
    fakes = torch.randn(1, 1, 8, 8, generator=draw) + 0.01 * torch.randn(8, 1, 8, 8, generator=draw)
    layer = MinibatchStd()
    network = nn.Sequential(layer)
    assert ties_samples(network)
    assert not ties_samples(MinibatchStd(1))
    _, apart = (scores[:, 1].mean().item() for scores in on_both(network, reals, fakes))
    joined = layer(torch.cat([reals, fakes]))[8:, 1].mean().item()
    assert apart < 0.02
    assert joined > 0.3


def test_a_group_of_none_is_refused():
    with pytest.raises(ValueError, match="group_size of at least 1, got 0"):
        MinibatchStd(0)
