import pytest
import torch
import torch.nn.functional as F

from lightning_gen.layers.activation import concat_elu


def pictures(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("dim", [1, 2])
def test_concat_elu(dim):
    features = (pictures(2, 3, 4) * 3).requires_grad_()
    expected = F.elu(torch.cat([features, -features], dim))
    torch.testing.assert_close(concat_elu(features, dim), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(concat_elu(features.detach(), dim), expected.detach(), rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(concat_elu, (features, dim))
    assert torch.autograd.gradgradcheck(concat_elu, (features, dim))
    assert concat_elu(torch.tensor([[-200.0, 200, 0]])).tolist() == [[-1, 200, 0, 200, -1, 0]]
    features = torch.tensor([[-1e-9, 1e-9, 0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(concat_elu(features)[:, :3].sum(), features)
    torch.testing.assert_close(gradient, torch.ones(1, 3))


def test_concat_elu_of_halves_is_as_exact_as_they_are():
    features = torch.linspace(-3, 3, 1001).bfloat16()[None]
    expected = F.elu(torch.cat([features, -features], 1).float()).bfloat16()
    torch.testing.assert_close(concat_elu(features), expected, rtol=2**-8, atol=1e-7)
