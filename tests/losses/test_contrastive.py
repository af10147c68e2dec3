"""The contrastive loss: closed forms, and the same whether pairs are on one rank or on two."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_gen.losses import contrastive_loss
from lightning_gen.processes import gathered_with_gradient


def features(seed, number=6, width=5):
    drawn = torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=1)


def test_features_that_say_nothing_cost_log_n():
    same = features(0, 1).expand(7, 5)
    assert contrastive_loss(same, same, torch.tensor(3.0)).item() == pytest.approx(math.log(7))


def test_of_orthogonal_pairs_it_is_known():
    pairs, scale = torch.eye(4, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    expected = -2 + math.log(math.exp(2) + 3)
    assert contrastive_loss(pairs, pairs, scale).item() == pytest.approx(expected, rel=1e-12)
    # Both ways count: pictures that are alike cannot tell captions apart, though captions differ.
    alike = pairs[:1].expand(4, 4)
    of_pictures = (-2 + 3 * 0) / 4 + math.log(math.exp(2) + 3)
    of_texts = (4 * math.log(4)) / 4
    assert contrastive_loss(alike, pairs, scale).item() == pytest.approx((of_pictures + of_texts) / 2, rel=1e-12)


def test_it_is_the_pseudocode_of_the_paper():
    images, texts, scale = features(1), features(2), torch.tensor(7.0, dtype=torch.float64)
    logits, labels = scale * images @ texts.T, torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, scale), expected)


def test_products_are_not_rounded_under_autocast():
    images, texts, scale = (features(seed).float() for seed in (1, 2)), None, torch.tensor(90.0)
    images, texts = images
    expected = contrastive_loss(images, texts, scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(images, texts, scale), expected)


def gradients(images, texts, scale, world=1, own_rank=0):
    """Of the mean of all ranks' losses, as DDP takes it: those of this rank's rows, and of the scale."""
    mine = slice(own_rank * len(images) // world, (own_rank + 1) * len(images) // world)
    images, texts = (part[mine].clone().requires_grad_() for part in (images, texts))
    scale = scale.clone().requires_grad_()
    everything = gathered_with_gradient(images), gathered_with_gradient(texts)
    loss = contrastive_loss(images, texts, scale, *everything, first=own_rank * len(images))
    return [loss.detach(), *torch.autograd.grad(loss, (images, texts, scale))]


def on_one_of_two(own_rank):
    return gradients(features(1), features(2), torch.tensor(5.0, dtype=torch.float64), 2, own_rank)


def test_two_ranks_have_the_loss_and_the_gradients_of_the_joined_batch(on_ranks):
    loss, images, texts, scale = gradients(features(1), features(2), torch.tensor(5.0, dtype=torch.float64))
    found = on_ranks(on_one_of_two)
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss)
    # Those of rows are sums over ranks of losses, of which there are two; DDP halves them with the weights behind them.
    torch.testing.assert_close(torch.cat([each[1] for each in found]) / 2, images)
    torch.testing.assert_close(torch.cat([each[2] for each in found]) / 2, texts)
    torch.testing.assert_close((found[0][3] + found[1][3]) / 2, scale)
