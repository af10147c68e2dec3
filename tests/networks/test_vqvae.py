import math

import pytest
import torch
from torch import nn

from lightning_gen.networks import VQVAE2Decoder, VQVAE2Encoder, VQVAEDecoder, VQVAEEncoder

SMALL = VQVAEEncoder.small


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def conv(size, inputs, outputs):
    return size**2 * inputs * outputs + outputs


STACK = 2 * (conv(3, 128, 32) + conv(1, 32, 128))
FOUR = conv(4, 64, 128) + conv(3, 128, 128) + STACK  # of stride 4, but for what it begins or ends with
TWO = conv(3, 64, 128) + STACK


def test_the_networks_have_the_known_number_of_parameters():
    encoder, decoder = VQVAEEncoder((3, 32, 32), 64), VQVAEDecoder((3, 32, 32), 64, 3)
    assert parameters(encoder) == conv(4, 3, 64) + FOUR + conv(1, 128, 64) == 372_416
    ending = conv(4, 128, 64) + conv(4, 64, 3)
    assert parameters(decoder) == conv(3, 64, 128) + STACK + ending == 290_307


def test_the_networks_of_two_levels_have_the_known_number_of_parameters():
    encoder, decoder = VQVAE2Encoder((3, 256, 256), 64), VQVAE2Decoder((3, 256, 256), 64, 3)
    levels = conv(4, 3, 64) + FOUR + conv(4, 128, 64) + TWO
    assert parameters(encoder) == levels + conv(1, 128, 64) + conv(1, 128 + 64, 64) == 672_000
    context = conv(3, 64, 128) + STACK + conv(4, 128, 64)
    whole = conv(3, 128, 128) + STACK + conv(4, 128, 64) + conv(4, 64, 3)
    assert parameters(decoder) == context + conv(4, 64, 64) + whole == 716_867


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_any_power_of_two_is_a_stride(stride):
    torch.manual_seed(0)
    shape = (2, 16, 48)
    encoder = VQVAEEncoder(shape, 5, stride=stride, **SMALL)
    decoder = VQVAEDecoder(shape, 5, 7, stride=stride, **SMALL)
    features = encoder(torch.rand(3, *shape))
    assert features.shape == (3, 5, 16 // stride, 48 // stride)
    assert decoder(features).shape == (3, 7, 16, 48)
    halvings = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    doublings = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert 2 ** len(halvings) == 2 ** len(doublings) == stride
    # Every pixel is seen, and every output is within reach.
    images = torch.rand(1, *shape, requires_grad=True)
    for weight in [*encoder.parameters(), *decoder.parameters()]:  # so few ReLU might all be off
        weight.data.abs_()
    (gradient,) = torch.autograd.grad(encoder(images).sum(), images)
    assert (gradient != 0).all()
    assert (decoder(features.abs()) != decoder(features.abs() + 1)).all()


@pytest.mark.parametrize("strides", [(4,), (4, 2), (2, 2, 2), (2, 4, 2)])
def test_levels_are_joined_from_coarse_to_fine(strides):
    torch.manual_seed(0)
    shape, levels = (3, 32, 64), len(strides)
    encoder = VQVAE2Encoder(shape, 5, strides=strides, **SMALL)
    decoder = VQVAE2Decoder(shape, 5, 7, strides=strides, **SMALL)
    for weight in [*encoder.parameters(), *decoder.parameters()]:
        weight.data.abs_()
    features = encoder(torch.rand(2, *shape))
    maps = []
    for level, each in enumerate(features):
        whole = math.prod(strides[: levels - level])
        assert each.shape == (2, 8, 32 // whole, 64 // whole)
        maps.append(encoder.to_quantize(level, each, decoder.context(maps)))
        assert maps[-1].shape == (2, 5, 32 // whole, 64 // whole)
    assert decoder(maps).shape == (2, 7, 32, 64)
    # A finer level, and the picture, depend on all coarser maps, wherever these are; a coarser one on no finer.
    for level in range(levels):
        changed = [each * (1 + (number == level)) for number, each in enumerate(maps)]
        for other in range(1, levels):
            before, after = decoder.context(maps[:other]), decoder.context(changed[:other])
            assert bool((before != after).all()) == (other > level)
        assert (decoder(maps) != decoder(changed)).all()
    assert decoder.context([]) is None


def test_a_residual_block_adds_to_what_came():
    encoder = VQVAEEncoder((1, 8, 8), 3, blocks=1)
    block = encoder.layers[-3]
    features = torch.randn(2, 128, 2, 2)
    expected = features + block.conv2(torch.relu(block.conv1(torch.relu(features))))
    assert torch.equal(block(features), expected)
    assert isinstance(encoder.layers[-2], nn.ReLU)


def test_weights_start_as_in_the_authors_example():
    torch.manual_seed(0)
    network = VQVAE2Decoder((3, 64, 64), 64, 3)
    # A normal distribution cut at two deviations has 0.8796 of its deviation.
    for layer, fan_in in ((network.layers[0], 9 * 128), (network.layers[-1], 16 * 64), (network.enlargements[0], 1024)):
        n = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(0.8796 * fan_in**-0.5, rel=5 / math.sqrt(2 * n))
        assert layer.weight.abs().max() <= 2 * fan_in**-0.5
        assert not layer.bias.any()


@pytest.mark.parametrize("network", [VQVAEEncoder, lambda shape, d, **s: VQVAEDecoder(shape, d, 3, **s)])
@pytest.mark.parametrize(
    ("shape", "settings", "words"),
    [
        ((3, 30, 28), {}, "multiples of 4; got 30 x 28. The nearest sizes that fit: 28 x 28 and 32 x 28"),
        ((3, 2, 32), {}, "got 2 x 32. The nearest sizes that fit: 4 x 32"),
        ((3, 36, 32), {"stride": 8}, "multiples of 8; got 36 x 32. .* 32 x 32 and 40 x 32"),
        ((3, 30, 30), {"stride": 3}, "must be a power of two, as 2, 4 or 8; got 3"),
        ((3, 32, 32), {"stride": 1}, "must be a power of two, as 2, 4 or 8; got 1"),
        ((3, 32, 32), {"filters": 1}, "filters >= 2 and blocks >= 0, got 1 and 2"),
        ((3, 32, 32), {"blocks": -1}, "got 128 and -1"),
        ((3, 32, 32), {"residual_filters": 0}, "needs residual_filters[, ]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(network, shape, settings, words):
    with pytest.raises(ValueError, match=words):
        network(shape, 8, **settings)


def test_strides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of 8; got 32 x 36"):
        VQVAE2Encoder((3, 32, 36), 8)
    for strides in ((), (4, 3), (4, 1)):
        with pytest.raises(ValueError, match="Each stride of VQVAE2Decoder must be a power of two"):
            VQVAE2Decoder((3, 32, 32), 8, 3, strides=strides)
