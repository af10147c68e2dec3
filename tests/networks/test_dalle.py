import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.networks import DALLEDecoder, DALLEEncoder
from lightning_gen.networks.dalle import Bottleneck


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def convolution(inputs, outputs, kernel):
    return inputs * kernel**2 * outputs + outputs


def block(inputs, outputs, kernels):
    widths = [inputs, *[outputs // 4] * 3, outputs]
    inner = sum(convolution(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(kernels))
    return inner + (convolution(inputs, outputs, 1) if inputs != outputs else 0)


def test_the_published_networks_have_the_known_number_of_parameters():
    with torch.device("meta"):
        encoder, decoder = DALLEEncoder((3, 256, 256), 2048), DALLEDecoder((3, 256, 256), 128, 6)
    # Four groups of two blocks, as in the code of 2102.12092.
    widths = [256, 256, 512, 1024, 2048]
    groups = [block(widths[i], w, (3, 3, 3, 1)) + block(w, w, (3, 3, 3, 1)) for i, w in enumerate(widths[1:])]
    assert parameters(encoder) == convolution(3, 256, 7) + sum(groups) == 37_000_832
    assert parameters(encoder) + convolution(2048, 8192, 1) == 53_786_240
    widths = [128, 2048, 1024, 512, 256]
    groups = [block(widths[i], w, (1, 3, 3, 3)) + block(w, w, (1, 3, 3, 3)) for i, w in enumerate(widths[1:])]
    assert parameters(decoder) == sum(groups) + convolution(256, 6, 1) == 42_781_062
    assert parameters(decoder) + convolution(8192, 128, 1) == 43_829_766
    kinds = [type(layer).__name__ for layer in encoder.layers]
    assert kinds == ["Conv2d", *["Bottleneck", "Bottleneck", "MaxPool2d"] * 3, "Bottleneck", "Bottleneck", "ReLU"]
    kinds = [type(layer).__name__ for layer in decoder.layers]
    assert kinds == [*["Bottleneck", "Bottleneck", "Upsample"] * 3, "Bottleneck", "Bottleneck", "ReLU", "Conv2d"]
    assert {layer.gain for layer in [*encoder.modules(), *decoder.modules()] if isinstance(layer, Bottleneck)} == {
        1 / 64
    }


def test_a_block_written_out():
    torch.manual_seed(0)
    bottleneck, x = Bottleneck(6, 8, (1, 3, 3, 3), 1 / 64), torch.randn(2, 6, 5, 7)
    convolutions = [layer for layer in bottleneck.residual if isinstance(layer, nn.Conv2d)]
    assert [tuple(each.weight.shape) for each in convolutions] == [
        (2, 6, 1, 1), (2, 2, 3, 3), (2, 2, 3, 3), (8, 2, 3, 3)
    ]  # fmt: skip
    inner = x
    for each in convolutions:
        inner = F.conv2d(inner.clamp(min=0), each.weight, each.bias, padding=each.kernel_size[0] // 2)
    expected = F.conv2d(x, bottleneck.skip.weight) + inner / 64
    torch.testing.assert_close(bottleneck(x), expected)
    same = Bottleneck(8, 8, (3, 3, 3, 1), 0.0)
    assert torch.equal(same(expected), expected)  # no convolution, and no ReLU, in the way


def test_weights_begin_with_the_deviation_of_their_fan_in():
    torch.manual_seed(0)
    encoder, decoder = DALLEEncoder((3, 8, 8), 256, filters=128, groups=2), DALLEDecoder((3, 8, 8), 128, 6, groups=2)
    layers = [layer for layer in [*encoder.modules(), *decoder.modules()] if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        fan_in, count = layer.weight[0].numel(), layer.weight.numel()
        # n draws: the deviation is off by std / sqrt(2 n); five times that is allowed.
        assert layer.weight.std().item() * math.sqrt(fan_in) == pytest.approx(1, abs=5 / math.sqrt(2 * count))
        assert not layer.bias.any()


def test_the_encoder_maps_pictures_from_a_tenth_to_nine():
    encoder, seen = DALLEEncoder((1, 4, 4), 8, **DALLEEncoder.small), []
    encoder.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    encoder(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4))
    torch.testing.assert_close(seen[0][:, 0, 0, 0], torch.tensor([0.1, 0.5, 0.9]))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 24), (4, 48, 8)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_any_factor_and_number_of_channels(shape, groups):
    torch.manual_seed(0)
    encoder = DALLEEncoder(shape, 12, filters=6, groups=groups, blocks=1)
    decoder = DALLEDecoder(shape, 5, 7, filters=6, groups=groups, blocks=1)
    factor = 2 ** (groups - 1)
    images = (torch.rand(2, *shape) * 2 - 1).requires_grad_()
    features = encoder(images)
    assert features.shape == (2, 12, shape[1] // factor, shape[2] // factor)
    assert (features >= 0).all()  # the logits' convolution comes after a ReLU
    (gradient,) = torch.autograd.grad(features.sum(), images)
    assert gradient.abs().flatten(1).sum(1).min() > 0
    vectors = torch.randn(2, 5, *features.shape[2:])
    outputs = decoder(vectors)
    assert outputs.shape == (2, 7, *shape[1:])
    torch.testing.assert_close(encoder(images[:1]), features[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder(vectors[:1]), outputs[:1], rtol=1e-4, atol=1e-5)


def test_doubling_is_to_the_nearest_and_halving_keeps_the_largest():
    torch.manual_seed(0)
    encoder, decoder = DALLEEncoder((1, 8, 16), 8, filters=4), DALLEDecoder((1, 8, 16), 3, 2, filters=4)
    for layer in [*encoder.modules(), *decoder.modules()]:
        if isinstance(layer, Bottleneck):
            layer.gain = 0.0
    outputs = decoder(torch.randn(1, 3, 1, 2))
    corners = outputs[..., ::8, ::8]
    assert torch.equal(outputs, corners.repeat_interleave(8, 2).repeat_interleave(8, 3))
    assert not corners[..., 0].allclose(corners[..., 1])
    for layer in encoder.modules():  # each gives the mean of its channels, and the first the pixel itself
        if isinstance(layer, nn.Conv2d):
            kernel = torch.zeros_like(layer.weight)
            middle = layer.kernel_size[0] // 2
            kernel[:, :, middle, middle] = 1 / layer.in_channels
            layer.weight.data = kernel
    images = torch.rand(1, 1, 8, 16) * 2 - 1
    largest = images.unfold(3, 8, 8).amax((2, 4)).view(1, 1, 1, 2)
    torch.testing.assert_close(encoder(images), (0.4 * largest + 0.5).expand(1, 8, 1, 2))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_layout_and_precision_do_not_change_the_answer(kind):
    torch.manual_seed(0)
    encoder, decoder = DALLEEncoder((3, 16, 16), 32, filters=8), DALLEDecoder((3, 16, 16), 8, 6, filters=8)
    images, vectors = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randn(4, 8, 2, 2)
    features, outputs = encoder(images), decoder(vectors)
    encoder, decoder = (network.to(memory_format=torch.channels_last) for network in (encoder, decoder))
    torch.testing.assert_close(encoder(images), features)
    torch.testing.assert_close(decoder(vectors), outputs)
    encoder, decoder = encoder.to(kind), decoder.to(kind)
    # Values of about 1 with 8 bits, through nine blocks.
    torch.testing.assert_close(encoder(images.to(kind)).float(), features, rtol=0, atol=0.1)
    torch.testing.assert_close(decoder(vectors.to(kind)).float(), outputs, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DALLEEncoder((3, 8, 8), 0),
            "DALLEEncoder needs channels, filters, groups and blocks >= 1, got 0, 256",
        ),
        (
            lambda: DALLEDecoder((3, 8, 8), 8, 0),
            "DALLEDecoder needs channels, outputs, filters, groups and blocks >= 1",
        ),
        (lambda: DALLEEncoder((8, 8), 8), "image_shape must be"),
        (
            lambda: DALLEEncoder((3, 30, 32), 8),
            "with groups=4 needs a height and a width divisible by 8, got 30 x 32. Give pictures of 32 x 32, say",
        ),
        (lambda: DALLEDecoder((3, 4, 9), 8, 6, groups=3), "divisible by 4, got 4 x 9. Give pictures of 4 x 8, say"),
        (lambda: DALLEDecoder((3, 1, 1), 8, 6, groups=2), "got 1 x 1. Give pictures of 2 x 2, say, or fewer groups"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
