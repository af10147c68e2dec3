"""VQGAN's networks against the published counts and formulas, and the Gaussian that can stand for their quantizer."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_gen.networks import GaussianLatent, VQGANDecoder, VQGANEncoder
from lightning_gen.networks.vqgan import _Attention, _Downsampling


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def conv(inputs, outputs, side):
    return inputs * outputs * side**2 + outputs


def residual(inputs, outputs):
    shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + conv(inputs, outputs, 3) + 2 * outputs + conv(outputs, outputs, 3) + shortcut


def attention(channels):
    return 2 * channels + 4 * conv(channels, channels, 1)


SMALL = (3, 8, 8)
MIDDLE = 2 * residual(512, 512) + attention(512)


def test_the_encoder_of_factor_16_has_the_published_number_of_parameters():
    # 2012.09841, appendix, table 7 and the authors' imagenet_vqgan.yaml: widths 128 x (1, 1, 2, 2, 4), two blocks each.
    levels = [128, 128, 128, 256, 256, 512]
    blocks = sum(residual(i, o) + residual(o, o) for i, o in pairwise(levels))
    halvings = sum(conv(width, width, 3) for width in (128, 128, 256, 256))
    ends = conv(3, 128, 3) + 2 * 512 + conv(512, 256, 3) + conv(256, 256, 1)
    with torch.device("meta"):
        encoder = VQGANEncoder((3, 256, 256), 256)
    assert parameters(encoder) == ends + blocks + 2 * attention(512) + halvings + MIDDLE == 29_363_968


def test_the_decoder_of_factor_16_has_the_published_number_of_parameters():
    levels = [512, 512, 256, 256, 128, 128]
    blocks = sum(residual(i, o) + 2 * residual(o, o) for i, o in pairwise(levels))
    doublings = sum(conv(width, width, 3) for width in (512, 256, 256, 128))
    ends = conv(256, 256, 1) + conv(256, 512, 3) + 2 * 128 + conv(128, 3, 3)
    with torch.device("meta"):
        decoder = VQGANDecoder((3, 256, 256), 256, 3)
    assert parameters(decoder) == ends + blocks + 3 * attention(512) + doublings + MIDDLE == 42_515_587


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2)])
@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 4, 4), (2, 32, 16)])
def test_any_factor_and_any_size_that_fits(shape, multipliers):
    torch.manual_seed(0)
    factor, settings = 2 ** (len(multipliers) - 1), {"filters": 8, "multipliers": multipliers, "blocks": 1}
    encoder = VQGANEncoder(shape, 5, **settings, attention=(4,), z_channels=6)
    decoder = VQGANDecoder(shape, 5, 7, **settings, attention=(4,), z_channels=6)
    images = torch.randn(2, *shape, requires_grad=True)
    features = encoder(images)
    assert features.shape == (2, 5, shape[1] // factor, shape[2] // factor)
    output = decoder(features)
    assert output.shape == (2, 7, *shape[1:])
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [*encoder.parameters(), *decoder.parameters()])
    assert images.grad.ne(0).all(), "a pixel that nothing depends on"
    # A picture does not depend on the others of its batch.
    torch.testing.assert_close(encoder(images[1:]), features[1:], rtol=1e-4, atol=1e-5)


def test_attention_is_where_maps_are_as_high_as_was_said():
    def places(network, size):
        with torch.device("meta"):
            layers = network((3, size, size), 8, *((3,) if network is VQGANDecoder else ())).layers
        return [i for i, layer in enumerate(layers) if isinstance(layer, _Attention)]

    def number(network, size):
        return len(places(network, size)) - 1  # the one in the middle is always there

    assert (number(VQGANEncoder, 256), number(VQGANDecoder, 256)) == (2, 3)
    assert (number(VQGANEncoder, 64), number(VQGANDecoder, 64)) == (2, 3)
    assert number(VQGANEncoder, 512) == 0
    # At 64 pixels maps of 16 are those after two halvings: before the third in one, after the second in the other.
    with torch.device("meta"):
        halvings = [i for i, x in enumerate(VQGANEncoder((3, 64, 64), 8).layers) if isinstance(x, _Downsampling)]
    assert halvings[1] < places(VQGANEncoder, 64)[0] < places(VQGANEncoder, 64)[1] < halvings[2]


def test_dropout_is_there_where_it_was_asked_for():
    kinds = [
        sum(
            isinstance(layer, nn.Dropout) for layer in VQGANEncoder(SMALL, 4, dropout=p, **VQGANEncoder.small).modules()
        )
        for p in (0.0, 0.1)
    ]
    assert kinds == [0, 4]


def test_attention_is_the_softmax_of_products_over_the_root_of_the_channels():
    torch.manual_seed(0)
    block, features = _Attention(8), torch.randn(2, 8, 3, 2)
    maps = nn.functional.group_norm(features, 4, block.norm.weight, block.norm.bias, 1e-6).flatten(2)
    weight, bias = block.query_key_value.weight.flatten(1), block.query_key_value.bias
    q, k, v = (weight[i : i + 8] @ maps + bias[i : i + 8, None] for i in (0, 8, 16))
    gathered = v @ torch.softmax(q.transpose(1, 2) @ k / math.sqrt(8), 2).transpose(1, 2)
    expected = features + block.out(gathered.view(2, 8, 3, 2))
    torch.testing.assert_close(block(features), expected)


def test_halvings_pad_at_the_right_and_below():
    down = _Downsampling(1)
    with torch.no_grad():
        down.weight.zero_()
        down.weight[0, 0, 0, 0] = 1.0  # the upper left pixel of the kernel lies on even ones
        down.bias.zero_()
        images = torch.arange(16.0).view(1, 1, 4, 4)
        assert torch.equal(down(images)[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
        down.weight.zero_()
        down.weight[0, 0, 2, 2] = 1.0
        assert torch.equal(down(images)[0, 0], torch.tensor([[10.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("network", [VQGANEncoder, VQGANDecoder])
@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((3, 64, 70), {}, r"VQGAN.*coder needs height and width that are multiples of 16, got 64 x 70.* 64 x 64"),
        ((3, 64, 64), {"multipliers": ()}, r"multipliers of VQGAN.*coder must be at least 1 each, got \[\]"),
        ((3, 64, 64), {"multipliers": (1, 0)}, r"at least 1 each, got \[1, 0\]"),
        ((3, 64, 64), {"filters": 0}, "filters"),
        ((3, 64, 64), {"blocks": 0}, "blocks"),
    ],
)
def test_what_fits_nothing_is_refused(network, shape, settings, message):
    with pytest.raises(ValueError, match=message):
        network(shape, 8, *((3,) if network is VQGANDecoder else ()), **settings)


# -- the Gaussian latent ----------------------------------------------------------------------------------------------


def test_a_gaussian_latent_is_drawn_in_training_and_the_mean_otherwise():
    latent = GaussianLatent(4).eval()
    means = torch.tensor([[1.0, -2.0]]).view(1, 2, 1, 1).expand(1, 2, 100, 100)
    log_variances = torch.tensor([[math.log(0.25), 50.0]]).view(1, 2, 1, 1).expand(1, 2, 100, 100)
    features = torch.cat([means, log_variances], 1)
    assert latent.vector_size == 2
    latents, codes, _ = latent(features)
    assert torch.equal(latents, means)
    assert codes.shape == (1, 0, 100, 100)
    torch.manual_seed(0)
    drawn = latent.train()(features).quantized
    # 10,000 draws: the mean within 5 std / 100, the deviation within 5 std / 141. The second is cut to e^10.
    for channel, std in enumerate((0.5, math.exp(10))):
        assert drawn[:, channel].mean().item() == pytest.approx(means[0, channel, 0, 0].item(), abs=5 * std / 100)
        assert drawn[:, channel].std().item() == pytest.approx(std, rel=5 / 141)


@pytest.mark.parametrize("number", [1, 8, 64])
def test_its_loss_is_nats_of_a_picture_whatever_the_batch(number):
    features = torch.linspace(-1, 1, 24).view(1, 4, 2, 3).repeat(number, 1, 1, 1).requires_grad_()
    means, log_variances = features.detach()[0].double().chunk(2)
    expected = (means**2 + log_variances.exp() - 1 - log_variances).sum() / 2
    losses = GaussianLatent(4, kl_weight=0.5)(features).losses
    assert losses["kl"].item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    losses["kl"].backward()
    torch.testing.assert_close(features.grad[0, :2] * number, 0.5 * means.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GaussianLatent(4, kl_weight=0.5)(features).losses["kl"], losses["kl"])


def test_it_needs_two_numbers_a_latent():
    for channels, weight in ((3, 1.0), (0, 1.0), (2, -1.0), (2, math.inf)):
        with pytest.raises(ValueError, match="even number of channels"):
            GaussianLatent(channels, weight)
