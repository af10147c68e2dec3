import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers import AdaIN, Blur, NoiseInjection, PixelNorm
from lightning_gen.outlines import outline


def test_the_blur_is_binomial_and_darkens_edges():
    blurred = Blur()(torch.ones(1, 2, 4, 5))
    torch.testing.assert_close(blurred[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 3))
    torch.testing.assert_close(blurred[0, 0, 0], torch.tensor([9.0, 12, 12, 12, 9]) / 16)
    point = torch.zeros(1, 1, 3, 3)
    point[..., 1, 1] = 16
    assert Blur()(point)[0, 0].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_each_channel_is_blurred_alone_in_every_precision():
    features = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    together = Blur()(features)
    for channel in range(3):
        torch.testing.assert_close(Blur()(features[:, channel, None]), together[:, channel, None])
    assert Blur()(features.bfloat16()).dtype == torch.bfloat16


def test_gradients_of_every_order_are_those_of_a_convolution():
    torch.manual_seed(0)
    features, blur = torch.randn(2, 3, 4, 5).double().requires_grad_(), Blur().double()
    kernel = blur.kernel.expand(3, -1, -1, -1)
    found = []
    for function in (blur, lambda x: F.conv2d(x, kernel, padding=1, groups=3)):
        (first,) = torch.autograd.grad(function(features).pow(3).sum(), features, create_graph=True)
        found += [first, *torch.autograd.grad(first.pow(2).sum(), features)]
    torch.testing.assert_close(found[:2], found[2:])
    assert torch.autograd.gradgradcheck(lambda x: blur(x).tanh(), features)
    with torch.no_grad():
        torch.testing.assert_close(blur(features), F.conv2d(features, kernel, padding=1, groups=3))


def test_its_filter_has_values_where_weights_come_from_a_checkpoint():
    with outline():
        blur = Blur()
    assert blur.kernel.sum() == 1
    assert not blur.state_dict()


def test_noise_starts_at_nothing_and_has_a_strength_a_channel():
    torch.manual_seed(0)
    layer, features = NoiseInjection(3, (4, 6)), torch.randn(2, 3, 4, 6)
    for kind in ("random", "fixed", "none"):
        assert torch.equal(layer(features, kind), features)
    layer.strength.data = torch.tensor([0.0, 1.0, -2.0])
    added = layer(features, "fixed") - features
    torch.testing.assert_close(added, torch.tensor([0.0, 1, -2]).view(3, 1, 1) * layer.fixed.expand(2, 1, 4, 6))
    assert torch.equal(layer(features, "none"), features)


def test_random_noise_is_another_in_each_picture_and_a_function_of_its_generator():
    layer, features = NoiseInjection(1, (64, 64)), torch.zeros(2, 1, 64, 64)
    nn.init.ones_(layer.strength)

    def draw(*seeds):
        return layer(features[: len(seeds)], "random", [torch.Generator().manual_seed(seed) for seed in seeds])

    first = draw(3, 4)
    assert torch.equal(first, draw(3, 4))
    assert torch.equal(first[1:], draw(4))
    assert not torch.equal(first[0], first[1])
    assert first.std().item() == pytest.approx(1.0, abs=0.05)  # of 8192 numbers: 0.008
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(3)
    assert torch.equal(torch.get_rng_state(), before)
    layer(features)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_style_says_means_and_deviations():
    torch.manual_seed(0)
    layer = AdaIN(4, 6).double()
    nn.init.normal_(layer.affine.bias)
    features, styles = 3 * torch.randn(2, 4, 8, 8).double() + 1, torch.randn(2, 6).double()
    result = layer(features, styles)
    scale, shift = F.linear(styles, layer.affine.weight / 6**0.5, layer.affine.bias).chunk(2, dim=1)
    torch.testing.assert_close(result.mean((2, 3)), shift)
    torch.testing.assert_close(result.std((2, 3), correction=0), (1 + scale).abs(), rtol=1e-6, atol=1e-6)
    other = layer(5 * features - 2, styles)  # what comes in has no say in them
    torch.testing.assert_close(other, result, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 4, 5)])
def test_pixel_norm_leaves_directions(shape):
    features = 1e3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    normed = PixelNorm()(features)
    torch.testing.assert_close(normed.square().mean(1), torch.ones(shape[:1] + shape[2:]))
    torch.testing.assert_close(F.normalize(normed, dim=1), F.normalize(features, dim=1))
    assert torch.equal(PixelNorm()(torch.zeros(shape)), torch.zeros(shape))
    halves = PixelNorm()(features.half())  # whose squares would overflow
    torch.testing.assert_close(halves.float(), normed, rtol=2e-3, atol=2e-3)
